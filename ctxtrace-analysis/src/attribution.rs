//! The part of the result that attributes kernel switches to tasks: what the program was doing at each switch.

use ctxtrace_format::sums::{SaturatingSum, add};
use std::collections::{BTreeMap, HashMap};

use ctxtrace_common::histogram::upper_bound;
use ctxtrace_common::locator::{HAS_GO, HAS_PROBE, HAS_TOKIO, Reason};
use ctxtrace_common::polls::Gap;
use ctxtrace_common::process::TaskKey;

use super::nulls::Nulls;
use super::percentile::of_buckets;
use super::result::{Hits, LedgerRow, Locator, MessagesPerPoll, Task, TaskSwitches, TaskType, Wakeups};
use super::unseen;
use crate::correlate::ledger::Ledger;
use crate::correlate::tasks;
use crate::correlate::wakeups::wakeups as edges;
use ctxtrace_format::Aggregates;
use ctxtrace_format::executable::reason_in_words;
use ctxtrace_format::programs::Program;
use ctxtrace_format::run::Run;
use ctxtrace_format::workload::Outcome;

/// Why the figures about polls are null if no program of the target uses the probe.
const NO_PROBE: &str = "no thread of the target counts its polls: the program does not use ctxtrace-probe";

/// Why the figures about task switches are null for goroutines.
const GO_COUNTS_NONE: &str =
    "Go keeps no count of goroutine switches that could be read without stopping the program at each switch";

pub(super) fn task_switches(run: &Run, no_messages: &str, nulls: &mut Nulls) -> Option<TaskSwitches> {
    let programs = run.aggregates.programs.all().iter();
    let flags = programs.fold(0, |all, program| all | program.found.locator.flags);
    let why_not = match flags & (HAS_GO | HAS_TOKIO | HAS_PROBE) {
        HAS_GO => GO_COUNTS_NONE,
        _ => NO_PROBE,
    };
    let switches = nulls.or(tasks::task_switches(&run.aggregates), "task_switches", why_not)?;
    let per_message = |outcome: Outcome| switches.polls.polls as f64 / outcome.messages as f64;
    let total = switches.polls.polls;
    let hits = |gap: Gap| switches.hits[gap as usize];
    Some(TaskSwitches {
        total,
        repolls: switches.polls.repolls,
        nested_polls: switches.polls.nested_polls,
        stayed_in_user: switches.stayed_in_user(),
        hit_kernel: switches.hit_kernel(),
        unconfirmed: switches.unconfirmed,
        per_message: nulls.or(run.outcome.map(per_message), "task_switches.per_message", no_messages),
        hits: Hits {
            worker_parked: hits(Gap::Parked),
            blocked: hits(Gap::Blocked),
            preempted: hits(Gap::Preempted),
            of_unknown_task: switches.hits_of_unknown_task,
        },
        messages_per_poll: nulls.or(
            messages_per_poll(&switches.messages_per_poll),
            "task_switches.messages_per_poll",
            "no polling thread reported its counters when it exited",
        ),
    })
}

fn messages_per_poll(buckets: &[u64]) -> Option<MessagesPerPoll> {
    let last = buckets.iter().rposition(|&polls| polls > 0)?;
    let percentile = |p| of_buckets(buckets, p).unwrap_or(0);
    Some(MessagesPerPoll {
        polls: buckets.iter().saturating_sum(),
        without: buckets[0],
        p50: percentile(0.5),
        p90: percentile(0.9),
        p99: percentile(0.99),
        max: upper_bound(last),
    })
}

pub(super) fn ledger_rows(aggregates: &Aggregates, ledger: &Ledger, nulls: &mut Nulls) -> Vec<LedgerRow> {
    let rows = ledger
        .rows
        .iter()
        .map(|(entry, sum)| LedgerRow {
            class: entry.class,
            reason: (entry.reason != Reason::None).then(|| reason_in_words(entry.reason).to_owned()),
            task: entry.task.map(|key| tasks::name(aggregates, key)),
            task_id: entry.task.map(|key| tasks::number(key.task)),
            pid: entry.task.map(|key| key.image.tgid),
            count: sum.count,
            off_cpu_ns: sum.off_cpu_ns,
            open: None,
            open_ns: None,
        })
        .collect();
    unseen::with_open(rows, aggregates, ledger, nulls)
}

pub(super) fn task_rows(
    aggregates: &Aggregates,
    ledger: &Ledger,
    types: &HashMap<TaskKey, String>,
    nulls: &mut Nulls,
) -> Vec<Task> {
    let mut tasks: Vec<(TaskKey, tasks::TaskSums)> = tasks::tasks(aggregates, ledger).into_iter().collect();
    tasks.sort_by_key(|(key, task)| {
        let polls = task.task_switches.unwrap_or(0);
        (std::cmp::Reverse((task.kernel_switches, polls)), *key)
    });
    let mut rows = Vec::new();
    for (index, (key, task)) in tasks.into_iter().enumerate() {
        let path = |field: &str| format!("tasks[{index}].{field}");
        let why_not = if tasks::is_of_go(key.task) {
            GO_COUNTS_NONE
        } else {
            NOT_COUNTED
        };
        let name = tasks::task_name(aggregates, key);
        rows.push(Task {
            id: tasks::number(key.task),
            name: name.to_string(),
            is_number: name.is_number(),
            pid: key.image.tgid,
            future_type: types.get(&key).cloned(),
            task_switches: nulls.or(task.task_switches, &path("task_switches"), why_not),
            hit_kernel: nulls.or(task.hit_kernel, &path("hit_kernel"), why_not),
            kernel_switches: task.kernel_switches,
            off_cpu_ns: task.off_cpu_ns,
        });
    }
    rows
}

/// Why a task has no number of polls.
const NOT_COUNTED: &str = "the polls of this task are not counted, because ctxtrace-probe does not wrap the task";

pub(super) fn task_types(tasks: &[Task]) -> Vec<TaskType> {
    let mut types: BTreeMap<&str, TaskType> = BTreeMap::new();
    for task in tasks {
        let Some(name) = &task.future_type else { continue };
        let sum = types.entry(name).or_insert_with(|| TaskType {
            future_type: name.clone(),
            tasks: 0,
            kernel_switches: 0,
            off_cpu_ns: 0,
        });
        // Tasks that share the id of `other` are not counted, because their number is not known.
        sum.tasks += u64::from(task.id != 0 || task.name != "other");
        add(&mut sum.kernel_switches, task.kernel_switches);
        add(&mut sum.off_cpu_ns, task.off_cpu_ns);
    }
    let mut types: Vec<TaskType> = types.into_values().collect();
    types.sort_by_key(|sum| std::cmp::Reverse(sum.kernel_switches));
    types
}

pub(super) fn wakeups(aggregates: &Aggregates, nulls: &mut Nulls) -> Vec<Wakeups> {
    let mut rows = Vec::new();
    for (index, wakeups) in edges(aggregates).into_iter().enumerate() {
        let edge = &wakeups.edge;
        let path = |field: &str| format!("wakeups[{index}].{field}");
        let counted = |value: u64| wakeups.wasted_is_known.then_some(value);
        let uncounted = "the polls of the woken thread are not counted, so it is not known whether any followed";
        let buckets = edge.buckets();
        let percentile = |p| of_buckets(&buckets, p).map_or(0, |ns| ns.min(edge.max_ns));
        rows.push(Wakeups {
            origin: wakeups.origin,
            from_task: wakeups.from_task,
            from_thread: wakeups.from_thread,
            from_tid: wakeups.from_tid,
            to_thread: wakeups.to_thread,
            to_tid: wakeups.to_tid,
            count: edge.count,
            wasted: nulls.or(counted(edge.wasted), &path("wasted"), uncounted),
            wasted_on_cpu_ns: nulls.or(counted(edge.wasted_on_cpu_ns), &path("wasted_on_cpu_ns"), uncounted),
            waking_ns: nulls.or(
                (edge.timed > 0).then(|| edge.waking_ns as f64 / edge.timed as f64),
                &path("waking_ns"),
                "no wakeup of this thread by this waker was timed",
            ),
            p50_ns: percentile(0.5),
            p99_ns: percentile(0.99),
            max_ns: edge.max_ns,
            sum_ns: edge.sum_ns,
        });
    }
    rows
}

pub(super) fn locators(aggregates: &Aggregates) -> Vec<Locator> {
    aggregates.programs.all().iter().map(locator).collect()
}

fn locator(program: &Program) -> Locator {
    let found = &program.found;
    let names = [(HAS_PROBE, "probe"), (HAS_TOKIO, "tokio"), (HAS_GO, "go")];
    let names: Vec<&str> = names
        .into_iter()
        .filter(|(flag, _)| found.locator.flags & flag != 0)
        .map(|(_, name)| name)
        .collect();
    let name = if names.is_empty() {
        "none".to_owned()
    } else {
        names.join("+")
    };
    let reason = Reason::from_number(found.locator.reason);
    Locator {
        program: program.path.display().to_string(),
        locator: name,
        tokio_version: found.tokio_version.clone(),
        go_version: found.go_version.clone(),
        build_id: found.build_id.clone(),
        reason: (reason != Reason::None).then(|| {
            let detail = found
                .detail
                .as_ref()
                .map_or(String::new(), |detail| format!(" ({detail})"));
            format!("{}{detail}", reason_in_words(reason))
        }),
        note: found.detail.clone().filter(|_| reason == Reason::None),
    }
}
