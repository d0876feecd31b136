//! Where the bytes go.
//!
//! A target is *opened before the run*, so that a path that cannot be written fails before anything is started, and
//! *committed after it*: a file is written beside its place and renamed into it whole, so that whatever happens there is
//! the old file or the new one and never half of one. Under `sudo` the files are the invoking user's.

use std::fs::{self, File, Permissions};
use std::io::{self, BufWriter, Write};
use std::os::fd::AsRawFd;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt, PermissionsExt, fchown};
use std::path::{Path, PathBuf};

use nix::fcntl::{AT_FDCWD, AtFlags};
use nix::sys::stat::{Mode, umask};
use nix::unistd::{geteuid, linkat};
use tempfile::{NamedTempFile, TempPath};

use crate::error::{Error, Result};
use crate::target::user::Invoker;
use crate::terminal::data_output;

/// Bytes that [`Output::stream`] hands to the kernel at a time.
const WRITTEN_AT_ONCE: usize = 256 << 10;

/// What a path on the command line means: `-` is standard output.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Destination {
    /// Standard output.
    Stdout,
    /// A file.
    File(PathBuf),
}

impl From<PathBuf> for Destination {
    fn from(path: PathBuf) -> Self {
        if path.as_os_str() == "-" {
            Self::Stdout
        } else {
            Self::File(path)
        }
    }
}

/// A target that is known to be writable.
#[derive(Debug)]
pub enum Output {
    /// Standard output.
    Stdout,
    /// A regular file, to appear at its path when it is complete.
    File {
        /// Beside its place until then.
        temporary: NamedTempFile,
        /// Its place.
        path: PathBuf,
    },
    /// A device or a pipe, which cannot be renamed into place.
    Stream {
        /// Open for writing.
        file: File,
        /// For messages.
        path: PathBuf,
    },
}

impl Output {
    /// Opens a target.
    ///
    /// # Errors
    ///
    /// If it cannot be written.
    pub fn open(destination: &Destination, user: Option<&Invoker>) -> Result<Self> {
        match destination {
            Destination::Stdout => Ok(Self::Stdout),
            Destination::File(path) => open_file(path, user).map_err(|source| Error::Output {
                path: path.clone(),
                source,
            }),
        }
    }

    /// The path of the file it makes, if it makes one.
    #[must_use]
    pub fn path(&self) -> Option<&Path> {
        match self {
            Self::File { path, .. } => Some(path),
            Self::Stdout | Self::Stream { .. } => None,
        }
    }

    /// Writes everything.
    ///
    /// # Errors
    ///
    /// If it cannot be written after all (a full disk); the file that was there before, if any, is untouched.
    pub fn commit(self, bytes: &[u8]) -> Result<()> {
        match self {
            Self::Stdout => {
                let mut stdout = data_output();
                stdout
                    .write_all(bytes)
                    .and_then(|()| stdout.flush())
                    .map_err(|source| Error::Output {
                        path: "standard output".into(),
                        source,
                    })
            }
            Self::Stream { mut file, path } => file.write_all(bytes).map_err(|source| Error::Output { path, source }),
            Self::File { mut temporary, path } => temporary
                .write_all(bytes)
                .and_then(|()| temporary.persist(&path).map_err(|error| error.error))
                .map(drop)
                .map_err(|source| Error::Output { path, source }),
        }
    }
}

impl Output {
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
            Self::File { mut temporary, path } => through(&mut temporary)
                .and_then(|()| temporary.persist(&path).map_err(|error| error.error))
                .map(drop)
                .map_err(|source| Error::Output { path, source }),
        }
    }
}

/// Creates a file that is written while the run goes on, and so is at its place from its beginning. What is there already
/// is replaced only if `force` says so; a symbolic link there is never followed.
///
/// # Errors
///
/// If it cannot be created, or if there is one.
pub fn create_in_place(path: &Path, force: bool, user: Option<&Invoker>) -> io::Result<File> {
    if fs::metadata(path).is_ok_and(|existing| !existing.is_file()) {
        return Err(io::Error::new(
            io::ErrorKind::InvalidInput,
            "a capture needs a regular file",
        ));
    }
    let temporary = temporary_beside(path, user)?;
    if force {
        return temporary.persist(path).map_err(|error| error.error);
    }
    temporary
        .persist_noclobber(path)
        .map_err(|error| match error.error.kind() {
            io::ErrorKind::AlreadyExists => {
                io::Error::new(io::ErrorKind::AlreadyExists, "it exists (--force replaces it)")
            }
            _ => error.error,
        })
}

/// A file that will replace the one at a path. Where the filesystem can do it, it has no name until then, so that nothing of
/// it is left should this process be killed.
#[derive(Debug)]
pub enum Successor {
    /// Without a name.
    Unnamed,
    /// Beside its place.
    Named(TempPath),
}

impl Successor {
    /// Makes one, with the file to write.
    ///
    /// # Errors
    ///
    /// If no file can be made in that folder.
    pub fn of(path: &Path, user: Option<&Invoker>) -> io::Result<(Self, File)> {
        let unnamed = File::options()
            .write(true)
            .custom_flags(libc::O_TMPFILE)
            .open(folder_of(path));
        if let Ok(file) = unnamed {
            give(&file, user)?;
            return Ok((Self::Unnamed, file));
        }
        let (file, name) = temporary_beside(path, user)?.into_parts();
        Ok((Self::Named(name), file))
    }

    /// Puts it into its place.
    ///
    /// # Errors
    ///
    /// If it cannot be moved there.
    pub fn replace(self, path: &Path, file: &File) -> io::Result<()> {
        let named = match self {
            Self::Named(name) => name,
            Self::Unnamed => {
                let from = format!("/proc/self/fd/{}", file.as_raw_fd());
                let link = |name: &Path| {
                    linkat(AT_FDCWD, from.as_str(), AT_FDCWD, name, AtFlags::AT_SYMLINK_FOLLOW).map_err(io::Error::from)
                };
                let temporary = tempfile::Builder::new()
                    .prefix(".ctxtrace-")
                    .make_in(folder_of(path), link)?;
                temporary.into_parts().1
            }
        };
        named.persist(path).map_err(|error| error.error)
    }
}

fn open_file(path: &Path, user: Option<&Invoker>) -> io::Result<Output> {
    let existing = fs::metadata(path).ok();
    if existing.as_ref().is_some_and(fs::Metadata::is_dir) {
        return Err(io::Error::new(io::ErrorKind::IsADirectory, "it is a directory"));
    }
    if existing.is_some_and(|metadata| !metadata.is_file()) {
        return Ok(Output::Stream {
            file: open_stream(path, user)?,
            path: path.to_owned(),
        });
    }
    let temporary = temporary_beside(path, user)?;
    Ok(Output::File {
        temporary,
        path: path.to_owned(),
    })
}

/// Opens what is a device or a pipe. A symbolic link to one is followed if it is one of ours or of root's, as `/dev/stdout` is:
/// one that somebody else has planted could lead root to any device.
fn open_stream(path: &Path, user: Option<&Invoker>) -> io::Result<File> {
    let link = fs::symlink_metadata(path)?;
    if link.is_symlink() && !is_trusted(link.uid(), geteuid().as_raw(), user) {
        return Err(io::Error::new(
            io::ErrorKind::PermissionDenied,
            format!(
                "it is a symbolic link, made by user {}, to what is no file: it is not followed",
                link.uid()
            ),
        ));
    }
    let file = File::options().write(true).open(path)?;
    // Somebody may have put another thing there meanwhile.
    if file.metadata()?.is_file() {
        return Err(io::Error::other("it has become a file while it was opened"));
    }
    Ok(file)
}

/// Whether a symbolic link of this owner's is followed.
fn is_trusted(owner: u32, ourselves: u32, user: Option<&Invoker>) -> bool {
    owner == 0 || owner == ourselves || user.is_some_and(|user| user.uid.as_raw() == owner)
}

/// A file under another name in the same folder, from where it can be renamed to the path.
pub(super) fn temporary_beside(path: &Path, user: Option<&Invoker>) -> io::Result<NamedTempFile> {
    if path.file_name().is_none() {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, "it names no file"));
    }
    let temporary = tempfile::Builder::new()
        .prefix(".ctxtrace-")
        .tempfile_in(folder_of(path))?;
    give(temporary.as_file(), user)?;
    Ok(temporary)
}

fn folder_of(path: &Path) -> &Path {
    match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        _ => Path::new("."),
    }
}

/// Gives a new file the rights that new files get, and to the invoking user.
fn give(file: &File, user: Option<&Invoker>) -> io::Result<()> {
    file.set_permissions(Permissions::from_mode(0o666 & !current_umask()))?;
    if let Some(user) = user {
        fchown(file, Some(user.uid.as_raw()), Some(user.gid.as_raw()))?;
    }
    Ok(())
}

/// The mask new files get; reading it means setting it, which is safe while there is one thread.
fn current_umask() -> u32 {
    let mask = umask(Mode::from_bits_truncate(0o022));
    umask(mask);
    mask.bits()
}

#[cfg(test)]
mod tests {
    use super::*;
    use nix::unistd::{Gid, Uid};

    #[test]
    fn a_link_is_followed_if_it_is_ours_or_roots() {
        let invoker = Invoker {
            uid: Uid::from_raw(1_000),
            gid: Gid::from_raw(1_000),
            groups: Vec::new(),
        };
        assert!(is_trusted(0, 1_000, None));
        assert!(is_trusted(1_000, 1_000, None));
        assert!(is_trusted(1_000, 0, Some(&invoker)));
        assert!(!is_trusted(1_000, 0, None));
        assert!(!is_trusted(1_001, 0, Some(&invoker)));
    }

    #[test]
    fn a_stream_is_opened_through_a_link_of_ours() {
        let folder = tempfile::tempdir().expect("a folder");
        let link = folder.path().join("null");
        std::os::unix::fs::symlink("/dev/null", &link).expect("made");
        let output = Output::open(&file(&link), None).expect("writable");
        assert!(matches!(output, Output::Stream { .. }));
        output.commit(b"gone").expect("written");
        assert!(fs::symlink_metadata(&link).expect("there").is_symlink());
    }

    fn file(path: &Path) -> Destination {
        Destination::File(path.to_owned())
    }

    #[test]
    fn a_file_appears_when_it_is_complete_and_not_before() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("out.json");
        let output = Output::open(&file(&path), None).expect("writable");
        assert!(!path.exists());
        output.commit(b"all of it").expect("written");
        assert_eq!(fs::read(&path).expect("there"), b"all of it");
        assert_eq!(
            fs::read_dir(folder.path()).expect("a folder").count(),
            1,
            "nothing is left beside it"
        );
    }

    #[test]
    fn what_is_streamed_appears_whole_or_not_at_all() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("out.pftrace");
        fs::write(&path, "old").expect("written");
        let open = || Output::open(&file(&path), None).expect("writable");
        let error = open()
            .stream(|to| {
                to.write_all(&vec![7; 2 * WRITTEN_AT_ONCE])?;
                Err(io::Error::other("the source is gone"))
            })
            .expect_err("given up");
        assert!(error.to_string().contains("the source is gone"), "{error}");
        assert_eq!(fs::read(&path).expect("there"), b"old");
        open()
            .stream(|to| to.write_all(b"all ").and_then(|()| to.write_all(b"of it")))
            .expect("written");
        assert_eq!(fs::read(&path).expect("there"), b"all of it");
        assert_eq!(fs::read_dir(folder.path()).expect("a folder").count(), 1);
    }

    #[test]
    fn an_output_that_is_given_up_leaves_the_old_file() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("out.json");
        fs::write(&path, "old").expect("written");
        drop(Output::open(&file(&path), None).expect("writable"));
        assert_eq!(fs::read(&path).expect("there"), b"old");
        assert_eq!(fs::read_dir(folder.path()).expect("a folder").count(), 1);
    }

    #[test]
    fn a_file_in_place_replaces_only_what_it_may() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("run.ctx");
        drop(create_in_place(&path, false, None).expect("new"));
        let error = create_in_place(&path, false, None).expect_err("it exists");
        assert!(error.to_string().contains("--force"), "{error}");
        drop(create_in_place(&path, true, None).expect("replaced"));
        assert!(create_in_place(folder.path(), true, None).is_err(), "a folder");
        assert!(create_in_place(Path::new("/dev/null"), true, None).is_err(), "a device");
        let (link, elsewhere) = (folder.path().join("link"), folder.path().join("elsewhere"));
        fs::write(&elsewhere, "precious").expect("written");
        std::os::unix::fs::symlink(&elsewhere, &link).expect("planted");
        assert!(create_in_place(&link, false, None).is_err());
        create_in_place(&link, true, None)
            .expect("replaced")
            .write_all(b"capture")
            .expect("written");
        assert_eq!(fs::read(&elsewhere).expect("there"), b"precious");
        assert_eq!(fs::read(&link).expect("there"), b"capture");
        assert_eq!(fs::read_dir(folder.path()).expect("a folder").count(), 3);
    }

    #[test]
    fn a_successor_appears_when_it_takes_over_and_not_before() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("run.ctx");
        let count = || fs::read_dir(folder.path()).expect("a folder").count();
        fs::write(&path, "the first").expect("written");
        let named = {
            let (file, name) = temporary_beside(&path, None).expect("writable").into_parts();
            (Successor::Named(name), file)
        };
        for (text, (successor, mut file)) in [
            ("the second", Successor::of(&path, None).expect("writable")),
            ("the third", named),
        ] {
            file.write_all(text.as_bytes()).expect("written");
            assert_ne!(fs::read(&path).expect("there"), text.as_bytes());
            successor.replace(&path, &file).expect("moved");
            assert_eq!(fs::read(&path).expect("there"), text.as_bytes());
        }
        assert_eq!(count(), 1);
        drop(Successor::of(&path, None).expect("writable"));
        assert_eq!(count(), 1, "of one that is given up nothing is left");
    }

    #[test]
    fn paths_that_cannot_be_written_are_found_at_once() {
        let folder = tempfile::tempdir().expect("a folder");
        for path in [
            folder.path().to_owned(),
            folder.path().join("missing/out.json"),
            PathBuf::from("/"),
        ] {
            let error = Output::open(&file(&path), None).expect_err("not writable");
            assert!(error.to_string().starts_with("cannot write "), "{error}");
        }
    }

    #[test]
    fn a_device_is_written_to_and_stays() {
        let output = Output::open(&file(Path::new("/dev/null")), None).expect("writable");
        assert!(output.path().is_none());
        output.commit(b"gone").expect("written");
        assert!(Path::new("/dev/null").exists());
    }

    #[test]
    fn a_dash_is_standard_output() {
        assert_eq!(Destination::from(PathBuf::from("-")), Destination::Stdout);
        assert_eq!(Destination::from(PathBuf::from("./-")), file(Path::new("./-")));
    }
}
