//! The kernel's statistics of the cgroups that the target was in during the recording.

use serde::{Deserialize, Serialize};

/// The cgroups of one recording.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Cgroups {
    /// The cgroups with a CPU quota whose counters rose during the recording.
    pub quotas: Vec<Quota>,
    /// Why the quotas could not be read; `None` if they were read.
    pub unreadable: Option<String>,
    /// Paths of the cgroups that were frozen when they were inspected.
    pub frozen: Vec<String>,
    /// Whether the kernel shows for each thread that a quota keeps it off the CPU.
    pub threads_known: bool,
}

/// The effect of one cgroup's CPU quota: by how much the counters of its `cpu.stat` rose while the cgroup was observed.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Quota {
    /// The cgroup's path in its hierarchy.
    pub path: String,
    /// Time for which the cgroup was throttled, summed over all CPUs, nanoseconds.
    pub throttled_ns: u64,
    /// Number of enforcement periods in which the cgroup had a runnable thread.
    pub periods: u64,
    /// Number of these periods in which the cgroup was throttled.
    pub throttled_periods: u64,
}

impl Cgroups {
    /// Whether any quota kept a thread off a CPU: a thread of the target, or one of another program in the same cgroup.
    #[must_use]
    pub fn any_throttled(&self) -> bool {
        self.quotas.iter().any(|quota| quota.throttled_periods > 0)
    }
}
