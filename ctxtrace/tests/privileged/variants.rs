//! The variants of the built-in workloads: each does what its options say, and its counts reconcile.

use std::fs::File;
use std::process::Command;

use ctxtrace_format::file;
use serde_json::{Value, json};

use crate::explain::planted;
use crate::go::require_go;
use crate::harness::skip;
use crate::support::{CTXTRACE, command, ctxtrace, number, run_json, stderr};

pub(crate) const TESTS: &[(&str, fn())] = &[
    (
        "the_measured_section_lies_within_the_recording",
        the_measured_section_lies_within_the_recording,
    ),
    (
        "every_variant_is_named_in_the_report",
        every_variant_is_named_in_the_report,
    ),
    ("idle_threads_are_there_and_sleep", idle_threads_are_there_and_sleep),
    (
        "the_allocator_option_selects_jemalloc",
        the_allocator_option_selects_jemalloc,
    ),
    (
        "a_missing_jemalloc_executable_is_reported",
        a_missing_jemalloc_executable_is_reported,
    ),
    (
        "a_buffer_fills_unless_the_protocol_is_lock_step",
        a_buffer_fills_unless_the_protocol_is_lock_step,
    ),
    (
        "a_go_buffer_fills_only_with_the_pipelined_protocol",
        a_go_buffer_fills_only_with_the_pipelined_protocol,
    ),
    (
        "the_measured_section_of_go_lies_within_the_recording",
        the_measured_section_of_go_lies_within_the_recording,
    ),
];

pub(crate) const LONG_TESTS: &[(&str, fn())] = &[
    (
        "a_cause_planted_in_a_workload_takes_effect",
        a_cause_planted_in_a_workload_takes_effect,
    ),
    (
        "a_cause_planted_in_a_command_takes_effect",
        a_cause_planted_in_a_command_takes_effect,
    ),
];

/// Runs a variant with `ctxtrace run`, checks that its counts reconcile, and returns `workload` of the JSON report.
fn workload(line: &str) -> Value {
    let mut json = run_json(&format!("{line} --level counts"));
    assert_eq!(number(&json, "/reconciliation/difference"), 0, "{line}");
    assert_eq!(number(&json, "/lost/events"), 0, "{line}");
    json["workload"].take()
}

fn every_variant_is_named_in_the_report() {
    for (line, field, value) in [
        ("--mode task", "channel", json!("futures")),
        ("--mode task --buffer 1 --channel tokio", "channel", json!("tokio")),
        (
            "--mode task-pool --buffer 4096 --channel tokio",
            "channel",
            json!("tokio"),
        ),
        (
            "--mode task-pool --root block-on --buffer 1 --channel tokio",
            "channel",
            json!("tokio"),
        ),
        ("--mode task", "protocol", json!("pipelined")),
        ("--mode task --protocol lock-step", "protocol", json!("lock-step")),
        ("--mode task-pool --protocol lock-step", "protocol", json!("lock-step")),
        (
            "--mode task-pool --protocol lock-step --buffer 1 --channel tokio",
            "protocol",
            json!("lock-step"),
        ),
    ] {
        let workload = workload(&format!("{line} --iterations 50000"));
        assert_eq!(workload[field], value, "{line}: {workload:#}");
        assert_eq!(number(&workload, "/messages"), 50_000, "{line}");
    }
}

fn idle_threads_are_there_and_sleep() {
    for (mode, idle) in [("process", 4), ("thread", 2), ("task", 2), ("task-pool", 2)] {
        let json = run_json(&format!(
            "--mode {mode} --iterations 20000 --level counts --idle-threads 2"
        ));
        assert_eq!(number(&json, "/workload/idle_threads"), 2);
        assert_eq!(number(&json, "/reconciliation/difference"), 0, "{mode}");
        let threads = json["threads"].as_array().expect("threads").iter();
        let sleepers: Vec<_> = threads.filter(|thread| thread["name"] == "idle").collect();
        assert_eq!(sleepers.len(), idle, "{mode}");
        for thread in sleepers {
            // An idle thread is switched out at the barrier, in its sleep, and at its end, and a few more times in between.
            assert!(number(thread, "/voluntary") <= 25, "{mode}: {thread:#}");
        }
    }
}

fn the_allocator_option_selects_jemalloc() {
    if !cfg!(feature = "jemalloc") {
        skip("the tests were built without the feature jemalloc");
    }
    // With this option jemalloc prints statistics when the process exits, if it has allocated memory. Returns the reported
    // allocator and whether there were statistics.
    let allocator_of = |line: &str| {
        let output = command(&format!("run {line} --iterations 20000 --level counts --json -"))
            .env("_RJEM_MALLOC_CONF", "stats_print:true")
            .output()
            .expect("the program starts");
        assert_eq!(output.status.code(), Some(0), "{line}: {}", stderr(&output));
        let json: Value = serde_json::from_slice(&output.stdout).expect("valid JSON");
        assert_eq!(number(&json, "/reconciliation/difference"), 0, "{line}");
        let allocator = json["workload"]["allocator"].as_str().expect("a string").to_owned();
        (allocator, stderr(&output).contains("Begin jemalloc statistics"))
    };
    for mode in ["process", "thread", "task", "task-pool"] {
        let jemalloc = allocator_of(&format!("--mode {mode} --allocator jemalloc"));
        assert_eq!(jemalloc, ("jemalloc".to_owned(), true), "{mode}");
        assert_eq!(
            allocator_of(&format!("--mode {mode}")),
            ("system".to_owned(), false),
            "{mode}"
        );
    }
    // Tasks are found in the executable with jemalloc as in the other one.
    let json = run_json("--mode task-pool --iterations 20000 --allocator jemalloc");
    assert!(number(&json, "/task_switches/total") > 20_000);
}

fn a_missing_jemalloc_executable_is_reported() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let alone = folder.path().join("ctxtrace");
    std::fs::copy(CTXTRACE, &alone).expect("the file is copied");
    let output = Command::new(&alone)
        .args(["run", "--mode", "task", "--allocator", "jemalloc"])
        .output()
        .expect("the program starts");
    assert_eq!(output.status.code(), Some(1));
    assert!(stderr(&output).contains("cargo install"), "{}", stderr(&output));
}

/// Figures of a run that are independent of the speed of the machine: how often its tasks called a clock sleep, and the share of
/// its CPU samples in the allocator. There is no such figure for a contended lock, because tasks also sleep on the locks of the
/// channel.
#[derive(Debug)]
struct Counted {
    clock_sleeps: i64,
    allocator_share: f64,
}

/// Runs `ctxtrace` twice with these arguments, once for the stacks and once for the samples.
fn counted(words: &[&str]) -> Counted {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let path = |name: &str| folder.path().join(name).to_str().expect("a path in UTF-8").to_owned();
    let (verb, rest) = words.split_first().expect("at least one argument");
    let run = |options: &str| {
        let output = command(verb)
            .args(options.split_whitespace())
            .args(rest)
            .output()
            .expect("the program starts");
        assert_eq!(output.status.code(), Some(0), "{words:?}: {}", stderr(&output));
    };
    let (stacks, json) = (path("x.folded"), path("x.json"));
    run(&format!("--quiet --weight count --folded {stacks}"));
    run(&format!("--quiet --level timeline --sample 997 --json {json}"));
    let stacks = std::fs::read_to_string(stacks).expect("the file exists");
    let sleeps = |function: &str| -> i64 {
        let lines = stacks
            .lines()
            .filter(|line| line.contains(";blocked;") && line.contains(function));
        lines
            .filter_map(|line| line.rsplit(' ').next()?.parse::<i64>().ok())
            .sum()
    };
    let json: Value = serde_json::from_slice(&std::fs::read(json).expect("the file exists")).expect("valid JSON");
    let categories = json["on_cpu"]["categories"].as_array().expect("an array").iter();
    let allocator = categories.filter(|row| row["category"] == "allocator");
    Counted {
        clock_sleeps: sleeps("nanosleep"),
        allocator_share: allocator.filter_map(|row| row["share"].as_f64()).sum(),
    }
}

/// Checks that each planted cause is visible in the figures of its run and in no other. Nothing depends on how long a run takes.
/// `sleeps` is the number of sleeps of the program with the planted sleep.
fn check_planted(sleeps: i64, counted: impl Fn(&str) -> Counted) {
    let [none, sleep, allocations] = ["none", "sleep", "allocations"].map(counted);
    assert_eq!(none.clock_sleeps, 0, "{none:?}");
    // A sleep of 50 µs may be over before the thread is switched out.
    assert!((sleeps / 2..=sleeps).contains(&sleep.clock_sleeps), "{sleep:?}");
    assert!(
        allocations.allocator_share > none.allocator_share + 0.1,
        "{allocations:?} {none:?}"
    );
}

fn a_cause_planted_in_a_workload_takes_effect() {
    // The workload sleeps once per thousand messages.
    check_planted(100, |plant| {
        let plant = if plant == "none" {
            String::new()
        } else {
            format!("--plant {plant}")
        };
        let line = format!("run --mode task-pool --buffer 64 --iterations 100000 {plant}");
        counted(&line.split_whitespace().collect::<Vec<_>>())
    });
    // The report must not mention the planted cause.
    let json = run_json("--mode task-pool --buffer 64 --iterations 1000 --level counts --plant mutex");
    assert!(!json.to_string().contains("plant"));
}

fn a_cause_planted_in_a_command_takes_effect() {
    let planted = planted();
    let planted = planted.to_str().expect("a path in UTF-8");
    // The program sleeps once per 250 messages; see `examples/planted.rs`.
    check_planted(400, |plant| {
        counted(&["record", "--", planted, plant, "--messages", "100000"])
    });
}

/// Runs a workload and returns the maximum number of messages that were in flight at the same time.
fn most_in_flight(line: &str) -> i64 {
    let workload = workload(&format!("{line} --buffer 4096 --iterations 200000 --count-in-flight"));
    number(&workload, "/max_in_flight")
}

fn a_buffer_fills_unless_the_protocol_is_lock_step() {
    let most = most_in_flight;
    assert!(most("--mode task") > 1_000);
    for line in [
        "--mode task --protocol lock-step",
        "--mode task-pool --protocol lock-step",
        "--mode task --protocol lock-step --channel tokio",
    ] {
        assert_eq!(most(line), 1, "{line}");
    }
    // The scheduler determines how far the tasks of the pool run ahead of each other. The buffers limit it.
    assert!((1..=2 * 4_097 + 3).contains(&most("--mode task-pool")));
    assert!((1..=2 * 4_096 + 3).contains(&most("--mode task-pool --channel tokio")));
}

fn a_go_buffer_fills_only_with_the_pipelined_protocol() {
    require_go();
    assert_eq!(most_in_flight("--mode go"), 1);
    assert!(most_in_flight("--mode go --protocol pipelined") > 1_000);
}

fn the_measured_section_lies_within_the_recording() {
    measured_sections_lie_within(&[
        "--mode process --iterations 3000",
        "--mode process --language c --iterations 3000",
        "--mode thread --iterations 3000",
        "--mode task --iterations 50000",
        "--mode task-pool --iterations 50000",
    ]);
}

fn the_measured_section_of_go_lies_within_the_recording() {
    require_go();
    measured_sections_lie_within(&["--mode go --iterations 50000"]);
}

fn measured_sections_lie_within(lines: &[&str]) {
    let folder = tempfile::tempdir().expect("a temporary folder");
    for (index, line) in lines.iter().enumerate() {
        let capture = folder.path().join(format!("{index}.ctx"));
        let output = ctxtrace(&format!("run {line} --level timeline -o {}", capture.display()));
        assert_eq!(output.status.code(), Some(0), "{line}: {}", stderr(&output));
        let mut times = Vec::new();
        let saved = file::read(File::open(&capture).expect("the file exists"), |_, events| {
            times.extend(events.iter().map(|event| event.at_ns));
        })
        .expect("a readable capture");
        let outcome = saved.runs[0].outcome.expect("the run has an outcome");
        let started_ns = outcome.started_ns.expect("the run has a start time");
        let ended_ns = started_ns + outcome.elapsed_ns;
        // The program starts before the measured section and ends after it, with at least one event each.
        assert!(times[0] < started_ns, "{line}: {} {started_ns}", times[0]);
        let last = times[times.len() - 1];
        assert!(ended_ns < last, "{line}: {ended_ns} {last}");
        // Most switches happen within the measured section.
        let within = times
            .iter()
            .filter(|time| (started_ns..=ended_ns).contains(time))
            .count();
        if line.contains("process") || line.contains("thread") {
            assert!(
                within >= 6_000 && within * 10 > times.len() * 9,
                "{line}: {within} of {}",
                times.len()
            );
        }
    }
}
