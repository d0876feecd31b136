//! One recording: what was recorded and where, the recorded data, and how the recording ended.

use std::fmt::Write;
use std::time::{Duration, UNIX_EPOCH};

use ctxtrace_common::thread::KernelCount;
use nix::time::{ClockId, clock_gettime};
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use super::lanes::Lanes;
use super::polls::{PollInfo, PollSums};
use super::samples::Samples;
use super::symbols::Symbols;
use super::{Aggregates, Level};
use crate::sums::SaturatingSum as _;
use crate::workload::{Outcome, Spec};

/// The metadata of a capture, common to all of its runs.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Info {
    /// Version of the ctxtrace that made the recording.
    pub ctxtrace_version: String,
    /// The machine on which the recording was made.
    pub host: Host,
    /// The program that was recorded.
    pub subject: Subject,
    /// The level of detail of the recording.
    pub level: Level,
    /// The time at which the recording began.
    pub started: ClockAnchor,
    /// How polls were recorded; `None` if they were not recorded.
    #[serde(default)]
    pub polls: Option<PollInfo>,
}

impl Info {
    /// A unique id of the capture: its start time in seconds, so that ids sort by time, and a hash of the host name, the kernel
    /// release and the start time in nanoseconds by `CLOCK_REALTIME` and `CLOCK_MONOTONIC`.
    #[must_use]
    pub fn capture_id(&self) -> String {
        self.id(&[])
    }

    /// A globally unique id of one run of the capture. It is made like [`Info::capture_id`], but the hash also includes the
    /// process id and the index of the run. It depends only on data in the capture, so every report of the capture shows the same
    /// id.
    #[must_use]
    pub fn run_id(&self, run: &Run, index: usize) -> String {
        self.id(&[u64::from(self.pid(run).unwrap_or(0)), index as u64])
    }

    /// The id of the process that was recorded first, if it is known.
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

/// The machine on which a recording was made.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, schemars::JsonSchema)]
pub struct Host {
    /// Host name, as in `uname -n`.
    pub name: String,
    /// Kernel release, as in `uname -r`.
    pub kernel: String,
    /// Number of CPUs that the recording process could use.
    pub cpus: u64,
}

/// The same instant on the clock of the events and on other clocks, for the conversion of event times to these clocks.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ClockAnchor {
    /// `CLOCK_MONOTONIC`, nanoseconds.
    pub monotonic_ns: u64,
    /// `CLOCK_REALTIME`, nanoseconds since 1970.
    pub realtime_ns: u64,
    /// `CLOCK_BOOTTIME`, nanoseconds, which includes the time that the machine was suspended; 0 if it was not recorded.
    #[serde(default)]
    pub boottime_ns: u64,
}

/// Two clocks that are read one after the other are taken as equal if they differ by less than this, nanoseconds.
const READ_APART_NS: u64 = 1_000_000;

impl ClockAnchor {
    /// Reads the clocks now.
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

    /// By how much `CLOCK_BOOTTIME` is ahead of `CLOCK_MONOTONIC`, which is the time that the machine was suspended since boot.
    /// It is 0 if the machine was never suspended, or if `CLOCK_BOOTTIME` was not recorded.
    #[must_use]
    pub fn boot_minus_monotonic_ns(&self) -> u64 {
        // On a machine that was never suspended the two differ only by the time between the two readings.
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
    /// A command that ctxtrace started.
    Command {
        /// The command and its arguments, as they were given.
        words: Vec<String>,
    },
    /// A process that was already running.
    Process {
        /// Process id.
        pid: u32,
        /// Name of the process when ctxtrace attached to it.
        name: String,
        /// Whether the children of the process were also recorded.
        children: bool,
    },
}

impl Subject {
    /// The built-in workload, if one was recorded.
    #[must_use]
    pub fn workload(&self) -> Option<&Spec> {
        match self {
            Self::Workload(spec) => Some(spec),
            Self::Command { .. } | Self::Process { .. } => None,
        }
    }
}

/// A process that ctxtrace started, with the data that the kernel reports about it outside the trace.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Launched {
    /// Process id, which is also the id of its first thread.
    pub pid: u32,
    /// The kernel's switch counts of the process while it slept, suspended, before its program was started.
    pub before: KernelCount,
    /// The switch counts in the `rusage` of `wait4`, if the process was waited for.
    pub rusage: Option<KernelCount>,
}

/// How a process ended.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Exit {
    /// Exit status; `None` if the process was killed by a signal.
    pub status: Option<i32>,
    /// The signal that killed the process; `None` if it exited.
    pub signal: Option<i32>,
}

/// The events and stamps of a run that were dropped from the capture because of its limits (`--max-size`, `--keep`).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Dropped {
    /// Number of dropped events. All of them are older than the events in the capture.
    pub events: u64,
    /// Number of events at the beginning of the capture's events that were inserted to introduce the living threads again,
    /// because their original introductions were dropped.
    pub told_again: u64,
    /// Number of dropped stamps of polls and wakes.
    #[serde(default)]
    pub stamps: u64,
}

/// The result of the replay of a run's events.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Timeline {
    /// Number of events; a switch from one thread of the target to another one is one event.
    pub events: u64,
    /// Size of all events in bytes.
    pub bytes: u64,
    /// Number of switch-outs of the target's threads.
    pub switches: u64,
    /// Number of wakeups of the target's threads.
    pub wakeups: u64,
    /// Time of the first event, `CLOCK_MONOTONIC` nanoseconds; `None` if there are no events.
    pub first_ns: Option<u64>,
    /// Number of older events that the capture dropped because of its limits.
    pub dropped: u64,
    /// The differences between the events and the run's counts; `None` if the two cannot be compared because events are missing.
    pub disagreements: Option<Vec<String>>,
}

/// The result of the recorder's replay of a run's events. It is stored in the capture, so that a report of sums alone does not
/// have to replay the events.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Played {
    /// The result of the replay.
    pub timeline: Timeline,
    /// Number of samples among the events.
    pub samples: u64,
}

/// One recording.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Run {
    /// The sums that the kernel side made.
    pub aggregates: Aggregates,
    /// The function names of the stacks.
    #[serde(skip)]
    pub symbols: Symbols,
    /// The result of the replay of the events; `None` if no events were recorded.
    #[serde(skip)]
    pub timeline: Option<Timeline>,
    /// The sums of the polls; `None` if no polls were recorded.
    #[serde(skip)]
    pub polls: Option<PollSums>,
    /// The samples of what the target did on its CPUs; empty without `--sample`.
    #[serde(skip)]
    pub samples: Samples,
    /// The timeline as it is drawn; `None` if there are no events, or if no output draws them.
    #[serde(skip)]
    pub lanes: Option<Lanes>,
    /// The process, if ctxtrace started it; `None` if ctxtrace attached to it.
    pub launched: Option<Launched>,
    /// Time from the attachment of the BPF programs to their detachment, nanoseconds.
    pub recorded_ns: u64,
    /// How the process ended; `None` if it still runs, or if ctxtrace did not start it.
    pub exit: Option<Exit>,
    /// The result that the workload reported at its end; `None` if it did not reach its end, or if no built-in workload was
    /// recorded.
    pub outcome: Option<Outcome>,
    /// Number of messages in the workload's last report of its progress.
    pub messages_seen: u64,
    /// Why the run was cut short; `None` if it was complete.
    pub cut_short: Option<String>,
}

impl Run {
    /// Elapsed time per message in nanoseconds; `None` if the workload did not reach its end.
    #[must_use]
    pub fn ns_per_message(&self) -> Option<f64> {
        Some(self.outcome?.ns_per_message())
    }

    /// Number of traced kernel switches.
    #[must_use]
    pub fn switches(&self) -> u64 {
        self.aggregates
            .threads
            .iter()
            .map(|record| record.thread.traced())
            .saturating_sum()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::build;

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
            "the id must not change between releases"
        );
    }
}
