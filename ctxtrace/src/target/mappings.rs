//! Which file lies where in a process's memory, for as long as the report needs to know: longer than the process lives.
//!
//! `/proc/PID/maps` is gone with the process, and a short process ends before it can be read. So the kernel is asked to
//! report: a `perf` event that counts nothing (`PERF_COUNT_SW_DUMMY`) on each CPU reports every executable mapping
//! (`PERF_RECORD_MMAP2`), every `execve` (`PERF_RECORD_COMM`) and every fork while they happen. Opened for a CPU and not
//! for a process, it costs nothing at a context switch.
//!
//! A mapping is known by its file, not by its path: see [`super::held`].
//!
//! The records of several CPUs are put in order by their `CLOCK_MONOTONIC` time stamps before they are applied, and what is
//! younger than the moment reading began waits for the next reading: an older record may still be on its way.

use std::collections::hash_map::Entry;
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
use serde::{Deserialize, Deserializer, Serialize, Serializer};

use super::attach::has_own_root;
use super::held::{FileIdentity, HeldFile, HeldFiles, MissingFile, NamedBy, SoughtFile, identity_in, without_deleted};
use super::proc_maps;

/// Space on each CPU for reports of mappings, bytes: some 2,500 between two readings. Any program can fill it.
const MAPPINGS_RING_BYTES: usize = 256 << 10;
/// Space on each CPU for reports of forks and of `execve`, bytes: some 5,000 between two readings.
const PROCESSES_RING_BYTES: usize = 256 << 10;
/// Most mappings kept of one image. One that makes more of them, none of which touch, has no names.
const MOST_MAPPINGS: usize = 8_192;
/// Images of ended processes whose mappings are kept when others are forgotten, those that began last; in between there are up to twice
/// as many.
pub const MOST_ENDED_IMAGES: usize = 16_384;
/// Most processes whose maps are read again in one reading of the rings.
const MOST_READ_AGAIN: usize = 64;
/// `PERF_RECORD_MISC_COMM_EXEC` (kernel: `include/uapi/linux/perf_event.h`): the name changed by an `execve`.
const MISC_COMM_EXEC: u16 = 1 << 13;

/// One executable mapping.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Mapping {
    /// First address.
    pub start: u64,
    /// First address behind it.
    pub end: u64,
    /// Where in the file it begins, bytes.
    pub file_offset: u64,
    /// The file as the process saw it, or what the kernel shows in its place, as `[vdso]` or `//anon`.
    #[serde(with = "super::stored_path")]
    pub path: PathBuf,
    /// Which file it is. `None` if it is of no file, and in captures of releases that did not record it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub file: Option<FileIdentity>,
}

impl Mapping {
    /// An address in it as a place in the file: `redis-server+0x1a2b`.
    #[must_use]
    pub fn place(&self, address: u64) -> String {
        format!("{}+{:#x}", self.file_name(), self.offset_of(address))
    }

    /// The last part of the path.
    #[must_use]
    pub fn file_name(&self) -> String {
        let name = self.path.file_name().unwrap_or(self.path.as_os_str());
        name.to_string_lossy().into_owned()
    }

    /// Where in the file an address of it lies.
    #[must_use]
    pub fn offset_of(&self, address: u64) -> u64 {
        address.wrapping_sub(self.start).wrapping_add(self.file_offset)
    }

    /// Whether both mappings have the same bytes of the same file at the same addresses, as far as they reach.
    fn agrees(&self, other: &Self) -> bool {
        match (&self.file, &other.file) {
            (Some(ours), Some(theirs)) => ours.is_same(theirs) && self.offset_of(0) == other.offset_of(0),
            (None, None) if self.path.is_absolute() && !self.path.starts_with("//anon") => {
                self.path == other.path && self.offset_of(0) == other.offset_of(0)
            }
            (None, None) => self.path == other.path,
            _ => false,
        }
    }

    fn touches(&self, other: &Self) -> bool {
        self.start <= other.end && other.start <= self.end
    }

    /// Extends the mapping over another one that agrees with it and touches it.
    fn extend_over(&mut self, other: &Self) {
        if other.start < self.start {
            self.file_offset = other.file_offset;
            self.start = other.start;
        }
        self.end = self.end.max(other.end);
    }
}

/// Why an address is in no mapping that is known.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NoMapping {
    /// Nothing is known of the process.
    NotFollowed,
    /// No file was mapped there.
    InNoFile,
    /// Several files were mapped there one after the other, and which of them it was then is not known.
    SeveralFiles,
    /// The program had more mappings than are kept.
    TooMany,
    /// The process has ended, and so many began after it that its mappings were not kept.
    Forgotten,
    /// The report of it may have been lost.
    Lost,
}

impl NoMapping {
    /// The reason, as a frame shows it.
    #[must_use]
    pub fn in_words(self) -> &'static str {
        match self {
            Self::NotFollowed => "unknown: the process was not followed",
            Self::InNoFile => "unknown: not in any file",
            Self::SeveralFiles => "unknown: several files were mapped there one after the other",
            Self::TooMany => "unknown: the program mapped code at more places than are kept",
            Self::Forgotten => "unknown: the process ended early, and the mappings of so many are not kept",
            Self::Lost => "unknown: the report of the mapping was lost",
        }
    }
}

/// The mappings of one image. Forked processes share their parent's until they map something themselves.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct ImageMappings {
    mapped: Arc<Vec<Mapping>>,
    /// The file that was executed, if it is known from elsewhere than the first mapping.
    executable: Option<FileIdentity>,
    /// There were more than [`MOST_MAPPINGS`], and none is kept.
    overflowed: bool,
    /// Reports may have been lost while the image ran, and its maps have not been read since.
    is_stale: bool,
}

impl Serialize for ImageMappings {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        self.mapped.as_slice().serialize(serializer)
    }
}

impl<'de> Deserialize<'de> for ImageMappings {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        Ok(Self {
            mapped: Arc::new(Vec::deserialize(deserializer)?),
            ..Self::default()
        })
    }
}

impl ImageMappings {
    /// Whether reports were lost and no file is known.
    fn knows_no_file(&self) -> bool {
        self.is_stale && self.mapped.iter().all(|mapping| mapping.file.is_none())
    }

    /// Adds a mapping. What the image has there already needs no second record. Returns whether there were too many, so that
    /// all were dropped.
    fn add(&mut self, mapping: &Mapping) -> bool {
        if self.overflowed {
            return false;
        }
        let known = self
            .mapped
            .iter()
            .position(|known| known.agrees(mapping) && known.touches(mapping));
        if let Some(index) = known {
            let known = &self.mapped[index];
            if mapping.start < known.start || mapping.end > known.end {
                Arc::make_mut(&mut self.mapped)[index].extend_over(mapping);
            }
        } else if self.mapped.len() < MOST_MAPPINGS {
            Arc::make_mut(&mut self.mapped).push(mapping.clone());
        } else {
            self.overflowed = true;
            self.mapped = Arc::default();
        }
        self.overflowed
    }
}

/// Every mapping seen, by image.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct Mappings {
    by_image: HashMap<Image, ImageMappings>,
    /// Number of the image each process is running.
    #[serde(skip)]
    current: HashMap<u32, u32>,
    /// The images that are kept, in the order in which they began.
    #[serde(skip)]
    begun: Vec<Image>,
    /// How many images were forgotten, which are before those.
    #[serde(default)]
    forgotten: usize,
    /// At so many images it is looked which of them have ended; 0 for twice [`MOST_ENDED_IMAGES`].
    #[serde(skip)]
    look_at: usize,
    /// The files, as far as they could be opened in time.
    #[serde(skip)]
    held: HeldFiles,
    /// The image that another one was made from, by a fork or an `execve`.
    #[serde(skip)]
    made_from: HashMap<Image, Image>,
    /// Images of programs that may not be traced: nothing is kept of them.
    #[serde(skip)]
    refused: HashSet<Image>,
    /// How often [`Mappings::refuse`] was called.
    #[serde(skip)]
    refusals: u64,
    /// Mappings were dropped, so files may be held that no image needs.
    #[serde(skip)]
    dropped: bool,
    /// Images of the target whose mappings were lost.
    pub lost: u64,
}

impl Mappings {
    /// Adds an image whose mappings are known.
    #[cfg(test)]
    pub(crate) fn add(&mut self, image: Image, mappings: impl IntoIterator<Item = Mapping>) {
        if !self.by_image.contains_key(&image) {
            self.begin(image);
        }
        let of_image = self.by_image.entry(image).or_default();
        for mapping in mappings {
            of_image.add(&mapping);
        }
    }

    /// Opens a file that is to be executed, and holds it.
    ///
    /// # Errors
    ///
    /// If it cannot be opened, or is no regular file.
    pub fn hold(&mut self, path: &Path) -> io::Result<Arc<HeldFile>> {
        self.hold_as(path, path)
    }

    /// Opens a file that the target shows by another path.
    fn hold_as(&mut self, path: &Path, shown: &Path) -> io::Result<Arc<HeldFile>> {
        self.held.hold_path(path, shown)
    }

    /// The mapping that an address of a process lies in.
    ///
    /// # Errors
    ///
    /// If none is known, or if there were several that contradict each other: stacks are added up over the whole run, so
    /// which of them lay there when one was taken is not known.
    pub fn find(&self, image: Image, address: u64) -> Result<&Mapping, NoMapping> {
        let unknown = || match self.forgotten {
            0 => NoMapping::NotFollowed,
            _ => NoMapping::Forgotten,
        };
        let of_image = self.by_image.get(&image).ok_or_else(unknown)?;
        if of_image.overflowed {
            return Err(NoMapping::TooMany);
        }
        let mut there = of_image
            .mapped
            .iter()
            .filter(|mapping| (mapping.start..mapping.end).contains(&address));
        let first = there.next().ok_or(if of_image.is_stale {
            NoMapping::Lost
        } else {
            NoMapping::InNoFile
        })?;
        if there.all(|other| first.agrees(other)) {
            Ok(first)
        } else {
            Err(NoMapping::SeveralFiles)
        }
    }

    /// The file of a mapping, if it is held.
    ///
    /// # Errors
    ///
    /// If it is not held, with the reason.
    pub fn file(&self, mapping: &Mapping) -> Result<&Arc<HeldFile>, MissingFile> {
        let identity = mapping.file.as_ref().ok_or(MissingFile::OutOfReach)?;
        self.held.get(identity)
    }

    /// Every image, with its mappings.
    pub fn images(&self) -> impl Iterator<Item = (Image, &[Mapping])> {
        self.by_image
            .iter()
            .map(|(&image, mappings)| (image, mappings.mapped.as_slice()))
    }

    /// The mappings of files of an image, that of the executed file first.
    pub fn files_of(&self, image: Image) -> impl Iterator<Item = &Mapping> {
        let of_image = self.by_image.get(&image);
        let mapped = of_image.map_or(&[][..], |mappings| &mappings.mapped);
        let executable = of_image.and_then(|mappings| mappings.executable);
        let files = move || mapped.iter().filter(|mapping| mapping.file.is_some());
        let is_executed = move |mapping: &&Mapping| mapping.file.is_some_and(|file| executable == Some(file));
        let others = files().filter(move |mapping| !is_executed(mapping));
        files().find(is_executed).into_iter().chain(others)
    }

    /// Images in the order in which they began, from the one of this number on, and the number of the next one.
    #[must_use]
    pub fn begun_since(&self, number: usize) -> (&[Image], usize) {
        let begun = self.begun.get(number.saturating_sub(self.forgotten)..);
        (begun.unwrap_or_default(), self.forgotten + self.begun.len())
    }

    /// Whether the mappings of an image are kept.
    #[must_use]
    pub fn has(&self, image: Image) -> bool {
        self.by_image.contains_key(&image)
    }

    /// Forgets the images that began first of those that no process runs any more, if there are twice [`MOST_ENDED_IMAGES`]. Returns the
    /// processes of which nothing is kept.
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
            self.by_image.remove(&image);
            if is_last {
                self.current.remove(&image.tgid);
                ended.push(image.tgid);
            }
        }
        self.forgotten += surplus - kept.len();
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

    /// Forgets a program that may not be traced, and whatever it has started. It may not have been seen yet: then it is not taken up.
    pub fn refuse(&mut self, image: Image) {
        self.refusals += 1;
        self.refused.insert(image);
        // What was made from another image began after it.
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
            by_image,
            current,
            refused,
            ..
        } = self;
        by_image.retain(|image, _| !refused.contains(image));
        current.retain(|&tgid, &mut number| !refused.contains(&Image { tgid, number }));
    }

    /// How often [`Mappings::refuse`] was called: as long as it is the same number, no known image has been forgotten.
    #[must_use]
    pub fn refusals(&self) -> u64 {
        self.refusals
    }

    /// Whether an image is one that [`Mappings::refuse`] has forgotten.
    #[must_use]
    pub fn is_refused(&self, image: Image) -> bool {
        self.refused.contains(&image)
    }

    /// Begins an image that is made from another one, unless it may not be traced.
    fn begin_from(&mut self, from: Image, image: Image) {
        if self.refused.contains(&image) {
            self.current.remove(&image.tgid);
            self.by_image.remove(&image);
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
                    self.dropped |= self.by_image.entry(image).or_default().add(mapping);
                }
            }
            Change::Executed { tgid } => {
                if let Some(before) = self.current_image(*tgid) {
                    let image = Image {
                        tgid: before.tgid,
                        number: before.number + 1,
                    };
                    self.by_image.entry(image).or_default();
                    self.begin_from(before, image);
                }
            }
            Change::Forked { parent, child } => match self.current_image(*parent) {
                Some(parent) => {
                    let image = Image {
                        tgid: *child,
                        number: parent.number,
                    };
                    // The id was another process's before, should that have been refused.
                    self.refused.remove(&image);
                    let inherited = self.by_image.get(&parent).cloned().unwrap_or_default();
                    match self.by_image.entry(image) {
                        Entry::Vacant(entry) => drop(entry.insert(inherited)),
                        // It is that of another process, which had the same id before this one.
                        Entry::Occupied(mut entry) => {
                            for mapping in inherited.mapped.iter() {
                                self.dropped |= entry.get_mut().add(mapping);
                            }
                        }
                    }
                    self.begin_from(parent, image);
                }
                // The id of a process that has ended belongs to another one now, which is not followed.
                None => drop(self.current.remove(child)),
            },
        }
    }

    /// What is known of a process that runs now.
    #[cfg(test)]
    pub(crate) fn of_process(tgid: u32) -> Self {
        let mut mappings = Self::default();
        mappings.begin(Image { tgid, number: 0 });
        let read = mappings.read_process(tgid, false).expect("it runs");
        mappings.refresh(tgid, &read);
        mappings
    }

    /// Looks for the file of a mapping and holds it.
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
            let files = |image: &ImageMappings| -> Vec<FileIdentity> {
                let mapped = image.mapped.iter().filter_map(|mapping| mapping.file);
                mapped.chain(image.executable).collect()
            };
            let needed = self.by_image.values().flat_map(files).collect();
            self.held.keep_only(&needed);
        }
        self.held.hold(&sought)
    }

    /// Shows a deleted file by the path that it had, without what the kernel puts behind it.
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

    /// Reads the executable mappings of a process, and holds their files; `None` if there are none.
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

    /// Notes what was read of a process in `/proc`.
    fn refresh(&mut self, tgid: u32, read: &Reread) {
        let Some(image) = self.current_image(tgid) else {
            return;
        };
        let of_image = self.by_image.entry(image).or_default();
        for mapping in &read.mapped {
            self.dropped |= of_image.add(mapping);
        }
        if read.executable.is_some() {
            of_image.executable = read.executable;
        }
        of_image.is_stale = false;
    }

    /// Counts what is lost for good: the images of which no file is known after reports were lost.
    fn count_losses(&mut self) {
        self.lost += self.by_image.values().filter(|image| image.knows_no_file()).count() as u64;
    }

    /// Counts the images that have code in `stacks` whose mapping is not known, because the report of it may have been lost, and that
    /// are not counted yet. An image of which a file is known may lack another one, and only its stacks show that.
    pub fn count_lost_code<'a>(&mut self, stacks: impl IntoIterator<Item = (Image, &'a [u64])>) {
        let mut lacking = HashSet::new();
        for (image, addresses) in stacks {
            let is_lost = |&address: &u64| self.find(image, address).err() == Some(NoMapping::Lost);
            if !self.by_image.get(&image).is_some_and(ImageMappings::knows_no_file) && addresses.iter().any(is_lost) {
                lacking.insert(image);
            }
        }
        self.lost += lacking.len() as u64;
    }
}

/// What `/proc` shows of a process.
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
    /// The process that has other memory after it.
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
/// Any program can fill the rings of mappings, so what is lost there is read again from `/proc/PID/maps` of each process that
/// is followed. Forks and `execve` have rings of their own, which mappings cannot fill.
pub struct Tracker {
    mappings_rings: Vec<Sampler>,
    processes_rings: Vec<Sampler>,
    /// Read but younger than the last horizon, with their times.
    held_back: Vec<(u64, Change)>,
    mappings: Mappings,
    /// Processes whose maps are to be read, because reports may have been lost.
    to_read: VecDeque<u32>,
    /// Reports were lost that were younger than the last horizon.
    lost_lately: bool,
    /// A fork or an `execve` may have been lost: the numbers of images are to be asked for.
    lost_processes: bool,
    /// Processes that see other files under the same paths than this one.
    elsewhere: HashSet<u32>,
    /// Processes that had ended when their maps were to be read.
    ended: HashSet<u32>,
}

impl Tracker {
    /// Begins to listen on every CPU.
    ///
    /// # Errors
    ///
    /// If the kernel refuses `perf_event_open` (it needs `CAP_PERFMON` or `perf_event_paranoid` ≤ 0).
    pub fn start() -> io::Result<Self> {
        let cpus = online_cpus()?;
        let listen = |to: fn(&mut Builder<'_>), bytes| {
            cpus.iter()
                .map(|&cpu| listen_on(cpu, to, bytes))
                .collect::<io::Result<Vec<_>>>()
        };
        Ok(Self {
            // First: no fork or `execve` is missed of a process whose mappings are seen.
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
            mappings: Mappings::default(),
            to_read: VecDeque::new(),
            lost_lately: false,
            lost_processes: false,
            elsewhere: HashSet::new(),
            ended: HashSet::new(),
        })
    }

    /// Follows a process, and from now on its children too.
    pub fn follow(&mut self, tgid: u32) {
        let image = Image { tgid, number: 0 };
        self.mappings.by_image.entry(image).or_default();
        self.mappings.begin(image);
        if has_own_root(tgid) {
            self.elsewhere.insert(tgid);
        }
        if let Some(read) = self.mappings.read_process(tgid, self.elsewhere.contains(&tgid)) {
            self.mappings.refresh(tgid, &read);
        }
    }

    /// Opens a file that is to be executed, and holds it.
    ///
    /// # Errors
    ///
    /// If it cannot be opened, or is no regular file.
    pub fn hold(&mut self, path: &Path) -> io::Result<Arc<HeldFile>> {
        self.mappings.hold(path)
    }

    /// Opens a file that the target shows by another path, and holds it.
    ///
    /// # Errors
    ///
    /// If it cannot be opened, or is no regular file.
    pub fn hold_as(&mut self, path: &Path, shown: &Path) -> io::Result<Arc<HeldFile>> {
        self.mappings.hold_as(path, shown)
    }

    /// Whether this process is followed.
    #[must_use]
    pub fn follows(&self, tgid: u32) -> bool {
        self.mappings.current.contains_key(&tgid)
    }

    /// Reads what has come in.
    pub fn tick(&mut self) {
        self.read_until(now_ns());
        self.read_again();
        let has_ended = |tgid| !Path::new(&format!("/proc/{tgid}")).exists();
        for tgid in self.mappings.forget_ended(has_ended) {
            self.elsewhere.remove(&tgid);
            self.ended.remove(&tgid);
        }
    }

    /// Whether a fork or an `execve` may have been lost: then [`Tracker::renumber`] is to be called.
    #[must_use]
    pub fn has_lost_processes(&self) -> bool {
        self.lost_processes
    }

    /// Takes over the processes that the kernel side follows, each with the number of its image.
    pub fn renumber(&mut self, numbers: &HashMap<u32, u32>) {
        self.lost_processes = false;
        for (&tgid, &number) in numbers {
            let image = Image { tgid, number };
            if self.mappings.is_current(image) {
                continue;
            }
            let missed = match self.mappings.current.get(&tgid) {
                // Those before the one that runs now.
                Some(&known) => number.saturating_sub(known).saturating_sub(1),
                None => 0,
            };
            self.mappings.lost += u64::from(missed);
            self.mappings.by_image.entry(image).or_default().is_stale = true;
            self.mappings.begin(image);
            self.to_read.push_back(tgid);
        }
    }

    /// Forgets programs that may not be traced, and whatever they have started.
    pub fn refuse(&mut self, images: impl IntoIterator<Item = Image>) {
        for image in images {
            self.mappings.refuse(image);
        }
    }

    /// What is known by now.
    #[must_use]
    pub fn mappings(&self) -> &Mappings {
        &self.mappings
    }

    /// Reads what is left and ends.
    #[must_use]
    pub fn finish(mut self) -> Mappings {
        self.read_until(u64::MAX);
        for _ in 0..=self.to_read.len() / MOST_READ_AGAIN {
            self.read_again();
        }
        self.mappings.count_losses();
        self.mappings
    }

    /// Reads the rings, and returns whether reports of mappings were lost.
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

    /// Notes whether a process sees the files of this one; of one that has ended, what was known before stays.
    fn note_root(&mut self, tgid: u32) {
        if has_own_root(tgid) {
            self.elsewhere.insert(tgid);
        }
    }

    /// Marks the maps of every living process as to be read.
    fn read_all_again(&mut self) {
        let waiting: HashSet<u32> = self.to_read.iter().copied().collect();
        for (&tgid, &number) in &self.mappings.current {
            if let Some(image) = self.mappings.by_image.get_mut(&Image { tgid, number }) {
                image.is_stale = true;
            }
            if !waiting.contains(&tgid) && !self.ended.contains(&tgid) {
                self.to_read.push_back(tgid);
            }
        }
    }

    /// Reads the maps of some of the processes whose reports may have been lost.
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
        // A process that has executed another program since the rings were read would have that one's mappings put down to
        // the one before.
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
                // Its next image is read when it is known.
                Some(_) => self.to_read.push_back(tgid),
                None => drop(self.ended.insert(tgid)),
            }
        }
    }
}

/// The maps of a process, and a thread that has them: a first thread that has ended has none.
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

/// Reads rings, one full ring of each CPU at most, and returns whether anything was lost.
fn read_rings(rings: &mut [Sampler], most_bytes: usize, changes: &mut Vec<(u64, Change)>) -> bool {
    let mut lost = false;
    for ring in rings {
        let mut bytes_left = most_bytes;
        while bytes_left > 0
            && let Some(record) = ring.next_record()
        {
            // With `sample_id_all` and nothing but TIME, each record but MMAP's ends in its time stamp.
            let bytes = record.to_contiguous();
            bytes_left = bytes_left.saturating_sub(bytes.len());
            let time_ns = bytes.last_chunk().map_or(0, |bytes| u64::from_ne_bytes(*bytes));
            match record.parse_record() {
                Ok(Record::Lost(_)) | Err(_) => lost = true,
                Ok(parsed) => changes.extend(change_of(&parsed, record.misc()).map(|change| (time_ns, change))),
            }
        }
        // What is left is in the next reading, as is whatever came before it on other CPUs: none of it is in order.
        lost |= bytes_left == 0;
    }
    lost
}

fn online_cpus() -> io::Result<Vec<usize>> {
    let text = std::fs::read_to_string("/sys/devices/system/cpu/online")?;
    let bad = || io::Error::new(io::ErrorKind::InvalidData, "the kernel's list of CPUs cannot be read");
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

    fn mappings(changes: &[Change]) -> Mappings {
        let mut mappings = Mappings::default();
        mappings.current.insert(7, 0);
        for change in changes {
            mappings.apply(change);
        }
        mappings
    }

    fn path(mappings: &Mappings, tgid: u32, number: u32, address: u64) -> Result<&str, NoMapping> {
        let found = mappings.find(Image { tgid, number }, address)?;
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
            assert!(mappings.by_image.len() <= 2 * MOST_ENDED_IMAGES + 2);
            assert!(mappings.current.len() <= 2 * MOST_ENDED_IMAGES + 2);
        }
        assert_eq!(seen, 1 + 2 * count, "each image is shown once");
        assert_eq!(path(&mappings, 7, 0, 0x1800), Ok("/parent"), "it lives");
        assert_eq!(path(&mappings, 101, 1, 0x1800), Ok("/child"), "it lives");
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
        assert_eq!(mappings.by_image[&IMAGE].mapped.len(), 2);
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
        let known = &mappings.by_image[&IMAGE].mapped;
        assert_eq!(known.len(), 2);
        assert_eq!(known[0].offset_of(0x2010), next.offset_of(0x2010));
        assert_eq!((known[1].start, known[1].end), (0x5000, 0x7000));
    }

    #[test]
    fn code_whose_report_was_lost_is_counted_once_for_each_image() {
        let mut mappings = mappings(&[
            mapped(7, mapping(0x1000, "/program")),
            Change::Forked { parent: 7, child: 8 },
        ]);
        let other = Image { tgid: 8, number: 0 };
        let (known, unknown) = ([0x1800], [0x1800, 0x9000]);
        // Nothing was lost: the code is in no file.
        mappings.count_lost_code([(IMAGE, &unknown[..])]);
        assert_eq!(mappings.lost, 0);
        // A neighbour's noise, and the processes ended before their maps could be read again.
        for image in mappings.by_image.values_mut() {
            image.is_stale = true;
        }
        mappings.count_losses();
        mappings.count_lost_code([(IMAGE, &unknown[..]), (IMAGE, &unknown[1..]), (other, &known[..])]);
        assert_eq!(mappings.lost, 1);
        assert_eq!(path(&mappings, 7, 0, 0x9000), Err(NoMapping::Lost));
        // Where no file is known at all, that is counted already.
        mappings.by_image.insert(
            other,
            ImageMappings {
                is_stale: true,
                ..ImageMappings::default()
            },
        );
        mappings.count_lost_code([(other, &unknown[..])]);
        assert_eq!(mappings.lost, 1);
    }

    #[test]
    fn a_refused_program_and_what_it_starts_are_not_kept() {
        let is_known =
            |mappings: &Mappings, tgid, number| mappings.images().any(|(image, _)| image == Image { tgid, number });
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
    fn too_many_mappings_are_none_and_the_reason_is_said() {
        let changes: Vec<Change> = (0..=MOST_MAPPINGS as u64)
            .map(|index| mapped(7, mapping(0x2000 * index, "/flood")))
            .collect();
        let mappings = mappings(&changes);
        assert_eq!(path(&mappings, 7, 0, 0x2000), Err(NoMapping::TooMany));
        assert!(mappings.by_image[&IMAGE].mapped.is_empty());
        assert!(mappings.dropped);
    }

    #[test]
    fn processes_that_are_not_followed_leave_nothing_behind() {
        let mappings = mappings(&[
            mapped(99, mapping(0x1000, "/foreign")),
            Change::Forked { parent: 99, child: 100 },
            Change::Executed { tgid: 100 },
        ]);
        assert!(mappings.by_image.is_empty());
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
        let files: Vec<&Path> = mappings.files_of(IMAGE).map(|mapping| mapping.path.as_path()).collect();
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
        for (&image, of_image) in &mut mappings.by_image {
            of_image.is_stale = image.tgid != 9;
        }
        mappings.count_losses();
        assert_eq!(mappings.lost, 1);
        assert_eq!(path(&mappings, 8, 1, 0x1000), Err(NoMapping::Lost));
        assert_eq!(path(&mappings, 9, 1, 0x1000), Err(NoMapping::InNoFile));
    }

    #[test]
    fn an_old_capture_is_read_as_it_was() {
        let old = |start| Mapping {
            file: None,
            ..mapping(start, "/usr/bin/server")
        };
        let stored = serde_json::to_string(&old(0x1000)).expect("JSON");
        assert!(!stored.contains("generation"), "{stored}");
        let read: Mapping = serde_json::from_str(&stored).expect("a mapping");
        assert_eq!(read, old(0x1000));
        assert!(read.agrees(&old(0x1000)));
        assert!(!read.agrees(&old(0x2000)), "another place in the file");
    }
}
