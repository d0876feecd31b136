//! The built-in workloads against the plainest programs that do the same, and traced against untraced: pairs of runs, one after the
//! other, so that the machine's drift touches both; the figure is the median of the pairs' ratios.

use std::process::{Command, Stdio};

use anyhow::{Context as _, Result};
use serde_json::Value;

use super::ctxtrace;
use super::figures::{Spread, quantile, ratios};
use crate::process;

/// One case: how the workload and the plain program are told to do the same.
pub(super) struct Case {
    pub(super) name: &'static str,
    pub(super) iterations: u64,
    /// The workload's specification.
    spec: &'static str,
    /// Mode and buffer of the plain program.
    pub(super) plain: &'static [&'static str],
}

/// `ITERATIONS` in a specification stands for the number.
const CASES: [Case; 6] = [
    Case {
        name: "process",
        iterations: 100_000,
        spec: r#"{"mode":"process","iterations":ITERATIONS,"pin":"same-cpu"}"#,
        plain: &["process"],
    },
    Case {
        name: "thread",
        iterations: 100_000,
        spec: r#"{"mode":"thread","iterations":ITERATIONS,"pin":"same-cpu"}"#,
        plain: &["thread"],
    },
    Case {
        name: "task, buffer 0",
        iterations: 1_000_000,
        spec: r#"{"mode":"task","iterations":ITERATIONS,"pin":"none","buffer":0,"root":"spawned"}"#,
        plain: &["task", "0"],
    },
    Case {
        name: "task, buffer 4096",
        iterations: 4_000_000,
        spec: r#"{"mode":"task","iterations":ITERATIONS,"pin":"none","buffer":4096,"root":"spawned"}"#,
        plain: &["task", "4096"],
    },
    Case {
        name: "task-pool, buffer 0",
        iterations: 1_000_000,
        spec: r#"{"mode":"task-pool","iterations":ITERATIONS,"pin":"none","buffer":0,"workers":2,"root":"spawned"}"#,
        plain: &["task-pool", "0"],
    },
    Case {
        name: "task-pool, buffer 4096",
        iterations: 4_000_000,
        spec: r#"{"mode":"task-pool","iterations":ITERATIONS,"pin":"none","buffer":4096,"workers":2,"root":"spawned"}"#,
        plain: &["task-pool", "4096"],
    },
];

/// Where in [`CASES`] those begin that have tasks.
const FIRST_OF_TASKS: usize = 2;

/// The cases that have tasks.
pub(super) fn of_tasks() -> &'static [Case] {
    &CASES[FIRST_OF_TASKS..]
}

/// The workloads against the plain programs.
pub(super) fn against_plain(pairs: usize) -> Result<()> {
    compare(pairs, &CASES, ["workload", "plain"], Case::untraced, Case::plain)
}

/// Traced against untraced.
pub(super) fn against_untraced(pairs: usize, level: &str, polls: bool) -> Result<()> {
    let traced = |options: &'static [&'static str]| move |case: &Case| Ok(case.traced(options)?.0);
    if polls {
        let names = ["with polls", "untraced"];
        return compare(
            pairs,
            of_tasks(),
            names,
            traced(&["timeline", "--polls"]),
            Case::untraced,
        );
    }
    let of_level = |case: &Case| Ok(case.traced(&[level])?.0);
    compare(pairs, &CASES, ["traced", "untraced"], of_level, Case::untraced)
}

/// Measures both sides of each case in turn, and prints the medians and the ratio.
#[expect(clippy::print_stdout, reason = "the table is what was asked for")]
fn compare(
    pairs: usize,
    cases: &[Case],
    names: [&str; 2],
    subject: impl Fn(&Case) -> Result<f64>,
    base: impl Fn(&Case) -> Result<f64>,
) -> Result<()> {
    println!(
        "{:24} {:>12} {:>12}   ratio (quartiles of {pairs} pairs)",
        "ns/message", names[0], names[1]
    );
    for case in cases {
        let (mut subjects, mut bases) = (Vec::new(), Vec::new());
        for pair in 0..pairs {
            // Who goes first changes, so that neither always meets the other's leftovers.
            if pair % 2 == 0 {
                subjects.push(subject(case)?);
                bases.push(base(case)?);
            } else {
                bases.push(base(case)?);
                subjects.push(subject(case)?);
            }
        }
        let ratio = Spread::of(&ratios(&subjects, &bases)).context("there were no pairs")?;
        println!(
            "{:24} {:>12.1} {:>12.1}   {ratio:.3}",
            case.name,
            quantile(&subjects, 0.5),
            quantile(&bases, 0.5),
        );
    }
    Ok(())
}

impl Case {
    /// Nanoseconds a message of the workload under tracing, and the report. `level` may be followed by more options.
    pub(super) fn traced(&self, level: &[&str]) -> Result<(f64, Value)> {
        let mut command = process::as_root(ctxtrace::program());
        let iterations = self.iterations.to_string();
        let (mode, buffer) = self.plain.split_at(1);
        command
            .args(["run", "--level"])
            .args(level)
            .args(["--json", "-", "--iterations", &iterations, "--mode"]);
        command
            .args(mode)
            .args(buffer.iter().flat_map(|buffer| ["--buffer", *buffer]));
        let text = process::output(command.stderr(Stdio::null()))?;
        let report = serde_json::from_str(&text).context("ctxtrace wrote no JSON")?;
        Ok((ctxtrace::number(&report, "/workload/ns_per_message")?, report))
    }

    /// Nanoseconds a message of the workload.
    pub(super) fn untraced(&self) -> Result<f64> {
        let spec = self.spec.replace("ITERATIONS", &self.iterations.to_string());
        let text = process::output(Command::new(ctxtrace::program()).args(["workload", "--spec", &spec]))?;
        let outcome: Value = serde_json::from_str(&text).context("the workload wrote no JSON")?;
        Ok(ctxtrace::number(&outcome, "/done/elapsed_ns")? / self.iterations as f64)
    }

    /// Nanoseconds a message of the plain program.
    fn plain(&self) -> Result<f64> {
        let (mode, buffer) = self.plain.split_at(1);
        let mut command = Command::new(ctxtrace::plain());
        let text = process::output(command.args(mode).arg(self.iterations.to_string()).args(buffer))?;
        let elapsed_ns: f64 = text.trim().parse().context("the plain program printed no number")?;
        Ok(elapsed_ns / self.iterations as f64)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_cases_with_tasks_have_buffers() {
        assert!(of_tasks().iter().all(|case| case.plain.len() == 2));
        assert!(CASES[..FIRST_OF_TASKS].iter().all(|case| case.plain.len() == 1));
    }
}
