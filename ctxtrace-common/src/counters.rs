//! Totals and losses, one set per CPU.

use bytemuck::{Pod, Zeroable};

/// The counts of one CPU. User space adds the CPUs up. Each cause of a loss has its own counter.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Pod, Zeroable)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize), serde(default))]
pub struct Counters {
    /// Switch-outs of target threads: runs of the `sched_switch` program in which `prev` is a target thread.
    pub switches: u64,
    /// Wakeups of target threads.
    #[cfg_attr(feature = "serde", serde(rename = "wakings"))]
    pub wakeups: u64,
    /// Switch-outs that the kernel's own counters include and no program run saw (`lost.events`).
    pub lost_events: u64,
    /// Off-CPU intervals that were dropped because the event at their beginning or end was lost (`lost.intervals`).
    pub lost_intervals: u64,
    /// Sleeps whose wakeup was not seen (`lost.wakeups`).
    pub lost_wakeups: u64,
    /// Switch-outs whose kernel or user stack found no room in the stack table (`lost.stacks`).
    pub lost_stacks: u64,
    /// Switch-outs at which the user stack could not be read although the thread was not exiting (`lost.user_stacks`).
    pub lost_user_stacks: u64,
    /// Switch-outs that found no room in the table of sums or in the ring of additions, and are counted by class alone
    /// (`lost.stack_sums`).
    pub lost_stack_sums: u64,
    /// Kernel stacks that were recognised as one of the thread's last ones and not walked (`overhead.stacks_reused`).
    pub stacks_reused: u64,
    /// User stacks that were recognised as one of the thread's last ones, and not walked by the kernel
    /// (`overhead.user_stacks_reused`).
    #[cfg_attr(feature = "serde", serde(default))]
    pub user_stacks_reused: u64,
    /// Kernel stacks that were recognised but, when walked as a check, turned out to be different
    /// (`lost.mistaken_stacks`).
    pub mistaken_stacks: u64,
    /// Threads that found no room in the thread table, once for each attempt, and forked processes that found no room
    /// in the process table (`lost.threads`).
    pub lost_threads: u64,
    /// Exited threads whose record found no room in the ring (`lost.thread_records`).
    pub lost_records: u64,
    /// Switch-outs and wakeups at which the task could not be read although the thread was not exiting
    /// (`lost.task_reads`).
    pub lost_task_reads: u64,
    /// Times that a thread was found at another task that had no room in the table of tasks (`lost.tasks`).
    pub lost_tasks: u64,
    /// Wakeups whose edge, or whose stacks, found no room in their table or in the ring of additions
    /// (`lost.wakeup_edges`).
    pub lost_wakeup_edges: u64,
    /// Ended threads whose tables, or whose program's names, could not be read or found no room in the ring
    /// (`lost.handovers`).
    pub lost_handovers: u64,
    /// Events of the timeline that found no room in the ring (`lost.timeline_events`).
    pub lost_timeline_events: u64,
    /// Samples that found no room in the ring, or whose thread had not been introduced yet (`lost.samples`).
    pub lost_samples: u64,
    /// Samples of which a stack found no room in the stack table (`lost.sample_stacks`).
    pub lost_sample_stacks: u64,
    /// Processes that are not traced, or no longer, because they executed a program that the tracer's user may not
    /// trace (`lost.refused_processes`).
    pub refused_processes: u64,
    /// Runs of the `sched_switch` program while the tests' fault injection is on, including the runs that it drops.
    pub fault_injection_runs: u64,
}

const _: () = assert!(size_of::<Counters>() == 22 * 8);

impl Counters {
    /// Adds the counts of another CPU.
    pub fn add(&mut self, other: &Self) {
        let Self {
            switches,
            wakeups,
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
        self.wakeups += wakeups;
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
