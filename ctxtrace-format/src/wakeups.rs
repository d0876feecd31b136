//! The wakeups along one edge, stored compactly, because there may be very many edges.

use ctxtrace_common::wakeup::{EDGE_BUCKETS, Edge, EdgeKey};
use serde::{Deserialize, Serialize};

use crate::sums::add;

/// The sums of one [`Edge`], with only the non-empty buckets.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct EdgeSums {
    /// Number of wakeups that ended a sleep.
    pub count: u64,
    /// Number of these wakeups after which the woken worker polled nothing and parked again.
    pub wasted: u64,
    /// On-CPU time of the woken thread after these wasted wakeups, nanoseconds.
    pub wasted_on_cpu_ns: u64,
    /// Number of wakeups for which the waker's time was measured.
    pub timed: u64,
    /// Time that the waker spent on these measured wakeups, on its CPU, nanoseconds.
    pub waking_ns: u64,
    /// Sum of the wake-to-run times, nanoseconds.
    pub sum_ns: u64,
    /// The longest wake-to-run time, nanoseconds.
    pub max_ns: u64,
    /// Histogram of the wake-to-run times in log-linear buckets: index and count of each non-empty bucket, ordered by index.
    pub buckets: Vec<(u16, u64)>,
}

impl EdgeSums {
    /// All buckets, including the empty ones.
    #[must_use]
    pub fn buckets(&self) -> [u64; EDGE_BUCKETS] {
        let mut all = [0; EDGE_BUCKETS];
        for &(index, count) in &self.buckets {
            // An index from a file may be out of range.
            if let Some(bucket) = all.get_mut(usize::from(index)) {
                *bucket = count;
            }
        }
        all
    }
}

impl From<&Edge> for EdgeSums {
    fn from(edge: &Edge) -> Self {
        let Edge {
            count,
            wasted,
            wasted_on_cpu_ns,
            timed,
            waking_ns,
            sum_ns,
            max_ns,
            buckets,
        } = edge;
        Self {
            count: *count,
            wasted: *wasted,
            wasted_on_cpu_ns: *wasted_on_cpu_ns,
            timed: *timed,
            waking_ns: *waking_ns,
            sum_ns: *sum_ns,
            max_ns: *max_ns,
            buckets: filled(buckets),
        }
    }
}

impl std::ops::AddAssign<&Self> for EdgeSums {
    fn add_assign(&mut self, other: &Self) {
        let Self {
            count,
            wasted,
            wasted_on_cpu_ns,
            timed,
            waking_ns,
            sum_ns,
            max_ns,
            buckets: _,
        } = other;
        add(&mut self.count, *count);
        add(&mut self.wasted, *wasted);
        add(&mut self.wasted_on_cpu_ns, *wasted_on_cpu_ns);
        add(&mut self.timed, *timed);
        add(&mut self.waking_ns, *waking_ns);
        self.sum_ns = self.sum_ns.wrapping_add(*sum_ns);
        self.max_ns = self.max_ns.max(*max_ns);
        let mut buckets = self.buckets();
        for (sum, count) in buckets.iter_mut().zip(other.buckets()) {
            add(sum, count);
        }
        self.buckets = filled(&buckets);
    }
}

fn filled(buckets: &[u64; EDGE_BUCKETS]) -> Vec<(u16, u64)> {
    let all = buckets.iter().enumerate();
    all.filter(|&(_, &count)| count > 0)
        .map(|(index, &count)| (index as u16, count))
        .collect()
}

/// The key of the sum of those edges that are not kept individually: one for each origin and woken process.
#[must_use]
pub fn others(key: &EdgeKey) -> EdgeKey {
    EdgeKey {
        from_task: 0,
        from_tid: 0,
        from_tgid: 0,
        from_image: 0,
        origin: key.origin,
        generation: 0,
        to_tid: 0,
        to_tgid: key.to_tgid,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn edge(times_ns: &[u64]) -> Edge {
        let mut edge = Edge::EMPTY;
        times_ns.iter().for_each(|&ns| edge.record(ns));
        edge
    }

    #[test]
    fn sums_of_two_parts_are_those_of_the_whole() {
        let mut sums = EdgeSums::from(&edge(&[70, 5_000, 5_000]));
        sums += &EdgeSums::from(&edge(&[5_000, 1 << 40]));
        assert_eq!(sums, EdgeSums::from(&edge(&[70, 5_000, 5_000, 5_000, 1 << 40])));
        assert_eq!(sums.buckets().iter().sum::<u64>(), 5);
    }

    #[test]
    fn they_are_stored_as_an_edge_is() {
        let whole = edge(&[70, 5_000]);
        let mut bytes = Vec::new();
        ciborium::into_writer(&whole, &mut bytes).expect("encoded");
        let sums: EdgeSums = ciborium::from_reader(bytes.as_slice()).expect("decoded");
        assert_eq!(sums, EdgeSums::from(&whole));
        let mut again = Vec::new();
        ciborium::into_writer(&sums, &mut again).expect("encoded");
        assert_eq!(again, bytes);
    }
}
