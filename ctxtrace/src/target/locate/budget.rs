//! How many bytes, entries and seconds one examination of a file may take: one budget for everything in the file.

use std::cell::Cell;
use std::time::{Duration, Instant};

/// Most bytes of all sections together once decompressed. What is beyond them is not read.
const MAX_BYTES: u64 = 1 << 30;
/// Most entries read, the headers of units included. A program of 100 MB has some 20 million in all, and a few hundred thousand
/// of tokio's.
const MAX_ENTRIES: u64 = 100_000_000;
/// Most time spent: neither decompression nor the lists of abbreviations are counted in entries.
const MAX_TIME: Duration = Duration::from_secs(5);
/// Entries between two looks at the clock, which cost as much as many entries.
const ENTRIES_BETWEEN_LOOKS: u64 = 1 << 16;

/// What is left of it.
#[derive(Debug)]
pub(super) struct Budget {
    bytes: Cell<u64>,
    entries: Cell<u64>,
    deadline: Instant,
}

impl Budget {
    /// All of it.
    pub(super) fn new() -> Self {
        Self {
            bytes: Cell::new(MAX_BYTES),
            entries: Cell::new(MAX_ENTRIES),
            deadline: Instant::now() + MAX_TIME,
        }
    }

    /// Takes so many bytes out of the budget; `false` if they are not in it.
    pub(super) fn take_bytes(&self, bytes: u64) -> bool {
        let left = self.bytes.get().checked_sub(bytes);
        self.bytes.set(left.unwrap_or_else(|| self.bytes.get()));
        left.is_some()
    }

    /// Takes one entry out of the budget; `false` if there is none left, or no time.
    pub(super) fn take_entry(&self) -> bool {
        let left = self.entries.get();
        if left == 0 || left.is_multiple_of(ENTRIES_BETWEEN_LOOKS) && self.is_out_of_time() {
            return false;
        }
        self.entries.set(left - 1);
        true
    }

    /// Whether no further entry may be read.
    pub(super) fn is_exhausted(&self) -> bool {
        self.entries.get() == 0 || self.is_out_of_time()
    }

    /// Whether the time is over.
    pub(super) fn is_out_of_time(&self) -> bool {
        Instant::now() >= self.deadline
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn all_sections_take_their_bytes_from_one_budget() {
        let budget = Budget::new();
        assert!(budget.take_bytes(MAX_BYTES / 2));
        assert!(!budget.take_bytes(MAX_BYTES));
        assert!(budget.take_bytes(MAX_BYTES / 2), "what was refused was not taken");
        assert!(!budget.take_bytes(1));
    }

    #[test]
    fn entries_end() {
        let budget = Budget {
            entries: Cell::new(2),
            ..Budget::new()
        };
        assert!(budget.take_entry() && budget.take_entry() && !budget.take_entry());
        assert!(budget.is_exhausted());
    }

    #[test]
    fn time_ends() {
        let budget = Budget {
            deadline: Instant::now(),
            ..Budget::new()
        };
        assert!(budget.is_exhausted() && budget.is_out_of_time());
    }
}
