//! The last section: what was lost, and what tracing cost.

use super::Style;
use super::layout::{labelled, plainly};
use ctxtrace_analysis::result::{CpuLosses, Report};
use ctxtrace_analysis::units::{duration, significant, thousands};
use ctxtrace_format::Level;
use ctxtrace_format::sums::SaturatingSum as _;

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

/// Why a process was recorded only in part, and which privileges are needed to record all of it; `None` if there was no such
/// process.
pub(crate) fn refusal(report: &Report) -> Option<&'static str> {
    (report.lost.refused_processes > 0).then_some(
        "(a process that executes a set-user-ID program, a program with file capabilities, or a program that you may not read, \
         is not recorded after that, and neither are its children: recording them requires root or CAP_SYS_PTRACE)",
    )
}

/// The options that enlarge the tables and rings that were full; `None` if none was full.
pub(crate) fn room(report: &Report) -> Option<String> {
    let lost = &report.lost;
    let options = [
        (
            "--max-threads",
            [lost.threads, lost.thread_records].iter().saturating_sum(),
        ),
        (
            "--max-stacks",
            [lost.stacks, lost.stack_sums, lost.sample_stacks]
                .iter()
                .saturating_sum(),
        ),
        (
            "--ring-size",
            [lost.timeline_events, lost.samples].iter().saturating_sum(),
        ),
        ("--poll-ring-size", lost.poll_stamps),
    ];
    let wanted: Vec<&str> = options
        .iter()
        .filter(|(_, count)| *count > 0)
        .map(|(option, _)| *option)
        .collect();
    (!wanted.is_empty()).then(|| format!("(a larger {} makes room)", wanted.join(" and ")))
}

/// If tracing takes at least this share of the target's time on the CPU (0 to 1), a line says that it slows the run down.
const DISTURBING_SHARE: f64 = 0.05;

/// What tracing cost, one line for each figure. If the cost is high, the last line says how to reduce it.
pub(crate) fn tracing_cost(report: &Report) -> Vec<String> {
    let overhead = &report.overhead;
    let each: Vec<String> = overhead
        .programs
        .iter()
        .filter(|program| matches!(program.name.as_str(), "sched_switch" | "sched_waking"))
        .filter_map(|program| Some(format!("{} ns per {}", significant(program.ns_per_run?), program.name)))
        .collect();
    let mut lines = vec![match (overhead.programs_ns, overhead.share_of_on_cpu) {
        (Some(ns), Some(share)) => format!(
            "{} in the kernel, {} % of the time on the CPU ({})",
            duration(ns as u64),
            significant(100.0 * share),
            each.join(", ")
        ),
        _ if report.kernel_switches.total == 0 => "there was no switch to record".to_owned(),
        _ => "its time in the kernel was not measured".to_owned(),
    }];
    lines.push(format!(
        "{} of CPU time in ctxtrace itself",
        duration(overhead.tracer_cpu_ns)
    ));
    let disturbs = overhead.share_of_on_cpu.is_some_and(|share| share >= DISTURBING_SHARE);
    let slower = match report.level {
        Level::Stacks => Some("Stacks"),
        Level::Timeline => Some("Events"),
        Level::Counts => None,
    };
    if let (true, Some(slower)) = (disturbs, slower) {
        lines.push(format!("{slower} slow the run down: --level counts shows its speed"));
    }
    lines
}
