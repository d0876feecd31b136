//! The table of the article's cases: every case measured on this machine, next to the article's own figure. Its JSON form is
//! `ctxtrace.suite/1`.
//!
//! Speeds come from untraced runs and counts from traced runs, made in turn. Tracing makes some cases slower, while the counts do
//! not depend on the speed.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::nulls::Nulls;
use super::percentile::median;
use super::result::{Host, Report, Unavailable};
use crate::units::thousands;
use ctxtrace_format::workload::{Language, Mode, Outcome, Spec};

/// Name and version of the format.
pub const SCHEMA: &str = "ctxtrace.suite/1";

/// The measurements of the article "Lightweight Tasks Switch in Go vs Rust", made on a notebook with 4 cores at 2.4 GHz: total
/// time in nanoseconds for 2,000,000 messages, by mode and buffer size.
const ARTICLE: [(Mode, usize, f64); 6] = [
    (Mode::Go, 0, 905_413_631.0),
    (Mode::Go, 4_096, 881_620_329.0),
    (Mode::Task, 0, 3_985_478_440.0),
    (Mode::Task, 4_096, 403_409_172.0),
    (Mode::TaskPool, 0, 4_727_579_594.0),
    (Mode::TaskPool, 4_096, 1_412_270_057.0),
];
/// Number of messages of each of the article's measurements.
const ARTICLE_MESSAGES: f64 = 2_000_000.0;
/// The article's cost of a switch in nanoseconds: "around 2.5 µs per process context switch", in C and in Rust. It gives no
/// separate number for threads, so it is used for them, too.
const ARTICLE_NS_PER_SWITCH: f64 = 2_500.0;

/// The full table of `ctxtrace suite`.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
pub struct Suite {
    /// Name and version of the format: `ctxtrace.suite/1`.
    pub schema: String,
    /// Version of ctxtrace that made the table.
    pub ctxtrace_version: String,
    /// The machine on which the cases were measured.
    pub host: Host,
    /// Number of untraced runs requested for each case. The same number of traced runs was requested.
    pub repeat: u64,
    /// Whether every case has the requested number of runs.
    pub complete: bool,
    /// The cases.
    pub rows: Vec<SuiteRow>,
    /// One entry for every null in the table.
    pub unavailable: Vec<Unavailable>,
}

/// One case.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
pub struct SuiteRow {
    /// Name of the case in the table.
    pub name: String,
    /// Mode of the workload (`--mode`).
    pub mode: Mode,
    /// The language in which the workload is written.
    pub language: Language,
    /// Number of messages that a channel holds.
    pub buffer: Option<u64>,
    /// Number of worker threads. For `go` it is `GOMAXPROCS`.
    pub workers: Option<u64>,
    /// Number of messages in each run.
    pub messages: u64,
    /// Number of runs that finished, untraced and traced together.
    pub runs: u64,
    /// Why there are fewer runs than requested. Present only if there are fewer.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cut_short: Option<String>,
    /// Nanoseconds per message in the untraced runs.
    pub ns_per_message: Option<RunSpread>,
    /// Messages per second, computed from the median of `ns_per_message`.
    pub messages_per_second: Option<f64>,
    /// Kernel switches per message, median of the traced runs.
    pub kernel_switches_per_message: Option<f64>,
    /// Task switches per message, median of the traced runs.
    pub task_switches_per_message: Option<f64>,
    /// Share of task switches that hit the kernel, 0 to 1, median of the traced runs.
    pub hit_kernel_share: Option<f64>,
    /// `ns_per_message` divided by `kernel_switches_per_message`. Only for cases in which a message consists of kernel switches.
    pub ns_per_kernel_switch: Option<f64>,
    /// The article's nanoseconds per message.
    pub article_ns_per_message: Option<f64>,
    /// The article's nanoseconds per kernel switch. The article did not count switches; it assumed two switches per message.
    pub article_ns_per_switch: Option<f64>,
    /// Nanoseconds per message in the traced runs. Compare it with `ns_per_message` to see how much tracing slows this case down.
    pub traced_ns_per_message: Option<RunSpread>,
    /// Number of kernel switches traced minus the number that the kernel counted, all traced runs together.
    pub difference: i64,
    /// Whether the counts of the ledger add up in every traced run.
    pub ledger_adds_up: bool,
}

/// Median and range of one figure over several runs.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct RunSpread {
    /// Median of the runs. For an even number of runs, the mean of the two in the middle.
    pub median: f64,
    /// Smallest value.
    pub min: f64,
    /// Largest value.
    pub max: f64,
}

/// The measurements of one case.
#[derive(Clone, Debug)]
pub struct MeasuredCase {
    /// The case.
    pub spec: Spec,
    /// Outcomes of the untraced runs.
    pub untraced: Vec<Outcome>,
    /// Reports of the traced runs, one for each run.
    pub traced: Vec<Report>,
    /// Why the case does not have all runs.
    pub cut_short: Option<String>,
}

impl MeasuredCase {
    /// Makes a case without runs.
    #[must_use]
    pub fn nothing(spec: Spec) -> Self {
        Self {
            spec,
            untraced: Vec::new(),
            traced: Vec::new(),
            cut_short: None,
        }
    }
}

/// Returns the article's cases in the article's order. Tasks and goroutines send `iterations` messages; processes and threads
/// send a tenth of that.
#[must_use]
pub fn cases(iterations: u64) -> Vec<Spec> {
    let pipes = [
        (Mode::Process, Language::C),
        (Mode::Process, Language::Rust),
        (Mode::Thread, Language::Rust),
    ];
    let pipes = pipes.map(|(mode, language)| Spec {
        language,
        iterations: (iterations / 10).max(1),
        ..Spec::new(mode)
    });
    let tasks = ARTICLE.map(|(mode, buffer, _)| Spec {
        iterations,
        buffer: Some(buffer),
        ..Spec::new(mode)
    });
    pipes.into_iter().chain(tasks).collect()
}

/// Returns the name of a case in the table.
#[must_use]
pub fn name(spec: &Spec) -> String {
    match (spec.mode, spec.buffer) {
        (Mode::Process, _) if spec.language == Language::C => "process, C".to_owned(),
        (Mode::Process, _) => "process, Rust".to_owned(),
        (mode, Some(buffer)) => format!("{}, buffer {}", mode.name(), thousands(buffer as u64)),
        (mode, None) => mode.name().to_owned(),
    }
}

/// Makes the table.
#[must_use]
pub fn suite(ctxtrace_version: &str, host: &Host, repeat: u64, cases: &[MeasuredCase]) -> Suite {
    let mut nulls = Nulls::default();
    let is_complete = |case: &MeasuredCase| case.untraced.len() as u64 == repeat && case.traced.len() as u64 == repeat;
    let rows = cases.iter().enumerate();
    Suite {
        schema: SCHEMA.to_owned(),
        ctxtrace_version: ctxtrace_version.to_owned(),
        host: host.clone(),
        repeat,
        complete: cases.iter().all(is_complete),
        rows: rows.map(|(index, case)| row(index, case, &mut nulls)).collect(),
        unavailable: nulls.into_entries(),
    }
}

fn row(index: usize, case: &MeasuredCase, nulls: &mut Nulls) -> SuiteRow {
    const OTHER_FIGURE: &str =
        "the article gives only one figure for each case: a time per message or a time per switch";
    let spec = &case.spec;
    let is_tasks = spec.mode.is_tasks();
    let not_run = case
        .cut_short
        .as_deref()
        .unwrap_or("not all runs of this case finished");
    let no_polls = match spec.mode {
        Mode::Process | Mode::Thread => "this case has no tasks",
        Mode::Go => "Go keeps no count of its goroutine switches",
        Mode::Task | Mode::TaskPool => not_run,
    };
    let no_switches = if is_tasks {
        "a message does not consist of kernel switches, so this quotient would not be the cost of a switch"
    } else {
        not_run
    };
    let traced = |figure: fn(&Report) -> Option<f64>| {
        let figures: Option<Vec<f64>> = case.traced.iter().map(figure).collect();
        median(&figures?)
    };
    let untraced: Vec<f64> = case.untraced.iter().map(Outcome::ns_per_message).collect();
    let slowed: Vec<f64> = case
        .traced
        .iter()
        .filter_map(|report| report.workload.as_ref()?.ns_per_message)
        .collect();
    let ns_per_message = spread(&untraced);
    let switches = traced(|report| report.kernel_switches.per_message);
    let by_switch = match (ns_per_message, switches) {
        (Some(ns), Some(switches)) if !is_tasks && switches > 0.0 => Some(ns.median / switches),
        _ => None,
    };
    let article = ARTICLE
        .iter()
        .find(|(mode, buffer, _)| *mode == spec.mode && spec.buffer == Some(*buffer))
        .map(|(_, _, ns)| ns / ARTICLE_MESSAGES);
    let mut noted = Noted { nulls, index };
    SuiteRow {
        name: name(spec),
        mode: spec.mode,
        language: spec.language,
        buffer: noted.or(
            spec.buffer.map(|buffer| buffer as u64),
            "buffer",
            "this case has no channel",
        ),
        workers: noted.or(
            spec.workers.map(|workers| workers as u64),
            "workers",
            "this case has no pool of workers",
        ),
        messages: spec.iterations,
        runs: (case.untraced.len() + case.traced.len()) as u64,
        cut_short: case.cut_short.clone(),
        ns_per_message: noted.or(ns_per_message, "ns_per_message", not_run),
        messages_per_second: noted.or(ns_per_message.map(|ns| 1e9 / ns.median), "messages_per_second", not_run),
        kernel_switches_per_message: noted.or(switches, "kernel_switches_per_message", not_run),
        task_switches_per_message: noted.or(
            traced(|report| report.task_switches.as_ref()?.per_message),
            "task_switches_per_message",
            no_polls,
        ),
        hit_kernel_share: noted.or(traced(hit_kernel_share), "hit_kernel_share", no_polls),
        ns_per_kernel_switch: noted.or(by_switch, "ns_per_kernel_switch", no_switches),
        article_ns_per_message: noted.or(article, "article_ns_per_message", OTHER_FIGURE),
        article_ns_per_switch: noted.or(
            (!is_tasks).then_some(ARTICLE_NS_PER_SWITCH),
            "article_ns_per_switch",
            OTHER_FIGURE,
        ),
        traced_ns_per_message: noted.or(spread(&slowed), "traced_ns_per_message", not_run),
        difference: case.traced.iter().map(|report| report.reconciliation.difference).sum(),
        ledger_adds_up: case.traced.iter().all(|report| report.ledger_adds_up),
    }
}

/// Records the nulls of one row.
struct Noted<'a> {
    nulls: &'a mut Nulls,
    index: usize,
}

impl Noted<'_> {
    fn or<T>(&mut self, value: Option<T>, name: &str, reason: &str) -> Option<T> {
        self.nulls.or(value, &format!("rows[{}].{name}", self.index), reason)
    }
}

fn hit_kernel_share(report: &Report) -> Option<f64> {
    let switches = report.task_switches.as_ref()?;
    (switches.total > 0).then(|| switches.hit_kernel as f64 / switches.total as f64)
}

fn spread(values: &[f64]) -> Option<RunSpread> {
    Some(RunSpread {
        median: median(values)?,
        min: values.iter().copied().min_by(f64::total_cmp)?,
        max: values.iter().copied().max_by(f64::total_cmp)?,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fixtures;

    #[test]
    fn the_cases_are_the_articles() {
        let names: Vec<String> = cases(2_000_000).iter().map(name).collect();
        assert_eq!(
            names,
            [
                "process, C",
                "process, Rust",
                "thread",
                "go, buffer 0",
                "go, buffer 4,096",
                "task, buffer 0",
                "task, buffer 4,096",
                "task-pool, buffer 0",
                "task-pool, buffer 4,096",
            ]
        );
        let specs = cases(5);
        assert_eq!((specs[0].iterations, specs[3].iterations), (1, 5));
    }

    #[test]
    fn a_row_has_the_median_and_the_articles_figure() {
        let suite = fixtures::suite();
        let thread = &suite.rows[2];
        let spread = thread.ns_per_message.expect("three runs");
        assert_eq!((spread.min, spread.median, spread.max), (1_500.0, 1_605.0, 1_710.0));
        assert_eq!(thread.article_ns_per_switch, Some(2_500.0));
        let switches = thread.kernel_switches_per_message.expect("traced");
        assert_eq!(thread.ns_per_kernel_switch, Some(1_605.0 / switches));
        let task = &suite.rows[5];
        assert_eq!(task.article_ns_per_message, Some(1_992.739_22));
        assert_eq!(task.ns_per_kernel_switch, None);
        assert!(!suite.complete);
    }

    #[test]
    fn every_null_has_its_reason() {
        let json = serde_json::to_value(fixtures::suite()).expect("JSON");
        let mut nulls = Vec::new();
        for (index, row) in json["rows"].as_array().expect("a list").iter().enumerate() {
            let fields = row.as_object().expect("an object").iter();
            nulls.extend(
                fields
                    .filter(|(_, value)| value.is_null())
                    .map(|(name, _)| format!("rows[{index}].{name}")),
            );
        }
        let reasons = json["unavailable"].as_array().expect("a list").iter();
        let mut paths: Vec<String> = reasons
            .map(|entry| entry["path"].as_str().expect("text").to_owned())
            .collect();
        nulls.sort();
        paths.sort();
        assert_eq!(paths, nulls);
    }
}
