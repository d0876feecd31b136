//! The replay of a timeline: computes from the events the same sums that the kernel side made.
//!
//! The kernel side records every switch and wakeup as an event, and also sums them. [`Replay`] sums the events with the same
//! state machine ([`ctxtrace_common::clock`]), and [`disagreements`] compares the two results. If no event was lost, they are
//! equal to the nanosecond. A drawn timeline therefore shows exactly what was counted.
//!
//! The replay takes one event at a time. It keeps a state for each living thread, at most 65,536 rows of the ledger, and 80 bytes
//! for each of at most twice [`MOST_ENDED`] ended threads; further ended threads are added to one sum.
//!
//! **Order.** The switches of one thread must come in their order, after the event that introduces the thread. This is the case
//! in every timeline without losses. Wakeup events may come at any position, because the switch-in event has the time of the
//! wakeup that ended the sleep. Events of different threads may be out of order; they are counted ([`Replay::unordered`]) and
//! have no other effect.

use ctxtrace_format::sums::add;
use std::collections::HashMap;
use std::hash::{BuildHasherDefault, Hasher};

use ctxtrace_common::clock::{Clock, Entered, Leave, NotedWakeup, Phase};
use ctxtrace_common::event::{Decoded, EVENT_BYTES, Event, In, Out, Sample};
use ctxtrace_common::histogram::Latency;
use ctxtrace_common::ledger::Class;
use ctxtrace_common::process::Image;
use ctxtrace_common::stack::{SumKey, SwitchSum};
use ctxtrace_common::thread::ThreadSummary;

use super::intervals::{Arrival, Before, Departure, Interval, IntervalSink, State, ThreadId, Woken};
use crate::units::{signed_thousands, thousands};
use ctxtrace_format::events::EventSink;
use ctxtrace_format::run::{Dropped, Timeline};
use ctxtrace_format::samples::SamplePlace;
use ctxtrace_format::threads::{MOST_ENDED, keep_most};
use ctxtrace_format::{Aggregates, Latencies};

/// Maximum number of rows of the ledger. Switch-outs that need a further row are summed by class. It is more than the kernel side
/// keeps at a time.
const MOST_ROWS: usize = 1 << 16;

/// The sums of one thread.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct ThreadTotals {
    /// `task_struct.start_boottime`, nanoseconds. It identifies the thread together with `tgid`, because another thread may have
    /// the same `tid` later.
    pub start_boottime_ns: u64,
    /// Process id.
    pub tgid: u32,
    /// Thread id.
    pub tid: u32,
    /// Number of switch-outs that the kernel counted as voluntary.
    pub voluntary: u64,
    /// Number of switch-outs that the kernel counted as involuntary.
    pub involuntary: u64,
    /// Sum of the on-CPU intervals, nanoseconds.
    pub on_cpu_ns: u64,
    /// Sum of the off-CPU intervals, nanoseconds.
    pub off_cpu_ns: u64,
    /// Sum of the run-queue times, nanoseconds.
    pub run_queue_ns: u64,
    /// Number of switch-ins on another CPU than the previous one.
    pub migrations: u64,
}

impl ThreadTotals {
    /// Takes the sums that the kernel side made.
    fn from_summary(thread: &ThreadSummary) -> Self {
        Self {
            start_boottime_ns: thread.start_boottime_ns,
            tgid: thread.tgid,
            tid: thread.tid,
            voluntary: thread.traced_voluntary,
            involuntary: thread.traced_involuntary,
            on_cpu_ns: thread.on_cpu_ns,
            off_cpu_ns: thread.off_cpu_ns,
            run_queue_ns: thread.run_queue_ns,
            migrations: thread.migrations,
        }
    }

    /// Whether the thread has neither switches nor time.
    fn is_idle(&self) -> bool {
        [self.voluntary, self.involuntary, self.on_cpu_ns, self.run_queue_ns] == [0; 4]
    }

    /// The sum of the totals of two threads, without ids.
    fn plus(&self, other: &Self) -> Self {
        Self {
            voluntary: self.voluntary.wrapping_add(other.voluntary),
            involuntary: self.involuntary.wrapping_add(other.involuntary),
            on_cpu_ns: self.on_cpu_ns.wrapping_add(other.on_cpu_ns),
            off_cpu_ns: self.off_cpu_ns.wrapping_add(other.off_cpu_ns),
            run_queue_ns: self.run_queue_ns.wrapping_add(other.run_queue_ns),
            migrations: self.migrations.wrapping_add(other.migrations),
            ..Self::default()
        }
    }

    /// Returns the totals without the thread id, for comparisons: an `execve` may exchange the ids of two threads, and the kernel
    /// side keeps the id that it knew first.
    fn comparable(mut self) -> Self {
        self.tid = 0;
        self
    }
}

/// The threads that have ended: individual totals of those with the most switches, and one sum of the others.
#[derive(Clone, Debug, Default)]
struct EndedTotals {
    apart: Vec<ThreadTotals>,
    folded: Folded,
}

/// A sum over several threads, and their number.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Folded {
    threads: u64,
    sums: ThreadTotals,
}

impl EndedTotals {
    fn push(&mut self, thread: ThreadTotals) {
        if thread.is_idle() {
            return;
        }
        self.apart.push(thread);
        if self.apart.len() < 2 * MOST_ENDED {
            return;
        }
        let Self { apart, folded } = self;
        let switches = |thread: &ThreadTotals| thread.voluntary.saturating_add(thread.involuntary);
        keep_most(apart, MOST_ENDED, switches, |thread| {
            folded.add(1, thread);
            true
        });
    }
}

impl Folded {
    fn add(&mut self, threads: u64, totals: &ThreadTotals) {
        // Wraps on overflow, because forged records may contain any numbers.
        self.threads = self.threads.wrapping_add(threads);
        self.sums = self.sums.plus(totals);
    }
}

/// The state of a living thread.
#[derive(Clone, Debug)]
struct Live {
    clock: Clock,
    totals: ThreadTotals,
    image: u32,
    last_cpu: Option<u16>,
    /// The row of the last switch-out, while its off-CPU time is still to be added.
    pending: Option<RowRef>,
    /// Time of the first wakeup since the thread's last switch, at `clock.since_ns`; an earlier time means that there was none.
    /// Not fed to the clock, which takes the wakeup from the switch-in event, because wakeup events can arrive late.
    woken_ns: u64,
    /// What the thread was doing at its last switch-out.
    left_for: LeftFor,
    /// The key and the row of the last switch-out: a cache, because most switch-outs have the key of the previous one.
    last: Option<(LeftFor, RowRef)>,
}

/// The part of a switch-out's key that differs between switch-outs of the same program.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct LeftFor {
    task: u64,
    class: u8,
    reason: u8,
    throttled: bool,
}

impl From<&Out> for LeftFor {
    fn from(out: &Out) -> Self {
        Self {
            task: out.task,
            class: out.class,
            reason: out.reason,
            throttled: out.throttled,
        }
    }
}

/// The sum in which a switch-out is counted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum RowRef {
    /// The row of the switch-out's own key, by index.
    Of(u32),
    /// The sum of all switch-outs of this class that have no row.
    OfClass(u8),
}

/// A fast hasher for ids, which are small numbers. It does not resist deliberate collisions: they would only slow down the report
/// of a forged file.
#[derive(Clone, Default)]
pub(super) struct IdHasher(u64);

impl Hasher for IdHasher {
    fn finish(&self) -> u64 {
        self.0
    }

    fn write(&mut self, bytes: &[u8]) {
        for &byte in bytes {
            self.write_u32(u32::from(byte));
        }
    }

    fn write_u32(&mut self, id: u32) {
        self.write_u64(u64::from(id));
    }

    fn write_u64(&mut self, id: u64) {
        // The multiplication spreads the id, because the hash table uses both the highest and the lowest bits.
        self.0 = (self.0.rotate_left(20) ^ id).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    }
}

/// Replays the events of a timeline, and sends the intervals to a sink; see the module's documentation.
#[derive(Clone, Debug)]
pub struct Replay<I = ()> {
    /// Number of events.
    pub events: u64,
    /// Number of switch-outs of the target's threads.
    pub switches: u64,
    /// Number of wakeups of the target's threads.
    pub wakeups: u64,
    /// Number of events whose time is before that of the previous event.
    pub unordered: u64,
    /// Number of threads that no event had introduced before their first switch or sample: 0, unless events were lost.
    pub strangers: u64,
    /// Number of events of an unknown kind.
    pub unknown: u64,
    /// Number of off-CPU intervals whose end, the switch-in, was not recorded.
    pub lost_intervals: u64,
    /// Number of sleeps whose wakeup was not recorded.
    pub lost_wakeups: u64,
    /// The latency distributions.
    pub latencies: Latencies,
    first_ns: Option<u64>,
    last_ns: u64,
    live: HashMap<u32, Live, BuildHasherDefault<IdHasher>>,
    ended: EndedTotals,
    rows: Vec<(SumKey, SwitchSum)>,
    row_of: HashMap<SumKey, u32>,
    overflow: [SwitchSum; Class::COUNT],
    intervals: I,
}

impl Default for Replay {
    fn default() -> Self {
        Self::with_sink(())
    }
}

impl<I> Replay<I> {
    /// Creates a replay that sends the intervals to `intervals` as they end.
    #[must_use]
    pub fn with_sink(intervals: I) -> Self {
        Self {
            events: 0,
            switches: 0,
            wakeups: 0,
            unordered: 0,
            strangers: 0,
            unknown: 0,
            lost_intervals: 0,
            lost_wakeups: 0,
            latencies: Latencies::default(),
            first_ns: None,
            last_ns: 0,
            live: HashMap::default(),
            ended: EndedTotals::default(),
            rows: Vec::new(),
            row_of: HashMap::new(),
            overflow: [SwitchSum::default(); Class::COUNT],
            intervals,
        }
    }

    /// Time of the last event, `CLOCK_MONOTONIC` nanoseconds.
    #[must_use]
    pub fn last_ns(&self) -> u64 {
        self.last_ns
    }

    /// The sink of the intervals.
    pub fn intervals_mut(&mut self) -> &mut I {
        &mut self.intervals
    }

    /// Ends the replay, and returns the sink of the intervals.
    #[must_use]
    pub fn into_intervals(self) -> I {
        self.intervals
    }
}

impl<I: IntervalSink> EventSink for Replay<I> {
    fn events(&mut self, batch: &[Event]) {
        for event in batch {
            self.event(event);
        }
    }
}

impl<I: IntervalSink> Replay<I> {
    /// Takes the next event.
    pub fn event(&mut self, event: &Event) {
        self.events += 1;
        if event.at_ns < self.last_ns {
            self.unordered += 1;
        }
        self.first_ns.get_or_insert(event.at_ns);
        self.last_ns = event.at_ns;
        match event.decode() {
            Some(Decoded::Switch { out, into }) => {
                if let Some(out) = out {
                    self.switch_out(event, &out);
                }
                if let Some(into) = into {
                    let before = if out.is_some() {
                        Before::Target
                    } else if into.cpu_was_idle {
                        Before::Idle
                    } else {
                        Before::Other
                    };
                    self.switch_in(event, &into, before);
                }
            }
            Some(Decoded::Wakeup {
                tid,
                noted,
                newborn,
                waker,
            }) => {
                self.wakeups += 1;
                let live = self.live.get_mut(&tid);
                let thread = live.map(|live| {
                    live.first_wakeup_ns(event.at_ns);
                    live.thread()
                });
                self.intervals.woken(&Woken {
                    tid,
                    thread,
                    at_ns: event.at_ns,
                    cpu: event.cpu,
                    noted,
                    newborn,
                    waker,
                });
            }
            Some(Decoded::Thread {
                tid,
                previous_tid,
                start_boottime_ns,
                image,
                new,
            }) => self.introduce(tid, previous_tid, start_boottime_ns, image, new),
            Some(Decoded::Sample(sample)) => self.sample(event.at_ns, &sample),
            Some(Decoded::Exec { tid, image: None, .. }) => {
                if let Some(live) = self.live.remove(&tid) {
                    self.ended.push(live.totals);
                }
            }
            Some(Decoded::Name { .. } | Decoded::Exec { .. }) => {}
            None => self.unknown += 1,
        }
    }

    /// Size of all events in bytes.
    #[must_use]
    pub fn bytes(&self) -> u64 {
        self.events * EVENT_BYTES as u64
    }

    /// Returns the result of the replay, compared with the sums that the kernel side made in the same run. `whole`: the replay
    /// took all recorded events.
    #[must_use]
    pub fn conclude(&self, aggregates: &Aggregates, whole: bool) -> Timeline {
        let comparable = whole && aggregates.counters.lost_timeline_events == 0;
        Timeline {
            events: self.events,
            bytes: self.bytes(),
            switches: self.switches,
            wakeups: self.wakeups,
            first_ns: self.first_ns,
            dropped: 0,
            disagreements: comparable.then(|| disagreements(self, aggregates)),
        }
    }

    /// Like [`Replay::conclude`], for a run whose oldest events may have been dropped from the capture.
    #[must_use]
    pub fn conclude_kept(&self, aggregates: &Aggregates, whole: bool, dropped: Dropped) -> Timeline {
        let events = self.events.saturating_sub(dropped.told_again);
        Timeline {
            events,
            bytes: events * EVENT_BYTES as u64,
            dropped: dropped.events,
            ..self.conclude(aggregates, whole && dropped.events == 0)
        }
    }

    /// Emits the open intervals of the threads that still live at the end of the timeline, cut off at `now_ns`.
    pub fn close(&mut self, now_ns: u64) {
        for live in self.live.values() {
            let since_ns = live.clock.since_ns;
            match live.clock.phase() {
                Phase::On if since_ns < now_ns => {
                    // The thread is still on its CPU, so there is no switch-out with a class or task.
                    self.intervals
                        .interval(&live.interval(State::OnCpu, since_ns, now_ns, LeftFor::default()));
                }
                Phase::Slept if since_ns < now_ns && live.woken_ns <= since_ns => {
                    self.intervals
                        .interval(&live.interval(State::Blocked, since_ns, now_ns, live.left_for));
                }
                Phase::Slept | Phase::Runnable => {
                    let mut clock = live.clock;
                    clock.wakeup(NotedWakeup::OffCpu, live.woken_ns);
                    let entered = clock.switch_in(now_ns.max(since_ns));
                    for interval in live
                        .off_intervals(now_ns.max(since_ns), &entered, None)
                        .iter()
                        .flatten()
                    {
                        self.intervals.interval(interval);
                    }
                }
                Phase::On | Phase::Unknown | Phase::New | Phase::Dead => {}
            }
        }
    }

    /// Switch-outs and off-CPU times by class, task and program, as the kernel side sums them without stacks.
    #[must_use]
    pub fn switch_sums(&self) -> &[(SumKey, SwitchSum)] {
        &self.rows
    }

    fn introduce(&mut self, tid: u32, previous_tid: u32, start_boottime_ns: u64, image: Image, new: bool) {
        let is_it = |live: &Live| live.totals.start_boottime_ns == start_boottime_ns;
        if let Some(live) = self.live.get_mut(&tid)
            && is_it(live)
        {
            live.image = image.number;
            live.last = None;
            return;
        }
        let known = self.live.get(&previous_tid).is_some_and(is_it);
        let mut live = if known { self.live.remove(&previous_tid) } else { None }.unwrap_or_else(|| Live::new(new));
        live.totals.start_boottime_ns = start_boottime_ns;
        live.totals.tgid = image.tgid;
        live.totals.tid = tid;
        live.image = image.number;
        live.last = None;
        let Some(mut other) = self.live.insert(tid, live) else {
            return;
        };
        if known {
            // An `execve` has exchanged the ids of two threads. A later event introduces the other thread by its new id.
            other.totals.tid = previous_tid;
            self.live.insert(previous_tid, other);
        } else {
            // The last switch of the thread that had this id was not recorded.
            self.ended.push(other.totals);
        }
    }

    /// The state of a thread. For a thread that no event has introduced, it is created without any knowledge.
    fn live(&mut self, tid: u32) -> &mut Live {
        let strangers = &mut self.strangers;
        self.live.entry(tid).or_insert_with(|| {
            *strangers += 1;
            let mut live = Live::new(false);
            live.totals.tid = tid;
            live
        })
    }

    fn sample(&mut self, at_ns: u64, sample: &Sample) {
        let live = self.live(sample.tid);
        let place = SamplePlace {
            image: Image {
                tgid: live.totals.tgid,
                number: live.image,
            },
            in_kernel: sample.in_kernel,
            kernel_stack: sample.kernel_stack,
            user_stack: sample.user_stack,
        };
        self.intervals.sample(at_ns, place);
    }

    fn switch_out(&mut self, event: &Event, out: &Out) {
        self.switches += 1;
        let left_for = LeftFor::from(out);
        let live = self.live(out.tid);
        if out.voluntary {
            live.totals.voluntary += 1;
        } else {
            live.totals.involuntary += 1;
        }
        let left = live.clock.switch_out(event.at_ns, out.leave);
        add(&mut live.totals.on_cpu_ns, left.on_cpu_ns.or_zero());
        if let Some(ns) = left.on_cpu_ns.ns() {
            let interval = live.interval(State::OnCpu, event.at_ns - ns, event.at_ns, left_for);
            self.intervals.interval(&interval);
        }
        let live = self.live(out.tid);
        let departure = Departure {
            thread: live.thread(),
            image: live.program(),
            at_ns: event.at_ns,
            cpu: event.cpu,
            out: *out,
            on_cpu_ns: left.on_cpu_ns.ns(),
        };
        self.intervals.left(&departure);
        let live = self.live(out.tid);
        let (tgid, image) = (live.totals.tgid, live.image);
        let row = match live.last {
            Some((last, row)) if last == left_for => row,
            _ => self.row(out, tgid, image),
        };
        let sum = self.sum(row);
        sum.count += 1;
        let live = self.live(out.tid);
        live.pending = Some(row);
        live.left_for = left_for;
        live.last = Some((left_for, row));
        if let Some(ns) = left.on_cpu_ns.ns() {
            self.latencies.get_mut(Latency::OnCpu).record(ns);
        }
        self.lost_intervals += u64::from(left.missed_switch_in);
        if out.leave == Leave::Dead
            && let Some(live) = self.live.remove(&out.tid)
        {
            self.ended.push(live.totals);
        }
    }

    fn switch_in(&mut self, event: &Event, into: &In, before: Before) {
        let live = self.live(into.tid);
        live.clock.wakeup(into.wakeup, into.woken_ns);
        let entered = live.clock.switch_in(event.at_ns);
        add(&mut live.totals.off_cpu_ns, entered.off_cpu_ns.or_zero());
        add(&mut live.totals.run_queue_ns, entered.run_queue_ns.or_zero());
        let off = live.off_intervals(event.at_ns, &entered, Some(before));
        let arrival = Arrival {
            thread: live.thread(),
            cpu: event.cpu,
            entered,
        };
        for interval in off.iter().flatten() {
            self.intervals.interval(interval);
        }
        self.intervals.came(&arrival);
        let live = self.live(into.tid);
        if live.last_cpu.is_some_and(|cpu| cpu != event.cpu) {
            live.totals.migrations += 1;
        }
        live.last_cpu = Some(event.cpu);
        if let Some(row) = live.pending.take() {
            add(&mut self.sum(row).off_cpu_ns, entered.off_cpu_ns.or_zero());
        }
        for (latency, ns) in [
            (Latency::OffCpu, entered.off_cpu_ns.ns()),
            (Latency::Blocked, entered.blocked_ns.ns()),
            (Latency::RunQueue, entered.run_queue_ns.ns()),
            (Latency::WakeToRun, entered.wake_to_run_ns.ns()),
        ] {
            if let Some(ns) = ns {
                self.latencies.get_mut(latency).record(ns);
            }
        }
        self.lost_wakeups += u64::from(entered.wake_unknown);
    }

    fn row(&mut self, out: &Out, tgid: u32, image: u32) -> RowRef {
        let mut key = SumKey::EMPTY;
        key.task = out.task;
        key.tgid = tgid;
        key.image = image;
        key.class = out.class;
        key.reason = out.reason;
        key.throttled = u8::from(out.throttled);
        if let Some(&row) = self.row_of.get(&key) {
            return RowRef::Of(row);
        }
        if self.rows.len() == MOST_ROWS {
            return RowRef::OfClass(class_of(&key));
        }
        let row = self.rows.len() as u32;
        self.rows.push((key, SwitchSum::default()));
        self.row_of.insert(key, row);
        RowRef::Of(row)
    }

    fn sum(&mut self, row: RowRef) -> &mut SwitchSum {
        match row {
            RowRef::Of(row) => &mut self.rows[row as usize].1,
            RowRef::OfClass(class) => &mut self.overflow[usize::from(class)],
        }
    }

    /// The sums of all switch-outs by class.
    fn by_class(&self) -> [SwitchSum; Class::COUNT] {
        by_class(&self.rows, &self.overflow)
    }

    /// The totals of all individual threads, ended and living.
    fn threads(&self) -> impl Iterator<Item = ThreadTotals> {
        let live = self.live.values().map(|live| live.totals);
        self.ended.apart.iter().copied().chain(live)
    }
}

impl Live {
    fn new(new: bool) -> Self {
        Self {
            clock: if new { Clock::NEW } else { Clock::UNKNOWN },
            totals: ThreadTotals::default(),
            image: 0,
            last_cpu: None,
            pending: None,
            woken_ns: 0,
            left_for: LeftFor::default(),
            last: None,
        }
    }

    fn first_wakeup_ns(&mut self, at_ns: u64) {
        if self.woken_ns <= self.clock.since_ns {
            self.woken_ns = at_ns;
        }
    }

    fn program(&self) -> Image {
        Image {
            tgid: self.totals.tgid,
            number: self.image,
        }
    }

    fn interval(&self, state: State, start_ns: u64, end_ns: u64, left_for: LeftFor) -> Interval {
        Interval {
            thread: self.thread(),
            state,
            start_ns,
            end_ns,
            image: self.program(),
            task: left_for.task,
            class: left_for.class,
            reason: left_for.reason,
            throttled: left_for.throttled,
            cpu: self.last_cpu,
            before: None,
        }
    }

    fn thread(&self) -> ThreadId {
        ThreadId {
            start_boottime_ns: self.totals.start_boottime_ns,
            tgid: self.totals.tgid,
            tid: self.totals.tid,
        }
    }

    /// The intervals that ended with the switch-in at `now_ns`: a blocked and a run-queue interval, one interval, or none.
    fn off_intervals(&self, now_ns: u64, entered: &Entered, before: Option<Before>) -> [Option<Interval>; 2] {
        let interval = |state, start_ns, end_ns| Some(self.interval(state, start_ns, end_ns, self.left_for));
        let wait = |start_ns| {
            let wait = self.interval(State::RunQueue, start_ns, now_ns, self.left_for);
            Some(Interval { before, ..wait })
        };
        match (entered.off_cpu_ns.ns(), entered.run_queue_ns.ns()) {
            (Some(off), Some(waited)) => {
                let (out_ns, ready_ns) = (now_ns - off, now_ns - waited);
                let blocked = if out_ns < ready_ns {
                    interval(State::Blocked, out_ns, ready_ns)
                } else {
                    None
                };
                [blocked, wait(ready_ns)]
            }
            (Some(off), None) => [interval(State::Off, now_ns - off, now_ns), None],
            (None, Some(waited)) => [wait(now_ns - waited), None],
            (None, None) => [None, None],
        }
    }
}

/// The class in which a switch-out is summed if there is no row for its key.
fn class_of(key: &SumKey) -> u8 {
    match key.reason {
        0 if usize::from(key.class) < Class::COUNT => key.class,
        0 => 0,
        _ => Class::Unattributed as u8,
    }
}

fn by_class(rows: &[(SumKey, SwitchSum)], overflow: &[SwitchSum]) -> [SwitchSum; Class::COUNT] {
    let mut classes = [SwitchSum::default(); Class::COUNT];
    let rows = rows.iter().map(|(key, sum)| (usize::from(class_of(key)), sum));
    for (class, sum) in rows.chain(overflow.iter().enumerate()) {
        if let Some(total) = classes.get_mut(class) {
            add(&mut total.count, sum.count);
            add(&mut total.off_cpu_ns, sum.off_cpu_ns);
        }
    }
    classes
}

/// Describes the differences between the events and the sums of the kernel side; empty if they agree. The result is meaningful
/// only if the timeline is complete.
#[must_use]
pub fn disagreements<I: IntervalSink>(replay: &Replay<I>, aggregates: &Aggregates) -> Vec<String> {
    let mut found = Vec::new();
    let counters = &aggregates.counters;
    for (what, events, counted) in [
        ("switches", replay.switches, counters.switches),
        ("wakeups", replay.wakeups, counters.wakeups),
        ("lost intervals", replay.lost_intervals, counters.lost_intervals),
        ("lost wakeups", replay.lost_wakeups, counters.lost_wakeups),
        ("threads that were not introduced", replay.strangers, 0),
        ("events of an unknown kind", replay.unknown, 0),
    ] {
        if events != counted {
            found.push(differ(what, events, counted));
        }
    }
    for (what, latency) in [
        ("off-CPU intervals", Latency::OffCpu),
        ("blocked intervals", Latency::Blocked),
        ("run-queue times", Latency::RunQueue),
        ("on-CPU intervals", Latency::OnCpu),
        ("wake-to-run times", Latency::WakeToRun),
    ] {
        let (events, counted) = (replay.latencies.get(latency), aggregates.latencies.get(latency));
        if bytemuck::bytes_of(events) != bytemuck::bytes_of(counted) {
            found.push(if events.count == counted.count {
                differ(&format!("nanoseconds of {what}"), events.sum_ns, counted.sum_ns)
            } else {
                differ(what, events.count, counted.count)
            });
        }
    }
    found.extend(ledgers_differ(replay, aggregates));
    found.extend(threads_differ(replay, aggregates));
    found
}

fn differ(what: &str, events: u64, counted: u64) -> String {
    let difference = events.wrapping_sub(counted).cast_signed();
    format!(
        "{what}: {} in the events, {} in the counts ({})",
        thousands(events),
        thousands(counted),
        signed_thousands(difference)
    )
}

fn ledgers_differ<I: IntervalSink>(replay: &Replay<I>, aggregates: &Aggregates) -> Option<String> {
    let overflowed = |sums: &[SwitchSum]| sums.iter().any(|sum| sum.count > 0);
    if overflowed(&replay.overflow) || overflowed(&aggregates.overflow_sums) {
        let counted = by_class(&aggregates.switch_sums, &aggregates.overflow_sums);
        let classes = replay.by_class();
        return (classes != counted).then(|| "the sums of the ledger by class".to_owned());
    }
    let mut rows = replay.rows.clone();
    rows.sort_by_key(|&(key, _)| key);
    let row = rows
        .iter()
        .zip(&aggregates.switch_sums)
        .find(|(events, counted)| events != counted);
    match row {
        Some(((events, sum), (_, counted))) => Some(differ(
            &format!("ledger, class {} of process {}", events.class, events.tgid),
            sum.count,
            counted.count,
        )),
        None if rows.len() != aggregates.switch_sums.len() => Some(differ(
            "rows of the ledger",
            rows.len() as u64,
            aggregates.switch_sums.len() as u64,
        )),
        None => None,
    }
}

/// Removes from two sorted lists the threads that are in both.
fn cancel(ours: &mut Vec<ThreadTotals>, theirs: &mut Vec<ThreadTotals>) {
    let mut left = (Vec::new(), Vec::new());
    let mut of_theirs = theirs.drain(..).peekable();
    for thread in ours.drain(..) {
        while let Some(other) = of_theirs.next_if(|other| other.comparable() < thread.comparable()) {
            left.1.push(other);
        }
        if of_theirs
            .next_if(|other| other.comparable() == thread.comparable())
            .is_none()
        {
            left.0.push(thread);
        }
    }
    left.1.extend(of_theirs);
    (*ours, *theirs) = left;
}

/// Compares the totals of the threads. Both sides may have folded threads, and not necessarily the same ones: a thread that is an
/// individual record on only one side must be contained in the sum of the other side.
fn threads_differ<I: IntervalSink>(replay: &Replay<I>, aggregates: &Aggregates) -> Option<String> {
    if aggregates.counters.lost_records > 0 {
        // Records of ended threads were lost, so there is nothing to compare with.
        return None;
    }
    let sorted = |threads: &mut dyn Iterator<Item = ThreadTotals>| {
        let mut threads: Vec<_> = threads.filter(|thread| !thread.is_idle()).collect();
        threads.sort_by_key(|thread| thread.comparable());
        threads
    };
    let records = || aggregates.threads.iter();
    let mut events = sorted(&mut replay.threads());
    let apart = records().filter(|record| record.threads == 1);
    let mut counted = sorted(&mut apart.map(|record| ThreadTotals::from_summary(&record.thread)));
    let (mut of_events, mut of_counted) = (replay.ended.folded, Folded::default());
    for record in records().filter(|record| record.threads != 1) {
        of_counted.add(record.threads, &ThreadTotals::from_summary(&record.thread));
    }
    cancel(&mut events, &mut counted);
    let id = |thread: &ThreadTotals| (thread.start_boottime_ns, thread.tgid);
    let known: HashMap<_, _> = events.iter().map(|thread| (id(thread), thread)).collect();
    let is_folded = [of_events, of_counted].iter().any(|folded| folded.threads > 0);
    let of_both = counted
        .iter()
        .find_map(|thread| Some((*known.get(&id(thread))?, thread)));
    let of_one = || events.first().zip(counted.first()).filter(|_| !is_folded);
    if let Some((events, counted)) = of_both.or_else(of_one) {
        return Some(differ(
            &format!("switches or times of thread {}", counted.tid),
            events.voluntary.wrapping_add(events.involuntary),
            counted.voluntary.wrapping_add(counted.involuntary),
        ));
    }
    for thread in &events {
        of_events.add(1, thread);
    }
    for thread in &counted {
        of_counted.add(1, thread);
    }
    if of_events.threads != of_counted.threads {
        let what = if is_folded { "folded threads" } else { "threads" };
        return Some(differ(what, of_events.threads, of_counted.threads));
    }
    (of_events.sums != of_counted.sums).then(|| {
        differ(
            "switches or times of the folded threads",
            of_events.sums.voluntary.wrapping_add(of_events.sums.involuntary),
            of_counted.sums.voluntary.wrapping_add(of_counted.sums.involuntary),
        )
    })
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use ctxtrace_common::thread::Thread;
    use ctxtrace_common::wakeup::Waker;
    use proptest::prelude::*;

    use super::*;
    use crate::correlate::budget::{ThreadTimeBudget, Window};
    use ctxtrace_format::threads::EndedThreads;
    use ctxtrace_format::{Fate, ThreadRecord, build};

    /// The kinds of switch-outs in these tests: how the thread leaves, and whether the kernel counts the switch as voluntary.
    const SLEEPS: (Leave, bool) = (Leave::Slept, true);
    const PREEMPTED: (Leave, bool) = (Leave::Runnable, false);
    const ENDS: (Leave, bool) = (Leave::Dead, true);

    /// A simple model of the kernel side, which makes the same sums and records the same events.
    struct KernelSums {
        now_ns: u64,
        threads: BTreeMap<u32, Thread>,
        ended: Vec<Thread>,
        aggregates: Aggregates,
        sums: BTreeMap<SumKey, SwitchSum>,
        events: Vec<Event>,
    }

    impl KernelSums {
        fn new() -> Self {
            let mut aggregates = build::aggregates(vec![]);
            aggregates.counters.switches = 0;
            Self {
                now_ns: 1_000,
                threads: BTreeMap::new(),
                ended: Vec::new(),
                aggregates,
                sums: BTreeMap::new(),
                events: Vec::new(),
            }
        }

        /// Introduces a thread. Threads 1, 3, 5, … are new; the others ran before tracing began.
        fn meet(&mut self, tid: u32, cpu: u32) {
            let now_ns = self.now_ns;
            let thread = self.threads.entry(tid).or_insert_with(|| {
                let mut thread: Thread = bytemuck::Zeroable::zeroed();
                thread.clock = if tid % 2 == 1 { Clock::NEW } else { Clock::UNKNOWN };
                thread.start_boottime_ns = now_ns;
                thread.tid = tid;
                thread.tgid = 100 + tid / 4;
                thread
            });
            if thread.introduced_tid == tid {
                return;
            }
            thread.introduced_tid = tid;
            let image = Image {
                tgid: thread.tgid,
                number: thread.image,
            };
            let new = tid % 2 == 1;
            self.events
                .push(Event::thread(now_ns, cpu, tid, 0, thread.start_boottime_ns, image, new));
            self.events.push(Event::name(now_ns, cpu, tid, &thread.comm));
        }

        fn record(&mut self, latency: Latency, ns: Option<u64>) {
            if let Some(ns) = ns {
                self.aggregates.latencies.get_mut(latency).record(ns);
            }
        }

        fn switch(&mut self, cpu: u32, out: Option<(u32, (Leave, bool), SumKey)>, into: Option<u32>) {
            let mut event = Event::switch(self.now_ns, cpu);
            if let Some((tid, how, key)) = out {
                self.meet(tid, cpu);
                self.out(&mut event, tid, how, key);
            }
            if let Some(tid) = into {
                self.meet(tid, cpu);
                self.enter(&mut event, tid, cpu);
            }
            if event.concerns_the_target() {
                self.events.push(event);
            }
        }

        fn out(&mut self, event: &mut Event, tid: u32, (leave, voluntary): (Leave, bool), mut key: SumKey) {
            let thread = self.threads.get_mut(&tid).expect("met");
            (key.tgid, key.image) = (thread.tgid, thread.image);
            let mut count = thread.kernel;
            if voluntary {
                count.voluntary += 1;
            } else {
                count.involuntary += 1;
            }
            thread.count_switch(count, leave != Leave::Runnable);
            let left = thread.clock.switch_out(self.now_ns, leave);
            thread.on_cpu_ns += left.on_cpu_ns.or_zero();
            thread.pending = key;
            event.set_out(tid, leave, voluntary, &key);
            self.sums.entry(key).or_default().count += 1;
            self.aggregates.counters.switches += 1;
            self.aggregates.counters.lost_intervals += u64::from(left.missed_switch_in);
            self.record(Latency::OnCpu, left.on_cpu_ns.ns());
            if leave == Leave::Dead {
                self.ended.extend(self.threads.remove(&tid));
            }
        }

        fn enter(&mut self, event: &mut Event, tid: u32, cpu: u32) {
            let thread = self.threads.get_mut(&tid).expect("met");
            let (wakeup, woken_ns) = thread.clock.noted_wakeup();
            event.set_in(tid, wakeup, woken_ns);
            let was_out = thread.clock.is_off();
            let entered = thread.clock.switch_in(self.now_ns);
            thread.off_cpu_ns += entered.off_cpu_ns.or_zero();
            thread.run_queue_ns += entered.run_queue_ns.or_zero();
            if thread.last_cpu_plus_one != cpu + 1 {
                thread.migrations += u64::from(thread.last_cpu_plus_one != 0);
                thread.last_cpu_plus_one = cpu + 1;
            }
            if was_out {
                let key = thread.pending;
                self.sums.entry(key).or_default().off_cpu_ns += entered.off_cpu_ns.or_zero();
            }
            self.aggregates.counters.lost_wakeups += u64::from(entered.wake_unknown);
            self.record(Latency::OffCpu, entered.off_cpu_ns.ns());
            self.record(Latency::Blocked, entered.blocked_ns.ns());
            self.record(Latency::RunQueue, entered.run_queue_ns.ns());
            self.record(Latency::WakeToRun, entered.wake_to_run_ns.ns());
        }

        fn wake(&mut self, cpu: u32, tid: u32) {
            self.meet(tid, cpu);
            let thread = self.threads.get_mut(&tid).expect("met");
            let noted = thread.clock.next_wakeup();
            if let Some(wakeup) = noted {
                thread.clock.wakeup(wakeup, self.now_ns);
            }
            self.aggregates.counters.wakeups += 1;
            let waker = Waker::default();
            self.events
                .push(Event::wakeup(self.now_ns, cpu, tid, noted, false, &waker));
        }

        /// Creates a thread that runs for 10 ns and ends.
        fn thread_that_ends(&mut self) {
            self.now_ns += 10;
            self.switch(0, None, Some(1));
            self.now_ns += 10;
            self.switch(0, Some((1, ENDS, key(Class::Exited, 0))), None);
        }

        fn exec(&mut self, tid: u32) {
            if let Some(thread) = self.threads.get_mut(&tid) {
                thread.image += 1;
                thread.introduced_tid = 0;
            }
        }

        fn finish(mut self) -> (Aggregates, Vec<Event>) {
            let threads = self.ended.into_iter().chain(self.threads.into_values());
            self.aggregates.threads = threads
                .map(|thread| ThreadRecord::new(thread.summary, Fate::Ended))
                .collect();
            self.aggregates.switch_sums = self.sums.into_iter().collect();
            (self.aggregates, self.events)
        }
    }

    fn replay(events: &[Event]) -> Replay {
        let mut replay = Replay::default();
        replay.events(events);
        replay
    }

    fn key(class: Class, task: u64) -> SumKey {
        let mut key = build::sum_key(class, task);
        key.tgid = 0;
        key
    }

    /// Executes a drawn timeline with one line for each CPU and 10 ns for each character. A digit is the switch-in of that
    /// thread. `z` is a switch-out to sleep of the thread on the CPU, `r` one of a runnable thread, `x` the last one. A letter
    /// from `A` on is a wakeup of thread 0, 1, ….
    fn draw(lines: &[&str]) -> (Aggregates, Vec<Event>) {
        let mut kernel = KernelSums::new();
        let mut on = vec![None; lines.len()];
        for column in 0..lines.iter().map(|line| line.len()).max().unwrap_or(0) {
            kernel.now_ns += 10;
            for (cpu, line) in lines.iter().enumerate() {
                let number = cpu as u32;
                let blocked = key(Class::ThreadBlocked, 0);
                match line.as_bytes().get(column) {
                    Some(digit @ b'0'..=b'9') => {
                        let tid = u32::from(digit - b'0') + 1;
                        // The thread that was on the CPU is preempted in the same event.
                        let out = on[cpu]
                            .replace(tid)
                            .map(|tid| (tid, PREEMPTED, key(Class::ThreadPreempted, 0)));
                        kernel.switch(number, out, Some(tid));
                    }
                    Some(b'z') => kernel.switch(number, on[cpu].take().map(|tid| (tid, SLEEPS, blocked)), None),
                    Some(b'r') => kernel.switch(number, on[cpu].take().map(|tid| (tid, PREEMPTED, blocked)), None),
                    Some(b'x') => {
                        let exited = key(Class::Exited, 0);
                        kernel.switch(number, on[cpu].take().map(|tid| (tid, ENDS, exited)), None);
                    }
                    Some(letter @ b'A'..=b'J') => kernel.wake(number, u32::from(letter - b'A') + 1),
                    _ => {}
                }
            }
        }
        kernel.finish()
    }

    #[test]
    fn a_drawn_timeline_gives_its_intervals() {
        // Thread 0 sleeps for 50 ns, waits for 30 ns, and is then preempted by thread 1.
        let (aggregates, events) = draw(&[
            "A.0---z.......0--1--z", //
            "...........A.........",
        ]);
        let replay = replay(&events);
        assert_eq!(disagreements(&replay, &aggregates), Vec::<String>::new());
        assert_eq!((replay.switches, replay.wakeups), (3, 2));
        let sum = |latency| replay.latencies.get(latency).sum_ns;
        assert_eq!(sum(Latency::OffCpu), 80);
        assert_eq!(sum(Latency::Blocked), 50);
        assert_eq!(sum(Latency::OnCpu), 40 + 30 + 30);
        assert_eq!(
            sum(Latency::RunQueue),
            20 + 30,
            "including the first wait of the new thread"
        );
        assert_eq!(replay.lost_wakeups, 0);
    }

    #[test]
    fn a_switch_between_two_threads_is_one_event() {
        let (aggregates, events) = draw(&["0-1-0-1-z"]);
        let switches = events
            .iter()
            .filter(|event| matches!(event.decode(), Some(Decoded::Switch { .. })));
        assert_eq!(switches.count(), 5);
        assert_eq!(replay(&events).switches, 4);
        assert_eq!(disagreements(&replay(&events), &aggregates), Vec::<String>::new());
    }

    #[test]
    fn an_event_that_is_missing_is_found_out() {
        let (aggregates, events) = draw(&["A.0-z.A..0--1--0--x", ".............B....."]);
        assert_eq!(disagreements(&replay(&events), &aggregates), Vec::<String>::new());
        for missing in 0..events.len() {
            if matches!(events[missing].decode(), Some(Decoded::Name { .. })) {
                continue;
            }
            let mut rest = events.clone();
            rest.remove(missing);
            assert_ne!(
                disagreements(&replay(&rest), &aggregates),
                Vec::<String>::new(),
                "without {:?}",
                events[missing].decode()
            );
        }
    }

    #[test]
    fn a_difference_is_described() {
        let (mut aggregates, events) = draw(&["0-z"]);
        aggregates.counters.switches += 2;
        assert_eq!(
            disagreements(&replay(&events), &aggregates),
            ["switches: 1 in the events, 3 in the counts (-2)"]
        );
    }

    #[test]
    fn an_id_that_is_used_again_is_another_thread() {
        let (aggregates, events) = draw(&["0-x.0-x.0-z"]);
        let replay = replay(&events);
        assert_eq!(disagreements(&replay, &aggregates), Vec::<String>::new());
        assert_eq!(replay.ended.apart.len(), 2);
        assert_eq!(replay.live.len(), 1);
    }

    #[test]
    fn threads_that_exchange_their_ids_keep_their_times() {
        let image = |number| Image { tgid: 7, number };
        let out = |at_ns, tid, leave| {
            let mut event = Event::switch(at_ns, 0);
            event.set_out(tid, leave, true, &key(Class::ThreadBlocked, 0));
            event
        };
        let into = |at_ns, tid| {
            let mut event = Event::switch(at_ns, 0);
            event.set_in(tid, NotedWakeup::OffCpu, 0);
            event
        };
        // The leader, thread 7, is preempted while it ends; thread 9 takes over its id with an `execve`.
        let replay = replay(&[
            Event::thread(1, 0, 7, 0, 70, image(0), false),
            Event::thread(1, 0, 9, 0, 90, image(0), false),
            into(10, 7),
            out(20, 7, Leave::Runnable),
            into(20, 9),
            Event::thread(50, 0, 7, 9, 90, image(1), false),
            out(50, 7, Leave::Slept),
            Event::thread(60, 0, 9, 7, 70, image(1), false),
            into(60, 9),
            out(61, 9, Leave::Dead),
        ]);
        let leader = &replay.ended.apart;
        assert_eq!(leader.len(), 1);
        assert_eq!(
            (leader[0].start_boottime_ns, leader[0].on_cpu_ns, leader[0].off_cpu_ns),
            (70, 11, 40)
        );
        let other = replay.live[&7].totals;
        assert_eq!((other.start_boottime_ns, other.tid, other.on_cpu_ns), (90, 7, 30));
        assert_eq!(replay.strangers, 0);
    }

    #[test]
    fn what_has_no_row_is_counted_by_its_class() {
        let mut kernel = KernelSums::new();
        kernel.meet(1, 0);
        for task in 0..MOST_ROWS as u64 + 10 {
            kernel.now_ns += 10;
            kernel.switch(0, None, Some(1));
            kernel.now_ns += 10;
            kernel.switch(0, Some((1, SLEEPS, key(Class::TaskBlocked, task))), None);
        }
        let (aggregates, events) = kernel.finish();
        let mut replay = replay(&events);
        assert_eq!(replay.switch_sums().len(), MOST_ROWS);
        assert_eq!(disagreements(&replay, &aggregates), Vec::<String>::new());
        replay.overflow[Class::TaskBlocked as usize].count += 1;
        assert_eq!(disagreements(&replay, &aggregates), ["the sums of the ledger by class"]);
    }

    #[test]
    fn a_wait_shows_what_occupied_the_cpu() {
        let mut kernel = KernelSums::new();
        let after = |kernel: &mut KernelSums| kernel.now_ns += 10;
        let preempted = |tid| Some((tid, PREEMPTED, key(Class::TaskPreempted, 0)));
        kernel.switch(0, None, Some(2));
        after(&mut kernel);
        kernel.switch(0, preempted(2), Some(4));
        after(&mut kernel);
        // The CPU was occupied by another thread of the target.
        kernel.switch(0, preempted(4), Some(2));
        after(&mut kernel);
        kernel.switch(0, preempted(2), None);
        after(&mut kernel);
        // The CPU was occupied by another program.
        kernel.switch(0, None, Some(2));
        after(&mut kernel);
        kernel.switch(0, Some((2, SLEEPS, key(Class::TaskBlocked, 0))), None);
        after(&mut kernel);
        kernel.wake(1, 2);
        after(&mut kernel);
        // The CPU was idle.
        kernel.switch(0, None, Some(2));
        kernel.events.last_mut().expect("an event").set_cpu_was_idle();
        let mut replay = Replay::with_sink(Vec::new());
        replay.events(&kernel.finish().1);
        let intervals = replay.into_intervals();
        let waits = intervals
            .iter()
            .filter(|interval| interval.thread.tid == 2 && interval.state == State::RunQueue);
        assert_eq!(
            waits.map(|wait| wait.before).collect::<Vec<_>>(),
            [Before::Target, Before::Other, Before::Idle].map(Some)
        );
        let others = intervals.iter().filter(|interval| interval.state != State::RunQueue);
        assert!(others.clone().count() > 0 && others.clone().all(|interval| interval.before.is_none()));
    }

    #[test]
    fn open_intervals_are_emitted_by_close() {
        // At the end, thread 0 is on its CPU, thread 1 is asleep, and thread 2 has been woken and waits for a CPU.
        let (_, events) = draw(&["0.......", "1.z.....", "2.z.C..."]);
        let mut replay = Replay::with_sink(Vec::new());
        replay.events(&events);
        let end_ns = 1_000 + 90;
        replay.close(end_ns);
        let open: Vec<(u32, State, u64)> = replay
            .into_intervals()
            .iter()
            .filter(|interval| interval.end_ns == end_ns)
            .map(|interval| (interval.thread.tid, interval.state, interval.end_ns - interval.start_ns))
            .collect();
        let mut open = open;
        open.sort_unstable();
        assert_eq!(
            open,
            [(1, State::OnCpu, 80), (2, State::Blocked, 60), (3, State::RunQueue, 40)]
        );
    }

    #[test]
    fn memory_is_for_the_living() {
        let count = 3 * MOST_ENDED as u64;
        let (mut kernel, mut replay) = (KernelSums::new(), Replay::default());
        for _ in 0..count {
            kernel.thread_that_ends();
            replay.events(&std::mem::take(&mut kernel.events));
            assert!(replay.live.is_empty());
            assert!(replay.ended.apart.len() < 2 * MOST_ENDED);
        }
        assert_eq!((replay.rows.len(), replay.switches), (1, count));
        let ended = &replay.ended;
        assert_eq!(ended.apart.len() as u64 + ended.folded.threads, count);
        let (aggregates, _) = kernel.finish();
        assert_eq!(disagreements(&replay, &aggregates), Vec::<String>::new());
    }

    /// Both sides fold the threads with the fewest switches; of threads with equally many switches those that ended first.
    #[test]
    fn folded_threads_are_compared_by_their_sums() {
        let mut kernel = KernelSums::new();
        for _ in 0..3 * MOST_ENDED {
            kernel.thread_that_ends();
        }
        let (mut aggregates, events) = kernel.finish();
        let replay = replay(&events);
        let all = std::mem::take(&mut aggregates.threads);
        for is_reversed in [false, true] {
            let mut ended = EndedThreads::default();
            let mut records = all.clone();
            if is_reversed {
                records.reverse();
            }
            for record in records {
                ended.push(record.thread, |_| false);
            }
            aggregates.threads = ended.records(|_| false);
            assert_eq!(disagreements(&replay, &aggregates), Vec::<String>::new());
        }
        let disagreements_after = |change: fn(&mut ThreadRecord)| {
            let mut changed = aggregates.clone();
            let folded = changed.threads.iter_mut().find(|record| record.threads != 1);
            change(folded.expect("many threads have ended"));
            disagreements(&replay, &changed)
        };
        let differ = disagreements_after(|record| record.threads += 1);
        assert_eq!(differ.len(), 1);
        assert!(differ[0].starts_with("folded threads: "), "{differ:?}");
        let differ = disagreements_after(|record| record.thread.on_cpu_ns += 1);
        assert_eq!(differ.len(), 1);
        assert!(
            differ[0].starts_with("switches or times of the folded threads: "),
            "{differ:?}"
        );
    }

    /// A random event on one of two CPUs.
    #[derive(Clone, Copy, Debug)]
    enum Step {
        Switch {
            cpu: u32,
            out: Option<(u32, (Leave, bool))>,
            into: Option<u32>,
            class: Class,
            task: u64,
        },
        Wake {
            cpu: u32,
            tid: u32,
        },
        Exec {
            tid: u32,
        },
    }

    /// Events in any order, even in impossible ones, because a loss of events makes the other events contradict each other.
    fn step() -> impl Strategy<Value = Step> {
        let how = prop_oneof![
            4 => Just(SLEEPS),
            2 => Just(PREEMPTED),
            1 => Just((Leave::Runnable, true)),
            1 => Just(ENDS),
        ];
        let class = prop::sample::select(&Class::ALL[..]);
        let switch = (
            0_u32..2,
            prop::option::of((1_u32..6, how)),
            prop::option::of(1_u32..6),
            class,
            0_u64..3,
        )
            .prop_map(|(cpu, out, into, class, task)| Step::Switch {
                cpu,
                out,
                // A thread is not switched in where it is switched out.
                into: into.filter(|&tid| out.is_none_or(|(leaving, _)| leaving != tid)),
                class,
                task,
            });
        prop_oneof![
            6 => switch,
            3 => (0_u32..2, 1_u32..6).prop_map(|(cpu, tid)| Step::Wake { cpu, tid }),
            1 => (1_u32..6).prop_map(|tid| Step::Exec { tid }),
        ]
    }

    proptest! {
        #[test]
        fn played_again_a_timeline_gives_what_the_kernel_has_added_up(
            steps in prop::collection::vec((step(), 1_u64..5_000), 1..300),
            wakeups_come in prop::collection::vec(any::<prop::sample::Index>(), 300),
        ) {
            let mut kernel = KernelSums::new();
            for (step, later_ns) in steps {
                kernel.now_ns += later_ns;
                match step {
                    Step::Switch { cpu, out, into, class, task } => {
                        let out = out.map(|(tid, how)| {
                            let mut key = key(class, task);
                            key.throttled = u8::from(how == PREEMPTED && task % 2 == 1);
                            (tid, how, key)
                        });
                        kernel.switch(cpu, out, into);
                    }
                    Step::Wake { cpu, tid } => kernel.wake(cpu, tid),
                    Step::Exec { tid } => kernel.exec(tid),
                }
            }
            let (aggregates, events) = kernel.finish();
            let in_order = replay(&events);
            prop_assert_eq!(disagreements(&in_order, &aggregates), Vec::<String>::new());
            prop_assert_eq!(in_order.unordered, 0);

            // The emitted intervals have the same sums.
            let mut with_budget = Replay::with_sink(ThreadTimeBudget::new(Window::ALL));
            with_budget.events(&events);
            let budget = with_budget.into_intervals();
            let sum = |latency| aggregates.latencies.get(latency).sum_ns;
            prop_assert_eq!(budget.in_state(State::OnCpu), sum(Latency::OnCpu));
            prop_assert_eq!(budget.in_state(State::RunQueue), sum(Latency::RunQueue));
            prop_assert_eq!(budget.in_state(State::Blocked), sum(Latency::Blocked));

            // Wakeup events may come at any other position.
            let is_wakeup = |event: &&Event| matches!(event.decode(), Some(Decoded::Wakeup { .. }));
            let mut shuffled: Vec<Event> = events.iter().filter(|event| !is_wakeup(event)).copied().collect();
            for (wakeup, place) in events.iter().filter(is_wakeup).zip(&wakeups_come) {
                shuffled.insert(place.index(shuffled.len() + 1), *wakeup);
            }
            let differences = disagreements(&replay(&shuffled), &aggregates);
            prop_assert_eq!(differences, Vec::<String>::new());
        }
    }
}
