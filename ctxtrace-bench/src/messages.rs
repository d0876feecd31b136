//! Measures how much slower a message of each workload with tasks is at each level of ctxtrace, and under dial9.
//!
//! ctxtrace traces its built-in workload, which contains the probe whether it is traced or not. dial9 traces a minimal program
//! that does the same, which is compared with itself without dial9.

use anyhow::Result;
use serde_json::{Value, json};

use crate::dial9;
use crate::figures::{ValueSpread, ratios};
use crate::losses::Losses;
use crate::rounds::{self, MeasuredRow, RoundSample, UnmeasuredRow};
use crate::switches::verdict;
use crate::workloads::{WorkloadCase, of_tasks};

/// The tracer of a row.
enum Onlooker {
    /// No tracer.
    Untraced,
    /// ctxtrace at a level, possibly with more options.
    Ctxtrace(&'static [&'static str]),
    /// dial9, which records this (`polls` or `wakes`); `off` is the same program without dial9.
    Dial9(&'static str),
}

/// The definition of a row.
struct Spec {
    name: &'static str,
    onlooker: Onlooker,
    /// The index of the row that this one is compared with.
    base: usize,
    /// The goal: the maximum of the median ratio to the base.
    goal: Option<f64>,
}

const ROWS: [Spec; 8] = [
    Spec {
        name: "untraced",
        onlooker: Onlooker::Untraced,
        base: 0,
        goal: None,
    },
    Spec {
        name: "--level counts",
        onlooker: Onlooker::Ctxtrace(&["counts"]),
        base: 0,
        goal: Some(1.02),
    },
    Spec {
        name: "--level stacks",
        onlooker: Onlooker::Ctxtrace(&["stacks"]),
        base: 0,
        goal: Some(1.05),
    },
    Spec {
        name: "--level timeline",
        onlooker: Onlooker::Ctxtrace(&["timeline"]),
        base: 0,
        goal: Some(1.10),
    },
    Spec {
        name: "--level timeline --polls",
        onlooker: Onlooker::Ctxtrace(&["timeline", "--polls"]),
        base: 0,
        goal: Some(1.25),
    },
    Spec {
        name: "plain, without dial9",
        onlooker: Onlooker::Dial9("off"),
        base: 5,
        goal: None,
    },
    Spec {
        name: "plain, dial9: polls",
        onlooker: Onlooker::Dial9("polls"),
        base: 5,
        goal: None,
    },
    Spec {
        name: "plain, dial9: polls and wakes",
        onlooker: Onlooker::Dial9("wakes"),
        base: 5,
        goal: None,
    },
];

/// The table of one case.
struct OfCase {
    name: &'static str,
    rows: Vec<MeasuredRow>,
}

/// The tables of all cases.
pub(crate) struct Messages {
    rounds: usize,
    cases: Vec<OfCase>,
}

impl Messages {
    /// Measures all rows of all cases. If the program under dial9 does not build, its rows have the error instead of figures.
    pub(crate) fn measure(rounds: usize) -> Result<Self> {
        let without_dial9 = dial9::build().err().map(|error| format!("{error:#}"));
        let measure = |case: &'static WorkloadCase| {
            let rows: Vec<UnmeasuredRow<'_>> = ROWS
                .iter()
                .map(|spec| UnmeasuredRow {
                    name: spec.name,
                    run: Box::new(|| run(&spec.onlooker, case, without_dial9.as_deref())),
                })
                .collect();
            let rows = rounds::measure(case.name, rounds, &rows)?;
            Ok(OfCase { name: case.name, rows })
        };
        let cases = of_tasks().iter().map(measure).collect::<Result<_>>()?;
        Ok(Self { rounds, cases })
    }

    /// Prints the tables.
    #[expect(clippy::print_stdout, reason = "the table is the output of the command")]
    pub(crate) fn print(&self) {
        for case in &self.cases {
            println!(
                "{:32} {:>8}  ratio (quartiles of {} rounds)  goal                lost",
                format!("ns/message, {}", case.name),
                "median",
                self.rounds
            );
            for (index, row) in case.rows.iter().enumerate() {
                match (&row.failure, ValueSpread::from_values(&row.ns), case.ratio(index)) {
                    (None, Some(ns), Some(ratio)) => println!(
                        "{:32} {:>8.1}  {:31} {:18}  {}",
                        row.name,
                        ns.median,
                        format!("{ratio:.3}"),
                        ROWS[index].goal.map_or_else(String::new, |goal| format!(
                            "{goal:.2}: {}",
                            verdict(ratio.median, goal)
                        )),
                        row.lost
                    ),
                    (failure, ..) => println!(
                        "{:32} not measured: {}",
                        row.name,
                        failure
                            .as_deref()
                            .unwrap_or("the row that it is compared with was not measured")
                    ),
                }
            }
            println!();
        }
    }

    /// Returns all figures as JSON.
    pub(crate) fn to_json(&self) -> Value {
        let cases: Vec<Value> = self.cases.iter().map(OfCase::to_json).collect();
        json!({"unit": "ns a message", "cases": cases})
    }
}

impl OfCase {
    /// Returns the ratio of a row to the row that it is compared with, or `None` if either was not measured.
    fn ratio(&self, index: usize) -> Option<ValueSpread> {
        ValueSpread::from_values(&ratios(&self.rows[index].ns, &self.rows[ROWS[index].base].ns))
    }

    fn to_json(&self) -> Value {
        let of_row = |(index, row): (usize, &MeasuredRow)| {
            let mut json = row.to_json();
            json["base"] = json!(ROWS[ROWS[index].base].name);
            json["ratio"] = json!(self.ratio(index).map(ValueSpread::to_json));
            json["goal_at_most"] = json!(ROWS[index].goal);
            json
        };
        let rows: Vec<Value> = self.rows.iter().enumerate().map(of_row).collect();
        json!({"case": self.name, "rows": rows})
    }
}

/// Runs a case once.
fn run(onlooker: &Onlooker, case: &WorkloadCase, without_dial9: Option<&str>) -> Result<RoundSample> {
    match onlooker {
        Onlooker::Untraced => Ok(RoundSample::untraced(case.untraced()?)),
        Onlooker::Ctxtrace(level) => {
            let (ns, report) = case.traced(level)?;
            Ok(RoundSample {
                ns,
                lost: Losses::in_report(&report),
            })
        }
        Onlooker::Dial9(sees) => match without_dial9 {
            Some(why) => anyhow::bail!("{why}"),
            None => dial9::run(sees, case),
        },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_row_is_compared_with_a_row_of_its_own_program() {
        for row in &ROWS {
            let base = &ROWS[row.base];
            let is_of_dial9 = matches!(row.onlooker, Onlooker::Dial9(_));
            assert_eq!(
                is_of_dial9,
                matches!(base.onlooker, Onlooker::Dial9("off")),
                "{}",
                row.name
            );
            assert_eq!(
                !is_of_dial9,
                matches!(base.onlooker, Onlooker::Untraced),
                "{}",
                row.name
            );
        }
    }

    #[test]
    fn a_row_without_its_base_has_no_ratio() {
        let row = |index: usize, ns: Vec<f64>| MeasuredRow {
            name: ROWS[index].name.to_owned(),
            ns,
            lost: Losses::default(),
            failure: None,
        };
        let rows = vec![
            row(0, vec![100.0, 200.0]),
            row(1, vec![101.0, 210.0]),
            row(2, vec![]),
            row(3, vec![]),
            row(4, vec![]),
            row(5, vec![]),
            row(6, vec![300.0, 300.0]),
        ];
        let case = OfCase { name: "task", rows };
        assert_eq!(case.ratio(1).expect("both rows have figures").lower, 1.01);
        assert_eq!(case.ratio(6), None);
        let json = case.to_json();
        assert_eq!(json["rows"][1]["base"], "untraced");
        assert_eq!(json["rows"][6]["ratio"], Value::Null);
    }
}
