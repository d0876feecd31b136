//! Makes one result from one or several runs.
//!
//! With `--repeat` the headline figures are those of the *median run* by time per message. They come from one real run, so they
//! agree with each other. Latencies and losses are summed over all runs.

use ctxtrace_common::histogram::{Histogram, Latency as Kind, lower_bound};
use ctxtrace_common::thread::REFUSED;
use ctxtrace_format::sums::SaturatingSum;

use super::attribution;
use super::nulls::Nulls;
use super::percentile::percentile;
use super::polls::polls;
use super::profile::{Profile, Share, places};
use super::result::{
    CgroupThrottling, CpuLosses, Distribution, KernelSwitches, Latency, Lost, OnCpu, OnCpuCategory, OnCpuFunction,
    Overhead, ProgramOverhead, Reconciliation, Report, Run as RunRow, Rusage, SCHEMA, Target, ThreadReconciliation,
    Throttling, Timeline, Workload,
};
use super::unseen;
use crate::correlate::ledger::ledger;
use crate::correlate::reconcile::{self, reconcile};
use crate::correlate::tasks::beyond_the_tables;
use crate::symbolize::category::{Belongs, Category};
use crate::symbolize::stacks;
use ctxtrace_format::ThreadRecord;
use ctxtrace_format::run::{Info, Launched, Run, Subject};
use ctxtrace_format::workload::{Language, Mode, Outcome, Spec};
use ctxtrace_format::{Aggregates, Fate, Latencies};

fn reconciled(run: &Run) -> reconcile::Reconciliation {
    reconcile(&run.aggregates.threads, run.launched.as_ref())
}

/// Whether every kernel switch is in the ledger exactly once.
fn ledger_adds_up(run: &Run) -> bool {
    ledger(&run.aggregates).count() == run.switches()
}

/// Returns why figures per message are null.
fn no_messages(spec: Option<&Spec>) -> &'static str {
    match spec {
        Some(_) => UNFINISHED,
        None => "there are no messages: the target is not a built-in workload",
    }
}

/// Why the figures about cgroups are null.
const NOT_LOOKED_AT: &str = "the version of ctxtrace that recorded the capture did not read cgroups";

const UNFINISHED: &str = "the workload did not finish";

/// Makes the result of one or several runs. `runs` must not be empty. Only built-in workloads have several runs.
#[must_use]
pub fn summarize(info: &Info, runs: &[Run]) -> Report {
    let median = median_index(runs);
    let run = &runs[median];
    let mut nulls = Nulls::default();

    let cut_short = runs.iter().find_map(|run| run.cut_short.clone());
    let spec = info.subject.workload();
    let workload = spec.map(|spec| workload(spec, runs, median, &mut nulls));
    let workload = nulls.or(workload, "workload", "`record` does not run a built-in workload");
    let target = target(&info.subject, run, &mut nulls);
    let kernel_switches = kernel_switches(spec, run, &mut nulls);
    let reconciliation = reconciliation(spec.is_some(), run, &mut nulls);
    let ledger = ledger(&run.aggregates);
    let task_switches = attribution::task_switches(run, no_messages(spec), &mut nulls);
    let task_types = stacks::task_types(&run.aggregates, &run.symbols);
    let tasks = attribution::task_rows(&run.aggregates, &ledger, &task_types, &mut nulls);
    let mut latencies = Latencies::default();
    let mut lost = Lost::default();
    for run in runs {
        latencies.merge(&run.aggregates.latencies);
        lost.add(&lost_in(run));
    }
    let open_intervals = runs
        .iter()
        .map(|run| open_off_intervals(&run.aggregates))
        .saturating_sum();
    let open_ns = runs.iter().try_fold(0_u64, |sum, run| {
        Some(sum.saturating_add(unseen::open_ns(&run.aggregates)?))
    });
    let threads = unseen::threads(&run.aggregates);

    Report {
        schema: SCHEMA.to_owned(),
        ctxtrace_version: info.ctxtrace_version.clone(),
        host: info.host.clone(),
        level: run.aggregates.level,
        complete: cut_short.is_none(),
        cut_short,
        workload,
        target,
        recorded_ns: run.recorded_ns,
        kernel_switches,
        reconciliation,
        task_switches,
        throttling: throttling(&run.aggregates, &mut nulls),
        frozen_cgroups: nulls.or(
            run.aggregates.cgroups.as_ref().map(|cgroups| cgroups.frozen.clone()),
            "frozen_cgroups",
            NOT_LOOKED_AT,
        ),
        ledger: attribution::ledger_rows(&run.aggregates, &ledger, &mut nulls),
        ledger_adds_up: runs.iter().all(ledger_adds_up),
        task_types: attribution::task_types(&tasks),
        tasks,
        wakeups: attribution::wakeups(&run.aggregates, &mut nulls),
        timeline: timeline(info, runs, median, &mut nulls),
        polls: polls(info, run, &mut nulls),
        on_cpu: on_cpu(runs, &mut nulls),
        locator: run.aggregates.programs.choice(),
        locators: attribution::locators(&run.aggregates),
        latency: latency(&latencies, open_intervals, open_ns, &mut nulls),
        migrations: threads.iter().map(|thread| thread.migrations).saturating_sum(),
        threads,
        open_intervals: nulls.or(unseen::open_intervals(run), "open_intervals", unseen::OPEN_NOT_RECORDED),
        lost,
        overhead: overhead(&run.aggregates, &mut nulls),
        unavailable: nulls.into_entries(),
    }
}

/// Returns the index of the median run by time per message: for an even number of runs, the faster of the two runs in the middle.
/// A run that was cut short is used only if no run finished.
fn median_index(runs: &[Run]) -> usize {
    let mut finished: Vec<(usize, f64)> = runs
        .iter()
        .enumerate()
        .filter_map(|(index, run)| Some((index, run.ns_per_message()?)))
        .collect();
    finished.sort_by(|a, b| a.1.total_cmp(&b.1));
    match finished.len() {
        0 => runs.len() - 1,
        count => finished[(count - 1) / 2].0,
    }
}

fn workload(spec: &Spec, runs: &[Run], median: usize, nulls: &mut Nulls) -> Workload {
    let run = &runs[median];
    let elapsed_ns = run.outcome.map(|outcome| outcome.elapsed_ns);
    let ns_per_message = run.ns_per_message();
    let mut each = Vec::new();
    for (index, run) in runs.iter().enumerate() {
        let path = |field: &str| format!("workload.runs[{index}].{field}");
        each.push(RunRow {
            elapsed_ns: nulls.or(
                run.outcome.map(|outcome| outcome.elapsed_ns),
                &path("elapsed_ns"),
                UNFINISHED,
            ),
            ns_per_message: nulls.or(run.ns_per_message(), &path("ns_per_message"), UNFINISHED),
            kernel_switches: run.switches(),
            difference: difference(&reconciled(run)),
            median: index == median,
        });
    }
    Workload {
        mode: spec.mode,
        language: spec.language,
        buffer: nulls.or(
            spec.buffer.map(|buffer| buffer as u64),
            "workload.buffer",
            "this mode has no channel",
        ),
        channel: nulls.or(
            spec.channel(),
            "workload.channel",
            if spec.mode == Mode::Go {
                "Go has one kind of channel"
            } else {
                "this mode has no channel"
            },
        ),
        protocol: nulls.or(
            spec.protocol(),
            "workload.protocol",
            "each message is a round trip, and only one is in flight at a time",
        ),
        iterations: spec.iterations,
        workers: nulls.or(
            spec.workers.map(|workers| workers as u64),
            "workload.workers",
            "this mode has no pool of workers",
        ),
        pin: spec.pin,
        root: nulls.or(
            spec.root,
            "workload.root",
            if spec.mode == Mode::Go {
                "a Go program has no future that is given to block_on"
            } else {
                "this mode has no runtime"
            },
        ),
        allocator: nulls.or(
            (spec.language == Language::Rust).then_some(spec.allocator),
            "workload.allocator",
            "the allocator can be chosen only for workloads written in Rust",
        ),
        idle_threads: spec.idle_threads as u64,
        elapsed_ns: nulls.or(elapsed_ns, "workload.elapsed_ns", UNFINISHED),
        ns_per_message: nulls.or(ns_per_message, "workload.ns_per_message", UNFINISHED),
        messages_per_second: nulls.or(
            ns_per_message.map(|ns| 1e9 / ns),
            "workload.messages_per_second",
            UNFINISHED,
        ),
        max_in_flight: nulls.or(
            run.outcome.and_then(|outcome| outcome.max_in_flight),
            "workload.max_in_flight",
            if spec.count_in_flight {
                UNFINISHED
            } else {
                "messages in flight were not counted (use --count-in-flight)"
            },
        ),
        messages: run.outcome.map_or(run.messages_seen, |outcome| outcome.messages),
        runs: each,
    }
}

fn target(subject: &Subject, run: &Run, nulls: &mut Nulls) -> Option<Target> {
    const ATTACHED: &str = "the process was attached to, and ctxtrace does not wait for its end";
    let (words, name, children) = match subject {
        Subject::Workload(_) => {
            nulls.note("target", "`run` records a built-in workload");
            return None;
        }
        Subject::Command { words } => (Some(words.clone()), words.first().cloned().unwrap_or_default(), true),
        Subject::Process { name, children, .. } => (None, name.clone(), *children),
    };
    let pid = match subject {
        Subject::Process { pid, .. } => Some(*pid),
        _ => run.launched.map(|launched| launched.pid),
    };
    let exit = run.exit.unwrap_or_default();
    let no_status = match (run.launched, run.exit) {
        (None, _) => ATTACHED,
        (_, None) => "the capture does not contain the end of the command",
        _ => "a signal killed the command",
    };
    let no_signal = if run.exit.is_some() {
        "no signal killed the command"
    } else {
        no_status
    };
    Some(Target {
        command: nulls.or(
            words,
            "target.command",
            "the process was already running when ctxtrace attached to it",
        ),
        name,
        pid: nulls.or(pid, "target.pid", "the command was not started"),
        children,
        exit_status: nulls.or(exit.status, "target.exit_status", no_status),
        signal: nulls.or(exit.signal, "target.signal", no_signal),
        still_running: match subject {
            Subject::Process { .. } => Vec::new(),
            Subject::Command { .. } | Subject::Workload(_) => unseen::still_running(&run.aggregates),
        },
    })
}

fn kernel_switches(spec: Option<&Spec>, run: &Run, nulls: &mut Nulls) -> KernelSwitches {
    let threads = || run.aggregates.threads.iter().map(|record| &record.thread);
    let total = run.switches();
    let per_message = run.outcome.map(|outcome| total as f64 / outcome.messages as f64);
    let by_switches = |outcome: Outcome| outcome.elapsed_ns as f64 / total as f64;
    let (ns_per_switch, no_cost) = match spec {
        Some(spec) if spec.mode.is_tasks() => (
            None,
            "a message between tasks does not consist of kernel switches, so this quotient would not be the cost of a switch",
        ),
        _ => (run.outcome.filter(|_| total > 0).map(by_switches), no_messages(spec)),
    };
    let per_second = (run.recorded_ns > 0).then(|| 1e9 * total as f64 / run.recorded_ns as f64);
    KernelSwitches {
        voluntary: threads().map(|thread| thread.traced_voluntary).saturating_sum(),
        involuntary: threads().map(|thread| thread.traced_involuntary).saturating_sum(),
        total,
        per_message: nulls.or(per_message, "kernel_switches.per_message", no_messages(spec)),
        per_second: nulls.or(
            per_second,
            "kernel_switches.per_second",
            "the capture does not contain the end of the run",
        ),
        ns_per_switch: nulls.or(ns_per_switch, "kernel_switches.ns_per_switch", no_cost),
    }
}

/// Returns the effects of CPU quotas.
fn throttling(aggregates: &Aggregates, nulls: &mut Nulls) -> Option<Throttling> {
    let Some(cgroups) = &aggregates.cgroups else {
        nulls.note("throttling", NOT_LOOKED_AT);
        return None;
    };
    let quotas = cgroups.quotas.iter().map(|quota| CgroupThrottling {
        path: quota.path.clone(),
        throttled_ns: quota.throttled_ns,
        periods: quota.periods,
        throttled_periods: quota.throttled_periods,
    });
    let quotas = match &cgroups.unreadable {
        None => Some(quotas.collect()),
        Some(reason) => {
            nulls.note("throttling.cgroups", reason);
            None
        }
    };
    let (thread_ns, no_thread_ns) = if !cgroups.threads_known {
        (
            None,
            "this kernel does not show which threads a quota keeps off the CPU (task_struct.throttled exists in Linux 6.18 and later)",
        )
    } else if aggregates.counters.lost_stack_sums > 0 {
        (
            None,
            "switch-outs did not fit the table of sums (lost.stack_sums): use a larger --max-stacks",
        )
    } else {
        (Some(throttled_ns(aggregates)), "")
    };
    Some(Throttling {
        cgroups: quotas,
        thread_ns: nulls.or(thread_ns, "throttling.thread_ns", no_thread_ns),
    })
}

/// Returns the run-queue time after switch-outs that the kernel made to enforce a CPU quota.
fn throttled_ns(aggregates: &Aggregates) -> u64 {
    let sums = aggregates.switch_sums.iter().filter(|(key, _)| key.throttled != 0);
    sums.fold(0_u64, |ns, (_, sum)| ns.saturating_add(sum.off_cpu_ns))
}

/// Returns the traced number of switches minus the kernel's number. If threads differ in both directions, so that the sums are
/// equal, returns the negative sum of the amounts, as for a loss.
fn difference(reconciled: &reconcile::Reconciliation) -> i64 {
    let differences = || reconciled.threads.iter().map(reconcile::ThreadCounts::difference);
    let sum = differences().fold(0, i64::saturating_add);
    if sum == 0 && !reconciled.holds() {
        return -differences().map(i64::saturating_abs).fold(0, i64::saturating_add);
    }
    sum
}

fn reconciliation(is_workload: bool, run: &Run, nulls: &mut Nulls) -> Reconciliation {
    let reconciled = reconciled(run);
    // `wait4` counts only children that were waited for. The built-in workloads wait for all their children; other programs may not.
    let alone = |launched: &Launched| {
        let mut threads = run.aggregates.threads.iter();
        is_workload || threads.all(|record| record.thread.tgid == launched.pid)
    };
    let counts_all = run.launched.as_ref().is_some_and(alone);
    let is_folded = run.aggregates.threads.iter().any(|record| record.threads != 1);
    let no_rusage = if is_folded {
        "many threads ended, so some were summed by name, and wait4 does not count the last switch of each thread"
    } else if run.aggregates.counters.refused_processes > 0 {
        "a process was only partly recorded, because it executed a program that you may not trace"
    } else if run.launched.is_some_and(|launched| launched.rusage.is_some()) {
        "the target had several processes, and wait4 does not count processes that their parents did not wait for"
    } else {
        "ctxtrace did not wait for the target"
    };
    let rusage = reconciled.rusage.filter(|_| counts_all).map(|rusage| Rusage {
        switches: rusage.switches,
        lower: rusage.lower,
        upper: rusage.upper,
        agrees: rusage.agrees(),
    });
    Reconciliation {
        traced: reconciled.traced(),
        kernel: reconciled.kernel(),
        difference: difference(&reconciled),
        threads: reconciled
            .threads
            .iter()
            .map(|thread| ThreadReconciliation {
                tid: thread.tid,
                name: thread.name.clone(),
                traced: thread.traced,
                kernel: thread.kernel,
                difference: thread.difference(),
            })
            .collect(),
        rusage: nulls.or(rusage, "reconciliation.rusage", no_rusage),
    }
}

/// Returns the counts of the median run's events, and whether the events of every run agree with its counts.
fn timeline(info: &Info, runs: &[Run], median: usize, nulls: &mut Nulls) -> Option<Timeline> {
    let Some(events) = &runs[median].timeline else {
        nulls.note(
            "timeline",
            "only --level timeline records every switch and wakeup as an event",
        );
        return None;
    };
    let compared = || runs.iter().map(|run| run.timeline.as_ref()?.disagreements.as_ref());
    let complete = compared().all(|disagreements| disagreements.is_some());
    let disagreements: Vec<String> = compared().flatten().flatten().cloned().collect();
    // A known disagreement is reported even if other runs cannot be compared.
    let agrees = (complete || !disagreements.is_empty()).then_some(disagreements.is_empty());
    let any_lost = runs.iter().any(|run| run.aggregates.counters.lost_timeline_events > 0);
    let any_dropped = runs
        .iter()
        .any(|run| run.timeline.as_ref().is_some_and(|timeline| timeline.dropped > 0));
    let why_not = if any_lost {
        "events were lost (lost.timeline_events), so they cannot add up to the counts"
    } else if any_dropped {
        "the capture did not keep the oldest events (timeline.dropped), so the rest cannot add up to the counts"
    } else {
        "the capture does not contain the end of the run, so its events cover more time than its counts"
    };
    Some(Timeline {
        events: events.events,
        switches: events.switches,
        wakeups: events.wakeups,
        bytes: events.bytes,
        begins_ns: nulls.or(
            events
                .first_ns
                .map(|first_ns| first_ns.saturating_sub(info.started.monotonic_ns)),
            "timeline.begins_ns",
            "there are no events",
        ),
        dropped: events.dropped,
        agrees: nulls.or(agrees, "timeline.agrees", why_not),
        disagreements,
    })
}

/// Maximum number of functions of the profile in the result. Functions with fewer samples are left out.
const MOST_FUNCTIONS: usize = 40;

/// Returns what the target executed on its CPUs, from the samples of all runs.
fn on_cpu(runs: &[Run], nulls: &mut Nulls) -> Option<OnCpu> {
    let mut profile = Profile::default();
    for run in runs {
        profile.merge(&Profile::from_places(run, &places(run, |_| true)));
    }
    if profile.samples() == 0 {
        nulls.note("on_cpu", "no samples were taken: use --level timeline --sample 997");
        return None;
    }
    let on_cpu_ns = runs
        .iter()
        .flat_map(|run| &run.aggregates.threads)
        .map(|record| record.thread.on_cpu_ns)
        .saturating_sum();
    let share = |samples: u64| samples as f64 / profile.samples() as f64;
    let ns = |samples: u64| (on_cpu_ns as f64 * share(samples)).round() as u64;
    let category = |of: &Share<Category>| OnCpuCategory {
        category: of.of,
        samples: of.samples,
        share: share(of.samples),
        ns: ns(of.samples),
    };
    let function = |of: Share<Belongs>| OnCpuFunction {
        function: of.of.function,
        category: of.of.category,
        samples: of.samples,
        share: share(of.samples),
        ns: ns(of.samples),
    };
    Some(OnCpu {
        samples: profile.samples(),
        in_kernel: profile.in_kernel(),
        on_cpu_ns,
        categories: profile.categories().iter().map(category).collect(),
        functions: profile
            .functions()
            .into_iter()
            .take(MOST_FUNCTIONS)
            .map(function)
            .collect(),
    })
}

/// Returns the number of off-CPU intervals that have begun and not ended: the last switch-outs of threads that ended, and the
/// current intervals of threads that are off the CPU.
fn open_off_intervals(aggregates: &Aggregates) -> u64 {
    let open = |record: &&ThreadRecord| match record.fate {
        // Recording of a thread that executed a program which may not be traced stops while the thread is on a CPU, so no
        // interval is open.
        Fate::Ended => record.thread.flags & REFUSED == 0,
        Fate::Vanished | Fate::Alive => record.thread.clock.is_off(),
    };
    aggregates
        .threads
        .iter()
        .filter(open)
        .map(|record| record.threads)
        .saturating_sum()
}

fn latency(latencies: &Latencies, open_off: u64, open_ns: Option<u64>, nulls: &mut Nulls) -> Latency {
    const CLOSED_WITH_OFF_CPU: &str = "open intervals are counted in off_cpu only";
    let mut distribution = |kind, name: &str, open: Option<(u64, Option<u64>)>| {
        let path = format!("latency.{name}");
        if open.is_none() {
            nulls.note(&format!("{path}.open_intervals"), CLOSED_WITH_OFF_CPU);
            nulls.note(&format!("{path}.open_ns"), CLOSED_WITH_OFF_CPU);
        } else if let Some((_, None)) = open {
            nulls.note(&format!("{path}.open_ns"), unseen::OPEN_NOT_RECORDED);
        }
        distribution(latencies.get(kind), open, &path, nulls)
    };
    Latency {
        off_cpu: distribution(Kind::OffCpu, "off_cpu", Some((open_off, open_ns))),
        blocked: distribution(Kind::Blocked, "blocked", None),
        run_queue: distribution(Kind::RunQueue, "run_queue", None),
        on_cpu: distribution(Kind::OnCpu, "on_cpu", None),
        wake_to_run: distribution(Kind::WakeToRun, "wake_to_run", None),
    }
}

/// Returns the distribution in a histogram. `open` is the number of open intervals and their time so far.
fn distribution(
    histogram: &Histogram,
    open: Option<(u64, Option<u64>)>,
    path: &str,
    nulls: &mut Nulls,
) -> Distribution {
    let any = histogram.count > 0;
    if !any {
        for field in ["min_ns", "p50_ns", "p90_ns", "p99_ns", "p999_ns", "max_ns"] {
            nulls.note(&format!("{path}.{field}"), "there was no such interval");
        }
    }
    Distribution {
        count: histogram.count,
        open_intervals: open.map(|(count, _)| count),
        open_ns: open.and_then(|(_, ns)| ns),
        min_ns: any.then(|| histogram.min_plus_one_ns.saturating_sub(1)),
        p50_ns: percentile(histogram, 0.5),
        p90_ns: percentile(histogram, 0.9),
        p99_ns: percentile(histogram, 0.99),
        p999_ns: percentile(histogram, 0.999),
        max_ns: any.then_some(histogram.max_ns),
        sum_ns: histogram.sum_ns,
        buckets: buckets(histogram),
    }
}

fn buckets(histogram: &Histogram) -> Vec<(u64, u64)> {
    let counts = histogram.buckets.iter().enumerate();
    counts
        .filter(|(_, count)| **count > 0)
        .map(|(bucket, count)| (lower_bound(bucket), *count))
        .collect()
}

fn lost_in(run: &Run) -> Lost {
    let aggregates = &run.aggregates;
    let vanished = aggregates
        .threads
        .iter()
        .filter(|record| record.fate == Fate::Vanished)
        .count() as u64;
    let counters = &aggregates.counters;
    Lost {
        events: counters.lost_events.saturating_add(vanished),
        intervals: counters.lost_intervals,
        wakeups: counters.lost_wakeups,
        stacks: counters.lost_stacks,
        user_stacks: counters.lost_user_stacks,
        stack_sums: counters.lost_stack_sums,
        mistaken_stacks: counters.mistaken_stacks,
        task_reads: counters.lost_task_reads,
        tasks: counters.lost_tasks.saturating_add(beyond_the_tables(aggregates)),
        wakeup_edges: counters.lost_wakeup_edges,
        handovers: counters.lost_handovers,
        threads: counters.lost_threads,
        thread_records: counters.lost_records,
        refused_processes: counters.refused_processes,
        programs: aggregates.lost_programs,
        mappings: aggregates.mappings.lost,
        recursion: aggregates.recursion_misses,
        timeline_events: counters.lost_timeline_events,
        samples: counters.lost_samples,
        sample_stacks: counters.lost_sample_stacks,
        poll_stamps: run.polls.as_ref().map_or(0, |polls| polls.lost),
        by_cpu: aggregates
            .lost_by_cpu
            .iter()
            .map(|losses| CpuLosses {
                cpu: losses.cpu,
                events: losses.events,
                timeline_events: losses.timeline_events,
            })
            .collect(),
    }
}

fn overhead(aggregates: &Aggregates, nulls: &mut Nulls) -> Overhead {
    let cost = &aggregates.cost;
    let mut programs = Vec::new();
    for (index, program) in cost.programs.iter().enumerate() {
        let mean = (program.timed_runs > 0).then(|| program.timed_ns as f64 / program.timed_runs as f64);
        programs.push(ProgramOverhead {
            name: program.name.clone(),
            timed_runs: program.timed_runs,
            ns_per_run: nulls.or(
                mean,
                &format!("overhead.programs[{index}].ns_per_run"),
                "the program did not run while the kernel's run-time statistics were enabled",
            ),
        });
    }
    let mean = |name: &str| {
        let program = programs.iter().find(|program| program.name == name)?;
        program.ns_per_run
    };
    let counters = &aggregates.counters;
    let programs_ns = mean("sched_switch").map(|ns| {
        // If there were too few wakeups for one to be timed, their cost is negligible.
        let wakeups_ns = mean("sched_waking").unwrap_or(0.0) * counters.wakeups as f64;
        ns * counters.switches as f64 + wakeups_ns
    });
    let on_cpu_ns = aggregates.latencies.get(Kind::OnCpu).sum_ns;
    let share = programs_ns.filter(|_| on_cpu_ns > 0).map(|ns| ns / on_cpu_ns as f64);
    let untimed = "no run of sched_switch was timed";
    Overhead {
        programs_ns: nulls.or(programs_ns, "overhead.programs_ns", untimed),
        share_of_on_cpu: nulls.or(share, "overhead.share_of_on_cpu", untimed),
        method:
            "the kernel's own run-time statistics, enabled for the first 50 ms and then for 50 ms of every second; \
                 entering the tracepoint is not included"
                .to_owned(),
        programs,
        stacks_reused: counters.stacks_reused,
        user_stacks_reused: counters.user_stacks_reused,
        tracer_cpu_ns: cost.tracer_cpu_ns,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fixtures::{about, command, info, run, spec};
    use ctxtrace_format::build;
    use ctxtrace_format::run::{Exit, Timeline};
    use ctxtrace_format::workload::Mode;

    #[test]
    fn a_forged_distribution_does_not_panic() {
        let mut run = run(670_000);
        let forged = run.aggregates.latencies.get_mut(Kind::OnCpu);
        (forged.count, forged.min_plus_one_ns) = (1, 0);
        let report = summarize(&info(Mode::TaskPool), &[run]);
        assert_eq!(report.latency.on_cpu.min_ns, Some(0));
    }

    #[test]
    fn the_headline_is_the_median_runs() {
        let report = summarize(&info(Mode::Task), &[run(900_000), run(100_000), run(500_000)]);
        let workload = report.workload.expect("a built-in workload");
        assert_eq!(workload.elapsed_ns, Some(500_000));
        assert_eq!(workload.ns_per_message, Some(500.0));
        assert_eq!(workload.messages_per_second, Some(2_000_000.0));
        let medians: Vec<bool> = workload.runs.iter().map(|run| run.median).collect();
        assert_eq!(medians, [false, false, true]);
        assert_eq!(report.latency.off_cpu.count, 12, "latencies are summed over all runs");
        assert_eq!(report.kernel_switches.total, 5, "counts are those of the median run");
        assert_eq!(report.kernel_switches.per_message, Some(0.005));
    }

    #[test]
    fn every_null_has_its_reason_and_every_reason_its_null() {
        for subject in [
            Subject::Workload(spec(Mode::Process)),
            Subject::Workload(spec(Mode::TaskPool)),
            command(),
            Subject::Process {
                pid: 100,
                name: "server".to_owned(),
                children: false,
            },
        ] {
            for outcome in [None, run(1).outcome] {
                for exit in [None, Some(Exit::default())] {
                    let mut run = run(500_000);
                    run.outcome = outcome;
                    run.exit = exit;
                    run.launched.take_if(|_| matches!(subject, Subject::Process { .. }));
                    if exit.is_some() {
                        run.timeline = Some(Timeline::default());
                    }
                    run.aggregates
                        .cost
                        .programs
                        .push(ctxtrace_format::ProgramCost::default());
                    let report = summarize(&about(subject.clone()), &[run]);
                    let json = serde_json::to_value(&report).expect("JSON");
                    let mut nulls = Vec::new();
                    collect_nulls(&json, "", &mut nulls);
                    let mut paths: Vec<&str> = report.unavailable.iter().map(|entry| entry.path.as_str()).collect();
                    nulls.sort();
                    paths.sort_unstable();
                    assert_eq!(paths, nulls);
                }
            }
        }
    }

    #[test]
    fn what_a_command_used_is_compared_only_where_it_was_alone() {
        let alone = summarize(&about(command()), &[run(1)]);
        assert_eq!(
            alone
                .reconciliation
                .rusage
                .expect("the counts of a single process are comparable")
                .switches,
            5
        );
        let mut with_a_child = run(1);
        let mut child = build::thread(200, "child", 3, 0);
        child.thread.tgid = 200;
        with_a_child.aggregates.threads.push(child);
        assert!(
            summarize(&about(command()), &[with_a_child])
                .reconciliation
                .rusage
                .is_none()
        );
    }

    fn collect_nulls(value: &serde_json::Value, path: &str, nulls: &mut Vec<String>) {
        match value {
            serde_json::Value::Null => nulls.push(path.to_owned()),
            serde_json::Value::Object(fields) => {
                for (name, field) in fields {
                    let dot = if path.is_empty() { "" } else { "." };
                    collect_nulls(field, &format!("{path}{dot}{name}"), nulls);
                }
            }
            serde_json::Value::Array(items) => {
                for (index, item) in items.iter().enumerate() {
                    collect_nulls(item, &format!("{path}[{index}]"), nulls);
                }
            }
            _ => {}
        }
    }

    #[test]
    fn the_cost_of_tracing_is_set_against_the_targets_time() {
        let mut run = run(500_000);
        run.aggregates.counters.switches = 400;
        run.aggregates.counters.wakeups = 100;
        run.aggregates.latencies.get_mut(Kind::OnCpu).record(1_000_000);
        let cost = |name: &str, timed_ns| ctxtrace_format::ProgramCost {
            name: name.to_owned(),
            timed_runs: 10,
            timed_ns,
        };
        run.aggregates.cost.programs = vec![cost("sched_waking", 1_000), cost("sched_switch", 5_000)];
        let overhead = summarize(&info(Mode::Task), &[run]).overhead;
        assert_eq!(overhead.programs_ns, Some(400.0 * 500.0 + 100.0 * 100.0));
        assert_eq!(overhead.share_of_on_cpu, Some(0.21));
    }

    #[test]
    fn a_run_cut_short_is_partial_and_has_no_speed() {
        let mut cut = run(1);
        cut.outcome = None;
        cut.messages_seen = 384;
        cut.cut_short = Some("interrupted".to_owned());
        let report = summarize(&info(Mode::Process), &[cut]);
        assert_eq!(report.cut_short.as_deref(), Some("interrupted"));
        let workload = report.workload.expect("a built-in workload");
        assert_eq!((workload.messages, workload.ns_per_message), (384, None));
        assert_eq!(report.kernel_switches.per_message, None);
        assert_eq!(report.kernel_switches.total, 5);
    }

    #[test]
    fn differences_that_cancel_out_are_reported() {
        let mut run = run(500_000);
        run.aggregates.threads.push(build::thread(102, "b", 10, 0));
        run.aggregates.threads[0].thread.traced_voluntary += 2;
        run.aggregates.threads[1].thread.traced_voluntary -= 2;
        let report = summarize(&info(Mode::Task), &[run]);
        assert_eq!(report.reconciliation.difference, -4);
    }

    #[test]
    fn a_disagreement_in_any_run_is_reported() {
        let with = |disagreements: Option<&[&str]>| {
            let mut run = run(1);
            run.timeline = Some(Timeline {
                disagreements: disagreements.map(|texts| texts.iter().map(|&text| text.to_owned()).collect()),
                ..Timeline::default()
            });
            run
        };
        let (good, lossy, bad) = (with(Some(&[])), with(None), with(Some(&["switches"])));
        let agrees = |runs: &[&Run]| {
            let runs: Vec<Run> = runs.iter().map(|&run| run.clone()).collect();
            let report = summarize(&info(Mode::Task), &runs);
            report.timeline.expect("a timeline").agrees
        };
        assert_eq!(agrees(&[&good, &good]), Some(true));
        assert_eq!(agrees(&[&good, &lossy]), None);
        assert_eq!(agrees(&[&good, &bad]), Some(false));
        assert_eq!(agrees(&[&lossy, &bad]), Some(false));
    }

    #[test]
    fn losses_of_every_cpu_are_added_up() {
        let losses = |cpu, timeline_events| ctxtrace_format::CpuLosses {
            cpu,
            events: 1,
            timeline_events,
        };
        let (mut a, mut b) = (run(1), run(2));
        a.aggregates.lost_by_cpu = vec![losses(0, 2)];
        b.aggregates.lost_by_cpu = vec![losses(0, 3), losses(7, 4)];
        let lost = summarize(&info(Mode::Task), &[a, b]).lost;
        let by_cpu: Vec<_> = lost
            .by_cpu
            .iter()
            .map(|losses| (losses.cpu, losses.events, losses.timeline_events))
            .collect();
        assert_eq!(by_cpu, [(0, 2, 5), (7, 1, 4)]);
    }

    #[test]
    fn losses_of_every_run_are_added_up() {
        let (mut a, mut b) = (run(1), run(2));
        a.aggregates.counters.lost_wakeups = 1;
        b.aggregates.counters.lost_wakeups = 2;
        b.aggregates.recursion_misses = 4;
        let report = summarize(&info(Mode::Task), &[a, b]);
        assert_eq!((report.lost.wakeups, report.lost.recursion), (3, 4));
        assert_eq!(
            report.lost.in_words().as_deref(),
            Some("3 wakeups, 4 program runs (recursion)")
        );
    }
}
