//! A timeline that is small enough to be drawn, whatever its duration. It shows what each thread did at two levels of detail.
//!
//! * [`Cell`]s cover the whole timeline. Each is a period of fixed length, a power of two in nanoseconds, with the thread's time
//!   in every state. The sum of two neighbours is a cell of twice the length, so a viewer can compute every coarser level.
//! * [`Span`]s and [`LaneWakeup`]s are the individual intervals and wakeups. They are complete only in the periods of [`Lanes::exact`]:
//!   the whole timeline if that is short, otherwise a number of evenly spaced windows, and one window around each of
//!   [`Lanes::moments`].
//!
//! `ctxtrace_analysis::correlate::lanes` builds this data while the events arrive.

use ctxtrace_common::process::TaskKey;

/// The state of a thread, as it is drawn.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
#[repr(u8)]
pub enum Shown {
    /// On a CPU.
    OnCpu = 0,
    /// Runnable, waiting for a CPU.
    RunQueue = 1,
    /// Asleep because there is no work: a worker of a runtime, or a thread of a blocking pool.
    Parked = 2,
    /// Asleep for another reason.
    Blocked = 3,
    /// Off the CPU. The time of its wakeup is unknown, so this is blocked time and run-queue time together.
    Off = 4,
}

impl Shown {
    /// Number of states.
    pub const COUNT: usize = 5;
}

/// What one thread did in one period of fixed length.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Cell {
    /// Nanoseconds in each state, indexed by [`Shown`]. If their sum is less than the cell's length, the state in the remaining
    /// time is unknown.
    pub ns: [u64; Shown::COUNT],
    /// Number of switch-outs in the cell.
    pub switches: u32,
    /// The task with the most on-CPU time: its index in [`Lanes::tasks`] plus one, or 0 if there is none. The time of an on-CPU
    /// interval counts for the task that was polled at its end. The result is certain only if one task has more than half of the
    /// time; otherwise it may be any of the tasks.
    pub task: u32,
    /// The counter of the majority vote (Boyer and Moore) that chooses `task`, nanoseconds.
    pub lead_ns: u64,
}

/// One interval of one thread.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Span {
    /// Beginning of the interval, `CLOCK_MONOTONIC` nanoseconds.
    pub start_ns: u64,
    /// End of the interval, `CLOCK_MONOTONIC` nanoseconds.
    pub end_ns: u64,
    /// The state of the thread.
    pub shown: Shown,
    /// The ledger class, as in `SumKey`, of the switch-out that ended an on-CPU interval or began an off-CPU interval.
    pub class: u8,
    /// The CPU that the thread was on; for an off-CPU interval, the CPU that it was on last.
    pub cpu: Option<u16>,
    /// The task that was polled at that switch-out: its index in [`Lanes::tasks`] plus one, or 0 if there was none.
    pub task: u32,
}

/// One wakeup that may have ended a sleep.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LaneWakeup {
    /// Time of the wakeup, `CLOCK_MONOTONIC` nanoseconds.
    pub at_ns: u64,
    /// The lane of the thread that made the wakeup, if it has a lane.
    pub from: Option<u32>,
    /// The lane of the woken thread.
    pub to: u32,
    /// The origin of the wakeup, as the number of an `Origin`.
    pub origin: u8,
    /// The task that made the wakeup: its index in [`Lanes::tasks`] plus one, or 0 if there was none.
    pub task: u32,
}

/// The timeline of one thread.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Lane {
    /// Thread id.
    pub tid: u32,
    /// Process id.
    pub tgid: u32,
    /// `task_struct.start_boottime`, nanoseconds.
    pub start_boottime_ns: u64,
    /// Number of the first cell in `cells`, counted from cell 0 of the whole timeline.
    pub first_cell: u64,
    /// The cells from the thread's first event to its last, without a gap.
    pub cells: Vec<Cell>,
    /// The intervals that overlap [`Lanes::exact`], in the order of their times.
    pub spans: Vec<Span>,
}

/// The kind of a notable interval.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum MomentKind {
    /// A thread waited for a CPU for a long time.
    LongWait,
    /// A thread slept for a long time while it polled a task.
    LongBlock,
}

/// One of the longest intervals of its kind.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Moment {
    /// The kind of the interval.
    pub kind: MomentKind,
    /// The thread's lane.
    pub lane: u32,
    /// Beginning of the interval, `CLOCK_MONOTONIC` nanoseconds.
    pub start_ns: u64,
    /// End of the interval, `CLOCK_MONOTONIC` nanoseconds.
    pub end_ns: u64,
    /// The task that was polled at the thread's switch-out: its index in [`Lanes::tasks`] plus one, or 0 if there was none.
    pub task: u32,
}

/// A timeline of a size that can be drawn; see the module's documentation.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Lanes {
    /// Length of a cell in nanoseconds, a power of two. Cell 0 begins at time 0 of `CLOCK_MONOTONIC`.
    pub cell_ns: u64,
    /// Beginning of the first interval, `CLOCK_MONOTONIC` nanoseconds.
    pub start_ns: u64,
    /// End of the last interval, `CLOCK_MONOTONIC` nanoseconds.
    pub end_ns: u64,
    /// The threads, ordered by process id and thread id.
    pub lanes: Vec<Lane>,
    /// Number of threads that have no lane, because there was no room.
    pub left_out: u64,
    /// The periods in which spans and wakeups are complete, as beginning and end in `CLOCK_MONOTONIC` nanoseconds, in order and
    /// without overlaps.
    pub exact: Vec<(u64, u64)>,
    /// Whether spans and wakeups are complete in the whole timeline.
    pub is_exact: bool,
    /// The wakeups, in the order of their times.
    pub wakes: Vec<LaneWakeup>,
    /// The longest intervals of each kind, the longest first.
    pub moments: Vec<Moment>,
    /// The tasks that cells, spans, wakeups and moments refer to.
    pub tasks: Vec<TaskKey>,
}

impl Moment {
    /// Duration in nanoseconds.
    #[must_use]
    pub fn ns(&self) -> u64 {
        self.end_ns.saturating_sub(self.start_ns)
    }
}

impl Lane {
    /// Number of cells of 2^`shift` ns that must be added for this interval.
    #[must_use]
    pub fn missing(&self, span: &Span, shift: u32) -> usize {
        let (first, last) = (span.start_ns >> shift, (span.end_ns - 1) >> shift);
        let begun = if self.cells.is_empty() { first } else { self.first_cell };
        ((last + 1).saturating_sub(begun + self.cells.len() as u64)) as usize
    }

    /// Adds the cells that are missing for this interval.
    pub fn extend(&mut self, span: &Span, shift: u32) {
        if self.cells.is_empty() {
            self.first_cell = span.start_ns >> shift;
        }
        let missing = self.missing(span, shift);
        self.cells.resize(self.cells.len() + missing, Cell::default());
    }

    /// Makes the cells twice as long.
    pub fn coarsen(&mut self) {
        if self.cells.is_empty() {
            return;
        }
        let odd = self.first_cell % 2 == 1;
        let mut coarse = Vec::with_capacity(self.cells.len() / 2 + 1);
        let mut rest = self.cells.as_slice();
        if odd {
            coarse.push(rest[0]);
            rest = &rest[1..];
        }
        for pair in rest.chunks(2) {
            let mut sum = pair[0];
            if let Some(second) = pair.get(1) {
                sum.add(second);
            }
            coarse.push(sum);
        }
        self.first_cell /= 2;
        self.cells = coarse;
    }

    /// The time on a CPU and in a run queue, nanoseconds.
    #[must_use]
    pub fn busy_ns(&self) -> u64 {
        let busy = |cell: &Cell| cell.ns[Shown::OnCpu as usize].saturating_add(cell.ns[Shown::RunQueue as usize]);
        self.cells.iter().map(busy).fold(0, u64::saturating_add)
    }
}

impl Cell {
    /// Adds another cell.
    pub fn add(&mut self, other: &Self) {
        for (mine, theirs) in self.ns.iter_mut().zip(&other.ns) {
            *mine = mine.saturating_add(*theirs);
        }
        self.switches = self.switches.saturating_add(other.switches);
        if other.task != 0 {
            self.vote(other.task, other.lead_ns);
        }
    }

    /// Counts time of a task for the majority vote that chooses the task of the cell: the algorithm of Boyer and Moore,
    /// weighted by time.
    pub fn vote(&mut self, task: u32, ns: u64) {
        if self.task == task {
            self.lead_ns = self.lead_ns.saturating_add(ns);
        } else if self.task == 0 || ns > self.lead_ns {
            self.lead_ns = if self.task == 0 { ns } else { ns - self.lead_ns };
            self.task = task;
        } else {
            self.lead_ns -= ns;
        }
    }
}
