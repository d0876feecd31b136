//! The time budget: how all threads spent their time in a window of a timeline, to the nanosecond.
//!
//! At every moment of its life a thread is on a CPU, in a run queue, or asleep. So in a window the three times add up to the time
//! for which the threads were alive: *threads × wall time* if all of them live through the whole window. The difference is time
//! for which the timeline does not show the thread's state, because an event was lost or the thread was not known yet. It is
//! reported as a part of its own.

use ctxtrace_format::sums::{SaturatingSum, add};
use std::collections::{BTreeMap, HashMap};

use ctxtrace_common::process::{Image, TaskKey};

use super::intervals::{Before, Departure, Interval, IntervalSink, State, ThreadId};
use ctxtrace_format::workload::Outcome;

/// A period of time, in `CLOCK_MONOTONIC` nanoseconds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Window {
    /// The first nanosecond in the window.
    pub from_ns: u64,
    /// The first nanosecond after the window.
    pub to_ns: u64,
}

impl Window {
    /// The window that contains all times.
    pub const ALL: Self = Self {
        from_ns: 0,
        to_ns: u64::MAX,
    };

    /// The measured section of a workload; `None` if the workload did not report when the section began.
    #[must_use]
    pub fn measured(outcome: &Outcome) -> Option<Self> {
        let from_ns = outcome.started_ns?;
        Some(Self {
            from_ns,
            to_ns: from_ns.saturating_add(outcome.elapsed_ns),
        })
    }

    /// The part of an interval that lies in the window; `None` if they do not overlap.
    #[must_use]
    pub fn clip(&self, start_ns: u64, end_ns: u64) -> Option<(u64, u64)> {
        let (start, end) = (start_ns.max(self.from_ns), end_ns.min(self.to_ns));
        (start < end).then_some((start, end))
    }
}

/// The key by which the time of threads is summed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct BudgetKey {
    /// The state of the threads.
    pub state: State,
    /// For off-CPU time, the ledger class of the switch-out that began it; 0 for on-CPU time.
    pub class: u8,
    /// For run-queue time, what occupied the CPU before the thread.
    pub before: Option<Before>,
    /// For off-CPU time, whether the CPU quota of the thread's cgroup caused the switch-out.
    pub throttled: bool,
    /// The task that the threads polled at the switch-out, or 0.
    pub task: u64,
    /// The program that the threads ran.
    pub image: Image,
}

impl BudgetKey {
    /// The task, if the threads polled one.
    #[must_use]
    pub fn task_key(&self) -> Option<TaskKey> {
        (self.task != 0).then_some(TaskKey {
            task: self.task,
            image: self.image,
        })
    }
}

/// Sums the intervals of a timeline within a window.
#[derive(Clone, Debug)]
pub struct ThreadTimeBudget {
    window: Window,
    parts: BTreeMap<BudgetKey, u64>,
    threads: HashMap<ThreadId, Alive>,
    switches: u64,
}

/// The period within the window in which a thread was alive, and the time of it that intervals cover.
#[derive(Clone, Copy, Debug)]
struct Alive {
    from_ns: u64,
    to_ns: u64,
    covered_ns: u64,
}

impl ThreadTimeBudget {
    /// Creates an empty budget of this window.
    #[must_use]
    pub fn new(window: Window) -> Self {
        Self {
            window,
            parts: BTreeMap::new(),
            threads: HashMap::new(),
            switches: 0,
        }
    }

    /// The parts with the time of all threads in each, in nanoseconds.
    pub fn parts(&self) -> impl Iterator<Item = (BudgetKey, u64)> {
        self.parts.iter().map(|(&part, &ns)| (part, ns))
    }

    /// The time of all threads in this state, in nanoseconds.
    #[must_use]
    pub fn in_state(&self, state: State) -> u64 {
        let parts = self.parts.iter().filter(|(part, _)| part.state == state);
        parts.map(|(_, ns)| ns).saturating_sum()
    }

    /// Number of kernel switches in the window.
    #[must_use]
    pub fn switches(&self) -> u64 {
        self.switches
    }

    /// Number of threads that were alive in the window.
    #[must_use]
    pub fn threads(&self) -> usize {
        self.threads.len()
    }

    /// The time for which the threads were alive in the window, summed over the threads. It is equal to the sum of all parts and
    /// [`ThreadTimeBudget::unknown_ns`].
    #[must_use]
    pub fn alive_ns(&self) -> u64 {
        self.threads
            .values()
            .map(|alive| alive.to_ns.saturating_sub(alive.from_ns))
            .saturating_sum()
    }

    /// The time for which threads were alive in the window but the timeline does not show their state.
    #[must_use]
    pub fn unknown_ns(&self) -> u64 {
        let unknown = |alive: &Alive| (alive.to_ns.saturating_sub(alive.from_ns)).saturating_sub(alive.covered_ns);
        self.threads.values().map(unknown).saturating_sum()
    }
}

impl IntervalSink for ThreadTimeBudget {
    fn left(&mut self, departure: &Departure) {
        let window = self.window.from_ns..self.window.to_ns;
        self.switches += u64::from(window.contains(&departure.at_ns));
    }

    fn interval(&mut self, interval: &Interval) {
        let Some((start_ns, end_ns)) = self.window.clip(interval.start_ns, interval.end_ns) else {
            return;
        };
        let ns = end_ns - start_ns;
        let part = BudgetKey {
            state: interval.state,
            class: if interval.state == State::OnCpu {
                0
            } else {
                interval.class
            },
            before: interval.before,
            throttled: interval.state != State::OnCpu && interval.throttled,
            task: interval.task,
            image: interval.image,
        };
        add(self.parts.entry(part).or_default(), ns);
        let alive = self.threads.entry(interval.thread).or_insert(Alive {
            from_ns: start_ns,
            to_ns: end_ns,
            covered_ns: 0,
        });
        alive.from_ns = alive.from_ns.min(start_ns);
        alive.to_ns = alive.to_ns.max(end_ns);
        add(&mut alive.covered_ns, ns);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use ctxtrace_common::clock::Leave;
    use ctxtrace_common::event::Out;
    use ctxtrace_common::ledger::Class;

    fn interval(tid: u32, state: State, start_ns: u64, end_ns: u64) -> Interval {
        Interval {
            thread: ThreadId {
                tid,
                ..ThreadId::default()
            },
            state,
            start_ns,
            end_ns,
            image: Image { tgid: 1, number: 0 },
            task: u64::from(tid),
            class: Class::TaskBlocked as u8,
            reason: 0,
            throttled: false,
            cpu: None,
            before: None,
        }
    }

    /// Threads as drawn lines: `=` on a CPU, `.` asleep, `-` in a run queue; one character is 10 ns.
    fn drawn(window: Window, lines: &[&str]) -> ThreadTimeBudget {
        let mut budget = ThreadTimeBudget::new(window);
        for (tid, line) in lines.iter().enumerate() {
            for (column, mark) in line.chars().enumerate() {
                let state = match mark {
                    '=' => State::OnCpu,
                    '.' => State::Blocked,
                    '-' => State::RunQueue,
                    _ => continue,
                };
                let start_ns = 10 * column as u64;
                budget.interval(&interval(tid as u32 + 1, state, start_ns, start_ns + 10));
            }
        }
        budget
    }

    #[test]
    fn the_parts_are_threads_times_wall() {
        let budget = drawn(Window { from_ns: 20, to_ns: 60 }, &["===..-==", ".-======"]);
        assert_eq!(
            [State::OnCpu, State::Blocked, State::RunQueue].map(|state| budget.in_state(state)),
            [10 + 40, 20, 10]
        );
        assert_eq!((budget.threads(), budget.alive_ns(), budget.unknown_ns()), (2, 80, 0));
    }

    #[test]
    fn an_interval_is_cut_at_the_windows_ends() {
        let mut budget = ThreadTimeBudget::new(Window {
            from_ns: 105,
            to_ns: 112,
        });
        budget.interval(&interval(1, State::OnCpu, 100, 110));
        budget.interval(&interval(1, State::Blocked, 110, 200));
        budget.interval(&interval(2, State::OnCpu, 0, 105));
        assert_eq!((budget.in_state(State::OnCpu), budget.in_state(State::Blocked)), (5, 2));
        assert_eq!(budget.threads(), 1);
    }

    #[test]
    fn switches_in_the_window_are_counted() {
        let mut budget = ThreadTimeBudget::new(Window { from_ns: 20, to_ns: 60 });
        for at_ns in [19, 20, 59, 60] {
            budget.left(&Departure {
                thread: ThreadId::default(),
                image: Image::default(),
                at_ns,
                cpu: 0,
                out: Out {
                    tid: 1,
                    leave: Leave::Slept,
                    voluntary: true,
                    task: 0,
                    class: 0,
                    reason: 0,
                    throttled: false,
                },
                on_cpu_ns: None,
            });
        }
        assert_eq!(budget.switches(), 2);
    }

    #[test]
    fn unknown_time_is_separate() {
        let budget = drawn(Window::ALL, &["==  ..", "  ===="]);
        assert_eq!((budget.alive_ns(), budget.unknown_ns()), (60 + 40, 20));
    }

    #[test]
    fn a_switch_that_made_way_says_nothing_of_the_time_before_it() {
        let budget = drawn(Window::ALL, &["=.="]);
        let classes: Vec<(State, u8)> = budget.parts().map(|(part, _)| (part.state, part.class)).collect();
        assert_eq!(classes, [(State::OnCpu, 0), (State::Blocked, Class::TaskBlocked as u8)]);
    }
}
