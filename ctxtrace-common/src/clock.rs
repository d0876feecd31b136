//! The state machine of one thread: scheduler events in, intervals out.
//!
//! A thread is *on* a CPU between a switch-in and a switch-out and *off* it otherwise. What an off interval consists of
//! depends on how it began:
//!
//! ```text
//!   slept:      out ───── blocked ─────┬── run queue ──┬ in        still runnable:  out ──── run queue ────┬ in
//!                                      waking          │                                                   │
//!                                      └─ wake to run ─┘
//!
//!   raced:      ── on ── waking ── out ───── run queue ─────┬ in   (blocked = 0)
//!                        └──────────── wake to run ─────────┘
//!
//!   new thread: fork · · · wakeup_new ──── run queue ───────┬ in   (no off-CPU interval: it has never been on a CPU)
//! ```
//!
//! The *end of a sleep* is the first waking after the switch-out. Where there is none, the wakeup raced with going to
//! sleep: `try_to_wake_up()` may find the thread between setting its state and reaching `schedule()`, so the waking event
//! comes up to tens of microseconds before the switch-out. Then the last waking since the thread came on the CPU ended the
//! sleep, nothing was spent blocked, and the wait for a CPU starts at the switch-out. Where there is neither, the end is
//! unknown and said to be.
//!
//! **No time is invented.** A thread is [`Phase::Unknown`] until its first switch; an event that contradicts the phase (a
//! switch-in while on a CPU, a switch-out while off it) means that one was lost, so the open interval is dropped, not
//! guessed.
//!
//! **Concurrency.** In the kernel a clock is changed by the CPU that switches the thread, under that CPU's run-queue lock,
//! with one exception: a waking may come from any CPU at any moment. It writes only the two `wake_*` fields, each a single
//! aligned 64-bit store, so the worst a race can do is to put a waking on the wrong side of a switch-out that happens in
//! the same nanoseconds; [`Clock::switch_in`] reads both and orders them by their time stamps. The fields a waking writes
//! are cleared at the switch-in, not when the thread has left the CPU and can be woken. At the switch-in it hardly can: only one that
//! was preempted on its way to sleep. What such a waking leaves behind is cleared before the next switch-out shows.

use bytemuck::{Pod, Zeroable};

use crate::words::{load, store};

/// Where a thread is. Stored as a `u32` because the clock lies in kernel memory, where zeroes mean [`Phase::Unknown`].
#[repr(u32)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Phase {
    /// Nothing has been seen of it yet.
    Unknown = 0,
    /// On a CPU since [`Clock::since_ns`].
    On = 1,
    /// Off the CPU since [`Clock::since_ns`], asleep when it left.
    Slept = 2,
    /// Off the CPU since [`Clock::since_ns`], still runnable when it left (preempted or yielded).
    Runnable = 3,
    /// Created, and not yet on any CPU.
    New = 4,
    /// Switched out for the last time.
    Dead = 5,
}

/// How a thread left the CPU.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Leave {
    /// It sleeps until somebody wakes it (`!preempt` and `prev_state` ≠ 0).
    Slept,
    /// It could go on at once.
    Runnable,
    /// It never comes back (`TASK_DEAD`).
    Dead,
}

/// The clock of one thread; see the module's text. All times are `CLOCK_MONOTONIC` nanoseconds.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Pod, Zeroable)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub struct Clock {
    /// When the current phase began; meaningless in [`Phase::Unknown`] and [`Phase::New`].
    pub since_ns: u64,
    /// First waking since the thread left the CPU; 0 if there was none.
    pub wake_off_ns: u64,
    /// Last waking since the thread came on the CPU; 0 if there was none.
    pub wake_on_ns: u64,
    phase: u32,
    reserved: u32,
}

const _: () = assert!(size_of::<Clock>() == 32);

/// A time that may not be known, in one word.
///
/// An `Option<u64>` is two, the second of which holds nothing where the first says `None`. A compiler may read that second word
/// before it looks at the first, which is no harm on a processor. Linux before 6.3 refuses a BPF program that could come to read
/// a place of its stack that nothing was written to (`check_stack_read_fixed_off()` in kernel/bpf/verifier.c).
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Span(u64);

impl Span {
    /// Not known.
    pub const UNKNOWN: Self = Self(u64::MAX);

    /// So many nanoseconds; below `u64::MAX`, which is 584 years.
    #[inline(always)]
    #[must_use]
    pub const fn of(ns: u64) -> Self {
        Self(ns)
    }

    /// The nanoseconds, if they are known.
    #[inline(always)]
    #[must_use]
    pub const fn ns(self) -> Option<u64> {
        if self.0 == Self::UNKNOWN.0 { None } else { Some(self.0) }
    }

    /// The nanoseconds, 0 if they are not known.
    #[inline(always)]
    #[must_use]
    pub const fn or_zero(self) -> u64 {
        if self.0 == Self::UNKNOWN.0 { 0 } else { self.0 }
    }
}

impl Default for Span {
    fn default() -> Self {
        Self::UNKNOWN
    }
}

impl core::fmt::Debug for Span {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        self.ns().fmt(f)
    }
}

/// What a switch-out ended.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Left {
    /// On-CPU time, if its beginning was seen.
    pub on_cpu_ns: Span,
    /// The thread was thought to be off the CPU: a switch-in was lost, and with it the off interval that it ended.
    pub missed_switch_in: bool,
}

/// Which of a thread's two wakings: an index into what is kept beside the clock for each.
#[repr(u32)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Waking {
    /// The first one since the thread left the CPU.
    OffCpu = 0,
    /// The last one since it came on the CPU.
    OnCpu = 1,
}

/// What a switch-in ended.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Entered {
    /// Switch-out to switch-in.
    pub off_cpu_ns: Span,
    /// Switch-out to the end of the sleep; unknown also where the thread did not sleep.
    pub blocked_ns: Span,
    /// End of the sleep, or the switch-out of a runnable thread, to switch-in.
    pub run_queue_ns: Span,
    /// The waking that ended the sleep to switch-in; longer than `run_queue_ns` where the two raced.
    pub wake_to_run_ns: Span,
    /// Which waking ended the sleep, or the wait of a new thread.
    pub woken: Option<Waking>,
    /// The thread slept (or is new), yet no waking of it was seen.
    pub wake_unknown: bool,
    /// The thread was thought to be on a CPU: a switch-out was lost, and with it the on interval that it ended.
    pub missed_switch_out: bool,
}

impl Clock {
    /// The clock of a thread of which nothing has been seen.
    pub const UNKNOWN: Self = Self {
        phase: Phase::Unknown as u32,
        ..Self::NEW
    };

    /// The clock of a thread that has just been created: its first wait ends the first time it gets a CPU.
    pub const NEW: Self = Self {
        since_ns: 0,
        wake_off_ns: 0,
        wake_on_ns: 0,
        phase: Phase::New as u32,
        reserved: 0,
    };

    /// Where the thread is.
    #[inline(always)]
    #[must_use]
    pub fn phase(&self) -> Phase {
        match self.phase {
            1 => Phase::On,
            2 => Phase::Slept,
            3 => Phase::Runnable,
            4 => Phase::New,
            5 => Phase::Dead,
            _ => Phase::Unknown,
        }
    }

    /// Whether an off-CPU interval is open: begun with a switch-out and not ended (for a dead thread, never to be).
    #[inline(always)]
    #[must_use]
    pub fn is_off(&self) -> bool {
        matches!(self.phase(), Phase::Slept | Phase::Runnable | Phase::Dead)
    }

    /// The thread leaves its CPU.
    #[inline(always)]
    pub fn switch_out(&mut self, now_ns: u64, leave: Leave) -> Left {
        let mut left = Left::default();
        match self.phase() {
            Phase::On => {
                left.on_cpu_ns = Span::of(now_ns.saturating_sub(self.since_ns));
                // Of an earlier interval: it was made while the thread, still runnable, got its CPU. Whoever ends the sleep that
                // begins has seen the phase that is stored below.
                store(&mut self.wake_off_ns, 0);
            }
            Phase::Slept | Phase::Runnable | Phase::New => {
                left.missed_switch_in = true;
                // These wakings ended the interval that was lost; they say nothing about the one that begins.
                self.forget_wakings();
            }
            Phase::Unknown | Phase::Dead => {}
        }
        let phase = match leave {
            Leave::Slept => Phase::Slept,
            Leave::Runnable => Phase::Runnable,
            Leave::Dead => Phase::Dead,
        };
        store(&mut self.since_ns, now_ns);
        store(&mut self.phase, phase as u32);
        left
    }

    /// The waking that would end the sleep of a thread that came onto a CPU now, and when it was made: 0 for never.
    #[inline(always)]
    #[must_use]
    pub fn noted_waking(&self) -> (Waking, u64) {
        match load(&self.wake_off_ns) {
            0 => (Waking::OnCpu, load(&self.wake_on_ns)),
            woken_ns => (Waking::OffCpu, woken_ns),
        }
    }

    /// The thread comes onto a CPU.
    #[inline(always)]
    pub fn switch_in(&mut self, now_ns: u64) -> Entered {
        let mut entered = Entered::default();
        match self.phase() {
            Phase::Slept => {
                entered.off_cpu_ns = Span::of(now_ns.saturating_sub(self.since_ns));
                let (waking, woken_ns) = self.noted_waking();
                if woken_ns == 0 {
                    entered.wake_unknown = true;
                } else {
                    let sleep_end_ns = if woken_ns > self.since_ns {
                        woken_ns
                    } else {
                        self.since_ns
                    };
                    entered.woken = Some(waking);
                    entered.blocked_ns = Span::of(sleep_end_ns.saturating_sub(self.since_ns));
                    entered.run_queue_ns = Span::of(now_ns.saturating_sub(sleep_end_ns));
                    entered.wake_to_run_ns = Span::of(now_ns.saturating_sub(woken_ns));
                }
            }
            Phase::Runnable => {
                entered.off_cpu_ns = Span::of(now_ns.saturating_sub(self.since_ns));
                entered.run_queue_ns = entered.off_cpu_ns;
            }
            Phase::New => {
                let woken_ns = load(&self.wake_off_ns);
                if woken_ns == 0 {
                    entered.wake_unknown = true;
                } else {
                    entered.woken = Some(Waking::OffCpu);
                    entered.run_queue_ns = Span::of(now_ns.saturating_sub(woken_ns));
                    entered.wake_to_run_ns = entered.run_queue_ns;
                }
            }
            Phase::On => entered.missed_switch_out = true,
            Phase::Unknown | Phase::Dead => {}
        }
        self.forget_wakings();
        self.since_ns = now_ns;
        self.phase = Phase::On as u32;
        entered
    }

    /// Which waking it would be if somebody woke the thread now; `None` if it would be of no consequence. What is noted
    /// beside the clock about a waking is written between this and [`Clock::waking`].
    #[inline(always)]
    #[must_use]
    pub fn next_waking(&self) -> Option<Waking> {
        match self.phase() {
            Phase::On => Some(Waking::OnCpu),
            Phase::Slept | Phase::Runnable | Phase::New if load(&self.wake_off_ns) == 0 => Some(Waking::OffCpu),
            Phase::Slept | Phase::Runnable | Phase::New | Phase::Unknown | Phase::Dead => None,
        }
    }

    /// Somebody wakes the thread (`sched_waking`, or `sched_wakeup_new` for a new one), and it is this waking. May run on
    /// any CPU, for one waking of a thread at a time (the kernel holds the thread's `pi_lock`).
    #[inline(always)]
    pub fn waking(&mut self, waking: Waking, now_ns: u64) {
        match waking {
            Waking::OnCpu => store(&mut self.wake_on_ns, now_ns),
            Waking::OffCpu => store(&mut self.wake_off_ns, now_ns),
        }
    }

    #[inline(always)]
    fn forget_wakings(&mut self) {
        store(&mut self.wake_off_ns, 0);
        store(&mut self.wake_on_ns, 0);
    }
}

#[cfg(test)]
mod tests {
    extern crate std;
    use super::*;
    use std::vec::Vec;

    /// Plays a timeline drawn as text and returns what each switch-in and switch-out ended.
    ///
    /// One character is 10 ns: `[` switch-in, `z` switch-out asleep, `r` switch-out still runnable, `x` last switch-out,
    /// `!` waking; every other character only passes the time.
    fn play(mut clock: Clock, timeline: &str) -> (Vec<Left>, Vec<Entered>, Clock) {
        let (mut lefts, mut entereds) = (Vec::new(), Vec::new());
        for (column, event) in timeline.chars().enumerate() {
            let now_ns = 10 * (column as u64 + 1);
            match event {
                '[' => entereds.push(clock.switch_in(now_ns)),
                'z' => lefts.push(clock.switch_out(now_ns, Leave::Slept)),
                'r' => lefts.push(clock.switch_out(now_ns, Leave::Runnable)),
                'x' => lefts.push(clock.switch_out(now_ns, Leave::Dead)),
                '!' => {
                    if let Some(waking) = clock.next_waking() {
                        clock.waking(waking, now_ns);
                    }
                }
                _ => {}
            }
        }
        (lefts, entereds, clock)
    }

    #[test]
    fn a_sleep_is_split_at_its_waking() {
        let (lefts, entereds, _) = play(Clock::UNKNOWN, "[---z...!..[");
        assert_eq!(lefts[0].on_cpu_ns, Span::of(40));
        assert_eq!(
            entereds[1],
            Entered {
                off_cpu_ns: Span::of(70),
                blocked_ns: Span::of(40),
                run_queue_ns: Span::of(30),
                wake_to_run_ns: Span::of(30),
                woken: Some(Waking::OffCpu),
                ..Entered::default()
            }
        );
    }

    #[test]
    fn only_the_first_waking_after_the_switch_out_ends_the_sleep() {
        let (_, entereds, _) = play(Clock::UNKNOWN, "[z..!..!.[");
        assert_eq!(entereds[1].blocked_ns, Span::of(30));
        assert_eq!(entereds[1].wake_to_run_ns, Span::of(50));
    }

    #[test]
    fn a_wakeup_that_raced_with_going_to_sleep_leaves_nothing_blocked() {
        let (_, entereds, _) = play(Clock::UNKNOWN, "[-!--z....[");
        assert_eq!(
            entereds[1],
            Entered {
                off_cpu_ns: Span::of(50),
                blocked_ns: Span::of(0),
                run_queue_ns: Span::of(50),
                wake_to_run_ns: Span::of(80),
                woken: Some(Waking::OnCpu),
                ..Entered::default()
            }
        );
    }

    #[test]
    fn of_several_early_wakings_the_last_one_raced() {
        let (_, entereds, _) = play(Clock::UNKNOWN, "[!-!z..[");
        assert_eq!(entereds[1].wake_to_run_ns, Span::of(40));
    }

    #[test]
    fn a_waking_after_the_switch_out_beats_an_early_one() {
        let (_, entereds, _) = play(Clock::UNKNOWN, "[!-z..!.[");
        assert_eq!(entereds[1].blocked_ns, Span::of(30));
        assert_eq!(entereds[1].wake_to_run_ns, Span::of(20));
    }

    #[test]
    fn an_early_waking_does_not_outlive_its_switch_in() {
        // The waking belongs to the first sleep; the second has none and must say so.
        let (_, entereds, _) = play(Clock::UNKNOWN, "[!z..[--z..[");
        assert_eq!(entereds[1].wake_to_run_ns, Span::of(40));
        assert!(entereds[2].wake_unknown);
        assert_eq!(entereds[2].blocked_ns, Span::UNKNOWN);
        assert_eq!(entereds[2].run_queue_ns, Span::UNKNOWN);
        assert_eq!(entereds[2].off_cpu_ns, Span::of(30));
    }

    #[test]
    fn a_runnable_thread_waits_for_a_cpu_from_its_switch_out() {
        let (_, entereds, _) = play(Clock::UNKNOWN, "[--r...[");
        assert_eq!(
            entereds[1],
            Entered {
                off_cpu_ns: Span::of(40),
                run_queue_ns: Span::of(40),
                ..Entered::default()
            }
        );
    }

    #[test]
    fn a_waking_of_a_preempted_thread_ends_no_sleep() {
        // Preempted between setting its state and schedule(): it is woken, yet it never slept.
        let (_, entereds, _) = play(Clock::UNKNOWN, "[--r.!.[--z.[");
        assert_eq!(entereds[1].blocked_ns, Span::UNKNOWN);
        assert_eq!(entereds[1].run_queue_ns, Span::of(40));
        assert!(entereds[2].wake_unknown, "the waking must not leak into the next sleep");
    }

    #[test]
    fn a_new_thread_waits_from_its_wakeup_and_was_never_off_cpu() {
        let (lefts, entereds, _) = play(Clock::NEW, "..!...[-z");
        assert_eq!(
            entereds[0],
            Entered {
                run_queue_ns: Span::of(40),
                wake_to_run_ns: Span::of(40),
                woken: Some(Waking::OffCpu),
                ..Entered::default()
            }
        );
        assert_eq!(lefts[0].on_cpu_ns, Span::of(20));
    }

    #[test]
    fn a_new_thread_without_its_wakeup_is_said_to_lack_it() {
        let (_, entereds, _) = play(Clock::NEW, "...[");
        assert!(entereds[0].wake_unknown);
        assert_eq!(entereds[0].run_queue_ns, Span::UNKNOWN);
    }

    #[test]
    fn a_thread_first_seen_in_the_middle_invents_no_time() {
        let (lefts, entereds, _) = play(Clock::UNKNOWN, "--z..!.[");
        assert_eq!(lefts[0], Left::default(), "on since when? unknown");
        assert_eq!(entereds[0].off_cpu_ns, Span::of(50));
        let (_, entereds, _) = play(Clock::UNKNOWN, "..!..[");
        assert_eq!(entereds[0], Entered::default(), "off since when? unknown");
    }

    #[test]
    fn a_lost_switch_out_drops_the_on_interval() {
        let (lefts, entereds, _) = play(Clock::UNKNOWN, "[--[---z");
        assert!(entereds[1].missed_switch_out);
        assert_eq!(entereds[1].off_cpu_ns, Span::UNKNOWN);
        assert_eq!(
            lefts[0].on_cpu_ns,
            Span::of(40),
            "counted from the switch-in that was seen"
        );
    }

    #[test]
    fn a_lost_switch_in_drops_the_off_interval_and_its_waking() {
        let (lefts, entereds, _) = play(Clock::UNKNOWN, "[-z.!..z...[");
        assert!(lefts[1].missed_switch_in);
        assert_eq!(lefts[1].on_cpu_ns, Span::UNKNOWN);
        assert_eq!(
            entereds[1].off_cpu_ns,
            Span::of(40),
            "counted from the switch-out that was seen"
        );
        assert!(entereds[1].wake_unknown, "the waking ended the interval that was lost");
    }

    #[test]
    fn a_waking_stamped_before_a_switch_out_it_was_stored_after_counts_as_raced() {
        // Another CPU took its time stamp first and stored it last.
        let mut clock = Clock::UNKNOWN;
        clock.switch_in(10);
        clock.switch_out(50, Leave::Slept);
        clock.waking(Waking::OffCpu, 48);
        let entered = clock.switch_in(90);
        assert_eq!(entered.blocked_ns, Span::of(0));
        assert_eq!(entered.run_queue_ns, Span::of(40));
        assert_eq!(entered.wake_to_run_ns, Span::of(42));
    }

    #[test]
    fn a_waking_stamped_after_a_switch_out_it_was_stored_before_ends_the_sleep_there() {
        let mut clock = Clock::UNKNOWN;
        clock.switch_in(10);
        clock.waking(Waking::OnCpu, 52);
        clock.switch_out(50, Leave::Slept);
        let entered = clock.switch_in(90);
        assert_eq!(entered.blocked_ns, Span::of(2));
        assert_eq!(entered.run_queue_ns, Span::of(38));
    }

    #[test]
    fn an_exit_leaves_the_interval_open_for_ever() {
        let (lefts, _, clock) = play(Clock::UNKNOWN, "[--x");
        assert_eq!(lefts[0].on_cpu_ns, Span::of(30));
        assert_eq!(clock.phase(), Phase::Dead);
        assert!(clock.is_off());
    }

    #[test]
    fn a_waking_that_came_too_late_to_be_cleared_ends_no_later_sleep() {
        let (_, _, mut clock) = play(Clock::UNKNOWN, "[-r");
        let late = clock.next_waking().expect("it is noted");
        clock.switch_in(40);
        clock.waking(late, 41);
        clock.switch_out(50, Leave::Slept);
        let waking = clock.next_waking().expect("the first one of this sleep");
        clock.waking(waking, 70);
        let entered = clock.switch_in(80);
        assert_eq!((entered.blocked_ns, entered.run_queue_ns), (Span::of(20), Span::of(10)));
    }

    #[test]
    fn whatever_the_order_of_events_no_time_is_invented() {
        // All sequences of eight events out of five kinds: the parts never exceed the wall clock they lie in.
        const EVENTS: [char; 5] = ['[', 'z', 'r', '!', '.'];
        for mut code in 0..5_usize.pow(8) {
            let mut timeline = std::string::String::new();
            for _ in 0..8 {
                timeline.push(EVENTS[code % 5]);
                code /= 5;
            }
            let (lefts, entereds, _) = play(Clock::UNKNOWN, &timeline);
            let on: u64 = lefts.iter().filter_map(|left| left.on_cpu_ns.ns()).sum();
            let off: u64 = entereds.iter().filter_map(|entered| entered.off_cpu_ns.ns()).sum();
            assert!(on + off <= 70, "{timeline}: {on} on + {off} off in 70 ns");
            for entered in &entereds {
                if let (Some(off), Some(blocked), Some(run_queue)) = (
                    entered.off_cpu_ns.ns(),
                    entered.blocked_ns.ns(),
                    entered.run_queue_ns.ns(),
                ) {
                    assert_eq!(off, blocked + run_queue, "{timeline}");
                }
                assert!(
                    !(entered.wake_unknown && entered.blocked_ns.ns().is_some()),
                    "{timeline}"
                );
            }
        }
    }
}
