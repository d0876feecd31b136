//! Formats numbers for people. Output for programs has plain nanoseconds instead.

/// Formats an integer with a comma between groups of three digits: `2,000,000`.
#[must_use]
pub fn thousands(value: u64) -> String {
    let digits = value.to_string();
    let mut grouped = String::with_capacity(digits.len() + digits.len() / 3);
    for (index, digit) in digits.chars().enumerate() {
        if index > 0 && (digits.len() - index).is_multiple_of(3) {
            grouped.push(',');
        }
        grouped.push(digit);
    }
    grouped
}

/// Formats a signed integer with its sign and a comma between groups of three digits. 0 has no sign.
#[must_use]
pub fn signed_thousands(value: i64) -> String {
    let sign = match value {
        0 => "",
        1.. => "+",
        _ => "-",
    };
    format!("{sign}{}", thousands(value.unsigned_abs()))
}

/// Formats a duration with three significant digits in the unit that fits its size: `1.37 µs`, `512 ns`, `2.05 s`.
#[must_use]
pub fn duration(ns: u64) -> String {
    const UNITS: [(u64, &str); 3] = [(1_000_000_000, "s"), (1_000_000, "ms"), (1_000, "µs")];
    for (unit_ns, name) in UNITS {
        // From 999.5 of the smaller unit on, rounding would show 1000 of it, so the larger unit is used.
        if ns as f64 >= unit_ns as f64 * 0.9995 {
            return format!("{} {name}", significant(ns as f64 / unit_ns as f64));
        }
    }
    format!("{ns} ns")
}

/// A unit of time that is shared by all times of a table.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Scale {
    /// The length of the unit in nanoseconds.
    pub ns: f64,
    /// The symbol of the unit, for example `ms`.
    pub name: &'static str,
}

impl Scale {
    /// The unit nanosecond.
    pub const NS: Self = Self { ns: 1.0, name: "ns" };

    /// Returns the unit that fits times of about `ns` nanoseconds.
    #[must_use]
    pub fn fitting(ns: f64) -> Self {
        const UNITS: [Scale; 3] = [
            Scale { ns: 1e9, name: "s" },
            Scale { ns: 1e6, name: "ms" },
            Scale { ns: 1e3, name: "µs" },
        ];
        // A unit is used only from 20 of it on, so that a message of a few microseconds is shown in nanoseconds, like the shorter
        // times that it is compared with.
        UNITS
            .into_iter()
            .find(|unit| ns.abs() >= 20.0 * unit.ns)
            .unwrap_or(Self::NS)
    }

    /// Formats a time in this unit, without the symbol of the unit.
    #[must_use]
    pub fn number(self, ns: f64) -> String {
        significant(ns / self.ns)
    }

    /// Formats a time in this unit, with the symbol of the unit.
    #[must_use]
    pub fn with_unit(self, ns: f64) -> String {
        format!("{} {}", self.number(ns), self.name)
    }
}

/// Formats a number of bytes with three significant digits in decimal units: `512 B`, `1.60 MB`.
#[must_use]
pub fn bytes(count: u64) -> String {
    const UNITS: [(f64, &str); 3] = [(1e9, "GB"), (1e6, "MB"), (1e3, "kB")];
    for (unit, name) in UNITS {
        // The factor has the same reason as in `duration`.
        if count as f64 >= unit * 0.9995 {
            return format!("{} {name}", significant(count as f64 / unit));
        }
    }
    format!("{count} B")
}

/// Formats a rate or ratio with three significant digits: `0.0369`, `1.99`, `104`. From 1,000 on it is a whole number with
/// commas. A value that is not finite is a dash.
#[must_use]
pub fn significant(value: f64) -> String {
    if !value.is_finite() {
        return "–".to_owned();
    }
    if value == 0.0 {
        return "0".to_owned();
    }
    let magnitude = value.abs();
    if magnitude >= 999.5 {
        let sign = if value < 0.0 { "-" } else { "" };
        return format!("{sign}{}", thousands(magnitude.round() as u64));
    }
    let decimals = decimals_for(magnitude);
    // 0.9996 is printed as 1.00, not 1.000: a value that rounding carries over a power of ten needs one decimal fewer.
    let unit = 10_f64.powi(decimals);
    let decimals = decimals_for((magnitude * unit).round() / unit) as usize;
    format!("{value:.decimals$}")
}

/// The number of decimals that gives three significant digits, at most 9.
fn decimals_for(magnitude: f64) -> i32 {
    2_i32.saturating_sub(magnitude.log10().floor() as i32).clamp(0, 9)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_have_three_digits_and_their_unit() {
        for (count, text) in [
            (0, "0 B"),
            (999, "999 B"),
            (999_900, "1.00 MB"),
            (1_600_080, "1.60 MB"),
            (24_391_520, "24.4 MB"),
            (5_000_000_000, "5.00 GB"),
        ] {
            assert_eq!(bytes(count), text);
        }
    }

    #[test]
    fn thousands_are_set_apart() {
        assert_eq!(thousands(0), "0");
        assert_eq!(thousands(999), "999");
        assert_eq!(thousands(1_000), "1,000");
        assert_eq!(thousands(2_000_000), "2,000,000");
        assert_eq!(thousands(u64::MAX), "18,446,744,073,709,551,615");
        assert_eq!(signed_thousands(-1_234), "-1,234");
        assert_eq!(signed_thousands(5), "+5");
        assert_eq!(signed_thousands(0), "0");
    }

    #[test]
    fn durations_take_the_unit_that_suits_them() {
        for (ns, text) in [
            (0, "0 ns"),
            (999, "999 ns"),
            (1_000, "1.00 µs"),
            (1_370, "1.37 µs"),
            (999_400, "999 µs"),
            (999_900, "1.00 ms"),
            (5_060_000, "5.06 ms"),
            (2_050_000_000, "2.05 s"),
            (3_600_000_000_000, "3,600 s"),
        ] {
            assert_eq!(duration(ns), text);
        }
    }

    #[test]
    fn times_that_belong_together_have_one_unit() {
        assert_eq!(Scale::fitting(292.0), Scale::NS);
        assert_eq!(Scale::fitting(4_500.0), Scale::NS);
        assert_eq!(Scale::fitting(79_095_543.0).with_unit(1_234_000.0), "1.23 ms");
        assert_eq!(Scale::fitting(-25e9).number(-1e9), "-1.00");
    }

    #[test]
    fn three_digits_are_enough() {
        for (value, text) in [
            (0.0, "0"),
            (0.036_91, "0.0369"),
            (1.99, "1.99"),
            (104.2, "104"),
            (0.000_012_3, "0.0000123"),
        ] {
            assert_eq!(significant(value), text);
        }
        assert_eq!(significant(1_234.5), "1,235");
        assert_eq!(significant(-1_234.5), "-1,235");
        assert_eq!(significant(-0.25), "-0.250");
        assert_eq!(significant(f64::MIN_POSITIVE), "0.000000000");
    }
}
