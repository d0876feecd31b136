//! Processes a recording during the run: replays its events, saves them to the capture, spools them for other outputs, and saves
//! checkpoints.

use ctxtrace_common::event::Event;

use super::interrupt::{Interrupt, Interrupts};
use super::save::Saver;
use super::spool::Spool;
use super::watch::{Observer, RecordedRun, Underway};
use crate::capture::Settings;
use crate::terminal::write_notice;
use ctxtrace_analysis::correlate::lanes;
use ctxtrace_analysis::correlate::polls::PollReplay;
use ctxtrace_analysis::correlate::timeline::Replay;
use ctxtrace_format::Level;
use ctxtrace_format::events::EventSink;
use ctxtrace_format::lanes::Lanes;
use ctxtrace_format::polls::PollBatch;
use ctxtrace_format::run::Run;
use ctxtrace_format::samples::Samples;

/// An observer that processes events, and calls `tick` at every tick.
pub(super) struct RecordingObserver<'a, F> {
    kept: ObservedRun<'a>,
    tick: F,
}

/// The destinations of the events, and what was computed from them.
pub(super) struct ObservedRun<'a> {
    saver: &'a mut Saver,
    spool: &'a mut Spool,
    replay: Option<Replay<(Samples, Option<lanes::LanesBuilder>)>>,
    polls: Option<PollReplay>,
}

impl<'a, F: FnMut(&Underway<'_>)> RecordingObserver<'a, F> {
    /// `drawn` is the limit on what is kept to draw a timeline; `None` if none is to be drawn.
    pub(super) fn new(
        settings: &Settings,
        drawn: Option<lanes::Limits>,
        saver: &'a mut Saver,
        spool: &'a mut Spool,
        tick: F,
    ) -> Self {
        let lanes = drawn.map(lanes::LanesBuilder::new);
        let replay = (settings.level == Level::Timeline).then(|| Replay::with_sink((Samples::default(), lanes)));
        let polls = settings.polls.then(PollReplay::default);
        Self {
            kept: ObservedRun {
                saver,
                spool,
                replay,
                polls,
            },
            tick,
        }
    }

    /// Stops processing and returns the results.
    pub(super) fn stop(self) -> ObservedRun<'a> {
        self.kept
    }
}

/// The results of a replay at its end. Intervals that are still open are closed at the last event.
pub(super) fn taken(mut replay: Replay<(Samples, Option<lanes::LanesBuilder>)>) -> (Samples, Option<Lanes>) {
    replay.close(replay.last_ns());
    let (samples, lanes) = replay.into_intervals();
    (samples, lanes.map(lanes::LanesBuilder::finish))
}

impl ObservedRun<'_> {
    /// Completes a run that has ended with the results of its events and the names of its stacks, and saves it. The first signal
    /// ends the lookup of names, and the next one ends this process.
    pub(super) fn finish(self, mut recorded: RecordedRun, interrupts: Option<&Interrupts>) -> Run {
        let run = &mut recorded.run;
        if let Some(replay) = self.replay {
            run.timeline = Some(replay.conclude(&run.aggregates, true));
            (run.samples, run.lanes) = taken(replay);
        }
        run.polls = self.polls.map(|polls| polls.conclude().0);
        recorded.name_stacks(interrupts.map(Interrupts::fd));
        let run = recorded.run;
        if let Some(interrupts) = interrupts
            && let Some(Interrupt { signal, .. }) = interrupts.take()
        {
            interrupts.let_through();
            write_notice(&format!(
                "ctxtrace: {signal} ended the look-up of names; frames without a name show this reason"
            ));
        }
        self.saver.run(&run);
        self.spool.end_run();
        run
    }
}

impl<F> EventSink for RecordingObserver<'_, F> {
    fn events(&mut self, batch: &[Event]) {
        self.kept.replay.events(batch);
        self.kept.polls.events(batch);
        self.kept.saver.events(batch);
        self.kept.spool.events(batch);
    }

    fn polls(&mut self, batch: &PollBatch) {
        self.kept.polls.polls(batch);
        self.kept.saver.polls(batch);
        self.kept.spool.polls(batch);
    }
}

impl<F: FnMut(&Underway<'_>)> Observer for RecordingObserver<'_, F> {
    fn tick(&mut self, underway: &Underway<'_>) {
        (self.tick)(underway);
        self.kept.saver.tick(underway);
    }
}
