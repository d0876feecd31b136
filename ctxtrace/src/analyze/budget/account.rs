//! Where the time of all threads goes in the measured section of a run, for each message: the budget of [`crate::correlate`],
//! with the time on the CPU shared out by samples, and the time asleep by the stacks of another run.
//!
//! Each part is put down to what it is for. Time in the kernel belongs to what called it, if that has a name of its own: a
//! futex call belongs to the lock or to the scheduler that made it. Some time is only waiting: a worker that has nothing to do
//! sleeps because the work is elsewhere. It is a part of the sum, and no cause.
//!
//! A thread that was woken waits for a CPU. What that wait is for hangs on who has the CPU ([`Before`]):
//!
//! * Nobody: it is what a sleep costs, whatever the sleep was for. An idle CPU has to wake up.
//! * A thread of the program itself: after a lock, or whatever else it chose to sleep for in the middle of its work, it is the
//!   end of that (who gives a lock back goes on to run where it has woken another). After a sleep for want of work there are
//!   more threads with work than CPUs: the run queue.
//! * Another program: the run queue.
//!
//! A thread that the CPU quota of its cgroup took off its CPU waits for that quota, whoever has the CPU.

use crate::sums::{SaturatingSum, add};
use std::collections::BTreeMap;

use ctxtrace_common::ledger::Class;
use ctxtrace_common::stack::{SumKey, SwitchSum};
use schemars::JsonSchema;
use serde::Serialize;

use crate::analyze::profile;
use crate::correlate::budget::{Budget, Window};
use crate::correlate::intervals::{Before, State};
use crate::correlate::ledger::{entry_of, ledger};
use crate::symbolize::category::{Belongs, Category, calls_from, off_cpu, on_cpu};
use crate::symbolize::stacks;
use crate::trace::run::Run;
use crate::trace::symbols::Frame;

/// How a thread spent a part of its time.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum Spent {
    /// On a CPU, in the program
    OnCpuUser,
    /// On a CPU, in the kernel
    OnCpuKernel,
    /// On a CPU; in which of the two is not known
    OnCpu,
    /// Ready to run, without a CPU
    RunQueue,
    /// Asleep
    Blocked,
    /// Off the CPU: how long asleep and how long ready is not known of each part
    OffCpu,
}

impl Spent {
    /// As it is called in tables.
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

/// What a part of the time is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum Cause {
    /// Code of this kind, and what it calls the kernel for, and what it sleeps for
    Code(Category),
    /// Other programs had the CPU, or threads of this one that had work
    RunQueue,
    /// The CPU quota of its cgroup kept it off the CPU
    Quota,
    /// A wait for a CPU, or for the CPU quota of its cgroup: there was one that throttled, and the kernel does not say of which thread
    RunQueueOrQuota,
}

impl Cause {
    /// As it is called in sentences.
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
pub struct Part {
    /// How it was spent.
    pub spent: Spent,
    /// Off the CPU: the class of the switch that ended the time before; its number.
    pub class: u8,
    /// What for.
    pub cause: Cause,
}

impl Part {
    /// The class of the ledger, of time off the CPU.
    #[must_use]
    pub fn class(&self) -> Option<Class> {
        matches!(self.spent, Spent::RunQueue | Spent::Blocked | Spent::OffCpu)
            .then(|| Class::from_number(u32::from(self.class)))
            .flatten()
    }

    /// Whether it is a thread's waiting for work, and no work.
    #[must_use]
    pub fn is_waiting(&self) -> bool {
        if !matches!(self.spent, Spent::Blocked | Spent::OffCpu) {
            return false;
        }
        match self.class() {
            // Whatever a poll sleeps for, the tasks behind it wait.
            Some(Class::TaskBlocked) => false,
            Some(Class::ThreadBlocked | Class::Unattributed) => !matches!(
                self.cause,
                Cause::Code(Category::Locks | Category::Sleep | Category::Io | Category::Allocator)
            ),
            _ => true,
        }
    }
}

/// Time by stack, outermost frame first, nanoseconds a message.
pub type Stacks = BTreeMap<Vec<Frame>, f64>;

/// What threads sleep for, from a run with stacks.
#[derive(Clone, Debug, Default)]
pub struct Asleep {
    /// By the number of the class, nanoseconds.
    classes: BTreeMap<u8, BTreeMap<Category, u64>>,
    /// By what they were doing and the stack they left with.
    pub stacks: Stacks,
}

/// What a wait is for that is no end of a sleep, in a run with such cgroups.
fn wait_of(run: &Run) -> Cause {
    match &run.aggregates.cgroups {
        Some(cgroups) if !cgroups.threads_known && cgroups.any_throttled() => Cause::RunQueueOrQuota,
        _ => Cause::RunQueue,
    }
}

impl Asleep {
    /// Adds up a run with stacks, of so many messages.
    #[must_use]
    pub fn of(run: &Run, messages: f64) -> Self {
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

    /// What a wait for a CPU was for, by shares: after a switch-out of this class, when the CPU was had by that.
    fn wait(&self, class: u8, before: Option<Before>, run_queue: Cause) -> Vec<(Cause, f64)> {
        let belongs_to_sleep = |category| {
            let slept = Part {
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

    /// The shares of a class's sleep; all unknown where there was none.
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

/// Off-CPU time by class.
fn off_cpu_by_class(run: &Run) -> BTreeMap<Class, u64> {
    let mut classes = BTreeMap::new();
    for (entry, sum) in ledger(&run.aggregates).rows {
        *classes.entry(entry.class).or_default() += sum.off_cpu_ns;
    }
    classes
}

/// The budget of one run, for each message.
#[derive(Clone, Debug, Default)]
pub struct Account {
    /// Every part, nanoseconds a message.
    pub parts: BTreeMap<Part, f64>,
    /// On the CPU, by function, nanoseconds a message.
    pub functions: BTreeMap<Belongs, f64>,
    /// On the CPU, by stack.
    pub stacks: Stacks,
    /// From the first to the last message, nanoseconds a message.
    pub wall_ns: f64,
    /// Threads that were there.
    pub threads: u64,
    /// How long they were there, all together, nanoseconds a message.
    pub alive_ns: f64,
    /// Kernel switches, for each message.
    pub switches: f64,
    /// Samples that share out the time on the CPU.
    pub samples: u64,
}

impl Account {
    /// Of a run with samples: what its timeline came to in this window, in which there were so many messages.
    #[must_use]
    pub fn of(run: &Run, budget: &Budget, window: Window, messages: f64, asleep: &Asleep) -> Self {
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
        let part = |spent, class, cause| Part { spent, class, cause };
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

    /// Of a run without a timeline: what was added up of it from its beginning to its end. How long threads slept and how long
    /// they were ready is not known by class, nor what their time on the CPU was for.
    #[must_use]
    pub fn of_sums(run: &Run, messages: f64, asleep: &Asleep) -> Self {
        let threads = || run.aggregates.threads.iter().map(|record| &record.thread);
        let mut account = Self {
            switches: run.switches() as f64 / messages,
            wall_ns: run.outcome.map_or(run.recorded_ns, |outcome| outcome.elapsed_ns) as f64 / messages,
            threads: threads().count() as u64,
            ..Self::default()
        };
        let on_cpu_ns: u64 = threads().map(|thread| thread.on_cpu_ns).saturating_sum();
        account.add(
            Part {
                spent: Spent::OnCpu,
                class: 0,
                cause: Cause::Code(Category::Unknown),
            },
            on_cpu_ns as f64 / messages,
        );
        let mut throttled: BTreeMap<Class, u64> = BTreeMap::new();
        for (key, sum) in run.aggregates.switch_sums.iter().filter(|(key, _)| key.throttled != 0) {
            *throttled.entry(entry_of(key, &run.aggregates).class).or_default() += sum.off_cpu_ns;
        }
        for (class, ns) in &throttled {
            let part = Part {
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
                let part = Part {
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

    fn add(&mut self, part: Part, ns: f64) {
        *self.parts.entry(part).or_default() += ns;
    }

    /// All parts together, nanoseconds a message.
    #[must_use]
    pub fn sum_ns(&self) -> f64 {
        self.parts.values().sum()
    }

    /// The parts that are no waiting.
    #[must_use]
    pub fn busy_ns(&self) -> f64 {
        self.sum(|part| !part.is_waiting())
    }

    /// The parts put down to this that are no waiting.
    #[must_use]
    pub fn of_cause(&self, cause: Cause) -> f64 {
        self.sum(|part| part.cause == cause && !part.is_waiting())
    }

    /// What goes through the kernel, and is no waiting: its code, the run queue, and sleep. Kernel switches cost no more.
    #[must_use]
    pub fn kernel_ns(&self) -> f64 {
        self.sum(|part| !matches!(part.spent, Spent::OnCpuUser | Spent::OnCpu) && !part.is_waiting())
    }

    /// The parts that fit.
    #[must_use]
    pub fn sum(&self, fits: impl Fn(&Part) -> bool) -> f64 {
        self.parts.iter().filter(|(part, _)| fits(part)).map(|(_, ns)| ns).sum()
    }

    /// By how much the parts miss the time that the threads were there, of it: 0.01 is one in a hundred. Where all were there
    /// throughout, that is threads times wall time.
    #[must_use]
    pub fn misses(&self) -> f64 {
        (self.sum_ns() - self.alive_ns).abs() / self.alive_ns.max(f64::MIN_POSITIVE)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn part(spent: Spent, class: Class, category: Category) -> Part {
        Part {
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
        let asleep = Asleep {
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
            // Nothing is known of what it slept for.
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
        assert_eq!(Asleep::default().shares(5), [(Category::Unknown, 1.0)]);
    }
}
