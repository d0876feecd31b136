//! Wilcoxon's signed ranks: confidence intervals from pairs, for any distribution (F. Wilcoxon, "Individual comparisons by
//! ranking methods", 1945; M. Hollander and D. A. Wolfe, "Nonparametric Statistical Methods", chapter 3).
//!
//! Take n differences that are distributed symmetrically around a centre. The Walsh averages are the means of all pairs of
//! differences, including each difference paired with itself. The number of Walsh averages above the centre has an exactly known
//! distribution. The k-th smallest and the k-th largest Walsh average bound the centre with the confidence that this distribution
//! gives to k.

/// Returns the number of Walsh averages of `n` values.
#[must_use]
pub fn averages(n: usize) -> usize {
    n * (n + 1) / 2
}

/// Returns how many of the sorted Walsh averages of `n` differences lie outside the interval at each end, for at least this
/// two-sided confidence. With the result k, the interval goes from the average at index k to the one at the same distance from
/// the end. Returns `None` if even the interval of all averages does not have this confidence.
#[must_use]
pub fn outside(n: usize, confidence: f64) -> Option<usize> {
    let tail = (1.0 - confidence) / 2.0;
    // P(statistic <= outside) <= tail.
    let mut below = 0.0;
    let mut count = None;
    for (statistic, probability) in distribution(n).into_iter().enumerate() {
        below += probability;
        if below > tail {
            break;
        }
        count = Some(statistic);
    }
    count
}

/// Returns the probability of each possible sum of the ranks of the positive differences among `n`, if both signs are equally
/// likely.
fn distribution(n: usize) -> Vec<f64> {
    let mut probability = vec![0.0; averages(n) + 1];
    probability[0] = 1.0;
    for rank in 1..=n {
        for sum in (0..=averages(rank)).rev() {
            let with = if sum >= rank { probability[sum - rank] } else { 0.0 };
            probability[sum] = (probability[sum] + with) / 2.0;
        }
    }
    probability
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Critical values as in published tables: the largest T with P(statistic <= T) <= alpha / 2.
    #[test]
    fn the_published_tables_are_met() {
        for (n, confidence, critical) in [
            (5, 0.95, None),
            (6, 0.95, Some(0)),
            (8, 0.95, Some(3)),
            (10, 0.95, Some(8)),
            (15, 0.95, Some(25)),
            (20, 0.95, Some(52)),
            (25, 0.95, Some(89)),
            (30, 0.95, Some(137)),
            (50, 0.95, Some(434)),
            (100, 0.95, Some(1955)),
            (7, 0.99, None),
            (10, 0.99, Some(3)),
            (15, 0.99, Some(15)),
            (30, 0.99, Some(109)),
        ] {
            assert_eq!(outside(n, confidence), critical, "{n} {confidence}");
        }
    }
}
