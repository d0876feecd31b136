//! Intervals that hold all at once.
//!
//! Of twenty intervals at 95 % one may be expected to be wrong. Where each of several figures could become a claim, each
//! interval is made wider so that with 95 % all of them hold (Bonferroni). Methods that go by the order of p-values, like
//! Holm's, are sharper for decisions but give no intervals, and it is intervals that are told.

use super::signed_rank;

/// The confidence that each of `count` intervals needs, so that all of them hold together with `confidence`.
#[must_use]
pub fn each(confidence: f64, count: usize) -> f64 {
    1.0 - (1.0 - confidence) / count.max(1) as f64
}

/// The fewest blocks from which an interval of this confidence has ends.
#[must_use]
pub fn blocks_needed(confidence: f64) -> usize {
    (1..)
        .find(|&blocks| signed_rank::outside(blocks, confidence).is_some())
        .unwrap_or(usize::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn more_intervals_need_more_confidence_and_more_blocks() {
        assert!((each(0.95, 1) - 0.95).abs() < 1e-12);
        assert!((each(0.95, 10) - 0.995).abs() < 1e-12);
        assert_eq!((blocks_needed(0.95), blocks_needed(0.995)), (6, 9));
    }
}
