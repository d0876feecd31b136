//! The rings of polls, shared with the traced program: `ctxtrace-probe/src/rings.rs` is the writing end, and
//! [`ctxtrace_abi::rings`] defines the layout.
//!
//! The rings are in anonymous shared memory, whose descriptor the program inherits. Each thread of the program that polls or
//! wakes tasks writes to a ring of its own and never waits: if it has filled the ring before it was read, the oldest stamps are
//! overwritten. The record numbers show how many were lost. The rings are read here every 50 ms, up to the same moment as the
//! events.
//!
//! **Nothing in the rings is trusted.** The program may write anything there. It cannot take the memory away, because its size is
//! sealed. Numbers are masked before they are used as indices; a ring whose record numbers go backwards is not read any more;
//! times are clamped between the ring's previous stamp and the present; and the amount read in one drain is bounded.
//!
//! **Time.** The stamps are readings of the CPU's time-stamp counter, modulo 2^40. Each drain reads the counter and
//! `CLOCK_MONOTONIC` together; such a pair is an *anchor*. Stamps are converted by linear interpolation between the last two
//! anchors, so it does not matter if the kernel corrects the rate of its clock. Where the counter is not reliable according to
//! the kernel, the program reads `CLOCK_MONOTONIC` itself, and the same arithmetic leaves its times unchanged.

use std::fs::File;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::fs::FileExt;
use std::sync::atomic::{AtomicU64, Ordering, fence};
use std::time::Instant;

use ctxtrace_abi::rings::{
    CLOCK_BITS, CLOCK_MONOTONIC, CLOCK_SHIFT, CLOCK_TSC, CONTROL, Header, KIND_BITS, MAGIC, RingState, STATES_AT,
    VARIABLE, owner_of, records_at, total_bytes, writer_of,
};
use memmap2::{MmapOptions, MmapRaw};
use nix::fcntl::{FcntlArg, SealFlag, fcntl};
use nix::sys::memfd::{MFdFlags, memfd_create};

use super::events::monotonic_ns;
use crate::error::{Error, Result};
use ctxtrace_format::events::EventSink;
use ctxtrace_format::polls::{PollBatch, PollClock, PollInfo, Stamp, ThreadStamps};

/// Number of rings, and so of threads that can have a ring at a time. Only pages that are written to take memory.
const RINGS: usize = 256;
/// Default size in bytes of a ring: a tenth of a second of a thread that does nothing but poll.
pub const DEFAULT_RING_BYTES: usize = 8 << 20;
/// Minimum number of records in a ring.
const LEAST_CAPACITY: usize = 64;
/// Maximum number of records in a ring: as many as a batch can hold.
const MOST_CAPACITY: usize = MOST_STAMPS;
/// Maximum number of stamps in a batch: 128 MB, which fits a block of a capture file.
const MOST_STAMPS: usize = 16 << 20;
/// Maximum number of parts of a batch. A part ends where a ring's thread changes and where records were lost.
const MOST_THREADS: usize = 1 << 14;
/// Number of records read from a ring before the writer's position is checked again.
const CHUNK: usize = 4_096;
/// How far a stamp may lie ahead of the latest anchor, in units of the stamps' clock: the clocks of the CPUs are not exactly in
/// step.
const AHEAD: u64 = 1 << 24;
/// Number of fractional bits of a rate. Over one second the result is accurate to about a thousandth of a nanosecond.
const RATE_SHIFT: u32 = 40;
/// A record count above this is corrupt.
const IMPOSSIBLE: u64 = 1 << 62;
/// Two anchors that are closer together than this, in nanoseconds, give no accurate rate.
const LEAST_APART_NS: u64 = 5_000_000;

/// The clock that stamps should use on this machine, and how long reading it takes.
#[must_use]
pub fn clock() -> PollInfo {
    let clock = if tsc_is_good() {
        PollClock::Tsc
    } else {
        PollClock::Monotonic
    };
    PollInfo {
        clock,
        reading_ns: reading_ns(clock),
    }
}

/// Whether the time-stamp counter runs at a constant rate in every power state and is in step on all CPUs. The CPU's flags say
/// the former. The kernel's list of clock sources says the latter: the kernel removes the counter from it when it finds the CPUs
/// out of step.
fn tsc_is_good() -> bool {
    if !cfg!(target_arch = "x86_64") {
        return false;
    }
    let read = |path: &str| std::fs::read_to_string(path).unwrap_or_default();
    let clocks = read("/sys/devices/system/clocksource/clocksource0/available_clocksource");
    let cpus = read("/proc/cpuinfo");
    let flags = cpus.lines().find(|line| line.starts_with("flags")).unwrap_or_default();
    let has = |text: &str, word: &str| text.split_whitespace().any(|found| found == word);
    has(&clocks, "tsc") && has(flags, "constant_tsc") && has(flags, "nonstop_tsc")
}

/// Measures how long a reading of the clock takes, in nanoseconds.
fn reading_ns(clock: PollClock) -> f64 {
    const READINGS: u32 = 10_000;
    let start = Instant::now();
    for _ in 0..READINGS {
        std::hint::black_box(read(clock));
    }
    start.elapsed().as_nanos() as f64 / f64::from(READINGS)
}

/// Reads the clock.
fn read(clock: PollClock) -> u64 {
    match clock {
        #[cfg(target_arch = "x86_64")]
        // SAFETY: the CPU has the instruction, because the kernel uses it.
        PollClock::Tsc => unsafe { std::arch::x86_64::_rdtsc() },
        _ => monotonic_ns(),
    }
}

/// One moment on the stamps' clock and on the events' clock.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Anchor {
    clock: u64,
    ns: u64,
}

impl Anchor {
    /// The present moment. Of five attempts the quickest is used.
    fn now(clock: PollClock) -> Self {
        let tries = (0..5).map(|_| {
            let before = read(clock);
            let ns = monotonic_ns();
            let took = read(clock).saturating_sub(before);
            (
                took,
                Self {
                    clock: before + took / 2,
                    ns,
                },
            )
        });
        tries
            .min_by_key(|(took, _)| *took)
            .map_or(Self { clock: 0, ns: 0 }, |(_, anchor)| anchor)
    }
}

/// Converts readings of the stamps' clock into nanoseconds, by the last two anchors.
#[derive(Clone, Copy, Debug)]
struct ClockScale {
    from: Anchor,
    /// Nanoseconds per unit of the clock, times 2^[`RATE_SHIFT`].
    rate: u64,
    now: u64,
}

impl ClockScale {
    fn new(first: Anchor) -> Self {
        Self {
            from: first,
            rate: 1 << RATE_SHIFT,
            now: first.clock,
        }
    }

    /// Advances to the next anchor. If it is too close to the previous one, the rate is not changed.
    fn advance(&mut self, to: Anchor, last: &mut Anchor) {
        self.now = to.clock;
        let (ns, units) = (to.ns.saturating_sub(last.ns), to.clock.saturating_sub(last.clock));
        if ns >= LEAST_APART_NS && units > 0 {
            self.from = *last;
            self.rate = ((u128::from(ns) << RATE_SHIFT) / u128::from(units)) as u64;
            *last = to;
        }
    }

    /// The full reading whose lower bits are in a record: the latest one that is not in the future.
    fn whole(&self, low: u64) -> u64 {
        let latest = self.now.wrapping_add(AHEAD);
        latest.wrapping_sub(latest.wrapping_sub(low) & ((1 << CLOCK_BITS) - 1))
    }

    fn ns(&self, low: u64) -> u64 {
        let since = self.whole(low).wrapping_sub(self.from.clock) as i64;
        let ns = (i128::from(since) * i128::from(self.rate) + (1 << (RATE_SHIFT - 1))) >> RATE_SHIFT;
        self.from.ns.saturating_add_signed(ns as i64)
    }
}

/// The reading position in one ring.
#[derive(Clone, Copy, Debug, Default)]
struct Position {
    /// Number of the next record to read.
    tail: u64,
    /// Process id and thread id of the writer; `None` if they are not known.
    owner: Option<(u32, u32)>,
    /// Time of the last stamp, nanoseconds.
    last_ns: u64,
    /// Stamps lost since the last one that was read.
    lost: u64,
    /// The ring's state is corrupt, and the ring is not read any more.
    is_broken: bool,
}

/// The rings of polls of one launched program.
pub struct PollRings {
    memory: MmapRaw,
    file: File,
    nonce: u128,
    capacity: usize,
    clock: PollClock,
    scale: ClockScale,
    last_anchor: Anchor,
    positions: Vec<Position>,
    dropped_without_ring: u64,
    batch: PollBatch,
    /// Emptied buffers for stamps, to be reused.
    spare: Vec<Vec<Stamp>>,
}

impl PollRings {
    /// Creates the shared memory. Each ring has `ring_bytes` bytes, rounded down to a power of two, or [`DEFAULT_RING_BYTES`] if
    /// `None`.
    ///
    /// # Errors
    ///
    /// If the kernel cannot provide or map the memory.
    pub fn create(clock: PollClock, ring_bytes: Option<usize>) -> Result<Self> {
        let wanted = ring_bytes.unwrap_or(DEFAULT_RING_BYTES) / 8;
        let capacity = 1 << wanted.clamp(LEAST_CAPACITY, MOST_CAPACITY).ilog2();
        let bytes = total_bytes(RINGS, capacity);
        let flags = MFdFlags::MFD_CLOEXEC | MFdFlags::MFD_ALLOW_SEALING;
        let file = File::from(memfd_create("ctxtrace-polls", flags).map_err(Error::errno("memfd_create"))?);
        file.set_len(bytes as u64)
            .map_err(Error::system("making the rings of polls"))?;
        let nonce = fastrand::u128(..);
        let header = Header {
            magic: MAGIC,
            nonce: [(nonce >> 64) as u64, nonce as u64],
            clock: match clock {
                PollClock::Tsc => CLOCK_TSC,
                PollClock::Monotonic => CLOCK_MONOTONIC,
            },
            rings: RINGS as u32,
            capacity: capacity as u64,
            dropped_without_ring: 0,
        };
        file.write_all_at(&header.to_bytes(), 0)
            .map_err(Error::system("making the rings of polls"))?;
        // A process with the descriptor could otherwise shrink the file, and reading a removed page would kill ctxtrace.
        let seals = SealFlag::F_SEAL_SHRINK | SealFlag::F_SEAL_GROW | SealFlag::F_SEAL_SEAL;
        fcntl(&file, FcntlArg::F_ADD_SEALS(seals)).map_err(Error::errno("sealing the rings of polls"))?;
        let memory = MmapOptions::new()
            .len(bytes)
            .map_raw_read_only(&file)
            .map_err(Error::system("mapping the rings of polls"))?;
        let anchor = Anchor::now(clock);
        Ok(Self {
            memory,
            file,
            nonce,
            capacity,
            clock,
            scale: ClockScale::new(anchor),
            last_anchor: anchor,
            positions: vec![Position::default(); RINGS],
            dropped_without_ring: 0,
            batch: PollBatch::default(),
            spare: Vec::new(),
        })
    }

    /// The descriptor that the program inherits.
    #[must_use]
    pub fn fd(&self) -> BorrowedFd<'_> {
        self.file.as_fd()
    }

    /// The environment variable to set for the program, if it inherits the descriptor under this number.
    #[must_use]
    pub fn variable(&self, number: i32) -> (&'static str, String) {
        (VARIABLE, format!("{number},{:032x}", self.nonce))
    }

    /// Sends the stamps up to `until_ns` to the sink, at most as many as fit a batch.
    pub(super) fn drain(&mut self, until_ns: u64, sink: &mut dyn EventSink) {
        let heads: Vec<u64> = (0..RINGS).map(|ring| self.head(ring)).collect();
        // The anchor is taken after the heads were read, so every stamp read below is older than the anchor.
        self.scale.advance(Anchor::now(self.clock), &mut self.last_anchor);
        let active = self.positions.iter().zip(&heads).filter(|(at, head)| at.tail != **head);
        let budget = (MOST_STAMPS / active.count().max(1)) as u64;
        self.skip_what_is_gone(&heads);
        let until_ns = self.bounded(until_ns, &heads, budget);
        self.batch.base_ns = u64::MAX;
        for (ring, &head) in heads.iter().enumerate() {
            self.look_for_the_base(ring, head);
        }
        if self.batch.base_ns == u64::MAX {
            self.batch.base_ns = until_ns.min(self.scale.from.ns);
        }
        for (ring, &head) in heads.iter().enumerate() {
            self.take(ring, head, until_ns, budget);
        }
        self.batch.until_ns = until_ns;
        let dropped_without_ring = self.dropped_without_ring_written();
        self.batch.dropped_without_ring += dropped_without_ring.saturating_sub(self.dropped_without_ring);
        self.dropped_without_ring = dropped_without_ring.max(self.dropped_without_ring);
        sink.polls(&self.batch);
        self.batch.dropped_without_ring = 0;
        for thread in self.batch.threads.drain(..) {
            let mut stamps = thread.stamps;
            stamps.clear();
            self.spare.push(stamps);
        }
        self.spare.truncate(RINGS);
    }

    /// Sends all stamps to the sink. Call it when the program has ended or is no longer traced.
    pub(super) fn drain_all(&mut self, sink: &mut dyn EventSink) {
        // More than one pass is needed only if there is more than fits a batch, or if the program is still writing.
        for _ in 0..1 + RINGS * self.capacity / MOST_STAMPS {
            self.drain(u64::MAX, sink);
            if (0..RINGS).all(|ring| self.positions[ring].is_broken || self.head(ring) == self.positions[ring].tail) {
                break;
            }
        }
        // Losses that no stamp follows are sent separately.
        let lost = self.positions.iter_mut().map(|at| std::mem::take(&mut at.lost));
        self.batch.dropped_without_ring = lost.fold(0, u64::saturating_add);
        if self.batch.dropped_without_ring > 0 {
            sink.polls(&self.batch);
            self.batch.dropped_without_ring = 0;
        }
    }

    /// Skips the records that were overwritten already, and marks the rings whose state is corrupt.
    fn skip_what_is_gone(&mut self, heads: &[u64]) {
        for (ring, &head) in heads.iter().enumerate() {
            let mut at = self.positions[ring];
            // A record count that went backwards means that nothing in the ring can be trusted.
            at.is_broken |= head < at.tail || head > IMPOSSIBLE;
            let oldest = self.oldest(head);
            if !at.is_broken && at.tail < oldest {
                self.lose(ring, &mut at, oldest);
            }
            self.positions[ring] = at;
        }
    }

    /// Continues with record number `to`, counts the records before it as lost, and finds the thread that wrote it.
    fn lose(&self, ring: usize, at: &mut Position, to: u64) {
        let (owner, since) = self.state(ring);
        let before = owner.load(Ordering::Acquire);
        let since = since.load(Ordering::Acquire);
        let is_the_same = owner.load(Ordering::Acquire) == before;
        at.lost = at.lost.saturating_add(to - at.tail);
        at.tail = to;
        at.owner = writer_of(before).filter(|_| is_the_same && since <= to);
    }

    /// The moment up to which all rings can be read in this drain: earlier than `until_ns` if a ring has more records than the
    /// budget.
    fn bounded(&self, until_ns: u64, heads: &[u64], budget: u64) -> u64 {
        let too_full = |(ring, &head): (usize, &u64)| {
            let at = &self.positions[ring];
            (!at.is_broken && head.saturating_sub(at.tail) > budget).then(|| {
                let record = self.record(ring, at.tail + budget);
                self.scale.ns(record >> CLOCK_SHIFT).max(at.last_ns)
            })
        };
        heads.iter().enumerate().filter_map(too_full).fold(until_ns, u64::min)
    }

    /// Lowers the batch's base to the time of this ring's first stamp, if that is earlier.
    fn look_for_the_base(&mut self, ring: usize, head: u64) {
        let at = self.positions[ring];
        if at.is_broken || at.tail >= head {
            return;
        }
        // A control record has no time, but a stamp follows it.
        let first = (at.tail..head.min(at.tail + 2))
            .map(|number| self.record(ring, number))
            .find(|record| owner_of(*record).is_none());
        if let Some(record) = first {
            let ns = self.scale.ns(record >> CLOCK_SHIFT).max(at.last_ns);
            self.batch.base_ns = self.batch.base_ns.min(ns);
        }
    }

    /// Takes a ring's stamps up to `until_ns`, at most `budget` records.
    fn take(&mut self, ring: usize, head: u64, until_ns: u64, budget: u64) {
        let mut at = self.positions[ring];
        let end = head.min(at.tail.saturating_add(budget));
        let mut chunk = [0; CHUNK];
        // The part of the batch that this ring's stamps are added to, as long as they are by the same thread.
        let mut part: Option<ThreadStamps> = None;
        while !at.is_broken && at.tail < end {
            let count = (end - at.tail).min(CHUNK as u64) as usize;
            for (number, record) in (at.tail..).zip(&mut chunk[..count]) {
                *record = self.record(ring, number);
            }
            // The writer may have overwritten some of these records meanwhile.
            fence(Ordering::Acquire);
            let oldest = self.oldest(self.head(ring));
            let mut fresh = &chunk[..count];
            if oldest > at.tail {
                let to = oldest.min(at.tail + count as u64);
                fresh = &fresh[(to - at.tail) as usize..];
                self.lose(ring, &mut at, to);
                self.batch.threads.extend(part.take());
            }
            let is_up_to_date = self.take_chunk(fresh, &mut at, until_ns, &mut part);
            if is_up_to_date {
                break;
            }
        }
        self.batch.threads.extend(part);
        self.positions[ring] = at;
    }

    /// Takes records into the batch. Returns whether one of them is later than `until_ns`.
    fn take_chunk(
        &mut self,
        records: &[u64],
        at: &mut Position,
        until_ns: u64,
        part: &mut Option<ThreadStamps>,
    ) -> bool {
        let (scale, base_ns) = (self.scale, self.batch.base_ns);
        for &record in records {
            if record & ((1 << KIND_BITS) - 1) == CONTROL {
                at.tail += 1;
                at.owner = owner_of(record).or(at.owner);
                self.batch.threads.extend(part.take());
                continue;
            }
            let ns = scale.ns(record >> CLOCK_SHIFT).max(at.last_ns);
            if ns > until_ns {
                return true;
            }
            at.tail += 1;
            let Some(stamp) = Stamp::of_record(record, ns.saturating_sub(base_ns)) else {
                continue;
            };
            at.last_ns = ns;
            match part {
                Some(part) => part.stamps.push(stamp),
                None => *part = self.begin_part(at, stamp),
            }
        }
        false
    }

    /// Begins a part of the batch with a thread's first stamp. The stamp is lost if its thread is not known, or if the batch is
    /// full.
    fn begin_part(&mut self, at: &mut Position, first: Stamp) -> Option<ThreadStamps> {
        let Some((tgid, tid)) = at.owner else {
            let lost = std::mem::take(&mut at.lost).saturating_add(1);
            self.batch.dropped_without_ring = self.batch.dropped_without_ring.saturating_add(lost);
            return None;
        };
        if self.batch.threads.len() >= MOST_THREADS {
            at.lost = at.lost.saturating_add(1);
            return None;
        }
        let mut stamps = self.spare.pop().unwrap_or_default();
        stamps.push(first);
        Some(ThreadStamps {
            tgid,
            tid,
            lost: std::mem::take(&mut at.lost),
            stamps,
        })
    }

    /// Number of the oldest reliable record once `head` records have been written. One more record than those overwritten is
    /// excluded, because the writer may be writing the next one.
    fn oldest(&self, head: u64) -> u64 {
        head.saturating_add(1).saturating_sub(self.capacity as u64)
    }

    fn head(&self, ring: usize) -> u64 {
        self.word(STATES_AT + ring * size_of::<RingState>() + std::mem::offset_of!(RingState, head))
            .load(Ordering::Acquire)
    }

    /// The owner of a ring, and the number of the first record that this owner wrote.
    fn state(&self, ring: usize) -> (&AtomicU64, &AtomicU64) {
        let at = STATES_AT + ring * size_of::<RingState>();
        (
            self.word(at + std::mem::offset_of!(RingState, owner)),
            self.word(at + std::mem::offset_of!(RingState, since)),
        )
    }

    fn dropped_without_ring_written(&self) -> u64 {
        self.word(std::mem::offset_of!(Header, dropped_without_ring))
            .load(Ordering::Relaxed)
    }

    #[inline]
    fn record(&self, ring: usize, number: u64) -> u64 {
        let place = ring * self.capacity + (number as usize & (self.capacity - 1));
        self.word(records_at(RINGS) + 8 * place).load(Ordering::Relaxed)
    }

    #[inline]
    fn word(&self, at: usize) -> &AtomicU64 {
        debug_assert!(at.is_multiple_of(8) && at + 8 <= self.memory.len());
        // SAFETY: the address is aligned and within the mapping, whose file cannot shrink, and the word is only loaded. The
        // writing end stores whole words.
        unsafe { &*self.memory.as_ptr().add(at).cast::<AtomicU64>() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use ctxtrace_abi::rings::{BEGIN, CLAIMED, END, last, owner, record, short_task, what};
    use ctxtrace_format::polls::StampKind;
    use memmap2::MmapMut;

    const SMALL: usize = LEAST_CAPACITY * 8;

    #[derive(Default)]
    struct BatchSink(Vec<PollBatch>);

    impl EventSink for BatchSink {
        fn events(&mut self, _: &[ctxtrace_common::event::Event]) {}

        fn polls(&mut self, batch: &PollBatch) {
            self.0.push(batch.clone());
        }
    }

    impl BatchSink {
        fn stamps(&self) -> Vec<(u32, StampKind)> {
            let threads = self.0.iter().flat_map(|batch| &batch.threads);
            threads
                .flat_map(|thread| thread.stamps.iter().map(|stamp| (thread.tid, stamp.what())))
                .collect()
        }

        fn lost(&self) -> u64 {
            let of = |batch: &PollBatch| {
                batch.dropped_without_ring + batch.threads.iter().map(|thread| thread.lost).sum::<u64>()
            };
            self.0.iter().map(of).sum()
        }
    }

    /// The writing end, as a probe or a malicious program would use it.
    struct RingWriter(MmapMut);

    impl RingWriter {
        fn of(rings: &PollRings) -> Self {
            // SAFETY: the memory is meant to be shared.
            Self(unsafe { MmapMut::map_mut(&rings.file) }.expect("the rings can be mapped"))
        }

        fn put(&mut self, at: usize, word: u64) {
            self.0[at..at + 8].copy_from_slice(&word.to_ne_bytes());
        }

        fn state(ring: usize, field: usize) -> usize {
            STATES_AT + ring * size_of::<RingState>() + field
        }

        fn head(&mut self, ring: usize, head: u64) {
            self.put(Self::state(ring, std::mem::offset_of!(RingState, head)), head);
        }

        fn own(&mut self, ring: usize, tid: u32, since: u64) {
            self.put(Self::state(ring, std::mem::offset_of!(RingState, owner)), owner(7, tid));
            self.put(Self::state(ring, std::mem::offset_of!(RingState, since)), since);
        }

        fn record(&mut self, ring: usize, capacity: usize, number: u64, word: u64) {
            let place = ring * capacity + (number as usize & (capacity - 1));
            self.put(records_at(RINGS) + 8 * place, word);
        }
    }

    fn begin(task: u64) -> u64 {
        record(what(BEGIN, short_task(task)), read(PollClock::Monotonic))
    }

    fn end() -> u64 {
        record(what(END, 0), read(PollClock::Monotonic))
    }

    fn small() -> (PollRings, RingWriter) {
        let rings = PollRings::create(PollClock::Monotonic, Some(SMALL)).expect("the rings can be created");
        let writer = RingWriter::of(&rings);
        (rings, writer)
    }

    #[test]
    fn what_was_written_is_read_once_and_in_its_time() {
        let (mut rings, mut writer) = small();
        let mut taken = BatchSink::default();
        let before_ns = monotonic_ns();
        for (number, word) in (0..).zip([owner(7, 8), begin(5), end(), owner(7, 9), begin(6)]) {
            writer.record(3, 64, number, word);
        }
        writer.head(3, 5);
        rings.drain(before_ns, &mut taken);
        assert_eq!(taken.stamps(), [], "the stamps are later than `until_ns`");
        rings.drain(u64::MAX, &mut taken);
        rings.drain(u64::MAX, &mut taken);
        assert_eq!(taken.lost(), 0);
        assert_eq!(
            taken.stamps(),
            [(8, StampKind::Begin(5)), (8, StampKind::End), (9, StampKind::Begin(6))]
        );
        let batch = &taken.0[1];
        let first_ns = batch.base_ns + batch.threads[0].stamps[0].since_base_ns();
        assert!((before_ns..=monotonic_ns()).contains(&first_ns), "{first_ns}");
    }

    #[test]
    fn overwritten_stamps_are_counted_as_lost() {
        let (mut rings, mut writer) = small();
        let mut taken = BatchSink::default();
        writer.own(0, 8, 0);
        for number in 0..200 {
            let word = if number == 0 { owner(7, 8) } else { begin(number) };
            writer.record(0, 64, number, word);
        }
        writer.head(0, 200);
        rings.drain(u64::MAX, &mut taken);
        // One record less than the capacity: the writer may be writing the next one.
        assert_eq!(taken.lost(), 200 - 63);
        assert_eq!(taken.stamps().len(), 63);
        assert_eq!(taken.stamps()[0], (8, StampKind::Begin(200 - 63)));
        // The records' thread cannot be known if the current owner took the ring later.
        writer.own(0, 9, 300);
        for number in 200..290 {
            writer.record(0, 64, number, begin(1));
        }
        writer.head(0, 290);
        rings.drain(u64::MAX, &mut taken);
        assert_eq!(taken.stamps().len(), 63);
        assert_eq!(
            taken.0[1].dropped_without_ring,
            290 - 200,
            "the overwritten records, too, have no known thread"
        );
    }

    #[test]
    fn a_thread_that_has_ended_is_known_still() {
        let (mut rings, mut writer) = small();
        let mut taken = BatchSink::default();
        writer.own(0, 8, 0);
        for number in 0..200 {
            writer.record(0, 64, number, begin(number));
        }
        writer.head(0, 200);
        let owned_by = RingWriter::state(0, std::mem::offset_of!(RingState, owner));
        writer.put(owned_by, last(owner(7, 8)));
        rings.drain(u64::MAX, &mut taken);
        assert_eq!((taken.stamps().len(), taken.lost()), (63, 200 - 63));
        assert_eq!(taken.0[0].dropped_without_ring, 0);
        // Another thread is claiming the ring, so the writer of these records is not known.
        writer.put(owned_by, CLAIMED);
        for number in 200..300 {
            writer.record(0, 64, number, begin(1));
        }
        writer.head(0, 300);
        rings.drain(u64::MAX, &mut taken);
        assert_eq!((taken.stamps().len(), taken.lost()), (63, 200 - 63 + 100));
    }

    #[test]
    fn a_ring_that_goes_backwards_is_read_no_more() {
        let (mut rings, mut writer) = small();
        let mut taken = BatchSink::default();
        writer.record(0, 64, 0, owner(7, 8));
        writer.record(0, 64, 1, begin(1));
        writer.head(0, 2);
        rings.drain(u64::MAX, &mut taken);
        for head in [1, 50] {
            writer.head(0, head);
            rings.drain(u64::MAX, &mut taken);
        }
        assert_eq!(taken.stamps().len(), 1);
    }

    #[test]
    fn the_memory_cannot_be_shrunk() {
        let (rings, _) = small();
        assert!(rings.file.set_len(0).is_err());
        assert!(rings.file.set_len(1 << 40).is_err());
    }

    #[test]
    fn scribbling_does_no_harm() {
        let (mut rings, mut writer) = small();
        let mut taken = BatchSink::default();
        let mut random = fastrand::Rng::with_seed(1);
        for _ in 0..300 {
            for _ in 0..200 {
                let at = random.usize(0..writer.0.len() / 8) * 8;
                writer.put(at, random.u64(..));
                let state = RingWriter::state(random.usize(0..RINGS), 8 * random.usize(0..3));
                let word = [random.u64(..), random.u64(..1_000), u64::MAX][random.usize(0..3)];
                writer.put(state, word);
            }
            rings.drain(monotonic_ns(), &mut taken);
            let batch = taken.0.pop().expect("a batch was sent");
            assert!(batch.threads.len() <= MOST_THREADS + RINGS);
            assert!(batch.stamps() <= (RINGS * LEAST_CAPACITY) as u64);
            assert_eq!(PollBatch::from_bytes(&batch.to_bytes()), Ok(batch));
        }
        rings.drain_all(&mut taken);
    }

    #[test]
    fn readings_are_put_between_the_anchors() {
        let anchor = |clock, ns| Anchor { clock, ns };
        let mut last = anchor(1 << 41, 1_000_000_000);
        let mut scale = ClockScale::new(last);
        // Three units per nanosecond.
        scale.advance(anchor((1 << 41) + 150_000_000, 1_050_000_000), &mut last);
        assert_eq!(scale.ns(0), 1_000_000_000);
        assert_eq!(scale.ns(75_000_000), 1_025_000_000);
        // A reading from before the anchor, and one from a little after it.
        let before = (1_u64 << 41).wrapping_sub(3_000) & ((1 << CLOCK_BITS) - 1);
        assert_eq!(scale.ns(before), 999_999_000);
        assert_eq!(scale.ns(150_003_000), 1_050_001_000);
        // Two anchors at nearly the same time do not give a rate.
        scale.advance(anchor((1 << 41) + 150_000_100, 1_050_000_001), &mut last);
        assert_eq!(scale.ns(75_000_000), 1_025_000_000);
    }

    #[test]
    fn the_clocks_agree() {
        let info = clock();
        assert!(info.reading_ns > 0.0);
        let rings = PollRings::create(info.clock, Some(SMALL)).expect("the rings can be created");
        let (_, value) = rings.variable(5);
        assert_eq!(value.len(), "5,".len() + 32);
    }
}
