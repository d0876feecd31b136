//! Where the events of a timeline go while it is recorded.

use std::io;

use ctxtrace_common::event::Event;

/// Takes the events of a timeline, in the order of their times (`docs/SEMANTICS.md`, "The timeline", says how far that
/// can be relied on).
///
/// It is called from the thread that drains the rings, while the target runs: what takes long makes the rings overflow.
pub trait EventSink {
    /// The next events.
    fn events(&mut self, batch: &[Event]);
}

/// Events that can be had again, when everything else is known of the runs they belong to: names above all.
pub trait EventSource {
    /// Gives all of them to `events`, in batches, with the index of the run they belong to; in the order of the runs.
    ///
    /// # Errors
    ///
    /// If they cannot be read any more.
    fn replay(&mut self, events: &mut dyn FnMut(usize, &[Event])) -> io::Result<()>;
}

/// Takes nothing: for the levels at which there are no events.
impl EventSink for () {
    fn events(&mut self, _batch: &[Event]) {}
}

/// Both get all of them.
impl<A: EventSink, B: EventSink> EventSink for (A, B) {
    fn events(&mut self, batch: &[Event]) {
        self.0.events(batch);
        self.1.events(batch);
    }
}

impl<S: EventSink + ?Sized> EventSink for &mut S {
    fn events(&mut self, batch: &[Event]) {
        (**self).events(batch);
    }
}

impl<S: EventSink> EventSink for Option<S> {
    fn events(&mut self, batch: &[Event]) {
        if let Some(sink) = self {
            sink.events(batch);
        }
    }
}
