//! The tables of sums: rows from the report of one run, and the buckets of its distributions.

use std::io;
use std::path::Path;

use ctxtrace_common::histogram::{Latency as Kind, lower_bound, upper_bound};
use parquet::record::RecordWriter;

use super::TableFolder;
use super::file::TableFile;
use super::rows::{Host, LatencyBucket, LatencyRow, LedgerRecord, ProgramRow, TaskRow, ThreadRow, WakeupPairRow};
use super::{Identity, signed, small};
use crate::words::subject_in_words;
use ctxtrace_analysis::result::{Distribution, Lost, Report};
use ctxtrace_analysis::summarize::summarize;
use ctxtrace_format::run::{Info, Run};

/// The distributions, by their names in the JSON report.
const KINDS: [(&str, Kind); 5] = [
    ("off_cpu", Kind::OffCpu),
    ("blocked", Kind::Blocked),
    ("run_queue", Kind::RunQueue),
    ("on_cpu", Kind::OnCpu),
    ("wake_to_run", Kind::WakeToRun),
];

/// The position of a run in its capture.
pub(super) struct RunPosition<'a> {
    /// Index of the run, from 0.
    pub(super) index: usize,
    /// Number of runs in the capture.
    pub(super) runs: usize,
    /// Whether this is the run whose figures the report of the capture shows.
    pub(super) median: bool,
    /// The damage of the capture file, if there is any.
    pub(super) damage: Option<&'a str>,
}

/// Writes the tables of one run; the table `host` is the last one.
pub(super) fn write(folder: &mut dyn TableFolder, info: &Info, run: &Run, place: &RunPosition<'_>) -> io::Result<()> {
    let mut report = summarize(info, std::slice::from_ref(run));
    if let Some(damage) = place.damage {
        report.complete = false;
        report.cut_short = Some(format!("the file is damaged: {damage}"));
    }
    let identity = Identity::new(info, run, place.index);
    let programs = Programs::new(run);
    table(folder, "programs", &identity, &program_rows(&identity, &report))?;
    table(folder, "ledger", &identity, &ledger_rows(&identity, &report, &programs))?;
    table(folder, "tasks", &identity, &task_rows(&identity, &report, &programs))?;
    table(folder, "wakeups", &identity, &wakeup_rows(&identity, &report))?;
    table(folder, "latency", &identity, &latency_rows(&identity, &report))?;
    table(folder, "latency_buckets", &identity, &bucket_rows(&identity, run))?;
    table(
        folder,
        "threads",
        &identity,
        &thread_rows(&identity, &report, &programs),
    )?;
    let words = Words::new(info, &report);
    table(
        folder,
        "host",
        &identity,
        &[host_row(&identity, info, &report, &words, place, info.pid(run))],
    )
}

fn table<R>(folder: &mut dyn TableFolder, table: &str, identity: &Identity, rows: &[R]) -> io::Result<()>
where
    for<'r> &'r [R]: RecordWriter<R>,
{
    let mut file = TableFile::begin::<R>(folder, table, &identity.file_name)?;
    file.rows(rows)?;
    file.end()
}

/// Looks up the program that a process ran last, and its build id.
struct Programs<'a> {
    run: &'a Run,
    paths: Vec<(&'a Path, String)>,
}

impl<'a> Programs<'a> {
    fn new(run: &'a Run) -> Self {
        let all = run.aggregates.programs.all().iter();
        Self {
            run,
            paths: all
                .map(|program| (program.path.as_path(), program.path.display().to_string()))
                .collect(),
        }
    }

    fn get(&self, pid: u32) -> (Option<&str>, Option<&str>) {
        let Some(program) = self.run.aggregates.programs.of_process(pid) else {
            return (None, None);
        };
        let path = self.paths.iter().find(|(path, _)| *path == program.path);
        (path.map(|(_, path)| path.as_str()), program.found.build_id.as_deref())
    }
}

fn program_rows<'a>(of: &'a Identity, report: &'a Report) -> Vec<ProgramRow<'a>> {
    let rows = report.locators.iter().map(|locator| ProgramRow {
        host: &of.host,
        run: &of.run,
        program: &locator.program,
        build: locator.build_id.as_deref(),
        locator: &locator.locator,
        tokio_version: locator.tokio_version.as_deref(),
        go_version: locator.go_version.as_deref(),
        reason: locator.reason.as_deref(),
        note: locator.note.as_deref(),
    });
    rows.collect()
}

fn ledger_rows<'a>(of: &'a Identity, report: &'a Report, programs: &'a Programs<'_>) -> Vec<LedgerRecord<'a>> {
    let rows = report.ledger.iter().map(|row| {
        let (program, build) = row.pid.map_or((None, None), |pid| programs.get(pid));
        LedgerRecord {
            host: &of.host,
            run: &of.run,
            class: row.class.name(),
            reason: row.reason.as_deref(),
            task: row.task.as_deref(),
            task_id: row.task_id.map(signed),
            pid: row.pid.map(small),
            program,
            build,
            count: signed(row.count),
            off_cpu_ns: signed(row.off_cpu_ns),
        }
    });
    rows.collect()
}

fn task_rows<'a>(of: &'a Identity, report: &'a Report, programs: &'a Programs<'_>) -> Vec<TaskRow<'a>> {
    let rows = report.tasks.iter().map(|task| {
        let (program, build) = programs.get(task.pid);
        TaskRow {
            host: &of.host,
            run: &of.run,
            id: signed(task.id),
            name: &task.name,
            r#type: task.future_type.as_deref(),
            pid: small(task.pid),
            program,
            build,
            task_switches: task.task_switches.map(signed),
            hit_kernel: task.hit_kernel.map(signed),
            kernel_switches: signed(task.kernel_switches),
            off_cpu_ns: signed(task.off_cpu_ns),
        }
    });
    rows.collect()
}

fn wakeup_rows<'a>(of: &'a Identity, report: &'a Report) -> Vec<WakeupPairRow<'a>> {
    let rows = report.wakeups.iter().map(|wakeups| WakeupPairRow {
        host: &of.host,
        run: &of.run,
        origin: wakeups.origin.name(),
        from_task: wakeups.from_task.as_deref(),
        from_thread: &wakeups.from_thread,
        from_tid: wakeups.from_tid.map(small),
        to_thread: &wakeups.to_thread,
        to_tid: small(wakeups.to_tid),
        count: signed(wakeups.count),
        wasted: wakeups.wasted.map(signed),
        wasted_on_cpu_ns: wakeups.wasted_on_cpu_ns.map(signed),
        waking_ns: wakeups.waking_ns,
        p50_ns: signed(wakeups.p50_ns),
        p99_ns: signed(wakeups.p99_ns),
        max_ns: signed(wakeups.max_ns),
        sum_ns: signed(wakeups.sum_ns),
    });
    rows.collect()
}

fn distribution(report: &Report, kind: Kind) -> &Distribution {
    let latency = &report.latency;
    match kind {
        Kind::OffCpu => &latency.off_cpu,
        Kind::Blocked => &latency.blocked,
        Kind::RunQueue => &latency.run_queue,
        Kind::OnCpu => &latency.on_cpu,
        Kind::WakeToRun => &latency.wake_to_run,
    }
}

fn latency_rows<'a>(of: &'a Identity, report: &Report) -> Vec<LatencyRow<'a>> {
    let rows = KINDS.iter().map(|&(kind, latency)| {
        let distribution = distribution(report, latency);
        LatencyRow {
            host: &of.host,
            run: &of.run,
            kind,
            count: signed(distribution.count),
            open_intervals: distribution.open_intervals.map(signed),
            min_ns: distribution.min_ns.map(signed),
            p50_ns: distribution.p50_ns.map(signed),
            p90_ns: distribution.p90_ns.map(signed),
            p99_ns: distribution.p99_ns.map(signed),
            p999_ns: distribution.p999_ns.map(signed),
            max_ns: distribution.max_ns.map(signed),
            sum_ns: signed(distribution.sum_ns),
        }
    });
    rows.collect()
}

fn bucket_rows<'a>(of: &'a Identity, run: &Run) -> Vec<LatencyBucket<'a>> {
    let rows = KINDS.iter().flat_map(|&(kind, latency)| {
        let buckets = run.aggregates.latencies.get(latency).buckets;
        let counted = buckets.into_iter().enumerate().filter(|&(_, count)| count > 0);
        counted.map(move |(bucket, count)| LatencyBucket {
            host: &of.host,
            run: &of.run,
            kind,
            from_ns: signed(lower_bound(bucket)),
            to_ns: signed(upper_bound(bucket)),
            count: signed(count),
        })
    });
    rows.collect()
}

fn thread_rows<'a>(of: &'a Identity, report: &'a Report, programs: &'a Programs<'_>) -> Vec<ThreadRow<'a>> {
    let rows = report.threads.iter().map(|thread| {
        let (program, build) = programs.get(thread.pid);
        ThreadRow {
            host: &of.host,
            run: &of.run,
            pid: small(thread.pid),
            tid: small(thread.tid),
            name: &thread.name,
            program,
            build,
            voluntary: signed(thread.voluntary),
            involuntary: signed(thread.involuntary),
            on_cpu_ns: signed(thread.on_cpu_ns),
            off_cpu_ns: signed(thread.off_cpu_ns),
            run_queue_ns: signed(thread.run_queue_ns),
            migrations: signed(thread.migrations),
        }
    });
    rows.collect()
}

/// Texts that are made for the row of the table `host`, which borrows them.
struct Words {
    capture: String,
    subject: String,
    name: String,
}

impl Words {
    fn new(info: &Info, report: &Report) -> Self {
        let name = match (&report.workload, &report.target) {
            (Some(workload), _) => workload.mode.name(),
            (None, Some(target)) => target.name.rsplit('/').next().unwrap_or_default(),
            (None, None) => "",
        };
        Self {
            capture: info.capture_id(),
            subject: subject_in_words(report),
            name: name.to_owned(),
        }
    }
}

fn host_row<'a>(
    of: &'a Identity,
    info: &'a Info,
    report: &'a Report,
    words: &'a Words,
    place: &RunPosition<'_>,
    pid: Option<u32>,
) -> Host<'a> {
    let (switches, task_switches, lost) = (&report.kernel_switches, report.task_switches.as_ref(), &report.lost);
    let workload = report.workload.as_ref();
    // Every field is named, so that a new kind of loss is a compile error here.
    let Lost {
        events,
        intervals,
        wakeups,
        stacks,
        user_stacks,
        stack_sums,
        mistaken_stacks,
        task_reads,
        tasks,
        wakeup_edges,
        handovers,
        threads,
        thread_records,
        refused_processes,
        programs,
        mappings,
        recursion,
        timeline_events,
        samples,
        sample_stacks,
        poll_stamps,
        // The same losses as in `events` and `timeline_events`, by CPU.
        by_cpu: _,
    } = lost;
    Host {
        host: &of.host,
        run: &of.run,
        capture: &words.capture,
        run_index: small(place.index),
        runs: small(place.runs),
        median: place.median,
        kernel: &info.host.kernel,
        cpus: small(info.host.cpus),
        ctxtrace_version: &info.ctxtrace_version,
        started_ns: signed(info.started.realtime_ns),
        recorded_ns: signed(report.recorded_ns),
        level: report.level.name(),
        subject: &words.subject,
        name: &words.name,
        pid: pid.map(small),
        complete: report.complete,
        cut_short: report.cut_short.as_deref(),
        messages: workload.map(|workload| signed(workload.messages)),
        ns_per_message: workload.and_then(|workload| workload.ns_per_message),
        kernel_switches: signed(switches.total),
        voluntary: signed(switches.voluntary),
        involuntary: signed(switches.involuntary),
        migrations: signed(report.migrations),
        kernel_counted: signed(report.reconciliation.kernel),
        difference: report.reconciliation.difference,
        ledger_adds_up: report.ledger_adds_up,
        timeline_agrees: report.timeline.as_ref().and_then(|timeline| timeline.agrees),
        timeline_dropped: report.timeline.as_ref().map(|timeline| signed(timeline.dropped)),
        task_switches: task_switches.map(|switches| signed(switches.total)),
        stayed_in_user: task_switches.map(|switches| signed(switches.stayed_in_user)),
        hit_kernel: task_switches.map(|switches| signed(switches.hit_kernel)),
        tracing_ns: report.overhead.programs_ns,
        tracing_share: report.overhead.share_of_on_cpu,
        lost_events: signed(*events),
        lost_intervals: signed(*intervals),
        lost_wakeups: signed(*wakeups),
        lost_stacks: signed(*stacks),
        lost_user_stacks: signed(*user_stacks),
        lost_stack_sums: signed(*stack_sums),
        lost_mistaken_stacks: signed(*mistaken_stacks),
        lost_task_reads: signed(*task_reads),
        lost_tasks: signed(*tasks),
        lost_wakeup_edges: signed(*wakeup_edges),
        lost_handovers: signed(*handovers),
        lost_threads: signed(*threads),
        lost_thread_records: signed(*thread_records),
        lost_refused_processes: signed(*refused_processes),
        lost_programs: signed(*programs),
        lost_mappings: signed(*mappings),
        lost_recursion: signed(*recursion),
        lost_timeline_events: signed(*timeline_events),
        lost_samples: signed(*samples),
        lost_sample_stacks: signed(*sample_stacks),
        lost_poll_stamps: signed(*poll_stamps),
    }
}
