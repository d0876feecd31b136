//! Finds which task switches hit the kernel, without an event for any task switch.
//!
//! The probe counts the polls that a thread begins. Whenever the thread is switched out, the kernel side reads that
//! count, and whether a poll is in progress:
//!
//! ```text
//!   polls   1     2      3                      4     5
//!         ─███───███────███──┬──        ──┬────███───███──┬──
//!                         switch-out   switch-out      switch-out
//!                         pending at 3  the same gap   4 > 3: the beginning of poll 4 was a hit; pending at 5
//! ```
//!
//! A switch-out between polls makes the *next* task switch a hit. The hit is *pending* until a later reading shows that
//! there was another task switch. Several switch-outs in one gap between polls are one hit. A hit that is pending when
//! the thread ends stays *unconfirmed*, because no further task switch was seen. So there are never more hits than task
//! switches, and every task switch that is not a hit stayed in user space.

use bytemuck::{Pod, Zeroable};
use ctxtrace_abi::Slot;

/// Why a thread was switched out between polls. If there are several causes in one gap, the greatest is counted.
#[repr(u32)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Gap {
    /// The thread was preempted or yielded.
    Preempted = 0,
    /// The thread slept, and was not parked.
    Blocked = 1,
    /// The thread was parked: it had nothing to poll.
    Parked = 2,
}

impl Gap {
    /// Number of causes.
    pub const COUNT: usize = 3;
}

/// Counts of polls, as the probe keeps them.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Pod, Zeroable)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub struct PollCounts {
    /// Number of outermost polls begun.
    pub polls: u64,
    /// Number of those that were of the same task as the thread's previous outermost poll.
    pub repolls: u64,
    /// Number of polls begun within another poll.
    pub nested_polls: u64,
}

impl PollCounts {
    /// Returns the counts in a slot.
    #[inline(always)]
    #[must_use]
    pub fn from_slot(slot: &Slot) -> Self {
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

/// The polls and hits of one thread.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Pod, Zeroable)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub struct Polls {
    /// The counts at the last reading.
    pub last: PollCounts,
    /// The counts at the first reading, if the thread ran before it was traced; otherwise zeroes.
    pub base: PollCounts,
    /// The counts of the programs that the thread ran before its last `execve`, after which its counts begin at 0.
    pub carried: PollCounts,
    /// Number of the last poll before the pending hit.
    pub pending_polls: u64,
    /// Number of confirmed hits, by [`Gap`].
    pub hits: [u64; Gap::COUNT],
    /// Number of those hits whose task is not known.
    pub hits_of_unknown_task: u64,
    /// A [`Gap`] plus one, or 0 if nothing is pending.
    pending: u32,
    read_before: u32,
}

const _: () = assert!(size_of::<Polls>() == 3 * 24 + 8 + 24 + 8 + 8);

/// The result of a reading.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Observed {
    /// The number of the poll that was a hit, if there was one.
    pub hit: Option<u64>,
    /// Whether the counts went backwards, because the program overwrote them. The reading was then ignored.
    pub impossible: bool,
}

impl Polls {
    /// Processes a reading of the counts.
    ///
    /// `between` is why the thread is being switched out between polls; `None` if a poll is in progress, or if this is
    /// not a switch-out. `from_birth` is used at the first reading: whether the thread has been traced from its
    /// beginning.
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

    /// Records that the thread executes another program: its counts begin at 0, and a pending hit is dropped.
    #[inline(always)]
    pub fn start_anew(&mut self) {
        self.carried = self.total();
        self.last = PollCounts::default();
        self.base = PollCounts::default();
        self.pending = 0;
        self.read_before = 0;
    }

    /// Returns the polls during tracing, up to the last reading.
    #[inline(always)]
    #[must_use]
    pub fn total(&self) -> PollCounts {
        self.carried.plus(self.last.minus(self.base))
    }

    /// Adds the polls of another thread, so that this is the sum of both. Both must have the same pending hit.
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

    /// Returns whether there has been a reading.
    #[inline(always)]
    #[must_use]
    pub fn is_read(&self) -> bool {
        self.read_before != 0
    }

    /// Returns the number of confirmed hits.
    #[must_use]
    pub fn hits(&self) -> u64 {
        self.hits.iter().sum()
    }

    /// Returns the cause of the unconfirmed hit, if there is one: why the thread was switched out after its last poll.
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

    /// Replays a drawn timeline: `(` begins a poll, `)` ends it, `z` is a switch-out parked, `b` blocked, `p`
    /// preempted, and `?` is a reading without a switch-out. Returns the numbers of the polls that were hits, and the
    /// final state.
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
        assert!(hits.is_empty(), "{hits:?}");
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
        assert!(hits.is_empty(), "{hits:?}");
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
        assert_eq!(observed, Observed::default(), "no hit, and possible counts");
        assert_eq!(polls.total().polls, 13);
    }

    #[test]
    fn numbers_that_go_backwards_are_refused() {
        let mut polls = Polls::default();
        polls.observe(counts(10), None, true);
        assert!(polls.observe(counts(9), Some(Gap::Parked), true).impossible);
        assert_eq!((polls.last.polls, polls.unconfirmed()), (10, None));
    }

    /// For any order of readings, there are never more hits than polls, a poll is a hit at most once, and hits come in
    /// order.
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
