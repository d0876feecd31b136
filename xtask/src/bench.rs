//! `cargo xtask bench workloads`: does the harness of the built-in workloads cost anything?
//!
//! Each workload is run, untraced, in turn with the plainest program that does the same (`ctxtrace/examples/plain.rs`), and
//! compared pair by pair, so that the machine's drift touches both. The figure is the median of the pairs' ratios.

use std::process::Command;

use anyhow::{Context as _, Result, bail};

use crate::process;

/// The options of `bench`.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// What to measure
    #[command(subcommand)]
    what: What,
}

/// The benchmarks.
#[derive(Debug, clap::Subcommand)]
enum What {
    /// The built-in workloads against the plainest programs that do the same
    Workloads {
        /// Pairs of runs for each case
        #[arg(long, default_value_t = 15)]
        pairs: usize,
    },
}

/// One case: how the workload and the plain program are told to do the same.
struct Case {
    name: &'static str,
    iterations: u64,
    /// The workload's specification.
    spec: &'static str,
    /// Mode and buffer of the plain program.
    plain: &'static [&'static str],
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

/// Runs the benchmark asked for.
#[expect(clippy::print_stdout, reason = "the table is what was asked for")]
pub(crate) fn main(args: &Args) -> Result<()> {
    let What::Workloads { pairs } = args.what;
    process::run(process::cargo().current_dir(process::root()).args([
        "build",
        "--release",
        "--package",
        "ctxtrace",
        "--bins",
        "--examples",
    ]))?;
    println!(
        "{:24} {:>12} {:>12}   ratio (quartiles of {pairs} pairs)",
        "ns/message", "workload", "plain"
    );
    for case in &CASES {
        let mut workload = Vec::new();
        let mut plain = Vec::new();
        for pair in 0..pairs {
            // Who goes first changes, so that neither always meets the other's leftovers.
            if pair % 2 == 0 {
                workload.push(case.workload()?);
                plain.push(case.plain()?);
            } else {
                plain.push(case.plain()?);
                workload.push(case.workload()?);
            }
        }
        let ratios: Vec<f64> = workload
            .iter()
            .zip(&plain)
            .map(|(workload, plain)| workload / plain)
            .collect();
        println!(
            "{:24} {:>12.1} {:>12.1}   {:.3} ({:.3} to {:.3})",
            case.name,
            quantile(&workload, 0.5),
            quantile(&plain, 0.5),
            quantile(&ratios, 0.5),
            quantile(&ratios, 0.25),
            quantile(&ratios, 0.75)
        );
    }
    Ok(())
}

impl Case {
    /// Nanoseconds a message of the workload.
    fn workload(&self) -> Result<f64> {
        let spec = self.spec.replace("ITERATIONS", &self.iterations.to_string());
        let mut command = Command::new(process::root().join("target/release/ctxtrace"));
        let text = output(command.args(["workload", "--spec", &spec]))?;
        let elapsed = text
            .split_once("\"elapsed_ns\":")
            .map(|(_, rest)| rest.chars().take_while(char::is_ascii_digit).collect::<String>())
            .context("the workload says nothing of its time")?;
        self.per_message(&elapsed)
    }

    /// Nanoseconds a message of the plain program.
    fn plain(&self) -> Result<f64> {
        let mut command = Command::new(process::root().join("target/release/examples/plain"));
        let (mode, buffer) = self.plain.split_at(1);
        command.args(mode).arg(self.iterations.to_string()).args(buffer);
        self.per_message(output(&mut command)?.trim())
    }

    fn per_message(&self, elapsed_ns: &str) -> Result<f64> {
        let elapsed_ns: f64 = elapsed_ns.parse().context("no number of nanoseconds")?;
        Ok(elapsed_ns / self.iterations as f64)
    }
}

fn output(command: &mut Command) -> Result<String> {
    let output = command.output().with_context(|| format!("cannot run {command:?}"))?;
    if !output.status.success() {
        bail!("{command:?}: {}", output.status);
    }
    Ok(String::from_utf8(output.stdout)?)
}

/// The value below which a share `q` of the values lies; `values` must not be empty.
fn quantile(values: &[f64], q: f64) -> f64 {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    sorted[((sorted.len() - 1) as f64 * q).round() as usize]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quantiles_are_values_that_occurred() {
        let values = [5.0, 1.0, 4.0, 2.0, 3.0];
        assert_eq!(quantile(&values, 0.5), 3.0);
        assert_eq!(quantile(&values, 0.0), 1.0);
        assert_eq!(quantile(&values, 0.75), 4.0);
        assert_eq!(quantile(&[7.0], 0.5), 7.0);
    }
}
