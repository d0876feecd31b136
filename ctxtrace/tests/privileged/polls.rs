//! Polls and wakes with their times: are they all there, are they in their place, and what if they cannot be?

use std::collections::HashMap;
use std::fs::File;
use std::io::BufReader;

use ctxtrace::correlate::polls::{PollReplay, PollSlice};
use ctxtrace::trace::events::EventSink;
use ctxtrace::trace::file::{Told, read_with_polls};
use ctxtrace_common::event::Decoded;
use serde_json::Value;

use crate::programs::tasks::FORKED_POLLS;
use crate::support::{command, ctxtrace, number, run_json, said, stderr, stdout};

pub(crate) const TESTS: &[(&str, fn())] = &[
    (
        "as_many_polls_are_told_as_the_probe_counted",
        as_many_polls_are_told_as_the_probe_counted,
    ),
    (
        "polls_follow_one_another_within_their_threads_lives",
        polls_follow_one_another_within_their_threads_lives,
    ),
    ("a_capture_says_it_again", a_capture_says_it_again),
    (
        "a_tiny_ring_loses_and_says_how_many",
        a_tiny_ring_loses_and_says_how_many,
    ),
    (
        "a_program_that_scribbles_does_no_harm",
        a_program_that_scribbles_does_no_harm,
    ),
    (
        "a_forked_process_tells_of_its_own_polls",
        a_forked_process_tells_of_its_own_polls,
    ),
    (
        "what_cannot_be_polled_is_said_beforehand",
        what_cannot_be_polled_is_said_beforehand,
    ),
];

/// What must hold of polls of which nothing was lost.
fn check(json: &Value, line: &str) {
    let polls = &json["polls"];
    assert_eq!(number(json, "/lost/poll_stamps"), 0, "{line}");
    assert_eq!(polls["agrees"], Value::Bool(true), "{line}: {polls:#}");
    assert_eq!(number(polls, "/polls"), number(json, "/task_switches/total"), "{line}");
    assert_eq!(number(polls, "/open"), 0, "{line}");
    let all = number(polls, "/stamps");
    assert_eq!(all, 2 * number(polls, "/polls") + number(polls, "/wakes"), "{line}");
    // Task by task.
    let counted = |name: &str| {
        let mut tasks = json["tasks"].as_array().expect("a list").iter();
        let task = tasks.find(|task| task["name"] == name).expect("the task");
        number(task, "/task_switches")
    };
    for task in polls["tasks"].as_array().expect("a list") {
        let name = task["name"].as_str().expect("a name");
        assert_eq!(number(task, "/polls"), counted(name), "{line}: {name}");
    }
    // Each poll came by one way, or by none; and the legs of a way add up to it.
    let mut arrived = 0;
    for path in polls["paths"].as_array().expect("a list") {
        arrived += number(path, "/wake_to_poll/count");
        let legs = path["legs"].as_array().expect("a list").iter();
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
    let mut paths = json["polls"]["paths"].as_array().expect("a list").iter();
    paths.find(|found| found["path"] == path)
}

fn as_many_polls_are_told_as_the_probe_counted() {
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
    // Two workers on one CPU, in lock-step: whoever is woken has to come onto the CPU first.
    let json = run_json("--mode task-pool --iterations 20000 --pin same-cpu --level timeline --polls");
    check(&json, "same-cpu");
    let json = run_json("--mode task-pool --iterations 50000 --pin split-cpus --level timeline --polls");
    check(&json, "split-cpus");
    let kernel = way(&json, "kernel").expect("a worker parks now and then");
    assert!(number(kernel, "/wake_to_poll/count") > 0);
    // The leg of the waker's poll is missing where every wakeup came from outside a poll.
    let legs = kernel["legs"].as_array().expect("a list").len();
    assert!((4..=5).contains(&legs), "{kernel:#}");
    let wakers = json["polls"]["wakers"].as_array().expect("a list");
    assert!(
        wakers
            .iter()
            .any(|waker| waker["from_task"] == "sender" && waker["to_task"] == "repeater"),
        "{wakers:#?}"
    );
}

/// When each thread was first and last heard of.
type Lives = HashMap<u32, (u64, u64)>;

fn told(capture: &std::path::Path) -> (Vec<PollSlice>, Lives) {
    let mut replay: PollReplay<Vec<PollSlice>> = PollReplay::default();
    let mut lives = Lives::new();
    let file = BufReader::new(File::open(capture).expect("there"));
    read_with_polls(file, |_, told| match told {
        Told::Events(batch) => {
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
        Told::Polls(batch) => replay.polls(batch),
        Told::Info(info) => assert!(info.polls.is_some()),
    })
    .expect("readable");
    (replay.conclude().1, lives)
}

fn polls_follow_one_another_within_their_threads_lives() {
    let folder = tempfile::tempdir().expect("a folder");
    let capture = folder.path().join("polls.ctx");
    let line = format!(
        "run --mode task-pool --iterations 50000 --level timeline --polls -o {}",
        capture.display()
    );
    let output = ctxtrace(&line);
    assert_eq!(output.status.code(), Some(0), "{}", stderr(&output));
    let (slices, lives) = told(&capture);
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
        // The two clocks are read apart: a microsecond is more than they can differ by.
        let (first_ns, gone_ns) = lives[&slice.tid];
        assert!(
            slice.begin_ns + 1_000 >= first_ns && slice.end_ns <= gone_ns + 1_000,
            "{slice:?} is outside of {first_ns} to {gone_ns}"
        );
    }
}

fn a_capture_says_it_again() {
    let folder = tempfile::tempdir().expect("a folder");
    let capture = folder.path().join("polls.ctx");
    let line = format!(
        "run --mode task-pool --iterations 30000 --repeat 2 --level timeline --polls --json - -o {}",
        capture.display()
    );
    let output = ctxtrace(&line);
    assert_eq!(output.status.code(), Some(0), "{}", stderr(&output));
    let then: Value = serde_json::from_slice(&output.stdout).expect("JSON");
    let output = ctxtrace(&format!("report {} --json -", capture.display()));
    assert_eq!(output.status.code(), Some(0), "{}", stderr(&output));
    let now: Value = serde_json::from_slice(&output.stdout).expect("JSON");
    assert!(number(&then, "/polls/polls") > 30_000);
    assert_eq!(then["polls"], now["polls"]);
    let table = said(&output);
    assert!(table.contains("as many polls as the probe counted"), "{table}");
}

fn a_tiny_ring_loses_and_says_how_many() {
    let line = "run --mode task --iterations 200000 --level timeline --polls --poll-ring-size 1KiB --json -";
    let output = ctxtrace(line);
    assert_eq!(output.status.code(), Some(0), "{}", stderr(&output));
    let json: Value = serde_json::from_slice(&output.stdout).expect("JSON");
    let lost = number(&json, "/lost/poll_stamps");
    let polls = &json["polls"];
    // Every stamp was either read or is counted: two for each poll, and wakes of which only those that were read are known.
    let total = number(&json, "/task_switches/total");
    assert!(lost + number(polls, "/stamps") >= 2 * total, "{lost} lost: {polls:#}");
    assert!(
        lost > total && number(polls, "/polls") < total,
        "{lost} lost: {polls:#}"
    );
    assert_eq!(polls["agrees"], Value::Null);
    let reasons = json["unavailable"].as_array().expect("a list");
    assert!(reasons.iter().any(|entry| entry["path"] == "polls.agrees"));
    assert!(
        said(&output).contains("stamps of polls and wakes"),
        "{}",
        stderr(&output)
    );
    // The counts are none the worse.
    assert_eq!(json["timeline"]["agrees"], Value::Bool(true));
}

/// Records one of [`crate::programs`] with polls.
fn recorded(program: &str) -> Value {
    let folder = tempfile::tempdir().expect("a folder");
    let json = folder.path().join("polls.json");
    let this = std::env::current_exe().expect("a path");
    let line = format!(
        "record --level timeline --polls --json {} -- {}",
        json.display(),
        this.display()
    );
    let output = command(&line)
        .env(crate::programs::VARIABLE, program)
        .output()
        .expect("started");
    assert_eq!(output.status.code(), Some(0), "{}", stderr(&output));
    serde_json::from_slice(&std::fs::read(json).expect("written")).expect("JSON")
}

fn a_program_that_scribbles_does_no_harm() {
    let json = recorded("ring-scribbler");
    // Whatever it has come to, the rest is as it should be.
    assert_eq!(json["ledger_adds_up"], Value::Bool(true));
    assert_eq!(json["timeline"]["agrees"], Value::Bool(true));
}

fn a_forked_process_tells_of_its_own_polls() {
    let json = recorded("polling-fork");
    let polls = &json["polls"];
    assert_eq!(number(&json, "/lost/poll_stamps"), 0, "{polls:#}");
    let tasks = polls["tasks"].as_array().expect("a list").iter();
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

fn what_cannot_be_polled_is_said_beforehand() {
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
        ("record -p 1 --level timeline --polls", "in place of --pid"),
    ] {
        let output = ctxtrace(line);
        assert_eq!(output.status.code(), Some(2), "{line}");
        assert!(stderr(&output).contains(says), "{line}: {}", stderr(&output));
    }
    // A program without a probe has none to tell.
    let output = ctxtrace("record --level timeline --polls --json /dev/stderr -- true");
    assert_eq!(output.status.code(), Some(0), "{}", stderr(&output));
    assert!(
        stderr(&output).contains("no thread has told of any"),
        "{}",
        stderr(&output)
    );
    assert_eq!(stdout(&output), "");
}
