//! Polls and wakes with their times, as the probe records them in its rings (`--polls`), and their sums.
//!
//! A [`PollBatch`] contains the stamps that were read from the rings in one pass: for each thread its [`Stamp`]s, in their order.
//! A stamp is one 64-bit word, as in the rings ([`ctxtrace_abi::rings`]), but its time is in nanoseconds since the batch's base,
//! on the clock of the events. There may be twenty million stamps a second, so they are stored in this compact form in captures
//! too.

use ctxtrace_abi::rings::{BEGIN, CLOCK_BITS, CLOCK_SHIFT, END, KIND_BITS, TASK_BITS, WAKE, long_task};
use ctxtrace_common::histogram::Histogram;
use ctxtrace_common::process::TaskKey;
use serde::{Deserialize, Serialize};

use super::merge;
use crate::sums::add;

/// The clock from which the probe reads the times of its stamps.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, schemars::JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum PollClock {
    /// The CPUs' time-stamp counter, used if it runs at a constant rate and is synchronised between the CPUs.
    Tsc,
    /// `CLOCK_MONOTONIC`, used if the time-stamp counter cannot be used.
    Monotonic,
}

/// How the polls of a capture were recorded.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct PollInfo {
    /// The clock of the stamps.
    pub clock: PollClock,
    /// Time that one reading of the clock takes, measured before the run, in nanoseconds.
    pub reading_ns: f64,
}

/// What a stamp records.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum StampKind {
    /// The thread begins to poll this task.
    Begin(u64),
    /// The poll ends.
    End,
    /// The thread wakes this task.
    Wake(u64),
}

/// The beginning or end of a poll, or a wake, with its time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Stamp(u64);

/// The greatest time since the batch's base that a stamp can store: 18 minutes, in nanoseconds. Later times are clamped to it.
const LONGEST_NS: u64 = (1 << CLOCK_BITS) - 1;

impl Stamp {
    /// Converts a record of a ring, with its time since the batch's base. Returns `None` if the record is neither a beginning, an
    /// end nor a wake. Times of more than 18 minutes are clamped to 18 minutes.
    #[inline]
    #[must_use]
    pub fn of_record(record: u64, since_base_ns: u64) -> Option<Self> {
        let kind = record & ((1 << KIND_BITS) - 1);
        if !matches!(kind, BEGIN | END | WAKE) {
            return None;
        }
        let what = record & ((1 << CLOCK_SHIFT) - 1);
        Some(Self(what | since_base_ns.min(LONGEST_NS) << CLOCK_SHIFT))
    }

    /// Nanoseconds since the batch's base.
    #[inline]
    #[must_use]
    pub fn since_base_ns(self) -> u64 {
        self.0 >> CLOCK_SHIFT
    }

    /// What the stamp records. A task has the probe's id, or 0 if its number is too high for a stamp.
    #[inline]
    #[must_use]
    pub fn what(self) -> StampKind {
        let task = || long_task((self.0 >> KIND_BITS) as u32 & ((1 << TASK_BITS) - 1));
        match self.0 & ((1 << KIND_BITS) - 1) {
            BEGIN => StampKind::Begin(task()),
            END => StampKind::End,
            // `of_record` accepts only three kinds.
            _ => StampKind::Wake(task()),
        }
    }
}

/// The stamps of one thread.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ThreadStamps {
    /// Process id.
    pub tgid: u32,
    /// Thread id.
    pub tid: u32,
    /// Number of stamps lost before the first stamp in `stamps`, because the thread overwrote them in its ring before they were
    /// read.
    pub lost: u64,
    /// The stamps, in the order of their times.
    pub stamps: Vec<Stamp>,
}

/// The stamps that were read from the rings in one pass. A thread may occur more than once; its parts are in their order.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PollBatch {
    /// The time that the stamps' times are relative to: `CLOCK_MONOTONIC`, nanoseconds.
    pub base_ns: u64,
    /// All stamps up to this time are in this batch or an earlier one, except those that were lost or are late:
    /// `CLOCK_MONOTONIC`, nanoseconds.
    pub until_ns: u64,
    /// Number of lost stamps that belong to no known thread, or to a thread without a ring.
    pub dropped_without_ring: u64,
    /// The stamps by thread.
    pub threads: Vec<ThreadStamps>,
}

/// Size in a file of a batch's header and of each thread's header, in bytes.
const HEADER: usize = 24;

impl PollBatch {
    /// Whether the batch has neither stamps nor losses.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.threads.is_empty() && self.dropped_without_ring == 0
    }

    /// Number of stamps in the batch.
    #[must_use]
    pub fn stamps(&self) -> u64 {
        self.threads.iter().map(|thread| thread.stamps.len() as u64).sum()
    }

    /// Converts the batch to one without stamps that counts all of them as lost, for a file that has no room for them.
    #[must_use]
    pub fn as_lost(&self) -> Self {
        let lost = |thread: &ThreadStamps| thread.lost.saturating_add(thread.stamps.len() as u64);
        let dropped_without_ring = self
            .threads
            .iter()
            .map(lost)
            .fold(self.dropped_without_ring, u64::saturating_add);
        Self {
            dropped_without_ring,
            threads: Vec::new(),
            ..*self
        }
    }

    /// Encodes the batch as it is stored in a file.
    #[must_use]
    pub fn to_bytes(&self) -> Vec<u8> {
        let stamps: usize = self.threads.iter().map(|thread| thread.stamps.len()).sum();
        let mut bytes = Vec::with_capacity(HEADER * (1 + self.threads.len()) + 8 * stamps);
        for number in [self.base_ns, self.until_ns, self.dropped_without_ring] {
            bytes.extend(number.to_le_bytes());
        }
        for thread in &self.threads {
            bytes.extend(thread.tgid.to_le_bytes());
            bytes.extend(thread.tid.to_le_bytes());
            bytes.extend(thread.lost.to_le_bytes());
            bytes.extend((thread.stamps.len() as u64).to_le_bytes());
            for stamp in &thread.stamps {
                bytes.extend(stamp.0.to_le_bytes());
            }
        }
        bytes
    }

    /// Decodes a batch from a file.
    ///
    /// # Errors
    ///
    /// Returns a sentence if the bytes do not have the format of [`PollBatch::to_bytes`].
    pub fn from_bytes(bytes: &[u8]) -> Result<Self, String> {
        let mut words = Words(bytes);
        let mut batch = Self {
            base_ns: words.next()?,
            until_ns: words.next()?,
            dropped_without_ring: words.next()?,
            threads: Vec::new(),
        };
        while !words.0.is_empty() {
            let ids = words.next()?;
            let lost = words.next()?;
            let count = words.next()?;
            if count > words.0.len() as u64 / 8 {
                return Err(CUT.to_owned());
            }
            let (stamps, rest) = words.0.split_at(8 * count as usize);
            words.0 = rest;
            let stamp = |bytes: &[u8]| {
                let record = word(bytes);
                Stamp::of_record(record, record >> CLOCK_SHIFT)
            };
            batch.threads.push(ThreadStamps {
                tgid: ids as u32,
                tid: (ids >> 32) as u32,
                lost,
                stamps: stamps
                    .chunks_exact(8)
                    .map(stamp)
                    .collect::<Option<_>>()
                    .ok_or("a block of polls contains an invalid record")?,
            });
        }
        Ok(batch)
    }
}

const CUT: &str = "a block of polls is cut off";

fn word(bytes: &[u8]) -> u64 {
    let mut word = [0; 8];
    word.copy_from_slice(bytes);
    u64::from_le_bytes(word)
}

/// Reads 64-bit numbers from bytes.
struct Words<'a>(&'a [u8]);

impl Words<'_> {
    fn next(&mut self) -> Result<u64, String> {
        let (first, rest) = self.0.split_at_checked(8).ok_or(CUT)?;
        self.0 = rest;
        Ok(word(first))
    }
}

/// How a woken task reached its poll, by what the polling thread did in between.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, schemars::JsonSchema)]
#[serde(rename_all = "kebab-case")]
#[repr(usize)]
pub enum Path {
    /// The thread was on its CPU for the whole time from the wake to the poll.
    UserSpace,
    /// The thread slept, and was woken by the kernel after the wake of the task.
    Kernel,
    /// The thread was switched in between the wake and the poll, but not because of the wake: it had been woken before, or it had
    /// been preempted.
    AlreadyComing,
    /// The timeline contains no switch of the thread.
    Unknown,
}

impl Path {
    /// All paths.
    pub const ALL: [Self; 4] = [Self::UserSpace, Self::Kernel, Self::AlreadyComing, Self::Unknown];

    /// The name in the JSON.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::UserSpace => "user-space",
            Self::Kernel => "kernel",
            Self::AlreadyComing => "already-coming",
            Self::Unknown => "unknown",
        }
    }
}

/// A part of the time from a poll that wakes a task to the end of that task's own poll.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, schemars::JsonSchema)]
#[serde(rename_all = "kebab-case")]
#[repr(usize)]
pub enum Leg {
    /// The poll that makes the wake, from its beginning to the wake. Not part of the delay.
    WakersPoll,
    /// From the wake of the task to the kernel's wakeup of the polling thread (`sched_waking`).
    WakeToWaking,
    /// From that wakeup to the thread's switch-in.
    WakingToSwitchIn,
    /// From the wake of the task to the switch-in of a thread that had been woken before or preempted (path `already-coming`).
    WakeToSwitchIn,
    /// From the thread's switch-in to the beginning of the poll.
    SwitchInToPoll,
    /// From the wake to the beginning of the poll, if the thread was not switched in between (paths `user-space` and `unknown`).
    WakeToPoll,
    /// The woken task's poll, from its beginning to its end. Not part of the delay.
    Poll,
}

impl Leg {
    /// All legs, in the order of time.
    pub const ALL: [Self; 7] = [
        Self::WakersPoll,
        Self::WakeToWaking,
        Self::WakingToSwitchIn,
        Self::WakeToSwitchIn,
        Self::SwitchInToPoll,
        Self::WakeToPoll,
        Self::Poll,
    ];
}

/// A histogram that allocates no memory while it is empty.
#[derive(Clone, Debug, Default)]
pub struct Lazy(Option<Box<Histogram>>);

impl Lazy {
    /// Records one value.
    #[inline]
    pub fn record(&mut self, ns: u64) {
        self.0.get_or_insert_with(|| Box::new(Histogram::EMPTY)).record(ns);
    }

    /// The histogram; `None` if nothing was recorded.
    #[must_use]
    pub fn get(&self) -> Option<&Histogram> {
        self.0.as_deref()
    }

    /// Number of recorded values.
    #[must_use]
    pub fn count(&self) -> u64 {
        self.get().map_or(0, |histogram| histogram.count)
    }

    /// Adds the values of another histogram.
    pub fn merge(&mut self, other: &Self) {
        if let Some(other) = other.get() {
            let mine = self.0.get_or_insert_with(|| Box::new(Histogram::EMPTY));
            merge(mine, other);
        }
    }
}

/// The sums of the polls of one task.
#[derive(Clone, Debug, Default)]
pub struct TaskPolls {
    /// Number of polls that were begun.
    pub polls: u64,
    /// Number of wakes of the task.
    pub wakes: u64,
    /// Durations of the polls whose beginning and end are both known.
    pub poll: Lazy,
    /// Delays from a wake to the poll that it led to, by [`Path`].
    pub delays: [Lazy; Path::ALL.len()],
}

impl TaskPolls {
    /// Adds the sums of another run.
    pub fn merge(&mut self, other: &Self) {
        add(&mut self.polls, other.polls);
        add(&mut self.wakes, other.wakes);
        self.poll.merge(&other.poll);
        for (mine, theirs) in self.delays.iter_mut().zip(&other.delays) {
            mine.merge(theirs);
        }
    }

    /// The delays of all paths together.
    #[must_use]
    pub fn delay(&self) -> Lazy {
        let mut sum = Lazy::default();
        for delay in &self.delays {
            sum.merge(delay);
        }
        sum
    }
}

/// The waker of a task.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum PollWaker {
    /// A task, during its poll.
    Task(TaskKey),
    /// A thread that was not polling a task.
    Thread {
        /// Process id.
        tgid: u32,
        /// Thread id.
        tid: u32,
    },
}

/// The wakes of one task by one waker that led to a poll.
#[derive(Clone, Debug, Default)]
pub struct WakeEdge {
    /// Number of wakes by [`Path`].
    pub by_path: [u64; Path::ALL.len()],
    /// Delays from the wakes to the polls.
    pub delay: Lazy,
}

/// The durations of all wakes with the same [`Path`], leg by leg.
#[derive(Clone, Debug, Default)]
pub struct Chain {
    /// Durations by [`Leg`]. There is no [`Leg::Poll`] for a poll that was still active at the end, and no [`Leg::WakersPoll`]
    /// for a wake by a thread that was not polling a task.
    pub legs: [Lazy; Leg::ALL.len()],
    /// Delays from the wakes to the polls.
    pub delay: Lazy,
}

/// The sums of the stamps of a run.
#[derive(Clone, Debug, Default)]
pub struct PollSums {
    /// Number of stamps.
    pub stamps: u64,
    /// Number of outermost polls that were begun.
    pub polls: u64,
    /// Number of these polls whose end is unknown, because its stamp was lost or the poll was still active at the end.
    pub open: u64,
    /// Number of these polls for which no wake is known: the first poll of a task, polls of tasks without the probe's waker, and
    /// polls after a loss of stamps.
    pub without_wake: u64,
    /// Number of wakes.
    pub wakes: u64,
    /// Number of lost stamps.
    pub lost: u64,
    /// Number of stamps that the capture dropped because of its limits.
    pub dropped: u64,
    /// Number of stamps whose time is before that of a stamp of another thread that was processed earlier.
    pub unordered: u64,
    /// The tasks. Tasks beyond the first 1,024 are summed as [`ctxtrace_common::locator::OTHER_TASKS`].
    pub tasks: Vec<(TaskKey, TaskPolls)>,
    /// The pairs of waker and woken task. Only the first 1,024 pairs are recorded.
    pub edges: Vec<((PollWaker, TaskKey), WakeEdge)>,
    /// The durations by [`Path`].
    pub chains: [Chain; Path::ALL.len()],
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_path_has_one_name_everywhere() {
        for path in Path::ALL {
            assert_eq!(serde_json::to_value(path).expect("JSON"), path.name());
        }
    }
    use ctxtrace_abi::HOOKED;
    use ctxtrace_abi::rings::{owner, record, short_task, what};

    fn stamp(kind: u64, task: u64, ns: u64) -> Stamp {
        Stamp::of_record(record(what(kind, short_task(task)), 99), ns).expect("a stamp")
    }

    fn batch() -> PollBatch {
        let thread = |tid, lost, stamps| ThreadStamps {
            tgid: 7,
            tid,
            lost,
            stamps,
        };
        PollBatch {
            base_ns: 1_000,
            until_ns: 9_000,
            dropped_without_ring: 3,
            threads: vec![
                thread(8, 0, vec![stamp(BEGIN, 5, 10), stamp(END, 0, 20)]),
                thread(9, 4, vec![]),
                thread(8, 0, vec![stamp(WAKE, HOOKED | 6, u64::MAX)]),
            ],
        }
    }

    #[test]
    fn a_stamp_says_what_and_when() {
        let begin = stamp(BEGIN, 5, 10);
        assert_eq!((begin.what(), begin.since_base_ns()), (StampKind::Begin(5), 10));
        assert_eq!(stamp(END, 0, 0).what(), StampKind::End);
        assert_eq!(stamp(WAKE, HOOKED | 6, 1).what(), StampKind::Wake(HOOKED | 6));
        assert_eq!(stamp(END, 0, u64::MAX).since_base_ns(), LONGEST_NS);
        assert_eq!(Stamp::of_record(0, 7), None);
        assert_eq!(Stamp::of_record(owner(1, 2), 7), None);
    }

    #[test]
    fn a_batch_comes_back_from_bytes() {
        assert_eq!(PollBatch::from_bytes(&batch().to_bytes()), Ok(batch()));
        assert_eq!(
            PollBatch::from_bytes(&PollBatch::default().to_bytes()),
            Ok(PollBatch::default())
        );
    }

    #[test]
    fn forged_bytes_are_rejected() {
        let bytes = batch().to_bytes();
        for end in 0..bytes.len() {
            // A cut between two threads leaves a valid batch; any other cut is an error.
            if let Ok(shorter) = PollBatch::from_bytes(&bytes[..end]) {
                assert!(shorter.threads.len() < 3, "{end}");
            }
        }
        let mut huge = bytes.clone();
        huge[HEADER + 16..HEADER + 24].copy_from_slice(&u64::MAX.to_le_bytes());
        assert!(PollBatch::from_bytes(&huge).is_err());
        let mut no_kind = bytes;
        no_kind[2 * HEADER] &= 0xfc;
        assert!(PollBatch::from_bytes(&no_kind).is_err());
    }
}
