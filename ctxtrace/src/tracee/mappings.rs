//! Records which file is mapped where in the memory of each process, and keeps this until the report, after the processes have
//! ended.
//!
//! `/proc/PID/maps` disappears with the process, and a short process ends before it can be read. Therefore a `perf` event that
//! counts nothing (`PERF_COUNT_SW_DUMMY`) is opened on each CPU. It reports every executable mapping (`PERF_RECORD_MMAP2`), every
//! `execve` (`PERF_RECORD_COMM`) and every fork when they happen. Because it is opened for a CPU and not for a process, it costs
//! nothing at a context switch.
//!
//! A mapping is identified by its file, not by its path: see [`super::held`].
//!
//! The records of all CPUs are sorted by their `CLOCK_MONOTONIC` time stamps before they are applied. Records that are newer than
//! the beginning of a reading are kept for the next reading, because an older record of another CPU may not have been read yet.

use std::collections::{HashMap, HashSet, VecDeque};
use std::ffi::OsStr;
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use ctxtrace_common::process::Image;
use nix::time::{ClockId, clock_gettime};
use perf_event::data::Record;
use perf_event::events::Software;
use perf_event::{Builder, SampleFlag, Sampler};

use super::attach::has_own_root;
use super::held::{HeldFile, HeldFiles, MissingFile, NamedBy, SoughtFile, identity_in, without_deleted};
use super::proc_maps;
use ctxtrace_format::mappings::{FileIdentity, Mapping, Mappings};

/// The size in bytes of the ring buffer of each CPU for reports of mappings: about 2,500 reports between two readings. Any
/// program on the machine can fill it. Lost reports are read back from `/proc/PID/maps`.
const MAPPINGS_RING_BYTES: usize = 256 << 10;
/// The size in bytes of the ring buffer of each CPU for reports of forks and `execve`: about 5,000 reports between two readings.
/// After a loss, the images are taken from the kernel side; see [`Tracker::renumber`].
const PROCESSES_RING_BYTES: usize = 256 << 10;
/// The size of the header of a report in bytes (`struct perf_event_header`, kernel: `include/uapi/linux/perf_event.h`).
const REPORT_HEADER_BYTES: usize = 8;
/// The size of the longest report in bytes: a path of 4,096 bytes, and the fields before and after it. If a ring buffer has less
/// space left, reports may have been lost.
const LONGEST_REPORT_BYTES: usize = (4 << 10) + 128;
/// The number of the newest images of ended processes whose mappings are kept when older ones are forgotten. Between two such
/// times there are up to twice as many.
pub const MOST_ENDED_IMAGES: usize = 16_384;
/// The maximum number of processes whose maps are read again per reading of the rings; the rest is read later.
const MOST_READ_AGAIN: usize = 64;
/// The flag `PERF_RECORD_MISC_COMM_EXEC` (kernel: `include/uapi/linux/perf_event.h`): the name was changed by an `execve`.
const MISC_COMM_EXEC: u16 = 1 << 13;

/// The mappings of the followed processes, with the files that are held and the processes that run.
#[derive(Clone, Debug, Default)]
pub struct FollowedMappings {
    recorded: Mappings,
    /// The number of the image that each process is running, by process id.
    current: HashMap<u32, u32>,
    /// The kept images in the order in which they began. Before them came the forgotten images, and only those.
    begun: Vec<Image>,
    /// When `begun` reaches this length, ended images are forgotten. Values below twice [`MOST_ENDED_IMAGES`] mean that number.
    look_at: usize,
    /// The mapped files that could be opened in time.
    held: HeldFiles,
    /// The image from which each image was made by a fork or an `execve`.
    made_from: HashMap<Image, Image>,
    /// The images of programs that may not be traced. Nothing is kept of them.
    refused: HashSet<Image>,
    /// The number of calls of [`FollowedMappings::refuse`].
    refusals: u64,
    /// Whether mappings were dropped, so that files may be held that no image needs.
    dropped: bool,
}

impl FollowedMappings {
    /// Adds an image whose mappings are known.
    #[cfg(test)]
    pub(crate) fn add(&mut self, image: Image, mappings: impl IntoIterator<Item = Mapping>) {
        if !self.recorded.has(image) {
            self.begin(image);
        }
        self.recorded.begin(image);
        for mapping in mappings {
            self.recorded.add(image, &mapping);
        }
    }

    /// The mappings recorded so far.
    #[must_use]
    pub fn recorded(&self) -> &Mappings {
        &self.recorded
    }

    /// The held files.
    #[cfg(test)]
    pub(crate) fn held(&self) -> &HeldFiles {
        &self.held
    }

    /// Returns the held files, and drops everything else.
    #[must_use]
    pub fn into_held(self) -> HeldFiles {
        self.held
    }

    /// Opens and holds a file that will be executed.
    ///
    /// # Errors
    ///
    /// If the file cannot be opened or is not a regular file.
    pub fn hold(&mut self, path: &Path) -> io::Result<Arc<HeldFile>> {
        self.hold_as(path, path)
    }

    /// Opens and holds a file that has the path `shown` in the target and the path `path` in this process.
    fn hold_as(&mut self, path: &Path, shown: &Path) -> io::Result<Arc<HeldFile>> {
        self.held.hold_path(path, shown)
    }

    /// Returns the held file of a mapping.
    ///
    /// # Errors
    ///
    /// If the file is not held; the error is the reason.
    pub fn file(&self, mapping: &Mapping) -> Result<&Arc<HeldFile>, MissingFile> {
        self.held.of_mapping(mapping)
    }

    /// Returns the images that began after the first `number` images, in the order in which they began, and the number of all
    /// images that have begun so far, for the next call.
    #[must_use]
    pub fn begun_since(&self, number: usize) -> (&[Image], usize) {
        let forgotten = self.recorded.forgotten();
        let begun = self.begun.get(number.saturating_sub(forgotten)..);
        (begun.unwrap_or_default(), forgotten + self.begun.len())
    }

    /// Forgets the oldest images that no process runs any more, if there are at least twice [`MOST_ENDED_IMAGES`] images. Returns
    /// the processes of which no current image is kept.
    fn forget_ended(&mut self, has_ended: impl Fn(u32) -> bool) -> Vec<u32> {
        if self.begun.len() < self.look_at.max(2 * MOST_ENDED_IMAGES) {
            return Vec::new();
        }
        let surplus = self.begun.len() - MOST_ENDED_IMAGES;
        let (mut kept, mut ended) = (Vec::new(), Vec::new());
        for image in self.begun.drain(..surplus) {
            let is_last = self.current.get(&image.tgid) == Some(&image.number);
            if is_last && !has_ended(image.tgid) {
                kept.push(image);
                continue;
            }
            self.recorded.remove(image);
            if is_last {
                self.current.remove(&image.tgid);
                ended.push(image.tgid);
            }
        }
        self.recorded.count_forgotten(surplus - kept.len());
        self.begun.splice(..0, kept);
        self.look_at = self.begun.len() + MOST_ENDED_IMAGES;
        self.dropped = true;
        ended
    }

    /// Whether a process runs this image now, as far as is known.
    #[must_use]
    pub fn is_current(&self, image: Image) -> bool {
        self.current.get(&image.tgid) == Some(&image.number)
    }

    /// Forgets the image of a program that may not be traced, and all images made from it. If the image was not seen yet, it is
    /// not recorded when it appears.
    pub fn refuse(&mut self, image: Image) {
        self.refusals += 1;
        self.refused.insert(image);
        // One pass is enough, because an image always begins after the image that it was made from.
        for &begun in &self.begun {
            if self
                .made_from
                .get(&begun)
                .is_some_and(|from| self.refused.contains(from))
            {
                self.refused.insert(begun);
            }
        }
        let Self {
            recorded,
            current,
            refused,
            ..
        } = self;
        recorded.retain(|image| !refused.contains(&image));
        current.retain(|&tgid, &mut number| !refused.contains(&Image { tgid, number }));
    }

    /// The number of calls of [`FollowedMappings::refuse`]. As long as this number stays the same, no image was refused.
    #[must_use]
    pub fn refusals(&self) -> u64 {
        self.refusals
    }

    /// Whether [`FollowedMappings::refuse`] has forgotten this image.
    #[must_use]
    pub fn is_refused(&self, image: Image) -> bool {
        self.refused.contains(&image)
    }

    /// Begins an image that was made from another image, unless it may not be traced.
    fn begin_from(&mut self, from: Image, image: Image) {
        if self.refused.contains(&image) {
            self.current.remove(&image.tgid);
            self.recorded.remove(image);
            return;
        }
        self.made_from.insert(image, from);
        self.begin(image);
    }

    fn begin(&mut self, image: Image) {
        self.current.insert(image.tgid, image.number);
        self.begun.push(image);
    }

    fn current_image(&self, tgid: u32) -> Option<Image> {
        let number = *self.current.get(&tgid)?;
        Some(Image { tgid, number })
    }

    fn apply(&mut self, change: &Change) {
        match change {
            Change::Mapped { tgid, mapping } => {
                if let Some(image) = self.current_image(*tgid) {
                    self.dropped |= self.recorded.add(image, mapping);
                }
            }
            Change::Executed { tgid } => {
                if let Some(before) = self.current_image(*tgid) {
                    let image = Image {
                        tgid: before.tgid,
                        number: before.number + 1,
                    };
                    self.recorded.begin(image);
                    self.begin_from(before, image);
                }
            }
            Change::Forked { parent, child } => match self.current_image(*parent) {
                Some(parent) => {
                    let image = Image {
                        tgid: *child,
                        number: parent.number,
                    };
                    // If an image with this id was refused, it belonged to an earlier process.
                    self.refused.remove(&image);
                    self.dropped |= self.recorded.inherit(parent, image);
                    self.begin_from(parent, image);
                }
                // The id now belongs to a process that is not followed.
                None => drop(self.current.remove(child)),
            },
        }
    }

    /// Reads the mappings of a running process.
    #[cfg(test)]
    pub(crate) fn of_process(tgid: u32) -> Self {
        let mut mappings = Self::default();
        mappings.begin(Image { tgid, number: 0 });
        let read = mappings.read_process(tgid, false).expect("it runs");
        mappings.refresh(tgid, &read);
        mappings
    }

    /// Opens and holds the file of a mapping, and returns its identity. If no further file can be held, files that no image needs
    /// are closed first.
    fn hold_mapped(&mut self, tid: u32, mapping: &Mapping, named: NamedBy, is_elsewhere: bool) -> FileIdentity {
        let sought = SoughtFile {
            named,
            tid,
            start: mapping.start,
            end: mapping.end,
            path: &mapping.path,
            is_elsewhere,
        };
        if self.held.is_full() && std::mem::take(&mut self.dropped) {
            self.held.keep_only(&self.recorded.files());
        }
        self.held.hold(&sought)
    }

    /// Replaces the path of a deleted file by its former path, without the suffix that the kernel appends.
    fn show_path_of(&self, mapping: &mut Mapping) {
        if !mapping.path.as_os_str().as_bytes().ends_with(b" (deleted)") {
            return;
        }
        match self.file(mapping) {
            Ok(held) => held.shown_path().clone_into(&mut mapping.path),
            Err(MissingFile::Replaced | MissingFile::Deleted) => mapping.path = without_deleted(&mapping.path, true),
            Err(_) => {}
        }
    }

    /// Reads the executable mappings of a process from `/proc` and holds their files; `None` if the process has no maps any more.
    fn read_process(&mut self, tgid: u32, is_elsewhere: bool) -> Option<Reread> {
        let (tid, lines) = maps_of(tgid)?;
        let mut mapped = Vec::new();
        for line in lines.into_iter().filter(|line| line.is_executable) {
            let name = line.name.as_os_str().as_bytes();
            let is_anonymous = name.is_empty() || name.starts_with(b"[anon");
            let mut mapping = Mapping {
                start: line.start,
                end: line.end,
                file_offset: line.offset,
                path: if is_anonymous {
                    "//anon".into()
                } else {
                    line.name.clone()
                },
                file: None,
            };
            if let Some(place) = line.place() {
                mapping.file = Some(self.hold_mapped(tid, &mapping, NamedBy::Maps(place), is_elsewhere));
                self.show_path_of(&mut mapping);
            }
            mapped.push(mapping);
        }
        let executable = HeldFile::open(&PathBuf::from(format!("/proc/{tid}/exe")));
        Some(Reread {
            mapped,
            executable: executable.ok().map(|file| file.identity()),
        })
    }

    /// Adds the mappings that were read from `/proc` to the current image of a process.
    fn refresh(&mut self, tgid: u32, read: &Reread) {
        let Some(image) = self.current_image(tgid) else {
            return;
        };
        for mapping in &read.mapped {
            self.dropped |= self.recorded.add(image, mapping);
        }
        self.recorded.note_reading(image, read.executable);
    }
}

/// The mappings and the executable of a process as read from `/proc`.
#[derive(Debug, Default)]
struct Reread {
    mapped: Vec<Mapping>,
    executable: Option<FileIdentity>,
}

#[derive(Clone, Debug)]
enum Change {
    Mapped { tgid: u32, mapping: Mapping },
    Executed { tgid: u32 },
    Forked { parent: u32, child: u32 },
}

impl Change {
    /// The process whose whole memory the change replaces, if it does.
    fn replaces_memory_of(&self) -> Option<u32> {
        match self {
            Self::Executed { tgid } => Some(*tgid),
            Self::Forked { child, .. } => Some(*child),
            Self::Mapped { .. } => None,
        }
    }
}

/// Follows the mappings of processes while they run.
///
/// Any program on the machine can fill the ring buffers of mappings. If reports are lost there, `/proc/PID/maps` of each followed
/// process is read again. Forks and `execve` have separate ring buffers, which mappings cannot fill.
pub struct Tracker {
    mappings_rings: Vec<Sampler>,
    processes_rings: Vec<Sampler>,
    /// Changes, with their times, that were read but are newer than the last horizon.
    held_back: Vec<(u64, Change)>,
    mappings: FollowedMappings,
    /// Processes whose maps must be read, because reports may have been lost.
    to_read: VecDeque<u32>,
    /// Whether the last reading lost reports. They may be newer than its horizon, so all maps are read again after the next
    /// reading.
    lost_lately: bool,
    /// Whether a fork or an `execve` may have been lost, so that [`Tracker::renumber`] must be called.
    lost_processes: bool,
    /// Processes for which a path can mean another file than for this process.
    elsewhere: HashSet<u32>,
    /// Processes that had already ended when their maps should be read.
    ended: HashSet<u32>,
}

impl Tracker {
    /// Opens the ring buffers on every online CPU.
    ///
    /// # Errors
    ///
    /// If `perf_event_open` fails (it needs `CAP_PERFMON` or `perf_event_paranoid` ≤ 0).
    pub fn start() -> io::Result<Self> {
        let cpus = online_cpus()?;
        let listen = |to: fn(&mut Builder<'_>), bytes| {
            cpus.iter()
                .map(|&cpu| listen_on(cpu, to, bytes))
                .collect::<io::Result<Vec<_>>>()
        };
        Ok(Self {
            // These are opened first, so that no fork or `execve` is missed of a process whose mappings are reported.
            processes_rings: listen(
                |builder| {
                    builder.comm(true).comm_exec(true).task(true);
                },
                PROCESSES_RING_BYTES,
            )?,
            mappings_rings: listen(
                |builder| {
                    builder.mmap(true).mmap2(true);
                },
                MAPPINGS_RING_BYTES,
            )?,
            held_back: Vec::new(),
            mappings: FollowedMappings::default(),
            to_read: VecDeque::new(),
            lost_lately: false,
            lost_processes: false,
            elsewhere: HashSet::new(),
            ended: HashSet::new(),
        })
    }

    /// Starts to follow a process and the children that it creates from now on.
    pub fn follow(&mut self, tgid: u32) {
        let image = Image { tgid, number: 0 };
        self.mappings.recorded.begin(image);
        self.mappings.begin(image);
        if has_own_root(tgid) {
            self.elsewhere.insert(tgid);
        }
        if let Some(read) = self.mappings.read_process(tgid, self.elsewhere.contains(&tgid)) {
            self.mappings.refresh(tgid, &read);
        }
    }

    /// Opens and holds a file that will be executed.
    ///
    /// # Errors
    ///
    /// If the file cannot be opened or is not a regular file.
    pub fn hold(&mut self, path: &Path) -> io::Result<Arc<HeldFile>> {
        self.mappings.hold(path)
    }

    /// Opens and holds a file that has the path `shown` in the target and the path `path` in this process.
    ///
    /// # Errors
    ///
    /// If the file cannot be opened or is not a regular file.
    pub fn hold_as(&mut self, path: &Path, shown: &Path) -> io::Result<Arc<HeldFile>> {
        self.mappings.hold_as(path, shown)
    }

    /// Whether this process is followed.
    #[must_use]
    pub fn follows(&self, tgid: u32) -> bool {
        self.mappings.current.contains_key(&tgid)
    }

    /// Reads and applies the new reports, and reads the maps of some processes whose reports were lost. To be called regularly.
    pub fn tick(&mut self) {
        self.read_until(now_ns());
        self.read_again();
        let has_ended = |tgid| !Path::new(&format!("/proc/{tgid}")).exists();
        for tgid in self.mappings.forget_ended(has_ended) {
            self.elsewhere.remove(&tgid);
            self.ended.remove(&tgid);
        }
    }

    /// Whether a fork or an `execve` may have been lost. If so, [`Tracker::renumber`] must be called.
    #[must_use]
    pub fn has_lost_processes(&self) -> bool {
        self.lost_processes
    }

    /// Synchronizes the current images with `numbers`: the processes that the kernel side follows, each with the number of its
    /// image.
    pub fn renumber(&mut self, numbers: &HashMap<u32, u32>) {
        self.lost_processes = false;
        for (&tgid, &number) in numbers {
            let image = Image { tgid, number };
            if self.mappings.is_current(image) {
                continue;
            }
            let missed = match self.mappings.current.get(&tgid) {
                // The images between the last known one and the one that runs now.
                Some(&known) => number.saturating_sub(known).saturating_sub(1),
                None => 0,
            };
            self.mappings.recorded.lost += u64::from(missed);
            self.mappings.recorded.begin(image);
            self.mappings.recorded.mark_stale(image);
            self.mappings.begin(image);
            self.to_read.push_back(tgid);
        }
    }

    /// Forgets images of programs that may not be traced, and all images made from them.
    pub fn refuse(&mut self, images: impl IntoIterator<Item = Image>) {
        for image in images {
            self.mappings.refuse(image);
        }
    }

    /// The mappings recorded so far.
    #[must_use]
    pub fn mappings(&self) -> &FollowedMappings {
        &self.mappings
    }

    /// Reads the remaining reports, stops, and returns all mappings.
    #[must_use]
    pub fn finish(mut self) -> FollowedMappings {
        self.read_until(u64::MAX);
        for _ in 0..=self.to_read.len() / MOST_READ_AGAIN {
            self.read_again();
        }
        self.mappings.recorded.count_losses();
        self.mappings
    }

    /// Reads all ring buffers, and returns whether reports may have been lost.
    fn read_rings(&mut self, changes: &mut Vec<(u64, Change)>) -> bool {
        let lost_processes = read_rings(&mut self.processes_rings, PROCESSES_RING_BYTES, changes);
        self.lost_processes |= lost_processes;
        read_rings(&mut self.mappings_rings, MAPPINGS_RING_BYTES, changes) || lost_processes
    }

    fn read_until(&mut self, horizon_ns: u64) {
        let mut changes = std::mem::take(&mut self.held_back);
        let lost = self.read_rings(&mut changes);
        changes.sort_by_key(|&(time_ns, _)| time_ns);
        for (time_ns, change) in changes {
            if time_ns <= horizon_ns {
                self.apply(change);
            } else {
                self.held_back.push((time_ns, change));
            }
        }
        if lost || self.lost_lately {
            self.read_all_again();
        }
        self.lost_lately = lost;
    }

    fn apply(&mut self, mut change: Change) {
        match &mut change {
            Change::Mapped { tgid, mapping } if self.follows(*tgid) => {
                if let Some(identity) = mapping.file {
                    let is_elsewhere = self.elsewhere.contains(tgid);
                    self.mappings
                        .hold_mapped(*tgid, mapping, NamedBy::Report(identity), is_elsewhere);
                    self.mappings.show_path_of(mapping);
                }
            }
            Change::Executed { tgid } if self.follows(*tgid) => self.note_root(*tgid),
            Change::Forked { parent, child } if self.follows(*parent) => {
                self.ended.remove(child);
                if self.elsewhere.contains(parent) {
                    self.elsewhere.insert(*child);
                } else {
                    self.elsewhere.remove(child);
                }
            }
            _ => {}
        }
        self.mappings.apply(&change);
    }

    /// Records whether a path can mean another file for a process than for this one. If the process has ended, nothing changes.
    fn note_root(&mut self, tgid: u32) {
        if has_own_root(tgid) {
            self.elsewhere.insert(tgid);
        }
    }

    /// Marks all current images as stale, and queues their processes for reading their maps.
    fn read_all_again(&mut self) {
        let waiting: HashSet<u32> = self.to_read.iter().copied().collect();
        for (&tgid, &number) in &self.mappings.current {
            self.mappings.recorded.mark_stale(Image { tgid, number });
            if !waiting.contains(&tgid) && !self.ended.contains(&tgid) {
                self.to_read.push_back(tgid);
            }
        }
    }

    /// Reads the maps of up to [`MOST_READ_AGAIN`] queued processes.
    fn read_again(&mut self) {
        let count = self.to_read.len().min(MOST_READ_AGAIN);
        if count == 0 {
            return;
        }
        let tgids: Vec<u32> = self.to_read.drain(..count).collect();
        let read: Vec<_> = tgids
            .into_iter()
            .map(|tgid| (tgid, self.mappings.read_process(tgid, self.elsewhere.contains(&tgid))))
            .collect();
        // If a process has executed another program since the rings were read, its maps belong to the new image and must not be
        // added to the old one. So the rings are read again to find such processes.
        let mut changes = std::mem::take(&mut self.held_back);
        self.lost_lately |= self.read_rings(&mut changes);
        let replaced: HashSet<u32> = changes
            .iter()
            .filter_map(|(_, change)| change.replaces_memory_of())
            .collect();
        self.held_back = changes;
        for (tgid, read) in read {
            match read {
                Some(read) if !replaced.contains(&tgid) => self.mappings.refresh(tgid, &read),
                // The process is queued again; its maps are read after its new image is known.
                Some(_) => self.to_read.push_back(tgid),
                None => drop(self.ended.insert(tgid)),
            }
        }
    }
}

/// Reads the maps of a process, and returns them with the id of the thread that they were read from. If the main thread has
/// ended, its maps are empty, and those of another thread are read.
fn maps_of(tgid: u32) -> Option<(u32, Vec<proc_maps::ProcMapping>)> {
    let read = |tid: u32| {
        let lines = proc_maps::read(Path::new(&format!("/proc/{tid}/maps"))).ok()?;
        (!lines.is_empty()).then_some((tid, lines))
    };
    read(tgid).or_else(|| {
        std::fs::read_dir(format!("/proc/{tgid}/task"))
            .ok()?
            .filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok())
            .find_map(read)
    })
}

/// Reads the ring buffers, at most `most_bytes` of each, and returns whether reports may have been lost.
fn read_rings(rings: &mut [Sampler], most_bytes: usize, changes: &mut Vec<(u64, Change)>) -> bool {
    let mut lost = false;
    for ring in rings {
        let mut bytes_left = most_bytes;
        while bytes_left > 0
            && let Some(record) = ring.next_record()
        {
            // With `sample_id_all` and only `PERF_SAMPLE_TIME`, every record except `MMAP` ends with its time stamp.
            let bytes = record.to_contiguous();
            bytes_left = bytes_left.saturating_sub(REPORT_HEADER_BYTES + bytes.len());
            let time_ns = bytes.last_chunk().map_or(0, |bytes| u64::from_ne_bytes(*bytes));
            match record.parse_record() {
                Ok(Record::Lost(_)) | Err(_) => lost = true,
                Ok(parsed) => changes.extend(change_of(&parsed, record.misc()).map(|change| (time_ns, change))),
            }
        }
        // The rest of the ring is read next time, after newer records of other CPUs were applied, so it counts as lost. If the ring
        // buffer had no space for another report, the last ones may be lost: the kernel reports the loss only before the next
        // report that it has space for.
        lost |= bytes_left < LONGEST_REPORT_BYTES;
    }
    lost
}

fn online_cpus() -> io::Result<Vec<usize>> {
    let text = std::fs::read_to_string("/sys/devices/system/cpu/online")?;
    let bad = || io::Error::new(io::ErrorKind::InvalidData, "the kernel's list of CPUs is malformed");
    let mut cpus = Vec::new();
    for range in text.trim().split(',') {
        let (first, last) = range.split_once('-').unwrap_or((range, range));
        let first: usize = first.parse().map_err(|_| bad())?;
        let last: usize = last.parse().map_err(|_| bad())?;
        cpus.extend(first..=last);
    }
    Ok(cpus)
}

fn listen_on(cpu: usize, to: fn(&mut Builder<'_>), ring_bytes: usize) -> io::Result<Sampler> {
    let mut builder = Builder::new(Software::DUMMY);
    builder
        .any_pid()
        .one_cpu(cpu)
        .enabled(true)
        .sample(SampleFlag::TIME)
        .sample_id_all(true)
        .clockid(Some(perf_event::Clock::MONOTONIC));
    to(&mut builder);
    builder.build()?.sampled(ring_bytes)
}

fn now_ns() -> u64 {
    clock_gettime(ClockId::CLOCK_MONOTONIC).map_or(u64::MAX, |now| {
        now.tv_sec() as u64 * 1_000_000_000 + now.tv_nsec() as u64
    })
}

fn change_of(record: &Record<'_>, misc: u16) -> Option<Change> {
    match record {
        Record::Mmap2(mmap) => Some(Change::Mapped {
            tgid: mmap.pid,
            mapping: Mapping {
                start: mmap.addr,
                end: mmap.addr.saturating_add(mmap.len),
                file_offset: mmap.pgoff,
                path: PathBuf::from(OsStr::from_bytes(&mmap.filename)),
                file: identity_in(mmap),
            },
        }),
        Record::Comm(comm) if misc & MISC_COMM_EXEC != 0 => Some(Change::Executed { tgid: comm.pid }),
        Record::Fork(fork) if fork.pid != fork.ppid => Some(Change::Forked {
            parent: fork.ppid,
            child: fork.pid,
        }),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use ctxtrace_format::mappings::{MOST_MAPPINGS, NoMapping};

    const IMAGE: Image = Image { tgid: 7, number: 0 };

    fn identity(path: &str) -> FileIdentity {
        FileIdentity {
            major: 0,
            minor: 1,
            inode: path
                .bytes()
                .fold(1, |sum: u64, byte| sum.wrapping_mul(31).wrapping_add(u64::from(byte))),
            generation: Some(3),
        }
    }

    fn mapping(start: u64, path: &str) -> Mapping {
        Mapping {
            start,
            end: start + 0x1000,
            file_offset: 0,
            path: path.into(),
            file: Some(identity(path)),
        }
    }

    fn anonymous(start: u64) -> Mapping {
        Mapping {
            file: None,
            ..mapping(start, "//anon")
        }
    }

    fn mapped(tgid: u32, mapping: Mapping) -> Change {
        Change::Mapped { tgid, mapping }
    }

    fn mappings(changes: &[Change]) -> FollowedMappings {
        let mut mappings = FollowedMappings::default();
        mappings.current.insert(7, 0);
        for change in changes {
            mappings.apply(change);
        }
        mappings
    }

    fn path(mappings: &FollowedMappings, tgid: u32, number: u32, address: u64) -> Result<&str, NoMapping> {
        let found = mappings.recorded.find(Image { tgid, number }, address)?;
        Ok(found.path.to_str().expect("text"))
    }

    #[test]
    fn images_of_ended_processes_are_kept_up_to_a_number() {
        let mut mappings = mappings(&[mapped(7, mapping(0x1000, "/parent"))]);
        mappings.begun.push(Image { tgid: 7, number: 0 });
        let count = 5 * MOST_ENDED_IMAGES as u32;
        let (mut number, mut seen) = (0, 0);
        for child in 100..100 + count {
            mappings.apply(&Change::Forked { parent: 7, child });
            mappings.apply(&Change::Executed { tgid: child });
            mappings.apply(&mapped(child, mapping(0x1000, "/child")));
            let (begun, next) = mappings.begun_since(number);
            seen += begun.len() as u32;
            number = next;
            mappings.forget_ended(|tgid| tgid != 7 && tgid != 101);
            assert!(mappings.recorded.images().count() <= 2 * MOST_ENDED_IMAGES + 2);
            assert!(mappings.current.len() <= 2 * MOST_ENDED_IMAGES + 2);
        }
        assert_eq!(seen, 1 + 2 * count, "each image is returned once");
        assert_eq!(path(&mappings, 7, 0, 0x1800), Ok("/parent"), "the process lives");
        assert_eq!(path(&mappings, 101, 1, 0x1800), Ok("/child"), "the process lives");
        assert_eq!(path(&mappings, 101, 0, 0x1800), Err(NoMapping::Forgotten));
        assert_eq!(path(&mappings, 100, 1, 0x1800), Err(NoMapping::Forgotten));
        assert_eq!(path(&mappings, 99 + count, 1, 0x1800), Ok("/child"));
    }

    #[test]
    fn children_have_the_mappings_that_their_parent_had() {
        let mut mappings = mappings(&[mapped(7, mapping(0x1000, "/parent"))]);
        for (child, place) in [(8, 0x2000), (9, 0x3000)] {
            mappings.apply(&Change::Forked { parent: 7, child });
            mappings.apply(&mapped(child, mapping(place, "/own")));
        }
        for child in [8, 9] {
            assert_eq!(path(&mappings, child, 0, 0x1800), Ok("/parent"));
        }
        assert_eq!(path(&mappings, 8, 0, 0x2800), Ok("/own"));
        assert_eq!(path(&mappings, 8, 0, 0x3800), Err(NoMapping::InNoFile));
        assert_eq!(path(&mappings, 7, 0, 0x2800), Err(NoMapping::InNoFile));
    }

    #[test]
    fn an_execve_begins_a_new_image_and_keeps_the_old_one() {
        let mappings = mappings(&[
            mapped(7, mapping(0x1000, "/old")),
            Change::Executed { tgid: 7 },
            mapped(7, mapping(0x1000, "/new")),
        ]);
        assert_eq!(path(&mappings, 7, 0, 0x1800), Ok("/old"));
        assert_eq!(path(&mappings, 7, 1, 0x1800), Ok("/new"));
        assert_eq!(path(&mappings, 7, 1, 0x2000), Err(NoMapping::InNoFile));
        assert_eq!(path(&mappings, 8, 1, 0x2000), Err(NoMapping::NotFollowed));
    }

    #[test]
    fn a_forked_child_has_its_parents_memory_and_then_its_own() {
        let mappings = mappings(&[
            Change::Executed { tgid: 7 },
            mapped(7, mapping(0x1000, "/before")),
            Change::Forked { parent: 7, child: 8 },
            mapped(7, mapping(0x5000, "/after")),
        ]);
        assert_eq!(path(&mappings, 8, 1, 0x1000), Ok("/before"));
        assert_eq!(path(&mappings, 8, 1, 0x5000), Err(NoMapping::InNoFile));
    }

    #[test]
    fn where_two_files_were_mapped_neither_is_named() {
        let mappings = mappings(&[
            mapped(7, mapping(0x1000, "/first")),
            mapped(7, mapping(0x1800, "/second")),
        ]);
        assert_eq!(path(&mappings, 7, 0, 0x1000), Ok("/first"));
        assert_eq!(path(&mappings, 7, 0, 0x1800), Err(NoMapping::SeveralFiles));
        assert_eq!(path(&mappings, 7, 0, 0x2000), Ok("/second"));
    }

    #[test]
    fn a_file_that_was_replaced_at_its_path_is_another_file() {
        let replaced = Mapping {
            file: Some(identity("other")),
            ..mapping(0x1000, "/lib/x.so")
        };
        let again = Mapping {
            file: Some(FileIdentity {
                generation: Some(4),
                ..identity("/lib/x.so")
            }),
            ..mapping(0x1000, "/lib/x.so")
        };
        for other in [replaced, again] {
            let mappings = mappings(&[mapped(7, mapping(0x1000, "/lib/x.so")), mapped(7, other)]);
            assert_eq!(path(&mappings, 7, 0, 0x1000), Err(NoMapping::SeveralFiles));
        }
    }

    #[test]
    fn what_is_mapped_again_where_it_was_needs_no_record() {
        let mut changes = Vec::new();
        for _ in 0..100 {
            changes.extend([mapped(7, mapping(0x1000, "/plugin")), mapped(7, anonymous(0x9000))]);
        }
        let mappings = mappings(&changes);
        assert_eq!(mappings.recorded.of_image(IMAGE).len(), 2);
        assert_eq!(path(&mappings, 7, 0, 0x1000), Ok("/plugin"));
    }

    #[test]
    fn mappings_that_touch_and_agree_are_one() {
        let next = Mapping {
            file_offset: 0x1000,
            ..mapping(0x2000, "/file")
        };
        let mappings = mappings(&[
            mapped(7, next.clone()),
            mapped(7, mapping(0x1000, "/file")),
            mapped(7, anonymous(0x5000)),
            mapped(7, anonymous(0x6000)),
        ]);
        let known = mappings.recorded.of_image(IMAGE);
        assert_eq!(known.len(), 2);
        assert_eq!(known[0].offset_of(0x2010), next.offset_of(0x2010));
        assert_eq!((known[1].start, known[1].end), (0x5000, 0x7000));
    }

    #[test]
    fn code_whose_report_was_lost_is_counted_once_for_each_image() {
        let mut mappings = mappings(&[
            mapped(7, mapping(0x1000, "/program")),
            Change::Forked { parent: 7, child: 8 },
        ])
        .recorded;
        let other = Image { tgid: 8, number: 0 };
        let (known, unknown) = ([0x1800], [0x1800, 0x9000]);
        // No report was lost, so the code is in no file.
        mappings.count_lost_code([(IMAGE, &unknown[..])]);
        assert_eq!(mappings.lost, 0);
        // Reports were lost because of another program, and the processes ended before their maps could be read again.
        mappings.mark_stale(IMAGE);
        mappings.mark_stale(other);
        mappings.count_losses();
        mappings.count_lost_code([(IMAGE, &unknown[..]), (IMAGE, &unknown[1..]), (other, &known[..])]);
        assert_eq!(mappings.lost, 1);
        assert_eq!(mappings.find(IMAGE, 0x9000), Err(NoMapping::Lost));
        // An image without any known file was already counted.
        mappings.remove(other);
        mappings.begin(other);
        mappings.mark_stale(other);
        mappings.count_lost_code([(other, &unknown[..])]);
        assert_eq!(mappings.lost, 1);
    }

    #[test]
    fn a_refused_program_and_what_it_starts_are_not_kept() {
        let is_known = |mappings: &FollowedMappings, tgid, number| {
            mappings
                .recorded
                .images()
                .any(|(image, _)| image == Image { tgid, number })
        };
        let changes = [
            mapped(7, mapping(0x1000, "/shell")),
            Change::Executed { tgid: 7 },
            mapped(7, mapping(0x1000, "/refused")),
            Change::Forked { parent: 7, child: 8 },
            Change::Executed { tgid: 8 },
            mapped(8, mapping(0x1000, "/child")),
        ];
        let refused = Image { tgid: 7, number: 1 };
        // The refusal may be known before the rings are read or after it.
        let mut before = mappings(&changes[..1]);
        before.refuse(refused);
        changes[1..].iter().for_each(|change| before.apply(change));
        let mut after = mappings(&changes);
        after.refuse(refused);
        for mappings in [before, after] {
            assert!(is_known(&mappings, 7, 0));
            for (tgid, number) in [(7, 1), (8, 1), (8, 2)] {
                assert!(!is_known(&mappings, tgid, number), "{tgid} {number}");
            }
            assert!(mappings.is_refused(refused) && mappings.current.is_empty());
        }
    }

    #[test]
    fn too_many_mappings_are_dropped_with_a_reason() {
        let changes: Vec<Change> = (0..=MOST_MAPPINGS as u64)
            .map(|index| mapped(7, mapping(0x2000 * index, "/flood")))
            .collect();
        let mappings = mappings(&changes);
        assert_eq!(path(&mappings, 7, 0, 0x2000), Err(NoMapping::TooMany));
        assert!(mappings.recorded.of_image(IMAGE).is_empty());
        assert!(mappings.dropped);
    }

    #[test]
    fn processes_that_are_not_followed_leave_nothing_behind() {
        let mappings = mappings(&[
            mapped(99, mapping(0x1000, "/foreign")),
            Change::Forked { parent: 99, child: 100 },
            Change::Executed { tgid: 100 },
        ]);
        assert!(mappings.recorded.images().next().is_none());
    }

    #[test]
    fn an_id_that_another_process_gets_is_followed_no_more() {
        let mappings = mappings(&[
            mapped(7, mapping(0x1000, "/ours")),
            Change::Forked { parent: 99, child: 7 },
            mapped(7, mapping(0x1000, "/theirs")),
        ]);
        assert_eq!(path(&mappings, 7, 0, 0x1000), Ok("/ours"));
    }

    #[test]
    fn two_processes_of_one_id_have_no_name_where_they_differ() {
        let mappings = mappings(&[
            Change::Forked { parent: 7, child: 8 },
            mapped(8, mapping(0x1000, "/first")),
            mapped(7, mapping(0x1000, "/second")),
            Change::Forked { parent: 7, child: 8 },
        ]);
        assert_eq!(path(&mappings, 8, 0, 0x1000), Err(NoMapping::SeveralFiles));
    }

    #[test]
    fn the_executed_file_comes_first_wherever_it_lies() {
        let mut mappings = mappings(&[]);
        let read = Reread {
            mapped: vec![anonymous(0x1000), mapping(0x3000, "/lib"), mapping(0x5000, "/program")],
            executable: Some(identity("/program")),
        };
        mappings.refresh(7, &read);
        let files: Vec<&Path> = mappings
            .recorded
            .files_of(IMAGE)
            .map(|mapping| mapping.path.as_path())
            .collect();
        assert_eq!(files, [Path::new("/program"), Path::new("/lib")]);
    }

    #[test]
    fn only_images_without_a_file_are_lost() {
        let mut mappings = mappings(&[
            mapped(7, mapping(0x1000, "/known")),
            Change::Forked { parent: 7, child: 8 },
            Change::Executed { tgid: 8 },
            Change::Forked { parent: 7, child: 9 },
            Change::Executed { tgid: 9 },
        ]);
        for (tgid, number) in [(7, 0), (8, 0), (8, 1)] {
            mappings.recorded.mark_stale(Image { tgid, number });
        }
        mappings.recorded.count_losses();
        assert_eq!(mappings.recorded.lost, 1);
        assert_eq!(path(&mappings, 8, 1, 0x1000), Err(NoMapping::Lost));
        assert_eq!(path(&mappings, 9, 1, 0x1000), Err(NoMapping::InNoFile));
    }
}
