//! The section that compares the traced counts with the kernel's counts, and says how tasks were found.

use std::fmt::Write;

use super::Style;
use super::layout::{labelled, plainly};
use crate::printable;
use crate::words::{locators_in_words, plural};
use ctxtrace_analysis::result::{Report, Thread, Timeline};
use ctxtrace_analysis::units::{bytes, duration, signed_thousands, thousands};
use ctxtrace_analysis::verdict::counts_agree;
use ctxtrace_format::sums::SaturatingSum as _;

pub(super) fn counts(report: &Report, style: Style) -> String {
    let switches = &report.kernel_switches;
    let reconciliation = &report.reconciliation;
    let silent = report.threads.iter().filter(|thread| thread.is_silent()).count() as u64;
    let silent = match silent {
        0 => String::new(),
        silent => format!(" ({} of them without a switch)", thousands(silent)),
    };
    let threads = report.threads.iter().map(Thread::count).saturating_sum();
    let folded = match report
        .threads
        .iter()
        .filter_map(|thread| thread.folded)
        .saturating_sum()
    {
        0 => String::new(),
        folded => format!(" ({} of them summed by name)", thousands(folded)),
    };
    let counted = format!(
        "{} = {} voluntary + {} involuntary; {} thread{}{silent}{folded}, {} migration{}",
        thousands(switches.total),
        thousands(switches.voluntary),
        thousands(switches.involuntary),
        thousands(threads),
        plural(threads),
        thousands(report.migrations),
        plural(report.migrations),
    );
    let mut text = labelled("Kernel switches", &counted, plainly);
    let counted = format!(
        "traced {}, the kernel counted {}: difference {}",
        thousands(reconciliation.traced),
        thousands(reconciliation.kernel),
        signed_thousands(reconciliation.difference)
    );
    let red = |line: &str| style.red(line);
    let agree = counts_agree(report);
    let line = if agree {
        labelled("Reconciliation", &counted, plainly)
    } else {
        labelled("Reconciliation", &counted, red)
    };
    let _ = write!(text, "\n{line}");
    if let Some(rusage) = &reconciliation.rusage {
        let bounds = format!(
            "(rusage {}, expected {} to {})",
            thousands(rusage.switches),
            thousands(rusage.lower),
            thousands(rusage.upper)
        );
        let line = if rusage.agrees {
            labelled("", &bounds, plainly)
        } else {
            labelled("", &bounds, red)
        };
        let _ = write!(text, "\n{line}");
    }
    if !agree {
        for thread in reconciliation.threads.iter().filter(|thread| thread.difference != 0) {
            let line = format!(
                "thread {} ({}): traced {}, kernel {}: {}",
                thread.tid,
                printable(&thread.name),
                thousands(thread.traced),
                thousands(thread.kernel),
                signed_thousands(thread.difference)
            );
            let _ = write!(text, "\n{}", labelled("", &line, red));
        }
        if let Some(workload) = &report.workload {
            for (index, run) in workload
                .runs
                .iter()
                .enumerate()
                .filter(|(_, run)| run.difference != 0 && !run.median)
            {
                let line = format!("run {}: difference {}", index + 1, signed_thousands(run.difference));
                let _ = write!(text, "\n{}", labelled("", &line, red));
            }
        }
    }
    if let Some(timeline) = &report.timeline {
        let _ = write!(text, "\n{}", timeline_line(timeline, style));
    }
    for (index, line) in locators_in_words(report).iter().enumerate() {
        let label = if index == 0 { "Tasks found by" } else { "" };
        let line = labelled(label, line, plainly);
        let _ = write!(text, "\n{line}");
    }
    text
}

fn timeline_line(timeline: &Timeline, style: Style) -> String {
    let text = format!("{} events, {}", thousands(timeline.events), bytes(timeline.bytes));
    let red = |line: &str| style.red(line);
    match timeline.agrees {
        Some(true) => labelled("Timeline", &format!("{text}: replayed, with the same counts"), plainly),
        None if timeline.dropped > 0 => {
            let begins = timeline.begins_ns.map_or_else(String::new, |ns| {
                format!(
                    ": the timeline begins {} after the start of the recording",
                    duration(ns)
                )
            });
            let dropped = thousands(timeline.dropped);
            let kept = format!("{text}; {dropped} older ones were dropped (--max-size, --keep){begins}");
            labelled("Timeline", &kept, plainly)
        }
        None => labelled("Timeline", &format!("{text}: incomplete, see \"Lost\" below"), plainly),
        Some(false) => {
            let mut lines = vec![
                labelled("Timeline", &text, plainly),
                labelled("", "REPLAYED, THEY GIVE OTHER COUNTS", red),
            ];
            let differences = timeline.disagreements.iter();
            lines.extend(differences.map(|difference| labelled("", &printable(difference), red)));
            lines.join("\n")
        }
    }
}
