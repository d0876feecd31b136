//! The command line, and what it means.
//!
//! clap's structures are here and nowhere else; [`settings`] turns them into plain ones in a second step, where options
//! that do not go together are found.

pub mod comparison;
pub mod settings;

use std::ffi::OsString;
use std::path::PathBuf;
use std::time::Duration;

use bytesize::ByteSize;
use clap::{Args, Parser, Subcommand};

use crate::analyze::assertion::Assertion;
use crate::report::Weight;
use crate::target::programs::LocatorChoice;
use crate::trace::Level;
use crate::workload::pin::Pin;
use crate::workload::{Allocator, Channel, Language, Mode, Plant, Protocol, Root};

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
    /// Record any program and its children, or one that runs already
    ///
    /// The command's input, output and exit status stay its own; the table goes to standard error. Ctrl-C goes to the command
    /// too, which is recorded until it ends; a second one kills it.
    Record(RecordArgs),
    /// Find out why one case is slower than another, by measuring and changing one thing at a time
    Explain(ExplainArgs),
    /// Show two captures side by side: what one has more of, and where its time goes; needs no root
    Compare(CompareArgs),
    /// Measure every case of the article, beside the article's own figures
    Suite(SuiteArgs),
    /// Make every output again from a capture; needs no root
    Report(ReportArgs),
    /// Say what this machine allows, and the command that gives what is missing; needs no root
    ///
    /// Exits with 0 if tracing works for who asks. With a program: what can be told of its tasks and functions.
    Doctor(DoctorArgs),
    /// Be a workload: how `run` starts its child
    #[command(hide = true)]
    Workload(WorkloadArgs),
    /// Read files for another ctxtrace, which starts it
    #[command(hide = true)]
    ReadFiles,
}

/// Options of `doctor`.
#[derive(Debug, Args)]
pub struct DoctorArgs {
    /// A program that is to be traced: what of it can be told, and how it would have to be built
    #[arg(value_name = "BIN", last = true)]
    pub program: Option<PathBuf>,

    /// Write the answers as JSON ("-": standard output)
    #[arg(long, value_name = "FILE")]
    pub json: Option<PathBuf>,
}

/// The command line of an executable that is a workload and nothing else.
#[derive(Debug, Parser)]
#[command(version, about = "A workload of ctxtrace, which starts it")]
pub struct WorkloadCli {
    /// What to do.
    #[command(subcommand)]
    pub command: OnlyWorkload,
}

/// Its one command, which is [`Command::Workload`].
#[derive(Debug, Subcommand)]
pub enum OnlyWorkload {
    /// Be a workload: how `run` starts its child
    Workload(WorkloadArgs),
}

/// Options of `run`.
#[derive(Debug, Args)]
pub struct RunArgs {
    /// The case to run
    #[arg(long, value_enum)]
    pub mode: Mode,

    /// How it is varied
    #[command(flatten)]
    pub case: CaseArgs,

    /// Run it this often; the headline is the median run's
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u64).range(1..=1_000))]
    pub repeat: u64,

    /// What to record, and where to keep it
    #[command(flatten)]
    pub recording: RecordingArgs,

    /// What to write
    #[command(flatten)]
    pub outputs: OutputArgs,
}

/// What a case is beside its mode; the same wherever one is asked for.
#[derive(Clone, Debug, Default, PartialEq, Eq, Args)]
pub struct CaseArgs {
    /// Messages a channel holds, of futures' channels beyond one per sender; 0 forces a task switch a message [default: 0] (tasks, go)
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(0..=16_777_216))]
    pub buffer: Option<u64>,

    /// Messages to send [default: 2000000 for tasks and go, 200000 for process and thread]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..=1_000_000_000_000))]
    pub iterations: Option<u64>,

    /// Worker threads of the pool, or GOMAXPROCS [default: 2] (task-pool, go)
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..=1_024))]
    pub workers: Option<u64>,

    /// On which CPUs [default: same-cpu for process and thread, none for tasks and go]
    #[arg(long, value_enum)]
    pub pin: Option<Pin>,

    /// Where the receiver runs [default: spawned] (tasks)
    #[arg(long, value_enum)]
    pub root: Option<Root>,

    /// Which channel joins the tasks [default: futures] (tasks)
    #[arg(long, value_enum)]
    pub channel: Option<Channel>,

    /// When the next message is sent [default: pipelined for tasks, lock-step for go] (tasks, go)
    #[arg(long, value_enum)]
    pub protocol: Option<Protocol>,

    /// Count the most messages ever in flight, at some cost for each (tasks, go)
    #[arg(long)]
    pub count_in_flight: bool,

    /// Threads in each process that do nothing but sleep
    #[arg(long, value_name = "N", default_value_t = 0, value_parser = clap::value_parser!(u64).range(0..=64))]
    pub idle_threads: u64,

    /// What a workload in Rust gets its memory from [default: system]
    #[arg(long, value_enum)]
    pub allocator: Option<Allocator>,

    /// What it is written in [default: rust] (process)
    #[arg(long, value_enum)]
    pub language: Option<Language>,

    /// For the tests: a cause of slowness to be found
    #[arg(long, value_enum, hide = true, conflicts_with = "count_in_flight")]
    pub plant: Option<Plant>,
}

/// `ctxtrace explain`.
#[derive(Debug, Args)]
pub struct ExplainArgs {
    /// The case in question [default: task-pool, with --buffer 4096]
    #[arg(long, value_enum)]
    pub mode: Option<Mode>,

    /// How it is varied
    #[command(flatten)]
    pub case: CaseArgs,

    /// What it is held against: a mode and its options, up to the end of the line [default: task, the same otherwise]
    #[arg(long, value_name = "MODE [OPTIONS]", num_args = 1.., allow_hyphen_values = true, conflicts_with_all = ["base", "subject"])]
    pub against: Vec<String>,

    /// A command of yours that is as fast as it should be, as one word: 'CMD ARGS'
    #[arg(long, value_name = "CMD", requires = "subject", conflicts_with = "mode")]
    pub base: Option<String>,

    /// A command of yours that is slower
    #[arg(long, value_name = "CMD", requires = "base", conflicts_with = "mode")]
    pub subject: Option<String>,

    /// Fewer runs and the most telling interventions only: less than 45 seconds
    #[arg(long)]
    pub quick: bool,

    /// Try these interventions only, by name
    #[arg(long, value_name = "NAME", value_delimiter = ',')]
    pub only: Vec<String>,

    /// Leave these interventions out
    #[arg(long, value_name = "NAME", value_delimiter = ',')]
    pub skip: Vec<String>,

    /// What to write
    #[command(flatten)]
    pub outputs: ComparisonOutputArgs,
}

/// `ctxtrace compare`.
#[derive(Debug, Args)]
pub struct CompareArgs {
    /// The capture that the other is held against
    #[arg(value_name = "BASE.ctx")]
    pub base: PathBuf,

    /// The other
    #[arg(value_name = "SUBJECT.ctx")]
    pub subject: PathBuf,

    /// What to write
    #[command(flatten)]
    pub outputs: ComparisonOutputArgs,
}

/// What a comparison writes.
#[derive(Debug, Args)]
pub struct ComparisonOutputArgs {
    /// Write the result as JSON ("-": standard output)
    #[arg(long, value_name = "FILE")]
    pub json: Option<PathBuf>,

    /// Write the result as Markdown, to be pasted into an issue ("-": standard output)
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
    /// The command, with its arguments
    #[arg(
        value_name = "CMD",
        trailing_var_arg = true,
        required_unless_present = "pid",
        conflicts_with = "pid"
    )]
    pub command: Vec<OsString>,

    /// Record this process, which runs already, until it ends
    #[arg(short, long, value_name = "PID", value_parser = clap::value_parser!(u32).range(1..))]
    pub pid: Option<u32>,

    /// Record the children of the process too, those it has and those to come
    #[arg(long, requires = "pid", conflicts_with = "command")]
    pub children: bool,

    /// Stop after this long, as in "10s" or "2m"; a command is ended then, with all it has started
    #[arg(long, value_name = "T", value_parser = duration)]
    pub duration: Option<Duration>,

    /// What to record, and where to keep it
    #[command(flatten)]
    pub recording: RecordingArgs,

    /// What to write
    #[command(flatten)]
    pub outputs: OutputArgs,
}

/// Options of `suite`.
#[derive(Debug, Args)]
pub struct SuiteArgs {
    /// Untraced runs of each case, and as many traced ones
    #[arg(long, value_name = "N", default_value_t = 5, value_parser = clap::value_parser!(u64).range(1..=1_000))]
    pub repeat: u64,

    /// Messages of tasks and goroutines; a tenth of them is for processes and threads
    #[arg(long, value_name = "N", default_value_t = 2_000_000, value_parser = clap::value_parser!(u64).range(1..=1_000_000_000_000))]
    pub iterations: u64,

    /// Write the table as JSON ("-": standard output)
    #[arg(long, value_name = "FILE")]
    pub json: Option<PathBuf>,

    /// Write the table as Markdown ("-": standard output)
    #[arg(long, value_name = "FILE.md")]
    pub markdown: Option<PathBuf>,

    /// Print nothing but what goes wrong
    #[arg(long)]
    pub quiet: bool,
}

/// Options of `report`.
#[derive(Debug, Args)]
pub struct ReportArgs {
    /// The capture
    #[arg(value_name = "FILE")]
    pub file: PathBuf,

    /// Play the events of a timeline again, and compare them with what was added up: the recorder has done so already
    #[arg(long)]
    pub check: bool,

    /// What to write
    #[command(flatten)]
    pub outputs: OutputArgs,
}

/// What to record, and where to keep it: the same for whatever is recorded.
#[derive(Debug, Args)]
pub struct RecordingArgs {
    /// How much to record
    #[arg(long, value_enum, default_value_t = Level::Stacks)]
    pub level: Level,

    /// How tasks are found
    #[arg(long, value_enum, default_value_t = LocatorChoice::Auto)]
    pub locator: LocatorChoice,

    /// Keep everything in a capture file, for `ctxtrace report`
    #[arg(short, long, value_name = "FILE.ctx")]
    pub output: Option<PathBuf>,

    /// Replace the capture file if there is one
    #[arg(long, requires = "output")]
    pub force: bool,

    /// Keep the capture file below this size, as in `500MB`: its oldest events are dropped, the counts are not
    #[arg(long, value_name = "SIZE", requires = "output")]
    pub max_size: Option<ByteSize>,

    /// Keep the events of the last T only, as in "30s", and at most of twice that (level timeline)
    #[arg(long, value_name = "T", value_parser = duration, requires = "output")]
    pub keep: Option<Duration>,

    /// Threads that can be followed at a time [default: 16384]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=4_194_304))]
    pub max_threads: Option<u32>,

    /// Sums of switch-outs by their stacks that a table has room for until it is emptied [default: 16384]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=1_048_576))]
    pub max_stacks: Option<u32>,

    /// Memory for events on their way, all CPUs together: `64MiB` [default: 32MiB, or 1MiB a CPU] (level timeline)
    #[arg(long, value_name = "SIZE")]
    pub ring_size: Option<ByteSize>,

    /// Stamp every poll and wake of a program that is started and has ctxtrace-probe in it (level timeline)
    #[arg(long)]
    pub polls: bool,

    /// Memory for the stamps of each thread on their way [default: 8MiB] (--polls)
    #[arg(long, value_name = "SIZE", requires = "polls")]
    pub poll_ring_size: Option<ByteSize>,

    /// Take this many samples a second of what each CPU does for the target (level timeline)
    #[arg(long, value_name = "HZ", value_parser = clap::value_parser!(u32).range(1..=10_000))]
    pub sample: Option<u32>,

    /// Fault injection for the tests: lose one switch event in this many
    #[arg(long, value_name = "N", hide = true, default_value_t = 0)]
    pub drop_one_in: u32,
}

/// What to write, whatever it is made from.
#[derive(Debug, Args)]
pub struct OutputArgs {
    /// Write the result as JSON ("-": standard output)
    #[arg(long, value_name = "FILE")]
    pub json: Option<PathBuf>,

    /// Write all of it as a page to look at: one file, for any browser
    #[arg(long, value_name = "FILE.html")]
    pub html: Option<PathBuf>,

    /// Write an off-CPU flamegraph
    #[arg(long, value_name = "FILE.svg")]
    pub flamegraph: Option<PathBuf>,

    /// Write an on-CPU flamegraph (of --sample)
    #[arg(long, value_name = "FILE.svg")]
    pub on_cpu_flamegraph: Option<PathBuf>,

    /// Write a flamegraph of the makers of wakeups
    #[arg(long, value_name = "FILE.svg")]
    pub wakeups_flamegraph: Option<PathBuf>,

    /// Write the stacks as lines, for other flamegraph tools
    #[arg(long, value_name = "FILE")]
    pub folded: Option<PathBuf>,

    /// Write the timeline for ui.perfetto.dev (level timeline)
    #[arg(long, value_name = "FILE.pftrace")]
    pub perfetto: Option<PathBuf>,

    /// Write switches and off-CPU time by stack for pprof, Pyroscope, Parca or speedscope
    #[arg(long, value_name = "FILE.pb.gz")]
    pub pprof: Option<PathBuf>,
    /// Write the tables of the capture as Parquet files into a folder, which may have those of others: docs/FLEET.md
    #[arg(long, value_name = "DIR")]
    pub parquet: Option<PathBuf>,

    /// What the widths in flamegraph and folded stacks mean [default: time]
    #[arg(long, value_enum)]
    pub weight: Option<Weight>,

    /// Exit with 3 unless a figure of the JSON stands so: `kernel_switches.per_message < 0.01` (repeatable)
    #[arg(long = "assert", value_name = "EXPR")]
    pub assertions: Vec<Assertion>,

    /// Print nothing but what goes wrong
    #[arg(long)]
    pub quiet: bool,
}

/// A time as people write it: `10s`, `1m 30s`, or a number of seconds.
fn duration(text: &str) -> Result<Duration, String> {
    let duration = match text.parse::<f64>() {
        Ok(seconds) => Duration::try_from_secs_f64(seconds).map_err(|error| error.to_string()),
        Err(_) => humantime::parse_duration(text).map_err(|error| error.to_string()),
    }?;
    if duration.is_zero() {
        return Err("it must be longer than nothing".to_owned());
    }
    Ok(duration)
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
