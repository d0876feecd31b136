//! The state machine of one thread. Its input is scheduler events and its output is intervals.
//!
//! A thread is *on* a CPU between a switch-in and a switch-out, and *off* it otherwise. The parts of an off-CPU
//! interval depend on how it began:
//!
//! ```text
//!   slept:      out ───── blocked ─────┬── run queue ──┬ in        still runnable:  out ──── run queue ────┬ in
//!                                      wakeup          │                                                   │
//!                                      └─ wake to run ─┘
//!
//!   raced:      ── on ── wakeup ── out ───── run queue ─────┬ in   (blocked = 0)
//!                        └──────────── wake to run ─────────┘
//!
//!   new thread: fork · · · wakeup_new ──── run queue ───────┬ in   (no off-CPU interval: it has never been on a CPU)
//! ```
//!
//! The *end of a sleep* is the first wakeup after the switch-out. If there is none, the wakeup raced with going to
//! sleep: `try_to_wake_up()` may find the thread between setting its state and reaching `schedule()`, so the wakeup
//! event comes up to tens of microseconds before the switch-out. Then the last wakeup since the thread's switch-in
//! ended the sleep, the blocked time is 0, and the run-queue time begins at the switch-out. If there is neither, the
//! end of the sleep is unknown and reported as such.
//!
//! **No time is invented.** A thread is [`Phase::Unknown`] until its first switch. An event that contradicts the phase
//! (a switch-in while on a CPU, a switch-out while off it) means that an event was lost, so the open interval is
//! dropped and not estimated.
//!
//! **Concurrency.** In the kernel a clock is changed by the CPU that switches the thread, under that CPU's run-queue
//! lock, with one exception: a wakeup may come from any CPU at any moment. It writes only the two `wake_*` fields, each
//! with a single aligned 64-bit store. So the worst effect of a race is that a wakeup is assigned to the wrong side of
//! a switch-out within the same nanoseconds, and [`Clock::switch_in`] reads both fields and orders them by their time
//! stamps. The two fields are cleared at the switch-in and not at the switch-out, because a thread can be woken from
//! its switch-out on. At the switch-in it hardly can: only a thread that was preempted on its way to sleep. If such a
//! wakeup stores its time after the fields were cleared, `wake_off_ns` is cleared again at the next switch-out, before
//! the new phase is stored.

use bytemuck::{Pod, Zeroable};

use crate::words::{load, store};

/// The phase of a thread. It is stored as a `u32`, because the clock is in kernel memory, where zeroes mean
/// [`Phase::Unknown`].
#[repr(u32)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Phase {
    /// No switch of the thread has been seen.
    Unknown = 0,
    /// On a CPU since [`Clock::since_ns`].
    On = 1,
    /// Off-CPU since [`Clock::since_ns`]; the thread went to sleep.
    Slept = 2,
    /// Off-CPU since [`Clock::since_ns`]; the thread was still runnable (preempted or yielded).
    Runnable = 3,
    /// Created, and not on any CPU yet.
    New = 4,
    /// Switched out for the last time.
    Dead = 5,
}

/// How a thread left the CPU.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Leave {
    /// The thread sleeps until it is woken (`!preempt` and `prev_state` ≠ 0).
    Slept,
    /// The thread is still runnable.
    Runnable,
    /// The thread never runs again (`TASK_DEAD`).
    Dead,
}

/// The clock of one thread; see the module documentation. All times are `CLOCK_MONOTONIC` nanoseconds.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Pod, Zeroable)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub struct Clock {
    /// Beginning of the current phase; without meaning in [`Phase::Unknown`] and [`Phase::New`].
    pub since_ns: u64,
    /// Time of the first wakeup since the switch-out; 0 if there was none.
    pub wake_off_ns: u64,
    /// Time of the last wakeup since the switch-in; 0 if there was none.
    pub wake_on_ns: u64,
    phase: u32,
    reserved: u32,
}

const _: () = assert!(size_of::<Clock>() == 32);

/// A time in nanoseconds that may be unknown, in one word.
///
/// An `Option<u64>` has two words, and the second one is uninitialised if the first one is `None`. A compiler may load
/// the second word before it tests the first, which is harmless on a processor. But Linux before 6.3 rejects a BPF
/// program that could read a stack slot that was never written (`check_stack_read_fixed_off()` in
/// kernel/bpf/verifier.c).
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Span(u64);

impl Span {
    /// An unknown time.
    pub const UNKNOWN: Self = Self(u64::MAX);

    /// Makes a known time of `ns` nanoseconds, which must be below `u64::MAX` (584 years).
    #[inline(always)]
    #[must_use]
    pub const fn new(ns: u64) -> Self {
        Self(ns)
    }

    /// Returns the nanoseconds, or `None` if they are unknown.
    #[inline(always)]
    #[must_use]
    pub const fn ns(self) -> Option<u64> {
        if self.0 == Self::UNKNOWN.0 { None } else { Some(self.0) }
    }

    /// Returns the nanoseconds, or 0 if they are unknown.
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

/// The interval that a switch-out ended.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Left {
    /// On-CPU time; unknown if its beginning was not seen.
    pub on_cpu_ns: Span,
    /// Whether the thread was recorded as off-CPU: a switch-in was lost, and with it the off-CPU interval that it
    /// ended.
    pub missed_switch_in: bool,
}

/// The two wakeups that are noted for a thread. The number is the index of what is kept for each in addition to the
/// clock.
#[repr(u32)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NotedWakeup {
    /// The first wakeup since the switch-out.
    OffCpu = 0,
    /// The last wakeup since the switch-in.
    OnCpu = 1,
}

/// The interval that a switch-in ended.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Entered {
    /// From switch-out to switch-in.
    pub off_cpu_ns: Span,
    /// From switch-out to the end of the sleep; unknown also if the thread did not sleep.
    pub blocked_ns: Span,
    /// From the end of the sleep, or from the switch-out of a runnable thread, to switch-in.
    pub run_queue_ns: Span,
    /// From the wakeup that ended the sleep to switch-in; longer than `run_queue_ns` if wakeup and switch-out raced.
    pub wake_to_run_ns: Span,
    /// The wakeup that ended the sleep, or the wait of a new thread.
    pub woken: Option<NotedWakeup>,
    /// Whether the thread slept (or is new) and no wakeup of it was seen.
    pub wake_unknown: bool,
    /// Whether the thread was recorded as on-CPU: a switch-out was lost, and with it the on-CPU interval that it ended.
    pub missed_switch_out: bool,
}

impl Clock {
    /// The clock of a thread of which no switch has been seen.
    pub const UNKNOWN: Self = Self {
        phase: Phase::Unknown as u32,
        ..Self::NEW
    };

    /// The clock of a thread that has just been created. Its first wait ends at its first switch-in.
    pub const NEW: Self = Self {
        since_ns: 0,
        wake_off_ns: 0,
        wake_on_ns: 0,
        phase: Phase::New as u32,
        reserved: 0,
    };

    /// Returns the thread's phase.
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

    /// Returns whether an off-CPU interval is open. That of a dead thread stays open for ever.
    #[inline(always)]
    #[must_use]
    pub fn is_off(&self) -> bool {
        matches!(self.phase(), Phase::Slept | Phase::Runnable | Phase::Dead)
    }

    /// Records that the thread leaves its CPU.
    #[inline(always)]
    pub fn switch_out(&mut self, now_ns: u64, leave: Leave) -> Left {
        let mut left = Left::default();
        match self.phase() {
            Phase::On => {
                left.on_cpu_ns = Span::new(now_ns.saturating_sub(self.since_ns));
                // A time in this field belongs to an earlier interval: that wakeup came while the thread, still
                // runnable, got its CPU. A wakeup that ends the sleep that begins now comes after the new phase has
                // been stored below.
                store(&mut self.wake_off_ns, 0);
            }
            Phase::Slept | Phase::Runnable | Phase::New => {
                left.missed_switch_in = true;
                // These wakeups ended the interval that was lost; they do not belong to the one that begins now.
                self.clear_wakeups();
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

    /// Returns the wakeup that would end the thread's sleep if the thread were switched in now, and its time, which is
    /// 0 if there was no wakeup.
    #[inline(always)]
    #[must_use]
    pub fn noted_wakeup(&self) -> (NotedWakeup, u64) {
        match load(&self.wake_off_ns) {
            0 => (NotedWakeup::OnCpu, load(&self.wake_on_ns)),
            woken_ns => (NotedWakeup::OffCpu, woken_ns),
        }
    }

    /// Records that the thread is switched in.
    #[inline(always)]
    pub fn switch_in(&mut self, now_ns: u64) -> Entered {
        let mut entered = Entered::default();
        match self.phase() {
            Phase::Slept => {
                entered.off_cpu_ns = Span::new(now_ns.saturating_sub(self.since_ns));
                let (wakeup, woken_ns) = self.noted_wakeup();
                if woken_ns == 0 {
                    entered.wake_unknown = true;
                } else {
                    let sleep_end_ns = if woken_ns > self.since_ns {
                        woken_ns
                    } else {
                        self.since_ns
                    };
                    entered.woken = Some(wakeup);
                    entered.blocked_ns = Span::new(sleep_end_ns.saturating_sub(self.since_ns));
                    entered.run_queue_ns = Span::new(now_ns.saturating_sub(sleep_end_ns));
                    entered.wake_to_run_ns = Span::new(now_ns.saturating_sub(woken_ns));
                }
            }
            Phase::Runnable => {
                entered.off_cpu_ns = Span::new(now_ns.saturating_sub(self.since_ns));
                entered.run_queue_ns = entered.off_cpu_ns;
            }
            Phase::New => {
                let woken_ns = load(&self.wake_off_ns);
                if woken_ns == 0 {
                    entered.wake_unknown = true;
                } else {
                    entered.woken = Some(NotedWakeup::OffCpu);
                    entered.run_queue_ns = Span::new(now_ns.saturating_sub(woken_ns));
                    entered.wake_to_run_ns = entered.run_queue_ns;
                }
            }
            Phase::On => entered.missed_switch_out = true,
            Phase::Unknown | Phase::Dead => {}
        }
        self.clear_wakeups();
        self.since_ns = now_ns;
        self.phase = Phase::On as u32;
        entered
    }

    /// Returns which of the two wakeups a wakeup at this moment would be, or `None` if it would have no effect. Data
    /// that is kept about a wakeup in addition to the clock must be written between this call and [`Clock::wakeup`].
    #[inline(always)]
    #[must_use]
    pub fn next_wakeup(&self) -> Option<NotedWakeup> {
        match self.phase() {
            Phase::On => Some(NotedWakeup::OnCpu),
            Phase::Slept | Phase::Runnable | Phase::New if load(&self.wake_off_ns) == 0 => Some(NotedWakeup::OffCpu),
            Phase::Slept | Phase::Runnable | Phase::New | Phase::Unknown | Phase::Dead => None,
        }
    }

    /// Records that the thread is woken (`sched_waking`, or `sched_wakeup_new` for a new thread), and that this is
    /// wakeup `wakeup`. This may run on any CPU. The kernel holds the thread's `pi_lock`, so the wakeups of one thread
    /// come one at a time, except those that the thread's own CPU makes while the thread is `current` (kernel:
    /// `kernel/sched/core.c`, `try_to_wake_up()`).
    #[inline(always)]
    pub fn wakeup(&mut self, wakeup: NotedWakeup, now_ns: u64) {
        match wakeup {
            NotedWakeup::OnCpu => store(&mut self.wake_on_ns, now_ns),
            NotedWakeup::OffCpu => store(&mut self.wake_off_ns, now_ns),
        }
    }

    #[inline(always)]
    fn clear_wakeups(&mut self) {
        store(&mut self.wake_off_ns, 0);
        store(&mut self.wake_on_ns, 0);
    }
}

#[cfg(test)]
mod tests {
    extern crate std;
    use super::*;
    use std::vec::Vec;

    /// Replays a timeline that is drawn as text, and returns what each switch-in and each switch-out ended.
    ///
    /// One character is 10 ns: `[` is a switch-in, `z` a switch-out asleep, `r` a switch-out still runnable, `x` the
    /// last switch-out, `!` a wakeup. Every other character only lets time pass.
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
                    if let Some(wakeup) = clock.next_wakeup() {
                        clock.wakeup(wakeup, now_ns);
                    }
                }
                _ => {}
            }
        }
        (lefts, entereds, clock)
    }

    #[test]
    fn a_sleep_is_split_at_its_wakeup() {
        let (lefts, entereds, _) = play(Clock::UNKNOWN, "[---z...!..[");
        assert_eq!(lefts[0].on_cpu_ns, Span::new(40));
        assert_eq!(
            entereds[1],
            Entered {
                off_cpu_ns: Span::new(70),
                blocked_ns: Span::new(40),
                run_queue_ns: Span::new(30),
                wake_to_run_ns: Span::new(30),
                woken: Some(NotedWakeup::OffCpu),
                ..Entered::default()
            }
        );
    }

    #[test]
    fn only_the_first_wakeup_after_the_switch_out_ends_the_sleep() {
        let (_, entereds, _) = play(Clock::UNKNOWN, "[z..!..!.[");
        assert_eq!(entereds[1].blocked_ns, Span::new(30));
        assert_eq!(entereds[1].wake_to_run_ns, Span::new(50));
    }

    #[test]
    fn a_wakeup_that_raced_with_going_to_sleep_leaves_nothing_blocked() {
        let (_, entereds, _) = play(Clock::UNKNOWN, "[-!--z....[");
        assert_eq!(
            entereds[1],
            Entered {
                off_cpu_ns: Span::new(50),
                blocked_ns: Span::new(0),
                run_queue_ns: Span::new(50),
                wake_to_run_ns: Span::new(80),
                woken: Some(NotedWakeup::OnCpu),
                ..Entered::default()
            }
        );
    }

    #[test]
    fn of_several_early_wakeups_the_last_one_raced() {
        let (_, entereds, _) = play(Clock::UNKNOWN, "[!-!z..[");
        assert_eq!(entereds[1].wake_to_run_ns, Span::new(40));
    }

    #[test]
    fn a_wakeup_after_the_switch_out_beats_an_early_one() {
        let (_, entereds, _) = play(Clock::UNKNOWN, "[!-z..!.[");
        assert_eq!(entereds[1].blocked_ns, Span::new(30));
        assert_eq!(entereds[1].wake_to_run_ns, Span::new(20));
    }

    #[test]
    fn an_early_wakeup_does_not_outlive_its_switch_in() {
        // The wakeup belongs to the first sleep. The second sleep has none, and must be reported as such.
        let (_, entereds, _) = play(Clock::UNKNOWN, "[!z..[--z..[");
        assert_eq!(entereds[1].wake_to_run_ns, Span::new(40));
        assert!(entereds[2].wake_unknown);
        assert_eq!(entereds[2].blocked_ns, Span::UNKNOWN);
        assert_eq!(entereds[2].run_queue_ns, Span::UNKNOWN);
        assert_eq!(entereds[2].off_cpu_ns, Span::new(30));
    }

    #[test]
    fn a_runnable_thread_waits_for_a_cpu_from_its_switch_out() {
        let (_, entereds, _) = play(Clock::UNKNOWN, "[--r...[");
        assert_eq!(
            entereds[1],
            Entered {
                off_cpu_ns: Span::new(40),
                run_queue_ns: Span::new(40),
                ..Entered::default()
            }
        );
    }

    #[test]
    fn a_wakeup_of_a_preempted_thread_ends_no_sleep() {
        // The thread was preempted between setting its state and `schedule()`: it is woken, but never slept.
        let (_, entereds, _) = play(Clock::UNKNOWN, "[--r.!.[--z.[");
        assert_eq!(entereds[1].blocked_ns, Span::UNKNOWN);
        assert_eq!(entereds[1].run_queue_ns, Span::new(40));
        assert!(entereds[2].wake_unknown, "the wakeup must not count for the next sleep");
    }

    #[test]
    fn a_new_thread_waits_from_its_wakeup_and_was_never_off_cpu() {
        let (lefts, entereds, _) = play(Clock::NEW, "..!...[-z");
        assert_eq!(
            entereds[0],
            Entered {
                run_queue_ns: Span::new(40),
                wake_to_run_ns: Span::new(40),
                woken: Some(NotedWakeup::OffCpu),
                ..Entered::default()
            }
        );
        assert_eq!(lefts[0].on_cpu_ns, Span::new(20));
    }

    #[test]
    fn a_new_thread_without_its_wakeup_is_counted() {
        let (_, entereds, _) = play(Clock::NEW, "...[");
        assert!(entereds[0].wake_unknown);
        assert_eq!(entereds[0].run_queue_ns, Span::UNKNOWN);
    }

    #[test]
    fn a_thread_first_seen_in_the_middle_invents_no_time() {
        let (lefts, entereds, _) = play(Clock::UNKNOWN, "--z..!.[");
        assert_eq!(lefts[0], Left::default(), "on-CPU since an unknown time");
        assert_eq!(entereds[0].off_cpu_ns, Span::new(50));
        let (_, entereds, _) = play(Clock::UNKNOWN, "..!..[");
        assert_eq!(entereds[0], Entered::default(), "off-CPU since an unknown time");
    }

    #[test]
    fn a_lost_switch_out_drops_the_on_interval() {
        let (lefts, entereds, _) = play(Clock::UNKNOWN, "[--[---z");
        assert!(entereds[1].missed_switch_out);
        assert_eq!(entereds[1].off_cpu_ns, Span::UNKNOWN);
        assert_eq!(
            lefts[0].on_cpu_ns,
            Span::new(40),
            "counted from the switch-in that was seen"
        );
    }

    #[test]
    fn a_lost_switch_in_drops_the_off_interval_and_its_wakeup() {
        let (lefts, entereds, _) = play(Clock::UNKNOWN, "[-z.!..z...[");
        assert!(lefts[1].missed_switch_in);
        assert_eq!(lefts[1].on_cpu_ns, Span::UNKNOWN);
        assert_eq!(
            entereds[1].off_cpu_ns,
            Span::new(40),
            "counted from the switch-out that was seen"
        );
        assert!(entereds[1].wake_unknown, "the wakeup ended the interval that was lost");
    }

    #[test]
    fn a_wakeup_stamped_before_a_switch_out_it_was_stored_after_counts_as_raced() {
        // Another CPU read its clock first and stored the time last.
        let mut clock = Clock::UNKNOWN;
        clock.switch_in(10);
        clock.switch_out(50, Leave::Slept);
        clock.wakeup(NotedWakeup::OffCpu, 48);
        let entered = clock.switch_in(90);
        assert_eq!(entered.blocked_ns, Span::new(0));
        assert_eq!(entered.run_queue_ns, Span::new(40));
        assert_eq!(entered.wake_to_run_ns, Span::new(42));
    }

    #[test]
    fn a_wakeup_stamped_after_a_switch_out_it_was_stored_before_ends_the_sleep_there() {
        let mut clock = Clock::UNKNOWN;
        clock.switch_in(10);
        clock.wakeup(NotedWakeup::OnCpu, 52);
        clock.switch_out(50, Leave::Slept);
        let entered = clock.switch_in(90);
        assert_eq!(entered.blocked_ns, Span::new(2));
        assert_eq!(entered.run_queue_ns, Span::new(38));
    }

    #[test]
    fn an_exit_leaves_the_interval_open_for_ever() {
        let (lefts, _, clock) = play(Clock::UNKNOWN, "[--x");
        assert_eq!(lefts[0].on_cpu_ns, Span::new(30));
        assert_eq!(clock.phase(), Phase::Dead);
        assert!(clock.is_off());
    }

    #[test]
    fn a_wakeup_that_came_too_late_to_be_cleared_ends_no_later_sleep() {
        let (_, _, mut clock) = play(Clock::UNKNOWN, "[-r");
        let late = clock.next_wakeup().expect("the wakeup is noted");
        clock.switch_in(40);
        clock.wakeup(late, 41);
        clock.switch_out(50, Leave::Slept);
        let wakeup = clock.next_wakeup().expect("the first wakeup of this sleep");
        clock.wakeup(wakeup, 70);
        let entered = clock.switch_in(80);
        assert_eq!(
            (entered.blocked_ns, entered.run_queue_ns),
            (Span::new(20), Span::new(10))
        );
    }

    #[test]
    fn whatever_the_order_of_events_no_time_is_invented() {
        // All sequences of eight events of five kinds: the intervals never exceed the wall-clock time that they lie in.
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
