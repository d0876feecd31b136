//! What the players do besides passing messages on. Nothing, unless they are told to: then it is a type of its own, so that
//! the tasks that do nothing are compiled as if there were no scripts.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use super::super::MESSAGE;

/// What each player does with a message. Each has a clone of its own.
pub(super) trait Script: Clone + Send + 'static {
    /// What is sent.
    type Message: Send + 'static;

    /// The sender makes a message.
    fn send(&mut self) -> Self::Message;

    /// The repeater has it.
    fn repeat(&mut self) {}

    /// The receiver has it; whether it is what was sent.
    fn receive(&mut self, message: Self::Message) -> bool;
}

/// Nothing.
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

/// Counts the messages in flight: those that the sender has made and the receiver has not had.
#[derive(Clone, Debug, Default)]
pub(super) struct InFlight(Arc<Counts>);

#[derive(Debug, Default)]
struct Counts {
    now: AtomicU64,
    max: AtomicU64,
}

impl InFlight {
    /// The most there ever were at a time.
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
