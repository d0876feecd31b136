//! The table of `ctxtrace suite` (the article's cases), for a terminal and as Markdown.

use std::fmt::Write;

use comfy_table::{CellAlignment, Table, presets};

use super::table::{Style, plain_table, shortened, without_trailing_spaces, wrapped};
use ctxtrace_analysis::suite::{Suite, SuiteRow};
use ctxtrace_analysis::units::{significant, thousands};

/// Maximum length of a case's name in the terminal table, in characters. A longer name is shortened in its middle.
const LONGEST_NAME: usize = 24;

/// Shown in place of a figure that is unavailable.
const NONE: &str = "–";

/// The source of the article's figures, which are shown beside the measured ones.
const ARTICLE: &str =
    "Article: \"Lightweight Tasks Switch in Go vs Rust\", measured on a notebook with 4 cores at 2.4 GHz.";

/// Renders the table for a terminal.
#[must_use]
pub fn render(suite: &Suite, style: Style) -> String {
    let mut text = String::new();
    if !suite.complete {
        let _ = writeln!(text, "{}\n", style.red("PARTIAL: not every case ran to its end"));
    }
    let _ = writeln!(text, "{}\n", style.bold(&headline(suite)));
    for line in without_trailing_spaces(&narrow(suite)).lines() {
        let _ = writeln!(text, "{line}");
    }
    let _ = writeln!(text);
    if let Some(costs) = kernel_switches(suite) {
        let _ = writeln!(text, "{}", wrapped(&costs, 2).join("\n"));
    }
    for line in notes(suite).lines() {
        for line in wrapped(line, 2) {
            let _ = writeln!(text, "{}", style.dim(&line));
        }
    }
    for problem in problems(suite) {
        for line in wrapped(&problem, 2) {
            let _ = writeln!(text, "{}", style.red(&line));
        }
    }
    text
}

/// Renders the table as GitHub's Markdown.
#[must_use]
pub fn markdown(suite: &Suite) -> String {
    let mut table = cells(suite, " ");
    table.load_style(presets::ASCII_MARKDOWN);
    let mut text = format!(
        "{}\n\n{table}\n\n{}\n",
        super::markdown_text(&headline(suite)),
        notes(suite).replace('\n', "\n\n")
    );
    for problem in problems(suite) {
        let _ = write!(text, "\n**{}**\n", super::markdown_text(problem.as_ref()));
    }
    text
}

fn headline(suite: &Suite) -> String {
    let host = &suite.host;
    let cpus = if host.cpus == 1 { "" } else { "s" };
    let runs = if suite.repeat == 1 { "" } else { "s" };
    format!(
        "The article's cases on {}: {} CPU{cpus}, Linux {}, {} run{runs} each",
        super::printable(&host.name),
        host.cpus,
        super::printable(&host.kernel),
        suite.repeat
    )
}

/// The columns that fit a terminal. Messages per second are only in Markdown and JSON, and the costs of kernel switches are in a
/// separate sentence.
fn narrow(suite: &Suite) -> Table {
    let header = [
        "\n\nCase",
        "ns per\nmessage\n(median)",
        "least\nto\nmost",
        "article:\nns per\nmessage",
        "kernel\nswitches\nper message",
        "task switches\nthat hit\nthe kernel",
    ];
    let mut table = plain_table(&header);
    for row in &suite.rows {
        let figure = |value: Option<f64>| value.map_or_else(|| NONE.to_owned(), significant);
        table.add_row([
            shortened(&row.name, LONGEST_NAME),
            figure(row.ns_per_message.map(|ns| ns.median)),
            row.ns_per_message.map_or_else(
                || NONE.to_owned(),
                |ns| format!("{}–{}", significant(ns.min), significant(ns.max)),
            ),
            figure(row.article_ns_per_message),
            figure(row.kernel_switches_per_message),
            row.hit_kernel_share.map_or_else(|| NONE.to_owned(), share),
        ]);
    }
    table
}

/// A sentence with the cost of a kernel switch, measured in the cases whose messages consist of kernel switches; `None` if there
/// is no such case.
fn kernel_switches(suite: &Suite) -> Option<String> {
    let costs: Vec<String> = suite
        .rows
        .iter()
        .filter_map(|row| Some(format!("{} ns ({})", significant(row.ns_per_kernel_switch?), row.name)))
        .collect();
    let article = suite.rows.iter().find_map(|row| row.article_ns_per_switch)?;
    (!costs.is_empty()).then(|| {
        format!(
            "A kernel switch: {}; the article has {} ns",
            costs.join(", "),
            significant(article)
        )
    })
}

/// The table for Markdown. `line_end` separates the two lines of each header cell.
fn cells(suite: &Suite, line_end: &str) -> Table {
    const HEADER: [[&str; 2]; 8] = [
        ["", "Case"],
        ["messages", "per second"],
        ["ns per message", "(least to most)"],
        ["", "article"],
        ["kernel switches", "per message"],
        ["task switches that", "hit the kernel"],
        ["ns per kernel", "switch"],
        ["", "article"],
    ];
    let mut table = Table::new();
    table.set_header(HEADER.map(|lines| match lines {
        ["", line] if line_end == " " => line.to_owned(),
        lines => lines.join(line_end),
    }));
    for row in &suite.rows {
        table.add_row(row_cells(row));
    }
    for column in table.column_iter_mut().skip(1) {
        column.set_cell_alignment(CellAlignment::Right);
    }
    table
}

fn row_cells(row: &SuiteRow) -> [String; 8] {
    let or_none = |value: Option<String>| value.unwrap_or_else(|| NONE.to_owned());
    let whole = |value: f64| thousands(value.round() as u64);
    let figure = |value: Option<f64>| or_none(value.map(significant));
    [
        super::markdown_text(&row.name),
        or_none(row.messages_per_second.map(whole)),
        or_none(row.ns_per_message.map(|ns| {
            format!(
                "{} ({} to {})",
                significant(ns.median),
                significant(ns.min),
                significant(ns.max)
            )
        })),
        figure(row.article_ns_per_message),
        figure(row.kernel_switches_per_message),
        or_none(row.hit_kernel_share.map(share)),
        figure(row.ns_per_kernel_switch),
        figure(row.article_ns_per_switch),
    ]
}

fn share(share: f64) -> String {
    const LEAST: f64 = 1e-4;
    if share > 0.0 && share < LEAST {
        "under 0.01 %".to_owned()
    } else {
        format!("{} %", significant(share * 100.0))
    }
}

fn notes(suite: &Suite) -> String {
    let mut text = format!(
        "Speed: median of untraced runs. Counts: median of traced runs, interleaved with the untraced runs.\n\
         {ARTICLE}"
    );
    let slowed: Vec<f64> = suite
        .rows
        .iter()
        .filter_map(|row| Some(row.traced_ns_per_message?.median / row.ns_per_message?.median))
        .collect();
    if let Some(most) = slowed.iter().copied().max_by(f64::total_cmp) {
        let _ = write!(
            text,
            "\nTracing made a case up to {} times slower.",
            significant(most.max(1.0))
        );
    }
    text
}

/// The reasons why the table is incomplete or its counts are not reliable, one sentence each.
fn problems(suite: &Suite) -> Vec<String> {
    let mut problems = Vec::new();
    for row in &suite.rows {
        if let Some(reason) = &row.cut_short {
            problems.push(format!("{}: {reason}", row.name));
        }
        if row.difference != 0 {
            problems.push(format!(
                "{}: the traced counts differ from the kernel's, by {}",
                row.name, row.difference
            ));
        }
        if !row.ledger_adds_up {
            problems.push(format!("{}: the ledger does not add up", row.name));
        }
    }
    problems
}
