//! Renders the answer of `ctxtrace explain` for a terminal and as Markdown.

use std::fmt::Write;

use super::table::{Style, plain_table};
use super::{budget, fenced, markdown_text, printable, wrapped};
use ctxtrace_analysis::explain::result::{Claim, Explanation, Others, Says, Side};
use ctxtrace_analysis::units::{significant, thousands};

/// Renders the answer for a terminal.
#[must_use]
pub fn render(answer: &Explanation, style: Style) -> String {
    let mut sections = Vec::new();
    if let Some(reason) = &answer.cut_short {
        sections.push(style.red(&format!(
            "PARTIAL: {}. What was measured until then:",
            printable(reason)
        )));
    }
    sections.push(style.bold(&wrapped(&headline(answer), "", "  ")));
    sections.push(format!(
        "{}\n{}",
        wrapped(&side("base", &answer.base, answer), "", "         "),
        wrapped(&side("subject", &answer.subject, answer), "", "         ")
    ));
    sections.extend(disturbance(answer).map(|sentence| style.red(&wrapped(&sentence, "", ""))));
    for (title, claims) in verdict(answer) {
        let lines: Vec<String> = claims
            .iter()
            .map(|(number, sentence)| match number {
                Some(number) => wrapped(sentence, &format!("  {number}. "), "     "),
                None => wrapped(sentence, "  ", "  "),
            })
            .collect();
        sections.push(format!("{}\n\n{}", style.bold(title), lines.join("\n")));
    }
    sections.extend(
        answer
            .budget
            .as_ref()
            .map(|of| budget::tables(of, answer.unit, answer.scale())),
    );
    sections.extend(counters(answer));
    sections.extend(interventions(answer));
    sections.extend(not_tried(answer).map(|text| style.dim(&text)));
    sections.join("\n\n") + "\n"
}

/// Renders the answer as Markdown that can be pasted into an issue.
#[must_use]
pub fn markdown(answer: &Explanation) -> String {
    let mut text = format!("## {}\n\n", markdown_text(&headline(answer)));
    let sides = [
        side("base", &answer.base, answer),
        side("subject", &answer.subject, answer),
    ];
    let _ = writeln!(text, "{}\n", sides.map(|side| markdown_text(&side)).join("  \n"));
    if let Some(sentence) = disturbance(answer) {
        let _ = writeln!(text, "**{}**\n", markdown_text(&sentence));
    }
    for (title, claims) in verdict(answer) {
        let _ = writeln!(text, "### {title}\n");
        for (number, sentence) in claims {
            let mark = number.map_or("-".to_owned(), |number| format!("{number}."));
            let _ = writeln!(text, "{mark} {}", markdown_text(&sentence));
        }
        text.push('\n');
    }
    let blocks = [
        answer
            .budget
            .as_ref()
            .map(|of| budget::tables(of, answer.unit, answer.scale())),
        counters(answer),
        interventions(answer),
        not_tried(answer),
    ];
    for block in blocks.into_iter().flatten() {
        let _ = writeln!(text, "{}", fenced(&block));
    }
    let host = &answer.host;
    let _ = writeln!(
        text,
        "ctxtrace {} on Linux {}, {} CPUs.",
        markdown_text(&answer.ctxtrace_version),
        markdown_text(&host.kernel),
        host.cpus
    );
    text
}

fn headline(answer: &Explanation) -> String {
    let (unit, scale) = (answer.unit.in_words(), answer.scale());
    let (base, subject) = (printable(&answer.base.name), printable(&answer.subject.name));
    match (answer.gap.ns, answer.gap.ratio) {
        (Some(gap), Some(ratio)) if answer.gap.is_clear => format!(
            "{subject} is slower than {base} by {} {} {unit} ({ratio:.2} times; {} pairs of untraced runs)",
            gap.in_unit(scale),
            scale.name,
            answer.gap.blocks
        ),
        (Some(gap), _) => format!(
            "{subject} is not slower than {base}: {} {} {unit} ({} pairs of untraced runs)",
            gap.in_unit(scale),
            scale.name,
            answer.gap.blocks
        ),
        (None, _) => "Nothing was measured".to_owned(),
    }
}

fn side(role: &str, side: &Side, answer: &Explanation) -> String {
    let (unit, scale) = (answer.unit.in_words(), answer.scale());
    let mut text = match (side.groups.as_slice(), &side.ns) {
        ([fast, slow], _) => format!(
            "{role:<8} {} {unit} in {:.0} % of runs, {} in {:.0} %: the runs fall into two groups, so there is no single figure",
            scale.with_unit(fast.median),
            100.0 * fast.share,
            scale.with_unit(slow.median),
            100.0 * slow.share
        ),
        (_, Some(ns)) => format!("{role:<8} {} {} {unit}", ns.in_unit(scale), scale.name),
        (_, None) => format!("{role:<8} not measured"),
    };
    let _ = write!(text, ": {}", printable(&side.name));
    if let Some(most) = side.max_in_flight {
        let _ = write!(text, " (at most {} in flight)", thousands(most));
    }
    text
}

/// A warning if other programs or the hypervisor used enough CPU time to affect the measurements.
fn disturbance(answer: &Explanation) -> Option<String> {
    let others = answer.others.filter(Others::disturb)?;
    Some(format!(
        "During the measurement other programs used {:.0} % of the CPU time, and the hypervisor took {:.0} %. This widens the \
         intervals, and both cases may have waited for CPUs because of it. Measure again when the machine is idle.",
        100.0 * others.share,
        100.0 * others.stolen
    ))
}

/// A section: its title, and its sentences, each with a number if the section is numbered.
type Section = (&'static str, Vec<(Option<usize>, String)>);

fn verdict(answer: &Explanation) -> Vec<Section> {
    let of = |says: Says| -> Vec<&Claim> { answer.verdict.iter().filter(|claim| claim.says == says).collect() };
    let plain = |says: Says| {
        of(says)
            .into_iter()
            .map(|claim| (None, printable(&claim.sentence)))
            .collect::<Vec<_>>()
    };
    let mut sections: Vec<Section> = Vec::new();
    let mut causes: Vec<(Option<usize>, String)> = of(Says::Cause)
        .into_iter()
        .enumerate()
        .map(|(index, claim)| (Some(index + 1), printable(&claim.sentence)))
        .collect();
    if causes.is_empty() {
        causes.push((None, "No cause was found.".to_owned()));
    }
    sections.push(("Why", causes));
    for (title, says) in [
        ("How much of it kernel switches can explain", Says::Kernel),
        (
            if answer.gap.is_clear {
                "What the gap depends on"
            } else {
                "What makes a difference"
            },
            Says::Condition,
        ),
        ("Not the cause", Says::NotTheCause),
    ] {
        sections.push((title, plain(says)));
    }
    sections.push((
        "Not explained",
        answer
            .not_explained
            .iter()
            .map(|sentence| (None, printable(sentence)))
            .collect(),
    ));
    sections.retain(|(_, sentences)| !sentences.is_empty());
    sections
}

fn counters(answer: &Explanation) -> Option<String> {
    if answer.counters.is_empty() {
        return None;
    }
    let title = format!("Counted, {}", answer.unit.in_words());
    let mut table = plain_table(&[&title, "base", "subject", "added"]);
    for row in &answer.counters {
        table.add_row([
            row.counted.in_words().to_owned(),
            significant(row.base),
            significant(row.subject),
            row.added.map_or_else(String::new, |added| {
                let half = added.half_width();
                if half.is_finite() {
                    format!("{} ± {}", significant(added.value), significant(half))
                } else {
                    significant(added.value)
                }
            }),
        ]);
    }
    let missing: Vec<&str> = answer
        .unavailable
        .iter()
        .filter_map(|not| not.path.strip_prefix("counters[")?.strip_suffix(']'))
        .collect();
    let not = if missing.is_empty() {
        String::new()
    } else {
        format!(
            "\n{}",
            wrapped(&format!("This machine does not count: {}.", missing.join(", ")), "", "")
        )
    };
    Some(format!("{table}{not}"))
}

fn interventions(answer: &Explanation) -> Option<String> {
    if answer.interventions.is_empty() {
        return None;
    }
    let scale = answer.scale();
    let mut table = plain_table(&["Intervention", "base", "subject", "gap left", "closes"]);
    for tried in &answer.interventions {
        let of = |ns: Option<f64>| ns.map_or_else(String::new, |ns| scale.number(ns));
        table.add_row([
            tried.name.clone(),
            of(tried.base_ns),
            of(tried.subject_ns),
            tried.gap_ns.map_or_else(String::new, |gap| gap.in_unit(scale)),
            tried.closes.map_or_else(String::new, |closes| closes.percent()),
        ]);
    }
    let blocks = answer.interventions.iter().map(|tried| tried.blocks).max().unwrap_or(0);
    Some(format!(
        "{table}\n\n{} {}, untraced, in {blocks} blocks, each with one run of every combination.",
        scale.name,
        answer.unit.in_words()
    ))
}

fn not_tried(answer: &Explanation) -> Option<String> {
    if answer.not_tried.is_empty() {
        return None;
    }
    // Interventions that were not tried for the same reason are listed together.
    let mut reasons: Vec<(&str, Vec<&str>)> = Vec::new();
    for not in &answer.not_tried {
        match reasons.iter_mut().find(|(reason, _)| *reason == not.reason) {
            Some((_, names)) => names.push(&not.name),
            None => reasons.push((&not.reason, vec![&not.name])),
        }
    }
    let lines: Vec<String> = reasons
        .into_iter()
        .map(|(reason, names)| wrapped(&format!("{} ({})", names.join(", "), printable(reason)), "  ", "  "))
        .collect();
    Some(format!("Not tried\n{}", lines.join("\n")))
}
