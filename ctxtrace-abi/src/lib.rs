//! Layout of the memory that a probed program writes and ctxtrace reads.
//!
//! A program that links `ctxtrace-probe` has one [`ThreadState`] for each of its threads, in a thread-local variable of
//! the main executable, and one [`Registry`]. The program writes them and never reads an answer. A thread writes its
//! own state with plain stores. ctxtrace's BPF programs read this memory from the kernel:
//!
//! * the [`Slot`] at every kernel switch of the thread and at every wakeup that the thread makes: which task the thread
//!   is polling, and the number of the poll;
//! * [`Tables::recent`] when a reading of the slot shows that a task switch hit the kernel;
//! * the rest of the [`Tables`] and the registry's names when the thread ends, before its memory is released.
//!
//! All types are `repr(C)`, consist of integers, have no padding, and are valid if all bytes are 0. A thread-local
//! variable that starts as zeroes takes no space in the executable file. Any change of the layout must change
//! [`MAGIC`].
//!
//! If ctxtrace asks for it, the program also records the beginning and end of each poll in [`rings`] in shared memory.
//!
//! This crate has no dependency, and no code except the arithmetic of the [`bucket`]s and the packing of records, so
//! that a probed program links nothing else.
#![no_std]

pub mod bucket;
pub mod rings;

/// Value of [`Slot::magic`] and [`Registry::magic`] for this layout: `ctxprob1`.
pub const MAGIC: u64 = u64::from_le_bytes(*b"ctxprob1");

/// Number of task indices in the [`Tables`]. Index 0 is shared by all tasks without an index of their own.
pub const TASK_INDICES: usize = 1_024;
/// Upper bound of the ids of tasks with a name. The probe assigns the ids 1 to 511 in order, and each is its own task
/// index. Later tasks have an id, but neither a name nor an index.
pub const NAMED_TASKS: usize = 512;
/// Longest name of a task, in bytes. A longer name is cut between two characters.
pub const NAME_BYTES: usize = 40;
/// Number of polls whose task is kept in [`Tables::recent`]; a power of two.
pub const RECENT_POLLS: usize = 1_024;
/// Number of buckets of [`Tables::messages_per_poll`]: those for all values below 2^20, and one for larger values.
pub const MESSAGE_BUCKETS: usize = bucket::SUB_BUCKETS * (20 - bucket::SUB_BITS as usize + 1) + 1;

/// Bit that is set in the id of a task that was announced by a hook of the runtime. The other bits are the runtime's
/// own id.
pub const HOOKED: u64 = 1 << 62;
/// Bit of [`Slot::flags`]: the thread was announced as a thread of a runtime, so it polls tasks or will poll some.
pub const RUNTIME_THREAD: u64 = 1;

/// Returns the index of a task in the [`Tables`].
///
/// A task of the probe has its id as its index, below [`NAMED_TASKS`]. A hooked task has its runtime id plus
/// [`NAMED_TASKS`]. An id of 512 or more has index 0.
#[inline(always)]
#[must_use]
pub const fn task_index(id: u64) -> u16 {
    let own = id & !HOOKED;
    if own >= NAMED_TASKS as u64 {
        0
    } else if id & HOOKED != 0 {
        own as u16 + NAMED_TASKS as u16
    } else {
        own as u16
    }
}

/// The part of a thread's state that is read at every kernel switch: one cache line.
///
/// At the beginning of an outermost poll the stores are made in this order: `task`, then [`Tables::recent`], then
/// `polls`. At its end `task` is stored last. A thread that is switched out between any two of these stores therefore
/// shows a valid state: if `task` is set and `polls` is not raised yet, that task is already being polled.
#[repr(C, align(64))]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Slot {
    /// [`MAGIC`] after the thread's first poll has begun, or after the thread was announced or entered a section; 0
    /// before.
    pub magic: u64,
    /// The innermost task being polled; 0 if no task is being polled.
    pub task: u64,
    /// Number of outermost polls that this thread has begun. It is also the number of the current poll.
    pub polls: u64,
    /// Number of those outermost polls that were of the same task as the thread's previous outermost poll.
    pub repolls: u64,
    /// Number of polls begun within another poll.
    pub nested_polls: u64,
    /// Number of messages that the program has marked on this thread.
    pub messages: u64,
    /// Number of the measured section that the program was in when the last outermost poll began, or 0. Also stored by
    /// the thread that begins or ends a section.
    pub section: u64,
    /// [`RUNTIME_THREAD`] or 0.
    pub flags: u64,
}

const _: () = assert!(size_of::<Slot>() == 64);

/// The part of a thread's state that is read at the thread's end, except [`Tables::recent`], which is read at each hit.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct Tables {
    /// Address of the program's [`Registry`]; 0 while [`Slot::magic`] is 0.
    pub registry: u64,
    /// Task of the thread's previous outermost poll. Used only by the probe.
    pub last_task: u64,
    /// Value of [`Slot::messages`] when the current outermost poll began. Used only by the probe.
    pub messages_before: u64,
    /// Number of outermost polls, by the task's index ([`task_index`]).
    pub polls_by_task: [u64; TASK_INDICES],
    /// Number of outermost polls, by the number of messages marked in the poll, in log-linear buckets
    /// ([`message_bucket`]).
    pub messages_per_poll: [u64; MESSAGE_BUCKETS],
    /// Index of the task of outermost poll number n, at position n modulo [`RECENT_POLLS`].
    pub recent: [u16; RECENT_POLLS],
}

const _: () = assert!(size_of::<Tables>() == 24 + 8 * TASK_INDICES + 8 * MESSAGE_BUCKETS + 2 * RECENT_POLLS);

/// The whole state of a thread: the value of the probe's thread-local variable.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct ThreadState {
    /// The part that is read at every kernel switch.
    pub slot: Slot,
    /// The part that is read at the thread's end.
    pub tables: Tables,
}

impl ThreadState {
    /// The state of a thread that has polled no task.
    pub const EMPTY: Self = Self {
        slot: Slot {
            magic: 0,
            task: 0,
            polls: 0,
            repolls: 0,
            nested_polls: 0,
            messages: 0,
            section: 0,
            flags: 0,
        },
        tables: Tables {
            registry: 0,
            last_task: 0,
            messages_before: 0,
            polls_by_task: [0; TASK_INDICES],
            messages_per_poll: [0; MESSAGE_BUCKETS],
            recent: [0; RECENT_POLLS],
        },
    };
}

/// The state that a program has once, for all its threads.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct Registry {
    /// [`MAGIC`].
    pub magic: u64,
    /// Number of the measured section that the program is in; 0 outside of any section.
    pub section: u64,
    /// Number of tasks created so far, which is the highest id assigned. It may exceed the number of names.
    pub tasks: u64,
    /// Names of tasks by task id, in UTF-8, padded with zeroes. The entry of id 0 is unused.
    pub names: [[u8; NAME_BYTES]; NAMED_TASKS],
}

const _: () = assert!(size_of::<Registry>() == 24 + NAME_BYTES * NAMED_TASKS);

impl Registry {
    /// The registry of a program that has created no task.
    pub const EMPTY: Self = Self {
        magic: MAGIC,
        section: 0,
        tasks: 0,
        names: [[0; NAME_BYTES]; NAMED_TASKS],
    };
}

/// Returns the bucket of a number of messages, which is always below [`MESSAGE_BUCKETS`].
#[inline(always)]
#[must_use]
pub fn message_bucket(messages: u64) -> usize {
    let bucket = bucket::bucket_of(messages);
    if bucket < MESSAGE_BUCKETS {
        bucket
    } else {
        MESSAGE_BUCKETS - 1
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn named_and_hooked_tasks_have_distinct_indices_in_bounds() {
        assert_eq!(task_index(1), 1);
        assert_eq!(task_index(511), 511);
        assert_eq!(task_index(512), 0);
        assert_eq!(task_index(u64::MAX), 0);
        assert_eq!(task_index(HOOKED | 1), 513);
        assert_eq!(task_index(HOOKED | 511), 1_023);
        assert_eq!(task_index(HOOKED | 512), 0);
    }

    #[test]
    fn messages_have_a_bucket_whatever_their_number() {
        assert_eq!(message_bucket(0), 0);
        assert_eq!(message_bucket(15), 15);
        assert_eq!(message_bucket((1 << 20) - 1), MESSAGE_BUCKETS - 2);
        assert_eq!(message_bucket(1 << 20), MESSAGE_BUCKETS - 1);
        assert_eq!(message_bucket(u64::MAX), MESSAGE_BUCKETS - 1);
    }
}
