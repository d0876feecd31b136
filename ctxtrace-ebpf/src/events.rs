//! The events of `--level timeline`: a ring for each CPU, in memory that user space has mapped.
//!
//! A CPU writes to its own ring only, and only from programs of the scheduler's lane and from the timer, of which no second one can come in
//! between: so an event takes a few stores and no lock, no helper. (The kernel's own ring buffer is one for all CPUs, under
//! a lock; an event through it costs several times as much.) What does not fit is counted, on that CPU.

use aya_ebpf::helpers::bpf_get_smp_processor_id;
use ctxtrace_common::clock::Phase;
use ctxtrace_common::event::{EVENT_BYTES, Event};
use ctxtrace_common::process::Image;
use ctxtrace_common::thread::Thread;

use crate::maps::{EVENTS, HALF_FULL, RING_CAPACITY, RINGS, count};
use crate::task::Task;

/// Wake the reader, whatever it has read.
pub(crate) const BPF_RB_FORCE_WAKEUP: u64 = 2;

/// This CPU's number.
#[inline(always)]
pub(crate) fn cpu() -> u32 {
    // SAFETY: the helper has no preconditions.
    unsafe { bpf_get_smp_processor_id() }
}

/// Puts an event into this CPU's ring. Tells whether there was room.
#[inline(always)]
pub(crate) fn publish(event: &Event) -> bool {
    if write(event) {
        return true;
    }
    count(|counters| &mut counters.lost_timeline_events);
    false
}

/// The same, without counting what finds no room.
#[inline(always)]
pub(crate) fn write(event: &Event) -> bool {
    let cpu = cpu();
    // A CPU that was not there when the rings were made has none.
    let Some(ring) = RINGS.get_ptr_mut(cpu) else {
        return false;
    };
    let capacity = u64::from(RING_CAPACITY.load());
    // SAFETY: this CPU's own element, in which nobody else changes `written`; user space changes `read`, with one aligned
    // store, after which it does not look at the places before it.
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
    // SAFETY: a place of this CPU's own that user space has read. Volatile, so that the stores stay in this order, in which
    // x86 makes them visible: the event first, then the number that says it is there.
    unsafe {
        slot.cast::<[u64; EVENT_BYTES / 8]>().write_volatile(words);
        (&raw mut (*ring).written).write_volatile(written + 1);
    }
    if used + 1 == capacity / 2 {
        // Should there be no room, the reader has been told more than once already.
        let _ = HALF_FULL.output::<u64>(&written, BPF_RB_FORCE_WAKEUP);
    }
    true
}

/// Says among the events who a thread is, if that has not been said or is not true any more. To be called before the thread's
/// state machine is told of anything.
#[inline(always)]
pub(crate) fn introduce(task: Task, tid: u32, thread: &mut Thread, now_ns: u64) {
    if thread.told_names != thread.names || thread.told_tid != tid {
        tell(task, tid, thread, now_ns);
    }
}

/// Kept out of line: it runs once a thread, name and program.
#[inline(never)]
fn tell(task: Task, tid: u32, thread: &mut Thread, now_ns: u64) {
    let cpu = cpu();
    let image = Image {
        tgid: thread.tgid,
        number: thread.image,
    };
    // Before the name is read: should it change meanwhile, it is told again.
    // SAFETY: a valid reference; volatile because another thread may rename this one.
    let names = unsafe { (&raw const thread.names).read_volatile() };
    let new = thread.clock.phase() as u32 == Phase::New as u32;
    let told_tid = thread.told_tid;
    if !publish(&Event::thread(
        now_ns,
        cpu,
        tid,
        told_tid,
        thread.start_boottime_ns,
        image,
        new,
    )) {
        return;
    }
    thread.told_tid = tid;
    if !publish(&Event::name(now_ns, cpu, tid, &task.comm())) {
        return;
    }
    if thread.executed_ns != 0 {
        if !publish(&Event::exec(now_ns, cpu, tid, thread.executed_ns, Some(image))) {
            return;
        }
        thread.executed_ns = 0;
    }
    thread.told_names = names;
}
