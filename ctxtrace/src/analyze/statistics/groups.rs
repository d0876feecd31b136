//! Do runs fall into two groups instead of one? Then each has a figure of its own, and what lies between them is nobody's.

use serde::Serialize;

use crate::analyze::percentile::median;

/// Runs that belong together.
#[derive(Clone, Debug, PartialEq, Serialize, schemars::JsonSchema)]
pub struct Group {
    /// The one in the middle.
    pub median: f64,
    /// The smallest.
    pub low: f64,
    /// The largest.
    pub high: f64,
    /// How many there are.
    pub runs: usize,
    /// Of all, 0 to 1.
    pub share: f64,
}

/// The fewest runs of which two groups are told apart.
const LEAST_RUNS: usize = 10;
/// What the smaller group must have of them.
const LEAST_SHARE: f64 = 0.15;
/// How many times the mean distance between neighbours within the groups the distance between the groups must be.
const EMPTY: f64 = 8.0;

/// The groups, smaller values first: one or two; none of no values.
///
/// Two are told apart only where there is an empty stretch between them, wider than the spread of both groups together and much wider than
/// the distances in them, and neither is a handful of outliers. Samples of one distribution, skewed or heavy-tailed, are
/// called two in about one of fifty cases at most (tested with drawn samples).
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

/// Where to split sorted values, if anywhere.
fn widest(sorted: &[f64]) -> Option<usize> {
    let count = sorted.len();
    if count < LEAST_RUNS || !sorted.iter().all(|value| value.is_finite()) {
        return None;
    }
    let least = ((LEAST_SHARE * count as f64).ceil() as usize).max(2);
    let gap = |at: usize| sorted[at] - sorted[at - 1];
    let at = (least..=count - least).max_by(|&one, &other| gap(one).total_cmp(&gap(other)))?;
    let (lower, upper) = sorted.split_at(at);
    // The outermost of each group may be an outlier, which says nothing about the group.
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

    /// How many of a thousand samples are taken for two groups.
    fn told_apart(runs: usize, draw: impl Fn(&mut fastrand::Rng) -> f64) -> usize {
        let mut random = fastrand::Rng::with_seed(42);
        let sample = |_| groups(&(0..runs).map(|_| draw(&mut random)).collect::<Vec<_>>()).len();
        (0..1_000).map(sample).filter(|&count| count == 2).count()
    }

    #[test]
    fn one_group_is_seldom_taken_for_two() {
        for runs in [15, 20, 30, 60] {
            let of = [
                told_apart(runs, normal),
                told_apart(runs, |random| (0.3 * normal(random)).exp()),
                told_apart(runs, |random| 1.0 - 0.1 * (1.0 - random.f64()).ln()),
                told_apart(runs, fastrand::Rng::f64),
            ];
            assert!(of.iter().all(|&of| of <= 20), "{runs}: {of:?}");
        }
    }

    #[test]
    fn two_groups_are_told_apart() {
        for runs in [20, 30, 60] {
            let of = [
                told_apart(runs, |random| {
                    let slow = random.f64() < 0.4;
                    if slow {
                        150.0 + 4.0 * normal(random)
                    } else {
                        100.0 + 3.0 * normal(random)
                    }
                }),
                told_apart(runs, |random| {
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
