//! One recording: what was recorded where, what was seen of it, and how it ended.

use std::fmt::Write;
use std::time::{Duration, UNIX_EPOCH};

use ctxtrace_common::thread::KernelCount;
use nix::time::{ClockId, clock_gettime};
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use super::lanes::Lanes;
use super::polls::{PollInfo, Polls};
use super::samples::Samples;
use super::symbols::Symbols;
use super::{Aggregates, Level};
use crate::workload::{Outcome, Spec};

/// What is said once of a capture, whatever the number of its runs.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Info {
    /// Version of the program that recorded.
    pub ctxtrace_version: String,
    /// The machine it recorded on.
    pub host: Host,
    /// What it recorded.
    pub subject: Subject,
    /// How much.
    pub level: Level,
    /// When it began.
    pub started: ClockAnchor,
    /// How polls were recorded; `None` where they were not.
    #[serde(default)]
    pub polls: Option<PollInfo>,
}

impl Info {
    /// A name for the capture that no other has: the second of its beginning, by which names sort, and a hash of the machine's name
    /// and kernel and of that instant by both clocks, to the nanosecond.
    #[must_use]
    pub fn capture_id(&self) -> String {
        self.id(&[])
    }

    /// A name for one of its runs that no other run has, on whatever machine: as above, the process and the index of the run being
    /// hashed too. It is made of what is in the capture, so it is the same whenever the capture is reported.
    #[must_use]
    pub fn run_id(&self, run: &Run, index: usize) -> String {
        self.id(&[u64::from(self.pid(run).unwrap_or(0)), index as u64])
    }

    /// The process that was recorded first.
    #[must_use]
    pub fn pid(&self, run: &Run) -> Option<u32> {
        match &self.subject {
            Subject::Process { pid, .. } => Some(*pid),
            Subject::Workload(_) | Subject::Command { .. } => run.launched.map(|launched| launched.pid),
        }
    }

    fn id(&self, run: &[u64]) -> String {
        let mut hash = Sha256::new();
        for text in [&self.host.name, &self.host.kernel] {
            hash.update((text.len() as u64).to_le_bytes());
            hash.update(text);
        }
        for number in [self.started.realtime_ns, self.started.monotonic_ns].iter().chain(run) {
            hash.update(number.to_le_bytes());
        }
        let hash = hash.finalize();
        let started = UNIX_EPOCH + Duration::from_nanos(self.started.realtime_ns);
        let mut id = humantime::format_rfc3339_seconds(started).to_string();
        id.retain(|c| c != '-' && c != ':');
        id.push('-');
        for byte in &hash[..8] {
            let _ = write!(id, "{byte:02x}");
        }
        id
    }
}

/// A machine.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, schemars::JsonSchema)]
pub struct Host {
    /// Its name: `uname -n`.
    pub name: String,
    /// `uname -r`.
    pub kernel: String,
    /// CPUs the recording process could use.
    pub cpus: u64,
}

/// The same instant by the clock of the events and by other clocks: the one is turned into the others by it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ClockAnchor {
    /// `CLOCK_MONOTONIC`, nanoseconds.
    pub monotonic_ns: u64,
    /// `CLOCK_REALTIME`, nanoseconds since 1970.
    pub realtime_ns: u64,
    /// `CLOCK_BOOTTIME`, nanoseconds, which counts the time that the machine was suspended too; 0 if it was not noted.
    #[serde(default)]
    pub boottime_ns: u64,
}

/// Clocks that are read one after the other, and differ by less than this, are the same.
const READ_APART_NS: u64 = 1_000_000;

impl ClockAnchor {
    /// This instant.
    #[must_use]
    pub fn now() -> Self {
        let read =
            |clock| clock_gettime(clock).map_or(0, |now| now.tv_sec() as u64 * 1_000_000_000 + now.tv_nsec() as u64);
        Self {
            monotonic_ns: read(ClockId::CLOCK_MONOTONIC),
            realtime_ns: read(ClockId::CLOCK_REALTIME),
            boottime_ns: read(ClockId::CLOCK_BOOTTIME),
        }
    }

    /// How much further `CLOCK_BOOTTIME` is than `CLOCK_MONOTONIC`; 0 where that was not noted, as on a machine that was never
    /// suspended.
    #[must_use]
    pub fn boot_minus_monotonic_ns(&self) -> u64 {
        // They are read one after the other, so on such a machine they differ by what that takes.
        let ns = self.boottime_ns.saturating_sub(self.monotonic_ns);
        if ns < READ_APART_NS { 0 } else { ns }
    }
}

/// What was recorded.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Subject {
    /// A built-in workload.
    Workload(Spec),
    /// A command that was started for it.
    Command {
        /// Its words, as they were given.
        words: Vec<String>,
    },
    /// A process that was running already.
    Process {
        /// Its id.
        pid: u32,
        /// Its name when it was attached to.
        name: String,
        /// Whether its children were recorded too.
        children: bool,
    },
}

impl Subject {
    /// The built-in workload, where it is one.
    #[must_use]
    pub fn workload(&self) -> Option<&Spec> {
        match self {
            Self::Workload(spec) => Some(spec),
            Self::Command { .. } | Self::Process { .. } => None,
        }
    }
}

/// A process that was started for the recording: what is known of it from outside.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Launched {
    /// Its process id, which is its first thread's id.
    pub pid: u32,
    /// The kernel's count when it slept before its start.
    pub before: KernelCount,
    /// What `wait4` said, if it was waited for.
    pub rusage: Option<KernelCount>,
}

/// How a process ended.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Exit {
    /// Exit status, if it was not killed.
    pub status: Option<i32>,
    /// The signal that killed it.
    pub signal: Option<i32>,
}

/// Which events and stamps of a run a capture has not kept, because it was given a limit.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Dropped {
    /// How many, all of them older than those that are there.
    pub events: u64,
    /// Events at the beginning of those that are there which tell again what the dropped ones had told: who the threads are.
    pub told_again: u64,
    /// Stamps of polls and wakes that are not there.
    #[serde(default)]
    pub stamps: u64,
}

/// What the events of a run came to when they were played again.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Timeline {
    /// Events; a switch from one thread of the target to another is one.
    pub events: u64,
    /// Bytes of all events.
    pub bytes: u64,
    /// Switch-outs of the target's threads.
    pub switches: u64,
    /// Wakings of the target's threads.
    pub wakeups: u64,
    /// When the first event was, `CLOCK_MONOTONIC`; `None` if there is none.
    pub first_ns: Option<u64>,
    /// Older events, which the capture has not kept.
    pub dropped: u64,
    /// What they say otherwise than the run's counts; `None` if they cannot be compared, because not all of them are there.
    pub disagreements: Option<Vec<String>>,
}

/// What the recorder has made of a run's events while they came in. A capture keeps it, so that a report of what was added up
/// need not play them again.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Played {
    /// What they came to.
    pub timeline: Timeline,
    /// How many of them are samples.
    pub samples: u64,
}

/// One recording.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Run {
    /// What the kernel had summed up.
    pub aggregates: Aggregates,
    /// The names of its stacks.
    #[serde(skip)]
    pub symbols: Symbols,
    /// Its events, added up; `None` where none were recorded.
    #[serde(skip)]
    pub timeline: Option<Timeline>,
    /// What its polls came to; `None` where none were recorded.
    #[serde(skip)]
    pub polls: Option<Polls>,
    /// What it did on its CPUs; none unless that was asked.
    #[serde(skip)]
    pub samples: Samples,
    /// Its timeline as it is drawn; `None` unless there is one and somebody wants to.
    #[serde(skip)]
    pub lanes: Option<Lanes>,
    /// The process, if it was started for the recording and not attached to.
    pub launched: Option<Launched>,
    /// From when the programs were attached to when they were detached.
    pub recorded_ns: u64,
    /// How the process ended, if it did and was ours to wait for.
    pub exit: Option<Exit>,
    /// What the workload said at its end; `None` if it did not get there, or if it was none.
    pub outcome: Option<Outcome>,
    /// Messages the workload was last heard to have done.
    pub messages_seen: u64,
    /// Why the run was cut short; `None` if it was not.
    pub cut_short: Option<String>,
}

impl Run {
    /// Elapsed time by messages, of a workload that got to its end.
    #[must_use]
    pub fn ns_per_message(&self) -> Option<f64> {
        Some(self.outcome?.ns_per_message())
    }

    /// Kernel switches traced.
    #[must_use]
    pub fn switches(&self) -> u64 {
        self.aggregates
            .threads
            .iter()
            .map(|record| record.thread.traced())
            .sum()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::trace::build;

    fn info(name: &str, realtime_ns: u64) -> Info {
        Info {
            ctxtrace_version: "0.0.0".to_owned(),
            host: Host {
                name: name.to_owned(),
                kernel: "6.18.0".to_owned(),
                cpus: 2,
            },
            subject: Subject::Command {
                words: vec!["true".to_owned()],
            },
            level: Level::Counts,
            polls: None,
            started: ClockAnchor {
                monotonic_ns: 5,
                boottime_ns: 0,
                realtime_ns,
            },
        }
    }

    #[test]
    fn every_run_has_a_name_of_its_own_and_keeps_it() {
        const NOON_NS: u64 = 1_700_000_000_000_000_000;
        let run = build::run(build::aggregates(Vec::new()));
        let mut of_a_process = run.clone();
        of_a_process.launched = Some(Launched {
            pid: 7,
            before: KernelCount::default(),
            rusage: None,
        });
        let one = info("vm", NOON_NS);
        let ids = [
            one.capture_id(),
            one.run_id(&run, 0),
            one.run_id(&run, 1),
            one.run_id(&of_a_process, 0),
            info("vm2", NOON_NS).run_id(&run, 0),
            info("vm", NOON_NS + 1).run_id(&run, 0),
        ];
        let mut distinct = ids.to_vec();
        distinct.sort();
        distinct.dedup();
        assert_eq!(distinct.len(), ids.len(), "{ids:?}");
        assert_eq!(
            ids[1], "20231114T221320Z-08e650ec6a3c6e17",
            "it is the same in every release"
        );
    }
}
