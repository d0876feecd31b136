//! `ctxtrace explain`: planted causes are found and ranked first. A verdict depends on measured times, so the tests of verdicts
//! are long tests; [`crate::variants`] checks by counts that the planted causes take effect.
//!
//! Each cause is planted twice: in variants of the built-in workloads, and in plain programs that know nothing of ctxtrace
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
    ("a_command_that_fails_is_an_error", a_command_that_fails_is_an_error),
    (
        "a_command_does_not_hold_the_standard_output",
        a_command_does_not_hold_the_standard_output,
    ),
    ("captures_are_compared", captures_are_compared),
];

/// Tests of verdicts, which depend on measured times. `cargo xtask test --long --repeat 20` measures how often a verdict is wrong.
pub(crate) const LONG_TESTS: &[(&str, fn())] = &[
    (
        "a_contended_mutex_is_found_in_a_workload",
        a_contended_mutex_is_found_in_a_workload,
    ),
    ("a_sleep_is_found_in_a_workload", a_sleep_is_found_in_a_workload),
    (
        "an_allocation_storm_is_found_in_a_workload",
        an_allocation_storm_is_found_in_a_workload,
    ),
    (
        "a_competitor_is_found_in_a_workload",
        a_competitor_is_found_in_a_workload,
    ),
    (
        "a_quota_is_not_taken_for_other_programs",
        a_quota_is_not_taken_for_other_programs,
    ),
    (
        "no_difference_is_claimed_between_equal_cases",
        no_difference_is_claimed_between_equal_cases,
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

/// The same verdicts for commands. They take two minutes, so a single round of the long tests leaves them out.
pub(crate) const REPEATED_TESTS: &[(&str, fn())] = &[
    (
        "a_contended_mutex_is_found_in_a_command",
        a_contended_mutex_is_found_in_a_command,
    ),
    ("a_sleep_is_found_in_a_command", a_sleep_is_found_in_a_command),
    (
        "an_allocation_storm_is_found_in_a_command",
        an_allocation_storm_is_found_in_a_command,
    ),
    ("a_competitor_is_found_in_a_command", a_competitor_is_found_in_a_command),
];

/// Runs `ctxtrace explain` with these arguments, checks the answer with its schema and [`adds_up`], and returns it.
fn explain(words: &[&str]) -> Value {
    let line: Vec<&str> = ["explain", "--json", "-"].iter().chain(words).copied().collect();
    let output = command("").args(&line).output().expect("the program starts");
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
    let schema = serde_json::from_str(schema).expect("valid JSON");
    let validator = jsonschema::validator_for(&schema).expect("a schema");
    let errors: Vec<String> = validator.iter_errors(json).map(|error| error.to_string()).collect();
    assert!(errors.is_empty(), "{errors:?}");
}

/// Checks that the parts of the budget of each side add up to the time that its threads were alive.
fn adds_up(answer: &Value) {
    let Some(budget) = answer["budget"].as_object() else {
        return;
    };
    let number = |value: &Value| value.as_f64().expect("a number");
    for (side, sums) in [("base_ns", &budget["base"]), ("subject_ns", &budget["subject"])] {
        let parts: f64 = budget["parts"]
            .as_array()
            .expect("an array")
            .iter()
            .map(|part| number(&part[side]))
            .sum();
        let alive = number(&sums["alive_ns"]);
        assert!((parts - alive).abs() <= 0.01 * alive, "{side}: {parts} of {alive}");
    }
}

/// Returns the causes that an answer claims, the strongest first.
fn causes(answer: &Value) -> Vec<String> {
    let claims = answer["verdict"].as_array().expect("an array");
    claims
        .iter()
        .filter(|claim| claim["says"] == "cause")
        .map(|claim| claim["about"].as_str().expect("a name").to_owned())
        .collect()
}

/// Measures once, and checks that the first cause is one of `expected`. Each interval of an answer has a confidence of 99 %, so on
/// a quiet machine a verdict is wrong by chance in at most one of a hundred measurements. On a busy machine other programs may be
/// the cause of the difference; then the test is skipped instead of failing.
fn finds(words: &[&str], expected: &[&str]) {
    let answer = explain(words);
    let causes = causes(&answer);
    if !causes.first().is_some_and(|first| expected.contains(&first.as_str())) {
        skip_on_a_busy_machine(&answer);
        panic!("{words:?}: found {causes:?}, expected {expected:?}: {answer:#}");
    }
}

/// Skips the running test if, according to the answer, other programs used more than 5 % of the CPUs' time.
fn skip_on_a_busy_machine(answer: &Value) {
    let share = |name: &str| answer["others"][name].as_f64().expect("a number");
    let others = share("share") + share("stolen");
    if others > 0.05 {
        skip(format!("other programs used {:.0} % of the CPUs' time", others * 100.0));
    }
}

/// Compares two variants of a workload and checks the first cause with [`finds`].
fn finds_in_workload(subject: &str, base: &str, expected: &[&str]) {
    let line = format!("--quick {subject} --against {base}");
    finds(&line.split_whitespace().collect::<Vec<_>>(), expected);
}

/// Returns the path of `examples/planted.rs`, which `cargo test` builds together with this executable.
pub(crate) fn planted() -> PathBuf {
    let this = std::env::current_exe().expect("the path of this executable");
    let folder = this
        .parent()
        .and_then(|deps| deps.parent())
        .expect("this executable is in target/PROFILE/deps");
    let path = folder.join("examples").join("planted");
    assert!(path.exists(), "{} is missing; `cargo test` builds it", path.display());
    path
}

/// Compares two commands, in which the word `planted` stands for the program, and checks the first cause with [`finds`].
fn finds_in_command(subject: &str, base: &str, expected: &[&str]) {
    let planted = planted();
    let line = |words: &str| words.replace("planted", planted.to_str().expect("a path in UTF-8"));
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

/// Either is a correct verdict: the part of the budget that grows, or the intervention that removes the difference.
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

/// A process that keeps a CPU busy until the value is dropped.
struct Competitor(Child);

impl Competitor {
    /// Starts the process on a CPU.
    fn on(cpu: usize) -> Self {
        let child = Command::new("sh")
            .args(["-c", "while :; do :; done"])
            .spawn()
            .expect("the program starts");
        let competitor = Self(child);
        let mut only = CpuSet::new();
        only.set(cpu).expect("the number of a CPU");
        sched_setaffinity(Pid::from_raw(competitor.0.id() as i32), &only).expect("the process is pinned");
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
        .expect("the allowed CPUs are known")
        .last()
        .expect("at least one CPU is allowed")
}

fn a_competitor_is_found_in_a_workload() {
    // `--pin same-cpu` pins the workload to the last CPU.
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

/// Compares a program that computes under a CPU quota with the same program without a quota.
fn a_quota_is_not_taken_for_other_programs() {
    // A run takes many periods of 10 ms, so the fraction of the period in which it begins makes little difference.
    let limits = [("cpu.cfs_period_us", "10000"), ("cpu.cfs_quota_us", "1000")];
    let cgroup = Cgroup::new(&cpu_v1(), &limits);
    let folder = tempfile::tempdir().expect("a temporary folder");
    let script = |name: &str, first: String| {
        let path = folder.path().join(name);
        let text = format!("{first}\nfor i in {{1..10000}}; do :; done\n");
        std::fs::write(&path, text).expect("the file is written");
        format!("bash {}", path.display())
    };
    let base = script("base.sh", String::new());
    let subject = script("subject.sh", format!("echo $$ >{}", cgroup.procs().display()));
    let answer = explain(&["--quick", "--base", &base, "--subject", &subject]);
    // Newer kernels count the throttled time of each thread. On older ones the time may be due to the quota or to other programs,
    // and the answer names both.
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

/// Compares pairs of equal cases. An interval has a confidence of 99 %, so one comparison in a hundred claims a difference by
/// chance, and two of three comparisons do so in one of 3,300 rounds.
fn no_difference_is_claimed_between_equal_cases() {
    let mut claims = Vec::new();
    for line in [
        "--quick --mode task-pool --buffer 4096 --against task-pool --buffer 4096",
        "--quick --mode task --buffer 64 --against task --buffer 64",
        "--quick --mode task-pool --buffer 64 --against task-pool --buffer 64",
    ] {
        let answer = explain(&line.split_whitespace().collect::<Vec<_>>());
        let verdict = answer["verdict"].as_array().expect("an array");
        if answer["gap"]["is_clear"] == true || !verdict.is_empty() {
            claims.push((line, answer["gap"].clone(), answer["verdict"].clone()));
        }
    }
    assert!(claims.len() <= 1, "{claims:#?}");
}

/// The verdict depends on the machine. Whatever it is, the answer must contain the measurements, and they must add up.
fn an_answer_holds_what_was_measured() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let markdown = folder.path().join("a.md");
    let markdown_path = markdown.to_str().expect("a path in UTF-8");
    let line = format!(
        "--quick --only one-worker --markdown {markdown_path} --mode task-pool --buffer 64 --against task --buffer 64"
    );
    let answer = explain(&line.split_whitespace().collect::<Vec<_>>());
    assert_eq!(answer["base"]["name"], "task, buffer 64");
    assert_eq!(answer["subject"]["name"], "task-pool, buffer 64");
    assert_eq!(answer["interventions"][0]["name"], "one-worker");
    assert!(number(&answer, "/gap/blocks") >= 6, "{:#}", answer["gap"]);
    let claims = answer["verdict"].as_array().expect("an array");
    let of_kernel = claims.iter().filter(|claim| claim["says"] == "kernel").count();
    assert_eq!(of_kernel, usize::from(answer["gap"]["is_clear"] == true), "{answer:#}");
    assert!(!answer["not_explained"].as_array().expect("an array").is_empty());
    let text = std::fs::read_to_string(&markdown).expect("the file exists");
    assert!(text.contains("task-pool, buffer 64"), "{text}");
}

/// Runs the default comparison in its quick form. The verdict depends on the machine, but the answer must have a gap and its
/// claims.
fn the_articles_first_question_is_answered() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let path = |name: &str| folder.path().join(name).to_str().expect("a path in UTF-8").to_owned();
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
    let claims = answer["verdict"].as_array().expect("an array");
    let of_kernel = claims.iter().filter(|claim| claim["says"] == "kernel").count();
    assert_eq!(of_kernel, usize::from(answer["gap"]["is_clear"] == true), "{answer:#}");
    assert!(!answer["not_explained"].as_array().expect("an array").is_empty());
    let text = std::fs::read_to_string(&markdown).expect("the file exists");
    assert!(text.starts_with("## task-pool, buffer 4096 is "), "{text}");
    let is_clear = answer["gap"]["is_clear"] == true;
    for picture in [on_cpu, off_cpu] {
        let svg = std::fs::read_to_string(&picture).unwrap_or_default();
        assert_eq!(svg.contains("subject against base"), is_clear, "{picture}");
    }
    let tried: Vec<&str> = answer["interventions"]
        .as_array()
        .expect("an array")
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
    // A buffer makes a difference only if more than one message may be in flight.
    let pipelined = &answer["interventions"][0];
    let gap = pipelined["gap_ns"]["value"].as_f64().expect("a number");
    let gap_before = answer["gap"]["ns"]["value"].as_f64().expect("a number");
    if gap >= gap_before.min(0.0) {
        skip_on_a_busy_machine(&answer);
        panic!("{pipelined:#}");
    }
}

/// If a command inherited the standard output, a program that reads it would wait for all processes that the command leaves
/// running.
fn a_command_does_not_hold_the_standard_output() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let (output, said) = (folder.path().join("the-output"), folder.path().join("said"));
    // The command fails, so that it runs only once.
    let words = format!("sh -c 'readlink /proc/$$/fd/* > {}; exit 1'", said.display());
    let status = command("explain --quick --base")
        .arg(&words)
        .arg("--subject")
        .arg(&words)
        .stdout(std::fs::File::create(&output).expect("the file is created"))
        .stderr(std::process::Stdio::null())
        .status();
    assert_eq!(status.expect("the program starts").code(), Some(1));
    let held = std::fs::read_to_string(&said).expect("the command has run");
    assert!(
        held.contains("/dev/null"),
        "the standard output of the command is not /dev/null: {held}"
    );
    assert!(!held.contains("the-output"), "{held}");
}

fn a_command_that_fails_is_an_error() {
    let output = command("")
        .args(["explain", "--base", "true", "--subject", "false"])
        .output()
        .expect("the program starts");
    assert_eq!(output.status.code(), Some(1), "{}", stderr(&output));
    assert!(
        stderr(&output).contains("`false` does not end with status 0"),
        "{}",
        stderr(&output)
    );
    let output = command("")
        .args(["explain", "--base", "true", "--subject", "there-is-no-such-program"])
        .output()
        .expect("the program starts");
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
    let folder = tempfile::tempdir().expect("a temporary folder");
    let path = |name: &str| folder.path().join(name).to_str().expect("a path in UTF-8").to_owned();
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
        let compared: Value = serde_json::from_slice(&output.stdout).expect("valid JSON");
        validate(
            &compared,
            include_str!("../../../docs/schema/ctxtrace.compare-1.schema.json"),
        );
        adds_up(&compared);
        assert_eq!(compared["unit"], "message");
        // The compared figures are those of the reports of the two captures.
        for (side, capture) in [("base", &base), ("subject", &subject)] {
            let report = ctxtrace(&format!("report {capture} --json -"));
            let report: Value = serde_json::from_slice(&report.stdout).expect("valid JSON");
            let elapsed = compared["figures"][0][side].as_f64().expect("a number");
            let reported = report["workload"]["ns_per_message"].as_f64().expect("a number");
            assert!((elapsed - reported).abs() < 1e-6 * reported, "{elapsed} {reported}");
            let switches: f64 = compared["ledger"]
                .as_array()
                .expect("an array")
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
        let svg = std::fs::read_to_string(&picture).expect("the file exists");
        assert!(svg.contains("per message, subject against base"));
    }
    let missing = ctxtrace(&format!("compare {} {}", path("base.ctx"), path("none.ctx")));
    assert_eq!(missing.status.code(), Some(1));
    assert!(stderr(&missing).contains("none.ctx"), "{}", stderr(&missing));
}
