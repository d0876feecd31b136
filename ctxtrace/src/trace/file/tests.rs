//! Captures written and read again, whole, cut and altered.

use std::sync::LazyLock;

use ctxtrace_common::event::Event;
use ctxtrace_common::histogram::Latency;
use ctxtrace_common::ledger::Class;
use ctxtrace_common::process::{Image, TaskKey};
use ctxtrace_common::stack::SwitchSum;
use ctxtrace_common::wakeup::{Edge, EdgeKey, Waker};
use proptest::prelude::*;

use super::*;
use crate::correlate::timeline::Replay;
use crate::report::json;
use crate::symbolize::stacks;
use crate::trace::events::EventSink;
use crate::trace::run::{ClockAnchor, Host, Info, Run, Subject};
use crate::trace::symbols::{Frame, FrameKind};
use crate::trace::{Level, build};

fn info() -> Info {
    Info {
        ctxtrace_version: "0.0.0".to_owned(),
        host: Host {
            name: "host".to_owned(),
            kernel: "6.18.0".to_owned(),
            cpus: 2,
        },
        subject: Subject::Command {
            words: vec!["make".to_owned()],
        },
        level: Level::Stacks,
        started: ClockAnchor {
            monotonic_ns: 1,
            realtime_ns: 2,
            boottime_ns: 3,
        },
    }
}

/// A run with something in every part that is stored.
fn run() -> Run {
    let threads = (0..10_000).map(|number| build::thread(100 + number, "worker", 40, 2));
    let mut aggregates = build::aggregates(threads.collect());
    for ns in [5, 7_000, 1 << 40] {
        aggregates.latencies.get_mut(Latency::OffCpu).record(ns);
    }
    let image = Image { tgid: 100, number: 1 };
    let mut key = build::sum_key(Class::TaskBlocked, 1);
    (key.image, key.user_stack, key.kernel_stack) = (1, 7, 8);
    aggregates.switch_sums = vec![(
        key,
        SwitchSum {
            count: 420_000,
            off_cpu_ns: 9,
        },
    )];
    aggregates.stacks.insert(7, vec![0x1000]);
    aggregates.stacks.insert(8, vec![u64::MAX]);
    aggregates.names.insert(image, vec![String::new(), "sender".to_owned()]);
    aggregates.hits = vec![(TaskKey { task: 1, image }, 3)];
    aggregates.edges = vec![(EdgeKey::new(&Waker::default(), 101, 100), Edge::EMPTY)];
    let mut handover: ctxtrace_common::handover::Handover = bytemuck::Zeroable::zeroed();
    handover.image = image;
    handover.tables.polls_by_task[1] = 600;
    aggregates.handovers = vec![handover];
    aggregates.level = Level::Stacks;
    let mut run = build::run(aggregates);
    let frame = |kind, name: &str| Frame {
        kind,
        name: name.to_owned(),
    };
    run.symbols.add_user(image, 7, &[frame(FrameKind::User, "main")]);
    run.symbols.add_kernel(8, &[frame(FrameKind::Kernel, "schedule")]);
    run
}

fn written(runs: &[Run]) -> Vec<u8> {
    let mut writer = Writer::begin(Vec::new(), &info()).expect("written");
    for run in runs {
        writer.run(run).expect("written");
    }
    writer.end().expect("written")
}

/// Everything a reader of the report sees.
fn seen(saved: &Saved) -> (Vec<u8>, stacks::Resolved) {
    let report = crate::analyze::summarize::summarize(&saved.info, &saved.runs);
    (json::render(&report).expect("JSON"), stacks::switches(&saved.runs[0]))
}

#[test]
fn what_is_read_is_what_was_written() {
    let (first, second) = (run(), run());
    let runs = [first, second];
    let bytes = written(&runs);
    let saved = read(bytes.as_slice(), |_, _| panic!("no events")).expect("a capture");
    assert_eq!(saved.damage, None);
    assert_eq!((saved.info.clone(), saved.runs.len()), (info(), 2));
    assert_eq!(saved.runs[1].aggregates.threads.len(), 10_000);
    let original = Saved {
        info: info(),
        runs: runs.to_vec(),
        is_whole: true,
        damage: None,
    };
    assert_eq!(seen(&saved), seen(&original));
    assert!(bytes.len() < 200_000, "{} bytes are not packed", bytes.len());
}

fn switches(count: u64) -> Vec<Event> {
    (0..count).map(|at_ns| Event::switch(at_ns, 1)).collect()
}

#[test]
fn events_come_out_as_they_went_in() {
    let mut writer = Writer::begin(Vec::new(), &info()).expect("written");
    for batches in [&[2, 3][..], &[1]] {
        for &count in batches {
            writer.events(&switches(count)).expect("written");
        }
        writer.run(&run()).expect("written");
    }
    let bytes = writer.end().expect("written");
    let mut events = Vec::new();
    let saved = read(bytes.as_slice(), |run, batch| events.push((run, batch.to_vec()))).expect("a capture");
    assert_eq!(events, [(0, switches(2)), (0, switches(3)), (1, switches(1))]);
    assert!(saved.is_whole);
}

#[test]
fn half_an_event_is_damage() {
    let mut writer = Writer::begin(Vec::new(), &info()).expect("written");
    writer.checkpoint(&run()).expect("written");
    writer.raw(block::Kind::Events, &[0; 50]);
    let saved = read(writer.to_bytes().as_slice(), |_, _| panic!("not a whole one")).expect("a capture");
    assert!(saved.damage.expect("damaged").contains("middle"));
    assert!(!saved.is_whole);
}

#[test]
fn a_run_that_died_is_read_up_to_its_last_checkpoint() {
    let mut writer = Writer::begin(Vec::new(), &info()).expect("written");
    let mut early = run();
    early.aggregates.threads.truncate(3);
    writer.checkpoint(&early).expect("written");
    writer.checkpoint(&run()).expect("written");
    let bytes = writer.to_bytes();
    let saved = read(bytes.as_slice(), |_, _| {}).expect("a capture");
    assert_eq!(saved.runs.len(), 1);
    assert_eq!(saved.runs[0].aggregates.threads.len(), 10_000);
    assert!(saved.runs[0].cut_short.is_some());
    assert!(saved.damage.expect("it has no end").contains("no end"));
    // The second checkpoint is cut off: the first one is what there is.
    let saved = read(&bytes[..bytes.len() - 1], |_, _| {}).expect("a capture");
    assert_eq!(saved.runs[0].aggregates.threads.len(), 3);
    assert!(saved.damage.expect("cut").contains("middle of a block"));
}

#[test]
fn what_is_no_capture_says_so() {
    for bytes in [&b""[..], b"ctxtrace", b"#!/bin/sh\necho not one of ours", &[0; 1_000]] {
        let reason = read(bytes, |_, _| {}).expect_err("foreign");
        assert!(reason.contains("no capture"), "{reason}");
    }
    let mut newer = written(&[run()]);
    newer[12..16].copy_from_slice(&2_u32.to_le_bytes());
    let reason = read(newer.as_slice(), |_, _| {}).expect_err("newer");
    assert!(reason.contains("newer ctxtrace"), "{reason}");
    let empty = written(&[]);
    let reason = read(empty.as_slice(), |_, _| {}).expect_err("empty");
    assert!(reason.contains("nothing in it"), "{reason}");
}

#[test]
fn a_damaged_block_ends_the_readable_part() {
    let mut writer = Writer::begin(Vec::new(), &info()).expect("written");
    writer.run(&run()).expect("written");
    let whole = writer.to_bytes().len();
    writer.run(&run()).expect("written");
    let mut bytes = writer.end().expect("written");
    bytes[whole + 100] ^= 1;
    let saved = read(bytes.as_slice(), |_, _| {}).expect("a capture");
    assert_eq!(saved.runs.len(), 1);
    assert_eq!(saved.damage.as_deref(), Some("a block is damaged"));
}

/// A small capture, and what is in its blocks, to alter.
static SMALL: LazyLock<Vec<u8>> = LazyLock::new(|| {
    let mut run = run();
    run.aggregates.threads.truncate(5);
    written(&[run])
});

proptest! {
    /// Whatever the bytes, there is a report or a sentence.
    #[test]
    fn no_file_makes_the_reader_panic(
        cut in 0..SMALL.len(),
        changes in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 0..8),
    ) {
        let mut bytes = SMALL[..SMALL.len() - cut].to_vec();
        for (place, value) in changes {
            if !bytes.is_empty() {
                let place = place.index(bytes.len());
                bytes[place] = value;
            }
        }
        if let Ok(saved) = read(bytes.as_slice(), |_, _| {}) {
            let _ = seen(&saved);
        }
    }

    /// The same behind the checksums: blocks that are well formed and hold anything.
    #[test]
    fn no_content_makes_the_report_panic(
        changes in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..12),
    ) {
        let mut state = Vec::new();
        ciborium::into_writer(&{ let mut run = run(); run.aggregates.threads.clear(); run }, &mut state).expect("encoded");
        let mut threads = Vec::new();
        ciborium::into_writer(&run().aggregates.threads[..3], &mut threads).expect("encoded");
        for (place, value) in changes {
            let place = place.index(state.len() + threads.len());
            match place.checked_sub(state.len()) {
                Some(place) => threads[place] = value,
                None => state[place] = value,
            }
        }
        let mut writer = Writer::begin(Vec::new(), &info()).expect("written");
        writer.raw(block::Kind::Threads, &threads);
        writer.raw(block::Kind::State, &state);
        let bytes = writer.end().expect("written");
        if let Ok(saved) = read(bytes.as_slice(), |_, _| {}) {
            let _ = seen(&saved);
        }
    }

    /// Events of any content, played again as a report plays them.
    #[test]
    fn no_events_make_the_replay_panic(words in prop::collection::vec(any::<[u64; 5]>(), 1..50), small in any::<bool>()) {
        let events: Vec<Event> = words
            .into_iter()
            // Half of them with ids so small that they meet again.
            .map(|words| bytemuck::cast(if small { words.map(|word| word & 0x0303_0303_0303_0303) } else { words }))
            .collect();
        let mut replay = Replay::default();
        replay.events(&events);
        let _ = replay.conclude(&run().aggregates, true);
    }
}
