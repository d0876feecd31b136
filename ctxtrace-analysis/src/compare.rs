//! Compares two captures. The JSON form of the comparison is `ctxtrace.compare/1`.
//!
//! One recording of each case shows how the two recordings differ, not whether another pair would differ in the same way. So
//! there are no intervals and no claims here. [`crate::explain`] makes them from many runs.

use ctxtrace_format::sums::SaturatingSum;
use schemars::JsonSchema;
use serde::Serialize;

use super::budget::account::{Account, SleepCauses};
use super::budget::{Budget, Pairs, Unit, budget};
use super::explain::answer::CONFIDENCE;
use super::result::{Class, Distribution, Host, LedgerRow, Report, Unavailable};
use ctxtrace_format::Level;

/// Name and version of the format.
pub const SCHEMA: &str = "ctxtrace.compare/1";

/// The full comparison of `ctxtrace compare`.
#[derive(Clone, Debug, Serialize, JsonSchema)]
pub struct Compared {
    /// Name and version of the format: `ctxtrace.compare/1`.
    pub schema: String,
    /// Version of ctxtrace that made the comparison.
    pub ctxtrace_version: String,
    /// The unit that counts and times are divided by.
    pub unit: Unit,
    /// The capture that the subject is compared with.
    pub base: Side,
    /// The capture that is compared with the base.
    pub subject: Side,
    /// Figures of both captures.
    pub figures: Vec<Figure>,
    /// The ledgers of both captures, by class.
    pub ledger: Vec<ClassRow>,
    /// How the threads spend their time.
    pub budget: Option<Budget>,
    /// One entry for everything that could not be compared.
    pub unavailable: Vec<Unavailable>,
}

/// One of the two captures.
#[derive(Clone, Debug, Serialize, JsonSchema)]
pub struct Side {
    /// What was recorded.
    pub name: String,
    /// The machine on which the recording was made.
    pub host: Host,
    /// The level of the recording: how much was recorded.
    pub level: Level,
    /// Whether the recording is complete and the file is not damaged.
    pub complete: bool,
    /// Number of messages, runs or seconds that counts and times are divided by.
    pub units: f64,
}

/// One figure of both captures.
#[derive(Clone, Debug, Serialize, JsonSchema)]
pub struct Figure {
    /// Name of the figure.
    pub name: String,
    /// Whether the figure is a time in nanoseconds. Otherwise it is a count.
    pub is_time: bool,
    /// Value of the base.
    pub base: Option<f64>,
    /// Value of the subject.
    pub subject: Option<f64>,
    /// Value of the subject divided by the value of the base.
    pub ratio: Option<f64>,
}

/// One class of both ledgers, all tasks and reasons together.
#[derive(Clone, Debug, Serialize, JsonSchema)]
pub struct ClassRow {
    /// The class.
    pub class: Class,
    /// Kernel switches of the base per unit.
    pub base: f64,
    /// Kernel switches of the subject per unit.
    pub subject: f64,
    /// Off-CPU time after the switches of the base, in nanoseconds per unit.
    pub base_off_cpu_ns: f64,
    /// Off-CPU time after the switches of the subject, in nanoseconds per unit.
    pub subject_off_cpu_ns: f64,
}

/// One capture to be compared.
#[derive(Clone, Debug)]
pub struct Captured {
    /// What was recorded, as text.
    pub name: String,
    /// The report of the capture.
    pub report: Report,
    /// How the threads of the median run spent their time. See [`unit_of`] for the unit.
    pub account: Account,
    /// What the threads slept for.
    pub asleep: SleepCauses,
}

/// Returns the unit by which both captures can be divided. For a process that was attached to only the recorded time is known,
/// not how much of its work was done, so the unit is a second.
#[must_use]
pub fn unit_of(base: &Report, subject: &Report) -> Unit {
    let of = |fits: fn(&Report) -> bool| fits(base) && fits(subject);
    if of(|report| report.workload.as_ref().is_some_and(|workload| workload.messages > 0)) {
        Unit::Message
    } else if of(|report| {
        report
            .target
            .as_ref()
            .map_or(report.workload.is_some(), |target| target.command.is_some())
    }) {
        Unit::Run
    } else {
        Unit::Second
    }
}

/// Returns the number that counts and times of a report are divided by.
#[must_use]
pub fn units(report: &Report, unit: Unit) -> f64 {
    let units = match unit {
        Unit::Message => report
            .workload
            .as_ref()
            .map_or(1.0, |workload| workload.messages as f64),
        Unit::Run => 1.0,
        Unit::Second => report.recorded_ns as f64 / 1e9,
    };
    if units > 0.0 { units } else { 1.0 }
}

/// Compares two captures. Both accounts must be per `unit`.
#[must_use]
pub fn compare(version: &str, unit: Unit, base: &Captured, subject: &Captured) -> Compared {
    let side = |captured: &Captured| Side {
        name: captured.name.clone(),
        host: captured.report.host.clone(),
        level: captured.report.level,
        complete: captured.report.complete,
        units: units(&captured.report, unit),
    };
    let accounts = [(base.account.clone(), subject.account.clone())];
    let pairs = Pairs {
        accounts: &accounts,
        discarded: 0,
        untraced: None,
    };
    let mut compared = Compared {
        schema: SCHEMA.to_owned(),
        ctxtrace_version: version.to_owned(),
        unit,
        base: side(base),
        subject: side(subject),
        figures: figures(&base.report, &subject.report, unit),
        ledger: ledger(&base.report, &subject.report, unit),
        budget: budget(pairs, CONFIDENCE),
        unavailable: Vec::new(),
    };
    for (path, captured) in [("base", base), ("subject", subject)] {
        let mut add = |what: &str, reason: &str| {
            compared.unavailable.push(Unavailable {
                path: format!("{path}.{what}"),
                reason: reason.to_owned(),
            });
        };
        if captured.report.level != Level::Timeline {
            add(
                "run_queue",
                "how long threads of each class slept and how long they waited for a CPU is known only at --level timeline",
            );
        }
        if captured.account.samples == 0 {
            add(
                "on_cpu",
                "the on-CPU time cannot be divided without samples: record with --level timeline --sample 997",
            );
        }
    }
    compared
}

type DistributionOf = fn(&Report) -> &Distribution;

fn figures(base: &Report, subject: &Report, unit: Unit) -> Vec<Figure> {
    let figure = |name: &str, is_time, of: &dyn Fn(&Report) -> Option<f64>| {
        let (base, subject) = (of(base), of(subject));
        Figure {
            name: name.to_owned(),
            is_time,
            base,
            subject,
            ratio: base
                .zip(subject)
                .filter(|&(base, _)| base > 0.0)
                .map(|(base, subject)| subject / base),
        }
    };
    let each = |report: &Report, count: u64| Some(count as f64 / units(report, unit));
    let tasks = |report: &Report, of: &dyn Fn(&super::result::TaskSwitches) -> Option<u64>| {
        each(report, report.task_switches.as_ref().and_then(of)?)
    };
    let percentile = |of: DistributionOf, at: fn(&Distribution) -> Option<u64>| {
        move |report: &Report| at(of(report)).map(|ns| ns as f64)
    };
    let mut list = vec![
        figure("elapsed time", true, &|report| {
            let ns = match &report.workload {
                Some(workload) => workload.elapsed_ns?,
                None => report.recorded_ns,
            };
            each(report, ns)
        }),
        figure("kernel switches, voluntary", false, &|report| {
            each(report, report.kernel_switches.voluntary)
        }),
        figure("kernel switches, involuntary", false, &|report| {
            each(report, report.kernel_switches.involuntary)
        }),
        figure("migrations", false, &|report| each(report, report.migrations)),
        figure("task switches", false, &|report| {
            tasks(report, &|tasks| Some(tasks.total))
        }),
        figure("task switches that hit the kernel", false, &|report| {
            tasks(report, &|tasks| Some(tasks.hit_kernel))
        }),
    ];
    let distributions: [(&str, DistributionOf); 4] = [
        ("off-CPU", |report| &report.latency.off_cpu),
        ("run queue", |report| &report.latency.run_queue),
        ("wake to run", |report| &report.latency.wake_to_run),
        ("on-CPU", |report| &report.latency.on_cpu),
    ];
    for (name, of) in distributions {
        list.push(figure(&format!("{name}, p50"), true, &percentile(of, |of| of.p50_ns)));
        list.push(figure(&format!("{name}, p99"), true, &percentile(of, |of| of.p99_ns)));
    }
    list
}

fn ledger(base: &Report, subject: &Report, unit: Unit) -> Vec<ClassRow> {
    let mut classes: Vec<Class> = Vec::new();
    for row in base.ledger.iter().chain(&subject.ledger) {
        if !classes.contains(&row.class) {
            classes.push(row.class);
        }
    }
    let sum = |report: &Report, class: Class, of: fn(&LedgerRow) -> u64| {
        let rows = report.ledger.iter().filter(|row| row.class == class);
        rows.map(of).saturating_sum() as f64 / units(report, unit)
    };
    let mut rows: Vec<ClassRow> = classes
        .into_iter()
        .map(|class| ClassRow {
            class,
            base: sum(base, class, |row| row.count),
            subject: sum(subject, class, |row| row.count),
            base_off_cpu_ns: sum(base, class, |row| row.off_cpu_ns),
            subject_off_cpu_ns: sum(subject, class, |row| row.off_cpu_ns),
        })
        .collect();
    let difference = |row: &ClassRow| (row.subject - row.base).abs();
    rows.sort_by(|one, other| difference(other).total_cmp(&difference(one)));
    rows
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fixtures::captured;
    use ctxtrace_format::workload::Mode;

    #[test]
    fn what_has_messages_is_compared_by_message() {
        let (base, subject) = (captured(Mode::Task, 1_000_000), captured(Mode::TaskPool, 3_000_000));
        let unit = unit_of(&base.report, &subject.report);
        assert_eq!(unit, Unit::Message);
        let compared = compare("0.0.0", unit, &base, &subject);
        let elapsed = &compared.figures[0];
        assert_eq!(elapsed.ratio, Some(3.0));
        let ns = base
            .report
            .workload
            .as_ref()
            .expect("a built-in workload")
            .ns_per_message;
        assert_eq!(elapsed.base, ns);
        // Both ledgers are those of the same run.
        assert!(compared.ledger.iter().all(|row| (row.base - row.subject).abs() < 1e-12));
        let count: f64 = compared.ledger.iter().map(|row| row.base).sum();
        assert!((count * compared.base.units - base.report.kernel_switches.total as f64).abs() < 1e-6);
    }

    #[test]
    fn what_was_attached_to_is_compared_by_second() {
        let (mut base, subject) = (captured(Mode::Task, 1_000_000), captured(Mode::Task, 1_000_000));
        base.report.workload = None;
        assert_eq!(unit_of(&base.report, &subject.report), Unit::Second);
        base.report.recorded_ns = 2_000_000_000;
        assert_eq!(units(&base.report, Unit::Second), 2.0);
    }
}
