//! The events of a timeline: what a switch, a waking or a sample was, in forty bytes.
//!
//! One event tells one run of a BPF program, so a switch from one thread of the target to another is one event for both of
//! them. An event says enough for the state machine of [`crate::clock`] to be run again, outside the kernel, with the same
//! result: how the thread left, what class of the ledger that was, and, for the thread that comes, when the waking that
//! ended its sleep was made (so that the result does not hang on the order of events of different CPUs).
//!
//! Threads are known by their id. Before its first switch a thread is introduced, by a [`Decoded::Thread`] and a
//! [`Decoded::Name`], and again when its id, its name or its program has changed.
//!
//! The layout is that of capture files too: whoever changes it raises the version of their format.

use bytemuck::{Pod, Zeroable};

use crate::clock::{Leave, Waking};
use crate::process::Image;
use crate::stack::SumKey;
use crate::wakeup::Waker;
use crate::words::store;

const SWITCH: u8 = 1;
const WAKING: u8 = 2;
const THREAD: u8 = 3;
const NAME: u8 = 4;
const EXEC: u8 = 5;
const SAMPLE: u8 = 6;

// Flags of a switch.
const VOLUNTARY: u8 = 1;
const RUNNABLE: u8 = 2;
const DEAD: u8 = 4;
const WOKEN_ON_CPU: u8 = 8;
const CPU_WAS_IDLE: u8 = 16;
const THROTTLED: u8 = 32;

// Flags of a waking.
const NOTED_OFF_CPU: u8 = 1;
const NOTED_ON_CPU: u8 = 2;
const NEWBORN: u8 = 4;

/// Flag of a thread: it has never run.
const NEW: u8 = 1;

/// Flag of a sample: the thread was in the kernel.
const IN_KERNEL: u8 = 1;

/// One event as it lies in the ring and in files. What the fields mean depends on the kind; see [`Event::decode`].
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Pod, Zeroable)]
pub struct Event {
    /// `CLOCK_MONOTONIC` nanoseconds: the reading that the state machine was given too.
    pub at_ns: u64,
    /// Switch: the task that was polled. Waking: the task that woke. Thread: its start time. Name: its first half. Exec: when.
    /// Sample: its kernel stack.
    task: u64,
    /// Switch: when the waking of the thread that comes was made. Waking, thread: a process and its image. Name: its second
    /// half. Sample: its user stack.
    word: u64,
    /// Switch: the thread that leaves. Otherwise the thread that it is about. 0 if it is not the target's.
    tid: u32,
    /// Switch: the thread that comes. Waking: the thread that woke. Thread: the id it had before.
    other_tid: u32,
    /// The CPU it happened on.
    pub cpu: u16,
    kind: u8,
    flags: u8,
    /// Switch: as in [`SumKey`].
    class: u8,
    /// Switch: as in [`SumKey`].
    reason: u8,
    /// Waking: an [`crate::wakeup::Origin`].
    origin: u8,
    reserved: u8,
}

/// Size of an [`Event`] in bytes.
pub const EVENT_BYTES: usize = 40;

const _: () = assert!(size_of::<Event>() == EVENT_BYTES && align_of::<Event>() == 8);

/// A thread of the target that leaves its CPU.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Out {
    /// The thread.
    pub tid: u32,
    /// How it leaves.
    pub leave: Leave,
    /// Which of the kernel's counters moved.
    pub voluntary: bool,
    /// The task it was polling, or 0.
    pub task: u64,
    /// The class and the reason, as in [`SumKey`].
    pub class: u8,
    /// See `class`.
    pub reason: u8,
    /// The CPU quota of its cgroup took it off its CPU. Events of versions before this was recorded say no.
    pub throttled: bool,
}

/// A thread of the target that comes onto a CPU.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct In {
    /// The thread.
    pub tid: u32,
    /// Which waking has ended its sleep, should it have slept.
    pub waking: Waking,
    /// When that was made; 0 if there was none.
    pub woken_ns: u64,
    /// The CPU had nothing to run before it. Events of before this was told say no.
    pub cpu_was_idle: bool,
}

/// What an event says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Decoded {
    /// A CPU goes from one thread to another, at least one of which is the target's.
    Switch {
        /// The thread that leaves, if it is the target's.
        out: Option<Out>,
        /// The thread that comes, if it is the target's.
        into: Option<In>,
    },
    /// A thread of the target is woken.
    Waking {
        /// The thread.
        tid: u32,
        /// Which of the thread's two wakings it was noted as; `None` if it was of no consequence.
        noted: Option<Waking>,
        /// The thread has just been created, by the one that wakes it.
        newborn: bool,
        /// Who woke it; without stacks.
        waker: Waker,
    },
    /// A thread is introduced: from here on events know it by this id.
    Thread {
        /// Its id.
        tid: u32,
        /// The id it had before (an `execve` changes it); 0 for one that has not been introduced before.
        previous_tid: u32,
        /// `task_struct.start_boottime`: with the id, its identity.
        start_boottime_ns: u64,
        /// The program it runs.
        image: Image,
        /// It has never been on a CPU.
        new: bool,
    },
    /// The name of a thread, padded with zeroes.
    Name {
        /// The thread.
        tid: u32,
        /// Its name.
        comm: [u8; 16],
    },
    /// A thread has executed another program. Told at the thread's next switch or waking.
    Exec {
        /// The thread.
        tid: u32,
        /// When it was.
        executed_ns: u64,
        /// The program it runs since. `None` for one that the tracer's user may not trace: nothing of the thread is recorded from there
        /// on, and this is its last event.
        image: Option<Image>,
    },
    /// A thread was found on its CPU by the timer.
    Sample(Sample),
}

/// What a thread was doing when the timer found it on its CPU.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Sample {
    /// The thread.
    pub tid: u32,
    /// Whether it was in the kernel.
    pub in_kernel: bool,
    /// Key of its kernel stack in the stack table; 0 for none: it was in user mode, or the table was full.
    pub kernel_stack: u64,
    /// Key of its user stack; 0 if that could not be read, or the table was full.
    pub user_stack: u64,
}

impl Event {
    /// A switch of which nothing is known yet; [`Event::set_out`] and [`Event::set_in`] fill it.
    #[inline(always)]
    #[must_use]
    pub fn switch(at_ns: u64, cpu: u32) -> Self {
        Self::of(SWITCH, at_ns, cpu)
    }

    /// Becomes that, word by word, for it is done at each switch.
    #[inline(always)]
    pub fn become_switch(&mut self, at_ns: u64, cpu: u32) {
        store(&mut self.at_ns, at_ns);
        store(&mut self.task, 0);
        store(&mut self.word, 0);
        store(&mut self.tid, 0);
        store(&mut self.other_tid, 0);
        store(&mut self.cpu, cpu as u16);
        store(&mut self.kind, SWITCH);
        store(&mut self.flags, 0);
        store(&mut self.class, 0);
        store(&mut self.reason, 0);
        store(&mut self.origin, 0);
        store(&mut self.reserved, 0);
    }

    #[inline(always)]
    fn of(kind: u8, at_ns: u64, cpu: u32) -> Self {
        Self {
            at_ns,
            task: 0,
            word: 0,
            tid: 0,
            other_tid: 0,
            cpu: cpu as u16,
            kind,
            flags: 0,
            class: 0,
            reason: 0,
            origin: 0,
            reserved: 0,
        }
    }

    /// The thread that leaves.
    #[inline(always)]
    pub fn set_out(&mut self, tid: u32, leave: Leave, voluntary: bool, pending: &SumKey) {
        self.tid = tid;
        self.task = pending.task;
        self.class = pending.class;
        self.reason = pending.reason;
        let mut flags = match leave {
            Leave::Slept => 0,
            Leave::Runnable => RUNNABLE,
            Leave::Dead => DEAD,
        };
        if voluntary {
            flags |= VOLUNTARY;
        }
        if pending.throttled != 0 {
            flags |= THROTTLED;
        }
        self.flags |= flags;
    }

    /// The thread that comes, with what [`crate::clock::Clock::noted_waking`] says of it.
    #[inline(always)]
    pub fn set_in(&mut self, tid: u32, waking: Waking, woken_ns: u64) {
        self.other_tid = tid;
        self.word = woken_ns;
        if matches!(waking, Waking::OnCpu) {
            self.flags |= WOKEN_ON_CPU;
        }
    }

    /// What leaves is the CPU's idle task.
    #[inline(always)]
    pub fn set_cpu_was_idle(&mut self) {
        self.flags |= CPU_WAS_IDLE;
    }

    /// Whether it is a switch that concerns anybody.
    #[inline(always)]
    #[must_use]
    pub fn concerns_the_target(&self) -> bool {
        self.tid != 0 || self.other_tid != 0
    }

    /// A waking.
    #[inline(always)]
    #[must_use]
    pub fn waking(at_ns: u64, cpu: u32, tid: u32, noted: Option<Waking>, newborn: bool, waker: &Waker) -> Self {
        let noted = match noted {
            None => 0,
            Some(Waking::OffCpu) => NOTED_OFF_CPU,
            Some(Waking::OnCpu) => NOTED_ON_CPU,
        };
        Self {
            task: waker.words()[0],
            word: waker.words()[1],
            tid,
            other_tid: waker.tid,
            flags: if newborn { noted | NEWBORN } else { noted },
            origin: waker.origin as u8,
            ..Self::of(WAKING, at_ns, cpu)
        }
    }

    /// The introduction of a thread.
    #[inline(always)]
    #[must_use]
    pub fn thread(
        at_ns: u64,
        cpu: u32,
        tid: u32,
        previous_tid: u32,
        start_boottime_ns: u64,
        image: Image,
        new: bool,
    ) -> Self {
        let mut event = Self::of(THREAD, at_ns, cpu);
        event.tid = tid;
        event.other_tid = previous_tid;
        event.task = start_boottime_ns;
        event.word = packed(image.tgid, image.number);
        event.flags = if new { NEW } else { 0 };
        event
    }

    /// The name of a thread.
    #[inline(always)]
    #[must_use]
    pub fn name(at_ns: u64, cpu: u32, tid: u32, comm: &[u8; 16]) -> Self {
        let mut event = Self::of(NAME, at_ns, cpu);
        let [a, b, c, d, e, f, g, h, i, j, k, l, m, n, o, p] = *comm;
        event.tid = tid;
        event.task = u64::from_le_bytes([a, b, c, d, e, f, g, h]);
        event.word = u64::from_le_bytes([i, j, k, l, m, n, o, p]);
        event
    }

    /// An `execve`; `image` is `None` if nothing of the thread is recorded from there on.
    #[inline(always)]
    #[must_use]
    pub fn exec(at_ns: u64, cpu: u32, tid: u32, executed_ns: u64, image: Option<Image>) -> Self {
        let mut event = Self::of(EXEC, at_ns, cpu);
        event.tid = tid;
        event.task = executed_ns;
        event.word = match image {
            Some(image) => packed(image.tgid, image.number),
            None => 0,
        };
        event
    }

    /// A sample.
    #[inline(always)]
    #[must_use]
    pub fn sample(at_ns: u64, cpu: u32, tid: u32, in_kernel: bool, kernel_stack: u64, user_stack: u64) -> Self {
        let mut event = Self::of(SAMPLE, at_ns, cpu);
        event.tid = tid;
        event.task = kernel_stack;
        event.word = user_stack;
        event.flags = if in_kernel { IN_KERNEL } else { 0 };
        event
    }

    /// What the event says; `None` if it is of a kind that this version does not know.
    #[inline]
    #[must_use]
    pub fn decode(&self) -> Option<Decoded> {
        Some(match self.kind {
            SWITCH => Decoded::Switch {
                out: self.out(),
                into: self.incoming(),
            },
            WAKING => Decoded::Waking {
                tid: self.tid,
                noted: match self.flags & (NOTED_OFF_CPU | NOTED_ON_CPU) {
                    NOTED_OFF_CPU => Some(Waking::OffCpu),
                    NOTED_ON_CPU => Some(Waking::OnCpu),
                    _ => None,
                },
                newborn: self.flags & NEWBORN != 0,
                waker: Waker::from_words(self.other_tid, u32::from(self.origin), [self.task, self.word]),
            },
            THREAD => Decoded::Thread {
                tid: self.tid,
                previous_tid: self.other_tid,
                start_boottime_ns: self.task,
                image: self.image(),
                new: self.flags & NEW != 0,
            },
            NAME => {
                let mut comm = [0; 16];
                comm[..8].copy_from_slice(&self.task.to_le_bytes());
                comm[8..].copy_from_slice(&self.word.to_le_bytes());
                Decoded::Name { tid: self.tid, comm }
            }
            EXEC => Decoded::Exec {
                tid: self.tid,
                executed_ns: self.task,
                image: (self.word != 0).then(|| self.image()),
            },
            SAMPLE => Decoded::Sample(Sample {
                tid: self.tid,
                in_kernel: self.flags & IN_KERNEL != 0,
                kernel_stack: self.task,
                user_stack: self.word,
            }),
            _ => return None,
        })
    }

    fn out(&self) -> Option<Out> {
        (self.tid != 0).then_some(Out {
            tid: self.tid,
            leave: if self.flags & DEAD != 0 {
                Leave::Dead
            } else if self.flags & RUNNABLE != 0 {
                Leave::Runnable
            } else {
                Leave::Slept
            },
            voluntary: self.flags & VOLUNTARY != 0,
            task: self.task,
            class: self.class,
            reason: self.reason,
            throttled: self.flags & THROTTLED != 0,
        })
    }

    fn incoming(&self) -> Option<In> {
        (self.other_tid != 0).then_some(In {
            tid: self.other_tid,
            waking: if self.flags & WOKEN_ON_CPU != 0 {
                Waking::OnCpu
            } else {
                Waking::OffCpu
            },
            woken_ns: self.word,
            cpu_was_idle: self.flags & CPU_WAS_IDLE != 0,
        })
    }

    fn image(&self) -> Image {
        Image {
            tgid: self.word as u32,
            number: (self.word >> 32) as u32,
        }
    }
}

#[inline(always)]
fn packed(tgid: u32, image: u32) -> u64 {
    u64::from(tgid) | u64::from(image) << 32
}

/// Where one CPU's events are: a ring that this CPU alone writes to and user space alone reads from.
///
/// Both sides count the events since the beginning; the place of one is its number modulo the capacity. Apart by a cache
/// line and more, because two CPUs write to them.
#[repr(C)]
#[derive(Clone, Copy, Debug, Pod, Zeroable)]
pub struct RingState {
    /// Events written; raised when an event is there as a whole.
    pub written: u64,
    apart: [u64; 15],
    /// Events read; raised when their places may be used again.
    pub read: u64,
    apart_from_the_next: [u64; 15],
}

const _: () = assert!(size_of::<RingState>() == 256);

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wakeup::Origin;

    fn key(class: u8, reason: u8, task: u64) -> SumKey {
        let mut key = SumKey::EMPTY;
        (key.class, key.reason, key.task) = (class, reason, task);
        key
    }

    #[test]
    fn a_switch_tells_of_both_threads() {
        for leave in [Leave::Slept, Leave::Runnable, Leave::Dead] {
            for voluntary in [false, true] {
                for (waking, throttled) in [(Waking::OffCpu, false), (Waking::OnCpu, true)] {
                    let mut event = Event::switch(7, 3);
                    assert!(!event.concerns_the_target());
                    let mut pending = key(5, 2, u64::MAX);
                    pending.throttled = u8::from(throttled);
                    event.set_out(11, leave, voluntary, &pending);
                    event.set_in(12, waking, 6);
                    assert!(event.concerns_the_target());
                    assert_eq!((event.at_ns, event.cpu), (7, 3));
                    let out = Out {
                        tid: 11,
                        leave,
                        voluntary,
                        task: u64::MAX,
                        class: 5,
                        reason: 2,
                        throttled,
                    };
                    let into = In {
                        tid: 12,
                        waking,
                        woken_ns: 6,
                        cpu_was_idle: false,
                    };
                    assert_eq!(
                        event.decode(),
                        Some(Decoded::Switch {
                            out: Some(out),
                            into: Some(into)
                        })
                    );
                }
            }
        }
    }

    #[test]
    fn what_is_not_the_targets_is_not_told() {
        let mut event = Event::switch(7, 0);
        event.set_in(12, Waking::OffCpu, 0);
        assert!(matches!(
            event.decode(),
            Some(Decoded::Switch {
                out: None,
                into: Some(_)
            })
        ));
    }

    #[test]
    fn a_cpu_that_was_idle_is_told() {
        let mut event = Event::switch(7, 0);
        event.set_cpu_was_idle();
        event.set_in(12, Waking::OnCpu, 6);
        let into = In {
            tid: 12,
            waking: Waking::OnCpu,
            woken_ns: 6,
            cpu_was_idle: true,
        };
        assert_eq!(
            event.decode(),
            Some(Decoded::Switch {
                out: None,
                into: Some(into)
            })
        );
    }

    #[test]
    fn a_waking_names_its_maker() {
        let program = Image { tgid: 20, number: 3 };
        let waker = Waker::new(Origin::Task, 21, program, 9);
        for noted in [None, Some(Waking::OffCpu), Some(Waking::OnCpu)] {
            for newborn in [false, true] {
                let decoded = Event::waking(1, 2, 5, noted, newborn, &waker).decode();
                assert_eq!(
                    decoded,
                    Some(Decoded::Waking {
                        tid: 5,
                        noted,
                        newborn,
                        waker
                    })
                );
            }
        }
    }

    #[test]
    fn a_thread_is_introduced_with_its_name() {
        let image = Image { tgid: 4, number: 1 };
        assert_eq!(
            Event::thread(1, 0, 5, 6, 99, image, true).decode(),
            Some(Decoded::Thread {
                tid: 5,
                previous_tid: 6,
                start_boottime_ns: 99,
                image,
                new: true
            })
        );
        let comm = *b"sixteen-bytes-16";
        assert_eq!(
            Event::name(1, 0, 5, &comm).decode(),
            Some(Decoded::Name { tid: 5, comm })
        );
        for image in [Some(image), None] {
            assert_eq!(
                Event::exec(1, 0, 5, 77, image).decode(),
                Some(Decoded::Exec {
                    tid: 5,
                    executed_ns: 77,
                    image
                })
            );
        }
    }

    #[test]
    fn a_sample_says_where_the_thread_was() {
        for in_kernel in [false, true] {
            assert_eq!(
                Event::sample(1, 0, 5, in_kernel, 7, u64::MAX).decode(),
                Some(Decoded::Sample(Sample {
                    tid: 5,
                    in_kernel,
                    kernel_stack: 7,
                    user_stack: u64::MAX
                }))
            );
        }
    }

    #[test]
    fn a_kind_of_another_version_is_not_guessed_at() {
        assert_eq!(Event::zeroed().decode(), None);
        assert_eq!(Event::of(200, 0, 0).decode(), None);
    }
}
