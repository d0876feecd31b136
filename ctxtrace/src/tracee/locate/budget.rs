//! The budget of bytes, entries and time for the examination of one file. All parts of the file share one budget.

use std::cell::Cell;
use std::time::{Duration, Instant};

/// The maximum number of decompressed bytes of all compressed sections together. A section that exceeds it is not read.
const MAX_BYTES: u64 = 1 << 30;
/// The maximum number of DWARF entries that are read, including unit headers; beyond it the search fails. A program of 100 MB has
/// about 20 million entries, of which a few hundred thousand belong to tokio.
const MAX_ENTRIES: u64 = 100_000_000;
/// The maximum time of an examination. It also limits decompression and abbreviation lists, which do not count as entries.
const MAX_TIME: Duration = Duration::from_secs(5);
/// The number of entries between two readings of the clock, which is much slower than reading an entry.
const ENTRIES_BETWEEN_LOOKS: u64 = 1 << 16;

/// The remaining budget of an examination.
#[derive(Debug)]
pub(super) struct ExaminationBudget {
    bytes: Cell<u64>,
    entries: Cell<u64>,
    deadline: Instant,
}

impl ExaminationBudget {
    /// Returns a full budget, whose time starts now.
    pub(super) fn new() -> Self {
        Self {
            bytes: Cell::new(MAX_BYTES),
            entries: Cell::new(MAX_ENTRIES),
            deadline: Instant::now() + MAX_TIME,
        }
    }

    /// Takes `bytes` bytes from the budget. Returns `false`, and takes nothing, if fewer are left.
    pub(super) fn take_bytes(&self, bytes: u64) -> bool {
        let left = self.bytes.get().checked_sub(bytes);
        self.bytes.set(left.unwrap_or_else(|| self.bytes.get()));
        left.is_some()
    }

    /// Takes one entry from the budget. Returns `false` if no entry or no time is left.
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

    /// Whether the time limit has passed.
    pub(super) fn is_out_of_time(&self) -> bool {
        Instant::now() >= self.deadline
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn all_sections_take_their_bytes_from_one_budget() {
        let budget = ExaminationBudget::new();
        assert!(budget.take_bytes(MAX_BYTES / 2));
        assert!(!budget.take_bytes(MAX_BYTES));
        assert!(budget.take_bytes(MAX_BYTES / 2), "a refused request takes nothing");
        assert!(!budget.take_bytes(1));
    }

    #[test]
    fn entries_end() {
        let budget = ExaminationBudget {
            entries: Cell::new(2),
            ..ExaminationBudget::new()
        };
        assert!(budget.take_entry() && budget.take_entry() && !budget.take_entry());
        assert!(budget.is_exhausted());
    }

    #[test]
    fn time_ends() {
        let budget = ExaminationBudget {
            deadline: Instant::now(),
            ..ExaminationBudget::new()
        };
        assert!(budget.is_exhausted() && budget.is_out_of_time());
    }
}
