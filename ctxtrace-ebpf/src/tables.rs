//! How full the tables are that user space empties while the run goes on: see [`ctxtrace_common::table`].

use ctxtrace_common::table::{Table, TableState};

use crate::atomic;
use crate::events::BPF_RB_FORCE_WAKEUP;
use crate::maps::{EXITED, HALF_FULL, TABLES};

/// The generation that elements of a table are made with now. A program reads it before it looks a key up, each time.
#[inline(always)]
pub(crate) fn generation(table: Table) -> u64 {
    match TABLES.get_ptr_mut(table as u32) {
        // SAFETY: a live element of an array; user space stores the field as a whole.
        Some(state) => unsafe { (&raw const (*state).generation).read_volatile() },
        None => 0,
    }
}

/// Counts an element that was made, and wakes user space when there are enough of them. Kept out of line: it is seldom called.
#[inline(never)]
pub(crate) fn made_one(table: u32) {
    let Some(state) = TABLES.get_ptr_mut(table) else {
        return;
    };
    // SAFETY: a live element of an array; the field is only ever added to atomically, or stored as a whole.
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

/// `BPF_RB_AVAIL_DATA`: bytes that the reader of a ring has not read.
const BPF_RB_AVAIL_DATA: u64 = 0;

#[inline(always)]
fn wake_reader(state: *mut TableState, made: u64) {
    // SAFETY: a live element of an array; single aligned loads and stores. Two CPUs may both wake the reader, which does no harm.
    unsafe {
        let wake_at = (&raw const (*state).wake_at).read_volatile();
        let woken = &raw mut (*state).woken;
        if wake_at == 0 || made < wake_at || woken.read_volatile() != 0 {
            return;
        }
        woken.write_volatile(1);
    }
    // Should there be no room, the reader has been woken more than once already.
    let _ = HALF_FULL.output::<u64>(&made, BPF_RB_FORCE_WAKEUP);
}
