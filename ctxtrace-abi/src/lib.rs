//! The memory that a probed program and ctxtrace share: who writes it, who reads it, and when.
//!
//! A program that links `ctxtrace-probe` keeps one [`ThreadState`] for each of its threads, as a thread-local of the main
//! executable, and one [`Registry`]. It only ever writes them, with plain stores; nobody answers. ctxtrace's BPF programs
//! read them from the kernel:
//!
//! * the [`Slot`] at every kernel switch and every wakeup the thread makes: which task is being polled, and the number of
//!   the poll;
//! * the [`Tables`] and the registry's names once, when the thread ends, before its memory goes.
//!
//! Everything is `repr(C)`, made of integers, without padding, and valid as zeroes, so a thread-local of it takes no place
//! in the executable. A change of layout changes [`MAGIC`].
//!
//! Where ctxtrace asks for it, the program also says when each poll began and ended, in [`rings`] of shared memory.
//!
//! This crate has no dependency and no code but the arithmetic of the [`bucket`]s and the packing of records, so that a probed
//! program pulls in nothing else.
#![no_std]

pub mod bucket;
pub mod rings;

/// [`Slot::magic`] and [`Registry::magic`] of this layout: `ctxprob1`.
pub const MAGIC: u64 = u64::from_le_bytes(*b"ctxprob1");

/// Tasks that are told apart in the [`Tables`]: an index is below this. Index 0 stands for all tasks beyond.
pub const TASK_INDICES: usize = 1_024;
/// Tasks with a name: the ids 1 to this less one are handed out by the probe, in order, and are their own index.
pub const NAMED_TASKS: usize = 512;
/// Bytes of a task's name; a longer one is cut at a character.
pub const NAME_BYTES: usize = 40;
/// Polls whose task is remembered in [`Tables::recent`]; a power of two.
pub const RECENT_POLLS: usize = 1_024;
/// Buckets of [`Tables::messages_per_poll`]: everything below 2^20, then one for the rest.
pub const MESSAGE_BUCKETS: usize = bucket::SUB_BUCKETS * (20 - bucket::SUB_BITS as usize + 1) + 1;

/// Set in the id of a task that a runtime's hook has announced by the runtime's own id, which makes up the other bits.
pub const HOOKED: u64 = 1 << 62;
/// [`Slot::flags`]: this thread polls tasks, or will: it was announced to be a thread of a runtime.
pub const RUNTIME_THREAD: u64 = 1;

/// The index of a task in the [`Tables`].
///
/// Named tasks take the lower half by their id, hooked ones the upper half by the runtime's id; 0 for what does not fit.
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

/// What is read at every kernel switch: one cache line.
///
/// The stores of a poll's beginning are made in this order: `task`, then [`Tables::recent`], then `polls`; of its end:
/// `task` alone. So a thread that is switched out between any two of them shows a state that is true: a poll whose task
/// is set and whose number is not counted yet is being polled.
#[repr(C, align(64))]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Slot {
    /// [`MAGIC`] from the thread's first poll on, or from when it was announced or entered a section; 0 before.
    pub magic: u64,
    /// The innermost task being polled; 0 if none is.
    pub task: u64,
    /// Outermost polls begun by this thread: the number of the poll.
    pub polls: u64,
    /// Of them, those of the same task as the thread's previous outermost poll.
    pub repolls: u64,
    /// Polls begun within another poll.
    pub nested_polls: u64,
    /// Messages the program has marked on this thread.
    pub messages: u64,
    /// The measured section the program was in when the last outermost poll began, or 0.
    pub section: u64,
    /// [`RUNTIME_THREAD`].
    pub flags: u64,
}

const _: () = assert!(size_of::<Slot>() == 64);

/// What is read once, at the thread's end.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct Tables {
    /// Address of the program's [`Registry`]; 0 as long as [`Slot::magic`] is.
    pub registry: u64,
    /// Task of the thread's previous outermost poll; private to the probe.
    pub last_task: u64,
    /// [`Slot::messages`] when the current outermost poll began; private to the probe.
    pub messages_before: u64,
    /// Outermost polls by the task's index.
    pub polls_by_task: [u64; TASK_INDICES],
    /// Outermost polls by the number of messages marked in them, in log-linear buckets ([`message_bucket`]).
    pub messages_per_poll: [u64; MESSAGE_BUCKETS],
    /// Index of the task of outermost poll number n, at n modulo [`RECENT_POLLS`].
    pub recent: [u16; RECENT_POLLS],
}

const _: () = assert!(size_of::<Tables>() == 24 + 8 * TASK_INDICES + 8 * MESSAGE_BUCKETS + 2 * RECENT_POLLS);

/// Everything a thread keeps: the value of the probe's thread-local.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct ThreadState {
    /// Read at every kernel switch.
    pub slot: Slot,
    /// Read at the thread's end.
    pub tables: Tables,
}

impl ThreadState {
    /// The state of a thread that has polled nothing.
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

/// What a program keeps once, for all its threads.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct Registry {
    /// [`MAGIC`].
    pub magic: u64,
    /// Number of the measured section the program is in; 0 outside of any.
    pub section: u64,
    /// Tasks created so far: the highest id handed out, which may be beyond what has a name.
    pub tasks: u64,
    /// Names by task id, UTF-8, padded with zeroes; that of id 0 is unused.
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

/// The bucket of a number of messages; always below [`MESSAGE_BUCKETS`].
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
    fn indices_tell_named_and_hooked_tasks_apart_and_stay_in_bounds() {
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
