//! The tasks of a capture: their names, their switches, and how many of these hit the kernel.
//!
//! The probe counts the polls. A program without a probe therefore has tasks, which tokio and Go number, but no counts of task
//! switches.

use ctxtrace_format::sums::{SaturatingSum, add};
use std::collections::BTreeMap;
use std::fmt;

use ctxtrace_abi::{HOOKED, MESSAGE_BUCKETS, NAMED_TASKS, TASK_INDICES};
use ctxtrace_common::locator::{GO_TASK, OTHER_TASKS, ROOT_TASK, TOKIO_TASK, start_of_go_others};
use ctxtrace_common::polls::{Gap, PollCounts};
use ctxtrace_common::process::{Image, TaskKey};
use ctxtrace_common::thread::INHERITED;

use super::ledger::Ledger;
use ctxtrace_format::Aggregates;

/// The switches of one task.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct TaskSums {
    /// Number of outermost polls of the task; `None` if they are not counted.
    pub task_switches: Option<u64>,
    /// Number of these polls that hit the kernel; `None` if they are not counted.
    pub hit_kernel: Option<u64>,
    /// Number of kernel switches while the task was polled.
    pub kernel_switches: u64,
    /// Off-CPU time of these kernel switches, nanoseconds.
    pub off_cpu_ns: u64,
}

/// All task switches of a capture.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TaskSwitches {
    /// The numbers of polls, repolls and nested polls.
    pub polls: PollCounts,
    /// Numbers of task switches that hit the kernel, by [`Gap`].
    pub hits: [u64; Gap::COUNT],
    /// Number of hits that could not be attributed to a task.
    pub hits_of_unknown_task: u64,
    /// Number of threads that polled no task after their last park.
    pub unconfirmed: u64,
    /// Numbers of polls by the number of messages in them.
    pub messages_per_poll: [u64; MESSAGE_BUCKETS],
}

impl TaskSwitches {
    /// Number of task switches that hit the kernel.
    #[must_use]
    pub fn hit_kernel(&self) -> u64 {
        self.hits.iter().saturating_sum()
    }

    /// Number of task switches that did not hit the kernel.
    #[must_use]
    pub fn stayed_in_user(&self) -> u64 {
        self.polls.polls.saturating_sub(self.hit_kernel())
    }
}

/// Sums the task switches of all threads. Returns `None` if no thread had a probe.
#[must_use]
pub fn task_switches(aggregates: &Aggregates) -> Option<TaskSwitches> {
    let mut sum = TaskSwitches {
        polls: PollCounts::default(),
        hits: [0; Gap::COUNT],
        hits_of_unknown_task: 0,
        unconfirmed: 0,
        messages_per_poll: [0; MESSAGE_BUCKETS],
    };
    let mut any = false;
    for record in &aggregates.threads {
        let polls = &record.thread.polls;
        let total = polls.total();
        if !polls.is_read() && total == PollCounts::default() || record.thread.flags & INHERITED != 0 {
            continue;
        }
        any = true;
        add(&mut sum.polls.polls, total.polls);
        add(&mut sum.polls.repolls, total.repolls);
        add(&mut sum.polls.nested_polls, total.nested_polls);
        for (sum, hits) in sum.hits.iter_mut().zip(&polls.hits) {
            add(sum, *hits);
        }
        add(&mut sum.hits_of_unknown_task, polls.hits_of_unknown_task);
        if polls.unconfirmed().is_some() {
            add(&mut sum.unconfirmed, record.threads);
        }
    }
    for handover in &aggregates.handovers {
        for (sum, polls) in sum.messages_per_poll.iter_mut().zip(&handover.tables.messages_per_poll) {
            add(sum, *polls);
        }
    }
    any.then_some(sum)
}

/// Returns every task that was polled at a kernel switch, or whose polls a probe counted.
#[must_use]
pub fn tasks(aggregates: &Aggregates, ledger: &Ledger) -> BTreeMap<TaskKey, TaskSums> {
    let mut tasks: BTreeMap<TaskKey, TaskSums> = BTreeMap::new();
    for (entry, sum) in &ledger.rows {
        if let Some(key) = entry.task {
            let task = tasks.entry(key).or_default();
            add(&mut task.kernel_switches, sum.count);
            add(&mut task.off_cpu_ns, sum.off_cpu_ns);
        }
    }
    let mut polls: BTreeMap<TaskKey, u64> = BTreeMap::new();
    for handover in &aggregates.handovers {
        for (index, &count) in handover
            .tables
            .polls_by_task
            .iter()
            .enumerate()
            .filter(|(_, count)| **count > 0)
        {
            add(polls.entry(of_index(handover.image, index)).or_default(), count);
        }
    }
    for (key, count) in polls {
        let task = tasks.entry(key).or_default();
        task.task_switches = Some(count);
        task.hit_kernel = Some(0);
    }
    for (key, hits) in &aggregates.hits {
        let task = tasks.entry(of_index(key.image, key.task as usize)).or_default();
        task.hit_kernel = Some(*hits);
    }
    // A task that a probe knows but never counted was polled only within the polls of other tasks.
    for (key, task) in &mut tasks {
        if task.task_switches.is_none() && aggregates.names.contains_key(&key.image) && is_counted(key.task) {
            task.task_switches = Some(0);
            task.hit_kernel = Some(0);
        }
    }
    tasks
}

/// Whether a task with this id has an index in the probe's tables.
fn is_counted(id: u64) -> bool {
    id < NAMED_TASKS as u64 || id & HOOKED != 0 && id & !HOOKED < NAMED_TASKS as u64 || id == OTHER_TASKS
}

/// The task with this index in the probe's tables.
fn of_index(image: Image, index: usize) -> TaskKey {
    debug_assert!(index < TASK_INDICES);
    let task = match index {
        0 => OTHER_TASKS,
        index if index < NAMED_TASKS => index as u64,
        index => (index - NAMED_TASKS) as u64 | HOOKED,
    };
    TaskKey { task, image }
}

/// What a task is called.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TaskName<'a> {
    /// The name that the program gave the task.
    Given(&'a str),
    /// The future given to `block_on`.
    Root,
    /// The number of a task without a name.
    Number(u64),
    /// The number of a goroutine.
    Goroutine(u64),
    /// Several tasks, because a table had no room for each of them.
    Shared,
}

impl TaskName<'_> {
    /// Whether the name does not say what the task is: it is a number, or the name of several tasks.
    #[must_use]
    pub fn is_number(self) -> bool {
        matches!(self, Self::Number(_) | Self::Goroutine(_) | Self::Shared)
    }
}

impl fmt::Display for TaskName<'_> {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Given(name) => formatter.write_str(name),
            Self::Root => formatter.write_str("root"),
            Self::Number(number) => write!(formatter, "#{number}"),
            Self::Goroutine(number) => write!(formatter, "goroutine {number}"),
            Self::Shared => formatter.write_str("other"),
        }
    }
}

/// Returns what a task is called.
#[must_use]
pub fn task_name(aggregates: &Aggregates, key: TaskKey) -> TaskName<'_> {
    match key.task {
        ROOT_TASK => TaskName::Root,
        id if is_shared(id) => TaskName::Shared,
        id if is_of_go(id) => TaskName::Goroutine(number(id)),
        id => {
            let names = aggregates.names.get(&key.image);
            let name = names.and_then(|names| names.get(usize::try_from(id).ok()?));
            match name {
                Some(name) if !name.is_empty() => TaskName::Given(name),
                _ => TaskName::Number(number(id)),
            }
        }
    }
}

/// Returns what a task is called, as text.
#[must_use]
pub fn name(aggregates: &Aggregates, key: TaskKey) -> String {
    task_name(aggregates, key).to_string()
}

/// The number that the program or its runtime gave a task; 0 for the root future and for ids that several tasks share.
#[must_use]
pub fn number(id: u64) -> u64 {
    match id {
        ROOT_TASK => 0,
        id if is_shared(id) => 0,
        id => id & !(HOOKED | TOKIO_TASK | GO_TASK),
    }
}

/// Whether this is the id of a goroutine, or the id that several goroutines share.
#[must_use]
pub fn is_of_go(id: u64) -> bool {
    start_of_go_others(id).is_some() || id & GO_TASK != 0 && id & (HOOKED | TOKIO_TASK) == 0
}

/// Whether several tasks share this id because a table had no room for each of them.
#[must_use]
pub fn is_shared(id: u64) -> bool {
    id == OTHER_TASKS || start_of_go_others(id).is_some()
}

/// Number of tasks that programs with a probe created beyond the capacity of the probe's tables.
#[must_use]
pub fn beyond_the_tables(aggregates: &Aggregates) -> u64 {
    let mut created: BTreeMap<Image, u64> = BTreeMap::new();
    for handover in &aggregates.handovers {
        let tasks = created.entry(handover.image).or_default();
        *tasks = (*tasks).max(handover.tasks_created);
    }
    created
        .values()
        .map(|tasks| tasks.saturating_sub(NAMED_TASKS as u64 - 1))
        .saturating_sum()
}

#[cfg(test)]
mod tests {
    use super::super::ledger::ledger;
    use super::*;
    use ctxtrace_common::handover::Handover;
    use ctxtrace_common::ledger::Class;
    use ctxtrace_common::stack::SwitchSum;
    use ctxtrace_format::build;

    const IMAGE: Image = Image { tgid: 100, number: 0 };

    fn key(task: u64) -> TaskKey {
        TaskKey { task, image: IMAGE }
    }

    fn handover(polls: &[(usize, u64)]) -> Handover {
        let mut handover: Handover = bytemuck::Zeroable::zeroed();
        handover.image = IMAGE;
        for &(index, count) in polls {
            handover.tables.polls_by_task[index] = count;
        }
        handover
    }

    #[test]
    fn a_tasks_numbers_come_together_from_all_threads() {
        let mut aggregates = build::aggregates(vec![]);
        aggregates.switch_sums = vec![(
            build::sum_key(Class::TaskPreempted, 2),
            SwitchSum {
                count: 4,
                off_cpu_ns: 70,
            },
        )];
        aggregates.handovers = vec![handover(&[(1, 10), (2, 5)]), handover(&[(2, 6), (0, 1)])];
        aggregates.hits = vec![(key(2), 3)];
        aggregates
            .names
            .insert(IMAGE, vec![String::new(), "sender".to_owned(), "repeater".to_owned()]);
        let tasks = tasks(&aggregates, &ledger(&aggregates));
        assert_eq!(
            tasks[&key(2)],
            TaskSums {
                task_switches: Some(11),
                hit_kernel: Some(3),
                kernel_switches: 4,
                off_cpu_ns: 70
            }
        );
        assert_eq!(
            (tasks[&key(1)].task_switches, tasks[&key(1)].hit_kernel),
            (Some(10), Some(0))
        );
        assert_eq!(tasks[&key(OTHER_TASKS)].task_switches, Some(1));
        assert_eq!(name(&aggregates, key(2)), "repeater");
    }

    #[test]
    fn a_name_that_looks_like_a_number_is_a_name() {
        let mut aggregates = build::aggregates(vec![]);
        let names = ["", "goroutine pool", "#1", "other"].map(str::to_owned);
        aggregates.names.insert(IMAGE, names.to_vec());
        for id in 1..4 {
            let name = task_name(&aggregates, key(id));
            assert!(!name.is_number(), "{name}");
        }
        for id in [GO_TASK | 7, TOKIO_TASK | 7, OTHER_TASKS, 4] {
            let name = task_name(&aggregates, key(id));
            assert!(name.is_number(), "{name}");
        }
    }

    #[test]
    fn without_a_probe_a_task_has_a_number_and_no_switches() {
        let mut aggregates = build::aggregates(vec![]);
        let sum = SwitchSum {
            count: 1,
            off_cpu_ns: 0,
        };
        aggregates.switch_sums = vec![
            (build::sum_key(Class::TaskBlocked, TOKIO_TASK | 17), sum),
            (build::sum_key(Class::TaskBlocked, ROOT_TASK), sum),
        ];
        let tasks = tasks(&aggregates, &ledger(&aggregates));
        assert_eq!(tasks[&key(TOKIO_TASK | 17)].task_switches, None);
        assert_eq!(name(&aggregates, key(TOKIO_TASK | 17)), "#17");
        assert_eq!(name(&aggregates, key(ROOT_TASK)), "root");
        assert_eq!(task_switches(&aggregates), None);
    }

    #[test]
    fn a_task_that_was_only_polled_within_others_has_no_task_switches() {
        let mut aggregates = build::aggregates(vec![]);
        let sum = SwitchSum {
            count: 1,
            off_cpu_ns: 0,
        };
        aggregates.switch_sums = vec![(build::sum_key(Class::TaskBlocked, 2), sum)];
        aggregates
            .names
            .insert(IMAGE, vec![String::new(), "outer".to_owned(), "inner".to_owned()]);
        let tasks = tasks(&aggregates, &ledger(&aggregates));
        assert_eq!(
            (tasks[&key(2)].task_switches, tasks[&key(2)].hit_kernel),
            (Some(0), Some(0))
        );
    }

    #[test]
    fn hooked_tasks_have_their_runtimes_number() {
        assert_eq!(of_index(IMAGE, NAMED_TASKS + 9).task, HOOKED | 9);
        let aggregates = build::aggregates(vec![]);
        assert_eq!(name(&aggregates, key(HOOKED | 9)), "#9");
    }

    #[test]
    fn goroutines_have_gos_number() {
        let aggregates = build::aggregates(vec![]);
        assert_eq!(name(&aggregates, key(GO_TASK | 1)), "goroutine 1");
        assert_eq!(number(GO_TASK | 1), 1);
        let others = ctxtrace_common::locator::go_others(0x48_0000);
        assert_eq!((name(&aggregates, key(others)).as_str(), number(others)), ("other", 0));
        for (id, is) in [(GO_TASK | 7, true), (others, true)] {
            assert_eq!(is_of_go(id), is, "{id:#x}");
        }
        for id in [7, HOOKED | 7, TOKIO_TASK | 7, ROOT_TASK, OTHER_TASKS] {
            assert!(!is_of_go(id), "{id:#x}");
        }
    }

    #[test]
    fn tasks_beyond_the_tables_are_counted_once_a_program() {
        let mut aggregates = build::aggregates(vec![]);
        let (mut early, mut late) = (handover(&[]), handover(&[]));
        early.tasks_created = 600;
        late.tasks_created = 700;
        aggregates.handovers = vec![early, late];
        assert_eq!(beyond_the_tables(&aggregates), 700 - 511);
    }

    #[test]
    fn task_switches_are_those_of_all_threads_that_have_a_probe() {
        let mut worker = build::thread(101, "worker", 3, 0);
        let counts = |polls| PollCounts {
            polls,
            ..PollCounts::default()
        };
        worker.thread.polls.observe(counts(0), Some(Gap::Parked), true);
        worker.thread.polls.observe(counts(9), Some(Gap::Preempted), true);
        worker.thread.polls.observe(counts(10), Some(Gap::Parked), true);
        let aggregates = build::aggregates(vec![worker, build::thread(102, "other", 1, 0)]);
        let switches = task_switches(&aggregates).expect("one has");
        assert_eq!(switches.polls.polls, 10);
        assert_eq!((switches.hit_kernel(), switches.stayed_in_user()), (2, 8));
        assert_eq!(switches.unconfirmed, 1);
    }
}
