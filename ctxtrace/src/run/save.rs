//! The capture file, written while the run goes on.

use std::fs::File;
use std::io::{self, BufWriter};
use std::path::PathBuf;
use std::time::{Duration, Instant};

use ctxtrace_common::event::Event;

use super::watch::Underway;
use super::written::{Opened, Written};
use crate::cli::settings::SaveSettings;
use crate::error::{Error, Result};
use crate::report::output::{self, Successor};
use crate::target::user::Invoker;
use crate::trace::file::{Place, Writer};
use crate::trace::polls::PollBatch;
use crate::trace::run::{Info, Run};
use crate::units::thousands;

/// When a run's state is saved for the first time; then after twice as long, and so on.
const FIRST_CHECKPOINT: Duration = Duration::from_secs(1);
/// The longest time between two of them: how much of a run can be lost.
const LONGEST_INTERVAL: Duration = Duration::from_secs(60);

/// Writes the capture, if one was asked for.
///
/// An error while the run goes on ends the file, not the run: it is told at the end, and what was saved until then can be
/// read.
pub(super) struct Saver(Option<Saving>);

struct Saving {
    path: PathBuf,
    writer: Option<Writer<AtPath>>,
    error: Option<io::Error>,
    next: Instant,
    interval: Duration,
    /// Whether there is anything in the file that can be reported.
    is_worth_keeping: bool,
}

impl Saver {
    /// Makes the file.
    pub(super) fn begin(settings: Option<&SaveSettings>, info: &Info, user: Option<&Invoker>) -> Result<Self> {
        let Some(settings) = settings else {
            return Ok(Self(None));
        };
        let unwritable = |source| Error::Output {
            path: settings.path.clone(),
            source,
        };
        let file = output::create_in_place(&settings.path, settings.force, user).map_err(unwritable)?;
        let mut saving = Saving {
            path: settings.path.clone(),
            writer: None,
            error: None,
            next: Instant::now() + FIRST_CHECKPOINT,
            interval: FIRST_CHECKPOINT,
            is_worth_keeping: false,
        };
        // Should this fail, what there is of the file goes with `saving`.
        let place = AtPath {
            path: settings.path.clone(),
            user: user.cloned(),
            successor: None,
        };
        let writer = Writer::within(settings.limits, place, BufWriter::new(file), info).and_then(flushed);
        saving.writer = Some(writer.map_err(|source| Error::Output {
            path: settings.path.clone(),
            source,
        })?);
        Ok(Self(Some(saving)))
    }

    /// To be called now and then while a run goes on.
    pub(super) fn tick(&mut self, underway: &Underway<'_>) {
        let Some(saving) = &mut self.0 else { return };
        if Instant::now() < saving.next {
            return;
        }
        // A map that cannot be read now may be read later.
        if let Ok(run) = underway.so_far() {
            saving.write(|writer| writer.checkpoint(&run));
        }
        saving.interval = (2 * saving.interval).min(LONGEST_INTERVAL);
        saving.next = Instant::now() + saving.interval;
    }

    /// Saves events of the run that goes on.
    pub(super) fn events(&mut self, batch: &[Event]) {
        if let Some(saving) = &mut self.0 {
            saving.write(|writer| writer.events(batch));
        }
    }

    /// Saves polls of the run that goes on.
    pub(super) fn polls(&mut self, batch: &PollBatch) {
        if let Some(saving) = &mut self.0 {
            saving.write(|writer| writer.polls(batch));
        }
    }

    /// Saves a run that is over.
    pub(super) fn run(&mut self, run: &Run) {
        let Some(saving) = &mut self.0 else { return };
        saving.write(|writer| writer.run(run));
        saving.interval = FIRST_CHECKPOINT;
        saving.next = Instant::now() + saving.interval;
    }

    /// Ends the file.
    ///
    /// # Errors
    ///
    /// If it could not be written, now or earlier.
    pub(super) fn end(self, written: &mut Written) -> Result<()> {
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
    fn write(&mut self, write: impl FnOnce(&mut Writer<AtPath>) -> io::Result<()>) {
        if self.error.is_some() {
            return;
        }
        let Some(writer) = &mut self.writer else { return };
        match write(writer).and_then(|()| writer.flush()) {
            Ok(()) => self.is_worth_keeping = true,
            Err(error) => self.error = Some(error),
        }
    }
}

impl Drop for Saving {
    fn drop(&mut self) {
        if !self.is_worth_keeping {
            // The run did not begin; a file with nothing in it helps nobody.
            let _ = std::fs::remove_file(&self.path);
        }
    }
}

/// The files of a capture: the one at its path, and the one that will be.
struct AtPath {
    path: PathBuf,
    user: Option<Invoker>,
    successor: Option<Successor>,
}

impl Place for AtPath {
    type File = BufWriter<File>;

    fn successor(&mut self) -> io::Result<Self::File> {
        let (successor, file) = Successor::of(&self.path, self.user.as_ref())?;
        self.successor = Some(successor);
        Ok(BufWriter::new(file))
    }

    fn take_over(&mut self, file: &mut Self::File) -> io::Result<()> {
        match self.successor.take() {
            Some(successor) => successor.replace(&self.path, file.get_ref()),
            None => Ok(()),
        }
    }
}

fn flushed(mut writer: Writer<AtPath>) -> io::Result<Writer<AtPath>> {
    writer.flush()?;
    Ok(writer)
}
