//! The variants of the built-in workloads: is each what it says, and does it reconcile like the rest?

use std::fs::File;
use std::process::Command;

use ctxtrace::trace::file;
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
    ("every_variant_says_what_it_is", every_variant_says_what_it_is),
    ("idle_threads_are_there_and_sleep", idle_threads_are_there_and_sleep),
    ("jemalloc_is_what_is_used", jemalloc_is_what_is_used),
    (
        "jemalloc_that_is_not_there_is_asked_for",
        jemalloc_that_is_not_there_is_asked_for,
    ),
    ("a_buffer_fills_where_nobody_waits", a_buffer_fills_where_nobody_waits),
    (
        "a_buffer_of_go_fills_where_nobody_waits",
        a_buffer_of_go_fills_where_nobody_waits,
    ),
    (
        "the_measured_section_of_go_lies_within_the_recording",
        the_measured_section_of_go_lies_within_the_recording,
    ),
];

pub(crate) const LONG_TESTS: &[(&str, fn())] = &[
    (
        "what_is_planted_in_a_workload_is_there",
        what_is_planted_in_a_workload_is_there,
    ),
    (
        "what_is_planted_in_a_command_is_there",
        what_is_planted_in_a_command_is_there,
    ),
];

/// `ctxtrace run` of a variant, which must reconcile: the JSON's `workload`.
fn workload(line: &str) -> Value {
    let mut json = run_json(&format!("{line} --level counts"));
    assert_eq!(number(&json, "/reconciliation/difference"), 0, "{line}");
    assert_eq!(number(&json, "/lost/events"), 0, "{line}");
    json["workload"].take()
}

fn every_variant_says_what_it_is() {
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
            // One at the barrier, one asleep, one at the end; and what happens on the way.
            assert!(number(thread, "/voluntary") <= 25, "{mode}: {thread:#}");
        }
    }
}

fn jemalloc_is_what_is_used() {
    if !cfg!(feature = "jemalloc") {
        skip("this build is without the feature jemalloc");
    }
    // It speaks at the end, if it has ever been asked for memory.
    let speaks = |line: &str| {
        let output = command(&format!("run {line} --iterations 20000 --level counts --json -"))
            .env("_RJEM_MALLOC_CONF", "stats_print:true")
            .output()
            .expect("started");
        assert_eq!(output.status.code(), Some(0), "{line}: {}", stderr(&output));
        let json: Value = serde_json::from_slice(&output.stdout).expect("JSON");
        assert_eq!(number(&json, "/reconciliation/difference"), 0, "{line}");
        let allocator = json["workload"]["allocator"].as_str().expect("told").to_owned();
        (allocator, stderr(&output).contains("Begin jemalloc statistics"))
    };
    for mode in ["process", "thread", "task", "task-pool"] {
        let jemalloc = speaks(&format!("--mode {mode} --allocator jemalloc"));
        assert_eq!(jemalloc, ("jemalloc".to_owned(), true), "{mode}");
        assert_eq!(
            speaks(&format!("--mode {mode}")),
            ("system".to_owned(), false),
            "{mode}"
        );
    }
    // And its tasks are found like those of the other executable.
    let json = run_json("--mode task-pool --iterations 20000 --allocator jemalloc");
    assert!(number(&json, "/task_switches/total") > 20_000);
}

fn jemalloc_that_is_not_there_is_asked_for() {
    let folder = tempfile::tempdir().expect("a folder");
    let alone = folder.path().join("ctxtrace");
    std::fs::copy(CTXTRACE, &alone).expect("copied");
    let output = Command::new(&alone)
        .args(["run", "--mode", "task", "--allocator", "jemalloc"])
        .output()
        .expect("started");
    assert_eq!(output.status.code(), Some(1));
    assert!(stderr(&output).contains("cargo install"), "{}", stderr(&output));
}

/// What can be counted of a run: how often its tasks went to sleep by the clock, and which part of its samples was in the allocator. A
/// contended lock cannot be counted so: the channel has locks of its own, for which tasks sleep as often.
#[derive(Debug)]
struct Counted {
    clock_sleeps: i64,
    allocator_share: f64,
}

/// Runs `ctxtrace` twice with these words, once for its stacks and once for its samples.
fn counted(words: &[&str]) -> Counted {
    let folder = tempfile::tempdir().expect("a folder");
    let path = |name: &str| folder.path().join(name).to_str().expect("plain").to_owned();
    let (verb, rest) = words.split_first().expect("words");
    let run = |options: &str| {
        let output = command(verb)
            .args(options.split_whitespace())
            .args(rest)
            .output()
            .expect("started");
        assert_eq!(output.status.code(), Some(0), "{words:?}: {}", stderr(&output));
    };
    let (stacks, json) = (path("x.folded"), path("x.json"));
    run(&format!("--quiet --weight count --folded {stacks}"));
    run(&format!("--quiet --level timeline --sample 997 --json {json}"));
    let stacks = std::fs::read_to_string(stacks).expect("written");
    let sleeps = |function: &str| -> i64 {
        let lines = stacks
            .lines()
            .filter(|line| line.contains(";blocked;") && line.contains(function));
        lines
            .filter_map(|line| line.rsplit(' ').next()?.parse::<i64>().ok())
            .sum()
    };
    let json: Value = serde_json::from_slice(&std::fs::read(json).expect("written")).expect("JSON");
    let categories = json["on_cpu"]["categories"].as_array().expect("categories").iter();
    let allocator = categories.filter(|row| row["category"] == "allocator");
    Counted {
        clock_sleeps: sleeps("nanosleep"),
        allocator_share: allocator.filter_map(|row| row["share"].as_f64()).sum(),
    }
}

/// Each cause shows in what is counted, and the others do not. How long anything takes is not asserted. `sleeps`: how often the
/// program with the planted sleep calls `sleep`.
fn check_planted(sleeps: i64, counted: impl Fn(&str) -> Counted) {
    let [none, sleep, allocations] = ["none", "sleep", "allocations"].map(counted);
    assert_eq!(none.clock_sleeps, 0, "{none:?}");
    // A sleep of 50 us may be over before the thread is off the CPU.
    assert!((sleeps / 2..=sleeps).contains(&sleep.clock_sleeps), "{sleep:?}");
    assert!(
        allocations.allocator_share > none.allocator_share + 0.1,
        "{allocations:?} {none:?}"
    );
}

fn what_is_planted_in_a_workload_is_there() {
    // One for each thousand messages.
    check_planted(100, |plant| {
        let plant = if plant == "none" {
            String::new()
        } else {
            format!("--plant {plant}")
        };
        let line = format!("run --mode task-pool --buffer 64 --iterations 100000 {plant}");
        counted(&line.split_whitespace().collect::<Vec<_>>())
    });
    // It is the test's secret.
    let json = run_json("--mode task-pool --buffer 64 --iterations 1000 --level counts --plant mutex");
    assert!(!json.to_string().contains("plant"));
}

fn what_is_planted_in_a_command_is_there() {
    let planted = planted();
    let planted = planted.to_str().expect("plain");
    // One for each 250 messages: see `examples/planted.rs`.
    check_planted(400, |plant| {
        counted(&["record", "--", planted, plant, "--messages", "100000"])
    });
}

/// The most messages that were on their way at once.
fn most_in_flight(line: &str) -> i64 {
    let workload = workload(&format!("{line} --buffer 4096 --iterations 200000 --count-in-flight"));
    number(&workload, "/max_in_flight")
}

fn a_buffer_fills_where_nobody_waits() {
    let most = most_in_flight;
    assert!(most("--mode task") > 1_000);
    for line in [
        "--mode task --protocol lock-step",
        "--mode task-pool --protocol lock-step",
        "--mode task --protocol lock-step --channel tokio",
    ] {
        assert_eq!(most(line), 1, "{line}");
    }
    // How far the pool's tasks run ahead of each other is the scheduler's affair, but there is no more than fits.
    assert!((1..=2 * 4_097 + 3).contains(&most("--mode task-pool")));
    assert!((1..=2 * 4_096 + 3).contains(&most("--mode task-pool --channel tokio")));
}

fn a_buffer_of_go_fills_where_nobody_waits() {
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
    let folder = tempfile::tempdir().expect("a folder");
    for (index, line) in lines.iter().enumerate() {
        let capture = folder.path().join(format!("{index}.ctx"));
        let output = ctxtrace(&format!("run {line} --level timeline -o {}", capture.display()));
        assert_eq!(output.status.code(), Some(0), "{line}: {}", stderr(&output));
        let mut times = Vec::new();
        let saved = file::read(File::open(&capture).expect("a capture"), |_, events| {
            times.extend(events.iter().map(|event| event.at_ns));
        })
        .expect("readable");
        let outcome = saved.runs[0].outcome.expect("it ended");
        let started_ns = outcome.started_ns.expect("told");
        let ended_ns = started_ns + outcome.elapsed_ns;
        // The program is started before and ends after, and both are switches.
        assert!(times[0] < started_ns, "{line}: {} {started_ns}", times[0]);
        let last = times[times.len() - 1];
        assert!(ended_ns < last, "{line}: {ended_ns} {last}");
        // And most of its switches are made in between.
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
