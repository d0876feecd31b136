//! Finds which task a hit belongs to. The probe keeps the tasks of its last polls, which are read only when there is a
//! hit.

use aya_ebpf::helpers::bpf_probe_read_user;
use ctxtrace_abi::{RECENT_POLLS, Slot, Tables, ThreadState};
use ctxtrace_common::polls::{Gap, PollCounts};
use ctxtrace_common::thread::{FROM_BIRTH, INHERITED, Thread};

use crate::sums::add_hit;

/// Processes a reading of the probe's slot, which lies at `address` in the thread's memory.
#[inline(always)]
pub(crate) fn observe(thread: &mut Thread, slot: &Slot, address: u64, between: Option<Gap>) {
    if thread.flags & INHERITED != 0 {
        return;
    }
    let from_birth = thread.flags & FROM_BIRTH != 0;
    let observed = thread.polls.observe(PollCounts::from_slot(slot), between, from_birth);
    let Some(poll) = observed.hit else {
        return;
    };
    // One entry less than there are, because the program may already have overwritten the oldest one with that of the
    // next poll.
    if slot.polls.wrapping_sub(poll) < RECENT_POLLS as u64 - 1 {
        let recent = core::mem::offset_of!(ThreadState, tables) + core::mem::offset_of!(Tables, recent);
        let at = 2 * (poll as usize % RECENT_POLLS);
        let index = address.wrapping_add((recent + at) as u64) as *const u16;
        // SAFETY: a failed read returns an error.
        if let Ok(index) = unsafe { bpf_probe_read_user(index) } {
            add_hit(thread, index);
            return;
        }
    }
    thread.polls.hits_of_unknown_task += 1;
}
