//! Tests that write synthetic timelines as traces and decode them with an independent implementation.

use ctxtrace_abi::rings;
use ctxtrace_common::clock::{Leave, NotedWakeup};
use ctxtrace_common::event::Event;
use ctxtrace_common::ledger::Class;
use ctxtrace_common::locator::{GO_TASK, TOKIO_TASK};
use ctxtrace_common::process::{Image, TaskKey};
use ctxtrace_common::stack::SumKey;
use ctxtrace_common::wakeup::{Waker, WakeupOrigin};
use proptest::prelude::*;

use super::*;
use crate::decode::perfetto::{self as decoded, DecodedSwitch, Slice, TrackEventKind};
use crate::golden::golden;
use ctxtrace_analysis::fixtures::info;
use ctxtrace_format::polls::{PollClock, PollInfo, Stamp, ThreadStamps};
use ctxtrace_format::run::ClockAnchor;
use ctxtrace_format::workload::{Mode, Outcome};
use ctxtrace_format::{CpuLosses, build};

const IMAGE: Image = Image { tgid: 100, number: 0 };

/// A switch-out: thread id, how the thread leaves, class, and task.
#[derive(Clone, Copy)]
struct Goes(u32, Leave, Class, u64);

/// Builds a list of events.
#[derive(Default)]
struct Drawn(Vec<Event>);

impl Drawn {
    /// Adds the events that introduce and name a thread.
    fn meet(&mut self, at_ns: u64, tid: u32, comm: &str, new: bool) {
        let mut name = [0; 16];
        name[..comm.len()].copy_from_slice(comm.as_bytes());
        self.0.push(Event::thread(at_ns, 0, tid, 0, u64::from(tid), IMAGE, new));
        self.0.push(Event::name(at_ns, 0, tid, &name));
    }

    fn switch(&mut self, at_ns: u64, cpu: u32, out: Option<Goes>, into: Option<(u32, NotedWakeup, u64)>) {
        let mut event = Event::switch(at_ns, cpu);
        if let Some(Goes(tid, leave, class, task)) = out {
            let mut key = SumKey::EMPTY;
            (key.class, key.task) = (class as u8, task);
            event.set_out(tid, leave, leave == Leave::Slept, &key);
        }
        if let Some((tid, noted, woken_ns)) = into {
            event.set_in(tid, noted, woken_ns);
        }
        self.0.push(event);
    }

    fn wake(&mut self, at_ns: u64, cpu: u32, tid: u32, newborn: bool, origin: WakeupOrigin, by: u32) {
        let waker = Waker {
            tid: by,
            tgid: if by >= 100 { 100 } else { 0 },
            origin: origin as u32,
            ..Waker::default()
        };
        let noted = Some(NotedWakeup::OffCpu);
        self.0.push(Event::wakeup(at_ns, cpu, tid, noted, newborn, &waker));
    }
}

/// `a` (100, the leader) creates `w` (101), which polls tasks 1 and 2. `b` (102) has a hostile name with markup and control
/// characters. In the drawing `z` means sleeps, `r` means is preempted, and `x` means ends.
///
/// ```text
///          1000 ·· 1050 ·· 1100 ·· 1150 ·· 1200 ·· 1250 ·· 1300 ·· 1350 ·· 1400 ·· 1450 ·· 1500
///   CPU 0  a───┬───────────z            b──┬───────────┬─r a──────────x b──x
///              │ creates w      sshd ───┘  │ wakes w   └─ wakes a
///   CPU 1  ─b─z      w──(1)────z           └──w─────(2)──r w─z   interrupt ──w────────x
/// ```
fn drawn() -> Vec<Event> {
    use Class::{Exited, TaskBlocked, TaskPreempted, ThreadBlocked, ThreadPreempted};
    let mut drawn = Drawn::default();
    let off = |woken_ns| (NotedWakeup::OffCpu, woken_ns);
    let into = |tid, (noted, woken_ns): (NotedWakeup, u64)| Some((tid, noted, woken_ns));
    drawn.meet(1_000, 100, "a", false);
    drawn.switch(1_000, 0, None, into(100, off(0)));
    drawn.meet(1_020, 102, "<b>\u{1b}[31m\u{202e}", false);
    drawn.switch(1_020, 1, Some(Goes(102, Leave::Slept, ThreadBlocked, 0)), None);
    drawn.meet(1_030, 101, "w", true);
    drawn.wake(1_030, 0, 101, true, WakeupOrigin::Thread, 100);
    drawn.switch(1_080, 1, None, into(101, off(1_030)));
    drawn.switch(1_100, 0, Some(Goes(100, Leave::Slept, ThreadBlocked, 0)), None);
    drawn.switch(1_150, 1, Some(Goes(101, Leave::Slept, TaskBlocked, 1)), None);
    drawn.wake(1_160, 0, 102, false, WakeupOrigin::Outside, 7);
    drawn.switch(1_180, 0, None, into(102, off(1_160)));
    drawn.wake(1_200, 0, 101, false, WakeupOrigin::Thread, 102);
    drawn.switch(1_240, 1, None, into(101, off(1_200)));
    drawn.wake(1_280, 0, 100, false, WakeupOrigin::Thread, 102);
    drawn.switch(
        1_290,
        0,
        Some(Goes(102, Leave::Runnable, ThreadPreempted, 0)),
        into(100, off(1_280)),
    );
    drawn.switch(1_310, 1, Some(Goes(101, Leave::Runnable, TaskPreempted, 2)), None);
    drawn.switch(1_320, 1, None, into(101, off(0)));
    drawn.switch(1_330, 1, Some(Goes(101, Leave::Slept, ThreadBlocked, 0)), None);
    drawn.switch(
        1_360,
        0,
        Some(Goes(100, Leave::Dead, Exited, 0)),
        into(102, (NotedWakeup::OffCpu, 0)),
    );
    drawn.switch(1_400, 0, Some(Goes(102, Leave::Dead, Exited, 0)), None);
    drawn.wake(1_430, 1, 101, false, WakeupOrigin::Interrupt, 0);
    drawn.switch(1_450, 1, None, into(101, off(1_430)));
    drawn.switch(1_500, 1, Some(Goes(101, Leave::Dead, Exited, 0)), None);
    drawn.0
}

/// A run for the events of [`drawn`]. Its tasks have names, one of which contains a terminal escape.
fn run() -> Run {
    let mut aggregates = build::aggregates(vec![]);
    let names = ["", "sender", "\u{1b}]0;owned\u{7}"].map(str::to_owned);
    aggregates.names.insert(IMAGE, names.to_vec());
    let mut outsider = [0; 16];
    outsider[..4].copy_from_slice(b"sshd");
    aggregates.outsiders.insert(7, outsider);
    let mut run = build::run(aggregates);
    run.outcome = Some(Outcome {
        elapsed_ns: 400,
        messages: 1,
        started_ns: Some(1_050),
        max_in_flight: None,
    });
    run
}

fn labels() -> Labels {
    Labels {
        subject: "task-pool, buffer 0".to_owned(),
        lost: None,
    }
}

fn written(run: &Run, events: &[Event]) -> Vec<u8> {
    let mut info = info(Mode::TaskPool);
    info.started = ClockAnchor {
        monotonic_ns: 900,
        realtime_ns: 1_700_000_000_000_000_000,
        boottime_ns: 5_000_000_900,
    };
    let labels = labels();
    let mut trace = Trace::begin(Vec::new(), &info, run, &labels);
    trace.events(events);
    trace.end().expect("writing to memory succeeds")
}

/// The offset from `CLOCK_MONOTONIC` to `CLOCK_BOOTTIME` in traces of [`written`], in nanoseconds.
const BOOT: i64 = 5_000_000_000;

fn read(events: &[Event]) -> decoded::Trace {
    decoded::Trace::read(&written(&run(), events))
}

#[test]
fn golden_perfetto() {
    let bytes = written(&run(), &drawn());
    decoded::Trace::read(&bytes);
    golden("timeline.perfetto.textproto", decoded::as_text(&bytes));
}

#[test]
fn every_switch_is_one_of_the_kernels() {
    let trace = read(&drawn());
    let of_target = trace.switches.iter().filter(|switch| switch.prev != 0).count();
    assert_eq!(of_target, 9);
    let first_of_both = trace
        .switches
        .iter()
        .find(|switch| switch.prev != 0 && switch.next != 0);
    assert_eq!(
        *first_of_both.expect("a switch between two threads of the target"),
        DecodedSwitch {
            cpu: 0,
            at: BOOT + 1_290,
            prev: 102,
            prev_comm: "<b>\u{fffd}[31m\u{fffd}".to_owned(),
            prev_state: 0x100,
            next: 100,
            next_comm: "a".to_owned(),
        }
    );
    let mut on: BTreeMap<i64, i64> = BTreeMap::new();
    for switch in &trace.switches {
        let before = on.insert(switch.cpu, switch.next).unwrap_or(switch.prev);
        assert_eq!(before, switch.prev, "{switch:?}");
    }
    let wakeups: Vec<(i64, i64, bool)> = trace.wakeups.iter().map(|of| (of.by, of.woken, of.is_new)).collect();
    assert_eq!(
        wakeups,
        [
            (100, 101, true),
            (7, 102, false),
            (102, 101, false),
            (102, 100, false),
            (0, 101, false)
        ]
    );
}

#[test]
fn threads_come_with_their_process_and_the_leader_goes_last() {
    let trace = read(&drawn());
    assert_eq!(trace.tree.into_iter().collect::<Vec<_>>(), [(100, 100), (102, 100)]);
    assert_eq!(trace.created, [101]);
    assert_eq!(trace.names[&7], "sshd");
    assert_eq!(trace.names[&101], "w");
    assert_eq!(trace.freed, [102, 101, 100]);
}

#[test]
fn a_slice_is_a_task_known_at_a_switch() {
    let trace = read(&drawn());
    let slices: Vec<_> = trace
        .task_slices()
        .into_iter()
        .map(|Slice { name, start, end, .. }| (name, start - BOOT, end - BOOT))
        .collect();
    assert_eq!(
        slices,
        [
            ("sender".to_owned(), 1_080, 1_240),
            ("\u{fffd}]0;owned\u{fffd}".to_owned(), 1_240, 1_320),
        ]
    );
    let begins = trace
        .track_events
        .iter()
        .filter(|event| event.kind == TrackEventKind::Begin);
    let says: Vec<_> = begins.filter_map(|event| event.says.first().cloned()).collect();
    assert!(
        says.contains(&("switched out".to_owned(), "task blocked".to_owned())),
        "{says:?}"
    );
    assert!(says.contains(&("lost".to_owned(), "nothing".to_owned())), "{says:?}");
}

/// The same events with recorded polls: two polls that the switches also show, and a short one before them.
#[test]
fn a_thread_with_recorded_polls_has_a_slice_for_each() {
    let stamp = |(ns, kind, task)| {
        let record = rings::record(rings::what(kind, rings::short_task(task)), 0);
        Stamp::of_record(record, ns).expect("the record is a valid stamp")
    };
    let stamps = [
        (90, rings::BEGIN, 1),
        (92, rings::WAKE, 2),
        (95, rings::END, 0),
        (100, rings::BEGIN, 1),
        (245, rings::END, 0),
        (250, rings::BEGIN, 2),
        (325, rings::END, 0),
    ];
    let batch = PollBatch {
        base_ns: 1_000,
        until_ns: 1_400,
        dropped_without_ring: 0,
        threads: vec![ThreadStamps {
            tgid: 100,
            tid: 101,
            lost: 0,
            stamps: stamps.into_iter().map(stamp).collect(),
        }],
    };
    let mut info = info(Mode::TaskPool);
    info.polls = Some(PollInfo {
        clock: PollClock::Tsc,
        reading_ns: 13.0,
    });
    let (run, labels) = (run(), labels());
    let mut trace = Trace::begin(Vec::new(), &info, &run, &labels);
    trace.events(&drawn());
    trace.polls(&batch);
    let bytes = trace.end().expect("the trace is written");
    let slices: Vec<_> = decoded::Trace::read(&bytes)
        .task_slices()
        .into_iter()
        .map(|Slice { start, end, name, .. }| (start, end, name.len()))
        .collect();
    let other = "\u{fffd}]0;owned\u{fffd}".len();
    assert_eq!(slices, [(1_090, 1_095, 6), (1_100, 1_245, 6), (1_250, 1_325, other)]);
}

#[test]
fn a_flow_leads_from_the_wakeup_to_the_task() {
    let trace = read(&drawn());
    let flows: Vec<Vec<(String, String, i64)>> = trace
        .flows()
        .into_values()
        .map(|events| {
            let steps = events.into_iter().map(|event| {
                let track = &trace.tracks[&event.track];
                let of = track.thread.map_or(track.name.clone(), |(_, tid)| tid.to_string());
                (of, event.name.clone(), event.at - BOOT)
            });
            steps.collect()
        })
        .collect();
    let step = |of: &str, name: &str, at| (of.to_owned(), name.to_owned(), at);
    assert_eq!(
        flows,
        [
            vec![step("100", "wakes w 101", 1_030), step("101", "sender", 1_080)],
            vec![
                step("wakeups by other programs", "wakes <b>\u{fffd}[31m\u{fffd} 102", 1_160),
                step("102", "woken", 1_180)
            ],
            vec![
                step("102", "wakes w 101", 1_200),
                step("101", "\u{fffd}]0;owned\u{fffd}", 1_240)
            ],
            vec![step("102", "wakes a 100", 1_280), step("100", "woken", 1_290)],
            vec![
                step("wakeups by interrupts", "wakes w 101", 1_430),
                step("101", "woken", 1_450)
            ],
        ]
    );
}

#[test]
fn counters_follow_the_threads() {
    let trace = read(&drawn());
    let values = |name: &str| -> Vec<(i64, i64)> {
        let of = |event: &&decoded::TrackEvent| trace.tracks[&event.track].name == name;
        let events = trace.track_events.iter().filter(of);
        events
            .map(|event| match event.kind {
                TrackEventKind::Counter(value) => (event.at - BOOT, value),
                _ => unreachable!("the track has only counter values"),
            })
            .collect()
    };
    assert_eq!(values("kernel switches").last(), Some(&(1_500, 9)));
    let waiting = values("threads waiting for a CPU");
    assert_eq!(waiting[..2], [(1_030, 1), (1_080, 0)]);
    assert!(
        waiting.iter().all(|&(_, value)| (0..=2).contains(&value)),
        "{waiting:?}"
    );
    assert_eq!(waiting.last().expect("the counter has values").1, 0);
}

#[test]
fn clocks_lead_back_to_the_events_own() {
    let trace = read(&drawn());
    let clocks: Vec<(i64, i64)> = trace.clocks.into_iter().collect();
    assert_eq!(clocks, [(1, 1_700_000_000_000_000_000), (3, 900), (6, BOOT + 900)]);
    assert_eq!(trace.release, "6.18.0");
    // The machine was never suspended, or the capture does not record the boot time.
    for boottime_ns in [0, 900, 1_400] {
        let anchor = ClockAnchor {
            monotonic_ns: 900,
            realtime_ns: 0,
            boottime_ns,
        };
        assert_eq!(anchor.boot_minus_monotonic_ns(), 0);
    }
}

#[test]
fn the_measured_section_lies_within_the_recording() {
    let trace = read(&drawn());
    let mut slices = trace.slices();
    slices.retain(|slice| trace.tracks[&slice.track].name == "ctxtrace");
    let found: Vec<_> = slices
        .iter()
        .map(|of| (of.name.as_str(), of.start - BOOT, of.depth))
        .collect();
    assert_eq!(
        found,
        [("measured section", 1_050, 1), ("task-pool, buffer 0", 1_000, 0)]
    );
}

#[test]
fn losses_are_marked_where_perfetto_reads_them() {
    let mut run = run();
    run.aggregates.lost_by_cpu = vec![
        CpuLosses {
            cpu: 0,
            events: 3,
            timeline_events: 0,
        },
        CpuLosses {
            cpu: 1,
            events: 0,
            timeline_events: 40,
        },
    ];
    let trace = decoded::Trace::read(&written(&run, &drawn()));
    assert_eq!(trace.cpus_with_losses, [1]);
}

#[test]
fn nothing_recorded_is_a_trace_too() {
    let trace = read(&[]);
    assert!(trace.switches.is_empty() && trace.tracks.is_empty());
}

#[test]
fn names_are_interned_again_after_clearing() {
    let mut drawn = Drawn::default();
    drawn.meet(1, 100, "a", false);
    let tasks = 70_000;
    for number in 1..=tasks {
        let at_ns = number * 10;
        drawn.switch(at_ns, 0, None, Some((100, NotedWakeup::OffCpu, 0)));
        let goes = Goes(100, Leave::Runnable, Class::TaskPreempted, TOKIO_TASK | number);
        drawn.switch(at_ns + 5, 0, Some(goes), None);
    }
    let slices = read(&drawn.0).task_slices();
    assert_eq!(slices.len() as u64, tasks);
    for (number, slice) in (1..).zip(&slices) {
        assert_eq!(slice.name, format!("#{number}"));
    }
}

#[test]
fn a_goroutine_goes_by_its_function_too() {
    let mut run = run();
    let key = TaskKey {
        task: GO_TASK | 7,
        image: IMAGE,
    };
    run.symbols.add_start(key, "main.reader".to_owned());
    let mut drawn = Drawn::default();
    drawn.meet(1, 100, "a", false);
    drawn.switch(2, 0, None, Some((100, NotedWakeup::OffCpu, 0)));
    drawn.switch(3, 0, Some(Goes(100, Leave::Slept, Class::TaskBlocked, key.task)), None);
    let trace = decoded::Trace::read(&written(&run, &drawn.0));
    assert_eq!(trace.task_slices()[0].name, "goroutine 7 main.reader");
}

proptest! {
    /// Any sequence of events gives a valid trace.
    #[test]
    fn no_events_make_a_trace_that_is_none(words in prop::collection::vec(any::<[u64; 5]>(), 1..60)) {
        let events: Vec<Event> = words
            .into_iter()
            // The mask makes ids so small that they repeat. The times increase.
            .enumerate()
            .map(|(index, words)| {
                let mut event: Event = bytemuck::cast(words.map(|word| word & 0x0303_0303_0303_0303));
                event.at_ns = 1_000 + index as u64 * 10;
                event
            })
            .collect();
        let trace = read(&events);
        let outs = |event: &&Event| matches!(event.decode(), Some(Decoded::Switch { out: Some(_), .. }));
        let is_wakeup = |event: &&Event| matches!(event.decode(), Some(Decoded::Wakeup { .. }));
        prop_assert_eq!(
            trace.switches.iter().filter(|switch| switch.prev != 0).count(),
            events.iter().filter(outs).count()
        );
        prop_assert_eq!(trace.wakeups.len(), events.iter().filter(is_wakeup).count());
    }

    /// Arbitrary bytes as events, with any times, do not make the writer panic.
    #[test]
    fn no_bytes_make_the_trace_panic(words in prop::collection::vec(any::<[u64; 5]>(), 1..60)) {
        let events: Vec<Event> = words.into_iter().map(bytemuck::cast).collect();
        let _ = written(&run(), &events);
    }
}
