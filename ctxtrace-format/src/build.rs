//! Builds captures for tests, so that everything that uses them can be tested without root.

use std::collections::HashMap;

use ctxtrace_common::counters::Counters;
use ctxtrace_common::ledger::Class;
use ctxtrace_common::stack::{SumKey, SwitchSum};
use ctxtrace_common::thread::{KernelCount, ThreadSummary};

use crate::cgroups::Cgroups;
use crate::mappings::Mappings;
use crate::programs::Programs;
use crate::run::{ClockAnchor, Host, Info, Run, Subject};
use crate::samples::Samples;
use crate::sums::SaturatingSum as _;
use crate::symbols::Symbols;
use crate::{Aggregates, Fate, Latencies, Level, ThreadRecord, TracerCost};

/// A thread that was switched out `voluntary` + `involuntary` times and has ended; all of its switches were recorded.
#[must_use]
pub fn thread(tid: u32, name: &str, voluntary: u64, involuntary: u64) -> ThreadRecord {
    let mut thread: ThreadSummary = bytemuck::Zeroable::zeroed();
    thread.tid = tid;
    thread.tgid = 100;
    thread.comm[..name.len()].copy_from_slice(name.as_bytes());
    thread.traced_voluntary = voluntary;
    thread.traced_involuntary = involuntary;
    thread.kernel = KernelCount { voluntary, involuntary };
    ThreadRecord::new(thread, Fate::Ended)
}

/// The key of switch-outs of process 100 in this class, while it polled the task with this id.
#[must_use]
pub fn sum_key(class: Class, task: u64) -> SumKey {
    let mut key = SumKey::EMPTY;
    key.class = class as u8;
    key.task = task;
    key.tgid = 100;
    key
}

/// The metadata of a capture with stacks.
#[must_use]
pub fn info() -> Info {
    Info {
        ctxtrace_version: "0.0.0".to_owned(),
        host: Host {
            name: "host".to_owned(),
            kernel: "6.18.0".to_owned(),
            cpus: 2,
        },
        subject: Subject::Command {
            words: vec!["make".to_owned()],
        },
        level: Level::Stacks,
        started: ClockAnchor {
            monotonic_ns: 1,
            realtime_ns: 2,
            boottime_ns: 3,
        },
        polls: None,
    }
}

/// A recording with these aggregates and no other data.
#[must_use]
pub fn run(aggregates: Aggregates) -> Run {
    Run {
        aggregates,
        timeline: None,
        polls: None,
        samples: Samples::default(),
        lanes: None,
        symbols: Symbols::default(),
        launched: None,
        recorded_ns: 2_000_000,
        exit: None,
        outcome: None,
        messages_seen: 0,
        cut_short: None,
    }
}

/// A capture of these threads without losses. All of their switches are in the class `thread-blocked`.
#[must_use]
pub fn aggregates(threads: Vec<ThreadRecord>) -> Aggregates {
    let counters = Counters {
        switches: threads.iter().map(|record| record.thread.traced()).saturating_sum(),
        ..Counters::default()
    };
    let blocked = SwitchSum {
        count: counters.switches,
        off_cpu_ns: 0,
    };
    Aggregates {
        level: Level::Counts,
        threads,
        counters,
        lost_by_cpu: Vec::new(),
        latencies: Latencies::default(),
        stacks: HashMap::new(),
        switch_sums: vec![(sum_key(Class::ThreadBlocked, 0), blocked)],
        open: Some(Vec::new()),
        silent: Vec::new(),
        overflow_sums: Vec::new(),
        handovers: Vec::new(),
        names: HashMap::new(),
        goroutines: Vec::new(),
        hits: Vec::new(),
        edges: Vec::new(),
        outsiders: HashMap::new(),
        lost_programs: 0,
        waker_sums: Vec::new(),
        programs: Programs::default(),
        mappings: Mappings::default(),
        recursion_misses: 0,
        cost: TracerCost::default(),
        cgroups: Some(Cgroups {
            threads_known: true,
            ..Cgroups::default()
        }),
    }
}
