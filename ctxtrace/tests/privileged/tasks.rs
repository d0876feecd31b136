//! Attribution of kernel switches to ledger classes and to tokio tasks.

use std::collections::BTreeMap;
use std::path::Path;
use std::process::Command;

use ctxtrace_abi::NAMED_TASKS;
use ctxtrace_analysis::correlate::tasks;
use ctxtrace_analysis::correlate::wakeups::wakeups;
use ctxtrace_common::ledger::Class;
use ctxtrace_common::locator::{OTHER_TASKS, Reason};
use ctxtrace_common::wakeup::WakeupOrigin;
use ctxtrace_format::name_of;
use ctxtrace_format::programs::LocatorChoice;
use ctxtrace_format::run::Run;

use crate::harness::{require_program, require_variable};
use crate::programs;
use crate::programs::tasks::{CROWD, READS, SLEEPS, TASKS};
use crate::support::{ledger_of, number, reconciled, run_json, switches_of, trace, trace_program, trace_program_by};

pub(crate) const KERNEL_TESTS: &[(&str, fn())] = &[
    ("sixty_four_tasks_are_distinguished", sixty_four_tasks_are_distinguished),
    ("every_mode_has_its_ledger", every_mode_has_its_ledger),
];

pub(crate) const TESTS: &[(&str, fn())] = &[
    (
        "a_child_before_its_execve_runs_no_task",
        a_child_before_its_execve_runs_no_task,
    ),
    (
        "a_task_that_blocks_in_its_polls_is_reported_by_name",
        a_task_that_blocks_in_its_polls_is_reported_by_name,
    ),
    (
        "a_task_beside_a_competitor_is_preempted",
        a_task_beside_a_competitor_is_preempted,
    ),
    ("a_pool_at_rest_only_parks", a_pool_at_rest_only_parks),
    (
        "on_one_thread_task_switches_stay_in_user_space",
        on_one_thread_task_switches_stay_in_user_space,
    ),
    (
        "tasks_beyond_the_tables_are_summed_and_counted",
        tasks_beyond_the_tables_are_summed_and_counted,
    ),
    (
        "an_unmodified_program_is_attributed_the_same",
        an_unmodified_program_is_attributed_the_same,
    ),
    (
        "each_state_of_a_tokio_thread_is_known",
        each_state_of_a_tokio_thread_is_known,
    ),
    (
        "a_wakeup_by_a_timer_has_the_waker_interrupt",
        a_wakeup_by_a_timer_has_the_waker_interrupt,
    ),
    (
        "a_program_that_overwrites_its_slot_is_unattributed",
        a_program_that_overwrites_its_slot_is_unattributed,
    ),
    ("a_stripped_program_is_unattributed", a_stripped_program_is_unattributed),
    (
        "unmodified_programs_of_many_tokio_releases_are_attributed",
        unmodified_programs_of_many_tokio_releases_are_attributed,
    ),
];

/// The maximum number of switches of a class beyond the expected ones, for example for page faults and contended locks.
const FEW: u64 = 6;

/// Checks that `count` is `least`, or more by at most [`FEW`]. It may also be 5 % less, rounded up, because a sleep makes no switch
/// if its timer expires before the thread is switched out, which happens when the hypervisor takes the CPU away.
fn between(count: u64, least: u64, what: &str) {
    assert!(
        (least - least.div_ceil(20)..=least + FEW).contains(&count),
        "{what}: {count}, expected {least} or a few more"
    );
}

fn a_task_that_blocks_in_its_polls_is_reported_by_name() {
    let traced = trace_program("blocker");
    reconciled(&traced);
    // A switch whose task could not be read, because the page was not in memory, is counted in `lost.task_reads`.
    let lost = traced.aggregates.counters.lost_task_reads;
    assert!(lost <= FEW, "{lost}");
    for (task, times) in [("blocker", SLEEPS), ("reader", READS)] {
        let switches = switches_of(&traced, task, Class::TaskBlocked);
        assert!(switches <= times + FEW, "{task}: {switches}");
        assert!(switches + lost >= times - times / 20, "{task}: {switches}, {lost} lost");
    }
}

fn a_task_beside_a_competitor_is_preempted() {
    let traced = trace_program("spinner");
    reconciled(&traced);
    // The task and its competitor take turns for 400 ms of CPU time. The longest slice of the scheduler is about 10 ms.
    let preempted = switches_of(&traced, "spinner", Class::TaskPreempted);
    assert!(preempted >= 5, "{preempted}");
    assert!(switches_of(&traced, "spinner", Class::TaskBlocked) <= FEW);
    assert!(
        ledger_of(&traced).of(Class::ThreadPreempted).count >= 5,
        "the competitor is not a runtime thread, and must be preempted as a plain thread"
    );
}

fn a_pool_at_rest_only_parks() {
    let traced = trace_program("resting-pool");
    reconciled(&traced);
    let mut classes: BTreeMap<Class, u64> = BTreeMap::new();
    for (key, sum) in &traced.aggregates.switch_sums {
        if name_of(&key.comm) == "worker" {
            *classes
                .entry(Class::from_number(u32::from(key.class)).expect("a class"))
                .or_default() += sum.count;
        }
    }
    let parked = classes[&Class::WorkerParked];
    // The number of parks depends on how soon a worker finds its task; each of the two workers parks at least once.
    assert!(parked >= 2, "{classes:?}");
    assert_eq!(classes[&Class::Exited], 2);
    // Other programs may preempt a worker, and a thread may block while it starts.
    let preempted = classes.get(&Class::RuntimePreempted).copied().unwrap_or(0);
    let others: u64 = classes.values().sum::<u64>() - parked - preempted - 2;
    assert!(others <= FEW, "{classes:?}");
    assert!(!classes.contains_key(&Class::Unattributed), "{classes:?}");
}

fn on_one_thread_task_switches_stay_in_user_space() {
    let json = run_json("--mode task --iterations 1000000");
    let total = number(&json, "/task_switches/total");
    // Three tasks handle each message, and each task ends its poll after it.
    assert!((2_900_000..3_200_000).contains(&total), "{total}");
    let hits = number(&json, "/task_switches/hit_kernel");
    assert!(hits < total / 1_000, "{hits} of {total}");
    assert_eq!(number(&json, "/task_switches/stayed_in_user") + hits, total);
    let by_task: i64 = json["tasks"]
        .as_array()
        .expect("tasks")
        .iter()
        .filter_map(|task| task["task_switches"].as_i64())
        .sum();
    assert_eq!(by_task, total);
    for name in ["sender", "repeater", "receiver"] {
        let tasks = json["tasks"].as_array().expect("tasks");
        let task = tasks.iter().find(|task| task["name"] == name).expect(name);
        assert!(number(task, "/task_switches") >= 999_000, "{name}");
    }
    assert_eq!(number(&json, "/task_switches/messages_per_poll/p50"), 1);
    assert_eq!(json["locators"][0]["locator"], "probe+tokio");
}

fn sixty_four_tasks_are_distinguished() {
    let traced = trace_program("many");
    reconciled(&traced);
    let (mut expected, mut missing) = (0, 0);
    for task in 0..TASKS {
        let (name, sleeps) = (format!("task-{task}"), 1 + task % 3);
        let switches = switches_of(&traced, &name, Class::TaskBlocked);
        assert!(
            switches <= sleeps + FEW,
            "{name}: {switches}, expected {sleeps} or a few more"
        );
        expected += sleeps;
        missing += sleeps.saturating_sub(switches);
    }
    // A single task may have no switch, for the reason that `between` gives.
    assert!(missing <= expected / 20, "{missing} of {expected} sleeps are missing");
}

fn tasks_beyond_the_tables_are_summed_and_counted() {
    let traced = trace_program("crowd");
    reconciled(&traced);
    const TRACKED: u64 = NAMED_TASKS as u64 - 1;
    assert_eq!(tasks::beyond_the_tables(&traced.aggregates), CROWD - TRACKED);
    let tasks = tasks::tasks(&traced.aggregates, &ledger_of(&traced));
    let (mut named, mut other) = (0, 0);
    for (key, task) in &tasks {
        // Just before and after a poll only tokio's own state identifies the task, by tokio's number for it. The rows of these
        // switches have no poll counts.
        match (key.task, task.task_switches) {
            (OTHER_TASKS, Some(polls)) => other += polls,
            (_, Some(polls)) => named += polls,
            (_, None) => {}
        }
    }
    assert_eq!(
        (named, other),
        (TRACKED, CROWD - TRACKED),
        "each task must be polled once"
    );
    between(
        switches_of(&traced, "other", Class::TaskBlocked),
        CROWD - TRACKED,
        "sleeps of the tasks beyond the table",
    );
    let counted = tasks::task_switches(&traced.aggregates).expect("the probe counts polls");
    assert_eq!(counted.polls.polls, CROWD);
}

/// Returns the names of the tasks with `task-blocked` switches and their numbers of these switches, in descending order.
pub(crate) fn blocked(traced: &Run) -> Vec<(String, u64)> {
    let ledger = ledger_of(traced);
    let mut counts: BTreeMap<String, u64> = BTreeMap::new();
    for (entry, sum) in ledger
        .rows
        .iter()
        .filter(|(entry, _)| entry.class == Class::TaskBlocked)
    {
        if let Some(task) = entry.task {
            *counts.entry(tasks::name(&traced.aggregates, task)).or_default() += sum.count;
        }
    }
    let mut counts: Vec<_> = counts.into_iter().collect();
    counts.sort_by_key(|(_, count)| std::cmp::Reverse(*count));
    counts
}

fn an_unmodified_program_is_attributed_the_same() {
    let with = trace_program("blocker");
    let without = trace_program("blocker-without-probe");
    let by_tokio_alone = trace_program_by("blocker", LocatorChoice::Tokio);
    let by_probe_alone = trace_program_by("blocker", LocatorChoice::Probe);
    for traced in [&with, &without, &by_tokio_alone, &by_probe_alone] {
        let counts: Vec<u64> = blocked(traced).into_iter().map(|(_, count)| count).collect();
        between(counts[0], SLEEPS, "sleeps");
        between(counts[1], READS, "reads");
        assert!(counts[2..].iter().sum::<u64>() <= FEW, "{counts:?}");
        let parked = ledger_of(traced).of(Class::WorkerParked).count;
        assert!(parked > 0, "no worker parked");
    }
    assert!(tasks::task_switches(&with.aggregates).is_some());
    assert_eq!(
        tasks::task_switches(&by_tokio_alone.aggregates),
        None,
        "polls were counted without the probe"
    );
}

fn each_state_of_a_tokio_thread_is_known() {
    for (program, task) in [
        ("root", Some("root")),
        ("root-of-a-pool", Some("root")),
        ("current-thread", None),
        ("local-set", None),
        ("spawn-blocking", None),
        ("block-in-place", None),
        ("unconstrained", None),
    ] {
        let traced = trace_program_by(program, LocatorChoice::Tokio);
        reconciled(&traced);
        let blocked = blocked(&traced);
        between(blocked[0].1, SLEEPS, program);
        match task {
            Some(name) => assert_eq!(blocked[0].0, name, "{program}"),
            // tokio identifies its tasks by number.
            None => assert!(blocked[0].0.starts_with('#'), "{program}: {blocked:?}"),
        }
        assert!(
            blocked[1..].iter().map(|(_, count)| count).sum::<u64>() <= FEW,
            "{program}: {blocked:?}"
        );
        let ledger = ledger_of(&traced);
        assert_eq!(
            ledger.of(Class::Unattributed).count,
            traced.aggregates.counters.lost_task_reads,
            "{program}"
        );
        let pool = !matches!(program, "root" | "current-thread" | "local-set");
        assert_eq!(
            ledger.of(Class::WorkerParked).count > 0,
            pool,
            "{program}: only the workers of a pool are counted as parked"
        );
        if program == "spawn-blocking" {
            assert!(
                ledger.of(Class::PoolIdle).count > 0,
                "the blocking thread does not wait for more work"
            );
        }
    }
}

fn a_wakeup_by_a_timer_has_the_waker_interrupt() {
    let traced = trace_program("sleeper-beside-spinner");
    let edges = wakeups(&traced.aggregates);
    let to_sleeper: Vec<_> = edges.iter().filter(|edge| edge.to_thread == "sleeper").collect();
    let count = |origin| -> u64 {
        let of = to_sleeper.iter().filter(|edge| edge.origin == origin);
        of.map(|edge| edge.edge.count).sum()
    };
    let lost = traced.aggregates.counters.lost_wakeups + traced.aggregates.counters.lost_intervals;
    assert!(count(WakeupOrigin::Interrupt) + lost >= SLEEPS, "{to_sleeper:?}");
    assert!(
        !to_sleeper.iter().any(|edge| edge.from_thread == "spinner"),
        "a timer's wakeup was attributed to the interrupted spinner: {to_sleeper:?}"
    );
}

fn a_program_that_overwrites_its_slot_is_unattributed() {
    let traced = trace_program_by("scribbler", LocatorChoice::Probe);
    reconciled(&traced);
    let ledger = ledger_of(&traced);
    let overwritten: u64 = ledger
        .rows
        .iter()
        .filter(|(entry, _)| entry.reason == Reason::Overwritten)
        .map(|(_, sum)| sum.count)
        .sum();
    between(overwritten, SLEEPS, "sleeps while the probe's slot is overwritten");
}

fn a_stripped_program_is_unattributed() {
    require_program("strip", "binutils");
    let folder = tempfile::tempdir().expect("a temporary folder");
    let stripped = folder.path().join("stripped");
    let strip = Command::new("strip")
        .arg("-o")
        .arg(&stripped)
        .arg(std::env::current_exe().expect("the path of this executable"))
        .status();
    assert!(strip.expect("strip starts").success());
    let traced = trace(&stripped, &[(programs::VARIABLE, "blocker")], LocatorChoice::Auto).run;
    assert_eq!(traced.exit.expect("the exit status is known").status, Some(0));
    reconciled(&traced);
    let ledger = ledger_of(&traced);
    // Switches during the `execve` and the switches of exiting threads have classes that need no task.
    let others = ledger.count() - ledger.of(Class::Unattributed).count - ledger.of(Class::Exited).count;
    assert!(others <= FEW, "{ledger:#?}");
    assert!(ledger.of(Class::Unattributed).count >= SLEEPS, "{ledger:#?}");
    assert!(
        ledger
            .rows
            .keys()
            .all(|entry| entry.class != Class::Unattributed || entry.reason == Reason::Stripped)
    );
    // The switches of a program without tasks are never unattributed, even if it is stripped.
    let traced = trace(Path::new("/bin/true"), &[], LocatorChoice::Auto).run;
    let ledger = ledger_of(&traced);
    assert_eq!(ledger.of(Class::Unattributed).count, 0, "{ledger:#?}");
}

fn every_mode_has_its_ledger() {
    for (mode, class) in [
        ("process", "thread-blocked"),
        ("thread", "thread-blocked"),
        ("task-pool", "worker-parked"),
    ] {
        let json = run_json(&format!("--mode {mode} --iterations 20000"));
        assert_eq!(json["ledger_adds_up"], true, "{mode}");
        let rows = json["ledger"].as_array().expect("rows");
        let sum: i64 = rows.iter().map(|row| number(row, "/count")).sum();
        assert_eq!(sum, number(&json, "/kernel_switches/total"), "{mode}");
        let off_cpu: i64 = rows.iter().map(|row| number(row, "/off_cpu_ns")).sum();
        assert_eq!(off_cpu, number(&json, "/latency/off_cpu/sum_ns"), "{mode}");
        assert!(rows.iter().any(|row| row["class"] == class), "{mode}: {rows:#?}");
        let woken: i64 = json["wakeups"]
            .as_array()
            .expect("edges")
            .iter()
            .map(|edge| number(edge, "/count"))
            .sum();
        assert_eq!(
            woken,
            number(&json, "/latency/wake_to_run/count"),
            "{mode}: wakeups by waker do not add up"
        );
    }
}

/// `cargo xtask test` builds the programs and passes their folder in a variable. Without the variable, as in a plain `cargo test`,
/// the test is skipped.
fn unmodified_programs_of_many_tokio_releases_are_attributed() {
    let folder = require_variable("CTXTRACE_TOKIO_PROGRAMS");
    let mut programs: Vec<_> = std::fs::read_dir(folder)
        .expect("a readable folder")
        .map(|entry| entry.expect("a readable entry").path())
        .collect();
    programs.sort();
    assert!(programs.len() >= 8, "{programs:?}");
    for program in programs {
        let name = program.file_name().expect("a name").to_string_lossy().into_owned();
        let traced = trace(&program, &[], LocatorChoice::Auto).run;
        assert_eq!(traced.exit.expect("the exit status is known").status, Some(0), "{name}");
        reconciled(&traced);
        let ledger = ledger_of(&traced);
        if name.starts_with("no-types") {
            let reasons = ledger.rows.keys().filter(|entry| entry.class == Class::Unattributed);
            assert!(reasons.clone().count() > 0, "{name}");
            assert!(
                reasons.into_iter().all(|entry| entry.reason == Reason::NoTypeInfo),
                "{name}"
            );
            continue;
        }
        let found = &traced
            .aggregates
            .programs
            .all()
            .last()
            .expect("the program was examined")
            .found;
        let version = name.rsplit('-').next().expect("a version");
        assert_eq!(found.tokio_version.as_deref(), Some(version), "{name}");
        let blocked = blocked(&traced);
        between(blocked[0].1, 40, &name);
        between(blocked[1].1, 20, &name);
        assert_eq!(blocked[2].0, "root", "{name}: {blocked:?}");
        between(blocked[2].1, 10, &name);
        assert!(ledger.of(Class::WorkerParked).count > 0, "{name}");
        assert_eq!(
            ledger.of(Class::Unattributed).count,
            traced.aggregates.counters.lost_task_reads,
            "{name}"
        );
        // Both tasks are futures of `async fn blocking`.
        let types = ctxtrace_analysis::symbolize::stacks::task_types(&traced.aggregates, &traced.symbols);
        let of_blocking = types.values().filter(|name| *name == "unmodified::blocking").count();
        assert!(of_blocking >= 2, "{name}: {types:?}");
    }
}

fn a_child_before_its_execve_runs_no_task() {
    for locator in [LocatorChoice::Auto, LocatorChoice::Probe, LocatorChoice::Tokio] {
        let traced = trace_program_by("launcher", locator);
        reconciled(&traced);
        let parent = traced.launched.as_ref().expect("the program was launched").pid;
        let of_children = || {
            let sums = traced.aggregates.switch_sums.iter();
            sums.filter(|(key, _)| key.tgid != parent)
        };
        let with_a_task: Vec<_> = of_children().filter(|(key, _)| key.task != 0).collect();
        assert!(with_a_task.is_empty(), "{locator:?}: {with_a_task:#?}");
        // Each child sleeps before its `execve`, while it still has the name that it inherited from its creator.
        let slept: u64 = of_children()
            .filter(|(key, _)| key.class == Class::ThreadBlocked as u8 && name_of(&key.comm) != "true")
            .map(|(_, sum)| sum.count)
            .sum();
        assert!(slept >= programs::tasks::LAUNCHED, "{locator:?}: {slept}");
        // The parent's task waited for each of them.
        let waited = ledger_of(&traced).of(Class::TaskBlocked).count;
        assert!(waited >= programs::tasks::LAUNCHED, "{locator:?}: {waited}");
    }
}
