//! The rings of events, mapped into this process. `ctxtrace-ebpf/src/events.rs` is the writing end.
//!
//! Each CPU's ring is in order of time. The rings are merged here, up to a moment `MARGIN_NS` before the drain began. So the
//! order also holds from one drain to the next, unless writing an event to one ring takes longer than this margin while another
//! ring is being read.
//!
//! The order of one thread's switches and wakeups is always right. Each event is in its ring before the kernel proceeds, and
//! therefore before the thread's next event can occur on any CPU; and all rings are read up to the same moment.

use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};
use std::sync::atomic::{AtomicU64, Ordering};

use aya::Ebpf;
use aya::EbpfLoader;
use aya::maps::{Map, MapData, RingBuf};
use ctxtrace_common::event::{EVENT_BYTES, Event, RingState};
use memmap2::{MmapOptions, MmapRaw};
use nix::time::{ClockId, clock_gettime};

use super::{missing, refused};
use crate::error::{Error, Result};
use ctxtrace_format::events::EventSink;

/// Upper bound on the time between an event and its appearance in the ring, nanoseconds. Later ones can be out of order.
const MARGIN_NS: u64 = 1_000_000;

/// Number of events passed to the sink at a time. Their places in the rings are free afterwards.
const BATCH: usize = 4_096;

/// Default size in bytes of all rings together.
pub const DEFAULT_RING_BYTES: usize = 32 << 20;

/// Minimum default size in bytes of each CPU's ring: a hundredth of a second at the highest rate.
const LEAST_PER_CPU: usize = 1 << 20;

/// The number and size of the rings.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Layout {
    cpus: u32,
    /// Number of events that each CPU's ring holds: a power of two.
    capacity: u32,
}

impl Layout {
    /// No rings, for the levels without events.
    pub(super) const NONE: Self = Self { cpus: 1, capacity: 1 };

    /// Rings for all CPUs that are online: `bytes` in total, or [`DEFAULT_RING_BYTES`] with a minimum per CPU if `None`.
    pub(super) fn new(bytes: Option<usize>) -> Result<Self> {
        let online = aya::util::online_cpus().map_err(|(what, error)| Error::system(what)(error))?;
        let cpus = online.into_iter().max().unwrap_or(0) + 1;
        Ok(Self::with_cpus(cpus, bytes))
    }

    fn with_cpus(cpus: u32, bytes: Option<usize>) -> Self {
        let per_cpu = match bytes {
            Some(bytes) => bytes / cpus as usize,
            None => (DEFAULT_RING_BYTES / cpus as usize).max(LEAST_PER_CPU),
        };
        // At most as many events as an array index in the kernel can address.
        let most = (1 << 31) / cpus as usize;
        let events = (per_cpu / EVENT_BYTES).clamp(2, most);
        Self {
            cpus,
            capacity: 1 << events.ilog2(),
        }
    }

    /// Applies the layout to the maps before they are created.
    pub(super) fn apply<'a>(&'a self, loader: &mut EbpfLoader<'a>) {
        loader.override_global("RING_CAPACITY", &self.capacity, true);
        loader.map_max_entries("RINGS", self.cpus);
        loader.map_max_entries("EVENTS", self.cpus * self.capacity);
    }
}

/// The rings of a running session.
pub(super) struct EventRings {
    /// A [`RingState`] for each CPU.
    states: MmapRaw,
    /// The events of all CPUs, one ring after the other.
    events: MmapRaw,
    capacity: u64,
    /// The number of the next event to read, by CPU.
    read: Vec<u64>,
    batch: Vec<Event>,
    half_full: RingBuf<MapData>,
}

impl EventRings {
    pub(super) fn new(ebpf: &mut Ebpf, layout: Layout) -> Result<Self> {
        let map = ebpf.take_map("HALF_FULL").ok_or_else(|| missing("HALF_FULL"))?;
        let cpus = layout.cpus as usize;
        Ok(Self {
            states: mapped(ebpf, "RINGS", cpus * size_of::<RingState>())?,
            events: mapped(ebpf, "EVENTS", cpus * layout.capacity as usize * EVENT_BYTES)?,
            capacity: u64::from(layout.capacity),
            read: vec![0; cpus],
            batch: Vec::with_capacity(BATCH),
            half_full: RingBuf::try_from(map).map_err(refused("map a ring"))?,
        })
    }

    /// A descriptor that becomes readable when a ring is half full.
    pub(super) fn fd(&self) -> BorrowedFd<'_> {
        // SAFETY: the ring, and therefore its descriptor, lives as long as `self`.
        unsafe { BorrowedFd::borrow_raw(self.half_full.as_raw_fd()) }
    }

    /// Sends the events up to a moment shortly before now to the sink, and returns that moment.
    pub(super) fn drain(&mut self, sink: &mut dyn EventSink) -> u64 {
        // The time must be read before the rings, as the module's documentation explains.
        let now_ns = monotonic_ns();
        while self.half_full.next().is_some() {}
        let end_ns = now_ns.saturating_sub(MARGIN_NS);
        self.drain_until(end_ns, sink);
        end_ns
    }

    /// Sends all events. Call it when no BPF program runs any more.
    pub(super) fn drain_all(&mut self, sink: &mut dyn EventSink) {
        self.drain_until(u64::MAX, sink);
    }

    fn drain_until(&mut self, end_ns: u64, sink: &mut dyn EventSink) {
        let written: Vec<u64> = (0..self.read.len())
            .map(|cpu| {
                self.state(cpu, std::mem::offset_of!(RingState, written))
                    .load(Ordering::Acquire)
            })
            .collect();
        // The CPUs that have unread events, ordered by the time of their first one.
        let mut next: BinaryHeap<Reverse<(u64, usize)>> = BinaryHeap::with_capacity(written.len());
        for (cpu, &written) in written.iter().enumerate() {
            if let Some(at_ns) = self.next_of(cpu, written, end_ns) {
                next.push(Reverse((at_ns, cpu)));
            }
        }
        while let Some(Reverse((_, cpu))) = next.pop() {
            // Take every event up to and including the time of the next CPU's first one.
            let until_ns = next
                .peek()
                .map_or(end_ns, |Reverse((at_ns, _))| at_ns.saturating_add(1));
            while self.next_of(cpu, written[cpu], until_ns).is_some() {
                self.batch.push(self.event(cpu, self.read[cpu]));
                self.read[cpu] += 1;
                if self.batch.len() == BATCH {
                    self.hand_over(sink);
                }
            }
            if let Some(at_ns) = self.next_of(cpu, written[cpu], end_ns) {
                next.push(Reverse((at_ns, cpu)));
            }
        }
        self.hand_over(sink);
    }

    /// The time of a CPU's first unread event, if it is before `end_ns`.
    fn next_of(&self, cpu: usize, written: u64, end_ns: u64) -> Option<u64> {
        if self.read[cpu] == written {
            return None;
        }
        let at_ns = self.event(cpu, self.read[cpu]).at_ns;
        (at_ns < end_ns).then_some(at_ns)
    }

    fn hand_over(&mut self, sink: &mut dyn EventSink) {
        if self.batch.is_empty() {
            return;
        }
        sink.events(&self.batch);
        self.batch.clear();
        for (cpu, &read) in self.read.iter().enumerate() {
            self.state(cpu, std::mem::offset_of!(RingState, read))
                .store(read, Ordering::Release);
        }
    }

    /// One of the two counters of a CPU's [`RingState`].
    fn state(&self, cpu: usize, offset: usize) -> &AtomicU64 {
        debug_assert!(cpu < self.read.len());
        let at = cpu * size_of::<RingState>() + offset;
        // SAFETY: the address is within the mapping, which has a state for each CPU and begins at a page. Both sides change the
        // counters only with single aligned stores.
        unsafe { &*self.states.as_mut_ptr().add(at).cast::<AtomicU64>() }
    }

    /// Reads an event that has been written and whose place has not been given back.
    fn event(&self, cpu: usize, number: u64) -> Event {
        let place = cpu as u64 * self.capacity + (number & (self.capacity - 1));
        // SAFETY: the address is within the mapping, which has `capacity` places for each CPU. The BPF programs do not write to
        // this place until `read` has passed it.
        unsafe { self.events.as_ptr().cast::<Event>().add(place as usize).read() }
    }
}

/// Maps an array of the BPF object into this process.
fn mapped(ebpf: &mut Ebpf, name: &'static str, bytes: usize) -> Result<MmapRaw> {
    let Some(Map::Array(map)) = ebpf.map(name) else {
        return Err(missing(name));
    };
    MmapOptions::new()
        .len(bytes)
        .map_raw(map.fd().as_fd().as_raw_fd())
        .map_err(Error::system("mapping the rings of events"))
}

/// The current time on the events' clock.
pub(super) fn monotonic_ns() -> u64 {
    // The clock exists on every Linux. If reading it failed, the time 0 would postpone all events to the final drain.
    clock_gettime(ClockId::CLOCK_MONOTONIC).map_or(0, |now| now.tv_sec() as u64 * 1_000_000_000 + now.tv_nsec() as u64)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rings_are_a_power_of_two_and_fit_what_they_are_given() {
        for (cpus, bytes, capacity) in [
            (2, None, 1 << 18),
            (1, Some(EVENT_BYTES * 1_024), 1_024),
            (2, Some(EVENT_BYTES * 1_024), 512),
            (3, Some(EVENT_BYTES * 1_024), 256),
            (2, Some(0), 2),
            (4, Some(usize::MAX), 1 << 29),
        ] {
            assert_eq!(Layout::with_cpus(cpus, bytes), Layout { cpus, capacity }, "{bytes:?}");
        }
        assert!(Layout::with_cpus(256, None).capacity as usize * EVENT_BYTES >= LEAST_PER_CPU / 2);
    }
}
