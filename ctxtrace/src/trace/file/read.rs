//! Reading a capture: anybody's, and maybe half of one.

use std::io::Read;

use ctxtrace_common::event::{EVENT_BYTES, Event};
use ctxtrace_common::process::Image;

use super::block::{self, Kind, Next};
use super::room::{MOST_RUNS, Room, too_much};
use super::{MAGIC, VERSION, VERSION_WITHOUT_DROPS};
use crate::trace::polls::PollBatch;
use crate::trace::run::{Dropped, Info, Played, Run};
use crate::trace::samples::Samples;
use crate::trace::symbols::Symbols;
use crate::trace::{Aggregates, ThreadRecord};

/// Events that are handed over at a time.
const EVENTS_AT_A_TIME: usize = 16_384;

/// Bytes in memory for each byte of a block of polls, while it is looked at.
const MOST_OF_A_STAMP: u64 = 4;

/// What was in a file.
#[derive(Debug)]
pub struct Saved {
    /// Who recorded what, where and when.
    pub info: Info,
    /// The runs; of one that has no end the last state that was saved.
    pub runs: Vec<Run>,
    /// For each run, the events that the capture has not kept.
    pub dropped: Vec<Dropped>,
    /// For each run, what the recorder has made of its events; `None` of a run that was cut off, or had no timeline, and of every
    /// run of a capture of before this was kept.
    pub played: Vec<Option<Played>>,
    /// Whether the end of the last run is in the file.
    pub is_whole: bool,
    /// What is wrong with the file, from where on nothing could be read; `None` if all of it could.
    pub damage: Option<String>,
    /// Memory that may still be made of it.
    pub(super) room_left: u64,
}

impl Saved {
    /// Looks whether the stacks of a run's samples, which are known when its events were played, have room with their names. Where
    /// they have none, the run loses its samples, and the file is damaged.
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

/// Reads a capture; `events` gets those of the timeline, as they were written, in batches, with the index of the run they
/// belong to.
///
/// # Errors
///
/// In a sentence, if nothing of it can be reported: it is no capture, it is a newer release's, or it ends before the first
/// state was saved.
pub fn read(from: impl Read, mut events: impl FnMut(usize, &[Event])) -> Result<Saved, String> {
    read_with_polls(from, |run, told| {
        if let Told::Events(batch) = told {
            events(run, batch);
        }
    })
}

/// What a run has told while it went on.
#[derive(Clone, Copy, Debug)]
pub enum Told<'a> {
    /// First of all: what is said of the whole capture.
    Info(&'a Info),
    /// Events of the timeline.
    Events(&'a [Event]),
    /// Polls and wakes. Events of the same time have come before.
    Polls(&'a PollBatch),
}

/// The same, with the polls.
///
/// # Errors
///
/// As [`read`].
pub fn read_with_polls(from: impl Read, told: impl FnMut(usize, Told<'_>)) -> Result<Saved, String> {
    read_wanted(from, |_| true, told)
}

/// Reads what was added up, and nothing of what was told while a run went on. The file is checked to its end all the same.
///
/// # Errors
///
/// As [`read`].
pub fn read_sums(from: impl Read) -> Result<Saved, String> {
    read_wanted(from, |kind| !matches!(kind, Kind::Events | Kind::Polls), |_, _| {})
}

fn read_wanted(
    mut from: impl Read,
    wanted: impl Fn(Kind) -> bool,
    mut told: impl FnMut(usize, Told<'_>),
) -> Result<Saved, String> {
    check_version(&mut from)?;
    let mut reading = Reading::default();
    let damage = loop {
        match block::read(&mut from, &mut reading.room, &wanted) {
            Ok(Next::Block(Kind::End, _)) => break None,
            Ok(Next::Block(Kind::Events, bytes)) => {
                let run = reading.runs.len();
                let room = &mut reading.room;
                let handed_over = room.fits(bytes.len() as u64).and_then(|()| {
                    hand_over(&bytes, |batch| {
                        room.play(batch)?;
                        told(run, Told::Events(batch));
                        Ok(())
                    })
                });
                if let Err(damage) = handed_over {
                    break Some(damage);
                }
            }
            Ok(Next::Block(Kind::Polls, bytes)) => match reading.polls(&bytes) {
                Ok(batch) => told(reading.runs.len(), Told::Polls(&batch)),
                Err(damage) => break Some(damage),
            },
            Ok(Next::Block(kind, bytes)) => {
                if let Err(damage) = reading.take(kind, &bytes) {
                    break Some(damage);
                }
                if let (Kind::Info, Some(info)) = (kind, &reading.info) {
                    told(0, Told::Info(info));
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
    let foreign = || "it is no capture of ctxtrace's (one is made with `-o FILE.ctx`)".to_owned();
    from.read_exact(&mut beginning).map_err(|_| foreign())?;
    let (magic, version) = beginning.split_at(MAGIC.len());
    if magic != MAGIC {
        return Err(foreign());
    }
    let version = u32::from_le_bytes([version[0], version[1], version[2], version[3]]);
    match version {
        VERSION_WITHOUT_DROPS..=VERSION => Ok(()),
        _ if version > VERSION => Err(format!(
            "it was made by a newer ctxtrace (format {version}, and this one reads up to {VERSION}): use that one"
        )),
        _ => Err(format!("there is no format {version}")),
    }
}

#[derive(Default)]
struct Reading {
    info: Option<Info>,
    runs: Vec<Run>,
    /// By run, up to the one that is being read.
    dropped: Vec<Dropped>,
    /// Likewise.
    played: Vec<Option<Played>>,
    /// What the file has made us hold.
    room: Room,
    /// Of its replaceable part, what the threads of the state that comes take.
    threads_take: u64,
    /// Those that belong to the state that comes.
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

    fn take(&mut self, kind: Kind, bytes: &[u8]) -> Result<(), String> {
        match kind {
            Kind::Info => {
                self.info = Some(self.room.decode(bytes)?);
                self.room.hold();
            }
            Kind::Threads => {
                let before = self.room.replaceable();
                self.threads.append(&mut self.room.decode(bytes)?);
                self.threads_take += self.room.replaceable() - before;
            }
            Kind::State => {
                let before = self.room.replaceable() - std::mem::take(&mut self.threads_take);
                let mut run: Run = self.room.decode(bytes)?;
                run.aggregates.threads = std::mem::take(&mut self.threads);
                self.state = Some(run);
                self.room.replaced(before);
            }
            Kind::Names => {
                let symbols: Symbols = self.room.decode(bytes)?;
                if let Some(run) = &mut self.state {
                    self.room.charge(resolved_bytes(&run.aggregates, &symbols))?;
                    run.symbols = symbols;
                }
            }
            Kind::EndOfRun if self.runs.len() == MOST_RUNS => {
                return Err(format!("it claims to hold more than {MOST_RUNS} runs"));
            }
            Kind::EndOfRun => {
                self.runs.extend(self.state.take());
                self.room.hold();
                self.room.next_run();
            }
            Kind::Dropped => {
                self.dropped.resize(self.runs.len(), Dropped::default());
                self.dropped.push(self.room.decode(bytes)?);
            }
            Kind::Played => {
                self.played.resize(self.runs.len(), None);
                self.played.push(Some(self.room.decode(bytes)?));
                self.room.hold();
            }
            Kind::Events | Kind::Polls | Kind::End => {}
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
            _ => Err(format!("there is nothing in it to report: {}", why())),
        }
    }
}

/// What the stacks of all sums take once they have their names. A sum is some bytes in the file, and its stack, which it may share with
/// many, may have any number of frames.
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

/// Hands over the events of a block, some at a time: a block may be long.
fn hand_over(bytes: &[u8], mut events: impl FnMut(&[Event]) -> Result<(), String>) -> Result<(), String> {
    let each = bytes.chunks_exact(EVENT_BYTES);
    if !each.remainder().is_empty() {
        return Err("a block of events ends in the middle of one".to_owned());
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
