//! Counts what a tracer has lost, so that a tracer does not look fast because it loses events.

use std::collections::BTreeMap;
use std::fmt;
use std::ops::AddAssign;

use serde_json::{Value, json};

use crate::figures::thousands;

/// The numbers of lost items by name, as far as the tracer reports them.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Losses {
    counts: BTreeMap<String, u64>,
    is_unreported: bool,
}

impl Losses {
    /// Returns the losses of a tracer that does not report them.
    pub(crate) fn unreported() -> Self {
        Self {
            is_unreported: true,
            ..Self::default()
        }
    }

    /// Returns losses of one name.
    pub(crate) fn single(name: &str, count: u64) -> Self {
        Self::from_iter([(name.to_owned(), count)])
    }

    /// Returns the losses in `lost` of a JSON report of ctxtrace.
    pub(crate) fn in_report(report: &Value) -> Self {
        let Some(lost) = report["lost"].as_object() else {
            return Self::unreported();
        };
        let counts = lost
            .iter()
            .filter_map(|(name, count)| Some((name.clone(), count.as_u64()?)));
        counts.collect()
    }

    /// Returns the JSON object, or null if the tracer does not report its losses.
    pub(crate) fn to_json(&self) -> Value {
        if self.is_unreported {
            Value::Null
        } else {
            json!(self.counts)
        }
    }
}

impl FromIterator<(String, u64)> for Losses {
    fn from_iter<I: IntoIterator<Item = (String, u64)>>(counts: I) -> Self {
        Self {
            counts: counts.into_iter().filter(|(_, count)| *count > 0).collect(),
            is_unreported: false,
        }
    }
}

impl AddAssign for Losses {
    fn add_assign(&mut self, other: Self) {
        self.is_unreported |= other.is_unreported;
        for (name, count) in other.counts {
            *self.counts.entry(name).or_default() += count;
        }
    }
}

impl fmt::Display for Losses {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let counts: Vec<String> = self
            .counts
            .iter()
            .map(|(name, count)| format!("{} {}", thousands(*count), name.replace('_', " ")))
            .collect();
        f.pad(&match (counts.is_empty(), self.is_unreported) {
            (true, true) => "not reported".to_owned(),
            (true, false) => "nothing".to_owned(),
            (false, _) => counts.join(", "),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn losses_are_those_of_the_report() {
        let report = json!({"lost": {"events": 3, "timeline_events": 4_000, "stacks": 0, "by_cpu": [{"cpu": 0}]}});
        let mut losses = Losses::in_report(&report);
        assert_eq!(losses.to_string(), "3 events, 4,000 timeline events");
        losses += Losses::in_report(&json!({"lost": {"events": 1}}));
        assert_eq!(losses.to_json(), json!({"events": 4, "timeline_events": 4_000}));
    }

    #[test]
    fn no_losses_differ_from_unreported_losses() {
        assert_eq!(Losses::single("events", 0).to_string(), "nothing");
        assert_eq!(Losses::default().to_json(), json!({}));
        assert_eq!(Losses::in_report(&json!({})), Losses::unreported());
        assert_eq!(Losses::unreported().to_string(), "not reported");
        assert_eq!(Losses::unreported().to_json(), Value::Null);
    }
}
