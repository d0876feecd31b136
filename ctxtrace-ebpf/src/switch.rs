//! `sched_switch(preempt, prev, next, prev_state)`: the heart of it (kernel: `kernel/sched/core.c`, `__schedule()`).
//!
//! The tracepoint comes after the kernel has raised `prev`'s `nvcsw` or `nivcsw`, and before the registers are changed:
//! `current` is still `prev`, and its user memory is still mapped, so both its stacks can be walked.

use aya_ebpf::EbpfContext;
use aya_ebpf::bindings::BPF_F_USER_STACK;
use aya_ebpf::helpers::{bpf_get_smp_processor_id, bpf_get_stack, bpf_ktime_get_ns};
use aya_ebpf::macros::btf_tracepoint;
use aya_ebpf::programs::BtfTracePointContext;
use ctxtrace_common::clock::Leave;
use ctxtrace_common::histogram::Latency;
use ctxtrace_common::stack::{Stack, StackKey, StackSum, UserStack};
use ctxtrace_common::thread::{EXITING, PENDING_SUM, Thread};

use crate::atomic;
use crate::maps::{
    COUNTERS, DROP_ONE_IN, EXITED, HAS_PREV_STATE_ARG, SCRATCH, STACK_SUMS, STACKS, THREADS, WITH_STACKS, add, count,
    record,
};
use crate::target::{FirstSeen, find, thread_ended};
use crate::task::{TASK_DEAD, Task};

/// Submit without waking the reader: it polls, and a wakeup here would be a scheduler event inside a scheduler event.
const BPF_RB_NO_WAKEUP: u64 = 1;

/// Entry point.
#[btf_tracepoint(function = "sched_switch")]
pub(crate) fn sched_switch(ctx: BtfTracePointContext) -> i32 {
    if dropped_on_purpose() {
        return 0;
    }
    let prev = Task::from_arg(ctx.arg(1));
    let next = Task::from_arg(ctx.arg(2));
    // SAFETY: the helper has no preconditions.
    let now_ns = unsafe { bpf_ktime_get_ns() };
    if let Some(thread) = find(prev, prev.tid(), FirstSeen::LeavingCpu) {
        switch_out(&ctx, prev, thread, now_ns);
    }
    if let Some(thread) = find(next, next.tid(), FirstSeen::Otherwise) {
        switch_in(thread, now_ns);
    }
    0
}

#[inline(always)]
fn switch_out(ctx: &BtfTracePointContext, task: Task, thread: &mut Thread, now_ns: u64) {
    let preempt: u64 = ctx.arg(0);
    let preempted = preempt as u8 != 0;
    let state = if HAS_PREV_STATE_ARG.load() != 0 {
        ctx.arg(3)
    } else {
        task.state()
    };
    let leave = if state & TASK_DEAD != 0 {
        Leave::Dead
    } else if !preempted && state != 0 {
        Leave::Slept
    } else {
        Leave::Runnable
    };

    count(|counters| &mut counters.switches);
    let lost = thread.count_switch(task.kernel_count(), leave != Leave::Runnable);
    if lost != 0 {
        add(|counters| &mut counters.lost_events, lost);
    }

    let left = thread.clock.switch_out(now_ns, leave);
    if let Some(ns) = left.on_cpu_ns {
        thread.on_cpu_ns += ns;
        record(Latency::OnCpu, ns);
    }
    if left.missed_switch_in {
        count(|counters| &mut counters.lost_intervals);
        // The switch-out before this one keeps its place in the sums, with no time.
        if thread.flags & PENDING_SUM != 0 {
            sum(&thread.pending, 0);
        }
    }

    if WITH_STACKS.load() != 0 {
        take_stacks(ctx, task, thread);
        thread.flags |= PENDING_SUM;
    }
    if leave == Leave::Dead {
        end(task, thread);
    }
}

#[inline(always)]
fn switch_in(thread: &mut Thread, now_ns: u64) {
    let entered = thread.clock.switch_in(now_ns);
    if let Some(ns) = entered.off_cpu_ns {
        thread.off_cpu_ns += ns;
        record(Latency::OffCpu, ns);
    }
    if let Some(ns) = entered.blocked_ns {
        record(Latency::Blocked, ns);
    }
    if let Some(ns) = entered.run_queue_ns {
        thread.run_queue_ns += ns;
        record(Latency::RunQueue, ns);
    }
    if let Some(ns) = entered.wake_to_run_ns {
        record(Latency::WakeToRun, ns);
    }
    if entered.wake_unknown {
        count(|counters| &mut counters.lost_wakeups);
    }
    if thread.flags & PENDING_SUM != 0 {
        thread.flags &= !PENDING_SUM;
        sum(&thread.pending, entered.off_cpu_ns.unwrap_or(0));
    }
    // SAFETY: the helper has no preconditions.
    let cpu_plus_one = unsafe { bpf_get_smp_processor_id() }.wrapping_add(1);
    if thread.last_cpu_plus_one != cpu_plus_one {
        if thread.last_cpu_plus_one != 0 {
            thread.migrations += 1;
        }
        thread.last_cpu_plus_one = cpu_plus_one;
    }
}

/// The thread's last switch: its record goes to user space and out of the tables.
#[inline(always)]
fn end(task: Task, thread: &mut Thread) {
    thread.comm = task.comm();
    if thread.flags & PENDING_SUM != 0 {
        thread.flags &= !PENDING_SUM;
        sum(&thread.pending, 0);
    }
    if EXITED.output::<Thread>(&*thread, BPF_RB_NO_WAKEUP).is_err() {
        count(|counters| &mut counters.lost_records);
        add(|counters| &mut counters.lost_record_switches, thread.traced());
    }
    let tgid = thread.tgid;
    let _ = THREADS.remove(&task.address());
    thread_ended(tgid);
}

/// Adds one switch-out to the sums of its stack pair.
#[inline(always)]
fn sum(key: &StackKey, off_cpu_ns: u64) {
    let known = match STACK_SUMS.get_ptr_mut(key) {
        Some(known) => Some(known),
        None => {
            // Fails with EEXIST if another CPU was faster, which is as good.
            let _ = STACK_SUMS.insert(
                key,
                &StackSum {
                    count: 0,
                    off_cpu_ns: 0,
                },
                1,
            );
            STACK_SUMS.get_ptr_mut(key)
        }
    };
    let Some(known) = known else {
        count(|counters| &mut counters.lost_stack_sums);
        return;
    };
    // SAFETY: a live element that several CPUs add to; both fields are aligned and only ever added to atomically.
    unsafe {
        atomic::add(&raw mut (*known).count, 1);
        atomic::add(&raw mut (*known).off_cpu_ns, off_cpu_ns);
    }
}

/// Walks both stacks of the thread that leaves and notes what its switch-out is to be summed by.
#[inline(always)]
fn take_stacks(ctx: &BtfTracePointContext, task: Task, thread: &mut Thread) {
    let mut user_state = UserStack::Known;
    let mut lost = false;

    let kernel_stack = match walk(ctx, 0) {
        Walked::Stack(hash) => hash,
        Walked::Failed => 0,
        Walked::TableFull => {
            lost = true;
            0
        }
    };
    let user_stack = if thread.flags & EXITING != 0 {
        user_state = UserStack::Exiting;
        0
    } else {
        match walk(ctx, u64::from(BPF_F_USER_STACK)) {
            Walked::Stack(hash) => hash,
            Walked::Failed => {
                user_state = UserStack::Failed;
                count(|counters| &mut counters.lost_user_stacks);
                0
            }
            Walked::TableFull => {
                user_state = UserStack::TableFull;
                lost = true;
                0
            }
        }
    };
    if lost {
        count(|counters| &mut counters.lost_stacks);
    }
    let pending = &mut thread.pending;
    pending.kernel_stack = kernel_stack;
    pending.user_stack = user_stack;
    pending.comm = task.comm();
    pending.tgid = thread.tgid;
    pending.image = thread.image;
    pending.user_state = user_state as u32;
}

enum Walked {
    Stack(u64),
    Failed,
    TableFull,
}

/// Walks one stack and returns its key in the table, putting it there if it is new.
#[inline(always)]
fn walk(ctx: &BtfTracePointContext, flags: u64) -> Walked {
    let Some(scratch) = SCRATCH.get_ptr_mut(0) else {
        return Walked::Failed;
    };
    // SAFETY: `frames` is as large as the size given; the scratch element is this CPU's own, and `sched_switch` runs with
    // interrupts and preemption disabled, so nobody else uses it meanwhile.
    let bytes = unsafe {
        bpf_get_stack(
            ctx.as_ptr(),
            (&raw mut (*scratch).frames).cast(),
            size_of_val(&(*scratch).frames) as u32,
            flags,
        )
    };
    if bytes <= 0 {
        return Walked::Failed;
    }
    // SAFETY: as above; nothing else refers to the element.
    let stack: &mut Stack = unsafe { &mut *scratch };
    stack.depth = bytes as u64 / 8;
    let hash = stack.hash();
    if STACKS.get_ptr(&hash).is_none() && STACKS.insert(&hash, &*stack, 0).is_err() {
        return Walked::TableFull;
    }
    Walked::Stack(hash)
}

/// Fault injection: tells whether this run is one of those to be dropped.
#[inline(always)]
fn dropped_on_purpose() -> bool {
    let one_in = DROP_ONE_IN.load();
    if one_in == 0 {
        return false;
    }
    let Some(counters) = COUNTERS.get_ptr_mut(0) else {
        return false;
    };
    // SAFETY: this CPU's own element; see `crate::maps::add`. `dropped_on_purpose` counts all runs here, and is divided by
    // `one_in` when it is read.
    let runs = unsafe { &mut (*counters).dropped_on_purpose };
    *runs += 1;
    *runs % u64::from(one_in) == 0
}
