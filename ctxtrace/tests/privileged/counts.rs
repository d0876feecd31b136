//! The figures of a report: counts reconcile with the kernel's, parts add up to totals, and known programs have the expected
//! figures.

use ctxtrace_common::histogram::{Latency, lower_bound};
use ctxtrace_common::ledger::Class;
use ctxtrace_common::thread::ThreadSummary;
use ctxtrace_format::name_of;
use ctxtrace_format::run::Run;
use serde_json::Value;

use crate::programs;
use crate::support::{number, reconciled, run_json, rusage_agrees, trace_program};

pub(crate) const PREEMPTIBLE_KERNEL_TESTS: &[(&str, fn())] = &[
    (
        "pinned_round_trips_make_two_switches_each",
        pinned_round_trips_make_two_switches_each,
    ),
    ("stack_sums_hold_every_switch_once", stack_sums_hold_every_switch_once),
    (
        "a_thread_that_executes_a_program_keeps_its_count",
        a_thread_that_executes_a_program_keeps_its_count,
    ),
];

pub(crate) const KERNEL_TESTS: &[(&str, fn())] = &[
    ("the_parts_of_a_run_add_up", the_parts_of_a_run_add_up),
    ("a_sleeper_shows_its_sleeps", a_sleeper_shows_its_sleeps),
    (
        "short_lived_processes_are_all_recorded",
        short_lived_processes_are_all_recorded,
    ),
];

pub(crate) const TESTS: &[(&str, fn())] = &[
    ("every_mode_reconciles_every_time", every_mode_reconciles_every_time),
    (
        "round_trips_in_c_make_two_switches_each",
        round_trips_in_c_make_two_switches_each,
    ),
    (
        "a_yielder_shows_involuntary_switches",
        a_yielder_shows_involuntary_switches,
    ),
    (
        "short_lived_threads_are_all_recorded",
        short_lived_threads_are_all_recorded,
    ),
    (
        "unchanged_stacks_are_not_walked_again",
        unchanged_stacks_are_not_walked_again,
    ),
    (
        "two_tracers_at_once_see_their_own_target_only",
        two_tracers_at_once_see_their_own_target_only,
    ),
];

/// Returns the only thread with this name. Panics if there is none or more than one.
fn thread_named<'a>(threads: impl Iterator<Item = &'a ThreadSummary>, name: &str) -> &'a ThreadSummary {
    let mut found: Vec<_> = threads.filter(|thread| name_of(&thread.comm) == name).collect();
    assert_eq!(found.len(), 1, "threads named {name}");
    found.remove(0)
}

fn every_mode_reconciles_every_time() {
    for line in [
        "--mode process --iterations 5000",
        "--mode process --iterations 5000 --pin split-cpus",
        "--mode thread --iterations 5000",
        "--mode thread --iterations 5000 --pin none",
        "--mode task --iterations 50000",
        "--mode task --iterations 50000 --buffer 4096 --root block-on",
        "--mode task-pool --iterations 50000",
        "--mode task-pool --iterations 50000 --buffer 4096 --level counts",
        "--mode task-pool --iterations 50000 --pin same-cpu",
        "--mode task-pool --iterations 50000 --pin split-cpus",
        "--mode task-pool --iterations 50000 --workers 8 --root block-on",
        "--mode process --iterations 1",
    ] {
        // `run_json` checks for exit status 0; a difference in any of the repeats would make the status 4.
        let json = run_json(&format!("{line} --repeat 2"));
        assert_eq!(number(&json, "/reconciliation/difference"), 0, "{line}");
        assert_eq!(number(&json, "/lost/events"), 0, "{line}");
        for run in json["workload"]["runs"].as_array().expect("runs") {
            assert_eq!(number(run, "/difference"), 0, "{line}");
            assert!(number(run, "/kernel_switches") > 0, "{line}");
        }
        rusage_agrees(&json);
    }
}

fn pinned_round_trips_make_two_switches_each() {
    for mode in ["process", "thread"] {
        let json = run_json(&format!("--mode {mode} --iterations 10000"));
        let total = number(&json, "/kernel_switches/total");
        // Both sides share one CPU and wait for each other, so each side is switched out at least once per round trip. The
        // scheduler determines how many of these switches are voluntary: a wakeup may preempt the waker before it sleeps.
        assert!(total >= 20_000, "{mode}: {total}");
        let parts = number(&json, "/kernel_switches/voluntary") + number(&json, "/kernel_switches/involuntary");
        assert_eq!(parts, total);
        // Other programs can preempt both sides any number of times. Voluntarily, each side sleeps once per round trip and a few
        // dozen times at the start and the end.
        let voluntary = number(&json, "/kernel_switches/voluntary");
        assert!(voluntary < 22_000, "{mode}: {voluntary}");
    }
}

fn round_trips_in_c_make_two_switches_each() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let stacks = folder.path().join("x.folded");
    let line = format!(
        "--mode process --language c --iterations 10000 --repeat 3 --folded {}",
        stacks.display()
    );
    let json = run_json(&line);
    assert_eq!(json["workload"]["language"], "c");
    assert_eq!(number(&json, "/workload/messages"), 10_000);
    assert!(number(&json, "/workload/elapsed_ns") > 0);
    rusage_agrees(&json);
    for run in json["workload"]["runs"].as_array().expect("runs") {
        assert_eq!(number(run, "/difference"), 0);
        // The round trips make 20,000 switches. The start and the end add a few, and other programs any number.
        let total = number(run, "/kernel_switches");
        assert!(total >= 20_000, "{total}");
    }
    let voluntary = number(&json, "/kernel_switches/voluntary");
    assert!(voluntary < 22_000, "{voluntary}");
    let stacks = std::fs::read_to_string(stacks).expect("the file exists");
    let with_names = stacks
        .lines()
        .filter(|line| line.contains(";main;") && line.contains("pipe_read"));
    let switches: i64 = with_names
        .filter_map(|line| line.rsplit(' ').next()?.parse::<i64>().ok())
        .sum();
    assert!(switches > 0, "no stack contains both main and pipe_read:\n{stacks}");
    for function in ["ping", "pong"] {
        assert!(stacks.contains(function), "{function} is missing in\n{stacks}");
    }
    // Other pinnings, and the smallest number of messages.
    for line in [
        "--pin none --iterations 5000",
        "--pin split-cpus --iterations 5000",
        "--iterations 1",
    ] {
        let json = run_json(&format!("--mode process --language c {line}"));
        assert_eq!(number(&json, "/reconciliation/difference"), 0, "{line}");
    }
}

fn the_parts_of_a_run_add_up() {
    let json = run_json("--mode task-pool --iterations 200000");
    let total = number(&json, "/kernel_switches/total");
    let threads = json["threads"].as_array().expect("threads");
    let sum = |field: &str| threads.iter().map(|thread| number(thread, field)).sum::<i64>();
    assert_eq!(sum("/voluntary") + sum("/involuntary"), total);
    assert_eq!(sum("/off_cpu_ns"), number(&json, "/latency/off_cpu/sum_ns"));
    assert_eq!(sum("/on_cpu_ns"), number(&json, "/latency/on_cpu/sum_ns"));
    assert_eq!(sum("/run_queue_ns"), number(&json, "/latency/run_queue/sum_ns"));
    assert_eq!(sum("/migrations"), number(&json, "/migrations"));
    // Every switch-out begins an off-CPU interval, which ends, stays open, or is counted in `lost.intervals`.
    let intervals = number(&json, "/latency/off_cpu/count")
        + number(&json, "/latency/off_cpu/open_intervals")
        + number(&json, "/lost/intervals");
    assert_eq!(intervals, total);
    for distribution in ["off_cpu", "blocked", "run_queue", "on_cpu", "wake_to_run"] {
        let field = |name: &str| number(&json, &format!("/latency/{distribution}/{name}"));
        let ascending = ["min_ns", "p50_ns", "p90_ns", "p99_ns", "p999_ns", "max_ns"].map(field);
        assert!(ascending.is_sorted(), "{distribution}: {ascending:?}");
    }
}

fn a_sleeper_shows_its_sleeps() {
    let traced = trace_program("sleeper");
    reconciled(&traced);
    let sleeper = thread_named(traced.aggregates.threads.iter().map(|record| &record.thread), "sleeper");
    // The thread may also be switched out for a page fault or be preempted; its sleeps are the blocked intervals of about 5 ms. The
    // limit is 4.7 ms because the timer is started before the switch-out, so a blocked interval is slightly shorter than the sleep.
    let blocked = traced.aggregates.latencies.get(Latency::Blocked);
    let long: u64 = blocked
        .buckets
        .iter()
        .enumerate()
        .filter(|&(bucket, _)| lower_bound(bucket) >= 4_700_000 && lower_bound(bucket) < 100_000_000)
        .map(|(_, &count)| count)
        .sum();
    // A sleep can be shorter if the thread loses the CPU between the start of its timer and its switch-out. The event that ends a
    // sleep can also be missing in a virtual machine (docs/SEMANTICS.md, "Lost"). How often either happens depends on the load of
    // the machine, so the test requires only half of the sleeps to have their full length.
    let counters = &traced.aggregates.counters;
    let least = programs::SLEEPS / 2;
    assert!(
        (least..=programs::SLEEPS + 10).contains(&long),
        "{long} long sleeps, {} intervals and {} wakeups lost",
        counters.lost_intervals,
        counters.lost_wakeups
    );
    assert!(sleeper.traced_voluntary >= least);
    // On-CPU and off-CPU time together cover the full length of every sleep, except for intervals and wakeups that were lost.
    let seen = programs::SLEEPS - (counters.lost_intervals + counters.lost_wakeups).min(5);
    assert!(sleeper.on_cpu_ns + sleeper.off_cpu_ns >= seen * 4_900_000);
    assert!(sleeper.off_cpu_ns >= least * 4_900_000, "{} ns", sleeper.off_cpu_ns);
    assert!(
        sleeper.off_cpu_ns - sleeper.run_queue_ns >= least * 4_700_000,
        "the sleeps are mostly run-queue time instead of blocked time"
    );
    assert_eq!(traced.aggregates.counters.lost_events, 0);
}

fn a_yielder_shows_involuntary_switches() {
    let traced = trace_program("yielder");
    reconciled(&traced);
    let yielder = thread_named(traced.aggregates.threads.iter().map(|record| &record.thread), "yielder");
    // The scheduler determines how many yields become switches: it may keep the thread on the CPU if its peer has had more CPU
    // time.
    let yielded = switches_of_comm(&traced, "yielder", Some(Class::Yielded));
    assert!(
        (1..=yielder.traced_involuntary).contains(&yielded),
        "{yielded} of {} involuntary switches",
        yielder.traced_involuntary
    );
    assert!(
        yielder.traced_voluntary < 100,
        "yields were counted as voluntary switches: {}",
        yielder.traced_voluntary
    );
    // A thread that yields stays runnable, so its off-CPU time is run-queue time.
    assert!(yielder.run_queue_ns >= yielder.off_cpu_ns / 2);
}

fn short_lived_threads_are_all_recorded() {
    let traced = trace_program("thread-storm");
    let reconciliation = reconciled(&traced);
    assert_eq!(reconciliation.threads.len() as u64, programs::THREADS + 1);
    assert_eq!(traced.aggregates.counters.lost_threads, 0);
    assert_eq!(traced.aggregates.counters.lost_records, 0);
}

fn short_lived_processes_are_all_recorded() {
    let traced = trace_program("fork-storm");
    let reconciliation = reconciled(&traced);
    assert_eq!(reconciliation.threads.len() as u64, programs::FORKS + 1);
    let children = reconciliation
        .threads
        .iter()
        .filter(|thread| thread.name == "true")
        .count();
    assert_eq!(
        children as u64,
        programs::FORKS,
        "the children are not named after the program that they executed"
    );
}

fn a_thread_that_executes_a_program_keeps_its_count() {
    let traced = trace_program("exec-by-thread");
    reconciled(&traced);
    let threads = &traced.aggregates.threads;
    // Reconciliation holds for each thread, although the thread that executed the program took over the id of the first thread.
    assert_eq!(threads.len(), 2);
    let sleep = thread_named(threads.iter().map(|record| &record.thread), "sleep");
    assert_eq!(
        sleep.tid,
        traced.launched.expect("the program was launched").pid,
        "the thread did not get the id of its thread group leader"
    );
    assert_eq!(sleep.traced(), sleep.counted_by_kernel());
    let total: u64 = threads.iter().map(|record| record.thread.traced()).sum();
    assert_eq!(total, traced.aggregates.counters.switches);
}

fn stack_sums_hold_every_switch_once() {
    let traced = trace_program("yielder");
    let counters = &traced.aggregates.counters;
    let sums = traced.aggregates.switch_sums.iter().map(|(_, sum)| sum);
    let (count, off_cpu_ns) = sums.fold((0, 0), |(count, ns), sum| (count + sum.count, ns + sum.off_cpu_ns));
    assert_eq!(count + counters.lost_stack_sums, counters.switches);
    assert_eq!(off_cpu_ns, traced.aggregates.latencies.get(Latency::OffCpu).sum_ns);
    assert_eq!(counters.lost_stacks, 0);
    let resolved = ctxtrace_analysis::symbolize::stacks::switches(&traced);
    let names = |stack: &ctxtrace_analysis::symbolize::stacks::ResolvedStack| {
        stack.frames.iter().map(|frame| frame.name.clone()).collect::<Vec<_>>()
    };
    let yielding: u64 = resolved
        .stacks
        .iter()
        .filter(|stack| {
            let names = names(stack);
            names.first().is_some_and(|name| **name == *"yielded")
                && names.get(1).is_some_and(|name| **name == *"yielder")
                && names.iter().any(|name| name.contains("sched_yield"))
                && names
                    .iter()
                    .any(|name| name.contains("std::thread::lifecycle::spawn_unchecked"))
                && names.last().is_some_and(|name| **name == *"__schedule")
        })
        .map(|stack| stack.count)
        .sum();
    // The stacks with all of these names (the start of the thread, the system call, the scheduler) are those of the yields that
    // became switches, and of no other switch.
    let yielded = switches_of_comm(&traced, "yielder", Some(Class::Yielded));
    let stacks = || resolved.stacks.iter().map(names).collect::<Vec<_>>();
    assert!(
        yielded > 0 && yielding == yielded,
        "{yielding} of {yielded} in {:#?}",
        stacks()
    );
    // Switches before the thread set its name are counted under the name that it inherited from its creator.
    let yielder = thread_named(traced.aggregates.threads.iter().map(|record| &record.thread), "yielder");
    let named = switches_of_comm(&traced, "yielder", None);
    assert!(
        (yielded..=yielder.traced()).contains(&named),
        "{named} of {}",
        yielder.traced()
    );
}

/// Returns the number of switches of all threads with this name, of one class or, for `None`, of all classes.
fn switches_of_comm(traced: &Run, comm: &str, class: Option<Class>) -> u64 {
    let sums = traced.aggregates.switch_sums.iter();
    sums.filter(|(key, _)| name_of(&key.comm) == comm && class.is_none_or(|class| key.class == class as u8))
        .map(|(_, sum)| sum.count)
        .sum()
}

/// A ping-pong has two recurring stacks: that of the read that blocks, and that of the write that wakes the other side. The tracer
/// memoises both after a few switches. It still walks one stack in 64 to check the memo; `lost.mistaken_stacks` counts the
/// differences and must be 0.
fn unchanged_stacks_are_not_walked_again() {
    for mode in ["process", "thread", "task-pool --buffer 0"] {
        let json = run_json(&format!("--mode {mode} --iterations 50000 --level stacks"));
        let switches = number(&json, "/kernel_switches/total");
        let reused = number(&json, "/overhead/stacks_reused");
        assert!(reused > switches / 2, "{mode}: {reused} of {switches}");
        let followed = number(&json, "/overhead/user_stacks_reused");
        assert!(followed > switches / 2, "{mode}: {followed} of {switches}");
        assert_eq!(number(&json, "/lost/user_stacks"), 0, "{mode}");
        assert_eq!(
            number(&json, "/lost/mistaken_stacks"),
            0,
            "{mode}: {reused} of {switches}"
        );
    }
}

fn two_tracers_at_once_see_their_own_target_only() {
    let start = |mode: &str| {
        crate::support::command(&format!("run --mode {mode} --iterations 20000 --level counts --json -"))
            .stdout(std::process::Stdio::piped())
            .stderr(std::process::Stdio::piped())
            .spawn()
            .expect("the program starts")
    };
    let (process, thread) = (start("process"), start("thread"));
    for (child, names) in [(process, ["process"].as_slice()), (thread, &["thread", "pong"])] {
        let output = child.wait_with_output().expect("the program ends");
        assert_eq!(output.status.code(), Some(0), "{}", crate::support::stderr(&output));
        let json: Value = serde_json::from_slice(&output.stdout).expect("valid JSON");
        let threads = json["threads"].as_array().expect("threads");
        assert_eq!(threads.len(), 2);
        for thread in threads {
            assert!(names.contains(&thread["name"].as_str().expect("a name")), "{thread}");
        }
    }
}
