//! `cargo xtask bench`: measures the cost of ctxtrace. Runs that are compared are made by turns, so that a drift of the machine
//! affects all of them. A ratio is the median over the pairs or rounds and is printed with its quartiles.
//!
//! * `workloads`: each built-in workload, untraced, compared with a minimal program that does the same
//!   (`ctxtrace/examples/plain.rs`): the cost of the harness and, for tasks, of the probe.
//! * `tracing`: each built-in workload, traced compared with untraced.
//! * `overhead`: a kernel switch under ctxtrace and under other tracers; a message under ctxtrace and under dial9.
//! * `report`: `ctxtrace report` over captures of several sizes, compared with `perf sched timehist -s`.
//! * `load`: as many switches as the machine can make, at each level: what is lost, and the CPU time and memory of ctxtrace itself.

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{Context as _, Result};
use clap::Parser;
use serde_json::Value;
use xtask_process as process;

mod child;
mod ctxtrace;
mod dial9;
mod figures;
mod load;
mod losses;
mod messages;
mod overhead;
mod perf;
mod report;
mod rounds;
mod switches;
mod tools;
mod workloads;

/// Measure the cost of ctxtrace
#[derive(Debug, Parser)]
#[command(name = "cargo xtask bench", bin_name = "cargo xtask bench")]
struct Args {
    /// What to measure
    #[command(subcommand)]
    what: Benchmark,
}

/// The benchmarks.
#[derive(Debug, clap::Subcommand)]
enum Benchmark {
    /// Compare the built-in workloads with minimal programs that do the same: the cost of harness and probe
    Workloads {
        /// Pairs of runs for each case
        #[arg(long, default_value_t = 15)]
        pairs: usize,
    },
    /// Compare the built-in workloads traced and untraced; needs root
    Tracing {
        /// Pairs of runs for each case
        #[arg(long, default_value_t = 15)]
        pairs: usize,
        /// Recording level: counts, stacks or timeline
        #[arg(long, default_value = "counts", conflicts_with = "polls")]
        level: String,
        /// Record a timeline with every poll and wake, in the cases that have tasks
        #[arg(long)]
        polls: bool,
    },
    /// Measure the cost of a kernel switch and of a message at each level, and with other tools; needs root
    Overhead {
        /// Measure only this part; may be given several times
        #[arg(long, value_enum)]
        only: Vec<overhead::ReportedPart>,
        /// Number of rounds; a round runs every row once
        #[arg(long, default_value_t = 7)]
        rounds: usize,
        /// Round trips of a run of the ping-pong, two switches each
        #[arg(long, default_value_t = 150_000)]
        iterations: u64,
        /// Write all figures to this file as JSON
        #[arg(long, value_name = "FILE")]
        json: Option<PathBuf>,
    },
    /// Measure the time and memory of `ctxtrace report`, and of `perf sched timehist -s`; needs root
    Report {
        /// Number of rounds; a round makes every report once
        #[arg(long, default_value_t = 5)]
        rounds: usize,
        /// Sizes of the captures, in millions of events; perf is measured at 1 and 5
        #[arg(long, value_delimiter = ',', default_values_t = [1, 5, 10, 50])]
        millions: Vec<u64>,
        /// Write all figures to this file as JSON
        #[arg(long, value_name = "FILE")]
        json: Option<PathBuf>,
    },
    /// Make as many kernel switches as the machine can, at each level; needs root
    Load {
        /// Duration of a run in seconds
        #[arg(long, default_value_t = 60)]
        seconds: u64,
        /// Write all figures to this file as JSON
        #[arg(long, value_name = "FILE")]
        json: Option<PathBuf>,
    },
}

fn main() -> ExitCode {
    process::exit_code(measure(&Args::parse().what).map(|()| ExitCode::SUCCESS))
}

/// Builds ctxtrace and runs a benchmark.
fn measure(what: &Benchmark) -> Result<()> {
    ctxtrace::build()?;
    match what {
        Benchmark::Workloads { pairs } => workloads::against_plain(*pairs),
        Benchmark::Tracing { pairs, level, polls } => {
            let level = if *polls { "timeline" } else { level };
            workloads::against_untraced(*pairs, level, *polls)
        }
        Benchmark::Overhead {
            only,
            rounds,
            iterations,
            json,
        } => overhead::main(only, *rounds, *iterations, json.as_deref()),
        Benchmark::Report { rounds, millions, json } => report::main(*rounds, millions, json.as_deref()),
        Benchmark::Load { seconds, json } => load::main(*seconds, json.as_deref()),
    }
}

/// Writes the figures to a JSON file, if there is one.
fn write(json: Option<&Path>, figures: &Value) -> Result<()> {
    let Some(path) = json else { return Ok(()) };
    let text = format!("{figures:#}\n");
    std::fs::write(path, text).with_context(|| format!("cannot write {}", path.display()))
}
