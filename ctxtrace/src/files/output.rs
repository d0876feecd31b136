//! The targets to which output is written.
//!
//! A target is *opened before the run*, so that a path that cannot be written fails before anything is started, and it is
//! *committed after the run*. A file has no name until it is complete ([`super::place`]), so its path holds either the old file
//! or the complete new one. All file operations use the rights of the invoking user ([`FileRights`]).

use std::cell::RefCell;
use std::fs::File;
use std::io::{self, BufWriter, Write};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use super::place::{DeviceInode, Existing, OutputFolder, OutputPlace, Replace, UserFile, inherited_descriptor};
use crate::error::{Error, Result};
use crate::terminal::data_output;
use crate::tracee::user::{FileRights, Invoker};

/// Size of the buffer of [`Output::stream`] in bytes. Output is written to the kernel in pieces of this size.
const WRITTEN_AT_ONCE: usize = 256 << 10;

/// Paths on the command line that mean standard output.
const NAMES_OF_STDOUT: [&str; 4] = ["-", "/dev/stdout", "/dev/fd/1", "/proc/self/fd/1"];

/// The meaning of an output path on the command line. `-` and the system's names for standard output mean standard output; any
/// other path means a file.
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

/// The conditions under which the outputs of a command are opened: whose rights are used, and which files must not be an output.
#[derive(Debug, Default)]
pub struct OutputAccess {
    rights: FileRights,
    inputs: Vec<DeviceInode>,
    /// Places of the outputs that are already open. No two outputs may have the same place.
    taken: RefCell<Vec<OutputPlace>>,
}

impl OutputAccess {
    /// Creates the conditions for outputs of this user. Without a user the rights of this process are used.
    #[must_use]
    pub fn new(user: Option<&Invoker>) -> Self {
        Self {
            rights: FileRights::for_user(user),
            ..Self::default()
        }
    }

    /// Adds an input file of the command. No output may be this file.
    #[must_use]
    pub fn reading(mut self, input: Option<DeviceInode>) -> Self {
        self.inputs.extend(input);
        self
    }

    /// Opens the folder for temporary files.
    ///
    /// # Errors
    ///
    /// If the folder does not exist, or if the user cannot reach it.
    pub fn temporary_folder(&self) -> io::Result<OutputFolder> {
        OutputFolder::open(&std::env::temp_dir(), &self.rights)
    }

    /// The rights with which files are opened and written.
    #[must_use]
    pub fn rights(&self) -> &FileRights {
        &self.rights
    }

    /// Finds and checks the place of an output file, and registers it in `taken` if the file will be created or replaced there.
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
                    "another output has the same path: give each output its own path",
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
                "it is an input file of this command: give another path",
            ));
        }
        Ok(())
    }

    fn check_descriptor(&self, fd: impl AsFd) -> io::Result<()> {
        DeviceInode::of_descriptor(fd).map_or(Ok(()), |identity| self.check_no_input(identity))
    }
}

/// An open target that was found to be writable.
#[derive(Debug)]
pub enum Output {
    /// Standard output.
    Stdout,
    /// A regular file, which appears at its path when it is complete.
    File {
        /// Where the file will appear.
        place: OutputPlace,
        /// The path as the user gave it, for messages.
        path: PathBuf,
    },
    /// A device, a pipe, or an inherited descriptor. It is written directly, because it cannot be replaced.
    Stream {
        /// The device, pipe or descriptor, open for writing.
        file: UserFile,
        /// The path as the user gave it, for messages.
        path: PathBuf,
    },
}

impl Output {
    /// Opens a target. This changes nothing in the file system.
    ///
    /// # Errors
    ///
    /// If the target cannot be written.
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

    /// The path of the file, or `None` if the target is not a file.
    #[must_use]
    pub fn path(&self) -> Option<&Path> {
        match self {
            Self::File { path, .. } => Some(path),
            Self::Stdout | Self::Stream { .. } => None,
        }
    }

    /// The folder of the file, or `None` if the target is not a file.
    #[must_use]
    pub fn folder(&self) -> Option<&OutputFolder> {
        match self {
            Self::File { place, .. } => Some(place.folder()),
            Self::Stdout | Self::Stream { .. } => None,
        }
    }

    /// Writes these bytes as the whole output.
    ///
    /// # Errors
    ///
    /// If writing fails, for example because the disk is full. An existing file at the path is then unchanged.
    pub fn commit(self, bytes: &[u8]) -> Result<()> {
        self.stream(|to| to.write_all(bytes))
    }

    /// Calls `write` to produce the output piece by piece, for output that is too large for memory. As with [`Self::commit`], an
    /// existing file is unchanged if an error occurs.
    ///
    /// # Errors
    ///
    /// The errors of `write`, and any error of writing to the target.
    pub fn stream(self, write: impl FnOnce(&mut dyn Write) -> io::Result<()>) -> Result<()> {
        let write_buffered = |to: &mut dyn Write| {
            let mut buffered = BufWriter::with_capacity(WRITTEN_AT_ONCE, to);
            write(&mut buffered)?;
            buffered.flush()
        };
        match self {
            Self::Stdout => write_buffered(&mut data_output()).map_err(|source| Error::Output {
                path: "standard output".into(),
                source,
            }),
            Self::Stream { mut file, path } => {
                write_buffered(&mut file).map_err(|source| Error::Output { path, source })
            }
            Self::File { place, path } => place
                .folder()
                .nameless_file()
                .and_then(|mut file| {
                    write_buffered(&mut file.writer()?)?;
                    file.put_at(&place, Replace::Yes)
                })
                .map_err(|source| Error::Output { path, source }),
        }
    }
}

/// Finds the place of a capture. A capture is written during the run and appears at its path with its first saved state.
///
/// # Errors
///
/// If a file exists at the path and `force` is not set, or if no regular file can be created there.
pub fn place_of_capture(path: &Path, force: bool, access: &OutputAccess) -> io::Result<OutputPlace> {
    match access.place_of(path)? {
        (_, Existing::Stream(_) | Existing::Descriptor(_)) => Err(io::Error::new(
            io::ErrorKind::InvalidInput,
            "a capture must be a regular file: give the path of a file",
        )),
        (_, Existing::Replaceable(_)) if !force => Err(io::Error::new(
            io::ErrorKind::AlreadyExists,
            "the file exists (--force replaces it)",
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

/// Opens the device or pipe that was examined before, even if its path now leads to something else.
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
        fs::read_dir(folder).expect("the folder is readable").count()
    }

    #[test]
    fn a_stream_is_opened_through_a_link_of_ones_own() {
        let folder = tempfile::tempdir().expect("a temporary folder is created");
        let link = folder.path().join("null");
        symlink("/dev/null", &link).expect("the link is created");
        let output = open(&link).expect("the target is writable");
        assert!(matches!(output, Output::Stream { .. }));
        output.commit(b"gone").expect("the output is written");
        assert!(fs::symlink_metadata(&link).expect("the path exists").is_symlink());
    }

    #[test]
    fn a_link_of_ones_own_to_a_file_is_replaced() {
        let folder = tempfile::tempdir().expect("a temporary folder is created");
        let (link, elsewhere) = (folder.path().join("link"), folder.path().join("elsewhere"));
        for target in [&elsewhere, &folder.path().join("missing")] {
            fs::write(&elsewhere, "precious").expect("the file is written");
            let _ = fs::remove_file(&link);
            symlink(target, &link).expect("the link is created");
            open(&link)
                .expect("the target is writable")
                .commit(b"all of it")
                .expect("the output is written");
            assert!(fs::symlink_metadata(&link).expect("the path exists").is_file());
            assert_eq!(fs::read(&elsewhere).expect("the file is readable"), b"precious");
        }
        assert_eq!(entries(folder.path()), 2);
    }

    #[test]
    fn links_that_lead_in_circles_or_to_folders() {
        let folder = tempfile::tempdir().expect("a temporary folder is created");
        let (one, other) = (folder.path().join("one"), folder.path().join("other"));
        symlink(&other, &one).expect("the link is created");
        symlink("one", &other).expect("the link is created");
        open(&one)
            .expect("the link is replaceable")
            .commit(b"file")
            .expect("the output is written");
        assert_eq!(fs::read(&one).expect("the file is readable"), b"file");
        let link = folder.path().join("folder");
        symlink(folder.path(), &link).expect("the link is created");
        let error = open(&link).expect_err("a link to a folder is refused").to_string();
        assert!(error.contains("it is a directory"), "{error}");
    }

    #[test]
    fn a_descriptor_is_written_where_it_stands_and_never_replaced() {
        let folder = tempfile::tempdir().expect("a temporary folder is created");
        let path = folder.path().join("out");
        let given = File::create(&path).expect("the file is created");
        let number = given.as_raw_fd();
        let link = folder.path().join("stdout");
        symlink(format!("/proc/self/fd/{number}"), &link).expect("the link is created");
        let error = open(&link)
            .expect_err("a descriptor with FD_CLOEXEC is refused")
            .to_string();
        assert!(error.contains("is not open for writing"), "{error}");
        // A descriptor that a shell passes on does not have FD_CLOEXEC.
        nix::fcntl::fcntl(&given, nix::fcntl::FcntlArg::F_SETFD(nix::fcntl::FdFlag::empty()))
            .expect("the flag is cleared");
        for path in [
            link.clone(),
            format!("/dev/fd/{number}").into(),
            format!("/proc/thread-self/fd/{number}").into(),
        ] {
            let output = open(&path).expect("the descriptor is writable");
            assert!(matches!(output, Output::Stream { .. }), "{}", path.display());
            output.commit(b"more.").expect("the output is written");
        }
        assert!(fs::symlink_metadata(&link).expect("the path exists").is_symlink());
        assert_eq!(fs::read(&path).expect("the file is readable"), b"more.more.more.");
        let reading = File::open(&path).expect("the file is readable");
        nix::fcntl::fcntl(&reading, nix::fcntl::FcntlArg::F_SETFD(nix::fcntl::FdFlag::empty()))
            .expect("the flag is cleared");
        let error = open(Path::new(&format!("/dev/fd/{}", reading.as_raw_fd())))
            .expect_err("a descriptor for reading is refused");
        assert!(error.to_string().contains("is not open for writing"), "{error}");
    }

    #[test]
    fn what_is_read_is_never_written() {
        let folder = tempfile::tempdir().expect("a temporary folder is created");
        let path = folder.path().join("x.ctx");
        fs::write(&path, "capture").expect("the file is written");
        let (link, second) = (folder.path().join("link"), folder.path().join("second"));
        symlink("x.ctx", &link).expect("the link is created");
        fs::hard_link(&path, &second).expect("the link is created");
        let access = access().reading(DeviceInode::of_path(&path));
        let roundabout = folder
            .path()
            .join("../")
            .join(folder.path().file_name().expect("the folder has a name"))
            .join("x.ctx");
        for path in [path.clone(), link, second, roundabout] {
            let error = Output::open(&file(&path), &access)
                .expect_err("an input file is refused")
                .to_string();
            assert!(error.contains("it is an input file of this command"), "{error}");
            assert!(place_of_capture(&path, true, &access).is_err());
        }
        let appended = File::options().append(true).open(&path).expect("the file is readable");
        nix::fcntl::fcntl(&appended, nix::fcntl::FcntlArg::F_SETFD(nix::fcntl::FdFlag::empty()))
            .expect("the flag is cleared");
        let by_descriptor = PathBuf::from(format!("/dev/fd/{}", appended.as_raw_fd()));
        assert!(Output::open(&file(&by_descriptor), &access).is_err());
        assert_eq!(fs::read(&path).expect("the file is readable"), b"capture");
    }

    #[test]
    fn two_outputs_do_not_go_to_one_place() {
        let folder = tempfile::tempdir().expect("a temporary folder is created");
        let access = access();
        let path = folder.path().join("out");
        let output = Output::open(&file(&path), &access).expect("the target is writable");
        let same = folder.path().join(".").join("out");
        assert!(Output::open(&file(&same), &access).is_err());
        let through = folder.path().join("folder");
        symlink(folder.path(), &through).expect("the link is created");
        assert!(place_of_capture(&through.join("out"), true, &access).is_err());
        output.commit(b"all of it").expect("the output is written");
    }

    #[test]
    fn a_file_appears_when_it_is_complete_and_not_before() {
        let folder = tempfile::tempdir().expect("a temporary folder is created");
        let path = folder.path().join("out.json");
        let output = open(&path).expect("the target is writable");
        assert_eq!(entries(folder.path()), 0);
        output.commit(b"all of it").expect("the output is written");
        assert_eq!(fs::read(&path).expect("the file is readable"), b"all of it");
        assert_eq!(entries(folder.path()), 1, "the folder holds no other file");
    }

    #[test]
    fn what_is_streamed_appears_whole_or_not_at_all() {
        let folder = tempfile::tempdir().expect("a temporary folder is created");
        let path = folder.path().join("out.pftrace");
        fs::write(&path, "old").expect("the file is written");
        let error = open(&path)
            .expect("the target is writable")
            .stream(|to| {
                to.write_all(&vec![7; 2 * WRITTEN_AT_ONCE])?;
                Err(io::Error::other("the source is gone"))
            })
            .expect_err("the source fails");
        assert!(error.to_string().contains("the source is gone"), "{error}");
        assert_eq!(fs::read(&path).expect("the file is readable"), b"old");
        open(&path)
            .expect("the target is writable")
            .stream(|to| to.write_all(b"all ").and_then(|()| to.write_all(b"of it")))
            .expect("the output is written");
        assert_eq!(fs::read(&path).expect("the file is readable"), b"all of it");
        assert_eq!(entries(folder.path()), 1);
    }

    #[test]
    fn a_folder_that_is_exchanged_is_still_the_one_that_was_opened() {
        let folder = tempfile::tempdir().expect("a temporary folder is created");
        let (sub, old) = (folder.path().join("sub"), folder.path().join("old"));
        let elsewhere = tempfile::tempdir().expect("a temporary folder is created");
        fs::create_dir(&sub).expect("the folder is created");
        let output = open(&sub.join("out")).expect("the target is writable");
        fs::rename(&sub, &old).expect("the folder is renamed");
        symlink(elsewhere.path(), &sub).expect("the link is created");
        output.commit(b"all of it").expect("the output is written");
        assert_eq!(fs::read(old.join("out")).expect("the file is readable"), b"all of it");
        assert_eq!(entries(elsewhere.path()), 0);
    }

    #[test]
    fn an_output_that_is_given_up_leaves_the_old_file() {
        let folder = tempfile::tempdir().expect("a temporary folder is created");
        let path = folder.path().join("out.json");
        fs::write(&path, "old").expect("the file is written");
        drop(open(&path).expect("the target is writable"));
        assert_eq!(fs::read(&path).expect("the file is readable"), b"old");
        assert_eq!(entries(folder.path()), 1);
    }

    #[test]
    fn a_capture_replaces_only_what_it_may() {
        let folder = tempfile::tempdir().expect("a temporary folder is created");
        let path = folder.path().join("run.ctx");
        let place = |path: &Path, force| place_of_capture(path, force, &access());
        place(&path, false).expect("a new path is accepted");
        assert_eq!(entries(folder.path()), 0, "finding the place creates no file");
        fs::write(&path, "old").expect("the file is written");
        let error = place(&path, false).expect_err("an existing file is refused");
        assert!(error.to_string().contains("--force"), "{error}");
        place(&path, true).expect("force allows replacing the file");
        assert!(place(folder.path(), true).is_err(), "a folder is refused");
        for path in ["/dev/null", "/dev/stdout", "/dev/fd/2"] {
            assert!(place(Path::new(path), true).is_err(), "{path}");
        }
        let link = folder.path().join("link");
        symlink("missing", &link).expect("the link is created");
        assert!(place(&link, false).is_err());
        place(&link, true).expect("force allows replacing the file");
    }

    #[test]
    fn a_file_gets_its_name_when_it_is_asked_for_and_not_before() {
        let folder = tempfile::tempdir().expect("a temporary folder is created");
        let place =
            OutputPlace::find(&folder.path().join("run.ctx"), &FileRights::default()).expect("the folder opens");
        let path = folder.path().join("run.ctx");
        let (nameless, named) = (|| place.folder().nameless_file(), || place.folder().named_file());
        for make in [&nameless as &dyn Fn() -> _, &named] {
            let _ = fs::remove_file(&path);
            for (text, replace) in [("the first", Replace::No), ("the second", Replace::Yes)] {
                let mut file = make().expect("the target is writable");
                file.writer()
                    .and_then(|mut to| to.write_all(text.as_bytes()))
                    .expect("the output is written");
                assert!(!fs::read(&path).is_ok_and(|there| there == text.as_bytes()));
                file.put_at(&place, replace).expect("the file gets its name");
                drop(file);
                assert_eq!(fs::read(&path).expect("the file is readable"), text.as_bytes());
            }
            let error = make()
                .expect("the target is writable")
                .put_at(&place, Replace::No)
                .expect_err("an existing file is not replaced");
            assert_eq!(error.kind(), io::ErrorKind::AlreadyExists);
            assert_eq!(fs::read(&path).expect("the file is readable"), b"the second");
            assert_eq!(
                entries(folder.path()),
                1,
                "a file that was dropped without a name is removed"
            );
        }
    }

    #[test]
    fn paths_that_cannot_be_written_are_found_at_once() {
        let folder = tempfile::tempdir().expect("a temporary folder is created");
        for path in [
            folder.path().to_owned(),
            folder.path().join("missing/out.json"),
            folder.path().join("new/"),
            PathBuf::from("/"),
        ] {
            let error = open(&path).expect_err("the path is refused");
            assert!(error.to_string().starts_with("cannot write "), "{error}");
        }
    }

    #[test]
    fn a_device_is_written_to_and_stays() {
        let output = open(Path::new("/dev/null")).expect("the target is writable");
        assert!(output.path().is_none());
        output.commit(b"gone").expect("the output is written");
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
