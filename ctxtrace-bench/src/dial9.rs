//! Runs the same workload under dial9, with a program outside the workspace (`ctxtrace-bench/dial9`) that nothing else builds.

use std::path::PathBuf;
use std::process::Command;

use anyhow::{Context as _, Result};

use crate::losses::Losses;
use crate::process;
use crate::rounds::RoundSample;
use crate::workloads::WorkloadCase;

/// Builds the program, which is a separate workspace with its own lock file and flags. Fails if it does not build on this machine,
/// for example without network access.
pub(crate) fn build() -> Result<()> {
    let mut command = process::cargo();
    command
        .current_dir(process::root().join("ctxtrace-bench/dial9"))
        .args(["build", "--release", "--locked", "--target-dir"])
        .arg(folder());
    process::run(&mut command).context("ctxtrace-bench/dial9 does not build on this machine")
}

/// Runs a case once. `sees` selects what dial9 records: `off`, `polls` or `wakes`.
pub(crate) fn run(sees: &str, case: &WorkloadCase) -> Result<RoundSample> {
    let (mode, buffer) = case.plain.split_at(1);
    let mut command = Command::new(folder().join("release/ping-pong-under-dial9"));
    let text = process::output(
        command
            .arg(sees)
            .args(mode)
            .arg(case.iterations.to_string())
            .args(buffer),
    )?;
    let (ns, lost) = read(&text).context("the program under dial9 printed no numbers")?;
    Ok(RoundSample {
        ns: ns / case.iterations as f64,
        lost,
    })
}

fn folder() -> PathBuf {
    process::root().join("target/dial9")
}

/// Parses the output of the program: the elapsed nanoseconds, the number of recorded events, and the number of dropped batches.
fn read(text: &str) -> Option<(f64, Losses)> {
    let mut numbers = text.split_whitespace();
    let ns = numbers.next()?.parse().ok()?;
    let _events: u64 = numbers.next()?.parse().ok()?;
    let dropped = numbers.next()?.parse().ok()?;
    Some((ns, Losses::single("batches of events", dropped)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_the_program_prints_is_understood() {
        assert_eq!(
            read("1500 30 2\n"),
            Some((1_500.0, Losses::single("batches of events", 2)))
        );
        assert_eq!(read("1500 30 0\n"), Some((1_500.0, Losses::default())));
        assert_eq!(read("1500"), None);
    }
}
