//! Confidence intervals that hold simultaneously.
//!
//! Of twenty intervals at 95 %, one is expected not to contain the true value. If each of several figures may become a claim,
//! each interval is widened so that with 95 % confidence all of them hold (Bonferroni). Methods that use the order of p-values,
//! such as Holm's, give sharper decisions but no intervals, and intervals are needed for the report.

use super::signed_rank;

/// Returns the confidence that each of `count` intervals must have, so that all of them hold simultaneously with `confidence`.
#[must_use]
pub fn each(confidence: f64, count: usize) -> f64 {
    1.0 - (1.0 - confidence) / count.max(1) as f64
}

/// Returns the smallest number of blocks for which an interval of this confidence has ends.
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
