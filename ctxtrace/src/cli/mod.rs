//! The command line.
//!
//! This module alone uses clap. In a second step [`settings`] and [`comparison`] convert its structures to plain ones, and reject
//! options that cannot be combined.

pub mod comparison;
pub mod settings;

use std::ffi::OsString;
use std::path::PathBuf;
use std::time::Duration;

use bytesize::ByteSize;
use clap::{Args, Parser, Subcommand};

use ctxtrace_analysis::assertion::Assertion;
use ctxtrace_format::Level;
use ctxtrace_format::programs::LocatorChoice;
use ctxtrace_format::workload::Pin;
use ctxtrace_format::workload::{Allocator, Channel, Language, Mode, Plant, Protocol, Root};
use ctxtrace_report::Weight;

/// Shows which task switches of an async program hit the kernel, and what that costs
#[derive(Debug, Parser)]
#[command(name = "ctxtrace", version, about, max_term_width = 100)]
pub struct Cli {
    /// The command to execute.
    #[command(subcommand)]
    pub command: Command,
}

/// The commands.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Run one built-in workload and trace it
    Run(RunArgs),
    /// Record a command and its children, or a process that is already running
    ///
    /// The command keeps its standard input, standard output and exit status; the table is printed on standard error. Ctrl-C is
    /// also sent to the command, and the recording continues until the command ends. A second Ctrl-C kills the command.
    Record(RecordArgs),
    /// Find out why one case is slower than another, by measuring both and changing one factor at a time
    Explain(ExplainArgs),
    /// Show the differences between two captures, in counts and in time; needs no root
    Compare(CompareArgs),
    /// Measure every case of the article that ctxtrace is based on, beside the article's own figures
    Suite(SuiteArgs),
    /// Produce any output from a saved capture; needs no root
    Report(ReportArgs),
    /// Check what this machine allows, and print the command that fixes what is missing; needs no root
    ///
    /// Exits with status 0 if tracing works for the current user. If a program is given, also shows how its tasks can be found
    /// and whether its functions have names.
    Doctor(DoctorArgs),
    /// Run as a workload; `run` starts its child with this command
    #[command(hide = true)]
    Workload(WorkloadArgs),
    /// Read files on behalf of another ctxtrace process, which starts this one
    #[command(hide = true)]
    ReadFiles,
}

/// Options of `doctor`.
#[derive(Debug, Args)]
pub struct DoctorArgs {
    /// Program to trace: check what can be recorded of it, and how it should be built
    #[arg(value_name = "BIN", last = true)]
    pub program: Option<PathBuf>,

    /// Write the result as JSON ("-" for standard output)
    #[arg(long, value_name = "FILE")]
    pub json: Option<PathBuf>,
}

/// The command line of an executable that is only a workload.
#[derive(Debug, Parser)]
#[command(version, about = "A workload of ctxtrace; ctxtrace starts it")]
pub struct WorkloadCli {
    /// The command to execute.
    #[command(subcommand)]
    pub command: OnlyWorkload,
}

/// The only command of such an executable, equal to [`Command::Workload`].
#[derive(Debug, Subcommand)]
pub enum OnlyWorkload {
    /// Run as a workload; `run` starts its child with this command
    Workload(WorkloadArgs),
}

/// Options of `run`.
#[derive(Debug, Args)]
pub struct RunArgs {
    /// Workload to run
    #[arg(long, value_enum)]
    pub mode: Mode,

    /// Variants of the workload
    #[command(flatten)]
    pub case: CaseArgs,

    /// Number of runs; the headline shows the median run
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u64).range(1..=1_000))]
    pub repeat: u64,

    /// What to record, and where to save it
    #[command(flatten)]
    pub recording: RecordingArgs,

    /// Outputs to write
    #[command(flatten)]
    pub outputs: OutputArgs,
}

/// Variants of a workload, in addition to its mode. All commands that run a workload have these options.
#[derive(Clone, Debug, Default, PartialEq, Eq, Args)]
pub struct CaseArgs {
    /// Channel capacity in messages; 0 forces a task switch for each message [default: 0] (tasks, go)
    ///
    /// A channel of the futures crate holds one further message for each sender. A tokio channel needs a capacity of at least 1.
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(0..=16_777_216))]
    pub buffer: Option<u64>,

    /// Number of messages to send [default: 2000000 for tasks and go, 200000 for process and thread]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..=1_000_000_000_000))]
    pub iterations: Option<u64>,

    /// Number of worker threads of the pool, or GOMAXPROCS [default: 2] (task-pool, go)
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..=1_024))]
    pub workers: Option<u64>,

    /// How threads are pinned to CPUs [default: same-cpu for process and thread, none for tasks and go]
    #[arg(long, value_enum)]
    pub pin: Option<Pin>,

    /// Where the receiver runs [default: spawned] (tasks)
    #[arg(long, value_enum)]
    pub root: Option<Root>,

    /// Type of channel between the tasks [default: futures] (tasks)
    #[arg(long, value_enum)]
    pub channel: Option<Channel>,

    /// When the next message is sent [default: pipelined for tasks, lock-step for go] (tasks, go)
    #[arg(long, value_enum)]
    pub protocol: Option<Protocol>,

    /// Count the maximum number of messages in flight, which takes some time for each message (tasks, go)
    #[arg(long)]
    pub count_in_flight: bool,

    /// Number of additional threads in each process that only sleep
    #[arg(long, value_name = "N", default_value_t = 0, value_parser = clap::value_parser!(u64).range(0..=64))]
    pub idle_threads: u64,

    /// Memory allocator of a workload in Rust [default: system]
    #[arg(long, value_enum)]
    pub allocator: Option<Allocator>,

    /// Language that the workload is written in [default: rust] (process)
    #[arg(long, value_enum)]
    pub language: Option<Language>,

    /// For tests: a deliberate cause of slowness that `explain` has to find
    #[arg(long, value_enum, hide = true, conflicts_with = "count_in_flight")]
    pub plant: Option<Plant>,
}

/// Options of `explain`.
#[derive(Debug, Args)]
pub struct ExplainArgs {
    /// Mode of the slower case, the subject [default: task-pool, with --buffer 4096]
    #[arg(long, value_enum)]
    pub mode: Option<Mode>,

    /// Variants of the subject
    #[command(flatten)]
    pub case: CaseArgs,

    /// Case to compare with, the base: a mode and its options, up to the end of the line [default: task, with the same options]
    ///
    /// All other options of `explain` must come before this one.
    #[arg(long, value_name = "MODE [OPTIONS]", num_args = 1.., allow_hyphen_values = true, conflicts_with_all = ["base", "subject"])]
    pub against: Vec<String>,

    /// Command that is as fast as it should be, as one argument: 'CMD ARGS'
    #[arg(long, value_name = "CMD", requires = "subject", conflicts_with = "mode")]
    pub base: Option<String>,

    /// Command that is slower, as one argument: 'CMD ARGS'
    #[arg(long, value_name = "CMD", requires = "base", conflicts_with = "mode")]
    pub subject: Option<String>,

    /// Make fewer runs and try only the most informative interventions: less than 45 seconds
    #[arg(long)]
    pub quick: bool,

    /// Try only these interventions, by name, separated by commas
    #[arg(long, value_name = "NAME", value_delimiter = ',')]
    pub only: Vec<String>,

    /// Skip these interventions, by name, separated by commas
    #[arg(long, value_name = "NAME", value_delimiter = ',')]
    pub skip: Vec<String>,

    /// Outputs to write
    #[command(flatten)]
    pub outputs: ComparisonOutputArgs,
}

/// Options of `compare`.
#[derive(Debug, Args)]
pub struct CompareArgs {
    /// Capture to compare with
    #[arg(value_name = "BASE.ctx")]
    pub base: PathBuf,

    /// Capture whose differences from the base are shown
    #[arg(value_name = "SUBJECT.ctx")]
    pub subject: PathBuf,

    /// Outputs to write
    #[command(flatten)]
    pub outputs: ComparisonOutputArgs,
}

/// Outputs of a comparison.
#[derive(Debug, Args)]
pub struct ComparisonOutputArgs {
    /// Write the result as JSON ("-" for standard output)
    #[arg(long, value_name = "FILE")]
    pub json: Option<PathBuf>,

    /// Write the result as Markdown, for example for an issue ("-" for standard output)
    #[arg(long, value_name = "FILE.md")]
    pub markdown: Option<PathBuf>,

    /// Write a differential on-CPU flamegraph
    #[arg(long, value_name = "FILE.svg")]
    pub on_cpu_flamegraph: Option<PathBuf>,

    /// Write a differential off-CPU flamegraph
    #[arg(long, value_name = "FILE.svg")]
    pub flamegraph: Option<PathBuf>,
}

/// Options of `record`.
#[derive(Debug, Args)]
pub struct RecordArgs {
    /// Command to record, with its arguments
    #[arg(
        value_name = "CMD",
        trailing_var_arg = true,
        required_unless_present = "pid",
        conflicts_with = "pid"
    )]
    pub command: Vec<OsString>,

    /// Record this running process until it ends
    #[arg(short, long, value_name = "PID", value_parser = clap::value_parser!(u32).range(1..))]
    pub pid: Option<u32>,

    /// Also record the process's children, both present and future ones
    #[arg(long, requires = "pid", conflicts_with = "command")]
    pub children: bool,

    /// Stop after this time, for example "10s" or "2m", and terminate a command with all processes that it started
    #[arg(long, value_name = "T", value_parser = duration)]
    pub duration: Option<Duration>,

    /// What to record, and where to save it
    #[command(flatten)]
    pub recording: RecordingArgs,

    /// Outputs to write
    #[command(flatten)]
    pub outputs: OutputArgs,
}

/// Options of `suite`.
#[derive(Debug, Args)]
pub struct SuiteArgs {
    /// Number of untraced runs of each case, and of traced runs
    #[arg(long, value_name = "N", default_value_t = 5, value_parser = clap::value_parser!(u64).range(1..=1_000))]
    pub repeat: u64,

    /// Number of messages for tasks and goroutines; processes and threads send a tenth of them
    #[arg(long, value_name = "N", default_value_t = 2_000_000, value_parser = clap::value_parser!(u64).range(1..=1_000_000_000_000))]
    pub iterations: u64,

    /// Write the table as JSON ("-" for standard output)
    #[arg(long, value_name = "FILE")]
    pub json: Option<PathBuf>,

    /// Write the table as Markdown ("-" for standard output)
    #[arg(long, value_name = "FILE.md")]
    pub markdown: Option<PathBuf>,

    /// Print only problems
    #[arg(long)]
    pub quiet: bool,
}

/// Options of `report`.
#[derive(Debug, Args)]
pub struct ReportArgs {
    /// Capture file to report
    #[arg(value_name = "FILE")]
    pub file: PathBuf,

    /// Replay the events of a timeline and compare them with the counts, even if no output needs the events
    ///
    /// Without this option the report shows the result of the recorder, which made the same comparison.
    #[arg(long)]
    pub check: bool,

    /// Outputs to write
    #[command(flatten)]
    pub outputs: OutputArgs,
}

/// Options on what to record and where to save it. All commands that record have them.
#[derive(Debug, Args)]
pub struct RecordingArgs {
    /// Level of detail to record
    #[arg(long, value_enum, default_value_t = Level::Stacks)]
    pub level: Level,

    /// How to find the task that a thread is polling
    #[arg(long, value_enum, default_value_t = LocatorChoice::Auto)]
    pub locator: LocatorChoice,

    /// Save everything in a capture file, for `ctxtrace report`
    #[arg(short, long, value_name = "FILE.ctx")]
    pub output: Option<PathBuf>,

    /// Replace the capture file if it exists
    #[arg(long, requires = "output")]
    pub force: bool,

    /// Maximum size of the capture file, for example "500MB"; the oldest events are dropped, but no counts
    #[arg(long, value_name = "SIZE", requires = "output")]
    pub max_size: Option<ByteSize>,

    /// Keep only the events of the last T, for example "30s" (level timeline)
    ///
    /// The capture file has the events of a time between T and twice T.
    #[arg(long, value_name = "T", value_parser = duration, requires = "output")]
    pub keep: Option<Duration>,

    /// Maximum number of threads that are followed at a time; further threads are counted as lost [default: 16384]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=4_194_304))]
    pub max_threads: Option<u32>,

    /// Capacity of the kernel's table of switch-outs by stack, which is emptied as it fills [default: 16384]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=1_048_576))]
    pub max_stacks: Option<u32>,

    /// Memory for the ring buffers of events, for all CPUs together, for example "64MiB" [default: 32MiB, or 1MiB per CPU if that
    /// is more] (level timeline)
    #[arg(long, value_name = "SIZE")]
    pub ring_size: Option<ByteSize>,

    /// Record the time of every poll and wake in a started program that contains ctxtrace-probe (level timeline)
    #[arg(long)]
    pub polls: bool,

    /// Memory for each thread's ring buffer of polls [default: 8MiB] (--polls)
    #[arg(long, value_name = "SIZE", requires = "polls")]
    pub poll_ring_size: Option<ByteSize>,

    /// Sample what the target does on each CPU, this many times a second (level timeline)
    #[arg(long, value_name = "HZ", value_parser = clap::value_parser!(u32).range(1..=10_000))]
    pub sample: Option<u32>,

    /// Fault injection for tests: lose one switch event in this many
    #[arg(long, value_name = "N", hide = true, default_value_t = 0)]
    pub drop_one_in: u32,
}

/// Options on what to write. All commands that make a report have them.
#[derive(Debug, Args)]
pub struct OutputArgs {
    /// Write the result as JSON ("-" for standard output)
    #[arg(long, value_name = "FILE")]
    pub json: Option<PathBuf>,

    /// Write the complete report as one self-contained HTML page
    #[arg(long, value_name = "FILE.html")]
    pub html: Option<PathBuf>,

    /// Write an off-CPU flamegraph
    #[arg(long, value_name = "FILE.svg")]
    pub flamegraph: Option<PathBuf>,

    /// Write an on-CPU flamegraph (--sample)
    #[arg(long, value_name = "FILE.svg")]
    pub on_cpu_flamegraph: Option<PathBuf>,

    /// Write a flamegraph of the stacks that made wakeups
    #[arg(long, value_name = "FILE.svg")]
    pub wakeups_flamegraph: Option<PathBuf>,

    /// Write folded stacks, for other flamegraph tools
    #[arg(long, value_name = "FILE")]
    pub folded: Option<PathBuf>,

    /// Write the timeline for ui.perfetto.dev (level timeline)
    #[arg(long, value_name = "FILE.pftrace")]
    pub perfetto: Option<PathBuf>,

    /// Write switches and off-CPU time by stack for pprof, Pyroscope, Parca or speedscope
    #[arg(long, value_name = "FILE.pb.gz")]
    pub pprof: Option<PathBuf>,

    /// Write the tables of the capture as Parquet files into a directory
    ///
    /// The directory may already contain the tables of other captures: see docs/FLEET.md.
    #[arg(long, value_name = "DIR")]
    pub parquet: Option<PathBuf>,

    /// What the widths in flamegraphs and folded stacks represent [default: time]
    #[arg(long, value_enum)]
    pub weight: Option<Weight>,

    /// Exit with status 3 unless this condition on the JSON report holds, for example `kernel_switches.per_message < 0.01`
    /// (repeatable)
    #[arg(long = "assert", value_name = "EXPR")]
    pub assertions: Vec<Assertion>,

    /// Print only problems
    #[arg(long)]
    pub quiet: bool,
}

/// Parses a duration: `10s`, `1m 30s`, or a number of seconds.
fn duration(text: &str) -> Result<Duration, String> {
    let duration = match text.parse::<f64>() {
        Ok(seconds) => Duration::try_from_secs_f64(seconds).map_err(|error| error.to_string()),
        Err(_) => humantime::parse_duration(text).map_err(|error| error.to_string()),
    }?;
    if duration.is_zero() {
        return Err("the time must be longer than 0".to_owned());
    }
    Ok(duration)
}

/// Options of the hidden `workload`.
#[derive(Debug, Args)]
pub struct WorkloadArgs {
    /// Specification of the workload, as JSON
    #[arg(long)]
    pub spec: String,

    /// File descriptor to report to [default: standard output]
    #[arg(long)]
    pub report_fd: Option<i32>,

    /// File descriptor of the shared page for the progress
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
        WorkloadCli::command().debug_assert();
    }

    #[test]
    fn a_duration_is_written_as_people_write_it() {
        for (text, ms) in [
            ("10s", 10_000),
            ("2", 2_000),
            ("0.5", 500),
            ("1m 30s", 90_000),
            ("250ms", 250),
        ] {
            assert_eq!(duration(text), Ok(Duration::from_millis(ms)), "{text}");
        }
        for text in ["", "0", "-1", "ten", "1x", "1e99", "NaN"] {
            assert!(duration(text).is_err(), "{text}");
        }
    }
}
