//! The three tasks of `ctxtrace/examples/plain.rs` under dial9, for `cargo xtask bench overhead`.
//!
//! `ping-pong-under-dial9 off|polls|wakes task|task-pool ITERATIONS BUFFER` prints the elapsed nanoseconds, the number of events
//! that dial9 recorded, and the number of batches of events that it dropped.
//!
//! - `off`: an ordinary runtime, without dial9.
//! - `polls`: dial9's hooks in the runtime see every poll (with `tokio_unstable`, see `.cargo/config.toml`).
//! - `wakes`: dial9 additionally spawns the tasks and wraps their wakers, so it sees which task wakes which.
//!
//! The trace goes to a file in a temporary folder. It is completed after the time has been measured.

use std::time::{Duration, Instant};

use dial9::{Dial9HandleTokioExt, DiskBuffer, TokioAttachOptions};
use futures::channel::mpsc;
use futures::{StreamExt, stream};
use metrique_writer::test_util::{Inspector, test_entry_sink};
use tokio::runtime::{Builder, Runtime};

/// The maximum time that dial9 may take to write the rest of its trace at the end. It gives up after this time.
const SHUTDOWN: Duration = Duration::from_secs(60);

fn main() {
    let args: Vec<String> = std::env::args().collect();
    let [_, sees, mode, iterations, buffer] = args.as_slice() else {
        panic!("ping-pong-under-dial9 off|polls|wakes task|task-pool ITERATIONS BUFFER");
    };
    let iterations = iterations.parse().expect("ITERATIONS is a number");
    let buffer = buffer.parse().expect("BUFFER is a number");
    let mut builder = match mode.as_str() {
        "task" => Builder::new_current_thread(),
        "task-pool" => {
            let mut builder = Builder::new_multi_thread();
            builder.worker_threads(2);
            builder
        }
        other => panic!("there is no mode {other}"),
    };
    let (elapsed_ns, events, dropped) = match sees.as_str() {
        "off" => (
            play(&builder.build().expect("a runtime"), iterations, buffer, false),
            0,
            0,
        ),
        "polls" => recorded(builder, iterations, buffer, false),
        "wakes" => recorded(builder, iterations, buffer, true),
        other => panic!("dial9 cannot record {other}; use off, polls or wakes"),
    };
    println!("{elapsed_ns} {events} {dropped}");
}

/// Runs the tasks under dial9. Returns the elapsed nanoseconds, the number of recorded events, and the number of dropped batches.
fn recorded(builder: Builder, iterations: u64, buffer: usize, wakes: bool) -> (u128, u64, u64) {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let metrics = test_entry_sink();
    let recorder = dial9::recorder(DiskBuffer::single_file(folder.path().join("trace.bin")).expect("a file"))
        .metrics_sink(metrics.sink)
        .build();
    let options = TokioAttachOptions::builder().task_tracking_enabled(true).build();
    let runtime = recorder
        .handle()
        .attach_tokio_runtime(builder, options)
        .expect("a runtime");
    let elapsed_ns = play(&runtime, iterations, buffer, wakes);
    drop(runtime);
    recorder.graceful_shutdown(SHUTDOWN);
    (
        elapsed_ns,
        sum(&metrics.inspector, "EventCount"),
        sum(&metrics.inspector, "DroppedBatches"),
    )
}

/// Returns the sum of a metric over all flushes.
fn sum(metrics: &Inspector, name: &str) -> u64 {
    let entries = metrics.entries();
    entries
        .iter()
        .filter_map(|entry| entry.metrics.get(name))
        .map(|metric| metric.as_u64())
        .sum()
}

/// Runs the article's three tasks and returns the elapsed nanoseconds.
fn play(runtime: &Runtime, iterations: u64, buffer: usize, by_dial9: bool) -> u128 {
    let (to_repeater, from_sender) = mpsc::channel(buffer);
    let (to_receiver, from_repeater) = mpsc::channel(buffer);
    let sender = stream::iter(0..iterations).map(|_| Ok("joe0")).forward(to_repeater);
    let repeater = from_sender.map(Ok).forward(to_receiver);
    let receiver = from_repeater.fold(0, |count: u64, message: &str| {
        std::future::ready(if message == "joe0" { count + 1 } else { count })
    });
    let start = Instant::now();
    let received = runtime.block_on(async {
        if by_dial9 {
            dial9::spawn(sender);
            dial9::spawn(repeater);
            dial9::spawn(receiver).await
        } else {
            tokio::spawn(sender);
            tokio::spawn(repeater);
            tokio::spawn(receiver).await
        }
    });
    let elapsed_ns = start.elapsed().as_nanos();
    assert_eq!(received.expect("the receiver does not panic"), iterations);
    elapsed_ns
}
