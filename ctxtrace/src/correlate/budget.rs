//! Where the threads' time went, to the nanosecond, over a window of a timeline.
//!
//! At every moment of its life a thread is on a CPU, ready for one, or asleep. So over a window the three add up to the time
//! that the threads were alive in it: *threads × wall*, where all of them live through it. What they lack of that is the time
//! that the timeline cannot tell (an event was lost, or nothing had been seen of the thread yet), and is a part of its own.

use crate::sums::{SaturatingSum, add};
use std::collections::{BTreeMap, HashMap};

use ctxtrace_common::process::{Image, TaskKey};

use super::intervals::{Before, Departure, Interval, IntervalSink, State, ThreadId};
use crate::workload::Outcome;

/// From when to when, `CLOCK_MONOTONIC` nanoseconds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Window {
    /// The first nanosecond in it.
    pub from_ns: u64,
    /// The first one after it.
    pub to_ns: u64,
}

impl Window {
    /// All of time.
    pub const ALL: Self = Self {
        from_ns: 0,
        to_ns: u64::MAX,
    };

    /// The measured section of a workload, if it has told when that began.
    #[must_use]
    pub fn measured(outcome: &Outcome) -> Option<Self> {
        let from_ns = outcome.started_ns?;
        Some(Self {
            from_ns,
            to_ns: from_ns.saturating_add(outcome.elapsed_ns),
        })
    }

    /// The part of an interval that lies in it; `None` if that is nothing.
    #[must_use]
    pub fn clip(&self, start_ns: u64, end_ns: u64) -> Option<(u64, u64)> {
        let (start, end) = (start_ns.max(self.from_ns), end_ns.min(self.to_ns));
        (start < end).then_some((start, end))
    }
}

/// What time is added up by.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Part {
    /// Where the threads were.
    pub state: State,
    /// Of time off the CPU: the class of the ledger for which they had left it. 0 of time on it.
    pub class: u8,
    /// Of a wait for a CPU: who had it.
    pub before: Option<Before>,
    /// The CPU quota of their cgroup had taken them off it.
    pub throttled: bool,
    /// The task they polled when they left, or 0.
    pub task: u64,
    /// The program they ran.
    pub image: Image,
}

impl Part {
    /// The task, if they polled one.
    #[must_use]
    pub fn task_key(&self) -> Option<TaskKey> {
        (self.task != 0).then_some(TaskKey {
            task: self.task,
            image: self.image,
        })
    }
}

/// Adds up intervals as they are told.
#[derive(Clone, Debug)]
pub struct Budget {
    window: Window,
    parts: BTreeMap<Part, u64>,
    threads: HashMap<ThreadId, Alive>,
    switches: u64,
}

/// When a thread was alive, within the window, and how much of that is told.
#[derive(Clone, Copy, Debug)]
struct Alive {
    from_ns: u64,
    to_ns: u64,
    told_ns: u64,
}

impl Budget {
    /// Of what happens in this window.
    #[must_use]
    pub fn of(window: Window) -> Self {
        Self {
            window,
            parts: BTreeMap::new(),
            threads: HashMap::new(),
            switches: 0,
        }
    }

    /// The parts, in nanoseconds of thread-time.
    pub fn parts(&self) -> impl Iterator<Item = (Part, u64)> {
        self.parts.iter().map(|(&part, &ns)| (part, ns))
    }

    /// Thread-time in this state, nanoseconds.
    #[must_use]
    pub fn in_state(&self, state: State) -> u64 {
        let parts = self.parts.iter().filter(|(part, _)| part.state == state);
        parts.map(|(_, ns)| ns).saturating_sum()
    }

    /// Kernel switches in the window.
    #[must_use]
    pub fn switches(&self) -> u64 {
        self.switches
    }

    /// Threads that were alive in the window.
    #[must_use]
    pub fn threads(&self) -> usize {
        self.threads.len()
    }

    /// The time that the threads were alive in the window, added up: what the parts and [`Budget::untold_ns`] add up to.
    #[must_use]
    pub fn alive_ns(&self) -> u64 {
        self.threads
            .values()
            .map(|alive| alive.to_ns.saturating_sub(alive.from_ns))
            .saturating_sum()
    }

    /// Time of living threads of which the timeline does not tell where they were.
    #[must_use]
    pub fn untold_ns(&self) -> u64 {
        let untold = |alive: &Alive| (alive.to_ns.saturating_sub(alive.from_ns)).saturating_sub(alive.told_ns);
        self.threads.values().map(untold).saturating_sum()
    }
}

impl IntervalSink for Budget {
    fn left(&mut self, departure: &Departure) {
        let window = self.window.from_ns..self.window.to_ns;
        self.switches += u64::from(window.contains(&departure.at_ns));
    }

    fn interval(&mut self, interval: &Interval) {
        let Some((start_ns, end_ns)) = self.window.clip(interval.start_ns, interval.end_ns) else {
            return;
        };
        let ns = end_ns - start_ns;
        let part = Part {
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
            told_ns: 0,
        });
        alive.from_ns = alive.from_ns.min(start_ns);
        alive.to_ns = alive.to_ns.max(end_ns);
        add(&mut alive.told_ns, ns);
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

    /// Two threads, drawn: `=` on a CPU, `.` asleep, `-` ready.
    fn drawn(window: Window, lines: &[&str]) -> Budget {
        let mut budget = Budget::of(window);
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
        assert_eq!((budget.threads(), budget.alive_ns(), budget.untold_ns()), (2, 80, 0));
    }

    #[test]
    fn an_interval_is_cut_at_the_windows_ends() {
        let mut budget = Budget::of(Window {
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
        let mut budget = Budget::of(Window { from_ns: 20, to_ns: 60 });
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
    fn what_is_not_told_is_a_part_of_its_own() {
        let budget = drawn(Window::ALL, &["==  ..", "  ===="]);
        assert_eq!((budget.alive_ns(), budget.untold_ns()), (60 + 40, 20));
    }

    #[test]
    fn a_switch_that_made_way_says_nothing_of_the_time_before_it() {
        let budget = drawn(Window::ALL, &["=.="]);
        let classes: Vec<(State, u8)> = budget.parts().map(|(part, _)| (part.state, part.class)).collect();
        assert_eq!(classes, [(State::OnCpu, 0), (State::Blocked, Class::TaskBlocked as u8)]);
    }
}
