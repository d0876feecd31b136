//! The events of a timeline: switches, wakeups and samples, in forty bytes each.
//!
//! One event describes one run of a BPF program, so a switch from one thread of the target to another is one event for
//! both threads. The events contain enough to run the state machine of [`crate::clock`] again outside the kernel, with
//! the same result: how the thread left, the ledger class of the switch-out and, for the thread that is switched in,
//! the time of the wakeup that ended its sleep (so that the result does not depend on the order of events of different
//! CPUs).
//!
//! Events name threads by their id. Before its first switch a thread is introduced, by a [`Decoded::Thread`] and a
//! [`Decoded::Name`]. It is introduced again when its id, its name or its program has changed.
//!
//! Capture files use the same layout. A change of the layout requires a new version of the file format.

use bytemuck::{Pod, Zeroable};

use crate::clock::{Leave, NotedWakeup};
use crate::process::Image;
use crate::stack::SumKey;
use crate::wakeup::Waker;
use crate::words::store;

const SWITCH: u8 = 1;
const WAKEUP: u8 = 2;
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

// Flags of a wakeup.
const NOTED_OFF_CPU: u8 = 1;
const NOTED_ON_CPU: u8 = 2;
const NEWBORN: u8 = 4;

/// Flag of a thread: it has never run.
const NEW: u8 = 1;

/// Flag of a sample: the thread was in the kernel.
const IN_KERNEL: u8 = 1;

/// One event as it is stored in the ring and in files. The meaning of the fields depends on the kind; see
/// [`Event::decode`].
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Pod, Zeroable)]
pub struct Event {
    /// Time of the event in `CLOCK_MONOTONIC` nanoseconds: the same reading that the state machine was given.
    pub at_ns: u64,
    /// Switch: the task that was polled. Wakeup: the waker's task. Thread: its start time. Name: its first half. Exec:
    /// the time of the `execve`. Sample: the thread's kernel stack.
    task: u64,
    /// Switch: the time of the wakeup of the thread that is switched in. Wakeup, thread, exec: a process and its image.
    /// Name: its second half. Sample: the thread's user stack.
    word: u64,
    /// Switch: the thread that is switched out, or 0 if it is not the target's. Other kinds: the thread that the event
    /// is about.
    tid: u32,
    /// Switch: the thread that is switched in, or 0 if it is not the target's. Wakeup: the waker. Thread: the id it had
    /// before.
    other_tid: u32,
    /// The CPU on which the event happened.
    pub cpu: u16,
    kind: u8,
    flags: u8,
    /// Switch: the class, as in [`SumKey`].
    class: u8,
    /// Switch: the reason, as in [`SumKey`].
    reason: u8,
    /// Wakeup: an [`crate::wakeup::WakeupOrigin`].
    origin: u8,
    reserved: u8,
}

/// Size of an [`Event`] in bytes.
pub const EVENT_BYTES: usize = 40;

const _: () = assert!(size_of::<Event>() == EVENT_BYTES && align_of::<Event>() == 8);

/// The switch-out of a thread of the target.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Out {
    /// The thread's id.
    pub tid: u32,
    /// How the thread leaves its CPU.
    pub leave: Leave,
    /// Whether the kernel counted a voluntary switch, or an involuntary one.
    pub voluntary: bool,
    /// The task that the thread was polling, or 0.
    pub task: u64,
    /// The class, as in [`SumKey`].
    pub class: u8,
    /// The reason, as in [`SumKey`].
    pub reason: u8,
    /// Whether the CPU quota of the thread's cgroup took it off its CPU. False in captures of versions that did not
    /// record this.
    pub throttled: bool,
}

/// The switch-in of a thread of the target.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct In {
    /// The thread's id.
    pub tid: u32,
    /// The wakeup that ended the thread's sleep, if the thread slept.
    pub wakeup: NotedWakeup,
    /// Time of that wakeup; 0 if there was none.
    pub woken_ns: u64,
    /// Whether the CPU was idle before. False in captures of versions that did not record this.
    pub cpu_was_idle: bool,
}

/// A decoded event.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Decoded {
    /// A CPU switches from one thread to another, at least one of which is the target's.
    Switch {
        /// The thread that is switched out, if it is the target's.
        out: Option<Out>,
        /// The thread that is switched in, if it is the target's.
        into: Option<In>,
    },
    /// A thread of the target is woken.
    Wakeup {
        /// The thread's id.
        tid: u32,
        /// Which of the thread's two wakeups it was noted as; `None` if it had no effect.
        noted: Option<NotedWakeup>,
        /// Whether the thread has just been created, by the thread that wakes it.
        newborn: bool,
        /// The waker, without its stacks.
        waker: Waker,
    },
    /// A thread is introduced: later events use this id for it.
    Thread {
        /// The thread's id.
        tid: u32,
        /// The id that the thread had before (an `execve` may change it); 0 if the thread was not introduced before.
        previous_tid: u32,
        /// `task_struct.start_boottime`. Together with the id it identifies the thread.
        start_boottime_ns: u64,
        /// The program that the thread runs.
        image: Image,
        /// Whether the thread has never been on a CPU.
        new: bool,
    },
    /// The name of a thread, padded with zeroes.
    Name {
        /// The thread's id.
        tid: u32,
        /// The thread's name.
        comm: [u8; 16],
    },
    /// A thread has executed another program. Emitted at the thread's next switch, wakeup or sample.
    Exec {
        /// The thread's id.
        tid: u32,
        /// Time of the `execve`.
        executed_ns: u64,
        /// The program that the thread runs since then. `None` if the tracer's user may not trace that program: the
        /// thread is not recorded after this, and this is its last event.
        image: Option<Image>,
    },
    /// The timer found a thread on its CPU.
    Sample(Sample),
}

/// What a thread was doing when the timer found it on its CPU.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Sample {
    /// The thread's id.
    pub tid: u32,
    /// Whether the thread was in the kernel.
    pub in_kernel: bool,
    /// Key of the thread's kernel stack in the stack table; 0 if there is none, because the thread was in user mode or
    /// the table was full.
    pub kernel_stack: u64,
    /// Key of the thread's user stack; 0 if it could not be read or the table was full.
    pub user_stack: u64,
}

impl Event {
    /// Makes a switch without threads. [`Event::set_out`] and [`Event::set_in`] fill it in.
    #[inline(always)]
    #[must_use]
    pub fn switch(at_ns: u64, cpu: u32) -> Self {
        Self::new_of_kind(SWITCH, at_ns, cpu)
    }

    /// Overwrites the event with a switch without threads. It is stored word by word, because this is done at each
    /// switch (see [`crate::words`]).
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
    fn new_of_kind(kind: u8, at_ns: u64, cpu: u32) -> Self {
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

    /// Sets the thread that is switched out.
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

    /// Sets the thread that is switched in, with the result of [`crate::clock::Clock::noted_wakeup`].
    #[inline(always)]
    pub fn set_in(&mut self, tid: u32, wakeup: NotedWakeup, woken_ns: u64) {
        self.other_tid = tid;
        self.word = woken_ns;
        if matches!(wakeup, NotedWakeup::OnCpu) {
            self.flags |= WOKEN_ON_CPU;
        }
    }

    /// Records that the thread that is switched out is the CPU's idle task.
    #[inline(always)]
    pub fn set_cpu_was_idle(&mut self) {
        self.flags |= CPU_WAS_IDLE;
    }

    /// Returns whether the switch concerns a thread of the target.
    #[inline(always)]
    #[must_use]
    pub fn concerns_the_target(&self) -> bool {
        self.tid != 0 || self.other_tid != 0
    }

    /// Makes a wakeup.
    #[inline(always)]
    #[must_use]
    pub fn wakeup(at_ns: u64, cpu: u32, tid: u32, noted: Option<NotedWakeup>, newborn: bool, waker: &Waker) -> Self {
        let noted = match noted {
            None => 0,
            Some(NotedWakeup::OffCpu) => NOTED_OFF_CPU,
            Some(NotedWakeup::OnCpu) => NOTED_ON_CPU,
        };
        Self {
            task: waker.words()[0],
            word: waker.words()[1],
            tid,
            other_tid: waker.tid,
            flags: if newborn { noted | NEWBORN } else { noted },
            origin: waker.origin as u8,
            ..Self::new_of_kind(WAKEUP, at_ns, cpu)
        }
    }

    /// Makes the introduction of a thread.
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
        let mut event = Self::new_of_kind(THREAD, at_ns, cpu);
        event.tid = tid;
        event.other_tid = previous_tid;
        event.task = start_boottime_ns;
        event.word = packed(image.tgid, image.number);
        event.flags = if new { NEW } else { 0 };
        event
    }

    /// Makes the event with a thread's name.
    #[inline(always)]
    #[must_use]
    pub fn name(at_ns: u64, cpu: u32, tid: u32, comm: &[u8; 16]) -> Self {
        let mut event = Self::new_of_kind(NAME, at_ns, cpu);
        let [a, b, c, d, e, f, g, h, i, j, k, l, m, n, o, p] = *comm;
        event.tid = tid;
        event.task = u64::from_le_bytes([a, b, c, d, e, f, g, h]);
        event.word = u64::from_le_bytes([i, j, k, l, m, n, o, p]);
        event
    }

    /// Makes an `execve`. `image` is `None` if the thread is not recorded after it.
    #[inline(always)]
    #[must_use]
    pub fn exec(at_ns: u64, cpu: u32, tid: u32, executed_ns: u64, image: Option<Image>) -> Self {
        let mut event = Self::new_of_kind(EXEC, at_ns, cpu);
        event.tid = tid;
        event.task = executed_ns;
        event.word = match image {
            Some(image) => packed(image.tgid, image.number),
            None => 0,
        };
        event
    }

    /// Makes a sample.
    #[inline(always)]
    #[must_use]
    pub fn sample(at_ns: u64, cpu: u32, tid: u32, in_kernel: bool, kernel_stack: u64, user_stack: u64) -> Self {
        let mut event = Self::new_of_kind(SAMPLE, at_ns, cpu);
        event.tid = tid;
        event.task = kernel_stack;
        event.word = user_stack;
        event.flags = if in_kernel { IN_KERNEL } else { 0 };
        event
    }

    /// Decodes the event. Returns `None` if this version does not know its kind.
    #[inline]
    #[must_use]
    pub fn decode(&self) -> Option<Decoded> {
        Some(match self.kind {
            SWITCH => Decoded::Switch {
                out: self.out(),
                into: self.incoming(),
            },
            WAKEUP => Decoded::Wakeup {
                tid: self.tid,
                noted: match self.flags & (NOTED_OFF_CPU | NOTED_ON_CPU) {
                    NOTED_OFF_CPU => Some(NotedWakeup::OffCpu),
                    NOTED_ON_CPU => Some(NotedWakeup::OnCpu),
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
            wakeup: if self.flags & WOKEN_ON_CPU != 0 {
                NotedWakeup::OnCpu
            } else {
                NotedWakeup::OffCpu
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

/// The positions in one CPU's ring of events. Only this CPU writes to the ring, and only user space reads from it.
///
/// Both sides count events from the beginning. An event is stored at its number modulo the capacity. The two counts are
/// more than a cache line apart, because two CPUs write to them.
#[repr(C)]
#[derive(Clone, Copy, Debug, Pod, Zeroable)]
pub struct RingState {
    /// Number of events written. It is raised after the whole event has been stored.
    pub written: u64,
    apart: [u64; 15],
    /// Number of events read. It is raised when the places of these events may be reused.
    pub read: u64,
    apart_from_the_next: [u64; 15],
}

const _: () = assert!(size_of::<RingState>() == 256);

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wakeup::WakeupOrigin;

    fn key(class: u8, reason: u8, task: u64) -> SumKey {
        let mut key = SumKey::EMPTY;
        (key.class, key.reason, key.task) = (class, reason, task);
        key
    }

    #[test]
    fn a_switch_describes_both_threads() {
        for leave in [Leave::Slept, Leave::Runnable, Leave::Dead] {
            for voluntary in [false, true] {
                for (wakeup, throttled) in [(NotedWakeup::OffCpu, false), (NotedWakeup::OnCpu, true)] {
                    let mut event = Event::switch(7, 3);
                    assert!(!event.concerns_the_target());
                    let mut pending = key(5, 2, u64::MAX);
                    pending.throttled = u8::from(throttled);
                    event.set_out(11, leave, voluntary, &pending);
                    event.set_in(12, wakeup, 6);
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
                        wakeup,
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
    fn threads_outside_the_target_are_omitted() {
        let mut event = Event::switch(7, 0);
        event.set_in(12, NotedWakeup::OffCpu, 0);
        assert!(matches!(
            event.decode(),
            Some(Decoded::Switch {
                out: None,
                into: Some(_)
            })
        ));
    }

    #[test]
    fn an_idle_cpu_is_recorded() {
        let mut event = Event::switch(7, 0);
        event.set_cpu_was_idle();
        event.set_in(12, NotedWakeup::OnCpu, 6);
        let into = In {
            tid: 12,
            wakeup: NotedWakeup::OnCpu,
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
    fn a_wakeup_names_its_maker() {
        let program = Image { tgid: 20, number: 3 };
        let waker = Waker::new(WakeupOrigin::Task, 21, program, 9);
        for noted in [None, Some(NotedWakeup::OffCpu), Some(NotedWakeup::OnCpu)] {
            for newborn in [false, true] {
                let decoded = Event::wakeup(1, 2, 5, noted, newborn, &waker).decode();
                assert_eq!(
                    decoded,
                    Some(Decoded::Wakeup {
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
        assert_eq!(Event::new_of_kind(200, 0, 0).decode(), None);
    }
}
