//! Who brought a thread back onto a CPU: each switch-in that a waking led to, with that waking.
//!
//! A waking is told when it is made and a switch-in says which one ended its sleep ([`ctxtrace_common::event::In`]); here the
//! two come together. A thread that left its CPU still runnable was not woken, whatever was noted meanwhile.
//!
//! Without losses these are as many as the kernel side has counted in the distribution of `wake_to_run`.

use std::collections::HashMap;

use ctxtrace_common::clock::{Leave, Waking};
use ctxtrace_common::event::{Decoded, Event, In};
use ctxtrace_common::wakeup::Waker;

/// A waking that ended a sleep, or the wait of a new thread.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Wake {
    /// Who made it.
    pub waker: Waker,
    /// When, `CLOCK_MONOTONIC` nanoseconds.
    pub woken_ns: u64,
    /// The thread that was woken.
    pub tid: u32,
    /// When it came onto a CPU.
    pub in_ns: u64,
}

/// Of one thread.
#[derive(Clone, Copy, Debug, Default)]
struct Sleeper {
    /// It may be woken: it went to sleep, or is new.
    sleeps: bool,
    /// The latest wakings, as they were noted, and when they were made.
    noted: [Option<(u64, Waker)>; 2],
}

/// See the text of this module. Keeps a state for each living thread.
#[derive(Clone, Debug, Default)]
pub struct Wakes {
    sleepers: HashMap<u32, Sleeper>,
    /// Switch-ins that say they were woken by a waking that has not been told.
    pub unknown: u64,
}

impl Wakes {
    /// The next event; tells the waking, if it is a switch-in that one led to.
    pub fn event(&mut self, event: &Event) -> Option<Wake> {
        match event.decode()? {
            Decoded::Waking {
                tid,
                noted: Some(noted),
                newborn,
                waker,
            } => {
                let sleeper = self.sleepers.entry(tid).or_default();
                sleeper.sleeps |= newborn;
                sleeper.noted[noted as usize] = Some((event.at_ns, waker));
                None
            }
            Decoded::Switch { out, into } => {
                if let Some(out) = out {
                    self.left(out.tid, out.leave);
                }
                self.entered(event.at_ns, &into?)
            }
            Decoded::Thread { tid, previous_tid, .. } if previous_tid != 0 && previous_tid != tid => {
                // An `execve` has given it the id of its leader, which is not there any more or takes the other one's.
                let other = self.sleepers.remove(&tid);
                if let Some(sleeper) = self.sleepers.remove(&previous_tid) {
                    self.sleepers.insert(tid, sleeper);
                }
                if let Some(other) = other {
                    self.sleepers.insert(previous_tid, other);
                }
                None
            }
            _ => None,
        }
    }

    fn left(&mut self, tid: u32, leave: Leave) {
        if leave == Leave::Dead {
            self.sleepers.remove(&tid);
            return;
        }
        let sleeper = self.sleepers.entry(tid).or_default();
        sleeper.sleeps = leave == Leave::Slept;
    }

    fn entered(&mut self, in_ns: u64, into: &In) -> Option<Wake> {
        let sleeper = self.sleepers.get_mut(&into.tid)?;
        let Sleeper { sleeps, noted } = std::mem::take(sleeper);
        if !sleeps || into.woken_ns == 0 {
            return None;
        }
        // An older one of the same kind is what is left of where an event was lost.
        let told = noted[into.waking as usize].filter(|&(at_ns, _)| at_ns == into.woken_ns);
        let Some((woken_ns, waker)) = told else {
            self.unknown += 1;
            return None;
        };
        Some(Wake {
            waker,
            woken_ns,
            tid: into.tid,
            in_ns,
        })
    }
}

const _: () = assert!(Waking::OffCpu as usize == 0 && Waking::OnCpu as usize == 1);

#[cfg(test)]
mod tests {
    use super::*;
    use ctxtrace_common::stack::SumKey;

    fn waker(tid: u32) -> Waker {
        Waker {
            tid,
            ..Waker::default()
        }
    }

    fn waking(at_ns: u64, tid: u32, noted: Option<Waking>, by: u32) -> Event {
        Event::waking(at_ns, 0, tid, noted, false, &waker(by))
    }

    fn out(at_ns: u64, tid: u32, leave: Leave) -> Event {
        let mut event = Event::switch(at_ns, 0);
        event.set_out(tid, leave, true, &SumKey::EMPTY);
        event
    }

    fn into(at_ns: u64, tid: u32, waking: Waking, woken_ns: u64) -> Event {
        let mut event = Event::switch(at_ns, 0);
        event.set_in(tid, waking, woken_ns);
        event
    }

    /// Who woke whom, when, and when that had its effect.
    fn wakes(events: &[Event]) -> Vec<(u32, u32, u64, u64)> {
        let mut wakes = Wakes::default();
        let told = events.iter().filter_map(|event| wakes.event(event));
        told.map(|wake| (wake.waker.tid, wake.tid, wake.woken_ns, wake.in_ns))
            .collect()
    }

    #[test]
    fn the_first_waking_of_a_sleep_ends_it() {
        let told = wakes(&[
            out(10, 1, Leave::Slept),
            waking(20, 1, Some(Waking::OffCpu), 7),
            // Of no consequence.
            waking(21, 1, None, 8),
            into(30, 1, Waking::OffCpu, 20),
        ]);
        assert_eq!(told, [(7, 1, 20, 30)]);
    }

    #[test]
    fn a_waking_may_come_before_the_sleep_that_it_ends() {
        let told = wakes(&[
            waking(8, 1, Some(Waking::OnCpu), 7),
            waking(9, 1, Some(Waking::OnCpu), 8),
            out(10, 1, Leave::Slept),
            into(30, 1, Waking::OnCpu, 9),
        ]);
        assert_eq!(told, [(8, 1, 9, 30)]);
    }

    #[test]
    fn who_was_thrown_out_was_not_woken() {
        let told = wakes(&[
            waking(9, 1, Some(Waking::OnCpu), 8),
            out(10, 1, Leave::Runnable),
            into(30, 1, Waking::OnCpu, 9),
            out(40, 1, Leave::Slept),
            // Its waking was lost, and the one before it does not stand in for it.
            into(50, 1, Waking::OffCpu, 45),
        ]);
        assert_eq!(told, []);
    }

    #[test]
    fn a_new_thread_is_woken_by_its_maker() {
        let told = wakes(&[
            Event::waking(5, 0, 1, Some(Waking::OffCpu), true, &waker(3)),
            into(6, 1, Waking::OffCpu, 5),
        ]);
        assert_eq!(told, [(3, 1, 5, 6)]);
    }

    #[test]
    fn what_is_missing_is_counted() {
        let mut wakes = Wakes::default();
        for event in [out(10, 1, Leave::Slept), into(30, 1, Waking::OffCpu, 20)] {
            assert_eq!(wakes.event(&event), None);
        }
        assert_eq!(wakes.unknown, 1);
    }

    #[test]
    fn memory_is_for_the_living() {
        let mut wakes = Wakes::default();
        for tid in 1..100 {
            wakes.event(&out(10, tid, Leave::Slept));
            wakes.event(&out(11, tid, Leave::Dead));
        }
        assert!(wakes.sleepers.is_empty());
    }
}
