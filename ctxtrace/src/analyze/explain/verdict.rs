//! What may be claimed, in sentences.
//!
//! A claim needs an interval that excludes nothing at all. One about the budget must besides be larger than what tracing itself
//! changed of the gap: the budget is that of traced runs. Causes and exchanged parts come first, by their shares; what only says
//! that the cause needs concurrency, or load, comes after them.

use super::account::Spent;
use super::explain::{is_named, plus_minus};
use super::intervention::Kind;
use super::result::{Budget, CauseRow, Claim, Evidence, Explanation, Tried};
use crate::units::significant;

/// The claims, and what is not explained.
#[must_use]
pub fn of(explanation: &Explanation) -> (Vec<Claim>, Vec<String>) {
    let Some(gap) = explanation.gap.ns else {
        return (Vec::new(), vec!["Nothing was measured.".to_owned()]);
    };
    if !explanation.gap.is_clear {
        return without_a_gap(explanation);
    }
    let mut first: Vec<Claim> = Vec::new();
    if let Some(budget) = &explanation.budget {
        // Of the gap, what tracing changed.
        let floor = (budget.tracing_changed_gap_ns / gap.value).abs();
        first.extend(
            budget
                .causes
                .iter()
                .filter(|row| {
                    row.share
                        .is_some_and(|share| share.is_above(0.0) && share.value > floor)
                })
                .filter(|row| is_named(row.cause) && row.added_ns.is_some_and(|added| added.is_above(0.0)))
                .map(|row| of_cause(row, budget, explanation)),
        );
    }
    let closing = |kinds: &[Kind]| {
        explanation
            .interventions
            .iter()
            .filter(|tried| kinds.contains(&tried.kind))
            .filter(|tried| tried.closes.is_some_and(|closes| closes.is_above(0.0)))
            .map(|tried| of_intervention(tried, explanation))
            .collect::<Vec<_>>()
    };
    first.extend(closing(&[Kind::Part]));
    strongest_first(&mut first);
    let mut concurrency = closing(&[Kind::Concurrency]);
    strongest_first(&mut concurrency);
    let mut load = closing(&[Kind::Load]);
    strongest_first(&mut load);
    first.extend(concurrency);
    first.extend(load);
    let left = not_explained(explanation, &first, gap.value);
    (first, left)
}

fn strongest_first(claims: &mut [Claim]) {
    let share = |claim: &Claim| claim.share.map_or(0.0, |share| share.value);
    claims.sort_by(|one, other| share(other).total_cmp(&share(one)));
}

fn of_cause(row: &CauseRow, budget: &Budget, explanation: &Explanation) -> Claim {
    let parts: Vec<String> = [Spent::OnCpuUser, Spent::OnCpuKernel, Spent::RunQueue, Spent::Blocked]
        .into_iter()
        .filter_map(|spent| {
            let of = budget
                .parts
                .iter()
                .filter(|part| part.spent == spent && part.cause == row.cause && !part.is_waiting);
            let ns: f64 = of.map(|part| part.subject_ns - part.base_ns).sum();
            (ns.abs() >= 0.05 * (row.subject_ns - row.base_ns).abs())
                .then(|| format!("{} {} ns", spent.in_words(), significant(ns)))
        })
        .collect();
    let share = row.share.map(|share| share.times(100.0));
    Claim {
        sentence: format!(
            "{}: {} % of the thread time that the subject adds, {} of {} ns {} (budget: {})",
            row.cause.in_words(),
            share.map_or_else(String::new, |share| plus_minus(&share, 0)),
            significant(row.subject_ns - row.base_ns),
            significant(budget.added_ns),
            explanation.unit.in_words(),
            parts.join(", ")
        ),
        about: row.cause.in_words().to_owned(),
        evidence: Evidence::Budget,
        share: row.share,
    }
}

fn sides(tried: &Tried, explanation: &Explanation) -> String {
    let ns = |ns: Option<f64>| ns.map_or("?".to_owned(), significant);
    format!(
        "base {}, subject {} ns {}",
        ns(tried.base_ns),
        ns(tried.subject_ns),
        explanation.unit.in_words()
    )
}

fn of_intervention(tried: &Tried, explanation: &Explanation) -> Claim {
    let closes = tried.closes.map(|closes| closes.times(100.0));
    Claim {
        sentence: format!(
            "{} closes {} % of the gap (intervention {}: {})",
            tried.what,
            closes.map_or_else(String::new, |closes| plus_minus(&closes, 0)),
            tried.name,
            sides(tried, explanation)
        ),
        about: tried.name.clone(),
        evidence: Evidence::Intervention,
        share: tried.closes,
    }
}

/// Where the cases take the same, what makes them differ is told, if anything does.
fn without_a_gap(explanation: &Explanation) -> (Vec<Claim>, Vec<String>) {
    let opens = explanation.interventions.iter().filter_map(|tried| {
        let gap = tried.gap_ns.filter(|gap| gap.is_above(0.0) || gap.is_below(0.0))?;
        let direction = if gap.value > 0.0 { "slower" } else { "faster" };
        Some(Claim {
            sentence: format!(
                "with {} the subject is {direction}, by {} ns {} (intervention {}: {})",
                tried.what,
                plus_minus(&gap.magnitude(), 1),
                explanation.unit.in_words(),
                tried.name,
                sides(tried, explanation)
            ),
            about: tried.name.clone(),
            evidence: Evidence::Intervention,
            share: None,
        })
    });
    let mut left = Vec::new();
    if explanation.gap.ns.is_some_and(|gap| gap.is_below(0.0)) {
        left.push("The subject is the faster one: exchange the two to ask why the base is slower.".to_owned());
    } else {
        left.push("There is no gap beyond noise, so there is nothing to explain.".to_owned());
    }
    (opens.collect(), left)
}

fn not_explained(explanation: &Explanation, claims: &[Claim], gap_ns: f64) -> Vec<String> {
    let mut left = Vec::new();
    let closing: Vec<&Tried> = explanation
        .interventions
        .iter()
        .filter(|tried| tried.kind == Kind::Part && tried.closes.is_some_and(|closes| closes.is_above(0.0)))
        .collect();
    if closing.len() > 1 {
        left.push(
            "The changes were tried one at a time and overlap: their shares do not add up to what all of them together would \
             close."
                .to_owned(),
        );
    }
    let strongest = closing
        .iter()
        .filter_map(|tried| Some((tried, tried.closes?)))
        .max_by(|one, other| one.1.value.total_cmp(&other.1.value));
    match strongest {
        Some((tried, closes)) if closes.value < 0.9 => left.push(format!(
            "{} leaves {} % of the gap ({} ns {}), and no other part that was exchanged closes more.",
            tried.what,
            significant(100.0 * (1.0 - closes.value)),
            significant(gap_ns * (1.0 - closes.value)),
            explanation.unit.in_words()
        )),
        Some(_) => {}
        None if !explanation.interventions.is_empty() => {
            left.push("No part that was exchanged closes any of the gap: the parts named by the budget were not tested apart.".to_owned());
        }
        None => {}
    }
    if let Some(budget) = &explanation.budget {
        let unnamed: f64 = budget
            .causes
            .iter()
            .filter(|row| {
                !claims
                    .iter()
                    .any(|claim| claim.evidence == Evidence::Budget && claim.about == row.cause.in_words())
            })
            .map(|row| row.subject_ns - row.base_ns)
            .filter(|added| *added > 0.0)
            .sum();
        if budget.added_ns > 0.0 {
            left.push(format!(
                "Of the {} ns {} of thread time that the subject adds, {} are in parts too small or too uncertain to name.",
                significant(budget.added_ns),
                explanation.unit.in_words(),
                significant(unnamed)
            ));
        } else {
            left.push("The subject's threads are busy for no longer than the base's: the gap is in how they wait for each other.".to_owned());
        }
    }
    for side in [&explanation.base, &explanation.subject] {
        if let [fast, slow] = side.groups.as_slice() {
            left.push(format!(
                "Runs of {} fall into two groups, {} ns ({:.0} %) and {} ns ({:.0} %): why a run is in the one or the other is not known.",
                side.name,
                significant(fast.median),
                100.0 * fast.share,
                significant(slow.median),
                100.0 * slow.share
            ));
        }
    }
    left
}
