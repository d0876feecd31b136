//! The result of a command. Its JSON form is a contract: `ctxtrace.report/1`, described by the JSON Schema in `docs/schema`,
//! which is generated from these types.
//!
//! A figure that is not available is `null`, and [`Report::unavailable`] has one entry for each null that gives the reason. A
//! missing figure is never reported as 0.

use std::sync::Arc;

use ctxtrace_format::sums::add;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::symbolize::category::Category;
use crate::units::thousands;
pub use ctxtrace_common::ledger::Class;
pub use ctxtrace_common::wakeup::WakeupOrigin;
use ctxtrace_format::Level;
use ctxtrace_format::polls::PollClock;
pub use ctxtrace_format::polls::{Leg, Path};
use ctxtrace_format::programs::LocatorChoice;
pub use ctxtrace_format::run::Host;
use ctxtrace_format::workload::Pin;
use ctxtrace_format::workload::{Allocator, Channel, Language, Mode, Protocol, Root};

/// Name and version of the format of the report.
pub const SCHEMA: &str = "ctxtrace.report/1";

/// The full result of `ctxtrace run`, `record` or `report`.
#[derive(Clone, Debug, Serialize, JsonSchema)]
pub struct Report {
    /// Name and version of the format: `ctxtrace.report/1`.
    pub schema: String,
    /// Version of ctxtrace that made the recording.
    pub ctxtrace_version: String,
    /// The machine on which the recording was made.
    pub host: Host,
    /// The level of the recording: how much was recorded.
    pub level: Level,
    /// Whether the recording is complete: no run was cut short.
    pub complete: bool,
    /// Why the recording is not complete. Present only if it is not.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cut_short: Option<String>,
    /// The built-in workload and its speed. Null for `record`.
    pub workload: Option<Workload>,
    /// The command or process that `record` recorded. Null for `run`.
    pub target: Option<Target>,
    /// Length of the recording in nanoseconds: from attaching the BPF programs to detaching them.
    pub recorded_ns: u64,
    /// Kernel switches of the median run.
    pub kernel_switches: KernelSwitches,
    /// Comparison of the traced number of kernel switches with the kernel's own counters, for the median run.
    pub reconciliation: Reconciliation,
    /// Task switches of the median run.
    pub task_switches: Option<TaskSwitches>,
    /// Effects of the CPU quotas of the target's cgroups in the median run. Null in captures of versions that did not read the
    /// cgroups.
    pub throttling: Option<Throttling>,
    /// Paths of the target's cgroups that were found frozen at least once in the median run. Each cgroup is read every 50 ms, or
    /// less often if there are more than 32, so a shorter freeze may be missing. Null in captures of versions that did not read
    /// the cgroups.
    pub frozen_cgroups: Option<Vec<String>>,
    /// Every kernel switch of the median run in exactly one class. The counts add up to `kernel_switches.total`.
    pub ledger: Vec<LedgerRow>,
    /// Whether the counts of the ledger add up to the number of kernel switches in every run.
    pub ledger_adds_up: bool,
    /// The tasks of the median run, the task with the most kernel switches first.
    pub tasks: Vec<Task>,
    /// The tasks whose type is known, summed by type.
    pub task_types: Vec<TaskType>,
    /// Wakeups of the median run that ended a sleep, summed by waker and woken thread, the pair with the most wakeups first.
    pub wakeups: Vec<Wakeups>,
    /// The events of the median run. Null if none were recorded.
    pub timeline: Option<Timeline>,
    /// When tasks were woken and polled, in the median run. Null unless `--polls` was given.
    pub polls: Option<Polls>,
    /// What the target executed on its CPUs, from the samples of all runs together. Null unless `--sample` was given.
    pub on_cpu: Option<OnCpu>,
    /// The requested method of finding tasks (`--locator`).
    pub locator: LocatorChoice,
    /// How the tasks of each program were found.
    pub locators: Vec<Locator>,
    /// Distributions of intervals, of all runs together.
    pub latency: Latency,
    /// The threads of the median run. With `record -p` this includes threads that made no switch.
    pub threads: Vec<Thread>,
    /// The threads of the median run that were off the CPU when the recording ended, the longest interval first. Their time so
    /// far is in no sum, because the end of the interval was not seen. Null in captures of versions that did not record open
    /// intervals.
    pub open_intervals: Option<Vec<OpenInterval>>,
    /// Number of switch-ins on another CPU than the thread's previous one, in the median run.
    pub migrations: u64,
    /// What was lost, in all runs together.
    pub lost: Lost,
    /// The cost of tracing itself, in the median run.
    pub overhead: Overhead,
    /// One entry for every null in the report.
    pub unavailable: Vec<Unavailable>,
}

/// Effects of CPU quotas on the target.
#[derive(Clone, Debug, Serialize, JsonSchema)]
pub struct Throttling {
    /// The target's cgroups and their parents that have a quota and had something to run.
    pub cgroups: Option<Vec<CgroupThrottling>>,
    /// Run-queue time, in nanoseconds, after switch-outs that the kernel made to enforce a quota. It is a part of
    /// `latency.run_queue` of this run.
    pub thread_ns: Option<u64>,
}

/// One cgroup with a CPU quota. Each figure is the increase of the kernel's own counter in `cpu.stat` during the run.
#[derive(Clone, Debug, Serialize, JsonSchema)]
pub struct CgroupThrottling {
    /// Path of the cgroup in its hierarchy.
    pub path: String,
    /// How long the cgroup was throttled, in nanoseconds, all CPUs added up. This includes programs of the cgroup that are not
    /// part of the target.
    pub throttled_ns: u64,
    /// Quota periods in which the cgroup had something to run.
    pub periods: u64,
    /// Quota periods in which the cgroup was throttled.
    pub throttled_periods: u64,
}

/// The command or process that `record` recorded.
#[derive(Clone, Debug, Serialize, JsonSchema)]
pub struct Target {
    /// The command and its arguments. Null for a process that was attached to.
    pub command: Option<Vec<String>>,
    /// The first word of the command, or the name that the process had when ctxtrace attached to it.
    pub name: String,
    /// Process id.
    pub pid: Option<u32>,
    /// Whether processes that the target forked were recorded, too.
    pub children: bool,
    /// Exit status of the command.
    pub exit_status: Option<i32>,
    /// Number of the signal that killed the command.
    pub signal: Option<i32>,
    /// The processes of a command that were still running when the recording ended. Empty for a process that was attached to,
    /// because ctxtrace never ends such a process.
    pub still_running: Vec<RunningProcess>,
}

/// A process that was still running when the recording ended.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, JsonSchema)]
pub struct RunningProcess {
    /// Process id.
    pub pid: u32,
    /// Name of the process.
    pub name: String,
}

/// The built-in workload and its speed.
#[derive(Clone, Debug, Serialize, JsonSchema)]
pub struct Workload {
    /// The mode of the workload (`--mode`).
    pub mode: Mode,
    /// The language in which the workload is written.
    pub language: Language,
    /// Number of messages that a channel holds. Channels of the crate `futures` hold one more for each sender. Channels of tokio
    /// and Go hold exactly this many.
    pub buffer: Option<u64>,
    /// The kind of channel that connects the tasks.
    pub channel: Option<Channel>,
    /// When the sender sends its next message.
    pub protocol: Option<Protocol>,
    /// Number of messages requested.
    pub iterations: u64,
    /// Number of worker threads. For `go` it is `GOMAXPROCS`.
    pub workers: Option<u64>,
    /// How the threads were pinned to CPUs.
    pub pin: Pin,
    /// Where the receiver ran.
    pub root: Option<Root>,
    /// The memory allocator of the workload.
    pub allocator: Option<Allocator>,
    /// Number of threads in each process that did nothing but sleep.
    pub idle_threads: u64,
    /// Time from before the first message to after the last one, in nanoseconds, measured by the workload's own clock, in the
    /// median run.
    pub elapsed_ns: Option<u64>,
    /// `elapsed_ns` divided by the number of messages.
    pub ns_per_message: Option<f64>,
    /// Number of messages divided by the elapsed time in seconds.
    pub messages_per_second: Option<f64>,
    /// Largest number of messages in flight at any time: created by the sender and not yet received by the receiver (for `go`:
    /// not yet returned). Null unless `--count-in-flight` was given.
    pub max_in_flight: Option<u64>,
    /// Number of messages handled. If the run was cut short, it is the last number that the workload reported, which may be up to
    /// 1,024 too low.
    pub messages: u64,
    /// All runs, in order.
    pub runs: Vec<Run>,
}

/// One run of the workload.
#[derive(Clone, Debug, Serialize, JsonSchema)]
pub struct Run {
    /// As in `workload`, for this run.
    pub elapsed_ns: Option<u64>,
    /// As in `workload`, for this run.
    pub ns_per_message: Option<f64>,
    /// Number of kernel switches traced.
    pub kernel_switches: u64,
    /// Number of kernel switches traced minus the number that the kernel counted.
    pub difference: i64,
    /// Whether this is the median run, from which the headline figures are taken.
    pub median: bool,
}

/// Kernel switches: how often a thread of the target was taken off a CPU.
#[derive(Clone, Debug, Serialize, JsonSchema)]
pub struct KernelSwitches {
    /// Switches that the kernel counted in `nvcsw` of the thread.
    pub voluntary: u64,
    /// Switches that the kernel counted in `nivcsw` of the thread.
    pub involuntary: u64,
    /// All kernel switches: voluntary and involuntary.
    pub total: u64,
    /// `total` divided by the number of messages.
    pub per_message: Option<f64>,
    /// `total` divided by `recorded_ns` in seconds.
    pub per_second: Option<f64>,
    /// The workload's elapsed time, in nanoseconds, divided by `total`. Only for the modes `process` and `thread`, in which each
    /// message causes kernel switches.
    pub ns_per_switch: Option<f64>,
}

/// Task switches: how often a thread of a runtime began to poll a task.
#[derive(Clone, Debug, Serialize, JsonSchema)]
pub struct TaskSwitches {
    /// Number of outermost polls.
    pub total: u64,
    /// Polls of the same task as the thread's previous poll.
    pub repolls: u64,
    /// Polls inside a poll. They are not counted in `total`.
    pub nested_polls: u64,
    /// Polls such that the thread was not switched out between its previous poll and this one.
    pub stayed_in_user: u64,
    /// Polls such that the thread was switched out between its previous poll and this one.
    pub hit_kernel: u64,
    /// Number of threads that were switched out after their last poll, so that no task switch followed.
    pub unconfirmed: u64,
    /// `total` divided by the number of messages.
    pub per_message: Option<f64>,
    /// The task switches that hit the kernel, by the cause of the switch-out.
    pub hits: Hits,
    /// Distribution of the number of messages that one poll handled, over the polls of all tasks.
    pub messages_per_poll: Option<MessagesPerPoll>,
}

/// Task switches that hit the kernel, by the cause of the kernel switch before them. If there were several causes, the first one
/// in this list is counted.
#[derive(Clone, Debug, Serialize, JsonSchema)]
pub struct Hits {
    /// The worker had nothing to poll and parked.
    pub worker_parked: u64,
    /// The thread slept for another reason.
    pub blocked: u64,
    /// The thread was preempted, or yielded.
    pub preempted: u64,
    /// Hits of any of the three kinds that are in no task's count: the thread began so many polls between its switch-outs that it
    /// is no longer known which task the hit belongs to.
    pub of_unknown_task: u64,
}

/// Distribution of polls by the number of messages that they handled. Percentiles are within 3.2 % of the true value.
#[derive(Clone, Debug, Serialize, JsonSchema)]
pub struct MessagesPerPoll {
    /// Number of polls of threads that have ended.
    pub polls: u64,
    /// Number of polls that handled no message.
    pub without: u64,
    /// 50th percentile: half of the polls handled at most this many messages.
    pub p50: u64,
    /// 90th percentile.
    pub p90: u64,
    /// 99th percentile.
    pub p99: u64,
    /// The largest number of messages in one poll, to the precision of the percentiles.
    pub max: u64,
}

/// The kernel switches of one class and, if a task was polled, of one task.
#[derive(Clone, Debug, Serialize, JsonSchema)]
pub struct LedgerRow {
    /// The class of the switches.
    pub class: Class,
    /// Why the switches could not be attributed. Present only in the class `unattributed`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
    /// Name of the task that the thread was polling.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub task: Option<String>,
    /// Number of the task. The tasks `root` and `other` have 0.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub task_id: Option<u64>,
    /// Process id of the task's process.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub pid: Option<u32>,
    /// Number of kernel switches.
    pub count: u64,
    /// Off-CPU time after these switches, in nanoseconds, as far as its end was seen.
    pub off_cpu_ns: u64,
    /// How many of these switches began an off-CPU interval that was still open when the recording ended. Null in captures of
    /// versions that did not record open intervals.
    pub open: Option<u64>,
    /// Time so far of those open intervals, in nanoseconds. It is not in `off_cpu_ns`. Null if `open` is null.
    pub open_ns: Option<u64>,
}

/// One task.
#[derive(Clone, Debug, Serialize, JsonSchema)]
pub struct Task {
    /// Number of the task. The tasks `root` and `other` have 0.
    pub id: u64,
    /// The name that the program gave the task, or its number if it has none. `root` is the future given to `block_on`. `other`
    /// is all tasks that did not fit the tables (for goroutines, one such row for each type).
    pub name: String,
    /// Whether the name is only a number, or `other`.
    #[serde(skip)]
    pub is_number: bool,
    /// Process id of the task's process.
    pub pid: u32,
    /// Type of the task's future, or the `async fn` that it comes from. For a goroutine, the function that it was started with.
    #[serde(rename = "type", skip_serializing_if = "Option::is_none")]
    pub future_type: Option<String>,
    /// How often a thread began to poll the task.
    pub task_switches: Option<u64>,
    /// How many of these task switches hit the kernel.
    pub hit_kernel: Option<u64>,
    /// Kernel switches made while the task was polled.
    pub kernel_switches: u64,
    /// Off-CPU time after those kernel switches, in nanoseconds.
    pub off_cpu_ns: u64,
}

/// All tasks of one type.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, JsonSchema)]
pub struct TaskType {
    /// Type of the futures, or the `async fn` that they come from. For goroutines, the function that they were started with.
    #[serde(rename = "type")]
    pub future_type: String,
    /// Number of tasks of this type that were seen at a kernel switch. Tasks in `other` are not counted.
    pub tasks: u64,
    /// Kernel switches made while these tasks were polled.
    pub kernel_switches: u64,
    /// Off-CPU time after those kernel switches, in nanoseconds.
    pub off_cpu_ns: u64,
}

/// Wakeups of one thread by one waker that ended a sleep.
#[derive(Clone, Debug, Serialize, JsonSchema)]
pub struct Wakeups {
    /// What made the wakeups.
    pub origin: WakeupOrigin,
    /// Name of the task that made the wakeups, or `interrupt`. Absent if no task was polled.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub from_task: Option<String>,
    /// Name of the thread that made the wakeups, or `interrupt`.
    pub from_thread: String,
    /// Id of the thread that made the wakeups. Absent for an interrupt.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub from_tid: Option<u32>,
    /// Name of the woken thread.
    pub to_thread: String,
    /// Id of the woken thread.
    pub to_tid: u32,
    /// Number of wakeups.
    pub count: u64,
    /// How many of these wakeups were wasted: they woke a worker from a park, and the worker parked again without polling
    /// anything.
    pub wasted: Option<u64>,
    /// On-CPU time of the woken thread after wasted wakeups, in nanoseconds.
    pub wasted_on_cpu_ns: Option<u64>,
    /// Mean time that the waker spends on its CPU to make one such wakeup, in nanoseconds, over the wakeups that were timed.
    pub waking_ns: Option<f64>,
    /// 50th percentile of the wake-to-run time, in nanoseconds.
    pub p50_ns: u64,
    /// 99th percentile of the wake-to-run time, in nanoseconds.
    pub p99_ns: u64,
    /// Longest wake-to-run time, in nanoseconds.
    pub max_ns: u64,
    /// Sum of the wake-to-run times, in nanoseconds.
    pub sum_ns: u64,
}

/// How the tasks of one program were found.
#[derive(Clone, Debug, Serialize, JsonSchema)]
pub struct Locator {
    /// Path of the executable.
    pub program: String,
    /// `probe`, `tokio`, `go` or `none`. If several apply, they are joined with `+`.
    pub locator: String,
    /// Version of tokio in the program, if it could be determined.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tokio_version: Option<String>,
    /// Version of Go that the program was built with, if it could be determined.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub go_version: Option<String>,
    /// GNU build id of the program in hexadecimal digits. Absent if the program has none.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub build_id: Option<String>,
    /// Why the tasks of the program cannot be found, and what would help. Absent if they can be found, or if the program has no
    /// tasks.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
    /// What could not be determined about the program although there is no `reason`: for example, that not all of its shared
    /// objects were searched for a runtime. Absent if there is nothing to note.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub note: Option<String>,
}

/// Comparison of the traced number of kernel switches with the kernel's own counters. The two must be equal.
#[derive(Clone, Debug, Serialize, JsonSchema)]
pub struct Reconciliation {
    /// Number of kernel switches traced: runs of the BPF program that saw a thread of the target switched out.
    pub traced: u64,
    /// Increase of the kernel's own counters.
    pub kernel: u64,
    /// `traced` minus `kernel`. If threads differ in both directions, so that the sums are equal, it is the sum of the amounts,
    /// negative.
    pub difference: i64,
    /// The same comparison for each thread.
    pub threads: Vec<ThreadReconciliation>,
    /// Number of switches that `wait4` reported, and the bounds in which it must lie.
    pub rusage: Option<Rusage>,
}

/// The two counts of one thread.
#[derive(Clone, Debug, Serialize, JsonSchema)]
pub struct ThreadReconciliation {
    /// Thread id.
    pub tid: u32,
    /// Thread name.
    pub name: String,
    /// Number of kernel switches traced.
    pub traced: u64,
    /// Increase of the kernel's counters of this thread.
    pub kernel: u64,
    /// `traced` minus `kernel`.
    pub difference: i64,
}

/// Number of kernel switches according to `wait4`.
#[derive(Clone, Debug, Serialize, JsonSchema)]
pub struct Rusage {
    /// The number that `wait4` reported.
    pub switches: u64,
    /// The smallest number that is consistent with the traced count.
    pub lower: u64,
    /// The largest number that is consistent with the traced count.
    pub upper: u64,
    /// Whether `switches` is between `lower` and `upper`, both included.
    pub agrees: bool,
}

/// The recorded events: every kernel switch and wakeup of the target.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, JsonSchema)]
pub struct Timeline {
    /// Number of events. A switch from one thread of the target to another is one event.
    pub events: u64,
    /// Number of kernel switches among the events.
    pub switches: u64,
    /// Number of wakeups of the target's threads among the events, including wakeups that ended no sleep.
    pub wakeups: u64,
    /// Size of all events in bytes.
    pub bytes: u64,
    /// Time from the beginning of the recording to the first of these events, in nanoseconds. Null if there are no events.
    pub begins_ns: Option<u64>,
    /// Number of older events that the capture did not keep (`--max-size`, `--keep`). The timeline lacks them; the counts include
    /// them.
    pub dropped: u64,
    /// Whether replaying the events gives the same counts, ledger and distributions as were summed in the kernel, in every run.
    /// Null if events were lost or dropped.
    pub agrees: Option<bool>,
    /// What the replay of the events gives differently. Present only if something differs.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub disagreements: Vec<String>,
}

/// What was lost on one CPU.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, JsonSchema)]
pub struct CpuLosses {
    /// Number of the CPU.
    pub cpu: u32,
    /// How many of `lost.events` were detected on this CPU.
    pub events: u64,
    /// How many of `lost.timeline_events` found the ring buffer of this CPU full.
    pub timeline_events: u64,
}

/// The distributions of intervals.
#[derive(Clone, Debug, Serialize, JsonSchema)]
pub struct Latency {
    /// Time from a switch-out to the thread's next switch-in.
    pub off_cpu: Distribution,
    /// Time from a switch-out to the end of the sleep.
    pub blocked: Distribution,
    /// Time from the end of the sleep (or from the switch-out, if the thread was still runnable) to the switch-in.
    pub run_queue: Distribution,
    /// Time from a switch-in to the next switch-out.
    pub on_cpu: Distribution,
    /// Time from the wakeup that ended the sleep to the switch-in.
    pub wake_to_run: Distribution,
}

/// A distribution of intervals in nanoseconds. Count, minimum, maximum and sum are exact; percentiles are within 3.2 % of the
/// true value.
#[derive(Clone, Debug, Serialize, JsonSchema)]
pub struct Distribution {
    /// Number of intervals that ended.
    pub count: u64,
    /// Number of intervals that had begun and not ended when the capture ended. They are counted here without a time. The last
    /// switch-out of a thread begins an interval that never ends. Null for distributions that have no open intervals of their
    /// own.
    pub open_intervals: Option<u64>,
    /// Time so far of the open intervals of threads that have not ended, in nanoseconds. It is not in `sum_ns`. Null if
    /// `open_intervals` is null, and in captures of versions that did not record open intervals.
    pub open_ns: Option<u64>,
    /// Shortest interval.
    pub min_ns: Option<u64>,
    /// 50th percentile: half of the intervals are at most this long.
    pub p50_ns: Option<u64>,
    /// 90th percentile.
    pub p90_ns: Option<u64>,
    /// 99th percentile.
    pub p99_ns: Option<u64>,
    /// 99.9th percentile.
    pub p999_ns: Option<u64>,
    /// Longest interval.
    pub max_ns: Option<u64>,
    /// Sum of all intervals.
    pub sum_ns: u64,
    /// The log-linear buckets that are not empty: the lower bound of each bucket and its count. Percentiles and plots are
    /// computed from them.
    #[serde(skip)]
    pub buckets: Vec<(u64, u64)>,
}

/// One thread, or the sums of several threads with the same name.
#[derive(Clone, Debug, Serialize, JsonSchema)]
pub struct Thread {
    /// Thread id. 0 if the row is the sum of several threads.
    pub tid: u32,
    /// Process id. 0 if the row is the sum of threads of several processes.
    pub pid: u32,
    /// Thread name.
    pub name: String,
    /// Number of ended threads with this name that the row is the sum of. Absent if the row is a single thread. If very many
    /// threads have ended, the threads with the fewest switches are summed by name.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub folded: Option<u64>,
    /// Voluntary kernel switches.
    pub voluntary: u64,
    /// Involuntary kernel switches.
    pub involuntary: u64,
    /// Sum of the thread's on-CPU intervals, in nanoseconds.
    pub on_cpu_ns: u64,
    /// Sum of the thread's off-CPU intervals that ended, in nanoseconds.
    pub off_cpu_ns: u64,
    /// Sum of the thread's run-queue times, in nanoseconds, including the wait before it first ran.
    pub run_queue_ns: u64,
    /// Number of switch-ins on another CPU than the previous one.
    pub migrations: u64,
    /// State of the thread when the recording ended. Absent if the thread had ended, or if its state is not known.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub state: Option<ThreadState>,
    /// How long the thread had been off the CPU when the recording ended, in nanoseconds. This time is in no sum. For a thread
    /// without a switch it is a lower limit: the length of the recording. Absent if the thread was not off the CPU.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub open_off_cpu_ns: Option<u64>,
}

impl Thread {
    /// Returns the number of threads that the row stands for.
    #[must_use]
    pub fn count(&self) -> u64 {
        self.folded.unwrap_or(1)
    }

    /// Returns the thread id, or, for the sum of several threads, their number.
    #[must_use]
    pub fn id_in_words(&self) -> String {
        match self.folded {
            None => self.tid.to_string(),
            Some(threads) => format!("{} threads", thousands(threads)),
        }
    }

    /// Whether the thread made no kernel switch during the recording.
    #[must_use]
    pub fn is_silent(&self) -> bool {
        self.voluntary == 0 && self.involuntary == 0
    }
}

/// State of a thread that has not ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum ThreadState {
    /// The thread is on a CPU. A thread without a switch may also be ready to run.
    Running,
    /// The thread is ready to run and waits for a CPU.
    Runnable,
    /// The thread sleeps.
    Asleep,
    /// The thread is stopped by a signal or a debugger, or is frozen.
    Stopped,
}

impl ThreadState {
    /// Returns the name of the state in tables.
    #[must_use]
    pub fn in_words(self) -> &'static str {
        match self {
            Self::Running => "running",
            Self::Runnable => "runnable",
            Self::Asleep => "asleep",
            Self::Stopped => "stopped",
        }
    }
}

/// A thread that was off the CPU when the recording ended.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, JsonSchema)]
pub struct OpenInterval {
    /// Thread id.
    pub tid: u32,
    /// Process id.
    pub pid: u32,
    /// Thread name. Empty if the thread is not known.
    pub thread: String,
    /// Class of the switch-out, as in `ledger`.
    pub class: Class,
    /// Name of the task that the thread was polling.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub task: Option<String>,
    /// Time from the switch-out to the end of the recording, in nanoseconds.
    pub off_ns: u64,
    /// Stack of the switch-out, outermost function first. Empty if no stacks were recorded.
    pub stack: Vec<Arc<str>>,
}

/// What was lost, by cause. In a recording without losses all counts are 0.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, JsonSchema)]
pub struct Lost {
    /// Kernel switches that the kernel's counters show and that were not traced.
    pub events: u64,
    /// Off-CPU intervals that were dropped because the event at one of their ends was lost.
    pub intervals: u64,
    /// Sleeps whose end was not seen. Their time is only in `off_cpu`.
    pub wakeups: u64,
    /// Switch-outs whose kernel or user stack did not fit the stack table.
    pub stacks: u64,
    /// Switch-outs whose user stack could not be read.
    pub user_stacks: u64,
    /// Switch-outs that did not fit the table of sums. The ledger has them by class only.
    pub stack_sums: u64,
    /// Kernel stacks that would have been taken for the thread's last stack although they were different. Only one in 64 of
    /// `overhead.stacks_reused` is checked, so about 64 times as many are to be expected among the stacks that were not checked.
    pub mistaken_stacks: u64,
    /// Failed attempts to read what a thread was doing, although the thread was not exiting.
    pub task_reads: u64,
    /// Tasks that did not fit a table and are summed as `other`. Without a probe, one is counted each time that a thread began to
    /// run such a task.
    pub tasks: u64,
    /// Wakeups that did not fit the table of pairs of waker and woken thread.
    pub wakeup_edges: u64,
    /// Ended threads whose counts of polls by task could not be read, or did not fit the ring buffer.
    pub handovers: u64,
    /// Attempts to trace a thread that did not fit the thread table.
    pub threads: u64,
    /// Exited threads whose record did not fit the ring buffer.
    pub thread_records: u64,
    /// Processes that executed a program which the user of ctxtrace may not trace: a program that is set-user-ID, has
    /// capabilities, or is not readable. From then on nothing of such a process, nor of the processes that it started, was
    /// recorded. Always 0 for root and with `CAP_SYS_PTRACE`.
    pub refused_processes: u64,
    /// Executables that did not fit the table of layouts. Their switches are not attributed to tasks.
    pub programs: u64,
    /// Reports of memory mappings that the kernel could not deliver. Frames in these mappings have no name.
    pub mappings: u64,
    /// Runs of BPF programs that the kernel skipped because a BPF program was already running on that CPU.
    pub recursion: u64,
    /// Events of the timeline that found the ring buffer full. The timeline lacks them; the counts include them.
    pub timeline_events: u64,
    /// Samples that found the ring buffer full.
    pub samples: u64,
    /// Samples whose kernel or user stack did not fit the stack table.
    pub sample_stacks: u64,
    /// Timestamps of polls and wakes that were overwritten before they were read, or that were made by a thread without a ring.
    pub poll_stamps: u64,
    /// The CPUs on which kernel switches or events of the timeline were lost.
    pub by_cpu: Vec<CpuLosses>,
}

impl Lost {
    /// Returns every cause: its name in the singular and in the plural, and its count.
    #[must_use]
    pub fn causes(&self) -> [(&'static str, &'static str, u64); 21] {
        [
            ("kernel switch", "kernel switches", self.events),
            ("off-CPU interval", "off-CPU intervals", self.intervals),
            ("wakeup", "wakeups", self.wakeups),
            ("stack", "stacks", self.stacks),
            ("user stack", "user stacks", self.user_stacks),
            ("stack sum", "stack sums", self.stack_sums),
            ("mistaken stack", "mistaken stacks", self.mistaken_stacks),
            ("task reading", "task readings", self.task_reads),
            ("task", "tasks", self.tasks),
            ("wakeup edge", "wakeup edges", self.wakeup_edges),
            ("handover", "handovers", self.handovers),
            ("thread", "threads", self.threads),
            ("thread record", "thread records", self.thread_records),
            (
                "process that you may not trace",
                "processes that you may not trace",
                self.refused_processes,
            ),
            ("program", "programs", self.programs),
            ("mapping", "mappings", self.mappings),
            ("program run (recursion)", "program runs (recursion)", self.recursion),
            ("event of the timeline", "events of the timeline", self.timeline_events),
            ("sample", "samples", self.samples),
            ("stack of a sample", "stacks of samples", self.sample_stacks),
            ("stamp of a poll or wake", "stamps of polls and wakes", self.poll_stamps),
        ]
    }

    /// Adds the losses of another run.
    pub fn add(&mut self, other: &Self) {
        add(&mut self.events, other.events);
        add(&mut self.intervals, other.intervals);
        add(&mut self.wakeups, other.wakeups);
        add(&mut self.stacks, other.stacks);
        add(&mut self.user_stacks, other.user_stacks);
        add(&mut self.stack_sums, other.stack_sums);
        add(&mut self.mistaken_stacks, other.mistaken_stacks);
        add(&mut self.task_reads, other.task_reads);
        add(&mut self.tasks, other.tasks);
        add(&mut self.wakeup_edges, other.wakeup_edges);
        add(&mut self.handovers, other.handovers);
        add(&mut self.threads, other.threads);
        add(&mut self.thread_records, other.thread_records);
        add(&mut self.refused_processes, other.refused_processes);
        add(&mut self.programs, other.programs);
        add(&mut self.mappings, other.mappings);
        add(&mut self.recursion, other.recursion);
        add(&mut self.timeline_events, other.timeline_events);
        add(&mut self.samples, other.samples);
        add(&mut self.sample_stacks, other.sample_stacks);
        add(&mut self.poll_stamps, other.poll_stamps);
        for losses in &other.by_cpu {
            match self.by_cpu.iter_mut().find(|known| known.cpu == losses.cpu) {
                Some(known) => {
                    add(&mut known.events, losses.events);
                    add(&mut known.timeline_events, losses.timeline_events);
                }
                None => self.by_cpu.push(*losses),
            }
        }
    }

    /// Lists what was lost, as in `3 kernel switches, 1 wakeup`. Returns `None` if nothing was lost.
    #[must_use]
    pub fn in_words(&self) -> Option<String> {
        let causes = self.causes();
        let lost: Vec<String> = causes
            .iter()
            .filter(|(_, _, count)| *count > 0)
            .map(|(one, many, count)| format!("{} {}", thousands(*count), if *count == 1 { one } else { many }))
            .collect();
        (!lost.is_empty()).then(|| lost.join(", "))
    }
}

/// When tasks were woken and polled, from the timestamps (stamps) that `ctxtrace-probe` makes.
#[derive(Clone, Debug, Serialize, JsonSchema)]
pub struct Polls {
    /// The clock from which the stamps were read.
    pub clock: PollClock,
    /// Time that one reading of the clock takes, in nanoseconds, measured before the run. The target spends this time once for
    /// each stamp.
    pub reading_ns: f64,
    /// Number of stamps: beginnings of polls, ends of polls, and wakes.
    pub stamps: u64,
    /// Number of stamps that the capture did not keep.
    pub dropped: u64,
    /// Number of outermost polls begun.
    pub polls: u64,
    /// Whether `polls` equals the number of polls that the probe counted (`task_switches.total`). Null if stamps were lost.
    pub agrees: Option<bool>,
    /// How many of these polls have no known end.
    pub open: u64,
    /// How many of these polls have no known wake: the first poll of each task, polls of tasks that only a hook announces, and
    /// polls that follow lost stamps.
    pub without_wake: u64,
    /// Number of wakes, including wakes of a task that had already been woken.
    pub wakes: u64,
    /// Number of stamps with an earlier time than a stamp of another thread that was processed before.
    pub unordered: u64,
    /// Time from the beginning of a poll to its end, including time off the CPU. Absent if no poll ended.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub poll: Option<Spread>,
    /// Time from the wake that led to a poll to the beginning of the poll. Absent if there was no such poll.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub wake_to_poll: Option<Spread>,
    /// The same delays by the path from wake to poll, split into legs.
    pub paths: Vec<PollPath>,
    /// The tasks, at most 256, the task with the most polls first.
    pub tasks: Vec<PolledTask>,
    /// Which task woke which, at most 256 pairs, the pair with the most wakes first.
    pub wakers: Vec<TaskWakes>,
}

/// Wakes that led to a poll by the same path.
#[derive(Clone, Debug, Serialize, JsonSchema)]
pub struct PollPath {
    /// The path.
    pub path: Path,
    /// Time from the wake to the poll.
    pub wake_to_poll: Spread,
    /// The legs of the path in their order, including the waker's poll before the wake and the woken task's poll.
    pub legs: Vec<PollLeg>,
}

/// One leg of a path from wake to poll.
#[derive(Clone, Debug, Serialize, JsonSchema)]
pub struct PollLeg {
    /// Which leg it is.
    pub leg: Leg,
    /// How long the leg took.
    #[serde(flatten)]
    pub spread: Spread,
}

/// A distribution with at least one value, in nanoseconds. Count, minimum, maximum and sum are exact; percentiles are within 3.2
/// % of the true value.
#[derive(Clone, Copy, Debug, Serialize, JsonSchema)]
pub struct Spread {
    /// Number of values.
    pub count: u64,
    /// Smallest value.
    pub min_ns: u64,
    /// 50th percentile: half of the values are at most this large.
    pub p50_ns: u64,
    /// 90th percentile.
    pub p90_ns: u64,
    /// 99th percentile.
    pub p99_ns: u64,
    /// 99.9th percentile.
    pub p999_ns: u64,
    /// Largest value.
    pub max_ns: u64,
    /// Sum of all values.
    pub sum_ns: u64,
}

/// The polls of one task.
#[derive(Clone, Debug, Serialize, JsonSchema)]
pub struct PolledTask {
    /// Number of the task, as in `tasks`.
    pub id: u64,
    /// Name of the task. `other` stands for all tasks that did not fit the table.
    pub name: String,
    /// Process id of the task's process. Absent for `other`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub pid: Option<u32>,
    /// Number of polls begun.
    pub polls: u64,
    /// Number of wakes of the task.
    pub wakes: u64,
    /// Time from the beginning of a poll to its end. Absent if no poll ended.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub poll: Option<Spread>,
    /// Time from the wake that led to a poll to the beginning of the poll. Absent if there was no such poll.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub wake_to_poll: Option<Spread>,
    /// The part of `wake_to_poll` whose wakes stayed in user space. Absent if there were none.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub in_user_space: Option<Spread>,
    /// The part of `wake_to_poll` whose wakes made the kernel wake a thread. Absent if there were none.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub through_kernel: Option<Spread>,
}

/// Wakes of one task by one waker that led to polls.
#[derive(Clone, Debug, Serialize, JsonSchema)]
pub struct TaskWakes {
    /// Name of the task that made the wakes. Absent if the wakeup thread polled no task.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub from_task: Option<String>,
    /// Id of the thread that made the wakes, if it polled no task.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub from_tid: Option<u32>,
    /// Name of the woken task.
    pub to_task: String,
    /// Process id of the woken task's process.
    pub pid: u32,
    /// Number of wakes.
    pub count: u64,
    /// How many of these wakes stayed in user space.
    pub in_user_space: u64,
    /// How many of these wakes made the kernel wake a thread.
    pub through_kernel: u64,
    /// Time from the wake to the poll.
    pub wake_to_poll: Spread,
}

/// What the target executed on its CPUs, from samples of its stacks.
#[derive(Clone, Debug, Serialize, JsonSchema)]
pub struct OnCpu {
    /// Number of samples that found a thread of the target on a CPU.
    pub samples: u64,
    /// How many of these samples were in the kernel.
    pub in_kernel: u64,
    /// On-CPU time that is divided among the samples, in nanoseconds: the sum of the on-CPU intervals.
    pub on_cpu_ns: u64,
    /// Samples by the category of the code, the category with the most samples first.
    pub categories: Vec<OnCpuCategory>,
    /// The functions with the most samples, at most 40.
    pub functions: Vec<OnCpuFunction>,
}

/// On-CPU time in one category of code.
#[derive(Clone, Debug, Serialize, JsonSchema)]
pub struct OnCpuCategory {
    /// The category: what the code is for.
    pub category: Category,
    /// Number of samples in this category.
    pub samples: u64,
    /// Share of all samples, 0 to 1.
    pub share: f64,
    /// The part of `on_cpu_ns` that these samples stand for, in nanoseconds.
    pub ns: u64,
}

/// On-CPU time in one function.
#[derive(Clone, Debug, Serialize, JsonSchema)]
pub struct OnCpuFunction {
    /// Name of the function without generic arguments. For code of the kernel, the system call.
    pub function: String,
    /// The category: what the code is for.
    pub category: Category,
    /// Number of samples in the function, or in functions called from it that have no category of their own.
    pub samples: u64,
    /// Share of all samples, 0 to 1.
    pub share: f64,
    /// The part of `on_cpu_ns` that these samples stand for, in nanoseconds.
    pub ns: u64,
}

/// The cost of tracing itself.
#[derive(Clone, Debug, Serialize, JsonSchema)]
pub struct Overhead {
    /// How the cost was measured.
    pub method: String,
    /// The BPF programs of ctxtrace.
    pub programs: Vec<ProgramOverhead>,
    /// Estimated time spent in the BPF programs, in nanoseconds: mean time of a run multiplied by the number of runs, for
    /// `sched_switch` and `sched_waking`. Runs in which a thread of the target was only switched in are not counted, so the true
    /// value is somewhat larger.
    pub programs_ns: Option<f64>,
    /// `programs_ns` divided by the sum of the target's on-CPU intervals, which contain that time.
    pub share_of_on_cpu: Option<f64>,
    /// Number of kernel stacks that were not walked, because all return addresses were where the thread's last stack had them.
    pub stacks_reused: u64,
    /// Number of user stacks that the kernel did not have to walk, because following the frame pointers led to one of the
    /// thread's last stacks.
    pub user_stacks_reused: u64,
    /// CPU time of ctxtrace's own process while the workload ran, in nanoseconds, including starting and stopping the trace.
    pub tracer_cpu_ns: u64,
}

/// The cost of one BPF program.
#[derive(Clone, Debug, Serialize, JsonSchema)]
pub struct ProgramOverhead {
    /// Tracepoint that the program is attached to.
    pub name: String,
    /// Number of runs that the kernel timed. This includes runs for threads outside the target, which return immediately.
    pub timed_runs: u64,
    /// Mean time of a timed run, in nanoseconds.
    pub ns_per_run: Option<f64>,
}

/// Why a value of the report is null.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Unavailable {
    /// Path of the null value, for example `latency.blocked.p50_ns`. A `*` stands for all fields of a group.
    pub path: String,
    /// Why the value is not available.
    pub reason: String,
}
