//! Percentiles of log-linear histograms.
//!
//! The p-th percentile is the value of rank ⌈p · n⌉ (the "nearest rank" definition). The bucket of that value is known exactly.
//! The result is the midpoint of the bucket, which is within 3.2 % of the true value. The result is clamped to the minimum and
//! maximum, which are exact.

use ctxtrace_common::histogram::{Histogram, lower_bound, upper_bound};

/// Returns the value in nanoseconds such that a share `p` (0 to 1) of the values is not larger. Returns `None` if there are no
/// values.
#[must_use]
pub fn percentile(histogram: &Histogram, p: f64) -> Option<u64> {
    let middle = of_buckets(&histogram.buckets, p)?;
    // In a forged histogram the minimum may be larger than the maximum.
    let least = histogram.min_plus_one_ns.saturating_sub(1);
    Some(middle.max(least).min(histogram.max_ns))
}

/// Like [`percentile`], for buckets without an exact minimum and maximum: returns the midpoint of the bucket. The last bucket may
/// contain all larger values.
#[must_use]
pub fn of_buckets(buckets: &[u64], p: f64) -> Option<u64> {
    let count = buckets.iter().copied().fold(0, u64::saturating_add);
    let rank = ((p * count as f64).ceil() as u64).clamp(1, count.max(1));
    let mut seen = 0;
    let bucket = buckets.iter().position(|&count| {
        seen = u64::saturating_add(seen, count);
        count > 0 && seen >= rank
    })?;
    let low = lower_bound(bucket);
    Some(low + (upper_bound(bucket) - low) / 2)
}

/// Returns the median: for an even number of values, the mean of the two in the middle. Returns `None` if there are no values.
#[must_use]
pub fn median(values: &[f64]) -> Option<f64> {
    let mut values = values.to_vec();
    values.sort_by(f64::total_cmp);
    let upper = *values.get(values.len() / 2)?;
    let lower = values[(values.len() - 1) / 2];
    Some(f64::midpoint(lower, upper))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn histogram(values: impl IntoIterator<Item = u64>) -> Histogram {
        let mut histogram = Histogram::EMPTY;
        for value in values {
            histogram.record(value);
        }
        histogram
    }

    #[test]
    fn the_median_is_in_the_middle() {
        assert_eq!(median(&[]), None);
        assert_eq!(median(&[3.0]), Some(3.0));
        assert_eq!(median(&[9.0, 1.0, 2.0]), Some(2.0));
        assert_eq!(median(&[9.0, 1.0, 2.0, 4.0]), Some(3.0));
    }

    #[test]
    fn nothing_has_no_percentile() {
        assert_eq!(percentile(&Histogram::EMPTY, 0.5), None);
    }

    #[test]
    fn extremes_and_counts_that_contradict_each_other_have_a_percentile() {
        let mut forged = histogram([5, 7]);
        (forged.min_plus_one_ns, forged.max_ns) = (1_000, 3);
        assert_eq!(percentile(&forged, 0.5), Some(3));
        forged.buckets.fill(u64::MAX);
        assert!(percentile(&forged, 1.0).is_some());
    }

    #[test]
    fn one_value_is_every_percentile() {
        let one = histogram([123_456]);
        for p in [0.0, 0.5, 0.999, 1.0] {
            assert_eq!(percentile(&one, p), Some(123_456));
        }
    }

    #[test]
    fn small_values_are_exact() {
        let values = histogram(1..=10);
        assert_eq!(percentile(&values, 0.5), Some(5));
        assert_eq!(percentile(&values, 0.9), Some(9));
        assert_eq!(percentile(&values, 0.91), Some(10));
    }

    #[test]
    fn percentiles_are_within_seven_percent_of_the_true_ones() {
        // A skewed set of values over six orders of magnitude, not in sorted order.
        let mut values: Vec<u64> = (0..20_000_u64)
            .map(|i| 50 + ((i * 7_919) % 20_000).pow(2) / 3)
            .collect();
        let approximate = histogram(values.iter().copied());
        values.sort_unstable();
        for p in [0.5, 0.9, 0.99, 0.999] {
            let truth = values[(p * values.len() as f64).ceil() as usize - 1] as f64;
            let estimate = percentile(&approximate, p).expect("not empty") as f64;
            assert!(
                (estimate - truth).abs() / truth < 0.07,
                "p{p}: {estimate} instead of {truth}"
            );
        }
    }
}
