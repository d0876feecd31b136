//! Slices: the periods in which a thread is known to have polled a task.
//!
//! The events of a timeline alone contain the task that was being polled at each switch-out ([`AtSwitches`]). This task was
//! polled at the end of the on-CPU interval. A poll does not end while its thread is off the CPU, so the task was also polled
//! until the thread's next switch-in. Other tasks that the thread polled in the same interval are unknown.
//!
//! ```text
//!   the thread    ── on CPU ──┬─ blocked ─┬─ run queue ─┬── on CPU ──┬─ blocked …
//!   polled at out             A                                      nothing
//!   slices        [─────────────────── A ───────────────]
//! ```
//!
//! If the polls themselves are known, each of them is a slice instead. The consumer of slices does not depend on their source.

use std::collections::HashMap;

use ctxtrace_common::ledger::Class;
use ctxtrace_common::process::Image;

use super::intervals::{Interval, IntervalSink, State, ThreadId};

/// A period in which a thread polled a task.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TaskSlice {
    /// The thread.
    pub thread: ThreadId,
    /// The program that the thread ran.
    pub image: Image,
    /// Id of the task; never 0.
    pub task: u64,
    /// Beginning of the slice, `CLOCK_MONOTONIC` nanoseconds.
    pub start_ns: u64,
    /// End of the slice, `CLOCK_MONOTONIC` nanoseconds.
    pub end_ns: u64,
    /// Class and reason, as in [`ctxtrace_common::stack::SumKey`], of the switch-out from which the slice is known; `None` if it
    /// is known from another source.
    pub switched_out: Option<(u8, u8)>,
}

/// Takes slices. The slices of one thread come in the order of their beginnings; if two of them begin at the same time, the outer
/// one comes first. A slice comes before the second switch-in of its thread after it. Two slices of a thread either follow each
/// other, or one contains the other.
pub trait SliceSink {
    /// Takes the next slice.
    fn slice(&mut self, slice: &TaskSlice);
}

impl SliceSink for Vec<TaskSlice> {
    fn slice(&mut self, slice: &TaskSlice) {
        self.push(*slice);
    }
}

/// Makes slices from the intervals of a timeline, and sends them to a sink. Keeps one open slice for each thread that is off the
/// CPU during a poll.
#[derive(Clone, Debug, Default)]
pub struct AtSwitches<S> {
    /// The open slices, which end at the next switch-in of the thread, by thread id.
    open: HashMap<u32, TaskSlice>,
    sink: S,
}

impl<S: SliceSink> AtSwitches<S> {
    /// Creates a converter that sends its slices to `sink`.
    #[must_use]
    pub fn with_sink(sink: S) -> Self {
        Self {
            open: HashMap::new(),
            sink,
        }
    }

    /// The sink.
    pub fn sink_mut(&mut self) -> &mut S {
        &mut self.sink
    }

    /// Sends the open slices: those of threads that have not been switched in again.
    pub fn close(&mut self) {
        let mut open: Vec<TaskSlice> = self.open.drain().map(|(_, slice)| slice).collect();
        open.sort_by_key(|slice| (slice.end_ns, slice.thread));
        for slice in open {
            self.sink.slice(&slice);
        }
    }

    /// Opens a slice for an on-CPU interval. For now it ends with the interval; it is extended if the thread's off-CPU intervals
    /// follow.
    fn on_cpu(&mut self, interval: &Interval) {
        let tid = interval.thread.tid;
        // A slice is still open if the thread's previous switch-in was lost.
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
            // An `execve` has given the id to another thread, or an event was lost.
            return;
        }
        slice.end_ns = interval.end_ns;
        // A blocked interval is always followed by a run-queue interval, even if that has a length of 0.
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

    /// The thread, beginning, end and task of each slice.
    fn slices(intervals: &[Interval]) -> Vec<(u32, u64, u64, u64)> {
        let mut slices = AtSwitches::with_sink(Vec::new());
        for interval in intervals {
            slices.interval(interval);
        }
        slices.close();
        let found = slices.sink_mut().iter();
        found
            .map(|slice| (slice.thread.tid, slice.start_ns, slice.end_ns, slice.task))
            .collect()
    }

    #[test]
    fn a_poll_goes_on_while_its_thread_is_off_the_cpu() {
        let found = slices(&[
            interval(1, State::OnCpu, (10, 20), 7),
            interval(1, State::Blocked, (20, 30), 7),
            interval(1, State::RunQueue, (30, 35), 7),
            interval(1, State::OnCpu, (35, 40), 0),
            interval(1, State::Blocked, (40, 50), 0),
            interval(1, State::RunQueue, (50, 50), 0),
            interval(1, State::OnCpu, (50, 60), 8),
            interval(1, State::RunQueue, (60, 70), 8),
        ]);
        assert_eq!(found, [(1, 10, 35, 7), (1, 50, 70, 8)]);
    }

    #[test]
    fn threads_do_not_mix() {
        let found = slices(&[
            interval(1, State::OnCpu, (10, 20), 7),
            interval(2, State::OnCpu, (12, 22), 8),
            interval(1, State::RunQueue, (20, 30), 7),
            interval(2, State::Off, (22, 40), 8),
        ]);
        assert_eq!(found, [(1, 10, 30, 7), (2, 12, 40, 8)]);
    }

    #[test]
    fn what_has_no_known_end_ends_where_it_was_last_seen() {
        // The switch-in of thread 1 is lost; thread 2 is not switched in again; thread 3 ends.
        let mut last = interval(3, State::OnCpu, (5, 6), 9);
        last.class = Class::Exited as u8;
        let found = slices(&[
            interval(1, State::OnCpu, (10, 20), 7),
            last,
            interval(2, State::OnCpu, (12, 22), 8),
            interval(1, State::OnCpu, (90, 95), 0),
        ]);
        assert_eq!(found, [(3, 5, 6, 9), (1, 10, 20, 7), (2, 12, 22, 8)]);
    }

    #[test]
    fn an_id_that_changes_hands_takes_no_time_along() {
        let mut other = interval(1, State::RunQueue, (20, 30), 0);
        other.thread.start_boottime_ns = 99;
        let found = slices(&[interval(1, State::OnCpu, (10, 20), 7), other]);
        assert_eq!(found, [(1, 10, 20, 7)]);
    }
}
