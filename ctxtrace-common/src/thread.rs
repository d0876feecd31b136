//! Everything known of one thread.

use bytemuck::{Pod, Zeroable};

use crate::chain::UserStacks;
use crate::clock::Clock;
use crate::memo::StackMemo;
use crate::polls::Polls;
use crate::stack::{Gathered, SumKey};
use crate::wakeup::Waker;

/// The thread runs the last part of `do_exit()` (`sched_process_exit` has come): its memory may be gone.
pub const EXITING: u32 = 1;
/// `pending` holds a switch-out that is not in the table of sums yet.
pub const PENDING_SUM: u32 = 2;
/// A thread of the kernel's that works for the process (`io_uring`, vhost): it has no thread-locals of its own.
pub const KERNEL_WORKER: u32 = 4;
/// The first thread of a forked process, until it calls `execve`: its memory is its parent's, the parent's polls included.
pub const INHERITED: u32 = 8;
/// It was seen polling, or to be a runtime's thread.
pub const RUNTIME: u32 = 16;
/// It was woken out of a park, and has polled nothing since: should it park again, that wakeup was wasted.
pub const WOKEN_FROM_PARK: u32 = 32;
/// It was traced from its birth, with thread-locals of its own.
pub const FROM_BIRTH: u32 = 64;
/// The first thread of a process that has its maker's memory and thread pointer until it calls `execve`, as `vfork` makes it: whatever
/// they say of tasks is said of the maker.
pub const BORROWED: u32 = 128;
/// It has executed a program that the tracer's user may not trace, and nothing of it is recorded from there on. The clock is unknown
/// since that moment.
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
    /// Both together.
    #[inline(always)]
    #[must_use]
    pub fn total(self) -> u64 {
        self.voluntary.wrapping_add(self.involuntary)
    }
}

/// What is reported of one thread: the record that an ended thread leaves in the ring, and what a capture holds of each thread.
#[repr(C)]
#[derive(Clone, Copy, Debug, Pod, Zeroable)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub struct ThreadSummary {
    /// The state machine.
    pub clock: Clock,
    /// The kernel's count when tracing of the thread began: 0 for one that was born while its process was traced.
    pub base: KernelCount,
    /// The kernel's count at the thread's last event.
    pub kernel: KernelCount,
    /// Program runs that saw the thread switched out while the kernel's voluntary count rose.
    pub traced_voluntary: u64,
    /// The same for the involuntary count.
    pub traced_involuntary: u64,
    /// Sum of the off-CPU intervals that ended.
    pub off_cpu_ns: u64,
    /// Sum of the on-CPU intervals whose beginning and end were seen.
    pub on_cpu_ns: u64,
    /// Sum of the run-queue times.
    pub run_queue_ns: u64,
    /// Switch-ins on another CPU than the last one.
    pub migrations: u64,
    /// `task_struct.start_boottime`, nanoseconds of `CLOCK_BOOTTIME`.
    pub start_boottime_ns: u64,
    /// Its polls, where it has a probe.
    pub polls: Polls,
    /// Name, padded with zeroes; brought up to date at `execve` and at the last switch.
    pub comm: [u8; 16],
    /// Thread id in the initial pid namespace.
    pub tid: u32,
    /// Process id in the initial pid namespace.
    pub tgid: u32,
    /// How many times the process had called `execve` since it was first seen.
    pub image: u32,
    /// [`EXITING`], [`PENDING_SUM`] and the others.
    pub flags: u32,
}

const _: () = assert!(size_of::<ThreadSummary>() == 32 + 32 + 56 + 120 + 16 + 16);

/// Value of the thread table: a thread's summary, and what the kernel side alone needs to know of the thread.
///
/// The table's key is the address of the kernel's `task_struct`: it stays the same when an `execve` gives the thread its
/// leader's id, it cannot be reused before the thread's last switch, and a lookup needs no field of the thread. User space
/// never shows it; the identity people see is (tid, start time).
///
/// The summary's fields are read and written as if they were fields of this record.
#[repr(C)]
#[derive(Clone, Copy, Debug, Pod, Zeroable)]
pub struct Thread {
    /// What is reported of the thread.
    pub summary: ThreadSummary,
    /// The last switch-out, in the terms it is summed by.
    pub pending: SumKey,
    /// Those before it, as far as they are not in the table of sums.
    pub gathered: [Gathered; 2],
    /// Its last kernel stacks.
    pub memos: [StackMemo; 2],
    /// Its last user stacks.
    pub user_stacks: UserStacks,
    /// Who made the wakings its clock has noted: the first one off the CPU, the last one on it.
    pub wakers: [Waker; 2],
    /// Who woke it out of its last park, with [`WOKEN_FROM_PARK`].
    pub woken_by: Waker,
    /// `on_cpu_ns` when that wakeup took effect.
    pub woken_on_cpu_ns: u64,
    /// `polls.last.polls` then.
    pub polls_when_woken: u64,
    /// The last task seen that has no place in a table of the program's own.
    pub last_task: u64,
    /// The task that launched it, if it is a worker of tokio's and was seen between polls.
    pub launch_task: u64,
    /// Address of the kernel's description of its user memory: another one, and the thread is in the middle of an `execve`.
    pub memory: u64,
    /// What `fsbase` held when it last called `execve`, until its first switch-out afterwards: the kernel has not saved the
    /// register since, so the field still shows the old program's. Likewise of a thread that was born with its maker's.
    pub stale_thread_pointer: u64,
    /// When it last called `execve`, until that has been told as an event; 0 otherwise.
    pub executed_ns: u64,
    /// CPU of the last switch-in plus one; 0 before the first.
    pub last_cpu_plus_one: u32,
    /// Index of the program's locator; 0 while it is not known.
    pub locator: u32,
    /// How many names it has had, or programs. Changed only by threads that rename it.
    pub names: u32,
    /// Up to which of them it has been introduced among the events; 0 if it has not been.
    pub told_names: u32,
    /// The id it was introduced by.
    pub told_tid: u32,
    /// Which of `gathered` (bit 0) and of `memos` (bit 1) was used last: the other one makes room.
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
    /// Program runs that saw the thread switched out.
    #[inline(always)]
    #[must_use]
    pub fn traced(&self) -> u64 {
        self.traced_voluntary + self.traced_involuntary
    }

    /// What the kernel counted over the same span.
    #[inline(always)]
    #[must_use]
    pub fn counted_by_kernel(&self) -> u64 {
        self.kernel.total().wrapping_sub(self.base.total())
    }

    /// Counts one switch-out, given the kernel's counters as they are at that moment.
    ///
    /// `slept` tells what kind it was where both counters moved, which happens only if events were lost. Returns how many
    /// were: the two counters rise together by exactly one a switch.
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
        // A signal was pending: the thread did not sleep, and the kernel counts it as voluntary all the same.
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
