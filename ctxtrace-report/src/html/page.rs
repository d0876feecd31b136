//! The content of the page, as data. Every figure is formatted here, in the same way as in the table, and is accompanied by its
//! number if the page sorts or draws by it. A part that was not recorded is replaced by a sentence that says why, and which
//! option records it.

use ctxtrace_common::histogram::{Histogram, Latency as Kind, SUB_BUCKETS, lower_bound, upper_bound};
use ctxtrace_format::sums::SaturatingSum;
use serde::Serialize;

use super::flame::Tree;
use super::timeline::PageTimeline;
use crate::printable;
use crate::words;
use ctxtrace_analysis::profile;
use ctxtrace_analysis::result::{Class, Distribution, Report, WakeupOrigin};
use ctxtrace_analysis::symbolize::stacks::{self, Resolved};
use ctxtrace_analysis::units::{duration, signed_thousands, significant, thousands};
use ctxtrace_analysis::verdict::counts_agree;
use ctxtrace_format::run::Run;
use ctxtrace_format::{Latencies, Level};

/// Maximum number of rows of a table. Further rows are left out, and a note gives their number.
const MOST_ROWS: usize = 1_000;

/// The content of the page.
#[derive(Clone, Debug, Serialize)]
pub(super) struct Page {
    /// What was recorded.
    pub(super) subject: String,
    /// Where and how it was recorded, one phrase each.
    setting: Vec<String>,
    verdict: String,
    facts: Vec<Fact>,
    alerts: Vec<Alert>,
    ledger: PageLedger,
    distributions: Vec<Plot>,
    latency: Table,
    timeline: PagePart<PageTimeline>,
    flames: Vec<Flame>,
    tables: Vec<Table>,
    trust: Vec<Statement>,
}

/// A main figure.
#[derive(Clone, Debug, Serialize)]
struct Fact {
    value: String,
    label: &'static str,
    help: String,
}

/// A warning that is shown above all figures.
#[derive(Clone, Debug, Serialize)]
struct Alert {
    text: String,
    /// True if figures are wrong or incomplete. False if the figures that are shown are correct.
    is_bad: bool,
}

/// A part of the page whose data may not have been recorded.
#[derive(Clone, Debug, Serialize)]
#[serde(rename_all = "kebab-case")]
enum PagePart<T> {
    Here(T),
    /// A sentence that says why the part is missing.
    Missing(String),
}

#[derive(Clone, Debug, Serialize)]
struct PageLedger {
    total: String,
    rows: Vec<LedgerRow>,
    notes: Vec<String>,
}

#[derive(Clone, Debug, Serialize)]
struct LedgerRow {
    class: &'static str,
    meaning: &'static str,
    count: u64,
    off_cpu_ns: u64,
    /// As text: the count, its share, the off-CPU time, and its share.
    texts: [String; 4],
}

/// A distribution that is plotted.
#[derive(Clone, Debug, Serialize)]
struct Plot {
    name: &'static str,
    meaning: &'static str,
    count: u64,
    /// Number of values that are 0, which a logarithmic axis cannot show.
    zeros: u64,
    sum_ns: u64,
    /// Smallest value, largest value, and count of each bin, in ascending order. Empty bins are left out.
    bins: Vec<[u64; 3]>,
    /// Name, nanoseconds, and text of each percentile.
    percentiles: Vec<(&'static str, u64, String)>,
}

#[derive(Clone, Debug, Serialize)]
struct Table {
    id: &'static str,
    title: &'static str,
    intro: &'static str,
    columns: Vec<Column>,
    rows: Vec<Vec<Cell>>,
    notes: Vec<String>,
}

#[derive(Clone, Debug, Serialize)]
struct Column {
    name: &'static str,
    help: &'static str,
    numeric: bool,
}

/// The text of a cell, and the number by which the column is sorted. Without a number the column is sorted by the text.
#[derive(Clone, Debug, Serialize)]
struct Cell(String, Option<f64>);

#[derive(Clone, Debug, Serialize)]
struct Flame {
    id: &'static str,
    title: &'static str,
    intro: &'static str,
    /// The unit of the counts.
    unit: &'static str,
    tree: PagePart<Tree>,
    notes: Vec<String>,
}

#[derive(Clone, Debug, Serialize)]
struct Statement {
    label: &'static str,
    text: String,
    is_bad: bool,
}

impl Page {
    pub(super) fn new(report: &Report, run: &Run, runs: &[Run]) -> Self {
        let mut latencies = Latencies::default();
        for run in runs {
            latencies.merge(&run.aggregates.latencies);
        }
        Self {
            subject: printable(&words::subject_in_words(report)),
            setting: setting(report),
            verdict: words::verdict_in_words(report),
            facts: facts(report),
            alerts: alerts(report),
            ledger: ledger(report),
            distributions: plots(report, &latencies),
            latency: latency_table(report),
            timeline: match &run.lanes {
                Some(lanes) if !lanes.lanes.is_empty() => PagePart::Here(PageTimeline::pack(lanes, report, run)),
                Some(_) => PagePart::Missing("There were no events to draw.".to_owned()),
                None => PagePart::Missing(format!(
                    "The timeline was not recorded: --level {} counts switches without recording the time of each one. Use \
                     --level timeline to record it.",
                    report.level.name()
                )),
            },
            flames: flames(report, run),
            tables: [
                Some(tasks(report)),
                Some(wakeups(report)),
                Some(threads(report)),
                functions(report),
            ]
            .into_iter()
            .flatten()
            .collect(),
            trust: trust(report),
        }
    }
}

fn setting(report: &Report) -> Vec<String> {
    let host = &report.host;
    vec![
        format!("recorded on {}", printable(&host.name)),
        format!("Linux {}", printable(&host.kernel)),
        format!("{} CPUs", host.cpus),
        format!("level {}", report.level.name()),
        format!("{} long", duration(report.recorded_ns)),
        format!("ctxtrace {}", report.ctxtrace_version),
    ]
}

fn facts(report: &Report) -> Vec<Fact> {
    let mut facts = Vec::new();
    let mut fact = |value: Option<String>, label, help: &str| {
        let help = help.to_owned();
        facts.extend(value.map(|value| Fact { value, label, help }));
    };
    if let Some(workload) = &report.workload {
        let several = match workload.runs.len() {
            0 | 1 => "",
            _ => " This is the median of several runs.",
        };
        fact(
            workload.messages_per_second.map(significant),
            "messages per second",
            &format!("The speed while the program was traced.{several}"),
        );
        fact(
            workload.ns_per_message.map(|ns| format!("{} ns", significant(ns))),
            "per message",
            "The duration of the measured section, divided by the number of messages.",
        );
        fact(
            report.kernel_switches.per_message.map(significant),
            "kernel switches per message",
            "How often the kernel took a thread off a CPU, divided by the number of messages.",
        );
    }
    fact(
        Some(thousands(report.kernel_switches.total)),
        "kernel switches",
        "How often the kernel took a thread of the program off a CPU.",
    );
    if report.workload.is_none() {
        fact(
            report.kernel_switches.per_second.map(significant),
            "kernel switches per second",
            "The kernel switches, divided by the duration of the recording.",
        );
    }
    if let Some(switches) = report.task_switches.as_ref().filter(|switches| switches.total > 0) {
        fact(
            Some(thousands(switches.total)),
            "task switches",
            "How often a thread of the runtime began to poll a task.",
        );
        fact(
            Some(words::percent(switches.stayed_in_user, switches.total)),
            "stayed in user space",
            "Task switches that did not go through the kernel: the thread was not switched out since its previous poll.",
        );
    }
    let on_cpu_ns: u64 = report.threads.iter().map(|thread| thread.on_cpu_ns).saturating_sum();
    fact(
        Some(duration(on_cpu_ns)),
        "on the CPU",
        "The sum of the times that all threads were on a CPU.",
    );
    fact(
        report
            .overhead
            .share_of_on_cpu
            .map(|share| format!("{} %", significant(100.0 * share))),
        "of that is tracing",
        "The part of that time that tracing took, measured by the kernel.",
    );
    facts
}

fn alerts(report: &Report) -> Vec<Alert> {
    let mut alerts = Vec::new();
    let mut alert = |text: String, is_bad| alerts.push(Alert { text, is_bad });
    if let Some(reason) = &report.cut_short {
        alert(
            format!("Partial: {}. The report covers the time until then.", printable(reason)),
            true,
        );
    }
    if !counts_agree(report) {
        let difference = signed_thousands(report.reconciliation.difference);
        alert(
            format!(
                "The counts differ from the kernel's own counts: traced minus kernel is {difference}. Do not rely on the figures."
            ),
            true,
        );
    }
    if !report.ledger_adds_up {
        alert(
            "The ledger does not add up to the kernel switches. Do not rely on it.".to_owned(),
            true,
        );
    }
    if let Some(timeline) = report
        .timeline
        .as_ref()
        .filter(|timeline| timeline.agrees == Some(false))
    {
        let differences = timeline.disagreements.join("; ");
        alert(
            format!("The counts of the timeline differ from those that were added up in the kernel: {differences}."),
            true,
        );
    }
    if let Some(lost) = report.lost.in_words() {
        alert(format!("Lost: {lost}{}.", room(report)), report.lost.events > 0);
    }
    if let Some(running) = report.target.as_ref().and_then(words::still_running_in_words) {
        alert(
            format!("Some processes did not end with the recording: {running}."),
            false,
        );
    }
    alerts
}

fn meaning(class: Class) -> &'static str {
    match class {
        Class::Exited => "the thread ended: this was its last switch",
        Class::Stopped => "the thread was stopped by a signal, a debugger or a freezer",
        Class::Unattributed => "what the thread was doing is not known",
        Class::Yielded => "the thread called sched_yield",
        Class::TaskBlocked => "the thread slept while it polled a task",
        Class::TaskPreempted => "the thread was preempted while it polled a task",
        Class::WorkerParked => "a worker of the runtime slept because it had nothing to poll",
        Class::PoolIdle => "a thread of the pool for blocking work slept because it had no work",
        Class::RuntimeBlocked => "a thread of the runtime slept between polls, for another reason",
        Class::RuntimePreempted => "a thread of the runtime was preempted between polls",
        Class::ThreadBlocked => "a thread outside of any task runtime slept",
        Class::ThreadPreempted => "a thread outside of any task runtime was preempted",
    }
}

fn ledger(report: &Report) -> PageLedger {
    let total = report.kernel_switches.total;
    let classes = words::by_class(report);
    let total_ns: u64 = classes.iter().map(|(_, _, ns)| ns).saturating_sum();
    let row = |&(class, count, off_cpu_ns): &(Class, u64, u64)| LedgerRow {
        class: class.in_words(),
        meaning: meaning(class),
        count,
        off_cpu_ns,
        texts: [
            thousands(count),
            words::percent(count, total),
            duration(off_cpu_ns),
            words::percent(off_cpu_ns, total_ns),
        ],
    };
    let mut notes: Vec<String> = Vec::new();
    for reason in report.ledger.iter().filter_map(|row| row.reason.as_deref()) {
        let note = format!("Unattributed because {}.", printable(reason));
        if !notes.contains(&note) {
            notes.push(note);
        }
    }
    PageLedger {
        total: thousands(total),
        rows: classes.iter().map(row).collect(),
        notes,
    }
}

/// The five distributions: kind, name, meaning, and summary of each.
fn distributions(report: &Report) -> [(Kind, &'static str, &'static str, &Distribution); 5] {
    let latency = &report.latency;
    [
        (
            Kind::OffCpu,
            "off-CPU",
            "from a switch-out to the thread's next switch-in: the sum of the next two",
            &latency.off_cpu,
        ),
        (Kind::Blocked, "blocked", "asleep, until the wakeup", &latency.blocked),
        (
            Kind::RunQueue,
            "run queue",
            "ready to run, but waiting for a CPU",
            &latency.run_queue,
        ),
        (
            Kind::OnCpu,
            "on-CPU",
            "from a switch-in to the next switch-out",
            &latency.on_cpu,
        ),
        (
            Kind::WakeToRun,
            "wake to run",
            "from the wakeup that ended a sleep to the switch-in",
            &latency.wake_to_run,
        ),
    ]
}

fn percentiles(distribution: &Distribution) -> Vec<(&'static str, u64, String)> {
    let known = [
        ("p50", distribution.p50_ns),
        ("p90", distribution.p90_ns),
        ("p99", distribution.p99_ns),
        ("p99.9", distribution.p999_ns),
        ("max", distribution.max_ns),
    ];
    known
        .into_iter()
        .filter_map(|(name, ns)| Some((name, ns?, duration(ns?))))
        .collect()
}

fn plots(report: &Report, latencies: &Latencies) -> Vec<Plot> {
    let plot = |(kind, name, meaning, distribution): (_, _, _, &Distribution)| {
        let histogram = latencies.get(kind);
        Plot {
            name,
            meaning,
            count: distribution.count,
            zeros: histogram.buckets[0],
            sum_ns: distribution.sum_ns,
            bins: bins(histogram),
            percentiles: percentiles(distribution),
        }
    };
    distributions(report).into_iter().map(plot).collect()
}

/// Merges the buckets of a histogram into bins of a quarter of a power of two, the finest that the eye can distinguish on a
/// logarithmic axis. The bucket of the value 0 is left out.
fn bins(histogram: &Histogram) -> Vec<[u64; 3]> {
    // Below `SUB_BUCKETS` a bucket is a single value, and four buckets would be more than a quarter of a power of two.
    let width = |bucket: usize| match bucket {
        0..8 => 1,
        8..SUB_BUCKETS => 2,
        _ => 4,
    };
    let mut bins = Vec::new();
    let mut bucket = 1;
    while bucket < histogram.buckets.len() {
        let end = bucket + width(bucket);
        let count: u64 = histogram.buckets[bucket..end].iter().saturating_sum();
        if count > 0 {
            bins.push([lower_bound(bucket), upper_bound(end - 1), count]);
        }
        bucket = end;
    }
    bins
}

fn text(text: &str) -> Cell {
    Cell(printable(text), None)
}

fn number(value: u64) -> Cell {
    Cell(thousands(value), Some(value as f64))
}

fn time(ns: u64) -> Cell {
    Cell(duration(ns), Some(ns as f64))
}

fn maybe<T>(value: Option<T>, cell: impl FnOnce(T) -> Cell) -> Cell {
    // An unknown value is sorted below every known value.
    value.map_or_else(|| Cell("–".to_owned(), Some(-1.0)), cell)
}

fn words(name: &'static str, help: &'static str) -> Column {
    Column {
        name,
        help,
        numeric: false,
    }
}

fn figures(name: &'static str, help: &'static str) -> Column {
    Column {
        name,
        help,
        numeric: true,
    }
}

/// Makes the rows of a table, at most [`MOST_ROWS`], and a note with the number of rows that were left out.
fn bounded<T>(all: &[T], what: &str, row: impl Fn(&T) -> Vec<Cell>) -> (Vec<Vec<Cell>>, Vec<String>) {
    let shown = all.len().min(MOST_ROWS);
    let more = (all.len() - shown) as u64;
    let notes = if more == 0 {
        vec![]
    } else {
        vec![format!(
            "{} more {what} are in the JSON (--json FILE).",
            thousands(more)
        )]
    };
    (all[..shown].iter().map(row).collect(), notes)
}

fn latency_table(report: &Report) -> Table {
    let row = |(_, name, _, of): (_, &'static str, _, &Distribution)| {
        vec![
            text(name),
            number(of.count),
            maybe(of.p50_ns, time),
            maybe(of.p90_ns, time),
            maybe(of.p99_ns, time),
            maybe(of.p999_ns, time),
            maybe(of.max_ns, time),
            time(of.sum_ns),
        ]
    };
    Table {
        id: "latency-table",
        title: "The same in figures",
        intro: "",
        columns: vec![
            words("intervals", "what kind of interval"),
            figures("number", "how many intervals ended"),
            figures("p50", "half of them are at most this long"),
            figures("p90", "90 % of them are at most this long"),
            figures("p99", "99 % of them are at most this long"),
            figures("p99.9", "99.9 % of them are at most this long"),
            figures("longest", "the longest interval"),
            figures("sum", "the sum of all intervals"),
        ],
        rows: distributions(report).into_iter().map(row).collect(),
        notes: vec![],
    }
}

fn tasks(report: &Report) -> Table {
    let (rows, mut notes) = bounded(&report.tasks, "tasks", |task| {
        let kind = task.future_type.as_deref().unwrap_or("–");
        vec![
            text(&task.name),
            text(kind),
            maybe(task.task_switches, number),
            maybe(task.hit_kernel, number),
            number(task.kernel_switches),
            time(task.off_cpu_ns),
        ]
    });
    if rows.is_empty() {
        notes.push("No task was being polled at any kernel switch. See \"How tasks were found\" below.".to_owned());
    }
    if report.task_switches.is_none() {
        let why = report.unavailable.iter().find(|entry| entry.path == "task_switches");
        notes.extend(why.map(|entry| format!("Polls are not counted: {}.", printable(&entry.reason))));
    }
    Table {
        id: "tasks",
        title: "Tasks",
        intro: "The tasks between which the program's runtime switches. A switch to a task hit the kernel if the thread had been \
                switched out since its previous poll.",
        columns: vec![
            words("task", "its name in the program, or its number"),
            words("type", "the type of its future, or the function it was started with"),
            figures("polls", "how often a thread began to poll it"),
            figures("hit the kernel", "polls before which the thread had been switched out"),
            figures("switches in a poll", "kernel switches while it was polled"),
            figures("off-CPU", "off-CPU time after those kernel switches"),
        ],
        rows,
        notes,
    }
}

fn wakeups(report: &Report) -> Table {
    let (rows, mut notes) = bounded(&report.wakeups, "pairs", |wakeups| {
        let task = match (&wakeups.from_task, wakeups.origin) {
            (Some(task), WakeupOrigin::Task) => text(task),
            _ => text("–"),
        };
        let thread = match wakeups.from_tid {
            Some(tid) => format!("{} {tid}", wakeups.from_thread),
            None => wakeups.from_thread.clone(),
        };
        vec![
            task,
            text(&thread),
            text(&format!("{} {}", wakeups.to_thread, wakeups.to_tid)),
            number(wakeups.count),
            maybe(wakeups.wasted, number),
            maybe(wakeups.waking_ns, |ns| time(ns as u64)),
            time(wakeups.p50_ns),
            time(wakeups.p99_ns),
            time(wakeups.max_ns),
        ]
    });
    if rows.is_empty() {
        notes.push("No wakeup ended a sleep.".to_owned());
    }
    Table {
        id: "wakeups",
        title: "Wakeups",
        intro: "Which task and thread woke which thread. Only wakeups that ended a sleep are counted.",
        columns: vec![
            words(
                "from task",
                "the task that the waker was polling when it made the wakeup",
            ),
            words(
                "from thread",
                "the thread that made the wakeup; interrupt for timers and devices",
            ),
            words("to thread", "the thread that was woken"),
            figures("number", "how many wakeups"),
            figures("wasted", "the woken worker polled nothing and went back to sleep"),
            figures("to wake", "the average time that the waker spent in making a wakeup"),
            figures("p50", "half of them ran at most this long after the wakeup"),
            figures("p99", "99 % of them ran at most this long after the wakeup"),
            figures("longest", "the longest time from a wakeup to the switch-in"),
        ],
        rows,
        notes,
    }
}

fn threads(report: &Report) -> Table {
    let mut busiest: Vec<_> = report.threads.iter().collect();
    busiest.sort_by_key(|thread| {
        (
            std::cmp::Reverse(thread.voluntary.saturating_add(thread.involuntary)),
            thread.tid,
        )
    });
    let (rows, notes) = bounded(&busiest, "threads", |thread| {
        vec![
            text(&thread.name),
            Cell(thread.id_in_words(), Some(f64::from(thread.tid))),
            Cell(thread.pid.to_string(), Some(f64::from(thread.pid))),
            number(thread.voluntary),
            number(thread.involuntary),
            time(thread.on_cpu_ns),
            time(thread.run_queue_ns),
            time(thread.off_cpu_ns),
            number(thread.migrations),
        ]
    });
    Table {
        id: "threads",
        title: "Threads",
        intro: "Every thread of the program and of the processes it started.",
        columns: vec![
            words("thread", "its name"),
            figures("id", "its thread id"),
            figures("process", "its process id"),
            figures(
                "voluntary",
                "kernel switches that the kernel counts as voluntary: mostly, the thread slept",
            ),
            figures(
                "involuntary",
                "kernel switches that the kernel counts as involuntary: the thread was preempted",
            ),
            figures("on-CPU", "its time on CPUs"),
            figures("run queue", "its time ready to run, but waiting for a CPU"),
            figures("off-CPU", "its time off the CPU, including the run queue"),
            figures("migrations", "switch-ins on another CPU than before"),
        ],
        rows,
        notes,
    }
}

fn functions(report: &Report) -> Option<Table> {
    let profile = report.on_cpu.as_ref()?;
    let share = |share: f64| Cell(format!("{} %", significant(100.0 * share)), Some(share));
    let (rows, mut notes) = bounded(&profile.functions, "functions", |of| {
        vec![
            text(&of.function),
            text(of.category.in_words()),
            number(of.samples),
            share(of.share),
            time(of.ns),
        ]
    });
    let kinds: Vec<String> = profile
        .categories
        .iter()
        .map(|of| format!("{} {} %", of.category.in_words(), significant(100.0 * of.share)))
        .collect();
    notes.push(format!("By kind of code: {}.", kinds.join(", ")));
    Some(Table {
        id: "functions",
        title: "On the CPU",
        intro: "What the program did on its CPUs, by samples. A sample is counted for the innermost function that belongs to a \
                library or to the program.",
        columns: vec![
            words("function", "its name without generic arguments"),
            words("for", "the kind of code, by its library"),
            figures("samples", "samples in it"),
            figures("share", "its share of all samples"),
            figures("time", "the same share of the time on the CPU"),
        ],
        rows,
        notes,
    })
}

fn flames(report: &Report, run: &Run) -> Vec<Flame> {
    let level = report.level;
    let without_stacks = format!(
        "Stacks of switches were not recorded: --level {} does not take them. Use --level stacks (the default) to record them.",
        level.name()
    );
    let here = |resolved: &Resolved, otherwise: &str| match Tree::new(resolved) {
        Some(tree) => PagePart::Here(tree),
        None => PagePart::Missing(otherwise.to_owned()),
    };
    let switches = match level {
        Level::Stacks => stacks::switches(run),
        Level::Counts | Level::Timeline => Resolved::default(),
    };
    let wakers = stacks::wakers(run);
    let on_cpu_ns = run
        .aggregates
        .threads
        .iter()
        .map(|record| record.thread.on_cpu_ns)
        .saturating_sum();
    let samples = if run.samples.is_empty() {
        Resolved::default()
    } else {
        stacks::samples(run, &profile::places(run, |_| true), on_cpu_ns)
    };
    vec![
        Flame {
            id: "off-cpu",
            title: "Off-CPU",
            intro: "Where threads were when the kernel took them off a CPU. The top row shows what the thread was doing: a task, \
                    or a class of the ledger. Below it are the thread, its functions, and those of the kernel. Width is the time \
                    off the CPU, or the number of switches.",
            unit: "switches",
            tree: if level == Level::Stacks {
                here(&switches, "There was no kernel switch.")
            } else {
                PagePart::Missing(without_stacks.clone())
            },
            notes: broken(&switches),
        },
        Flame {
            id: "wakers",
            title: "Wakers",
            intro: "Which threads ended the sleeps, and in which functions. The top row shows what the woken thread had been \
                    doing. Below it are the waker and its functions. Width is the off-CPU time that the wakeup ended, or the \
                    number of wakeups.",
            unit: "wakeups",
            tree: here(
                &wakers,
                match level {
                    Level::Stacks => {
                        "Stacks of wakers were not recorded, because they make every wakeup slower. Use --wakeups-flamegraph \
                         FILE.svg to record them."
                    }
                    Level::Counts | Level::Timeline => {
                        "Stacks of wakers were not recorded. Use --level stacks and --wakeups-flamegraph FILE.svg to record them."
                    }
                },
            ),
            notes: broken(&wakers),
        },
        Flame {
            id: "on-cpu",
            title: "On-CPU",
            intro: "What the program did on its CPUs, by samples of a timer. Width is the number of samples, or the time on the \
                    CPU that they represent.",
            unit: "samples",
            tree: here(
                &samples,
                "No samples of the running threads were recorded. Use --level timeline --sample 997 to record them.",
            ),
            notes: broken(&samples),
        },
    ]
}

fn broken(resolved: &Resolved) -> Vec<String> {
    let share = 100.0 * resolved.broken as f64 / resolved.with_user_stack.max(1) as f64;
    if share < 0.05 {
        return vec![];
    }
    vec![format!(
        "{share:.1} % of user stacks are incomplete, because some code has no frame pointers. Compile it with -C \
         force-frame-pointers=yes."
    )]
}

fn trust(report: &Report) -> Vec<Statement> {
    let reconciliation = &report.reconciliation;
    let mut statements = Vec::new();
    let mut state = |label, text: String, is_bad| statements.push(Statement { label, text, is_bad });
    let agrees = counts_agree(report);
    state(
        "Are the counts complete?",
        format!(
            "ctxtrace traced {} kernel switches; the kernel's own counters show {}. The difference is {}{}.",
            thousands(reconciliation.traced),
            thousands(reconciliation.kernel),
            signed_thousands(reconciliation.difference),
            if agrees { ", thread by thread" } else { "" },
        ),
        !agrees,
    );
    state(
        "Does the ledger add up?",
        if report.ledger_adds_up {
            "Every kernel switch is in exactly one class of the ledger.".to_owned()
        } else {
            "The ledger does not add up to the kernel switches.".to_owned()
        },
        !report.ledger_adds_up,
    );
    let lost = report.lost.in_words();
    state(
        "Was anything lost?",
        match &lost {
            Some(lost) => format!("{lost}{}. docs/SEMANTICS.md explains each of them.", room(report)),
            None => "Nothing was lost.".to_owned(),
        },
        lost.is_some(),
    );
    let cost = words::tracing_cost(report);
    state("What did tracing cost?", cost.join("; ") + ".", false);
    for line in words::locators_in_words(report) {
        state("How tasks were found", line, false);
    }
    statements
}

/// Hints about what was lost and which options avoid that, each after a space; empty if there are none.
fn room(report: &Report) -> String {
    let hints = words::refusal(report)
        .map(str::to_owned)
        .into_iter()
        .chain(words::room(report));
    hints.map(|hint| format!(" {hint}")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bins_have_everything_but_the_zeros() {
        let mut histogram = Histogram::EMPTY;
        let mut values: Vec<u64> = (0..64).map(|bit| 1 << bit).collect();
        values.extend([0, 0, 3, 9, 17, 18, 19, 20, 1_000, u64::MAX]);
        for &value in &values {
            histogram.record(value);
        }
        let bins = bins(&histogram);
        assert_eq!(bins.iter().map(|bin| bin[2]).sum::<u64>() + 2, values.len() as u64);
        for &value in values.iter().filter(|&&value| value > 0) {
            assert!(
                bins.iter().any(|&[from, to, _]| from <= value && value <= to),
                "{value}"
            );
        }
        assert!(
            bins.windows(2).all(|pair| pair[0][1] < pair[1][0]),
            "bins are in order and do not overlap"
        );
        assert_eq!(bins.last().expect("there are bins")[1], u64::MAX);
    }
}
