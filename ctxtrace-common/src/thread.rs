//! The record of one thread.

use bytemuck::{Pod, Zeroable};

use crate::chain::UserStacks;
use crate::clock::Clock;
use crate::memo::StackMemo;
use crate::polls::Polls;
use crate::stack::{Gathered, SumKey};
use crate::wakeup::Waker;

/// Flag: the thread is in the last part of `do_exit()` (`sched_process_exit` has come), so its memory may be gone.
pub const EXITING: u32 = 1;
/// Flag: `pending` holds a switch-out that has not been added to any sum yet.
pub const PENDING_SUM: u32 = 2;
/// Flag: a kernel thread that works for the process (`io_uring`, vhost). It has no thread-local variables of its own.
pub const KERNEL_WORKER: u32 = 4;
/// Flag: the first thread of a forked process, until it calls `execve`. Its memory is a copy of its parent's, including
/// the parent's polls.
pub const INHERITED: u32 = 8;
/// Flag: the thread was seen polling, or was recognised as a thread of a runtime.
pub const RUNTIME: u32 = 16;
/// Flag: the thread was woken from a park and has polled nothing since. If it parks again without a poll, that wakeup
/// was wasted.
pub const WOKEN_FROM_PARK: u32 = 32;
/// Flag: the thread has been traced from its birth, or from an `execve`, with thread-local variables of its own.
pub const FROM_BIRTH: u32 = 64;
/// Flag: the first thread of a process that shares its parent's memory and thread pointer until it calls `execve`, as
/// `vfork` creates it. What they contain about tasks is about the parent.
pub const BORROWED: u32 = 128;
/// Flag: the thread has executed a program that the tracer's user may not trace. The thread is not recorded after that,
/// and its clock is unknown from then on.
pub const REFUSED: u32 = 256;

/// The kernel's own count of a thread's switches (`task_struct.nvcsw` and `nivcsw`).
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Pod, Zeroable)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub struct KernelCount {
    /// Voluntary switches.
    pub voluntary: u64,
    /// Involuntary switches.
    pub involuntary: u64,
}

impl KernelCount {
    /// Returns the sum of both.
    #[inline(always)]
    #[must_use]
    pub fn total(self) -> u64 {
        self.voluntary.wrapping_add(self.involuntary)
    }
}

/// What is reported of one thread: the record that an ended thread leaves in the ring, and what a capture contains of
/// each thread.
#[repr(C)]
#[derive(Clone, Copy, Debug, Pod, Zeroable)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub struct ThreadSummary {
    /// The state machine of the thread.
    pub clock: Clock,
    /// The kernel's count when tracing of the thread began; 0 for a thread that was born while its process was traced.
    pub base: KernelCount,
    /// The kernel's count at the thread's last recorded switch-out.
    pub kernel: KernelCount,
    /// Number of program runs that saw the thread switched out and the kernel's voluntary count rise.
    pub traced_voluntary: u64,
    /// Number of program runs that saw the thread switched out and the kernel's involuntary count rise.
    pub traced_involuntary: u64,
    /// Sum of the off-CPU intervals that have ended.
    pub off_cpu_ns: u64,
    /// Sum of the on-CPU intervals whose beginning and end were seen.
    pub on_cpu_ns: u64,
    /// Sum of the run-queue times.
    pub run_queue_ns: u64,
    /// Number of switch-ins on another CPU than the previous one.
    pub migrations: u64,
    /// `task_struct.start_boottime`, in nanoseconds of `CLOCK_BOOTTIME`.
    pub start_boottime_ns: u64,
    /// Polls and hits of the thread, if the program has a probe.
    pub polls: Polls,
    /// Name, padded with zeroes. Updated at `execve` and at the thread's last switch.
    pub comm: [u8; 16],
    /// Thread id in the initial pid namespace.
    pub tid: u32,
    /// Process id in the initial pid namespace.
    pub tgid: u32,
    /// Number of calls of `execve` by the process since it was first seen.
    pub image: u32,
    /// [`EXITING`], [`PENDING_SUM`] and the other flags.
    pub flags: u32,
}

const _: () = assert!(size_of::<ThreadSummary>() == 32 + 32 + 56 + 120 + 16 + 16);

/// Value of the thread table: the summary of a thread, and what only the kernel side needs to know about the thread.
///
/// The key of the table is the address of the kernel's `task_struct`. The address stays the same when an `execve` gives
/// the thread its leader's id, it cannot be reused before the thread's last switch, and a lookup reads no field of the
/// thread. User space never shows it; reports identify a thread by its id and start time.
///
/// The fields of the summary can be accessed as if they were fields of this record.
#[repr(C)]
#[derive(Clone, Copy, Debug, Pod, Zeroable)]
pub struct Thread {
    /// What is reported of the thread.
    pub summary: ThreadSummary,
    /// Key of the last switch-out, not yet added to the sums.
    pub pending: SumKey,
    /// Earlier switch-outs that are not in the table of sums yet.
    pub gathered: [Gathered; 2],
    /// The thread's last kernel stacks.
    pub memos: [StackMemo; 2],
    /// The thread's last user stacks.
    pub user_stacks: UserStacks,
    /// The wakers of the two wakeups that the clock has noted: first the one while off-CPU, then the one while on-CPU.
    pub wakers: [Waker; 2],
    /// The waker that ended the thread's last park; valid with [`WOKEN_FROM_PARK`].
    pub woken_by: Waker,
    /// Value of `on_cpu_ns` when that wakeup took effect.
    pub woken_on_cpu_ns: u64,
    /// Value of `polls.last.polls` when that wakeup took effect.
    pub polls_when_woken: u64,
    /// The last task of the thread that was found in, or added to, the kernel side's tables of tasks; 0 if there was
    /// none. It saves a lookup.
    pub last_task: u64,
    /// The task that launched this thread, if it is a worker of tokio and was seen between polls; otherwise 0.
    pub launch_task: u64,
    /// Address of the kernel's description of the thread's user memory (`mm_struct`). If the kernel has another one for
    /// the thread, the thread is in the middle of an `execve`.
    pub memory: u64,
    /// Value of `fsbase` when the thread last called `execve`, until its first switch-out afterwards; otherwise 0. The
    /// kernel has not saved the register since, so the field still has the old program's value. The same applies to a
    /// thread that was born with its parent's thread pointer.
    pub stale_thread_pointer: u64,
    /// Time at which the thread last called `execve`, until that has been emitted as an event; otherwise 0.
    pub executed_ns: u64,
    /// CPU of the last switch-in plus one; 0 before the first switch-in.
    pub last_cpu_plus_one: u32,
    /// Index of the program's locator; 0 while the locator is not known.
    pub locator: u32,
    /// Number of names and programs that the thread has had. Raised at each `execve`, and by threads that rename this
    /// one.
    pub names: u32,
    /// Value of `names` when the thread was last introduced among the events; 0 if it has not been introduced.
    pub introduced_names: u32,
    /// The id with which the thread was last introduced; 0 if it has not been introduced.
    pub introduced_tid: u32,
    /// Which of `gathered` (bit 0) and of `memos` (bit 1) was used last. The other one is replaced next.
    pub last_used: u32,
}

const _: () =
    assert!(size_of::<Thread>() == size_of::<ThreadSummary>() + 56 + 2 * 72 + 2 * 344 + 56 + 3 * 40 + 56 + 24);

impl core::ops::Deref for Thread {
    type Target = ThreadSummary;

    #[inline(always)]
    fn deref(&self) -> &ThreadSummary {
        &self.summary
    }
}

impl core::ops::DerefMut for Thread {
    #[inline(always)]
    fn deref_mut(&mut self) -> &mut ThreadSummary {
        &mut self.summary
    }
}

impl ThreadSummary {
    /// Returns the number of program runs that saw the thread switched out.
    #[inline(always)]
    #[must_use]
    pub fn traced(&self) -> u64 {
        self.traced_voluntary.saturating_add(self.traced_involuntary)
    }

    /// Returns the number of switches that the kernel counted during tracing.
    #[inline(always)]
    #[must_use]
    pub fn counted_by_kernel(&self) -> u64 {
        self.kernel.total().wrapping_sub(self.base.total())
    }

    /// Counts one switch-out, given the kernel's counters at that moment.
    ///
    /// `slept` decides between voluntary and involuntary if both counters have risen, which happens only if events were
    /// lost. Returns how many events were lost: together, the counters rise by exactly one per switch.
    #[inline(always)]
    pub fn count_switch(&mut self, kernel: KernelCount, slept: bool) -> u64 {
        let voluntary_moved = kernel.voluntary != self.kernel.voluntary;
        let involuntary_moved = kernel.involuntary != self.kernel.involuntary;
        let voluntary = if voluntary_moved && involuntary_moved {
            slept
        } else {
            voluntary_moved
        };
        if voluntary {
            self.traced_voluntary += 1;
        } else {
            self.traced_involuntary += 1;
        }
        let risen = kernel.total().wrapping_sub(self.kernel.total());
        self.kernel = kernel;
        risen.saturating_sub(1)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn count(voluntary: u64, involuntary: u64) -> KernelCount {
        KernelCount { voluntary, involuntary }
    }

    #[test]
    fn the_counter_that_moved_decides_what_kind_of_switch_it_was() {
        let mut thread = ThreadSummary::zeroed();
        assert_eq!(thread.count_switch(count(1, 0), true), 0);
        assert_eq!(thread.count_switch(count(1, 1), true), 0);
        // A signal was pending: the thread did not sleep, but the kernel counts the switch as voluntary.
        assert_eq!(thread.count_switch(count(2, 1), false), 0);
        assert_eq!((thread.traced_voluntary, thread.traced_involuntary), (2, 1));
        assert_eq!(thread.traced(), thread.counted_by_kernel());
    }

    #[test]
    fn a_gap_in_the_kernels_count_is_the_number_of_lost_events() {
        let mut thread = ThreadSummary::zeroed();
        assert_eq!(thread.count_switch(count(3, 0), true), 2);
        assert_eq!(thread.count_switch(count(4, 2), true), 2);
        assert_eq!((thread.traced(), thread.counted_by_kernel()), (2, 6));
        assert_eq!(thread.traced_voluntary, 2);
    }

    #[test]
    fn what_was_counted_before_tracing_began_is_not_counted() {
        let mut thread = ThreadSummary::zeroed();
        thread.base = count(100, 7);
        thread.kernel = thread.base;
        assert_eq!(thread.count_switch(count(101, 7), true), 0);
        assert_eq!(thread.counted_by_kernel(), 1);
    }
}
