//! Matches each switch-in with the wakeup that led to it.
//!
//! A wakeup is one event, and the switch-in event has the time of the wakeup that ended the sleep
//! ([`ctxtrace_common::event::In`]). This module combines the two. A thread that was still runnable at its switch-out was not
//! woken, even if wakeups were recorded meanwhile.
//!
//! If no event is lost, the number of matches is the count of the kernel side's `wake_to_run` distribution.

use std::collections::HashMap;

use ctxtrace_common::clock::{Leave, NotedWakeup};
use ctxtrace_common::event::{Decoded, Event, In};
use ctxtrace_common::wakeup::Waker;

/// A wakeup that ended a sleep, or that started a new thread, with the switch-in that followed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct EffectiveWakeup {
    /// The waker.
    pub waker: Waker,
    /// Time of the wakeup, `CLOCK_MONOTONIC` nanoseconds.
    pub woken_ns: u64,
    /// Id of the woken thread.
    pub tid: u32,
    /// Time of the thread's switch-in, `CLOCK_MONOTONIC` nanoseconds.
    pub in_ns: u64,
}

/// The state of one thread.
#[derive(Clone, Copy, Debug, Default)]
struct Sleeper {
    /// Whether the thread needs a wakeup, because it went to sleep or is new.
    sleeps: bool,
    /// Time and waker of the latest wakeups, indexed by [`NotedWakeup`].
    noted: [Option<(u64, Waker)>; 2],
}

/// Matches switch-ins with wakeups; see the module's documentation. It keeps a state for each living thread.
#[derive(Clone, Debug, Default)]
pub struct Wakes {
    sleepers: HashMap<u32, Sleeper>,
    /// Number of switch-ins whose wakeup event is missing.
    pub unknown: u64,
}

impl Wakes {
    /// Takes the next event. If it is a switch-in that a wakeup led to, returns that wakeup.
    pub fn event(&mut self, event: &Event) -> Option<EffectiveWakeup> {
        match event.decode()? {
            Decoded::Wakeup {
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
                // An `execve` has given the thread the id of the process's leader. The leader has ended, or it gets the thread's
                // previous id.
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

    fn entered(&mut self, in_ns: u64, into: &In) -> Option<EffectiveWakeup> {
        let sleeper = self.sleepers.get_mut(&into.tid)?;
        let Sleeper { sleeps, noted } = std::mem::take(sleeper);
        if !sleeps || into.woken_ns == 0 {
            return None;
        }
        // A wakeup with another time is an older one; the matching event was lost.
        let wakeup = noted[into.wakeup as usize].filter(|&(at_ns, _)| at_ns == into.woken_ns);
        let Some((woken_ns, waker)) = wakeup else {
            self.unknown += 1;
            return None;
        };
        Some(EffectiveWakeup {
            waker,
            woken_ns,
            tid: into.tid,
            in_ns,
        })
    }
}

const _: () = assert!(NotedWakeup::OffCpu as usize == 0 && NotedWakeup::OnCpu as usize == 1);

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

    fn wakeup(at_ns: u64, tid: u32, noted: Option<NotedWakeup>, by: u32) -> Event {
        Event::wakeup(at_ns, 0, tid, noted, false, &waker(by))
    }

    fn out(at_ns: u64, tid: u32, leave: Leave) -> Event {
        let mut event = Event::switch(at_ns, 0);
        event.set_out(tid, leave, true, &SumKey::EMPTY);
        event
    }

    fn into(at_ns: u64, tid: u32, wakeup: NotedWakeup, woken_ns: u64) -> Event {
        let mut event = Event::switch(at_ns, 0);
        event.set_in(tid, wakeup, woken_ns);
        event
    }

    /// The waker, the woken thread, the time of the wakeup and the time of the switch-in of each match.
    fn wakes(events: &[Event]) -> Vec<(u32, u32, u64, u64)> {
        let mut wakes = Wakes::default();
        let found = events.iter().filter_map(|event| wakes.event(event));
        found
            .map(|wake| (wake.waker.tid, wake.tid, wake.woken_ns, wake.in_ns))
            .collect()
    }

    #[test]
    fn the_first_wakeup_of_a_sleep_ends_it() {
        let found = wakes(&[
            out(10, 1, Leave::Slept),
            wakeup(20, 1, Some(NotedWakeup::OffCpu), 7),
            // Without effect.
            wakeup(21, 1, None, 8),
            into(30, 1, NotedWakeup::OffCpu, 20),
        ]);
        assert_eq!(found, [(7, 1, 20, 30)]);
    }

    #[test]
    fn a_wakeup_may_come_before_the_sleep_that_it_ends() {
        let found = wakes(&[
            wakeup(8, 1, Some(NotedWakeup::OnCpu), 7),
            wakeup(9, 1, Some(NotedWakeup::OnCpu), 8),
            out(10, 1, Leave::Slept),
            into(30, 1, NotedWakeup::OnCpu, 9),
        ]);
        assert_eq!(found, [(8, 1, 9, 30)]);
    }

    #[test]
    fn who_was_thrown_out_was_not_woken() {
        let found = wakes(&[
            wakeup(9, 1, Some(NotedWakeup::OnCpu), 8),
            out(10, 1, Leave::Runnable),
            into(30, 1, NotedWakeup::OnCpu, 9),
            out(40, 1, Leave::Slept),
            // The wakeup of this switch-in was lost, and the earlier wakeup must not be used instead.
            into(50, 1, NotedWakeup::OffCpu, 45),
        ]);
        assert_eq!(found, []);
    }

    #[test]
    fn a_new_thread_is_woken_by_its_maker() {
        let found = wakes(&[
            Event::wakeup(5, 0, 1, Some(NotedWakeup::OffCpu), true, &waker(3)),
            into(6, 1, NotedWakeup::OffCpu, 5),
        ]);
        assert_eq!(found, [(3, 1, 5, 6)]);
    }

    #[test]
    fn what_is_missing_is_counted() {
        let mut wakes = Wakes::default();
        for event in [out(10, 1, Leave::Slept), into(30, 1, NotedWakeup::OffCpu, 20)] {
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
