//! A followed process, as the kernel side knows it.

use bytemuck::{Pod, Zeroable};

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
    /// Threads alive; the entry goes when the last one has made its last switch.
    pub live_threads: u64,
}

const _: () = assert!(size_of::<Process>() == 16);

impl Process {
    /// A process of which `live_threads` threads are alive.
    #[inline(always)]
    #[must_use]
    pub const fn new(start_boottime_ns: u64, live_threads: u64) -> Self {
        Self {
            start_boottime_ns,
            live_threads,
        }
    }
}
