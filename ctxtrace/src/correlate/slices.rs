//! When each thread polled which task, as far as that is known: slices of time, told one by one.
//!
//! What is known without more than the events of a timeline is the task at every switch-out ([`AtSwitches`]): that one task
//! was being polled at the end of an interval on a CPU, and, since a poll does not end while its thread is off the CPU, up to
//! the thread's return. What else the thread polled in that interval nobody has seen.
//!
//! ```text
//!   the thread    ── on CPU ──┬─ blocked ─┬─ run queue ─┬── on CPU ──┬─ blocked …
//!   polled at out             A                                      nothing
//!   slices        [─────────────────── A ───────────────]
//! ```
//!
//! Whoever knows the polls themselves tells a slice for each of them instead: what draws slices does not ask where they are
//! from.

use std::collections::HashMap;

use ctxtrace_common::ledger::Class;
use ctxtrace_common::process::Image;

use super::intervals::{Interval, IntervalSink, State, ThreadId};

/// A time in which a thread polled a task.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TaskSlice {
    /// The thread.
    pub thread: ThreadId,
    /// The program it ran.
    pub image: Image,
    /// The task; never 0.
    pub task: u64,
    /// From when, `CLOCK_MONOTONIC` nanoseconds.
    pub start_ns: u64,
    /// To when.
    pub end_ns: u64,
    /// What the switch-out was by which it is known: its class and reason, as in [`ctxtrace_common::stack::SumKey`]; `None` if
    /// it is known otherwise.
    pub switched_out: Option<(u8, u8)>,
}

/// Takes slices. Those of one thread come in the order of their beginnings, before the thread's next switch-in but one; of two that
/// begin together the outer one comes first. Two of a thread either follow each other or lie one within the other.
pub trait SliceSink {
    /// The next one.
    fn slice(&mut self, slice: &TaskSlice);
}

impl SliceSink for Vec<TaskSlice> {
    fn slice(&mut self, slice: &TaskSlice) {
        self.push(*slice);
    }
}

/// Makes slices of the intervals of a timeline. Keeps one for each thread that is being polled in.
#[derive(Clone, Debug, Default)]
pub struct AtSwitches<S> {
    /// By thread id: the slice that ends when the thread comes back.
    open: HashMap<u32, TaskSlice>,
    sink: S,
}

impl<S: SliceSink> AtSwitches<S> {
    /// Tells them to this one.
    #[must_use]
    pub fn telling(sink: S) -> Self {
        Self {
            open: HashMap::new(),
            sink,
        }
    }

    /// Who is told.
    pub fn sink_mut(&mut self) -> &mut S {
        &mut self.sink
    }

    /// Tells those of threads that have not come back.
    pub fn close(&mut self) {
        let mut open: Vec<TaskSlice> = self.open.drain().map(|(_, slice)| slice).collect();
        open.sort_by_key(|slice| (slice.end_ns, slice.thread));
        for slice in open {
            self.sink.slice(&slice);
        }
    }

    /// The slice of an interval on a CPU ends with it, unless the thread comes back.
    fn on_cpu(&mut self, interval: &Interval) {
        let tid = interval.thread.tid;
        // Of a slice that is still there the return was not seen.
        if let Some(slice) = self.open.remove(&tid) {
            self.sink.slice(&slice);
        }
        if interval.task == 0 {
            return;
        }
        let slice = TaskSlice {
            thread: interval.thread,
            image: interval.image,
            task: interval.task,
            start_ns: interval.start_ns,
            end_ns: interval.end_ns,
            switched_out: Some((interval.class, interval.reason)),
        };
        if interval.class == Class::Exited as u8 {
            self.sink.slice(&slice);
        } else {
            self.open.insert(tid, slice);
        }
    }
}

impl<S: SliceSink> IntervalSink for AtSwitches<S> {
    fn interval(&mut self, interval: &Interval) {
        if interval.state == State::OnCpu {
            return self.on_cpu(interval);
        }
        let tid = interval.thread.tid;
        let Some(slice) = self.open.get_mut(&tid) else { return };
        if slice.thread != interval.thread || slice.end_ns != interval.start_ns {
            // An `execve` has given the id to another thread, or something was lost.
            return;
        }
        slice.end_ns = interval.end_ns;
        // A sleep is followed by a wait, be it of no length.
        if interval.state != State::Blocked
            && let Some(slice) = self.open.remove(&tid)
        {
            self.sink.slice(&slice);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn interval(tid: u32, state: State, (start_ns, end_ns): (u64, u64), task: u64) -> Interval {
        Interval {
            thread: ThreadId {
                start_boottime_ns: u64::from(tid),
                tgid: 100,
                tid,
            },
            state,
            start_ns,
            end_ns,
            image: Image { tgid: 100, number: 0 },
            task,
            class: Class::TaskBlocked as u8,
            reason: 0,
            throttled: false,
            cpu: None,
            before: None,
        }
    }

    /// Thread, beginning, end and task of each slice.
    fn slices(intervals: &[Interval]) -> Vec<(u32, u64, u64, u64)> {
        let mut slices = AtSwitches::telling(Vec::new());
        for interval in intervals {
            slices.interval(interval);
        }
        slices.close();
        let told = slices.sink_mut().iter();
        told.map(|slice| (slice.thread.tid, slice.start_ns, slice.end_ns, slice.task))
            .collect()
    }

    #[test]
    fn a_poll_goes_on_while_its_thread_is_off_the_cpu() {
        let told = slices(&[
            interval(1, State::OnCpu, (10, 20), 7),
            interval(1, State::Blocked, (20, 30), 7),
            interval(1, State::RunQueue, (30, 35), 7),
            interval(1, State::OnCpu, (35, 40), 0),
            interval(1, State::Blocked, (40, 50), 0),
            interval(1, State::RunQueue, (50, 50), 0),
            interval(1, State::OnCpu, (50, 60), 8),
            interval(1, State::RunQueue, (60, 70), 8),
        ]);
        assert_eq!(told, [(1, 10, 35, 7), (1, 50, 70, 8)]);
    }

    #[test]
    fn threads_do_not_mix() {
        let told = slices(&[
            interval(1, State::OnCpu, (10, 20), 7),
            interval(2, State::OnCpu, (12, 22), 8),
            interval(1, State::RunQueue, (20, 30), 7),
            interval(2, State::Off, (22, 40), 8),
        ]);
        assert_eq!(told, [(1, 10, 30, 7), (2, 12, 40, 8)]);
    }

    #[test]
    fn what_has_no_known_end_ends_where_it_was_last_seen() {
        // The return of thread 1 is lost; thread 2 does not come back; thread 3 ends.
        let mut last = interval(3, State::OnCpu, (5, 6), 9);
        last.class = Class::Exited as u8;
        let told = slices(&[
            interval(1, State::OnCpu, (10, 20), 7),
            last,
            interval(2, State::OnCpu, (12, 22), 8),
            interval(1, State::OnCpu, (90, 95), 0),
        ]);
        assert_eq!(told, [(3, 5, 6, 9), (1, 10, 20, 7), (2, 12, 22, 8)]);
    }

    #[test]
    fn an_id_that_changes_hands_takes_no_time_along() {
        let mut other = interval(1, State::RunQueue, (20, 30), 0);
        other.thread.start_boottime_ns = 99;
        let told = slices(&[interval(1, State::OnCpu, (10, 20), 7), other]);
        assert_eq!(told, [(1, 10, 20, 7)]);
    }
}
