//! `ctxtrace report`: makes every output from a capture.

use std::fs::File;
use std::io::{self, BufReader, Seek as _};
use std::path::Path;

use super::observe::taken;
use super::outputs::{OutputData, Outputs};
use super::verdict;
use crate::cli::settings::ReportSettings;
use crate::error::{Error, Result, status};
use crate::files::output::OutputAccess;
use crate::files::place::DeviceInode;
use crate::tracee::user::invoker;
use ctxtrace_analysis::correlate::lanes::{LanesBuilder, Limits};
use ctxtrace_analysis::correlate::polls::PollReplay;
use ctxtrace_analysis::correlate::timeline::Replay;
use ctxtrace_analysis::summarize::summarize;
use ctxtrace_format::Level;
use ctxtrace_format::events::{EventSink, EventSource};
use ctxtrace_format::file::{self, Saved};
use ctxtrace_format::run::Dropped;
use ctxtrace_format::samples::Samples;

/// Reads the events of a capture again, for outputs that need them after the first reading.
struct CaptureEvents<'a> {
    path: &'a Path,
}

impl EventSource for CaptureEvents<'_> {
    fn replay(&mut self, run: usize, sink: &mut dyn EventSink) -> io::Result<()> {
        let unreadable = |reason| io::Error::other(format!("reading {} again: {reason}", self.path.display()));
        let file = File::open(self.path)?;
        file::read_with_polls(BufReader::new(file), |of, part| match part {
            file::CapturePart::Events(batch) if of == run => sink.events(batch),
            file::CapturePart::Polls(batch) if of == run => sink.polls(batch),
            _ => {}
        })
        .map(drop)
        .map_err(unreadable)
    }
}

/// Reads a capture without replaying its events, if the sums in it are sufficient for a report: the recorder has replayed the
/// events, all of them are in the file, and there are neither samples nor polls. Otherwise returns `None`.
fn sums(file: &File) -> Option<Saved> {
    let mut saved = file::read_sums(BufReader::new(file)).ok()?;
    let is_all_there = saved.is_whole && saved.damage.is_none() && saved.info.polls.is_none();
    if !is_all_there || saved.dropped.iter().any(|dropped| *dropped != Dropped::default()) {
        return None;
    }
    if saved.info.level == Level::Timeline {
        for (run, played) in saved.runs.iter_mut().zip(&saved.played) {
            let played = played.as_ref().filter(|played| played.samples == 0)?;
            run.timeline = Some(played.timeline.clone());
        }
    }
    Some(saved)
}

/// Reads a capture and replays its events; `drawn` says whether a timeline is to be drawn.
fn played(file: File, drawn: bool) -> std::result::Result<Saved, String> {
    // The number of runs is known only at the end, so each run may keep less than the one before. Most captures have one run.
    let limits = |before: usize| Limits::for_each_of(before as u64 + 1);
    let lanes = |before| drawn.then(|| LanesBuilder::new(limits(before)));
    let mut replays: Vec<Replay<(Samples, Option<LanesBuilder>)>> = Vec::new();
    let mut polls: Vec<Option<PollReplay>> = Vec::new();
    let mut has_polls = false;
    let mut saved = file::read_with_polls(BufReader::new(file), |run, part| {
        if let file::CapturePart::Info(info) = part {
            has_polls = info.polls.is_some();
            return;
        }
        // The runs come in order.
        while replays.len() <= run {
            replays.push(Replay::with_sink((Samples::default(), lanes(replays.len()))));
            polls.push(has_polls.then(PollReplay::default));
        }
        match part {
            file::CapturePart::Info(_) => {}
            file::CapturePart::Events(batch) => {
                replays[run].events(batch);
                polls[run].events(batch);
            }
            file::CapturePart::Polls(batch) => polls[run].polls(batch),
        }
    })?;
    if saved.info.level == Level::Timeline {
        while replays.len() < saved.runs.len() {
            replays.push(Replay::with_sink((Samples::default(), lanes(replays.len()))));
        }
        replays.truncate(saved.runs.len());
        let last = saved.runs.len() - 1;
        for (index, (run, replay)) in saved.runs.iter_mut().zip(replays).enumerate() {
            let is_whole = index < last || saved.is_whole;
            let dropped = saved.dropped[index];
            run.timeline = Some(replay.conclude_kept(&run.aggregates, is_whole, dropped));
            (run.samples, run.lanes) = taken(replay);
        }
        saved.charge_samples();
    }
    if saved.info.polls.is_some() {
        polls.resize_with(saved.runs.len(), || Some(PollReplay::default()));
        for ((run, polls), dropped) in saved.runs.iter_mut().zip(polls).zip(&saved.dropped) {
            run.polls = polls.map(|polls| polls.conclude().0);
            if let Some(polls) = &mut run.polls {
                polls.dropped = dropped.stamps;
            }
        }
    }
    Ok(saved)
}

/// Reads a capture and writes every output. If the file is damaged, the readable part is reported, and the exit status shows the
/// damage.
///
/// # Errors
///
/// If the file has nothing that can be reported, or if an output cannot be written.
pub fn report(settings: &ReportSettings) -> Result<u8> {
    let path = &settings.file;
    let unreadable = |reason: String| Error::Capture {
        path: path.clone(),
        reason,
    };
    let mut opened = File::open(path).map_err(|error| unreadable(error.to_string()))?;
    let metadata = opened.metadata().map_err(|error| unreadable(error.to_string()))?;
    if metadata.is_dir() {
        return Err(unreadable("it is a folder".to_owned()));
    }
    let is_file = metadata.is_file();
    let access = OutputAccess::new(invoker()?.as_ref()).reading(DeviceInode::of_descriptor(&opened));
    // A pipe can be read only once, so its events are read now.
    let wants_events = settings.check || settings.outputs.html.is_some() || !is_file;
    let added_up = if wants_events { None } else { sums(&opened) };
    let saved = match added_up {
        Some(saved) => saved,
        None => {
            if is_file {
                opened.rewind().map_err(|error| unreadable(error.to_string()))?;
            }
            played(opened, settings.outputs.html.is_some()).map_err(unreadable)?
        }
    };
    if settings.outputs.wants_stacks() && saved.info.level != Level::Stacks {
        return Err(unreadable(format!(
            "it was recorded with --level {}, which takes no stacks",
            saved.info.level.name()
        )));
    }
    if settings.outputs.wakeups_flamegraph.is_some()
        && saved.runs.iter().all(|run| run.aggregates.waker_sums.is_empty())
    {
        return Err(unreadable(
            "it has no stacks of wakers: they are recorded only if --wakeups-flamegraph is given to `run` or `record`"
                .to_owned(),
        ));
    }
    if settings.outputs.on_cpu_flamegraph.is_some() && saved.runs.iter().all(|run| run.samples.is_empty()) {
        return Err(unreadable(
            "it has no samples: they are recorded only if --sample is given to `run` or `record`".to_owned(),
        ));
    }
    if settings.outputs.perfetto.is_some() && saved.info.level != Level::Timeline {
        return Err(unreadable(format!(
            "it was recorded with --level {}, which records no events for --perfetto (--level timeline does)",
            saved.info.level.name()
        )));
    }
    let reads_events = settings.outputs.perfetto.is_some() || settings.outputs.parquet.is_some();
    if reads_events && saved.info.level == Level::Timeline && !is_file {
        return Err(unreadable(
            "--perfetto and --parquet read the capture twice, so it must be a file and not a pipe".to_owned(),
        ));
    }
    let outputs = Outputs::open(&settings.outputs, &access)?;
    let mut report = summarize(&saved.info, &saved.runs);
    if let Some(damage) = &saved.damage {
        report.complete = false;
        report.cut_short = Some(format!("the file is damaged: {damage}"));
    }
    let data = OutputData {
        info: &saved.info,
        report: &report,
        runs: &saved.runs,
        damage: saved.damage.as_deref(),
        events: &mut CaptureEvents { path },
    };
    outputs.conclude(&settings.outputs, data, None)?;
    let verdict = verdict(&settings.outputs, &report)?;
    Ok(if saved.damage.is_some() {
        status::FAILURE
    } else {
        verdict
    })
}

#[cfg(test)]
mod tests {
    use ctxtrace_common::event::Event;

    use super::*;
    use ctxtrace_common::process::Image;
    use ctxtrace_format::build;
    use ctxtrace_format::file::Writer;
    use ctxtrace_format::run::{Run, Timeline};
    use ctxtrace_format::samples::SamplePlace;

    /// Whether the sums in a capture are sufficient for a report. The capture has one run with one event.
    fn is_enough(run: &Run, level: Level, alter: impl FnOnce(&mut Vec<u8>)) -> bool {
        let mut info = build::info();
        info.level = level;
        let mut writer = Writer::begin(Vec::new(), &info).expect("the capture is written");
        writer.events(&[Event::switch(1, 0)]).expect("the capture is written");
        writer.run(run).expect("the capture is written");
        let mut bytes = writer.end().expect("the capture is written");
        alter(&mut bytes);
        let mut file = tempfile::tempfile().expect("a temporary file");
        io::Write::write_all(&mut file, &bytes).expect("the capture is written");
        file.rewind().expect("the file is rewound");
        let sums = sums(&file);
        if level == Level::Timeline
            && let Some(sums) = &sums
        {
            assert_eq!(sums.runs[0].timeline, run.timeline);
        }
        sums.is_some()
    }

    #[test]
    fn events_are_played_again_only_where_they_say_more_than_was_added_up() {
        let mut run = build::run(build::aggregates(vec![]));
        assert!(is_enough(&run, Level::Stacks, |_| {}));
        assert!(
            !is_enough(&run, Level::Timeline, |_| {}),
            "the results of the events are missing"
        );
        run.timeline = Some(Timeline {
            events: 1,
            ..Timeline::default()
        });
        assert!(is_enough(&run, Level::Timeline, |_| {}));
        assert!(!is_enough(&run, Level::Timeline, |bytes| bytes.truncate(bytes.len() - 1)));
        let place = SamplePlace {
            image: Image::default(),
            in_kernel: false,
            kernel_stack: 0,
            user_stack: 0,
        };
        run.samples.add(1, place);
        assert!(!is_enough(&run, Level::Timeline, |_| {}), "samples need the events");
    }
}
