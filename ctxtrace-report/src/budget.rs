//! Renders a budget, the comparison of where the time goes in two cases, as tables of text.

use comfy_table::Table;

use super::table::plain_table;
use super::{printable, wrapped};
use ctxtrace_analysis::budget::{Budget, Sums, Unit};
use ctxtrace_analysis::statistics::estimate::Estimate;
use ctxtrace_analysis::units::{Scale, thousands};

/// Maximum number of functions in the table; the others are left out.
const FUNCTIONS: usize = 10;
/// Maximum length of a function's name in characters. Of a longer name the end is shown.
const NAME: usize = 46;

/// Rows below this share of all thread time are left out, 0 to 1.
const LEAST: f64 = 0.005;

/// Renders all tables of the budget, and the lines that say how it was measured.
pub(super) fn tables(budget: &Budget, unit: Unit, scale: Scale) -> String {
    let tested = match budget.tracing_changed_gap_ns {
        Some(changed) => format!(
            "\nTracing changed the gap by {}: smaller differences are not reliable.",
            scale.with_unit(changed)
        ),
        None => String::new(),
    };
    let discarded = match budget.discarded_runs {
        0 => String::new(),
        1 => "\n1 more run was not used, because some of its events were hidden or lost.".to_owned(),
        count => format!("\n{count} more runs were not used, because some of their events were hidden or lost."),
    };
    let tables = [causes(budget, scale), parts(budget, scale), functions(budget, scale)];
    let mut blocks: Vec<String> = tables
        .into_iter()
        .filter(|table| table.row_count() > 0)
        .map(|table| table.to_string())
        .collect();
    blocks.push(format!(
        "{} {}, from {} traced run{} of each.{discarded}{tested}\n{}\n{}",
        scale.name,
        unit.in_words(),
        budget.runs,
        if budget.runs == 1 { "" } else { "s" },
        check("base", &budget.base, scale),
        check("subject", &budget.subject, scale)
    ));
    blocks.join("\n\n")
}

fn causes(budget: &Budget, scale: Scale) -> Table {
    let mut table = plain_table(&["Thread time without waiting", "base", "subject", "added", "share"]);
    let least = LEAST * budget.subject.parts_ns.max(budget.base.parts_ns);
    for row in &budget.causes {
        if row.base_ns.max(row.subject_ns) < least {
            continue;
        }
        table.add_row([
            row.cause.in_words().to_owned(),
            scale.number(row.base_ns),
            scale.number(row.subject_ns),
            row.added_ns
                .map_or_else(String::new, |added| estimate_text(&added, scale)),
            row.share.map_or_else(String::new, |share| percent(&share)),
        ]);
    }
    let kernel = &budget.kernel;
    table.add_row([
        "(kernel, run queue and sleep)".to_owned(),
        scale.number(kernel.base_ns),
        scale.number(kernel.subject_ns),
        kernel
            .added_ns
            .map_or_else(String::new, |added| estimate_text(&added, scale)),
        kernel.share.map_or_else(String::new, |share| percent(&share)),
    ]);
    table
}

/// Formats an estimate: with its confidence interval, or only the number if it has none.
fn estimate_text(estimate: &Estimate, scale: Scale) -> String {
    if estimate.half_width().is_finite() {
        estimate.in_unit(scale)
    } else {
        scale.number(estimate.value)
    }
}

fn percent(share: &Estimate) -> String {
    if share.half_width().is_finite() {
        share.percent()
    } else {
        format!("{:.0} %", 100.0 * share.value)
    }
}

fn parts(budget: &Budget, scale: Scale) -> Table {
    let mut table = plain_table(&["All thread time", "for", "base", "subject"]);
    let least = LEAST * budget.subject.parts_ns.max(budget.base.parts_ns);
    for row in &budget.parts {
        if row.base_ns.max(row.subject_ns) < least {
            continue;
        }
        let spent = match row.class {
            Some(class) => format!("{}: {}", row.spent.in_words(), class.in_words()),
            None => row.spent.in_words().to_owned(),
        };
        table.add_row([
            spent,
            if row.is_waiting {
                "waiting for work".to_owned()
            } else {
                row.cause.in_words().to_owned()
            },
            scale.number(row.base_ns),
            scale.number(row.subject_ns),
        ]);
    }
    table
}

fn functions(budget: &Budget, scale: Scale) -> Table {
    let mut table = plain_table(&["On the CPU, by function", "in", "base", "subject"]);
    for row in budget.functions.iter().take(FUNCTIONS) {
        table.add_row([
            ending(&printable(&row.function)),
            row.category.in_words().to_owned(),
            scale.number(row.base_ns),
            scale.number(row.subject_ns),
        ]);
    }
    table
}

/// The end of a name that is longer than [`NAME`] characters, because the function's own name is more useful than its crate.
fn ending(name: &str) -> String {
    let length = name.chars().count();
    if length <= NAME {
        return name.to_owned();
    }
    let end: String = name.chars().skip(length - NAME + 1).collect();
    format!("…{end}")
}

fn check(role: &str, sums: &Sums, scale: Scale) -> String {
    let slows = sums.tracing_slows.map_or_else(String::new, |slows| {
        let direction = if slows < 0.0 { "faster" } else { "slower" };
        format!(", {:.0} % {direction} by tracing", 100.0 * slows.abs())
    });
    let text = format!(
        "{role:<8} {} thread{}, {} of wall time{slows}, {} of thread time, which differs from the sum of the parts by {:.2} %; \
         {} samples per run",
        sums.threads,
        if sums.threads == 1 { "" } else { "s" },
        scale.with_unit(sums.wall_ns),
        scale.with_unit(sums.alive_ns),
        100.0 * sums.misses,
        thousands(sums.samples),
    );
    wrapped(&text, "", "         ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_long_name_keeps_its_end() {
        assert_eq!(ending("a::b"), "a::b");
        let long = format!("{}::the_function", "module".repeat(20));
        let shortened = ending(&long);
        assert_eq!(shortened.chars().count(), NAME);
        assert!(shortened.starts_with('…') && shortened.ends_with("::the_function"));
    }
}
