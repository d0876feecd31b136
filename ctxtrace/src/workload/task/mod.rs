//! The workloads `task` and `task-pool`: the article's three tokio tasks, connected by two channels.
//!
//! ```text
//!   sender ──(channel, buffer N)──▶ repeater ──(channel, buffer N)──▶ receiver
//!      ▲                                                                 │
//!      └──────────── lock-step only: (channel, buffer N) ────────────────┘
//! ```
//!
//! With `--buffer 0` a `futures` channel holds one message per sender, so each task must yield after every message. This is the
//! article's forced task switch. The article's version uses combinators ([`combinators`]); its variants are plain loops
//! ([`loops`]).
//!
//! The tasks are wrapped in the probe's future, so that ctxtrace knows their names and counts their polls. This costs a few plain
//! stores per poll, and one per message and task.

mod combinators;
mod loops;
mod plants;
mod script;

use std::fmt::Display;
use std::future::Future;
use std::io;
use std::sync::atomic::{AtomicUsize, Ordering};

use ctxtrace_probe::{runtime_thread, section, traced};
use futures::TryFutureExt;
use tokio::runtime::{Builder, Runtime};
use tokio::task::JoinHandle;

use super::altered;
use super::clock::Stopwatch;
use super::pin::Pinning;
use super::progress::Progress;
use crate::error::{Error, Result};
use ctxtrace_format::workload::{Channel, Outcome, Pin, Plant, Protocol, Root, Spec};
use plants::{Dozing, Hoarding, Locking};
use script::{InFlight, Plain, Script};

/// Runs the workload `task`, with all tasks on the thread that calls `block_on`.
pub(super) fn on_one_thread(spec: &Spec, progress: &Progress) -> Result<Outcome> {
    Pinning::new(spec.pin, 1)?.apply(0)?;
    let runtime = Builder::new_current_thread().build().map_err(cannot_start)?;
    play(spec, progress, &runtime)
}

/// Runs the workload `task-pool`, with the tasks on a pool of worker threads.
pub(super) fn on_a_pool(spec: &Spec, progress: &Progress) -> Result<Outcome> {
    let workers = spec.workers.unwrap_or(1);
    let pinning = Pinning::new(spec.pin, workers)?;
    if spec.pin == Pin::SameCpu {
        // Pin this thread before the workers start, so that they inherit its CPU.
        pinning.apply(0)?;
    }
    let mut builder = Builder::new_multi_thread();
    builder.worker_threads(workers);
    let split = spec.pin == Pin::SplitCpus;
    let next_worker = AtomicUsize::new(0);
    builder.on_thread_start(move || {
        runtime_thread();
        if split {
            // An error is ignored, because a worker that is not pinned still works. `Pinning::new` has checked the number of CPUs.
            let _ = pinning.apply(next_worker.fetch_add(1, Ordering::Relaxed));
        }
    });
    let runtime = builder.build().map_err(cannot_start)?;
    play(spec, progress, &runtime)
}

fn cannot_start(source: io::Error) -> Error {
    Error::System {
        action: "starting the tokio runtime",
        source,
    }
}

/// The futures of the three tasks.
struct Players<S, R, V> {
    sender: S,
    repeater: R,
    receiver: V,
}

/// Selects the script of the workload, and measures how long the three tasks need for all messages.
fn play(spec: &Spec, progress: &Progress, runtime: &Runtime) -> Result<Outcome> {
    match spec.plant {
        Some(Plant::Mutex) => return arrange(spec, progress, runtime, Locking::new(true)),
        Some(Plant::OwnMutexes) => return arrange(spec, progress, runtime, Locking::new(false)),
        Some(Plant::Sleep) => return arrange(spec, progress, runtime, Dozing::default()),
        Some(Plant::Allocations) => return arrange(spec, progress, runtime, Hoarding),
        None if !spec.count_in_flight => return arrange(spec, progress, runtime, Plain),
        None => {}
    }
    let in_flight = InFlight::default();
    let outcome = arrange(spec, progress, runtime, in_flight.clone())?;
    Ok(Outcome {
        max_in_flight: Some(in_flight.max()),
        ..outcome
    })
}

/// Creates the tasks with this script, and with the channels and the protocol of the spec, and runs them.
fn arrange(spec: &Spec, progress: &Progress, runtime: &Runtime, script: impl Script) -> Result<Outcome> {
    let iterations = spec.iterations;
    let buffer = spec.buffer.unwrap_or(0);
    let shown = progress.clone();
    let channel = spec.channel().unwrap_or_default();
    if channel == Channel::Tokio && buffer == 0 {
        return Err(Error::Workload(
            "tokio's channel cannot have a buffer of 0: use --buffer 1 or more".to_owned(),
        ));
    }
    let futures_ends = || futures::channel::mpsc::channel(buffer);
    match (channel, spec.protocol().unwrap_or(Protocol::Pipelined)) {
        (Channel::Futures, Protocol::Pipelined) => {
            let players = combinators::players(iterations, buffer, script, shown);
            conduct(spec, progress, runtime, players)
        }
        (Channel::Futures, Protocol::LockStep) => {
            let acknowledgements = futures::channel::mpsc::channel(buffer);
            let players = loops::in_lock_step(
                iterations,
                futures_ends(),
                futures_ends(),
                acknowledgements,
                script,
                shown,
            );
            conduct(spec, progress, runtime, players)
        }
        (Channel::Tokio, Protocol::Pipelined) => {
            let players = loops::pipelined(
                iterations,
                tokio::sync::mpsc::channel(buffer),
                tokio::sync::mpsc::channel(buffer),
                script,
                shown,
            );
            conduct(spec, progress, runtime, players)
        }
        (Channel::Tokio, Protocol::LockStep) => {
            let players = loops::in_lock_step(
                iterations,
                tokio::sync::mpsc::channel(buffer),
                tokio::sync::mpsc::channel(buffer),
                tokio::sync::mpsc::channel(buffer),
                script,
                shown,
            );
            conduct(spec, progress, runtime, players)
        }
    }
}

/// Runs the three tasks to completion, and measures the time.
fn conduct<E: Display + Send + 'static>(
    spec: &Spec,
    progress: &Progress,
    runtime: &Runtime,
    players: Players<
        impl Future<Output = std::result::Result<(), E>> + Send + 'static,
        impl Future<Output = std::result::Result<(), E>> + Send + 'static,
        impl Future<Output = std::result::Result<u64, Altered>> + Send + 'static,
    >,
) -> Result<Outcome> {
    let iterations = spec.iterations;
    let sender = traced("sender", players.sender);
    let repeater = traced("repeater", players.repeater);
    let receiver = traced("receiver", players.receiver);

    runtime_thread();
    let section = section();
    let stopwatch = Stopwatch::start();
    let received = match spec.root.unwrap_or(Root::Spawned) {
        Root::Spawned => runtime.block_on(traced("root", async {
            let players = [tokio::spawn(sender), tokio::spawn(repeater)];
            let receiver = tokio::spawn(receiver);
            finish(joined(receiver).await?, players).await
        })),
        Root::BlockOn => runtime.block_on(async {
            let players = [tokio::spawn(sender), tokio::spawn(repeater)];
            finish(receiver.await, players).await
        }),
    }?;
    let outcome = stopwatch.outcome(received);
    drop(section);

    if received != iterations {
        return Err(Error::Workload(format!(
            "only {received} of {iterations} messages arrived"
        )));
    }
    progress.ended(received);
    Ok(outcome)
}

/// The error for a received message that differs from the sent one; the field is the message's index.
///
/// This error type is small, because a result is moved for every message: with [`Error`], a message would be 17 % slower than
/// in a plain program (`cargo xtask bench workloads`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Altered(u64);

/// Waits for the sender and the repeater, which have no messages left, and returns the first error or the number of messages.
async fn finish<E: Display>(
    received: std::result::Result<u64, Altered>,
    players: [JoinHandle<std::result::Result<(), E>>; 2],
) -> Result<u64> {
    let received = received.map_err(|Altered(index)| altered(index))?;
    for player in players {
        joined(player)
            .await?
            .map_err(|error| Error::Workload(format!("a channel was closed during the run: {error}")))?;
    }
    Ok(received)
}

fn joined<T>(task: JoinHandle<T>) -> impl Future<Output = Result<T>> {
    task.map_err(|error| Error::Workload(format!("a task failed: {error}")))
}

#[cfg(test)]
mod tests {
    use super::super::{Mode, run};
    use super::*;

    #[test]
    fn every_message_arrives_in_every_arrangement() {
        let (progress, _fd) = Progress::create().expect("a page");
        for mode in [Mode::Task, Mode::TaskPool] {
            for buffer in [0, 1, 4_096] {
                for root in [Root::Spawned, Root::BlockOn] {
                    for channel in [Channel::Futures, Channel::Tokio] {
                        for protocol in [Protocol::Pipelined, Protocol::LockStep] {
                            let spec = Spec {
                                iterations: 3_000,
                                buffer: Some(buffer),
                                root: Some(root),
                                channel: Some(channel),
                                protocol: Some(protocol),
                                ..Spec::new(mode)
                            };
                            if channel == Channel::Tokio && buffer == 0 {
                                run(&spec, &progress).expect_err("a buffer of 0");
                                continue;
                            }
                            let outcome = run(&spec, &progress).expect("a run");
                            assert_eq!(outcome.messages, 3_000, "{spec:?}");
                            assert_eq!(outcome.max_in_flight, None, "messages in flight are not counted");
                        }
                    }
                }
            }
        }
        assert_eq!(progress.messages(), 3_000);
    }

    #[test]
    fn every_message_arrives_whatever_is_planted() {
        let (progress, _fd) = Progress::create().expect("a page");
        for plant in [Plant::Mutex, Plant::Sleep, Plant::Allocations] {
            for channel in [Channel::Futures, Channel::Tokio] {
                for protocol in [Protocol::Pipelined, Protocol::LockStep] {
                    for mode in [Mode::Task, Mode::TaskPool] {
                        let spec = Spec {
                            iterations: 3_000,
                            buffer: Some(64),
                            channel: Some(channel),
                            protocol: Some(protocol),
                            plant: Some(plant),
                            ..Spec::new(mode)
                        };
                        let outcome = run(&spec, &progress).expect("a run");
                        assert_eq!(outcome.messages, 3_000, "{spec:?}");
                        // At least the three sleeps of 50 µs.
                        assert!(plant != Plant::Sleep || outcome.elapsed_ns >= 150_000, "{outcome:?}");
                    }
                }
            }
        }
    }

    #[test]
    fn a_buffer_is_what_lets_messages_be_in_flight() {
        let (progress, _fd) = Progress::create().expect("a page");
        let most = |mode, buffer, channel, protocol| {
            let spec = Spec {
                iterations: 20_000,
                buffer: Some(buffer),
                channel: Some(channel),
                protocol: Some(protocol),
                count_in_flight: true,
                ..Spec::new(mode)
            };
            run(&spec, &progress).expect("a run").max_in_flight.expect("a count")
        };
        for mode in [Mode::Task, Mode::TaskPool] {
            for channel in [Channel::Futures, Channel::Tokio] {
                assert_eq!(most(mode, 4_096, channel, Protocol::LockStep), 1);
                // The messages in the two channels, and one held by each of the tasks.
                let small = most(mode, 2, channel, Protocol::Pipelined);
                assert!((2..=9).contains(&small), "{mode:?} {channel:?}: {small}");
            }
        }
        // On one thread a task runs until it has to wait, here until the buffer is full. With tokio's channel it yields earlier.
        let full = most(Mode::Task, 4_096, Channel::Futures, Protocol::Pipelined);
        assert!((4_096..=2 * 4_097 + 3).contains(&full), "{full}");
    }
}
