//! `ctxtrace explain`: causes that are planted are found, ranked first, and nothing else in their place. A verdict rests on times, so
//! the tests of verdicts are long ones; that a planted cause is there is counted in [`crate::variants`].
//!
//! The same causes twice: in variants of the built-in workloads, and in plain programs that know nothing of ctxtrace
//! (`examples/planted.rs`).

use std::path::PathBuf;
use std::process::{Child, Command};

use nix::sched::{CpuSet, sched_setaffinity};
use nix::unistd::Pid;
use serde_json::Value;

use crate::cgroups::{Cgroup, cpu_v1};
use crate::go::require_go;
use crate::harness::skip;
use crate::support::{command, ctxtrace, number, stderr};

pub(crate) const TESTS: &[(&str, fn())] = &[
    ("a_command_that_fails_is_no_case", a_command_that_fails_is_no_case),
    (
        "a_command_does_not_hold_the_standard_output",
        a_command_does_not_hold_the_standard_output,
    ),
    ("captures_are_compared", captures_are_compared),
];

/// Tests of verdicts, which rest on times: `cargo xtask test --long --repeat 20` measures how often a verdict is wrong.
pub(crate) const LONG_TESTS: &[(&str, fn())] = &[
    (
        "a_contended_mutex_is_found_in_a_workload",
        a_contended_mutex_is_found_in_a_workload,
    ),
    (
        "a_contended_mutex_is_found_in_a_command",
        a_contended_mutex_is_found_in_a_command,
    ),
    ("a_sleep_is_found_in_a_workload", a_sleep_is_found_in_a_workload),
    ("a_sleep_is_found_in_a_command", a_sleep_is_found_in_a_command),
    (
        "an_allocation_storm_is_found_in_a_workload",
        an_allocation_storm_is_found_in_a_workload,
    ),
    (
        "an_allocation_storm_is_found_in_a_command",
        an_allocation_storm_is_found_in_a_command,
    ),
    (
        "a_competitor_is_found_in_a_workload",
        a_competitor_is_found_in_a_workload,
    ),
    ("a_competitor_is_found_in_a_command", a_competitor_is_found_in_a_command),
    (
        "a_quota_is_not_taken_for_other_programs",
        a_quota_is_not_taken_for_other_programs,
    ),
    (
        "of_what_is_the_same_nothing_is_claimed",
        of_what_is_the_same_nothing_is_claimed,
    ),
    (
        "the_articles_first_question_is_answered",
        the_articles_first_question_is_answered,
    ),
    (
        "the_articles_second_question_is_answered",
        the_articles_second_question_is_answered,
    ),
    ("an_answer_holds_what_was_measured", an_answer_holds_what_was_measured),
];

/// The answer to `explain` with these words.
fn explain(words: &[&str]) -> Value {
    let line: Vec<&str> = ["explain", "--json", "-"].iter().chain(words).copied().collect();
    let output = command("").args(&line).output().expect("started");
    assert_eq!(output.status.code(), Some(0), "{line:?}: {}", stderr(&output));
    let answer: Value = serde_json::from_slice(&output.stdout).expect("nothing but JSON on standard output");
    validate(
        &answer,
        include_str!("../../../docs/schema/ctxtrace.explain-1.schema.json"),
    );
    adds_up(&answer);
    answer
}

fn validate(json: &Value, schema: &str) {
    let schema = serde_json::from_str(schema).expect("JSON");
    let validator = jsonschema::validator_for(&schema).expect("a schema");
    let errors: Vec<String> = validator.iter_errors(json).map(|error| error.to_string()).collect();
    assert!(errors.is_empty(), "{errors:?}");
}

/// The parts of each side's budget are the time that its threads were there.
fn adds_up(answer: &Value) {
    let Some(budget) = answer["budget"].as_object() else {
        return;
    };
    let number = |value: &Value| value.as_f64().expect("a number");
    for (side, sums) in [("base_ns", &budget["base"]), ("subject_ns", &budget["subject"])] {
        let parts: f64 = budget["parts"]
            .as_array()
            .expect("a list")
            .iter()
            .map(|part| number(&part[side]))
            .sum();
        let alive = number(&sums["alive_ns"]);
        assert!((parts - alive).abs() <= 0.01 * alive, "{side}: {parts} of {alive}");
    }
}

/// What is said to be the cause, strongest first.
fn causes(answer: &Value) -> Vec<String> {
    let claims = answer["verdict"].as_array().expect("a list");
    claims
        .iter()
        .filter(|claim| claim["says"] == "cause")
        .map(|claim| claim["about"].as_str().expect("a name").to_owned())
        .collect()
}

/// Measures once, and checks that the first cause is one of these. Each interval of an answer holds with a confidence of 99 %, so on a
/// quiet machine a wrong verdict comes by chance in one of a hundred measurements at most. What other programs do on a busy machine may
/// well be the cause: the answer says that the machine was busy, and the test is skipped.
fn finds(words: &[&str], expected: &[&str]) {
    let answer = explain(words);
    let causes = causes(&answer);
    if !causes.first().is_some_and(|first| expected.contains(&first.as_str())) {
        skip_on_a_busy_machine(&answer);
        panic!("{words:?}: {causes:?}, and not {expected:?}: {answer:#}");
    }
}

/// Skips the test that runs if other programs took more than a twentieth of the CPUs' time, as the answer says.
fn skip_on_a_busy_machine(answer: &Value) {
    let share = |name: &str| answer["others"][name].as_f64().expect("a share");
    let others = share("share") + share("stolen");
    if others > 0.05 {
        skip(format!("other programs took {:.0} % of the CPUs' time", others * 100.0));
    }
}

/// The two of a workload.
fn finds_in_workload(subject: &str, base: &str, expected: &[&str]) {
    let line = format!("--quick {subject} --against {base}");
    finds(&line.split_whitespace().collect::<Vec<_>>(), expected);
}

/// The plain program, which `cargo test` has built beside this one.
pub(crate) fn planted() -> PathBuf {
    let this = std::env::current_exe().expect("a path");
    let folder = this
        .parent()
        .and_then(|deps| deps.parent())
        .expect("in target/PROFILE/deps");
    let path = folder.join("examples").join("planted");
    assert!(path.exists(), "{} is built by `cargo test`", path.display());
    path
}

fn finds_in_command(subject: &str, base: &str, expected: &[&str]) {
    let planted = planted();
    let line = |words: &str| words.replace("planted", planted.to_str().expect("plain"));
    finds(
        &["--quick", "--base", &line(base), "--subject", &line(subject)],
        expected,
    );
}

fn a_contended_mutex_is_found_in_a_workload() {
    finds_in_workload(
        "--mode task-pool --buffer 64 --plant mutex",
        "task-pool --buffer 64 --plant own-mutexes",
        &["locks"],
    );
}

fn a_contended_mutex_is_found_in_a_command() {
    finds_in_command(
        "planted mutex --messages 40000",
        "planted own-mutexes --messages 40000",
        &["locks"],
    );
}

fn a_sleep_is_found_in_a_workload() {
    finds_in_workload(
        "--mode task-pool --buffer 64 --plant sleep",
        "task-pool --buffer 64",
        &["sleep"],
    );
}

fn a_sleep_is_found_in_a_command() {
    finds_in_command("planted sleep", "planted none", &["sleep"]);
}

/// Either says it: where the time goes, or what it goes away with.
const ALLOCATOR: &[&str] = &["allocator", "jemalloc", "mimalloc", "tcmalloc"];

fn an_allocation_storm_is_found_in_a_workload() {
    finds_in_workload(
        "--mode task-pool --buffer 64 --plant allocations",
        "task-pool --buffer 64",
        ALLOCATOR,
    );
}

fn an_allocation_storm_is_found_in_a_command() {
    finds_in_command(
        "planted allocations --messages 20000",
        "planted none --messages 20000",
        ALLOCATOR,
    );
}

/// Somebody who keeps a CPU busy for as long as this is there.
struct Competitor(Child);

impl Competitor {
    fn on(cpu: usize) -> Self {
        let child = Command::new("sh")
            .args(["-c", "while :; do :; done"])
            .spawn()
            .expect("started");
        let competitor = Self(child);
        let mut only = CpuSet::new();
        only.set(cpu).expect("a CPU");
        sched_setaffinity(Pid::from_raw(competitor.0.id() as i32), &only).expect("pinned");
        competitor
    }
}

impl Drop for Competitor {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn last_cpu() -> usize {
    *ctxtrace::workload::pin::allowed_cpus()
        .expect("told")
        .last()
        .expect("one")
}

fn a_competitor_is_found_in_a_workload() {
    // The last CPU is the one that the workload is pinned to.
    let _competitor = Competitor::on(last_cpu());
    finds_in_workload(
        "--mode task --buffer 64 --pin same-cpu",
        "task --buffer 64",
        &["run queue (waiting for a CPU)"],
    );
}

fn a_competitor_is_found_in_a_command() {
    let last = last_cpu();
    let _competitor = Competitor::on(last);
    finds_in_command(
        &format!("taskset -c {last} planted none --one-thread"),
        "taskset -c 0 planted none --one-thread",
        &["run queue (waiting for a CPU)"],
    );
}

/// A program that computes, under a quota and without one.
fn a_quota_is_not_taken_for_other_programs() {
    // A run takes many periods of a hundredth of a second, so the one in which it begins makes little difference.
    let limits = [("cpu.cfs_period_us", "10000"), ("cpu.cfs_quota_us", "1000")];
    let cgroup = Cgroup::new(&cpu_v1(), &limits);
    let folder = tempfile::tempdir().expect("a folder");
    let script = |name: &str, first: String| {
        let path = folder.path().join(name);
        let text = format!("{first}\nfor i in {{1..10000}}; do :; done\n");
        std::fs::write(&path, text).expect("written");
        format!("bash {}", path.display())
    };
    let base = script("base.sh", String::new());
    let subject = script("subject.sh", format!("echo $$ >{}", cgroup.procs().display()));
    let answer = explain(&["--quick", "--base", &base, "--subject", &subject]);
    // What the quota took is known of each thread on newer kernels. On older ones it may be either, and the answer says so.
    let causes = causes(&answer);
    let quota = [
        "its cgroup's CPU quota kept it off the CPU",
        "run queue, or its cgroup's CPU quota",
    ];
    let is_named = causes.iter().any(|cause| quota.contains(&cause.as_str()));
    let is_mistaken = causes.iter().any(|cause| cause.contains("waiting for a CPU"));
    if !is_named || is_mistaken {
        skip_on_a_busy_machine(&answer);
        panic!("{causes:?}: {answer:#}");
    }
}

/// Pairs between which there is no difference. An interval has a confidence of 99 %: by chance one comparison in a hundred claims a
/// difference, and two of three do in one of 3,300 rounds.
fn of_what_is_the_same_nothing_is_claimed() {
    let mut claims = Vec::new();
    for line in [
        "--quick --mode task-pool --buffer 4096 --against task-pool --buffer 4096",
        "--quick --mode task --buffer 64 --against task --buffer 64",
        "--quick --mode task-pool --buffer 64 --against task-pool --buffer 64",
    ] {
        let answer = explain(&line.split_whitespace().collect::<Vec<_>>());
        let verdict = answer["verdict"].as_array().expect("a list");
        if answer["gap"]["is_clear"] == true || !verdict.is_empty() {
            claims.push((line, answer["gap"].clone(), answer["verdict"].clone()));
        }
    }
    assert!(claims.len() <= 1, "{claims:#?}");
}

/// What a verdict is depends on the machine. What was measured has to be there, and to add up, whatever it is.
fn an_answer_holds_what_was_measured() {
    let folder = tempfile::tempdir().expect("a folder");
    let markdown = folder.path().join("a.md");
    let markdown_path = markdown.to_str().expect("plain");
    let line = format!(
        "--quick --only one-worker --markdown {markdown_path} --mode task-pool --buffer 64 --against task --buffer 64"
    );
    let answer = explain(&line.split_whitespace().collect::<Vec<_>>());
    assert_eq!(answer["base"]["name"], "task, buffer 64");
    assert_eq!(answer["subject"]["name"], "task-pool, buffer 64");
    assert_eq!(answer["interventions"][0]["name"], "one-worker");
    assert!(number(&answer, "/gap/blocks") >= 6, "{:#}", answer["gap"]);
    let claims = answer["verdict"].as_array().expect("a list");
    let of_kernel = claims.iter().filter(|claim| claim["says"] == "kernel").count();
    assert_eq!(of_kernel, usize::from(answer["gap"]["is_clear"] == true), "{answer:#}");
    assert!(!answer["not_explained"].as_array().expect("a list").is_empty());
    let text = std::fs::read_to_string(&markdown).expect("written");
    assert!(text.contains("task-pool, buffer 64"), "{text}");
}

/// The default, in its quick form: what it finds is the machine's affair, but it finds a gap and says something about it.
fn the_articles_first_question_is_answered() {
    let folder = tempfile::tempdir().expect("a folder");
    let path = |name: &str| folder.path().join(name).to_str().expect("plain").to_owned();
    let (on_cpu, off_cpu, markdown) = (path("on.svg"), path("off.svg"), path("a.md"));
    let answer = explain(&[
        "--quick",
        "--on-cpu-flamegraph",
        &on_cpu,
        "--flamegraph",
        &off_cpu,
        "--markdown",
        &markdown,
    ]);
    assert_eq!(answer["base"]["name"], "task, buffer 4096");
    assert_eq!(answer["subject"]["name"], "task-pool, buffer 4096");
    let claims = answer["verdict"].as_array().expect("a list");
    let of_kernel = claims.iter().filter(|claim| claim["says"] == "kernel").count();
    assert_eq!(of_kernel, usize::from(answer["gap"]["is_clear"] == true), "{answer:#}");
    assert!(!answer["not_explained"].as_array().expect("a list").is_empty());
    let text = std::fs::read_to_string(&markdown).expect("written");
    assert!(text.starts_with("## task-pool, buffer 4096 is "), "{text}");
    let is_clear = answer["gap"]["is_clear"] == true;
    for picture in [on_cpu, off_cpu] {
        let svg = std::fs::read_to_string(&picture).unwrap_or_default();
        assert_eq!(svg.contains("subject against base"), is_clear, "{picture}");
    }
    let tried: Vec<&str> = answer["interventions"]
        .as_array()
        .expect("a list")
        .iter()
        .map(|tried| tried["name"].as_str().expect("a name"))
        .collect();
    assert_eq!(
        tried,
        [
            "one-worker",
            "one-cpu",
            "idle-thread",
            "jemalloc",
            "lock-step",
            "tokio-channel"
        ]
    );
}

fn the_articles_second_question_is_answered() {
    require_go();
    let line = "--quick --only pipelined --mode go --buffer 4096 --against go --buffer 0";
    let answer = explain(&line.split_whitespace().collect::<Vec<_>>());
    for side in ["base", "subject"] {
        assert_eq!(number(&answer, &format!("/{side}/max_in_flight")), 1);
    }
    // A buffer is of use as soon as more than one message may be in flight.
    let pipelined = &answer["interventions"][0];
    let gap = pipelined["gap_ns"]["value"].as_f64().expect("a number");
    let gap_before = answer["gap"]["ns"]["value"].as_f64().expect("a number");
    if gap >= gap_before.min(0.0) {
        skip_on_a_busy_machine(&answer);
        panic!("{pipelined:#}");
    }
}

/// Whoever reads the standard output would wait for what a command leaves running.
fn a_command_does_not_hold_the_standard_output() {
    let folder = tempfile::tempdir().expect("a folder");
    let (output, said) = (folder.path().join("the-output"), folder.path().join("said"));
    // It fails, so that it is run once only.
    let words = format!("sh -c 'readlink /proc/$$/fd/* > {}; exit 1'", said.display());
    let status = command("explain --quick --base")
        .arg(&words)
        .arg("--subject")
        .arg(&words)
        .stdout(std::fs::File::create(&output).expect("made"))
        .stderr(std::process::Stdio::null())
        .status();
    assert_eq!(status.expect("started").code(), Some(1));
    let held = std::fs::read_to_string(&said).expect("the command has run");
    assert!(held.contains("/dev/null"), "its own output goes nowhere: {held}");
    assert!(!held.contains("the-output"), "{held}");
}

fn a_command_that_fails_is_no_case() {
    let output = command("")
        .args(["explain", "--base", "true", "--subject", "false"])
        .output()
        .expect("started");
    assert_eq!(output.status.code(), Some(1), "{}", stderr(&output));
    assert!(
        stderr(&output).contains("`false` does not end with status 0"),
        "{}",
        stderr(&output)
    );
    let output = command("")
        .args(["explain", "--base", "true", "--subject", "there-is-no-such-program"])
        .output()
        .expect("started");
    assert_ne!(output.status.code(), Some(0));
    assert!(
        stderr(&output).contains("there-is-no-such-program"),
        "{}",
        stderr(&output)
    );
    let output = ctxtrace("explain --quick --only nothing");
    assert_eq!(output.status.code(), Some(2), "{}", stderr(&output));
    assert!(stderr(&output).contains("one-worker"), "{}", stderr(&output));
}

fn captures_are_compared() {
    let folder = tempfile::tempdir().expect("a folder");
    let path = |name: &str| folder.path().join(name).to_str().expect("plain").to_owned();
    for level in ["timeline --sample 1999", "stacks", "counts"] {
        let (base, subject) = (path("base.ctx"), path("subject.ctx"));
        for (mode, capture) in [("task", &base), ("task-pool", &subject)] {
            let line =
                format!("run --mode {mode} --buffer 64 --iterations 400000 --level {level} --force -o {capture}");
            let output = ctxtrace(&line);
            assert_eq!(output.status.code(), Some(0), "{line}: {}", stderr(&output));
        }
        let line = format!("compare {base} {subject} --json - --markdown {}", path("c.md"));
        let output = ctxtrace(&line);
        assert_eq!(output.status.code(), Some(0), "{line}: {}", stderr(&output));
        let compared: Value = serde_json::from_slice(&output.stdout).expect("JSON");
        validate(
            &compared,
            include_str!("../../../docs/schema/ctxtrace.compare-1.schema.json"),
        );
        adds_up(&compared);
        assert_eq!(compared["unit"], "message");
        // What is compared is what is reported of each.
        for (side, capture) in [("base", &base), ("subject", &subject)] {
            let report = ctxtrace(&format!("report {capture} --json -"));
            let report: Value = serde_json::from_slice(&report.stdout).expect("JSON");
            let elapsed = compared["figures"][0][side].as_f64().expect("a number");
            let reported = report["workload"]["ns_per_message"].as_f64().expect("a number");
            assert!((elapsed - reported).abs() < 1e-6 * reported, "{elapsed} {reported}");
            let switches: f64 = compared["ledger"]
                .as_array()
                .expect("a list")
                .iter()
                .map(|row| row[side].as_f64().expect("a number"))
                .sum();
            let total = number(&report, "/kernel_switches/total") as f64 / 400_000.0;
            assert!((switches - total).abs() < 1e-9, "{switches} {total}");
        }
        let picture = path("difference.svg");
        let option = match level {
            "stacks" => "--flamegraph",
            "counts" => continue,
            _ => "--on-cpu-flamegraph",
        };
        let output = ctxtrace(&format!("compare {base} {subject} {option} {picture}"));
        assert_eq!(output.status.code(), Some(0), "{}", stderr(&output));
        let svg = std::fs::read_to_string(&picture).expect("written");
        assert!(svg.contains("a message, subject against base"));
    }
    let missing = ctxtrace(&format!("compare {} {}", path("base.ctx"), path("none.ctx")));
    assert_eq!(missing.status.code(), Some(1));
    assert!(stderr(&missing).contains("none.ctx"), "{}", stderr(&missing));
}
