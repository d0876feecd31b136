//! Saturating sums, for numbers that may come from a forged capture: a sum stops at `u64::MAX` instead of overflowing.

use std::borrow::Borrow;

/// Adds `more` to `sum`, up to `u64::MAX`.
pub fn add(sum: &mut u64, more: u64) {
    *sum = sum.saturating_add(more);
}

/// Adds a saturating sum to iterators of `u64`.
pub trait SaturatingSum: Iterator {
    /// Returns the sum of the items, at most `u64::MAX`.
    fn saturating_sum(self) -> u64;
}

impl<I> SaturatingSum for I
where
    I: Iterator,
    I::Item: Borrow<u64>,
{
    fn saturating_sum(self) -> u64 {
        self.fold(0, |sum, more| sum.saturating_add(*more.borrow()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_sum_stops_at_the_largest_number() {
        assert_eq!([1, 2].iter().saturating_sum(), 3);
        assert_eq!([u64::MAX, 2].into_iter().saturating_sum(), u64::MAX);
    }
}
