//! Replays of events and polls with any contents.

use ctxtrace_common::event::Event;
use ctxtrace_format::build;
use ctxtrace_format::events::EventSink as _;
use ctxtrace_format::polls::{PollBatch, Stamp, ThreadStamps};
use ctxtrace_format::run::Dropped;
use proptest::prelude::*;

use super::polls::PollReplay;
use super::timeline::Replay;

#[test]
fn an_incomplete_timeline_is_not_compared() {
    let mut replay = Replay::default();
    replay.events(&[Event::switch(1, 1), Event::switch(2, 1)]);
    let dropped = Dropped {
        events: 3,
        ..Dropped::default()
    };
    let timeline = replay.conclude_kept(&build::aggregates(Vec::new()), true, dropped);
    assert_eq!(timeline.disagreements, None);
    assert_eq!((timeline.events, timeline.dropped), (2, 3));
}

proptest! {
    /// Events with any contents, replayed as a report replays them.
    #[test]
    fn no_events_make_the_replay_panic(words in prop::collection::vec(any::<[u64; 5]>(), 1..50), small in any::<bool>()) {
        let events: Vec<Event> = words
            .into_iter()
            // Half of them have ids so small that the same ids occur again.
            .map(|words| bytemuck::cast(if small { words.map(|word| word & 0x0303_0303_0303_0303) } else { words }))
            .collect();
        let mut replay = Replay::default();
        replay.events(&events);
        let _ = replay.conclude(&build::aggregates(vec![build::thread(101, "worker", 40, 2)]), true);
    }

    /// The same together with polls of any contents.
    #[test]
    fn no_polls_make_the_replay_panic(
        words in prop::collection::vec(any::<[u64; 5]>(), 1..30),
        batches in prop::collection::vec(prop::collection::vec(any::<u64>(), 3..60), 1..6),
        small in any::<bool>(),
    ) {
        let few = |word: u64| if small { word & 0x0303_0303_0303_0303 } else { word };
        let events: Vec<Event> = words.into_iter().map(|words| bytemuck::cast(words.map(few))).collect();
        let mut replay = PollReplay::default();
        for words in batches {
            replay.events(&events);
            let (header, stamps) = words.split_at(3);
            let half = stamps.len() / 2;
            let part = |tid: u64, words: &[u64]| ThreadStamps {
                tgid: few(header[2]) as u32,
                tid: few(tid) as u32,
                lost: few(header[1]),
                stamps: words.iter().filter_map(|&word| Stamp::of_record(few(word), few(word) >> 24)).collect(),
            };
            replay.polls(&PollBatch {
                base_ns: few(header[0]),
                until_ns: few(header[1]),
                dropped_without_ring: few(header[2]),
                threads: vec![part(header[0], &stamps[..half]), part(header[1], &stamps[half..])],
            });
        }
        let (polls, ()) = replay.conclude();
        let _ = polls.tasks.iter().map(|(_, task)| task.delay().count()).sum::<u64>();
    }
}
