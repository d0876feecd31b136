//! Percentiles out of log-linear histograms.
//!
//! The p-th percentile is the value of rank ⌈p · n⌉ (the "nearest rank" definition). Its bucket is known exactly; of the
//! bucket the midpoint is told, which is within 3.2 % of the true value, and never outside the extremes, which are exact.

use ctxtrace_common::histogram::{Histogram, lower_bound, upper_bound};

/// The value below or at which a share `p` (0 to 1) of the values lies, in nanoseconds; `None` if there are no values.
#[must_use]
pub fn percentile(histogram: &Histogram, p: f64) -> Option<u64> {
    let middle = of_buckets(&histogram.buckets, p)?;
    // Of a histogram that was made up the least may be more than the most.
    let least = histogram.min_plus_one_ns.saturating_sub(1);
    Some(middle.max(least).min(histogram.max_ns))
}

/// The same of log-linear buckets alone, of which the last one may hold everything beyond; a bucket's midpoint.
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

/// The median of some values, of an even number the mean of the two in the middle; `None` if there are none.
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
        let mut made_up = histogram([5, 7]);
        (made_up.min_plus_one_ns, made_up.max_ns) = (1_000, 3);
        assert_eq!(percentile(&made_up, 0.5), Some(3));
        made_up.buckets.fill(u64::MAX);
        assert!(percentile(&made_up, 1.0).is_some());
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
        // A skewed set over six orders of magnitude, in a scrambled order.
        let mut values: Vec<u64> = (0..20_000_u64)
            .map(|i| 50 + ((i * 7_919) % 20_000).pow(2) / 3)
            .collect();
        let approximate = histogram(values.iter().copied());
        values.sort_unstable();
        for p in [0.5, 0.9, 0.99, 0.999] {
            let truth = values[(p * values.len() as f64).ceil() as usize - 1] as f64;
            let told = percentile(&approximate, p).expect("not empty") as f64;
            assert!((told - truth).abs() / truth < 0.07, "p{p}: {told} for {truth}");
        }
    }
}
