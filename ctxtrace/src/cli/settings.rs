//! Converts raw options to settings in which everything is decided.
//!
//! An option that has no effect on the given command is an error and never ignored, because the user expects an effect.

use std::ffi::OsString;
use std::path::PathBuf;
use std::time::Duration;

use bytesize::ByteSize;

use crate::capture::Settings;
use crate::cli::{CaseArgs, OutputArgs, RecordArgs, RecordingArgs, ReportArgs, RunArgs, SuiteArgs};
use crate::error::{Error, Result};
use crate::files::output::Destination;
use ctxtrace_analysis::assertion::Assertion;
use ctxtrace_format::Level;
use ctxtrace_format::file::Limits;
use ctxtrace_format::programs::LocatorChoice;
use ctxtrace_format::workload::Pin;
use ctxtrace_format::workload::{Channel, Language, Mode, Spec};
use ctxtrace_report::Weight;

/// `ctxtrace run`, every option resolved.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RunSettings {
    /// The workload to run.
    pub spec: Spec,
    /// Number of runs.
    pub repeat: u64,
    /// What to record.
    pub capture: Settings,
    /// The capture file; `None` if none is saved.
    pub save: Option<SaveSettings>,
    /// The outputs to write.
    pub outputs: OutputSettings,
}

/// `ctxtrace record`, every option resolved.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RecordSettings {
    /// The command or process to record.
    pub target: RecordTarget,
    /// Maximum duration of the recording; `None` for no limit.
    pub duration: Option<Duration>,
    /// What to record.
    pub capture: Settings,
    /// The capture file; `None` if none is saved.
    pub save: Option<SaveSettings>,
    /// The outputs to write.
    pub outputs: OutputSettings,
}

/// The target of `record`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum RecordTarget {
    /// A command with its arguments: at least one word.
    Command(Vec<OsString>),
    /// A process that is already running.
    Process {
        /// Process id.
        pid: u32,
        /// Whether to record its children too.
        children: bool,
    },
}

/// `ctxtrace suite`, every option resolved.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SuiteSettings {
    /// Number of untraced runs of each case, and of traced runs.
    pub repeat: u64,
    /// Number of messages for tasks and goroutines.
    pub iterations: u64,
    /// Destination of the JSON.
    pub json: Option<Destination>,
    /// Destination of the Markdown.
    pub markdown: Option<Destination>,
    /// Whether the table goes to standard error, because another output uses standard output.
    pub table_to_stderr: bool,
    /// Whether to print only problems.
    pub quiet: bool,
}

/// `ctxtrace report`, every option resolved.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ReportSettings {
    /// The capture file to report.
    pub file: PathBuf,
    /// Whether to replay the events even if no output needs them.
    pub check: bool,
    /// The outputs to write.
    pub outputs: OutputSettings,
}

/// Settings of the capture file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SaveSettings {
    /// Path of the file.
    pub path: PathBuf,
    /// Whether to replace an existing file.
    pub force: bool,
    /// Limits of the file.
    pub limits: Limits,
}

/// The outputs to write, whether from a new recording or from a capture.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OutputSettings {
    /// What the widths in flamegraphs and folded stacks represent.
    pub weight: Weight,
    /// Destination of the JSON.
    pub json: Option<Destination>,
    /// Destination of the HTML page.
    pub html: Option<Destination>,
    /// Destination of the off-CPU flamegraph.
    pub flamegraph: Option<Destination>,
    /// Destination of the on-CPU flamegraph, which is made from samples.
    pub on_cpu_flamegraph: Option<Destination>,
    /// Destination of the flamegraph of the wakers' stacks.
    pub wakeups_flamegraph: Option<Destination>,
    /// Destination of the folded stacks.
    pub folded: Option<Destination>,
    /// Destination of the timeline for Perfetto.
    pub perfetto: Option<Destination>,
    /// Destination of the profile for pprof.
    pub pprof: Option<Destination>,
    /// Directory for the Parquet tables.
    pub parquet: Option<PathBuf>,
    /// The conditions that the result must meet.
    pub assertions: Vec<Assertion>,
    /// Whether to print only problems.
    pub quiet: bool,
    /// Whether the table goes to standard error, because standard output is used otherwise.
    pub table_to_stderr: bool,
}

impl OutputSettings {
    /// Whether any output needs the stacks of switches.
    #[must_use]
    pub fn wants_stacks(&self) -> bool {
        self.draws_stacks() || self.pprof.is_some()
    }

    /// Whether any output shows the stacks of switches with a weight.
    fn draws_stacks(&self) -> bool {
        self.flamegraph.is_some() || self.wakeups_flamegraph.is_some() || self.folded.is_some()
    }
}

impl TryFrom<RunArgs> for RunSettings {
    type Error = Error;

    fn try_from(args: RunArgs) -> Result<Self> {
        let spec = spec(args.mode, &args.case)?;
        if args.recording.polls && !spec.mode.has_root() {
            return Err(Error::Usage(format!(
                "--polls has no meaning for --mode {}: only tokio tasks record their polls (use --mode task or task-pool)",
                spec.mode.name()
            )));
        }
        let outputs = outputs(args.outputs)?;
        Ok(Self {
            spec,
            repeat: args.repeat,
            capture: capture(&args.recording, &outputs)?,
            save: save(args.recording, &outputs)?,
            outputs,
        })
    }
}

impl TryFrom<RecordArgs> for RecordSettings {
    type Error = Error;

    fn try_from(args: RecordArgs) -> Result<Self> {
        if args.recording.polls && args.pid.is_some() {
            return Err(Error::Usage(
                "--polls works only with a program that ctxtrace starts: give a command instead of --pid".to_owned(),
            ));
        }
        let outputs = OutputSettings {
            // Standard output belongs to the command.
            table_to_stderr: true,
            ..outputs(args.outputs)?
        };
        Ok(Self {
            target: match args.pid {
                Some(pid) => RecordTarget::Process {
                    pid,
                    children: args.children,
                },
                None => RecordTarget::Command(args.command),
            },
            duration: args.duration,
            capture: capture(&args.recording, &outputs)?,
            save: save(args.recording, &outputs)?,
            outputs,
        })
    }
}

impl TryFrom<SuiteArgs> for SuiteSettings {
    type Error = Error;

    fn try_from(args: SuiteArgs) -> Result<Self> {
        let (json, markdown) = (args.json.map(Destination::from), args.markdown.map(Destination::from));
        if json.is_some() && json == markdown {
            return Err(same_place("--json", "--markdown"));
        }
        Ok(Self {
            repeat: args.repeat,
            iterations: args.iterations,
            table_to_stderr: [&json, &markdown].contains(&&Some(Destination::Stdout)),
            quiet: args.quiet,
            json,
            markdown,
        })
    }
}

impl TryFrom<ReportArgs> for ReportSettings {
    type Error = Error;

    fn try_from(args: ReportArgs) -> Result<Self> {
        Ok(Self {
            file: args.file,
            check: args.check,
            outputs: outputs(args.outputs)?,
        })
    }
}

pub(super) fn spec(mode: Mode, args: &CaseArgs) -> Result<Spec> {
    let default = Spec::new(mode);
    let language = args.language.unwrap_or(default.language);
    let no_meaning = |option: &str, reason: &str| {
        Err(Error::Usage(format!(
            "{option} has no meaning for --mode {}: {reason}",
            mode.name()
        )))
    };
    if !mode.is_tasks() && args.buffer.is_some() {
        return no_meaning(
            "--buffer",
            "that mode uses pipes, not channels (use --mode task, task-pool or go)",
        );
    }
    if !mode.has_root() && args.root.is_some() {
        let why = if mode == Mode::Go {
            "Go has no block_on (use --mode task or task-pool)"
        } else {
            "that mode has no async runtime (use --mode task or task-pool)"
        };
        return no_meaning("--root", why);
    }
    if !mode.has_workers() && args.workers.is_some() {
        return no_meaning("--workers", "that mode has no worker pool (use --mode task-pool or go)");
    }
    if mode == Mode::Go && args.pin == Some(Pin::SplitCpus) {
        return no_meaning(
            "--pin split-cpus",
            "Go moves goroutines between threads, so its threads cannot be pinned one by one (use --pin same-cpu or none)",
        );
    }
    if mode != Mode::Process && args.language.is_some() {
        return no_meaning(
            "--language",
            "only --mode process exists in more than one language (leave out --language)",
        );
    }
    if !mode.has_root() && args.channel.is_some() {
        let why = if mode == Mode::Go {
            "Go has only one kind of channel (use --mode task or task-pool)"
        } else {
            "that mode uses pipes, not channels (use --mode task or task-pool)"
        };
        return no_meaning("--channel", why);
    }
    for (option, is_given) in [
        ("--protocol", args.protocol.is_some()),
        ("--count-in-flight", args.count_in_flight),
    ] {
        if !mode.is_tasks() && is_given {
            return no_meaning(
                option,
                "each message is a round trip, so only one is in flight (use --mode task, task-pool or go)",
            );
        }
    }
    if args.channel == Some(Channel::Tokio) && args.buffer.unwrap_or(0) == 0 {
        return Err(Error::Usage(
            "--channel tokio needs a --buffer of at least 1: a tokio channel holds exactly --buffer messages, while a futures channel \
             holds one more for each sender. The equivalent of --channel futures --buffer 0 is --channel tokio --buffer 1"
                .to_owned(),
        ));
    }
    if args.idle_threads > 0 && language != Language::Rust {
        let why = if mode == Mode::Go {
            "the Go runtime decides how many threads a program has (use another mode)"
        } else {
            "the C program is the textbook's, without additions (leave out --language)"
        };
        return no_meaning("--idle-threads", why);
    }
    if args.allocator.is_some() && language != Language::Rust {
        let why = if mode == Mode::Go {
            "Go has its own allocator (use another mode)"
        } else {
            "the C program allocates no memory (leave out --language)"
        };
        return no_meaning("--allocator", why);
    }
    if !mode.has_root() && args.plant.is_some() {
        return no_meaning("--plant", "only tokio tasks support it (use --mode task or task-pool)");
    }
    if mode == Mode::Task && args.pin == Some(Pin::SplitCpus) {
        return no_meaning(
            "--pin split-cpus",
            "all tasks of that mode run on one thread (use --mode task-pool)",
        );
    }
    Ok(Spec {
        mode,
        language,
        iterations: args.iterations.unwrap_or(default.iterations),
        pin: args.pin.unwrap_or(default.pin),
        // The parser limits these numbers to values that fit in a `usize`.
        buffer: args.buffer.map(|buffer| buffer as usize).or(default.buffer),
        workers: args.workers.map(|workers| workers as usize).or(default.workers),
        root: args.root.or(default.root),
        channel: args.channel.or(default.channel),
        protocol: args.protocol.or(default.protocol),
        count_in_flight: args.count_in_flight,
        idle_threads: args.idle_threads as usize,
        allocator: args.allocator.unwrap_or(default.allocator),
        plant: args.plant,
    })
}

/// Resolves what to record, and checks that it is enough for these outputs.
fn capture(args: &RecordingArgs, outputs: &OutputSettings) -> Result<Settings> {
    if outputs.wants_stacks() && args.level != Level::Stacks {
        return Err(Error::Usage(format!(
            "--flamegraph, --wakeups-flamegraph, --folded and --pprof need stacks, but --level {} records none: use --level stacks",
            args.level.name()
        )));
    }
    if args.max_stacks.is_some() && args.level != Level::Stacks && args.sample.is_none() {
        return Err(Error::Usage(format!(
            "--max-stacks has no meaning for --level {}, which records no stacks (use --level stacks)",
            args.level.name()
        )));
    }
    if args.ring_size.is_some() && args.level != Level::Timeline {
        return Err(Error::Usage(format!(
            "--ring-size has no meaning for --level {}, which records no events (use --level timeline)",
            args.level.name()
        )));
    }
    if args.sample.is_some() && args.level != Level::Timeline {
        return Err(Error::Usage(format!(
            "--sample has no meaning for --level {}, which records no events (use --level timeline)",
            args.level.name()
        )));
    }
    if args.polls && args.level != Level::Timeline {
        return Err(Error::Usage(format!(
            "--polls has no meaning for --level {}, which records no events (use --level timeline)",
            args.level.name()
        )));
    }
    if args.polls && !matches!(args.locator, LocatorChoice::Auto | LocatorChoice::Probe) {
        return Err(Error::Usage(
            "--polls requires the probe locator: use --locator auto or probe".to_owned(),
        ));
    }
    if outputs.perfetto.is_some() && args.level != Level::Timeline {
        return Err(Error::Usage(format!(
            "--perfetto needs every switch and wakeup as an event, but --level {} records no events: use --level timeline",
            args.level.name()
        )));
    }
    if outputs.on_cpu_flamegraph.is_some() && args.sample.is_none() {
        return Err(Error::Usage(
            "--on-cpu-flamegraph needs samples: add --level timeline --sample 997".to_owned(),
        ));
    }
    let default = Settings::default();
    Ok(Settings {
        level: args.level,
        locator: args.locator,
        waker_stacks: outputs.wakeups_flamegraph.is_some(),
        max_threads: args.max_threads.unwrap_or(default.max_threads),
        max_stacks: args.max_stacks.unwrap_or(default.max_stacks),
        ring_bytes: args
            .ring_size
            .map(|size| usize::try_from(size.as_u64()).unwrap_or(usize::MAX)),
        sample_hz: args.sample,
        polls: args.polls,
        poll_ring_bytes: args
            .poll_ring_size
            .map(|size| usize::try_from(size.as_u64()).unwrap_or(usize::MAX)),
        drop_one_in: args.drop_one_in,
        ..default
    })
}

/// The smallest accepted value of `--max-size`, which is enough for the counts of a program with some hundreds of threads.
const LEAST_MAX_SIZE: ByteSize = ByteSize::mib(1);

fn save(args: RecordingArgs, outputs: &OutputSettings) -> Result<Option<SaveSettings>> {
    let Some(path) = args.output else { return Ok(None) };
    let taken = [
        ("--json", &outputs.json),
        ("--html", &outputs.html),
        ("--flamegraph", &outputs.flamegraph),
        ("--on-cpu-flamegraph", &outputs.on_cpu_flamegraph),
        ("--wakeups-flamegraph", &outputs.wakeups_flamegraph),
        ("--folded", &outputs.folded),
        ("--perfetto", &outputs.perfetto),
        ("--pprof", &outputs.pprof),
    ];
    for (option, destination) in taken {
        if destination
            .as_ref()
            .is_some_and(|other| *other == Destination::File(path.clone()))
        {
            return Err(same_place("--output", option));
        }
    }
    if outputs.parquet.as_ref() == Some(&path) {
        return Err(same_place("--output", "--parquet"));
    }
    if let Some(size) = args.max_size.filter(|&size| size < LEAST_MAX_SIZE) {
        return Err(Error::Usage(format!(
            "--max-size {size} is too small for the counts: use at least {LEAST_MAX_SIZE}"
        )));
    }
    if args.keep.is_some() && args.level != Level::Timeline {
        return Err(Error::Usage(format!(
            "--keep has no meaning for --level {}, which records no events (use --level timeline)",
            args.level.name()
        )));
    }
    Ok(Some(SaveSettings {
        path,
        force: args.force,
        limits: Limits {
            max_bytes: args.max_size.map(|size| size.as_u64()),
            keep_ns: args.keep.map(|keep| u64::try_from(keep.as_nanos()).unwrap_or(u64::MAX)),
        },
    }))
}

pub(super) fn same_place(one: &str, other: &str) -> Error {
    Error::Usage(format!(
        "{one} and {other} have the same destination: give each a destination of its own"
    ))
}

fn outputs(args: OutputArgs) -> Result<OutputSettings> {
    let settings = OutputSettings {
        weight: args.weight.unwrap_or(Weight::Time),
        json: args.json.map(Destination::from),
        html: args.html.map(Destination::from),
        flamegraph: args.flamegraph.map(Destination::from),
        on_cpu_flamegraph: args.on_cpu_flamegraph.map(Destination::from),
        wakeups_flamegraph: args.wakeups_flamegraph.map(Destination::from),
        folded: args.folded.map(Destination::from),
        perfetto: args.perfetto.map(Destination::from),
        pprof: args.pprof.map(Destination::from),
        parquet: args.parquet,
        assertions: args.assertions,
        quiet: args.quiet,
        table_to_stderr: false,
    };
    if args.weight.is_some() && !settings.draws_stacks() && settings.on_cpu_flamegraph.is_none() {
        return Err(Error::Usage(
            "--weight has no effect without a flamegraph or folded stacks: add --flamegraph, --on-cpu-flamegraph, \
             --wakeups-flamegraph or --folded"
                .to_owned(),
        ));
    }
    let destinations: Vec<_> = [
        ("--json", &settings.json),
        ("--html", &settings.html),
        ("--flamegraph", &settings.flamegraph),
        ("--on-cpu-flamegraph", &settings.on_cpu_flamegraph),
        ("--wakeups-flamegraph", &settings.wakeups_flamegraph),
        ("--folded", &settings.folded),
        ("--perfetto", &settings.perfetto),
        ("--pprof", &settings.pprof),
    ]
    .into_iter()
    .filter_map(|(option, destination)| Some((option, destination.as_ref()?)))
    .collect();
    for (index, (option, destination)) in destinations.iter().enumerate() {
        if let Some((other, _)) = destinations[..index].iter().find(|(_, other)| other == destination) {
            return Err(same_place(other, option));
        }
    }
    if let Some(folder) = &settings.parquet {
        if folder.as_os_str() == "-" {
            return Err(Error::Usage(
                "--parquet writes several files, so it cannot write to standard output: give a directory".to_owned(),
            ));
        }
        let taken = Destination::File(folder.clone());
        if let Some((other, _)) = destinations.iter().find(|(_, other)| **other == taken) {
            return Err(same_place(other, "--parquet"));
        }
    }
    let to_stdout = |(_, destination): &(_, &Destination)| **destination == Destination::Stdout;
    Ok(OutputSettings {
        table_to_stderr: destinations.iter().any(to_stdout),
        ..settings
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::{Cli, Command};
    use clap::Parser;
    use ctxtrace_format::workload::{Allocator, Plant, Protocol, Root};

    fn settings(line: &str) -> Result<RunSettings> {
        let cli = Cli::try_parse_from(["ctxtrace", "run"].into_iter().chain(line.split_whitespace()))
            .map_err(|error| Error::Usage(error.to_string()))?;
        match cli.command {
            Command::Run(args) => RunSettings::try_from(args),
            _ => unreachable!("`run` was given"),
        }
    }

    #[test]
    fn defaults_are_the_articles() {
        let pool = settings("--mode task-pool").expect("valid");
        assert_eq!(
            pool.spec,
            Spec {
                mode: Mode::TaskPool,
                language: Language::Rust,
                iterations: 2_000_000,
                pin: Pin::None,
                buffer: Some(0),
                workers: Some(2),
                root: Some(Root::Spawned),
                channel: Some(Channel::Futures),
                protocol: Some(Protocol::Pipelined),
                count_in_flight: false,
                idle_threads: 0,
                allocator: Allocator::System,
                plant: None,
            }
        );
        let process = settings("--mode process").expect("valid");
        assert_eq!((process.spec.iterations, process.spec.pin), (200_000, Pin::SameCpu));
        assert_eq!(
            (process.spec.buffer, process.spec.workers, process.spec.root),
            (None, None, None)
        );
        assert_eq!((process.spec.channel, process.spec.protocol), (None, None));
        let go = settings("--mode go").expect("valid");
        assert_eq!((go.spec.channel, go.spec.protocol), (None, Some(Protocol::LockStep)));
        assert_eq!((go.spec.iterations, go.spec.pin), (2_000_000, Pin::None));
        assert_eq!(
            (go.spec.buffer, go.spec.workers, go.spec.root),
            (Some(0), Some(2), None)
        );
        assert_eq!((go.spec.language, pool.spec.language), (Language::Go, Language::Rust));
        assert_eq!(
            (pool.repeat, pool.capture.level, pool.outputs.weight),
            (1, Level::Stacks, Weight::Time)
        );
    }

    #[test]
    fn options_without_meaning_are_errors_that_say_why() {
        for (line, option) in [
            ("--mode process --buffer 4096", "--buffer"),
            ("--mode thread --root block-on", "--root"),
            ("--mode thread --workers 2", "--workers"),
            ("--mode task --workers 2", "--workers"),
            ("--mode task --pin split-cpus", "--pin split-cpus"),
            ("--mode thread --language c", "--language"),
            ("--mode task --language rust", "--language"),
            ("--mode go --pin split-cpus", "--pin split-cpus"),
            ("--mode go --root spawned", "--root"),
            ("--mode thread --channel tokio --buffer 1", "--buffer"),
            ("--mode thread --channel tokio", "--channel"),
            ("--mode go --channel futures", "--channel"),
            ("--mode process --protocol lock-step", "--protocol"),
            ("--mode thread --count-in-flight", "--count-in-flight"),
            ("--mode go --idle-threads 1", "--idle-threads"),
            ("--mode go --plant sleep", "--plant"),
            ("--mode go --allocator system", "--allocator"),
            ("--mode process --language c --allocator jemalloc", "--allocator"),
            ("--mode process --language c --idle-threads 1", "--idle-threads"),
        ] {
            let error = settings(line).expect_err(line);
            assert_eq!(error.exit_status(), 2);
            assert!(
                error
                    .to_string()
                    .starts_with(&format!("{option} has no meaning for --mode ")),
                "{error}"
            );
        }
    }

    #[test]
    fn variants_are_taken_as_given() {
        let line = "--mode task --channel tokio --buffer 1 --protocol lock-step --count-in-flight";
        let spec = settings(line).expect("valid").spec;
        assert_eq!(
            (spec.channel, spec.protocol, spec.buffer, spec.count_in_flight),
            (Some(Channel::Tokio), Some(Protocol::LockStep), Some(1), true)
        );
        let idle = settings("--mode process --idle-threads 64").expect("valid").spec;
        assert_eq!((idle.idle_threads, idle.allocator), (64, Allocator::System));
        let planted = settings("--mode task-pool --plant mutex").expect("valid").spec;
        assert_eq!(planted.plant, Some(Plant::Mutex));
        settings("--mode task-pool --plant mutex --count-in-flight").expect_err("one or the other");
        for mode in ["process --language rust", "thread", "task", "task-pool"] {
            let spec = settings(&format!("--mode {mode} --allocator jemalloc"))
                .expect("valid")
                .spec;
            assert_eq!(spec.allocator, Allocator::Jemalloc);
        }
        let go = settings("--mode go --protocol pipelined").expect("valid").spec;
        assert_eq!((go.protocol, go.count_in_flight), (Some(Protocol::Pipelined), false));
    }

    #[test]
    fn tokios_channel_holds_a_message_at_least() {
        for line in [
            "--mode task --channel tokio",
            "--mode task-pool --channel tokio --buffer 0",
        ] {
            let error = settings(line).expect_err(line);
            assert_eq!(error.exit_status(), 2);
            assert!(error.to_string().ends_with("is --channel tokio --buffer 1"), "{error}");
        }
    }

    #[test]
    fn absurd_numbers_are_errors() {
        for line in [
            "--mode task --iterations 0",
            "--mode task --buffer 99999999999",
            "--mode task-pool --workers 0",
            "--mode task-pool --workers 100000",
            "--mode task --repeat 0",
            "--mode task --iterations -5",
            "--mode task --idle-threads 65",
        ] {
            assert!(settings(line).is_err(), "{line}");
        }
    }

    #[test]
    fn an_unknown_mode_is_answered_with_the_known_ones() {
        let error = settings("--mode goroutine").expect_err("unknown").to_string();
        for mode in ["process", "thread", "task", "task-pool", "go"] {
            assert!(error.contains(mode), "{error}");
        }
    }

    #[test]
    fn assertions_are_checked_before_anything_runs() {
        let two = settings("--mode task --assert migrations<5 --assert complete==true").expect("valid");
        assert_eq!(two.outputs.assertions.len(), 2);
        let error = settings("--mode task --assert migratoins<5")
            .expect_err("unknown")
            .to_string();
        assert!(error.contains("did you mean `migrations`?"), "{error}");
    }

    #[test]
    fn outputs_that_do_not_go_together_are_errors() {
        for line in [
            "--mode task --level counts --flamegraph x.svg",
            "--mode task --level counts --wakeups-flamegraph x.svg",
            "--mode task --level timeline --flamegraph x.svg",
            "--mode task --level timeline --wakeups-flamegraph x.svg",
            "--mode task --level timeline --folded x",
            "--mode task --ring-size 4096",
            "--mode task --sample 997",
            "--mode task --level timeline --on-cpu-flamegraph x.svg",
            "--mode task --level timeline --sample 0",
            "--mode task --weight count",
            "--mode task --json - --folded -",
            "--mode task --json x --folded x",
            "--mode task --html x --json x",
            "--mode task --output x --html x",
            "--mode task --json x --parquet x",
            "--mode task --parquet x -o x",
            "--mode task --parquet -",
            "--mode task --output x --folded x",
            "--mode task --force",
            "--mode task --max-size 10MiB",
            "--mode task -o x --max-size 10KiB",
            "--mode task --level timeline --keep 10s",
            "--mode task -o x --keep 10s",
            "--mode task --level timeline -o x --keep 0",
            "--mode task --level counts --max-stacks 100",
            "--mode task --level counts --pprof x",
            "--mode task --level timeline --pprof x",
            "--mode task --perfetto x",
            "--mode task --level counts --perfetto x",
            "--mode task --level timeline --perfetto x --json x",
            "--mode task --pprof x --folded x",
            "--mode task --pprof x --weight count",
            "--mode task --output x --pprof x",
        ] {
            assert!(settings(line).is_err(), "{line}");
        }
        assert!(settings("--mode task --json -").expect("valid").outputs.table_to_stderr);
        assert!(settings("--mode task --html -").expect("valid").outputs.table_to_stderr);
        assert!(!settings("--mode task --json x").expect("valid").outputs.table_to_stderr);
    }

    fn record(line: &str) -> Result<RecordSettings> {
        let cli = Cli::try_parse_from(["ctxtrace", "record"].into_iter().chain(line.split_whitespace()))
            .map_err(|error| Error::Usage(error.to_string()))?;
        match cli.command {
            Command::Record(args) => RecordSettings::try_from(args),
            _ => unreachable!("`record` was given"),
        }
    }

    #[test]
    fn a_command_begins_where_the_options_end() {
        for line in ["--level counts -- ls -l --json x", "--level counts ls -l --json x"] {
            let settings = record(line).expect("valid");
            let words = ["ls", "-l", "--json", "x"].map(OsString::from);
            assert_eq!(settings.target, RecordTarget::Command(words.to_vec()));
            assert_eq!(settings.outputs.json, None);
            assert!(settings.outputs.table_to_stderr);
        }
    }

    #[test]
    fn a_recording_is_of_a_command_or_of_a_process() {
        let process = |pid, children| RecordTarget::Process { pid, children };
        assert_eq!(record("-p 7").expect("valid").target, process(7, false));
        assert_eq!(record("--pid 7 --children").expect("valid").target, process(7, true));
        for line in ["", "-p 7 ls", "-p 0", "-p x", "--children ls", "--duration 0 ls"] {
            assert!(record(line).is_err(), "{line}");
        }
    }
}
