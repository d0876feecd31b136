//! Decides which claims the measurements support, and writes them as sentences.
//!
//! A claim is made only if its interval excludes 0. A claim about the budget must also be larger than the change of the gap that
//! tracing itself caused, because the budget comes from traced runs. The claims are ordered: causes and exchanged parts by their
//! shares; then the share of kernel switches; then the conditions, which only show that the cause needs concurrency or load; then
//! what was shown not to be the cause.
//!
//! The largest share that kernel switches can have is always reported, whether it is small or large, because it is the question
//! that this program answers.

use super::intervention::InterventionKind;
use super::result::{Claim, Evidence, Explanation, Says, Side, Tried};
use crate::budget::account::Spent;
use crate::budget::{Budget, CauseRow, KernelTime, is_named};
use crate::units::significant;

/// An intervention that certainly closes less than this share of the gap is not the cause.
const HARDLY: f64 = 0.1;

/// A difference smaller than this share of the base's time is not reported.
const SMALL: f64 = 0.02;

/// Returns the claims, and the sentences about what is not explained.
#[must_use]
pub fn verdict(explanation: &Explanation) -> (Vec<Claim>, Vec<String>) {
    let Some(gap) = explanation.gap.ns else {
        return (Vec::new(), vec!["Nothing was measured.".to_owned()]);
    };
    if !explanation.gap.is_clear {
        return without_a_gap(explanation);
    }
    let mut claims: Vec<Claim> = Vec::new();
    if let Some(budget) = &explanation.budget {
        // The share of the gap that tracing changed.
        let floor = budget.tracing_changed_gap_ns.map_or(0.0, |ns| (ns / gap.value).abs());
        let rows = budget.causes.iter().filter(|row| may_be_claimed(row, floor));
        claims.extend(rows.map(|row| of_cause(row, budget, explanation)));
    }
    claims.extend(closing(explanation, &[InterventionKind::Part], Says::Cause));
    strongest_first(&mut claims);
    claims.extend(
        explanation
            .budget
            .as_ref()
            .map(|budget| of_kernel(&budget.kernel, explanation)),
    );
    for kind in [InterventionKind::Concurrency, InterventionKind::Load] {
        let mut conditions = closing(explanation, &[kind], Says::Condition);
        strongest_first(&mut conditions);
        claims.extend(conditions);
    }
    claims.extend(
        explanation
            .interventions
            .iter()
            .filter(|tried| {
                tried.kind == InterventionKind::Part && tried.closes.is_some_and(|closes| closes.is_below(HARDLY))
            })
            .filter(|tried| tried.closes.is_some_and(|closes| !closes.is_above(0.0)))
            .map(|tried| of_no_cause(tried, explanation)),
    );
    let left = not_explained(explanation, &claims, gap.value);
    (claims, left)
}

/// Returns whether a cause of the budget may be claimed: its added time is certainly above 0, and its share is larger than `floor`, the
/// share of the gap that tracing changed.
///
/// The share has no interval if the added time of some pairs of runs is not above 0, for example after a run that waited long for a CPU.
/// The added time of the cause has an interval of its own, which then decides alone.
fn may_be_claimed(row: &CauseRow, floor: f64) -> bool {
    let is_large = row
        .share
        .is_some_and(|share| share.low.is_none_or(|low| low > 0.0) && share.value > floor);
    is_large && is_named(row.cause) && row.added_ns.is_some_and(|added| added.is_above(0.0))
}

/// Returns the claims about interventions of these kinds that close a part of the gap.
fn closing(explanation: &Explanation, kinds: &[InterventionKind], says: Says) -> Vec<Claim> {
    explanation
        .interventions
        .iter()
        .filter(|tried| kinds.contains(&tried.kind))
        .filter(|tried| tried.closes.is_some_and(|closes| closes.is_above(0.0)))
        .map(|tried| of_intervention(tried, says, explanation))
        .collect()
}

fn strongest_first(claims: &mut [Claim]) {
    let share = |claim: &Claim| claim.share.map_or(0.0, |share| share.value);
    claims.sort_by(|one, other| share(other).total_cmp(&share(one)));
}

fn of_cause(row: &CauseRow, budget: &Budget, explanation: &Explanation) -> Claim {
    let scale = explanation.scale();
    let parts: Vec<String> = [
        Spent::OnCpuUser,
        Spent::OnCpuKernel,
        Spent::OnCpu,
        Spent::RunQueue,
        Spent::Blocked,
        Spent::OffCpu,
    ]
    .into_iter()
    .filter_map(|spent| {
        let of = budget
            .parts
            .iter()
            .filter(|part| part.spent == spent && part.cause == row.cause && !part.is_waiting);
        let ns: f64 = of.map(|part| part.subject_ns - part.base_ns).sum();
        (ns.abs() >= 0.05 * (row.subject_ns - row.base_ns).abs())
            .then(|| format!("{} {}", spent.in_words(), scale.with_unit(ns)))
    })
    .collect();
    let unit = explanation.unit.in_words();
    let share = match (row.share, row.added_ns) {
        (Some(share), _) if share.low.is_some() => share.percent(),
        (_, Some(added)) => format!("{} {} {unit}", added.in_unit(scale), scale.name),
        _ => String::new(),
    };
    Claim {
        says: Says::Cause,
        sentence: format!(
            "{}: {share} of the thread time that the subject adds, {} of {} {unit} (budget: {})",
            row.cause.in_words(),
            scale.number(row.subject_ns - row.base_ns),
            scale.with_unit(budget.added_ns),
            parts.join(", ")
        ),
        about: row.cause.in_words().to_owned(),
        evidence: Evidence::Budget,
        share: row.share,
    }
}

fn of_kernel(kernel: &KernelTime, explanation: &Explanation) -> Claim {
    let scale = explanation.scale();
    let unit = explanation.unit.in_words();
    let share = match (kernel.share, kernel.added_ns) {
        (Some(share), _) => format!("{} of the thread time that the subject adds", share.percent()),
        (None, Some(added)) => format!(
            "{} {} {unit} of the thread time that the subject adds",
            added.in_unit(scale),
            scale.name
        ),
        (None, None) => "not known".to_owned(),
    };
    Claim {
        says: Says::Kernel,
        sentence: format!(
            "Kernel switches: {} {unit} in the subject, {} in the base. All time in the kernel or caused by it (its code, the run \
             queue, and sleep in polls) is {share}, and the cost of kernel switches is a part of it (budget)",
            significant(kernel.subject_switches),
            significant(kernel.base_switches),
        ),
        about: "kernel switches".to_owned(),
        evidence: Evidence::Budget,
        share: kernel.share,
    }
}

fn sides(tried: &Tried, explanation: &Explanation) -> String {
    let scale = explanation.scale();
    let of = |ns: Option<f64>| ns.map_or("?".to_owned(), |ns| scale.number(ns));
    format!(
        "intervention {}: base {}, subject {} {} {}",
        tried.name,
        of(tried.base_ns),
        of(tried.subject_ns),
        scale.name,
        explanation.unit.in_words()
    )
}

fn of_intervention(tried: &Tried, says: Says, explanation: &Explanation) -> Claim {
    Claim {
        says,
        sentence: format!(
            "{} closes {} of the gap ({})",
            tried.what,
            tried.closes.map_or_else(String::new, |closes| closes.percent()),
            sides(tried, explanation)
        ),
        about: tried.name.clone(),
        evidence: Evidence::Intervention,
        share: tried.closes,
    }
}

fn of_no_cause(tried: &Tried, explanation: &Explanation) -> Claim {
    let most = tried.closes.and_then(|closes| closes.high).unwrap_or(f64::NAN);
    Claim {
        says: Says::NotTheCause,
        sentence: format!(
            "{} closes at most {:.0} % of the gap ({})",
            tried.what,
            (100.0 * most).max(0.0),
            sides(tried, explanation)
        ),
        about: tried.name.clone(),
        evidence: Evidence::Intervention,
        share: tried.closes,
    }
}

/// Returns the claims for two cases that take the same time: the changes that make them differ, if there are any.
fn without_a_gap(explanation: &Explanation) -> (Vec<Claim>, Vec<String>) {
    let mut claims: Vec<Claim> = of_unused_room(&explanation.base, &explanation.subject)
        .into_iter()
        .collect();
    // A small difference is not reported, even if it is real.
    let least = SMALL * explanation.base.ns.map_or(0.0, |ns| ns.value);
    let mut opening: Vec<&Tried> = explanation
        .interventions
        .iter()
        .filter(|tried| tried.gap_ns.is_some_and(|gap| gap.value.abs() > least))
        .filter(|tried| tried.gap_ns.is_some_and(|gap| gap.is_above(0.0) || gap.is_below(0.0)))
        .collect();
    let size = |tried: &&Tried| tried.gap_ns.map_or(0.0, |gap| gap.value.abs());
    opening.sort_by(|one, other| size(other).total_cmp(&size(one)));
    claims.extend(opening.into_iter().filter_map(|tried| {
        let gap = tried.gap_ns?;
        let direction = if gap.value > 0.0 { "slower" } else { "faster" };
        Some(Claim {
            says: Says::Condition,
            sentence: format!(
                "with {} the subject is {direction} by {} {} {} ({})",
                tried.what,
                gap.magnitude().in_unit(explanation.scale()),
                explanation.scale().name,
                explanation.unit.in_words(),
                sides(tried, explanation)
            ),
            about: tried.name.clone(),
            evidence: Evidence::Intervention,
            share: None,
        })
    }));
    let left = if explanation.gap.ns.is_some_and(|gap| gap.is_below(0.0)) {
        "The subject is faster than the base: exchange the two to find out why the base is slower."
    } else if claims.is_empty() {
        "There is no gap larger than the noise, so there is nothing to explain."
    } else {
        "The two cases as they are have no gap larger than the noise. The changes that make a difference were not analysed \
         further: apply such a change to both cases and run `ctxtrace explain` again."
    };
    (claims, vec![left.to_owned()])
}

/// Returns the claim that the larger buffer makes no difference, if there are never enough messages in flight to fill the smaller
/// one.
fn of_unused_room(base: &Side, subject: &Side) -> Option<Claim> {
    let (smaller, larger) = (base.buffer?.min(subject.buffer?), base.buffer?.max(subject.buffer?));
    let most = base.max_in_flight?.max(subject.max_in_flight?);
    // In addition to the messages in the channel, one message is in the hands of a task.
    (smaller < larger && most <= smaller + 1).then(|| Claim {
        says: Says::Cause,
        sentence: format!(
            "at most {most} message{} in flight, with the buffer of {larger} as well as with that of {smaller}: the additional \
             room of the larger buffer is never used (messages in flight were counted)",
            if most == 1 { " is ever" } else { "s are ever" }
        ),
        about: "buffer".to_owned(),
        evidence: Evidence::InFlight,
        share: None,
    })
}

fn not_explained(explanation: &Explanation, claims: &[Claim], gap_ns: f64) -> Vec<String> {
    let mut left = Vec::new();
    let (unit, scale) = (explanation.unit.in_words(), explanation.scale());
    let causes: Vec<&Claim> = claims.iter().filter(|claim| claim.says == Says::Cause).collect();
    let closing: Vec<&Tried> = explanation
        .interventions
        .iter()
        .filter(|tried| tried.kind == InterventionKind::Part && tried.closes.is_some_and(|closes| closes.is_above(0.0)))
        .collect();
    if causes.len() > 1 && !closing.is_empty() {
        left.push(
            "Causes overlap: exchanging one part removes time from several parts of the budget, and two exchanges together do not \
             close the sum of what each closes."
                .to_owned(),
        );
    }
    let strongest = closing
        .iter()
        .filter_map(|tried| Some((tried, tried.closes?)))
        .max_by(|one, other| one.1.value.total_cmp(&other.1.value));
    match strongest {
        Some((tried, closes)) if closes.value < 0.9 => left.push(format!(
            "{:.0} % of the gap ({} {unit}) remains with {}, and no other exchanged part closes more.",
            100.0 * (1.0 - closes.value),
            scale.with_unit(gap_ns * (1.0 - closes.value)),
            tried.what,
        )),
        Some(_) => {}
        None if !explanation.interventions.is_empty() => {
            left.push(
                "None of the exchanged parts closes any of the gap: the causes in the budget were not tested individually."
                    .to_owned(),
            );
        }
        None => {}
    }
    left.extend(
        explanation
            .budget
            .as_ref()
            .map(|budget| unnamed(budget, &causes, explanation)),
    );
    for side in [&explanation.base, &explanation.subject] {
        if let [fast, slow] = side.groups.as_slice() {
            left.push(format!(
                "Runs of {} fall into two groups, {} ({:.0} %) and {} ({:.0} %): it is not known why a run is in one or the other.",
                side.name,
                scale.with_unit(fast.median),
                100.0 * fast.share,
                scale.with_unit(slow.median),
                100.0 * slow.share
            ));
        }
    }
    left
}

/// Returns a sentence about the part of the added time that no claim names.
fn unnamed(budget: &Budget, causes: &[&Claim], explanation: &Explanation) -> String {
    let scale = explanation.scale();
    if budget.added_ns <= 0.0 {
        return "The subject's threads are not busy for longer than the base's: the gap comes from how they wait for each other.".to_owned();
    }
    let is_claimed = |row: &&CauseRow| {
        causes
            .iter()
            .any(|claim| claim.evidence == Evidence::Budget && claim.about == row.cause.in_words())
    };
    let added = budget
        .causes
        .iter()
        .filter(|row| !is_claimed(row))
        .map(|row| row.subject_ns - row.base_ns);
    let unnamed: f64 = added.filter(|added| *added > 0.0).sum();
    format!(
        "Of the {} {} of thread time that the subject adds, {} are in parts that are too small or too uncertain to be named.",
        scale.with_unit(budget.added_ns),
        explanation.unit.in_words(),
        scale.with_unit(unnamed)
    )
}
