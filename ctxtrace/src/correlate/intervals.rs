//! What each thread did from when to when: the intervals that a timeline consists of, told one by one as they end.
//!
//! The intervals of a thread follow one another without a gap, from its first event on, for as long as nothing is lost:
//!
//! ```text
//!   … on CPU ─┬─ blocked ─┬─ run queue ─┬─ on CPU …
//!            out        waking          in
//! ```

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
    /// The CPU it was on, or was on last.
    pub cpu: Option<u16>,
}

/// Takes intervals as they end: those of one thread in their order.
pub trait IntervalSink {
    /// The next one.
    fn interval(&mut self, interval: &Interval);

    /// A kernel switch takes a thread off its CPU: told also where it was not seen when that thread had come onto it.
    fn switch_out(&mut self, _at_ns: u64) {}

    /// A sample of what a thread does in an interval on a CPU that goes on.
    fn sample(&mut self, _at_ns: u64, _place: Place) {}

    /// A waking of a thread that has ended its sleep, or may have.
    fn waking(&mut self, _at_ns: u64, _woken: ThreadId, _waker: &Waker) {}
}

/// Both get all of them.
impl<A: IntervalSink, B: IntervalSink> IntervalSink for (A, B) {
    fn interval(&mut self, interval: &Interval) {
        self.0.interval(interval);
        self.1.interval(interval);
    }

    fn switch_out(&mut self, at_ns: u64) {
        self.0.switch_out(at_ns);
        self.1.switch_out(at_ns);
    }

    fn sample(&mut self, at_ns: u64, place: Place) {
        self.0.sample(at_ns, place);
        self.1.sample(at_ns, place);
    }

    fn waking(&mut self, at_ns: u64, woken: ThreadId, waker: &Waker) {
        self.0.waking(at_ns, woken, waker);
        self.1.waking(at_ns, woken, waker);
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

    fn waking(&mut self, at_ns: u64, woken: ThreadId, waker: &Waker) {
        if let Some(sink) = self {
            sink.waking(at_ns, woken, waker);
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
