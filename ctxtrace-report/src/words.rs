//! The words and quantities of a report that several formats share.

use std::collections::BTreeMap;
use std::fmt::Write as _;

use crate::printable;
use ctxtrace_analysis::result::{Locator, Report, Target, Thread, ThreadState, Workload};
use ctxtrace_analysis::units::{duration, significant, thousands};
use ctxtrace_common::ledger::Class;
use ctxtrace_format::Level;
use ctxtrace_format::programs::LocatorChoice;
use ctxtrace_format::sums::{SaturatingSum as _, add};
use ctxtrace_format::workload::{Allocator, Channel, Language};

/// Maximum number of processes that are named as still running; the others are counted.
const RUNNING_SHOWN: usize = 8;
/// Maximum number of programs named for each way of finding tasks; the others are counted.
const PROGRAMS_SHOWN: usize = 3;
/// If tracing takes at least this share of the target's time on the CPU (0 to 1), a line says that it slows the run down.
const DISTURBING_SHARE: f64 = 0.05;

/// Describes in one line what was recorded.
#[must_use]
pub fn subject_in_words(report: &Report) -> String {
    match (&report.workload, &report.target) {
        (Some(workload), _) => workload_in_words(workload),
        (None, Some(target)) => target_in_words(target),
        (None, None) => String::new(),
    }
}

/// Describes a target, for example `make -j2 (process 4711)` or `process 4711 (redis-server) and its children`.
pub(crate) fn target_in_words(target: &Target) -> String {
    let process = target.pid.map_or("process".to_owned(), |pid| format!("process {pid}"));
    match &target.command {
        Some(words) => format!("{} ({process})", words.join(" ")),
        None if target.children => format!("{process} ({}) and its children", target.name),
        None => format!("{process} ({})", target.name),
    }
}

/// Describes a workload in one line, for example `task-pool, buffer 0, 2 workers, 2,000,000 messages`.
#[must_use]
pub fn workload_in_words(workload: &Workload) -> String {
    let mut words = vec![match workload.language {
        Language::Rust | Language::Go => workload.mode.name().to_owned(),
        Language::C => format!("{} in C", workload.mode.name()),
    }];
    if let Some(buffer) = workload.buffer {
        words.push(format!("buffer {}", thousands(buffer)));
    }
    if workload.channel == Some(Channel::Tokio) {
        words.push("tokio's channel".to_owned());
    }
    if let Some(protocol) = workload.protocol
        && workload.protocol != workload.mode.default_protocol()
    {
        words.push(protocol.name().to_owned());
    }
    if let Some(workers) = workload.workers {
        words.push(format!("{workers} worker{}", plural(workers)));
    }
    words.push(match workload.pin {
        ctxtrace_format::workload::Pin::None => "not pinned".to_owned(),
        pin => format!("pinned: {}", pin.name()),
    });
    if workload.root == Some(ctxtrace_format::workload::Root::BlockOn) {
        words.push("receiver is the block_on root".to_owned());
    }
    if workload.allocator == Some(Allocator::Jemalloc) {
        words.push("jemalloc".to_owned());
    }
    if workload.idle_threads > 0 {
        words.push(format!(
            "{} idle thread{}",
            workload.idle_threads,
            plural(workload.idle_threads)
        ));
    }
    words.push(format!("{} messages", thousands(workload.messages)));
    words.join(", ")
}

/// The answer to "which task switches hit the kernel?" in one line.
pub(crate) fn verdict_in_words(report: &Report) -> String {
    let name = |target: &Target| {
        let file = target.name.rsplit('/').next().unwrap_or_default();
        printable(file)
    };
    let subject = report.workload.as_ref().map_or_else(
        || report.target.as_ref().map_or_else(String::new, name),
        |workload| {
            let buffer = workload
                .buffer
                .map_or(String::new(), |buffer| format!(", buffer {}", thousands(buffer)));
            format!("{}{buffer}", workload.mode.name())
        },
    );
    match &report.task_switches {
        Some(switches) if switches.total > 0 => {
            let total = switches.total;
            let causes = [
                ("worker parked", switches.hits.worker_parked),
                ("preempted", switches.hits.preempted),
                ("blocked", switches.hits.blocked),
            ];
            let causes: Vec<String> = causes
                .iter()
                .filter(|(_, count)| *count > switches.hit_kernel / 10_000)
                .map(|(cause, count)| format!("{cause} {}", percent(*count, switches.hit_kernel)))
                .collect();
            let causes = if causes.is_empty() {
                String::new()
            } else {
                format!(" ({})", causes.join(", "))
            };
            format!(
                "{subject}: {} task switches, {} stayed in user space, {} hit the kernel{causes}",
                thousands(total),
                percent(switches.stayed_in_user, total),
                thousands(switches.hit_kernel),
            )
        }
        _ if report.kernel_switches.total == 0 => format!("{subject}: {}", idle_in_words(report)),
        _ => {
            let classes = by_class(report);
            let classes: Vec<String> = classes
                .iter()
                .map(|(class, count, _)| {
                    format!("{} {}", class.in_words(), percent(*count, report.kernel_switches.total))
                })
                .collect();
            format!(
                "{subject}: no task switches counted; {} kernel {} ({})",
                thousands(report.kernel_switches.total),
                switch_plural(report.kernel_switches.total),
                classes.join(", ")
            )
        }
    }
}

/// Describes what the threads of a target without any kernel switch did.
fn idle_in_words(report: &Report) -> String {
    let count = report.threads.iter().map(Thread::count).saturating_sum();
    let among = |state: ThreadState| {
        let threads = report.threads.iter();
        threads
            .filter(|thread| thread.state == Some(state))
            .map(Thread::count)
            .saturating_sum()
    };
    let (asleep, stopped) = (among(ThreadState::Asleep), among(ThreadState::Stopped));
    match count {
        0 => "no kernel switches, and no thread was seen".to_owned(),
        1 if report.lost.refused_processes > 0 => {
            "no kernel switches before it executed a program that you may not trace".to_owned()
        }
        1 if asleep == 1 => "no kernel switches: its thread slept all the time".to_owned(),
        1 if stopped == 1 => "no kernel switches: its thread was stopped all the time".to_owned(),
        1 => "no kernel switches: its thread was never taken off its CPU".to_owned(),
        _ if asleep == count => format!("no kernel switches: its {count} threads slept all the time"),
        _ if stopped == count => format!("no kernel switches: its {count} threads were stopped all the time"),
        _ => {
            let states = [
                (asleep, "slept"),
                (stopped, "were stopped"),
                (
                    count.saturating_sub(asleep.saturating_add(stopped)),
                    "were on a CPU or ready to run",
                ),
            ];
            let states: Vec<String> = states
                .iter()
                .filter(|(count, _)| *count > 0)
                .map(|(count, words)| format!("{count} {words}"))
                .collect();
            format!(
                "no kernel switches: of its {count} threads {} all the time",
                states.join(", ")
            )
        }
    }
}

/// `switch` or `switches`.
pub(crate) fn switch_plural(count: u64) -> &'static str {
    if count == 1 { "switch" } else { "switches" }
}

/// Names the processes that still ran when the recording ended, for example `still running: serve (31217)`; `None` if there was
/// none.
pub(crate) fn still_running_in_words(target: &Target) -> Option<String> {
    let running = &target.still_running;
    let (shown, rest) = running.split_at(running.len().min(RUNNING_SHOWN));
    let mut names: Vec<String> = shown
        .iter()
        .map(|process| format!("{} ({})", printable(&process.name), process.pid))
        .collect();
    if !rest.is_empty() {
        names.push(format!("{} more", thousands(rest.len() as u64)));
    }
    (!names.is_empty()).then(|| format!("still running: {}", names.join(", ")))
}

/// A share in percent. "0 %" and "100 %" are printed only if the share is exactly 0 or 1.
pub(crate) fn percent(part: u64, whole: u64) -> String {
    if whole == 0 {
        return "0 %".to_owned();
    }
    let share = 100.0 * part as f64 / whole as f64;
    if part == 0 || part == whole {
        format!("{share:.0} %")
    } else if share < 0.01 {
        "under 0.01 %".to_owned()
    } else if share > 99.99 {
        "over 99.99 %".to_owned()
    } else if (1.0..99.0).contains(&share) {
        format!("{share:.1} %")
    } else {
        format!("{share:.2} %")
    }
}

/// Kernel switches and off-CPU time by class, most switches first.
pub(crate) fn by_class(report: &Report) -> Vec<(Class, u64, u64)> {
    let mut classes: BTreeMap<Class, (u64, u64)> = BTreeMap::new();
    for row in &report.ledger {
        let sum = classes.entry(row.class).or_default();
        add(&mut sum.0, row.count);
        add(&mut sum.1, row.off_cpu_ns);
    }
    let mut classes: Vec<_> = classes
        .into_iter()
        .map(|(class, (count, ns))| (class, count, ns))
        .collect();
    classes.sort_by_key(|&(class, count, _)| (std::cmp::Reverse(count), class));
    classes
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
    if locator.locator == "none" {
        return not_found_in_words(locator.reason.is_some(), choice).to_owned();
    }
    let version = |version: &Option<String>| {
        let version = version.as_ref().map_or(String::new(), |version| format!(" {version}"));
        printable(&version)
    };
    let with_probe = locator.locator.split('+').any(|one| one == "probe");
    let found = locator.locator.split('+').map(|one| match one {
        "probe" => "probe: tasks by name, every poll counted".to_owned(),
        "tokio" if with_probe => format!("tokio{}: the other tasks by number", version(&locator.tokio_version)),
        "tokio" => format!(
            "tokio{}: tasks by number and type, polls not counted",
            version(&locator.tokio_version)
        ),
        "go" => format!(
            "go{}: goroutines by number and function, their switches not counted",
            version(&locator.go_version)
        ),
        newer => printable(newer),
    });
    found.collect::<Vec<_>>().join("; ")
}

/// Why no tasks were found in a program.
fn not_found_in_words(has_reason: bool, choice: LocatorChoice) -> &'static str {
    if has_reason {
        return "nothing: its tasks cannot be found, see \"unattributed\" below";
    }
    match choice {
        LocatorChoice::Auto => "nothing: no tokio, no Go and no ctxtrace-probe in it",
        LocatorChoice::None => "nothing: turned off by --locator none",
        LocatorChoice::Probe => "nothing: no ctxtrace-probe in it",
        LocatorChoice::Tokio => "nothing: no tokio in it",
        LocatorChoice::Go => "nothing: no Go in it",
    }
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

pub(crate) fn plural(count: u64) -> &'static str {
    if count == 1 { "" } else { "s" }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_share_is_never_rounded_to_all_or_nothing() {
        assert_eq!(percent(0, 5), "0 %");
        assert_eq!(percent(5, 5), "100 %");
        assert_eq!(percent(999_999, 1_000_000), "over 99.99 %");
        assert_eq!(percent(99_960, 100_000), "99.96 %");
        assert_eq!(percent(1, 1_000_000), "under 0.01 %");
        assert_eq!(percent(1, 3), "33.3 %");
        assert_eq!(percent(0, 0), "0 %");
    }

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
        let both = Locator {
            locator: "probe+go".to_owned(),
            go_version: Some("1.26.1".to_owned()),
            ..found
        };
        assert_eq!(
            locator_in_words(&both, LocatorChoice::Auto),
            "probe: tasks by name, every poll counted; go 1.26.1: goroutines by number and function, their switches not counted"
        );
    }
}
