//! `cargo xtask bench`: what does it cost? Always in pairs of runs, one after the other, so that the machine's drift touches
//! both; the figure is the median of the pairs' ratios.
//!
//! * `workloads`: each built-in workload, untraced, against the plainest program that does the same
//!   (`ctxtrace/examples/plain.rs`): the cost of the harness and, for tasks, of the probe.
//! * `tracing`: each workload traced against untraced.
//! * `overhead`: a kernel switch under ctxtrace and under its peers ([`crate::overhead`]).

use std::process::Command;

use anyhow::{Context as _, Result, bail};

use crate::{overhead, process};

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
    /// The built-in workloads against the plainest programs that do the same: harness and probe
    Workloads {
        /// Pairs of runs for each case
        #[arg(long, default_value_t = 15)]
        pairs: usize,
    },
    /// The built-in workloads traced against untraced; as root
    Tracing {
        /// Pairs of runs for each case
        #[arg(long, default_value_t = 15)]
        pairs: usize,
        /// How much is recorded: counts, stacks or timeline
        #[arg(long, default_value = "counts")]
        level: String,
    },
    /// A kernel switch under each level, under an empty program, and under the tools that people use for the same; as root
    Overhead {
        /// Rounds of one run of everything
        #[arg(long, default_value_t = 7)]
        rounds: usize,
        /// Round trips of a run, two switches each
        #[arg(long, default_value_t = 150_000)]
        iterations: u64,
        /// Write every figure as JSON
        #[arg(long)]
        json: Option<std::path::PathBuf>,
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
pub(crate) fn main(args: &Args) -> Result<()> {
    process::run(process::cargo().current_dir(process::root()).args([
        "build",
        "--release",
        "--package",
        "ctxtrace",
        "--bins",
        "--examples",
    ]))?;
    match &args.what {
        What::Workloads { pairs } => compare(*pairs, ["workload", "plain"], Case::workload, Case::plain),
        What::Tracing { pairs, level } => compare(
            *pairs,
            ["traced", "untraced"],
            |case| case.traced(level),
            Case::workload,
        ),
        What::Overhead {
            rounds,
            iterations,
            json,
        } => overhead::main(*rounds, *iterations, json.as_deref()),
    }
}

/// Measures both sides of each case in turn, and prints the medians and the ratio.
#[expect(clippy::print_stdout, reason = "the table is what was asked for")]
fn compare(
    pairs: usize,
    names: [&str; 2],
    subject: impl Fn(&Case) -> Result<f64>,
    base: impl Fn(&Case) -> Result<f64>,
) -> Result<()> {
    println!(
        "{:24} {:>12} {:>12}   ratio (quartiles of {pairs} pairs)",
        "ns/message", names[0], names[1]
    );
    for case in &CASES {
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
        let ratios: Vec<f64> = subjects
            .iter()
            .zip(&bases)
            .map(|(subject, base)| subject / base)
            .collect();
        println!(
            "{:24} {:>12.1} {:>12.1}   {:.3} ({:.3} to {:.3})",
            case.name,
            quantile(&subjects, 0.5),
            quantile(&bases, 0.5),
            quantile(&ratios, 0.5),
            quantile(&ratios, 0.25),
            quantile(&ratios, 0.75)
        );
    }
    Ok(())
}

impl Case {
    /// Nanoseconds a message of the workload under tracing.
    fn traced(&self, level: &str) -> Result<f64> {
        let mut command = process::as_root(process::root().join("target/release/ctxtrace"));
        let iterations = self.iterations.to_string();
        let (mode, buffer) = self.plain.split_at(1);
        command.args([
            "run",
            "--level",
            level,
            "--json",
            "-",
            "--iterations",
            &iterations,
            "--mode",
        ]);
        command
            .args(mode)
            .args(buffer.iter().flat_map(|buffer| ["--buffer", *buffer]));
        let text = output(command.stderr(std::process::Stdio::null()))?;
        self.per_message(&elapsed_in(&text)?)
    }

    /// Nanoseconds a message of the workload.
    fn workload(&self) -> Result<f64> {
        let spec = self.spec.replace("ITERATIONS", &self.iterations.to_string());
        let mut command = Command::new(process::root().join("target/release/ctxtrace"));
        let text = output(command.args(["workload", "--spec", &spec]))?;
        self.per_message(&elapsed_in(&text)?)
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

/// The first `elapsed_ns` in some JSON.
fn elapsed_in(json: &str) -> Result<String> {
    json.split_once("\"elapsed_ns\":")
        .map(|(_, rest)| rest.trim_start().chars().take_while(char::is_ascii_digit).collect())
        .context("the workload says nothing of its time")
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
