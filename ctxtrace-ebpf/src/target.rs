//! Finds the record of a thread, given its `task_struct`, and so determines which threads are targets.
//!
//! A thread is a target if it is in the thread table, or if its process is in the process table; in the second case the
//! thread is adopted at this event, its first. Threads of a process that is followed from its start are added at their
//! fork. Adoption is for the very first thread (user space knows only its process id), for the threads of a process
//! that was attached to, and for threads that no fork announces, such as `io_uring` workers.

use aya_ebpf::helpers::bpf_ktime_get_ns;
use ctxtrace_common::clock::Clock;
use ctxtrace_common::process::{Image, Process, filter_place};
use ctxtrace_common::thread::{KERNEL_WORKER, KernelCount, PENDING_SUM, REFUSED, Thread, ThreadSummary};

use crate::atomic;
use crate::maps::{BPF_RB_NO_WAKEUP, EEXIST, EXITED, FILTER, IMAGES, Lane, PROCESSES, THREADS, count};
use crate::rights::may_trace;
use crate::sums::{add_switch, bring_in};
use crate::tables::thread_was_reported;
use crate::task::Task;

/// What an unknown thread is doing in the first event in which it is seen.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum FirstSeen {
    /// It is being switched out, and the kernel has already counted that switch.
    LeavingCpu,
    /// Anything else.
    Otherwise,
    /// It has just been created.
    Newborn,
}

/// Returns false if the process is certainly not a target, and true if it may be one. This is a single load from a
/// table of its own, so that switches that do not concern the target cost almost nothing.
#[inline(always)]
pub(crate) fn may_be_target(tgid: u32) -> bool {
    // SAFETY: the value is copied at once. An entry is only stored as a whole.
    FILTER.get(filter_place(tgid)).is_some_and(|set| *set != 0)
}

/// Marks a process id in the filter: its process may be a target.
#[inline(always)]
fn let_pass(tgid: u32) {
    if let Some(set) = FILTER.get_ptr_mut(filter_place(tgid)) {
        // SAFETY: a live element of an array. This is one aligned store, and every CPU stores the same value.
        unsafe { set.write_volatile(1) };
    }
}

/// Returns the record of a target thread, or `None` for any other thread. `first_seen` determines how a new record
/// begins.
#[inline(always)]
pub(crate) fn find(task: Task, tid: u32, first_seen: FirstSeen, lane: Lane) -> Option<&'static mut Thread> {
    // Pid 0 is the idle task of each CPU, which never belongs to the target.
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
    // SAFETY: the pointer is to a live element of a preallocated map. The element is changed only by the CPU that
    // switches the thread and by wakeups, which change other fields (see `ctxtrace_common::clock`, "Concurrency").
    Some(unsafe { &mut *thread })
}

/// Begins the record of a thread whose process is followed. Returns whether there is a record. Not inlined, because it
/// runs once for each thread of the target, and otherwise only for threads of other processes that pass the filter.
#[inline(never)]
fn adopt(task: Task, tid: u32, first_seen: FirstSeen, lane: Lane) -> bool {
    let tgid = task.tgid();
    let Some(process) = PROCESSES.get_ptr_mut(&tgid) else {
        return false;
    };
    // SAFETY: a live element. Its fields are changed with single aligned stores or with atomic additions.
    let process = unsafe { &mut *process };
    let leader_start_ns = task.group_leader().start_boottime_ns();
    if process.start_boottime_ns == 0 {
        // User space asked for this process by its id, and the process may have executed another program since it was
        // examined.
        if !may_trace(task) {
            refuse(Image { tgid, number: 0 });
            return false;
        }
        process.start_boottime_ns = leader_start_ns;
    } else if process.start_boottime_ns != leader_start_ns {
        // The id now belongs to another process; the entry is still that of the old one.
        return false;
    }
    let clock = if first_seen == FirstSeen::Newborn {
        Clock::NEW
    } else {
        Clock::UNKNOWN
    };
    let mut base = task.kernel_count();
    if first_seen == FirstSeen::LeavingCpu {
        // The kernel raised one of the counters for this switch just before the tracepoint. It is not known here which
        // one, but only their sum is compared, so either can be lowered.
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

/// The initial values of a record that are not in the `task_struct`.
pub(crate) struct First {
    pub(crate) stale_thread_pointer: u64,
    pub(crate) tid: u32,
    pub(crate) tgid: u32,
    pub(crate) image: u32,
    pub(crate) flags: u32,
    pub(crate) clock: Clock,
    pub(crate) base: KernelCount,
}

/// What to do if there is a record already. The values are flags of `bpf_map_update_elem`.
#[derive(Clone, Copy)]
pub(crate) enum Begin {
    /// Replace it. It is left over from a thread at the same address whose last switch was missed.
    Anew = 0,
    /// Keep it. Another CPU has just made it (`BPF_NOEXIST`).
    IfUnknown = 1,
}

/// Adds a new record to the thread table, and counts the thread as alive. Returns whether there is a record now.
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

/// Begins to follow a process that a target has forked. The process runs its parent's program.
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
        // SAFETY: a live element. If there is no room, the child's switches are unattributed, and the reason is that
        // its program was not examined.
        let _ = IMAGES.insert(&child, unsafe { &*locator }, 0);
    }
}

/// Records that the process has another program: the names that were sent to user space are those of the old one.
#[inline(always)]
pub(crate) fn program_replaced(old: Image) {
    let _ = IMAGES.remove(&old);
    if let Some(process) = PROCESSES.get_ptr_mut(&old.tgid) {
        // SAFETY: a live element; one aligned store.
        unsafe { (&raw mut (*process).tasks_named).write_volatile(0) };
    }
}

/// Ends the recording of a thread whose process executes a program that the tracer's user may not trace. The thread's
/// record goes to user space with what was recorded before, and is removed from the tables. The process is not followed
/// any more, and neither are its later children.
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

/// Stops following a process that may not be traced, which ran this image, and counts it.
#[inline(always)]
fn refuse(image: Image) {
    let _ = PROCESSES.remove(&image.tgid);
    let _ = IMAGES.remove(&image);
    // User space may already have added an entry for the program that the process was going to execute.
    let _ = IMAGES.remove(&Image {
        tgid: image.tgid,
        number: image.number + 1,
    });
    count(|counters| &mut counters.refused_processes);
}

/// Sends the record of a thread to user space, and removes it from the thread table.
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
        // SAFETY: a live element. After it was made, `live_threads` is changed only by atomic additions.
        unsafe { atomic::add(&raw mut (*process).live_threads, 1) };
    }
}

/// Subtracts a thread from the count of its process, and stops following the process after its last thread.
#[inline(always)]
pub(crate) fn thread_ended(image: Image) {
    let Some(process) = PROCESSES.get_ptr_mut(&image.tgid) else {
        return;
    };
    // SAFETY: as in `thread_began`. The read is volatile because other CPUs add to the field.
    let live_threads = unsafe {
        let live_threads = &raw mut (*process).live_threads;
        atomic::add(live_threads, u64::MAX);
        live_threads.read_volatile()
    };
    // The CPU that lowers the count to 0 reads 0 here. If two CPUs read 0, the second removal finds nothing.
    if live_threads == 0 {
        let _ = PROCESSES.remove(&image.tgid);
        let _ = IMAGES.remove(&image);
    }
}
