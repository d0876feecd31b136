//! Files of the target that are held open, because the file at a path may no longer be the file that ran.
//!
//! The kernel reports each mapping with the device, the inode and the generation of the file: a [`FileIdentity`]. A file is
//! opened while a process has it mapped, and held open until symbols are looked up at the end of the run. It is searched in four
//! places: `/proc/PID/map_files`, `/proc/PID/exe`, the path as the process sees it, and the path as this process sees it.
//! The identity of each opened file is compared with the reported identity before the file is used.
//!
//! To compare them, the opened file is mapped, and the kernel's report of this mapping is read. `fstat` cannot be used, because
//! on btrfs and overlayfs it returns another device than a mapping has.

use std::collections::{HashMap, HashSet};
use std::fs::{File, OpenOptions};
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use memmap2::MmapOptions;
use nix::fcntl::{OFlag, OpenHow, ResolveFlag, openat2};
use nix::sys::resource::{Resource, getrlimit};
use perf_event::Builder;
use perf_event::data::Record;
use perf_event::events::Software;

use super::proc_maps::{self, PlaceInMaps, ProcMapping};
use ctxtrace_format::mappings::{FileIdentity, Mapping};

/// The maximum number of files that are held, whatever the limit of descriptors is. Further files are not held.
const MOST_FILES: usize = 4_096;
/// The maximum number of times that a file is searched for. A search fails if the process has ended in the meantime.
const MOST_ATTEMPTS: u32 = 16;
/// The size in bytes of the ring buffer that receives the report of one mapping, whose path has up to 4 KiB.
const RING_BYTES: usize = 16 << 10;
/// The number of bytes of a file that are mapped, but never read, to determine its identity.
const MAPPED_BYTES: usize = 4_096;

/// The reason why a mapped file is not held.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum MissingFile {
    /// Another file is at its path.
    Replaced,
    /// No file is at its path.
    Deleted,
    /// The file was written to after it had been opened.
    Changed,
    /// The limit of open files was reached.
    TooMany,
    /// The file could not be opened while it was mapped.
    OutOfReach,
}

impl MissingFile {
    /// The reason as a predicate that follows the name of the file: `was replaced while it ran`.
    #[must_use]
    pub fn in_words(self) -> &'static str {
        match self {
            Self::Replaced => "was replaced while it ran",
            Self::Deleted => "was deleted while it ran",
            Self::Changed => "was changed while it ran",
            Self::TooMany => "could not be kept open, because the limit of descriptors was reached (ulimit -n)",
            Self::OutOfReach => "could not be opened while it ran",
        }
    }
}

/// A file of the target, opened for reading.
#[derive(Debug)]
pub struct HeldFile {
    file: File,
    identity: FileIdentity,
    path: PathBuf,
    written: WriteStamp,
}

/// The time of the last write (seconds and nanoseconds) and the size of a file, to detect that it was written to.
type WriteStamp = (i64, i64, u64);

impl HeldFile {
    /// Opens a file by a path of this process and determines its identity. Only regular files are opened.
    ///
    /// # Errors
    ///
    /// If the file cannot be opened or is not a regular file.
    pub fn open(path: &Path) -> io::Result<Self> {
        Self::open_as(path, path)
    }

    /// Opens a file that has the path `shown` in the target and the path `path` in this process.
    ///
    /// # Errors
    ///
    /// As [`HeldFile::open`].
    pub fn open_as(path: &Path, shown: &Path) -> io::Result<Self> {
        Self::of_handle(&handle_of(path)?, shown).map(|(held, _)| held)
    }

    /// Opens the file of an `O_PATH` descriptor. A device or a pipe is not opened, because opening it may have side effects.
    fn of_handle(handle: &File, path: &Path) -> io::Result<(Self, PlaceInMaps)> {
        if !handle.metadata()?.is_file() {
            return Err(io::Error::new(io::ErrorKind::InvalidInput, "it is not a regular file"));
        }
        let file = OpenOptions::new()
            .read(true)
            .custom_flags(libc::O_NONBLOCK)
            .open(format!("/proc/self/fd/{}", handle.as_raw_fd()))?;
        let (identity, place) = identity_of(&file)?;
        let metadata = file.metadata()?;
        let path = without_deleted(path, metadata.nlink() == 0);
        let held = Self {
            written: written(&metadata),
            path,
            file,
            identity,
        };
        Ok((held, place))
    }

    /// The open file.
    #[must_use]
    pub fn file(&self) -> &File {
        &self.file
    }

    /// The identity by which the kernel reports mappings of the file.
    #[must_use]
    pub fn identity(&self) -> FileIdentity {
        self.identity
    }

    /// The path of the file in the target. Another file may be there now.
    #[must_use]
    pub fn shown_path(&self) -> &Path {
        &self.path
    }

    /// A path by which this process can open the file as long as it is held.
    #[must_use]
    pub fn path(&self) -> PathBuf {
        PathBuf::from(format!("/proc/self/fd/{}", self.file.as_raw_fd()))
    }

    /// Whether the file was written to since it was opened.
    #[must_use]
    pub fn was_changed(&self) -> bool {
        self.file
            .metadata()
            .map_or(true, |metadata| written(&metadata) != self.written)
    }
}

fn written(metadata: &std::fs::Metadata) -> WriteStamp {
    (metadata.mtime(), metadata.mtime_nsec(), metadata.size())
}

/// Returns the path of a file without the suffix ` (deleted)`, which the kernel appends if the file is deleted.
pub(super) fn without_deleted(path: &Path, is_deleted: bool) -> PathBuf {
    let bytes = path.as_os_str().as_bytes();
    match bytes.strip_suffix(b" (deleted)") {
        Some(before) if is_deleted => PathBuf::from(std::ffi::OsStr::from_bytes(before)),
        _ => path.to_owned(),
    }
}

/// The source that named the file of a mapping, with the file's identity or place.
#[derive(Clone, Copy, Debug)]
pub(super) enum NamedBy {
    /// The kernel's report of the mapping.
    Report(FileIdentity),
    /// A line of `/proc/PID/maps`.
    Maps(PlaceInMaps),
}

/// A mapping whose file is to be opened and held.
#[derive(Clone, Copy, Debug)]
pub(super) struct SoughtFile<'a> {
    pub(super) named: NamedBy,
    /// A living thread of the process, if there is one.
    pub(super) tid: u32,
    pub(super) start: u64,
    pub(super) end: u64,
    /// The path as the process sees it.
    pub(super) path: &'a Path,
    /// Whether a path can mean different files for the process and for ctxtrace (another mount namespace or root).
    pub(super) is_elsewhere: bool,
}

#[derive(Clone, Debug)]
enum Holding {
    Held(Arc<HeldFile>),
    Missing { why: MissingFile, attempts: u32 },
}

/// All held files, by their identities.
#[derive(Clone, Debug, Default)]
pub struct HeldFiles {
    files: HashMap<FileIdentity, Holding>,
    by_place: HashMap<PlaceInMaps, FileIdentity>,
    held: usize,
}

impl HeldFiles {
    /// Returns the held file of a mapping.
    ///
    /// # Errors
    ///
    /// If the file is not held; the error is the reason.
    pub fn of_mapping(&self, mapping: &Mapping) -> Result<&Arc<HeldFile>, MissingFile> {
        self.get(mapping.file.as_ref().ok_or(MissingFile::OutOfReach)?)
    }

    /// Returns the held file with this identity.
    ///
    /// # Errors
    ///
    /// If the file is not held, or was written to since it was opened; the error is the reason.
    pub fn get(&self, identity: &FileIdentity) -> Result<&Arc<HeldFile>, MissingFile> {
        match self.files.get(identity) {
            Some(Holding::Held(file)) if file.was_changed() => Err(MissingFile::Changed),
            Some(Holding::Held(file)) => Ok(file),
            Some(Holding::Missing { why, .. }) => Err(*why),
            None => Err(MissingFile::OutOfReach),
        }
    }

    /// The number of held files.
    #[must_use]
    pub fn count(&self) -> usize {
        self.held
    }

    /// Whether no further file can be held.
    pub(super) fn is_full(&self) -> bool {
        self.held >= most_files()
    }

    /// Opens a file by a path of this process, and holds it with `shown`, its path in the target.
    pub(super) fn hold_path(&mut self, path: &Path, shown: &Path) -> io::Result<Arc<HeldFile>> {
        let (file, place) = HeldFile::of_handle(&handle_of(path)?, shown)?;
        Ok(self.keep(file, place))
    }

    /// Opens and holds the file of a mapping unless it is already held, and returns its identity.
    pub(super) fn hold(&mut self, sought: &SoughtFile<'_>) -> FileIdentity {
        let identity = match sought.named {
            NamedBy::Report(identity) => identity,
            NamedBy::Maps(place) => self.by_place.get(&place).copied().unwrap_or(FileIdentity {
                major: place.0,
                minor: place.1,
                inode: place.2,
                generation: None,
            }),
        };
        let attempts = match self.files.get(&identity) {
            Some(Holding::Held(_)) => return identity,
            Some(Holding::Missing { attempts, .. }) if *attempts >= MOST_ATTEMPTS => return identity,
            Some(Holding::Missing { attempts, .. }) => *attempts,
            None => 0,
        };
        let why = if self.is_full() {
            MissingFile::TooMany
        } else {
            match find(sought) {
                Ok((file, place)) => return self.keep(file, place).identity(),
                Err(why) => why,
            }
        };
        let attempts = attempts + 1;
        if self.files.len() < 2 * MOST_FILES || self.files.contains_key(&identity) {
            self.files.insert(identity, Holding::Missing { why, attempts });
        }
        identity
    }

    fn keep(&mut self, file: HeldFile, place: PlaceInMaps) -> Arc<HeldFile> {
        let identity = file.identity();
        if let Some(Holding::Held(known)) = self.files.get(&identity) {
            return Arc::clone(known);
        }
        let file = Arc::new(file);
        self.by_place.insert(place, identity);
        self.files.insert(identity, Holding::Held(Arc::clone(&file)));
        self.held += 1;
        file
    }

    /// Closes all files that are not among `needed`.
    pub(super) fn keep_only(&mut self, needed: &HashSet<FileIdentity>) {
        self.files.retain(|identity, _| needed.contains(identity));
        self.by_place.retain(|_, identity| needed.contains(identity));
        self.held = self
            .files
            .values()
            .filter(|holding| matches!(holding, Holding::Held(_)))
            .count();
    }
}

/// The maximum number of files to hold: half of this process's limit of descriptors, and at most [`MOST_FILES`].
fn most_files() -> usize {
    let (soft, _) = getrlimit(Resource::RLIMIT_NOFILE).unwrap_or((1_024, 1_024));
    usize::try_from(soft / 2).unwrap_or(MOST_FILES).min(MOST_FILES)
}

/// Searches for a file in the four places that the module documentation lists.
fn find(sought: &SoughtFile<'_>) -> Result<(HeldFile, PlaceInMaps), MissingFile> {
    let tid = sought.tid;
    let is_it = |file: &HeldFile, place: PlaceInMaps| match sought.named {
        NamedBy::Report(identity) => identity.is_same(&file.identity()),
        NamedBy::Maps(sought) => sought == place,
    };
    let open = |handle: io::Result<File>| {
        let (file, place) = HeldFile::of_handle(&handle?, sought.path)?;
        Ok(is_it(&file, place).then_some((file, place)))
    };
    let mapped = format!("/proc/{tid}/map_files/{:x}-{:x}", sought.start, sought.end);
    for link in [mapped, format!("/proc/{tid}/exe")] {
        if let Ok(Some(found)) = open(handle_of(Path::new(&link))) {
            return Ok(found);
        }
    }
    // The reason why the file is missing is taken from the path as the process sees it. If the process's root cannot be opened,
    // it is taken from the path as this process sees it, but only if both see the same files.
    let mut why = None;
    match handle_of(Path::new(&format!("/proc/{tid}/root"))) {
        Ok(root) => match open(handle_below(&root, sought.path)) {
            Ok(Some(found)) => return Ok(found),
            outcome => why = Some(what_happened(&outcome)),
        },
        Err(_) if sought.is_elsewhere => why = Some(MissingFile::OutOfReach),
        Err(_) => {}
    }
    match open(handle_of(sought.path)) {
        Ok(Some(found)) => Ok(found),
        outcome => {
            let why = why.unwrap_or_else(|| what_happened(&outcome));
            Err(if has_successor(sought, why) {
                MissingFile::Replaced
            } else {
                why
            })
        }
    }
}

/// Whether the kernel marks the file as deleted and another file is at its path now.
fn has_successor(sought: &SoughtFile<'_>, why: MissingFile) -> bool {
    let before = without_deleted(sought.path, true);
    why == MissingFile::Deleted
        && before != sought.path
        && handle_of(Path::new(&format!("/proc/{}/root", sought.tid)))
            .and_then(|root| handle_below(&root, &before))
            .or_else(|error| {
                if sought.is_elsewhere {
                    Err(error)
                } else {
                    handle_of(&before)
                }
            })
            .is_ok()
}

fn what_happened<T>(outcome: &io::Result<Option<T>>) -> MissingFile {
    match outcome {
        Ok(_) => MissingFile::Replaced,
        Err(error) => match error.raw_os_error() {
            Some(libc::ENOENT | libc::ENOTDIR) => MissingFile::Deleted,
            Some(libc::EMFILE | libc::ENFILE) => MissingFile::TooMany,
            // An error without a number: the file at the path is not a regular file, so it replaced the original one.
            None => MissingFile::Replaced,
            Some(_) => MissingFile::OutOfReach,
        },
    }
}

fn handle_of(path: &Path) -> io::Result<File> {
    OpenOptions::new().read(true).custom_flags(libc::O_PATH).open(path)
}

/// Opens an `O_PATH` handle of a path below `root`. Links are followed as a process with this root would follow them.
fn handle_below(root: &File, path: &Path) -> io::Result<File> {
    let how = OpenHow::new()
        .flags(OFlag::O_PATH | OFlag::O_CLOEXEC)
        .resolve(ResolveFlag::RESOLVE_IN_ROOT);
    Ok(File::from(openat2(root, path, how)?))
}

/// Maps a file, and reads its identity from the kernel's report of the mapping and its place from `/proc/self/maps`.
fn identity_of(file: &File) -> io::Result<(FileIdentity, PlaceInMaps)> {
    let mut reports = Builder::new(Software::DUMMY)
        .observe_self()
        .any_cpu()
        .enabled(true)
        .mmap(true)
        .mmap_data(true)
        .mmap2(true)
        .build()?
        .sampled(RING_BYTES)?;
    // SAFETY: the mapping is never read, so changes of the file by other processes have no effect.
    let mapping = unsafe { MmapOptions::new().len(MAPPED_BYTES).map_copy_read_only(file) }?;
    let address = mapping.as_ptr() as u64;
    let place = proc_maps::read(Path::new("/proc/self/maps"))?
        .iter()
        .find(|mapping| (mapping.start..mapping.end).contains(&address))
        .and_then(ProcMapping::place);
    drop(mapping);
    let mut identity = None;
    while let Some(record) = reports.next_record() {
        if let Ok(Record::Mmap2(mmap)) = record.parse_record()
            && (mmap.addr..mmap.addr.saturating_add(mmap.len)).contains(&address)
        {
            identity = identity_in(&mmap);
        }
    }
    let unknown = || io::Error::other("the kernel did not report the identity of the file");
    Ok((identity.ok_or_else(unknown)?, place.ok_or_else(unknown)?))
}

/// Returns the identity of the file in a report of a mapping; `None` if the mapping is not backed by a file.
pub(super) fn identity_in(mmap: &perf_event::data::Mmap2<'_>) -> Option<FileIdentity> {
    let inode = mmap.ino().filter(|&inode| inode != 0)?;
    Some(FileIdentity {
        major: mmap.maj()?,
        minor: mmap.min()?,
        inode,
        generation: mmap.ino_generation(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sought<'a>(named: NamedBy, path: &'a Path) -> SoughtFile<'a> {
        SoughtFile {
            named,
            tid: std::process::id(),
            start: 0x1000,
            end: 0x2000,
            path,
            is_elsewhere: false,
        }
    }

    /// Creates a folder with a file, and returns both and the file's identity.
    fn file() -> (tempfile::TempDir, PathBuf, FileIdentity) {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("server");
        std::fs::write(&path, "the first").expect("written");
        let identity = HeldFile::open(&path).expect("opened").identity();
        (folder, path, identity)
    }

    #[test]
    fn a_file_is_the_same_under_every_name_and_another_one_is_not() {
        let (folder, path, identity) = file();
        let link = folder.path().join("link");
        std::fs::hard_link(&path, &link).expect("linked");
        assert_eq!(HeldFile::open(&link).expect("opened").identity(), identity);
        let other = folder.path().join("other");
        std::fs::write(&other, "the second").expect("written");
        assert_ne!(HeldFile::open(&other).expect("opened").identity(), identity);
    }

    #[test]
    fn a_file_of_no_bytes_has_an_identity() {
        let (folder, ..) = file();
        let empty = folder.path().join("empty");
        std::fs::write(&empty, "").expect("written");
        assert!(HeldFile::open(&empty).is_ok());
    }

    #[test]
    fn what_is_no_regular_file_is_not_opened() {
        let (folder, ..) = file();
        let pipe = folder.path().join("pipe");
        nix::unistd::mkfifo(&pipe, nix::sys::stat::Mode::S_IRWXU).expect("made");
        // Opening the pipe would wait for a writer.
        for path in [pipe.as_path(), Path::new("/dev/null"), folder.path()] {
            assert!(HeldFile::open(path).is_err(), "{}", path.display());
        }
    }

    #[test]
    fn a_held_file_is_read_after_it_was_deleted() {
        let (_folder, path, identity) = file();
        let mut held = HeldFiles::default();
        assert_eq!(held.hold(&sought(NamedBy::Report(identity), &path)), identity);
        std::fs::remove_file(&path).expect("removed");
        std::fs::write(&path, "another").expect("written");
        let file = held.get(&identity).expect("held");
        assert_eq!(std::fs::read_to_string(file.path()).expect("read"), "the first");
    }

    #[test]
    fn what_came_too_late_is_replaced_or_deleted() {
        let (folder, path, identity) = file();
        // The open file keeps the inode number from being reused.
        let _open = File::open(&path).expect("opened");
        let missing = || {
            let mut held = HeldFiles::default();
            held.hold(&sought(NamedBy::Report(identity), &path));
            held.get(&identity).map(|_| ()).expect_err("a missing file")
        };
        std::fs::remove_file(&path).expect("removed");
        assert_eq!(missing(), MissingFile::Deleted);
        std::fs::write(&path, "another").expect("written");
        assert_eq!(missing(), MissingFile::Replaced);
        std::fs::remove_file(&path).expect("removed");
        std::os::unix::fs::symlink(folder.path(), &path).expect("linked");
        assert_eq!(missing(), MissingFile::Replaced);
    }

    #[test]
    fn a_written_file_is_reported_as_changed() {
        let (_folder, path, identity) = file();
        let mut held = HeldFiles::default();
        held.hold(&sought(NamedBy::Report(identity), &path));
        std::fs::write(&path, "of another length").expect("written");
        assert_eq!(held.get(&identity).map(|_| ()), Err(MissingFile::Changed));
    }

    #[test]
    fn a_mapping_that_proc_shows_leads_to_its_file() {
        let own = std::env::current_exe().expect("a path");
        let mappings = proc_maps::read(Path::new("/proc/self/maps")).expect("read");
        let mapping = mappings
            .iter()
            .find(|mapping| mapping.is_executable && mapping.name == own)
            .expect("mapped");
        let mut held = HeldFiles::default();
        let found = held.hold(&SoughtFile {
            start: mapping.start,
            end: mapping.end,
            ..sought(NamedBy::Maps(mapping.place().expect("a file")), &own)
        });
        assert_eq!(found, HeldFile::open(&own).expect("opened").identity());
        assert_eq!(held.count(), 1);
    }

    /// In the root of another process, an absolute symbolic link leads to a file below this root.
    #[test]
    fn an_absolute_link_below_a_root_stays_below_it() {
        let place = tempfile::tempdir().expect("a folder");
        let outside = place.path().join("libraries");
        let root = place.path().join("root");
        let inside = root.join(outside.strip_prefix("/").expect("absolute"));
        for (folder, contents) in [(&outside, "outside"), (&inside, "inside")] {
            std::fs::create_dir_all(folder).expect("made");
            std::fs::write(folder.join("library.so"), contents).expect("written");
        }
        std::os::unix::fs::symlink(&outside, root.join("link")).expect("linked");
        // A symbolic link to a folder above the root leads to the root.
        std::os::unix::fs::symlink("../../../../../..", root.join("up")).expect("linked");
        let up = Path::new("/up").join(outside.strip_prefix("/").expect("absolute"));
        let handle = handle_of(&root).expect("opened");
        for path in [Path::new("/link/library.so"), &up.join("library.so")] {
            let below = handle_below(&handle, path).expect("opened");
            let (held, _) = HeldFile::of_handle(&below, path).expect("held");
            let contents = std::fs::read_to_string(held.path()).expect("read");
            assert_eq!(contents, "inside", "{}", path.display());
        }
        assert!(handle_below(&handle, Path::new("/link/other.so")).is_err());
    }

    /// If the root of a process with other files cannot be opened, the file at the same path here says nothing about the process's file.
    #[test]
    fn a_process_elsewhere_that_has_ended_leads_to_no_file() {
        let (_folder, path, identity) = file();
        let gone = FileIdentity {
            inode: identity.inode + 1,
            ..identity
        };
        let why = |is_elsewhere| {
            let mut held = HeldFiles::default();
            held.hold(&SoughtFile {
                // The kernel assigns no thread id as large as this one (kernel: `PID_MAX_LIMIT`).
                tid: 1 << 23,
                is_elsewhere,
                ..sought(NamedBy::Report(gone), &path)
            });
            held.get(&gone).map(|_| ()).expect_err("not there")
        };
        assert_eq!(why(true), MissingFile::OutOfReach);
        assert_eq!(why(false), MissingFile::Replaced);
    }

    #[test]
    fn files_that_no_image_needs_are_let_go() {
        let (folder, path, identity) = file();
        let mut held = HeldFiles::default();
        held.hold(&sought(NamedBy::Report(identity), &path));
        let other = folder.path().join("other");
        std::fs::write(&other, "the second").expect("written");
        let needed = held.hold_path(&other, &other).expect("held").identity();
        held.keep_only(&HashSet::from([needed]));
        assert_eq!(held.count(), 1);
        assert!(held.get(&needed).is_ok() && held.get(&identity).is_err());
    }

    #[test]
    fn only_what_the_kernel_adds_is_taken_off_a_path() {
        let path = Path::new("/srv/server (deleted)");
        assert_eq!(without_deleted(path, true), Path::new("/srv/server"));
        assert_eq!(without_deleted(path, false), path);
    }
}
