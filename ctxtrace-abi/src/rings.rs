//! Rings of stamps: when each poll began and ended, and when each task was woken (`ctxtrace … --polls`).
//!
//! ctxtrace creates a block of shared memory and passes its descriptor to the program that it starts, with [`VARIABLE`]
//! in the environment. A probe that finds the variable maps the memory. Each thread of the program then claims a ring,
//! and writes one record for each beginning and each end of an outermost poll and for each wake. ctxtrace reads the
//! rings periodically. Neither side waits for the other: a writer that has filled its ring overwrites the oldest
//! records, and the reader computes from the record numbers how many records it has missed.
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
//! | 2 to 23 | the task that begins to be polled or is woken, in the encoding of [`short_task`]; 0 in the record of an end |
//! | 24 to 63 | the clock's reading, modulo 2^40 |
//!
//! In a [`CONTROL`] record, bits 2 to 5 are [`OWNER`], bits 6 to 27 are the id of the thread that writes the following
//! records, and bits 28 to 49 are the id of its process. (The kernel assigns no ids of more than 22 bits.) A word that
//! is 0 is not a record.
//!
//! The writer works in the same way whether or not ctxtrace reads the rings. ctxtrace trusts none of the contents: no
//! value in this memory can harm it. The memory is sealed, so that no process can shrink it.

/// Name of the environment variable. Its value is the descriptor's number, a comma, and [`Header::nonce`] as 32
/// hexadecimal digits.
pub const VARIABLE: &str = "CTXTRACE_POLL_RINGS";

/// Value of [`Header::magic`] for this layout: `ctxpoll1`.
pub const MAGIC: u64 = u64::from_le_bytes(*b"ctxpoll1");

/// Kind of a record: a poll begins.
pub const BEGIN: u64 = 1;
/// Kind of a record: the poll ends.
pub const END: u64 = 2;
/// Kind of a record: a task is woken.
pub const WAKE: u64 = 3;
/// Kind of a record: about the ring itself, not about a poll.
pub const CONTROL: u64 = 0;
/// Number of bits of a record's kind.
pub const KIND_BITS: u32 = 2;

/// Type of a control record: another thread writes the following records.
pub const OWNER: u64 = 1;
/// Replaces [`OWNER`] in [`RingState::owner`] when the thread has given the ring back; the thread remains named as the
/// last writer.
pub const LAST: u64 = 2;
/// Value of [`RingState::owner`] while a thread is claiming the ring.
pub const CLAIMED: u64 = CONTROL | 3 << KIND_BITS;

/// Number of bits of a task in a record.
pub const TASK_BITS: u32 = 22;
/// Number of the bit at which the clock's reading begins.
pub const CLOCK_SHIFT: u32 = KIND_BITS + TASK_BITS;
/// Number of bits of the clock's reading.
pub const CLOCK_BITS: u32 = 64 - CLOCK_SHIFT;

/// Number of bits of a thread's or process's id.
pub const ID_BITS: u32 = 22;

/// Value of [`Header::clock`]: the CPU's time-stamp counter.
pub const CLOCK_TSC: u32 = 1;
/// Value of [`Header::clock`]: `CLOCK_MONOTONIC`, in nanoseconds.
pub const CLOCK_MONOTONIC: u32 = 2;

/// Offset in bytes of the first [`RingState`].
pub const STATES_AT: usize = 4_096;
const PAGE: usize = 4_096;

/// Bit that is set in the short form of a task that was announced by a runtime's hook ([`crate::HOOKED`]).
const SHORT_HOOKED: u32 = 1 << (TASK_BITS - 1);

/// The header, written by ctxtrace when it creates the memory.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Header {
    /// [`MAGIC`].
    pub magic: u64,
    /// The same number as in the environment variable. It proves that the descriptor refers to this memory, and not to
    /// another file that was opened with the same number.
    pub nonce: [u64; 2],
    /// [`CLOCK_TSC`] or [`CLOCK_MONOTONIC`].
    pub clock: u32,
    /// Number of rings.
    pub rings: u32,
    /// Number of records that each ring holds; a power of two.
    pub capacity: u64,
    /// Number of records that were dropped because their thread found no free ring. Raised by the writers.
    pub dropped_without_ring: u64,
}

const _: () = assert!(size_of::<Header>() == 48);

impl Header {
    /// Returns the header's bytes as they are stored in memory.
    #[must_use]
    pub const fn to_bytes(self) -> [u8; size_of::<Self>()] {
        // SAFETY: both types have the same size, and the header consists of integers without padding.
        unsafe { core::mem::transmute(self) }
    }

    /// Makes a header of bytes from memory. Any bytes are valid; the values are not checked.
    #[must_use]
    pub const fn from_bytes(bytes: [u8; size_of::<Self>()]) -> Self {
        // SAFETY: both types have the same size, and any bytes are valid integers.
        unsafe { core::mem::transmute(bytes) }
    }
}

/// The state of one ring. It takes two cache lines, so that no two writers share a line or a pair of lines that is
/// prefetched together.
#[repr(C, align(128))]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct RingState {
    /// Number of records written since the beginning, which is the number of the next record. A record is stored at its
    /// number modulo the capacity. The number is raised after the whole record has been stored.
    pub head: u64,
    /// The thread that writes to the ring, in the format of a control record. For a free ring: the thread that wrote
    /// last, with [`LAST`], or 0 if none ever did. While the ring is being claimed: [`CLAIMED`].
    pub owner: u64,
    /// Number of the first record by the thread in `owner`, which is its control record.
    pub since: u64,
}

const _: () = assert!(size_of::<RingState>() == 128);

/// Returns the short form of a task for a record: its id if that fits 21 bits and 0 otherwise, with a bit for hooked
/// tasks.
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

/// Returns the id that was given to [`short_task`], or 0 if that id did not fit.
#[must_use]
pub const fn long_task(short: u32) -> u64 {
    let own = (short & (SHORT_HOOKED - 1)) as u64;
    if short & SHORT_HOOKED != 0 {
        own | crate::HOOKED
    } else {
        own
    }
}

/// Returns a record without its time: the kind and, for a beginning or a wake, the task.
#[inline(always)]
#[must_use]
pub const fn what(kind: u64, short_task: u32) -> u64 {
    kind | (short_task as u64) << KIND_BITS
}

/// Returns a record, given its other parts ([`what`]) and the clock's reading.
#[inline(always)]
#[must_use]
pub const fn record(what: u64, clock: u64) -> u64 {
    clock << CLOCK_SHIFT | what
}

/// Returns the control record with which a thread claims a ring.
#[must_use]
pub const fn owner(pid: u32, tid: u32) -> u64 {
    let mask = (1 << ID_BITS) - 1;
    CONTROL | OWNER << KIND_BITS | (tid as u64 & mask) << 6 | (pid as u64 & mask) << (6 + ID_BITS)
}

/// Returns the process id and the thread id in a control record, or `None` for any other record.
#[must_use]
pub const fn owner_of(record: u64) -> Option<(u32, u32)> {
    if record & 0x3f != OWNER << KIND_BITS {
        return None;
    }
    let mask = (1 << ID_BITS) - 1;
    Some((((record >> (6 + ID_BITS)) & mask) as u32, ((record >> 6) & mask) as u32))
}

/// Returns the [`RingState::owner`] of a ring that this owner has given back.
#[must_use]
pub const fn last(owner: u64) -> u64 {
    owner & !(0xf << KIND_BITS) | LAST << KIND_BITS
}

/// Returns whether a ring with this [`RingState::owner`] is free.
#[must_use]
pub const fn is_free(owner: u64) -> bool {
    owner == 0 || owner & 0x3f == LAST << KIND_BITS
}

/// Returns the process id and the thread id of the current or, for a free ring, the last writer of a ring with this
/// [`RingState::owner`].
#[must_use]
pub const fn writer_of(owner: u64) -> Option<(u32, u32)> {
    if owner & 0x3f == LAST << KIND_BITS {
        return owner_of(owner & !(0xf << KIND_BITS) | OWNER << KIND_BITS);
    }
    owner_of(owner)
}

/// Returns the offset in bytes of the first ring's records.
#[must_use]
pub const fn records_at(rings: usize) -> usize {
    (STATES_AT + rings * size_of::<RingState>()).next_multiple_of(PAGE)
}

/// Returns the size of the whole memory in bytes.
#[must_use]
pub const fn total_bytes(rings: usize, capacity: usize) -> usize {
    records_at(rings) + rings * capacity * 8
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn short_tasks_round_trip_or_become_zero() {
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
        // Bits of the clock that do not fit are dropped, and nothing else changes.
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
        assert_eq!(owner_of(last(owner)), None, "it is not a valid control record");
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
