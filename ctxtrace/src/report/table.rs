//! The result for people: the answer first, then where it comes from, then what is wrong with it.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write;

use comfy_table::{CellAlignment, Table, presets};
use nix::sys::signal::Signal;

use super::printable;
use crate::analyze::result::{
    Class, CpuLosses, Distribution, Leg, Locator, OnCpu, Path, Polls, Report, Spread, Target, Task, Timeline,
    WakeupOrigin, Workload,
};
use crate::target::programs::LocatorChoice;
use crate::trace::Level;
use crate::trace::polls::PollClock;
use crate::units::{bytes, duration, signed_thousands, significant, thousands};
use crate::workload::{Allocator, Channel, Language};

/// Threads shown one by one; the rest is summed up.
const THREADS_SHOWN: usize = 12;
/// Programs named of those whose tasks are found in one way.
const PROGRAMS_SHOWN: usize = 3;
/// Tasks shown one by one.
const TASKS_SHOWN: usize = 8;
/// Pairs of waker and woken shown one by one.
const WAKEUPS_SHOWN: usize = 6;

/// Whether to colour.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Style {
    /// ANSI escapes for bold, dim and red.
    pub color: bool,
}

impl Style {
    fn paint(self, code: &str, text: &str) -> String {
        if self.color {
            format!("\x1b[{code}m{text}\x1b[0m")
        } else {
            text.to_owned()
        }
    }

    pub(super) fn bold(self, text: &str) -> String {
        self.paint("1", text)
    }

    pub(super) fn dim(self, text: &str) -> String {
        self.paint("2", text)
    }

    pub(super) fn red(self, text: &str) -> String {
        self.paint("1;31", text)
    }
}

/// The whole table, ended by a newline.
#[must_use]
pub fn render(report: &Report, style: Style) -> String {
    let mut sections = Vec::new();
    if let Some(reason) = &report.cut_short {
        sections.push(style.red(&format!("PARTIAL: {reason}. What was seen up to then:")));
    }
    if let Some(workload) = &report.workload {
        sections.push(headline(report, workload, style));
    }
    if let Some(target) = &report.target {
        sections.push(target_headline(report, target, style));
    }
    sections.push(verdict(report, style));
    sections.push(counts(report, style));
    sections.push(ledger(report, style));
    sections.extend(tasks(report));
    sections.extend(wakeups(report));
    sections.push(latencies(report));
    sections.extend(report.polls.as_ref().map(|polls| polls_section(polls, style)));
    sections.extend(report.on_cpu.as_ref().map(on_cpu));
    sections.push(threads(report));
    sections.push(footer(report, style));
    sections.join("\n\n") + "\n"
}

/// One line that says what was recorded.
#[must_use]
pub fn subject_in_words(report: &Report) -> String {
    match (&report.workload, &report.target) {
        (Some(workload), _) => workload_in_words(workload),
        (None, Some(target)) => target_in_words(target),
        (None, None) => String::new(),
    }
}

/// `make -j2 (process 4711)`, or `process 4711 (redis-server) and its children`.
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

fn target_headline(report: &Report, target: &Target, style: Style) -> String {
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
        "{}\n\n  {}",
        printable(&target_in_words(target)),
        style.bold(&figures.join("    "))
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
    text
}

/// One line that says what was run: `task-pool, buffer 0, 2 workers, 2,000,000 messages`.
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
        crate::workload::pin::Pin::None => "not pinned".to_owned(),
        pin => format!("pinned: {}", pin.name()),
    });
    if workload.root == Some(crate::workload::Root::BlockOn) {
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

fn headline(report: &Report, workload: &Workload, style: Style) -> String {
    let mut text = workload_in_words(workload);
    let speed = match (
        workload.messages_per_second,
        workload.ns_per_message,
        report.kernel_switches.per_message,
    ) {
        (Some(rate), Some(ns), Some(switches)) => format!(
            "{} messages/s    {} ns/message    {} kernel switches/message",
            significant(rate),
            significant(ns),
            significant(switches)
        ),
        _ => "no speed: the workload did not finish".to_owned(),
    };
    let _ = write!(text, "\n\n  {}", style.bold(&speed));
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

/// The answer to "which task switches hit the kernel?", in one line.
pub(super) fn verdict(report: &Report, style: Style) -> String {
    let name = |target: &Target| {
        let file = target.name.rsplit('/').next().unwrap_or_default();
        printable(file)
    };
    let who = report.workload.as_ref().map_or_else(
        || report.target.as_ref().map_or_else(String::new, name),
        |workload| {
            let buffer = workload
                .buffer
                .map_or(String::new(), |buffer| format!(", buffer {}", thousands(buffer)));
            format!("{}{buffer}", workload.mode.name())
        },
    );
    let text = match &report.task_switches {
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
                "{who}: {} task switches, {} stayed in user space, {} hit the kernel{causes}",
                thousands(total),
                percent(switches.stayed_in_user, total),
                thousands(switches.hit_kernel),
            )
        }
        _ => {
            let classes = by_class(report);
            let classes: Vec<String> = classes
                .iter()
                .map(|(class, count, _)| {
                    format!("{} {}", class.in_words(), percent(*count, report.kernel_switches.total))
                })
                .collect();
            format!(
                "{who}: no task switches counted; {} kernel {} ({})",
                thousands(report.kernel_switches.total),
                switch_plural(report.kernel_switches.total),
                classes.join(", ")
            )
        }
    };
    style.bold(&text)
}

/// A share in percent. Neither 0 nor 100 is said of what is not exactly that.
pub(super) fn percent(part: u64, whole: u64) -> String {
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
pub(super) fn by_class(report: &Report) -> Vec<(Class, u64, u64)> {
    let mut classes: BTreeMap<Class, (u64, u64)> = BTreeMap::new();
    for row in &report.ledger {
        let sum = classes.entry(row.class).or_default();
        sum.0 += row.count;
        sum.1 += row.off_cpu_ns;
    }
    let mut classes: Vec<_> = classes
        .into_iter()
        .map(|(class, (count, ns))| (class, count, ns))
        .collect();
    classes.sort_by_key(|&(class, count, _)| (std::cmp::Reverse(count), class));
    classes
}

fn ledger(report: &Report, style: Style) -> String {
    let mut table = plain_table(&["Ledger", "switches", "share", "off-CPU"]);
    let total = report.kernel_switches.total;
    for (class, count, off_cpu_ns) in by_class(report) {
        table.add_row([
            class.in_words().to_owned(),
            thousands(count),
            percent(count, total),
            duration(off_cpu_ns),
        ]);
    }
    let mut text = without_trailing_spaces(&table);
    let reasons: BTreeSet<&str> = report.ledger.iter().filter_map(|row| row.reason.as_deref()).collect();
    for reason in reasons {
        let _ = write!(text, "\nunattributed because {reason}");
    }
    if !report.ledger_adds_up {
        let counted: u64 = report.ledger.iter().map(|row| row.count).sum();
        let line = if counted == total {
            "THE LEDGER DOES NOT ADD UP in one of the other runs".to_owned()
        } else {
            format!(
                "THE LEDGER DOES NOT ADD UP: {} in it, {} kernel switches",
                thousands(counted),
                thousands(total)
            )
        };
        let _ = write!(text, "\n{}", style.red(&line));
    }
    text
}

fn tasks(report: &Report) -> Option<String> {
    let (shown, rest) = report.tasks.split_at(report.tasks.len().min(TASKS_SHOWN));
    if shown.is_empty() {
        return None;
    }
    let mut table = plain_table(&["Tasks", "polls", "hit kernel", "switches in poll", "off-CPU"]);
    let counted = |value: Option<u64>| value.map_or_else(|| "–".to_owned(), thousands);
    for task in shown {
        // A number alone says nothing; the type of its future, or the function it was started with, does.
        let name = match &task.future_type {
            Some(future_type) if is_number(&task.name) => format!("{} {future_type}", task.name),
            _ => task.name.clone(),
        };
        table.add_row([
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
            counted((!known.is_empty()).then(|| known.iter().sum()))
        };
        table.add_row([
            format!("{} more", thousands(rest.len() as u64)),
            sum(|task| task.task_switches),
            sum(|task| task.hit_kernel),
            sum(|task| Some(task.kernel_switches)),
            duration(rest.iter().map(|task| task.off_cpu_ns).sum()),
        ]);
    }
    Some(without_trailing_spaces(&table))
}

/// Whether a task goes by a number, or shares its name with others.
pub(super) fn is_number(name: &str) -> bool {
    name == "other" || name.starts_with('#') || name.starts_with("goroutine ")
}

fn wakeups(report: &Report) -> Option<String> {
    let shown = &report.wakeups[..report.wakeups.len().min(WAKEUPS_SHOWN)];
    if shown.is_empty() {
        return None;
    }
    let mut table = plain_table(&["Wakeups", "count", "wasted", "to wake", "p50", "p99"]);
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
        table.add_row([
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
        table.add_row([
            format!(
                "{} more pair{}",
                thousands(rest.len() as u64),
                plural(rest.len() as u64)
            ),
            thousands(rest.iter().map(|wakeups| wakeups.count).sum()),
        ]);
    }
    Some(without_trailing_spaces(&table))
}

fn counts(report: &Report, style: Style) -> String {
    let switches = &report.kernel_switches;
    let reconciliation = &report.reconciliation;
    let mut text = format!(
        "Kernel switches   {} = {} voluntary + {} involuntary; {} thread{}, {} migration{}",
        thousands(switches.total),
        thousands(switches.voluntary),
        thousands(switches.involuntary),
        report.threads.len(),
        plural(report.threads.len() as u64),
        thousands(report.migrations),
        plural(report.migrations),
    );
    let rusage = reconciliation.rusage.as_ref().map_or(String::new(), |rusage| {
        let bounds = format!(
            "rusage {}, expected {} to {}",
            thousands(rusage.switches),
            thousands(rusage.lower),
            thousands(rusage.upper)
        );
        if rusage.agrees {
            format!(" ({bounds})")
        } else {
            format!(" ({})", style.red(&bounds))
        }
    });
    let counted = format!(
        "traced {}, the kernel counted {}: difference {}",
        thousands(reconciliation.traced),
        thousands(reconciliation.kernel),
        signed_thousands(reconciliation.difference)
    );
    if agrees(report) {
        let _ = write!(text, "\nReconciliation    {counted}{rusage}");
    } else {
        let _ = write!(text, "\nReconciliation    {}{rusage}", style.red(&counted));
        for thread in reconciliation.threads.iter().filter(|thread| thread.difference != 0) {
            let line = format!(
                "thread {} ({}): traced {}, the kernel counted {}: {}",
                thread.tid,
                printable(&thread.name),
                thousands(thread.traced),
                thousands(thread.kernel),
                signed_thousands(thread.difference)
            );
            let _ = write!(text, "\n                  {}", style.red(&line));
        }
        if let Some(workload) = &report.workload {
            for (index, run) in workload
                .runs
                .iter()
                .enumerate()
                .filter(|(_, run)| run.difference != 0 && !run.median)
            {
                let line = format!("run {}: difference {}", index + 1, signed_thousands(run.difference));
                let _ = write!(text, "\n                  {}", style.red(&line));
            }
        }
    }
    if let Some(timeline) = &report.timeline {
        let _ = write!(text, "\n{}", timeline_line(timeline, style));
    }
    for line in locator_lines(report) {
        let _ = write!(text, "\n{line}");
    }
    text
}

/// How tasks were found in each program, and what that can tell; programs of the same kind in one line.
pub(super) fn locator_lines(report: &Report) -> Vec<String> {
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
    let lines = kinds.into_iter().enumerate().map(|(index, (kind, names))| {
        let label = if index == 0 { "Tasks found by" } else { "" };
        let more = names.len().saturating_sub(PROGRAMS_SHOWN);
        let mut shown = names[..names.len() - more].join(", ");
        if more > 0 {
            let _ = write!(shown, " and {more} more");
        }
        format!("{label:<18}{kind} ({shown})")
    });
    lines.collect()
}

fn locator_in_words(locator: &Locator, choice: LocatorChoice) -> String {
    let version = |version: &Option<String>| version.as_ref().map_or(String::new(), |version| format!(" {version}"));
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
            LocatorChoice::None => "nothing: they were not looked for".to_owned(),
            LocatorChoice::Probe => "nothing: no ctxtrace-probe in it".to_owned(),
            LocatorChoice::Tokio => "nothing: no tokio in it".to_owned(),
            LocatorChoice::Go => "nothing: no Go in it".to_owned(),
        },
        (several, _) => several.replace('+', " and "),
    }
}

fn timeline_line(timeline: &Timeline, style: Style) -> String {
    let text = format!(
        "Timeline          {} events, {}",
        thousands(timeline.events),
        bytes(timeline.bytes)
    );
    match timeline.agrees {
        Some(true) => format!("{text}: played again, they give the same counts"),
        None if timeline.dropped > 0 => {
            let begins = timeline.begins_ns.map_or_else(String::new, |ns| {
                format!(": the timeline begins {} after the recording", duration(ns))
            });
            format!(
                "{text}; {} older ones were not kept (--max-size, --keep){begins}",
                thousands(timeline.dropped)
            )
        }
        None => format!("{text}: not all of them, see what was lost"),
        Some(false) => {
            let mut text = format!("{text}: {}", style.red("THEY DO NOT GIVE THE SAME COUNTS"));
            for difference in &timeline.disagreements {
                let _ = write!(text, "\n                  {}", style.red(difference));
            }
            text
        }
    }
}

/// Whether every run's counts agree with the kernel's.
#[must_use]
pub fn agrees(report: &Report) -> bool {
    let runs_agree = report
        .workload
        .as_ref()
        .is_none_or(|workload| workload.runs.iter().all(|run| run.difference == 0));
    runs_agree && report.reconciliation.difference == 0
}

/// Functions of the profile that the table has room for.
const FUNCTIONS: usize = 12;

/// What the target did on its CPUs.
fn on_cpu(profile: &OnCpu) -> String {
    let mut kinds = plain_table(&["On the CPU", "samples", "share", "time"]);
    for of in &profile.categories {
        kinds.add_row([
            of.category.in_words().to_owned(),
            thousands(of.samples),
            format!("{} %", significant(100.0 * of.share)),
            duration(of.ns),
        ]);
    }
    let mut functions = plain_table(&["Function", "in", "share", "time"]);
    for of in profile.functions.iter().take(FUNCTIONS) {
        functions.add_row([
            printable(&of.function),
            of.category.in_words().to_owned(),
            format!("{} %", significant(100.0 * of.share)),
            duration(of.ns),
        ]);
    }
    format!("{kinds}\n\n{functions}")
}

fn latencies(report: &Report) -> String {
    let mut table = plain_table(&["Intervals", "count", "p50", "p90", "p99", "p99.9", "max", "sum"]);
    let latency = &report.latency;
    for (name, distribution) in [
        ("off-CPU", &latency.off_cpu),
        ("  blocked", &latency.blocked),
        ("  run queue", &latency.run_queue),
        ("on-CPU", &latency.on_cpu),
        ("wake to run", &latency.wake_to_run),
    ] {
        table.add_row(distribution_row(name, distribution));
    }
    without_trailing_spaces(&table)
}

/// How long tasks wait for their polls, and where the time goes.
fn polls_section(polls: &Polls, style: Style) -> String {
    let mut table = plain_table(&["Polls", "count", "p50", "p90", "p99", "max"]);
    let row = |name: &str, spread: &Spread| {
        [
            name.to_owned(),
            thousands(spread.count),
            duration(spread.p50_ns),
            duration(spread.p90_ns),
            duration(spread.p99_ns),
            duration(spread.max_ns),
        ]
    };
    for (name, spread) in [("a poll", &polls.poll), ("wake to poll", &polls.wake_to_poll)] {
        if let Some(spread) = spread {
            table.add_row(row(name, spread));
        }
    }
    for path in &polls.paths {
        table.add_row(row(&format!("  {}", path_in_words(path.path)), &path.wake_to_poll));
        let legs = path.legs.iter().filter_map(|leg| Some((leg_in_words(leg.leg)?, leg)));
        for (name, leg) in legs.filter(|_| matches!(path.path, Path::Kernel | Path::AlreadyComing)) {
            table.add_row(row(&format!("    {name}"), &leg.spread));
        }
    }
    let mut tasks = plain_table(&[
        "Wake to poll",
        "polls",
        "a poll, p50",
        "p99",
        "wake to poll, p50",
        "p99",
    ]);
    for task in polls.tasks.iter().take(TASKS_SHOWN) {
        let time = |spread: &Option<Spread>, of: fn(&Spread) -> u64| {
            spread
                .as_ref()
                .map_or_else(|| "–".to_owned(), |spread| duration(of(spread)))
        };
        tasks.add_row([
            printable(&task.name),
            thousands(task.polls),
            time(&task.poll, |spread| spread.p50_ns),
            time(&task.poll, |spread| spread.p99_ns),
            time(&task.wake_to_poll, |spread| spread.p50_ns),
            time(&task.wake_to_poll, |spread| spread.p99_ns),
        ]);
    }
    let clock = match polls.clock {
        PollClock::Tsc => "the time-stamp counter",
        PollClock::Monotonic => "CLOCK_MONOTONIC",
    };
    let counted = match polls.agrees {
        Some(true) => "as many polls as the probe counted".to_owned(),
        Some(false) => style.red("NOT AS MANY POLLS AS THE PROBE COUNTED"),
        None if polls.dropped > 0 => format!("{} older ones were not kept", thousands(polls.dropped)),
        None => "not all of them, see what was lost".to_owned(),
    };
    format!(
        "{}\n\n{}\n{} stamps by {clock}, {} ns each: {counted}",
        without_trailing_spaces(&table),
        without_trailing_spaces(&tasks),
        thousands(polls.stamps),
        significant(polls.reading_ns),
    )
}

fn path_in_words(path: Path) -> &'static str {
    match path {
        Path::UserSpace => "in user space",
        Path::Kernel => "through the kernel",
        Path::AlreadyComing => "thread was coming",
        Path::Unknown => "on unknown threads",
    }
}

/// The parts of the delay; nothing for what is beside it.
fn leg_in_words(leg: Leg) -> Option<&'static str> {
    match leg {
        Leg::WakeToWaking => Some("to its waking"),
        Leg::WakingToSwitchIn => Some("to its switch-in"),
        Leg::WakeToSwitchIn => Some("to its switch-in"),
        Leg::SwitchInToPoll => Some("to the poll"),
        Leg::WakersPoll | Leg::WakeToPoll | Leg::Poll => None,
    }
}

fn distribution_row(name: &str, distribution: &Distribution) -> Vec<String> {
    let time = |ns: Option<u64>| ns.map_or_else(|| "–".to_owned(), duration);
    vec![
        name.to_owned(),
        thousands(distribution.count),
        time(distribution.p50_ns),
        time(distribution.p90_ns),
        time(distribution.p99_ns),
        time(distribution.p999_ns),
        time(distribution.max_ns),
        time((distribution.count > 0).then_some(distribution.sum_ns)),
    ]
}

fn threads(report: &Report) -> String {
    let mut table = plain_table(&[
        "Threads",
        "tid",
        "voluntary",
        "involuntary",
        "on-CPU",
        "run queue",
        "off-CPU",
    ]);
    let mut busiest: Vec<_> = report.threads.iter().collect();
    busiest.sort_by_key(|thread| (std::cmp::Reverse(thread.voluntary + thread.involuntary), thread.tid));
    let (shown, rest) = busiest.split_at(busiest.len().min(THREADS_SHOWN));
    for thread in shown {
        table.add_row([
            printable(&thread.name),
            thread.tid.to_string(),
            thousands(thread.voluntary),
            thousands(thread.involuntary),
            duration(thread.on_cpu_ns),
            duration(thread.run_queue_ns),
            duration(thread.off_cpu_ns),
        ]);
    }
    if !rest.is_empty() {
        let sum =
            |field: fn(&crate::analyze::result::Thread) -> u64| rest.iter().map(|thread| field(thread)).sum::<u64>();
        table.add_row([
            format!("{} more", thousands(rest.len() as u64)),
            String::new(),
            thousands(sum(|thread| thread.voluntary)),
            thousands(sum(|thread| thread.involuntary)),
            duration(sum(|thread| thread.on_cpu_ns)),
            duration(sum(|thread| thread.run_queue_ns)),
            duration(sum(|thread| thread.off_cpu_ns)),
        ]);
    }
    without_trailing_spaces(&table)
}

fn footer(report: &Report, style: Style) -> String {
    let lost = match report.lost.in_words() {
        None => "nothing".to_owned(),
        Some(lost) => format!("{}{}", style.red(&lost), room(report)),
    };
    let by_cpu: Vec<String> = report.lost.by_cpu.iter().map(lost_by_cpu).collect();
    let by_cpu = if by_cpu.is_empty() {
        String::new()
    } else {
        let cpus = style.red(&by_cpu.join(", "));
        format!("\n                  {cpus}")
    };
    let tracing = tracing_cost(report);
    format!("Lost              {lost}{by_cpu}\n{}", style.dim(&tracing))
}

fn lost_by_cpu(losses: &CpuLosses) -> String {
    let lost = losses.events + losses.timeline_events;
    format!("{} on CPU {}", thousands(lost), losses.cpu)
}

/// Which options make room for what did not fit.
pub(super) fn room(report: &Report) -> String {
    let lost = &report.lost;
    let options = [
        ("--max-threads", lost.threads),
        ("--max-stacks", lost.stacks + lost.stack_sums + lost.sample_stacks),
        ("--ring-size", lost.timeline_events + lost.samples),
    ];
    let wanted: Vec<&str> = options
        .iter()
        .filter(|(_, count)| *count > 0)
        .map(|(option, _)| *option)
        .collect();
    if wanted.is_empty() {
        return String::new();
    }
    format!(" (a larger {} makes room)", wanted.join(" and "))
}

/// From this share of the target's time on, tracing is said to disturb it.
const DISTURBING_SHARE: f64 = 0.05;

/// What tracing cost, and what to do where that is much.
pub(super) fn tracing_cost(report: &Report) -> String {
    let overhead = &report.overhead;
    let each: Vec<String> = overhead
        .programs
        .iter()
        .filter(|program| matches!(program.name.as_str(), "sched_switch" | "sched_waking"))
        .filter_map(|program| Some(format!("{} ns a {}", significant(program.ns_per_run?), program.name)))
        .collect();
    let mut text = match (overhead.programs_ns, overhead.share_of_on_cpu) {
        (Some(ns), Some(share)) => format!(
            "Tracing           {} in the kernel, {} % of the time on the CPU ({})",
            duration(ns as u64),
            significant(100.0 * share),
            each.join(", ")
        ),
        _ => "Tracing           its time in the kernel was not measured".to_owned(),
    };
    let _ = write!(
        text,
        "\n                  {} of CPU time in ctxtrace itself",
        duration(overhead.tracer_cpu_ns)
    );
    let disturbs = overhead.share_of_on_cpu.is_some_and(|share| share >= DISTURBING_SHARE);
    let slower = match report.level {
        Level::Stacks => Some("stacks make"),
        Level::Timeline => Some("events make"),
        Level::Counts => None,
    };
    if let (true, Some(slower)) = (disturbs, slower) {
        let _ = write!(
            text,
            "\n                  The {slower} the run slower: --level counts for its true speed"
        );
    }
    text
}

fn without_trailing_spaces(table: &Table) -> String {
    let text = table.to_string();
    let lines: Vec<&str> = text.lines().map(str::trim_end).collect();
    lines.join("\n")
}

pub(super) fn plain_table(header: &[&str]) -> Table {
    let mut table = Table::new();
    table.load_style(presets::NOTHING);
    table.set_header(header.to_vec());
    for (index, column) in table.column_iter_mut().enumerate() {
        column.set_padding((0, 2));
        if index > 0 {
            column.set_cell_alignment(CellAlignment::Right);
        }
    }
    table
}

fn plural(count: u64) -> &'static str {
    if count == 1 { "" } else { "s" }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::analyze::summarize::summarize;
    use crate::analyze::summarize::tests::{about, command, info, run};
    use crate::trace::run::{Exit, Subject};
    use crate::workload::{Mode, Protocol, Spec};

    const PLAIN: Style = Style { color: false };
    const COLOR: Style = Style { color: true };

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
    fn a_ledger_that_does_not_add_up_says_so() {
        let mut run = run(670_000);
        run.aggregates.switch_sums[0].1.count += 1;
        let report = summarize(&info(Mode::Task), &[run]);
        assert!(!report.ledger_adds_up);
        let text = render(&report, COLOR);
        assert!(
            text.contains("\x1b[1;31mTHE LEDGER DOES NOT ADD UP: 6 in it, 5 kernel switches"),
            "{text}"
        );
    }

    #[test]
    fn the_answer_comes_first() {
        let report = summarize(&info(Mode::TaskPool), &[run(670_000)]);
        let text = render(&report, PLAIN);
        let mut lines = text.lines();
        assert_eq!(
            lines.next(),
            Some("task-pool, buffer 0, 2 workers, not pinned, 1,000 messages")
        );
        assert_eq!(
            lines.nth(1),
            Some("  1,492,537 messages/s    670 ns/message    0.00500 kernel switches/message")
        );
        assert!(
            text.contains("traced 5, the kernel counted 5: difference 0 (rusage 5, expected 4 to 5)"),
            "{text}"
        );
        assert!(text.contains("Lost              nothing"));
    }

    #[test]
    fn a_variant_is_named_by_what_is_not_as_usual() {
        let in_words = |spec: Spec, max_in_flight| {
            let mut run = run(670_000);
            if let Some(outcome) = &mut run.outcome {
                outcome.max_in_flight = max_in_flight;
            }
            let text = render(&summarize(&about(Subject::Workload(spec)), &[run]), PLAIN);
            text.lines().take(4).map(str::to_owned).collect::<Vec<_>>()
        };
        let variant = Spec {
            buffer: Some(1),
            channel: Some(Channel::Tokio),
            protocol: Some(Protocol::LockStep),
            count_in_flight: true,
            idle_threads: 1,
            allocator: Allocator::Jemalloc,
            ..Spec::of(Mode::Task)
        };
        let lines = in_words(variant, Some(1_234));
        assert_eq!(
            lines[0],
            "task, buffer 1, tokio's channel, lock-step, not pinned, jemalloc, 1 idle thread, 1,000 messages"
        );
        assert_eq!(lines[3], "  At most 1,234 messages in flight");
        let usual = in_words(Spec::of(Mode::Go), None);
        assert_eq!(usual[0], "go, buffer 0, 2 workers, not pinned, 1,000 messages");
        let variant = Spec {
            protocol: Some(Protocol::Pipelined),
            ..Spec::of(Mode::Go)
        };
        assert_eq!(
            in_words(variant, None)[0],
            "go, buffer 0, pipelined, 2 workers, not pinned, 1,000 messages"
        );
    }

    #[test]
    fn it_fits_eighty_columns() {
        let report = summarize(&info(Mode::Process), &[run(670_000_000)]);
        let text = render(&report, PLAIN);
        for line in text
            .lines()
            .filter(|line| !line.starts_with("Reconciliation") && !line.starts_with("Tracing"))
        {
            assert!(line.trim_end().chars().count() <= 80, "{line}");
        }
    }

    #[test]
    fn a_difference_is_red_and_names_its_thread() {
        let mut run = run(670_000);
        run.aggregates.threads[0].thread.traced_voluntary -= 2;
        let report = summarize(&info(Mode::Task), &[run]);
        assert!(!agrees(&report));
        let text = render(&report, COLOR);
        assert!(
            text.contains("\x1b[1;31mthread 101 (tokio-rt-worker): traced 3, the kernel counted 5: -2\x1b[0m"),
            "{text}"
        );
    }

    #[test]
    fn events_that_agree_with_the_counts_say_so() {
        let mut run = run(670_000);
        run.timeline = Some(crate::trace::run::Timeline {
            disagreements: Some(Vec::new()),
            ..Default::default()
        });
        let report = summarize(&info(Mode::Task), &[run]);
        assert_eq!(
            report.timeline.as_ref().and_then(|timeline| timeline.agrees),
            Some(true)
        );
        let text = render(&report, PLAIN);
        assert!(
            text.contains("Timeline          0 events, 0 B: played again, they give the same counts"),
            "{text}"
        );
    }

    #[test]
    fn losses_are_red() {
        let mut few = run(670_000);
        few.aggregates.counters.lost_wakeups = 7;
        let text = render(&summarize(&info(Mode::Task), &[few]), COLOR);
        assert!(
            text.contains("Lost              \x1b[1;31m7 wakeups\x1b[0m\n"),
            "{text}"
        );
        let mut crowded = run(670_000);
        (
            crowded.aggregates.counters.lost_threads,
            crowded.aggregates.counters.lost_stacks,
        ) = (1, 2);
        let text = render(&summarize(&info(Mode::Task), &[crowded]), PLAIN);
        assert!(
            text.contains(" (a larger --max-threads and --max-stacks makes room)\n"),
            "{text}"
        );
    }

    #[test]
    fn without_colour_there_is_no_escape() {
        let mut run = run(670_000);
        run.cut_short = Some("interrupted".to_owned());
        run.aggregates.threads[0].thread.comm[..5].copy_from_slice(b"\x1b[31m");
        let text = render(&summarize(&info(Mode::Task), &[run]), PLAIN);
        assert!(!text.contains('\x1b'));
        assert!(text.starts_with("PARTIAL: interrupted. What was seen up to then:\n"));
    }

    #[test]
    fn many_threads_are_summed_up() {
        let mut run = run(670_000);
        for tid in 200..300 {
            run.aggregates.threads.push(crate::trace::build::thread(tid, "x", 1, 0));
        }
        let text = render(&summarize(&info(Mode::Task), &[run]), PLAIN);
        assert!(text.contains("89 more"), "{text}");
    }

    #[test]
    fn a_commands_table_begins_with_the_command_and_how_it_ended() {
        let mut failed = run(1);
        failed.exit = Some(Exit {
            status: Some(3),
            signal: None,
        });
        let text = render(&summarize(&about(command()), &[failed]), PLAIN);
        assert!(
            text.starts_with("make -j2 (process 100)\n\n  2.00 ms recorded    5 kernel switches    2,500 "),
            "{text}"
        );
        assert!(text.contains("it ended with status 3"), "{text}");
        assert!(text.contains("\nmake: no task switches counted"), "{text}");
        let subject = Subject::Process {
            pid: 7,
            name: "ser\x1bver".to_owned(),
            children: true,
        };
        let text = render(&summarize(&about(subject), &[run(1)]), PLAIN);
        assert!(
            text.starts_with("process 7 (ser\u{fffd}ver) and its children\n"),
            "{text}"
        );
    }
}
