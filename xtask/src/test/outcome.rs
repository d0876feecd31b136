//! Parses the output of test programs and sums the results.

use std::io::{self, Read, Write};

/// The number of tests that passed and failed, and the tests that were skipped.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Outcome {
    pub(super) passed: u64,
    pub(super) failed: u64,
    /// The skipped tests, each with the reason.
    pub(super) skipped: Vec<String>,
    /// Descriptions of the failures.
    pub(super) failures: Vec<String>,
}

impl Outcome {
    /// Adds the results of another program.
    pub(super) fn add(&mut self, other: Self) {
        self.passed += other.passed;
        self.failed += other.failed;
        self.skipped.extend(other.skipped);
        self.failures.extend(other.failures);
    }

    /// Adds a failure that is not a test.
    pub(super) fn fail(&mut self, what: String) {
        self.failed += 1;
        self.failures.push(what);
    }

    /// Returns the last line of `cargo xtask test`.
    pub(super) fn last_line(&self) -> String {
        format!(
            "{} passed, {} failed, {} skipped",
            self.passed,
            self.failed,
            self.skipped.len()
        )
    }

    /// Parses the output of a program that runs tests. Both libtest and libtest-mimic print `test NAME ... ok`, `FAILED` or
    /// `ignored, REASON`. The output of the test itself may be between the dots and the result. The last line has the sums.
    pub(super) fn read(program: &str, output: &str) -> Self {
        let mut outcome = Self::default();
        let mut name = "";
        let mut has_result = false;
        for line in output.lines().map(str::trim_end) {
            if let Some((test, _)) = line.strip_prefix("test ").and_then(|rest| rest.split_once(" ...")) {
                name = without_kind(test);
            }
            if let Some((_, reason)) = line.split_once("... ignored") {
                let reason = reason.trim_start_matches([',', ' ']);
                let reason = if reason.is_empty() {
                    "the test is marked as ignored"
                } else {
                    reason
                };
                outcome.skipped.push(format!("{program}: {name}: {reason}"));
            } else if line.ends_with("FAILED") && !line.starts_with("test result") {
                outcome.failures.push(format!("{program}: {name}"));
            } else if let Some(sums) = line.strip_prefix("test result: ") {
                has_result = true;
                let count = |what: &str| -> u64 {
                    let before = sums.split(';').find_map(|part| part.trim_end().strip_suffix(what));
                    let word = before.and_then(|before| before.split_whitespace().last());
                    word.and_then(|word| word.parse().ok()).unwrap_or(0)
                };
                outcome.passed += count(" passed");
                outcome.failed += count(" failed");
            }
        }
        if !has_result {
            outcome.fail(format!("{program}: the program ended without a result"));
        }
        outcome
    }
}

/// Returns the name of a test without the kind in brackets that may precede it.
fn without_kind(test: &str) -> &str {
    let test = test.trim();
    test.strip_prefix('[')
        .and_then(|rest| rest.split_once(']'))
        .map_or(test, |(_, name)| name.trim())
}

/// Copies the output of a program while it runs, and returns all of it.
pub(super) fn copy(mut from: impl Read, mut to: impl Write) -> io::Result<String> {
    let mut all = Vec::new();
    let mut part = [0; 4_096];
    loop {
        let length = from.read(&mut part)?;
        if length == 0 {
            return Ok(String::from_utf8_lossy(&all).into_owned());
        }
        to.write_all(&part[..length])?;
        to.flush()?;
        all.extend_from_slice(&part[..length]);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const OUTPUT: &str = "
running 4 tests
test [kernel] one   ... ok
test          two   ... FAILED
test          three ... ignored, go is not on PATH
test web ... ignored
test result: FAILED. 1 passed; 1 failed; 2 ignored; 0 measured; 5 filtered out; finished in 1.00s
";

    #[test]
    fn the_output_of_a_program_is_summed() {
        let outcome = Outcome::read("privileged", OUTPUT);
        assert_eq!((outcome.passed, outcome.failed), (1, 1));
        assert_eq!(
            outcome.skipped,
            [
                "privileged: three: go is not on PATH",
                "privileged: web: the test is marked as ignored"
            ]
        );
        assert_eq!(outcome.failures, ["privileged: two"]);
        assert_eq!(outcome.last_line(), "1 passed, 1 failed, 2 skipped");
    }

    #[test]
    fn a_program_that_dies_is_a_failure() {
        let outcome = Outcome::read("privileged", "running 4 tests\ntest one ... ok\ntest two ... ");
        assert_eq!(outcome.failed, 1);
        assert_eq!(outcome.failures, ["privileged: the program ended without a result"]);
    }

    #[test]
    fn outcomes_add_up() {
        let mut sum = Outcome::read("privileged", OUTPUT);
        sum.add(Outcome::read("fleet", OUTPUT));
        sum.fail("documentation: cargo failed".to_owned());
        assert_eq!(sum.last_line(), "2 passed, 3 failed, 4 skipped");
        assert_eq!(sum.failures.len(), 3);
    }

    #[test]
    fn what_is_copied_is_returned() {
        let mut copied = Vec::new();
        assert_eq!(copy(&b"text"[..], &mut copied).expect("the text is copied"), "text");
        assert_eq!(copied, b"text");
    }
}
