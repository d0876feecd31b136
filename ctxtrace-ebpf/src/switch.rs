//! `sched_switch(preempt, prev, next, prev_state)`: every kernel switch (kernel: `kernel/sched/core.c`,
//! `__schedule()`).
//!
//! The tracepoint comes after the kernel has raised `nvcsw` or `nivcsw` of `prev`, and before it switches the
//! registers: `current` is still `prev`, and its user memory is still mapped, so both of its stacks can be walked.

use aya_ebpf::EbpfContext;
use aya_ebpf::helpers::{bpf_get_smp_processor_id, bpf_ktime_get_ns};
use aya_ebpf::macros::btf_tracepoint;
use aya_ebpf::programs::BtfTracePointContext;
use ctxtrace_abi::MAGIC;
use ctxtrace_common::clock::{Entered, Leave, NotedWakeup};
use ctxtrace_common::histogram::Latency;
use ctxtrace_common::ledger::{Class, STATE_STOPPED, Syscall, classify, known};
use ctxtrace_common::locator::Doing;
use ctxtrace_common::polls::Gap;
use ctxtrace_common::process::Image;
use ctxtrace_common::stack::{SwitchSum, UserStack};
use ctxtrace_common::thread::{BORROWED, EXITING, INHERITED, PENDING_SUM, Thread, WOKEN_FROM_PARK};
use ctxtrace_common::wakeup::{EdgeAddition, EdgeKey, WakerAddition, WakerStackKey, What};

use crate::events::{cpu, introduce, publish};
use crate::hits::observe;
use crate::locate::{Plain, locate, locator_of};
use crate::maps::{
    COUNTERS, DROP_ONE_IN, HAS_PREV_STATE_ARG, Lane, Scratch, WAKEUPS, WITH_EVENTS, WITH_STACKS, WITH_WAKER_STACKS,
    add, count, record,
};
use crate::rights::{are_limited, may_trace};
use crate::stacks::{Walked, kernel_stack, known_user_stack, user_stack};
use crate::sums::{add_switch, add_waker, edge};
use crate::target::{FirstSeen, find, may_be_target, report_and_remove, stop_recording, thread_ended};
use crate::task::{TASK_DEAD, Task};

/// Entry point.
#[btf_tracepoint(function = "sched_switch")]
pub(crate) fn sched_switch(ctx: BtfTracePointContext) -> i32 {
    if dropped_on_purpose() {
        return 0;
    }
    let prev = Task::from_arg(ctx.arg(1));
    let next = Task::from_arg(ctx.arg(2));
    // On a busy machine, most switches do not concern the target.
    if !may_be_target(prev.tgid()) && !may_be_target(next.tgid()) {
        return 0;
    }
    // SAFETY: the helper has no preconditions.
    let now_ns = unsafe { bpf_ktime_get_ns() };
    let Some(scratch) = Lane::Scheduler.scratch() else {
        return 0;
    };
    let (prev_tid, next_tid) = (prev.tid(), next.tid());
    let with_events = WITH_EVENTS.load() != 0;
    if with_events {
        scratch.event.become_switch(now_ns, cpu());
    }
    if let Some(thread) = find(prev, prev_tid, FirstSeen::LeavingCpu, Lane::Scheduler) {
        if executes_what_may_not_be_traced(prev, thread) {
            stop_recording(prev, thread);
        } else {
            if with_events {
                introduce(prev, prev_tid, thread, now_ns);
            }
            switch_out(&ctx, prev, prev_tid, thread, now_ns, scratch);
        }
    }
    if let Some(thread) = find(next, next_tid, FirstSeen::Otherwise, Lane::Scheduler) {
        if with_events {
            introduce(next, next_tid, thread, now_ns);
            let (wakeup, woken_ns) = thread.clock.noted_wakeup();
            scratch.event.set_in(next_tid, wakeup, woken_ns);
            // Only the idle tasks have the id 0 (kernel: `init_idle`, and `init_struct_pid`).
            if prev_tid == 0 {
                scratch.event.set_cpu_was_idle();
            }
        }
        switch_in(thread, now_ns, scratch);
    }
    if with_events && scratch.event.concerns_the_target() {
        publish(&scratch.event);
    }
    0
}

#[inline(always)]
fn switch_out(
    ctx: &BtfTracePointContext,
    task: Task,
    tid: u32,
    thread: &mut Thread,
    now_ns: u64,
    scratch: &mut Scratch,
) {
    // The stacks are taken first: the later code is reached on many paths, and the verifier would check the loops in
    // this function on each of them.
    if WITH_STACKS.load() != 0 {
        take_stacks(ctx, task, thread, scratch);
    }
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

    if let Some(wakeup) = WAKEUPS.get_ptr_mut(0) {
        // SAFETY: this CPU's own element. The cost of a wakeup does not include time after its maker was switched out.
        unsafe { (*wakeup).waker = 0 };
    }
    count(|counters| &mut counters.switches);
    let voluntary_before = thread.traced_voluntary;
    let lost = thread.count_switch(task.kernel_count(), leave != Leave::Runnable);
    if lost != 0 {
        add(|counters| &mut counters.lost_events, lost);
    }

    let left = thread.clock.switch_out(now_ns, leave);
    if let Some(ns) = left.on_cpu_ns.ns() {
        thread.on_cpu_ns += ns;
        record(Latency::OnCpu, ns);
    }
    if left.missed_switch_in {
        count(|counters| &mut counters.lost_intervals);
        // The previous switch-out is added to the sums without a time.
        if thread.flags & PENDING_SUM != 0 {
            add_switch(thread, 0);
        }
    }

    let doing = if task.memory() == thread.memory || thread.flags & EXITING != 0 {
        locate(thread, task.thread_pointer(), scratch)
    } else {
        // The thread is in the middle of an `execve`: the old program's memory is gone, and the new program has not
        // begun.
        scratch.slot.magic = 0;
        Plain::OTHER
    };
    let class = enter_in_ledger(task, thread, leave, state, doing);
    if WITH_EVENTS.load() != 0 {
        let voluntary = thread.traced_voluntary != voluntary_before;
        scratch.event.set_out(tid, leave, voluntary, &thread.pending);
    }
    if scratch.slot.magic == MAGIC
        && let Some(locator) = locator_of(thread)
    {
        let address = task.thread_pointer().wrapping_sub(locator.probe_below_tp);
        observe(thread, &scratch.slot, address, gap(doing.shape(), class));
    }
    judge_last_wakeup(thread, class, scratch);
    if WITH_STACKS.load() != 0 {
        take_user_stack(ctx, task, thread, scratch);
    }
    thread.flags |= PENDING_SUM;
    if thread.flags & BORROWED == 0 {
        // After this tracepoint the kernel saves the register, so the field will have the current value.
        thread.stale_thread_pointer = 0;
    }
    if leave == Leave::Dead {
        end(task, thread);
    }
}

/// Returns whether the thread is in the middle of an `execve` and already has the credentials of a program that the
/// tracer's user may not trace: `sched_process_exec` comes later. For a tracer that may trace the processes of every
/// user, the verifier removes this check.
#[inline(always)]
fn executes_what_may_not_be_traced(task: Task, thread: &Thread) -> bool {
    are_limited() && task.memory() != thread.memory && thread.flags & EXITING == 0 && !may_trace(task)
}

/// Decides the class of the switch-out, and sets the key by which it will be summed.
#[inline(always)]
fn enter_in_ledger(task: Task, thread: &mut Thread, leave: Leave, state: u32, plain: Plain) -> Class {
    let syscall = if leave == Leave::Dead {
        Syscall::Other
    } else {
        task.syscall()
    };
    let stopped = state & STATE_STOPPED != 0 || leave == Leave::Slept && task.is_frozen(state);
    let doing = plain.shape();
    let (class, _) = classify(leave, stopped, doing, syscall);
    let pending = &mut thread.pending;
    if class as u32 == Class::Unattributed as u32 {
        pending.class = known(leave == Leave::Slept, doing, syscall) as u8;
        pending.reason = plain.reason();
    } else {
        pending.class = class as u8;
        pending.reason = 0;
    }
    pending.throttled = u8::from(leave == Leave::Runnable && task.is_throttled());
    pending.task = plain.task();
    pending.tgid = thread.summary.tgid;
    pending.image = thread.summary.image;
    class
}

/// Returns why a thread is switched out between polls; `None` if it is not between polls.
#[inline(always)]
fn gap(doing: Doing, class: Class) -> Option<Gap> {
    if matches!(doing, Doing::Task(_) | Doing::Unknown(_)) {
        return None;
    }
    Some(match class {
        Class::WorkerParked => Gap::Parked,
        Class::Yielded | Class::RuntimePreempted | Class::ThreadPreempted => Gap::Preempted,
        _ => Gap::Blocked,
    })
}

/// Counts the wakeup that ended the thread's last park as wasted, if the thread parks again and has polled nothing.
#[inline(always)]
fn judge_last_wakeup(thread: &mut Thread, class: Class, scratch: &mut Scratch) {
    if thread.flags & WOKEN_FROM_PARK == 0 {
        return;
    }
    let polled = thread.polls.last.polls != thread.polls_when_woken;
    let parked = class as u32 == Class::WorkerParked as u32;
    if !polled && !parked {
        // The thread was preempted, or waits for a lock. It cannot be decided yet.
        return;
    }
    thread.flags &= !WOKEN_FROM_PARK;
    if polled {
        return;
    }
    add_wasted(thread, scratch);
}

/// Counts that wakeup as wasted. Not inlined, because its key needs room on the stack: see `crate::locate::look`.
#[inline(never)]
fn add_wasted(thread: &mut Thread, scratch: &mut Scratch) {
    let mut addition = EdgeAddition {
        key: EdgeKey::new(&thread.woken_by, thread.tid, thread.tgid),
        what: What::Wasted as u64,
        ns: thread.on_cpu_ns.wrapping_sub(thread.woken_on_cpu_ns),
    };
    // The edge is made again if the table has been emptied since the wakeup.
    if let Some(edge) = edge(&mut addition, scratch) {
        // SAFETY: a live element. Only the CPU that switches this thread changes these fields.
        let edge = unsafe { &mut *edge };
        edge.wasted += 1;
        edge.wasted_on_cpu_ns += addition.ns;
    }
}

#[inline(always)]
fn switch_in(thread: &mut Thread, now_ns: u64, scratch: &mut Scratch) {
    let entered = thread.clock.switch_in(now_ns);
    if let Some(ns) = entered.off_cpu_ns.ns() {
        thread.off_cpu_ns += ns;
        record(Latency::OffCpu, ns);
    }
    if let Some(ns) = entered.blocked_ns.ns() {
        record(Latency::Blocked, ns);
    }
    if let Some(ns) = entered.run_queue_ns.ns() {
        thread.run_queue_ns += ns;
        record(Latency::RunQueue, ns);
    }
    if let Some(ns) = entered.wake_to_run_ns.ns() {
        record(Latency::WakeToRun, ns);
    }
    if entered.wake_unknown {
        count(|counters| &mut counters.lost_wakeups);
    }
    note_wakeup(thread, &entered, scratch);
    if thread.flags & PENDING_SUM != 0 {
        thread.flags &= !PENDING_SUM;
        add_switch(thread, entered.off_cpu_ns.or_zero());
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

/// Adds the wakeup that ended the sleep to its edge. A wakeup that was not seen has no time, and is not added.
#[inline(always)]
fn note_wakeup(thread: &mut Thread, entered: &Entered, scratch: &mut Scratch) {
    if let (Some(wakeup), Some(wake_to_run_ns)) = (entered.woken, entered.wake_to_run_ns.ns()) {
        let on_cpu = matches!(wakeup, NotedWakeup::OnCpu);
        add_wakeup(thread, on_cpu, wake_to_run_ns, entered.off_cpu_ns.or_zero(), scratch);
    }
}

/// Adds a wakeup to its edge. Not inlined, because its keys need room on the stack: see `crate::locate::look`.
#[inline(never)]
fn add_wakeup(thread: &mut Thread, on_cpu: bool, wake_to_run_ns: u64, off_cpu_ns: u64, scratch: &mut Scratch) {
    // Both indices are constants, so no check of bounds is needed, which could panic. A BPF program cannot panic.
    let waker = if on_cpu { thread.wakers[1] } else { thread.wakers[0] };
    let mut addition = EdgeAddition {
        key: EdgeKey::new(&waker, thread.tid, thread.tgid),
        what: What::Wakeup as u64,
        ns: wake_to_run_ns,
    };
    if let Some(edge) = edge(&mut addition, scratch) {
        // SAFETY: a live element. `record` changes fields that only the CPU that switches the woken thread changes.
        unsafe { &mut *edge }.record(wake_to_run_ns);
    }
    if thread.flags & PENDING_SUM == 0 {
        // A new thread has not been switched out yet.
        return;
    }
    // If the polls are not counted, it cannot be determined whether the thread polled after the wakeup.
    if thread.pending.class == Class::WorkerParked as u8 && polls_are_counted(thread) {
        thread.flags |= WOKEN_FROM_PARK;
        thread.woken_by = waker;
        thread.woken_on_cpu_ns = thread.on_cpu_ns;
        thread.polls_when_woken = thread.polls.last.polls;
    }
    if WITH_WAKER_STACKS.load() != 0 {
        let key = WakerStackKey {
            from: waker,
            to_task: thread.pending.task,
            to_tgid: thread.tgid,
            to_image: thread.image,
            to_class: u16::from(thread.pending.class),
            generation: 0,
            to_tid: thread.tid,
        };
        let sum = SwitchSum { count: 1, off_cpu_ns };
        add_waker(&mut WakerAddition { key, sum });
    }
}

/// Returns whether the thread's polls are counted.
#[inline(always)]
fn polls_are_counted(thread: &Thread) -> bool {
    thread.flags & INHERITED == 0 && thread.polls.is_read()
}

/// Handles the thread's last switch: sends its record to user space and removes it from the tables.
#[inline(always)]
fn end(task: Task, thread: &mut Thread) {
    thread.comm = task.comm();
    let image = Image {
        tgid: thread.tgid,
        number: thread.image,
    };
    report_and_remove(task, thread);
    thread_ended(image);
}

/// Takes the kernel stack of the thread that is switched out, and its user stack if that is recognised without a walk.
/// Leaves their keys in the scratch space.
#[inline(always)]
fn take_stacks(ctx: &BtfTracePointContext, task: Task, thread: &mut Thread, scratch: &mut Scratch) {
    (scratch.kernel_stack, scratch.stack_lost) = match kernel_stack(ctx.as_ptr(), task, thread, scratch) {
        Walked::Stack(hash) => (hash, 0),
        Walked::Failed => (0, 0),
        Walked::TableFull => (0, 1),
    };
    scratch.user_stack = if thread.flags & EXITING == 0 {
        known_user_stack(task, thread, scratch)
    } else {
        0
    };
}

/// Walks the user stack of the thread that is switched out, unless it was recognised, and adds the stacks and the name
/// to the key by which the switch-out will be summed.
#[inline(always)]
fn take_user_stack(ctx: &BtfTracePointContext, task: Task, thread: &mut Thread, scratch: &mut Scratch) {
    let mut user_state = UserStack::Known;
    let mut lost = scratch.stack_lost != 0;
    let user_stack = if thread.flags & EXITING != 0 {
        user_state = UserStack::Exiting;
        0
    } else if scratch.user_stack != 0 {
        scratch.user_stack
    } else {
        match user_stack(ctx.as_ptr(), thread, scratch) {
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
    pending.kernel_stack = scratch.kernel_stack;
    pending.user_stack = user_stack;
    pending.comm = task.comm();
    pending.user_state = user_state as u32;
}

/// Fault injection: returns whether this run is to be dropped.
#[inline(always)]
fn dropped_on_purpose() -> bool {
    let one_in = DROP_ONE_IN.load();
    if one_in == 0 {
        return false;
    }
    let Some(counters) = COUNTERS.get_ptr_mut(0) else {
        return false;
    };
    // SAFETY: this CPU's own element; see `crate::maps::add`.
    let runs = unsafe { &mut (*counters).fault_injection_runs };
    *runs += 1;
    *runs % u64::from(one_in) == 0
}
