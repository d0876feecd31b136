//! A timeline small enough to be drawn, whatever its length: what each thread did, in two depths.
//!
//! * [`Cell`]s cover all of it: equal pieces of time, a power of two of nanoseconds long, each with the thread's time in every
//!   state. Two neighbours added up are a cell of twice the length, so whoever draws has every coarser level too.
//! * [`Span`]s and [`Wake`]s are the intervals and wakings themselves. They are all there in [`Lanes::exact`], which is the whole
//!   timeline if that is short, else windows of it: some evenly spread, and one around each of [`Lanes::moments`].
//!
//! `correlate::lanes` makes them from events as they come.

use ctxtrace_common::process::TaskKey;

/// Where a thread is, as it is drawn.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
#[repr(u8)]
pub enum Shown {
    /// On a CPU.
    OnCpu = 0,
    /// Ready to run, and waiting for a CPU.
    RunQueue = 1,
    /// Asleep because there is nothing to do: a runtime's worker, or a pool's thread.
    Parked = 2,
    /// Asleep for another reason.
    Blocked = 3,
    /// Off the CPU; when somebody woke it is not known.
    Off = 4,
}

impl Shown {
    /// How many there are.
    pub const COUNT: usize = 5;
}

/// A piece of time of one thread.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Cell {
    /// Nanoseconds in each state, by [`Shown`]. What they lack of the cell's length is not told.
    pub ns: [u64; Shown::COUNT],
    /// Switch-outs in it.
    pub switches: u32,
    /// If one task was polled at the ends of more than half of its time on a CPU, that one: its index in [`Lanes::tasks`] plus
    /// one. Of others it may be any, and of none it is 0.
    pub task: u32,
    /// How much more that task has of that time than all others.
    pub lead_ns: u64,
}

/// One interval of one thread.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Span {
    /// From when, `CLOCK_MONOTONIC` nanoseconds.
    pub start_ns: u64,
    /// To when.
    pub end_ns: u64,
    /// Where it was.
    pub shown: Shown,
    /// The class of the ledger of the switch-out that ends it (on the CPU) or began it, as in `SumKey`.
    pub class: u8,
    /// The CPU it was on; the one it waited for or slept after, if it was not.
    pub cpu: Option<u16>,
    /// The task that was polled at that switch-out: its index in [`Lanes::tasks`] plus one, or 0.
    pub task: u32,
}

/// One waking that ended a sleep.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Wake {
    /// When it was made, `CLOCK_MONOTONIC` nanoseconds.
    pub at_ns: u64,
    /// The lane of the thread that made it, if it has one.
    pub from: Option<u32>,
    /// The lane of the thread that was woken.
    pub to: u32,
    /// An `Origin`.
    pub origin: u8,
    /// The task that made it: its index in [`Lanes::tasks`] plus one, or 0.
    pub task: u32,
}

/// A thread's part of the picture.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Lane {
    /// Thread id.
    pub tid: u32,
    /// Process id.
    pub tgid: u32,
    /// `task_struct.start_boottime`, nanoseconds.
    pub start_boottime_ns: u64,
    /// Which cell of the whole timeline is the first of these.
    pub first_cell: u64,
    /// From its first event to its last, without a gap.
    pub cells: Vec<Cell>,
    /// Those that touch [`Lanes::exact`], in their order.
    pub spans: Vec<Span>,
}

/// Why an instant is worth a look.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum MomentKind {
    /// A thread waited long for a CPU.
    LongWait,
    /// A thread slept long while it polled a task.
    LongBlock,
}

/// One of the longest intervals of its kind.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Moment {
    /// Why.
    pub kind: MomentKind,
    /// The thread's lane.
    pub lane: u32,
    /// From when, `CLOCK_MONOTONIC` nanoseconds.
    pub start_ns: u64,
    /// To when.
    pub end_ns: u64,
    /// The task that was polled when the thread left the CPU: its index in [`Lanes::tasks`] plus one, or 0.
    pub task: u32,
}

/// See the text of this module.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Lanes {
    /// Length of a cell, a power of two. Cell 0 begins at instant 0 of `CLOCK_MONOTONIC`.
    pub cell_ns: u64,
    /// When the first thing in it begins, `CLOCK_MONOTONIC` nanoseconds.
    pub start_ns: u64,
    /// When the last one ends.
    pub end_ns: u64,
    /// The threads, by process and id.
    pub lanes: Vec<Lane>,
    /// Threads for which there was no room.
    pub left_out: u64,
    /// Where spans and wakings are all there: from when to when, in order, apart from one another.
    pub exact: Vec<(u64, u64)>,
    /// Whether that is all of it.
    pub is_exact: bool,
    /// Wakings, in the order of their times.
    pub wakes: Vec<Wake>,
    /// The longest intervals of their kinds, the longest first.
    pub moments: Vec<Moment>,
    /// The tasks.
    pub tasks: Vec<TaskKey>,
}
