//! The fill levels of the tables that user space empties during a run: see [`ctxtrace_common::table`].

use ctxtrace_common::table::{Table, TableState};

use crate::atomic;
use crate::events::BPF_RB_FORCE_WAKEUP;
use crate::maps::{EXITED, HALF_FULL, TABLES};

/// Returns the generation of new elements of a table. A program must read it before each lookup of a key.
#[inline(always)]
pub(crate) fn generation(table: Table) -> u64 {
    match TABLES.get_ptr_mut(table as u32) {
        // SAFETY: the pointer is to a live element of an array. User space stores the field as a whole.
        Some(state) => unsafe { (&raw const (*state).generation).read_volatile() },
        None => 0,
    }
}

/// Counts a new element, and wakes user space when there are enough of them. Not inlined, because it is seldom called.
#[inline(never)]
pub(crate) fn made_one(table: u32) {
    let Some(state) = TABLES.get_ptr_mut(table) else {
        return;
    };
    // SAFETY: the pointer is to a live element of an array. The field is only added to atomically, or stored as a
    // whole.
    let made = unsafe {
        atomic::add(&raw mut (*state).made, 1);
        (&raw const (*state).made).read_volatile()
    };
    wake_reader(state, made);
}

/// Wakes user space when the ring of exited threads is half full.
#[inline(always)]
pub(crate) fn thread_was_reported() {
    let Some(state) = TABLES.get_ptr_mut(Table::Ended as u32) else {
        return;
    };
    wake_reader(state, EXITED.query(BPF_RB_AVAIL_DATA));
}

/// `BPF_RB_AVAIL_DATA`: the number of bytes that the reader of a ring has not read.
const BPF_RB_AVAIL_DATA: u64 = 0;

#[inline(always)]
fn wake_reader(state: *mut TableState, made: u64) {
    // SAFETY: the pointer is to a live element of an array; these are single aligned loads and stores. Two CPUs may
    // both wake the reader, which does no harm.
    unsafe {
        let wake_at = (&raw const (*state).wake_at).read_volatile();
        let woken = &raw mut (*state).woken;
        if wake_at == 0 || made < wake_at || woken.read_volatile() != 0 {
            return;
        }
        woken.write_volatile(1);
    }
    // If there is no room, the reader has already been woken several times.
    let _ = HALF_FULL.output::<u64>(&made, BPF_RB_FORCE_WAKEUP);
}
