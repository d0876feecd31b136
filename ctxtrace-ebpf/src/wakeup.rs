//! `sched_waking(p)` and `sched_wakeup_new(p)`: the ends of sleeps.
//!
//! `sched_waking` is raised in the context of the waker, on its CPU, as soon as `try_to_wake_up()` has decided to wake `p`
//! (kernel: `kernel/sched/core.c`); `sched_wakeup` would come only when `p` has reached a run queue, later by an
//! inter-processor interrupt. `sched_wakeup_new` is the same moment for a thread that has never run.

use aya_ebpf::helpers::bpf_ktime_get_ns;
use aya_ebpf::macros::btf_tracepoint;
use aya_ebpf::programs::BtfTracePointContext;

use crate::maps::count;
use crate::target::{FirstSeen, find};
use crate::task::Task;

/// Entry point.
#[btf_tracepoint(function = "sched_waking")]
pub(crate) fn sched_waking(ctx: BtfTracePointContext) -> i32 {
    waking(Task::from_arg(ctx.arg(0)), FirstSeen::Otherwise)
}

/// Entry point.
#[btf_tracepoint(function = "sched_wakeup_new")]
pub(crate) fn sched_wakeup_new(ctx: BtfTracePointContext) -> i32 {
    waking(Task::from_arg(ctx.arg(0)), FirstSeen::Newborn)
}

#[inline(always)]
fn waking(task: Task, first_seen: FirstSeen) -> i32 {
    if let Some(thread) = find(task, task.tid(), first_seen) {
        // SAFETY: the helper has no preconditions.
        thread.clock.waking(unsafe { bpf_ktime_get_ns() });
        count(|counters| &mut counters.wakings);
    }
    0
}
