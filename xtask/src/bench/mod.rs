//! `cargo xtask bench`: what does it cost? Runs that are compared are made in turn, so that the machine's drift touches all of them;
//! a ratio is the median of those of the pairs or rounds, and comes with its quartiles.
//!
//! * `workloads`: each built-in workload, untraced, against the plainest program that does the same
//!   (`ctxtrace/examples/plain.rs`): the cost of the harness and, for tasks, of the probe.
//! * `tracing`: each workload traced against untraced.
//! * `overhead`: a kernel switch under ctxtrace and under its peers; a message under ctxtrace and under dial9.
//! * `report`: `ctxtrace report` over captures of several sizes, against `perf sched timehist -s`.
//! * `load`: as many switches as the machine can do, at each level: what is lost, and what ctxtrace itself takes.

use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result};
use serde_json::Value;

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
        #[arg(long, default_value = "counts", conflicts_with = "polls")]
        level: String,
        /// Record a timeline, and stamp every poll and wake; of the cases that have tasks
        #[arg(long)]
        polls: bool,
    },
    /// A kernel switch and a message under each level, and under the tools that people use for the same; as root
    Overhead {
        /// Only this part; may be given several times
        #[arg(long, value_enum)]
        only: Vec<overhead::Part>,
        /// Rounds of one run of everything
        #[arg(long, default_value_t = 7)]
        rounds: usize,
        /// Round trips of a run of the ping-pong, two switches each
        #[arg(long, default_value_t = 150_000)]
        iterations: u64,
        /// Write every figure as JSON
        #[arg(long, value_name = "FILE")]
        json: Option<PathBuf>,
    },
    /// Time and memory of `ctxtrace report`, against `perf sched timehist -s`; as root
    Report {
        /// Rounds of one report of everything
        #[arg(long, default_value_t = 5)]
        rounds: usize,
        /// Sizes of the captures, in millions of events; perf is asked about 1 and 5
        #[arg(long, value_delimiter = ',', default_values_t = [1, 5, 10, 50])]
        millions: Vec<u64>,
        /// Write every figure as JSON
        #[arg(long, value_name = "FILE")]
        json: Option<PathBuf>,
    },
    /// As many kernel switches as the machine can do, at each level; as root
    Load {
        /// How long a run lasts
        #[arg(long, default_value_t = 60)]
        seconds: u64,
        /// Write every figure as JSON
        #[arg(long, value_name = "FILE")]
        json: Option<PathBuf>,
    },
}

/// Runs the benchmark asked for.
pub(crate) fn main(args: &Args) -> Result<()> {
    ctxtrace::build()?;
    match &args.what {
        What::Workloads { pairs } => workloads::against_plain(*pairs),
        What::Tracing { pairs, level, polls } => {
            let level = if *polls { "timeline" } else { level };
            workloads::against_untraced(*pairs, level, *polls)
        }
        What::Overhead {
            only,
            rounds,
            iterations,
            json,
        } => overhead::main(only, *rounds, *iterations, json.as_deref()),
        What::Report { rounds, millions, json } => report::main(*rounds, millions, json.as_deref()),
        What::Load { seconds, json } => load::main(*seconds, json.as_deref()),
    }
}

/// Writes the figures, where that is asked for.
fn write(json: Option<&Path>, figures: &Value) -> Result<()> {
    let Some(path) = json else { return Ok(()) };
    let text = format!("{figures:#}\n");
    std::fs::write(path, text).with_context(|| format!("cannot write {}", path.display()))
}
