//! `cargo xtask test --repeat N`: runs every privileged test N times, each time in a new process.
//!
//! Each result is a line in `target/test-repeats.jsonl`, so an interrupted command continues where it stopped. A result is used
//! only by commands with the same executables and the same setting of `--beside-load`.

use std::fs::{self, File, OpenOptions};
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};
use serde_json::{Value, json};
use sha2::{Digest as _, Sha256};

use super::outcome::Outcome;
use crate::process;

/// The maximum run time of a test. After this time it is ended and its result is `timed out`.
const LIMIT: Duration = Duration::from_secs(600);

/// How often each test runs, and under which conditions.
#[derive(Clone, Copy, Debug)]
pub(super) struct Repetition<'a> {
    pub(super) rounds: u32,
    /// Whether a program keeps every CPU busy while a test runs.
    pub(super) beside_load: bool,
    /// The [`build_id`] of the executables.
    pub(super) build: &'a str,
}

/// A result in the file.
struct TestResult {
    test: String,
    /// `passed`, `failed`, `skipped` or `timed out`.
    word: String,
    seconds: f64,
}

/// Runs the tests whose results are missing, round by round, and prints the results of all tests.
pub(super) fn run(tests: &[String], repetition: Repetition<'_>, command: impl Fn(&str) -> Command) -> Result<Outcome> {
    let path = process::root().join("target/test-repeats.jsonl");
    let mut results = read(&fs::read_to_string(&path).unwrap_or_default(), repetition);
    results.retain(|result| tests.contains(&result.test));
    if !results.is_empty() {
        eprintln!("{} already has {} results", path.display(), results.len());
    }
    let mut file = OpenOptions::new()
        .create(true)
        .append(true)
        .open(&path)
        .with_context(|| format!("cannot write {}", path.display()))?;
    for round in 1..=repetition.rounds {
        for test in tests {
            let there = results.iter().filter(|result| result.test == *test).count();
            if there >= round as usize {
                continue;
            }
            let load = repetition.beside_load.then(BusyPrograms::start).transpose()?;
            let (result, output) = run_once(test, &mut command(test))?;
            drop(load);
            eprintln!("round {round}: {test}: {} in {:.1} s", result.word, result.seconds);
            let line = json!({
                "build": repetition.build,
                "beside_load": repetition.beside_load,
                "test": test,
                "result": result.word,
                "seconds": result.seconds,
                "output": if result.word == "passed" { Value::Null } else { Value::String(output) },
            });
            writeln!(file, "{line}").context("cannot write the results")?;
            results.push(result);
        }
    }
    Ok(summary(tests, &results))
}

/// Returns the results in the text of the file that belong to the same executables and the same load.
fn read(text: &str, repetition: Repetition<'_>) -> Vec<TestResult> {
    let lines = text.lines().filter_map(|line| serde_json::from_str::<Value>(line).ok());
    lines
        .filter(|line| line["build"] == repetition.build && line["beside_load"] == repetition.beside_load)
        .filter_map(|line| {
            Some(TestResult {
                test: line["test"].as_str()?.to_owned(),
                word: line["result"].as_str()?.to_owned(),
                seconds: line["seconds"].as_f64()?,
            })
        })
        .collect()
}

/// Runs a test once, and returns the result and everything that the test printed.
fn run_once(test: &str, command: &mut Command) -> Result<(TestResult, String)> {
    let printed = tempfile::NamedTempFile::new().context("cannot create a file for the output of the test")?;
    let start = Instant::now();
    let mut child = command
        .stdin(Stdio::null())
        .stdout(append(printed.path())?)
        .stderr(append(printed.path())?)
        .spawn()
        .context("cannot run the tests")?;
    let ended = loop {
        if child.try_wait()?.is_some() {
            break true;
        }
        if start.elapsed() > LIMIT {
            end(&mut child);
            break false;
        }
        std::thread::sleep(Duration::from_millis(20));
    };
    let text = String::from_utf8_lossy(&fs::read(printed.path())?).into_owned();
    let outcome = Outcome::read(test, &text);
    let word = match (ended, outcome.passed, outcome.skipped.len()) {
        (false, ..) => "timed out",
        (true, 1, _) => "passed",
        (true, _, 1) => "skipped",
        _ => "failed",
    };
    let result = TestResult {
        test: test.to_owned(),
        word: word.to_owned(),
        seconds: start.elapsed().as_secs_f64(),
    };
    Ok((result, text))
}

fn append(path: &Path) -> Result<File> {
    OpenOptions::new()
        .append(true)
        .open(path)
        .context("cannot open the file for the output of the test")
}

/// Ends a command with SIGTERM. The command may be sudo, which passes the signal on.
fn end(child: &mut Child) {
    let _ = process::run(process::as_root("kill").arg(child.id().to_string()));
    let _ = child.wait();
}

/// Prints a line for each test, the slowest first, and returns the sum of the results.
fn summary(tests: &[String], results: &[TestResult]) -> Outcome {
    let mut outcome = Outcome::default();
    let mut lines: Vec<(f64, String)> = Vec::new();
    for test in tests {
        let of_test: Vec<&TestResult> = results.iter().filter(|result| result.test == *test).collect();
        let count = |word: &str| of_test.iter().filter(|result| result.word == word).count();
        let (passed, skipped) = (count("passed"), count("skipped"));
        let failed = of_test.len() - passed - skipped;
        let mut seconds: Vec<f64> = of_test.iter().map(|result| result.seconds).collect();
        seconds.sort_by(f64::total_cmp);
        let median = seconds.get(seconds.len() / 2).copied().unwrap_or_default();
        lines.push((
            median,
            format!("{median:7.1} s  {passed:3} passed {failed:3} failed {skipped:3} skipped  {test}"),
        ));
        outcome.passed += passed as u64;
        if skipped > 0 {
            outcome.skipped.extend(std::iter::repeat_n(
                format!("{test}: see target/test-repeats.jsonl"),
                skipped,
            ));
        }
        outcome.failed += failed as u64;
        if failed > 0 {
            outcome
                .failures
                .push(format!("{test}: {failed} of {} times", of_test.len()));
        }
    }
    lines.sort_by(|one, other| other.0.total_cmp(&one.0));
    eprintln!("median time, the slowest first:");
    for (_, line) in &lines {
        eprintln!("{line}");
    }
    let sum: f64 = lines.iter().map(|(median, _)| median).sum();
    eprintln!("{sum:7.1} s  sum of the medians");
    outcome
}

/// Returns a hash of the executables. Results of other executables are not used.
pub(super) fn build_id(executables: &[PathBuf]) -> Result<String> {
    let mut hash = Sha256::new();
    for path in executables {
        hash.update(fs::read(path).with_context(|| format!("cannot read {}", path.display()))?);
    }
    let digest = hash.finalize();
    Ok(digest.iter().take(8).map(|byte| format!("{byte:02x}")).collect())
}

/// Programs that keep all CPUs busy. They are killed when the value is dropped, and end by themselves after [`LIMIT`] of CPU time.
struct BusyPrograms(Vec<Child>);

impl BusyPrograms {
    fn start() -> Result<Self> {
        let cpus = std::thread::available_parallelism().map_or(1, usize::from);
        let mut load = Self(Vec::new());
        for _ in 0..cpus {
            // The CPU time limit ends the shell even if this command is killed.
            let script = format!("ulimit -t {}; while :; do :; done", LIMIT.as_secs());
            let busy = Command::new("sh").args(["-c", &script]).spawn();
            load.0.push(busy.context("cannot start a busy program")?);
        }
        Ok(load)
    }
}

impl Drop for BusyPrograms {
    fn drop(&mut self) {
        for child in &mut self.0 {
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

/// Returns the tests that contain one of the filters in their names, or all tests if there is no filter. Fails if a filter matches
/// no test.
pub(super) fn select(tests: Vec<String>, filters: &[String]) -> Result<Vec<String>> {
    if let Some(unknown) = filters
        .iter()
        .find(|&filter| !tests.iter().any(|test| test.contains(filter)))
    {
        bail!("no privileged test has `{unknown}` in its name");
    }
    let wanted = |test: &String| filters.is_empty() || filters.iter().any(|filter| test.contains(filter));
    Ok(tests.into_iter().filter(wanted).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    const REPETITION: Repetition<'_> = Repetition {
        rounds: 2,
        beside_load: true,
        build: "b",
    };

    #[test]
    fn results_of_another_build_or_load_are_not_taken() {
        let line = |build: &str, load: bool| {
            json!({"build": build, "beside_load": load, "test": "t", "result": "passed", "seconds": 1.0}).to_string()
        };
        let text = [line("b", true), line("a", true), line("b", false), "{cut of".to_owned()].join("\n");
        assert_eq!(read(&text, REPETITION).len(), 1);
    }

    #[test]
    fn a_filter_selects_and_must_match() {
        let all = || vec!["one".to_owned(), "two".to_owned()];
        let select = |filters: &[&str]| select(all(), &filters.iter().map(|&f| f.to_owned()).collect::<Vec<_>>());
        assert_eq!(select(&[]).expect("no filter").len(), 2);
        assert_eq!(select(&["tw"]).expect("the filter matches"), ["two"]);
        assert!(select(&["three"]).is_err());
    }

    #[test]
    fn a_summary_counts_what_failed() {
        let result = |test: &str, word: &str| TestResult {
            test: test.to_owned(),
            word: word.to_owned(),
            seconds: 1.0,
        };
        let results = [
            result("one", "passed"),
            result("one", "failed"),
            result("two", "skipped"),
            result("two", "timed out"),
        ];
        let outcome = summary(&["one".to_owned(), "two".to_owned()], &results);
        assert_eq!(outcome.last_line(), "1 passed, 2 failed, 1 skipped");
        assert_eq!(outcome.failures, ["one: 1 of 2 times", "two: 1 of 2 times"]);
    }
}
