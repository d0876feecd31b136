//! Reads a capture, which may be incomplete and may come from an untrusted source.

use std::io::Read;

use ctxtrace_common::event::{EVENT_BYTES, Event};
use ctxtrace_common::process::Image;

use super::block::{self, Next};
use super::kind::BlockKind;
use super::room::{MOST_RUNS, Room, too_much};
use super::{MAGIC, VERSION, VERSION_WITHOUT_DROPS};
use crate::polls::PollBatch;
use crate::run::{Dropped, Info, Played, Run};
use crate::samples::Samples;
use crate::symbols::Symbols;
use crate::{Aggregates, ThreadRecord};

/// Maximum number of events in one batch for the consumer; a longer block of events is passed on in several batches.
const EVENTS_AT_A_TIME: usize = 16_384;

/// Memory in bytes for each byte of a block of polls while the block is decoded.
const MOST_OF_A_STAMP: u64 = 4;

/// The contents of a capture file.
#[derive(Debug)]
pub struct Saved {
    /// The metadata of the capture.
    pub info: Info,
    /// The runs. A run whose end is missing has the last state that was saved.
    pub runs: Vec<Run>,
    /// For each run, the events that were dropped because of the capture's limits.
    pub dropped: Vec<Dropped>,
    /// For each run, the result of the recorder's replay of its events; `None` for a run that was cut off or had no timeline, and
    /// for captures of versions that did not store it.
    pub played: Vec<Option<Played>>,
    /// Whether the end of the last run is in the file.
    pub is_whole: bool,
    /// The damage to the file, after which nothing could be read; `None` if the whole file was read.
    pub damage: Option<String>,
    /// Memory that the contents may still take, in bytes.
    pub(super) room_left: u64,
}

impl Saved {
    /// Checks that the stacks of the samples, which are known after the replay of the events, and the names of their frames fit
    /// in the memory limit. If the samples of a run do not fit, they are removed and the file is marked as damaged.
    pub fn charge_samples(&mut self) {
        for run in &mut self.runs {
            let places = run.samples.places().iter();
            let bytes = places.map(|place| {
                let (user, kernel) = (place.user_stack, place.kernel_stack);
                run.symbols.resolved_bytes(place.image, user, kernel)
            });
            let bytes = bytes.fold(0, u64::saturating_add);
            match self.room_left.checked_sub(bytes) {
                Some(left) => self.room_left = left,
                None => {
                    run.samples = Samples::default();
                    self.damage.get_or_insert_with(too_much);
                }
            }
        }
    }
}

/// Reads a capture. `events` is called with the events of the timeline in batches, in the order in which they were written, and
/// with the index of the run that they belong to.
///
/// # Errors
///
/// Returns a sentence if the file has no data that can be reported: it is not a capture, it was made by a newer release, or it
/// ends before the first saved state.
pub fn read(from: impl Read, mut events: impl FnMut(usize, &[Event])) -> Result<Saved, String> {
    read_with_polls(from, |run, part| {
        if let CapturePart::Events(batch) = part {
            events(run, batch);
        }
    })
}

/// A part of a capture that the reader passes to its caller while it reads the file.
#[derive(Clone, Copy, Debug)]
pub enum CapturePart<'a> {
    /// The metadata of the capture, which comes first.
    Info(&'a Info),
    /// Events of the timeline.
    Events(&'a [Event]),
    /// Polls and wakes. The events of the same time have come before.
    Polls(&'a PollBatch),
}

/// Reads a capture like [`read`], and also passes on the metadata and the polls.
///
/// # Errors
///
/// The errors of [`read`].
pub fn read_with_polls(from: impl Read, pass_on: impl FnMut(usize, CapturePart<'_>)) -> Result<Saved, String> {
    read_wanted(from, |_| true, pass_on)
}

/// Reads the sums of a capture without its events and polls. The checksums of all blocks are checked nevertheless.
///
/// # Errors
///
/// The errors of [`read`].
pub fn read_sums(from: impl Read) -> Result<Saved, String> {
    read_wanted(
        from,
        |kind| !matches!(kind, BlockKind::Events | BlockKind::Polls),
        |_, _| {},
    )
}

fn read_wanted(
    mut from: impl Read,
    wanted: impl Fn(BlockKind) -> bool,
    mut pass_on: impl FnMut(usize, CapturePart<'_>),
) -> Result<Saved, String> {
    check_version(&mut from)?;
    let mut reading = Reading::default();
    let damage = loop {
        match block::read(&mut from, &mut reading.room, &wanted) {
            Ok(Next::Block(BlockKind::End, _)) => break None,
            Ok(Next::Block(BlockKind::Events, bytes)) => {
                let run = reading.runs.len();
                let room = &mut reading.room;
                let handed_over = room.fits(bytes.len() as u64).and_then(|()| {
                    hand_over(&bytes, |batch| {
                        room.play(batch)?;
                        pass_on(run, CapturePart::Events(batch));
                        Ok(())
                    })
                });
                if let Err(damage) = handed_over {
                    break Some(damage);
                }
            }
            Ok(Next::Block(BlockKind::Polls, bytes)) => match reading.polls(&bytes) {
                Ok(batch) => pass_on(reading.runs.len(), CapturePart::Polls(&batch)),
                Err(damage) => break Some(damage),
            },
            Ok(Next::Block(kind, bytes)) => {
                if let Err(damage) = reading.take(kind, &bytes) {
                    break Some(damage);
                }
                if let (BlockKind::Info, Some(info)) = (kind, &reading.info) {
                    pass_on(0, CapturePart::Info(info));
                }
            }
            Ok(Next::Passed) => {}
            Ok(Next::Nothing) => break Some("it has no end: the recording was cut off".to_owned()),
            Err(damage) => break Some(damage),
        }
    };
    reading.finish(damage)
}

fn check_version(from: &mut impl Read) -> Result<(), String> {
    let mut beginning = [0; MAGIC.len() + 4];
    let foreign = || "it is not a ctxtrace capture (`-o FILE.ctx` makes one)".to_owned();
    from.read_exact(&mut beginning).map_err(|_| foreign())?;
    let (magic, version) = beginning.split_at(MAGIC.len());
    if magic != MAGIC {
        return Err(foreign());
    }
    let version = u32::from_le_bytes([version[0], version[1], version[2], version[3]]);
    match version {
        VERSION_WITHOUT_DROPS..=VERSION => Ok(()),
        _ if version > VERSION => Err(format!(
            "it was made by a newer ctxtrace (format {version}, but this version reads only up to {VERSION}): update ctxtrace"
        )),
        _ => Err(format!("its format version {version} does not exist")),
    }
}

#[derive(Default)]
struct Reading {
    info: Option<Info>,
    runs: Vec<Run>,
    /// By run, up to the run that is being read.
    dropped: Vec<Dropped>,
    /// By run, up to the run that is being read.
    played: Vec<Option<Played>>,
    /// The memory that the contents of the file take.
    room: Room,
    /// The thread records that belong to the next state block.
    threads: Vec<ThreadRecord>,
    /// The latest state of the run that is being read.
    state: Option<Run>,
}

impl Reading {
    fn polls(&mut self, bytes: &[u8]) -> Result<PollBatch, String> {
        self.room.fits(MOST_OF_A_STAMP * bytes.len() as u64)?;
        let batch = PollBatch::from_bytes(bytes)?;
        self.room.play_polls(&batch)?;
        Ok(batch)
    }

    fn take(&mut self, kind: BlockKind, bytes: &[u8]) -> Result<(), String> {
        match kind {
            BlockKind::Info => {
                self.info = Some(self.room.decode(bytes)?);
                self.room.hold();
            }
            BlockKind::Threads => {
                self.threads.append(&mut self.room.decode_for_the_next_state(bytes)?);
            }
            BlockKind::State => {
                let mut run: Run = self.room.decode_state(bytes)?;
                run.aggregates.threads = std::mem::take(&mut self.threads);
                self.state = Some(run);
            }
            BlockKind::Names => {
                let symbols: Symbols = self.room.decode(bytes)?;
                if let Some(run) = &mut self.state {
                    self.room.charge(resolved_bytes(&run.aggregates, &symbols))?;
                    run.symbols = symbols;
                }
            }
            BlockKind::EndOfRun if self.runs.len() == MOST_RUNS => {
                return Err(format!("it claims to contain more than {MOST_RUNS} runs"));
            }
            BlockKind::EndOfRun => {
                self.runs.extend(self.state.take());
                self.room.hold();
                self.room.next_run();
            }
            BlockKind::Dropped => {
                self.dropped.resize(self.runs.len(), Dropped::default());
                self.dropped.push(self.room.decode(bytes)?);
            }
            BlockKind::Played => {
                self.played.resize(self.runs.len(), None);
                self.played.push(Some(self.room.decode(bytes)?));
                self.room.hold();
            }
            BlockKind::Events | BlockKind::Polls | BlockKind::End => {}
        }
        Ok(())
    }

    fn finish(mut self, damage: Option<String>) -> Result<Saved, String> {
        let is_whole = self.state.is_none();
        if let Some(mut run) = self.state {
            let cut_off = "the capture does not contain the end of the run".to_owned();
            run.cut_short = Some(run.cut_short.unwrap_or(cut_off));
            self.runs.push(run);
        }
        self.dropped.resize(self.runs.len(), Dropped::default());
        self.played.resize(self.runs.len(), None);
        let why = || damage.clone().unwrap_or_else(|| "it contains no run".to_owned());
        match self.info {
            Some(info) if !self.runs.is_empty() => Ok(Saved {
                info,
                runs: self.runs,
                dropped: self.dropped,
                played: self.played,
                is_whole,
                damage,
                room_left: self.room.left(),
            }),
            _ => Err(format!("it contains no data to report: {}", why())),
        }
    }
}

/// Memory in bytes that the stacks of all sums take when their names are resolved. A sum takes only some bytes in the file, but
/// its stack, which it may share with many other sums, may have any number of frames.
fn resolved_bytes(aggregates: &Aggregates, symbols: &Symbols) -> u64 {
    let switches = aggregates.switch_sums.iter().map(|(key, _)| {
        let image = Image {
            tgid: key.tgid,
            number: key.image,
        };
        (image, key.user_stack, key.kernel_stack)
    });
    let wakers = aggregates.waker_sums.iter().map(|(key, _)| {
        let image = Image {
            tgid: key.from.tgid,
            number: key.from.image,
        };
        (image, key.from.user_stack, key.from.kernel_stack)
    });
    switches
        .chain(wakers)
        .map(|(image, user, kernel)| symbols.resolved_bytes(image, user, kernel))
        .fold(0, u64::saturating_add)
}

/// Passes on the events of a block in batches, because a block may be long.
fn hand_over(bytes: &[u8], mut events: impl FnMut(&[Event]) -> Result<(), String>) -> Result<(), String> {
    let each = bytes.chunks_exact(EVENT_BYTES);
    if !each.remainder().is_empty() {
        return Err("a block of events ends in the middle of an event".to_owned());
    }
    let mut batch = Vec::new();
    for some in bytes.chunks(EVENTS_AT_A_TIME * EVENT_BYTES) {
        batch.clear();
        batch.extend(
            some.chunks_exact(EVENT_BYTES)
                .map(bytemuck::pod_read_unaligned::<Event>),
        );
        events(&batch)?;
    }
    Ok(())
}
