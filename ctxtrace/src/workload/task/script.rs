//! The scripts: additional work that the tasks do for each message. Each script is a separate type, so that tasks with the script
//! [`Plain`], which does nothing, are compiled as if scripts did not exist.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use super::super::MESSAGE;

/// The work that the tasks do for each message. Each task has its own clone.
pub(super) trait Script: Clone + Send + 'static {
    /// The type of a message.
    type Message: Send + 'static;

    /// Creates a message, in the sender.
    fn send(&mut self) -> Self::Message;

    /// Does the work of the repeater, before it passes a message on.
    fn repeat(&mut self) {}

    /// Takes a message, in the receiver. Returns whether it equals the sent one.
    fn receive(&mut self, message: Self::Message) -> bool;
}

/// The script without any additional work.
#[derive(Clone, Copy, Debug)]
pub(super) struct Plain;

impl Script for Plain {
    type Message = &'static str;

    #[inline(always)]
    fn send(&mut self) -> &'static str {
        MESSAGE
    }

    #[inline(always)]
    fn receive(&mut self, message: &'static str) -> bool {
        message == MESSAGE
    }
}

/// A script that counts the messages in flight, that is, messages that were sent and are not yet received.
#[derive(Clone, Debug, Default)]
pub(super) struct InFlight(Arc<Counts>);

#[derive(Debug, Default)]
struct Counts {
    now: AtomicU64,
    max: AtomicU64,
}

impl InFlight {
    /// The maximum number of messages that were in flight at the same time.
    pub(super) fn max(&self) -> u64 {
        self.0.max.load(Ordering::Relaxed)
    }
}

impl Script for InFlight {
    type Message = &'static str;

    #[inline(always)]
    fn send(&mut self) -> &'static str {
        let now = self.0.now.fetch_add(1, Ordering::Relaxed) + 1;
        self.0.max.fetch_max(now, Ordering::Relaxed);
        Plain.send()
    }

    #[inline(always)]
    fn receive(&mut self, message: &'static str) -> bool {
        self.0.now.fetch_sub(1, Ordering::Relaxed);
        Plain.receive(message)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_most_in_flight_is_kept() {
        let counts = InFlight::default();
        let (mut sender, mut receiver) = (counts.clone(), counts.clone());
        for _ in 0..3 {
            sender.send();
        }
        assert!(receiver.receive(MESSAGE));
        sender.send();
        assert!(!receiver.receive("jim0"));
        assert_eq!(counts.max(), 3);
    }
}
