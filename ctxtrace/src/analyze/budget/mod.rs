//! Where the time of all threads goes in one case and in another, part by part, for each message.
//!
//! * [`account`]: the budget of one run.
//!
//! Here the accounts of several runs of both cases become one comparison. Parts are means, which add up as the parts of each
//! run do; what is claimed of them are differences within pairs of runs, with their intervals.

pub mod account;

use std::collections::{BTreeMap, BTreeSet};

use schemars::JsonSchema;
use serde::Serialize;

use account::{Account, Cause, Part, Spent};

use crate::analyze::attribution::class;
use crate::analyze::percentile::median;
use crate::analyze::result::Class;
use crate::analyze::statistics::estimate::{Estimate, centre, share};
use crate::analyze::statistics::family;
use crate::symbolize::category::{Belongs, Category};

/// Functions that are told.
const MOST_FUNCTIONS: usize = 20;

/// What times are for one of.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum Unit {
    /// A message of a built-in workload
    Message,
    /// A run of a command
    Run,
    /// A second of a recording
    Second,
}

impl Unit {
    /// As in "ns a message".
    #[must_use]
    pub fn in_words(self) -> &'static str {
        match self {
            Self::Message => "a message",
            Self::Run => "a run",
            Self::Second => "a second",
        }
    }
}

/// Where the time of all threads goes, in the measured section.
#[derive(Clone, Debug, Serialize, JsonSchema)]
pub struct Budget {
    /// Traced runs of each.
    pub runs: u64,
    /// Traced runs that were made and are not used: their parts miss more than a hundredth of the threads' time, because
    /// events of them were hidden or lost.
    pub discarded_runs: u64,
    /// The base's.
    pub base: Sums,
    /// The subject's.
    pub subject: Sums,
    /// What tracing changed of the gap, nanoseconds: nothing smaller is claimed of the budget. Null where nobody measured the
    /// gap without tracing.
    pub tracing_changed_gap_ns: Option<f64>,
    /// Time that is no waiting, subject less base.
    pub added_ns: f64,
    /// What the added time is for, most first.
    pub causes: Vec<CauseRow>,
    /// What goes through the kernel: more than kernel switches cost cannot be in it.
    pub kernel: Kernel,
    /// Every part.
    pub parts: Vec<PartRow>,
    /// The functions whose time on the CPU differs most.
    pub functions: Vec<FunctionRow>,
}

/// The sums of one side.
#[derive(Clone, Debug, Serialize, JsonSchema)]
pub struct Sums {
    /// Threads.
    pub threads: u64,
    /// Wall time.
    pub wall_ns: f64,
    /// Time that the threads were there: threads times wall time, where all were there throughout.
    pub alive_ns: f64,
    /// All parts together.
    pub parts_ns: f64,
    /// By how much the parts miss the time that the threads were there, of it.
    pub misses: f64,
    /// Samples a run that share out the time on the CPU.
    pub samples: u64,
    /// By how much a traced run is slower than an untraced one, of it; null where nobody measured that.
    pub tracing_slows: Option<f64>,
}

/// What a part of the added time is for.
#[derive(Clone, Debug, Serialize, JsonSchema)]
pub struct CauseRow {
    /// What for.
    pub cause: Cause,
    /// The base's.
    pub base_ns: f64,
    /// The subject's.
    pub subject_ns: f64,
    /// The difference.
    pub added_ns: Option<Estimate>,
    /// Of all added time.
    pub share: Option<Estimate>,
}

/// The kernel's code, the run queue, and sleep that is no waiting for work: of all causes together.
#[derive(Clone, Debug, Serialize, JsonSchema)]
pub struct Kernel {
    /// Kernel switches of the base, for each message.
    pub base_switches: f64,
    /// Of the subject.
    pub subject_switches: f64,
    /// The base's time.
    pub base_ns: f64,
    /// The subject's.
    pub subject_ns: f64,
    /// The difference.
    pub added_ns: Option<Estimate>,
    /// Of all added time.
    pub share: Option<Estimate>,
}

/// One part of the budget.
#[derive(Clone, Debug, Serialize, JsonSchema)]
pub struct PartRow {
    /// How it is spent.
    pub spent: Spent,
    /// The class of the ledger, off the CPU.
    pub class: Option<Class>,
    /// What for.
    pub cause: Cause,
    /// Whether it is only waiting for work.
    pub is_waiting: bool,
    /// The base's.
    pub base_ns: f64,
    /// The subject's.
    pub subject_ns: f64,
}

/// One function's time on the CPU.
#[derive(Clone, Debug, Serialize, JsonSchema)]
pub struct FunctionRow {
    /// Its name.
    pub function: String,
    /// What it is for.
    pub category: Category,
    /// The base's.
    pub base_ns: f64,
    /// The subject's.
    pub subject_ns: f64,
}

/// Pairs of accounts, of the base and of the subject, and what is known besides.
#[derive(Clone, Copy, Debug)]
pub struct Pairs<'a> {
    /// Of runs that were made together.
    pub accounts: &'a [(Account, Account)],
    /// Runs that are not among them, because their parts do not add up.
    pub discarded: u64,
    /// What base and subject take without tracing, if anybody knows.
    pub untraced: Option<(f64, f64)>,
}

/// Compares; `None` if there are no accounts. All intervals of causes hold together with this confidence.
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
    let keys: BTreeSet<Part> = bases
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

/// Means add up as the parts do.
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

/// Runs of both cases, and what the subject adds in each pair.
struct Compared<'a> {
    bases: &'a [&'a Account],
    subjects: &'a [&'a Account],
    added: Vec<f64>,
}

impl Compared<'_> {
    /// The means of a figure, and its differences.
    fn of(&self, figure: impl Fn(&Account) -> f64) -> (f64, f64, Vec<f64>) {
        let pairs = self.bases.iter().zip(self.subjects);
        (
            mean(self.bases.iter().map(|account| figure(account))),
            mean(self.subjects.iter().map(|account| figure(account))),
            pairs.map(|(base, subject)| figure(subject) - figure(base)).collect(),
        )
    }

    fn causes(&self, keys: &BTreeSet<Part>, confidence: f64) -> Vec<CauseRow> {
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

    fn kernel(&self, confidence: f64) -> Kernel {
        let (base_switches, subject_switches, _) = self.of(|account| account.switches);
        let (base_ns, subject_ns, differences) = self.of(Account::kernel_ns);
        Kernel {
            base_switches,
            subject_switches,
            base_ns,
            subject_ns,
            added_ns: centre(&differences, confidence),
            share: share(&differences, &self.added, confidence),
        }
    }

    fn part(&self, part: &Part) -> PartRow {
        let (base_ns, subject_ns, _) = self.of(|account| account.sum(|other| other == part));
        PartRow {
            spent: part.spent,
            class: part.class().map(class),
            cause: part.cause,
            is_waiting: part.is_waiting(),
            base_ns,
            subject_ns,
        }
    }
}

/// Those whose time on the CPU differs most.
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

/// Whether a cause says anything about what to mend.
#[must_use]
pub fn is_named(cause: Cause) -> bool {
    !matches!(cause, Cause::Code(Category::Unknown))
}
