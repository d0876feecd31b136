//! Tables of sums that user space empties while programs add to them.
//!
//! A program looks an element up and then adds to it. If user space read and deleted the element in between, the
//! addition would be lost. So each key in such a table has a *generation*, which a program reads from the table's
//! [`TableState`] before it looks the key up. To empty a table, user space
//!
//! 1. stores the other generation in the state, so that programs that start later do not use the elements of the old
//!    generation;
//! 2. waits until every program that may have read the old generation has ended (`membarrier(2)` waits for an RCU grace
//!    period, and programs run within RCU read sections);
//! 3. reads and deletes the elements of the old generation, without further constraints on time.
//!
//! If a table has no room for a new element in the meantime, the program sends an *addition* to user space through a
//! ring buffer. The length of the record identifies the table: [`Gathered`](crate::stack::Gathered),
//! [`WakerAddition`](crate::wakeup::WakerAddition) or [`EdgeAddition`](crate::wakeup::EdgeAddition).
//!
//! New elements are counted where they are made, which is seldom. When there are [`TableState::wake_at`] of them, the
//! kernel side wakes the reader.

use bytemuck::{Pod, Zeroable};

use crate::process::TaskKey;
use crate::stack::SumKey;
use crate::wakeup::{EdgeKey, WakerStackKey};

/// The tables that user space empties during a run. The number is the index of the table's [`TableState`].
#[repr(u32)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Table {
    /// Distinct stacks. A stack never changes, so this table needs no generations.
    Stacks = 0,
    /// Sums of switch-outs.
    SwitchSums = 1,
    /// Sums of wakeups, by the stacks of the waker.
    WakerSums = 2,
    /// Wakeups, by waker and woken thread.
    Edges = 3,
    /// Task switches that hit the kernel.
    Hits = 4,
    /// The ring buffer with the records of ended threads. It has no generations, and its fill level is its number of
    /// unread bytes.
    Ended = 5,
}

impl Table {
    /// Number of tables.
    pub const COUNT: usize = 6;
}

/// The state of one table that programs read.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Pod, Zeroable)]
pub struct TableState {
    /// Generation of new elements: 0 or 1.
    pub generation: u64,
    /// Number of elements made since user space stored this state. Not used for [`Table::Ended`].
    pub made: u64,
    /// Value of `made` at which the kernel side wakes the reader; for [`Table::Ended`] a number of unread bytes. 0 for
    /// never.
    pub wake_at: u64,
    /// 1 if the reader has been woken since user space stored this state, otherwise 0.
    pub woken: u64,
}

/// A key with a generation.
pub trait Generational: Copy {
    /// Returns the key's generation.
    fn generation(&self) -> u64;
    /// Returns the same key with generation 0.
    #[must_use]
    fn without_generation(self) -> Self;
}

impl Generational for SumKey {
    fn generation(&self) -> u64 {
        u64::from(self.generation)
    }

    fn without_generation(self) -> Self {
        Self { generation: 0, ..self }
    }
}

impl Generational for WakerStackKey {
    fn generation(&self) -> u64 {
        u64::from(self.generation)
    }

    fn without_generation(self) -> Self {
        Self { generation: 0, ..self }
    }
}

impl Generational for EdgeKey {
    fn generation(&self) -> u64 {
        u64::from(self.generation)
    }

    fn without_generation(self) -> Self {
        Self { generation: 0, ..self }
    }
}

/// First bit of the generation in the key of a task's hits. The bits below hold the task's index, which has 16 bits.
pub const HIT_GENERATION_SHIFT: u32 = 32;

/// The key of a task's hits.
impl Generational for TaskKey {
    fn generation(&self) -> u64 {
        self.task >> HIT_GENERATION_SHIFT
    }

    fn without_generation(self) -> Self {
        Self {
            task: self.task & ((1 << HIT_GENERATION_SHIFT) - 1),
            ..self
        }
    }
}
