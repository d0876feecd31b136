//! What fuzz targets share: everything that is made of a capture.

use ctxtrace::analyze::summarize::summarize;
use ctxtrace::correlate::timeline::Replay;
use ctxtrace::report::flamegraph::{self, Labels, Subject};
use ctxtrace::report::{Weight, folded, json, table};
use ctxtrace::symbolize::stacks::{self, Resolved};
use ctxtrace::trace::file;
use ctxtrace::trace::samples::Samples;

/// Reads a capture and makes every output of it, as `ctxtrace report` does. What may come of a file that somebody made up
/// is a sentence, or a report; never a panic, never bytes that do something to whoever looks at them.
pub fn report(capture: &[u8]) {
    let mut replays: Vec<Replay<Samples>> = Vec::new();
    let replay = || Replay::telling(Samples::default());
    let read = file::read(capture, |run, events| {
        if replays.len() <= run {
            replays.resize_with(run + 1, replay);
        }
        ctxtrace::trace::events::EventSink::events(&mut replays[run], events);
    });
    let Ok(mut saved) = read else { return };
    replays.resize_with(saved.runs.len(), replay);
    for (index, (run, replay)) in saved.runs.iter_mut().zip(replays).enumerate() {
        run.timeline = Some(replay.conclude_kept(&run.aggregates, saved.is_whole, saved.dropped[index]));
        run.samples = replay.into_intervals();
    }
    let report = summarize(&saved.info, &saved.runs);
    let bytes = json::render(&report).expect("any report is JSON");
    let _: serde_json::Value = serde_json::from_slice(&bytes).expect("JSON");
    harmless_text(&table::render(&report, table::Style { color: false }));
    let run = &saved.runs[0];
    for resolved in [stacks::switches(run), stacks::wakers(run)] {
        pictures(&resolved);
    }
}

/// Folded stacks and flamegraphs of any stacks.
pub fn pictures(resolved: &Resolved) {
    for weight in [Weight::Time, Weight::Count] {
        let lines = folded::render(&resolved.stacks, weight);
        harmless_text(&lines);
        let labels = Labels {
            subject: "fuzz".to_owned(),
            lost: None,
        };
        let Ok(svg) = flamegraph::render(resolved, Subject::Switches, weight, &labels) else {
            continue;
        };
        let svg = String::from_utf8(svg).expect("text");
        // Its own script, and no other.
        assert!(svg.matches("<script").count() <= 1, "{svg}");
        assert!(!svg.contains('\u{1b}'), "{svg}");
    }
}

/// Nothing that a terminal would obey.
fn harmless_text(text: &str) {
    let harmful = text.chars().find(|&c| c.is_control() && c != '\n');
    assert_eq!(harmful, None, "{text:?}");
}
