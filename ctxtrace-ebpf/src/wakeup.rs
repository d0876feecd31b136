//! `sched_waking(p)` and `sched_wakeup_new(p)`: the ends of sleeps, and the wakers that end them.
//!
//! `sched_waking` is raised in the context of the waker, on its CPU, as soon as `try_to_wake_up()` has decided to wake
//! `p` (kernel: `kernel/sched/core.c`). `sched_wakeup` would come only when `p` has reached a run queue, which may take
//! an inter-processor interrupt more. `sched_wakeup_new` marks the same moment for a thread that has never run.
//!
//! The cost of a wakeup for its maker is the rest of the system call in which it is made. A third program sees the end
//! of that system call.

use aya_ebpf::EbpfContext;
use aya_ebpf::helpers::{bpf_get_current_task, bpf_ktime_get_ns};
use aya_ebpf::macros::btf_tracepoint;
use aya_ebpf::programs::BtfTracePointContext;
use ctxtrace_common::clock::NotedWakeup;
use ctxtrace_common::event::Event;
use ctxtrace_common::wakeup::{EdgeKey, What};

use crate::atomic;
use crate::events::{cpu, introduce, publish};
use crate::maps::{Lane, TIMES_WAKEUPS, WAKEUPS, WITH_EVENTS, count};
use crate::sums::edge;
use crate::target::{FirstSeen, find};
use crate::task::Task;
use crate::waker::waker;

/// Entry point.
#[btf_tracepoint(function = "sched_waking")]
pub(crate) fn sched_waking(ctx: BtfTracePointContext) -> i32 {
    wakeup(&ctx, FirstSeen::Otherwise)
}

/// Entry point.
#[btf_tracepoint(function = "sched_wakeup_new")]
pub(crate) fn sched_wakeup_new(ctx: BtfTracePointContext) -> i32 {
    wakeup(&ctx, FirstSeen::Newborn)
}

#[inline(always)]
fn wakeup(ctx: &BtfTracePointContext, first_seen: FirstSeen) -> i32 {
    let task = Task::from_arg(ctx.arg(0));
    let tid = task.tid();
    let Some(thread) = find(task, tid, first_seen, Lane::Scheduler) else {
        return 0;
    };
    count(|counters| &mut counters.wakeups);
    let noted = thread.clock.next_wakeup();
    if noted.is_none() && WITH_EVENTS.load() == 0 {
        return 0;
    }
    let Some(scratch) = Lane::Scheduler.scratch() else {
        return 0;
    };
    // SAFETY: the helper has no preconditions.
    let now_ns = unsafe { bpf_ktime_get_ns() };
    if WITH_EVENTS.load() != 0 {
        // SAFETY: the helper has no preconditions.
        let wakes_itself = task.address() == unsafe { bpf_get_current_task() };
        scratch.set_self_wakeup(wakes_itself);
    }
    waker(ctx.as_ptr(), scratch);
    if WITH_EVENTS.load() != 0 {
        // A thread that is, or may be, on a CPU is introduced at its switch-out: an introduction here could come too
        // late.
        if matches!(noted, Some(NotedWakeup::OffCpu)) {
            introduce(task, tid, thread, now_ns);
        }
        let newborn = first_seen == FirstSeen::Newborn;
        publish(&Event::wakeup(now_ns, cpu(), tid, noted, newborn, &scratch.waker));
        scratch.set_self_wakeup(false);
    }
    let waker = &scratch.waker;
    let Some(wakeup) = noted else {
        return 0;
    };
    // Both indices are constants, so no check of bounds is needed, which could panic. A BPF program cannot panic.
    match wakeup {
        NotedWakeup::OffCpu => thread.wakers[0].become_like(waker),
        NotedWakeup::OnCpu => thread.wakers[1].become_like(waker),
    }
    thread.clock.wakeup(wakeup, now_ns);
    if waker.is_of_target()
        && is_timed()
        && let Some(now) = WAKEUPS.get_ptr_mut(0)
    {
        // SAFETY: this CPU's own element. Wakeups are made with interrupts disabled (see [`Lane::Scheduler`] for the
        // exception).
        let now = unsafe { &mut *now };
        // SAFETY: the helper has no preconditions.
        now.waker = unsafe { bpf_get_current_task() };
        now.since_ns = now_ns;
        now.edge.key = EdgeKey::new(waker, thread.tid, thread.tgid);
    }
    0
}

/// Returns whether the cost of wakeups is being measured.
#[inline(always)]
fn is_timed() -> bool {
    // SAFETY: the value is copied at once. User space stores it as a whole.
    TIMES_WAKEUPS.get(0).is_some_and(|timed| *timed != 0)
}

/// Entry point, attached only from time to time. The time since `sched_waking` is what the wakeup cost its maker:
/// choosing a CPU for the thread, queueing the thread there, the interrupt that notifies that CPU, and the way back to
/// user space.
#[btf_tracepoint(function = "sys_exit")]
pub(crate) fn sys_exit(_ctx: BtfTracePointContext) -> i32 {
    let Some(now) = WAKEUPS.get_ptr_mut(0) else {
        return 0;
    };
    // SAFETY: this CPU's own element. An interrupt in between may make a wakeup, but this element is only written for
    // wakeups that a thread makes.
    let now = unsafe { &mut *now };
    // SAFETY: the helper has no preconditions.
    if now.waker == 0 || now.waker != unsafe { bpf_get_current_task() } {
        return 0;
    }
    now.waker = 0;
    // SAFETY: as above.
    let waking_ns = unsafe { bpf_ktime_get_ns() }.wrapping_sub(now.since_ns);
    (now.edge.what, now.edge.ns) = (What::Timed as u64, waking_ns);
    let Some(scratch) = Lane::Lifecycle.scratch() else {
        return 0;
    };
    if let Some(edge) = edge(&mut now.edge, scratch) {
        // SAFETY: a live element. These two fields are only added to atomically.
        unsafe {
            atomic::add(&raw mut (*edge).timed, 1);
            atomic::add(&raw mut (*edge).waking_ns, waking_ns);
        }
    }
    0
}
