//! Numbers as people read them. Machines get plain nanoseconds.

/// An integer with its thousands set apart: `2,000,000`.
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

/// A signed integer with its sign and its thousands set apart; 0 has no sign.
#[must_use]
pub fn signed_thousands(value: i64) -> String {
    let sign = match value {
        0 => "",
        1.. => "+",
        _ => "-",
    };
    format!("{sign}{}", thousands(value.unsigned_abs()))
}

/// A duration with three significant digits and the unit that suits it: `1.37 µs`, `512 ns`, `2.05 s`.
#[must_use]
pub fn duration(ns: u64) -> String {
    const UNITS: [(u64, &str); 3] = [(1_000_000_000, "s"), (1_000_000, "ms"), (1_000, "µs")];
    for (unit_ns, name) in UNITS {
        // From 999.5 of a unit on, rounding would show 1000 of it: the next larger one takes over.
        if ns as f64 >= unit_ns as f64 * 0.9995 {
            return format!("{} {name}", significant(ns as f64 / unit_ns as f64));
        }
    }
    format!("{ns} ns")
}

/// The unit that suits times of this size, so that all of a table are told in the same.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Scale {
    /// Nanoseconds of one.
    pub ns: f64,
    /// Its name.
    pub name: &'static str,
}

impl Scale {
    /// Nanoseconds.
    pub const NS: Self = Self { ns: 1.0, name: "ns" };

    /// For times around this one.
    #[must_use]
    pub fn of(ns: f64) -> Self {
        const UNITS: [Scale; 3] = [
            Scale { ns: 1e9, name: "s" },
            Scale { ns: 1e6, name: "ms" },
            Scale { ns: 1e3, name: "µs" },
        ];
        // A message of some microseconds is best told in nanoseconds, like those that it is held against.
        UNITS
            .into_iter()
            .find(|unit| ns.abs() >= 20.0 * unit.ns)
            .unwrap_or(Self::NS)
    }

    /// A number of it.
    #[must_use]
    pub fn number(self, ns: f64) -> String {
        significant(ns / self.ns)
    }

    /// A number of it, with its name.
    #[must_use]
    pub fn told(self, ns: f64) -> String {
        format!("{} {}", self.number(ns), self.name)
    }
}

/// A number of bytes with three significant digits, in powers of ten: `512 B`, `1.60 MB`.
#[must_use]
pub fn bytes(count: u64) -> String {
    const UNITS: [(f64, &str); 3] = [(1e9, "GB"), (1e6, "MB"), (1e3, "kB")];
    for (unit, name) in UNITS {
        // As in `duration`.
        if count as f64 >= unit * 0.9995 {
            return format!("{} {name}", significant(count as f64 / unit));
        }
    }
    format!("{count} B")
}

/// A rate or ratio with three significant digits: `0.0369`, `1.99`, `104`; whole numbers from 1,000 on are grouped.
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
    // 0.9996 is 1.00, not 1.000: what rounding has carried over a power of ten needs a decimal less.
    let unit = 10_f64.powi(decimals);
    let decimals = decimals_for((magnitude * unit).round() / unit) as usize;
    format!("{value:.decimals$}")
}

/// Decimals that leave three digits, counted from the first that is not 0.
fn decimals_for(magnitude: f64) -> i32 {
    (2 - magnitude.log10().floor() as i32).clamp(0, 9)
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
        assert_eq!(Scale::of(292.0), Scale::NS);
        assert_eq!(Scale::of(4_500.0), Scale::NS);
        assert_eq!(Scale::of(79_095_543.0).told(1_234_000.0), "1.23 ms");
        assert_eq!(Scale::of(-25e9).number(-1e9), "-1.00");
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
    }
}
