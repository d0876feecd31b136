//! The first sections: what was recorded, how fast it was, and the answer.

use std::fmt::Write;

use nix::sys::signal::Signal;

use super::layout::{COLUMNS, shortened, wrapped};
use super::{Style, painted};
use crate::printable;
use crate::words::{
    plural, still_running_in_words, switch_plural, target_in_words, verdict_in_words, workload_in_words,
};
use ctxtrace_analysis::result::{Report, Target, Workload};
use ctxtrace_analysis::units::{duration, significant, thousands};

pub(super) fn target_headline(report: &Report, target: &Target, style: Style) -> String {
    let switches = &report.kernel_switches;
    let mut figures = vec![
        format!("{} recorded", duration(report.recorded_ns)),
        format!("{} kernel {}", thousands(switches.total), switch_plural(switches.total)),
    ];
    figures.extend(
        switches
            .per_second
            .map(|rate| format!("{} kernel switches/s", significant(rate))),
    );
    let mut text = format!(
        "{}\n\n{}",
        shortened(&printable(&target_in_words(target)), COLUMNS),
        figures_line(&figures, style)
    );
    match (target.exit_status, target.signal) {
        (Some(0), _) | (None, None) => {}
        (Some(status), _) => {
            let _ = write!(text, "\n  it ended with status {status}");
        }
        (None, Some(number)) => {
            let name = Signal::try_from(number).map_or_else(|_| number.to_string(), |signal| signal.to_string());
            let _ = write!(text, "\n  it was killed by {name}");
        }
    }
    if let Some(line) = still_running_in_words(target) {
        let _ = write!(text, "\n{}", wrapped(&format!("  {line}"), 4).join("\n"));
    }
    text
}

pub(super) fn headline(report: &Report, workload: &Workload, style: Style) -> String {
    let mut text = wrapped(&workload_in_words(workload), 2).join("\n");
    let speed = match (
        workload.messages_per_second,
        workload.ns_per_message,
        report.kernel_switches.per_message,
    ) {
        (Some(rate), Some(ns), Some(switches)) => vec![
            format!("{} messages/s", significant(rate)),
            format!("{} ns/message", significant(ns)),
            format!("{} kernel switches/message", significant(switches)),
        ],
        _ => vec!["no speed: the workload did not finish".to_owned()],
    };
    let _ = write!(text, "\n\n{}", figures_line(&speed, style));
    if let Some(ns) = report.kernel_switches.ns_per_switch {
        let _ = write!(text, "\n  {} ns per measured kernel switch", significant(ns));
    }
    if let Some(most) = workload.max_in_flight {
        let _ = write!(
            text,
            "\n  At most {} message{} in flight",
            thousands(most),
            plural(most)
        );
    }
    if workload.runs.len() > 1 {
        let mut speeds: Vec<f64> = workload.runs.iter().filter_map(|run| run.ns_per_message).collect();
        speeds.sort_by(f64::total_cmp);
        if let (Some(&fastest), Some(&slowest)) = (speeds.first(), speeds.last()) {
            let _ = write!(
                text,
                "\n  the median of {} runs, which took {} to {} ns/message",
                workload.runs.len(),
                significant(fastest),
                significant(slowest)
            );
        }
    }
    text
}

/// The answer to "which task switches hit the kernel?", wrapped and bold.
pub(super) fn verdict(report: &Report, style: Style) -> String {
    painted(&verdict_in_words(report), |line| style.bold(line))
}

/// Joins the main figures in one line, or puts each on its own line if they do not fit.
fn figures_line(figures: &[String], style: Style) -> String {
    let line = figures.join("    ");
    if line.chars().count() + 2 <= COLUMNS {
        return format!("  {}", style.bold(&line));
    }
    let lines: Vec<String> = figures
        .iter()
        .map(|figure| format!("  {}", style.bold(figure)))
        .collect();
    lines.join("\n")
}
