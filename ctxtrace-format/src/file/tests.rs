//! Tests that write captures and read them again: complete, cut off and altered.

use std::cell::{Cell, RefCell};
use std::io;
use std::rc::Rc;
use std::sync::LazyLock;

use ctxtrace_abi::rings;
use ctxtrace_common::clock::Leave;
use ctxtrace_common::event::Event;
use ctxtrace_common::histogram::Latency;
use ctxtrace_common::ledger::Class;
use ctxtrace_common::process::{Image, TaskKey};
use ctxtrace_common::stack::SwitchSum;
use ctxtrace_common::wakeup::{Edge, EdgeKey, Waker};
use proptest::prelude::*;

use super::*;
use crate::build::info;
use crate::polls::{PollBatch, Stamp, ThreadStamps};
use crate::run::{Dropped, Played, Run, Timeline};
use crate::symbols::{Frame, FrameKind};
use crate::{Level, build};

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
    aggregates.stacks.insert(7, [0x1000].into());
    aggregates.stacks.insert(8, [u64::MAX].into());
    aggregates.names.insert(image, vec![String::new(), "sender".to_owned()]);
    aggregates.hits = vec![(TaskKey { task: 1, image }, 3)];
    aggregates.edges = vec![(EdgeKey::new(&Waker::default(), 101, 100), (&Edge::EMPTY).into())];
    let mut handover: ctxtrace_common::handover::Handover = bytemuck::Zeroable::zeroed();
    handover.image = image;
    handover.tables.polls_by_task[1] = 600;
    aggregates.handovers = vec![handover];
    aggregates.level = Level::Stacks;
    let mut run = build::run(aggregates);
    let frame = |kind, name: &str| Frame {
        kind,
        name: name.into(),
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

/// Everything that is stored of the runs, with the entries of each map in the order of their keys.
fn seen(saved: &Saved) -> Vec<(ciborium::Value, ciborium::Value)> {
    let value = |stored: &dyn Fn() -> Result<ciborium::Value, ciborium::value::Error>| {
        let mut value = stored().expect("encoded");
        sort_maps(&mut value);
        value
    };
    let runs = saved.runs.iter();
    runs.map(|run| {
        let threads = &run.aggregates.threads;
        (
            value(&|| ciborium::Value::serialized(run)),
            value(&|| ciborium::Value::serialized(threads)),
        )
    })
    .collect()
}

fn sort_maps(value: &mut ciborium::Value) {
    match value {
        ciborium::Value::Array(list) => list.iter_mut().for_each(sort_maps),
        ciborium::Value::Map(entries) => {
            entries.iter_mut().for_each(|(_, value)| sort_maps(value));
            entries.sort_by_key(|(key, _)| format!("{key:?}"));
        }
        _ => {}
    }
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
        dropped: Vec::new(),
        played: Vec::new(),
        is_whole: true,
        damage: None,
        room_left: 0,
    };
    assert_eq!(seen(&saved), seen(&original));
    assert!(bytes.len() < 200_000, "{} bytes: not compressed", bytes.len());
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

/// Files in memory: the file at the capture's path, and its successors.
#[derive(Clone, Default)]
struct Drawer {
    files: Rc<RefCell<Vec<Vec<u8>>>>,
    at_place: Rc<Cell<usize>>,
}

struct InDrawer(Drawer, usize);

impl io::Write for InDrawer {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.files.borrow_mut()[self.1].extend(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl Drawer {
    fn make(&self) -> InDrawer {
        self.files.borrow_mut().push(Vec::new());
        InDrawer(self.clone(), self.files.borrow().len() - 1)
    }

    /// The contents of the file at the capture's path.
    fn at_place(&self) -> Vec<u8> {
        self.files.borrow()[self.at_place.get()].clone()
    }
}

impl CapturePath for Drawer {
    type CaptureFile = InDrawer;

    fn successor(&mut self) -> io::Result<InDrawer> {
        Ok(self.make())
    }

    fn take_over(&mut self, successor: &mut InDrawer) -> io::Result<()> {
        self.at_place.set(successor.1);
        Ok(())
    }
}

fn small_run() -> Run {
    let mut run = run();
    run.aggregates.threads.truncate(3);
    run
}

#[test]
fn what_was_added_up_can_be_read_without_the_events() {
    let timeline = Timeline {
        events: 5,
        switches: 5,
        first_ns: Some(0),
        disagreements: Some(vec!["one".to_owned()]),
        ..Timeline::default()
    };
    let mut with_timeline = small_run();
    with_timeline.timeline = Some(timeline.clone());
    let mut writer = Writer::begin(Vec::new(), &info()).expect("written");
    // The first run has no result of a replay.
    for run in [&small_run(), &with_timeline] {
        writer.events(&switches(5)).expect("written");
        writer.run(run).expect("written");
    }
    let bytes = writer.end().expect("written");
    let played = Played { timeline, samples: 0 };
    let sums = read_sums(bytes.as_slice()).expect("a capture");
    assert_eq!((sums.runs.len(), sums.damage, sums.is_whole), (2, None, true));
    assert_eq!(sums.played, [None, Some(played)]);
    let mut events = 0;
    let all = read(bytes.as_slice(), |_, batch| events += batch.len()).expect("a capture");
    assert_eq!((all.played, events), (sums.played, 10));
}

#[test]
fn events_that_are_damaged_are_found_without_reading_them() {
    let mut writer = Writer::begin(Vec::new(), &info()).expect("written");
    writer.checkpoint(&small_run()).expect("written");
    let before = writer.to_bytes().len();
    writer.events(&switches(100)).expect("written");
    let after = writer.to_bytes().len();
    writer.run(&small_run()).expect("written");
    let mut bytes = writer.end().expect("written");
    bytes[before.midpoint(after)] ^= 1;
    let saved = read_sums(bytes.as_slice()).expect("a capture");
    assert_eq!(saved.damage.as_deref(), Some("a block is damaged"));
}

/// Events that do not compress well.
fn noise(from_ns: u64, count: u64) -> Vec<Event> {
    let mut random = fastrand::Rng::with_seed(from_ns);
    (from_ns..from_ns + count)
        .map(|at_ns| {
            let waker = Waker {
                task: random.u64(..),
                tid: random.u32(..),
                ..Waker::default()
            };
            Event::wakeup(at_ns, 0, random.u32(..), None, false, &waker)
        })
        .collect()
}

#[test]
fn a_bounded_capture_is_bounded_at_every_moment_and_always_readable() {
    let max_bytes = 60_000;
    let limits = Limits {
        max_bytes: Some(max_bytes),
        keep_ns: None,
    };
    let drawer = Drawer::default();
    let mut writer = Writer::within(limits, drawer.clone(), drawer.make(), &info()).expect("written");
    let image = Image { tgid: 100, number: 2 };
    let names = [*b"sender\0\0\0\0\0\0\0\0\0\0", *b"gone\0\0\0\0\0\0\0\0\0\0\0\0"];
    let mut gone = Event::switch(2, 0);
    gone.set_out(102, Leave::Dead, true, &build::sum_key(Class::Exited, 0));
    let beginning = [
        Event::thread(1, 0, 101, 0, 5, image, true),
        Event::name(1, 0, 101, &names[0]),
        Event::thread(1, 0, 102, 0, 6, image, true),
        Event::name(1, 0, 102, &names[1]),
        gone,
    ];
    let mut written = 0;
    let mut successions = 0;
    for run_number in 0..3 {
        writer.events(&beginning).expect("written");
        written += beginning.len() as u64;
        for batch in 0..300 {
            let at_place = drawer.at_place.get();
            writer.events(&noise(10 + 100 * batch, 100)).expect("written");
            if batch % 50 == 0 {
                writer.checkpoint(&small_run()).expect("written");
            }
            written += 100;
            successions += u64::from(drawer.at_place.get() != at_place);
            let bytes = drawer.at_place();
            assert!(bytes.len() as u64 <= max_bytes);
            if batch == 0 && run_number == 0 {
                continue;
            }
            let mut events = Vec::new();
            let saved = read(bytes.as_slice(), |_, batch| events.extend_from_slice(batch)).expect("a capture");
            assert_eq!(
                saved.damage.as_deref(),
                Some("it has no end: the recording was cut off")
            );
            let sum = |of: fn(&Dropped) -> u64| saved.dropped.iter().map(of).sum::<u64>();
            let kept = events.len() as u64 - sum(|dropped| dropped.told_again);
            assert_eq!(
                kept + sum(|dropped| dropped.events),
                written,
                "each event is in the file or counted as dropped"
            );
            // The file is at least half full, unless nothing was dropped yet.
            let is_full = saved.dropped.iter().any(|dropped| dropped.events > 0);
            assert!(
                !is_full || bytes.len() as u64 > max_bytes / 2 - 5_000,
                "{}",
                bytes.len()
            );
        }
        writer.run(&small_run()).expect("written");
    }
    assert!(successions > 20, "{successions}");
    drop(writer.end().expect("written"));
    let mut events = Vec::new();
    let saved = read(drawer.at_place().as_slice(), |run, batch| {
        events.extend(batch.iter().map(|&event| (run, event)));
    })
    .expect("a capture");
    assert!(saved.is_whole && saved.damage.is_none());
    assert_eq!(saved.runs.len(), 3, "counts are not dropped");
    assert_eq!(
        saved.dropped[0],
        Dropped {
            events: 30_005,
            told_again: 0,
            stamps: 0
        }
    );
    assert_eq!(
        saved.dropped[2].told_again, 2,
        "the introduction and the name of the one living thread"
    );
    // The thread is introduced again, before all other events.
    let (run, first) = events[0];
    assert_eq!(run, 2);
    assert_eq!(first, Event::thread(first.at_ns, 0, 101, 0, 5, image, false));
    assert_eq!(events[1].1, Event::name(first.at_ns, 0, 101, &names[0]));
}

/// Polls of one thread, one in each nanosecond.
fn polls(from_ns: u64, count: u64) -> PollBatch {
    let stamp = |ns: u64| {
        Stamp::of_record(
            rings::what(rings::BEGIN, ns.wrapping_mul(0x9e37_79b9_7f4a_7c15) as u32 >> 12),
            ns,
        )
        .expect("a stamp")
    };
    PollBatch {
        base_ns: from_ns,
        until_ns: from_ns + count,
        dropped_without_ring: 0,
        threads: vec![ThreadStamps {
            tgid: 100,
            tid: 101,
            lost: 0,
            stamps: (0..count).map(stamp).collect(),
        }],
    }
}

#[test]
fn polls_come_out_as_they_went_in_after_the_events_of_their_time() {
    let mut writer = Writer::begin(Vec::new(), &info()).expect("written");
    writer.events(&switches(10)).expect("written");
    writer.polls(&polls(5, 100)).expect("written");
    writer.run(&small_run()).expect("written");
    let bytes = writer.end().expect("written");
    let mut order = Vec::new();
    let saved = read_with_polls(bytes.as_slice(), |run, part| match part {
        CapturePart::Info(part) => order.push(format!("{}", *part == info())),
        CapturePart::Events(batch) => order.push(format!("{run}: {} events", batch.len())),
        CapturePart::Polls(batch) => {
            assert_eq!(*batch, polls(5, 100));
            order.push(format!("{run}: polls"));
        }
    })
    .expect("a capture");
    assert!(saved.is_whole);
    assert_eq!(order, ["true", "0: 10 events", "0: polls"]);
    // A reader without interest in polls reads the rest.
    assert_eq!(read(bytes.as_slice(), |_, _| {}).expect("a capture").runs.len(), 1);
}

#[test]
fn polls_are_bounded_with_the_events() {
    let max_bytes = 1 << 16;
    let limits = Limits {
        max_bytes: Some(max_bytes),
        keep_ns: None,
    };
    let drawer = Drawer::default();
    let mut writer = Writer::within(limits, drawer.clone(), drawer.make(), &info()).expect("written");
    for batch in 0..300 {
        // Some batches are larger than one batch may be.
        let count = if batch % 100 == 50 { 100_000 } else { 100 };
        writer.polls(&polls(1_000_000 * batch, count)).expect("written");
        assert!(drawer.at_place().len() as u64 <= max_bytes);
    }
    writer.run(&small_run()).expect("written");
    drop(writer.end().expect("written"));
    let (mut there, mut lost) = (0, 0);
    let saved = read_with_polls(drawer.at_place().as_slice(), |_, part| {
        if let CapturePart::Polls(batch) = part {
            there += batch.stamps();
            lost += batch.dropped_without_ring;
        }
    })
    .expect("a capture");
    assert_eq!(there + lost + saved.dropped[0].stamps, 3 * 100_000 + 297 * 100);
    assert!(
        saved.dropped[0].stamps > 0 && lost > 0,
        "{:?}, {lost} lost",
        saved.dropped
    );
}

#[test]
fn a_capture_keeps_the_time_it_is_asked_to() {
    let limits = Limits {
        max_bytes: None,
        keep_ns: Some(1_000),
    };
    let drawer = Drawer::default();
    let mut writer = Writer::within(limits, drawer.clone(), drawer.make(), &info()).expect("written");
    for batch in 0..100 {
        writer.events(&noise(100 * batch, 100)).expect("written");
        writer.checkpoint(&small_run()).expect("written");
        let mut events = Vec::new();
        read(drawer.at_place().as_slice(), |_, batch| events.extend_from_slice(batch)).expect("a capture");
        let spans = events.last().expect("some").at_ns - events[0].at_ns;
        assert!(spans < 2_300, "{spans}");
        assert!(spans >= 1_000 || batch < 11, "{spans}");
    }
}

#[test]
fn counts_that_have_no_room_are_an_error_and_leave_what_was_there() {
    let limits = Limits {
        max_bytes: Some(20_000),
        keep_ns: None,
    };
    let drawer = Drawer::default();
    let mut writer = Writer::within(limits, drawer.clone(), drawer.make(), &info()).expect("written");
    writer.checkpoint(&small_run()).expect("written");
    let error = writer.run(&run()).expect_err("ten thousand threads").to_string();
    assert!(
        error.contains("--max-size allows only 20000: increase --max-size"),
        "{error}"
    );
    let saved = read(drawer.at_place().as_slice(), |_, _| {}).expect("a capture");
    assert_eq!(saved.runs[0].aggregates.threads.len(), 3);
}

#[test]
fn half_an_event_is_damage() {
    let mut writer = Writer::begin(Vec::new(), &info()).expect("written");
    writer.checkpoint(&run()).expect("written");
    writer.raw(kind::BlockKind::Events, &[0; 50]);
    let saved = read(writer.to_bytes().as_slice(), |_, _| panic!("no whole event")).expect("a capture");
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
    // The second checkpoint is cut off, so the first one is used.
    let saved = read(&bytes[..bytes.len() - 1], |_, _| {}).expect("a capture");
    assert_eq!(saved.runs[0].aggregates.threads.len(), 3);
    assert!(saved.damage.expect("cut").contains("middle of a block"));
}

#[test]
fn other_files_are_rejected() {
    for bytes in [&b""[..], b"ctxtrace", b"#!/bin/sh\necho not one of ours", &[0; 1_000]] {
        let reason = read(bytes, |_, _| {}).expect_err("foreign");
        assert!(reason.contains("not a ctxtrace capture"), "{reason}");
    }
    let mut newer = written(&[run()]);
    newer[12..16].copy_from_slice(&3_u32.to_le_bytes());
    let reason = read(newer.as_slice(), |_, _| {}).expect_err("newer");
    assert!(reason.contains("newer ctxtrace"), "{reason}");
    let empty = written(&[]);
    let reason = read(empty.as_slice(), |_, _| {}).expect_err("empty");
    assert!(reason.contains("no data to report"), "{reason}");
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

/// A capture with forged contents.
fn hostile(blocks: impl IntoIterator<Item = (kind::BlockKind, Vec<u8>)>) -> Vec<u8> {
    let mut writer = Writer::begin(Vec::new(), &info()).expect("written");
    writer.checkpoint(&small_run()).expect("written");
    for (kind, bytes) in blocks {
        writer.raw(kind, &bytes);
    }
    writer.end().expect("written")
}

/// The reported damage of a forged capture, whose state before the forged block can still be reported.
fn damage_of(bytes: &[u8]) -> String {
    let saved = read(bytes, |_, _| {}).expect("the state before");
    assert_eq!(saved.runs[0].aggregates.threads.len(), 3);
    saved.damage.expect("refused")
}

fn encoded(value: &impl serde::Serialize) -> Vec<u8> {
    let mut bytes = Vec::new();
    ciborium::into_writer(value, &mut bytes).expect("encoded");
    bytes
}

#[test]
fn a_file_that_unpacks_to_far_more_than_it_has_is_refused() {
    let zeroes = vec![0; 40 << 20];
    let bytes = hostile((0..7).map(|_| (kind::BlockKind::Events, zeroes.clone())));
    assert!(bytes.len() < 1 << 20);
    let mut events = 0;
    let saved = read(bytes.as_slice(), |_, batch| events += batch.len()).expect("the state before");
    let damage = saved.damage.expect("refused");
    assert!(damage.contains("unpack to far more data than a recording"), "{damage}");
    assert_eq!(events, 6 * (40 << 20) / 40, "the events before the refused block");
}

#[test]
fn a_file_that_takes_far_more_memory_than_it_has_bytes_is_refused() {
    let names = std::collections::HashMap::from([("names", vec![""; 16 << 20])]);
    let damage = damage_of(&hostile([(kind::BlockKind::Names, encoded(&names))]));
    assert_eq!(
        damage,
        "it claims to contain more than a recording of its size can contain"
    );
    // Texts that take 24 bytes each in memory and one byte in the file.
    let mut state = small_run();
    let image = Image { tgid: 100, number: 0 };
    state.aggregates.names.insert(image, vec![String::new(); 16 << 20]);
    let damage = damage_of(&hostile([(kind::BlockKind::State, encoded(&state))]));
    assert!(damage.contains("more than a recording of its size can"), "{damage}");
}

#[test]
fn a_long_recording_is_not_taken_for_a_hostile_one() {
    let mut writer = Writer::begin(Vec::new(), &info()).expect("written");
    let run = run();
    for _ in 0..30 {
        writer.checkpoint(&run).expect("written");
    }
    writer.run(&run).expect("written");
    let bytes = writer.end().expect("written");
    let saved = read(bytes.as_slice(), |_, _| {}).expect("a capture");
    assert_eq!((saved.damage, saved.runs.len()), (None, 1));
}

#[test]
fn runs_are_not_without_number() {
    let mut writer = Writer::begin(Vec::new(), &info()).expect("written");
    for _ in 0..room::MOST_RUNS + 1 {
        writer.run(&build::run(build::aggregates(Vec::new()))).expect("written");
    }
    let bytes = writer.end().expect("written");
    let saved = read(bytes.as_slice(), |_, _| {}).expect("a capture");
    assert_eq!(
        saved.damage.as_deref(),
        Some("it claims to contain more than 1000 runs")
    );
}

/// A small capture, to be altered.
static SMALL: LazyLock<Vec<u8>> = LazyLock::new(|| {
    let mut run = run();
    run.aggregates.threads.truncate(5);
    written(&[run])
});

proptest! {
    /// For any bytes the result is a capture or an error message.
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

    /// The same behind the checksums: well-formed blocks with any contents.
    #[test]
    fn no_content_makes_the_reader_panic(
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
        writer.raw(kind::BlockKind::Threads, &threads);
        writer.raw(kind::BlockKind::State, &state);
        let bytes = writer.end().expect("written");
        if let Ok(saved) = read(bytes.as_slice(), |_, _| {}) {
            let _ = seen(&saved);
        }
    }
}
