//! How long a request to the reading process may take.

use std::os::fd::BorrowedFd;
use std::time::{Duration, Instant};

/// When the wait for a reply ends.
#[derive(Clone, Copy, Debug)]
pub(super) struct Deadline<'a> {
    /// The last moment to wait for.
    pub(super) until: Instant,
    /// The time from the request to `until`; used in the reason for a failure.
    pub(super) limit: Duration,
    /// The wait also ends when this descriptor becomes readable.
    pub(super) interrupt: Option<BorrowedFd<'a>>,
}

impl<'a> Deadline<'a> {
    /// A deadline that is `limit` from now.
    pub(super) fn after(limit: Duration) -> Self {
        Self {
            until: Instant::now() + limit,
            limit,
            interrupt: None,
        }
    }

    /// A deadline at `until`, or `most` from now if that is earlier.
    pub(super) fn at(until: Instant, most: Duration) -> Self {
        Self::after(until.saturating_duration_since(Instant::now()).min(most))
    }

    /// The same deadline, which also ends when `interrupt` becomes readable.
    pub(super) fn or_interrupt(self, interrupt: Option<BorrowedFd<'a>>) -> Self {
        Self { interrupt, ..self }
    }
}
