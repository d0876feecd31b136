//! Writing a capture while the run goes on.

use std::io::{self, Write};

use ctxtrace_common::event::Event;
use serde::Serialize;

use super::block::{self, Kind};
use super::{MAGIC, THREADS_PER_BLOCK, VERSION};
use crate::trace::polls::PollBatch;
use crate::trace::run::{Info, Run};

/// A capture that is being written.
#[derive(Debug)]
pub struct Writer<W> {
    to: W,
}

impl<W: Write> Writer<W> {
    /// Begins a capture.
    ///
    /// # Errors
    ///
    /// If it cannot be written.
    pub fn begin(mut to: W, info: &Info) -> io::Result<Self> {
        to.write_all(&MAGIC)?;
        to.write_all(&VERSION.to_le_bytes())?;
        block::write(&mut to, Kind::Info, &encode(info)?)?;
        Ok(Self { to })
    }

    /// Saves what is known of a run that goes on. A later state takes its place.
    ///
    /// # Errors
    ///
    /// If it cannot be written.
    pub fn checkpoint(&mut self, run: &Run) -> io::Result<()> {
        for threads in run.aggregates.threads.chunks(THREADS_PER_BLOCK) {
            block::write(&mut self.to, Kind::Threads, &encode(&threads)?)?;
        }
        block::write(&mut self.to, Kind::State, &encode(run)?)
    }

    /// Saves events of the timeline, as they came; they belong to the run that ends next.
    ///
    /// # Errors
    ///
    /// If they cannot be written.
    pub fn events(&mut self, batch: &[Event]) -> io::Result<()> {
        block::write(&mut self.to, Kind::Events, bytemuck::cast_slice(batch))
    }

    /// Saves what was found in the rings of polls; it belongs to the run that ends next.
    ///
    /// # Errors
    ///
    /// If it cannot be written.
    pub fn polls(&mut self, batch: &PollBatch) -> io::Result<()> {
        block::write(&mut self.to, Kind::Polls, &batch.to_bytes())
    }

    /// Saves a run that is over.
    ///
    /// # Errors
    ///
    /// If it cannot be written.
    pub fn run(&mut self, run: &Run) -> io::Result<()> {
        self.checkpoint(run)?;
        block::write(&mut self.to, Kind::Names, &encode(&run.symbols)?)?;
        block::write(&mut self.to, Kind::EndOfRun, &[])
    }

    /// Hands everything to the kernel, so that it outlives this process.
    ///
    /// # Errors
    ///
    /// If it cannot be written.
    pub fn flush(&mut self) -> io::Result<()> {
        self.to.flush()
    }

    /// Ends the capture: nothing is missing.
    ///
    /// # Errors
    ///
    /// If it cannot be written.
    pub fn end(mut self) -> io::Result<W> {
        block::write(&mut self.to, Kind::End, &[])?;
        self.to.flush()?;
        Ok(self.to)
    }
}

fn encode(value: &impl Serialize) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    ciborium::into_writer(value, &mut bytes).map_err(io::Error::other)?;
    Ok(bytes)
}

#[cfg(test)]
impl Writer<Vec<u8>> {
    /// What is written by now.
    pub(super) fn to_bytes(&self) -> Vec<u8> {
        self.to.clone()
    }

    /// A block of anything.
    pub(super) fn raw(&mut self, kind: Kind, bytes: &[u8]) {
        block::write(&mut self.to, kind, bytes).expect("memory is writable");
    }
}
