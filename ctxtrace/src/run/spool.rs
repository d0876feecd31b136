//! Events put aside while a run goes on, for outputs that are made of them when it is over.
//!
//! Such an output needs what is known at the end only: the names of tasks, and which of several runs is the one to be shown.
//! And whatever would be done with an event while the run goes on would take CPU time from it. So the events go into a file
//! that has no name, as they are: each batch of them, or of polls, behind a word that says which and how long.

use std::fs::File;
use std::io::{self, BufRead, BufReader, BufWriter, Read, Seek, Write};

use ctxtrace_common::event::{EVENT_BYTES, Event};

use crate::report::place::{OutputFolder, UserFile};
use crate::trace::events::{EventSink, EventSource};
use crate::trace::polls::PollBatch;

/// Added to the length of a batch of polls.
const POLLS: u64 = 1 << 63;

/// A file for each run, if anybody wants the events.
pub(super) struct Spool {
    folder: Option<OutputFolder>,
    runs: Vec<Kept>,
    now: Option<Keeping>,
}

/// A run that goes on. An error ends the file, not the run: it is told when the events are asked for.
struct Keeping(io::Result<BufWriter<UserFile>>);

/// A run that is over.
type Kept = io::Result<File>;

impl Spool {
    /// Puts events aside in a file in this folder; no folder, no events.
    pub(super) fn new(folder: Option<OutputFolder>) -> Self {
        Self {
            folder,
            runs: Vec::new(),
            now: None,
        }
    }

    /// A run is over; what comes now belongs to the next one.
    pub(super) fn end_run(&mut self) {
        if self.folder.is_some() {
            let keeping = self.now.take().unwrap_or_else(|| self.begin());
            let whole = keeping
                .0
                .and_then(|file| file.into_inner().map_err(io::IntoInnerError::into_error))
                .map(UserFile::into_file);
            self.runs.push(whole);
        }
    }

    /// Puts a batch aside.
    fn keep(&mut self, kind: u64, bytes: &[u8]) {
        let mut keeping = self.now.take().unwrap_or_else(|| self.begin());
        if let Ok(file) = &mut keeping.0 {
            let length = (bytes.len() as u64 | kind).to_le_bytes();
            if let Err(error) = file.write_all(&length).and_then(|()| file.write_all(bytes)) {
                keeping = Keeping(Err(error));
            }
        }
        self.now = Some(keeping);
    }

    fn begin(&self) -> Keeping {
        let folder = self.folder.as_ref().ok_or(io::ErrorKind::NotFound.into());
        Keeping(folder.and_then(OutputFolder::scratch_file).map(BufWriter::new))
    }
}

impl EventSink for Spool {
    fn events(&mut self, batch: &[Event]) {
        if self.folder.is_none() {
            return;
        }
        self.keep(0, bytemuck::cast_slice(batch));
    }

    fn polls(&mut self, batch: &PollBatch) {
        if self.folder.is_some() {
            self.keep(POLLS, &batch.to_bytes());
        }
    }
}

impl EventSource for Spool {
    fn tell(&mut self, run: usize, sink: &mut dyn EventSink) -> io::Result<()> {
        let file = match self.runs.get_mut(run) {
            Some(Ok(file)) => file,
            Some(Err(error)) => return Err(io::Error::new(error.kind(), format!("keeping the events: {error}"))),
            None => return Ok(()),
        };
        file.rewind()?;
        let mut file = BufReader::with_capacity(1 << 18, file);
        let mut events: Vec<Event> = Vec::new();
        let mut word = [0; 8];
        while !file.fill_buf()?.is_empty() {
            file.read_exact(&mut word)?;
            let (kind, bytes) = (u64::from_le_bytes(word) & POLLS, u64::from_le_bytes(word) & !POLLS);
            if kind == POLLS {
                let mut batch = vec![0; bytes as usize];
                file.read_exact(&mut batch)?;
                sink.polls(&PollBatch::from_bytes(&batch).map_err(io::Error::other)?);
            } else {
                events.resize(bytes as usize / EVENT_BYTES, Event::default());
                file.read_exact(bytemuck::cast_slice_mut(&mut events))?;
                sink.events(&events);
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::target::user::FileRights;

    #[derive(Default)]
    struct Told(Vec<Event>);

    impl EventSink for Told {
        fn events(&mut self, batch: &[Event]) {
            self.0.extend_from_slice(batch);
        }
    }

    fn events(count: u64, cpu: u32) -> Vec<Event> {
        (0..count).map(|at_ns| Event::switch(at_ns, cpu)).collect()
    }

    fn told(spool: &mut Spool, run: usize) -> Vec<Event> {
        let mut told = Told::default();
        spool.tell(run, &mut told).expect("readable");
        told.0
    }

    #[test]
    fn events_come_back_run_by_run_and_as_often_as_asked() {
        let folder = tempfile::tempdir().expect("a folder");
        let held = OutputFolder::open(folder.path(), &FileRights::default()).expect("a folder");
        let mut spool = Spool::new(Some(held));
        let first = events(12_295, 0);
        for batch in first.chunks(1_000) {
            spool.events(batch);
        }
        spool.end_run();
        spool.end_run();
        spool.events(&events(2, 1));
        spool.end_run();
        assert_eq!(
            std::fs::read_dir(folder.path()).expect("a folder").count(),
            0,
            "it has no name"
        );
        for _ in 0..2 {
            assert_eq!(told(&mut spool, 0), first);
        }
        assert_eq!(told(&mut spool, 1), []);
        assert_eq!(told(&mut spool, 2), events(2, 1));
    }

    #[test]
    fn what_could_not_be_kept_is_told_when_it_is_asked_for() {
        let folder = tempfile::tempdir().expect("a folder");
        let held = OutputFolder::open(folder.path(), &FileRights::default()).expect("a folder");
        drop(folder);
        let mut spool = Spool::new(Some(held));
        spool.events(&events(2, 1));
        spool.end_run();
        let error = spool.tell(0, &mut ()).expect_err("no folder");
        assert!(error.to_string().starts_with("keeping the events: "), "{error}");
    }

    #[test]
    fn nothing_is_kept_for_nobody() {
        let mut spool = Spool::new(None);
        spool.events(&events(2, 1));
        spool.end_run();
        assert!(spool.runs.is_empty() && spool.now.is_none());
    }
}
