//! Measures the additional cost of a kernel switch under ctxtrace and under other tools for the same purpose.
//!
//! The target is a minimal ping-pong of two processes over two pipes (`ctxtrace/examples/plain.rs`) with two switches per message,
//! either pinned to one CPU or not pinned. Tools that trace the whole system start before the target and end after it. The target
//! measures its own time, so their start and end do not affect the figures.

use std::process::Command;

use anyhow::{Context as _, Result};
use serde_json::{Value, json};

use crate::figures::{ValueSpread, differences, ratios};
use crate::losses::Losses;
use crate::process;
use crate::rounds::{self, MeasuredRow, RoundSample, UnmeasuredRow};
use crate::tools::{self, Running, Tool};
use crate::{child, ctxtrace};

/// The tracer of a row.
enum Tracer {
    /// No tracer.
    Untraced,
    /// `ctxtrace record` of the target at this level.
    Ctxtrace(&'static str),
    /// ctxtrace records another process, which shows the cost for programs that are not traced.
    CtxtraceOfAnother,
    /// A tool that traces the whole system.
    System(Tool),
}

const UNTRACED: &str = "untraced";
const EMPTY: &str = "an empty program (bpftrace)";
const COUNTS: &str = "ctxtrace --level counts";
const STACKS: &str = "ctxtrace --level stacks";
const TIMELINE: &str = "ctxtrace --level timeline";
const RUNQLAT: &str = "runqlat";
const OFFCPUTIME: &str = "offcputime";
const PERF: &str = "perf sched record";

const TRACERS: [(&str, Tracer); 12] = [
    (UNTRACED, Tracer::Untraced),
    (
        EMPTY,
        Tracer::System(Tool {
            words: &[
                "bpftrace",
                "-B",
                "line",
                "-e",
                "tracepoint:sched:sched_switch { $x = 1; }",
            ],
            package: "bpftrace",
            says: Some("Attach"),
            loses: Some(("Lost", "lines about lost events")),
        }),
    ),
    ("ctxtrace, of another process", Tracer::CtxtraceOfAnother),
    (COUNTS, Tracer::Ctxtrace("counts")),
    (STACKS, Tracer::Ctxtrace("stacks")),
    (TIMELINE, Tracer::Ctxtrace("timeline")),
    (
        "cpudist -O",
        Tracer::System(Tool {
            words: &["cpudist", "-O", "600"],
            package: "libbpf-tools",
            says: None,
            loses: None,
        }),
    ),
    (
        RUNQLAT,
        Tracer::System(Tool {
            words: &["runqlat", "600"],
            package: "libbpf-tools",
            says: None,
            loses: None,
        }),
    ),
    (
        "bpftrace count",
        Tracer::System(Tool {
            words: &[
                "bpftrace",
                "-e",
                "tracepoint:sched:sched_switch { @[args->prev_pid] = count(); }",
            ],
            package: "bpftrace",
            says: Some("Attach"),
            loses: Some(("Lost", "lines about lost events")),
        }),
    ),
    (
        OFFCPUTIME,
        Tracer::System(Tool {
            words: &["offcputime", "--stack-storage-size", "16384", "600"],
            package: "libbpf-tools",
            says: None,
            loses: Some(("[Missed", "stacks")),
        }),
    ),
    (
        "bpftrace kernel and user stacks",
        Tracer::System(Tool {
            words: &[
                "bpftrace",
                "-e",
                "tracepoint:sched:sched_switch { @[kstack, ustack] = count(); }",
            ],
            package: "bpftrace",
            says: Some("Attach"),
            loses: Some(("Lost", "lines about lost events")),
        }),
    ),
    (
        PERF,
        Tracer::System(Tool {
            words: &["perf", "sched", "record", "-o", "/dev/null"],
            package: tools::OF_PERF,
            says: None,
            loses: None,
        }),
    ),
];

/// The goals: the row of ctxtrace, the row of the other tool, and the maximum of the ratio of their costs.
const GOALS: [(&str, &str, f64); 4] = [
    (COUNTS, RUNQLAT, 0.6),
    (COUNTS, EMPTY, 4.0),
    (STACKS, OFFCPUTIME, 0.25),
    (TIMELINE, PERF, 0.4),
];

/// The placement of the target's processes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Placing {
    /// Both processes are pinned to the last CPU.
    Pinned,
    /// The scheduler places the processes.
    Free,
}

impl Placing {
    fn name(self) -> &'static str {
        match self {
            Self::Pinned => "pinned to one CPU",
            Self::Free => "not pinned",
        }
    }

    /// Returns the command line of the target.
    pub(crate) fn target(self, iterations: u64) -> Vec<String> {
        let placing = (self == Self::Free).then(|| "free".to_owned());
        let words = [
            ctxtrace::plain().display().to_string(),
            "process".to_owned(),
            iterations.to_string(),
        ];
        words.into_iter().chain(placing).collect()
    }
}

/// A table.
pub(crate) struct Switches {
    placing: Placing,
    rounds: usize,
    rows: Vec<MeasuredRow>,
    /// The added cost of each row: its nanoseconds per switch minus those of the untraced row in the same round.
    added: Vec<Vec<f64>>,
}

impl Switches {
    /// Measures all rows. `iterations` is the number of round trips of a run.
    pub(crate) fn measure(placing: Placing, rounds: usize, iterations: u64) -> Result<Self> {
        let rows: Vec<UnmeasuredRow<'_>> = TRACERS
            .iter()
            .map(|(name, tracer)| UnmeasuredRow {
                name,
                run: Box::new(move || run(tracer, placing, iterations)),
            })
            .collect();
        let mut rows = rounds::measure(placing.name(), rounds, &rows)?;
        if let Some(perf) = rows.iter_mut().find(|row| row.name == PERF && row.failure.is_none()) {
            perf.lost = lost_by_perf(placing, iterations)?;
        }
        let added = rows.iter().map(|row| differences(&row.ns, &rows[0].ns)).collect();
        Ok(Self {
            placing,
            rounds,
            rows,
            added,
        })
    }

    /// Returns the ratios that have a goal: the row of ctxtrace, the row of the other tool, the goal, and the ratio.
    fn ratios(&self) -> impl Iterator<Item = (&str, &str, f64, ValueSpread)> {
        let added = |name| Some(&self.added[self.rows.iter().position(|row| row.name == name)?]);
        GOALS.iter().filter_map(move |&(subject, peer, goal)| {
            let spread = ValueSpread::from_values(&ratios(added(subject)?, added(peer)?))?;
            Some((subject, peer, goal, spread))
        })
    }

    /// Prints the table and the ratios.
    #[expect(clippy::print_stdout, reason = "the table is the output of the command")]
    pub(crate) fn print(&self) {
        println!(
            "{:34} {:>8} {:>8}  (quartiles of {} rounds)  lost",
            format!("ns/switch, {}", self.placing.name()),
            "total",
            "added",
            self.rounds
        );
        for (row, added) in self.rows.iter().zip(&self.added) {
            match (
                &row.failure,
                ValueSpread::from_values(&row.ns),
                ValueSpread::from_values(added),
            ) {
                (None, Some(ns), Some(added)) => println!(
                    "{:34} {:>8.0} {:>8.0}  {:24}  {}",
                    row.name,
                    ns.median,
                    added.median,
                    format!("({:.0} to {:.0})", added.lower, added.upper),
                    row.lost
                ),
                (failure, ..) => println!(
                    "{:34} not measured: {}",
                    row.name,
                    failure.as_deref().unwrap_or("there were no rounds")
                ),
            }
        }
        println!();
        for (subject, peer, goal, ratio) in self.ratios() {
            println!(
                "added by {subject} / added by {peer}: {ratio} (goal: at most {goal}, {})",
                verdict(ratio.median, goal)
            );
        }
        println!();
    }

    /// Returns all figures as JSON.
    pub(crate) fn to_json(&self) -> Value {
        let rows: Vec<Value> = self
            .rows
            .iter()
            .zip(&self.added)
            .map(|(row, added)| {
                let mut json = row.to_json();
                json["added_ns"] = json!(added);
                json
            })
            .collect();
        let ratios: Vec<Value> = self
            .ratios()
            .map(|(subject, peer, goal, ratio)| {
                json!({"subject": subject, "peer": peer, "goal_at_most": goal, "ratio": ratio.to_json()})
            })
            .collect();
        json!({"placing": self.placing.name(), "unit": "ns a switch", "rows": rows, "ratios": ratios})
    }
}

/// Returns whether a goal is reached, as text for the table.
pub(crate) fn verdict(ratio: f64, at_most: f64) -> &'static str {
    if ratio <= at_most { "reached" } else { "not reached" }
}

/// Runs the target once under a tracer.
fn run(tracer: &Tracer, placing: Placing, iterations: u64) -> Result<RoundSample> {
    let target = || target(placing, iterations);
    match tracer {
        Tracer::Untraced => Ok(RoundSample::untraced(target()?)),
        Tracer::Ctxtrace(level) => {
            let words = placing.target(iterations);
            let words: Vec<&str> = words.iter().map(String::as_str).collect();
            let recorded = ctxtrace::record(&["--level", level], &words, child::run)?;
            Ok(RoundSample {
                ns: per_switch(&recorded.finished.stdout, iterations)?,
                lost: Losses::in_report(&recorded.report),
            })
        }
        Tracer::CtxtraceOfAnother => {
            let other = Running::start(Command::new("sleep").arg("600"))?;
            let pid = other.pid().to_string();
            let mut command = Command::new(ctxtrace::program());
            let mut tracer =
                Running::start(command.args(["record", "--level", "counts", "--json", "/dev/null", "-p", &pid]))?;
            tracer.wait_for(Some("Ctrl-C ends it"))?;
            let ns = target()?;
            let said = tracer.end();
            let lost = said.lines().find_map(|line| line.strip_prefix("Lost")).map(str::trim);
            Ok(RoundSample {
                ns,
                lost: match lost {
                    Some("nothing") => Losses::default(),
                    Some(other) => Losses::single(other, 1),
                    None => Losses::unreported(),
                },
            })
        }
        Tracer::System(tool) => {
            let (ns, lost) = tool.beside(target)?;
            Ok(RoundSample { ns, lost })
        }
    }
}

/// Runs the target and returns the nanoseconds per switch that it has measured.
fn target(placing: Placing, iterations: u64) -> Result<f64> {
    let words = placing.target(iterations);
    let mut command = Command::new(&words[0]);
    per_switch(&process::output(command.args(&words[1..]))?, iterations)
}

fn per_switch(text: &str, iterations: u64) -> Result<f64> {
    let ns: f64 = text.trim().parse().context("the target printed no number")?;
    // A round trip has two switches.
    Ok(ns / iterations as f64 / 2.0)
}

/// Measures what `perf sched record` loses in one more run. The recording must go to a file for that; in the other runs it goes to
/// `/dev/null`.
fn lost_by_perf(placing: Placing, iterations: u64) -> Result<Losses> {
    let folder = tempfile::tempdir().context("cannot create a temporary folder")?;
    let data = folder.path().join("perf.data");
    let mut command = Command::new(tools::find("perf", tools::OF_PERF)?);
    command.args(["sched", "record", "-o"]).arg(&data);
    let mut running = Running::start(&mut command)?;
    running.wait_for(None)?;
    target(placing, iterations)?;
    running.end();
    crate::perf::losses(&data)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_goals_are_about_rows_that_there_are() {
        for (subject, peer, _) in GOALS {
            for name in [subject, peer] {
                assert!(TRACERS.iter().any(|(row, _)| *row == name), "{name}");
            }
        }
        assert_eq!(
            TRACERS[0].0, UNTRACED,
            "the first row is what the others are compared with"
        );
    }

    #[test]
    fn ratios_are_of_what_is_added_round_by_round() {
        let row = |name: &str, ns: [f64; 3]| MeasuredRow {
            name: name.to_owned(),
            ns: ns.to_vec(),
            lost: Losses::default(),
            failure: None,
        };
        let rows = vec![
            row(UNTRACED, [100.0, 200.0, 300.0]),
            row(COUNTS, [110.0, 220.0, 330.0]),
            row(RUNQLAT, [120.0, 240.0, 340.0]),
        ];
        let added = rows.iter().map(|row| differences(&row.ns, &rows[0].ns)).collect();
        let switches = Switches {
            placing: Placing::Pinned,
            rounds: 3,
            rows,
            added,
        };
        let ratios: Vec<_> = switches.ratios().collect();
        assert_eq!(ratios.len(), 1, "a goal without both rows must have no ratio");
        let (subject, peer, goal, ratio) = ratios[0];
        assert_eq!((subject, peer, goal), (COUNTS, RUNQLAT, 0.6));
        assert_eq!(ratio.to_string(), "0.50 (0.50 to 0.75)");
        assert_eq!(switches.to_json()["rows"][1]["added_ns"], json!([10.0, 20.0, 30.0]));
    }

    #[test]
    fn a_round_trip_is_two_switches() {
        assert_eq!(per_switch("4000\n", 2).expect("a number"), 1_000.0);
        per_switch("nothing", 2).expect_err("the text has no number");
    }
}
