//! The answer of `ctxtrace explain`, for a terminal and as Markdown.

use std::fmt::Write;

use super::printable;
use super::table::{Style, plain_table};
use crate::analyze::explain::explain::plus_minus;
use crate::analyze::explain::result::{Budget, Explanation, Side, Tried};
use crate::units::{significant, thousands};

/// Functions that the table has room for.
const FUNCTIONS: usize = 10;

/// For a terminal.
#[must_use]
pub fn render(answer: &Explanation, style: Style) -> String {
    let mut sections = Vec::new();
    if let Some(reason) = &answer.cut_short {
        sections.push(style.red(&format!("PARTIAL: {reason}. What was measured up to then:")));
    }
    sections.push(style.bold(&headline(answer)));
    sections.push(format!(
        "{}\n{}",
        side("base", &answer.base, answer),
        side("subject", &answer.subject, answer)
    ));
    sections.push(verdict(answer, "  "));
    sections.extend(answer.budget.as_ref().map(|budget| tables(answer, budget)));
    if !answer.interventions.is_empty() {
        sections.push(interventions(answer));
    }
    if !answer.not_tried.is_empty() {
        let list: Vec<String> = answer
            .not_tried
            .iter()
            .map(|not| format!("  {}: {}", not.name, printable(&not.reason)))
            .collect();
        sections.push(style.dim(&format!("Not tried\n{}", list.join("\n"))));
    }
    sections.join("\n\n") + "\n"
}

/// To be pasted into an issue.
#[must_use]
pub fn markdown(answer: &Explanation) -> String {
    let mut text = format!("## {}\n\n", headline(answer));
    let _ = writeln!(
        text,
        "{}  \n{}\n",
        side("base", &answer.base, answer),
        side("subject", &answer.subject, answer)
    );
    let _ = writeln!(text, "{}\n", verdict(answer, "- ").replace("  - ", "- "));
    let mut block = |what: String| {
        let _ = writeln!(text, "```text\n{what}\n```\n");
    };
    if let Some(budget) = &answer.budget {
        block(tables(answer, budget));
    }
    if !answer.interventions.is_empty() {
        block(interventions(answer));
    }
    let host = &answer.host;
    let _ = writeln!(
        text,
        "ctxtrace {} on Linux {}, {} CPUs.",
        answer.ctxtrace_version, host.kernel, host.cpus
    );
    text
}

fn headline(answer: &Explanation) -> String {
    let unit = answer.unit.in_words();
    match (answer.gap.ns, answer.gap.ratio) {
        (Some(gap), Some(ratio)) if answer.gap.is_clear => format!(
            "{} is slower than {} by {} ns {unit} ({ratio:.2} times, {} blocks)",
            printable(&answer.subject.name),
            printable(&answer.base.name),
            plus_minus(&gap, 1),
            answer.gap.blocks
        ),
        (Some(gap), _) => format!(
            "{} is not slower than {}: {} ns {unit} ({} blocks)",
            printable(&answer.subject.name),
            printable(&answer.base.name),
            plus_minus(&gap, 1),
            answer.gap.blocks
        ),
        (None, _) => "Nothing was measured".to_owned(),
    }
}

fn side(role: &str, side: &Side, answer: &Explanation) -> String {
    let unit = answer.unit.in_words();
    let mut text = match (side.groups.as_slice(), &side.ns) {
        ([fast, slow], _) => format!(
            "{role:<8} {} ns {unit} in {:.0} % of runs, {} in {:.0} %: two groups, so no one figure",
            significant(fast.median),
            100.0 * fast.share,
            significant(slow.median),
            100.0 * slow.share
        ),
        (_, Some(ns)) => format!("{role:<8} {} ns {unit}", plus_minus(ns, 1)),
        (_, None) => format!("{role:<8} not measured"),
    };
    let _ = write!(text, "   {}", printable(&side.name));
    if let Some(most) = side.max_in_flight {
        let _ = write!(text, " (at most {} messages in flight)", thousands(most));
    }
    text
}

fn verdict(answer: &Explanation, indent: &str) -> String {
    let mut text = String::from("Why\n");
    for (index, claim) in answer.verdict.iter().enumerate() {
        let _ = write!(text, "\n{indent}{}. {}", index + 1, printable(&claim.sentence));
    }
    if answer.verdict.is_empty() {
        let _ = write!(text, "\n{indent}Nothing can be claimed.");
    }
    if !answer.not_explained.is_empty() {
        text += "\n\nNot explained\n";
        for sentence in &answer.not_explained {
            let _ = write!(text, "\n{indent}{}", printable(sentence));
        }
    }
    text
}

fn tables(answer: &Explanation, budget: &Budget) -> String {
    let unit = answer.unit.in_words();
    let mut causes = plain_table(&["Thread time, no waiting", "base", "subject", "added", "share"]);
    for row in &budget.causes {
        causes.add_row([
            row.cause.in_words().to_owned(),
            significant(row.base_ns),
            significant(row.subject_ns),
            row.added_ns.map_or_else(String::new, |added| plus_minus(&added, 1)),
            row.share
                .map_or_else(String::new, |share| format!("{} %", plus_minus(&share.times(100.0), 0))),
        ]);
    }
    let mut parts = plain_table(&["All thread time", "for", "base", "subject"]);
    for row in &budget.parts {
        if row.base_ns.max(row.subject_ns) < 0.005 * budget.subject.parts_ns.max(budget.base.parts_ns) {
            continue;
        }
        let spent = match row.class {
            Some(class) => format!("{}: {}", row.spent.in_words(), class.in_words()),
            None => row.spent.in_words().to_owned(),
        };
        parts.add_row([
            spent,
            if row.is_waiting {
                "waiting for work".to_owned()
            } else {
                row.cause.in_words().to_owned()
            },
            significant(row.base_ns),
            significant(row.subject_ns),
        ]);
    }
    let mut functions = plain_table(&["On the CPU, by function", "in", "base", "subject"]);
    for row in budget.functions.iter().take(FUNCTIONS) {
        functions.add_row([
            printable(&row.function),
            row.category.in_words().to_owned(),
            significant(row.base_ns),
            significant(row.subject_ns),
        ]);
    }
    let check = |role: &str, sums: &crate::analyze::explain::result::Sums| {
        format!(
            "{role:<8} {} threads, {} ns of wall time, {} of thread time; the parts miss {:.2} % of it; {} samples a run; tracing \
             makes it {:.0} % slower",
            sums.threads,
            significant(sums.wall_ns),
            significant(sums.parts_ns),
            100.0 * sums.misses,
            thousands(sums.samples),
            100.0 * sums.tracing_slows
        )
    };
    format!(
        "{causes}\n\n{parts}\n\n{functions}\n\nns {unit}, of {} traced runs each. Tracing changed the gap by {} ns: nothing smaller \
         is claimed of this.\n{}\n{}",
        budget.runs,
        significant(budget.tracing_changed_gap_ns),
        check("base", &budget.base),
        check("subject", &budget.subject)
    )
}

fn interventions(answer: &Explanation) -> String {
    let mut table = plain_table(&["Intervention", "base", "subject", "gap left", "closes"]);
    for tried in &answer.interventions {
        let ns = |ns: Option<f64>| ns.map_or_else(String::new, significant);
        let of = |tried: &Tried| {
            tried
                .closes
                .map(|closes| format!("{} %", plus_minus(&closes.times(100.0), 0)))
        };
        table.add_row([
            tried.name.clone(),
            ns(tried.base_ns),
            ns(tried.subject_ns),
            tried.gap_ns.map_or_else(String::new, |gap| plus_minus(&gap, 1)),
            of(tried).unwrap_or_default(),
        ]);
    }
    table.to_string()
}
