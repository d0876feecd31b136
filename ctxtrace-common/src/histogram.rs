//! Distributions of nanoseconds that are counted in the kernel, in the log-linear buckets of [`ctxtrace_abi::bucket`].

use bytemuck::{Pod, Zeroable};

use crate::bound::element;

pub use ctxtrace_abi::bucket::{BUCKETS, SUB_BITS, SUB_BUCKETS, bucket_of, lower_bound, upper_bound};

/// One distribution of nanoseconds, as stored in the kernel's per-CPU memory.
///
/// `count`, `sum_ns`, `min_plus_one_ns` and `max_ns` are exact. Only percentiles, which are computed from `buckets`,
/// are approximate.
#[repr(C)]
#[derive(Clone, Copy, Debug, Pod, Zeroable)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub struct Histogram {
    /// Number of values recorded.
    pub count: u64,
    /// Sum of the values, in nanoseconds.
    pub sum_ns: u64,
    /// Smallest value plus one; 0 while the histogram is empty (kernel memory starts as zeroes).
    pub min_plus_one_ns: u64,
    /// Largest value.
    pub max_ns: u64,
    /// Number of values per bucket, indexed by [`bucket_of`].
    #[cfg_attr(feature = "serde", serde(with = "crate::sparse"))]
    pub buckets: [u64; BUCKETS],
}

const _: () = assert!(size_of::<Histogram>() == 32 + 8 * 976);
// A per-CPU map value may not be larger than PCPU_MIN_UNIT_SIZE, 32 KiB (kernel: include/linux/percpu.h).
const _: () = assert!(size_of::<Histogram>() <= 32 << 10);

impl Histogram {
    /// A histogram without values.
    pub const EMPTY: Self = Self {
        count: 0,
        sum_ns: 0,
        min_plus_one_ns: 0,
        max_ns: 0,
        buckets: [0; BUCKETS],
    };

    /// Records one value of `ns` nanoseconds.
    #[inline(always)]
    pub fn record(&mut self, ns: u64) {
        self.count += 1;
        self.sum_ns = self.sum_ns.wrapping_add(ns);
        if ns > self.max_ns {
            self.max_ns = ns;
        }
        if self.min_plus_one_ns == 0 || ns < self.min_plus_one_ns - 1 {
            self.min_plus_one_ns = ns.saturating_add(1);
        }
        if let Some(bucket) = element(&mut self.buckets, bucket_of(ns)) {
            *bucket += 1;
        }
    }
}

/// The five latency distributions. The number is the index in the kernel's array.
#[repr(u32)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Latency {
    /// From switch-out to switch-in.
    OffCpu = 0,
    /// From switch-out to the end of the sleep.
    Blocked = 1,
    /// From the end of the sleep (or the switch-out, if the thread was still runnable) to switch-in.
    RunQueue = 2,
    /// From switch-in to switch-out.
    OnCpu = 3,
    /// From the wakeup that ended the sleep to switch-in.
    WakeToRun = 4,
}

impl Latency {
    /// All distributions, in the order of their numbers.
    pub const ALL: [Self; 5] = [
        Self::OffCpu,
        Self::Blocked,
        Self::RunQueue,
        Self::OnCpu,
        Self::WakeToRun,
    ];

    /// Number of distributions.
    pub const COUNT: u32 = Self::ALL.len() as u32;
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn extremes_and_sum_are_exact() {
        let mut histogram = Histogram::EMPTY;
        for ns in [700, 3, 90_000] {
            histogram.record(ns);
        }
        assert_eq!(histogram.count, 3);
        assert_eq!(histogram.sum_ns, 90_703);
        assert_eq!(histogram.min_plus_one_ns, 4);
        assert_eq!(histogram.max_ns, 90_000);
    }

    #[test]
    fn zero_is_a_value_like_any_other() {
        let mut histogram = Histogram::EMPTY;
        histogram.record(0);
        histogram.record(5);
        assert_eq!(histogram.min_plus_one_ns, 1);
        assert_eq!(histogram.buckets[0], 1);
    }
}
