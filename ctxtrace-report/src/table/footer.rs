//! The last section: what was lost, and what tracing cost.

use super::Style;
use super::layout::{labelled, plainly};
use crate::words::{refusal, room, tracing_cost};
use ctxtrace_analysis::result::{CpuLosses, Report};
use ctxtrace_analysis::units::thousands;

pub(super) fn footer(report: &Report, style: Style) -> String {
    let red = |line: &str| style.red(line);
    let mut lines = match report.lost.in_words() {
        None => vec![labelled("Lost", "nothing", plainly)],
        Some(lost) => vec![labelled("Lost", &lost, red)],
    };
    lines.extend(refusal(report).map(|refusal| labelled("", refusal, plainly)));
    lines.extend(room(report).map(|room| labelled("", &room, plainly)));
    let by_cpu: Vec<String> = report.lost.by_cpu.iter().map(lost_by_cpu).collect();
    if !by_cpu.is_empty() {
        lines.push(labelled("", &by_cpu.join(", "), red));
    }
    for (index, line) in tracing_cost(report).iter().enumerate() {
        let label = if index == 0 { "Tracing" } else { "" };
        lines.push(style.dim(&labelled(label, line, plainly)));
    }
    lines.join("\n")
}

fn lost_by_cpu(losses: &CpuLosses) -> String {
    let lost = losses.events.saturating_add(losses.timeline_events);
    format!("{} on CPU {}", thousands(lost), losses.cpu)
}
