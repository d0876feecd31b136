//! Makes the answer from the runs.

use super::intervention::InterventionKind;
use super::result::{CounterRow, Explanation, Gap, NotTried, Others, SCHEMA, Side, Tried};
use super::verdict;
use crate::budget::account::{Account, SleepCauses};
use crate::budget::{Pairs, Unit, budget};
use crate::percentile::median;
use crate::result::{Host, Unavailable};
use crate::statistics::estimate::{centre, share};
use crate::statistics::family;
use crate::statistics::groups::groups;
use ctxtrace_format::counted::Counted;

/// Confidence of all claims together. For a hundred pairs of cases without a difference, a difference is claimed for about one
/// pair.
pub const CONFIDENCE: f64 = 0.99;

/// Smallest number of blocks from which the gap is determined.
pub const LEAST_BLOCKS: usize = 15;

/// No more blocks are needed for an intervention if its interval is narrower than this share of the gap.
const NARROW: f64 = 0.1;

/// The times of one run of each case in the same block, in nanoseconds per message or per run of a command.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Pair {
    /// Time of the base.
    pub base: f64,
    /// Time of the subject.
    pub subject: f64,
}

impl Pair {
    /// Returns the time of the subject minus that of the base.
    #[must_use]
    pub fn gap(&self) -> f64 {
        self.subject - self.base
    }
}

/// The runs of one intervention. Each block also has runs of both cases without the change.
#[derive(Clone, Debug, Default)]
pub struct Runs {
    /// The runs without the change.
    pub plain: Vec<Pair>,
    /// The runs with the change. For a case that the intervention does not change, it is the run without the change.
    pub changed: Vec<Pair>,
}

/// One intervention that was tried.
#[derive(Clone, Debug)]
pub struct Trial {
    /// Name of the intervention.
    pub name: String,
    /// What was changed.
    pub what: String,
    /// What the intervention can show.
    pub kind: InterventionKind,
    /// The runs of the intervention.
    pub runs: Runs,
}

/// What is known about one of the two cases.
#[derive(Clone, Debug)]
pub struct CaseFacts {
    /// Name of the case.
    pub name: String,
    /// Number of messages that a channel holds.
    pub buffer: Option<u64>,
    /// Largest number of messages in flight, if it was counted.
    pub max_in_flight: Option<u64>,
}

/// The counts of one run of the base and one run of the subject, per message or per run.
pub type CountedPair = (Vec<(Counted, f64)>, Vec<(Counted, f64)>);

/// All measurements.
#[derive(Clone, Debug)]
pub struct Measurements {
    /// The unit that times and counts are divided by.
    pub unit: Unit,
    /// The case that the subject is compared with.
    pub base: CaseFacts,
    /// The case whose slowness is to be explained.
    pub subject: CaseFacts,
    /// Untraced runs from which the gap is computed.
    pub gap: Vec<Pair>,
    /// Budgets of traced runs of the base and the subject.
    pub accounts: Vec<(Account, Account)>,
    /// Number of traced runs that are not used because their parts do not add up.
    pub discarded: u64,
    /// What threads sleep for, from one run of the base and one of the subject.
    pub asleep: Option<(SleepCauses, SleepCauses)>,
    /// What the processor and the kernel counted, for each pair of runs.
    pub counters: Vec<CountedPair>,
    /// Counters that are not available, and why.
    pub no_counters: Vec<(Counted, String)>,
    /// The interventions that were tried.
    pub interventions: Vec<Trial>,
    /// The interventions that were not tried.
    pub not_tried: Vec<NotTried>,
    /// How much CPU time was used by other programs and the hypervisor.
    pub others: Option<Others>,
    /// Why not all planned measurements were made.
    pub cut_short: Option<String>,
}

/// Returns the gap between two cases.
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

/// Whether no more blocks are needed: there are at least [`LEAST_BLOCKS`], and the interval is narrow compared with the gap, or
/// shows that any gap is negligible compared with the base's time.
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

/// Returns the number of blocks that this number of interventions needs. With fewer blocks the intervals have no ends.
#[must_use]
pub fn blocks_for(interventions: usize) -> usize {
    family::blocks_needed(family::each(CONFIDENCE, interventions))
}

/// Whether more blocks would not improve the result of any intervention much.
#[must_use]
pub fn are_narrow<'a>(runs: impl ExactSizeIterator<Item = &'a Runs>) -> bool {
    let confidence = family::each(CONFIDENCE, runs.len());
    let mut runs = runs;
    runs.all(|runs| {
        let (taken, gaps) = taken(runs);
        share(&taken, &gaps, confidence).is_some_and(|closes| 2.0 * closes.half_width() < NARROW)
    })
}

/// Makes the answer.
#[must_use]
pub fn explain(version: &str, host: &Host, measured: &Measurements) -> Explanation {
    let gap = gap_of(&measured.gap);
    let side = |case: &CaseFacts, of: fn(&Pair) -> f64| {
        let values: Vec<f64> = measured.gap.iter().map(of).collect();
        Side {
            name: case.name.clone(),
            ns: centre(&values, CONFIDENCE),
            groups: groups(&values),
            buffer: case.buffer,
            max_in_flight: case.max_in_flight,
        }
    };
    let interventions = interventions(&measured.interventions, gap.is_clear);
    let middle = |of: fn(&Pair) -> f64| median(&measured.gap.iter().map(of).collect::<Vec<_>>());
    let pairs = Pairs {
        accounts: &measured.accounts,
        discarded: measured.discarded,
        untraced: middle(|pair| pair.base).zip(middle(|pair| pair.subject)),
    };
    let mut explanation = Explanation {
        schema: SCHEMA.to_owned(),
        ctxtrace_version: version.to_owned(),
        host: host.clone(),
        complete: measured.cut_short.is_none(),
        cut_short: measured.cut_short.clone(),
        unit: measured.unit,
        base: side(&measured.base, |pair| pair.base),
        subject: side(&measured.subject, |pair| pair.subject),
        budget: budget(pairs, CONFIDENCE),
        counters: counters(&measured.counters),
        gap,
        interventions,
        not_tried: measured.not_tried.clone(),
        verdict: Vec::new(),
        not_explained: Vec::new(),
        others: measured.others,
        unavailable: Vec::new(),
    };
    explanation.unavailable = unavailable(&explanation, measured);
    (explanation.verdict, explanation.not_explained) = verdict::verdict(&explanation);
    explanation
}

/// Returns, for each block, by how much the change made the gap smaller, and the gap without the change.
fn taken(runs: &Runs) -> (Vec<f64>, Vec<f64>) {
    let gaps: Vec<f64> = runs.plain.iter().map(Pair::gap).collect();
    let left = runs.changed.iter().map(Pair::gap);
    let taken = gaps.iter().zip(left).map(|(gap, left)| gap - left).collect();
    (taken, gaps)
}

/// Returns the effect of each intervention. If there is no gap, an intervention may still create one.
fn interventions(trials: &[Trial], is_clear: bool) -> Vec<Tried> {
    let confidence = family::each(CONFIDENCE, trials.len());
    let result = |trial: &Trial| {
        let (taken, gaps) = taken(&trial.runs);
        let changed = &trial.runs.changed;
        let left: Vec<f64> = changed.iter().map(Pair::gap).collect();
        let middle = |of: fn(&Pair) -> f64| median(&changed.iter().map(of).collect::<Vec<_>>());
        Tried {
            name: trial.name.clone(),
            what: trial.what.clone(),
            kind: trial.kind,
            base_ns: middle(|pair| pair.base),
            subject_ns: middle(|pair| pair.subject),
            gap_ns: centre(&left, confidence),
            closes: is_clear.then(|| share(&taken, &gaps, confidence)).flatten(),
            blocks: changed.len() as u64,
        }
    };
    trials.iter().map(result).collect()
}

fn counters(pairs: &[CountedPair]) -> Vec<CounterRow> {
    let Some((first, _)) = pairs.first() else {
        return Vec::new();
    };
    let confidence = family::each(CONFIDENCE, first.len());
    let row = |&(counted, _): &(Counted, f64)| {
        let of = |counts: &[(Counted, f64)]| {
            let found = counts.iter().find(|(other, _)| *other == counted);
            found.map_or(0.0, |&(_, count)| count)
        };
        let sides: Vec<(f64, f64)> = pairs.iter().map(|(base, subject)| (of(base), of(subject))).collect();
        let differences: Vec<f64> = sides.iter().map(|(base, subject)| subject - base).collect();
        let middle = |values: Vec<f64>| median(&values).unwrap_or(0.0);
        CounterRow {
            counted,
            base: middle(sides.iter().map(|&(base, _)| base).collect()),
            subject: middle(sides.iter().map(|&(_, subject)| subject).collect()),
            added: centre(&differences, confidence),
        }
    };
    first.iter().map(row).collect()
}

fn unavailable(explanation: &Explanation, measured: &Measurements) -> Vec<Unavailable> {
    let mut list: Vec<Unavailable> = measured
        .no_counters
        .iter()
        .map(|(counted, reason)| Unavailable {
            path: format!("counters[{}]", counted.in_words()),
            reason: reason.clone(),
        })
        .collect();
    let mut add = |path: &str, reason: &str| {
        list.push(Unavailable {
            path: path.to_owned(),
            reason: reason.to_owned(),
        });
    };
    if explanation.budget.is_none() {
        let reason = match &explanation.cut_short {
            _ if !explanation.gap.is_clear => "there is no gap larger than the noise, so no run was traced",
            Some(_) => "the measurement was cut short before a run was traced",
            None => "no traced run could be used: events of all of them were hidden or lost",
        };
        add("budget", reason);
    }
    for (path, side) in [("base", &explanation.base), ("subject", &explanation.subject)] {
        if side.max_in_flight.is_none() {
            add(
                &format!("{path}.max_in_flight"),
                "messages in flight are counted only for workloads with tasks, and only if base and subject differ",
            );
        }
    }
    list
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::budget::account::{Cause, Spent, TimePart};
    use crate::explain::result::{Evidence, Says};
    use crate::fixtures::explanations::{case, host, measured, with_a_gap, without_a_gap, without_a_gap_pairs};
    use crate::symbolize::category::Category;

    fn about(answer: &Explanation, says: Says) -> Vec<&str> {
        let claims = answer.verdict.iter().filter(|claim| claim.says == says);
        claims.map(|claim| claim.about.as_str()).collect()
    }

    #[test]
    fn causes_come_strongest_first_and_conditions_after_them() {
        let answer = with_a_gap();
        assert_eq!(
            about(&answer, Says::Cause),
            [
                "jemalloc",
                "allocator",
                "channel",
                "run queue (waiting for a CPU)",
                "scheduler"
            ]
        );
        assert_eq!(about(&answer, Says::Kernel), ["kernel switches"]);
        assert_eq!(about(&answer, Says::Condition), ["one-worker"]);
        assert_eq!(about(&answer, Says::NotTheCause), ["block-on-root"]);
        let order: Vec<Says> = answer.verdict.iter().map(|claim| claim.says).collect();
        assert!(order.is_sorted(), "{order:?}");
    }

    #[test]
    fn what_tracing_changed_is_not_claimed() {
        let mut measured = measured();
        for pair in &mut measured.gap {
            // As if tracing had increased the gap by half.
            pair.subject -= 70.0;
        }
        let answer = explain("0.0.0", &host(), &measured);
        let from_budget: Vec<&str> = answer
            .verdict
            .iter()
            .filter(|claim| claim.says == Says::Cause && claim.evidence == Evidence::Budget)
            .map(|claim| claim.about.as_str())
            .collect();
        assert!(
            !from_budget.contains(&"scheduler") && !from_budget.contains(&"run queue (waiting for a CPU)"),
            "{from_budget:?}"
        );
    }

    #[test]
    fn a_cause_is_named_although_its_share_has_no_interval() {
        let mut measured = measured();
        // One run of the base waited so long for a CPU that it took longer than its subject.
        let waiting = TimePart {
            spent: Spent::RunQueue,
            class: 0,
            cause: Cause::RunQueue,
        };
        measured.accounts[0].0.parts.insert(waiting, 5_000.0);
        let answer = explain("0.0.0", &host(), &measured);
        let budget = answer.budget.as_ref().expect("a budget");
        let cause = Cause::Code(Category::Allocator);
        let row = budget.causes.iter().find(|row| row.cause == cause).expect("a row");
        assert_eq!(row.share.expect("a share").low, None);
        let claim = answer
            .verdict
            .iter()
            .find(|claim| claim.about == "allocator")
            .expect("a claim");
        assert!(
            claim
                .sentence
                .contains("ns per message of the thread time that the subject adds"),
            "{}",
            claim.sentence
        );
    }

    #[test]
    fn without_a_gap_changes_that_create_one_are_reported() {
        let answer = without_a_gap();
        assert!(!answer.gap.is_clear);
        assert_eq!(about(&answer, Says::Cause), ["buffer"]);
        assert_eq!(about(&answer, Says::Condition), ["pipelined"]);
        assert!(
            answer.verdict[1].sentence.contains("faster"),
            "{}",
            answer.verdict[1].sentence
        );
        assert!(answer.unavailable.iter().any(|not| not.path == "budget"));
    }

    #[test]
    fn room_that_is_used_is_not_said_to_be_unused() {
        let mut measured = measured();
        measured.gap = without_a_gap_pairs();
        measured.base = case("task, buffer 16", 16, Some(18));
        measured.subject = case("task, buffer 4096", 4_096, Some(4_000));
        measured.interventions.clear();
        assert!(explain("0.0.0", &host(), &measured).verdict.is_empty());
    }

    #[test]
    fn nothing_measured_is_nothing_claimed() {
        let mut measured = measured();
        measured.gap.clear();
        measured.accounts.clear();
        measured.cut_short = Some("interrupted".to_owned());
        let answer = explain("0.0.0", &host(), &measured);
        assert!(answer.verdict.is_empty() && !answer.complete);
    }
}
