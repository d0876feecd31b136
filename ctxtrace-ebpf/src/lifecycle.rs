//! `sched_process_fork(parent, child)`, `sched_process_exec(p, old_pid, bprm)`, `sched_process_exit(p)`: which threads
//! belong to the target, from when and until when. `task_rename(p, comm)`: their names.
//!
//! None of these programs emits an event, because the programs that do could interrupt them, and events are written
//! without a lock. Their information is emitted with the thread's next switch or wakeup, which follows soon.

use aya_ebpf::helpers::{bpf_get_current_task, bpf_ktime_get_ns};
use aya_ebpf::macros::{btf_tracepoint, kprobe};
use aya_ebpf::programs::{BtfTracePointContext, ProbeContext};
use ctxtrace_common::clock::Clock;
use ctxtrace_common::process::Image;
use ctxtrace_common::thread::{BORROWED, EXITING, FROM_BIRTH, INHERITED, KernelCount, RUNTIME, Thread};

use crate::handover::final_numbers;
use crate::maps::{EXECUTED, FOLLOW_CHILDREN, Lane, THREADS, WITH_EVENTS};
use crate::rights::may_trace;
use crate::target::{Begin, First, FirstSeen, begin, find, follow_process, program_replaced, stop_recording};
use crate::task::{Task, thread_pointer_of};

/// Makes a child of a target thread, whether a thread or a process, a target. The child has not run yet (kernel:
/// `kernel/fork.c`, `kernel_clone()`), and its counters are 0 (`copy_mm()`).
#[btf_tracepoint(function = "sched_process_fork")]
pub(crate) fn sched_process_fork(ctx: BtfTracePointContext) -> i32 {
    let parent = Task::from_arg(ctx.arg(0));
    let child = Task::from_arg(ctx.arg(1));
    let Some(thread) = find(parent, parent.tid(), FirstSeen::Otherwise, Lane::Lifecycle) else {
        return 0;
    };
    let image = thread.image;
    let (tid, tgid) = (child.tid(), child.tgid());
    let thread_pointer = child.thread_pointer();
    let is_makers = thread_pointer == parent.thread_pointer() && child.memory() == parent.memory();
    let mut flags = if tgid == thread.tgid {
        FROM_BIRTH
    } else if FOLLOW_CHILDREN.load() == 0 {
        return 0;
    } else {
        let parent = Image {
            tgid: thread.tgid,
            number: image,
        };
        follow_process(parent, tgid, child.start_boottime_ns());
        INHERITED
    };
    // Go's threads are born with their parent's thread pointer, and set their own a few instructions later. Until then,
    // what the parent was doing must not be attributed to them. The child of a `vfork` (`posix_spawn`, Go's `os/exec`)
    // keeps that thread pointer until it calls `execve`, however often it is switched out before.
    if is_makers && tgid != thread.tgid {
        flags |= BORROWED;
    }
    let first = First {
        stale_thread_pointer: if is_makers { thread_pointer } else { 0 },
        tid,
        tgid,
        image,
        flags,
        clock: Clock::NEW,
        base: KernelCount {
            voluntary: 0,
            involuntary: 0,
        },
    };
    begin(child, &first, Begin::Anew, Lane::Lifecycle);
    0
}

/// Records that the process has a new program, and so a new name and a new address space. If the caller was not the
/// group's leader, it has become the leader and has the leader's id now. Its record is the same, because records are
/// kept by address.
#[btf_tracepoint(function = "sched_process_exec")]
pub(crate) fn sched_process_exec(ctx: BtfTracePointContext) -> i32 {
    let task = Task::from_arg(ctx.arg(0));
    let tid = task.tid();
    if let Some(thread) = find(task, tid, FirstSeen::Otherwise, Lane::Lifecycle) {
        // The thread already has the credentials of the new program (kernel: `fs/exec.c`, `begin_new_exec()`).
        if !may_trace(task) {
            stop_recording(task, thread);
            return 0;
        }
        program_replaced(Image {
            tgid: thread.tgid,
            number: thread.image,
        });
        thread.tid = tid;
        thread.image += 1;
        thread.comm = task.comm();
        thread.names = thread.names.wrapping_add(1);
        if WITH_EVENTS.load() != 0 {
            // SAFETY: the helper has no preconditions.
            thread.executed_ns = unsafe { bpf_ktime_get_ns() };
        }
        thread.locator = 0;
        thread.last_task = 0;
        thread.launch_task = 0;
        thread.memory = task.memory();
        thread.stale_thread_pointer = task.thread_pointer();
        thread.flags = (thread.flags & !(INHERITED | BORROWED | RUNTIME)) | FROM_BIRTH;
        thread.polls.start_anew();
        let image = Image {
            tgid: thread.tgid,
            number: thread.image,
        };
        // If there is no room, user space finds the program at its next tick.
        let _ = EXECUTED.output::<Image>(&image, 0);
    }
    0
}

/// Records that the thread is about to end. It will be switched a few more times, the last time with `TASK_DEAD`, so
/// its record stays. But its memory is gone, or soon will be.
#[btf_tracepoint(function = "sched_process_exit")]
pub(crate) fn sched_process_exit(ctx: BtfTracePointContext) -> i32 {
    let task = Task::from_arg(ctx.arg(0));
    if let Some(thread) = find(task, task.tid(), FirstSeen::Otherwise, Lane::Lifecycle) {
        exits(thread, task.thread_pointer());
    }
    0
}

/// Does the same before Linux 6.16, where [`sched_process_exit`] comes after the memory is gone. Attached only there.
/// Nearly all threads end through this function; those that do not have no final counts.
#[kprobe(function = "do_exit")]
pub(crate) fn do_exit(_ctx: ProbeContext) -> u32 {
    // SAFETY: the helper has no preconditions.
    let address = unsafe { bpf_get_current_task() };
    if let Some(thread) = THREADS.get_ptr_mut(&address) {
        // SAFETY: as in `crate::target::find`. A kprobe runs with preemption disabled, like a tracepoint.
        exits(unsafe { &mut *thread }, thread_pointer_of(address));
    }
    0
}

#[inline(always)]
fn exits(thread: &mut Thread, thread_pointer: u64) {
    if thread.flags & EXITING == 0 {
        final_numbers(thread_pointer, thread);
    }
    thread.flags |= EXITING;
}

/// Records that a thread gets another name. Attached only if names are emitted as events.
#[btf_tracepoint(function = "task_rename")]
pub(crate) fn task_rename(ctx: BtfTracePointContext) -> i32 {
    let task = Task::from_arg(ctx.arg(0));
    if let Some(thread) = THREADS.get_ptr_mut(&task.address()) {
        // SAFETY: a live element. If two threads rename a third one at the same time, the number may be raised by only
        // one. This is sufficient, because it must only differ from its value at the last introduction.
        unsafe {
            let names = &raw mut (*thread).names;
            names.write_volatile(names.read_volatile().wrapping_add(1));
        }
    }
    0
}
