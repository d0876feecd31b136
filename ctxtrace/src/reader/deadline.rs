//! How long a question to the reading process may take.

use std::os::fd::BorrowedFd;
use std::time::{Duration, Instant};

/// When the wait for an answer ends.
#[derive(Clone, Copy, Debug)]
pub(super) struct Deadline<'a> {
    /// The last moment.
    pub(super) until: Instant,
    /// The time that this was from the question on, for the reason of a failure.
    pub(super) limit: Duration,
    /// The wait ends when this becomes readable, too.
    pub(super) interrupt: Option<BorrowedFd<'a>>,
}

impl<'a> Deadline<'a> {
    /// The end of this time from now on.
    pub(super) fn after(limit: Duration) -> Self {
        Self {
            until: Instant::now() + limit,
            limit,
            interrupt: None,
        }
    }

    /// This moment, or the end of this time from now on if that is earlier.
    pub(super) fn at(until: Instant, most: Duration) -> Self {
        Self::after(until.saturating_duration_since(Instant::now()).min(most))
    }

    /// The same, or when this becomes readable.
    pub(super) fn or_interrupt(self, interrupt: Option<BorrowedFd<'a>>) -> Self {
        Self { interrupt, ..self }
    }
}
