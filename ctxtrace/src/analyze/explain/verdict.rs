//! What may be claimed, in sentences.
//!
//! A claim needs an interval that excludes nothing at all. One about the budget must besides be larger than what tracing itself
//! changed of the gap: the budget is that of traced runs. Causes and exchanged parts come first, by their shares; what only says
//! that the cause needs concurrency, or load, comes after them; then what was shown to be no cause.
//!
//! How much of it kernel switches can be is always told, small or large: it is what this program is asked.

use super::intervention::Kind;
use super::result::{Claim, Evidence, Explanation, Says, Side, Tried};
use crate::analyze::budget::account::Spent;
use crate::analyze::budget::{Budget, CauseRow, Kernel, is_named};
use crate::units::significant;

/// What closes less of the gap than this, for sure, is not the cause.
const HARDLY: f64 = 0.1;

/// A difference of less than this of what the base takes matters to nobody.
const SMALL: f64 = 0.02;

/// The claims, and what is not explained.
#[must_use]
pub fn of(explanation: &Explanation) -> (Vec<Claim>, Vec<String>) {
    let Some(gap) = explanation.gap.ns else {
        return (Vec::new(), vec!["Nothing was measured.".to_owned()]);
    };
    if !explanation.gap.is_clear {
        return without_a_gap(explanation);
    }
    let mut claims: Vec<Claim> = Vec::new();
    if let Some(budget) = &explanation.budget {
        // Of the gap, what tracing changed.
        let floor = budget.tracing_changed_gap_ns.map_or(0.0, |ns| (ns / gap.value).abs());
        let rows = budget.causes.iter().filter(|row| may_be_claimed(row, floor));
        claims.extend(rows.map(|row| of_cause(row, budget, explanation)));
    }
    claims.extend(closing(explanation, &[Kind::Part], Says::Cause));
    strongest_first(&mut claims);
    claims.extend(
        explanation
            .budget
            .as_ref()
            .map(|budget| of_kernel(&budget.kernel, explanation)),
    );
    for kind in [Kind::Concurrency, Kind::Load] {
        let mut conditions = closing(explanation, &[kind], Says::Condition);
        strongest_first(&mut conditions);
        claims.extend(conditions);
    }
    claims.extend(
        explanation
            .interventions
            .iter()
            .filter(|tried| tried.kind == Kind::Part && tried.closes.is_some_and(|closes| closes.is_below(HARDLY)))
            .filter(|tried| tried.closes.is_some_and(|closes| !closes.is_above(0.0)))
            .map(|tried| of_no_cause(tried, explanation)),
    );
    let left = not_explained(explanation, &claims, gap.value);
    (claims, left)
}

fn may_be_claimed(row: &CauseRow, floor: f64) -> bool {
    let is_large = row
        .share
        .is_some_and(|share| share.is_above(0.0) && share.value > floor);
    is_large && is_named(row.cause) && row.added_ns.is_some_and(|added| added.is_above(0.0))
}

/// The interventions of these kinds that close anything of the gap.
fn closing(explanation: &Explanation, kinds: &[Kind], says: Says) -> Vec<Claim> {
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
            .then(|| format!("{} {}", spent.in_words(), scale.told(ns)))
    })
    .collect();
    Claim {
        says: Says::Cause,
        sentence: format!(
            "{}: {} of the thread time that the subject adds, {} of {} {} (budget: {})",
            row.cause.in_words(),
            row.share.map_or_else(String::new, |share| share.percent()),
            scale.number(row.subject_ns - row.base_ns),
            scale.told(budget.added_ns),
            explanation.unit.in_words(),
            parts.join(", ")
        ),
        about: row.cause.in_words().to_owned(),
        evidence: Evidence::Budget,
        share: row.share,
    }
}

fn of_kernel(kernel: &Kernel, explanation: &Explanation) -> Claim {
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
            "Kernel switches: {} {unit}, the base {}. All that goes through the kernel (its code, the run queue, and sleep in polls) \
             is {share}, and kernel switches are a part of that (budget)",
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
            "{} closes nothing of the gap, or no more than {:.0} % ({})",
            tried.what,
            (100.0 * most).max(0.0),
            sides(tried, explanation)
        ),
        about: tried.name.clone(),
        evidence: Evidence::Intervention,
        share: tried.closes,
    }
}

/// Where the cases take the same, what makes them differ is told, if anything does.
fn without_a_gap(explanation: &Explanation) -> (Vec<Claim>, Vec<String>) {
    let mut claims: Vec<Claim> = of_unused_room(&explanation.base, &explanation.subject)
        .into_iter()
        .collect();
    // What is real and does not matter is not told.
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
                "with {} the subject is {direction}, by {} {} {} ({})",
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
        "The subject is the faster one: exchange the two to ask why the base is slower."
    } else if claims.is_empty() {
        "There is no gap beyond noise, so there is nothing to explain."
    } else {
        "There is no gap beyond noise as they are. What makes a difference was not taken apart further: change both cases so, and ask \
         again."
    };
    (claims, vec![left.to_owned()])
}

/// A buffer beyond the messages that are ever in flight holds nothing.
fn of_unused_room(base: &Side, subject: &Side) -> Option<Claim> {
    let (smaller, larger) = (base.buffer?.min(subject.buffer?), base.buffer?.max(subject.buffer?));
    let most = base.max_in_flight?.max(subject.max_in_flight?);
    // One beside those in the channel is on its way.
    (smaller < larger && most <= smaller + 1).then(|| Claim {
        says: Says::Cause,
        sentence: format!(
            "no more than {most} message{} in flight at any time, with the buffer of {larger} as with that of {smaller}: what the \
             larger one has room for is never used (messages in flight: counted)",
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
        .filter(|tried| tried.kind == Kind::Part && tried.closes.is_some_and(|closes| closes.is_above(0.0)))
        .collect();
    if causes.len() > 1 && !closing.is_empty() {
        left.push(
            "Causes overlap: an exchanged part takes away time of several parts of the budget, and what two exchanges close is not \
             what both together would."
                .to_owned(),
        );
    }
    let strongest = closing
        .iter()
        .filter_map(|tried| Some((tried, tried.closes?)))
        .max_by(|one, other| one.1.value.total_cmp(&other.1.value));
    match strongest {
        Some((tried, closes)) if closes.value < 0.9 => left.push(format!(
            "Of the gap, {:.0} % ({} {unit}) is left with {}, and no other part that was exchanged closes more.",
            100.0 * (1.0 - closes.value),
            scale.told(gap_ns * (1.0 - closes.value)),
            tried.what,
        )),
        Some(_) => {}
        None if !explanation.interventions.is_empty() => {
            left.push(
                "No part that was exchanged closes any of the gap: what the budget names was not tested apart."
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
                "Runs of {} fall into two groups, {} ({:.0} %) and {} ({:.0} %): why a run is in the one or the other is not known.",
                side.name,
                scale.told(fast.median),
                100.0 * fast.share,
                scale.told(slow.median),
                100.0 * slow.share
            ));
        }
    }
    left
}

/// What of the added time no claim names.
fn unnamed(budget: &Budget, causes: &[&Claim], explanation: &Explanation) -> String {
    let scale = explanation.scale();
    if budget.added_ns <= 0.0 {
        return "The subject's threads are busy for no longer than the base's: the gap is in how they wait for each other.".to_owned();
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
        "Of the {} {} of thread time that the subject adds, {} are in parts too small or too uncertain to name.",
        scale.told(budget.added_ns),
        explanation.unit.in_words(),
        scale.told(unnamed)
    )
}
