//! Spools events during a run, for outputs that are made after it.
//!
//! Such an output needs information that is known only at the end: the names of tasks, and which of several runs is shown. In
//! addition, processing events during the run would take CPU time from it. So the raw events are written to an unlinked file.
//! Each batch of events or of polls follows a word with its type and its length.

use std::fs::File;
use std::io::{self, BufRead, BufReader, BufWriter, Read, Seek, Write};

use ctxtrace_common::event::{EVENT_BYTES, Event};

use crate::files::place::{OutputFolder, UserFile};
use ctxtrace_format::events::{EventSink, EventSource};
use ctxtrace_format::polls::PollBatch;

/// Flag in the word before a batch of polls; the other bits are the length in bytes.
const POLLS: u64 = 1 << 63;

/// One file per run, if an output needs the events.
pub(super) struct Spool {
    folder: Option<OutputFolder>,
    runs: Vec<FinishedFile>,
    now: Option<Keeping>,
}

/// The file of the current run. After an error nothing more is written, but the run goes on; the error is reported when the
/// events are read.
struct Keeping(io::Result<BufWriter<UserFile>>);

/// The file of a run that has ended.
type FinishedFile = io::Result<File>;

impl Spool {
    /// Creates a spool that writes to files in this folder, or that keeps nothing if there is no folder.
    pub(super) fn new(folder: Option<OutputFolder>) -> Self {
        Self {
            folder,
            runs: Vec::new(),
            now: None,
        }
    }

    /// Ends the current run; further events belong to the next one.
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

    /// Writes a batch to the file.
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
    fn replay(&mut self, run: usize, sink: &mut dyn EventSink) -> io::Result<()> {
        let file = match self.runs.get_mut(run) {
            Some(Ok(file)) => file,
            Some(Err(error)) => return Err(io::Error::new(error.kind(), format!("spooling the events: {error}"))),
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
    use crate::tracee::user::FileRights;

    #[derive(Default)]
    struct CollectedEvents(Vec<Event>);

    impl EventSink for CollectedEvents {
        fn events(&mut self, batch: &[Event]) {
            self.0.extend_from_slice(batch);
        }
    }

    fn events(count: u64, cpu: u32) -> Vec<Event> {
        (0..count).map(|at_ns| Event::switch(at_ns, cpu)).collect()
    }

    fn read_back(spool: &mut Spool, run: usize) -> Vec<Event> {
        let mut sink = CollectedEvents::default();
        spool.replay(run, &mut sink).expect("the spool is readable");
        sink.0
    }

    #[test]
    fn events_come_back_run_by_run_and_as_often_as_asked() {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let held = OutputFolder::open(folder.path(), &FileRights::default()).expect("the folder is readable");
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
            std::fs::read_dir(folder.path())
                .expect("the folder is readable")
                .count(),
            0,
            "the file must have no name"
        );
        for _ in 0..2 {
            assert_eq!(read_back(&mut spool, 0), first);
        }
        assert_eq!(read_back(&mut spool, 1), []);
        assert_eq!(read_back(&mut spool, 2), events(2, 1));
    }

    #[test]
    fn spool_errors_are_reported_on_read() {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let held = OutputFolder::open(folder.path(), &FileRights::default()).expect("the folder is readable");
        drop(folder);
        let mut spool = Spool::new(Some(held));
        spool.events(&events(2, 1));
        spool.end_run();
        let error = spool.replay(0, &mut ()).expect_err("the folder is missing");
        assert!(error.to_string().starts_with("spooling the events: "), "{error}");
    }

    #[test]
    fn nothing_is_spooled_without_a_folder() {
        let mut spool = Spool::new(None);
        spool.events(&events(2, 1));
        spool.end_run();
        assert!(spool.runs.is_empty() && spool.now.is_none());
    }
}
