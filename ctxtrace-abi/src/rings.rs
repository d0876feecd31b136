//! Rings of stamps: when each poll began and ended, and when each task was woken (`ctxtrace … --polls`).
//!
//! ctxtrace makes a piece of shared memory, and gives its descriptor to the program that it starts, with [`VARIABLE`] in the
//! environment. A probe that finds the variable maps the memory; each of its threads then takes a ring and writes a record
//! for every beginning and end of an outermost poll and for every wake. ctxtrace reads the rings now and then. Nobody waits
//! for anybody: a writer that has gone once around overwrites, and the reader sees from the numbers what it has missed.
//!
//! ```text
//!   Header | up to STATES_AT | RingState × rings | up to a page | records of ring 0 | records of ring 1 | …
//! ```
//!
//! A record is one word:
//!
//! | bits | |
//! |---|---|
//! | 0, 1 | [`BEGIN`], [`END`], [`WAKE`] or [`CONTROL`] |
//! | 2 to 23 | the task, as [`short_task`] gives it: begins to be polled, or is woken. An end has 0 |
//! | 24 to 63 | the clock's reading, modulo 2^40 |
//!
//! of a [`CONTROL`] record bits 2 to 5 are [`OWNER`], 6 to 27 the id of the thread that writes from here on, and 28 to 49 that
//! of its process. (The kernel has no ids of more than 22 bits.) A word that is 0 is no record.
//!
//! The reader is not trusted to be there, and the writer is not trusted at all: ctxtrace believes nothing here that could
//! harm it, and the memory is sealed, so that nobody can make it shorter.

/// The environment variable: the descriptor's number, a comma, and the [`Header::nonce`] as 32 hexadecimal digits.
pub const VARIABLE: &str = "CTXTRACE_POLL_RINGS";

/// [`Header::magic`] of this layout: `ctxpoll1`.
pub const MAGIC: u64 = u64::from_le_bytes(*b"ctxpoll1");

/// A poll begins.
pub const BEGIN: u64 = 1;
/// The poll ends.
pub const END: u64 = 2;
/// A task is woken.
pub const WAKE: u64 = 3;
/// Something about the ring itself.
pub const CONTROL: u64 = 0;
/// Bits of a record's kind.
pub const KIND_BITS: u32 = 2;

/// A control record: another thread writes from here on.
pub const OWNER: u64 = 1;
/// In place of [`OWNER`] in [`RingState::owner`]: that thread wrote last, and has given the ring back.
pub const LAST: u64 = 2;
/// [`RingState::owner`] while a thread makes the ring its own.
pub const CLAIMED: u64 = CONTROL | 3 << KIND_BITS;

/// Bits of a task in a record.
pub const TASK_BITS: u32 = 22;
/// Where the clock's reading begins.
pub const CLOCK_SHIFT: u32 = KIND_BITS + TASK_BITS;
/// Bits of a clock's reading.
pub const CLOCK_BITS: u32 = 64 - CLOCK_SHIFT;

/// Bits of a thread's or process's id.
pub const ID_BITS: u32 = 22;

/// [`Header::clock`]: the CPU's time-stamp counter.
pub const CLOCK_TSC: u32 = 1;
/// [`Header::clock`]: `CLOCK_MONOTONIC`, in nanoseconds.
pub const CLOCK_MONOTONIC: u32 = 2;

/// Where the [`RingState`]s begin.
pub const STATES_AT: usize = 4_096;
const PAGE: usize = 4_096;

/// Set in a task's short form if a runtime's hook has announced it ([`crate::HOOKED`]).
const SHORT_HOOKED: u32 = 1 << (TASK_BITS - 1);

/// What is said once, by ctxtrace.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Header {
    /// [`MAGIC`].
    pub magic: u64,
    /// As in the variable: the descriptor is the one that was meant, and no other file under its number.
    pub nonce: [u64; 2],
    /// [`CLOCK_TSC`] or [`CLOCK_MONOTONIC`].
    pub clock: u32,
    /// How many rings there are.
    pub rings: u32,
    /// Records that each ring holds: a power of two.
    pub capacity: u64,
    /// Records of threads that found no ring free; added up by the writers.
    pub homeless: u64,
}

const _: () = assert!(size_of::<Header>() == 48);

impl Header {
    /// As it lies in memory.
    #[must_use]
    pub const fn to_bytes(self) -> [u8; size_of::<Self>()] {
        // SAFETY: integers without padding, of that size.
        unsafe { core::mem::transmute(self) }
    }

    /// Out of memory, whatever is in it.
    #[must_use]
    pub const fn from_bytes(bytes: [u8; size_of::<Self>()]) -> Self {
        // SAFETY: of that size, and any bytes are integers.
        unsafe { core::mem::transmute(bytes) }
    }
}

/// Where one ring stands. Two cache lines, so that no two writers share one, nor a line that is fetched with it.
#[repr(C, align(128))]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct RingState {
    /// Records written since the beginning: the next one's number. Its place is the number modulo the capacity. Raised when
    /// a record is there as a whole.
    pub head: u64,
    /// The thread that writes, as a control record says it; of a ring that is free the last one that wrote, with [`LAST`], or 0;
    /// [`CLAIMED`] in between.
    pub owner: u64,
    /// Number of the record from which on that thread writes, or wrote.
    pub since: u64,
}

const _: () = assert!(size_of::<RingState>() == 128);

/// A task as records have it: its id, if that fits 21 bits, else 0. Whether a hook has announced it is kept.
#[inline(always)]
#[must_use]
pub const fn short_task(id: u64) -> u32 {
    let own = id & !crate::HOOKED;
    let hooked = if id & crate::HOOKED != 0 { SHORT_HOOKED } else { 0 };
    if own < SHORT_HOOKED as u64 {
        own as u32 | hooked
    } else {
        0
    }
}

/// The id that [`short_task`] was given; 0 where it did not fit.
#[must_use]
pub const fn long_task(short: u32) -> u64 {
    let own = (short & (SHORT_HOOKED - 1)) as u64;
    if short & SHORT_HOOKED != 0 {
        own | crate::HOOKED
    } else {
        own
    }
}

/// What a record says but for the time: its kind and, of a beginning or a wake, the task.
#[inline(always)]
#[must_use]
pub const fn what(kind: u64, short_task: u32) -> u64 {
    kind | (short_task as u64) << KIND_BITS
}

/// A whole record.
#[inline(always)]
#[must_use]
pub const fn record(what: u64, clock: u64) -> u64 {
    clock << CLOCK_SHIFT | what
}

/// The control record by which a thread makes a ring its own.
#[must_use]
pub const fn owner(pid: u32, tid: u32) -> u64 {
    let mask = (1 << ID_BITS) - 1;
    CONTROL | OWNER << KIND_BITS | (tid as u64 & mask) << 6 | (pid as u64 & mask) << (6 + ID_BITS)
}

/// The process and the thread in a control record; `None` if it is another.
#[must_use]
pub const fn owner_of(record: u64) -> Option<(u32, u32)> {
    if record & 0x3f != OWNER << KIND_BITS {
        return None;
    }
    let mask = (1 << ID_BITS) - 1;
    Some((((record >> (6 + ID_BITS)) & mask) as u32, ((record >> 6) & mask) as u32))
}

/// Of a thread that has given its ring back.
#[must_use]
pub const fn last(owner: u64) -> u64 {
    owner & !(0xf << KIND_BITS) | LAST << KIND_BITS
}

/// Whether a ring with this [`RingState::owner`] is nobody's.
#[must_use]
pub const fn is_free(owner: u64) -> bool {
    owner == 0 || owner & 0x3f == LAST << KIND_BITS
}

/// The process and the thread that write to a ring with this [`RingState::owner`], or wrote to it last.
#[must_use]
pub const fn writer_of(owner: u64) -> Option<(u32, u32)> {
    if owner & 0x3f == LAST << KIND_BITS {
        return owner_of(owner & !(0xf << KIND_BITS) | OWNER << KIND_BITS);
    }
    owner_of(owner)
}

/// Where the first ring's records begin.
#[must_use]
pub const fn records_at(rings: usize) -> usize {
    (STATES_AT + rings * size_of::<RingState>()).next_multiple_of(PAGE)
}

/// Bytes of the whole.
#[must_use]
pub const fn total_bytes(rings: usize, capacity: usize) -> usize {
    records_at(rings) + rings * capacity * 8
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tasks_come_back_or_are_nobody() {
        for id in [0, 1, 511, 512, (1 << 21) - 1] {
            assert_eq!(long_task(short_task(id)), id);
            assert_eq!(long_task(short_task(id | crate::HOOKED)), id | crate::HOOKED);
            assert!(short_task(id | crate::HOOKED) < 1 << TASK_BITS);
        }
        assert_eq!(short_task(1 << 21), 0);
        assert_eq!(short_task(crate::HOOKED | 1 << 40), 0);
    }

    #[test]
    fn a_record_has_its_three_parts() {
        let record = record(what(WAKE, 0x3f_ffff), 0xab_cdef_0123);
        assert_eq!(record & 3, WAKE);
        assert_eq!(record >> KIND_BITS & 0x3f_ffff, 0x3f_ffff);
        assert_eq!(record >> CLOCK_SHIFT, 0xab_cdef_0123);
        // What does not fit of the clock goes, and nothing else.
        assert_eq!(
            super::record(what(BEGIN, 7), 1 << 40 | 5),
            super::record(what(BEGIN, 7), 5)
        );
    }

    #[test]
    fn owners_come_back() {
        let most = (1 << ID_BITS) - 1;
        assert_eq!(owner_of(owner(4_711, most)), Some((4_711, most)));
        assert_eq!(owner_of(owner(most, 1)), Some((most, 1)));
        assert_eq!(owner_of(0), None);
        assert_eq!(owner_of(record(what(END, 0), 9)), None);
        assert_eq!(owner_of(2 << KIND_BITS), None);
    }

    #[test]
    fn a_ring_remembers_who_wrote_last() {
        let owner = owner(4_711, 9);
        assert!(!is_free(owner) && is_free(last(owner)) && is_free(0) && !is_free(CLAIMED));
        assert_eq!(writer_of(owner), Some((4_711, 9)));
        assert_eq!(writer_of(last(owner)), Some((4_711, 9)));
        assert_eq!(owner_of(last(owner)), None, "among the records it is none");
        assert_eq!((writer_of(0), writer_of(CLAIMED)), (None, None));
    }

    #[test]
    fn nothing_overlaps() {
        assert!(size_of::<Header>() <= STATES_AT);
        assert_eq!(records_at(1), 2 * PAGE);
        assert_eq!(records_at(32), 2 * PAGE);
        assert_eq!(records_at(33), 3 * PAGE);
        assert_eq!(total_bytes(2, 1_024), 2 * PAGE + 2 * 8_192);
    }
}
