//! The sections about time: on the CPU, off the CPU, and by thread.

use super::layout::{Columns, bar, labelled, plainly, sparkline, wrapped};
use crate::printable;
use ctxtrace_analysis::result::{Distribution, OnCpu, Report, Thread, Throttling};
use ctxtrace_analysis::units::{duration, significant, thousands};
use ctxtrace_format::sums::{SaturatingSum, add};

/// Maximum number of threads that have a row; the others are added up in one row.
const THREADS_SHOWN: usize = 12;
/// Maximum number of functions in the profile; the others are left out.
const FUNCTIONS: usize = 12;

/// Renders the profile: what the target did on its CPUs, by kind of code and by function.
pub(super) fn on_cpu(profile: &OnCpu) -> String {
    let mut kinds = Columns::new(&["On the CPU", "samples", "share", "time", ""]).with_picture();
    for of in &profile.categories {
        kinds.row([
            of.category.in_words().to_owned(),
            thousands(of.samples),
            format!("{} %", significant(100.0 * of.share)),
            duration(of.ns),
            bar(of.share),
        ]);
    }
    let mut functions = Columns::new(&["Function", "in", "share", "time"]);
    for of in profile.functions.iter().take(FUNCTIONS) {
        functions.row([
            printable(&of.function),
            of.category.in_words().to_owned(),
            format!("{} %", significant(100.0 * of.share)),
            duration(of.ns),
        ]);
    }
    format!("{}\n\n{}", kinds.render(), functions.render())
}

/// Maximum number of bars in the picture of a distribution. Each bar is a power of ten.
const DECADES: usize = 11;

/// Renders the distributions, each with a picture that has a bar for each power of ten. All rows have the same scale.
pub(super) fn latencies(report: &Report) -> String {
    let latency = &report.latency;
    let rows = [
        ("off-CPU", &latency.off_cpu),
        ("  blocked", &latency.blocked),
        ("  run queue", &latency.run_queue),
        ("on-CPU", &latency.on_cpu),
        ("wake to run", &latency.wake_to_run),
    ];
    let scale = PictureScale::from_distributions(rows.iter().map(|(_, distribution)| *distribution));
    let scale_in_words = scale.in_words();
    let header = [
        "Intervals",
        "count",
        "p50",
        "p99",
        "p99.9",
        "max",
        "sum",
        &scale_in_words,
    ];
    let mut table = Columns::new(&header).with_picture();
    for (name, distribution) in rows {
        table.row(distribution_row(name, distribution, &scale));
    }
    table.render()
}

/// Maximum number of open intervals that have a row; the others are added up in one row.
const OPEN_SHOWN: usize = 6;

/// Renders the threads that were off the CPU when the recording ended, with their time off the CPU until then and their stacks.
pub(super) fn open_intervals(report: &Report) -> Option<String> {
    let Some(open) = &report.open_intervals else {
        let reason = report.unavailable.iter().find(|null| null.path == "open_intervals")?;
        return Some(labelled(
            "Still off the CPU",
            &format!("not known: {}", reason.reason),
            plainly,
        ));
    };
    let (shown, rest) = open.split_at(open.len().min(OPEN_SHOWN));
    if shown.is_empty() {
        return None;
    }
    let mut table = Columns::new(&["Still off the CPU", "tid", "class", "so far"]);
    for interval in shown {
        // The innermost functions of the program show where the thread is; the other fields are only in the JSON.
        let names = [&interval.thread].into_iter().chain(interval.task.as_ref());
        let place: Vec<String> = names
            .map(|name| printable(name))
            .chain(interval.stack.iter().map(|name| printable(name)))
            .collect();
        table.row([
            place.join(";"),
            interval.tid.to_string(),
            interval.class.in_words().to_owned(),
            duration(interval.off_ns),
        ]);
    }
    if !rest.is_empty() {
        table.row([
            format!("{} more", thousands(rest.len() as u64)),
            String::new(),
            String::new(),
            duration(rest.iter().map(|interval| interval.off_ns).fold(0, u64::saturating_add)),
        ]);
    }
    Some(table.render())
}

/// Describes what CPU quotas and freezers of the target's cgroups did; `None` if they did nothing.
pub(super) fn cgroups(report: &Report) -> Option<String> {
    let mut sentences = Vec::new();
    if let Some(throttling) = &report.throttling {
        sentences.extend(quotas_in_words(throttling, run_queue_ns(report)));
    }
    for path in report.frozen_cgroups.iter().flatten() {
        sentences.push(format!(
            "The cgroup {} was frozen during the recording. The ledger counts its running threads as stopped; the sleeps of its \
             other threads went on.",
            printable(path)
        ));
    }
    let lines: Vec<String> = sentences.iter().flat_map(|sentence| wrapped(sentence, 2)).collect();
    (!lines.is_empty()).then(|| lines.join("\n"))
}

/// The run-queue time of all threads of the reported run, in nanoseconds.
fn run_queue_ns(report: &Report) -> u64 {
    let threads = report.threads.iter();
    threads.fold(0, |ns, thread| ns.saturating_add(thread.run_queue_ns))
}

/// Describes what CPU quotas did, and how much of the run-queue time they caused.
fn quotas_in_words(throttling: &Throttling, run_queue_ns: u64) -> Vec<String> {
    let throttled = throttling
        .cgroups
        .iter()
        .flatten()
        .filter(|of| of.throttled_periods > 0);
    let mut sentences: Vec<String> = throttled
        .map(|of| {
            format!(
                "The CPU quota of the cgroup {} throttled it in {} of {} periods, for {}.",
                printable(&of.path),
                thousands(of.throttled_periods),
                thousands(of.periods),
                duration(of.throttled_ns)
            )
        })
        .collect();
    match throttling.thread_ns {
        Some(0) if sentences.is_empty() => {}
        Some(0) => sentences.push("This kept no thread of the target off the CPU.".to_owned()),
        Some(ns) => sentences.push(format!(
            "A cgroup's CPU quota kept threads off the CPU for {} of the {} of run-queue time: they waited for the quota, not \
             for a CPU.",
            duration(ns),
            duration(run_queue_ns)
        )),
        None if sentences.is_empty() => {}
        None => sentences.push(format!(
            "This kernel does not report how much of the {} of run-queue time was a wait for the quota instead of a wait for a \
             CPU.",
            duration(run_queue_ns)
        )),
    }
    sentences
}

/// The powers of ten that the pictures show.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct PictureScale {
    /// The exponent of the first power of ten.
    first: u32,
    /// Number of powers of ten.
    decades: usize,
}

impl PictureScale {
    /// Returns the scale from the shortest to the longest of all intervals. If there are more than [`DECADES`] powers of ten, the
    /// shortest intervals are counted in the first bar.
    fn from_distributions<'a>(distributions: impl Iterator<Item = &'a Distribution>) -> Self {
        let mut decades = distributions.flat_map(|of| of.buckets.iter().map(|&(ns, _)| decade(ns)));
        let Some(one) = decades.next() else {
            return Self { first: 0, decades: 0 };
        };
        let (first, last) = decades.fold((one, one), |(first, last), next| (first.min(next), last.max(next)));
        let first = first.max((last + 1).saturating_sub(DECADES as u32));
        Self {
            first,
            decades: (last - first) as usize + 1,
        }
    }

    /// The ends of the scale, as a column header: the start of the first bar and the end of the last bar, as in `100ns   1s`.
    fn in_words(self) -> String {
        if self.decades == 0 {
            return String::new();
        }
        let unit = |exponent: u32| {
            let number = 10_u64.pow(exponent % 3);
            let unit = ["ns", "µs", "ms", "s"].get(exponent as usize / 3);
            unit.map_or_else(|| "long".to_owned(), |unit| format!("{number}{unit}"))
        };
        let (from, to) = (unit(self.first), unit(self.first + self.decades as u32));
        let room = self
            .decades
            .saturating_sub(from.chars().count() + to.chars().count())
            .max(1);
        format!("{from}{}{to}", " ".repeat(room))
    }

    fn picture(self, distribution: &Distribution) -> String {
        let mut counts = vec![0; self.decades];
        for &(ns, count) in &distribution.buckets {
            let place = decade(ns).saturating_sub(self.first) as usize;
            if let Some(sum) = counts.get_mut(place) {
                add(sum, count);
            }
        }
        sparkline(&counts)
    }
}

/// The exponent of the power of ten in which a time lies. A time of 0 counts as one nanosecond.
fn decade(ns: u64) -> u32 {
    ns.max(1).ilog10()
}

fn distribution_row(name: &str, distribution: &Distribution, scale: &PictureScale) -> Vec<String> {
    let time = |ns: Option<u64>| ns.map_or_else(|| "–".to_owned(), duration);
    vec![
        name.to_owned(),
        thousands(distribution.count),
        time(distribution.p50_ns),
        time(distribution.p99_ns),
        time(distribution.p999_ns),
        time(distribution.max_ns),
        time((distribution.count > 0).then_some(distribution.sum_ns)),
        scale.picture(distribution),
    ]
}

pub(super) fn threads(report: &Report) -> String {
    let mut table = Columns::new(&[
        "Threads",
        "tid",
        "voluntary",
        "involuntary",
        "on-CPU",
        "run queue",
        "off-CPU",
    ]);
    let mut busiest: Vec<_> = report.threads.iter().collect();
    busiest.sort_by_key(|thread| {
        (
            std::cmp::Reverse(thread.voluntary.saturating_add(thread.involuntary)),
            thread.tid,
        )
    });
    let (shown, rest) = busiest.split_at(busiest.len().min(THREADS_SHOWN));
    for thread in shown {
        if let (true, Some(state)) = (thread.is_silent(), thread.state) {
            let none = || "–".to_owned();
            table.row([
                printable(&thread.name),
                thread.tid.to_string(),
                thousands(0),
                thousands(0),
                none(),
                none(),
                state.in_words().to_owned(),
            ]);
            continue;
        }
        table.row([
            printable(&thread.name),
            thread.id_in_words(),
            thousands(thread.voluntary),
            thousands(thread.involuntary),
            duration(thread.on_cpu_ns),
            duration(thread.run_queue_ns),
            duration(thread.off_cpu_ns),
        ]);
    }
    if !rest.is_empty() {
        let sum = |field: fn(&Thread) -> u64| rest.iter().map(|thread| field(thread)).saturating_sum();
        table.row([
            format!("{} more", thousands(sum(Thread::count))),
            String::new(),
            thousands(sum(|thread| thread.voluntary)),
            thousands(sum(|thread| thread.involuntary)),
            duration(sum(|thread| thread.on_cpu_ns)),
            duration(sum(|thread| thread.run_queue_ns)),
            duration(sum(|thread| thread.off_cpu_ns)),
        ]);
    }
    table.render()
}
