//! The events of `--level timeline`: a ring for each CPU, in memory that user space has mapped.
//!
//! A CPU writes only to its own ring, and only from programs of the scheduler's lane, the timer's included. These do
//! not interrupt each other (see [`Lane::Scheduler`](crate::maps::Lane::Scheduler) for the exception). So an event
//! takes a few stores and no lock, and its only helper calls are those for the CPU's number and for the array lookups.
//! (The kernel's own ring buffer is one for all CPUs, under a lock; an event through it costs several times as much.)
//! Events that find no room are counted on that CPU.

use aya_ebpf::helpers::bpf_get_smp_processor_id;
use ctxtrace_common::clock::Phase;
use ctxtrace_common::event::{EVENT_BYTES, Event};
use ctxtrace_common::process::Image;
use ctxtrace_common::thread::Thread;

use crate::maps::{EVENTS, HALF_FULL, RING_CAPACITY, RINGS, count};
use crate::task::Task;

/// Flag of a ring buffer: wake the reader, whatever it has read.
pub(crate) const BPF_RB_FORCE_WAKEUP: u64 = 2;

/// Returns the number of this CPU.
#[inline(always)]
pub(crate) fn cpu() -> u32 {
    // SAFETY: the helper has no preconditions.
    unsafe { bpf_get_smp_processor_id() }
}

/// Writes an event to this CPU's ring, and counts it as lost if there is no room. Returns whether there was room.
#[inline(always)]
pub(crate) fn publish(event: &Event) -> bool {
    if write(event) {
        return true;
    }
    count(|counters| &mut counters.lost_timeline_events);
    false
}

/// Writes an event to this CPU's ring, without counting a loss. Returns whether there was room.
#[inline(always)]
pub(crate) fn write(event: &Event) -> bool {
    let cpu = cpu();
    // A CPU that was not present when the rings were created has no ring.
    let Some(ring) = RINGS.get_ptr_mut(cpu) else {
        return false;
    };
    let capacity = u64::from(RING_CAPACITY.load());
    // SAFETY: this CPU's own element. Only this CPU changes `written`. User space changes `read`, with one aligned
    // store, and does not access the entries before it afterwards.
    let (written, used) = unsafe {
        let written = (*ring).written;
        (written, written.wrapping_sub((&raw const (*ring).read).read_volatile()))
    };
    if used >= capacity {
        return false;
    }
    let place = u64::from(cpu) * capacity + (written & (capacity - 1));
    let Some(slot) = EVENTS.get_ptr_mut(place as u32) else {
        return false;
    };
    let words: [u64; EVENT_BYTES / 8] = bytemuck::cast(*event);
    // SAFETY: an entry of this CPU that user space has read. The stores are volatile, so that they stay in this order,
    // and x86 makes them visible in this order: first the event, then the number that publishes it.
    unsafe {
        slot.cast::<[u64; EVENT_BYTES / 8]>().write_volatile(words);
        (&raw mut (*ring).written).write_volatile(written + 1);
    }
    if used + 1 == capacity / 2 {
        // If there is no room, the reader has already been woken several times.
        let _ = HALF_FULL.output::<u64>(&written, BPF_RB_FORCE_WAKEUP);
    }
    true
}

/// Emits the events that introduce a thread, if it has not been introduced with its present id, name and program. Call
/// this before the thread's state machine processes an event.
#[inline(always)]
pub(crate) fn introduce(task: Task, tid: u32, thread: &mut Thread, now_ns: u64) {
    if thread.introduced_names != thread.names || thread.introduced_tid != tid {
        emit_introduction(task, tid, thread, now_ns);
    }
}

/// Emits the events that introduce a thread. Not inlined, because it runs only once for each thread, name and program.
#[inline(never)]
fn emit_introduction(task: Task, tid: u32, thread: &mut Thread, now_ns: u64) {
    let cpu = cpu();
    let image = Image {
        tgid: thread.tgid,
        number: thread.image,
    };
    // This is read before the name: if the name changes in between, the thread is introduced again.
    // SAFETY: the pointer comes from a valid reference. The read is volatile because another thread may rename this
    // one.
    let names = unsafe { (&raw const thread.names).read_volatile() };
    let new = thread.clock.phase() as u32 == Phase::New as u32;
    let introduced_tid = thread.introduced_tid;
    if !publish(&Event::thread(
        now_ns,
        cpu,
        tid,
        introduced_tid,
        thread.start_boottime_ns,
        image,
        new,
    )) {
        return;
    }
    thread.introduced_tid = tid;
    if !publish(&Event::name(now_ns, cpu, tid, &task.comm())) {
        return;
    }
    if thread.executed_ns != 0 {
        if !publish(&Event::exec(now_ns, cpu, tid, thread.executed_ns, Some(image))) {
            return;
        }
        thread.executed_ns = 0;
    }
    thread.introduced_names = names;
}
