//! The rows of the tables. Each type is a table and each field is a column, in the order of the columns. A column with the name
//! of a field of the JSON report has the same value.
//!
//! Numbers are signed, because some query engines do not support unsigned numbers. No real count or time exceeds the signed
//! range.

use parquet_derive::ParquetRecordWriter;

/// One run: what was recorded and where, the totals, and what was lost. This table is written last, so that a run that is in it
/// is also in all other tables.
#[derive(Clone, Debug, ParquetRecordWriter)]
pub(super) struct Host<'a> {
    /// The machine: `uname -n`.
    pub(super) host: &'a str,
    /// Id of the run; see [`ctxtrace_format::run::Info::run_id`].
    pub(super) run: &'a str,
    /// Id of the capture, which all its runs share.
    pub(super) capture: &'a str,
    /// Index of the run in the capture, from 0.
    pub(super) run_index: i32,
    /// Number of runs in the capture (`--repeat`).
    pub(super) runs: i32,
    /// Whether this is the run whose figures the report of the capture shows.
    pub(super) median: bool,
    /// `uname -r`.
    pub(super) kernel: &'a str,
    /// Number of CPUs that the recording process could use.
    pub(super) cpus: i32,
    /// Version of ctxtrace that recorded the run.
    pub(super) ctxtrace_version: &'a str,
    /// Start of the capture by the wall clock: nanoseconds since 1970.
    pub(super) started_ns: i64,
    /// Duration of tracing.
    pub(super) recorded_ns: i64,
    /// How much was recorded: `counts`, `stacks` or `timeline`.
    pub(super) level: &'a str,
    /// What was recorded, in words.
    pub(super) subject: &'a str,
    /// The file name of its program, or the mode of the built-in workload.
    pub(super) name: &'a str,
    /// Id of its process.
    pub(super) pid: Option<i32>,
    /// Whether the run was recorded to its end.
    pub(super) complete: bool,
    /// Why the run is incomplete; null if it is complete.
    pub(super) cut_short: Option<&'a str>,
    /// Number of messages, for a built-in workload.
    pub(super) messages: Option<i64>,
    /// Duration of the measured section, divided by the number of messages.
    pub(super) ns_per_message: Option<f64>,
    /// `kernel_switches.total`.
    pub(super) kernel_switches: i64,
    /// `kernel_switches.voluntary`.
    pub(super) voluntary: i64,
    /// `kernel_switches.involuntary`.
    pub(super) involuntary: i64,
    /// Switch-ins on another CPU than before.
    pub(super) migrations: i64,
    /// `reconciliation.kernel`.
    pub(super) kernel_counted: i64,
    /// `reconciliation.difference`.
    pub(super) difference: i64,
    /// Whether every kernel switch is in the ledger exactly once.
    pub(super) ledger_adds_up: bool,
    /// `timeline.agrees`.
    pub(super) timeline_agrees: Option<bool>,
    /// `timeline.dropped`: number of the oldest events, which were dropped to keep the capture within its limit.
    pub(super) timeline_dropped: Option<i64>,
    /// `task_switches.total`.
    pub(super) task_switches: Option<i64>,
    /// `task_switches.stayed_in_user`.
    pub(super) stayed_in_user: Option<i64>,
    /// `task_switches.hit_kernel`.
    pub(super) hit_kernel: Option<i64>,
    /// `overhead.programs_ns`.
    pub(super) tracing_ns: Option<f64>,
    /// `overhead.share_of_on_cpu`.
    pub(super) tracing_share: Option<f64>,
    /// `lost.events`; the columns below are the other fields of `lost`. All are 0 if nothing was lost.
    pub(super) lost_events: i64,
    pub(super) lost_intervals: i64,
    pub(super) lost_wakeups: i64,
    pub(super) lost_stacks: i64,
    pub(super) lost_user_stacks: i64,
    pub(super) lost_stack_sums: i64,
    pub(super) lost_mistaken_stacks: i64,
    pub(super) lost_task_reads: i64,
    pub(super) lost_tasks: i64,
    pub(super) lost_wakeup_edges: i64,
    pub(super) lost_handovers: i64,
    pub(super) lost_threads: i64,
    pub(super) lost_thread_records: i64,
    pub(super) lost_refused_processes: i64,
    pub(super) lost_programs: i64,
    pub(super) lost_mappings: i64,
    pub(super) lost_recursion: i64,
    pub(super) lost_timeline_events: i64,
    pub(super) lost_samples: i64,
    pub(super) lost_sample_stacks: i64,
    pub(super) lost_poll_stamps: i64,
}

/// One program that was run, and how its tasks are found.
#[derive(Clone, Debug, ParquetRecordWriter)]
pub(super) struct ProgramRow<'a> {
    pub(super) host: &'a str,
    pub(super) run: &'a str,
    /// Path of the executable.
    pub(super) program: &'a str,
    /// GNU build id of the executable.
    pub(super) build: Option<&'a str>,
    pub(super) locator: &'a str,
    pub(super) tokio_version: Option<&'a str>,
    pub(super) go_version: Option<&'a str>,
    pub(super) reason: Option<&'a str>,
    /// What could not be found out about the program, if there is no `reason`.
    pub(super) note: Option<&'a str>,
}

/// Kernel switches of one class and, if there is one, one task.
#[derive(Clone, Debug, ParquetRecordWriter)]
pub(super) struct LedgerRecord<'a> {
    pub(super) host: &'a str,
    pub(super) run: &'a str,
    pub(super) class: &'a str,
    pub(super) reason: Option<&'a str>,
    pub(super) task: Option<&'a str>,
    pub(super) task_id: Option<i64>,
    pub(super) pid: Option<i32>,
    /// The executable that the task's process ran last.
    pub(super) program: Option<&'a str>,
    /// GNU build id of that executable.
    pub(super) build: Option<&'a str>,
    pub(super) count: i64,
    pub(super) off_cpu_ns: i64,
}

/// One task.
#[derive(Clone, Debug, ParquetRecordWriter)]
pub(super) struct TaskRow<'a> {
    pub(super) host: &'a str,
    pub(super) run: &'a str,
    pub(super) id: i64,
    pub(super) name: &'a str,
    pub(super) r#type: Option<&'a str>,
    pub(super) pid: i32,
    pub(super) program: Option<&'a str>,
    pub(super) build: Option<&'a str>,
    pub(super) task_switches: Option<i64>,
    pub(super) hit_kernel: Option<i64>,
    pub(super) kernel_switches: i64,
    pub(super) off_cpu_ns: i64,
}

/// Wakeups that ended a sleep, from one waker to one thread.
#[derive(Clone, Debug, ParquetRecordWriter)]
pub(super) struct WakeupPairRow<'a> {
    pub(super) host: &'a str,
    pub(super) run: &'a str,
    pub(super) origin: &'a str,
    pub(super) from_task: Option<&'a str>,
    pub(super) from_thread: &'a str,
    pub(super) from_tid: Option<i32>,
    pub(super) to_thread: &'a str,
    pub(super) to_tid: i32,
    pub(super) count: i64,
    pub(super) wasted: Option<i64>,
    pub(super) wasted_on_cpu_ns: Option<i64>,
    pub(super) waking_ns: Option<f64>,
    pub p50_ns: i64,
    pub p99_ns: i64,
    pub(super) max_ns: i64,
    pub(super) sum_ns: i64,
}

/// One of the five distributions.
#[derive(Clone, Debug, ParquetRecordWriter)]
pub(super) struct LatencyRow<'a> {
    pub(super) host: &'a str,
    pub(super) run: &'a str,
    /// `off_cpu`, `blocked`, `run_queue`, `on_cpu`, `wake_to_run`.
    pub(super) kind: &'a str,
    pub(super) count: i64,
    pub(super) open_intervals: Option<i64>,
    pub(super) min_ns: Option<i64>,
    pub p50_ns: Option<i64>,
    pub p90_ns: Option<i64>,
    pub p99_ns: Option<i64>,
    pub p999_ns: Option<i64>,
    pub(super) max_ns: Option<i64>,
    pub(super) sum_ns: i64,
}

/// Number of values of a distribution within one bucket. Unlike percentiles, buckets can be added up over runs.
#[derive(Clone, Debug, ParquetRecordWriter)]
pub(super) struct LatencyBucket<'a> {
    pub(super) host: &'a str,
    pub(super) run: &'a str,
    pub(super) kind: &'a str,
    /// Smallest value of the bucket.
    pub(super) from_ns: i64,
    /// Largest value of the bucket.
    pub(super) to_ns: i64,
    pub(super) count: i64,
}

/// One thread.
#[derive(Clone, Debug, ParquetRecordWriter)]
pub(super) struct ThreadRow<'a> {
    pub(super) host: &'a str,
    pub(super) run: &'a str,
    pub(super) pid: i32,
    pub(super) tid: i32,
    pub(super) name: &'a str,
    /// The executable that its process ran last.
    pub(super) program: Option<&'a str>,
    pub(super) build: Option<&'a str>,
    pub(super) voluntary: i64,
    pub(super) involuntary: i64,
    pub(super) on_cpu_ns: i64,
    pub(super) off_cpu_ns: i64,
    pub(super) run_queue_ns: i64,
    pub(super) migrations: i64,
}

/// One kernel switch (`--level timeline`). Rows are in the order in which the off-CPU intervals ended; intervals that are open at
/// the end of the recording come last.
#[derive(Clone, Debug, ParquetRecordWriter)]
pub(super) struct SwitchRow<'a> {
    pub(super) host: &'a str,
    pub(super) run: &'a str,
    /// When the thread was switched out: `CLOCK_MONOTONIC`.
    pub(super) at_ns: i64,
    /// The same time by the wall clock: nanoseconds since 1970.
    pub(super) time_ns: i64,
    /// The CPU that the thread left.
    pub(super) cpu: i32,
    pub(super) pid: i32,
    pub(super) tid: i32,
    /// The thread's name, as in the table of threads.
    pub(super) thread: &'a str,
    /// The class in the ledger.
    pub(super) class: &'a str,
    /// Why the switch is unattributed; null if it is attributed.
    pub(super) reason: Option<&'a str>,
    /// The task that was being polled.
    pub(super) task: Option<&'a str>,
    pub(super) task_id: Option<i64>,
    /// Which of the kernel's counters counted the switch: true for `nvcsw`, false for `nivcsw`.
    pub(super) voluntary: bool,
    /// Time on the CPU before the switch; null if the switch-in was not recorded.
    pub(super) on_cpu_ns: Option<i64>,
    /// Time until the next switch-in; null if the interval is open at the end of the recording, or if its end was lost.
    pub(super) off_cpu_ns: Option<i64>,
    /// The part of the off-CPU time in which the thread slept; also null if the thread did not sleep.
    pub(super) blocked_ns: Option<i64>,
    /// The part of the off-CPU time in which the thread waited for a CPU.
    pub(super) run_queue_ns: Option<i64>,
    /// Time from the wakeup that ended the sleep to the switch-in.
    pub(super) wake_to_run_ns: Option<i64>,
    /// The CPU of the next switch-in.
    pub(super) next_cpu: Option<i32>,
}

/// One wakeup of a thread (`--level timeline`). Wakeups that did not end a sleep are included.
#[derive(Clone, Debug, ParquetRecordWriter)]
pub(super) struct WakeupRow<'a> {
    pub(super) host: &'a str,
    pub(super) run: &'a str,
    /// When the wakeup was made: `CLOCK_MONOTONIC`.
    pub(super) at_ns: i64,
    /// The same time by the wall clock: nanoseconds since 1970.
    pub(super) time_ns: i64,
    /// The CPU on which the wakeup was made.
    pub(super) cpu: i32,
    /// Process id of the woken thread.
    pub(super) pid: Option<i32>,
    /// Thread id of the woken thread.
    pub(super) tid: i32,
    /// Name of the woken thread.
    pub(super) thread: &'a str,
    /// `off-cpu`: the first wakeup since the thread left its CPU. `on-cpu`: the last one before it leaves its CPU. Null: the
    /// wakeup had no effect.
    pub(super) noted: Option<&'a str>,
    /// Whether the woken thread had just been created.
    pub(super) newborn: bool,
    /// The kind of waker, as in the table of wakeups.
    pub(super) origin: &'a str,
    pub(super) from_pid: Option<i32>,
    pub(super) from_tid: Option<i32>,
    pub(super) from_thread: &'a str,
    pub(super) from_task: Option<&'a str>,
    pub(super) from_task_id: Option<i64>,
}

/// One poll that has ended (`--polls`).
#[derive(Clone, Debug, ParquetRecordWriter)]
pub(super) struct Poll<'a> {
    pub(super) host: &'a str,
    pub(super) run: &'a str,
    /// When the poll began: `CLOCK_MONOTONIC`.
    pub(super) at_ns: i64,
    /// The same time by the wall clock: nanoseconds since 1970.
    pub(super) time_ns: i64,
    pub(super) pid: i32,
    pub(super) tid: i32,
    /// The thread that polled.
    pub(super) thread: &'a str,
    pub(super) task: &'a str,
    pub(super) task_id: i64,
    /// Duration of the poll.
    pub(super) poll_ns: i64,
    /// Time from the wake of the task to the beginning of the poll; null if no wake is known to have led to the poll.
    pub(super) wake_to_poll_ns: Option<i64>,
    /// The path of the wait: `user-space`, `kernel`, `already-coming` or `unknown`.
    pub(super) path: Option<&'a str>,
}
