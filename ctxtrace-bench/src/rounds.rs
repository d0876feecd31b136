//! Measures rows in rounds. A round runs every row once and begins with another row than the round before, so that a drift of the
//! machine affects all rows.

use anyhow::{Result, bail};
use serde_json::{Value, json};

use crate::losses::Losses;

/// The result of one run.
pub(crate) struct RoundSample {
    /// Nanoseconds per switch or per message.
    pub(crate) ns: f64,
    pub(crate) lost: Losses,
}

impl RoundSample {
    /// Returns the result of an untraced run, which loses nothing.
    pub(crate) fn untraced(ns: f64) -> Self {
        Self {
            ns,
            lost: Losses::default(),
        }
    }
}

/// A row of the table before it is measured.
pub(crate) struct UnmeasuredRow<'a> {
    pub(crate) name: &'a str,
    /// Runs the row once.
    pub(crate) run: Box<dyn Fn() -> Result<RoundSample> + 'a>,
}

/// A row of the table after it was measured.
pub(crate) struct MeasuredRow {
    pub(crate) name: String,
    /// Nanoseconds per switch or per message, round by round. Empty if one of the runs failed.
    pub(crate) ns: Vec<f64>,
    /// The losses in all rounds.
    pub(crate) lost: Losses,
    /// The error of the run that failed.
    pub(crate) failure: Option<String>,
}

impl MeasuredRow {
    fn new(name: &str) -> Self {
        Self {
            name: name.to_owned(),
            ns: Vec::new(),
            lost: Losses::default(),
            failure: None,
        }
    }

    /// Runs the row once and adds the result, unless an earlier run has failed.
    fn add(&mut self, row: &UnmeasuredRow<'_>) {
        if self.failure.is_some() {
            return;
        }
        match (row.run)() {
            Ok(sample) => {
                self.ns.push(sample.ns);
                self.lost += sample.lost;
            }
            Err(error) => {
                self.ns.clear();
                self.failure = Some(format!("{error:#}"));
            }
        }
    }

    /// Returns the figures of the row as JSON.
    pub(crate) fn to_json(&self) -> Value {
        json!({"name": self.name, "ns": self.ns, "lost": self.lost.to_json(), "failure": self.failure})
    }
}

/// Measures all rows. Fails if the first row fails, because the others are compared with it.
pub(crate) fn measure(what: &str, rounds: usize, rows: &[UnmeasuredRow<'_>]) -> Result<Vec<MeasuredRow>> {
    let mut measured: Vec<MeasuredRow> = rows.iter().map(|row| MeasuredRow::new(row.name)).collect();
    for round in 0..rounds {
        for place in 0..rows.len() {
            let index = (place + round) % rows.len();
            measured[index].add(&rows[index]);
        }
        eprintln!("{what}: round {} of {rounds}", round + 1);
    }
    if let Some(failure) = measured.first().and_then(|base| base.failure.as_deref()) {
        bail!("{what}, {}: {failure}", rows[0].name);
    }
    Ok(measured)
}

#[cfg(test)]
mod tests {
    use std::cell::RefCell;

    use super::*;

    #[test]
    fn each_round_begins_with_another_row_and_a_row_that_fails_says_why() {
        let order = RefCell::new(String::new());
        let row = |name: &'static str, fails: bool| UnmeasuredRow {
            name,
            run: Box::new({
                let order = &order;
                move || {
                    order.borrow_mut().push_str(name);
                    if fails && order.borrow().len() > 3 {
                        bail!("it broke");
                    }
                    Ok(RoundSample {
                        ns: 1.0,
                        lost: Losses::single("events", 2),
                    })
                }
            }),
        };
        let rows = [row("a", false), row("b", true), row("c", false)];
        let measured = measure("a test", 3, &rows).expect("the first row does not fail");
        assert_eq!(*order.borrow(), "abcbcaca");
        assert_eq!(measured[0].ns, [1.0; 3]);
        assert_eq!(measured[0].lost, Losses::single("events", 6));
        assert_eq!(measured[1].failure.as_deref(), Some("it broke"));
        assert!(
            measured[1].ns.is_empty(),
            "a row that lacks rounds must have no figures"
        );
    }

    #[test]
    fn without_its_base_nothing_is_measured() {
        let row = UnmeasuredRow {
            name: "untraced",
            run: Box::new(|| bail!("it broke")),
        };
        let error = measure("a test", 1, &[row]).err().expect("an error");
        assert_eq!(error.to_string(), "a test, untraced: it broke");
    }
}
