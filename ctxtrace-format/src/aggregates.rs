//! The sums that the kernel side had made when a run ended. They do not depend on BPF maps, and everything that is computed from
//! them is a pure function.

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

use crate::cgroups::Cgroups;
use crate::file::room::{rows, some_rows};
use crate::mappings::Mappings;
use crate::printable::cut_name;
use crate::programs::Programs;
use crate::wakeups::EdgeSums;

/// Maximum length of a task's name in bytes; longer names in a file are cut. A program stores at most
/// [`ctxtrace_abi::NAME_BYTES`] bytes, and each byte that is not valid UTF-8 becomes a replacement character of three bytes.
const LONGEST_TASK_NAME: usize = 3 * ctxtrace_abi::NAME_BYTES;

/// The level of detail of a recording.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, schemars::JsonSchema)]
#[cfg_attr(feature = "clap", derive(clap::ValueEnum))]
#[serde(rename_all = "kebab-case")]
pub enum Level {
    /// Counts and latencies
    Counts,
    /// Counts, latencies, and the kernel and user stacks of every switch-out
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

/// The five latency distributions, summed over all CPUs.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Latencies(#[serde(deserialize_with = "latencies")] Vec<Histogram>);

impl Default for Latencies {
    fn default() -> Self {
        Self(vec![Histogram::EMPTY; Latency::COUNT as usize])
    }
}

/// Reads the distributions from a file. A file may have any number of them, so the list is cut or padded to the right length.
fn latencies<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Vec<Histogram>, D::Error> {
    let mut histograms: Vec<Histogram> = rows(deserializer)?;
    histograms.resize(Latency::COUNT as usize, Histogram::EMPTY);
    Ok(histograms)
}

/// Reads the names of tasks from a file, and cuts each to the maximum length that a program can give.
fn task_names<'de, D: Deserializer<'de>>(deserializer: D) -> Result<HashMap<Image, Vec<String>>, D::Error> {
    let mut names: HashMap<Image, Vec<String>> = HashMap::deserialize(deserializer)?;
    for name in names.values_mut().flatten() {
        *name = cut_name(std::mem::take(name), LONGEST_TASK_NAME);
    }
    Ok(names)
}

impl Latencies {
    /// The distribution of one latency.
    #[must_use]
    pub fn get(&self, latency: Latency) -> &Histogram {
        &self.0[latency as usize]
    }

    /// The distribution of one latency, for adding to it.
    pub fn get_mut(&mut self, latency: Latency) -> &mut Histogram {
        &mut self.0[latency as usize]
    }

    /// Adds the distributions of another capture or another CPU.
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
    // Wraps on overflow, as on the kernel side: forged values may exceed 64 bits.
    into.sum_ns = into.sum_ns.wrapping_add(from.sum_ns);
    for (mine, theirs) in into.buckets.iter_mut().zip(&from.buckets) {
        *mine = mine.saturating_add(*theirs);
    }
}

/// Converts the zero-padded name of a thread or a task to text, which is not necessarily printable.
#[must_use]
pub fn name_of<const N: usize>(padded: &[u8; N]) -> String {
    let end = padded.iter().position(|&byte| byte == 0).unwrap_or(N);
    String::from_utf8_lossy(&padded[..end]).into_owned()
}

/// The state of a thread at the end of the capture.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Fate {
    /// The thread has ended, and its last switch was recorded.
    Ended,
    /// The thread no longer exists, so it has made its last switch, but that switch was not recorded.
    Vanished,
    /// The thread still exists.
    Alive,
}

/// The record of one thread with its state at the end of the capture, or the sums of several threads that have ended (see
/// [`crate::threads`]).
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
pub struct ThreadRecord {
    /// The record. For several threads it contains their sums and the thread id 0, and the process id 0 if the threads belonged
    /// to different processes.
    pub thread: ThreadSummary,
    /// The state of the thread at the end of the capture.
    pub fate: Fate,
    /// Number of threads in this record.
    #[serde(default = "one", skip_serializing_if = "is_one")]
    pub threads: u64,
}

fn one() -> u64 {
    1
}

#[expect(
    clippy::trivially_copy_pass_by_ref,
    reason = "serde passes the value of `skip_serializing_if` by reference"
)]
fn is_one(threads: &u64) -> bool {
    *threads == 1
}

impl ThreadRecord {
    /// Creates the record of one thread.
    #[must_use]
    pub fn new(thread: ThreadSummary, fate: Fate) -> Self {
        Self {
            thread,
            fate,
            threads: 1,
        }
    }
}

/// A thread that has made no switch during the recording.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SilentThread {
    /// The thread id.
    pub tid: u32,
    /// The process id.
    pub tgid: u32,
    /// The name of the thread; not necessarily printable.
    pub name: String,
    /// The letter of the thread's state at the end, as in `ps`.
    pub state: char,
    /// The time between the two readings, in nanoseconds.
    pub ns: u64,
}

/// The cost of one of our BPF programs, measured by the kernel while `kernel.bpf_stats_enabled` was on.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct ProgramCost {
    /// Name of the program, which is the name of its tracepoint.
    pub name: String,
    /// Number of timed runs.
    pub timed_runs: u64,
    /// Time spent in these runs, nanoseconds.
    pub timed_ns: u64,
}

/// The cost of tracing.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct TracerCost {
    /// The cost of each BPF program.
    pub programs: Vec<ProgramCost>,
    /// CPU time that the tracer's own process used while the target ran, nanoseconds.
    pub tracer_cpu_ns: u64,
}

/// The losses of one CPU.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct CpuLosses {
    /// Number of the CPU.
    pub cpu: u32,
    /// Lost kernel switches that were detected on this CPU.
    pub events: u64,
    /// Events of the timeline that were lost because the CPU's ring buffer was full.
    pub timeline_events: u64,
}

/// An off-CPU interval that was open when the recording ended. The thread's switch-in was not recorded, so the interval's time is
/// not contained in any sum.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
pub struct OpenInterval {
    /// Thread id.
    pub tid: u32,
    /// Key of the switch-out that began the interval.
    pub key: SumKey,
    /// Time from that switch-out to the end of the recording, nanoseconds.
    pub off_ns: u64,
}

/// All sums that the kernel side had made when a run ended.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Aggregates {
    /// The level of detail of the recording.
    pub level: Level,
    /// The records of the threads, in the order of the threads' last switches; threads that have not ended come last. They are
    /// stored in blocks of their own in a capture file, because there may be very many.
    #[serde(skip)]
    pub threads: Vec<ThreadRecord>,
    /// Totals and losses.
    pub counters: Counters,
    /// The losses of the CPUs that lost events.
    pub lost_by_cpu: Vec<CpuLosses>,
    /// The latency distributions.
    pub latencies: Latencies,
    /// Distinct stacks by key, innermost frame first.
    pub stacks: HashMap<u64, Arc<[u64]>>,
    /// Switch-outs by class, task and pair of stacks, including the switch-outs whose off-CPU intervals are still open.
    pub switch_sums: Vec<(SumKey, SwitchSum)>,
    /// The off-CPU intervals of living threads that were open when the recording ended; `None` in captures of versions that did
    /// not record them.
    #[serde(default, skip_serializing_if = "Option::is_none", deserialize_with = "some_rows")]
    pub open: Option<Vec<OpenInterval>>,
    /// Threads that made no switch during the recording. Only for a process that was attached to.
    #[serde(default, deserialize_with = "rows")]
    pub silent: Vec<SilentThread>,
    /// Switch-outs for which the table of `switch_sums` had no room, indexed by the number of their class.
    pub overflow_sums: Vec<SwitchSum>,
    /// The counts of polls that threads with a probe had when they ended, summed by program.
    #[serde(deserialize_with = "rows")]
    pub handovers: Vec<Handover>,
    /// The names of tasks by program. The index in the list is the task's id.
    #[serde(deserialize_with = "task_names")]
    pub names: HashMap<Image, Vec<String>>,
    /// Goroutines, each with the address of the function that it was started with.
    pub goroutines: Vec<(TaskKey, u64)>,
    /// Task switches that hit the kernel, by the task's index in the probe's tables.
    pub hits: Vec<(TaskKey, u64)>,
    /// Wakeups by waker and woken thread.
    #[serde(deserialize_with = "rows")]
    pub edges: Vec<(EdgeKey, EdgeSums)>,
    /// Names of threads outside the target that woke a thread of the target, by thread id. Only in captures of versions that
    /// recorded one name for each thread; today's captures have the name in the key of the edge, and this map is empty.
    #[serde(default)]
    pub outsiders: HashMap<u32, [u8; 16]>,
    /// Number of executables for which [the table of layouts](ctxtrace_common::locator::MAX_LOCATORS) had no room, so their
    /// current tasks could not be read at their switches.
    #[serde(default)]
    pub lost_programs: u64,
    /// Wakeups by the stacks of their wakers, if those stacks were recorded.
    pub waker_sums: Vec<(WakerStackKey, SwitchSum)>,
    /// The program that each process ran, and how its tasks are located.
    pub programs: Programs,
    /// Memory layouts of the processes, for the resolution of user addresses.
    pub mappings: Mappings,
    /// BPF program runs that the kernel skipped because a run was already active on that CPU.
    pub recursion_misses: u64,
    /// The cost of tracing.
    pub cost: TracerCost,
    /// The cgroups of the target; `None` in captures of versions that did not inspect them.
    #[serde(default)]
    pub cgroups: Option<Cgroups>,
}

impl Aggregates {
    /// Counts the programs that have code in a recorded stack, but whose mapping was lost: see [`Mappings::count_lost_code`].
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
