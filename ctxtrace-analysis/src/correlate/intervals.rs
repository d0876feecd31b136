//! The intervals of each thread in a timeline: on a CPU, blocked, in a run queue. They are emitted one by one as they end.
//!
//! From its first event on, the intervals of a thread follow one another without a gap, unless an event is lost:
//!
//! ```text
//!   … on CPU ─┬─ blocked ─┬─ run queue ─┬─ on CPU …
//!            out        wakeup          in
//! ```

use ctxtrace_common::clock::{Entered, NotedWakeup};
use ctxtrace_common::event::Out;
use ctxtrace_common::process::Image;
use ctxtrace_common::wakeup::Waker;

use ctxtrace_format::samples::{SamplePlace, Samples};

/// The identity of a thread. It stays unique when another thread gets the same thread id later.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ThreadId {
    /// `task_struct.start_boottime`, nanoseconds.
    pub start_boottime_ns: u64,
    /// Process id.
    pub tgid: u32,
    /// Thread id.
    pub tid: u32,
}

/// The state of a thread.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum State {
    /// On a CPU.
    OnCpu,
    /// Runnable, waiting for a CPU.
    RunQueue,
    /// Asleep.
    Blocked,
    /// Off the CPU. The time of its wakeup is unknown, so this is blocked time and run-queue time together.
    Off,
}

/// What occupied the CPU that a thread waited for, immediately before the thread's switch-in.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Before {
    /// The CPU was idle. The wait is the time that the CPU needs to leave its idle state and the kernel needs to switch to the
    /// thread.
    Idle,
    /// A thread of the target.
    Target,
    /// Another program or the kernel. In captures of versions that did not record whether the CPU was idle, also an idle CPU.
    Other,
}

/// One interval of one thread.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Interval {
    /// The thread.
    pub thread: ThreadId,
    /// The state of the thread in the interval.
    pub state: State,
    /// Beginning of the interval, `CLOCK_MONOTONIC` nanoseconds.
    pub start_ns: u64,
    /// End of the interval, `CLOCK_MONOTONIC` nanoseconds.
    pub end_ns: u64,
    /// The program that the thread ran.
    pub image: Image,
    /// The task that the thread polled at its switch-out, or 0. The switch-out is the end of an on-CPU interval, or the one
    /// before an off-CPU interval.
    pub task: u64,
    /// The ledger class of that switch-out, as in [`ctxtrace_common::stack::SumKey`].
    pub class: u8,
    /// The reason of that switch-out, as in [`ctxtrace_common::stack::SumKey`].
    pub reason: u8,
    /// Whether the CPU quota of the thread's cgroup caused that switch-out.
    pub throttled: bool,
    /// The CPU that the thread was on; for an off-CPU interval, the CPU that it was on last.
    pub cpu: Option<u16>,
    /// For a run-queue interval that ended with a switch-in, what occupied the CPU before.
    pub before: Option<Before>,
}

/// A switch-out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Departure {
    /// The thread.
    pub thread: ThreadId,
    /// The program that the thread ran.
    pub image: Image,
    /// Time of the switch-out, `CLOCK_MONOTONIC` nanoseconds.
    pub at_ns: u64,
    /// The CPU that the thread left.
    pub cpu: u16,
    /// How the thread left the CPU, and what it was doing.
    pub out: Out,
    /// The time that the thread had been on the CPU, nanoseconds; `None` if its switch-in was not recorded.
    pub on_cpu_ns: Option<u64>,
}

/// A switch-in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Arrival {
    /// The thread.
    pub thread: ThreadId,
    /// The CPU on which the thread runs now.
    pub cpu: u16,
    /// The intervals that the switch-in ended.
    pub entered: Entered,
}

/// A wakeup, whether the thread slept or not.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Woken {
    /// Id of the woken thread.
    pub tid: u32,
    /// The woken thread; `None` if no event has introduced it.
    pub thread: Option<ThreadId>,
    /// Time of the wakeup, `CLOCK_MONOTONIC` nanoseconds.
    pub at_ns: u64,
    /// The CPU on which the wakeup was made.
    pub cpu: u16,
    /// Which of the thread's two stored wakeups this one became; `None` if it had no effect.
    pub noted: Option<NotedWakeup>,
    /// Whether the thread had just been created.
    pub newborn: bool,
    /// The waker.
    pub waker: Waker,
}

/// Takes intervals as they end; those of one thread come in their order. The other methods take the events between the intervals,
/// and do nothing by default.
pub trait IntervalSink {
    /// Takes the next interval.
    fn interval(&mut self, interval: &Interval);

    /// Takes a switch-out. It is called even if the thread's switch-in was not recorded.
    fn left(&mut self, _departure: &Departure) {}

    /// Takes a switch-in.
    fn came(&mut self, _arrival: &Arrival) {}

    /// Takes a wakeup.
    fn woken(&mut self, _woken: &Woken) {}

    /// Takes a sample of what a thread does in its current on-CPU interval.
    fn sample(&mut self, _at_ns: u64, _place: SamplePlace) {}
}

/// Sends everything to both sinks.
impl<A: IntervalSink, B: IntervalSink> IntervalSink for (A, B) {
    fn interval(&mut self, interval: &Interval) {
        self.0.interval(interval);
        self.1.interval(interval);
    }

    fn left(&mut self, departure: &Departure) {
        self.0.left(departure);
        self.1.left(departure);
    }

    fn came(&mut self, arrival: &Arrival) {
        self.0.came(arrival);
        self.1.came(arrival);
    }

    fn woken(&mut self, woken: &Woken) {
        self.0.woken(woken);
        self.1.woken(woken);
    }

    fn sample(&mut self, at_ns: u64, place: SamplePlace) {
        self.0.sample(at_ns, place);
        self.1.sample(at_ns, place);
    }
}

impl<S: IntervalSink> IntervalSink for Option<S> {
    fn interval(&mut self, interval: &Interval) {
        if let Some(sink) = self {
            sink.interval(interval);
        }
    }

    fn sample(&mut self, at_ns: u64, place: SamplePlace) {
        if let Some(sink) = self {
            sink.sample(at_ns, place);
        }
    }

    fn left(&mut self, departure: &Departure) {
        if let Some(sink) = self {
            sink.left(departure);
        }
    }

    fn came(&mut self, arrival: &Arrival) {
        if let Some(sink) = self {
            sink.came(arrival);
        }
    }

    fn woken(&mut self, woken: &Woken) {
        if let Some(sink) = self {
            sink.woken(woken);
        }
    }
}

/// Collects the samples.
impl IntervalSink for Samples {
    fn interval(&mut self, _interval: &Interval) {}

    fn sample(&mut self, at_ns: u64, place: SamplePlace) {
        self.add(at_ns, place);
    }
}

/// Ignores everything.
impl IntervalSink for () {
    fn interval(&mut self, _interval: &Interval) {}
}

impl IntervalSink for Vec<Interval> {
    fn interval(&mut self, interval: &Interval) {
        self.push(*interval);
    }
}
