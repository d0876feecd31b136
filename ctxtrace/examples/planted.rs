//! Two threads of a pool pass messages, with or without a cause of slowness planted: what `ctxtrace explain` is to find, and
//! in programs that know nothing of ctxtrace.
//!
//! `planted none|mutex|sleep|allocations [--messages N]` does its work and prints nothing.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use tokio::sync::mpsc;

/// Messages a channel holds.
const BUFFER: usize = 64;
/// Boxes a message brings along, where they are planted, and the sizes of the first ones.
const BOXES: usize = 32;
const SIZES: [usize; 4] = [24, 100, 400, 1_600];
/// Messages from one sleep to the next.
const SLEEP_EVERY: u64 = 1_000;

/// What makes it slow.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Cause {
    /// Nothing: the base.
    None,
    /// A lock that everybody takes for each message, and works in.
    Mutex,
    /// Now and then one of the players blocks its thread.
    Sleep,
    /// Messages bring boxes along, which one player makes and another frees.
    Allocations,
}

/// A message, and what it brings along.
type Message = (u64, Vec<Box<[u8]>>);

fn main() {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let words: Vec<&str> = args.iter().map(String::as_str).collect();
    let (cause, messages) = match words[..] {
        [cause] => (cause, 40_000),
        [cause, "--messages", messages] => (cause, messages.parse().expect("a number of messages")),
        _ => panic!("usage: planted none|mutex|sleep|allocations [--messages N]"),
    };
    let cause = match cause {
        "none" => Cause::None,
        "mutex" => Cause::Mutex,
        "sleep" => Cause::Sleep,
        "allocations" => Cause::Allocations,
        other => panic!("no cause {other}"),
    };
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .build()
        .expect("a runtime");
    runtime.block_on(play(cause, messages));
}

/// One task sends all messages, another one passes them on, a third one receives and checks them.
async fn play(cause: Cause, messages: u64) {
    let lock = Arc::new(Mutex::new(1));
    let (to_repeater, mut from_sender) = mpsc::channel::<Message>(BUFFER);
    let (to_receiver, mut from_repeater) = mpsc::channel::<Message>(BUFFER);
    let of_sender = lock.clone();
    let sender = tokio::spawn(async move {
        for index in 0..messages {
            lock_and_work(cause, &of_sender);
            to_repeater.send((index, boxes(cause))).await.expect("received");
        }
    });
    let of_repeater = lock.clone();
    let repeater = tokio::spawn(async move {
        while let Some(message) = from_sender.recv().await {
            lock_and_work(cause, &of_repeater);
            if cause == Cause::Sleep && message.0.is_multiple_of(SLEEP_EVERY) {
                std::thread::sleep(Duration::from_micros(50));
            }
            to_receiver.send(message).await.expect("received");
        }
    });
    let receiver = tokio::spawn(async move {
        let mut received = 0;
        while let Some((index, boxes)) = from_repeater.recv().await {
            lock_and_work(cause, &lock);
            drop(boxes);
            assert_eq!(index, received);
            received += 1;
        }
        received
    });
    sender.await.expect("sent");
    repeater.await.expect("passed on");
    assert_eq!(receiver.await.expect("received"), messages);
}

/// About a microsecond of work, where nobody else can do any.
fn lock_and_work(cause: Cause, lock: &Mutex<u64>) {
    if cause == Cause::Mutex {
        let mut state = lock.lock().expect("nobody panics");
        for _ in 0..500 {
            *state ^= *state << 13;
            *state ^= *state >> 7;
            *state ^= *state << 17;
        }
    }
}

/// What a message brings along.
fn boxes(cause: Cause) -> Vec<Box<[u8]>> {
    if cause != Cause::Allocations {
        return Vec::new();
    }
    (0..BOXES)
        .map(|index| vec![1_u8; SIZES[index % SIZES.len()] + index].into_boxed_slice())
        .collect()
}
