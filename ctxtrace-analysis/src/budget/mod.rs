//! Compares how the threads of two cases spend their time, part by part, per message.
//!
//! * [`account`]: the budget of one run.
//!
//! This module combines the accounts of several runs of both cases into one comparison. Each part is the mean over the runs, so
//! the parts still add up. Claims are based on the differences within pairs of runs, with their intervals.

pub mod account;

use std::collections::{BTreeMap, BTreeSet};

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use account::{Account, Cause, Spent, TimePart};

use crate::percentile::median;
use crate::result::Class;
use crate::statistics::estimate::{Estimate, centre, share};
use crate::statistics::family;
use crate::symbolize::category::{Belongs, Category};

/// Maximum number of functions in the comparison. Functions with smaller differences are left out.
const MOST_FUNCTIONS: usize = 20;

/// The unit that times and counts are divided by.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum Unit {
    /// A message of a built-in workload.
    Message,
    /// A run of a command.
    Run,
    /// A second of a recording.
    Second,
}

impl Unit {
    /// Returns the text for "per unit", as in "ns per message".
    #[must_use]
    pub fn in_words(self) -> &'static str {
        match self {
            Self::Message => "per message",
            Self::Run => "per run",
            Self::Second => "per second",
        }
    }
}

/// How the threads of base and subject spend their time, in the measured section of the workload. Times are in nanoseconds per
/// message, run or second.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
pub struct Budget {
    /// Number of traced runs of each case.
    pub runs: u64,
    /// Number of traced runs that are not used, because their parts differ from the threads' time by more than 1 %. The reason is
    /// that events of the run were hidden from tracing or lost.
    pub discarded_runs: u64,
    /// The sums of the base.
    pub base: Sums,
    /// The sums of the subject.
    pub subject: Sums,
    /// By how much tracing changed the gap, in nanoseconds. No claim about the budget is smaller than this. Null if the gap was
    /// not measured without tracing.
    pub tracing_changed_gap_ns: Option<f64>,
    /// Time that the subject's threads spend in addition to the base's, without time spent waiting for work.
    pub added_ns: f64,
    /// The added time by cause, the largest difference first.
    pub causes: Vec<CauseRow>,
    /// Time in the kernel or caused by it, of all causes together. The cost of kernel switches is a part of this time.
    pub kernel: KernelTime,
    /// Every part of the budget.
    pub parts: Vec<PartRow>,
    /// The functions whose on-CPU time differs most, at most 20.
    pub functions: Vec<FunctionRow>,
}

/// The sums of one case. Times are in nanoseconds per message, run or second.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
pub struct Sums {
    /// Number of threads.
    pub threads: u64,
    /// Wall time.
    pub wall_ns: f64,
    /// Time for which the threads existed, all threads together. If all threads existed during the whole run, it is the number of
    /// threads times the wall time.
    pub alive_ns: f64,
    /// Sum of all parts.
    pub parts_ns: f64,
    /// Difference between `parts_ns` and `alive_ns` as a share of `alive_ns`.
    pub misses: f64,
    /// Number of samples per run among which the on-CPU time is divided.
    pub samples: u64,
    /// By how much a traced run is slower than an untraced one, as a share of the untraced time. Null if that was not measured.
    pub tracing_slows: Option<f64>,
}

/// The time spent for one cause. Time spent waiting for work is not included.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
pub struct CauseRow {
    /// The cause.
    pub cause: Cause,
    /// Time of the base, in nanoseconds per message, run or second.
    pub base_ns: f64,
    /// Time of the subject, in nanoseconds per message, run or second.
    pub subject_ns: f64,
    /// Time of the subject minus time of the base.
    pub added_ns: Option<Estimate>,
    /// Share of all added time.
    pub share: Option<Estimate>,
}

/// Time in the kernel or caused by it, of all causes together: the kernel's code, the run queue, and sleep other than waiting for
/// work.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
pub struct KernelTime {
    /// Kernel switches of the base per message, run or second.
    pub base_switches: f64,
    /// Kernel switches of the subject per message, run or second.
    pub subject_switches: f64,
    /// Time of the base, in nanoseconds per message, run or second.
    pub base_ns: f64,
    /// Time of the subject, in nanoseconds per message, run or second.
    pub subject_ns: f64,
    /// Time of the subject minus time of the base.
    pub added_ns: Option<Estimate>,
    /// Share of all added time.
    pub share: Option<Estimate>,
}

/// One part of the budget.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
pub struct PartRow {
    /// How the time is spent.
    pub spent: Spent,
    /// Class of the switch-out, as in the ledger. Only for time off the CPU.
    pub class: Option<Class>,
    /// The cause of the time.
    pub cause: Cause,
    /// Whether the threads only waited for work.
    pub is_waiting: bool,
    /// Time of the base, in nanoseconds per message, run or second.
    pub base_ns: f64,
    /// Time of the subject, in nanoseconds per message, run or second.
    pub subject_ns: f64,
}

/// On-CPU time of one function.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
pub struct FunctionRow {
    /// Name of the function.
    pub function: String,
    /// The category: what the code is for.
    pub category: Category,
    /// Time of the base, in nanoseconds per message, run or second.
    pub base_ns: f64,
    /// Time of the subject, in nanoseconds per message, run or second.
    pub subject_ns: f64,
}

/// Pairs of accounts of the base and the subject, and further measurements.
#[derive(Clone, Copy, Debug)]
pub struct Pairs<'a> {
    /// Accounts of runs that were made together.
    pub accounts: &'a [(Account, Account)],
    /// Number of runs that are not in `accounts` because their parts do not add up.
    pub discarded: u64,
    /// Times of base and subject without tracing, if they were measured.
    pub untraced: Option<(f64, f64)>,
}

/// Compares the accounts. Returns `None` if there are no accounts. All intervals of causes hold simultaneously with this
/// confidence.
#[must_use]
pub fn budget(pairs: Pairs<'_>, confidence: f64) -> Option<Budget> {
    let accounts = pairs.accounts;
    if accounts.is_empty() {
        return None;
    }
    let (bases, subjects): (Vec<&Account>, Vec<&Account>) =
        accounts.iter().map(|(base, subject)| (base, subject)).unzip();
    let traced = |side: &[&Account]| median(&side.iter().map(|account| account.wall_ns).collect::<Vec<_>>());
    let (traced_base, traced_subject) = (traced(&bases)?, traced(&subjects)?);
    let compared = Compared {
        bases: &bases,
        subjects: &subjects,
        added: bases
            .iter()
            .zip(&subjects)
            .map(|(base, subject)| subject.busy_ns() - base.busy_ns())
            .collect(),
    };
    let keys: BTreeSet<TimePart> = bases
        .iter()
        .chain(&subjects)
        .flat_map(|account| account.parts.keys().copied())
        .collect();
    Some(Budget {
        runs: accounts.len() as u64,
        discarded_runs: pairs.discarded,
        base: sums(&bases, pairs.untraced.map(|(base, _)| traced_base / base - 1.0)),
        subject: sums(
            &subjects,
            pairs.untraced.map(|(_, subject)| traced_subject / subject - 1.0),
        ),
        tracing_changed_gap_ns: pairs
            .untraced
            .map(|(base, subject)| (traced_subject - traced_base) - (subject - base)),
        added_ns: mean(compared.added.iter().copied()),
        causes: compared.causes(&keys, confidence),
        kernel: compared.kernel(confidence),
        parts: keys.iter().map(|part| compared.part(part)).collect(),
        functions: functions(accounts),
    })
}

/// Returns the mean. Unlike medians, the means of the parts add up to the mean of their sum.
fn mean(values: impl ExactSizeIterator<Item = f64>) -> f64 {
    let count = values.len().max(1);
    values.sum::<f64>() / count as f64
}

fn sums(accounts: &[&Account], tracing_slows: Option<f64>) -> Sums {
    let of = |of: &dyn Fn(&Account) -> f64| mean(accounts.iter().map(|account| of(account)));
    Sums {
        threads: accounts.iter().map(|account| account.threads).max().unwrap_or(0),
        wall_ns: of(&|account| account.wall_ns),
        alive_ns: of(&|account| account.alive_ns),
        parts_ns: of(&Account::sum_ns),
        misses: of(&Account::misses),
        samples: of(&|account| account.samples as f64).round() as u64,
        tracing_slows,
    }
}

/// The runs of both cases, and the time that the subject adds in each pair.
struct Compared<'a> {
    bases: &'a [&'a Account],
    subjects: &'a [&'a Account],
    added: Vec<f64>,
}

impl Compared<'_> {
    /// Returns the mean of a figure for the base and for the subject, and the differences of all pairs.
    fn of(&self, figure: impl Fn(&Account) -> f64) -> (f64, f64, Vec<f64>) {
        let pairs = self.bases.iter().zip(self.subjects);
        (
            mean(self.bases.iter().map(|account| figure(account))),
            mean(self.subjects.iter().map(|account| figure(account))),
            pairs.map(|(base, subject)| figure(subject) - figure(base)).collect(),
        )
    }

    fn causes(&self, keys: &BTreeSet<TimePart>, confidence: f64) -> Vec<CauseRow> {
        let busy: BTreeSet<Cause> = keys
            .iter()
            .filter(|part| !part.is_waiting())
            .map(|part| part.cause)
            .collect();
        let confidence = family::each(confidence, busy.len());
        let row = |cause| {
            let (base_ns, subject_ns, differences) = self.of(|account| account.of_cause(cause));
            CauseRow {
                cause,
                base_ns,
                subject_ns,
                added_ns: centre(&differences, confidence),
                share: share(&differences, &self.added, confidence),
            }
        };
        let mut causes: Vec<CauseRow> = busy.into_iter().map(row).collect();
        causes.sort_by(|one, other| {
            let added = |row: &CauseRow| row.subject_ns - row.base_ns;
            added(other).total_cmp(&added(one))
        });
        causes
    }

    fn kernel(&self, confidence: f64) -> KernelTime {
        let (base_switches, subject_switches, _) = self.of(|account| account.switches);
        let (base_ns, subject_ns, differences) = self.of(Account::kernel_ns);
        KernelTime {
            base_switches,
            subject_switches,
            base_ns,
            subject_ns,
            added_ns: centre(&differences, confidence),
            share: share(&differences, &self.added, confidence),
        }
    }

    fn part(&self, part: &TimePart) -> PartRow {
        let (base_ns, subject_ns, _) = self.of(|account| account.sum(|other| other == part));
        PartRow {
            spent: part.spent,
            class: part.class(),
            cause: part.cause,
            is_waiting: part.is_waiting(),
            base_ns,
            subject_ns,
        }
    }
}

/// Returns the functions whose on-CPU time differs most.
fn functions(accounts: &[(Account, Account)]) -> Vec<FunctionRow> {
    let runs = accounts.len() as f64;
    let mut by: BTreeMap<&Belongs, (f64, f64)> = BTreeMap::new();
    for (base, subject) in accounts {
        for (function, ns) in &base.functions {
            by.entry(function).or_default().0 += ns / runs;
        }
        for (function, ns) in &subject.functions {
            by.entry(function).or_default().1 += ns / runs;
        }
    }
    let mut rows: Vec<FunctionRow> = by
        .into_iter()
        .map(|(of, (base_ns, subject_ns))| FunctionRow {
            function: of.function.clone(),
            category: of.category,
            base_ns,
            subject_ns,
        })
        .collect();
    let difference = |row: &FunctionRow| (row.subject_ns - row.base_ns).abs();
    rows.sort_by(|one, other| difference(other).total_cmp(&difference(one)));
    rows.truncate(MOST_FUNCTIONS);
    rows
}

/// Whether a cause shows what could be improved.
#[must_use]
pub fn is_named(cause: Cause) -> bool {
    !matches!(cause, Cause::Code(Category::Unknown))
}
