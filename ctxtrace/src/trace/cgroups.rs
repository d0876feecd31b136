//! What the kernel says of the cgroups that the target was in while it was recorded.

use serde::{Deserialize, Serialize};

/// The cgroups of one recording.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Cgroups {
    /// Those with a CPU quota, and what it did, by path.
    pub quotas: Vec<Quota>,
    /// Why the quotas are not known; `None` if they are.
    pub unreadable: Option<String>,
    /// Paths of those that were frozen when they were looked at.
    pub frozen: Vec<String>,
    /// Whether the kernel says of each thread that a quota keeps it off the CPU.
    pub threads_known: bool,
}

/// What one cgroup's CPU quota did, as far as its `cpu.stat` rose while it was looked at.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Quota {
    /// The cgroup's path in its hierarchy.
    pub path: String,
    /// How long it was throttled, all CPUs added up.
    pub throttled_ns: u64,
    /// Periods in which it had anything to run.
    pub periods: u64,
    /// Of them, those in which it was throttled.
    pub throttled_periods: u64,
}

impl Cgroups {
    /// Whether any quota kept anything off a CPU, be it the target or another program of the same cgroup.
    #[must_use]
    pub fn any_throttled(&self) -> bool {
        self.quotas.iter().any(|quota| quota.throttled_periods > 0)
    }
}
