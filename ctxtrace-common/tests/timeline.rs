//! Tests the state machine of a thread and its current task together. For any order of events, no time is invented,
//! every switch is in exactly one class, and there are no more hits than polls.

use std::collections::HashMap;

use ctxtrace_common::clock::{Clock, Leave};
use ctxtrace_common::ledger::{Class, Syscall, classify};
use ctxtrace_common::locator::{Doing, Reason};
use ctxtrace_common::polls::{Gap, PollCounts, Polls};
use proptest::prelude::*;

/// The events of one thread id.
#[derive(Clone, Copy, Debug)]
enum Event {
    /// A switch-out: how the thread leaves, what it was doing, and its system call.
    Out(Leave, Doing, Syscall),
    /// A switch-in.
    In,
    /// A wakeup of the thread.
    NotedWakeup,
    /// The thread begins this many polls before the next event.
    Polls(u64),
    /// The id is reused by a new thread.
    Reused,
}

/// Any event may come at any time, as in a capture with losses.
fn event() -> impl Strategy<Value = Event> {
    let leave = prop_oneof![Just(Leave::Slept), Just(Leave::Runnable), Just(Leave::Dead)];
    let doing = prop_oneof![
        (1_u64..5).prop_map(Doing::Task),
        Just(Doing::Runtime),
        Just(Doing::PoolIdle),
        Just(Doing::Other),
        Just(Doing::Unknown(Reason::ReadFailed)),
    ];
    let syscall = prop_oneof![Just(Syscall::Park), Just(Syscall::Yield), Just(Syscall::Other)];
    prop_oneof![
        4 => (leave, doing, syscall).prop_map(|(leave, doing, syscall)| Event::Out(leave, doing, syscall)),
        4 => Just(Event::In),
        2 => Just(Event::NotedWakeup),
        2 => (0_u64..4).prop_map(Event::Polls),
        1 => Just(Event::Reused),
    ]
}

proptest! {
    #[test]
    fn no_time_is_invented_and_every_switch_has_its_class(
        events in prop::collection::vec((event(), 1_u64..1_000), 1..200),
    ) {
        let (mut clock, mut polls, mut begun) = (Clock::UNKNOWN, Polls::default(), 0);
        let mut ledger: HashMap<Class, u64> = HashMap::new();
        let (mut now_ns, mut switches, mut on_ns, mut off_ns, mut hits, mut polls_seen) = (0, 0, 0, 0, 0, 0);
        for (event, later_ns) in events {
            now_ns += later_ns;
            match event {
                Event::Out(leave, doing, syscall) => {
                    switches += 1;
                    let (class, reason) = classify(leave, false, doing, syscall);
                    prop_assert_eq!(class == Class::Unattributed, reason != Reason::None);
                    prop_assert_eq!(class == Class::Exited, leave == Leave::Dead);
                    *ledger.entry(class).or_default() += 1;
                    on_ns += clock.switch_out(now_ns, leave).on_cpu_ns.or_zero();
                    let between = (!matches!(doing, Doing::Task(_))).then_some(Gap::Blocked);
                    let counts = PollCounts { polls: begun, repolls: 0, nested_polls: 0 };
                    let observed = polls.observe(counts, between, true);
                    prop_assert!(!observed.impossible);
                    if let Some(poll) = observed.hit {
                        prop_assert!(poll >= 1 && poll <= begun);
                    }
                }
                Event::In => {
                    let entered = clock.switch_in(now_ns);
                    off_ns += entered.off_cpu_ns.or_zero();
                    if let (Some(off), Some(blocked), Some(queued)) =
                        (entered.off_cpu_ns.ns(), entered.blocked_ns.ns(), entered.run_queue_ns.ns())
                    {
                        prop_assert_eq!(off, blocked + queued);
                    }
                    prop_assert!(entered.woken.is_none() || entered.wake_to_run_ns.ns().is_some());
                }
                Event::NotedWakeup => {
                    if let Some(wakeup) = clock.next_wakeup() {
                        clock.wakeup(wakeup, now_ns);
                    }
                }
                Event::Polls(more) => begun += more,
                Event::Reused => {
                    hits += polls.hits();
                    polls_seen += polls.total().polls;
                    (clock, polls, begun) = (Clock::NEW, Polls::default(), 0);
                }
            }
            prop_assert!(on_ns + off_ns <= now_ns, "{} + {} in {}", on_ns, off_ns, now_ns);
            prop_assert!(polls.hits() <= polls.total().polls);
        }
        prop_assert_eq!(ledger.values().sum::<u64>(), switches);
        prop_assert!(hits + polls.hits() <= polls_seen + polls.total().polls);
    }
}
