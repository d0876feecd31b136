//! What each thread did from when to when: the intervals that a timeline consists of, told one by one as they end.
//!
//! The intervals of a thread follow one another without a gap, from its first event on, for as long as nothing is lost:
//!
//! ```text
//!   … on CPU ─┬─ blocked ─┬─ run queue ─┬─ on CPU …
//!            out        waking          in
//! ```

use ctxtrace_common::clock::{Entered, Waking};
use ctxtrace_common::event::Out;
use ctxtrace_common::process::Image;
use ctxtrace_common::wakeup::Waker;

use crate::trace::samples::{Place, Samples};

/// A thread, whatever other thread has its id later.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ThreadId {
    /// `task_struct.start_boottime`, nanoseconds.
    pub start_boottime_ns: u64,
    /// Process id.
    pub tgid: u32,
    /// Thread id.
    pub tid: u32,
}

/// Where a thread is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum State {
    /// On a CPU.
    OnCpu,
    /// Ready to run, and waiting for a CPU.
    RunQueue,
    /// Asleep.
    Blocked,
    /// Off the CPU; when somebody woke it is not known.
    Off,
}

/// Who had the CPU that a thread waited for, up to the moment the thread got it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Before {
    /// Nobody: the wait is what it takes a CPU to wake up, and the kernel to get to the thread.
    Idle,
    /// A thread of the target.
    Target,
    /// Another program, or the kernel itself; or, in captures of versions before this was told, perhaps nobody.
    Other,
}

/// One interval of one thread.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Interval {
    /// The thread.
    pub thread: ThreadId,
    /// Where it was.
    pub state: State,
    /// From when, `CLOCK_MONOTONIC` nanoseconds.
    pub start_ns: u64,
    /// To when.
    pub end_ns: u64,
    /// The program it ran.
    pub image: Image,
    /// The task it polled when it left the CPU, or 0: at the end of an interval on the CPU, before one off it.
    pub task: u64,
    /// The class of the ledger of that switch-out, as in [`ctxtrace_common::stack::SumKey`].
    pub class: u8,
    /// And its reason.
    pub reason: u8,
    /// It was made for the CPU quota of the thread's cgroup.
    pub throttled: bool,
    /// The CPU it was on, or was on last.
    pub cpu: Option<u16>,
    /// Of a wait for a CPU that has ended: who had that CPU.
    pub before: Option<Before>,
}

/// A thread has left its CPU.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Departure {
    /// The thread.
    pub thread: ThreadId,
    /// The program it ran.
    pub image: Image,
    /// When.
    pub at_ns: u64,
    /// The CPU it left.
    pub cpu: u16,
    /// How it left, and what it was doing.
    pub out: Out,
    /// How long it had been on the CPU; `None` if its coming was not seen.
    pub on_cpu_ns: Option<u64>,
}

/// A thread has come onto a CPU.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Arrival {
    /// The thread.
    pub thread: ThreadId,
    /// The CPU it came onto.
    pub cpu: u16,
    /// What that ended.
    pub entered: Entered,
}

/// A thread was woken, whether it slept or not.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Woken {
    /// The thread's id.
    pub tid: u32,
    /// The thread; `None` if it has not been introduced.
    pub thread: Option<ThreadId>,
    /// When.
    pub at_ns: u64,
    /// The CPU on which it was woken.
    pub cpu: u16,
    /// Which of its two wakings it was noted as; `None` if it was of no consequence.
    pub noted: Option<Waking>,
    /// It had just been created.
    pub newborn: bool,
    /// Who woke it.
    pub waker: Waker,
}

/// Takes intervals as they end: those of one thread in their order. Whoever wants more is told of the events that bound them.
pub trait IntervalSink {
    /// The next one.
    fn interval(&mut self, interval: &Interval);

    /// A thread has left its CPU: told also where it was not seen when it had come onto it.
    fn left(&mut self, _departure: &Departure) {}

    /// A thread has come onto a CPU.
    fn came(&mut self, _arrival: &Arrival) {}

    /// A thread was woken.
    fn woken(&mut self, _woken: &Woken) {}

    /// A sample of what a thread does in an interval on a CPU that goes on.
    fn sample(&mut self, _at_ns: u64, _place: Place) {}
}

/// Both get all of them.
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

    fn sample(&mut self, at_ns: u64, place: Place) {
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

    fn sample(&mut self, at_ns: u64, place: Place) {
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

/// Keeps the samples.
impl IntervalSink for Samples {
    fn interval(&mut self, _interval: &Interval) {}

    fn sample(&mut self, at_ns: u64, place: Place) {
        self.add(at_ns, place);
    }
}

/// Takes nothing.
impl IntervalSink for () {
    fn interval(&mut self, _interval: &Interval) {}
}

impl IntervalSink for Vec<Interval> {
    fn interval(&mut self, interval: &Interval) {
        self.push(*interval);
    }
}
