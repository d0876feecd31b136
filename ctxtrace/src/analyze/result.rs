//! The result of a command. Its JSON form is a contract: `ctxtrace.report/1`, described by the JSON Schema in
//! `docs/schema`, which is made from these types.
//!
//! What could not be had is `null`, and [`Report::unavailable`] says why, one entry for each. "No signal" is never 0.

use std::sync::Arc;

use crate::sums::add;
use schemars::JsonSchema;
use serde::Serialize;

use crate::symbolize::category::Category;
use crate::target::programs::LocatorChoice;
use crate::trace::Level;
use crate::trace::polls::PollClock;
pub use crate::trace::polls::{Leg, Path};
pub use crate::trace::run::Host;
use crate::units::thousands;
use crate::workload::pin::Pin;
use crate::workload::{Allocator, Channel, Language, Mode, Protocol, Root};

/// Name and version of the format.
pub const SCHEMA: &str = "ctxtrace.report/1";

/// Everything a command found out.
#[derive(Clone, Debug, Serialize, JsonSchema)]
pub struct Report {
    /// `ctxtrace.report/1`.
    pub schema: String,
    /// Version of the program that made it.
    pub ctxtrace_version: String,
    /// The machine.
    pub host: Host,
    /// How much was recorded.
    pub level: Level,
    /// Whether the workload ran to its end.
    pub complete: bool,
    /// Why it did not; only present where it did not.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cut_short: Option<String>,
    /// The built-in workload; null for `record`.
    pub workload: Option<Workload>,
    /// What `record` recorded; null for `run`.
    pub target: Option<Target>,
    /// How long it was traced: from when the programs were attached to when they were detached.
    pub recorded_ns: u64,
    /// Kernel switches of the median run.
    pub kernel_switches: KernelSwitches,
    /// The traced count against the kernel's own, for the median run.
    pub reconciliation: Reconciliation,
    /// Task switches of the median run.
    pub task_switches: Option<TaskSwitches>,
    /// What CPU quotas of the target's cgroups did, in the median run; null in captures of versions that did not look.
    pub throttling: Option<Throttling>,
    /// Paths of the target's cgroups that were frozen when they were looked at, every 50 ms, in the median run.
    pub frozen_cgroups: Option<Vec<String>>,
    /// Every kernel switch of the median run in exactly one class; the counts add up to `kernel_switches.total`.
    pub ledger: Vec<LedgerRow>,
    /// Whether the ledger adds up, in every run.
    pub ledger_adds_up: bool,
    /// The tasks of the median run, those with most kernel switches first.
    pub tasks: Vec<Task>,
    /// The tasks whose type is known, by type.
    pub task_types: Vec<TaskType>,
    /// Who woke whom in the median run, the busiest first.
    pub wakeups: Vec<Wakeups>,
    /// The events of the median run; null where there are none.
    pub timeline: Option<Timeline>,
    /// When tasks were woken and polled, in the median run; null unless `--polls` asked.
    pub polls: Option<Polls>,
    /// What the target did on its CPUs, all runs together; null unless `--sample` asked.
    pub on_cpu: Option<OnCpu>,
    /// How tasks were to be found.
    pub locator: LocatorChoice,
    /// How the tasks of each program were found.
    pub locators: Vec<Locator>,
    /// Distributions of all runs together.
    pub latency: Latency,
    /// The threads of the median run, those too of a process that was attached to which made no switch.
    pub threads: Vec<Thread>,
    /// The threads of the median run that were off the CPU when the recording ended, the longest first. Their time so far is in no
    /// sum, because its end was not seen. Null in captures of versions that did not record them.
    pub open_intervals: Option<Vec<OpenInterval>>,
    /// Switch-ins on another CPU than the thread's last one, in the median run.
    pub migrations: u64,
    /// What was lost, in all runs together.
    pub lost: Lost,
    /// What tracing itself cost, in the median run.
    pub overhead: Overhead,
    /// One entry for every null.
    pub unavailable: Vec<Unavailable>,
}

/// What CPU quotas did.
#[derive(Clone, Debug, Serialize, JsonSchema)]
pub struct Throttling {
    /// The cgroups of the target, and their parents, that have a quota and had something to run.
    pub cgroups: Option<Vec<CgroupThrottling>>,
    /// Run-queue time after switch-outs that were made for a quota: a part of `latency.run_queue` of this run.
    pub thread_ns: Option<u64>,
}

/// One cgroup with a CPU quota: by how much the kernel's own `cpu.stat` rose.
#[derive(Clone, Debug, Serialize, JsonSchema)]
pub struct CgroupThrottling {
    /// Its path in its hierarchy.
    pub path: String,
    /// How long it was throttled, all CPUs added up; whatever of its programs wanted to run.
    pub throttled_ns: u64,
    /// Periods in which it had something to run.
    pub periods: u64,
    /// Of them, those in which it was throttled.
    pub throttled_periods: u64,
}

/// What `record` recorded.
#[derive(Clone, Debug, Serialize, JsonSchema)]
pub struct Target {
    /// The command, word by word; null for a process that was attached to.
    pub command: Option<Vec<String>>,
    /// The command's first word, or the name the process had when it was attached to.
    pub name: String,
    /// Process id.
    pub pid: Option<u32>,
    /// Whether processes that it forked were recorded too.
    pub children: bool,
    /// The command's exit status.
    pub exit_status: Option<i32>,
    /// The signal that killed it.
    pub signal: Option<i32>,
    /// The processes of a command that were there when the recording ended, and go on. Of a process that was attached to none are
    /// listed: it is left alone.
    pub still_running: Vec<RunningProcess>,
}

/// A process that goes on.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, JsonSchema)]
pub struct RunningProcess {
    /// Process id.
    pub pid: u32,
    /// Its name.
    pub name: String,
}

/// The built-in workload and its speed.
#[derive(Clone, Debug, Serialize, JsonSchema)]
pub struct Workload {
    /// Which case.
    pub mode: Mode,
    /// What it is written in.
    pub language: Language,
    /// Messages a channel holds: of `futures` channels beyond one per sender, of tokio's and Go's in all.
    pub buffer: Option<u64>,
    /// Which channel joins the tasks.
    pub channel: Option<Channel>,
    /// When the next message is sent.
    pub protocol: Option<Protocol>,
    /// Messages asked for.
    pub iterations: u64,
    /// Worker threads; for `go` it is `GOMAXPROCS`.
    pub workers: Option<u64>,
    /// On which CPUs.
    pub pin: Pin,
    /// Where the receiver ran.
    pub root: Option<Root>,
    /// What it got its memory from.
    pub allocator: Option<Allocator>,
    /// Threads in each process that did nothing but sleep.
    pub idle_threads: u64,
    /// From before the first message to after the last, by the workload's clock, in the median run.
    pub elapsed_ns: Option<u64>,
    /// `elapsed_ns` by messages.
    pub ns_per_message: Option<f64>,
    /// Messages by `elapsed_ns`.
    pub messages_per_second: Option<f64>,
    /// The most messages that were in flight at a time: made by the sender and not yet received by the receiver (of `go`: not
    /// yet back). Null unless `--count-in-flight` was given.
    pub max_in_flight: Option<u64>,
    /// Messages done; in a partial run the number last heard of, which may be up to 1,024 too low.
    pub messages: u64,
    /// Every run, in order.
    pub runs: Vec<Run>,
}

/// One of the runs.
#[derive(Clone, Debug, Serialize, JsonSchema)]
pub struct Run {
    /// As in `workload`.
    pub elapsed_ns: Option<u64>,
    /// As in `workload`.
    pub ns_per_message: Option<f64>,
    /// Kernel switches traced.
    pub kernel_switches: u64,
    /// Traced minus kernel.
    pub difference: i64,
    /// Whether the headline figures are this run's.
    pub median: bool,
}

/// Kernel switches: how often a thread of the target was taken off a CPU.
#[derive(Clone, Debug, Serialize, JsonSchema)]
pub struct KernelSwitches {
    /// Those that the kernel's `nvcsw` counted.
    pub voluntary: u64,
    /// Those that the kernel's `nivcsw` counted.
    pub involuntary: u64,
    /// Both.
    pub total: u64,
    /// By messages.
    pub per_message: Option<f64>,
    /// By the seconds in `recorded_ns`.
    pub per_second: Option<f64>,
    /// The workload's elapsed time by kernel switches; `process` and `thread` only, where a message is made of switches.
    pub ns_per_switch: Option<f64>,
}

/// Task switches: how often a runtime's thread began to poll a task.
#[derive(Clone, Debug, Serialize, JsonSchema)]
pub struct TaskSwitches {
    /// All of them: outermost polls.
    pub total: u64,
    /// Those of the same task as the thread's previous poll.
    pub repolls: u64,
    /// Polls within a poll; not in `total`.
    pub nested_polls: u64,
    /// Those between which and the poll before the thread was never switched out.
    pub stayed_in_user: u64,
    /// Those before which the thread was switched out, since its previous poll.
    pub hit_kernel: u64,
    /// Threads that were switched out after their last poll: no task switch followed.
    pub unconfirmed: u64,
    /// By messages.
    pub per_message: Option<f64>,
    /// Why the thread was switched out, for those that hit the kernel.
    pub hits: Hits,
    /// Messages handled in one poll, whatever the task.
    pub messages_per_poll: Option<MessagesPerPoll>,
}

/// Task switches that hit the kernel, by why the thread was switched out. Of several reasons the first in this list counts.
#[derive(Clone, Debug, Serialize, JsonSchema)]
pub struct Hits {
    /// There was nothing to poll.
    pub worker_parked: u64,
    /// It slept in something else.
    pub blocked: u64,
    /// It was made to give way, or gave way itself.
    pub preempted: u64,
    /// Those of all three that are in no task's count: the thread polled so long without a switch that it is not known any
    /// more which task came first.
    pub of_unknown_task: u64,
}

/// A distribution of polls by the messages in them, percentiles within 3.2 %.
#[derive(Clone, Debug, Serialize, JsonSchema)]
pub struct MessagesPerPoll {
    /// Polls of threads that have ended.
    pub polls: u64,
    /// Polls without a message.
    pub without: u64,
    /// Half of them handled at most this many.
    pub p50: u64,
    /// 90 %.
    pub p90: u64,
    /// 99 %.
    pub p99: u64,
    /// The most, to the precision of the percentiles.
    pub max: u64,
}

/// A class of kernel switches.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum Class {
    /// The thread's last one.
    Exited,
    /// Stopped by a signal or a debugger.
    Stopped,
    /// What the thread was doing is not known.
    Unattributed,
    /// Gave way by itself.
    Yielded,
    /// Slept while a task was polled.
    TaskBlocked,
    /// Made to give way while a task was polled.
    TaskPreempted,
    /// A runtime's thread with nothing to poll.
    WorkerParked,
    /// A pool's thread without blocking work.
    PoolIdle,
    /// A runtime's thread asleep between polls for another reason.
    RuntimeBlocked,
    /// A runtime's thread made to give way between polls.
    RuntimePreempted,
    /// Any other thread asleep.
    ThreadBlocked,
    /// Any other thread made to give way.
    ThreadPreempted,
}

impl Class {
    /// As in JSON.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Exited => "exited",
            Self::Stopped => "stopped",
            Self::Unattributed => "unattributed",
            Self::Yielded => "yielded",
            Self::TaskBlocked => "task-blocked",
            Self::TaskPreempted => "task-preempted",
            Self::WorkerParked => "worker-parked",
            Self::PoolIdle => "pool-idle",
            Self::RuntimeBlocked => "runtime-blocked",
            Self::RuntimePreempted => "runtime-preempted",
            Self::ThreadBlocked => "thread-blocked",
            Self::ThreadPreempted => "thread-preempted",
        }
    }

    /// As in JSON, with a space for the hyphen.
    #[must_use]
    pub fn in_words(self) -> &'static str {
        match self {
            Self::Exited => "exited",
            Self::Stopped => "stopped",
            Self::Unattributed => "unattributed",
            Self::Yielded => "yielded",
            Self::TaskBlocked => "task blocked",
            Self::TaskPreempted => "task preempted",
            Self::WorkerParked => "worker parked",
            Self::PoolIdle => "pool idle",
            Self::RuntimeBlocked => "runtime blocked",
            Self::RuntimePreempted => "runtime preempted",
            Self::ThreadBlocked => "thread blocked",
            Self::ThreadPreempted => "thread preempted",
        }
    }
}

/// Kernel switches of one class and, where there is one, task.
#[derive(Clone, Debug, Serialize, JsonSchema)]
pub struct LedgerRow {
    /// The class.
    pub class: Class,
    /// Why, for what is unattributed.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
    /// Name of the task that was polled.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub task: Option<String>,
    /// The task's number; `root` and `other` have 0.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub task_id: Option<u64>,
    /// The task's process.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub pid: Option<u32>,
    /// Kernel switches.
    pub count: u64,
    /// Their off-CPU time, as far as its end was seen.
    pub off_cpu_ns: u64,
    /// Of them, those whose threads were off the CPU when the recording ended. Null in captures of versions that did not record it.
    pub open: Option<u64>,
    /// The time of those so far; it is not in `off_cpu_ns`. Null where `open` is.
    pub open_ns: Option<u64>,
}

/// One task.
#[derive(Clone, Debug, Serialize, JsonSchema)]
pub struct Task {
    /// Its number; `root` and `other` have 0.
    pub id: u64,
    /// What the program calls it; its number if it does not; `root` for the future given to `block_on`, `other` for all tasks
    /// that did not fit the tables (of goroutines one for each type).
    pub name: String,
    /// Its process.
    pub pid: u32,
    /// The type of its future, or the `async fn` it comes from; of a goroutine the function it was started with.
    #[serde(rename = "type", skip_serializing_if = "Option::is_none")]
    pub future_type: Option<String>,
    /// How often a thread began to poll it.
    pub task_switches: Option<u64>,
    /// Those that hit the kernel.
    pub hit_kernel: Option<u64>,
    /// Kernel switches while it was polled.
    pub kernel_switches: u64,
    /// Off-CPU time of those.
    pub off_cpu_ns: u64,
}

/// All tasks of one type.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, JsonSchema)]
pub struct TaskType {
    /// The type of the future, or the `async fn` it comes from; of goroutines the function they were started with.
    #[serde(rename = "type")]
    pub future_type: String,
    /// Number of tasks seen at a kernel switch, `other` ones not counted.
    pub tasks: u64,
    /// Kernel switches while they were polled.
    pub kernel_switches: u64,
    /// Off-CPU time of those.
    pub off_cpu_ns: u64,
}

/// What made wakeups.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum WakeupOrigin {
    /// Not known.
    Unknown,
    /// A timer, a device: no thread.
    Interrupt,
    /// A thread that polled a task.
    Task,
    /// A runtime's thread between polls.
    Runtime,
    /// Another thread of the target.
    Thread,
    /// A thread of another program.
    Outside,
}

impl WakeupOrigin {
    /// As in JSON.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Unknown => "unknown",
            Self::Interrupt => "interrupt",
            Self::Task => "task",
            Self::Runtime => "runtime",
            Self::Thread => "thread",
            Self::Outside => "outside",
        }
    }
}

/// Wakeups from one waker to one thread that ended a sleep.
#[derive(Clone, Debug, Serialize, JsonSchema)]
pub struct Wakeups {
    /// What made them.
    pub origin: WakeupOrigin,
    /// The task that made them, or `interrupt`; absent where no task was polled.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub from_task: Option<String>,
    /// The thread that made them, or `interrupt`.
    pub from_thread: String,
    /// Its id; absent for an interrupt.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub from_tid: Option<u32>,
    /// The thread that was woken.
    pub to_thread: String,
    /// Its id.
    pub to_tid: u32,
    /// How many.
    pub count: u64,
    /// Of them, those that led to nothing: a worker was woken out of a park, polled nothing and parked again.
    pub wasted: Option<u64>,
    /// On-CPU time of the woken thread after those.
    pub wasted_on_cpu_ns: Option<u64>,
    /// What making one such wakeup takes, on the CPU of its maker, on average; all wakings that were timed count.
    pub waking_ns: Option<f64>,
    /// Wake-to-run time of half of them at most.
    pub p50_ns: u64,
    /// Of 99 %.
    pub p99_ns: u64,
    /// The longest.
    pub max_ns: u64,
    /// Of all together.
    pub sum_ns: u64,
}

/// How the tasks of one program were found.
#[derive(Clone, Debug, Serialize, JsonSchema)]
pub struct Locator {
    /// The executable.
    pub program: String,
    /// `probe`, `tokio`, `go` or `none`; several with a `+` between them.
    pub locator: String,
    /// The release of tokio in it, where it can be told.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tokio_version: Option<String>,
    /// The version of Go it was built with, where it can be told.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub go_version: Option<String>,
    /// The GNU build id of the program, in hexadecimal digits; absent if it has none.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub build_id: Option<String>,
    /// Why its tasks cannot be found, and what would help; absent if they can, or if it has none.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
    /// What was not found out about the program where there is no `reason`, as that not every shared object of it was searched for a
    /// runtime; absent if there is nothing.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub note: Option<String>,
}

/// The traced count against the kernel's own.
#[derive(Clone, Debug, Serialize, JsonSchema)]
pub struct Reconciliation {
    /// Program runs that saw a target thread switched out.
    pub traced: u64,
    /// By how much the kernel's own counters rose.
    pub kernel: u64,
    /// Traced minus kernel.
    pub difference: i64,
    /// Thread by thread.
    pub threads: Vec<ThreadReconciliation>,
    /// `wait4`'s count, and the bounds it must lie in.
    pub rusage: Option<Rusage>,
}

/// One thread's two counts.
#[derive(Clone, Debug, Serialize, JsonSchema)]
pub struct ThreadReconciliation {
    /// Thread id.
    pub tid: u32,
    /// Thread name.
    pub name: String,
    /// Program runs.
    pub traced: u64,
    /// The kernel's count.
    pub kernel: u64,
    /// Traced minus kernel.
    pub difference: i64,
}

/// `wait4`'s count of switches.
#[derive(Clone, Debug, Serialize, JsonSchema)]
pub struct Rusage {
    /// What it says.
    pub switches: u64,
    /// The least that agrees with the traced count.
    pub lower: u64,
    /// The most that agrees with the traced count.
    pub upper: u64,
    /// Whether it lies between.
    pub agrees: bool,
}

/// Every kernel switch and wakeup as an event.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, JsonSchema)]
pub struct Timeline {
    /// Events; a switch from one thread of the target to another is one.
    pub events: u64,
    /// Kernel switches among them.
    pub switches: u64,
    /// Wakings of the target's threads among them, those that ended no sleep included.
    pub wakeups: u64,
    /// Bytes of all events.
    pub bytes: u64,
    /// From the beginning of the recording to the first of these events. Null if there is none.
    pub begins_ns: Option<u64>,
    /// Older events, which the capture has not kept (`--max-size`, `--keep`): the timeline lacks them, the counts do not.
    pub dropped: u64,
    /// Whether the events, played again, give the counts, the ledger and the distributions that were added up in the kernel,
    /// in every run. Null if events were lost or dropped.
    pub agrees: Option<bool>,
    /// What does not agree; only present if something does not.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub disagreements: Vec<String>,
}

/// What one CPU has lost.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, JsonSchema)]
pub struct CpuLosses {
    /// The CPU.
    pub cpu: u32,
    /// Of `lost.events`, those found out about there.
    pub events: u64,
    /// Of `lost.timeline_events`, those that found its ring full.
    pub timeline_events: u64,
}

/// The distributions.
#[derive(Clone, Debug, Serialize, JsonSchema)]
pub struct Latency {
    /// Switch-out to switch-in.
    pub off_cpu: Distribution,
    /// Switch-out to the end of the sleep.
    pub blocked: Distribution,
    /// End of the sleep, or switch-out of a runnable thread, to switch-in.
    pub run_queue: Distribution,
    /// Switch-in to switch-out.
    pub on_cpu: Distribution,
    /// The waking that ended the sleep to switch-in.
    pub wake_to_run: Distribution,
}

/// One distribution, nanoseconds. Count, extremes and sum are exact, percentiles within 3.2 %.
#[derive(Clone, Debug, Serialize, JsonSchema)]
pub struct Distribution {
    /// Intervals that ended.
    pub count: u64,
    /// Intervals that had begun and not ended when the capture did, counted with no time; a thread's last switch-out
    /// begins one that never ends. Null for distributions that cannot have any.
    pub open_intervals: Option<u64>,
    /// The time so far of those whose threads live on; it is not in `sum_ns`. Null where `open_intervals` is, and in captures of versions
    /// that did not record it.
    pub open_ns: Option<u64>,
    /// Shortest.
    pub min_ns: Option<u64>,
    /// Half of them are at most this long.
    pub p50_ns: Option<u64>,
    /// 90 %.
    pub p90_ns: Option<u64>,
    /// 99 %.
    pub p99_ns: Option<u64>,
    /// 99.9 %.
    pub p999_ns: Option<u64>,
    /// Longest.
    pub max_ns: Option<u64>,
    /// All of them together.
    pub sum_ns: u64,
    /// The least value of each log-linear bucket that has any, with how many it has: what the percentiles are taken from, and
    /// what pictures are made of.
    #[serde(skip)]
    pub buckets: Vec<(u64, u64)>,
}

/// One thread.
#[derive(Clone, Debug, Serialize, JsonSchema)]
pub struct Thread {
    /// Thread id; 0 of several threads.
    pub tid: u32,
    /// Process id; 0 of threads of several processes.
    pub pid: u32,
    /// Thread name.
    pub name: String,
    /// How many ended threads of this name these are the sums of; absent for one thread. Of very many threads that have ended, those
    /// that were switched least are added up by name.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub folded: Option<u64>,
    /// Kernel switches, voluntary.
    pub voluntary: u64,
    /// Kernel switches, involuntary.
    pub involuntary: u64,
    /// Sum of its on-CPU intervals.
    pub on_cpu_ns: u64,
    /// Sum of its off-CPU intervals that ended.
    pub off_cpu_ns: u64,
    /// Sum of its run-queue times, that of its very first wait included.
    pub run_queue_ns: u64,
    /// Switch-ins on another CPU than the last one.
    pub migrations: u64,
    /// What it was doing when the recording ended; absent if it had ended, or if that is not known.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub state: Option<ThreadState>,
    /// How long it had been off the CPU then, which is in no sum; of a thread without a switch, at least the whole recording. Absent
    /// if it was not off the CPU.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub open_off_cpu_ns: Option<u64>,
}

impl Thread {
    /// How many threads it is of.
    #[must_use]
    pub fn count(&self) -> u64 {
        self.folded.unwrap_or(1)
    }

    /// Its id, or of how many threads these are the sums.
    #[must_use]
    pub fn id_in_words(&self) -> String {
        match self.folded {
            None => self.tid.to_string(),
            Some(threads) => format!("{} threads", thousands(threads)),
        }
    }

    /// Whether it made no switch while it was recorded.
    #[must_use]
    pub fn is_silent(&self) -> bool {
        self.voluntary + self.involuntary == 0
    }
}

/// What a thread that lives is doing.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum ThreadState {
    /// It is on a CPU, or of a thread without a switch: on a CPU or ready to run.
    Running,
    /// It is ready to run, and waits for a CPU.
    Runnable,
    /// It sleeps.
    Asleep,
    /// A signal or a debugger has stopped it.
    Stopped,
}

impl ThreadState {
    /// As in the table.
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
    /// Thread name; empty if the thread is not known.
    pub thread: String,
    /// The class of the switch-out, as in `ledger`.
    pub class: Class,
    /// Name of the task that was polled.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub task: Option<String>,
    /// From the switch-out to the end of the recording.
    pub off_ns: u64,
    /// Its stack, outermost function first; empty where no stacks were recorded.
    pub stack: Vec<Arc<str>>,
}

/// What was lost, by cause. All zero is what one wants to see.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, JsonSchema)]
pub struct Lost {
    /// Kernel switches that the kernel's counters prove and nobody saw.
    pub events: u64,
    /// Off-CPU intervals dropped because an event that bounds them was lost.
    pub intervals: u64,
    /// Sleeps whose end nobody saw: their time is in `off_cpu` only.
    pub wakeups: u64,
    /// Switch-outs a stack of which did not fit the stack table.
    pub stacks: u64,
    /// Switch-outs whose user stack could not be read.
    pub user_stacks: u64,
    /// Switch-outs that did not fit the table of sums: they are in the ledger by their class alone.
    pub stack_sums: u64,
    /// Kernel stacks that would have been taken for the thread's last one, and were another, of those that were walked to see: one in
    /// 64 of `overhead.stacks_reused`. What was not seen is some 64 times as many.
    pub mistaken_stacks: u64,
    /// Readings of what a thread was doing that failed, though it was not exiting.
    pub task_reads: u64,
    /// Tasks that did not fit a table, and are summed as `other`; without a probe each time a thread went over to one.
    pub tasks: u64,
    /// Wakeups that did not fit the table of edges.
    pub wakeup_edges: u64,
    /// Ended threads whose count of polls by task could not be brought home.
    pub handovers: u64,
    /// Attempts to follow a thread that did not fit the thread table.
    pub threads: u64,
    /// Exited threads whose record did not fit the ring.
    pub thread_records: u64,
    /// Processes that executed a program which the user of ctxtrace may not trace: set-user-ID, with capabilities, or not readable.
    /// Nothing of them, nor of what they started, was recorded from there on. Always 0 for root and with `CAP_SYS_PTRACE`.
    pub refused_processes: u64,
    /// Executables for which the table of layouts had no room: their switches are not attributed to tasks.
    pub programs: u64,
    /// Reports of memory mappings that the kernel could not deliver; frames in them have no name.
    pub mappings: u64,
    /// Program runs the kernel skipped because one was already running on that CPU.
    pub recursion: u64,
    /// Events of the timeline that found the ring full: the timeline lacks them, the counts do not.
    pub timeline_events: u64,
    /// Samples that found the ring full.
    pub samples: u64,
    /// Samples a stack of which did not fit the stack table.
    pub sample_stacks: u64,
    /// Stamps of polls and wakes that were overwritten before anybody read them, or found no ring.
    pub poll_stamps: u64,
    /// The CPUs that have lost kernel switches or events of the timeline.
    pub by_cpu: Vec<CpuLosses>,
}

impl Lost {
    /// Every cause with its count, named in the singular and in the plural.
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

    /// Adds another run's losses.
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

    /// What was lost, in words: `3 kernel switches, 1 wakeup`; `None` if nothing was.
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

/// When tasks were woken and polled, by the stamps that the probe makes.
#[derive(Clone, Debug, Serialize, JsonSchema)]
pub struct Polls {
    /// The clock that the stamps were read from.
    pub clock: PollClock,
    /// What one reading of it takes, measured before the run: it is in the target's time, once for each stamp.
    pub reading_ns: f64,
    /// Stamps: beginnings and ends of polls, and wakes.
    pub stamps: u64,
    /// Stamps that the capture has not kept.
    pub dropped: u64,
    /// Outermost polls begun.
    pub polls: u64,
    /// Whether these are as many as the probe has counted (`task_switches.total`). Null if stamps were lost.
    pub agrees: Option<bool>,
    /// Of them, those whose end is not known.
    pub open: u64,
    /// Of them, those that no wake is known of: first polls, those of tasks that only a hook announces, and what follows on
    /// lost stamps.
    pub without_wake: u64,
    /// Wakes, those included that came to a task that was woken already.
    pub wakes: u64,
    /// Stamps that were earlier than one that came before, of another thread.
    pub unordered: u64,
    /// From the beginning of a poll to its end, time off the CPU included; absent if there was none.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub poll: Option<Spread>,
    /// From the wake that led to a poll to the poll's beginning; absent if there was none.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub wake_to_poll: Option<Spread>,
    /// The same by the way it went, leg by leg.
    pub paths: Vec<PollPath>,
    /// Task by task, those with most polls first.
    pub tasks: Vec<PolledTask>,
    /// Which task woke which, the busiest first.
    pub wakers: Vec<TaskWakes>,
}

/// Wakes that led to polls in one way.
#[derive(Clone, Debug, Serialize, JsonSchema)]
pub struct PollPath {
    /// The way.
    pub path: Path,
    /// From the wake to the poll.
    pub wake_to_poll: Spread,
    /// The parts of it, in their order, and the polls before and after.
    pub legs: Vec<PollLeg>,
}

/// One part of the way.
#[derive(Clone, Debug, Serialize, JsonSchema)]
pub struct PollLeg {
    /// Which.
    pub leg: Leg,
    /// How long.
    #[serde(flatten)]
    pub spread: Spread,
}

/// A distribution with something in it, nanoseconds. Count, extremes and sum are exact, percentiles within 3.2 %.
#[derive(Clone, Copy, Debug, Serialize, JsonSchema)]
pub struct Spread {
    /// How many.
    pub count: u64,
    /// Shortest.
    pub min_ns: u64,
    /// Half of them are at most this long.
    pub p50_ns: u64,
    /// 90 %.
    pub p90_ns: u64,
    /// 99 %.
    pub p99_ns: u64,
    /// 99.9 %.
    pub p999_ns: u64,
    /// Longest.
    pub max_ns: u64,
    /// All of them together.
    pub sum_ns: u64,
}

/// The polls of one task.
#[derive(Clone, Debug, Serialize, JsonSchema)]
pub struct PolledTask {
    /// Its number, as in `tasks`.
    pub id: u64,
    /// Its name; `other` for all that did not fit.
    pub name: String,
    /// Its process; absent for `other`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub pid: Option<u32>,
    /// Polls begun.
    pub polls: u64,
    /// Wakes of it.
    pub wakes: u64,
    /// From the beginning of a poll to its end; absent if there was none.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub poll: Option<Spread>,
    /// From the wake that led to a poll to the poll's beginning; absent if there was none.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub wake_to_poll: Option<Spread>,
    /// Those that stayed in user space; absent if there was none.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub in_user_space: Option<Spread>,
    /// Those for which a thread was woken; absent if there was none.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub through_kernel: Option<Spread>,
}

/// Wakes by one waker of one task that led to polls.
#[derive(Clone, Debug, Serialize, JsonSchema)]
pub struct TaskWakes {
    /// The task that made them; absent where none was polled.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub from_task: Option<String>,
    /// The thread that made them, where no task was polled.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub from_tid: Option<u32>,
    /// The task that was woken.
    pub to_task: String,
    /// Its process.
    pub pid: u32,
    /// How many.
    pub count: u64,
    /// Of them, those that stayed in user space.
    pub in_user_space: u64,
    /// Those for which a thread was woken.
    pub through_kernel: u64,
    /// From the wake to the poll.
    pub wake_to_poll: Spread,
}

/// What the target did on its CPUs: what samples of its stacks were in.
#[derive(Clone, Debug, Serialize, JsonSchema)]
pub struct OnCpu {
    /// Samples that found a thread of the target.
    pub samples: u64,
    /// Of them, those in the kernel.
    pub in_kernel: u64,
    /// The time on the CPU that they share, nanoseconds: the sum of the on-CPU intervals.
    pub on_cpu_ns: u64,
    /// By what the code is for, most first.
    pub categories: Vec<OnCpuCategory>,
    /// The functions with most of them, at most 40.
    pub functions: Vec<OnCpuFunction>,
}

/// Code of a kind.
#[derive(Clone, Debug, Serialize, JsonSchema)]
pub struct OnCpuCategory {
    /// What it is for.
    pub category: Category,
    /// Samples in it.
    pub samples: u64,
    /// Of all samples.
    pub share: f64,
    /// The part of `on_cpu_ns` that they stand for.
    pub ns: u64,
}

/// One function.
#[derive(Clone, Debug, Serialize, JsonSchema)]
pub struct OnCpuFunction {
    /// Its name, without generic arguments; of the kernel, the system call.
    pub function: String,
    /// What it is for.
    pub category: Category,
    /// Samples in it, or in what it calls that belongs to nobody.
    pub samples: u64,
    /// Of all samples.
    pub share: f64,
    /// The part of `on_cpu_ns` that they stand for.
    pub ns: u64,
}

/// What tracing itself cost.
#[derive(Clone, Debug, Serialize, JsonSchema)]
pub struct Overhead {
    /// How it was measured.
    pub method: String,
    /// Each of our BPF programs.
    pub programs: Vec<ProgramOverhead>,
    /// What the programs took in all: mean by number, for `sched_switch` and `sched_waking`. Runs that only brought a
    /// thread back onto a CPU are not counted, so it is rather more.
    pub programs_ns: Option<f64>,
    /// `programs_ns` by the sum of the target's on-CPU intervals, in which it lies.
    pub share_of_on_cpu: Option<f64>,
    /// Kernel stacks that were not walked, because the thread's return addresses were all where they had been.
    pub stacks_reused: u64,
    /// User stacks that were not walked by the kernel: following the frame pointers has come to one of the thread's last ones.
    pub user_stacks_reused: u64,
    /// CPU time the tracer's own process used while the workload ran, start and end included.
    pub tracer_cpu_ns: u64,
}

/// One BPF program.
#[derive(Clone, Debug, Serialize, JsonSchema)]
pub struct ProgramOverhead {
    /// Its tracepoint.
    pub name: String,
    /// Runs the kernel timed; runs for threads of others, which end at once, are among them.
    pub timed_runs: u64,
    /// Mean of those, nanoseconds.
    pub ns_per_run: Option<f64>,
}

/// Why a null is one.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, JsonSchema)]
pub struct Unavailable {
    /// Where the null is, as `latency.blocked.p50_ns`; `*` stands for all its fields.
    pub path: String,
    /// Why.
    pub reason: String,
}
