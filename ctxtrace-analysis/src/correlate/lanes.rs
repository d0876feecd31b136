//! Reduces a timeline to a fixed size while its events arrive: a timeline of an hour takes as much memory as one of a second.
//!
//! **Cells.** Time is divided into cells, whose length is a power of two in nanoseconds and the same for all threads. The time of
//! an interval is distributed to the cells that it overlaps. When there are too many cells, the length is doubled and pairs of
//! cells are added:
//!
//! ```text
//!   2^10 ns   |==--|====|..==|....|     = on a CPU   - run queue   . asleep
//!   2^11 ns   |==--==== |..==.... |
//! ```
//!
//! So cells are always exact sums; they are only longer in a longer timeline.
//!
//! **Windows.** The individual intervals and wakeups are kept too. All of them are kept until there are too many. From then on
//! only those are kept that overlap a window, where a window begins at every multiple of a period. Whenever there are too many
//! again, the period is doubled, so that half of the windows remain:
//!
//! ```text
//!   everything    [--------------------------------]
//!   1 / 2         [--]    [--]    [--]    [--]    [--]
//!   1 / 4         [--]            [--]            [--]
//! ```
//!
//! The windows of a later step are a subset of those of an earlier step, so each remaining window is complete from its beginning.
//! A window is about a sixty-fourth of the time for which everything could be kept, so it contains about as many intervals as fit
//! on a screen.
//!
//! **Moments.** Users look for the longest waits for a CPU and the longest sleeps in a poll, and these are often between windows.
//! The most recent intervals and wakeups are always kept. So when an interval proves to be one of the longest, the data around it
//! is available.

use std::collections::{HashMap, VecDeque};

use ctxtrace_common::ledger::Class;
use ctxtrace_common::locator::OTHER_TASKS;
use ctxtrace_common::process::{Image, TaskKey};
use ctxtrace_common::wakeup::WakeupOrigin;

use super::intervals::{Interval, IntervalSink, State, ThreadId, Woken};
use ctxtrace_format::lanes::{Lane, LaneWakeup, Lanes, Moment, MomentKind, Shown, Span};

/// How much data may be kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Maximum number of threads. Only the first threads of the timeline are kept; further ones are counted as left out.
    pub threads: usize,
    /// Maximum number of threads in the result: those with the most time on a CPU or in a run queue.
    pub lanes: usize,
    /// Maximum number of cells of all threads together, at least two for each thread. Beyond it the cells become longer.
    pub cells: usize,
    /// Maximum number of intervals and wakeups. Beyond it only those in windows are kept.
    pub items: usize,
    /// Maximum number of tasks. Further tasks share one number.
    pub tasks: usize,
    /// Maximum number of moments of each kind.
    pub moments: usize,
    /// Number of most recent intervals and wakeups that are kept for the next moment; a moment has at most twice as many.
    pub items_of_moment: usize,
}

impl Limits {
    /// The limits of a single timeline. It takes a few megabytes, in memory and in a file.
    pub const ONE: Self = Self {
        threads: 8_192,
        lanes: 256,
        cells: 1 << 17,
        items: 120_000,
        tasks: 1_024,
        moments: 8,
        items_of_moment: 1_500,
    };

    /// The limits of each of several timelines that are kept at the same time.
    #[must_use]
    pub fn for_each_of(runs: u64) -> Self {
        let share = |all: usize, least: usize| (all / usize::try_from(runs.max(1)).unwrap_or(usize::MAX)).max(least);
        Self {
            cells: share(Self::ONE.cells, 4 * Self::ONE.threads),
            items: share(Self::ONE.items, 4_000),
            ..Self::ONE
        }
    }
}

/// Binary logarithm of the initial cell length in nanoseconds: 1.024 µs, which is shorter than most intervals.
const FIRST_SHIFT: u32 = 10;
/// Binary logarithm of the maximum cell length in nanoseconds: 146 years. Cells never become longer.
const LAST_SHIFT: u32 = 62;
/// The length of a window is the time for which everything could be kept, divided by this number.
const WINDOWS: u64 = 64;
/// Maximum number of windows in the result. If a forged timeline with a gap of years has more, the period is doubled.
const MOST_WINDOWS: u64 = 4_096;
/// Maximum period of windows, nanoseconds. Beyond it the windows become shorter instead.
const LONGEST_PERIOD_NS: u64 = 1 << 63;

/// Builds [`Lanes`] from intervals and wakeups as they arrive.
#[derive(Clone, Debug)]
pub struct LanesBuilder {
    limits: Limits,
    shift: u32,
    cells: usize,
    lanes: Vec<Lane>,
    lane_of: HashMap<ThreadId, u32>,
    /// The lane of the thread that has this thread id now.
    lane_of_tid: HashMap<u32, u32>,
    left_out: u64,
    tasks: Vec<TaskKey>,
    task_of: HashMap<TaskKey, u32>,
    start_ns: u64,
    end_ns: u64,
    windows: Option<Windows>,
    kept: Vec<Item>,
    recent: VecDeque<Item>,
    moments: Vec<Around>,
}

/// Windows of equal length that begin at every multiple of a period.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Windows {
    /// Period in nanoseconds, a power of two.
    period_ns: u64,
    /// Length of a window in nanoseconds, less than the period.
    length_ns: u64,
}

/// An interval or wakeup that is kept unchanged.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Item {
    Span { lane: u32, span: Span },
    LaneWakeup(LaneWakeup),
}

/// A moment, with the intervals and wakeups around it.
#[derive(Clone, Debug)]
struct Around {
    moment: Moment,
    from_ns: u64,
    to_ns: u64,
    items: Vec<Item>,
}

impl Windows {
    /// Whether this period overlaps a window.
    fn touch(self, start_ns: u64, end_ns: u64) -> bool {
        let into = start_ns % self.period_ns;
        self.length_ns > 0 && (into < self.length_ns || self.period_ns - into < end_ns.saturating_sub(start_ns).max(1))
    }

    /// Half as many windows. If the period cannot be doubled, the windows become half as long, down to a length of 0.
    fn rarer(self) -> Self {
        if self.period_ns < LONGEST_PERIOD_NS {
            Self {
                period_ns: 2 * self.period_ns,
                ..self
            }
        } else {
            self.shorter()
        }
    }

    fn shorter(self) -> Self {
        Self {
            length_ns: self.length_ns / 2,
            ..self
        }
    }

    /// Number of windows in this period.
    fn number(self, start_ns: u64, end_ns: u64) -> u64 {
        (end_ns / self.period_ns).saturating_sub(start_ns / self.period_ns)
    }
}

impl Item {
    fn time(&self) -> (u64, u64) {
        match self {
            Self::Span { span, .. } => (span.start_ns, span.end_ns),
            Self::LaneWakeup(wake) => (wake.at_ns, wake.at_ns),
        }
    }

    fn is_in(&self, from_ns: u64, to_ns: u64) -> bool {
        let (start_ns, end_ns) = self.time();
        start_ns < to_ns && end_ns >= from_ns
    }
}

impl Around {
    /// Adds an item if it is near the moment and if there is room.
    fn offer(&mut self, item: &Item, most: usize) {
        if item.is_in(self.from_ns, self.to_ns) {
            if self.items.len() < most {
                self.items.push(*item);
            } else {
                // The data is incomplete from this item on, so the period around the moment ends here.
                self.to_ns = self.to_ns.min(item.time().0.max(self.moment.end_ns));
            }
        }
    }
}

impl LanesBuilder {
    /// Creates an empty builder.
    #[must_use]
    pub fn new(limits: Limits) -> Self {
        Self {
            limits,
            shift: FIRST_SHIFT,
            cells: 0,
            lanes: Vec::new(),
            lane_of: HashMap::new(),
            lane_of_tid: HashMap::new(),
            left_out: 0,
            tasks: Vec::new(),
            task_of: HashMap::new(),
            start_ns: u64::MAX,
            end_ns: 0,
            windows: None,
            kept: Vec::new(),
            recent: VecDeque::new(),
            moments: Vec::new(),
        }
    }

    /// The lane of a thread, which is created if there is room; otherwise `None`.
    fn lane(&mut self, thread: ThreadId) -> Option<u32> {
        if let Some(&lane) = self.lane_of.get(&thread) {
            return (lane != u32::MAX).then_some(lane);
        }
        let lane = self.lanes.len() as u32;
        if self.lanes.len() == self.limits.threads {
            self.left_out += 1;
            // Each left-out thread is remembered so that it is counted only once, up to a limit.
            if self.lane_of.len() < 8 * self.limits.threads {
                self.lane_of.insert(thread, u32::MAX);
            }
            return None;
        }
        self.lanes.push(Lane {
            tid: thread.tid,
            tgid: thread.tgid,
            start_boottime_ns: thread.start_boottime_ns,
            ..Lane::default()
        });
        self.lane_of.insert(thread, lane);
        self.lane_of_tid.insert(thread.tid, lane);
        Some(lane)
    }

    /// The number of a task, from 1 on; 0 if there is no task.
    fn task(&mut self, task: u64, image: Image) -> u32 {
        if task == 0 {
            return 0;
        }
        let mut key = TaskKey { task, image };
        if !self.task_of.contains_key(&key) && self.tasks.len() >= self.limits.tasks {
            key.task = OTHER_TASKS;
            key.image = Image::default();
        }
        let tasks = &mut self.tasks;
        *self.task_of.entry(key).or_insert_with(|| {
            tasks.push(key);
            tasks.len() as u32
        })
    }

    fn add_to_cells(&mut self, lane: u32, span: &Span, leaves: bool) {
        while self.cells + self.lanes[lane as usize].missing(span, self.shift) > self.limits.cells
            && self.shift < LAST_SHIFT
        {
            self.coarsen();
        }
        let shift = self.shift;
        let lane = &mut self.lanes[lane as usize];
        self.cells += lane.missing(span, shift);
        lane.extend(span, shift);
        // Events that are out of order may begin before the lane's first cell. Their time before it is added to it in one step,
        // because a forged time may lie years before it.
        let mut at_ns = span.start_ns;
        while at_ns < span.end_ns {
            let number = (at_ns >> shift).max(lane.first_cell);
            // The last possible cell ends at the maximum of the clock.
            let end_ns = (number + 1).saturating_mul(1 << shift);
            let part_ns = end_ns.min(span.end_ns) - at_ns;
            let Some(into) = lane.cells.get_mut((number - lane.first_cell) as usize) else {
                break;
            };
            let ns = &mut into.ns[span.shown as usize];
            *ns = ns.saturating_add(part_ns);
            if span.shown == Shown::OnCpu && span.task != 0 {
                into.vote(span.task, part_ns);
            }
            at_ns += part_ns;
        }
        if leaves && let Some(last) = lane.cells.last_mut() {
            last.switches = last.switches.saturating_add(1);
        }
    }

    /// Makes all cells twice as long.
    fn coarsen(&mut self) {
        self.shift += 1;
        self.cells = 0;
        for lane in &mut self.lanes {
            lane.coarsen();
            self.cells += lane.cells.len();
        }
    }

    fn keep(&mut self, item: Item) {
        let (start_ns, end_ns) = item.time();
        for around in &mut self.moments {
            around.offer(&item, 2 * self.limits.items_of_moment);
        }
        if self.recent.len() >= self.limits.items_of_moment {
            self.recent.pop_front();
        }
        self.recent.push_back(item);
        if self.windows.is_none_or(|windows| windows.touch(start_ns, end_ns)) {
            self.kept.push(item);
        }
        while self.kept.len() > self.limits.items && self.windows.is_none_or(|windows| windows.length_ns > 0) {
            self.thin();
        }
    }

    fn thin(&mut self) {
        let elapsed_ns = self.end_ns.saturating_sub(self.start_ns).max(WINDOWS);
        let windows = match self.windows {
            None => {
                let length_ns = (elapsed_ns / WINDOWS).next_power_of_two();
                Windows {
                    period_ns: 2 * length_ns,
                    length_ns,
                }
            }
            // Too few windows for a longer period: halve their length instead.
            Some(windows) if elapsed_ns / windows.period_ns < WINDOWS / 4 && windows.length_ns > 1 => windows.shorter(),
            Some(windows) => windows.rarer(),
        };
        self.keep_only(windows);
    }

    fn keep_only(&mut self, windows: Windows) {
        self.windows = Some(windows);
        self.kept.retain(|item| {
            let (start_ns, end_ns) = item.time();
            windows.touch(start_ns, end_ns)
        });
    }

    /// Keeps an interval as a moment if it is one of the longest of its kind.
    fn note_moment(&mut self, kind: MomentKind, lane: u32, span: &Span) {
        let ns = span.end_ns - span.start_ns;
        let of_kind = |around: &&Around| around.moment.kind == kind;
        if self.moments.iter().filter(of_kind).count() == self.limits.moments {
            let shortest = self.moments.iter().enumerate().filter(|(_, around)| of_kind(around));
            let Some((shortest, than_ns)) = shortest
                .map(|(index, around)| (index, around.moment.ns()))
                .min_by_key(|&(_, ns)| ns)
            else {
                return;
            };
            if ns <= than_ns {
                return;
            }
            self.moments.swap_remove(shortest);
        }
        // Long enough to show what caused the interval and what followed it.
        let margin_ns = (ns / 4).max(20_000);
        let mut around = Around {
            moment: Moment {
                kind,
                lane,
                start_ns: span.start_ns,
                end_ns: span.end_ns,
                task: span.task,
            },
            from_ns: span.start_ns.saturating_sub(margin_ns),
            to_ns: span.end_ns.saturating_add(margin_ns),
            items: Vec::new(),
        };
        if self.recent.len() >= self.limits.items_of_moment {
            // Nothing before the oldest recent item is available.
            let oldest_ns = self.recent.front().map_or(0, |item| item.time().1);
            around.from_ns = around.from_ns.max(oldest_ns);
        }
        for item in &self.recent {
            around.offer(item, 2 * self.limits.items_of_moment);
        }
        self.moments.push(around);
    }

    /// Returns the reduced timeline.
    #[must_use]
    pub fn finish(mut self) -> Lanes {
        let start_ns = self.start_ns.min(self.end_ns);
        while let Some(windows) = self.windows
            && windows.number(start_ns, self.end_ns) >= MOST_WINDOWS
        {
            self.keep_only(windows.rarer());
        }
        let mut exact = self.exact(start_ns);
        let is_exact = exact == [(start_ns, self.end_ns)];
        if !is_exact {
            for around in &mut self.moments {
                self.kept.append(&mut around.items);
            }
        }
        exact.sort_unstable();
        let (places, lanes) = self.choose();
        let mut lanes = Lanes {
            cell_ns: 1 << self.shift,
            start_ns,
            end_ns: self.end_ns,
            left_out: self.left_out + (self.lanes.len() - lanes.len()) as u64,
            lanes,
            exact: joined(&exact),
            is_exact,
            wakes: Vec::new(),
            moments: Vec::new(),
            tasks: self.tasks,
        };
        add_items(&mut lanes, &self.kept, &places);
        let moments = self.moments.iter().filter_map(|around| {
            let lane = places[around.moment.lane as usize]?;
            Some(Moment { lane, ..around.moment })
        });
        lanes.moments = moments.collect();
        lanes
            .moments
            .sort_by_key(|moment| (moment.kind, std::cmp::Reverse(moment.ns()), moment.start_ns));
        lanes
    }

    /// The periods in which all intervals and wakeups are kept.
    fn exact(&self, start_ns: u64) -> Vec<(u64, u64)> {
        let Some(windows) = self.windows else {
            return vec![(start_ns, self.end_ns)];
        };
        let numbers = start_ns / windows.period_ns..=self.end_ns / windows.period_ns;
        let window = |number: u64| {
            let from_ns = number * windows.period_ns;
            (
                from_ns.max(start_ns),
                from_ns.saturating_add(windows.length_ns).min(self.end_ns),
            )
        };
        let around = |around: &Around| (around.from_ns.max(start_ns), around.to_ns.min(self.end_ns));
        numbers
            .map(window)
            .chain(self.moments.iter().map(around))
            .filter(|(from_ns, to_ns)| from_ns < to_ns)
            .collect()
    }

    /// Chooses the lanes of the result. Returns for each existing lane its index in the result, if it is there, and the chosen
    /// lanes.
    fn choose(&mut self) -> (Vec<Option<u32>>, Vec<Lane>) {
        let mut busiest: Vec<usize> = (0..self.lanes.len()).collect();
        busiest.sort_by_key(|&index| (std::cmp::Reverse(self.lanes[index].busy_ns()), index));
        busiest.truncate(self.limits.lanes);
        busiest.sort_by_key(|&index| {
            let lane = &self.lanes[index];
            (lane.tgid, lane.tid, lane.start_boottime_ns)
        });
        let mut places = vec![None; self.lanes.len()];
        let mut lanes = Vec::with_capacity(busiest.len());
        for (place, &index) in busiest.iter().enumerate() {
            places[index] = Some(place as u32);
            lanes.push(std::mem::take(&mut self.lanes[index]));
        }
        // Each chosen lane left an empty lane behind, so the length of `self.lanes` is unchanged.
        (places, lanes)
    }
}

/// Merges periods that overlap or touch. They must be sorted by their beginnings.
fn joined(pieces: &[(u64, u64)]) -> Vec<(u64, u64)> {
    let mut joined: Vec<(u64, u64)> = Vec::new();
    for &(from_ns, to_ns) in pieces {
        match joined.last_mut() {
            Some(last) if from_ns <= last.1 => last.1 = last.1.max(to_ns),
            _ => joined.push((from_ns, to_ns)),
        }
    }
    joined
}

/// Adds the kept intervals and wakeups to the result, in order and without duplicates.
fn add_items(lanes: &mut Lanes, items: &[Item], places: &[Option<u32>]) {
    for item in items {
        match *item {
            Item::Span { lane, span } => {
                if let Some(place) = places[lane as usize] {
                    lanes.lanes[place as usize].spans.push(span);
                }
            }
            Item::LaneWakeup(wake) => {
                if let Some(to) = places[wake.to as usize] {
                    let from = wake.from.and_then(|from| places[from as usize]);
                    lanes.wakes.push(LaneWakeup { from, to, ..wake });
                }
            }
        }
    }
    for lane in &mut lanes.lanes {
        lane.spans.sort_by_key(|span| (span.start_ns, span.end_ns));
        lane.spans.dedup();
    }
    lanes.wakes.sort_by_key(|wake| (wake.at_ns, wake.to, wake.from));
    lanes.wakes.dedup();
}
/// The state as which an interval is drawn.
fn shown(interval: &Interval) -> Shown {
    let has_class = |class: Class| interval.reason == 0 && interval.class == class as u8;
    match interval.state {
        State::OnCpu => Shown::OnCpu,
        State::RunQueue => Shown::RunQueue,
        State::Blocked if has_class(Class::WorkerParked) || has_class(Class::PoolIdle) => Shown::Parked,
        State::Blocked => Shown::Blocked,
        State::Off => Shown::Off,
    }
}

impl IntervalSink for LanesBuilder {
    fn interval(&mut self, interval: &Interval) {
        if interval.start_ns >= interval.end_ns {
            return;
        }
        self.start_ns = self.start_ns.min(interval.start_ns);
        self.end_ns = self.end_ns.max(interval.end_ns);
        let Some(lane) = self.lane(interval.thread) else {
            return;
        };
        let span = Span {
            start_ns: interval.start_ns,
            end_ns: interval.end_ns,
            shown: shown(interval),
            class: interval.class,
            cpu: interval.cpu,
            task: self.task(interval.task, interval.image),
        };
        // An on-CPU interval that ended with a switch-out has a class. One that was cut off at the end of the timeline has none.
        self.add_to_cells(lane, &span, span.shown == Shown::OnCpu && span.class != 0);
        self.keep(Item::Span { lane, span });
        let in_a_poll = interval.reason == 0 && interval.class == Class::TaskBlocked as u8;
        match interval.state {
            State::RunQueue => self.note_moment(MomentKind::LongWait, lane, &span),
            State::Blocked if in_a_poll => self.note_moment(MomentKind::LongBlock, lane, &span),
            _ => {}
        }
    }

    fn woken(&mut self, woken: &Woken) {
        // A wakeup without effect has ended no sleep.
        let (Some(thread), Some(_)) = (woken.thread, woken.noted) else {
            return;
        };
        let Some(to) = self.lane(thread) else { return };
        let waker = &woken.waker;
        // The thread that an interrupt interrupted did not make the wakeup.
        let by_a_thread = WakeupOrigin::from_number(waker.origin) != WakeupOrigin::Interrupt && waker.tid != 0;
        let from = by_a_thread.then(|| self.lane_of_tid.get(&waker.tid).copied()).flatten();
        let wake = LaneWakeup {
            at_ns: woken.at_ns,
            from,
            to,
            origin: waker.origin as u8,
            task: self.task(waker.task(), waker.program()),
        };
        self.keep(Item::LaneWakeup(wake));
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use ctxtrace_common::wakeup::Waker;
    use ctxtrace_format::lanes::Cell;

    use super::*;
    use crate::fixtures::woken;

    const LIMITS: Limits = Limits {
        threads: 8,
        lanes: 8,
        cells: 1 << 12,
        items: 10_000,
        tasks: 4,
        moments: 2,
        items_of_moment: 50,
    };

    fn thread(tid: u32) -> ThreadId {
        ThreadId {
            tid,
            tgid: 100,
            start_boottime_ns: 1,
        }
    }

    fn interval(tid: u32, state: State, class: Class, start_ns: u64, end_ns: u64) -> Interval {
        Interval {
            thread: thread(tid),
            state,
            start_ns,
            end_ns,
            image: Image { tgid: 100, number: 0 },
            task: u64::from(tid),
            class: class as u8,
            reason: 0,
            throttled: false,
            cpu: Some(0),
            before: None,
        }
    }

    /// Builds from drawn threads, with columns of 1,024 ns: `=` on a CPU, `-` in a run queue, `p` parked, `.` asleep in a poll,
    /// `?` off; other characters are gaps. The intervals arrive in the order in which they end.
    fn drawn(limits: Limits, lines: &[&str]) -> LanesBuilder {
        let mut intervals = Vec::new();
        for (line, tid) in lines.iter().zip(1..) {
            let marks: Vec<char> = line.chars().collect();
            let mut start = 0;
            for run in marks.chunk_by(|a, b| a == b) {
                let end = start + run.len() as u64;
                let (state, class) = match run[0] {
                    '=' => (State::OnCpu, Class::TaskBlocked),
                    '-' => (State::RunQueue, Class::TaskPreempted),
                    'p' => (State::Blocked, Class::WorkerParked),
                    '.' => (State::Blocked, Class::TaskBlocked),
                    '?' => (State::Off, Class::TaskBlocked),
                    _ => {
                        start = end;
                        continue;
                    }
                };
                intervals.push(interval(tid, state, class, 1_024 * start, 1_024 * end));
                start = end;
            }
        }
        intervals.sort_by_key(|interval| interval.end_ns);
        let mut builder = LanesBuilder::new(limits);
        for interval in &intervals {
            builder.interval(interval);
        }
        builder
    }

    /// Draws a lane with one character for each cell: that of the state with the most time.
    fn marks(lane: &Lane) -> String {
        let mark = |cell: &Cell| {
            let most = (0..Shown::COUNT).max_by_key(|&state| (cell.ns[state], Shown::COUNT - state));
            match most {
                Some(state) if cell.ns[state] > 0 => ['=', '-', 'p', '.', '?'][state],
                _ => ' ',
            }
        };
        lane.cells.iter().map(mark).collect()
    }

    #[test]
    fn a_lane_is_what_was_drawn() {
        let lanes = drawn(LIMITS, &["==-=pp..??", "   ===  ="]).finish();
        assert_eq!(marks(&lanes.lanes[0]), "==-=pp..??");
        assert_eq!(marks(&lanes.lanes[1]), "===  =", "from its first event on");
        assert_eq!((lanes.lanes[0].first_cell, lanes.lanes[1].first_cell), (0, 3));
        assert_eq!((lanes.cell_ns, lanes.start_ns, lanes.end_ns), (1_024, 0, 10_240));
        assert_eq!(lanes.exact, [(0, 10_240)]);
        assert!(lanes.is_exact);
        let states: Vec<Shown> = lanes.lanes[0].spans.iter().map(|span| span.shown).collect();
        assert_eq!(
            states,
            [
                Shown::OnCpu,
                Shown::RunQueue,
                Shown::OnCpu,
                Shown::Parked,
                Shown::Blocked,
                Shown::Off
            ]
        );
        assert_eq!(lanes.lanes[0].cells.iter().map(|cell| cell.switches).sum::<u32>(), 2);
    }

    #[test]
    fn cells_become_longer_and_stay_exact_sums() {
        let few = Limits { cells: 8, ..LIMITS };
        let lanes = drawn(few, &["=-=-=-=-........", " =======--------"]).finish();
        assert_eq!(lanes.cell_ns, 4_096);
        let ns = |lane: usize, cell: usize| lanes.lanes[lane].cells[cell].ns;
        assert_eq!(ns(0, 0), [2_048, 2_048, 0, 0, 0]);
        assert_eq!(ns(0, 2), [0, 0, 0, 4_096, 0]);
        assert_eq!(ns(1, 0), [3_072, 0, 0, 0, 0], "its first column is a gap");
        assert_eq!(lanes.lanes[0].cells[0].switches, 2);
    }

    #[test]
    fn a_long_sleep_does_not_need_room_for_itself() {
        let mut builder = LanesBuilder::new(LIMITS);
        builder.interval(&interval(1, State::OnCpu, Class::ThreadBlocked, 1_000, 2_000));
        let hour = 3_600_000_000_000;
        builder.interval(&interval(1, State::Blocked, Class::ThreadBlocked, 2_000, hour));
        let lanes = builder.finish();
        assert!(lanes.lanes[0].cells.len() <= LIMITS.cells);
        let total: u64 = lanes.lanes[0].cells.iter().flat_map(|cell| cell.ns).sum();
        assert_eq!(total, hour - 1_000);
    }

    #[test]
    fn an_interval_from_years_before_its_lane_is_added_to_the_first_cell() {
        let mut builder = LanesBuilder::new(LIMITS);
        let year = 365 * 24 * 3_600 * 1_000_000_000;
        builder.interval(&interval(1, State::OnCpu, Class::ThreadBlocked, year, year + 1_024));
        builder.interval(&interval(1, State::Blocked, Class::ThreadBlocked, 0, year));
        let lanes = builder.finish();
        assert_eq!(lanes.lanes[0].cells[0].ns.into_iter().max(), Some(year));
    }

    #[test]
    fn the_task_of_a_cell_is_the_one_that_ran_most_of_it() {
        let mut cell = Cell::default();
        for (task, ns) in [(1, 300), (2, 200), (1, 300), (3, 250)] {
            cell.vote(task, ns);
        }
        assert_eq!(cell.task, 1);
        let mut other = Cell::default();
        other.vote(2, 5_000);
        cell.add(&other);
        assert_eq!(cell.task, 2);
    }

    #[test]
    fn wakeups_have_both_ends_and_interrupts_have_one() {
        let mut builder = drawn(LIMITS, &["==", "..="]);
        let by = |origin: WakeupOrigin, tid| Waker {
            origin: origin as u32,
            tid,
            ..Waker::default()
        };
        builder.woken(&woken(1_500, thread(2), &by(WakeupOrigin::Thread, 1)));
        builder.woken(&woken(1_600, thread(2), &by(WakeupOrigin::Interrupt, 1)));
        builder.woken(&woken(1_700, thread(2), &by(WakeupOrigin::Outside, 77)));
        let ends: Vec<_> = builder.finish().wakes.iter().map(|wake| (wake.from, wake.to)).collect();
        assert_eq!(ends, [(Some(0), 1), (None, 1), (None, 1)]);
    }

    /// Two threads that run in turn, for 1,024 ns each.
    fn ping_pong(limits: Limits, turns: u64) -> Lanes {
        let mut builder = LanesBuilder::new(limits);
        for turn in 0..turns {
            let (tid, at_ns) = (turn as u32 % 2 + 1, 1_024 * turn);
            builder.interval(&interval(
                3 - tid,
                State::Blocked,
                Class::ThreadBlocked,
                at_ns.saturating_sub(1_024),
                at_ns,
            ));
            builder.interval(&interval(tid, State::OnCpu, Class::ThreadBlocked, at_ns, at_ns + 1_024));
            let waker = Waker {
                tid,
                origin: WakeupOrigin::Thread as u32,
                ..Waker::default()
            };
            builder.woken(&woken(at_ns + 1_000, thread(3 - tid), &waker));
        }
        builder.finish()
    }

    #[test]
    fn what_is_kept_of_a_long_timeline_is_all_that_there_is_in_its_windows() {
        let lanes = ping_pong(Limits { items: 600, ..LIMITS }, 20_000);
        assert!(!lanes.is_exact);
        let items = lanes.wakes.len() + lanes.lanes.iter().map(|lane| lane.spans.len()).sum::<usize>();
        assert!((100..=600).contains(&items), "{items}");
        assert!((8..=64).contains(&lanes.exact.len()), "{:?}", lanes.exact);
        for &(from_ns, to_ns) in &lanes.exact {
            for lane in &lanes.lanes {
                let inside = lane
                    .spans
                    .iter()
                    .filter(|span| span.end_ns > from_ns && span.start_ns < to_ns);
                let covered: u64 = inside
                    .map(|span| span.end_ns.min(to_ns) - span.start_ns.max(from_ns))
                    .sum();
                assert!(covered + 2_048 >= to_ns - from_ns, "{covered} of {from_ns} to {to_ns}");
            }
        }
    }

    #[test]
    fn the_longest_waits_are_found_with_what_was_around_them() {
        let mut builder = LanesBuilder::new(Limits { items: 600, ..LIMITS });
        let mut at_ns = 0;
        for turn in 0..20_000_u64 {
            let wait_ns = if turn == 12_345 { 700_000 } else { 500 + turn % 7 };
            builder.interval(&interval(
                1,
                State::RunQueue,
                Class::TaskPreempted,
                at_ns,
                at_ns + wait_ns,
            ));
            builder.interval(&interval(
                1,
                State::OnCpu,
                Class::TaskPreempted,
                at_ns + wait_ns,
                at_ns + wait_ns + 1_000,
            ));
            at_ns += wait_ns + 1_000;
        }
        let lanes = builder.finish();
        assert_eq!(lanes.moments.len(), 2);
        let longest = lanes.moments[0];
        assert_eq!((longest.ns(), longest.kind), (700_000, MomentKind::LongWait));
        let around = |&&(from_ns, to_ns): &&(u64, u64)| from_ns < longest.start_ns && longest.end_ns < to_ns;
        let &(from_ns, to_ns) = lanes.exact.iter().find(around).expect("a window around it");
        let neighbours = lanes.lanes[0]
            .spans
            .iter()
            .filter(|span| span.end_ns > from_ns && span.start_ns < to_ns);
        assert!(neighbours.count() > 10, "too few intervals around the longest one");
    }

    #[test]
    fn threads_without_room_are_counted() {
        let few = Limits {
            threads: 3,
            lanes: 2,
            ..LIMITS
        };
        let lanes = drawn(few, &["=", "===", "==", "    =", "    ="]).finish();
        let tids: Vec<u32> = lanes.lanes.iter().map(|lane| lane.tid).collect();
        assert_eq!(
            (tids, lanes.left_out),
            (vec![2, 3], 3),
            "the busiest threads, ordered by id"
        );
    }

    #[test]
    fn tasks_beyond_the_table_share_a_number() {
        let mut builder = LanesBuilder::new(LIMITS);
        let image = Image { tgid: 1, number: 0 };
        let numbers: Vec<u32> = [7, 8, 7, 9, 10, 11, 12, 8]
            .map(|task| builder.task(task, image))
            .to_vec();
        assert_eq!(numbers, [1, 2, 1, 3, 4, 5, 5, 2]);
        assert_eq!(builder.finish().tasks.len(), 5);
    }

    #[test]
    fn times_that_step_back_and_times_at_the_end_of_the_clock_do_no_harm() {
        let mut builder = LanesBuilder::new(LIMITS);
        let mut add = |start_ns, end_ns| {
            builder.interval(&interval(1, State::OnCpu, Class::TaskBlocked, start_ns, end_ns));
            builder.interval(&interval(2, State::RunQueue, Class::TaskBlocked, start_ns, end_ns));
        };
        add(1 << 20, (1 << 20) + 5_000);
        add(100, 3_000);
        add(u64::MAX - 9_000, u64::MAX);
        add(0, u64::MAX);
        add(5, 6);
        let lanes = builder.finish();
        assert!(lanes.lanes[0].cells.len() <= LIMITS.cells);
        let total: u64 = lanes.lanes[0]
            .cells
            .iter()
            .flat_map(|cell| cell.ns)
            .fold(0, u64::saturating_add);
        assert_eq!(total, u64::MAX, "the sum saturates, and no other time is lost");
    }

    #[test]
    fn any_number_of_wakeups_at_one_instant_keeps_the_windows_sound() {
        let mut builder = LanesBuilder::new(Limits { items: 50, ..LIMITS });
        let waker = Waker::default();
        for _ in 0..200 {
            builder.woken(&woken(0, thread(2), &waker));
        }
        assert!(builder.kept.len() <= 50);
        let lanes = builder.finish();
        assert!(!lanes.is_exact);
        assert!(lanes.exact.is_empty(), "no window is complete");
    }

    #[test]
    fn windows_up_to_a_far_event_are_not_without_number() {
        let mut builder = LanesBuilder::new(Limits { items: 600, ..LIMITS });
        for turn in 0..5_000 {
            builder.interval(&interval(
                1,
                State::OnCpu,
                Class::TaskBlocked,
                1_000 * turn,
                1_000 * turn + 500,
            ));
        }
        builder.interval(&interval(1, State::Blocked, Class::TaskBlocked, 1 << 60, u64::MAX - 1));
        let lanes = builder.finish();
        assert!(lanes.exact.len() as u64 <= MOST_WINDOWS + 2 * 2 * LIMITS.moments as u64);
        assert!(!lanes.is_exact);
    }

    proptest! {
        /// For any times the result is within its limits.
        #[test]
        fn no_times_make_it_panic(
            times in prop::collection::vec((any::<(u64, u64)>(), 0_u32..64, 0_u32..64, 1_u32..4, any::<bool>()), 1..200),
            items in 10_usize..60,
        ) {
            let mut builder = LanesBuilder::new(Limits { cells: 64, items, ..LIMITS });
            for ((start, end), low, high, tid, wakes) in times {
                let (start_ns, end_ns) = (start >> low, end >> high);
                if wakes {
                    builder.woken(&woken(start_ns, thread(tid), &Waker::default()));
                }
                builder.interval(&interval(tid, State::RunQueue, Class::TaskBlocked, start_ns, end_ns));
            }
            let lanes = builder.finish();
            prop_assert!(lanes.exact.len() as u64 <= MOST_WINDOWS + 64);
        }

        /// For any intervals the times in the cells add up to those of the intervals, and no limit is exceeded.
        #[test]
        fn nothing_is_lost_in_cells(
            lengths in prop::collection::vec((1_u64..50_000, 0_usize..5), 1..300),
            cells in 4_usize..200,
            items in 10_usize..400,
        ) {
            let mut builder = LanesBuilder::new(Limits { cells, items, ..LIMITS });
            let mut expected = [0; Shown::COUNT];
            let mut at_ns = 777;
            for (ns, state) in lengths {
                let (kind, class) = [
                    (State::OnCpu, Class::TaskBlocked),
                    (State::RunQueue, Class::TaskPreempted),
                    (State::Blocked, Class::PoolIdle),
                    (State::Blocked, Class::TaskBlocked),
                    (State::Off, Class::TaskBlocked),
                ][state];
                builder.interval(&interval(1, kind, class, at_ns, at_ns + ns));
                expected[state] += ns;
                at_ns += ns;
            }
            let lanes = builder.finish();
            let mut found = [0; Shown::COUNT];
            for cell in &lanes.lanes[0].cells {
                prop_assert!(cell.ns.iter().sum::<u64>() <= lanes.cell_ns);
                for (sum, ns) in found.iter_mut().zip(cell.ns) {
                    *sum += ns;
                }
            }
            prop_assert_eq!(found, expected);
            prop_assert!(lanes.lanes[0].cells.len() <= cells);
            let around = 2 * LIMITS.moments * 2 * LIMITS.items_of_moment;
            prop_assert!(lanes.lanes[0].spans.len() <= items + around);
            prop_assert!(lanes.exact.iter().zip(lanes.exact.iter().skip(1)).all(|(a, b)| a.1 < b.0));
        }
    }
}
