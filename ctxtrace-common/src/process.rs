//! A followed process, as the kernel side knows it.

use bytemuck::{Pod, Zeroable};

/// Places of the table that tells at a glance that a process is *not* a target: a power of two.
pub const FILTER_PLACES: u32 = 1 << 14;

/// The place of a process in that table. Others have the same place: what is set there says "perhaps", and only what is not
/// set says "no".
#[inline(always)]
#[must_use]
pub const fn filter_place(tgid: u32) -> u32 {
    tgid & (FILTER_PLACES - 1)
}

/// Value of the process table, whose key is the thread-group id.
///
/// A thread that is not in the thread table belongs to the target if its group is here. Thread-group ids are reused, so the
/// start time is part of the identity: it is that of the group's leader (`task_struct.start_boottime`), which `execve`
/// preserves even where another thread takes the leader's place (kernel: `fs/exec.c`, `de_thread()`).
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Pod, Zeroable)]
pub struct Process {
    /// Start of the group's leader in `CLOCK_BOOTTIME` nanoseconds; 0 until the first of its threads is seen, for a
    /// process that user space asked to follow by its id alone.
    pub start_boottime_ns: u64,
    /// Threads alive; the entry goes when the last one has made its last switch. Of a process that was attached to, the
    /// threads that have been seen and are alive, plus [`ATTACHED`]: others may never have been seen, so the entry stays.
    pub live_threads: u64,
    /// Of the tasks its program has created, those whose names have been brought home.
    pub tasks_named: u64,
}

const _: () = assert!(size_of::<Process>() == 24);

/// See [`Process::live_threads`]; more than there can be threads.
pub const ATTACHED: u64 = 1 << 32;

impl Process {
    /// A process of which `live_threads` threads are alive.
    #[inline(always)]
    #[must_use]
    pub const fn new(start_boottime_ns: u64, live_threads: u64) -> Self {
        Self {
            start_boottime_ns,
            live_threads,
            tasks_named: 0,
        }
    }

    /// Threads that have been seen and have not made their last switch.
    #[inline(always)]
    #[must_use]
    pub const fn threads_to_end(&self) -> u64 {
        self.live_threads % ATTACHED
    }
}

/// A process's program: what it is until it calls `execve` again.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord, Pod, Zeroable)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub struct Image {
    /// Process id.
    pub tgid: u32,
    /// How many times it had called `execve` since it was first seen.
    pub number: u32,
}

/// A task of one program; key of the tables of tasks.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord, Pod, Zeroable)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub struct TaskKey {
    /// The task's id within the program.
    pub task: u64,
    /// The program.
    pub image: Image,
}

const _: () = assert!(size_of::<Image>() == 8 && size_of::<TaskKey>() == 16);
