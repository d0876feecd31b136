//! The programs under test: the article's five ping-pongs.
//!
//! A workload runs in a process of its own: the same executable, started again with a hidden subcommand, so that what is
//! traced contains nothing of the tracer. It gets a [`Spec`], does its work, and reports an [`Outcome`] over a pipe. The
//! programs in other languages ([`Language`]) are programs of their own, and speak the same protocol.
//!
//! Each is as faithful to the article as today's libraries allow, and nothing is added on the path of a message except one
//! branch, and one store every 1,024 messages, that tell the tracer how far it has got ([`progress`]).
//!
//! | mode | who plays | a message is |
//! |---|---|---|
//! | `process` | two processes, two pipes | one round trip of four bytes |
//! | `process`, in C | the same, by the C library alone (`process.c`) | one round trip of one byte |
//! | `thread` | two threads, two pipes | one round trip of four bytes |
//! | `task` | three tokio tasks on one thread, two channels | one `"joe0"` from sender over repeater to receiver |
//! | `task-pool` | the same three tasks on a pool of worker threads | the same |
//! | `go` | two goroutines, two channels | one `"joe0"` there and back |

mod clock;
mod idle;
pub mod pin;
mod pipe;
pub mod progress;
mod task;

use serde::{Deserialize, Serialize};

use crate::error::{Error, Result};
use idle::IdleThreads;
use pin::Pin;
use progress::Progress;

/// What is sent, and what every receiver checks for, in every workload.
pub const MESSAGE: &str = "joe0";

/// Which of the article's cases.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, schemars::JsonSchema, clap::ValueEnum)]
#[serde(rename_all = "kebab-case")]
pub enum Mode {
    /// Two processes over two pipes
    Process,
    /// Two threads over two pipes
    Thread,
    /// Three tokio tasks on one thread
    Task,
    /// Three tokio tasks on a pool of threads
    TaskPool,
    /// Two goroutines of a Go program
    Go,
}

impl Mode {
    /// The name used on the command line and in JSON.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Process => "process",
            Self::Thread => "thread",
            Self::Task => "task",
            Self::TaskPool => "task-pool",
            Self::Go => "go",
        }
    }

    /// Whether the players are tasks, tokio's or Go's (and not threads that the kernel switches).
    #[must_use]
    pub fn is_tasks(self) -> bool {
        matches!(self, Self::Task | Self::TaskPool | Self::Go)
    }

    /// Whether the players share a pool of threads.
    #[must_use]
    pub fn has_workers(self) -> bool {
        matches!(self, Self::TaskPool | Self::Go)
    }

    /// Whether there is a future given to `block_on`.
    #[must_use]
    pub fn has_root(self) -> bool {
        matches!(self, Self::Task | Self::TaskPool)
    }

    /// Messages sent unless `--iterations` says otherwise: what the article used for tasks, a tenth for the rest.
    #[must_use]
    pub fn default_iterations(self) -> u64 {
        if self.is_tasks() { 2_000_000 } else { 200_000 }
    }

    /// The channel unless `--channel` says otherwise: the article's. Only tokio's tasks have a choice.
    #[must_use]
    pub fn default_channel(self) -> Option<Channel> {
        self.has_root().then_some(Channel::Futures)
    }

    /// When the next message is sent unless `--protocol` says otherwise: as in the article, whose goroutines wait for an
    /// answer and whose tasks do not.
    #[must_use]
    pub fn default_protocol(self) -> Option<Protocol> {
        match self {
            Self::Task | Self::TaskPool => Some(Protocol::Pipelined),
            Self::Go => Some(Protocol::LockStep),
            Self::Process | Self::Thread => None,
        }
    }

    /// What it is written in unless `--language` says otherwise.
    #[must_use]
    pub fn default_language(self) -> Language {
        if self == Self::Go { Language::Go } else { Language::Rust }
    }

    /// Processes and threads share one CPU unless told otherwise, as the textbook's exercise asks for.
    #[must_use]
    pub fn default_pin(self) -> Pin {
        if self.is_tasks() { Pin::None } else { Pin::SameCpu }
    }
}

/// What a workload is written in.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, schemars::JsonSchema, clap::ValueEnum)]
#[serde(rename_all = "kebab-case")]
pub enum Language {
    /// Rust, as part of this executable
    #[default]
    Rust,
    /// C, built by this machine's `cc`
    C,
    /// Go, built by this machine's `go`: what [`Mode::Go`] is in
    #[value(skip)]
    Go,
}

/// `process` in C, the textbook's way.
pub const PROCESS_IN_C: &str = include_str!("process.c");

/// The article's Go program: two goroutines in lockstep.
pub const PING_PONG_IN_GO: &str = include_str!("ping_pong.go");

/// Where the receiver runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, schemars::JsonSchema, clap::ValueEnum)]
#[serde(rename_all = "kebab-case")]
pub enum Root {
    /// As a task of the runtime, like the other two (what tokio 0.1 did with the future given to `block_on`)
    Spawned,
    /// As the future given to `block_on`, on the thread that calls it (what tokio 1 does)
    BlockOn,
}

impl Root {
    /// The name used on the command line and in JSON.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Spawned => "spawned",
            Self::BlockOn => "block-on",
        }
    }
}

/// Which channel joins the tasks.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, schemars::JsonSchema, clap::ValueEnum)]
#[serde(rename_all = "kebab-case")]
pub enum Channel {
    /// `futures::channel::mpsc`, the article's: `--buffer` messages, and one more of each sender
    #[default]
    Futures,
    /// `tokio::sync::mpsc`: `--buffer` messages
    Tokio,
}

impl Channel {
    /// The name used on the command line and in JSON.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Futures => "futures",
            Self::Tokio => "tokio",
        }
    }
}

/// When the next message is sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, schemars::JsonSchema, clap::ValueEnum)]
#[serde(rename_all = "kebab-case")]
pub enum Protocol {
    /// As soon as there is room
    Pipelined,
    /// When the one before has arrived
    LockStep,
}

impl Protocol {
    /// The name used on the command line and in JSON.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Pipelined => "pipelined",
            Self::LockStep => "lock-step",
        }
    }
}

/// What a workload in Rust gets its memory from.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, schemars::JsonSchema, clap::ValueEnum)]
#[serde(rename_all = "kebab-case")]
pub enum Allocator {
    /// The C library's `malloc`
    #[default]
    System,
    /// jemalloc
    Jemalloc,
}

impl Allocator {
    /// The name used on the command line and in JSON.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::System => "system",
            Self::Jemalloc => "jemalloc",
        }
    }
}

/// A cause of slowness that a test plants and then looks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "kebab-case")]
pub enum Plant {
    /// Every task takes the same lock for each message, and works about a microsecond while it has it
    Mutex,
    /// The same with a lock for each task: as much work, and nobody waits for a lock
    OwnMutexes,
    /// The repeater blocks its thread for 50 µs at one message in a thousand
    Sleep,
    /// Every message brings 32 boxes along, which the sender makes and the receiver frees
    Allocations,
}

/// One workload, every option resolved. What has no meaning for the mode is `None`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Spec {
    /// The case.
    pub mode: Mode,
    /// What it is written in; a choice for `process` only.
    #[serde(default)]
    pub language: Language,
    /// Messages to send, at least 1.
    pub iterations: u64,
    /// On which CPUs.
    pub pin: Pin,
    /// Messages a channel holds beyond one per sender (Go's: in all); tasks only.
    pub buffer: Option<usize>,
    /// Worker threads; `task-pool` only. For `go` it is `GOMAXPROCS`.
    pub workers: Option<usize>,
    /// Where the receiver runs; tokio's tasks only.
    pub root: Option<Root>,
    /// Which channel joins the tasks; tokio's tasks only. See [`Spec::channel`].
    #[serde(default)]
    pub channel: Option<Channel>,
    /// When the next message is sent; tasks only. See [`Spec::protocol`].
    #[serde(default)]
    pub protocol: Option<Protocol>,
    /// Whether the messages in flight are counted, which costs something at each; tasks only.
    #[serde(default)]
    pub count_in_flight: bool,
    /// Threads in each process that do nothing but sleep; not in C and Go.
    #[serde(default)]
    pub idle_threads: usize,
    /// What it gets its memory from: an executable's affair, so it decides which one is started; not in C and Go.
    #[serde(default)]
    pub allocator: Allocator,
    /// What makes it slow on purpose; tokio's tasks only, and in no report. Nothing is counted in flight then.
    #[serde(default)]
    pub plant: Option<Plant>,
}

impl Spec {
    /// The case with every option at its default, which is the article's.
    #[must_use]
    pub fn of(mode: Mode) -> Self {
        Self {
            mode,
            language: mode.default_language(),
            iterations: mode.default_iterations(),
            pin: mode.default_pin(),
            buffer: mode.is_tasks().then_some(0),
            workers: mode.has_workers().then_some(2),
            root: mode.has_root().then_some(Root::Spawned),
            channel: mode.default_channel(),
            protocol: mode.default_protocol(),
            count_in_flight: false,
            idle_threads: 0,
            allocator: Allocator::System,
            plant: None,
        }
    }

    /// The case in a few words: its mode, its buffer, and what is not at its default.
    #[must_use]
    pub fn in_words(&self) -> String {
        let default = Self::of(self.mode);
        let mut words = vec![self.mode.name().to_owned()];
        let mut add = |is_told: bool, what: String| {
            if is_told {
                words.push(what);
            }
        };
        add(self.language != default.language, "in C".to_owned());
        if let Some(buffer) = self.buffer {
            add(true, format!("buffer {buffer}"));
        }
        if let Some(channel) = self.channel() {
            add(
                self.channel() != default.channel,
                format!("{}'s channel", channel.name()),
            );
        }
        if let Some(protocol) = self.protocol() {
            add(self.protocol() != default.protocol, protocol.name().to_owned());
        }
        if let Some(workers) = self.workers {
            add(self.workers != default.workers, format!("workers: {workers}"));
        }
        add(self.pin != default.pin, format!("pinned: {}", self.pin.name()));
        if let Some(root) = self.root {
            add(self.root != default.root, format!("root: {}", root.name()));
        }
        add(self.allocator != default.allocator, self.allocator.name().to_owned());
        add(self.idle_threads > 0, format!("idle threads: {}", self.idle_threads));
        words.join(", ")
    }

    /// Which channel joins the tasks. Captures from before there was a choice do not tell it: then it is the default.
    #[must_use]
    pub fn channel(&self) -> Option<Channel> {
        self.channel.or(self.mode.default_channel())
    }

    /// When the next message is sent. Captures from before there was a choice do not tell it: then it is the default.
    #[must_use]
    pub fn protocol(&self) -> Option<Protocol> {
        self.protocol.or(self.mode.default_protocol())
    }
}

/// What a workload says when it has ended well.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Outcome {
    /// From before the first message to after the last, by the workload's own monotonic clock.
    pub elapsed_ns: u64,
    /// Messages sent, received and checked.
    pub messages: u64,
    /// When the first message was about to be sent: `CLOCK_MONOTONIC`, nanoseconds. Captures from before do not tell it.
    #[serde(default)]
    pub started_ns: Option<u64>,
    /// The most messages that were in flight at a time, if they were counted.
    #[serde(default)]
    pub max_in_flight: Option<u64>,
}

impl Outcome {
    /// Elapsed time by messages, nanoseconds.
    #[must_use]
    pub fn ns_per_message(&self) -> f64 {
        self.elapsed_ns as f64 / self.messages as f64
    }
}

/// Runs a workload in this process, to its end.
///
/// # Errors
///
/// If the machine lacks what the spec asks for (CPUs, threads, pipes), if a message arrives altered or not at all, or if the
/// spec is for a program in another language.
pub fn run(spec: &Spec, progress: &Progress) -> Result<Outcome> {
    if spec.language != Language::Rust {
        return Err(Error::Workload("this executable is the workload in Rust".to_owned()));
    }
    // A process that is to fork has no other threads: there each of the two starts its own.
    let here = if spec.mode == Mode::Process {
        0
    } else {
        spec.idle_threads
    };
    let _idle = IdleThreads::start(here)?;
    match spec.mode {
        Mode::Process => pipe::between_processes(spec, progress),
        Mode::Thread => pipe::between_threads(spec, progress),
        Mode::Task => task::on_one_thread(spec, progress),
        Mode::TaskPool => task::on_a_pool(spec, progress),
        Mode::Go => Err(Error::Workload("the goroutines are in Go".to_owned())),
    }
}

/// The error of a message that is not what was sent.
fn altered(index: u64) -> Error {
    Error::Workload(format!("message {index} did not arrive as it was sent (\"{MESSAGE}\")"))
}
