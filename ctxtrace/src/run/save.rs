//! The capture file, which is written during the run.

use std::cell::RefCell;
use std::io::{self, BufWriter};
use std::path::PathBuf;
use std::rc::Rc;
use std::time::{Duration, Instant};

use ctxtrace_common::event::Event;

use super::watch::Underway;
use super::written::{Opened, WrittenFiles};
use crate::cli::settings::SaveSettings;
use crate::error::{Error, Result};
use crate::files::output::{OutputAccess, place_of_capture};
use crate::files::place::{NamelessFile, OutputPlace, Replace, UserFile};
use ctxtrace_analysis::units::thousands;
use ctxtrace_format::file::{CapturePath, Writer};
use ctxtrace_format::polls::PollBatch;
use ctxtrace_format::run::{Info, Run};

/// Time from the start of a run to its first checkpoint. Each further interval is twice as long as the one before.
const FIRST_CHECKPOINT: Duration = Duration::from_secs(1);
/// Maximum time between two checkpoints; at most this much of a run can be lost.
const LONGEST_INTERVAL: Duration = Duration::from_secs(60);

/// Writes the capture, if one is requested.
///
/// An error during the run ends the file but not the run. The error is reported at the end, and what was saved before it can be
/// read.
pub(super) struct Saver(Option<Saving>);

struct Saving {
    path: PathBuf,
    writer: Option<Writer<SharedFiles>>,
    files: SharedFiles,
    error: Option<io::Error>,
    next: Instant,
    interval: Duration,
}

impl Saver {
    /// Creates the file. It gets its name when it contains something that can be reported.
    pub(super) fn begin(settings: Option<&SaveSettings>, info: &Info, access: &OutputAccess) -> Result<Self> {
        let Some(settings) = settings else {
            return Ok(Self(None));
        };
        let saving = || {
            let place = place_of_capture(&settings.path, settings.force, access)?;
            let (files, file) = CaptureFiles::begin(place, settings.force)?;
            let files = SharedFiles(Rc::new(RefCell::new(files)));
            let writer = Writer::within(settings.limits, files.clone(), file, info)?;
            Ok(Saving {
                path: settings.path.clone(),
                writer: Some(writer),
                files,
                error: None,
                next: Instant::now() + FIRST_CHECKPOINT,
                interval: FIRST_CHECKPOINT,
            })
        };
        saving()
            .map(|saving| Self(Some(saving)))
            .map_err(|source| Error::Output {
                path: settings.path.clone(),
                source,
            })
    }

    /// Writes a checkpoint if it is time for one. Call it regularly during a run.
    pub(super) fn tick(&mut self, underway: &Underway<'_>) {
        let Some(saving) = &mut self.0 else { return };
        if Instant::now() < saving.next {
            return;
        }
        // If a map cannot be read now, a later checkpoint may succeed.
        if let Ok(run) = underway.so_far() {
            saving.write(|writer| writer.checkpoint(&run));
            saving.appear();
        }
        saving.interval = (2 * saving.interval).min(LONGEST_INTERVAL);
        saving.next = Instant::now() + saving.interval;
    }

    /// Saves events of the current run.
    pub(super) fn events(&mut self, batch: &[Event]) {
        if let Some(saving) = &mut self.0 {
            saving.write(|writer| writer.events(batch));
        }
    }

    /// Saves polls of the current run.
    pub(super) fn polls(&mut self, batch: &PollBatch) {
        if let Some(saving) = &mut self.0 {
            saving.write(|writer| writer.polls(batch));
        }
    }

    /// Saves a run that has ended.
    pub(super) fn run(&mut self, run: &Run) {
        let Some(saving) = &mut self.0 else { return };
        saving.write(|writer| writer.run(run));
        saving.appear();
        saving.interval = FIRST_CHECKPOINT;
        saving.next = Instant::now() + saving.interval;
    }

    /// Completes the file.
    ///
    /// # Errors
    ///
    /// If the file could not be written, now or earlier.
    pub(super) fn end(self, written: &mut WrittenFiles) -> Result<()> {
        let Some(mut saving) = self.0 else { return Ok(()) };
        let mut dropped = 0;
        if let (None, Some(writer)) = (&saving.error, saving.writer.take()) {
            dropped = writer.dropped();
            saving.error = writer.end().err();
        }
        if let Some(source) = saving.error.take() {
            return Err(Error::Output {
                path: saving.path.clone(),
                source,
            });
        }
        let mut what = "capture".to_owned();
        if dropped > 0 {
            what += &format!(" without the oldest {} events (--max-size, --keep)", thousands(dropped));
        }
        written.add(&saving.path, what, Opened::With("ctxtrace report"));
        Ok(())
    }
}

impl Saving {
    fn write(&mut self, write: impl FnOnce(&mut Writer<SharedFiles>) -> io::Result<()>) {
        if self.error.is_some() {
            return;
        }
        let Some(writer) = &mut self.writer else { return };
        self.error = write(writer).and_then(|()| writer.flush()).err();
    }

    /// Gives the file its name, once it contains a state of the run.
    fn appear(&mut self) {
        if self.error.is_none() {
            self.error = self.files.0.borrow_mut().appear().err();
        }
    }
}

/// The files of a capture: the current one, which is at the path or will be put there, and the one that will replace it.
struct CaptureFiles {
    place: OutputPlace,
    /// Whether an existing file at the path is replaced.
    replace: Replace,
    is_at_path: bool,
    file: NamelessFile,
    successor: Option<NamelessFile>,
}

impl CaptureFiles {
    fn begin(place: OutputPlace, force: bool) -> io::Result<(Self, BufWriter<UserFile>)> {
        let file = place.folder().nameless_file()?;
        let writer = BufWriter::new(file.writer()?);
        let files = Self {
            place,
            replace: if force { Replace::Yes } else { Replace::No },
            is_at_path: false,
            file,
            successor: None,
        };
        Ok((files, writer))
    }

    fn appear(&mut self) -> io::Result<()> {
        if !self.is_at_path {
            self.file.put_at(&self.place, self.replace)?;
            self.is_at_path = true;
        }
        Ok(())
    }
}

/// The capture's files, shared with the writer, which requests successors.
#[derive(Clone)]
struct SharedFiles(Rc<RefCell<CaptureFiles>>);

impl CapturePath for SharedFiles {
    type CaptureFile = BufWriter<UserFile>;

    fn successor(&mut self) -> io::Result<Self::CaptureFile> {
        let mut files = self.0.borrow_mut();
        let successor = files.place.folder().nameless_file()?;
        let writer = BufWriter::new(successor.writer()?);
        files.successor = Some(successor);
        Ok(writer)
    }

    fn take_over(&mut self, _file: &mut Self::CaptureFile) -> io::Result<()> {
        let files = &mut *self.0.borrow_mut();
        if let Some(mut successor) = files.successor.take() {
            if files.is_at_path {
                successor.put_at(&files.place, Replace::Yes)?;
            }
            files.file = successor;
        }
        Ok(())
    }
}
