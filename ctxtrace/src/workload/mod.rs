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
//! | `task` | three tokio tasks on one thread, two `futures` channels | one `"joe0"` from sender over repeater to receiver |
//! | `task-pool` | the same three tasks on a pool of worker threads | the same |
//! | `go` | two goroutines, two channels | one `"joe0"` there and back |

pub mod pin;
mod pipe;
pub mod progress;
mod task;

use serde::{Deserialize, Serialize};

use crate::error::{Error, Result};
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
}

/// What a workload says when it has ended well.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Outcome {
    /// From before the first message to after the last, by the workload's own monotonic clock.
    pub elapsed_ns: u64,
    /// Messages sent, received and checked.
    pub messages: u64,
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
