//! Three named tasks on a pool of two threads, and a root future that waits for them:
//!
//! ```text
//!   sender ──(channel)──▶ repeater ──(channel)──▶ receiver        root
//! ```
//!
//! ```sh
//! cargo build --release -p ctxtrace-probe --example three_tasks
//! target/release/examples/three_tasks 5000000 16
//! ```
//!
//! The arguments are the number of messages (default: 5,000,000, which takes about a second) and the capacity of each
//! channel in messages (default: 16).
#![allow(clippy::print_stdout, reason = "this is a command-line program")]

use std::env;
use std::error::Error;
use std::time::Instant;

use ctxtrace_probe::{message, runtime_thread, section, traced};
use tokio::runtime::Builder;
use tokio::sync::mpsc;

fn main() -> Result<(), Box<dyn Error>> {
    let mut arguments = env::args().skip(1);
    let messages: u64 = arguments.next().map_or(Ok(5_000_000), |number| number.parse())?;
    let buffer: usize = arguments.next().map_or(Ok(16), |number| number.parse())?;

    let runtime = Builder::new_multi_thread()
        .worker_threads(2)
        .on_thread_start(runtime_thread)
        .build()?;
    let (to_repeater, mut from_sender) = mpsc::channel(buffer);
    let (to_receiver, mut from_repeater) = mpsc::channel(buffer);

    let sender = async move {
        for number in 0..messages {
            if to_repeater.send(number).await.is_err() {
                break;
            }
        }
    };
    let repeater = async move {
        while let Some(number) = from_sender.recv().await {
            if to_receiver.send(number).await.is_err() {
                break;
            }
        }
    };
    let receiver = async move {
        let mut received = 0;
        while from_repeater.recv().await.is_some() {
            message();
            received += 1;
        }
        received
    };

    let start = Instant::now();
    let section = section();
    let received: u64 = runtime.block_on(traced("root", async {
        let sender = tokio::spawn(traced("sender", sender));
        let repeater = tokio::spawn(traced("repeater", repeater));
        let received = tokio::spawn(traced("receiver", receiver)).await?;
        sender.await?;
        repeater.await?;
        Ok::<u64, tokio::task::JoinError>(received)
    }))?;
    drop(section);
    println!("{received} messages in {:.3} s", start.elapsed().as_secs_f64());
    Ok(())
}
