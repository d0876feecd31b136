//! Wakeups: which thread, task or interrupt woke which thread.

use bytemuck::{Pod, Zeroable};

use crate::bound::element;
use crate::histogram::{SUB_BITS, SUB_BUCKETS, bucket_of};
use crate::process::Image;
use crate::stack::SwitchSum;
use crate::words::store;

/// Number of buckets of an edge's distribution: those for all values below 2^36 ns (69 s), and one for larger values.
pub const EDGE_BUCKETS: usize = SUB_BUCKETS * (36 - SUB_BITS as usize + 1) + 1;

/// What made a wakeup.
#[repr(u32)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[cfg_attr(
    feature = "serde",
    derive(serde::Serialize, serde::Deserialize, schemars::JsonSchema),
    serde(rename_all = "kebab-case")
)]
pub enum WakeupOrigin {
    /// It is not known what made the wakeup.
    Unknown = 0,
    /// An interrupt, for example of a timer or a device. No thread made the wakeup.
    Interrupt = 1,
    /// A thread of the target that was polling a task.
    Task = 2,
    /// A thread of a runtime between polls.
    Runtime = 3,
    /// Another thread of the target.
    Thread = 4,
    /// A thread of another program.
    Outside = 5,
}

impl WakeupOrigin {
    /// Returns the name of the origin in the JSON.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Unknown => "unknown",
            Self::Interrupt => "interrupt",
            Self::Task => "task",
            Self::Runtime => "runtime",
            Self::Thread => "thread",
            Self::Outside => "outside",
        }
    }

    /// Returns the origin with this number.
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

/// The maker of a wakeup, as it is stored in the record of the woken thread.
///
/// A thread outside the target has no known task and no known program. If such a thread is the waker
/// ([`WakeupOrigin::Outside`]), the name that it has at that moment is stored instead: the first half in `task`, the second
/// half in `tgid` and `image`. So the name is part of every key that contains a waker, and a thread that changes its
/// name becomes another waker. For such a thread, [`Waker::task()`] and [`Waker::program`] return nothing, and
/// [`Waker::outsider_name`] returns its name.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord, Pod, Zeroable)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub struct Waker {
    /// See [`Waker::task()`].
    pub task: u64,
    /// Key of the waker's kernel stack in the stack table, or 0. Set only if the stacks of wakers are taken.
    pub kernel_stack: u64,
    /// Key of the waker's user stack in the stack table, or 0. Set only if the stacks of wakers are taken.
    pub user_stack: u64,
    /// Thread id; 0 for an interrupt.
    pub tid: u32,
    /// See [`Waker::program`].
    pub tgid: u32,
    /// See [`Waker::program`].
    pub image: u32,
    /// An [`WakeupOrigin`].
    pub origin: u32,
}

const _: () = assert!(size_of::<Waker>() == 40);

/// Returns the name of a thread outside the target from the fields that contain it.
fn name_in(task: u64, tgid: u32, image: u32) -> [u8; 16] {
    bytemuck::cast([task, u64::from(tgid) | u64::from(image) << 32])
}

impl Waker {
    /// Sets an unknown waker. It is stored word by word, because this is done at each wakeup (see [`crate::words`]).
    #[inline(always)]
    pub fn clear(&mut self) {
        store(&mut self.task, 0);
        store(&mut self.kernel_stack, 0);
        store(&mut self.user_stack, 0);
        store(&mut self.tid, 0);
        store(&mut self.tgid, 0);
        store(&mut self.image, 0);
        store(&mut self.origin, WakeupOrigin::Unknown as u32);
    }

    /// Sets the program, for a waker that is a thread of the target.
    #[inline(always)]
    pub fn set_program(&mut self, program: Image) {
        store(&mut self.tgid, program.tgid);
        store(&mut self.image, program.number);
    }

    /// Sets the task that the waker polls; 0 for none.
    #[inline(always)]
    pub fn set_task(&mut self, task: u64) {
        store(&mut self.task, task);
    }

    /// Sets a waker outside the target with this name, padded with zeroes.
    #[inline(always)]
    pub fn set_outsider(&mut self, name: [u64; 2]) {
        self.origin = WakeupOrigin::Outside as u32;
        store(&mut self.task, name[0]);
        store(&mut self.tgid, name[1] as u32);
        store(&mut self.image, (name[1] >> 32) as u32);
    }

    /// Makes a waker that polls a task of a program, without stacks.
    #[must_use]
    pub fn new(origin: WakeupOrigin, tid: u32, program: Image, task: u64) -> Self {
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

    /// Makes a waker from the words of an event, which [`Waker::words`] returned.
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

    /// Returns the task and the program, or the name, in two words.
    #[inline(always)]
    #[must_use]
    pub fn words(&self) -> [u64; 2] {
        [self.task, u64::from(self.tgid) | u64::from(self.image) << 32]
    }

    /// Returns whether the waker is a thread of the target.
    #[inline(always)]
    #[must_use]
    pub fn is_of_target(&self) -> bool {
        self.origin != WakeupOrigin::Outside as u32 && self.tgid != 0
    }

    /// Returns the task that the waker was polling, or 0.
    #[must_use]
    pub fn task(&self) -> u64 {
        if self.is_of_target() { self.task } else { 0 }
    }

    /// Returns the program that the waker runs; process 0 if it is not a thread of the target.
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

    /// Returns the name of a thread outside the target, padded with zeroes; `None` for other wakers. In captures of
    /// versions that did not record the name, it consists of zeroes.
    #[must_use]
    pub fn outsider_name(&self) -> Option<[u8; 16]> {
        (self.origin == WakeupOrigin::Outside as u32).then(|| name_in(self.task, self.tgid, self.image))
    }

    /// Copies another waker, word by word, as in [`Waker::clear`].
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

/// A waker and a woken thread; the key of the table of edges.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Pod, Zeroable)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub struct EdgeKey {
    /// As in [`Waker`].
    pub from_task: u64,
    /// Thread id of the waker; 0 for an interrupt.
    pub from_tid: u32,
    /// As in [`Waker`].
    pub from_tgid: u32,
    /// As in [`Waker`].
    pub from_image: u32,
    /// An [`WakeupOrigin`].
    pub origin: u16,
    /// The [`crate::table`] generation of the edge. Only keys in the kernel's table have one; elsewhere it is 0.
    #[cfg_attr(feature = "serde", serde(skip))]
    pub generation: u16,
    /// Thread id of the woken thread.
    pub to_tid: u32,
    /// Process id of the woken thread.
    pub to_tgid: u32,
}

const _: () = assert!(size_of::<EdgeKey>() == 32);

impl EdgeKey {
    /// Makes the key of the edge from a waker to a thread.
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

    /// Returns the waker, without stacks.
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

/// The wakeups along one edge that ended a sleep. `timed` and `waking_ns` are added to atomically by the waker's CPU;
/// the other fields are changed only by the CPU that switches the woken thread.
#[repr(C)]
#[derive(Clone, Copy, Debug, Pod, Zeroable)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub struct Edge {
    /// Number of wakeups.
    pub count: u64,
    /// Number of those wakeups after which a worker polled nothing and parked again.
    pub wasted: u64,
    /// On-CPU time of the woken thread after these wasted wakeups.
    pub wasted_on_cpu_ns: u64,
    /// Number of wakeups along this edge whose cost for the waker was measured.
    pub timed: u64,
    /// Time that these measured wakeups took the waker.
    pub waking_ns: u64,
    /// Sum of the wake-to-run times.
    pub sum_ns: u64,
    /// The longest wake-to-run time.
    pub max_ns: u64,
    /// Wake-to-run times in log-linear buckets.
    #[cfg_attr(feature = "serde", serde(with = "crate::sparse"))]
    pub buckets: [u64; EDGE_BUCKETS],
}

impl Edge {
    /// An edge without wakeups.
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

    /// Counts one wakeup with this wake-to-run time.
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

/// One addition to an edge for which the table of edges had no room. User space performs it.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Pod, Zeroable)]
pub struct EdgeAddition {
    /// The key of the edge.
    pub key: EdgeKey,
    /// A [`What`].
    pub what: u64,
    /// The time of the addition in nanoseconds.
    pub ns: u64,
}

const _: () = assert!(size_of::<EdgeAddition>() == 48);

/// The kinds of an [`EdgeAddition`].
#[repr(u64)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum What {
    /// Adds a wakeup. The time is its wake-to-run time.
    Wakeup = 0,
    /// Counts a wakeup as wasted. The time is the on-CPU time of the woken thread after it.
    Wasted = 1,
    /// Adds a measured cost of a wakeup. The time is what the wakeup took the waker.
    Timed = 2,
}

impl EdgeAddition {
    /// Adds this to the edge.
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

/// The key by which wakeups are summed if the stacks of wakers are taken.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Pod, Zeroable)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub struct WakerStackKey {
    /// The waker, including its stacks.
    pub from: Waker,
    /// The task that the woken thread was polling when it went to sleep, or 0.
    pub to_task: u64,
    /// Process id of the woken thread.
    pub to_tgid: u32,
    /// Number of calls of `execve` by that process since it was first seen.
    pub to_image: u32,
    /// The [`crate::ledger::Class`] of the switch-out that the wakeup ended, as in [`SumKey`](crate::stack::SumKey).
    pub to_class: u16,
    /// The [`crate::table`] generation of the sum. Only keys in the kernel's table have one; elsewhere it is 0.
    #[cfg_attr(feature = "serde", serde(skip))]
    pub generation: u16,
    /// Thread id of the woken thread.
    pub to_tid: u32,
}

const _: () = assert!(size_of::<WakerStackKey>() == 64);

/// Wakeups with the same key for which the table of sums had no room. User space adds them.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Pod, Zeroable)]
pub struct WakerAddition {
    /// The key of these wakeups.
    pub key: WakerStackKey,
    /// Number of these wakeups, and the off-CPU time that they ended.
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
            WakeupOrigin::Unknown,
            WakeupOrigin::Interrupt,
            WakeupOrigin::Task,
            WakeupOrigin::Runtime,
            WakeupOrigin::Thread,
            WakeupOrigin::Outside,
        ] {
            assert_eq!(WakeupOrigin::from_number(origin as u32), origin);
        }
    }
}
