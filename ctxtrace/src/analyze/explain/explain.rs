//! From runs to the answer.

use std::collections::{BTreeMap, BTreeSet};

use super::account::{Account, Asleep, Cause, Part, Spent};
use super::intervention::Kind;
use super::result::{
    Budget, CauseRow, Explanation, FunctionRow, Gap, NotTried, PartRow, SCHEMA, Side, Sums, Tried, Unit,
};
use super::verdict;
use crate::analyze::attribution::class;
use crate::analyze::percentile::median;
use crate::analyze::result::Host;
use crate::analyze::statistics::estimate::{Estimate, centre, share};
use crate::analyze::statistics::family;
use crate::analyze::statistics::groups::groups;
use crate::symbolize::category::{Belongs, Category};
use ctxtrace_common::ledger::Class;

/// How sure everything that is claimed is, all of it together. Of a hundred pairs of cases between which there is no
/// difference, about one is said to have one.
pub const CONFIDENCE: f64 = 0.99;

/// The fewest blocks for the gap.
pub const LEAST_BLOCKS: usize = 15;

/// Functions that are told.
const MOST_FUNCTIONS: usize = 20;

/// Runs of a block, what each took: nanoseconds a message.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Pair {
    /// The base's.
    pub base: f64,
    /// The subject's.
    pub subject: f64,
}

impl Pair {
    /// Subject less base.
    #[must_use]
    pub fn gap(&self) -> f64 {
        self.subject - self.base
    }
}

/// One intervention and its runs, in blocks with runs of both sides as they are.
#[derive(Clone, Debug, Default)]
pub struct Runs {
    /// As they are.
    pub plain: Vec<Pair>,
    /// Changed; a side that is not touched is its plain run.
    pub changed: Vec<Pair>,
}

/// Everything that was measured.
#[derive(Clone, Debug)]
pub struct Measured {
    /// What times are for one of.
    pub unit: Unit,
    /// The cases' names.
    pub names: (String, String),
    /// Untraced runs for the gap.
    pub gap: Vec<Pair>,
    /// Budgets of traced runs, of base and subject.
    pub accounts: Vec<(Account, Account)>,
    /// What threads sleep for, in a run of the base and of the subject.
    pub asleep: Option<(Asleep, Asleep)>,
    /// The interventions.
    pub interventions: Vec<(String, String, Kind, Runs)>,
    /// Those that were not tried.
    pub not_tried: Vec<NotTried>,
    /// The most messages in flight, where they were counted.
    pub in_flight: (Option<u64>, Option<u64>),
    /// Why not everything was measured.
    pub cut_short: Option<String>,
}

/// The gap between two cases.
#[must_use]
pub fn gap_of(pairs: &[Pair]) -> Gap {
    let gaps: Vec<f64> = pairs.iter().map(Pair::gap).collect();
    let ns = centre(&gaps, CONFIDENCE);
    let side = |of: fn(&Pair) -> f64| centre(&pairs.iter().map(of).collect::<Vec<_>>(), CONFIDENCE);
    let (base, subject) = (side(|pair| pair.base), side(|pair| pair.subject));
    Gap {
        ratio: base.zip(subject).map(|(base, subject)| subject.value / base.value),
        blocks: pairs.len() as u64,
        is_clear: ns.is_some_and(|ns| ns.is_above(0.0)),
        ns,
    }
}

/// Whether more blocks would say nothing new: there are enough, and the interval is narrow against the gap, or shows that
/// there is none that matters against what the base takes.
#[must_use]
pub fn is_enough(pairs: &[Pair]) -> bool {
    let Gap { ns: Some(ns), .. } = gap_of(pairs) else {
        return false;
    };
    let base = median(&pairs.iter().map(|pair| pair.base).collect::<Vec<_>>()).unwrap_or(0.0);
    let narrow = 2.0 * ns.half_width() < 0.1 * ns.value.abs();
    let nothing = ns.half_width() + ns.value.abs() < 0.01 * base;
    pairs.len() >= LEAST_BLOCKS && (narrow || nothing)
}

/// Makes the answer.
#[must_use]
pub fn explain(version: &str, host: &Host, measured: &Measured) -> Explanation {
    let gap = gap_of(&measured.gap);
    let side = |name: &str, of: fn(&Pair) -> f64, max_in_flight| {
        let values: Vec<f64> = measured.gap.iter().map(of).collect();
        Side {
            name: name.to_owned(),
            ns: centre(&values, CONFIDENCE),
            groups: groups(&values),
            max_in_flight,
        }
    };
    let interventions = interventions(&measured.interventions, gap.is_clear);
    let mut explanation = Explanation {
        schema: SCHEMA.to_owned(),
        ctxtrace_version: version.to_owned(),
        host: host.clone(),
        complete: measured.cut_short.is_none(),
        cut_short: measured.cut_short.clone(),
        unit: measured.unit,
        base: side(&measured.names.0, |pair| pair.base, measured.in_flight.0),
        subject: side(&measured.names.1, |pair| pair.subject, measured.in_flight.1),
        budget: budget(&measured.accounts, &measured.gap),
        gap,
        interventions,
        not_tried: measured.not_tried.clone(),
        verdict: Vec::new(),
        not_explained: Vec::new(),
    };
    (explanation.verdict, explanation.not_explained) = verdict::of(&explanation);
    explanation
}

/// What each did. Where there is no gap, an intervention may still open one.
fn interventions(tried: &[(String, String, Kind, Runs)], is_clear: bool) -> Vec<Tried> {
    let confidence = family::each(CONFIDENCE, tried.len());
    let result = |(name, what, kind, runs): &(String, String, Kind, Runs)| {
        let gaps: Vec<f64> = runs.plain.iter().map(Pair::gap).collect();
        let left: Vec<f64> = runs.changed.iter().map(Pair::gap).collect();
        let taken: Vec<f64> = gaps.iter().zip(&left).map(|(gap, left)| gap - left).collect();
        let middle = |of: fn(&Pair) -> f64| median(&runs.changed.iter().map(of).collect::<Vec<_>>());
        Tried {
            name: name.clone(),
            what: what.clone(),
            kind: *kind,
            base_ns: middle(|pair| pair.base),
            subject_ns: middle(|pair| pair.subject),
            gap_ns: centre(&left, confidence),
            closes: is_clear.then(|| share(&taken, &gaps, confidence)).flatten(),
            blocks: runs.changed.len() as u64,
        }
    };
    tried.iter().map(result).collect()
}

/// The mean of each part: means add up as the parts do.
fn mean(accounts: impl Iterator<Item = f64> + Clone) -> f64 {
    accounts.clone().sum::<f64>() / accounts.count().max(1) as f64
}

fn budget(accounts: &[(Account, Account)], untraced: &[Pair]) -> Option<Budget> {
    if accounts.is_empty() {
        return None;
    }
    let of_base = |of: &dyn Fn(&Account) -> f64| mean(accounts.iter().map(|(base, _)| of(base)));
    let of_subject = |of: &dyn Fn(&Account) -> f64| mean(accounts.iter().map(|(_, subject)| of(subject)));
    let untraced_base = median(&untraced.iter().map(|pair| pair.base).collect::<Vec<_>>())?;
    let untraced_subject = median(&untraced.iter().map(|pair| pair.subject).collect::<Vec<_>>())?;
    let traced_base = median(&accounts.iter().map(|(base, _)| base.wall_ns).collect::<Vec<_>>())?;
    let traced_subject = median(&accounts.iter().map(|(_, subject)| subject.wall_ns).collect::<Vec<_>>())?;
    let sums = |accounts: &[&Account], traced: f64, untraced: f64| {
        let of = |of: &dyn Fn(&Account) -> f64| mean(accounts.iter().map(|account| of(account)));
        Sums {
            threads: accounts[0].threads,
            wall_ns: of(&|account| account.wall_ns),
            parts_ns: of(&Account::sum_ns),
            misses: of(&Account::misses),
            samples: of(&|account| account.samples as f64).round() as u64,
            tracing_slows: traced / untraced - 1.0,
        }
    };
    let added: Vec<f64> = accounts
        .iter()
        .map(|(base, subject)| subject.busy_ns() - base.busy_ns())
        .collect();
    let keys: BTreeSet<Part> = accounts
        .iter()
        .flat_map(|(base, subject)| base.parts.keys().chain(subject.parts.keys()).copied())
        .collect();
    let busy: BTreeSet<Cause> = keys
        .iter()
        .filter(|part| !part.is_waiting())
        .map(|part| part.cause)
        .collect();
    let confidence = family::each(CONFIDENCE, busy.len());
    let mut causes: Vec<CauseRow> = busy
        .into_iter()
        .map(|cause| {
            let differences: Vec<f64> = accounts
                .iter()
                .map(|(base, subject)| subject.of_cause(cause) - base.of_cause(cause))
                .collect();
            CauseRow {
                cause,
                base_ns: of_base(&|account| account.of_cause(cause)),
                subject_ns: of_subject(&|account| account.of_cause(cause)),
                added_ns: centre(&differences, confidence),
                share: share(&differences, &added, confidence),
            }
        })
        .collect();
    causes.sort_by(|one, other| {
        let added = |row: &CauseRow| row.subject_ns - row.base_ns;
        added(other).total_cmp(&added(one))
    });
    let parts = keys.iter().map(|part| PartRow {
        spent: part.spent,
        class: matches!(part.spent, Spent::RunQueue | Spent::Blocked)
            .then(|| Class::from_number(u32::from(part.class)).map(class))
            .flatten(),
        cause: part.cause,
        is_waiting: part.is_waiting(),
        base_ns: of_base(&|account| account.sum(|other| other == part)),
        subject_ns: of_subject(&|account| account.sum(|other| other == part)),
    });
    let (bases, subjects): (Vec<&Account>, Vec<&Account>) =
        accounts.iter().map(|(base, subject)| (base, subject)).unzip();
    Some(Budget {
        runs: accounts.len() as u64,
        base: sums(&bases, traced_base, untraced_base),
        subject: sums(&subjects, traced_subject, untraced_subject),
        tracing_changed_gap_ns: (traced_subject - traced_base) - (untraced_subject - untraced_base),
        added_ns: mean(added.iter().copied()),
        causes,
        parts: parts.collect(),
        functions: functions(accounts),
    })
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

/// An estimate as people read it: the figure, and how uncertain it is.
#[must_use]
pub fn plus_minus(estimate: &Estimate, digits: usize) -> String {
    if estimate.half_width().is_finite() {
        format!("{:.digits$} ± {:.digits$}", estimate.value, estimate.half_width())
    } else {
        format!("{:.digits$} (too few runs for an interval)", estimate.value)
    }
}
