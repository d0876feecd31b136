//! Statistics of a few measurements: quartiles, and comparisons of two rows round by round.

use std::fmt;

use serde_json::{Value, json};

/// Returns the quantile `q` (0 to 1) of some values, which is one of the values. Returns NaN if there are none.
pub(crate) fn quantile(values: &[f64], q: f64) -> f64 {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    let last = sorted.len().saturating_sub(1);
    sorted
        .get((last as f64 * q).round() as usize)
        .copied()
        .unwrap_or(f64::NAN)
}

/// The median and the quartiles of some measurements.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct ValueSpread {
    pub(crate) median: f64,
    pub(crate) lower: f64,
    pub(crate) upper: f64,
}

impl ValueSpread {
    /// Computes the spread of some values, or `None` if there are none.
    pub(crate) fn from_values(values: &[f64]) -> Option<Self> {
        (!values.is_empty()).then(|| Self {
            median: quantile(values, 0.5),
            lower: quantile(values, 0.25),
            upper: quantile(values, 0.75),
        })
    }

    /// Returns the JSON object. A value that is not finite is null.
    pub(crate) fn to_json(self) -> Value {
        json!({"median": self.median, "lower_quartile": self.lower, "upper_quartile": self.upper})
    }
}

/// Formats the spread as `1.02 (1.01 to 1.05)`. The precision of the format is the number of decimals, by default 2.
impl fmt::Display for ValueSpread {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let decimals = f.precision().unwrap_or(2);
        let Self { median, lower, upper } = self;
        write!(f, "{median:.decimals$} ({lower:.decimals$} to {upper:.decimals$})")
    }
}

/// Returns the differences of two rows, `subject` minus `base`, round by round.
pub(crate) fn differences(subject: &[f64], base: &[f64]) -> Vec<f64> {
    subject.iter().zip(base).map(|(subject, base)| subject - base).collect()
}

/// Returns the ratios of two rows, `subject` divided by `base`, round by round. If the base of a round is not above zero, because
/// its noise exceeds its cost, the ratio is infinite, so that the round counts against the subject.
pub(crate) fn ratios(subject: &[f64], base: &[f64]) -> Vec<f64> {
    let ratio = |(subject, base): (&f64, &f64)| if *base > 0.0 { subject / base } else { f64::INFINITY };
    subject.iter().zip(base).map(ratio).collect()
}

/// Formats a number as `12,345`.
pub(crate) fn thousands(number: u64) -> String {
    let digits = number.to_string();
    let mut text = String::new();
    for (index, digit) in digits.chars().enumerate() {
        if index > 0 && (digits.len() - index).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

/// Formats a size as `9.6 MB`.
pub(crate) fn megabytes(bytes: u64) -> String {
    format!("{:.1} MB", bytes as f64 / 1e6)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quantiles_are_values_that_occurred() {
        let values = [5.0, 1.0, 4.0, 2.0, 3.0];
        assert_eq!(quantile(&values, 0.5), 3.0);
        assert_eq!(quantile(&values, 0.0), 1.0);
        assert_eq!(quantile(&values, 0.75), 4.0);
        assert_eq!(quantile(&[7.0], 0.5), 7.0);
        assert!(quantile(&[], 0.5).is_nan());
    }

    #[test]
    fn a_spread_is_the_middle_half() {
        let spread = ValueSpread::from_values(&[5.0, 1.0, 4.0, 2.0, 3.0]).expect("at least one value");
        assert_eq!(spread.to_string(), "3.00 (2.00 to 4.00)");
        assert_eq!(format!("{spread:.0}"), "3 (2 to 4)");
        assert_eq!(ValueSpread::from_values(&[]), None);
    }

    #[test]
    fn a_round_in_which_the_base_shows_nothing_counts_against_the_subject() {
        let ratios = ratios(&[10.0, 20.0, 30.0], &[5.0, -1.0, 60.0]);
        assert_eq!(ratios, [2.0, f64::INFINITY, 0.5]);
        let spread = ValueSpread::from_values(&ratios).expect("at least one value");
        assert_eq!(spread.to_string(), "2.00 (2.00 to inf)");
        assert_eq!(spread.to_json()["upper_quartile"], Value::Null);
    }

    #[test]
    fn rounds_are_compared_with_themselves() {
        assert_eq!(differences(&[10.0, 20.0], &[4.0, 25.0]), [6.0, -5.0]);
    }

    #[test]
    fn numbers_are_read_in_threes() {
        assert_eq!(thousands(0), "0");
        assert_eq!(thousands(999), "999");
        assert_eq!(thousands(1_000), "1,000");
        assert_eq!(thousands(12_345_678), "12,345,678");
        assert_eq!(megabytes(9_640_000), "9.6 MB");
    }
}
