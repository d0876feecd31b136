//! The description of a built-in workload, and the result that it reports.

use serde::{Deserialize, Serialize};

/// How the participants of a workload are distributed to CPUs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, schemars::JsonSchema)]
#[cfg_attr(feature = "clap", derive(clap::ValueEnum))]
#[serde(rename_all = "kebab-case")]
pub enum Pin {
    /// Not pinned; the scheduler decides
    None,
    /// All on the same CPU
    SameCpu,
    /// Each on a different CPU
    SplitCpus,
}

impl Pin {
    /// The name used on the command line and in JSON.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::None => "none",
            Self::SameCpu => "same-cpu",
            Self::SplitCpus => "split-cpus",
        }
    }
}

/// The kind of workload: one of the article's five cases.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, schemars::JsonSchema)]
#[cfg_attr(feature = "clap", derive(clap::ValueEnum))]
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

    /// Whether the participants are tasks (of tokio or Go) and not threads that the kernel switches.
    #[must_use]
    pub fn is_tasks(self) -> bool {
        matches!(self, Self::Task | Self::TaskPool | Self::Go)
    }

    /// Whether the participants share a pool of threads.
    #[must_use]
    pub fn has_workers(self) -> bool {
        matches!(self, Self::TaskPool | Self::Go)
    }

    /// Whether the workload has a root future, which is passed to `block_on`.
    #[must_use]
    pub fn has_root(self) -> bool {
        matches!(self, Self::Task | Self::TaskPool)
    }

    /// The default of `--iterations`: the article's number for tasks, a tenth of it for processes and threads.
    #[must_use]
    pub fn default_iterations(self) -> u64 {
        if self.is_tasks() { 2_000_000 } else { 200_000 }
    }

    /// The default of `--channel`: the article's channel. `None` for modes without tokio tasks, which have no choice.
    #[must_use]
    pub fn default_channel(self) -> Option<Channel> {
        self.has_root().then_some(Channel::Futures)
    }

    /// The default of `--protocol`, as in the article: its goroutines wait for an answer and its tasks do not. `None` for processes
    /// and threads.
    #[must_use]
    pub fn default_protocol(self) -> Option<Protocol> {
        match self {
            Self::Task | Self::TaskPool => Some(Protocol::Pipelined),
            Self::Go => Some(Protocol::LockStep),
            Self::Process | Self::Thread => None,
        }
    }

    /// The default of `--language`.
    #[must_use]
    pub fn default_language(self) -> Language {
        if self == Self::Go { Language::Go } else { Language::Rust }
    }

    /// The default of `--pin`: processes and threads share one CPU, as in the textbook exercise (OSTEP); tasks are not pinned.
    #[must_use]
    pub fn default_pin(self) -> Pin {
        if self.is_tasks() { Pin::None } else { Pin::SameCpu }
    }
}

/// The language that a workload is written in.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, schemars::JsonSchema)]
#[cfg_attr(feature = "clap", derive(clap::ValueEnum))]
#[serde(rename_all = "kebab-case")]
pub enum Language {
    /// Rust, as part of this executable
    #[default]
    Rust,
    /// C, compiled with this machine's `cc`
    C,
    /// Go, built with this machine's `go`; used by [`Mode::Go`] only
    #[cfg_attr(feature = "clap", value(skip))]
    Go,
}

/// Where the receiver runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, schemars::JsonSchema)]
#[cfg_attr(feature = "clap", derive(clap::ValueEnum))]
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

/// The type of channel between the tasks.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, schemars::JsonSchema)]
#[cfg_attr(feature = "clap", derive(clap::ValueEnum))]
#[serde(rename_all = "kebab-case")]
pub enum Channel {
    /// `futures::channel::mpsc`, as in the article; holds `--buffer` messages plus one per sender
    #[default]
    Futures,
    /// `tokio::sync::mpsc`; holds `--buffer` messages
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

/// When the sender sends the next message.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, schemars::JsonSchema)]
#[cfg_attr(feature = "clap", derive(clap::ValueEnum))]
#[serde(rename_all = "kebab-case")]
pub enum Protocol {
    /// As soon as the channel has room
    Pipelined,
    /// After the previous message has arrived
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

/// The allocator of a workload in Rust.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, schemars::JsonSchema)]
#[cfg_attr(feature = "clap", derive(clap::ValueEnum))]
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

/// A deliberate cause of slowness, which a test adds to a workload and then expects to find in the explanation.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "clap", derive(clap::ValueEnum))]
#[serde(rename_all = "kebab-case")]
pub enum Plant {
    /// Every task locks the same mutex for each message and works for about a microsecond while it holds the lock
    Mutex,
    /// The same work as `Mutex`, but each task has its own mutex, so that no task waits for a lock
    OwnMutexes,
    /// The repeater blocks its thread for 50 µs at every thousandth message
    Sleep,
    /// Every message contains 32 boxes, which the sender allocates and the receiver frees
    Allocations,
}

/// A workload with every option resolved. Options that the mode does not have are `None`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Spec {
    /// The kind of workload.
    pub mode: Mode,
    /// The language of the workload. Only `process` has a choice.
    #[serde(default)]
    pub language: Language,
    /// The number of messages to send, at least 1.
    pub iterations: u64,
    /// The CPUs that the participants are pinned to.
    pub pin: Pin,
    /// The number of messages that a channel holds: for `futures` beyond one per sender, for tokio and Go in total; tasks only.
    pub buffer: Option<usize>,
    /// The number of worker threads of `task-pool`. For `go` it is `GOMAXPROCS`.
    pub workers: Option<usize>,
    /// Where the receiver runs; tokio tasks only.
    pub root: Option<Root>,
    /// The type of channel between the tasks; tokio tasks only. See [`Spec::channel`].
    #[serde(default)]
    pub channel: Option<Channel>,
    /// When the sender sends the next message; tasks only. See [`Spec::protocol`].
    #[serde(default)]
    pub protocol: Option<Protocol>,
    /// Whether the messages in flight are counted, which makes every message slower; tasks only.
    #[serde(default)]
    pub count_in_flight: bool,
    /// The number of threads in each process that only sleep; not for C and Go.
    #[serde(default)]
    pub idle_threads: usize,
    /// The allocator. It is linked into the executable, so this option selects the executable to start; not for C and Go.
    #[serde(default)]
    pub allocator: Allocator,
    /// The deliberate cause of slowness, for tests; tokio tasks only, and not shown in any report. If set, messages in flight are
    /// not counted.
    #[serde(default)]
    pub plant: Option<Plant>,
}

impl Spec {
    /// Returns the workload of this mode with every option at its default.
    #[must_use]
    pub fn new(mode: Mode) -> Self {
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

    /// Describes the workload in a few words: its mode, its buffer, and every option that is not at its default.
    #[must_use]
    pub fn in_words(&self) -> String {
        let default = Self::new(self.mode);
        let mut words = vec![self.mode.name().to_owned()];
        let mut add = |is_shown: bool, what: String| {
            if is_shown {
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

    /// The type of channel between the tasks. Captures from before this option existed lack it; they used the default.
    #[must_use]
    pub fn channel(&self) -> Option<Channel> {
        self.channel.or(self.mode.default_channel())
    }

    /// When the sender sends the next message. Captures from before this option existed lack it; they used the default.
    #[must_use]
    pub fn protocol(&self) -> Option<Protocol> {
        self.protocol.or(self.mode.default_protocol())
    }
}

/// The result that a workload reports after it has completed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Outcome {
    /// The time from before the first message to after the last one, in nanoseconds of the workload's own monotonic clock.
    pub elapsed_ns: u64,
    /// The number of messages that were sent, received and checked.
    pub messages: u64,
    /// The time just before the first message was sent, in nanoseconds of `CLOCK_MONOTONIC`. Captures of older versions lack it.
    #[serde(default)]
    pub started_ns: Option<u64>,
    /// The maximum number of messages that were in flight at the same time, if they were counted.
    #[serde(default)]
    pub max_in_flight: Option<u64>,
}

impl Outcome {
    /// The elapsed time per message, in nanoseconds.
    #[must_use]
    pub fn ns_per_message(&self) -> f64 {
        self.elapsed_ns as f64 / self.messages as f64
    }
}
