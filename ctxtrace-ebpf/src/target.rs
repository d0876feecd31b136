//! From a `task_struct` to the record of the thread: who is a target.
//!
//! A thread is one if it is in the thread table, or if its process is in the process table: then it is adopted at this,
//! its first event. Threads of a process that is followed from its start come in at their fork; adoption is for the first
//! thread of all (user space knows its process id only) and for threads that no fork announces, like `io_uring` workers.

use aya_ebpf::helpers::bpf_ktime_get_ns;
use ctxtrace_common::clock::Clock;
use ctxtrace_common::process::{Image, Process, filter_place};
use ctxtrace_common::thread::{KERNEL_WORKER, KernelCount, PENDING_SUM, REFUSED, Thread, ThreadSummary};

use crate::atomic;
use crate::maps::{EXITED, FILTER, IMAGES, Lane, PROCESSES, THREADS, count};
use crate::rights::may_trace;
use crate::sums::{add_switch, bring_in};
use crate::switch::BPF_RB_NO_WAKEUP;
use crate::tables::thread_was_reported;
use crate::task::Task;

/// What an unknown thread is doing in the event it is first seen in.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum FirstSeen {
    /// It is being switched out, and the kernel has counted that already.
    LeavingCpu,
    /// Anything else.
    Otherwise,
    /// It has just been created.
    Newborn,
}

/// Whether a process may be a target: no for sure, or perhaps. One load from a table of its own, so that a switch that concerns
/// no target costs next to nothing.
#[inline(always)]
pub(crate) fn may_be_target(tgid: u32) -> bool {
    // SAFETY: the value is copied out at once; a place is only ever stored to as a whole.
    FILTER.get(filter_place(tgid)).is_some_and(|set| *set != 0)
}

/// Lets everybody know that a process of this id may be a target.
#[inline(always)]
fn let_pass(tgid: u32) {
    if let Some(set) = FILTER.get_ptr_mut(filter_place(tgid)) {
        // SAFETY: a live element of an array; one aligned store, the same by whomever.
        unsafe { set.write_volatile(1) };
    }
}

/// The record of a target thread, or `None` for everybody else's. `adopt` tells how to begin a record.
#[inline(always)]
pub(crate) fn find(task: Task, tid: u32, first_seen: FirstSeen, lane: Lane) -> Option<&'static mut Thread> {
    // Pid 0 is the idle task of each CPU: nobody's thread.
    if tid == 0 || !may_be_target(task.tgid()) {
        return None;
    }
    let key = task.address();
    let thread = match THREADS.get_ptr_mut(&key) {
        Some(thread) => thread,
        None => {
            if !adopt(task, tid, first_seen, lane) {
                return None;
            }
            THREADS.get_ptr_mut(&key)?
        }
    };
    // SAFETY: the pointer is to a live element of a preallocated map. The element is changed only by the CPU that switches
    // the thread and by wakings, whose fields are apart (see `ctxtrace_common::clock`, "Concurrency").
    Some(unsafe { &mut *thread })
}

/// Begins the record of a thread of a followed process. Kept out of line: it runs once a thread, and otherwise only to say
/// no to threads of others.
#[inline(never)]
fn adopt(task: Task, tid: u32, first_seen: FirstSeen, lane: Lane) -> bool {
    let tgid = task.tgid();
    let Some(process) = PROCESSES.get_ptr_mut(&tgid) else {
        return false;
    };
    // SAFETY: a live element; the fields are changed with single aligned stores or atomic adds.
    let process = unsafe { &mut *process };
    let leader_start_ns = task.group_leader().start_boottime_ns();
    if process.start_boottime_ns == 0 {
        // User space asked for it by its id, and it may have executed another program since it was looked at.
        if !may_trace(task) {
            refuse(Image { tgid, number: 0 });
            return false;
        }
        process.start_boottime_ns = leader_start_ns;
    } else if process.start_boottime_ns != leader_start_ns {
        // The id was given to another process while we still had it down for ours.
        return false;
    }
    let clock = if first_seen == FirstSeen::Newborn {
        Clock::NEW
    } else {
        Clock::UNKNOWN
    };
    let mut base = task.kernel_count();
    if first_seen == FirstSeen::LeavingCpu {
        // The counter was raised for this switch just before the tracepoint. Which of the two is not known here; the sum
        // is all that is compared, so either serves.
        if base.voluntary > 0 {
            base.voluntary -= 1;
        } else {
            base.involuntary -= 1;
        }
    }
    let first = First {
        stale_thread_pointer: 0,
        tid,
        tgid,
        image: 0,
        flags: 0,
        clock,
        base,
    };
    begin(task, &first, Begin::IfUnknown, lane)
}

/// What a record begins with, beside what the `task_struct` says.
pub(crate) struct First {
    pub(crate) stale_thread_pointer: u64,
    pub(crate) tid: u32,
    pub(crate) tgid: u32,
    pub(crate) image: u32,
    pub(crate) flags: u32,
    pub(crate) clock: Clock,
    pub(crate) base: KernelCount,
}

/// What to do with a record that is there already. The values are flags of `bpf_map_update_elem`.
#[derive(Clone, Copy)]
pub(crate) enum Begin {
    /// Replace it: it is left over from a thread whose last switch was missed, and which lay at the same address.
    Anew = 0,
    /// Keep it: another CPU has just begun it (`BPF_NOEXIST`).
    IfUnknown = 1,
}

/// The error of an element that is there already.
pub(crate) const EEXIST: i32 = -17;

/// Puts a new record into the thread table and counts the thread as alive. Tells whether there is a record now.
#[inline(always)]
pub(crate) fn begin(task: Task, first: &First, how: Begin, lane: Lane) -> bool {
    let Some(scratch) = lane.scratch() else {
        return false;
    };
    let thread = &mut scratch.thread;
    *thread = bytemuck::Zeroable::zeroed();
    thread.clock = first.clock;
    thread.base = first.base;
    thread.kernel = first.base;
    thread.comm = task.comm();
    thread.start_boottime_ns = task.start_boottime_ns();
    thread.memory = task.memory();
    thread.stale_thread_pointer = first.stale_thread_pointer;
    thread.tid = first.tid;
    thread.tgid = first.tgid;
    thread.image = first.image;
    thread.flags = first.flags;
    thread.names = 1;
    if task.is_kernel_worker() {
        thread.flags |= KERNEL_WORKER;
    }
    match THREADS.insert(&task.address(), &*thread, how as u64) {
        Ok(()) => {
            thread_began(first.tgid);
            true
        }
        Err(EEXIST) => true,
        Err(_) => {
            count(|counters| &mut counters.lost_threads);
            false
        }
    }
}

/// Begins to follow a process that a target has forked: it runs its parent's program.
#[inline(always)]
pub(crate) fn follow_process(parent: Image, tgid: u32, start_boottime_ns: u64) {
    let_pass(tgid);
    if PROCESSES.insert(&tgid, &Process::new(start_boottime_ns, 0), 0).is_err() {
        count(|counters| &mut counters.lost_threads);
    }
    if let Some(locator) = IMAGES.get_ptr(&parent) {
        let child = Image {
            tgid,
            number: parent.number,
        };
        // SAFETY: a live element. Should there be no room, the child's tasks are unattributed, for that reason.
        let _ = IMAGES.insert(&child, unsafe { &*locator }, 0);
    }
}

/// Another program in the process: what was brought home of the old one's names says nothing about the new one's.
#[inline(always)]
pub(crate) fn program_replaced(old: Image) {
    let _ = IMAGES.remove(&old);
    if let Some(process) = PROCESSES.get_ptr_mut(&old.tgid) {
        // SAFETY: a live element; one aligned store.
        unsafe { (&raw mut (*process).tasks_named).write_volatile(0) };
    }
}

/// Ends the recording of a thread whose process executes a program that the tracer's user may not trace: its record goes to user space
/// and out of the tables, with what was recorded before. Neither the process nor what it forks from here on is followed.
#[inline(never)]
pub(crate) fn stop_recording(task: Task, thread: &mut Thread) {
    thread.polls.start_anew();
    thread.clock = Clock::UNKNOWN;
    // SAFETY: the helper has no preconditions.
    thread.clock.since_ns = unsafe { bpf_ktime_get_ns() };
    thread.flags |= REFUSED;
    let image = Image {
        tgid: thread.tgid,
        number: thread.image,
    };
    report_and_remove(task, thread);
    refuse(image);
}

/// Forgets a process that may not be traced, which ran this image, and counts it.
#[inline(always)]
fn refuse(image: Image) {
    let _ = PROCESSES.remove(&image.tgid);
    let _ = IMAGES.remove(&image);
    // User space may have said already what the process was going to execute.
    let _ = IMAGES.remove(&Image {
        tgid: image.tgid,
        number: image.number + 1,
    });
    count(|counters| &mut counters.refused_processes);
}

/// Sends the record of a thread to user space, and takes it out of the table.
#[inline(always)]
pub(crate) fn report_and_remove(task: Task, thread: &mut Thread) {
    if thread.flags & PENDING_SUM != 0 {
        thread.flags &= !PENDING_SUM;
        add_switch(thread, 0);
    }
    bring_in(&mut thread.gathered[0]);
    bring_in(&mut thread.gathered[1]);
    if EXITED
        .output::<ThreadSummary>(&thread.summary, BPF_RB_NO_WAKEUP)
        .is_err()
    {
        count(|counters| &mut counters.lost_records);
    }
    thread_was_reported();
    let _ = THREADS.remove(&task.address());
}

/// Counts a new thread of a process.
#[inline(always)]
pub(crate) fn thread_began(tgid: u32) {
    if let Some(process) = PROCESSES.get_ptr_mut(&tgid) {
        // SAFETY: a live element, and `live_threads` is changed only by atomic additions.
        unsafe { atomic::add(&raw mut (*process).live_threads, 1) };
    }
}

/// Takes a thread off a process's count and forgets the process with its last one.
#[inline(always)]
pub(crate) fn thread_ended(image: Image) {
    let Some(process) = PROCESSES.get_ptr_mut(&image.tgid) else {
        return;
    };
    // SAFETY: as in `thread_began`; the read is volatile because other CPUs add to it.
    let live_threads = unsafe {
        let live_threads = &raw mut (*process).live_threads;
        atomic::add(live_threads, u64::MAX);
        live_threads.read_volatile()
    };
    // Whoever brings it to 0 sees 0 here; should two see it, the second removal finds nothing.
    if live_threads == 0 {
        let _ = PROCESSES.remove(&image.tgid);
        let _ = IMAGES.remove(&image);
    }
}
