//! The scripts that make a workload slow on purpose; [`Plant`](super::super::Plant) lists them.

use std::sync::{Arc, Mutex, PoisonError};
use std::thread;
use std::time::Duration;

use super::super::MESSAGE;
use super::script::{Plain, Script};

/// How long [`Dozing`] blocks its thread.
const SLEEP: Duration = Duration::from_micros(50);
/// The number of messages between two sleeps of [`Dozing`].
const SLEEP_EVERY: u64 = 1_000;
/// The rounds of work that [`Locking`] does while it holds the lock; together they take about a microsecond.
const ROUNDS: u32 = 500;
/// The number of boxes that each message of [`Hoarding`] contains.
const BOXES: usize = 32;
/// The sizes of the boxes in bytes, used in turn. The index of a box is added to its size, so that all sizes differ.
const SIZES: [usize; 4] = [24, 100, 400, 1_600];

/// A script in which every task takes a lock for each message and works while it holds it. The tasks share one lock, or each
/// has its own.
#[derive(Debug)]
pub(super) struct Locking {
    lock: Arc<Mutex<u64>>,
    shared: bool,
}

impl Locking {
    /// Creates the script that is cloned for each task. If `shared`, the clones share the lock.
    pub(super) fn new(shared: bool) -> Self {
        Self {
            // The work is a xorshift generator, whose state must not be 0.
            lock: Arc::new(Mutex::new(1)),
            shared,
        }
    }
}

impl Clone for Locking {
    fn clone(&self) -> Self {
        if self.shared {
            Self {
                lock: self.lock.clone(),
                shared: true,
            }
        } else {
            Self::new(false)
        }
    }
}

impl Locking {
    #[inline(never)]
    fn work(&self) {
        let mut state = self.lock.lock().unwrap_or_else(PoisonError::into_inner);
        for _ in 0..ROUNDS {
            *state ^= *state << 13;
            *state ^= *state >> 7;
            *state ^= *state << 17;
        }
    }
}

impl Script for Locking {
    type Message = &'static str;

    fn send(&mut self) -> &'static str {
        self.work();
        Plain.send()
    }

    fn repeat(&mut self) {
        self.work();
    }

    fn receive(&mut self, message: &'static str) -> bool {
        self.work();
        Plain.receive(message)
    }
}

/// A script in which the repeater blocks its thread for [`SLEEP`] at every [`SLEEP_EVERY`]th message.
#[derive(Clone, Debug, Default)]
pub(super) struct Dozing {
    repeated: u64,
}

impl Script for Dozing {
    type Message = &'static str;

    fn send(&mut self) -> &'static str {
        Plain.send()
    }

    fn repeat(&mut self) {
        self.repeated += 1;
        if self.repeated.is_multiple_of(SLEEP_EVERY) {
            thread::sleep(SLEEP);
        }
    }

    fn receive(&mut self, message: &'static str) -> bool {
        Plain.receive(message)
    }
}

/// A script in which every message contains boxes, which the sender allocates and the receiver frees.
#[derive(Clone, Copy, Debug)]
pub(super) struct Hoarding;

/// A message with its boxes.
#[derive(Debug)]
pub(super) struct Laden {
    text: &'static str,
    boxes: Vec<Box<[u8]>>,
}

impl Script for Hoarding {
    type Message = Laden;

    fn send(&mut self) -> Laden {
        let one = |index: usize| vec![1; SIZES[index % SIZES.len()] + index].into_boxed_slice();
        Laden {
            text: MESSAGE,
            boxes: (0..BOXES).map(one).collect(),
        }
    }

    fn receive(&mut self, message: Laden) -> bool {
        message.text == MESSAGE && message.boxes.len() == BOXES
    }
}
