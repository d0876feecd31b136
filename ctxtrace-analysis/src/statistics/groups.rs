//! Determines whether runs fall into two groups. If they do, each group has a figure of its own, because no run is near the mean
//! of all runs.

use serde::{Deserialize, Serialize};

use crate::percentile::median;

/// Runs whose results are close together.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, schemars::JsonSchema)]
pub struct Group {
    /// Median of the group.
    pub median: f64,
    /// Smallest value in the group.
    pub low: f64,
    /// Largest value in the group.
    pub high: f64,
    /// Number of runs in the group.
    pub runs: usize,
    /// Share of all runs that is in the group, 0 to 1.
    pub share: f64,
}

/// With fewer runs than this, all runs are one group.
const LEAST_RUNS: usize = 10;
/// The smaller group must have at least this share of the runs, 0 to 1.
const LEAST_SHARE: f64 = 0.15;
/// The gap between the groups must be more than this many times the mean distance between neighbouring values within the groups.
const EMPTY: f64 = 8.0;

/// Returns the groups, the group with the smaller values first: one or two groups, or none if there are no values.
///
/// The values are split only if there is a gap between the groups that is wider than the spread of both groups together and much
/// wider than the distances within them, and if neither group is just a few outliers. Samples of one distribution, including
/// skewed and heavy-tailed ones, are split in at most about one of fifty cases (tested with random samples).
#[must_use]
pub fn groups(values: &[f64]) -> Vec<Group> {
    let mut sorted = values.to_vec();
    sorted.sort_unstable_by(f64::total_cmp);
    match widest(&sorted) {
        Some(at) => [&sorted[..at], &sorted[at..]]
            .map(|part| group(part, values.len()))
            .to_vec(),
        None if sorted.is_empty() => Vec::new(),
        None => vec![group(&sorted, values.len())],
    }
}

/// Returns the index at which to split sorted values, if they are to be split.
fn widest(sorted: &[f64]) -> Option<usize> {
    let count = sorted.len();
    if count < LEAST_RUNS || !sorted.iter().all(|value| value.is_finite()) {
        return None;
    }
    let least = ((LEAST_SHARE * count as f64).ceil() as usize).max(2);
    let gap = |at: usize| sorted[at] - sorted[at - 1];
    let at = (least..=count - least).max_by(|&one, &other| gap(one).total_cmp(&gap(other)))?;
    let (lower, upper) = sorted.split_at(at);
    // The outermost values of each group may be outliers, so they are left out.
    let spread = |part: &[f64]| {
        let trim = part.len() / 8;
        part[part.len() - 1 - trim] - part[trim]
    };
    let within = spread(lower) + spread(upper);
    let neighbours = within / (count - 2 - 2 * (lower.len() / 8) - 2 * (upper.len() / 8)).max(1) as f64;
    let is_split = gap(at) > EMPTY * neighbours && gap(at) > within;
    (is_split && gap(at) > 0.0).then_some(at)
}

fn group(part: &[f64], of: usize) -> Group {
    Group {
        median: median(part).unwrap_or(f64::NAN),
        low: part[0],
        high: part[part.len() - 1],
        runs: part.len(),
        share: part.len() as f64 / of as f64,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn normal(random: &mut fastrand::Rng) -> f64 {
        (0..12).map(|_| random.f64()).sum::<f64>() - 6.0
    }

    /// Returns how many of a thousand samples are split into two groups.
    fn samples_split(runs: usize, draw: impl Fn(&mut fastrand::Rng) -> f64) -> usize {
        let mut random = fastrand::Rng::with_seed(42);
        let sample = |_| groups(&(0..runs).map(|_| draw(&mut random)).collect::<Vec<_>>()).len();
        (0..1_000).map(sample).filter(|&count| count == 2).count()
    }

    #[test]
    fn one_group_is_seldom_taken_for_two() {
        for runs in [15, 20, 30, 60] {
            let of = [
                samples_split(runs, normal),
                samples_split(runs, |random| (0.3 * normal(random)).exp()),
                samples_split(runs, |random| 1.0 - 0.1 * (1.0 - random.f64()).ln()),
                samples_split(runs, fastrand::Rng::f64),
            ];
            assert!(of.iter().all(|&of| of <= 20), "{runs}: {of:?}");
        }
    }

    #[test]
    fn two_groups_are_detected() {
        for runs in [20, 30, 60] {
            let of = [
                samples_split(runs, |random| {
                    let slow = random.f64() < 0.4;
                    if slow {
                        150.0 + 4.0 * normal(random)
                    } else {
                        100.0 + 3.0 * normal(random)
                    }
                }),
                samples_split(runs, |random| {
                    let slow = random.f64() < 0.35;
                    (if slow { 1.5 } else { 1.0 }) + 0.03 * normal(random)
                }),
            ];
            assert!(of.iter().all(|&of| of >= 900), "{runs}: {of:?}");
        }
        let apart = groups(&[1.0, 1.1, 1.2, 9.0, 9.1, 1.0, 1.1, 1.2, 9.2, 1.0]);
        assert_eq!(apart.iter().map(|group| group.runs).collect::<Vec<_>>(), [7, 3]);
        assert!((apart[1].median - 9.1).abs() < 1e-9 && (apart[1].share - 0.3).abs() < 1e-9);
    }

    #[test]
    fn hostile_values_do_no_harm() {
        assert!(groups(&[]).is_empty());
        for values in [
            vec![1.0],
            vec![2.0; 30],
            vec![f64::NAN; 12],
            [vec![0.0; 6], vec![f64::INFINITY; 6]].concat(),
        ] {
            assert_eq!(groups(&values).len(), 1);
        }
    }
}
