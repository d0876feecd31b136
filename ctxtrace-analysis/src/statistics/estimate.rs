//! Estimates of a figure with a confidence interval, computed from the runs of several blocks.

use serde::{Deserialize, Serialize};

use super::signed_rank::{averages, outside};
use crate::units::Scale;

/// An estimate of a figure with its confidence interval.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize, schemars::JsonSchema)]
pub struct Estimate {
    /// The estimate.
    pub value: f64,
    /// Lower end of the confidence interval. Null if there are too few blocks for an interval.
    pub low: Option<f64>,
    /// Upper end of the confidence interval. Null if there are too few blocks for an interval.
    pub high: Option<f64>,
    /// Probability that the interval contains the true value, 0 to 1.
    pub confidence: f64,
}

impl Estimate {
    /// Whether the whole interval is above `bound`. False if the interval has no lower end.
    #[must_use]
    pub fn is_above(&self, bound: f64) -> bool {
        self.low.is_some_and(|low| low > bound)
    }

    /// Whether the whole interval is below `bound`. False if the interval has no upper end.
    #[must_use]
    pub fn is_below(&self, bound: f64) -> bool {
        self.high.is_some_and(|high| high < bound)
    }

    /// Returns half the width of the interval. Infinite if the interval has no ends.
    #[must_use]
    pub fn half_width(&self) -> f64 {
        match (self.low, self.high) {
            (Some(low), Some(high)) => (high - low) / 2.0,
            _ => f64::INFINITY,
        }
    }

    /// Returns the absolute value, with the interval mirrored if necessary. For estimates whose interval excludes 0.
    #[must_use]
    pub fn magnitude(&self) -> Self {
        if self.value >= 0.0 {
            return *self;
        }
        Self {
            value: -self.value,
            low: self.high.map(|high| -high),
            high: self.low.map(|low| -low),
            confidence: self.confidence,
        }
    }

    /// Formats the value and its interval for people: `12.0 ± 3.0`, or `12.0 (2.5 to 15.0)` if the value is not near the middle
    /// of the interval.
    #[must_use]
    pub fn plus_minus(&self, digits: usize) -> String {
        // Adding 0.0 turns -0.0 into 0.0, so that a value that rounds to 0 is printed without a sign.
        let number = |value: f64| {
            let unit = 10_f64.powi(digits as i32);
            format!("{:.digits$}", (value * unit).round() / unit + 0.0)
        };
        let (Some(low), Some(high)) = (self.low, self.high) else {
            return format!("{} (too few runs for an interval)", number(self.value));
        };
        let half = self.half_width();
        if (f64::midpoint(low, high) - self.value).abs() <= 0.2 * half {
            format!("{} ± {}", number(self.value), number(half))
        } else {
            format!("{} ({} to {})", number(self.value), number(low), number(high))
        }
    }

    /// Formats a time in nanoseconds in the unit `scale`, without the symbol of the unit.
    #[must_use]
    pub fn in_unit(&self, scale: Scale) -> String {
        self.times(1.0 / scale.ns).plus_minus(1)
    }

    /// Formats a share as a percentage.
    #[must_use]
    pub fn percent(&self) -> String {
        let percent = self.times(100.0).plus_minus(0);
        match percent.split_once(" (") {
            Some((value, interval)) => format!("{value} % ({interval}"),
            None => format!("{percent} %"),
        }
    }

    /// Returns the estimate in another unit: every number multiplied by `factor`, which must be positive.
    #[must_use]
    pub fn times(&self, factor: f64) -> Self {
        Self {
            value: self.value * factor,
            low: self.low.map(|low| low * factor),
            high: self.high.map(|high| high * factor),
            confidence: self.confidence,
        }
    }
}

/// Returns the centre of the values: the median of their Walsh averages (J. L. Hodges and E. L. Lehmann, "Estimates of location
/// based on rank tests", 1963). Returns `None` if there are no values, or if a value is not finite.
#[must_use]
pub fn centre(values: &[f64], confidence: f64) -> Option<Estimate> {
    share(values, &vec![1.0; values.len()], confidence)
}

/// Returns the share of the gap that a change removes: 0 is nothing, 1 is all of it. For each block, `taken` has the amount by
/// which the change made the gap smaller, and `gaps` has the gap without the change.
///
/// The share is the s for which the values `taken` - s * `gaps` are centred on zero. The interval contains every s that the
/// signed ranks do not reject (the method of E. C. Fieller, "Some problems in interval estimation", 1954, with ranks in place of
/// the normal distribution). Returns `None` if there are no blocks, if a number is not finite, or if the gaps are so uncertain
/// that no more than half of the pairs of blocks have a positive gap.
#[must_use]
pub fn share(taken: &[f64], gaps: &[f64], confidence: f64) -> Option<Estimate> {
    let n = taken.len();
    if n == 0 || gaps.len() != n || !taken.iter().chain(gaps).all(|value| value.is_finite()) {
        return None;
    }
    // A pair of blocks is evidence against all s on one side of its quotient. A pair whose gap is not positive is evidence
    // against neither side.
    let mut quotients = Vec::with_capacity(averages(n));
    let mut undecided = 0;
    for first in 0..n {
        for second in first..n {
            let gap = gaps[first] + gaps[second];
            if gap > 0.0 {
                quotients.push((taken[first] + taken[second]) / gap);
            } else {
                undecided += 1;
            }
        }
    }
    if quotients.len() <= undecided {
        return None;
    }
    quotients.sort_unstable_by(f64::total_cmp);
    let count = quotients.len();
    let value = f64::midpoint(quotients[(count - 1) / 2], quotients[count / 2]);
    // At each end, the undecided pairs are counted as lying outside the interval.
    let skipped = outside(n, confidence).and_then(|outside| outside.checked_sub(undecided));
    let ends = skipped.filter(|&skipped| 2 * skipped < count);
    Some(Estimate {
        value,
        low: ends.map(|skipped| quotients[skipped]),
        high: ends.map(|skipped| quotients[count - 1 - skipped]),
        confidence,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// Returns noise as it is in real runs: mostly small, and large in one of ten runs, as when a run is disturbed.
    fn noise(random: &mut fastrand::Rng) -> f64 {
        let small = (0..6).map(|_| random.f64() - 0.5).sum::<f64>();
        if random.u8(0..10) == 0 { 8.0 * small } else { small }
    }

    #[test]
    fn the_interval_contains_the_truth_as_often_as_it_says() {
        let mut random = fastrand::Rng::with_seed(7);
        for blocks in [9, 15, 25] {
            for truth in [0.0, 0.5, 1.0] {
                let (mut centres, mut shares) = (0, 0);
                const TRIES: u32 = 600;
                for _ in 0..TRIES {
                    let gaps: Vec<f64> = (0..blocks).map(|_| 20.0 + noise(&mut random)).collect();
                    // The remaining gap has noise of its own.
                    let taken: Vec<f64> = gaps
                        .iter()
                        .map(|gap| gap - (20.0 * (1.0 - truth) + noise(&mut random)))
                        .collect();
                    let contains = |estimate: Option<Estimate>, truth: f64| {
                        let estimate = estimate.expect("there are blocks");
                        u32::from(!estimate.is_above(truth) && !estimate.is_below(truth))
                    };
                    centres += contains(centre(&gaps, 0.95), 20.0);
                    shares += contains(share(&taken, &gaps, 0.95), truth);
                }
                for covered in [centres, shares] {
                    let covered = f64::from(covered) / f64::from(TRIES);
                    assert!((0.925..=0.995).contains(&covered), "{blocks} {truth}: {covered}");
                }
            }
        }
    }

    #[test]
    fn fifteen_values_have_the_interval_of_the_tables() {
        let values: Vec<f64> = (1..=15).map(f64::from).collect();
        let mut averages: Vec<f64> = Vec::new();
        for first in 0..15 {
            for second in first..15 {
                averages.push((values[first] + values[second]) / 2.0);
            }
        }
        averages.sort_unstable_by(f64::total_cmp);
        let estimate = centre(&values, 0.95).expect("values");
        assert_eq!(
            (estimate.value, estimate.low, estimate.high),
            (8.0, Some(averages[25]), Some(averages[94]))
        );
    }

    #[test]
    fn an_asymmetric_interval_is_printed_as_a_range() {
        let estimate = |low, high| Estimate {
            value: 0.12,
            low,
            high,
            confidence: 0.99,
        };
        assert_eq!(estimate(Some(0.09), Some(0.15)).percent(), "12 ± 3 %");
        assert_eq!(estimate(Some(0.02), Some(0.15)).percent(), "12 % (2 to 15)");
        assert_eq!(
            estimate(None, Some(0.15)).percent(),
            "12 % (too few runs for an interval)"
        );
        assert_eq!(estimate(Some(0.02), Some(0.15)).plus_minus(2), "0.12 (0.02 to 0.15)");
        assert_eq!(estimate(Some(-0.001), Some(0.15)).plus_minus(1), "0.1 (0.0 to 0.2)");
    }

    #[test]
    fn too_few_values_have_no_interval() {
        assert_eq!(centre(&[], 0.95), None);
        assert_eq!(centre(&[1.0, f64::NAN], 0.95), None);
        let few = centre(&[1.0, 2.0, 3.0], 0.95).expect("values");
        assert_eq!((few.value, few.low, few.high), (2.0, None, None));
        assert!(few.half_width().is_infinite() && !few.is_above(-1e9) && !few.is_below(1e9));
        // Without a gap there is no share of it.
        assert_eq!(share(&[1.0; 8], &[-1.0; 8], 0.95), None);
        let unclear =
            share(&[0.5; 8], &[1.0, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0, -9.0], 0.95).expect("most pairs have a gap");
        assert_eq!(unclear.low, None);
    }

    proptest! {
        #[test]
        fn an_estimate_lies_in_its_interval_and_moves_with_the_values(
            values in prop::collection::vec(-1e6..1e6_f64, 1..40),
            by in -1e6..1e6_f64,
        ) {
            let estimate = centre(&values, 0.9).expect("values");
            if let (Some(low), Some(high)) = (estimate.low, estimate.high) {
                prop_assert!(low <= estimate.value && estimate.value <= high);
            }
            let moved: Vec<f64> = values.iter().rev().map(|value| value + by).collect();
            let moved = centre(&moved, 0.9).expect("values");
            prop_assert!((moved.value - estimate.value - by).abs() < 1e-3);
            prop_assert_eq!(moved.low.is_some(), estimate.low.is_some());
        }
    }
}
