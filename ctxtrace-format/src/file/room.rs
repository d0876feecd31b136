//! Limits the memory that the contents of a capture file may take.
//!
//! The contents are compressed, encoded and sparse, so a few bytes in a file may become gigabytes in memory, and a capture may
//! come from an untrusted source. So everything that is kept is charged before it is allocated:
//!
//! * decoded CBOR by its number of items,
//! * tables that are stored without their zeroes ([`rows`]) by their size,
//! * the replay of events by the threads and samples in them,
//! * the stacks of the sums by the names of their frames.
//!
//! A file may take a fixed amount of memory, which is more than nearly all captures need, and a further amount for each of its
//! bytes.

use std::cell::Cell;
use std::collections::HashSet;
use std::fmt;
use std::marker::PhantomData;

use ctxtrace_common::clock::Leave;
use ctxtrace_common::event::{Decoded, Event};
use serde::de::{Error, SeqAccess, Visitor};
use serde::{Deserialize, Deserializer};

use super::kind::BlockKind;
use crate::polls::PollBatch;
use crate::printable::{cut_name, printable};

/// Memory that the contents of any file may take, in bytes. A file that needs more is rejected as damaged.
const FOR_ANY_FILE: u64 = 1 << 30;
/// Additional memory for each byte of the file, in bytes.
const FOR_A_BYTE: u64 = 128;
/// Memory charged for a CBOR item, in bytes: that of an empty text in a growing vector, which is more than most items take.
const FOR_AN_ITEM: u64 = 72;
/// Maximum length of a decoder's error message in bytes, because it may quote the file. A longer message is cut.
const LONGEST_QUOTE: usize = 1 << 10;
/// Memory charged for the states of one thread in all consumers of the events, in bytes.
const FOR_A_THREAD: u64 = 1 << 10;
/// Additional memory charged for a thread that has ended, until its totals are compared, in bytes.
const FOR_AN_ENDED_THREAD: u64 = 320;
/// Memory charged for a sample with a place of its own, in bytes.
const FOR_A_SAMPLE: u64 = 256;
/// Thread ids are below this number (`PID_MAX_LIMIT` in the kernel's `include/linux/threads.h`).
const IDS_OF_LINUX: u32 = 1 << 22;
/// Size to which any file may unpack, in bytes. A file that exceeds it is rejected as damaged.
const UNPACKED_OF_ANY_FILE: u64 = 256 << 20;
/// Additional unpacked size for each byte of the file, in bytes. Events compress to about a tenth.
const UNPACKED_OF_A_BYTE: u64 = 64;
/// Maximum number of runs in a file, which is also the limit of `--repeat`. A file with more runs is rejected as damaged.
pub(super) const MOST_RUNS: usize = 1_000;

thread_local! {
    /// Memory in bytes that [`rows`] may still take in the current decoding. It is thread-local because serde offers no way to
    /// pass it to a visitor.
    static LEFT: Cell<u64> = const { Cell::new(u64::MAX) };
}

/// The memory that the contents of a file take, and its limits.
#[derive(Debug, Default)]
pub(super) struct Room {
    /// Bytes of the file that were read.
    stored: u64,
    /// Bytes after decompression; those of blocks other than events count for a sixteenth.
    unpacked: u64,
    /// Memory that is kept until the end.
    held: u64,
    /// Memory that the next state replaces, and that of the records that belong to it.
    replaceable: u64,
    /// The part of `replaceable` that the next state does not replace: the records that belong to it.
    of_the_next_state: u64,
    /// The threads in the events of the current run.
    threads: MetThreads,
}

/// A set of thread ids: one bit for each id that Linux can assign, and a hash set of other numbers, which only a forged file
/// contains.
#[derive(Debug, Default)]
struct MetThreads {
    bits: Vec<u64>,
    others: HashSet<u32>,
}

impl MetThreads {
    /// Adds an id to the set, and returns whether it is new.
    fn meet(&mut self, tid: u32) -> bool {
        if tid >= IDS_OF_LINUX {
            return self.others.insert(tid);
        }
        if self.bits.is_empty() {
            self.bits = vec![0; (IDS_OF_LINUX / u64::BITS) as usize];
        }
        let (word, bit) = ((tid / u64::BITS) as usize, 1 << (tid % u64::BITS));
        let is_new = self.bits[word] & bit == 0;
        self.bits[word] |= bit;
        is_new
    }
}

impl Room {
    /// Charges for a block that is about to be decompressed. Blocks other than events count for a sixteenth of their size: most
    /// of them are CBOR, which contains the names of fields and so compresses much better than events.
    pub(super) fn unpack(&mut self, kind: BlockKind, stored: usize, unpacked: usize) -> Result<(), String> {
        self.stored += stored as u64;
        self.unpacked += if kind == BlockKind::Events {
            unpacked
        } else {
            unpacked / 16
        } as u64;
        if self.unpacked > UNPACKED_OF_ANY_FILE + UNPACKED_OF_A_BYTE * self.stored {
            return Err(format!(
                "its first {} bytes unpack to far more data than a recording of that size contains",
                self.stored
            ));
        }
        Ok(())
    }

    /// Decodes CBOR, if the result fits in the memory limit.
    pub(super) fn decode<T: for<'de> Deserialize<'de>>(&mut self, bytes: &[u8]) -> Result<T, String> {
        let charge = cost(bytes);
        let taken = self.taken().saturating_add(charge).saturating_add(bytes.len() as u64);
        let most = self.most();
        if taken > most {
            return Err(too_much());
        }
        LEFT.set(most - taken);
        let value = ciborium::from_reader(bytes).map_err(|error| match error {
            ciborium::de::Error::Semantic(_, what) => {
                format!("a block has unexpected contents ({})", shown(&what))
            }
            _ => "a block cannot be decoded".to_owned(),
        });
        self.replaceable += charge + (most - taken - LEFT.replace(u64::MAX));
        value
    }

    /// Decodes records that belong to the next state, as [`decode`](Self::decode) does.
    pub(super) fn decode_for_the_next_state<T: for<'de> Deserialize<'de>>(
        &mut self,
        bytes: &[u8],
    ) -> Result<T, String> {
        let before = self.replaceable;
        let value = self.decode(bytes);
        self.of_the_next_state += self.replaceable - before;
        value
    }

    /// Decodes a state, as [`decode`](Self::decode) does, and releases the memory of the state that it replaces.
    pub(super) fn decode_state<T: for<'de> Deserialize<'de>>(&mut self, bytes: &[u8]) -> Result<T, String> {
        let replaced = self.replaceable - self.of_the_next_state;
        let value = self.decode(bytes)?;
        self.replaceable -= replaced;
        self.of_the_next_state = 0;
        Ok(value)
    }

    /// Charges for data that is computed from decoded data: the stacks of a run with their names.
    pub(super) fn charge(&mut self, bytes: u64) -> Result<(), String> {
        self.replaceable = self.replaceable.saturating_add(bytes);
        if self.taken() > self.most() {
            Err(too_much())
        } else {
            Ok(())
        }
    }

    /// Charges for the data that the consumers of a batch of events keep: a state for each thread, a row for each ended thread,
    /// and the samples. Their other data has limits of its own.
    pub(super) fn play(&mut self, batch: &[Event]) -> Result<(), String> {
        let mut charge = 0;
        let threads = &mut self.threads;
        let mut meet = |tid: u32| if threads.meet(tid) { FOR_A_THREAD } else { 0 };
        for event in batch {
            charge += match event.decode() {
                // Another thread may have had this id before, so the new thread is always charged.
                Some(Decoded::Thread { tid, previous_tid, .. }) => {
                    meet(tid);
                    meet(previous_tid) + FOR_A_THREAD
                }
                Some(Decoded::Switch { out, into }) => {
                    let ended = out.is_some_and(|out| out.leave == Leave::Dead);
                    let tids = [out.map(|out| out.tid), into.map(|into| into.tid)];
                    let met: u64 = tids.into_iter().flatten().map(&mut meet).sum();
                    met + if ended { FOR_AN_ENDED_THREAD } else { 0 }
                }
                Some(Decoded::Wakeup { tid, waker, .. }) => meet(tid) + meet(waker.tid),
                Some(Decoded::Sample(sample)) => meet(sample.tid) + FOR_A_SAMPLE,
                Some(Decoded::Name { tid, .. } | Decoded::Exec { tid, .. }) => meet(tid),
                None => 0,
            };
        }
        self.keep(charge)
    }

    /// Charges for the data that the consumers of a batch of polls keep: a state for each new thread.
    pub(super) fn play_polls(&mut self, batch: &PollBatch) -> Result<(), String> {
        let threads = &mut self.threads;
        let met = batch.threads.iter().filter(|thread| threads.meet(thread.tid)).count() as u64;
        self.keep(met * FOR_A_THREAD)
    }

    fn keep(&mut self, bytes: u64) -> Result<(), String> {
        self.held = self.held.saturating_add(bytes);
        self.fits(0)
    }

    /// Begins the next run: the events from here on belong to it.
    pub(super) fn next_run(&mut self) {
        self.threads = MetThreads::default();
    }

    /// Memory that the file may still take, in bytes.
    pub(super) fn left(&self) -> u64 {
        self.most().saturating_sub(self.taken())
    }

    /// Checks that this many bytes can be allocated temporarily, in addition to everything that is kept.
    pub(super) fn fits(&self, bytes: u64) -> Result<(), String> {
        if bytes > self.left() || self.taken() > self.most() {
            Err(too_much())
        } else {
            Ok(())
        }
    }

    fn taken(&self) -> u64 {
        self.held.saturating_add(self.replaceable)
    }

    fn most(&self) -> u64 {
        FOR_ANY_FILE + FOR_A_BYTE * self.stored
    }

    /// Keeps all memory until the end, because no later state replaces it.
    pub(super) fn hold(&mut self) {
        self.held += std::mem::take(&mut self.replaceable);
        self.of_the_next_state = 0;
    }
}

pub(super) fn too_much() -> String {
    "it claims to contain more than a recording of its size can contain".to_owned()
}

/// A decoder's error message made printable and cut to a maximum length, because it may quote the file.
fn shown(what: &str) -> String {
    cut_name(printable(what), LONGEST_QUOTE)
}

/// An estimate of the memory that decoded CBOR takes, in bytes: an amount for each item, found by its header, and the lengths of
/// texts and byte strings. The count ends at invalid CBOR, which the decoder then reports.
fn cost(mut bytes: &[u8]) -> u64 {
    let mut cost = 0_u64;
    while let Some((&first, rest)) = bytes.split_first() {
        cost += FOR_AN_ITEM;
        let (major, additional) = (first >> 5, first & 31);
        let width = match additional {
            24 => 1,
            25 => 2,
            26 => 4,
            27 => 8,
            _ => 0,
        };
        let Some((argument, rest)) = rest.split_at_checked(width) else {
            break;
        };
        let number = match width {
            0 => u64::from(additional),
            _ => argument.iter().fold(0, |number, &byte| number << 8 | u64::from(byte)),
        };
        // Texts and byte strings of a known length. 31 means an indefinite length, in parts that each have a known length.
        let text = if matches!(major, 2 | 3) && additional < 28 {
            usize::try_from(number).unwrap_or(usize::MAX).min(rest.len())
        } else {
            0
        };
        cost += text as u64;
        bytes = &rest[text..];
    }
    cost
}

/// Decodes a list whose values are much larger in memory than in the file. Fails if the list exceeds the memory limit.
pub(crate) fn rows<'de, T: Deserialize<'de>, D: Deserializer<'de>>(deserializer: D) -> Result<Vec<T>, D::Error> {
    struct RowBound<T>(PhantomData<T>);

    impl<'de, T: Deserialize<'de>> Visitor<'de> for RowBound<T> {
        type Value = Vec<T>;

        fn expecting(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
            formatter.write_str("a list")
        }

        fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<Vec<T>, A::Error> {
            let mut rows = Vec::new();
            while let Some(row) = list.next_element()? {
                // A vector that grows exists twice for a moment, and may be half empty.
                let left = LEFT.get().checked_sub(3 * size_of::<T>() as u64);
                LEFT.set(left.ok_or_else(|| A::Error::custom(too_much()))?);
                rows.push(row);
            }
            Ok(rows)
        }
    }

    deserializer.deserialize_seq(RowBound(PhantomData))
}

/// Decodes a list like [`rows`], for a field that may be missing. serde calls this function only if the field is present.
pub(crate) fn some_rows<'de, T: Deserialize<'de>, D: Deserializer<'de>>(
    deserializer: D,
) -> Result<Option<Vec<T>>, D::Error> {
    rows(deserializer).map(Some)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn records_before_a_block_that_is_kept_are_kept_with_it() {
        let mut room = Room::default();
        let item: &[u8] = &[1];
        room.decode_for_the_next_state::<u8>(item).expect("decoded");
        room.hold();
        room.decode_state::<u8>(item).expect("decoded");
        assert_eq!((room.held, room.replaceable), (FOR_AN_ITEM, FOR_AN_ITEM));
        room.decode_for_the_next_state::<u8>(item).expect("decoded");
        room.decode_state::<u8>(item).expect("decoded");
        assert_eq!(
            room.replaceable,
            2 * FOR_AN_ITEM,
            "the first state is replaced, and its records are not"
        );
    }

    #[test]
    fn items_and_texts_are_charged_as_they_were_encoded() {
        let cost = |value: &ciborium::Value| {
            let mut bytes = Vec::new();
            ciborium::into_writer(value, &mut bytes).expect("encoded");
            cost(&bytes)
        };
        let text = |text: &str| ciborium::Value::from(text);
        assert_eq!(cost(&text(&"long ".repeat(1_000))), FOR_AN_ITEM + 5_000);
        assert_eq!(cost(&ciborium::Value::Bytes(vec![0x81; 300])), FOR_AN_ITEM + 300);
        assert_eq!(cost(&ciborium::Value::from(1_u64 << 40)), FOR_AN_ITEM);
        let list = ciborium::Value::Array(vec![text("a"), text(""), ciborium::Value::from(-70_000)]);
        assert_eq!(cost(&list), 4 * FOR_AN_ITEM + 1);
        assert_eq!(
            cost(&ciborium::Value::Map(vec![(text("key"), list)])),
            6 * FOR_AN_ITEM + 4
        );
    }

    #[test]
    fn what_is_cut_off_is_not_charged_for_what_it_claims() {
        // A text that claims to be longer than the data, and half a number.
        assert_eq!(
            cost(&[0x7b, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 1, 1, 1]),
            FOR_AN_ITEM + 3
        );
        assert_eq!(cost(&[0x1b, 1, 2]), FOR_AN_ITEM);
    }

    #[test]
    fn a_name_that_is_too_long_is_cut_between_characters() {
        assert_eq!(cut_name("short".to_owned(), 5), "short");
        assert_eq!(cut_name("äöüäöü".to_owned(), 8), "äö…");
    }
}
