//! The first sections: what was recorded, how fast it was, and the answer.

use std::fmt::Write;

use nix::sys::signal::Signal;

use super::layout::{COLUMNS, plural, shortened, wrapped};
use super::switches::by_class;
use super::{Style, painted, percent};
use crate::printable;
use ctxtrace_analysis::result::{Report, Target, Thread, ThreadState, Workload};
use ctxtrace_analysis::units::{duration, significant, thousands};
use ctxtrace_format::sums::SaturatingSum as _;
use ctxtrace_format::workload::{Allocator, Channel, Language};

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
fn target_in_words(target: &Target) -> String {
    let process = target.pid.map_or("process".to_owned(), |pid| format!("process {pid}"));
    match &target.command {
        Some(words) => format!("{} ({process})", words.join(" ")),
        None if target.children => format!("{process} ({}) and its children", target.name),
        None => format!("{process} ({})", target.name),
    }
}

fn switch_plural(count: u64) -> &'static str {
    if count == 1 { "switch" } else { "switches" }
}

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

/// Maximum number of processes that are named as still running; the others are counted.
const RUNNING_SHOWN: usize = 8;

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
