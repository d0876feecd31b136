//! The consumer of the events of a timeline while it is recorded, and their source afterwards.

use std::io;

use ctxtrace_common::event::Event;

use super::polls::PollBatch;

/// Takes the events of a timeline, ordered by time (`docs/SEMANTICS.md`, "The timeline", describes the exceptions).
///
/// During a recording the sink is called from the thread that drains the ring buffers, so a slow sink makes them overflow.
pub trait EventSink {
    /// Takes the next events.
    fn events(&mut self, batch: &[Event]);

    /// Takes the next batch of polls and wakes, if those are recorded. The events of the same time have been passed to
    /// [`EventSink::events`] before.
    fn polls(&mut self, _batch: &PollBatch) {}
}

/// Replays the events of finished runs.
pub trait EventSource {
    /// Sends the events of the run with this index to the sink.
    ///
    /// # Errors
    ///
    /// If the events can no longer be read.
    fn replay(&mut self, run: usize, sink: &mut dyn EventSink) -> io::Result<()>;
}

/// Ignores all events: for the levels at which none are recorded.
impl EventSink for () {
    fn events(&mut self, _batch: &[Event]) {}
}

/// Sends every event to both sinks.
impl<A: EventSink, B: EventSink> EventSink for (A, B) {
    fn events(&mut self, batch: &[Event]) {
        self.0.events(batch);
        self.1.events(batch);
    }

    fn polls(&mut self, batch: &PollBatch) {
        self.0.polls(batch);
        self.1.polls(batch);
    }
}

impl<S: EventSink + ?Sized> EventSink for &mut S {
    fn events(&mut self, batch: &[Event]) {
        (**self).events(batch);
    }

    fn polls(&mut self, batch: &PollBatch) {
        (**self).polls(batch);
    }
}

impl<S: EventSink> EventSink for Option<S> {
    fn events(&mut self, batch: &[Event]) {
        if let Some(sink) = self {
            sink.events(batch);
        }
    }

    fn polls(&mut self, batch: &PollBatch) {
        if let Some(sink) = self {
            sink.polls(batch);
        }
    }
}
