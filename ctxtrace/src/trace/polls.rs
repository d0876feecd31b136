//! Polls and wakes with their times, as the probe tells them in its rings (`--polls`), and what they came to.
//!
//! A [`PollBatch`] is what was found in the rings at one draining: for each thread its [`Stamp`]s, in their order. A stamp is
//! one word, as in the rings ([`ctxtrace_abi::rings`]), but its time is in nanoseconds of the clock of the events, since the
//! batch's base. There may be twenty million a second, so they stay that small in captures, too.

use ctxtrace_abi::rings::{BEGIN, CLOCK_BITS, CLOCK_SHIFT, END, KIND_BITS, TASK_BITS, WAKE, long_task};
use ctxtrace_common::histogram::Histogram;
use ctxtrace_common::process::TaskKey;
use serde::{Deserialize, Serialize};

use super::merge;

/// The clock that the stamps were read from.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, schemars::JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum PollClock {
    /// The CPUs' time-stamp counter, which runs at one rate and in step on all of them here.
    Tsc,
    /// `CLOCK_MONOTONIC`, because the counter does not.
    Monotonic,
}

/// How polls were recorded: said once of a capture.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct PollInfo {
    /// The clock.
    pub clock: PollClock,
    /// What reading it takes, by a measurement before the run, in nanoseconds.
    pub reading_ns: f64,
}

/// What happened.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum What {
    /// The thread begins to poll this task.
    Begin(u64),
    /// The poll is over.
    End,
    /// The thread wakes this task.
    Wake(u64),
}

/// One thing that happened on a thread, and when.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Stamp(u64);

/// The longest time after a batch's base that a stamp can have: eighteen minutes.
const LONGEST_NS: u64 = (1 << CLOCK_BITS) - 1;

impl Stamp {
    /// From a record of a ring, with its time; `None` if it is none of these three. What is later than eighteen minutes after
    /// the base is put there.
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

    /// What happened; the task by the id that the probe knows it by, 0 for one whose number is too high.
    #[inline]
    #[must_use]
    pub fn what(self) -> What {
        let task = || long_task((self.0 >> KIND_BITS) as u32 & ((1 << TASK_BITS) - 1));
        match self.0 & ((1 << KIND_BITS) - 1) {
            BEGIN => What::Begin(task()),
            END => What::End,
            // There is no fourth: see `of_record`.
            _ => What::Wake(task()),
        }
    }
}

/// What one thread told.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ThreadStamps {
    /// Process id.
    pub tgid: u32,
    /// Thread id.
    pub tid: u32,
    /// Stamps that were lost before the first one here: the thread had gone around its ring before anybody looked.
    pub lost: u64,
    /// In the order of time.
    pub stamps: Vec<Stamp>,
}

/// What was found in the rings at one time. A thread may be in it more than once, its stamps in their order.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PollBatch {
    /// What the stamps' times are since: `CLOCK_MONOTONIC`, nanoseconds.
    pub base_ns: u64,
    /// Everything up to here has been told, unless it was lost or comes late.
    pub until_ns: u64,
    /// Stamps lost of threads that are not known, or had no ring.
    pub homeless: u64,
    /// By thread.
    pub threads: Vec<ThreadStamps>,
}

/// Bytes before the threads of a batch, and before the stamps of a thread, in a file.
const HEADER: usize = 24;

impl PollBatch {
    /// Whether nothing is in it but that it was made.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.threads.is_empty() && self.homeless == 0
    }

    /// How many stamps are in it.
    #[must_use]
    pub fn stamps(&self) -> u64 {
        self.threads.iter().map(|thread| thread.stamps.len() as u64).sum()
    }

    /// What is left of it where there is no room: how many stamps there were.
    #[must_use]
    pub fn as_lost(&self) -> Self {
        let lost = |thread: &ThreadStamps| thread.lost.saturating_add(thread.stamps.len() as u64);
        let homeless = self.threads.iter().map(lost).fold(self.homeless, u64::saturating_add);
        Self {
            homeless,
            threads: Vec::new(),
            ..*self
        }
    }

    /// As it lies in a file.
    #[must_use]
    pub fn to_bytes(&self) -> Vec<u8> {
        let stamps: usize = self.threads.iter().map(|thread| thread.stamps.len()).sum();
        let mut bytes = Vec::with_capacity(HEADER * (1 + self.threads.len()) + 8 * stamps);
        for number in [self.base_ns, self.until_ns, self.homeless] {
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

    /// Out of a file.
    ///
    /// # Errors
    ///
    /// In a sentence, if it is not what [`PollBatch::to_bytes`] makes.
    pub fn from_bytes(bytes: &[u8]) -> Result<Self, String> {
        let mut words = Words(bytes);
        let mut batch = Self {
            base_ns: words.next()?,
            until_ns: words.next()?,
            homeless: words.next()?,
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
                    .ok_or("a block of polls holds something else than it should")?,
            });
        }
        Ok(batch)
    }
}

const CUT: &str = "a block of polls ends in the middle of something";

fn word(bytes: &[u8]) -> u64 {
    let mut word = [0; 8];
    word.copy_from_slice(bytes);
    u64::from_le_bytes(word)
}

/// Numbers out of bytes.
struct Words<'a>(&'a [u8]);

impl Words<'_> {
    fn next(&mut self) -> Result<u64, String> {
        let (first, rest) = self.0.split_at_checked(8).ok_or(CUT)?;
        self.0 = rest;
        Ok(word(first))
    }
}

/// How a woken task came to be polled.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, schemars::JsonSchema)]
#[serde(rename_all = "kebab-case")]
#[repr(usize)]
pub enum Path {
    /// The thread that polled it was on its CPU all the time from the wake on.
    UserSpace,
    /// The thread slept, and was woken after the task was.
    Kernel,
    /// The thread came onto its CPU between the wake and the poll, but not because of it: it had been woken before, or had been
    /// made to give way.
    AlreadyComing,
    /// The timeline does not tell of the thread.
    Unknown,
}

impl Path {
    /// All of them.
    pub const ALL: [Self; 4] = [Self::UserSpace, Self::Kernel, Self::AlreadyComing, Self::Unknown];

    /// As in the JSON.
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

/// A part of the way from a poll that wakes a task to the task's own poll.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, schemars::JsonSchema)]
#[serde(rename_all = "kebab-case")]
#[repr(usize)]
pub enum Leg {
    /// The waking task's poll, from its beginning to the wake. Not part of the delay.
    WakersPoll,
    /// From the wake to the waking of the thread in the kernel: `sched_waking`.
    WakeToWaking,
    /// From there until the thread is on its CPU.
    WakingToSwitchIn,
    /// From the wake until the thread is on its CPU, where it was coming already.
    WakeToSwitchIn,
    /// From there to the beginning of the poll.
    SwitchInToPoll,
    /// From the wake to the beginning of the poll: the delay, where there is nothing in between.
    WakeToPoll,
    /// The poll itself.
    Poll,
}

impl Leg {
    /// All of them, in their order on the way.
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

/// A distribution that takes no place as long as it is empty.
#[derive(Clone, Debug, Default)]
pub struct Lazy(Option<Box<Histogram>>);

impl Lazy {
    /// Records one value.
    #[inline]
    pub fn record(&mut self, ns: u64) {
        self.0.get_or_insert_with(|| Box::new(Histogram::EMPTY)).record(ns);
    }

    /// The distribution; `None` if nothing was recorded.
    #[must_use]
    pub fn get(&self) -> Option<&Histogram> {
        self.0.as_deref()
    }

    /// How many values there are.
    #[must_use]
    pub fn count(&self) -> u64 {
        self.get().map_or(0, |histogram| histogram.count)
    }

    /// Adds another one.
    pub fn merge(&mut self, other: &Self) {
        if let Some(other) = other.get() {
            let mine = self.0.get_or_insert_with(|| Box::new(Histogram::EMPTY));
            merge(mine, other);
        }
    }
}

/// What the polls of one task came to.
#[derive(Clone, Debug, Default)]
pub struct TaskPolls {
    /// Polls begun.
    pub polls: u64,
    /// Wakes of it.
    pub wakes: u64,
    /// From the beginnings to the ends of those polls that have both.
    pub poll: Lazy,
    /// From the wake that led to a poll to the poll, by [`Path`].
    pub delays: [Lazy; Path::ALL.len()],
}

impl TaskPolls {
    /// Adds another run's.
    pub fn merge(&mut self, other: &Self) {
        self.polls += other.polls;
        self.wakes += other.wakes;
        self.poll.merge(&other.poll);
        for (mine, theirs) in self.delays.iter_mut().zip(&other.delays) {
            mine.merge(theirs);
        }
    }

    /// The delays by all paths together.
    #[must_use]
    pub fn delay(&self) -> Lazy {
        let mut sum = Lazy::default();
        for delay in &self.delays {
            sum.merge(delay);
        }
        sum
    }
}

/// Who woke a task.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum PollWaker {
    /// A task, in its poll.
    Task(TaskKey),
    /// A thread that polled nothing.
    Thread {
        /// Its process.
        tgid: u32,
        /// Its id.
        tid: u32,
    },
}

/// Wakes of one task by one waker that have led to a poll.
#[derive(Clone, Debug, Default)]
pub struct WakeEdge {
    /// By [`Path`].
    pub by_path: [u64; Path::ALL.len()],
    /// From the wake to the poll.
    pub delay: Lazy,
}

/// The way of all wakes that went one [`Path`], leg by leg.
#[derive(Clone, Debug, Default)]
pub struct Chain {
    /// By [`Leg`]. Of a poll that goes on at the end there is no [`Leg::Poll`], of a wake by a thread that polls nothing no
    /// [`Leg::WakersPoll`].
    pub legs: [Lazy; Leg::ALL.len()],
    /// From the wakes to the polls.
    pub delay: Lazy,
}

/// What the stamps of a run came to.
#[derive(Clone, Debug, Default)]
pub struct Polls {
    /// Stamps.
    pub stamps: u64,
    /// Outermost polls begun.
    pub polls: u64,
    /// Of them, those whose end is not known: it was lost, or had not come.
    pub open: u64,
    /// Of them, those that no wake is known of: the first ones of tasks, those of tasks without a waker of the probe's, and
    /// where stamps were lost.
    pub without_wake: u64,
    /// Wakes.
    pub wakes: u64,
    /// Stamps lost.
    pub lost: u64,
    /// Stamps that the capture has not kept.
    pub dropped: u64,
    /// Stamps that were earlier than one before them, of another thread.
    pub unordered: u64,
    /// Tasks; those beyond the first 1,024 are one, [`ctxtrace_common::locator::OTHER_TASKS`].
    pub tasks: Vec<(TaskKey, TaskPolls)>,
    /// Who woke whom; pairs beyond the first 1,024 are not told apart, and missing here.
    pub edges: Vec<((PollWaker, TaskKey), WakeEdge)>,
    /// By [`Path`].
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
            homeless: 3,
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
        assert_eq!((begin.what(), begin.since_base_ns()), (What::Begin(5), 10));
        assert_eq!(stamp(END, 0, 0).what(), What::End);
        assert_eq!(stamp(WAKE, HOOKED | 6, 1).what(), What::Wake(HOOKED | 6));
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
    fn bytes_of_anybody_are_no_danger() {
        let bytes = batch().to_bytes();
        for end in 0..bytes.len() {
            // Where a thread is over it is a batch, anywhere else a sentence.
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
