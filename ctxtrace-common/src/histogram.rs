//! Log-linear histogram buckets, the same in the kernel and in user space.
//!
//! A value is placed by its highest set bit (the power of two it lies in) and by the next [`SUB_BITS`] bits (which of 16
//! equal parts of that power of two). Values below 16 have a bucket each. A bucket is therefore never wider than 1/16 of
//! its lower bound, and its midpoint is within 3.2 % of every value in it: finer than the 7 % that the percentiles promise.
//! The idea is `HdrHistogram`'s; the array covers all of `u64`, so there is no clamping and no overflow bucket.

use bytemuck::{Pod, Zeroable};

/// log2 of the number of equal parts a power of two is divided in.
pub const SUB_BITS: u32 = 4;
/// Number of equal parts a power of two is divided in.
pub const SUB_BUCKETS: usize = 1 << SUB_BITS;
/// Number of buckets needed for all of `u64`: 16 exact ones, then 16 for each of the powers of two from 2^4 to 2^63.
pub const BUCKETS: usize = SUB_BUCKETS + (64 - SUB_BITS as usize) * SUB_BUCKETS;

/// One distribution of nanoseconds, as it lies in the kernel's per-CPU memory.
///
/// `count`, `sum_ns`, `min_ns` and `max_ns` are exact; only the percentiles taken from `buckets` are approximate.
#[repr(C)]
#[derive(Clone, Copy, Debug, Pod, Zeroable)]
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
    pub buckets: [u64; BUCKETS],
}

const _: () = assert!(size_of::<Histogram>() == 32 + 8 * 976);
// A per-CPU map value may not be larger than PCPU_MIN_UNIT_SIZE, 32 KiB (kernel: include/linux/percpu.h).
const _: () = assert!(size_of::<Histogram>() <= 32 << 10);

impl Histogram {
    /// A histogram with nothing in it.
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
        if let Some(bucket) = self.buckets.get_mut(bucket_of(ns)) {
            *bucket += 1;
        }
    }
}

/// The five distributions of the contract, and their place in the kernel's array.
#[repr(u32)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Latency {
    /// Switch-out to switch-in.
    OffCpu = 0,
    /// Switch-out to the end of the sleep.
    Blocked = 1,
    /// End of the sleep (or the switch-out, if still runnable) to switch-in.
    RunQueue = 2,
    /// Switch-in to switch-out.
    OnCpu = 3,
    /// The waking that ended the sleep to switch-in.
    WakeToRun = 4,
}

impl Latency {
    /// How many distributions there are.
    pub const COUNT: u32 = 5;
}

/// The bucket a value belongs to; always below [`BUCKETS`].
#[inline(always)]
#[must_use]
pub fn bucket_of(ns: u64) -> usize {
    if ns < SUB_BUCKETS as u64 {
        return ns as usize;
    }
    let exponent = highest_bit(ns);
    let sub = (ns >> (exponent - SUB_BITS)) as usize & (SUB_BUCKETS - 1);
    SUB_BUCKETS + (exponent - SUB_BITS) as usize * SUB_BUCKETS + sub
}

/// The smallest value of a bucket. `bucket` must be below [`BUCKETS`].
#[must_use]
pub fn lower_bound(bucket: usize) -> u64 {
    if bucket < SUB_BUCKETS {
        return bucket as u64;
    }
    let exponent = ((bucket - SUB_BUCKETS) / SUB_BUCKETS) as u32 + SUB_BITS;
    let sub = ((bucket - SUB_BUCKETS) % SUB_BUCKETS) as u64;
    (1 << exponent) | (sub << (exponent - SUB_BITS))
}

/// The largest value of a bucket. `bucket` must be below [`BUCKETS`].
#[must_use]
pub fn upper_bound(bucket: usize) -> u64 {
    if bucket + 1 < BUCKETS {
        lower_bound(bucket + 1) - 1
    } else {
        u64::MAX
    }
}

/// Position of the highest set bit of a value that is not 0.
///
/// BPF has no count-leading-zeroes instruction; six comparisons are cheaper there than LLVM's expansion of
/// `leading_zeros` (shifts, ors and a population count).
#[inline(always)]
fn highest_bit(mut value: u64) -> u32 {
    let mut bit = 0;
    if value >> 32 != 0 {
        value >>= 32;
        bit += 32;
    }
    if value >> 16 != 0 {
        value >>= 16;
        bit += 16;
    }
    if value >> 8 != 0 {
        value >>= 8;
        bit += 8;
    }
    if value >> 4 != 0 {
        value >>= 4;
        bit += 4;
    }
    if value >> 2 != 0 {
        value >>= 2;
        bit += 2;
    }
    if value >> 1 != 0 {
        bit += 1;
    }
    bit
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn highest_bit_agrees_with_leading_zeros() {
        for bit in 0..64 {
            for value in [1_u64 << bit, (1 << bit) | 1, (1 << bit) | ((1 << bit) - 1)] {
                assert_eq!(highest_bit(value), 63 - value.leading_zeros(), "{value:#x}");
            }
        }
    }

    #[test]
    fn buckets_tile_the_whole_range_without_gap_or_overlap() {
        assert_eq!(lower_bound(0), 0);
        for bucket in 0..BUCKETS {
            let (low, high) = (lower_bound(bucket), upper_bound(bucket));
            assert!(low <= high);
            assert_eq!(bucket_of(low), bucket);
            assert_eq!(bucket_of(high), bucket);
            if bucket > 0 {
                assert_eq!(upper_bound(bucket - 1) + 1, low);
            }
        }
        assert_eq!(bucket_of(u64::MAX), BUCKETS - 1);
    }

    #[test]
    fn a_buckets_midpoint_is_within_four_percent_of_its_values() {
        for bucket in SUB_BUCKETS..BUCKETS {
            let (low, high) = (lower_bound(bucket) as f64, upper_bound(bucket) as f64);
            let middle = f64::midpoint(low, high);
            assert!(
                (middle - low) / low < 0.04 && (high - middle) / high < 0.04,
                "bucket {bucket}"
            );
        }
    }

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
