//! Makes recordings with `perf sched` and reads what was lost in them.

use std::path::Path;
use std::process::Command;

use anyhow::{Context as _, Result};

use crate::child;
use crate::losses::Losses;
use crate::tools;

/// Returns perf with the arguments of one of its commands.
pub(crate) fn command(words: &[&str]) -> Result<Command> {
    let mut command = Command::new(tools::find("perf", tools::OF_PERF)?);
    command.args(words);
    Ok(command)
}

/// Reads from a recording of perf what was lost.
pub(crate) fn losses(data: &Path) -> Result<Losses> {
    let mut command = command(&["report", "--stats", "-i"])?;
    Ok(losses_in(&child::run(command.arg(data))?.stdout))
}

/// Records a command with perf, and returns the number of events.
pub(crate) fn record(data: &Path, words: &[String]) -> Result<u64> {
    let mut command = command(&["sched", "record", "-o"])?;
    let finished = child::run(command.arg(data).arg("--").args(words))?;
    samples_in(&finished.stderr).context("perf did not print the number of recorded events")
}

/// Parses lines such as `LOST_SAMPLES events: 12`.
fn losses_in(stats: &str) -> Losses {
    let of_line = |line: &str| {
        let (name, rest) = line.trim().split_once(" events:")?;
        let count = rest.split_whitespace().next()?.parse().ok()?;
        name.starts_with("LOST")
            .then(|| (format!("{name} records").to_lowercase(), count))
    };
    stats.lines().filter_map(of_line).collect()
}

/// Parses a line such as `[ perf record: Captured and wrote 104.135 MB p.data (1003742 samples) ]`.
fn samples_in(said: &str) -> Option<u64> {
    let (before, _) = said.rsplit_once(" samples)")?;
    before.rsplit_once('(')?.1.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_perf_says_is_understood() {
        let stats =
            "Aggregated stats:\n  TOTAL events:    1004440\n   LOST events:   3  ( 0.0%)\n LOST_SAMPLES events:  0\n";
        assert_eq!(losses_in(stats), Losses::single("lost records", 3));
        assert_eq!(
            samples_in("x\n[ perf record: Captured and wrote 104.135 MB p.data (1003742 samples) ]\n"),
            Some(1_003_742)
        );
        assert_eq!(
            samples_in("[ perf record: Captured and wrote 0.000 MB /dev/null ]"),
            None
        );
    }
}
