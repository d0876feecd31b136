//! Three tasks pass messages on a pool of two threads, or on one thread, with or without a planted cause of slowness. The tests of
//! `ctxtrace explain` check that it finds the cause in this program, which knows nothing of ctxtrace.
//!
//! `planted none|mutex|own-mutexes|sleep|allocations [--messages N] [--one-thread]` passes the messages and prints nothing.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use tokio::sync::mpsc;

/// The capacity of each channel, in messages.
const BUFFER: usize = 1_024;
/// The number of boxes in a message with [`Cause::Allocations`].
const BOXES: usize = 32;
/// The sizes of the first boxes, in bytes; later ones repeat them, each one byte longer than the one before.
const SIZES: [usize; 4] = [24, 100, 400, 1_600];
/// With [`Cause::Sleep`] there is one sleep per this many messages.
const SLEEP_EVERY: u64 = 250;

/// The planted cause of slowness.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Cause {
    /// No cause: the base of the comparisons.
    None,
    /// One lock that all tasks take for each message, and hold while they work.
    Mutex,
    /// The same work with a separate lock for each task: the base of `Mutex`.
    OwnMutexes,
    /// One task blocks its thread repeatedly by sleeping.
    Sleep,
    /// Messages contain boxes, which one task allocates and another frees.
    Allocations,
}

/// A message: its index and its boxes.
type Message = (u64, Vec<Box<[u8]>>);

fn main() {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let mut words: Vec<&str> = args.iter().map(String::as_str).collect();
    let on_one_thread = words.last() == Some(&"--one-thread");
    if on_one_thread {
        words.pop();
    }
    let (cause, messages) = match words[..] {
        [cause] => (cause, 100_000),
        [cause, "--messages", messages] => (cause, messages.parse().expect("a number of messages")),
        _ => panic!("usage: planted none|mutex|own-mutexes|sleep|allocations [--messages N] [--one-thread]"),
    };
    let cause = match cause {
        "none" => Cause::None,
        "mutex" => Cause::Mutex,
        "own-mutexes" => Cause::OwnMutexes,
        "sleep" => Cause::Sleep,
        "allocations" => Cause::Allocations,
        other => panic!("there is no cause {other}"),
    };
    let mut builder = if on_one_thread {
        tokio::runtime::Builder::new_current_thread()
    } else {
        tokio::runtime::Builder::new_multi_thread()
    };
    let runtime = builder.worker_threads(2).build().expect("a runtime");
    runtime.block_on(play(cause, messages));
}

/// One task sends all messages, another one passes them on, a third one receives and checks them.
async fn play(cause: Cause, messages: u64) {
    let new_lock = || Arc::new(Mutex::new(1));
    let lock = new_lock();
    let for_another = || {
        if cause == Cause::Mutex {
            lock.clone()
        } else {
            new_lock()
        }
    };
    let (to_repeater, mut from_sender) = mpsc::channel::<Message>(BUFFER);
    let (to_receiver, mut from_repeater) = mpsc::channel::<Message>(BUFFER);
    let of_sender = for_another();
    let sender = tokio::spawn(async move {
        for index in 0..messages {
            lock_and_work(cause, &of_sender);
            to_repeater
                .send((index, boxes(cause)))
                .await
                .expect("the repeater receives messages");
        }
    });
    let of_repeater = for_another();
    let repeater = tokio::spawn(async move {
        while let Some(message) = from_sender.recv().await {
            lock_and_work(cause, &of_repeater);
            if cause == Cause::Sleep && message.0.is_multiple_of(SLEEP_EVERY) {
                std::thread::sleep(Duration::from_micros(50));
            }
            to_receiver.send(message).await.expect("the receiver receives messages");
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
    sender.await.expect("the sender does not panic");
    repeater.await.expect("the repeater does not panic");
    assert_eq!(receiver.await.expect("the receiver does not panic"), messages);
}

/// Does about a microsecond of work while it holds the lock, if the cause needs a lock.
fn lock_and_work(cause: Cause, lock: &Mutex<u64>) {
    if matches!(cause, Cause::Mutex | Cause::OwnMutexes) {
        let mut state = lock.lock().expect("the lock is not poisoned");
        for _ in 0..500 {
            *state ^= *state << 13;
            *state ^= *state >> 7;
            *state ^= *state << 17;
        }
    }
}

/// Allocates the boxes of a message.
fn boxes(cause: Cause) -> Vec<Box<[u8]>> {
    if cause != Cause::Allocations {
        return Vec::new();
    }
    (0..BOXES)
        .map(|index| vec![1_u8; SIZES[index % SIZES.len()] + index].into_boxed_slice())
        .collect()
}
