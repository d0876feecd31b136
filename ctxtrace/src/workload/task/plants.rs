//! Causes of slowness, planted to be found: see [`Plant`](super::super::Plant).

use std::sync::{Arc, Mutex, PoisonError};
use std::thread;
use std::time::Duration;

use super::super::MESSAGE;
use super::script::{Plain, Script};

/// How long a player blocks its thread.
const SLEEP: Duration = Duration::from_micros(50);
/// Messages from one such sleep to the next.
const SLEEP_EVERY: u64 = 1_000;
/// Rounds of work with the lock held: about a microsecond.
const ROUNDS: u32 = 500;
/// What a message brings along: so many boxes, of these sizes and a little more each time.
const BOXES: usize = 32;
const SIZES: [usize; 4] = [24, 100, 400, 1_600];

/// Every player takes a lock for each message, and works while it has it: all the same one, or each its own.
#[derive(Debug)]
pub(super) struct Locking {
    lock: Arc<Mutex<u64>>,
    shared: bool,
}

impl Locking {
    /// The players are clones of this.
    pub(super) fn of(shared: bool) -> Self {
        Self {
            // The work is a xorshift, which needs something other than 0 to begin with.
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
            Self::of(false)
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

/// The repeater blocks its thread now and then.
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

/// Every message brings boxes along, which the sender makes and the receiver frees.
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
