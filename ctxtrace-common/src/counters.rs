//! Totals and losses, one set per CPU.

use bytemuck::{Pod, Zeroable};

/// What one CPU counted. User space adds the CPUs up. Every loss has a cause of its own.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Pod, Zeroable)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize), serde(default))]
pub struct Counters {
    /// Switch-outs of target threads: one for each run of the `sched_switch` program whose `prev` is one.
    pub switches: u64,
    /// Wakings of target threads.
    pub wakings: u64,
    /// Switch-outs that the kernel's own counters prove and no program run saw (`lost.events`).
    pub lost_events: u64,
    /// Off-CPU intervals dropped because the event that ended or began them was lost (`lost.intervals`).
    pub lost_intervals: u64,
    /// Sleeps whose end nobody saw (`lost.wakeups`).
    pub lost_wakeups: u64,
    /// Switch-outs whose kernel or user stack did not fit the stack table (`lost.stacks`).
    pub lost_stacks: u64,
    /// Switch-outs in which the user stack could not be read though the thread was not exiting (`lost.user_stacks`).
    pub lost_user_stacks: u64,
    /// Switch-outs whose stack pair did not fit the table of sums (`lost.stack_sums`).
    pub lost_stack_sums: u64,
    /// Kernel stacks that were taken for the thread's last one without being walked (`overhead.stacks_reused`).
    pub stacks_reused: u64,
    /// User stacks that were one of the thread's last ones, and were not walked by the kernel (`overhead.user_stacks_reused`).
    #[cfg_attr(feature = "serde", serde(default))]
    pub user_stacks_reused: u64,
    /// Of those that were walked to see whether they would have been: which were another one (`lost.mistaken_stacks`).
    pub mistaken_stacks: u64,
    /// Threads that did not fit the thread table (`lost.threads`), counted once a try.
    pub lost_threads: u64,
    /// Exited threads whose record did not fit the ring (`lost.thread_records`).
    pub lost_records: u64,
    /// Switch-outs and wakings whose task could not be read though the thread was not exiting (`lost.task_reads`).
    pub lost_task_reads: u64,
    /// Times a thread went over to a task that did not fit the table of tasks (`lost.tasks`).
    pub lost_tasks: u64,
    /// Wakeups whose edge, or whose stacks, did not fit their table (`lost.wakeup_edges`).
    pub lost_wakeup_edges: u64,
    /// Ended threads whose tables did not fit the ring, or could not be read (`lost.handovers`).
    pub lost_handovers: u64,
    /// Events of the timeline that found the ring full (`lost.timeline_events`).
    pub lost_timeline_events: u64,
    /// Samples that found the ring full (`lost.samples`).
    pub lost_samples: u64,
    /// Samples one of whose stacks did not fit the stack table (`lost.sample_stacks`).
    pub lost_sample_stacks: u64,
    /// Processes that the tracer's user may not trace any more, because of the program that they executed
    /// (`lost.refused_processes`).
    pub refused_processes: u64,
    /// Runs of the `sched_switch` program while the fault injection of the tests is on, the dropped ones included.
    pub fault_injection_runs: u64,
}

const _: () = assert!(size_of::<Counters>() == 22 * 8);

impl Counters {
    /// Adds another CPU's counts to these.
    pub fn add(&mut self, other: &Self) {
        let Self {
            switches,
            wakings,
            lost_events,
            lost_intervals,
            lost_wakeups,
            lost_stacks,
            lost_user_stacks,
            lost_stack_sums,
            stacks_reused,
            user_stacks_reused,
            mistaken_stacks,
            lost_threads,
            lost_records,
            lost_task_reads,
            lost_tasks,
            lost_wakeup_edges,
            lost_handovers,
            lost_timeline_events,
            lost_samples,
            lost_sample_stacks,
            refused_processes,
            fault_injection_runs,
        } = other;
        self.switches += switches;
        self.wakings += wakings;
        self.lost_events += lost_events;
        self.lost_intervals += lost_intervals;
        self.lost_wakeups += lost_wakeups;
        self.lost_stacks += lost_stacks;
        self.lost_user_stacks += lost_user_stacks;
        self.lost_stack_sums += lost_stack_sums;
        self.stacks_reused += stacks_reused;
        self.user_stacks_reused += user_stacks_reused;
        self.mistaken_stacks += mistaken_stacks;
        self.lost_threads += lost_threads;
        self.lost_records += lost_records;
        self.lost_task_reads += lost_task_reads;
        self.lost_tasks += lost_tasks;
        self.lost_wakeup_edges += lost_wakeup_edges;
        self.lost_handovers += lost_handovers;
        self.lost_timeline_events += lost_timeline_events;
        self.lost_samples += lost_samples;
        self.lost_sample_stacks += lost_sample_stacks;
        self.refused_processes += refused_processes;
        self.fault_injection_runs += fault_injection_runs;
    }
}
