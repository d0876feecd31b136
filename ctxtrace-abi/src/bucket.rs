//! Log-linear buckets, shared by the traced program, the kernel side and ctxtrace.
//!
//! The bucket of a value is given by the highest set bit of the value (the power of two at or below it) and by the next
//! [`SUB_BITS`] bits (which of 16 equal parts of that power of two). Each value below 16 has a bucket of its own. A
//! bucket is therefore never wider than 1/16 of its lower bound, and its midpoint is within 3.2 % of every value in it,
//! which is more precise than the 7 % that is promised for percentiles. The idea is `HdrHistogram`'s. The buckets cover
//! all of `u64`, so no value is clamped and none overflows.

/// log2 of the number of equal parts into which a power of two is divided.
pub const SUB_BITS: u32 = 4;
/// Number of equal parts into which a power of two is divided.
pub const SUB_BUCKETS: usize = 1 << SUB_BITS;
/// Number of buckets needed for all of `u64`: 16 exact ones, then 16 for each of the powers of two from 2^4 to 2^63.
pub const BUCKETS: usize = SUB_BUCKETS + (64 - SUB_BITS as usize) * SUB_BUCKETS;

/// Returns the bucket that a value belongs to, which is always below [`BUCKETS`].
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

/// Returns the smallest value of a bucket. `bucket` must be below [`BUCKETS`].
#[must_use]
pub fn lower_bound(bucket: usize) -> u64 {
    if bucket < SUB_BUCKETS {
        return bucket as u64;
    }
    let exponent = ((bucket - SUB_BUCKETS) / SUB_BUCKETS) as u32 + SUB_BITS;
    let sub = ((bucket - SUB_BUCKETS) % SUB_BUCKETS) as u64;
    (1 << exponent) | (sub << (exponent - SUB_BITS))
}

/// Returns the largest value of a bucket. `bucket` must be below [`BUCKETS`].
#[must_use]
pub fn upper_bound(bucket: usize) -> u64 {
    if bucket + 1 < BUCKETS {
        lower_bound(bucket + 1) - 1
    } else {
        u64::MAX
    }
}

/// Returns the position of the highest set bit of a value that is not 0.
///
/// BPF has no count-leading-zeroes instruction. Six comparisons are cheaper there than LLVM's expansion of
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
}
