//! Polls and wakes with their times (`--polls`): completeness, order, lost stamps, and programs that cannot record polls.

use std::collections::HashMap;
use std::fs::File;
use std::io::BufReader;

use ctxtrace_analysis::correlate::polls::{PollReplay, PollSlice};
use ctxtrace_common::event::Decoded;
use ctxtrace_format::events::EventSink;
use ctxtrace_format::file::{CapturePart, read_with_polls};
use serde_json::Value;

use crate::programs::tasks::FORKED_POLLS;
use crate::support::{command, ctxtrace, number, run_json, said, stderr, stdout};

pub(crate) const TESTS: &[(&str, fn())] = &[
    (
        "as_many_polls_are_recorded_as_the_probe_counted",
        as_many_polls_are_recorded_as_the_probe_counted,
    ),
    (
        "polls_follow_one_another_within_their_threads_lives",
        polls_follow_one_another_within_their_threads_lives,
    ),
    (
        "a_report_of_a_capture_has_the_same_polls",
        a_report_of_a_capture_has_the_same_polls,
    ),
    (
        "a_tiny_ring_counts_the_stamps_that_it_loses",
        a_tiny_ring_counts_the_stamps_that_it_loses,
    ),
    (
        "a_program_that_overwrites_its_poll_rings_does_no_harm",
        a_program_that_overwrites_its_poll_rings_does_no_harm,
    ),
    (
        "a_forked_process_records_its_own_polls",
        a_forked_process_records_its_own_polls,
    ),
    (
        "polls_that_cannot_be_recorded_are_refused_before_the_run",
        polls_that_cannot_be_recorded_are_refused_before_the_run,
    ),
];

/// Checks the polls of a report in which no stamp was lost.
fn check(json: &Value, line: &str) {
    let polls = &json["polls"];
    assert_eq!(number(json, "/lost/poll_stamps"), 0, "{line}");
    assert_eq!(polls["agrees"], Value::Bool(true), "{line}: {polls:#}");
    assert_eq!(number(polls, "/polls"), number(json, "/task_switches/total"), "{line}");
    assert_eq!(number(polls, "/open"), 0, "{line}");
    let all = number(polls, "/stamps");
    assert_eq!(all, 2 * number(polls, "/polls") + number(polls, "/wakes"), "{line}");
    // The numbers of polls agree for each task.
    let counted = |name: &str| {
        let mut tasks = json["tasks"].as_array().expect("an array").iter();
        let task = tasks.find(|task| task["name"] == name).expect("the task");
        number(task, "/task_switches")
    };
    for task in polls["tasks"].as_array().expect("an array") {
        let name = task["name"].as_str().expect("a name");
        assert_eq!(number(task, "/polls"), counted(name), "{line}: {name}");
    }
    // Each poll was caused by a wake on one path, or by none; and the legs of a path add up to its total.
    let mut arrived = 0;
    for path in polls["paths"].as_array().expect("an array") {
        arrived += number(path, "/wake_to_poll/count");
        let legs = path["legs"].as_array().expect("an array").iter();
        let parts = legs.filter(|leg| leg["leg"] != "wakers-poll" && leg["leg"] != "poll");
        let sum: i64 = parts.map(|leg| number(leg, "/sum_ns")).sum();
        assert_eq!(sum, number(path, "/wake_to_poll/sum_ns"), "{line}: {path:#}");
        assert_ne!(path["path"], "unknown", "{line}");
    }
    assert_eq!(
        arrived + number(polls, "/without_wake"),
        number(polls, "/polls"),
        "{line}"
    );
}

fn way<'a>(json: &'a Value, path: &str) -> Option<&'a Value> {
    let mut paths = json["polls"]["paths"].as_array().expect("an array").iter();
    paths.find(|found| found["path"] == path)
}

fn as_many_polls_are_recorded_as_the_probe_counted() {
    for line in [
        "--mode task --iterations 50000",
        "--mode task --iterations 50000 --root block-on",
        "--mode task --iterations 200000 --buffer 4096",
        "--mode task-pool --iterations 50000",
        "--mode task-pool --iterations 200000 --buffer 4096",
        "--mode task-pool --iterations 20000 --workers 8",
        "--mode task-pool --iterations 20000 --channel tokio --buffer 1 --protocol lock-step",
    ] {
        let json = run_json(&format!("{line} --level timeline --polls"));
        check(&json, line);
        let in_user_space = way(&json, "user-space").map_or(0, |way| number(way, "/wake_to_poll/count"));
        assert!(in_user_space > 0, "{line}: {:#}", json["polls"]);
    }
    // Two workers share one CPU, so a woken worker has to get onto the CPU first.
    let json = run_json("--mode task-pool --iterations 20000 --pin same-cpu --level timeline --polls");
    check(&json, "same-cpu");
    let json = run_json("--mode task-pool --iterations 50000 --pin split-cpus --level timeline --polls");
    check(&json, "split-cpus");
    let kernel = way(&json, "kernel").expect("some polls follow a park of the worker");
    assert!(number(kernel, "/wake_to_poll/count") > 0);
    // The leg `wakers-poll` is missing if every wakeup came from outside a poll.
    let legs = kernel["legs"].as_array().expect("an array").len();
    assert!((4..=5).contains(&legs), "{kernel:#}");
    let wakers = json["polls"]["wakers"].as_array().expect("an array");
    assert!(
        wakers
            .iter()
            .any(|waker| waker["from_task"] == "sender" && waker["to_task"] == "repeater"),
        "{wakers:#?}"
    );
}

/// The times of the first and the last event of each thread, by thread id.
type Lives = HashMap<u32, (u64, u64)>;

fn read_polls(capture: &std::path::Path) -> (Vec<PollSlice>, Lives) {
    let mut replay: PollReplay<Vec<PollSlice>> = PollReplay::default();
    let mut lives = Lives::new();
    let file = BufReader::new(File::open(capture).expect("the file exists"));
    read_with_polls(file, |_, item| match item {
        CapturePart::Events(batch) => {
            replay.events(batch);
            for event in batch {
                let tids = match event.decode() {
                    Some(Decoded::Switch { out, into }) => [out.map(|out| out.tid), into.map(|into| into.tid)],
                    Some(Decoded::Thread { tid, .. }) => [Some(tid), None],
                    _ => continue,
                };
                for tid in tids.into_iter().flatten() {
                    lives.entry(tid).or_insert((event.at_ns, 0)).1 = event.at_ns;
                }
            }
        }
        CapturePart::Polls(batch) => replay.polls(batch),
        CapturePart::Info(info) => assert!(info.polls.is_some()),
    })
    .expect("a readable capture");
    (replay.conclude().1, lives)
}

fn polls_follow_one_another_within_their_threads_lives() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let capture = folder.path().join("polls.ctx");
    let line = format!(
        "run --mode task-pool --iterations 50000 --level timeline --polls -o {}",
        capture.display()
    );
    let output = ctxtrace(&line);
    assert_eq!(output.status.code(), Some(0), "{}", stderr(&output));
    let (slices, lives) = read_polls(&capture);
    assert!(slices.len() > 50_000);
    let mut last: HashMap<u32, u64> = HashMap::new();
    for slice in &slices {
        assert!(slice.begin_ns <= slice.end_ns, "{slice:?}");
        let last_ns = last.entry(slice.tid).or_default();
        assert!(
            *last_ns <= slice.begin_ns,
            "{slice:?} overlaps one that ends at {last_ns}"
        );
        *last_ns = slice.end_ns;
        // Polls and events are stamped with separate readings of the clock, which disagree by less than a microsecond.
        let (first_ns, gone_ns) = lives[&slice.tid];
        assert!(
            slice.begin_ns + 1_000 >= first_ns && slice.end_ns <= gone_ns + 1_000,
            "{slice:?} is outside of {first_ns} to {gone_ns}"
        );
    }
}

fn a_report_of_a_capture_has_the_same_polls() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let capture = folder.path().join("polls.ctx");
    let line = format!(
        "run --mode task-pool --iterations 30000 --repeat 2 --level timeline --polls --json - -o {}",
        capture.display()
    );
    let output = ctxtrace(&line);
    assert_eq!(output.status.code(), Some(0), "{}", stderr(&output));
    let then: Value = serde_json::from_slice(&output.stdout).expect("valid JSON");
    let output = ctxtrace(&format!("report {} --json -", capture.display()));
    assert_eq!(output.status.code(), Some(0), "{}", stderr(&output));
    let now: Value = serde_json::from_slice(&output.stdout).expect("valid JSON");
    assert!(number(&then, "/polls/polls") > 30_000);
    assert_eq!(then["polls"], now["polls"]);
    let table = said(&output);
    assert!(table.contains("as many polls as the probe counted"), "{table}");
}

fn a_tiny_ring_counts_the_stamps_that_it_loses() {
    let line = "run --mode task --iterations 200000 --level timeline --polls --poll-ring-size 1KiB --json -";
    let output = ctxtrace(line);
    assert_eq!(output.status.code(), Some(0), "{}", stderr(&output));
    let json: Value = serde_json::from_slice(&output.stdout).expect("valid JSON");
    let lost = number(&json, "/lost/poll_stamps");
    let polls = &json["polls"];
    // Every stamp is read or counted as lost. There are two stamps per poll; the number of wakes is unknown, because some are lost.
    let total = number(&json, "/task_switches/total");
    assert!(lost + number(polls, "/stamps") >= 2 * total, "{lost} lost: {polls:#}");
    assert!(
        lost > total && number(polls, "/polls") < total,
        "{lost} lost: {polls:#}"
    );
    assert_eq!(polls["agrees"], Value::Null);
    let reasons = json["unavailable"].as_array().expect("an array");
    assert!(reasons.iter().any(|entry| entry["path"] == "polls.agrees"));
    assert!(
        said(&output).contains("stamps of polls and wakes"),
        "{}",
        stderr(&output)
    );
    // The kernel's events are unaffected.
    assert_eq!(json["timeline"]["agrees"], Value::Bool(true));
}

/// Records one of [`crate::programs`] with polls.
fn recorded(program: &str) -> Value {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let json = folder.path().join("polls.json");
    let this = std::env::current_exe().expect("the path of this executable");
    let line = format!(
        "record --level timeline --polls --json {} -- {}",
        json.display(),
        this.display()
    );
    let output = command(&line)
        .env(crate::programs::VARIABLE, program)
        .output()
        .expect("the program starts");
    assert_eq!(output.status.code(), Some(0), "{}", stderr(&output));
    serde_json::from_slice(&std::fs::read(json).expect("the file exists")).expect("valid JSON")
}

fn a_program_that_overwrites_its_poll_rings_does_no_harm() {
    let json = recorded("ring-scribbler");
    // Whatever the damaged ring yields, the rest of the report is correct.
    assert_eq!(json["ledger_adds_up"], Value::Bool(true));
    assert_eq!(json["timeline"]["agrees"], Value::Bool(true));
}

fn a_forked_process_records_its_own_polls() {
    let json = recorded("polling-fork");
    let polls = &json["polls"];
    assert_eq!(number(&json, "/lost/poll_stamps"), 0, "{polls:#}");
    let tasks = polls["tasks"].as_array().expect("an array").iter();
    let mut rows: Vec<(i64, i64)> = tasks
        .map(|task| (number(task, "/pid"), number(task, "/polls")))
        .collect();
    rows.sort_by_key(|&(_, polls)| polls);
    assert_eq!(
        rows.iter().map(|&(_, polls)| polls).collect::<Vec<_>>(),
        FORKED_POLLS.map(|polls| polls as i64),
        "{polls:#}"
    );
    assert_ne!(rows[0].0, rows[1].0);
}

fn polls_that_cannot_be_recorded_are_refused_before_the_run() {
    for (line, says) in [
        ("run --mode task --polls", "--level timeline"),
        (
            "run --mode process --level timeline --polls",
            "--mode task or task-pool",
        ),
        ("run --mode go --level timeline --polls", "--mode task or task-pool"),
        (
            "run --mode task --level timeline --polls --locator tokio",
            "--locator auto or probe",
        ),
        ("run --mode task --level timeline --poll-ring-size 1MiB", "--polls"),
        ("record -p 1 --level timeline --polls", "instead of --pid"),
    ] {
        let output = ctxtrace(line);
        assert_eq!(output.status.code(), Some(2), "{line}");
        assert!(stderr(&output).contains(says), "{line}: {}", stderr(&output));
    }
    // A program without the probe records no polls.
    let output = ctxtrace("record --level timeline --polls --json /dev/stderr -- true");
    assert_eq!(output.status.code(), Some(0), "{}", stderr(&output));
    assert!(
        stderr(&output).contains("no polls were reported"),
        "{}",
        stderr(&output)
    );
    assert_eq!(stdout(&output), "");
}
