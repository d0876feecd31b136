//! Writes a capture during the run, within limits if there are any.
//!
//! The oldest events cannot be removed from the beginning of a file in place. So, if there is a limit, the file gets a
//! *successor*: when the file is half full, a second file is begun, and everything from then on is written to both files. When
//! the first file is full, the second one replaces it, and gets a successor itself.
//!
//! ```text
//!   file       │▒▒ beginning ▒▒│ events … … … … … │ … … … … … full
//!   successor                                     │▒▒│ … … … … …   takes its place
//!                                          its own successor        │▒▒│ … …
//! ```
//!
//! So at every moment there is one complete file at the capture's path. It is within the limit, and it contains at least the
//! newer half of the events that fit. No data is copied from file to file while events wait to be read, and every block is
//! compressed only once. A successor begins with the data that must not be lost: the finished runs, the latest state of the
//! current run, the number of dropped events, and the introductions of the living threads.

use std::collections::HashMap;
use std::io::{self, Write};

use ctxtrace_common::clock::Leave;
use ctxtrace_common::event::{Decoded, Event};
use ctxtrace_common::process::Image;
use serde::Serialize;

use super::block::{self};
use super::kind::BlockKind;
use super::{MAGIC, THREADS_PER_BLOCK, VERSION, VERSION_WITHOUT_DROPS};
use crate::polls::PollBatch;
use crate::run::{Dropped, Info, Played, Run};

/// The limits of a capture. Beyond a limit the oldest events and stamps are dropped; counts are never dropped.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Limits {
    /// Maximum size of the file in bytes.
    pub max_bytes: Option<u64>,
    /// Time span of the events that are kept at least, nanoseconds. Up to twice this time is kept.
    pub keep_ns: Option<u64>,
}

impl Limits {
    fn any(&self) -> bool {
        self.max_bytes.is_some() || self.keep_ns.is_some()
    }
}

/// One batch of polls may take at most the size limit of the file divided by this number. The stamps of a larger batch are not
/// written, but counted as lost.
const MOST_POLLS: u64 = 4;

/// The path of a capture: creates successor files, and moves them to the path.
pub trait CapturePath {
    /// A file that is written sequentially.
    type CaptureFile: Write;

    /// Creates a new file that is not yet at the capture's path.
    ///
    /// # Errors
    ///
    /// If the file cannot be created.
    fn successor(&mut self) -> io::Result<Self::CaptureFile>;

    /// Replaces the file at the capture's path by the latest successor.
    ///
    /// # Errors
    ///
    /// If the successor cannot be moved to the path.
    fn take_over(&mut self, successor: &mut Self::CaptureFile) -> io::Result<()>;
}

/// A place without successors, for a capture without limits.
#[derive(Debug)]
pub struct Endless<W>(std::marker::PhantomData<W>);

impl<W: Write> CapturePath for Endless<W> {
    type CaptureFile = W;

    fn successor(&mut self) -> io::Result<W> {
        Err(io::ErrorKind::Unsupported.into())
    }

    fn take_over(&mut self, _: &mut W) -> io::Result<()> {
        Err(io::ErrorKind::Unsupported.into())
    }
}

/// One file that is being written.
#[derive(Debug)]
struct PartFile<W> {
    to: W,
    bytes: u64,
    /// The part of `bytes` that the file began with.
    base: u64,
    /// Time of the first event in the file.
    first_ns: Option<u64>,
    /// Number of events and stamps, over all runs, that are not in the file.
    dropped: u64,
}

impl<W: Write> PartFile<W> {
    /// Begins a file with the magic bytes, the version and these contents.
    fn begin(mut to: W, version: u32, contents: &[u8], dropped: u64) -> io::Result<Self> {
        let mut beginning = MAGIC.to_vec();
        beginning.extend(version.to_le_bytes());
        beginning.extend(contents);
        to.write_all(&beginning)?;
        let bytes = beginning.len() as u64;
        Ok(Self {
            to,
            bytes,
            base: bytes,
            first_ns: None,
            dropped,
        })
    }

    fn append(&mut self, blocks: &[u8], first_ns: Option<u64>) -> io::Result<()> {
        self.first_ns = self.first_ns.or(first_ns);
        self.bytes += blocks.len() as u64;
        self.to.write_all(blocks)
    }

    /// Whether the events in the file span at least this time now.
    fn spans(&self, keep_ns: Option<u64>, now_ns: u64) -> bool {
        let span = self.first_ns.map(|first_ns| now_ns.saturating_sub(first_ns));
        matches!((keep_ns, span), (Some(keep), Some(span)) if span >= keep)
    }
}

/// A capture that is being written.
#[derive(Debug)]
pub struct Writer<P: CapturePath> {
    place: P,
    limits: Limits,
    info: Vec<u8>,
    part: PartFile<P::CaptureFile>,
    successor: Option<PartFile<P::CaptureFile>>,
    /// The finished runs: the numbers of their events and stamps, and their blocks.
    over: Vec<(RunVolume, Vec<u8>)>,
    /// The blocks of the latest state of the current run.
    state: Vec<u8>,
    /// The numbers of events and stamps of the current run.
    volume: RunVolume,
    /// Time of the latest event.
    now_ns: u64,
    threads: Threads,
}

impl<W: Write> Writer<Endless<W>> {
    /// Begins a capture without limits.
    ///
    /// # Errors
    ///
    /// If the file cannot be written.
    pub fn begin(to: W, info: &Info) -> io::Result<Self> {
        Self::within(Limits::default(), Endless(std::marker::PhantomData), to, info)
    }
}

impl<P: CapturePath> Writer<P> {
    /// Begins a capture with these limits, in a file that is already at the capture's path.
    ///
    /// # Errors
    ///
    /// If the file cannot be written.
    pub fn within(limits: Limits, place: P, to: P::CaptureFile, info: &Info) -> io::Result<Self> {
        let info = block::packed(BlockKind::Info, &encode(info)?)?;
        Ok(Self {
            place,
            limits,
            part: PartFile::begin(to, VERSION_WITHOUT_DROPS, &info, 0)?,
            info,
            successor: None,
            over: Vec::new(),
            state: Vec::new(),
            volume: RunVolume::default(),
            now_ns: 0,
            threads: Threads::default(),
        })
    }

    /// Saves the state of the current run. A later state replaces it.
    ///
    /// # Errors
    ///
    /// If the file cannot be written.
    pub fn checkpoint(&mut self, run: &Run) -> io::Result<()> {
        let blocks = state_blocks(run)?;
        self.append(&blocks, None)?;
        if self.limits.any() {
            self.state = blocks;
        }
        Ok(())
    }

    /// Saves events of the timeline in the order in which they arrived. They belong to the run that ends next.
    ///
    /// # Errors
    ///
    /// If the file cannot be written.
    pub fn events(&mut self, batch: &[Event]) -> io::Result<()> {
        let (Some(first), Some(last)) = (batch.first(), batch.last()) else {
            return Ok(());
        };
        let block = block::packed(BlockKind::Events, bytemuck::cast_slice(batch))?;
        self.append(&block, Some(first.at_ns))?;
        self.volume.events += batch.len() as u64;
        self.now_ns = last.at_ns;
        if self.limits.any() {
            self.threads.follow(batch);
            self.look_ahead()?;
        }
        Ok(())
    }

    /// Saves a batch of polls. It belongs to the run that ends next.
    ///
    /// # Errors
    ///
    /// If the file cannot be written.
    pub fn polls(&mut self, batch: &PollBatch) -> io::Result<()> {
        let mut block = block::packed(BlockKind::Polls, &batch.to_bytes())?;
        if self
            .limits
            .max_bytes
            .is_some_and(|most| block.len() as u64 > most / MOST_POLLS)
        {
            // Such a large batch would displace everything else in the file.
            block = block::packed(BlockKind::Polls, &batch.as_lost().to_bytes())?;
        }
        self.append(&block, batch.threads.first().map(|_| batch.base_ns))?;
        self.volume.stamps += batch.stamps();
        if self.limits.any() {
            self.look_ahead()?;
        }
        Ok(())
    }

    /// Saves a finished run.
    ///
    /// # Errors
    ///
    /// If the file cannot be written.
    pub fn run(&mut self, run: &Run) -> io::Result<()> {
        let mut blocks = state_blocks(run)?;
        blocks.extend(block::packed(BlockKind::Names, &encode(&run.symbols)?)?);
        if let Some(timeline) = &run.timeline {
            let played = Played {
                timeline: timeline.clone(),
                samples: run.samples.len() as u64,
            };
            blocks.extend(block::packed(BlockKind::Played, &encode(&played)?)?);
        }
        blocks.extend(block::packed(BlockKind::EndOfRun, &[])?);
        self.append(&blocks, None)?;
        if self.limits.any() {
            self.over.push((self.volume, blocks));
            self.state.clear();
            self.threads = Threads::default();
        }
        self.volume = RunVolume::default();
        Ok(())
    }

    /// Writes all buffered data to the kernel, so that it survives the end of this process.
    ///
    /// # Errors
    ///
    /// If the file cannot be written.
    pub fn flush(&mut self) -> io::Result<()> {
        self.part.to.flush()?;
        self.successor.as_mut().map_or(Ok(()), |part| part.to.flush())
    }

    /// Ends the capture. The file is then complete, except for the dropped events and stamps.
    ///
    /// # Errors
    ///
    /// If the file cannot be written.
    pub fn end(mut self) -> io::Result<P::CaptureFile> {
        self.part.append(&block::packed(BlockKind::End, &[])?, None)?;
        self.part.to.flush()?;
        Ok(self.part.to)
    }

    /// Number of events and stamps that were dropped from the file.
    #[must_use]
    pub fn dropped(&self) -> u64 {
        self.part.dropped
    }

    /// Appends blocks that must be in the same file. If they exceed the size limit, the successor takes over first.
    fn append(&mut self, blocks: &[u8], first_ns: Option<u64>) -> io::Result<()> {
        if let Some(most) = self.limits.max_bytes {
            let needed = blocks.len() as u64 + block::empty_bytes(BlockKind::End)?;
            if self.part.bytes + needed > most {
                self.take_over()?;
            }
            if self.part.bytes + needed > most {
                // The successor was half full of events when it took over; a new successor begins without any.
                self.take_over()?;
            }
            if self.part.bytes + needed > most {
                return Err(io::Error::new(
                    io::ErrorKind::FileTooLarge,
                    format!(
                        "the counts take {} bytes even without events, but --max-size allows only {most}: increase --max-size",
                        self.part.bytes + needed
                    ),
                ));
            }
        }
        self.part.append(blocks, first_ns)?;
        match &mut self.successor {
            Some(successor) => successor.append(blocks, first_ns),
            None => Ok(()),
        }
    }

    /// Called after events were appended: begins a successor when the file is half full or its events span `keep_ns`, and lets
    /// the successor take over when its own events span `keep_ns`.
    fn look_ahead(&mut self) -> io::Result<()> {
        let keep_ns = self.limits.keep_ns;
        let most = self.limits.max_bytes;
        let is_half_full = |part: &PartFile<P::CaptureFile>| {
            most.is_some_and(|most| part.bytes >= part.base + most.saturating_sub(part.base) / 2)
        };
        if self
            .successor
            .as_ref()
            .is_some_and(|successor| successor.spans(keep_ns, self.now_ns))
        {
            self.take_over()?;
        }
        if self.successor.is_none() && (is_half_full(&self.part) || self.part.spans(keep_ns, self.now_ns)) {
            self.successor = Some(self.begin_successor()?);
        }
        Ok(())
    }

    fn take_over(&mut self) -> io::Result<()> {
        let mut successor = match self.successor.take() {
            Some(successor) => successor,
            None => self.begin_successor()?,
        };
        successor.to.flush()?;
        self.place.take_over(&mut successor.to)?;
        self.part = successor;
        Ok(())
    }

    fn begin_successor(&mut self) -> io::Result<PartFile<P::CaptureFile>> {
        let mut contents = self.info.clone();
        let dropped = |volume: RunVolume, told_again| {
            let dropped = Dropped {
                events: volume.events,
                told_again,
                stamps: volume.stamps,
            };
            block::packed(BlockKind::Dropped, &encode(&dropped)?)
        };
        for (volume, blocks) in &self.over {
            contents.extend(dropped(*volume, 0)?);
            contents.extend(blocks);
        }
        let introductions = self.threads.introductions(self.now_ns);
        contents.extend(dropped(self.volume, introductions.len() as u64)?);
        if !introductions.is_empty() {
            contents.extend(block::packed(BlockKind::Events, bytemuck::cast_slice(&introductions))?);
        }
        contents.extend(&self.state);
        let all = self.over.iter().map(|(volume, _)| volume).chain([&self.volume]);
        let of_all_runs = all.map(|volume| volume.events + volume.stamps).sum();
        PartFile::begin(self.place.successor()?, VERSION, &contents, of_all_runs)
    }
}

/// The numbers of events and stamps that a run has sent to the capture.
#[derive(Clone, Copy, Debug, Default)]
struct RunVolume {
    events: u64,
    stamps: u64,
}

/// The living threads, as introduced by events.
#[derive(Debug, Default)]
struct Threads(HashMap<u32, Known>);

#[derive(Clone, Copy, Debug)]
struct Known {
    start_boottime_ns: u64,
    image: Image,
    comm: Option<[u8; 16]>,
}

impl Threads {
    fn follow(&mut self, batch: &[Event]) {
        for event in batch {
            match event.decode() {
                Some(Decoded::Thread {
                    tid,
                    previous_tid,
                    start_boottime_ns,
                    image,
                    ..
                }) => {
                    let is_it = |known: &Known| known.start_boottime_ns == start_boottime_ns;
                    let before = [tid, previous_tid]
                        .into_iter()
                        .find(|id| self.0.get(id).is_some_and(is_it));
                    let comm = before.and_then(|id| self.0.remove(&id)).and_then(|known| known.comm);
                    self.0.insert(
                        tid,
                        Known {
                            start_boottime_ns,
                            image,
                            comm,
                        },
                    );
                }
                Some(Decoded::Name { tid, comm }) => {
                    if let Some(known) = self.0.get_mut(&tid) {
                        known.comm = Some(comm);
                    }
                }
                Some(Decoded::Exec { tid, image, .. }) => {
                    if let Some(image) = image
                        && let Some(known) = self.0.get_mut(&tid)
                    {
                        known.image = image;
                    } else {
                        self.0.remove(&tid);
                    }
                }
                Some(Decoded::Switch { out: Some(out), .. }) if out.leave == Leave::Dead => {
                    self.0.remove(&out.tid);
                }
                _ => {}
            }
        }
    }

    /// Events that introduce the living threads at this time, ordered by thread id.
    fn introductions(&self, now_ns: u64) -> Vec<Event> {
        let mut threads: Vec<_> = self.0.iter().collect();
        threads.sort_by_key(|&(tid, _)| tid);
        let of_thread = |(&tid, known): (&u32, &Known)| {
            let thread = Event::thread(now_ns, 0, tid, 0, known.start_boottime_ns, known.image, false);
            let name = known.comm.map(|comm| Event::name(now_ns, 0, tid, &comm));
            [Some(thread), name].into_iter().flatten()
        };
        threads.into_iter().flat_map(of_thread).collect()
    }
}

/// The blocks of a run's state: its thread records and its other sums.
fn state_blocks(run: &Run) -> io::Result<Vec<u8>> {
    let mut blocks = Vec::new();
    for threads in run.aggregates.threads.chunks(THREADS_PER_BLOCK) {
        blocks.extend(block::packed(BlockKind::Threads, &encode(&threads)?)?);
    }
    blocks.extend(block::packed(BlockKind::State, &encode(run)?)?);
    Ok(blocks)
}

fn encode(value: &impl Serialize) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    ciborium::into_writer(value, &mut bytes).map_err(io::Error::other)?;
    Ok(bytes)
}

#[cfg(test)]
impl Writer<Endless<Vec<u8>>> {
    /// The bytes written so far.
    pub(super) fn to_bytes(&self) -> Vec<u8> {
        self.part.to.clone()
    }

    /// Appends a block with any contents.
    pub(super) fn raw(&mut self, kind: BlockKind, bytes: &[u8]) {
        let block = block::packed(kind, bytes).expect("a block");
        self.part.append(&block, None).expect("memory is writable");
    }
}
