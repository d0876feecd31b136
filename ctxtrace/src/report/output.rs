//! Where the bytes go.
//!
//! A target is *opened before the run*, so that a path that cannot be written fails before anything is started, and
//! *committed after it*: a file has no name until it is complete ([`super::place`]), so that at its path is the old file or the
//! new one and never half of one. Everything is done with the invoking user's rights ([`FileRights`]).

use std::cell::RefCell;
use std::fs::File;
use std::io::{self, BufWriter, Write};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use super::place::{DeviceInode, Existing, OutputFolder, OutputPlace, Replace, UserFile, inherited_descriptor};
use crate::error::{Error, Result};
use crate::target::user::{FileRights, Invoker};
use crate::terminal::data_output;

/// Bytes that [`Output::stream`] hands to the kernel at a time.
const WRITTEN_AT_ONCE: usize = 256 << 10;

/// Other names of standard output.
const NAMES_OF_STDOUT: [&str; 4] = ["-", "/dev/stdout", "/dev/fd/1", "/proc/self/fd/1"];

/// What a path on the command line means: `-` is standard output, and so are the names that the system has for it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Destination {
    /// Standard output.
    Stdout,
    /// A file.
    File(PathBuf),
}

impl From<PathBuf> for Destination {
    fn from(path: PathBuf) -> Self {
        if NAMES_OF_STDOUT.iter().any(|name| path.as_os_str() == *name) {
            Self::Stdout
        } else {
            Self::File(path)
        }
    }
}

/// With whose rights the outputs of a command are made, and which files none of them may be.
#[derive(Debug, Default)]
pub struct OutputAccess {
    rights: FileRights,
    inputs: Vec<DeviceInode>,
    /// Where the outputs that are opened already will be.
    taken: RefCell<Vec<OutputPlace>>,
}

impl OutputAccess {
    /// Outputs of this user's.
    #[must_use]
    pub fn new(user: Option<&Invoker>) -> Self {
        Self {
            rights: FileRights::of(user),
            ..Self::default()
        }
    }

    /// None of them may be this file, which is read.
    #[must_use]
    pub fn reading(mut self, input: Option<DeviceInode>) -> Self {
        self.inputs.extend(input);
        self
    }

    /// The folder for files that are temporary.
    ///
    /// # Errors
    ///
    /// If there is none that the user can reach.
    pub fn temporary_folder(&self) -> io::Result<OutputFolder> {
        OutputFolder::open(&std::env::temp_dir(), &self.rights)
    }

    /// The rights.
    #[must_use]
    pub fn rights(&self) -> &FileRights {
        &self.rights
    }

    /// The place of a file that is complete only at the end.
    fn place_of(&self, path: &Path) -> io::Result<(OutputPlace, Existing)> {
        let place = OutputPlace::find(path, &self.rights)?;
        let existing = place.existing()?;
        if let Existing::Nothing | Existing::Replaceable(_) = existing {
            if let Existing::Replaceable(Some(identity)) = existing {
                self.check_no_input(identity)?;
            }
            let mut taken = self.taken.borrow_mut();
            if taken.iter().any(|other| other.is(&place)) {
                return Err(io::Error::new(
                    io::ErrorKind::InvalidInput,
                    "another output goes to the same place: give each its own",
                ));
            }
            place.folder().check_writable()?;
            taken.push(place.clone());
        }
        Ok((place, existing))
    }

    fn check_no_input(&self, identity: DeviceInode) -> io::Result<()> {
        if self.inputs.contains(&identity) {
            return Err(io::Error::new(
                io::ErrorKind::InvalidInput,
                "it is the file that is read: give another path",
            ));
        }
        Ok(())
    }

    fn check_descriptor(&self, fd: impl AsFd) -> io::Result<()> {
        DeviceInode::of_descriptor(fd).map_or(Ok(()), |identity| self.check_no_input(identity))
    }
}

/// A target that is known to be writable.
#[derive(Debug)]
pub enum Output {
    /// Standard output.
    Stdout,
    /// A regular file, to appear at its path when it is complete.
    File {
        /// Where it will be.
        place: OutputPlace,
        /// For messages.
        path: PathBuf,
    },
    /// A device, a pipe or a descriptor that this process was given, none of which can be replaced.
    Stream {
        /// Open for writing.
        file: UserFile,
        /// For messages.
        path: PathBuf,
    },
}

impl Output {
    /// Opens a target. Nothing is changed by that.
    ///
    /// # Errors
    ///
    /// If it cannot be written.
    pub fn open(destination: &Destination, access: &OutputAccess) -> Result<Self> {
        let (path, opened) = match destination {
            Destination::Stdout => (
                Path::new("standard output"),
                access.check_descriptor(data_output()).map(|()| Self::Stdout),
            ),
            Destination::File(path) => (path.as_path(), open_file(path, access)),
        };
        opened.map_err(|source| Error::Output {
            path: path.to_owned(),
            source,
        })
    }

    /// The path of the file it makes, if it makes one.
    #[must_use]
    pub fn path(&self) -> Option<&Path> {
        match self {
            Self::File { path, .. } => Some(path),
            Self::Stdout | Self::Stream { .. } => None,
        }
    }

    /// The folder of the file it makes, if it makes one.
    #[must_use]
    pub fn folder(&self) -> Option<&OutputFolder> {
        match self {
            Self::File { place, .. } => Some(place.folder()),
            Self::Stdout | Self::Stream { .. } => None,
        }
    }

    /// Writes everything.
    ///
    /// # Errors
    ///
    /// If it cannot be written after all (a full disk); the file that was there before, if any, is untouched.
    pub fn commit(self, bytes: &[u8]) -> Result<()> {
        self.stream(|to| to.write_all(bytes))
    }

    /// Lets `write` write everything, for what is too much to be held in memory. The rule is the same: what ends with an error
    /// leaves no file.
    ///
    /// # Errors
    ///
    /// Those of `write`, or if it cannot be written after all.
    pub fn stream(self, write: impl FnOnce(&mut dyn Write) -> io::Result<()>) -> Result<()> {
        let through = |to: &mut dyn Write| {
            let mut buffered = BufWriter::with_capacity(WRITTEN_AT_ONCE, to);
            write(&mut buffered)?;
            buffered.flush()
        };
        match self {
            Self::Stdout => through(&mut data_output()).map_err(|source| Error::Output {
                path: "standard output".into(),
                source,
            }),
            Self::Stream { mut file, path } => through(&mut file).map_err(|source| Error::Output { path, source }),
            Self::File { place, path } => place
                .folder()
                .nameless_file()
                .and_then(|mut file| {
                    through(&mut file.writer()?)?;
                    file.put_at(&place, Replace::Yes)
                })
                .map_err(|source| Error::Output { path, source }),
        }
    }
}

/// The place of a capture: a file that is written while the run goes on, and at its path as soon as there is something in it. What
/// is there already is replaced only if `force` says so.
///
/// # Errors
///
/// If there is one, or if no file can be made there.
pub fn place_of_capture(path: &Path, force: bool, access: &OutputAccess) -> io::Result<OutputPlace> {
    match access.place_of(path)? {
        (_, Existing::Stream(_) | Existing::Descriptor(_)) => Err(io::Error::new(
            io::ErrorKind::InvalidInput,
            "a capture needs a regular file",
        )),
        (_, Existing::Replaceable(_)) if !force => Err(io::Error::new(
            io::ErrorKind::AlreadyExists,
            "it exists (--force replaces it)",
        )),
        (place, _) => Ok(place),
    }
}

fn open_file(path: &Path, access: &OutputAccess) -> io::Result<Output> {
    let file = match access.place_of(path)? {
        (place, Existing::Nothing | Existing::Replaceable(_)) => {
            return Ok(Output::File {
                place,
                path: path.to_owned(),
            });
        }
        (_, Existing::Stream(held)) => open_stream(held.as_fd(), access.rights())?,
        (_, Existing::Descriptor(number)) => inherited_descriptor(number)?,
    };
    access.check_descriptor(&file)?;
    Ok(Output::Stream {
        file: UserFile::new(file, access.rights()),
        path: path.to_owned(),
    })
}

/// Opens the very device or pipe that was looked at, whatever has its name now.
fn open_stream(held: BorrowedFd<'_>, rights: &FileRights) -> io::Result<File> {
    let path = format!("/proc/self/fd/{}", held.as_raw_fd());
    rights.apply(|| File::options().write(true).custom_flags(libc::O_NOCTTY).open(path))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;
    use std::os::unix::fs::symlink;

    fn access() -> OutputAccess {
        OutputAccess::new(None)
    }

    fn file(path: &Path) -> Destination {
        Destination::File(path.to_owned())
    }

    fn open(path: &Path) -> Result<Output> {
        Output::open(&file(path), &access())
    }

    fn entries(folder: &Path) -> usize {
        fs::read_dir(folder).expect("a folder").count()
    }

    #[test]
    fn a_stream_is_opened_through_a_link_of_ones_own() {
        let folder = tempfile::tempdir().expect("a folder");
        let link = folder.path().join("null");
        symlink("/dev/null", &link).expect("made");
        let output = open(&link).expect("writable");
        assert!(matches!(output, Output::Stream { .. }));
        output.commit(b"gone").expect("written");
        assert!(fs::symlink_metadata(&link).expect("there").is_symlink());
    }

    #[test]
    fn a_link_of_ones_own_to_a_file_is_replaced() {
        let folder = tempfile::tempdir().expect("a folder");
        let (link, elsewhere) = (folder.path().join("link"), folder.path().join("elsewhere"));
        for target in [&elsewhere, &folder.path().join("missing")] {
            fs::write(&elsewhere, "precious").expect("written");
            let _ = fs::remove_file(&link);
            symlink(target, &link).expect("made");
            open(&link).expect("writable").commit(b"all of it").expect("written");
            assert!(fs::symlink_metadata(&link).expect("there").is_file());
            assert_eq!(fs::read(&elsewhere).expect("there"), b"precious");
        }
        assert_eq!(entries(folder.path()), 2);
    }

    #[test]
    fn links_that_lead_in_circles_or_to_folders() {
        let folder = tempfile::tempdir().expect("a folder");
        let (one, other) = (folder.path().join("one"), folder.path().join("other"));
        symlink(&other, &one).expect("made");
        symlink("one", &other).expect("made");
        open(&one).expect("replaced").commit(b"file").expect("written");
        assert_eq!(fs::read(&one).expect("there"), b"file");
        let link = folder.path().join("folder");
        symlink(folder.path(), &link).expect("made");
        let error = open(&link).expect_err("a folder").to_string();
        assert!(error.contains("it is a directory"), "{error}");
    }

    #[test]
    fn a_descriptor_is_written_where_it_stands_and_never_replaced() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("out");
        let given = File::create(&path).expect("made");
        let number = given.as_raw_fd();
        let link = folder.path().join("stdout");
        symlink(format!("/proc/self/fd/{number}"), &link).expect("made");
        let error = open(&link).expect_err("it is our own").to_string();
        assert!(error.contains("is not open for writing"), "{error}");
        // As a shell gives it.
        nix::fcntl::fcntl(&given, nix::fcntl::FcntlArg::F_SETFD(nix::fcntl::FdFlag::empty())).expect("set");
        for path in [
            link.clone(),
            format!("/dev/fd/{number}").into(),
            format!("/proc/thread-self/fd/{number}").into(),
        ] {
            let output = open(&path).expect("given");
            assert!(matches!(output, Output::Stream { .. }), "{}", path.display());
            output.commit(b"more.").expect("written");
        }
        assert!(fs::symlink_metadata(&link).expect("there").is_symlink());
        assert_eq!(fs::read(&path).expect("there"), b"more.more.more.");
        let reading = File::open(&path).expect("there");
        nix::fcntl::fcntl(&reading, nix::fcntl::FcntlArg::F_SETFD(nix::fcntl::FdFlag::empty())).expect("set");
        let error = open(Path::new(&format!("/dev/fd/{}", reading.as_raw_fd()))).expect_err("for reading");
        assert!(error.to_string().contains("is not open for writing"), "{error}");
    }

    #[test]
    fn what_is_read_is_never_written() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("x.ctx");
        fs::write(&path, "capture").expect("written");
        let (link, second) = (folder.path().join("link"), folder.path().join("second"));
        symlink("x.ctx", &link).expect("made");
        fs::hard_link(&path, &second).expect("made");
        let access = access().reading(DeviceInode::of_path(&path));
        let roundabout = folder
            .path()
            .join("../")
            .join(folder.path().file_name().expect("named"))
            .join("x.ctx");
        for path in [path.clone(), link, second, roundabout] {
            let error = Output::open(&file(&path), &access).expect_err("it is read").to_string();
            assert!(error.contains("it is the file that is read"), "{error}");
            assert!(place_of_capture(&path, true, &access).is_err());
        }
        let appended = File::options().append(true).open(&path).expect("there");
        nix::fcntl::fcntl(&appended, nix::fcntl::FcntlArg::F_SETFD(nix::fcntl::FdFlag::empty())).expect("set");
        let by_descriptor = PathBuf::from(format!("/dev/fd/{}", appended.as_raw_fd()));
        assert!(Output::open(&file(&by_descriptor), &access).is_err());
        assert_eq!(fs::read(&path).expect("there"), b"capture");
    }

    #[test]
    fn two_outputs_do_not_go_to_one_place() {
        let folder = tempfile::tempdir().expect("a folder");
        let access = access();
        let path = folder.path().join("out");
        let output = Output::open(&file(&path), &access).expect("writable");
        let same = folder.path().join(".").join("out");
        assert!(Output::open(&file(&same), &access).is_err());
        let through = folder.path().join("folder");
        symlink(folder.path(), &through).expect("made");
        assert!(place_of_capture(&through.join("out"), true, &access).is_err());
        output.commit(b"all of it").expect("written");
    }

    #[test]
    fn a_file_appears_when_it_is_complete_and_not_before() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("out.json");
        let output = open(&path).expect("writable");
        assert_eq!(entries(folder.path()), 0);
        output.commit(b"all of it").expect("written");
        assert_eq!(fs::read(&path).expect("there"), b"all of it");
        assert_eq!(entries(folder.path()), 1, "nothing is left beside it");
    }

    #[test]
    fn what_is_streamed_appears_whole_or_not_at_all() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("out.pftrace");
        fs::write(&path, "old").expect("written");
        let error = open(&path)
            .expect("writable")
            .stream(|to| {
                to.write_all(&vec![7; 2 * WRITTEN_AT_ONCE])?;
                Err(io::Error::other("the source is gone"))
            })
            .expect_err("given up");
        assert!(error.to_string().contains("the source is gone"), "{error}");
        assert_eq!(fs::read(&path).expect("there"), b"old");
        open(&path)
            .expect("writable")
            .stream(|to| to.write_all(b"all ").and_then(|()| to.write_all(b"of it")))
            .expect("written");
        assert_eq!(fs::read(&path).expect("there"), b"all of it");
        assert_eq!(entries(folder.path()), 1);
    }

    #[test]
    fn a_folder_that_is_exchanged_is_still_the_one_that_was_opened() {
        let folder = tempfile::tempdir().expect("a folder");
        let (sub, old) = (folder.path().join("sub"), folder.path().join("old"));
        let elsewhere = tempfile::tempdir().expect("a folder");
        fs::create_dir(&sub).expect("made");
        let output = open(&sub.join("out")).expect("writable");
        fs::rename(&sub, &old).expect("moved");
        symlink(elsewhere.path(), &sub).expect("planted");
        output.commit(b"all of it").expect("written");
        assert_eq!(fs::read(old.join("out")).expect("there"), b"all of it");
        assert_eq!(entries(elsewhere.path()), 0);
    }

    #[test]
    fn an_output_that_is_given_up_leaves_the_old_file() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("out.json");
        fs::write(&path, "old").expect("written");
        drop(open(&path).expect("writable"));
        assert_eq!(fs::read(&path).expect("there"), b"old");
        assert_eq!(entries(folder.path()), 1);
    }

    #[test]
    fn a_capture_replaces_only_what_it_may() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("run.ctx");
        let place = |path: &Path, force| place_of_capture(path, force, &access());
        place(&path, false).expect("new");
        assert_eq!(entries(folder.path()), 0, "finding the place makes nothing");
        fs::write(&path, "old").expect("written");
        let error = place(&path, false).expect_err("it exists");
        assert!(error.to_string().contains("--force"), "{error}");
        place(&path, true).expect("to be replaced");
        assert!(place(folder.path(), true).is_err(), "a folder");
        for path in ["/dev/null", "/dev/stdout", "/dev/fd/2"] {
            assert!(place(Path::new(path), true).is_err(), "{path}");
        }
        let link = folder.path().join("link");
        symlink("missing", &link).expect("made");
        assert!(place(&link, false).is_err());
        place(&link, true).expect("to be replaced");
    }

    #[test]
    fn a_file_gets_its_name_when_it_is_asked_for_and_not_before() {
        let folder = tempfile::tempdir().expect("a folder");
        let place = OutputPlace::find(&folder.path().join("run.ctx"), &FileRights::default()).expect("a folder");
        let path = folder.path().join("run.ctx");
        let (nameless, named) = (|| place.folder().nameless_file(), || place.folder().named_file());
        for make in [&nameless as &dyn Fn() -> _, &named] {
            let _ = fs::remove_file(&path);
            for (text, replace) in [("the first", Replace::No), ("the second", Replace::Yes)] {
                let mut file = make().expect("writable");
                file.writer()
                    .and_then(|mut to| to.write_all(text.as_bytes()))
                    .expect("written");
                assert!(!fs::read(&path).is_ok_and(|there| there == text.as_bytes()));
                file.put_at(&place, replace).expect("put there");
                drop(file);
                assert_eq!(fs::read(&path).expect("there"), text.as_bytes());
            }
            let error = make()
                .expect("writable")
                .put_at(&place, Replace::No)
                .expect_err("taken");
            assert_eq!(error.kind(), io::ErrorKind::AlreadyExists);
            assert_eq!(fs::read(&path).expect("there"), b"the second");
            assert_eq!(entries(folder.path()), 1, "of one that is given up nothing is left");
        }
    }

    #[test]
    fn paths_that_cannot_be_written_are_found_at_once() {
        let folder = tempfile::tempdir().expect("a folder");
        for path in [
            folder.path().to_owned(),
            folder.path().join("missing/out.json"),
            folder.path().join("new/"),
            PathBuf::from("/"),
        ] {
            let error = open(&path).expect_err("not writable");
            assert!(error.to_string().starts_with("cannot write "), "{error}");
        }
    }

    #[test]
    fn a_device_is_written_to_and_stays() {
        let output = open(Path::new("/dev/null")).expect("writable");
        assert!(output.path().is_none());
        output.commit(b"gone").expect("written");
        assert!(Path::new("/dev/null").exists());
    }

    #[test]
    fn standard_output_has_several_names() {
        for name in ["-", "/dev/stdout", "/dev/fd/1", "/proc/self/fd/1"] {
            assert_eq!(Destination::from(PathBuf::from(name)), Destination::Stdout);
        }
        assert_eq!(Destination::from(PathBuf::from("./-")), file(Path::new("./-")));
    }
}
