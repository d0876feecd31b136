//! Where the events of a timeline go while it is recorded, and where they come from afterwards.

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

/// Tells the events of runs that are over once more.
pub trait EventSource {
    /// Those of one run, by its index.
    ///
    /// # Errors
    ///
    /// If they are not there any more.
    fn tell(&mut self, run: usize, sink: &mut dyn EventSink) -> io::Result<()>;
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
