//! The sections about kernel switches: the ledger, the tasks, and the wakeups.

use ctxtrace_format::sums::SaturatingSum;
use std::collections::BTreeSet;
use std::fmt::Write;

use super::layout::{Columns, bar, wrapped};
use super::{Style, painted};
use crate::printable;
use crate::words::{by_class, percent, plural};
use ctxtrace_analysis::result::{Report, Task, WakeupOrigin};
use ctxtrace_analysis::units::{duration, thousands};

/// Maximum number of tasks that have a row; the others are added up in one row.
pub(super) const TASKS_SHOWN: usize = 8;
/// Maximum number of pairs of waker and woken thread that have a row; the others are added up in one row.
const WAKEUPS_SHOWN: usize = 6;

pub(super) fn ledger(report: &Report, style: Style) -> String {
    let mut table = Columns::new(&["Ledger", "switches", "share", "off-CPU", ""]).with_picture();
    let total = report.kernel_switches.total;
    for (class, count, off_cpu_ns) in by_class(report) {
        table.row([
            class.in_words().to_owned(),
            thousands(count),
            percent(count, total),
            duration(off_cpu_ns),
            bar(count as f64 / total.max(1) as f64),
        ]);
    }
    let mut text = table.render();
    let open = report.ledger.iter().filter_map(|row| row.open).saturating_sum();
    if open > 0 {
        let ns = report.ledger.iter().filter_map(|row| row.open_ns).saturating_sum();
        let note = format!(
            "{} of them {} still open: {} so far, not in any sum (see \"Still off the CPU\")",
            thousands(open),
            if open == 1 { "is" } else { "are" },
            duration(ns)
        );
        let _ = write!(text, "\n{}", wrapped(&note, 2).join("\n"));
    }
    let reasons: BTreeSet<&str> = report.ledger.iter().filter_map(|row| row.reason.as_deref()).collect();
    for reason in reasons {
        let because = wrapped(&format!("unattributed because {reason}"), 2);
        let _ = write!(text, "\n{}", because.join("\n"));
    }
    if !report.ledger_adds_up {
        let counted: u64 = report.ledger.iter().map(|row| row.count).saturating_sum();
        let line = if counted == total {
            "THE LEDGER DOES NOT ADD UP in one of the other runs".to_owned()
        } else {
            format!(
                "THE LEDGER DOES NOT ADD UP: {} in it, {} kernel switches",
                thousands(counted),
                thousands(total)
            )
        };
        let _ = write!(text, "\n{}", painted(&line, |line| style.red(line)));
    }
    text
}

pub(super) fn tasks(report: &Report) -> Option<String> {
    let (shown, rest) = report.tasks.split_at(report.tasks.len().min(TASKS_SHOWN));
    if shown.is_empty() {
        return None;
    }
    let mut table = Columns::new(&["Tasks", "polls", "hit kernel", "switches in poll", "off-CPU"]);
    let counted = |value: Option<u64>| value.map_or_else(|| "–".to_owned(), thousands);
    // Task numbers are unique only within a process, so rows of processes other than the first row's name their process.
    let own = report.tasks.first().map_or(0, |task| task.pid);
    for task in shown {
        // A number does not say what the task is, so the type of its future, or the function it was started with, follows.
        let name = match &task.future_type {
            Some(future_type) if task.is_number => format!("{} {future_type}", task.name),
            _ => task.name.clone(),
        };
        let name = if task.pid == own {
            name
        } else {
            format!("{name} in {}", task.pid)
        };
        table.row([
            printable(&name),
            counted(task.task_switches),
            counted(task.hit_kernel),
            thousands(task.kernel_switches),
            duration(task.off_cpu_ns),
        ]);
    }
    if !rest.is_empty() {
        let sum = |field: fn(&Task) -> Option<u64>| {
            let known: Vec<u64> = rest.iter().filter_map(field).collect();
            counted((!known.is_empty()).then(|| known.iter().saturating_sum()))
        };
        table.row([
            format!("{} more", thousands(rest.len() as u64)),
            sum(|task| task.task_switches),
            sum(|task| task.hit_kernel),
            sum(|task| Some(task.kernel_switches)),
            duration(rest.iter().map(|task| task.off_cpu_ns).saturating_sum()),
        ]);
    }
    Some(table.render())
}

pub(super) fn wakeups(report: &Report) -> Option<String> {
    let shown = &report.wakeups[..report.wakeups.len().min(WAKEUPS_SHOWN)];
    if shown.is_empty() {
        return None;
    }
    let mut table = Columns::new(&["Wakeups", "count", "wasted", "to wake", "p50", "p99"]);
    for wakeups in shown {
        let from = match &wakeups.from_task {
            Some(task) if wakeups.origin == WakeupOrigin::Task => {
                format!("{task} on {}", wakeups.from_tid.unwrap_or(0))
            }
            _ => match wakeups.from_tid {
                Some(tid) => format!("{} {tid}", wakeups.from_thread),
                None => wakeups.from_thread.clone(),
            },
        };
        table.row([
            printable(&format!("{from} → {}", wakeups.to_tid)),
            thousands(wakeups.count),
            wakeups.wasted.map_or_else(|| "–".to_owned(), thousands),
            wakeups
                .waking_ns
                .map_or_else(|| "–".to_owned(), |ns| duration(ns as u64)),
            duration(wakeups.p50_ns),
            duration(wakeups.p99_ns),
        ]);
    }
    let rest = &report.wakeups[shown.len()..];
    if !rest.is_empty() {
        table.row([
            format!(
                "{} more pair{}",
                thousands(rest.len() as u64),
                plural(rest.len() as u64)
            ),
            thousands(rest.iter().map(|wakeups| wakeups.count).saturating_sum()),
        ]);
    }
    Some(table.render())
}
