//! How busy the machine was with others, over a while: what they take, a measurement lacks.

use nix::sys::resource::{UsageWho, getrusage};
use nix::sys::time::TimeValLike;
use procfs::{CurrentSI, KernelStats};

use crate::error::{Error, Result};

/// What the CPUs had done up to a moment.
#[derive(Clone, Copy, Debug)]
pub struct Load {
    /// Time of all CPUs, nanoseconds.
    all_ns: u64,
    /// Of it, with something to do.
    busy_ns: u64,
    /// Of it, with something to do, while the hypervisor had the CPU do something else.
    stolen_ns: u64,
    /// What this process and its children that have ended had of it.
    own_ns: u64,
}

/// Shares of the time of all CPUs, 0 to 1.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Others {
    /// What other programs had.
    pub share: f64,
    /// What the hypervisor took.
    pub stolen: f64,
}

impl Load {
    /// Up to now: `/proc/stat`, in units of a tick (10 ms), and `getrusage`.
    ///
    /// # Errors
    ///
    /// If the kernel does not tell.
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

    /// What others had from `before` to now. 0 where that is less than can be told.
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
        let before = Load {
            all_ns: 1_000,
            busy_ns: 500,
            stolen_ns: 10,
            own_ns: 100,
        };
        let now = Load {
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
    fn this_process_is_not_somebody_else() {
        let before = Load::now().expect("told");
        let mut sum = 0_u64;
        for number in 0..100_000_000_u64 {
            sum = std::hint::black_box(sum.wrapping_add(number));
        }
        let now = Load::now().expect("told");
        assert!(now.own_ns > before.own_ns && now.all_ns >= before.all_ns);
    }
}
