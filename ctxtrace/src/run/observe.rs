//! What is done with a recording while it goes on: its events are played again and saved, and so is its state.

use ctxtrace_common::event::Event;

use super::save::Saver;
use super::watch::{Observer, Underway};
use crate::correlate::timeline::Replay;
use crate::trace::Level;
use crate::trace::events::EventSink;
use crate::trace::run::Run;

/// Keeps what comes; `tick` is called in between.
pub(super) struct Keeper<'a, F> {
    saver: &'a mut Saver,
    replay: Option<Replay>,
    tick: F,
}

impl<'a, F: FnMut(&Underway<'_>)> Keeper<'a, F> {
    pub(super) fn new(level: Level, saver: &'a mut Saver, tick: F) -> Self {
        Self {
            saver,
            replay: (level == Level::Timeline).then(Replay::default),
            tick,
        }
    }

    /// To be called when the run is over: gives it what its events came to, and saves it.
    pub(super) fn finish(self, run: &mut Run) {
        run.timeline = self.replay.map(|replay| replay.conclude(&run.aggregates, true));
        self.saver.run(run);
    }
}

impl<F> EventSink for Keeper<'_, F> {
    fn events(&mut self, batch: &[Event]) {
        self.replay.events(batch);
        self.saver.events(batch);
    }
}

impl<F: FnMut(&Underway<'_>)> Observer for Keeper<'_, F> {
    fn tick(&mut self, underway: &Underway<'_>) {
        (self.tick)(underway);
        self.saver.tick(underway);
    }
}
