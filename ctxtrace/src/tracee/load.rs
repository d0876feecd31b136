//! Measures how much CPU time other programs and the hypervisor take during a measurement, because that disturbs it.

use nix::sys::resource::{UsageWho, getrusage};
use nix::sys::time::TimeValLike;
use procfs::{CurrentSI, KernelStats};

use crate::error::{Error, Result};

/// The CPU times of the machine since its boot and of this process since its start, up to one moment, in nanoseconds.
#[derive(Clone, Copy, Debug)]
pub struct CpuTimes {
    /// The time of all CPUs together.
    all_ns: u64,
    /// The time in which the CPUs were busy, without stolen time.
    busy_ns: u64,
    /// The time in which the CPUs had work but the hypervisor did not let them run (steal).
    stolen_ns: u64,
    /// The CPU time of this process and of its ended children.
    own_ns: u64,
}

/// Shares of the time of all CPUs, from 0 to 1.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Others {
    /// The share of other programs.
    pub share: f64,
    /// The share that the hypervisor took (steal).
    pub stolen: f64,
}

impl CpuTimes {
    /// Reads the times up to now from `/proc/stat`, which counts in ticks of 10 ms, and with `getrusage`.
    ///
    /// # Errors
    ///
    /// If `/proc/stat` cannot be read.
    pub fn now() -> Result<Self> {
        let stat = KernelStats::current().map_err(|error| Error::Workload(format!("reading /proc/stat: {error}")))?;
        let ns_per_tick = 1_000_000_000 / procfs::ticks_per_second().max(1);
        let total = stat.total;
        let stolen = total.steal.unwrap_or(0);
        let interrupts = total.irq.unwrap_or(0) + total.softirq.unwrap_or(0);
        let busy = total.user + total.nice + total.system + interrupts;
        let all = busy + stolen + total.idle + total.iowait.unwrap_or(0);
        let own = |who| {
            getrusage(who).map_or(0, |usage| {
                (usage.user_time().num_nanoseconds() + usage.system_time().num_nanoseconds()) as u64
            })
        };
        Ok(Self {
            all_ns: all * ns_per_tick,
            busy_ns: busy * ns_per_tick,
            stolen_ns: stolen * ns_per_tick,
            own_ns: own(UsageWho::RUSAGE_SELF) + own(UsageWho::RUSAGE_CHILDREN),
        })
    }

    /// Returns the shares of others from `before` to this reading. A share too small to be measured is 0.
    #[must_use]
    pub fn others_since(&self, before: &Self) -> Others {
        let rose = |of: fn(&Self) -> u64| of(self).saturating_sub(of(before)) as f64;
        let all = rose(|load| load.all_ns).max(1.0);
        let others = rose(|load| load.busy_ns) - rose(|load| load.own_ns);
        Others {
            share: (others / all).clamp(0.0, 1.0),
            stolen: (rose(|load| load.stolen_ns) / all).clamp(0.0, 1.0),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_not_ours_is_others() {
        let before = CpuTimes {
            all_ns: 1_000,
            busy_ns: 500,
            stolen_ns: 10,
            own_ns: 100,
        };
        let now = CpuTimes {
            all_ns: 3_000,
            busy_ns: 1_500,
            stolen_ns: 110,
            own_ns: 600,
        };
        assert_eq!(
            now.others_since(&before),
            Others {
                share: 0.25,
                stolen: 0.05
            }
        );
        assert_eq!(before.others_since(&now).share, 0.0);
    }

    #[test]
    fn own_time_is_not_counted_as_others() {
        let before = CpuTimes::now().expect("a reading");
        let mut sum = 0_u64;
        for number in 0..100_000_000_u64 {
            sum = std::hint::black_box(sum.wrapping_add(number));
        }
        let now = CpuTimes::now().expect("a reading");
        assert!(now.own_ns > before.own_ns && now.all_ns >= before.all_ns);
    }
}
