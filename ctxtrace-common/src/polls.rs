//! Which task switches hit the kernel, without an event for any of them.
//!
//! The probe counts the polls a thread begins. Whenever the thread is switched out the kernel side reads that number, and
//! whether a poll is going on:
//!
//! ```text
//!   polls   1     2      3                      4     5
//!         ─███───███────███──┬──        ──┬────███───███──┬──
//!                         switch-out   switch-out      switch-out
//!                         pending at 3  the same gap   4 > 3: the beginning of poll 4 was a hit; pending at 5
//! ```
//!
//! A switch-out between polls makes the *next* task switch a hit, which is *pending* until a later reading shows that
//! there was one. Several switch-outs in one gap are one hit. What is pending when the thread ends stays *unconfirmed*:
//! no task was switched to any more. So hits never exceed task switches, and what is no hit stayed in user space.

use bytemuck::{Pod, Zeroable};
use ctxtrace_abi::Slot;

/// Why a thread was switched out between polls. Of several in one gap the greatest counts.
#[repr(u32)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Gap {
    /// It was made to give way, or gave way itself.
    Preempted = 0,
    /// It slept, and was not parked.
    Blocked = 1,
    /// It was parked: there was nothing to poll.
    Parked = 2,
}

impl Gap {
    /// How many there are.
    pub const COUNT: usize = 3;
}

/// Numbers of polls, as the probe counts them.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Pod, Zeroable)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub struct PollCounts {
    /// Outermost polls begun.
    pub polls: u64,
    /// Of them, those of the same task as the thread's previous one.
    pub repolls: u64,
    /// Polls begun within a poll.
    pub nested_polls: u64,
}

impl PollCounts {
    /// What a slot says.
    #[inline(always)]
    #[must_use]
    pub fn of(slot: &Slot) -> Self {
        Self {
            polls: slot.polls,
            repolls: slot.repolls,
            nested_polls: slot.nested_polls,
        }
    }

    #[inline(always)]
    fn plus(self, other: Self) -> Self {
        Self {
            polls: self.polls.wrapping_add(other.polls),
            repolls: self.repolls.wrapping_add(other.repolls),
            nested_polls: self.nested_polls.wrapping_add(other.nested_polls),
        }
    }

    #[inline(always)]
    fn minus(self, other: Self) -> Self {
        Self {
            polls: self.polls.saturating_sub(other.polls),
            repolls: self.repolls.saturating_sub(other.repolls),
            nested_polls: self.nested_polls.saturating_sub(other.nested_polls),
        }
    }
}

/// What one thread's polls have come to.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Pod, Zeroable)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub struct Polls {
    /// At the last reading.
    pub last: PollCounts,
    /// At the first one of a thread that ran before it was traced.
    pub base: PollCounts,
    /// From before the thread executed another program, whose counts begin at 0 again.
    pub carried: PollCounts,
    /// Number of the last poll before the pending hit.
    pub pending_polls: u64,
    /// Confirmed hits, by [`Gap`].
    pub hits: [u64; Gap::COUNT],
    /// Those among them of which the task is not known.
    pub hits_of_unknown_task: u64,
    /// A [`Gap`] plus one, or 0 if nothing is pending.
    pending: u32,
    read_before: u32,
}

const _: () = assert!(size_of::<Polls>() == 3 * 24 + 8 + 24 + 8 + 8);

/// What a reading brought to light.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Observed {
    /// The poll of this number was a hit.
    pub hit: Option<u64>,
    /// The numbers went backwards: the program wrote over them. Nothing was taken from the reading.
    pub impossible: bool,
}

impl Polls {
    /// Takes a reading.
    ///
    /// `between`: the thread is being switched out between polls, and why; `None` if a poll is going on, or if this is
    /// no switch-out. `from_birth`: at the first reading, that the thread was traced from its beginning.
    #[inline(always)]
    pub fn observe(&mut self, now: PollCounts, between: Option<Gap>, from_birth: bool) -> Observed {
        let mut observed = Observed::default();
        if self.read_before == 0 {
            self.read_before = 1;
            if !from_birth {
                self.base = now;
            }
        } else if now.polls < self.last.polls {
            observed.impossible = true;
            return observed;
        }
        if self.pending != 0 && now.polls > self.pending_polls {
            let gap = self.pending as usize - 1;
            if let Some(hits) = self.hits.get_mut(gap) {
                *hits += 1;
            }
            observed.hit = Some(self.pending_polls.wrapping_add(1));
            self.pending = 0;
        }
        if let Some(gap) = between {
            self.pending_polls = now.polls;
            if self.pending < gap as u32 + 1 {
                self.pending = gap as u32 + 1;
            }
        }
        self.last = now;
        observed
    }

    /// The thread executes another program: its slot begins at 0, and what was pending never came to be.
    #[inline(always)]
    pub fn start_anew(&mut self) {
        self.carried = self.total();
        self.last = PollCounts::default();
        self.base = PollCounts::default();
        self.pending = 0;
        self.read_before = 0;
    }

    /// Polls while the thread was traced, as far as the last reading knows.
    #[inline(always)]
    #[must_use]
    pub fn total(&self) -> PollCounts {
        self.carried.plus(self.last.minus(self.base))
    }

    /// Adds the polls of another thread, so that these are the sums of both. What is pending has to be alike.
    pub fn add(&mut self, other: &Self) {
        let carried = self.total().plus(other.total());
        let Self {
            hits,
            hits_of_unknown_task,
            read_before,
            ..
        } = other;
        *self = Self {
            carried,
            last: PollCounts::default(),
            base: PollCounts::default(),
            pending_polls: 0,
            hits: self.hits,
            hits_of_unknown_task: self.hits_of_unknown_task + hits_of_unknown_task,
            pending: self.pending,
            read_before: self.read_before | read_before,
        };
        for (sum, hits) in self.hits.iter_mut().zip(hits) {
            *sum += hits;
        }
    }

    /// Whether there has been a reading.
    #[inline(always)]
    #[must_use]
    pub fn is_read(&self) -> bool {
        self.read_before != 0
    }

    /// Confirmed hits.
    #[must_use]
    pub fn hits(&self) -> u64 {
        self.hits.iter().sum()
    }

    /// The hit that nothing has confirmed: why the thread was switched out after its last poll.
    #[must_use]
    pub fn unconfirmed(&self) -> Option<Gap> {
        match self.pending {
            1 => Some(Gap::Preempted),
            2 => Some(Gap::Blocked),
            3 => Some(Gap::Parked),
            _ => None,
        }
    }
}

#[cfg(test)]
mod tests {
    extern crate std;
    use super::*;
    use std::vec::Vec;

    fn counts(polls: u64) -> PollCounts {
        PollCounts {
            polls,
            ..PollCounts::default()
        }
    }

    /// Plays a drawn timeline: `(` a poll begins, `)` it ends, `z` switch-out parked, `b` blocked, `p` preempted, `?` a
    /// reading that is no switch-out. Returns the numbers of the polls that were hits, and the state.
    fn play(timeline: &str) -> (Vec<u64>, Polls) {
        let (mut polls, mut begun, mut polling, mut hits) = (Polls::default(), 0, false, Vec::new());
        for event in timeline.chars() {
            let gap = match event {
                '(' => {
                    begun += 1;
                    polling = true;
                    continue;
                }
                ')' => {
                    polling = false;
                    continue;
                }
                'z' => Some(Gap::Parked),
                'b' => Some(Gap::Blocked),
                'p' => Some(Gap::Preempted),
                _ => None,
            };
            let observed = polls.observe(counts(begun), gap.filter(|_| !polling), true);
            assert!(!observed.impossible);
            hits.extend(observed.hit);
        }
        (hits, polls)
    }

    #[test]
    fn a_park_makes_the_next_task_switch_a_hit() {
        let (hits, polls) = play("()()z()()p");
        assert_eq!(hits, [3]);
        assert_eq!(polls.hits, [0, 0, 1]);
        assert_eq!(polls.unconfirmed(), Some(Gap::Preempted));
        assert_eq!(polls.total().polls, 4);
    }

    #[test]
    fn several_switch_outs_in_one_gap_are_one_hit_by_the_weightiest_cause() {
        let (hits, polls) = play("()pzpb()?");
        assert_eq!(hits, [2]);
        assert_eq!(polls.hits, [0, 0, 1]);
        assert_eq!(polls.unconfirmed(), None);
    }

    #[test]
    fn a_switch_out_within_a_poll_is_no_hit() {
        let (hits, polls) = play("(p)(z)()?");
        assert_eq!(hits, []);
        assert_eq!(polls.hits(), 0);
    }

    #[test]
    fn a_hit_is_confirmed_by_a_switch_out_within_the_poll_too() {
        let (hits, _) = play("()z(p)");
        assert_eq!(hits, [2]);
    }

    #[test]
    fn a_park_before_the_first_poll_makes_it_a_hit() {
        let (hits, _) = play("z()?");
        assert_eq!(hits, [1]);
    }

    #[test]
    fn the_last_park_stays_unconfirmed() {
        let (hits, polls) = play("()z?");
        assert_eq!(hits, []);
        assert_eq!(polls.unconfirmed(), Some(Gap::Parked));
    }

    #[test]
    fn a_thread_that_ran_before_counts_from_its_first_reading() {
        let mut polls = Polls::default();
        polls.observe(counts(100), None, false);
        polls.observe(counts(130), None, false);
        assert_eq!(polls.total().polls, 30);
    }

    #[test]
    fn another_program_begins_at_0_and_loses_nothing() {
        let mut polls = Polls::default();
        polls.observe(counts(10), Some(Gap::Parked), true);
        polls.start_anew();
        let observed = polls.observe(counts(3), None, true);
        assert_eq!(observed, Observed::default(), "no hit, and not impossible");
        assert_eq!(polls.total().polls, 13);
    }

    #[test]
    fn numbers_that_go_backwards_are_refused() {
        let mut polls = Polls::default();
        polls.observe(counts(10), None, true);
        assert!(polls.observe(counts(9), Some(Gap::Parked), true).impossible);
        assert_eq!((polls.last.polls, polls.unconfirmed()), (10, None));
    }

    /// Whatever the order of readings: hits never exceed polls, a poll is a hit once at most, and hits come in order.
    #[test]
    fn no_order_of_events_makes_more_hits_than_polls() {
        let alphabet = ['(', ')', 'z', 'b', 'p', '?'];
        let mut timeline = std::string::String::new();
        for mut number in 0..6_usize.pow(7) {
            timeline.clear();
            for _ in 0..7 {
                timeline.push(alphabet[number % 6]);
                number /= 6;
            }
            let (hits, polls) = play(&timeline);
            assert!(
                polls.hits() + u64::from(polls.unconfirmed().is_some()) <= polls.last.polls + 1,
                "{timeline}"
            );
            assert!(hits.len() as u64 == polls.hits(), "{timeline}");
            assert!(hits.is_sorted_by(|a, b| a < b), "{timeline}");
            assert!(hits.iter().all(|&hit| hit <= polls.last.polls), "{timeline}");
        }
    }
}
