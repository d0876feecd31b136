//! A process of the target, as the kernel side knows it.

use bytemuck::{Pod, Zeroable};

/// Number of entries of the table that rejects most processes that are *not* targets; a power of two.
pub const FILTER_PLACES: u32 = 1 << 14;

/// Returns the entry of a process in that table. Several processes share an entry: if it is set, the process may be a
/// target; if it is not set, the process is not.
#[inline(always)]
#[must_use]
pub const fn filter_place(tgid: u32) -> u32 {
    tgid & (FILTER_PLACES - 1)
}

/// Value of the process table, whose key is the thread-group id.
///
/// A thread that is not in the thread table belongs to the target if its thread group is in this table. Thread-group
/// ids are reused, so the start time is part of the identity. It is the start time of the group's leader
/// (`task_struct.start_boottime`), which `execve` preserves even if another thread becomes the leader (kernel:
/// `fs/exec.c`, `de_thread()`).
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Pod, Zeroable)]
pub struct Process {
    /// Start time of the group's leader in `CLOCK_BOOTTIME` nanoseconds. For a process that user space follows by its
    /// id alone it is 0 until the first of its threads is seen.
    pub start_boottime_ns: u64,
    /// Number of live threads. The entry is removed when the last thread has made its last switch. For a process that
    /// was attached to, it is the number of live threads that have been seen plus [`ATTACHED`]: other threads may never
    /// have been seen, so the entry stays.
    pub live_threads: u64,
    /// Number of the program's tasks whose names have been sent to user space.
    pub tasks_named: u64,
}

const _: () = assert!(size_of::<Process>() == 24);

/// Added to [`Process::live_threads`] of a process that was attached to. It is larger than any number of threads.
pub const ATTACHED: u64 = 1 << 32;

impl Process {
    /// Returns a process with `live_threads` live threads.
    #[inline(always)]
    #[must_use]
    pub const fn new(start_boottime_ns: u64, live_threads: u64) -> Self {
        Self {
            start_boottime_ns,
            live_threads,
            tasks_named: 0,
        }
    }

    /// Returns the number of threads that have been seen and have not made their last switch.
    #[inline(always)]
    #[must_use]
    pub const fn threads_to_end(&self) -> u64 {
        self.live_threads % ATTACHED
    }
}

/// A program as run by one process. It changes with each `execve` of the process.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord, Pod, Zeroable)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub struct Image {
    /// Process id.
    pub tgid: u32,
    /// Number of calls of `execve` by the process since it was first seen.
    pub number: u32,
}

/// A task of one program; the key of the tables of tasks.
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
