//! `task` and `task-pool`: the article's three tokio tasks over two `futures` channels.
//!
//! ```text
//!   sender ──(channel, buffer N)──▶ repeater ──(channel, buffer N)──▶ receiver
//! ```
//!
//! With `--buffer 0` a `futures` channel holds one message a sender, so each task has to give way after every message: the
//! article's forced task switch. The combinators are the article's too (`forward`, `fold`), in their `futures` 0.3 form.
//!
//! The tasks are wrapped in the probe, so that ctxtrace knows them by name and counts their polls: a few plain stores a poll,
//! and one a message and task.

use std::future::{Future, ready};
use std::io;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Instant;

use ctxtrace_probe::{message, runtime_thread, section, traced};
use futures::channel::mpsc;
use futures::{StreamExt, TryFutureExt, TryStreamExt, stream};
use tokio::runtime::{Builder, Runtime};
use tokio::task::JoinHandle;

use super::pin::{Pin, Pinning};
use super::progress::Progress;
use super::{MESSAGE, Outcome, Root, Spec, altered};
use crate::error::{Error, Result};

/// All tasks on the thread that calls `block_on`.
pub(super) fn on_one_thread(spec: &Spec, progress: &Progress) -> Result<Outcome> {
    Pinning::new(spec.pin, 1)?.apply(0)?;
    let runtime = Builder::new_current_thread().build().map_err(cannot_start)?;
    play(spec, progress, &runtime)
}

/// The tasks on a pool of worker threads.
pub(super) fn on_a_pool(spec: &Spec, progress: &Progress) -> Result<Outcome> {
    let workers = spec.workers.unwrap_or(1);
    let pinning = Pinning::new(spec.pin, workers)?;
    if spec.pin == Pin::SameCpu {
        // Before there are workers, so that they and this thread inherit it.
        pinning.apply(0)?;
    }
    let mut builder = Builder::new_multi_thread();
    builder.worker_threads(workers);
    let split = spec.pin == Pin::SplitCpus;
    let next_worker = AtomicUsize::new(0);
    builder.on_thread_start(move || {
        runtime_thread();
        if split {
            // A worker that cannot be pinned still does the work; the CPUs were checked to be there beforehand.
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

/// Sends all messages through the three tasks and takes the time.
fn play(spec: &Spec, progress: &Progress, runtime: &Runtime) -> Result<Outcome> {
    let iterations = spec.iterations;
    let buffer = spec.buffer.unwrap_or(0);
    let (to_repeater, from_sender) = mpsc::channel::<&'static str>(buffer);
    let (to_receiver, from_repeater) = mpsc::channel::<&'static str>(buffer);

    let messages = stream::iter(0..iterations).map(|_| {
        message();
        Ok(MESSAGE)
    });
    let sender = traced("sender", messages.forward(to_repeater));
    let repeated = from_sender.map(|text| {
        message();
        Ok(text)
    });
    let repeater = traced("repeater", repeated.forward(to_receiver));

    runtime_thread();
    let section = section();
    let start = Instant::now();
    let received = match spec.root.unwrap_or(Root::Spawned) {
        Root::Spawned => {
            // A task must own what it uses.
            let progress = progress.clone();
            runtime.block_on(traced("root", async {
                let players = [tokio::spawn(sender), tokio::spawn(repeater)];
                let receiver = tokio::spawn(traced("receiver", receive(from_repeater, progress)));
                finish(joined(receiver).await?, players).await
            }))
        }
        Root::BlockOn => runtime.block_on(async {
            let players = [tokio::spawn(sender), tokio::spawn(repeater)];
            finish(
                traced("receiver", receive(from_repeater, progress.clone())).await,
                players,
            )
            .await
        }),
    }?;
    let elapsed = start.elapsed();
    drop(section);

    if received != iterations {
        return Err(Error::Workload(format!("{received} of {iterations} messages arrived")));
    }
    progress.ended(received);
    Ok(Outcome {
        elapsed_ns: elapsed.as_nanos() as u64,
        messages: received,
    })
}

/// A message that is not what was sent, by its index.
///
/// The workload's own errors are small on purpose: a result is moved at each message, and [`Error`] would make a message
/// 17 % slower than it is in a plain program (`cargo xtask bench workloads`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Altered(u64);

/// Counts the messages and checks each.
fn receive(
    messages: mpsc::Receiver<&'static str>,
    progress: Progress,
) -> impl Future<Output = std::result::Result<u64, Altered>> {
    messages.map(Ok).try_fold(0, move |count, text| {
        message();
        ready(if text == MESSAGE {
            progress.reached(count + 1);
            Ok(count + 1)
        } else {
            Err(Altered(count))
        })
    })
}

/// Waits for the other two, which have nothing left to do; the first error counts.
async fn finish(
    received: std::result::Result<u64, Altered>,
    players: [JoinHandle<std::result::Result<(), mpsc::SendError>>; 2],
) -> Result<u64> {
    let received = received.map_err(|Altered(index)| altered(index))?;
    for player in players {
        joined(player)
            .await?
            .map_err(|error| Error::Workload(format!("a channel was closed in mid-run: {error}")))?;
    }
    Ok(received)
}

fn joined<T>(task: JoinHandle<T>) -> impl Future<Output = Result<T>> {
    task.map_err(|error| Error::Workload(format!("a task ended badly: {error}")))
}

#[cfg(test)]
mod tests {
    use super::super::{Language, Mode, run};
    use super::*;

    fn spec(mode: Mode, buffer: usize, root: Root) -> Spec {
        Spec {
            mode,
            language: Language::Rust,
            iterations: 3_000,
            pin: Pin::None,
            buffer: Some(buffer),
            workers: (mode == Mode::TaskPool).then_some(2),
            root: Some(root),
        }
    }

    #[test]
    fn every_message_arrives_in_every_arrangement() {
        let (progress, _fd) = Progress::create().expect("a page");
        for mode in [Mode::Task, Mode::TaskPool] {
            for buffer in [0, 1, 4_096] {
                for root in [Root::Spawned, Root::BlockOn] {
                    let outcome = run(&spec(mode, buffer, root), &progress).expect("a run");
                    assert_eq!(outcome.messages, 3_000, "{mode:?} {buffer} {root:?}");
                }
            }
        }
        assert_eq!(progress.messages(), 3_000);
    }

    #[test]
    fn an_altered_message_ends_the_run() {
        let (progress, _fd) = Progress::create().expect("a page");
        let (mut sender, receiver) = mpsc::channel(8);
        sender.try_send(MESSAGE).expect("room");
        sender.try_send("jim0").expect("room");
        drop(sender);
        let received = futures::executor::block_on(receive(receiver, progress));
        assert_eq!(received, Err(Altered(1)));
    }
}
