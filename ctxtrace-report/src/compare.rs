//! Renders two captures side by side, for a terminal and as Markdown.

use std::fmt::Write;

use super::table::{Style, plain_table};
use super::{budget, fenced, markdown_text, printable, wrapped};
use ctxtrace_analysis::compare::{Compared, Figure, Side};
use ctxtrace_analysis::units::{Scale, duration, significant};

/// A note about what the figures can show.
const NOTE: &str = "Percentiles are of single intervals. One recording of each side cannot show whether a difference is due \
                    to chance; `ctxtrace explain` can.";

/// Renders the comparison for a terminal.
#[must_use]
pub fn render(compared: &Compared, style: Style) -> String {
    let mut sections: Vec<String> = incomplete(compared).into_iter().map(|line| style.red(&line)).collect();
    sections.push(style.bold(&sides(compared).join("\n")));
    sections.extend(blocks(compared));
    sections.extend(missing(compared).map(|text| style.dim(&text)));
    sections.join("\n\n") + "\n"
}

/// Renders the comparison as Markdown that can be pasted into an issue.
#[must_use]
pub fn markdown(compared: &Compared) -> String {
    let mut text = format!(
        "## Two recordings compared\n\n{}\n\n",
        sides(compared).map(|side| markdown_text(&side)).join("  \n")
    );
    for line in incomplete(compared) {
        let _ = writeln!(text, "**{}**\n", markdown_text(&line));
    }
    for block in blocks(compared).into_iter().chain(missing(compared)) {
        let _ = writeln!(text, "{}", fenced(&block));
    }
    let _ = writeln!(text, "ctxtrace {}.", markdown_text(&compared.ctxtrace_version));
    text
}

fn sides(compared: &Compared) -> [String; 2] {
    let side = |role: &str, side: &Side| {
        let text = format!(
            "{role:<8} {} (--level {}, on {}, Linux {}, {} CPUs)",
            printable(&side.name),
            side.level.name(),
            printable(&side.host.name),
            printable(&side.host.kernel),
            side.host.cpus
        );
        wrapped(&text, "", "         ")
    };
    [side("base", &compared.base), side("subject", &compared.subject)]
}

fn incomplete(compared: &Compared) -> Vec<String> {
    [("base", &compared.base), ("subject", &compared.subject)]
        .into_iter()
        .filter(|(_, side)| !side.complete)
        .map(|(role, _)| format!("PARTIAL: the recording of the {role} is incomplete, and so are its figures"))
        .collect()
}

fn blocks(compared: &Compared) -> Vec<String> {
    let unit = compared.unit.in_words();
    let mut figures = plain_table(&[&format!("Figures, {unit}"), "base", "subject", "ratio"]);
    for row in &compared.figures {
        if row.base.is_none() && row.subject.is_none() {
            continue;
        }
        figures.add_row([
            printable(&row.name),
            figure_text(row, row.base),
            figure_text(row, row.subject),
            row.ratio.map_or_else(|| "–".to_owned(), significant),
        ]);
    }
    let mut ledger = plain_table(&[
        &format!("Ledger, {unit}"),
        "base",
        "subject",
        "off-CPU ns, base",
        "subject",
    ]);
    for row in &compared.ledger {
        ledger.add_row([
            row.class.in_words().to_owned(),
            significant(row.base),
            significant(row.subject),
            significant(row.base_off_cpu_ns),
            significant(row.subject_off_cpu_ns),
        ]);
    }
    let mut blocks = vec![format!("{figures}\n\n{}", wrapped(NOTE, "", "")), ledger.to_string()];
    blocks.extend(
        compared
            .budget
            .as_ref()
            .map(|of| budget::tables(of, compared.unit, Scale::fitting(of.base.wall_ns))),
    );
    blocks
}

fn figure_text(figure: &Figure, value: Option<f64>) -> String {
    match value {
        Some(ns) if figure.is_time && ns >= 1_000.0 => duration(ns.round() as u64),
        Some(ns) if figure.is_time => format!("{} ns", significant(ns)),
        Some(count) => significant(count),
        None => "–".to_owned(),
    }
}

fn missing(compared: &Compared) -> Option<String> {
    if compared.unavailable.is_empty() {
        return None;
    }
    let lines: Vec<String> = compared
        .unavailable
        .iter()
        .map(|not| {
            wrapped(
                &format!("{}: {}", printable(&not.path), printable(&not.reason)),
                "  ",
                "    ",
            )
        })
        .collect();
    Some(format!("Unavailable\n{}", lines.join("\n")))
}
