//! The tables: one type a table, one field a column, in their order. Where a column has the name of a field of the JSON report it
//! holds the same.
//!
//! Numbers are signed, because not every engine knows unsigned ones; no count and no time reaches the difference.

use parquet_derive::ParquetRecordWriter;

/// One run: what was recorded where, what it came to, and what was lost. Written last, so that a run that is in it is in every
/// table.
#[derive(Clone, Debug, ParquetRecordWriter)]
pub(super) struct Host<'a> {
    /// The machine: `uname -n`.
    pub(super) host: &'a str,
    /// The run: see [`crate::trace::run::Info::run_id`].
    pub(super) run: &'a str,
    /// What the runs of one capture have in common.
    pub(super) capture: &'a str,
    /// Which of them it is, from 0.
    pub(super) run_index: i32,
    /// How many there are (`--repeat`).
    pub(super) runs: i32,
    /// Whether it is the one whose figures the report of the capture shows.
    pub(super) median: bool,
    /// `uname -r`.
    pub(super) kernel: &'a str,
    /// CPUs the recording process could use.
    pub(super) cpus: i32,
    /// Version of the program that recorded.
    pub(super) ctxtrace_version: &'a str,
    /// When the capture was begun: nanoseconds since 1970.
    pub(super) started_ns: i64,
    /// How long the run was traced.
    pub(super) recorded_ns: i64,
    /// How much was recorded: `counts`, `stacks` or `timeline`.
    pub(super) level: &'a str,
    /// What was recorded, in words.
    pub(super) subject: &'a str,
    /// The file name of its program, or the mode of the built-in workload.
    pub(super) name: &'a str,
    /// Its process.
    pub(super) pid: Option<i32>,
    /// Whether it ran to its end.
    pub(super) complete: bool,
    /// Why it did not.
    pub(super) cut_short: Option<&'a str>,
    /// Messages of a built-in workload.
    pub(super) messages: Option<i64>,
    /// Its time by messages.
    pub(super) ns_per_message: Option<f64>,
    /// `kernel_switches.total`.
    pub(super) kernel_switches: i64,
    /// `kernel_switches.voluntary`.
    pub(super) voluntary: i64,
    /// `kernel_switches.involuntary`.
    pub(super) involuntary: i64,
    /// Switch-ins on another CPU.
    pub(super) migrations: i64,
    /// `reconciliation.kernel`.
    pub(super) kernel_counted: i64,
    /// `reconciliation.difference`.
    pub(super) difference: i64,
    /// Whether every kernel switch is in the ledger, once.
    pub(super) ledger_adds_up: bool,
    /// `timeline.agrees`.
    pub(super) timeline_agrees: Option<bool>,
    /// `timeline.dropped`: the oldest events, where the capture was to keep within a limit.
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
    /// `lost.events`, and so on: all 0 is what one wants to see.
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
pub(super) struct Program<'a> {
    pub(super) host: &'a str,
    pub(super) run: &'a str,
    /// Path of the executable.
    pub(super) program: &'a str,
    /// Its GNU build id.
    pub(super) build: Option<&'a str>,
    pub(super) locator: &'a str,
    pub(super) tokio_version: Option<&'a str>,
    pub(super) go_version: Option<&'a str>,
    pub(super) reason: Option<&'a str>,
    /// What was not found out about the program where there is no reason.
    pub(super) note: Option<&'a str>,
}

/// Kernel switches of one class and, where there is one, task.
#[derive(Clone, Debug, ParquetRecordWriter)]
pub(super) struct Ledger<'a> {
    pub(super) host: &'a str,
    pub(super) run: &'a str,
    pub(super) class: &'a str,
    pub(super) reason: Option<&'a str>,
    pub(super) task: Option<&'a str>,
    pub(super) task_id: Option<i64>,
    pub(super) pid: Option<i32>,
    /// The executable that the task's process ran last.
    pub(super) program: Option<&'a str>,
    /// The GNU build id of that.
    pub(super) build: Option<&'a str>,
    pub(super) count: i64,
    pub(super) off_cpu_ns: i64,
}

/// One task.
#[derive(Clone, Debug, ParquetRecordWriter)]
pub(super) struct Task<'a> {
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

/// Wakeups from one waker to one thread that ended a sleep.
#[derive(Clone, Debug, ParquetRecordWriter)]
pub(super) struct Wakeups<'a> {
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
pub(super) struct Latency<'a> {
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

/// The values of a distribution that lie between two bounds: percentiles cannot be added up over runs, these can.
#[derive(Clone, Debug, ParquetRecordWriter)]
pub(super) struct LatencyBucket<'a> {
    pub(super) host: &'a str,
    pub(super) run: &'a str,
    pub(super) kind: &'a str,
    /// The least value of the bucket.
    pub(super) from_ns: i64,
    /// The greatest.
    pub(super) to_ns: i64,
    pub(super) count: i64,
}

/// One thread.
#[derive(Clone, Debug, ParquetRecordWriter)]
pub(super) struct Thread<'a> {
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

/// One kernel switch (`--level timeline`), in the order in which their off-CPU intervals ended; those that are open at the end
/// come last.
#[derive(Clone, Debug, ParquetRecordWriter)]
pub(super) struct Switch<'a> {
    pub(super) host: &'a str,
    pub(super) run: &'a str,
    /// When the thread was switched out: `CLOCK_MONOTONIC`.
    pub(super) at_ns: i64,
    /// The same by the wall clock: nanoseconds since 1970.
    pub(super) time_ns: i64,
    /// The CPU it left.
    pub(super) cpu: i32,
    pub(super) pid: i32,
    pub(super) tid: i32,
    /// The thread's name, as in the table of threads.
    pub(super) thread: &'a str,
    /// The class of the ledger.
    pub(super) class: &'a str,
    /// Why, for what is unattributed.
    pub(super) reason: Option<&'a str>,
    /// The task that was polled.
    pub(super) task: Option<&'a str>,
    pub(super) task_id: Option<i64>,
    /// Which of the kernel's counters moved.
    pub(super) voluntary: bool,
    /// How long it had been on the CPU; null if nobody saw it come.
    pub(super) on_cpu_ns: Option<i64>,
    /// Until it came back; null for an interval that is open at the end, or whose end was lost.
    pub(super) off_cpu_ns: Option<i64>,
    /// The part of it that it slept; null also where it did not sleep.
    pub(super) blocked_ns: Option<i64>,
    /// The part of it that it waited for a CPU.
    pub(super) run_queue_ns: Option<i64>,
    /// From the waking that ended its sleep until it came back.
    pub(super) wake_to_run_ns: Option<i64>,
    /// The CPU it came back to.
    pub(super) next_cpu: Option<i32>,
}

/// One waking of a thread (`--level timeline`), those that ended no sleep included.
#[derive(Clone, Debug, ParquetRecordWriter)]
pub(super) struct Waking<'a> {
    pub(super) host: &'a str,
    pub(super) run: &'a str,
    /// When: `CLOCK_MONOTONIC`.
    pub(super) at_ns: i64,
    /// The same by the wall clock: nanoseconds since 1970.
    pub(super) time_ns: i64,
    /// The CPU it was made on.
    pub(super) cpu: i32,
    /// The thread that was woken, and its process.
    pub(super) pid: Option<i32>,
    pub(super) tid: i32,
    pub(super) thread: &'a str,
    /// `off-cpu`: the first since the thread left its CPU. `on-cpu`: the last before it leaves one. Null: of no consequence.
    pub(super) noted: Option<&'a str>,
    /// The thread had just been created.
    pub(super) newborn: bool,
    /// As in the table of wakeups.
    pub(super) origin: &'a str,
    pub(super) from_pid: Option<i32>,
    pub(super) from_tid: Option<i32>,
    pub(super) from_thread: &'a str,
    pub(super) from_task: Option<&'a str>,
    pub(super) from_task_id: Option<i64>,
}

/// One poll (`--polls`), from its begin to its end.
#[derive(Clone, Debug, ParquetRecordWriter)]
pub(super) struct Poll<'a> {
    pub(super) host: &'a str,
    pub(super) run: &'a str,
    /// When it began: `CLOCK_MONOTONIC`.
    pub(super) at_ns: i64,
    /// The same by the wall clock: nanoseconds since 1970.
    pub(super) time_ns: i64,
    pub(super) pid: i32,
    pub(super) tid: i32,
    /// The thread that polled.
    pub(super) thread: &'a str,
    pub(super) task: &'a str,
    pub(super) task_id: i64,
    /// How long it took.
    pub(super) poll_ns: i64,
    /// How long the task had waited for it since it was woken; null where no wake is known to have led to it.
    pub(super) wake_to_poll_ns: Option<i64>,
    /// Which way the wait went: `user-space`, `kernel`, `already-coming` or `unknown`.
    pub(super) path: Option<&'a str>,
}
