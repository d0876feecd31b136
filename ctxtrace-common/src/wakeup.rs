//! Who woke whom.

use bytemuck::{Pod, Zeroable};

use crate::bound::element;
use crate::histogram::{SUB_BITS, SUB_BUCKETS, bucket_of};
use crate::process::Image;
use crate::stack::SwitchSum;
use crate::words::store;

/// Buckets of an edge's distribution: everything below 2^36 ns (69 s), then one for the rest.
pub const EDGE_BUCKETS: usize = SUB_BUCKETS * (36 - SUB_BITS as usize + 1) + 1;

/// What made a wakeup.
#[repr(u32)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Origin {
    /// Not known.
    Unknown = 0,
    /// An interrupt or softirq: a timer, a device. Never the thread that it interrupted.
    Interrupt = 1,
    /// A thread of the target, polling a task.
    Task = 2,
    /// A runtime's thread, between polls.
    Runtime = 3,
    /// Any other thread of the target.
    Thread = 4,
    /// A thread that is not the target's.
    Outside = 5,
}

impl Origin {
    /// The origin of this number.
    #[must_use]
    pub fn from_number(number: u32) -> Self {
        match number {
            1 => Self::Interrupt,
            2 => Self::Task,
            3 => Self::Runtime,
            4 => Self::Thread,
            5 => Self::Outside,
            _ => Self::Unknown,
        }
    }
}

/// The maker of a wakeup, as it is noted in the record of the thread that is woken.
///
/// A thread outside the target has no task and no program that is known. Where it is the maker ([`Origin::Outside`]), the name that it has at
/// that moment takes their place: its first half that of `task`, its second half that of `tgid` and `image`. So the name is a part of every
/// key that is made of a maker, and a thread that gets another name is another maker. [`Waker::task()`] and [`Waker::program`] say nothing of
/// such a thread, and [`Waker::outsider_name`] is its name.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord, Pod, Zeroable)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub struct Waker {
    /// See [`Waker::task()`].
    pub task: u64,
    /// Its stack in the kernel, as a key of the stack table, or 0; only where stacks of wakers are taken.
    pub kernel_stack: u64,
    /// Its stack in user space, likewise.
    pub user_stack: u64,
    /// Thread id; 0 for an interrupt.
    pub tid: u32,
    /// See [`Waker::program`].
    pub tgid: u32,
    /// See [`Waker::program`].
    pub image: u32,
    /// An [`Origin`].
    pub origin: u32,
}

const _: () = assert!(size_of::<Waker>() == 40);

/// The name of a thread outside the target, out of the fields that it takes the place of.
fn name_in(task: u64, tgid: u32, image: u32) -> [u8; 16] {
    bytemuck::cast([task, u64::from(tgid) | u64::from(image) << 32])
}

impl Waker {
    /// Nobody is known. Word by word, for it is done at each waking.
    #[inline(always)]
    pub fn clear(&mut self) {
        store(&mut self.task, 0);
        store(&mut self.kernel_stack, 0);
        store(&mut self.user_stack, 0);
        store(&mut self.tid, 0);
        store(&mut self.tgid, 0);
        store(&mut self.image, 0);
        store(&mut self.origin, Origin::Unknown as u32);
    }

    /// The maker is a thread of the target, in this program.
    #[inline(always)]
    pub fn set_program(&mut self, program: Image) {
        store(&mut self.tgid, program.tgid);
        store(&mut self.image, program.number);
    }

    /// The maker polls this task of its program; 0 for none.
    #[inline(always)]
    pub fn set_task(&mut self, task: u64) {
        store(&mut self.task, task);
    }

    /// The maker is a thread outside the target that has this name, padded with zeroes.
    #[inline(always)]
    pub fn set_outsider(&mut self, name: [u64; 2]) {
        self.origin = Origin::Outside as u32;
        store(&mut self.task, name[0]);
        store(&mut self.tgid, name[1] as u32);
        store(&mut self.image, (name[1] >> 32) as u32);
    }

    /// A thread of the target, or none, that polls this task of this program; without stacks.
    #[must_use]
    pub fn new(origin: Origin, tid: u32, program: Image, task: u64) -> Self {
        Self {
            task,
            kernel_stack: 0,
            user_stack: 0,
            tid,
            tgid: program.tgid,
            image: program.number,
            origin: origin as u32,
        }
    }

    /// As it is in an event, by the words that [`Waker::words`] gave.
    #[must_use]
    pub fn from_words(tid: u32, origin: u32, [task, program]: [u64; 2]) -> Self {
        Self {
            task,
            kernel_stack: 0,
            user_stack: 0,
            tid,
            tgid: program as u32,
            image: (program >> 32) as u32,
            origin,
        }
    }

    /// Task and program, or the name, in two words.
    #[inline(always)]
    #[must_use]
    pub fn words(&self) -> [u64; 2] {
        [self.task, u64::from(self.tgid) | u64::from(self.image) << 32]
    }

    /// Whether it is a thread of the target.
    #[inline(always)]
    #[must_use]
    pub fn is_of_target(&self) -> bool {
        self.origin != Origin::Outside as u32 && self.tgid != 0
    }

    /// The task it was polling, or 0.
    #[must_use]
    pub fn task(&self) -> u64 {
        if self.is_of_target() { self.task } else { 0 }
    }

    /// The program it runs; process 0 for what is not the target's.
    #[must_use]
    pub fn program(&self) -> Image {
        if self.is_of_target() {
            Image {
                tgid: self.tgid,
                number: self.image,
            }
        } else {
            Image::default()
        }
    }

    /// The name of a thread outside the target, padded with zeroes. Captures of versions before this was recorded have zeroes alone.
    #[must_use]
    pub fn outsider_name(&self) -> Option<[u8; 16]> {
        (self.origin == Origin::Outside as u32).then(|| name_in(self.task, self.tgid, self.image))
    }

    /// Becomes the other one, likewise.
    #[inline(always)]
    pub fn become_like(&mut self, other: &Self) {
        store(&mut self.task, other.task);
        store(&mut self.kernel_stack, other.kernel_stack);
        store(&mut self.user_stack, other.user_stack);
        store(&mut self.tid, other.tid);
        store(&mut self.tgid, other.tgid);
        store(&mut self.image, other.image);
        store(&mut self.origin, other.origin);
    }
}

/// From whom to whom; key of the table of edges.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Pod, Zeroable)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub struct EdgeKey {
    /// As in [`Waker`].
    pub from_task: u64,
    /// The thread that woke, or 0.
    pub from_tid: u32,
    /// As in [`Waker`].
    pub from_tgid: u32,
    /// As in [`Waker`].
    pub from_image: u32,
    /// An [`Origin`].
    pub origin: u16,
    /// Which [`crate::table`] generation the edge is of. Only a key in the kernel's table has one; everywhere else this is 0.
    #[cfg_attr(feature = "serde", serde(skip))]
    pub generation: u16,
    /// The thread that was woken.
    pub to_tid: u32,
    /// Its process.
    pub to_tgid: u32,
}

const _: () = assert!(size_of::<EdgeKey>() == 32);

impl EdgeKey {
    /// The edge from a waker to a thread.
    #[inline(always)]
    #[must_use]
    pub fn new(from: &Waker, to_tid: u32, to_tgid: u32) -> Self {
        Self {
            from_task: from.task,
            from_tid: from.tid,
            from_tgid: from.tgid,
            from_image: from.image,
            origin: from.origin as u16,
            generation: 0,
            to_tid,
            to_tgid,
        }
    }

    /// The waker, without stacks.
    #[must_use]
    pub fn waker(&self) -> Waker {
        Waker {
            task: self.from_task,
            kernel_stack: 0,
            user_stack: 0,
            tid: self.from_tid,
            tgid: self.from_tgid,
            image: self.from_image,
            origin: u32::from(self.origin),
        }
    }
}

/// The wakeups along one edge that ended a sleep. Changed only by the CPU that switches the woken thread.
#[repr(C)]
#[derive(Clone, Copy, Debug, Pod, Zeroable)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub struct Edge {
    /// How many.
    pub count: u64,
    /// Of them, those after which a worker polled nothing and parked again.
    pub wasted: u64,
    /// On-CPU time of the woken thread after those.
    pub wasted_on_cpu_ns: u64,
    /// Wakings along this edge whose making was timed, and the time it took the waker.
    pub timed: u64,
    /// Time spent making them, on the waker's CPU.
    pub waking_ns: u64,
    /// Sum of the wake-to-run times.
    pub sum_ns: u64,
    /// The longest.
    pub max_ns: u64,
    /// Wake-to-run times in log-linear buckets.
    #[cfg_attr(feature = "serde", serde(with = "crate::sparse"))]
    pub buckets: [u64; EDGE_BUCKETS],
}

impl Edge {
    /// An edge along which nothing has come.
    pub const EMPTY: Self = Self {
        count: 0,
        wasted: 0,
        wasted_on_cpu_ns: 0,
        timed: 0,
        waking_ns: 0,
        sum_ns: 0,
        max_ns: 0,
        buckets: [0; EDGE_BUCKETS],
    };

    /// Counts one wakeup that took `wake_to_run_ns` to have effect.
    #[inline(always)]
    pub fn record(&mut self, wake_to_run_ns: u64) {
        self.count += 1;
        self.sum_ns = self.sum_ns.wrapping_add(wake_to_run_ns);
        if wake_to_run_ns > self.max_ns {
            self.max_ns = wake_to_run_ns;
        }
        let mut bucket = bucket_of(wake_to_run_ns);
        if bucket >= EDGE_BUCKETS {
            bucket = EDGE_BUCKETS - 1;
        }
        if let Some(count) = element(&mut self.buckets, bucket) {
            *count += 1;
        }
    }
}

/// One addition to an edge for which the table of edges had no room. User space makes it.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Pod, Zeroable)]
pub struct EdgeAddition {
    /// The edge.
    pub key: EdgeKey,
    /// A [`What`].
    pub what: u64,
    /// Its time, nanoseconds.
    pub ns: u64,
}

const _: () = assert!(size_of::<EdgeAddition>() == 48);

/// What an [`EdgeAddition`] adds.
#[repr(u64)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum What {
    /// A wakeup; the time is its wake-to-run time.
    Wakeup = 0,
    /// That a wakeup was wasted; the time is the on-CPU time of the woken thread after it.
    Wasted = 1,
    /// That the making of a wakeup was timed; the time is what it took the waker.
    Timed = 2,
}

impl EdgeAddition {
    /// Adds it to the edge.
    pub fn add_to(&self, edge: &mut Edge) {
        const WASTED: u64 = What::Wasted as u64;
        const TIMED: u64 = What::Timed as u64;
        match self.what {
            WASTED => {
                edge.wasted += 1;
                edge.wasted_on_cpu_ns = edge.wasted_on_cpu_ns.wrapping_add(self.ns);
            }
            TIMED => {
                edge.timed += 1;
                edge.waking_ns = edge.waking_ns.wrapping_add(self.ns);
            }
            _ => edge.record(self.ns),
        }
    }
}

/// What wakeups are summed by where the stacks of wakers are taken.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Pod, Zeroable)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub struct WakerStackKey {
    /// The maker of the wakeup, its stacks included.
    pub from: Waker,
    /// The task the woken thread was polling when it went to sleep, or 0.
    pub to_task: u64,
    /// The woken thread's process.
    pub to_tgid: u32,
    /// How many times that had called `execve`.
    pub to_image: u32,
    /// The [`crate::ledger::Class`] of the switch-out that the wakeup ended.
    pub to_class: u16,
    /// Which [`crate::table`] generation the sum is of. Only a key in the kernel's table has one; everywhere else this is 0.
    #[cfg_attr(feature = "serde", serde(skip))]
    pub generation: u16,
    /// The woken thread.
    pub to_tid: u32,
}

const _: () = assert!(size_of::<WakerStackKey>() == 64);

/// Wakeups that are alike, for which the table of sums had no room. User space adds them.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Pod, Zeroable)]
pub struct WakerAddition {
    /// What they are summed by.
    pub key: WakerStackKey,
    /// How many there are, and the off-CPU time they ended.
    pub sum: SwitchSum,
}

const _: () = assert!(size_of::<WakerAddition>() == 80);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_wakeup_has_a_bucket_however_long_it_took() {
        let mut edge = Edge::EMPTY;
        for ns in [0, 70, 1 << 35, u64::MAX] {
            edge.record(ns);
        }
        assert_eq!(edge.count, 4);
        assert_eq!(edge.buckets.iter().sum::<u64>(), 4);
        assert_eq!(edge.buckets[EDGE_BUCKETS - 1], 1);
        assert_eq!(edge.max_ns, u64::MAX);
    }

    #[test]
    fn an_outsider_that_gets_another_name_is_another_waker_and_no_task_of_the_targets() {
        let edge_of = |name: &[u8; 16]| {
            let mut waker = Waker {
                tid: 7,
                ..Waker::default()
            };
            waker.set_outsider(bytemuck::cast(*name));
            let edge = EdgeKey::new(&waker, 8, 8);
            assert_eq!(edge.waker(), waker);
            assert_eq!(waker.outsider_name(), Some(*name));
            assert_eq!((waker.task(), waker.program()), (0, Image::default()));
            assert_eq!(Waker::from_words(7, waker.origin, waker.words()), waker);
            edge
        };
        assert_ne!(
            edge_of(b"alpha\0\0\0\0\0\0\0\0\0\0\0"),
            edge_of(b"beta\0\0\0\0\0\0\0\0\0\0\0\0")
        );
        assert_ne!(edge_of(b"the-same-half-1\0"), edge_of(b"the-same-half-2\0"));
    }

    #[test]
    fn additions_make_the_edge_that_the_table_would_have_had() {
        let add = |edge: &mut Edge, what: What, ns| {
            let key = EdgeKey::new(&Waker::default(), 1, 1);
            let what = what as u64;
            EdgeAddition { key, what, ns }.add_to(edge);
        };
        let (mut added, mut recorded) = (Edge::EMPTY, Edge::EMPTY);
        for ns in [3, 5_000] {
            add(&mut added, What::Wakeup, ns);
            recorded.record(ns);
        }
        add(&mut added, What::Wasted, 7);
        add(&mut added, What::Timed, 11);
        (recorded.wasted, recorded.wasted_on_cpu_ns) = (1, 7);
        (recorded.timed, recorded.waking_ns) = (1, 11);
        assert_eq!(bytemuck::bytes_of(&added), bytemuck::bytes_of(&recorded));
    }

    #[test]
    fn every_origin_has_its_number_back() {
        for origin in [
            Origin::Unknown,
            Origin::Interrupt,
            Origin::Task,
            Origin::Runtime,
            Origin::Thread,
            Origin::Outside,
        ] {
            assert_eq!(Origin::from_number(origin as u32), origin);
        }
    }
}
