//! The rings of events, mapped into this process: see `ctxtrace-ebpf/src/events.rs` for the other end.
//!
//! Each CPU's ring is in the order of time. They are merged here, up to a moment a little before the draining began
//! (`MARGIN_NS`), so that the order holds from one draining to the next as well: an event on its way into one ring while
//! another one is read is not missed by more than the time it takes to write it.
//!
//! The order of one thread's switches and wakings is safe in any case. Each is there before the kernel goes on, so before
//! the thread can meet its next one, on whichever CPU; and what is taken here is cut at one moment for all CPUs.

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
use crate::trace::events::EventSink;

/// How long an event may be on its way into the ring without coming late for its place in the order.
const MARGIN_NS: u64 = 1_000_000;

/// Events handed over at a time; their places in the rings are free when they have been.
const BATCH: usize = 4_096;

/// The size of all rings together, if nobody says otherwise.
pub const DEFAULT_RING_BYTES: usize = 32 << 20;

/// Yet for each CPU at least this much: a hundredth of a second at the highest rate.
const LEAST_PER_CPU: usize = 1 << 20;

/// How the rings are laid out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Layout {
    cpus: u32,
    /// Events that each CPU's ring holds: a power of two.
    capacity: u32,
}

impl Layout {
    /// No rings: for the levels without events.
    pub(super) const NONE: Self = Self { cpus: 1, capacity: 1 };

    /// Rings for all CPUs that are online, of so many bytes together, or of as many as is sensible.
    pub(super) fn new(bytes: Option<usize>) -> Result<Self> {
        let online = aya::util::online_cpus().map_err(|(what, error)| Error::system(what)(error))?;
        let cpus = online.into_iter().max().unwrap_or(0) + 1;
        Ok(Self::of(cpus, bytes))
    }

    fn of(cpus: u32, bytes: Option<usize>) -> Self {
        let per_cpu = match bytes {
            Some(bytes) => bytes / cpus as usize,
            None => (DEFAULT_RING_BYTES / cpus as usize).max(LEAST_PER_CPU),
        };
        // At most as many as the index of an array in the kernel can tell apart.
        let most = (1 << 31) / cpus as usize;
        let events = (per_cpu / EVENT_BYTES).clamp(2, most);
        Self {
            cpus,
            capacity: 1 << events.ilog2(),
        }
    }

    /// Tells the loader.
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
    /// The events, one CPU's after the other's.
    events: MmapRaw,
    capacity: u64,
    /// Where reading goes on, by CPU.
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

    /// Becomes readable when a ring is half full.
    pub(super) fn fd(&self) -> BorrowedFd<'_> {
        // SAFETY: the ring, and with it the descriptor, lives as long as `self`.
        unsafe { BorrowedFd::borrow_raw(self.half_full.as_raw_fd()) }
    }

    /// Hands over what has happened up to a moment ago, and tells what moment that is.
    pub(super) fn drain(&mut self, sink: &mut dyn EventSink) -> u64 {
        // Before anything is read: see the text of this module.
        let now_ns = monotonic_ns();
        while self.half_full.next().is_some() {}
        let end_ns = now_ns.saturating_sub(MARGIN_NS);
        self.drain_until(end_ns, sink);
        end_ns
    }

    /// Hands over everything. To be called when no program runs any more.
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
        // The CPUs that have events left, by the time of the first of them.
        let mut next: BinaryHeap<Reverse<(u64, usize)>> = BinaryHeap::with_capacity(written.len());
        for (cpu, &written) in written.iter().enumerate() {
            if let Some(at_ns) = self.next_of(cpu, written, end_ns) {
                next.push(Reverse((at_ns, cpu)));
            }
        }
        while let Some(Reverse((_, cpu))) = next.pop() {
            // All that comes before the next CPU's first, or its equal in time.
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

    /// The time of a CPU's first event that is not read, if it is before `end_ns`.
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

    /// One of the two numbers of a CPU's [`RingState`].
    fn state(&self, cpu: usize, offset: usize) -> &AtomicU64 {
        debug_assert!(cpu < self.read.len());
        let at = cpu * size_of::<RingState>() + offset;
        // SAFETY: within the mapping, which has a state for each CPU and begins at a page, and both sides change the
        // numbers with single aligned stores only.
        unsafe { &*self.states.as_mut_ptr().add(at).cast::<AtomicU64>() }
    }

    /// An event that has been written and not been given back.
    fn event(&self, cpu: usize, number: u64) -> Event {
        let place = cpu as u64 * self.capacity + (number & (self.capacity - 1));
        // SAFETY: within the mapping, which has so many places for each CPU; and the kernel side does not write to this one
        // until `read` has passed it.
        unsafe { self.events.as_ptr().cast::<Event>().add(place as usize).read() }
    }
}

/// Maps an array of the kernel side's.
fn mapped(ebpf: &mut Ebpf, name: &'static str, bytes: usize) -> Result<MmapRaw> {
    let Some(Map::Array(map)) = ebpf.map(name) else {
        return Err(missing(name));
    };
    MmapOptions::new()
        .len(bytes)
        .map_raw(map.fd().as_fd().as_raw_fd())
        .map_err(Error::system("mapping the rings of events"))
}

/// The clock of the events.
pub(super) fn monotonic_ns() -> u64 {
    // The clock exists on every Linux; a time of 0 would put the draining off to the end.
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
            assert_eq!(Layout::of(cpus, bytes), Layout { cpus, capacity }, "{bytes:?}");
        }
        assert!(Layout::of(256, None).capacity as usize * EVENT_BYTES >= LEAST_PER_CPU / 2);
    }
}
