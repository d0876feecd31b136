//! How all threads spend their time in the measured section of a run, per message: the budget of [`crate::correlate`], with the
//! on-CPU time divided by samples, and the time asleep divided by the stacks of another run.
//!
//! Each part is attributed to a cause. Time in the kernel is attributed to the code that called the kernel, if that code has a
//! category of its own: a futex call is attributed to the lock or the scheduler that made it. Some time is only waiting: a worker
//! without work sleeps because the work is elsewhere. That time is a part of the sum, but not a cause.
//!
//! After a wakeup a thread waits for a CPU. The cause of that wait depends on what the CPU did before ([`Before`]):
//!
//! * The CPU was idle: the wait is a part of the cost of the sleep, whatever the thread slept for. An idle CPU needs time to wake
//!   up.
//! * The CPU ran a thread of the target: if the thread had slept in the middle of its work, for a lock or for something else, the
//!   wait is attributed to that sleep (a thread that releases a lock and wakes another one continues to run). If it had slept
//!   because it had no work, there are more threads with work than CPUs, so the wait is attributed to the run queue.
//! * The CPU ran another program: the wait is attributed to the run queue.
//!
//! If the CPU quota of its cgroup took a thread off its CPU, the wait is attributed to the quota, whatever the CPU did.

use ctxtrace_format::sums::{SaturatingSum, add};
use std::collections::BTreeMap;

use ctxtrace_common::ledger::Class;
use ctxtrace_common::stack::{SumKey, SwitchSum};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::correlate::budget::{ThreadTimeBudget, Window};
use crate::correlate::intervals::{Before, State};
use crate::correlate::ledger::{entry_of, ledger};
use crate::profile;
use crate::symbolize::category::{Belongs, Category, calls_from, off_cpu, on_cpu};
use crate::symbolize::stacks;
use ctxtrace_format::run::Run;
use ctxtrace_format::symbols::Frame;

/// How a thread spent a part of its time.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum Spent {
    /// On a CPU, in the program.
    OnCpuUser,
    /// On a CPU, in the kernel.
    OnCpuKernel,
    /// On a CPU. It is not known whether in the program or in the kernel.
    OnCpu,
    /// Ready to run, waiting for a CPU.
    RunQueue,
    /// Asleep.
    Blocked,
    /// Off the CPU. It is not known how much of the time the thread was asleep and how much it was ready to run.
    OffCpu,
}

impl Spent {
    /// Returns the name in tables.
    #[must_use]
    pub fn in_words(self) -> &'static str {
        match self {
            Self::OnCpuUser => "on CPU, program",
            Self::OnCpuKernel => "on CPU, kernel",
            Self::OnCpu => "on CPU",
            Self::RunQueue => "run queue",
            Self::Blocked => "blocked",
            Self::OffCpu => "off CPU",
        }
    }
}

/// The cause of a part of the time.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum Cause {
    /// Code of this category: its own time, the time of its system calls, and the time it sleeps.
    Code(Category),
    /// Waiting for a CPU, because other programs or other threads of the target with work had it.
    RunQueue,
    /// The CPU quota of the thread's cgroup kept it off the CPU.
    Quota,
    /// Waiting for a CPU or for the CPU quota of the thread's cgroup. A quota throttled the cgroup, but the kernel does not show
    /// which threads it affected.
    RunQueueOrQuota,
}

impl Cause {
    /// Returns the name in sentences.
    #[must_use]
    pub fn in_words(self) -> &'static str {
        match self {
            Self::Code(category) => category.in_words(),
            Self::RunQueue => "run queue (waiting for a CPU)",
            Self::Quota => "its cgroup's CPU quota kept it off the CPU",
            Self::RunQueueOrQuota => "run queue, or its cgroup's CPU quota",
        }
    }
}

/// A part of the time.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct TimePart {
    /// How the time was spent.
    pub spent: Spent,
    /// For time off the CPU, the number of the class of the switch-out that began it.
    pub class: u8,
    /// The cause of the time.
    pub cause: Cause,
}

impl TimePart {
    /// Returns the class of the ledger. `None` for time on the CPU.
    #[must_use]
    pub fn class(&self) -> Option<Class> {
        matches!(self.spent, Spent::RunQueue | Spent::Blocked | Spent::OffCpu)
            .then(|| Class::from_number(u32::from(self.class)))
            .flatten()
    }

    /// Whether the thread only waited for work.
    #[must_use]
    pub fn is_waiting(&self) -> bool {
        if !matches!(self.spent, Spent::Blocked | Spent::OffCpu) {
            return false;
        }
        match self.class() {
            // A sleep inside a poll is never only waiting for work, because other tasks of the thread have to wait for it.
            Some(Class::TaskBlocked) => false,
            Some(Class::ThreadBlocked | Class::Unattributed) => !matches!(
                self.cause,
                Cause::Code(Category::Locks | Category::Sleep | Category::Io | Category::Allocator)
            ),
            _ => true,
        }
    }
}

/// Time by stack, outermost frame first, in nanoseconds per message.
pub type Stacks = BTreeMap<Vec<Frame>, f64>;

/// What threads sleep for, from a run with stacks.
#[derive(Clone, Debug, Default)]
pub struct SleepCauses {
    /// Off-CPU time in nanoseconds, by the number of the class and by the category of the code that slept.
    classes: BTreeMap<u8, BTreeMap<Category, u64>>,
    /// Off-CPU time by what the threads were doing and by the stacks of their switch-outs.
    pub stacks: Stacks,
}

/// Returns the cause of a wait for a CPU that is not attributed to a sleep. It depends on whether a CPU quota throttled a cgroup
/// of the run.
fn wait_of(run: &Run) -> Cause {
    match &run.aggregates.cgroups {
        Some(cgroups) if !cgroups.threads_known && cgroups.any_throttled() => Cause::RunQueueOrQuota,
        _ => Cause::RunQueue,
    }
}

impl SleepCauses {
    /// Adds up the off-CPU time of a run with stacks, in which `messages` messages were handled.
    #[must_use]
    pub fn from_run(run: &Run, messages: f64) -> Self {
        let mut asleep = Self::default();
        for stack in stacks::switches(run).stacks {
            asleep.stacks.insert(stack.frames, stack.ns as f64 / messages);
        }
        let no_quota = |(key, _): &&(SumKey, SwitchSum)| key.throttled == 0;
        for (key, sum) in run.aggregates.switch_sums.iter().filter(no_quota) {
            let class = entry_of(key, &run.aggregates).class as u8;
            let category = off_cpu(&stacks::switched(run, key)).category;
            add(
                asleep.classes.entry(class).or_default().entry(category).or_default(),
                sum.off_cpu_ns,
            );
        }
        asleep
    }

    /// Returns the causes of a wait for a CPU, with their shares. `class` is the class of the switch-out, `before` is what the
    /// CPU did before, and `run_queue` is the cause of a wait that is not attributed to a sleep.
    fn wait(&self, class: u8, before: Option<Before>, run_queue: Cause) -> Vec<(Cause, f64)> {
        let belongs_to_sleep = |category| {
            let slept = TimePart {
                spent: Spent::Blocked,
                class,
                cause: Cause::Code(category),
            };
            match before {
                Some(Before::Idle) => category != Category::Unknown,
                Some(Before::Target) => category != Category::Unknown && !slept.is_waiting(),
                Some(Before::Other) | None => false,
            }
        };
        let slept = matches!(
            Class::from_number(u32::from(class)),
            Some(
                Class::TaskBlocked
                    | Class::WorkerParked
                    | Class::PoolIdle
                    | Class::RuntimeBlocked
                    | Class::ThreadBlocked
            )
        );
        if !slept {
            return vec![(run_queue, 1.0)];
        }
        let of = |(category, share)| {
            if belongs_to_sleep(category) {
                (Cause::Code(category), share)
            } else {
                (run_queue, share)
            }
        };
        self.shares(class).into_iter().map(of).collect()
    }

    /// Returns the categories of the sleep in a class, with their shares. If there was no such sleep, the category is unknown.
    fn shares(&self, class: u8) -> Vec<(Category, f64)> {
        let by = self.classes.get(&class).into_iter().flatten();
        let total: u64 = by.clone().map(|(_, ns)| ns).saturating_sum();
        if total == 0 {
            return vec![(Category::Unknown, 1.0)];
        }
        by.map(|(&category, &ns)| (category, ns as f64 / total as f64))
            .collect()
    }
}

/// Returns the off-CPU time by class.
fn off_cpu_by_class(run: &Run) -> BTreeMap<Class, u64> {
    let mut classes = BTreeMap::new();
    for (entry, sum) in ledger(&run.aggregates).rows {
        add(classes.entry(entry.class).or_default(), sum.off_cpu_ns);
    }
    classes
}

/// The budget of one run, per message.
#[derive(Clone, Debug, Default)]
pub struct Account {
    /// Every part, in nanoseconds per message.
    pub parts: BTreeMap<TimePart, f64>,
    /// On-CPU time by function, in nanoseconds per message.
    pub functions: BTreeMap<Belongs, f64>,
    /// On-CPU time by stack, in nanoseconds per message.
    pub stacks: Stacks,
    /// Time from the first to the last message, in nanoseconds per message.
    pub wall_ns: f64,
    /// Number of threads.
    pub threads: u64,
    /// Time for which the threads existed, all threads together, in nanoseconds per message.
    pub alive_ns: f64,
    /// Kernel switches per message.
    pub switches: f64,
    /// Number of samples among which the on-CPU time is divided.
    pub samples: u64,
}

impl Account {
    /// Makes the account of a run with samples. `budget` has the sums of the run's timeline in `window`, in which `messages`
    /// messages were handled.
    #[must_use]
    pub fn from_timeline(
        run: &Run,
        budget: &ThreadTimeBudget,
        window: Window,
        messages: f64,
        asleep: &SleepCauses,
    ) -> Self {
        let mut account = Self {
            switches: budget.switches() as f64 / messages,
            wall_ns: (window.to_ns - window.from_ns) as f64 / messages,
            threads: budget.threads() as u64,
            alive_ns: budget.alive_ns() as f64 / messages,
            ..Self::default()
        };
        let places = profile::places(run, |at_ns| window.clip(at_ns, at_ns + 1).is_some());
        account.samples = places.values().saturating_sum();
        let on_cpu_ns = budget.in_state(State::OnCpu) as f64 / messages;
        let part = |spent, class, cause| TimePart { spent, class, cause };
        let run_queue = wait_of(run);
        for (place, &count) in &places {
            let frames = stacks::sampled(run, place);
            let ns = on_cpu_ns * count as f64 / account.samples as f64;
            let (spent, category) = if place.in_kernel {
                (Spent::OnCpuKernel, calls_from(&frames))
            } else {
                (Spent::OnCpuUser, on_cpu(&frames, false).category)
            };
            account.add(part(spent, 0, Cause::Code(category)), ns);
            *account.functions.entry(on_cpu(&frames, place.in_kernel)).or_default() += ns;
            *account.stacks.entry(frames).or_default() += ns;
        }
        if account.samples == 0 && on_cpu_ns > 0.0 {
            account.add(part(Spent::OnCpu, 0, Cause::Code(Category::Unknown)), on_cpu_ns);
        }
        for (of, ns) in budget.parts() {
            let ns = ns as f64 / messages;
            match of.state {
                State::OnCpu => {}
                State::RunQueue if of.throttled => account.add(part(Spent::RunQueue, of.class, Cause::Quota), ns),
                State::RunQueue => {
                    for (cause, share) in asleep.wait(of.class, of.before, run_queue) {
                        account.add(part(Spent::RunQueue, of.class, cause), ns * share);
                    }
                }
                State::Blocked | State::Off => {
                    for (category, share) in asleep.shares(of.class) {
                        account.add(part(Spent::Blocked, of.class, Cause::Code(category)), ns * share);
                    }
                }
            }
        }
        account
    }

    /// Makes the account of a run without a timeline, from the sums over the whole run. For each class it is not known how long
    /// threads slept and how long they were ready to run. It is also not known what their on-CPU time was for.
    #[must_use]
    pub fn of_sums(run: &Run, messages: f64, asleep: &SleepCauses) -> Self {
        let threads = || run.aggregates.threads.iter().map(|record| &record.thread);
        let mut account = Self {
            switches: run.switches() as f64 / messages,
            wall_ns: run.outcome.map_or(run.recorded_ns, |outcome| outcome.elapsed_ns) as f64 / messages,
            threads: threads().count() as u64,
            ..Self::default()
        };
        let on_cpu_ns: u64 = threads().map(|thread| thread.on_cpu_ns).saturating_sum();
        account.add(
            TimePart {
                spent: Spent::OnCpu,
                class: 0,
                cause: Cause::Code(Category::Unknown),
            },
            on_cpu_ns as f64 / messages,
        );
        let mut throttled: BTreeMap<Class, u64> = BTreeMap::new();
        for (key, sum) in run.aggregates.switch_sums.iter().filter(|(key, _)| key.throttled != 0) {
            let of_class = throttled.entry(entry_of(key, &run.aggregates).class).or_default();
            add(of_class, sum.off_cpu_ns);
        }
        for (class, ns) in &throttled {
            let part = TimePart {
                spent: Spent::OffCpu,
                class: *class as u8,
                cause: Cause::Quota,
            };
            account.add(part, *ns as f64 / messages);
        }
        for (of_class, off_cpu_ns) in off_cpu_by_class(run) {
            let class = of_class as u8;
            let off_cpu_ns = off_cpu_ns.saturating_sub(throttled.get(&of_class).copied().unwrap_or(0));
            for (category, share) in asleep.shares(class) {
                let part = TimePart {
                    spent: Spent::OffCpu,
                    class,
                    cause: Cause::Code(category),
                };
                account.add(part, off_cpu_ns as f64 / messages * share);
            }
        }
        account.parts.retain(|_, ns| *ns > 0.0);
        account.alive_ns = account.sum_ns();
        account
    }

    fn add(&mut self, part: TimePart, ns: f64) {
        *self.parts.entry(part).or_default() += ns;
    }

    /// Returns the sum of all parts, in nanoseconds per message.
    #[must_use]
    pub fn sum_ns(&self) -> f64 {
        self.parts.values().sum()
    }

    /// Returns the sum of the parts that are not only waiting for work.
    #[must_use]
    pub fn busy_ns(&self) -> f64 {
        self.sum(|part| !part.is_waiting())
    }

    /// Returns the sum of the parts with this cause that are not only waiting for work.
    #[must_use]
    pub fn of_cause(&self, cause: Cause) -> f64 {
        self.sum(|part| part.cause == cause && !part.is_waiting())
    }

    /// Returns the time in the kernel or caused by it, without waiting for work: the kernel's code, the run queue, and sleep. The
    /// cost of kernel switches is a part of it.
    #[must_use]
    pub fn kernel_ns(&self) -> f64 {
        self.sum(|part| !matches!(part.spent, Spent::OnCpuUser | Spent::OnCpu) && !part.is_waiting())
    }

    /// Returns the sum of the parts for which `fits` returns true.
    #[must_use]
    pub fn sum(&self, fits: impl Fn(&TimePart) -> bool) -> f64 {
        self.parts.iter().filter(|(part, _)| fits(part)).map(|(_, ns)| ns).sum()
    }

    /// Returns the difference between the sum of the parts and the time for which the threads existed, as a share of the latter.
    /// If all threads existed during the whole run, the latter is the number of threads times the wall time.
    #[must_use]
    pub fn misses(&self) -> f64 {
        (self.sum_ns() - self.alive_ns).abs() / self.alive_ns.max(f64::MIN_POSITIVE)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn part(spent: Spent, class: Class, category: Category) -> TimePart {
        TimePart {
            spent,
            class: class as u8,
            cause: Cause::Code(category),
        }
    }

    #[test]
    fn who_sleeps_for_want_of_work_is_waiting() {
        for (class, category, is_waiting) in [
            (Class::WorkerParked, Category::Locks, true),
            (Class::PoolIdle, Category::Locks, true),
            (Class::TaskBlocked, Category::Unknown, false),
            (Class::TaskBlocked, Category::Sleep, false),
            (Class::ThreadBlocked, Category::Program, true),
            (Class::ThreadBlocked, Category::Channel, true),
            (Class::ThreadBlocked, Category::Locks, false),
            (Class::ThreadBlocked, Category::Sleep, false),
        ] {
            assert_eq!(
                part(Spent::Blocked, class, category).is_waiting(),
                is_waiting,
                "{class:?} {category:?}"
            );
        }
        assert!(!part(Spent::OnCpuUser, Class::WorkerParked, Category::Program).is_waiting());
    }

    #[test]
    fn a_cause_has_all_its_parts_and_no_waiting() {
        let mut account = Account {
            wall_ns: 100.0,
            threads: 2,
            alive_ns: 200.0,
            ..Account::default()
        };
        account.parts = BTreeMap::from([
            (part(Spent::OnCpuUser, Class::Exited, Category::Locks), 10.0),
            (part(Spent::OnCpuKernel, Class::Exited, Category::Locks), 20.0),
            (part(Spent::Blocked, Class::TaskBlocked, Category::Locks), 30.0),
            (part(Spent::Blocked, Class::WorkerParked, Category::Locks), 140.0),
        ]);
        assert_eq!(account.of_cause(Cause::Code(Category::Locks)), 60.0);
        assert_eq!(account.kernel_ns(), 50.0);
        assert_eq!(
            (account.busy_ns(), account.sum_ns(), account.misses()),
            (60.0, 200.0, 0.0)
        );
    }

    #[test]
    fn a_wait_for_a_cpu_belongs_to_the_sleep_before_it_unless_the_cpu_was_busy_with_work() {
        let of = |class: Class| {
            (
                class as u8,
                BTreeMap::from([(Category::Locks, 30), (Category::Scheduler, 10)]),
            )
        };
        let asleep = SleepCauses {
            classes: BTreeMap::from([
                of(Class::TaskBlocked),
                of(Class::WorkerParked),
                of(Class::TaskPreempted),
            ]),
            stacks: Stacks::new(),
        };
        let run_queue = |class: Class, before| -> f64 {
            let wait = asleep.wait(class as u8, before, Cause::RunQueue);
            assert_eq!(wait.iter().map(|(_, share)| share).sum::<f64>(), 1.0);
            let queue = wait.iter().filter(|(cause, _)| *cause == Cause::RunQueue);
            queue.map(|(_, share)| share).sum()
        };
        for (class, idle, target) in [
            (Class::TaskBlocked, 0.0, 0.0),
            (Class::WorkerParked, 0.0, 1.0),
            (Class::TaskPreempted, 1.0, 1.0),
            // It is not known what threads of this class slept for.
            (Class::ThreadBlocked, 1.0, 1.0),
        ] {
            assert_eq!(run_queue(class, Some(Before::Idle)), idle, "{class:?}");
            assert_eq!(run_queue(class, Some(Before::Target)), target, "{class:?}");
            assert_eq!(run_queue(class, Some(Before::Other)), 1.0, "{class:?}");
            assert_eq!(run_queue(class, None), 1.0, "{class:?}");
        }
    }

    #[test]
    fn a_class_that_never_slept_in_the_run_with_stacks_is_unknown() {
        assert_eq!(SleepCauses::default().shares(5), [(Category::Unknown, 1.0)]);
    }
}
