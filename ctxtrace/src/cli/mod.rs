//! The command line, and what it means.
//!
//! clap's structures are here and nowhere else; [`settings`] turns them into plain ones in a second step, where options
//! that do not go together are found.

pub mod settings;

use std::path::PathBuf;

use clap::{Args, Parser, Subcommand};

use crate::report::Weight;
use crate::target::programs::LocatorChoice;
use crate::trace::Level;
use crate::workload::pin::Pin;
use crate::workload::{Mode, Root};

/// Shows which task switches of an async program hit the kernel, and what that cost.
#[derive(Debug, Parser)]
#[command(name = "ctxtrace", version, about, max_term_width = 100)]
pub struct Cli {
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
}

/// The commands.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Run one built-in workload, traced
    Run(RunArgs),
    /// Be a workload: how `run` starts its child
    #[command(hide = true)]
    Workload(WorkloadArgs),
}

/// Options of `run`.
#[derive(Debug, Args)]
pub struct RunArgs {
    /// The case to run
    #[arg(long, value_enum)]
    pub mode: Mode,

    /// Messages a channel holds beyond one per sender; 0 forces a task switch a message [default: 0] (tasks)
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(0..=16_777_216))]
    pub buffer: Option<u64>,

    /// Messages to send [default: 2000000 for tasks, 200000 for process and thread]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..=1_000_000_000_000))]
    pub iterations: Option<u64>,

    /// Worker threads of the pool [default: 2] (task-pool)
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..=1_024))]
    pub workers: Option<u64>,

    /// On which CPUs [default: same-cpu for process and thread, none for tasks]
    #[arg(long, value_enum)]
    pub pin: Option<Pin>,

    /// Where the receiver runs [default: spawned] (tasks)
    #[arg(long, value_enum)]
    pub root: Option<Root>,

    /// Run it this often; the headline is the median run's
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u64).range(1..=1_000))]
    pub repeat: u64,

    /// How much to record
    #[arg(long, value_enum, default_value_t = Level::Stacks)]
    pub level: Level,

    /// How tasks are found
    #[arg(long, value_enum, default_value_t = LocatorChoice::Auto)]
    pub locator: LocatorChoice,

    /// Write the result as JSON ("-": standard output)
    #[arg(long, value_name = "FILE")]
    pub json: Option<PathBuf>,

    /// Write an off-CPU flamegraph
    #[arg(long, value_name = "FILE.svg")]
    pub flamegraph: Option<PathBuf>,

    /// Write a flamegraph of the makers of wakeups
    #[arg(long, value_name = "FILE.svg")]
    pub wakeups_flamegraph: Option<PathBuf>,

    /// Write the stacks as lines, for other flamegraph tools
    #[arg(long, value_name = "FILE")]
    pub folded: Option<PathBuf>,

    /// What the widths in flamegraph and folded stacks mean [default: time]
    #[arg(long, value_enum)]
    pub weight: Option<Weight>,

    /// For the tests: bytes of all rings of events together
    #[arg(long, value_name = "N", hide = true)]
    pub ring_bytes: Option<usize>,

    /// Fault injection for the tests: lose one switch event in this many
    #[arg(long, value_name = "N", hide = true, default_value_t = 0)]
    pub drop_one_in: u32,
}

/// Options of the hidden `workload`.
#[derive(Debug, Args)]
pub struct WorkloadArgs {
    /// A workload's specification as JSON
    #[arg(long)]
    pub spec: String,

    /// Descriptor to report to; standard output without it
    #[arg(long)]
    pub report_fd: Option<i32>,

    /// Descriptor of the page to show progress in
    #[arg(long)]
    pub progress_fd: Option<i32>,
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory;

    #[test]
    fn the_command_line_is_consistent() {
        Cli::command().debug_assert();
    }
}
