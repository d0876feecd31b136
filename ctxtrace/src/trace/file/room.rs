//! How much memory a file may make its reader hold.
//!
//! Packed, encoded, and sparse: a few bytes in a file may be gigabytes in memory, and who reads a capture may have it from
//! anybody. So everything that is kept is charged before it is made: what CBOR is decoded to by its number of items, and
//! the tables that are stored without their zeroes ([`rows`]) by their size; what playing events takes by the threads and samples in
//! them; and the stacks of the sums by the names that they are given. A file has some room to begin with, more than
//! nearly all need, and more for every byte that it has.

use std::cell::Cell;
use std::collections::HashSet;
use std::fmt;
use std::marker::PhantomData;

use ctxtrace_common::clock::Leave;
use ctxtrace_common::event::{Decoded, Event};
use serde::de::{Error, SeqAccess, Visitor};
use serde::{Deserialize, Deserializer};

use super::block::Kind;
use crate::printable::{cut_name, printable};
use crate::trace::polls::PollBatch;

/// What any file may take.
const FOR_ANY_FILE: u64 = 1 << 30;
/// And for each of its bytes.
const FOR_A_BYTE: u64 = 128;
/// What an item may take, as an empty text in a vector that grows: more than most do.
const FOR_AN_ITEM: u64 = 72;
/// Bytes of what a decoder says of a file.
const LONGEST_QUOTE: usize = 1 << 10;
/// What a thread of a timeline may take in everything that plays the events.
const FOR_A_THREAD: u64 = 1 << 10;
/// And what is kept of one that has ended, while it is compared.
const FOR_AN_ENDED_THREAD: u64 = 320;
/// What a sample may take, with a place of its own.
const FOR_A_SAMPLE: u64 = 256;
/// Thread ids are below this (`PID_MAX_LIMIT`).
const IDS_OF_LINUX: u32 = 1 << 22;
/// Bytes that may come out of any file, unpacked.
const UNPACKED_OF_ANY_FILE: u64 = 256 << 20;
/// And for each of its bytes: events pack to a tenth.
const UNPACKED_OF_A_BYTE: u64 = 64;
/// Runs in a file: `--repeat` makes no more.
pub(super) const MOST_RUNS: usize = 1_000;

thread_local! {
    /// What the decoding that goes on may still take by [`rows`]. There is no other way to tell serde's visitors.
    static LEFT: Cell<u64> = const { Cell::new(u64::MAX) };
}

/// What is taken of a file's room.
#[derive(Debug, Default)]
pub(super) struct Room {
    /// Bytes of the file that were read.
    stored: u64,
    /// Bytes that came out of them.
    unpacked: u64,
    /// Memory that is held until the end.
    held: u64,
    /// Memory that the next state replaces.
    replaceable: u64,
    /// Threads that the events of this run have been about.
    threads: MetThreads,
}

/// Thread ids that were met: a bit for each of those that Linux gives, and a set of what is none.
#[derive(Debug, Default)]
struct MetThreads {
    bits: Vec<u64>,
    others: HashSet<u32>,
}

impl MetThreads {
    /// Notes an id, and returns whether it is a new one.
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
    /// Charges for a block that is about to be unpacked. Events pack less well than what is CBOR, with its names of fields.
    pub(super) fn unpack(&mut self, kind: Kind, stored: usize, unpacked: usize) -> Result<(), String> {
        self.stored += stored as u64;
        self.unpacked += if kind == Kind::Events { unpacked } else { unpacked / 16 } as u64;
        if self.unpacked > UNPACKED_OF_ANY_FILE + UNPACKED_OF_A_BYTE * self.stored {
            return Err(format!(
                "its first {} bytes claim to be far more than a recording packs to",
                self.stored
            ));
        }
        Ok(())
    }

    /// Decodes CBOR, if what comes of it has room.
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
                format!("a block holds something else than it should ({})", shown(&what))
            }
            _ => "a block holds what cannot be decoded".to_owned(),
        });
        self.replaceable += charge + (most - taken - LEFT.replace(u64::MAX));
        value
    }

    /// Charges for what is made of what was decoded: the stacks of a run with their names.
    pub(super) fn charge(&mut self, bytes: u64) -> Result<(), String> {
        self.replaceable = self.replaceable.saturating_add(bytes);
        if self.taken() > self.most() {
            Err(too_much())
        } else {
            Ok(())
        }
    }

    /// Charges for what is kept of a batch of events by whatever plays them: a state for each thread, a row for each that has ended, and
    /// samples. What is kept beyond that is bounded where it is kept.
    pub(super) fn play(&mut self, batch: &[Event]) -> Result<(), String> {
        let mut charge = 0;
        let threads = &mut self.threads;
        let mut meet = |tid: u32| if threads.meet(tid) { FOR_A_THREAD } else { 0 };
        for event in batch {
            charge += match event.decode() {
                // Another thread may have had this id before it.
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
                Some(Decoded::Waking { tid, waker, .. }) => meet(tid) + meet(waker.tid),
                Some(Decoded::Sample(sample)) => meet(sample.tid) + FOR_A_SAMPLE,
                Some(Decoded::Name { tid, .. } | Decoded::Exec { tid, .. }) => meet(tid),
                None => 0,
            };
        }
        self.keep(charge)
    }

    /// The same of stamps of polls.
    pub(super) fn play_polls(&mut self, batch: &PollBatch) -> Result<(), String> {
        let threads = &mut self.threads;
        let met = batch.threads.iter().filter(|thread| threads.meet(thread.tid)).count() as u64;
        self.keep(met * FOR_A_THREAD)
    }

    fn keep(&mut self, bytes: u64) -> Result<(), String> {
        self.held = self.held.saturating_add(bytes);
        self.fits(0)
    }

    /// The events that come are those of another run.
    pub(super) fn next_run(&mut self) {
        self.threads = MetThreads::default();
    }

    /// What is left of it.
    pub(super) fn left(&self) -> u64 {
        self.most().saturating_sub(self.taken())
    }

    /// Whether so many bytes can be held beside everything else for a moment.
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

    /// What was decoded last has taken the place of everything since the last run.
    pub(super) fn replaced(&mut self, before: u64) {
        self.replaceable -= before;
    }

    /// Memory that the next state replaces.
    pub(super) fn replaceable(&self) -> u64 {
        self.replaceable
    }

    /// A run is over: what it takes is held.
    pub(super) fn hold(&mut self) {
        self.held += std::mem::take(&mut self.replaceable);
    }
}

pub(super) fn too_much() -> String {
    "it claims to hold more than a recording of its size can".to_owned()
}

/// What the decoder says of a file, which may quote it.
fn shown(what: &str) -> String {
    cut_name(printable(what), LONGEST_QUOTE)
}

/// The memory that CBOR may be decoded to: that of its items, by their beginnings, and of its texts and bytes. What is no CBOR ends
/// the count; the decoder will say so.
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
        // Texts and bytes of a known length; 31 is "until it breaks off", in parts of a known length.
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

/// Decodes a list of values that are much larger than what they are stored as, as long as there is room for them.
pub(in crate::trace) fn rows<'de, T: Deserialize<'de>, D: Deserializer<'de>>(
    deserializer: D,
) -> Result<Vec<T>, D::Error> {
    struct Rows<T>(PhantomData<T>);

    impl<'de, T: Deserialize<'de>> Visitor<'de> for Rows<T> {
        type Value = Vec<T>;

        fn expecting(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
            formatter.write_str("a list")
        }

        fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<Vec<T>, A::Error> {
            let mut rows = Vec::new();
            while let Some(row) = list.next_element()? {
                // A vector that grows is there twice for a moment.
                let left = LEFT.get().checked_sub(3 * size_of::<T>() as u64);
                LEFT.set(left.ok_or_else(|| A::Error::custom(too_much()))?);
                rows.push(row);
            }
            Ok(rows)
        }
    }

    deserializer.deserialize_seq(Rows(PhantomData))
}

/// Decodes a list of a field that may be missing, as [`rows`] does: this is called where it is there.
pub(in crate::trace) fn some_rows<'de, T: Deserialize<'de>, D: Deserializer<'de>>(
    deserializer: D,
) -> Result<Option<Vec<T>>, D::Error> {
    rows(deserializer).map(Some)
}

#[cfg(test)]
mod tests {
    use super::*;

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
        // A text that claims to be longer than there is, and half a number.
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
