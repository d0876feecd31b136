//! What was seen, decoded and not interpreted: the boundary between capturing and understanding.
//!
//! * [`Aggregates`]: what the kernel had summed up when a run was over. It knows nothing of BPF maps, and everything behind
//!   it is a pure function of it.
//! * [`threads`]: the threads that have ended, of which so many are distinguished.
//! * [`wakeups`]: the wakeups along one edge.
//! * [`run`]: one recording: the aggregates, and what else is known of what was recorded.
//! * [`samples`]: what it did on its CPUs, where that was asked.
//! * [`lanes`]: its timeline, small enough to be drawn, where that was asked.
//! * [`polls`]: when tasks were polled and woken, where that was asked.
//! * [`symbols`]: the names of its stacks.
//! * [`cgroups`]: what CPU quotas and freezers did meanwhile.
//! * [`mod@file`]: recordings in a file.

pub mod cgroups;
pub mod file;
pub mod lanes;
pub mod machine;
pub mod polls;
pub mod run;
pub mod samples;
pub mod symbols;
pub mod threads;
pub mod wakeups;

pub mod events;

use std::collections::HashMap;
use std::sync::Arc;

use ctxtrace_common::counters::Counters;
use ctxtrace_common::handover::Handover;
use ctxtrace_common::histogram::{Histogram, Latency};
use ctxtrace_common::process::{Image, TaskKey};
use ctxtrace_common::stack::{SumKey, SwitchSum};
use ctxtrace_common::thread::ThreadSummary;
use ctxtrace_common::wakeup::{EdgeKey, WakerStackKey};
use serde::{Deserialize, Deserializer, Serialize};

use self::cgroups::Cgroups;
use self::file::room::{rows, some_rows};
use self::wakeups::EdgeSums;
use crate::printable::cut_name;
use crate::target::mappings::Mappings;
use crate::target::programs::Programs;
use crate::target::silent::SilentThread;

/// Bytes of a task's name. A program has room for so many, and a byte that is no text becomes three.
const LONGEST_TASK_NAME: usize = 3 * ctxtrace_abi::NAME_BYTES;

/// How much is recorded.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, schemars::JsonSchema, clap::ValueEnum)]
#[serde(rename_all = "kebab-case")]
pub enum Level {
    /// Counts and latencies
    Counts,
    /// Also the kernel and user stack of every switch-out
    Stacks,
    /// Counts, latencies, and every switch and wakeup as an event
    Timeline,
}

impl Level {
    /// The name used on the command line and in JSON.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Counts => "counts",
            Self::Stacks => "stacks",
            Self::Timeline => "timeline",
        }
    }
}

/// The five distributions, all CPUs added up.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Latencies(#[serde(deserialize_with = "latencies")] Vec<Histogram>);

impl Default for Latencies {
    fn default() -> Self {
        Self(vec![Histogram::EMPTY; Latency::COUNT as usize])
    }
}

/// What comes out of a file may have any number of them.
fn latencies<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Vec<Histogram>, D::Error> {
    let mut histograms: Vec<Histogram> = rows(deserializer)?;
    histograms.resize(Latency::COUNT as usize, Histogram::EMPTY);
    Ok(histograms)
}

/// Names of tasks out of a file, none longer than a program can give it.
fn task_names<'de, D: Deserializer<'de>>(deserializer: D) -> Result<HashMap<Image, Vec<String>>, D::Error> {
    let mut names: HashMap<Image, Vec<String>> = HashMap::deserialize(deserializer)?;
    for name in names.values_mut().flatten() {
        *name = cut_name(std::mem::take(name), LONGEST_TASK_NAME);
    }
    Ok(names)
}

impl Latencies {
    /// One of them.
    #[must_use]
    pub fn get(&self, latency: Latency) -> &Histogram {
        &self.0[latency as usize]
    }

    /// One of them, to add to.
    pub fn get_mut(&mut self, latency: Latency) -> &mut Histogram {
        &mut self.0[latency as usize]
    }

    /// Adds another capture's, or another CPU's.
    pub fn merge(&mut self, other: &Self) {
        for (mine, theirs) in self.0.iter_mut().zip(&other.0) {
            merge(mine, theirs);
        }
    }
}

/// Adds one distribution to another.
pub fn merge(into: &mut Histogram, from: &Histogram) {
    if from.count == 0 {
        return;
    }
    into.min_plus_one_ns = match into.count {
        0 => from.min_plus_one_ns,
        _ => into.min_plus_one_ns.min(from.min_plus_one_ns),
    };
    into.max_ns = into.max_ns.max(from.max_ns);
    into.count = into.count.saturating_add(from.count);
    // Like the kernel side: what a program makes up may be too much.
    into.sum_ns = into.sum_ns.wrapping_add(from.sum_ns);
    for (mine, theirs) in into.buckets.iter_mut().zip(&from.buckets) {
        *mine = mine.saturating_add(*theirs);
    }
}

/// A name of a thread or a task, padded with zeroes, as text; not necessarily printable.
#[must_use]
pub fn name_of<const N: usize>(padded: &[u8; N]) -> String {
    let end = padded.iter().position(|&byte| byte == 0).unwrap_or(N);
    String::from_utf8_lossy(&padded[..end]).into_owned()
}

/// What had become of a thread when the capture ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Fate {
    /// Its last switch was seen.
    Ended,
    /// It is gone, so it has made its last switch, and nobody saw it.
    Vanished,
    /// It lives on.
    Alive,
}

/// A thread's record and the thread's fate; or the sums of several threads that have ended (see [`threads`]).
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
pub struct ThreadRecord {
    /// The record. Of several threads it holds sums, and the id 0; and the process 0, if they were not of one process.
    pub thread: ThreadSummary,
    /// What had become of it.
    pub fate: Fate,
    /// How many threads it is of.
    #[serde(default = "one", skip_serializing_if = "is_one")]
    pub threads: u64,
}

fn one() -> u64 {
    1
}

#[expect(
    clippy::trivially_copy_pass_by_ref,
    reason = "serde passes what it may skip by reference"
)]
fn is_one(threads: &u64) -> bool {
    *threads == 1
}

impl ThreadRecord {
    /// The record of one thread.
    #[must_use]
    pub fn new(thread: ThreadSummary, fate: Fate) -> Self {
        Self {
            thread,
            fate,
            threads: 1,
        }
    }
}

/// What one program of ours cost, measured by the kernel while its statistics were switched on.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct ProgramCost {
    /// Name of the program: that of its tracepoint.
    pub name: String,
    /// Runs that were timed.
    pub timed_runs: u64,
    /// Time spent in them.
    pub timed_ns: u64,
}

/// What tracing itself cost.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct TracerCost {
    /// Per BPF program.
    pub programs: Vec<ProgramCost>,
    /// CPU time the tracer's own process used while the target ran.
    pub tracer_cpu_ns: u64,
}

/// What one CPU has lost.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct CpuLosses {
    /// The CPU.
    pub cpu: u32,
    /// Kernel switches whose loss was found out there.
    pub events: u64,
    /// Events of the timeline that found its ring full.
    pub timeline_events: u64,
}

/// The time that a thread was off the CPU when the recording ended: it was not seen to come back, so it is in no sum.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
pub struct OpenInterval {
    /// Thread id.
    pub tid: u32,
    /// The switch-out that began it.
    pub key: SumKey,
    /// From that switch-out to the end of the recording.
    pub off_ns: u64,
}

/// Everything the kernel had summed up when a run was over.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Aggregates {
    /// How much was recorded.
    pub level: Level,
    /// One record a thread, in the order of their last switches; threads that have not ended come last. Stored by themselves: there may be very
    /// many.
    #[serde(skip)]
    pub threads: Vec<ThreadRecord>,
    /// Totals and losses.
    pub counters: Counters,
    /// The CPUs that have lost events.
    pub lost_by_cpu: Vec<CpuLosses>,
    /// The distributions.
    pub latencies: Latencies,
    /// Distinct stacks by key, innermost frame first.
    pub stacks: HashMap<u64, Arc<[u64]>>,
    /// Switch-outs by class, task and stack pair, those of intervals still open included.
    pub switch_sums: Vec<(SumKey, SwitchSum)>,
    /// The intervals that were open when the recording ended, of threads that live on; `None` in captures of versions that did not record
    /// them.
    #[serde(default, skip_serializing_if = "Option::is_none", deserialize_with = "some_rows")]
    pub open: Option<Vec<OpenInterval>>,
    /// The threads of a process that was attached to which have made no switch.
    #[serde(default, deserialize_with = "rows")]
    pub silent: Vec<SilentThread>,
    /// What did not fit that table, by the number of the class.
    pub overflow_sums: Vec<SwitchSum>,
    /// What threads told at their end of their polls, added up by program.
    #[serde(deserialize_with = "rows")]
    pub handovers: Vec<Handover>,
    /// Names of tasks by id.
    #[serde(deserialize_with = "task_names")]
    pub names: HashMap<Image, Vec<String>>,
    /// Goroutines with the address of the function that each was started with.
    pub goroutines: Vec<(TaskKey, u64)>,
    /// Task switches that hit the kernel, by the index of the task.
    pub hits: Vec<(TaskKey, u64)>,
    /// Wakeups by who woke whom.
    #[serde(deserialize_with = "rows")]
    pub edges: Vec<(EdgeKey, EdgeSums)>,
    /// Names of threads outside the target that have woken one of it, in captures of versions that noted one name for each thread. In
    /// those of today the name is in the key of the edge, and this is empty.
    #[serde(default)]
    pub outsiders: HashMap<u32, [u8; 16]>,
    /// Executables for which [the table of layouts](ctxtrace_common::locator::MAX_LOCATORS) had no room: how their tasks are found was
    /// not known at their switches.
    #[serde(default)]
    pub lost_programs: u64,
    /// Wakeups by the stacks of their makers, where those were taken.
    pub waker_sums: Vec<(WakerStackKey, SwitchSum)>,
    /// What runs where, and how its tasks are found.
    pub programs: Programs,
    /// Memory layouts, to resolve user addresses with.
    pub mappings: Mappings,
    /// Program runs the kernel skipped because one was already running on that CPU.
    pub recursion_misses: u64,
    /// What tracing cost.
    pub cost: TracerCost,
    /// The cgroups of the target; `None` in captures of versions that did not look at them.
    #[serde(default)]
    pub cgroups: Option<Cgroups>,
}

impl Aggregates {
    /// Counts the programs with code in a stack whose mapping was lost: see [`Mappings::count_lost_code`].
    pub fn count_lost_code(&mut self) {
        let switched = self.switch_sums.iter().map(|(key, _)| {
            let image = Image {
                tgid: key.tgid,
                number: key.image,
            };
            (image, key.user_stack)
        });
        let woke = self
            .waker_sums
            .iter()
            .map(|(key, _)| (key.from.program(), key.from.user_stack));
        let stacks = &self.stacks;
        let known = switched
            .chain(woke)
            .filter_map(|(image, key)| Some((image, &**stacks.get(&key)?)));
        self.mappings.count_lost_code(known);
    }
}

#[cfg(test)]
pub(crate) mod build {
    //! Makes captures for tests, so that everything behind this boundary is tested without root.

    use super::*;
    use ctxtrace_common::ledger::Class;
    use ctxtrace_common::thread::KernelCount;

    use super::run::{ClockAnchor, Host, Info, Run, Subject};
    use super::samples::Samples;
    use super::symbols::Symbols;

    /// A thread that was switched `voluntary` + `involuntary` times, all of them seen, and has ended.
    pub(crate) fn thread(tid: u32, name: &str, voluntary: u64, involuntary: u64) -> ThreadRecord {
        let mut thread: ThreadSummary = bytemuck::Zeroable::zeroed();
        thread.tid = tid;
        thread.tgid = 100;
        thread.comm[..name.len()].copy_from_slice(name.as_bytes());
        thread.traced_voluntary = voluntary;
        thread.traced_involuntary = involuntary;
        thread.kernel = KernelCount { voluntary, involuntary };
        ThreadRecord::new(thread, Fate::Ended)
    }

    /// The key of switch-outs of this class of process 100, while the task of this id was polled.
    pub(crate) fn sum_key(class: Class, task: u64) -> SumKey {
        let mut key = SumKey::EMPTY;
        key.class = class as u8;
        key.task = task;
        key.tgid = 100;
        key
    }

    /// What is said of a capture with stacks.
    pub(crate) fn info() -> Info {
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

    /// A recording of which nothing is known but this.
    pub(crate) fn run(aggregates: Aggregates) -> Run {
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

    /// A capture of these threads, with nothing lost, and all their switches those of threads that went to sleep.
    pub(crate) fn aggregates(threads: Vec<ThreadRecord>) -> Aggregates {
        let counters = Counters {
            switches: threads.iter().map(|record| record.thread.traced()).sum(),
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
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn merging_keeps_what_is_exact_exact() {
        let mut a = Histogram::EMPTY;
        let mut b = Histogram::EMPTY;
        let mut both = Histogram::EMPTY;
        for ns in [5, 7_000] {
            a.record(ns);
            both.record(ns);
        }
        for ns in [3, 900_000, 12] {
            b.record(ns);
            both.record(ns);
        }
        merge(&mut a, &b);
        assert_eq!(bytemuck::bytes_of(&a), bytemuck::bytes_of(&both));
        merge(&mut a, &Histogram::EMPTY);
        assert_eq!(bytemuck::bytes_of(&a), bytemuck::bytes_of(&both));
        let mut empty = Histogram::EMPTY;
        merge(&mut empty, &both);
        assert_eq!(bytemuck::bytes_of(&empty), bytemuck::bytes_of(&both));
    }
}
