//! Compares the built-in workloads with minimal programs that do the same, and traced workloads with untraced ones. The two runs
//! of a pair follow each other, so that a drift of the machine affects both. The figure is the median of the ratios of the pairs.

use std::process::{Command, Stdio};

use anyhow::{Context as _, Result};
use serde_json::Value;

use crate::ctxtrace;
use crate::figures::{ValueSpread, quantile, ratios};
use crate::process;

/// A case: the specification of a workload, and the arguments of the plain program that does the same.
pub(crate) struct WorkloadCase {
    pub(crate) name: &'static str,
    pub(crate) iterations: u64,
    /// The specification of the workload, in which `ITERATIONS` stands for the number.
    spec: &'static str,
    /// The mode and, for tasks, the buffer of the plain program.
    pub(crate) plain: &'static [&'static str],
}

/// All cases. Those without tasks come first.
const CASES: [WorkloadCase; 6] = [
    WorkloadCase {
        name: "process",
        iterations: 100_000,
        spec: r#"{"mode":"process","iterations":ITERATIONS,"pin":"same-cpu"}"#,
        plain: &["process"],
    },
    WorkloadCase {
        name: "thread",
        iterations: 100_000,
        spec: r#"{"mode":"thread","iterations":ITERATIONS,"pin":"same-cpu"}"#,
        plain: &["thread"],
    },
    WorkloadCase {
        name: "task, buffer 0",
        iterations: 1_000_000,
        spec: r#"{"mode":"task","iterations":ITERATIONS,"pin":"none","buffer":0,"root":"spawned"}"#,
        plain: &["task", "0"],
    },
    WorkloadCase {
        name: "task, buffer 4096",
        iterations: 4_000_000,
        spec: r#"{"mode":"task","iterations":ITERATIONS,"pin":"none","buffer":4096,"root":"spawned"}"#,
        plain: &["task", "4096"],
    },
    WorkloadCase {
        name: "task-pool, buffer 0",
        iterations: 1_000_000,
        spec: r#"{"mode":"task-pool","iterations":ITERATIONS,"pin":"none","buffer":0,"workers":2,"root":"spawned"}"#,
        plain: &["task-pool", "0"],
    },
    WorkloadCase {
        name: "task-pool, buffer 4096",
        iterations: 4_000_000,
        spec: r#"{"mode":"task-pool","iterations":ITERATIONS,"pin":"none","buffer":4096,"workers":2,"root":"spawned"}"#,
        plain: &["task-pool", "4096"],
    },
];

/// The index of the first case with tasks in [`CASES`].
const FIRST_OF_TASKS: usize = 2;

/// Returns the cases with tasks.
pub(crate) fn of_tasks() -> &'static [WorkloadCase] {
    &CASES[FIRST_OF_TASKS..]
}

/// Compares the workloads with the plain programs and prints the table.
pub(crate) fn against_plain(pairs: usize) -> Result<()> {
    compare(
        pairs,
        &CASES,
        ["workload", "plain"],
        WorkloadCase::untraced,
        WorkloadCase::plain,
    )
}

/// Compares traced workloads with untraced ones and prints the table.
pub(crate) fn against_untraced(pairs: usize, level: &str, polls: bool) -> Result<()> {
    let traced = |options: &'static [&'static str]| move |case: &WorkloadCase| Ok(case.traced(options)?.0);
    if polls {
        let names = ["with polls", "untraced"];
        return compare(
            pairs,
            of_tasks(),
            names,
            traced(&["timeline", "--polls"]),
            WorkloadCase::untraced,
        );
    }
    let of_level = |case: &WorkloadCase| Ok(case.traced(&[level])?.0);
    compare(pairs, &CASES, ["traced", "untraced"], of_level, WorkloadCase::untraced)
}

/// Measures pairs of runs of each case, and prints the medians and the ratio.
#[expect(clippy::print_stdout, reason = "the table is the output of the command")]
fn compare(
    pairs: usize,
    cases: &[WorkloadCase],
    names: [&str; 2],
    subject: impl Fn(&WorkloadCase) -> Result<f64>,
    base: impl Fn(&WorkloadCase) -> Result<f64>,
) -> Result<()> {
    println!(
        "{:24} {:>12} {:>12}   ratio (quartiles of {pairs} pairs)",
        "ns/message", names[0], names[1]
    );
    for case in cases {
        let (mut subjects, mut bases) = (Vec::new(), Vec::new());
        for pair in 0..pairs {
            // The order alternates, because a run may be affected by the run before it.
            if pair % 2 == 0 {
                subjects.push(subject(case)?);
                bases.push(base(case)?);
            } else {
                bases.push(base(case)?);
                subjects.push(subject(case)?);
            }
        }
        let ratio = ValueSpread::from_values(&ratios(&subjects, &bases)).context("there were no pairs")?;
        println!(
            "{:24} {:>12.1} {:>12.1}   {ratio:.3}",
            case.name,
            quantile(&subjects, 0.5),
            quantile(&bases, 0.5),
        );
    }
    Ok(())
}

impl WorkloadCase {
    /// Runs the traced workload, and returns the nanoseconds per message and the report. `level` is a level, which may be followed
    /// by more options.
    pub(crate) fn traced(&self, level: &[&str]) -> Result<(f64, Value)> {
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
        let report = serde_json::from_str(&text).context("the report of ctxtrace is not valid JSON")?;
        Ok((ctxtrace::number(&report, "/workload/ns_per_message")?, report))
    }

    /// Runs the untraced workload, and returns the nanoseconds per message.
    pub(crate) fn untraced(&self) -> Result<f64> {
        let spec = self.spec.replace("ITERATIONS", &self.iterations.to_string());
        let text = process::output(Command::new(ctxtrace::program()).args(["workload", "--spec", &spec]))?;
        let outcome: Value = serde_json::from_str(&text).context("the output of the workload is not valid JSON")?;
        Ok(ctxtrace::number(&outcome, "/done/elapsed_ns")? / self.iterations as f64)
    }

    /// Runs the plain program, and returns the nanoseconds per message.
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
