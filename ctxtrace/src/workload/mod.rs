//! The built-in workloads: the five ping-pong programs of the article *Lightweight Tasks Switch in Go vs Rust*.
//!
//! A workload runs in a separate process: the same executable, started again with a hidden subcommand, so that the traced
//! process does not contain the tracer. It receives a [`Spec`], runs, and reports an [`Outcome`] over a pipe. The workloads in
//! other languages ([`Language`]) are separate programs that use the same protocol.
//!
//! Each workload follows the article as closely as today's libraries allow. The only addition on the path of a message is one
//! branch, and one store every 1,024 messages, which report the progress to the tracer ([`progress`]).
//!
//! | mode | participants | one message |
//! |---|---|---|
//! | `process` | two processes, two pipes | one round trip of four bytes |
//! | `process`, in C | the same, with only the C library (`process.c`) | one round trip of four bytes |
//! | `thread` | two threads, two pipes | one round trip of four bytes |
//! | `task` | three tokio tasks on one thread, two channels | one `"joe0"` from the sender through the repeater to the receiver |
//! | `task-pool` | the same three tasks on a pool of worker threads | the same |
//! | `go` | two goroutines, two channels | one `"joe0"` to the other goroutine and back |

mod clock;
mod idle;
pub mod pin;
mod pipe;
pub mod progress;
mod task;

use crate::error::{Error, Result};
use ctxtrace_format::workload::{Language, Mode, Outcome, Spec};
use idle::IdleThreads;
use progress::Progress;

/// The text of every message in every workload. Every receiver checks that it receives this text.
pub const MESSAGE: &str = "joe0";

/// The source of the workload `process` in C.
pub const PROCESS_IN_C: &str = include_str!("process.c");

/// The source of the article's Go program: two goroutines in lock-step.
pub const PING_PONG_IN_GO: &str = include_str!("ping_pong.go");

/// Runs a workload in this process until it completes.
///
/// # Errors
///
/// If the machine lacks CPUs, threads or pipes that the spec needs, if a message is altered or lost, or if the workload is
/// written in another language.
pub fn run(spec: &Spec, progress: &Progress) -> Result<Outcome> {
    if spec.language != Language::Rust {
        return Err(Error::Workload(
            "this executable runs only the workloads in Rust".to_owned(),
        ));
    }
    // The process workload must be single-threaded when it forks, so both of its processes start their idle threads later.
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
        Mode::Go => Err(Error::Workload("the mode `go` is a separate program in Go".to_owned())),
    }
}

/// The error for a received message that differs from the sent one.
fn altered(index: u64) -> Error {
    Error::Workload(format!(
        "message {index} differs from the one that was sent (\"{MESSAGE}\")"
    ))
}
