//! The section that compares the traced counts with the kernel's counts, and says how tasks were found.

use std::fmt::Write;

use super::layout::{labelled, plainly, plural};
use super::{Style, agrees};
use crate::printable;
use ctxtrace_analysis::result::{Locator, Report, Thread, Timeline};
use ctxtrace_analysis::units::{bytes, duration, signed_thousands, thousands};
use ctxtrace_format::programs::LocatorChoice;
use ctxtrace_format::sums::SaturatingSum as _;

/// Maximum number of programs named for each way of finding tasks; the others are counted.
const PROGRAMS_SHOWN: usize = 3;

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
    let agree = agrees(report);
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

/// How tasks were found in each program, and what is known of them. Programs with the same sentence share a line.
pub(crate) fn locators_in_words(report: &Report) -> Vec<String> {
    let mut kinds: Vec<(String, Vec<String>)> = Vec::new();
    for locator in &report.locators {
        let kind = locator_in_words(locator, report.locator);
        let file = locator.program.rsplit('/').next().unwrap_or_default();
        let name = printable(file);
        match kinds.iter_mut().find(|(known, _)| *known == kind) {
            Some((_, names)) if names.contains(&name) => {}
            Some((_, names)) => names.push(name),
            None => kinds.push((kind, vec![name])),
        }
    }
    let lines = kinds.into_iter().map(|(kind, names)| {
        let more = names.len().saturating_sub(PROGRAMS_SHOWN);
        let mut shown = names[..names.len() - more].join(", ");
        if more > 0 {
            let _ = write!(shown, " and {more} more");
        }
        format!("{kind} ({shown})")
    });
    lines.collect()
}

fn locator_in_words(locator: &Locator, choice: LocatorChoice) -> String {
    let found = found_in_words(locator, choice);
    match &locator.note {
        Some(note) => format!("{found}; {}", printable(note)),
        None => found,
    }
}

fn found_in_words(locator: &Locator, choice: LocatorChoice) -> String {
    let version = |version: &Option<String>| version.as_ref().map_or(String::new(), |version| format!(" {version}"));
    let version = |text: &Option<String>| printable(&version(text));
    let tokio = version(&locator.tokio_version);
    let go = version(&locator.go_version);
    match (locator.locator.as_str(), &locator.reason) {
        ("probe", _) => "probe: tasks by name, every poll counted".to_owned(),
        ("tokio", _) => format!("tokio{tokio}: tasks by number and type, polls not counted"),
        ("probe+tokio", _) => {
            format!("probe: tasks by name, every poll counted; tokio{tokio}: the other tasks by number")
        }
        ("go", _) => format!("go{go}: goroutines by number and function, their switches not counted"),
        ("none", Some(_)) => "nothing: its tasks cannot be found, see \"unattributed\" below".to_owned(),
        ("none", None) => match choice {
            LocatorChoice::Auto => "nothing: no tokio, no Go and no ctxtrace-probe in it".to_owned(),
            LocatorChoice::None => "nothing: turned off by --locator none".to_owned(),
            LocatorChoice::Probe => "nothing: no ctxtrace-probe in it".to_owned(),
            LocatorChoice::Tokio => "nothing: no tokio in it".to_owned(),
            LocatorChoice::Go => "nothing: no Go in it".to_owned(),
        },
        (several, _) => printable(several).replace('+', " and "),
    }
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_not_found_out_stands_beside_what_was_found() {
        let locator = Locator {
            program: "/srv/server".to_owned(),
            locator: "none".to_owned(),
            tokio_version: None,
            go_version: None,
            build_id: None,
            reason: None,
            note: Some(
                "not every shared object was searched for a runtime: libx.so was replaced while it ran".to_owned(),
            ),
        };
        let words = locator_in_words(&locator, LocatorChoice::Auto);
        assert!(words.starts_with("nothing: no tokio"), "{words}");
        assert!(
            words.ends_with("; not every shared object was searched for a runtime: libx.so was replaced while it ran"),
            "{words}"
        );
        let found = Locator { note: None, ..locator };
        assert!(!locator_in_words(&found, LocatorChoice::Auto).contains("shared object"));
    }
}
