//! Samples what the target is doing on its CPU. A `perf` event on each CPU (`cpu-clock`) calls this program at a
//! constant rate.
//!
//! It runs in the interrupt of a high-resolution timer. The programs of the scheduler's lane run with interrupts
//! disabled, so a sample does not interrupt one of them, and may use their scratch space and their rings. In the one
//! exception (see [`Lane::Scheduler`]) the sample is counted as lost.

use aya_ebpf::EbpfContext;
use aya_ebpf::helpers::{bpf_get_current_pid_tgid, bpf_get_current_task, bpf_get_current_task_btf, bpf_ktime_get_ns};
use aya_ebpf::macros::perf_event;
use aya_ebpf::programs::PerfEventContext;
use ctxtrace_common::event::Event;

use crate::events::{cpu, introduce, write};
use crate::maps::{HAS_CURRENT_TASK_BTF, Lane, THREADS, count};
use crate::stacks::{Space, Walked, walk};
use crate::target::{FirstSeen, find};
use crate::task::Task;

/// Entry point.
#[perf_event]
pub(crate) fn cpu_clock(ctx: PerfEventContext) -> u32 {
    let Some(scratch) = Lane::Scheduler.scratch() else {
        return 0;
    };
    // SAFETY: the pointer comes from a valid reference. The load is volatile because this program interrupts the one
    // that stores it.
    if unsafe { (&raw const scratch.self_wakeup).read_volatile() } != 0 {
        // The current thread belongs to the target.
        count(|counters| &mut counters.lost_samples);
        return 0;
    }
    let tid = bpf_get_current_pid_tgid() as u32;
    // SAFETY: the helper has no preconditions.
    let now_ns = unsafe { bpf_ktime_get_ns() };
    if !is_targets(tid, now_ns) {
        return 0;
    }
    // There is no kernel stack if the interrupt came in user mode. This is how the two cases are distinguished.
    let kernel = walk(ctx.as_ptr(), Space::Kernel, scratch);
    let user = walk(ctx.as_ptr(), Space::User, scratch);
    let key = |walked| match walked {
        Walked::Stack(key) => key,
        Walked::Failed | Walked::TableFull => 0,
    };
    if matches!(kernel, Walked::TableFull) || matches!(user, Walked::TableFull) {
        count(|counters| &mut counters.lost_sample_stacks);
    }
    let in_kernel = !matches!(kernel, Walked::Failed);
    if !write(&Event::sample(now_ns, cpu(), tid, in_kernel, key(kernel), key(user))) {
        count(|counters| &mut counters.lost_samples);
    }
    0
}

/// Returns whether the thread that runs here belongs to the target. If it does, it has been introduced among the
/// events.
#[inline(always)]
fn is_targets(tid: u32, now_ns: u64) -> bool {
    if HAS_CURRENT_TASK_BTF.load() != 0 {
        // SAFETY: the helper has no preconditions.
        let task = Task::from_arg(unsafe { bpf_get_current_task_btf() } as *const u8);
        let Some(thread) = find(task, tid, FirstSeen::Otherwise, Lane::Scheduler) else {
            return false;
        };
        introduce(task, tid, thread, now_ns);
        return true;
    }
    // Before Linux 5.11, only an untyped address of `current` is available. A thread can be found by it, but neither
    // adopted nor introduced. Both happen at the thread's next switch. Samples before that are counted as lost if the
    // thread has a record.
    // SAFETY: the helper has no preconditions.
    let address = unsafe { bpf_get_current_task() };
    let Some(thread) = THREADS.get_ptr(&address) else {
        return false;
    };
    // SAFETY: a live element, of the thread that is running here; see `crate::target::find`.
    if unsafe { (*thread).introduced_tid } != tid {
        count(|counters| &mut counters.lost_samples);
        return false;
    }
    true
}
