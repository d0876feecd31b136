//! Tables of sums that user space empties while programs add to them.
//!
//! A program looks an element up and adds to it; were the element read and deleted in between, what is added last would be
//! lost. So each key in such a table has a *generation*, which a program reads from the table's [`TableState`] before it looks
//! the key up. To empty a table, user space
//!
//! 1. stores the other generation in the state: programs that begin from now on leave the elements of the old one alone;
//! 2. waits until every program that may have read the old generation has ended (`membarrier(2)` waits for an RCU grace period,
//!    and programs run within RCU read sections);
//! 3. reads and deletes the elements of the old generation at leisure.
//!
//! What finds no room in a table while that goes on is an *addition*: it goes to user space by itself, through a ring. Its length says
//! which table it is for: [`Gathered`](crate::stack::Gathered), [`WakerAddition`](crate::wakeup::WakerAddition) or
//! [`EdgeAddition`](crate::wakeup::EdgeAddition).
//!
//! How many elements have been made is counted where they are made, which is seldom; at [`TableState::wake_at`] the reader is woken.

use bytemuck::{Pod, Zeroable};

use crate::process::TaskKey;
use crate::stack::SumKey;
use crate::wakeup::{EdgeKey, WakerStackKey};

/// The tables that are emptied while a run goes on; the number is the index of the table's [`TableState`].
#[repr(u32)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Table {
    /// Distinct stacks. A stack never changes, so its table needs no generations.
    Stacks = 0,
    /// Sums of switch-outs.
    SwitchSums = 1,
    /// Sums of wakeups by the stacks of their makers.
    WakerSums = 2,
    /// Wakeups by who woke whom.
    Edges = 3,
    /// Task switches that hit the kernel.
    Hits = 4,
    /// The ring of ended threads, which has no generations either. It is told to be half full by its bytes.
    Ended = 5,
}

impl Table {
    /// How many there are.
    pub const COUNT: usize = 6;
}

/// What programs need to know of one table.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Pod, Zeroable)]
pub struct TableState {
    /// The generation that elements are made with now: 0 or 1.
    pub generation: u64,
    /// Elements made since user space stored this state; bytes of the ring of ended threads.
    pub made: u64,
    /// At so many of them the reader is woken; 0 for never.
    pub wake_at: u64,
    /// Whether it has been woken since.
    pub woken: u64,
}

/// A key with a generation.
pub trait Generational: Copy {
    /// The generation the key has.
    fn generation(&self) -> u64;
    /// The same key without one.
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

/// Where the generation of a key of hits is: above the index of the task, which has 16 bits.
pub const HIT_GENERATION_SHIFT: u32 = 32;

/// Of the key of a task's hits.
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
