//! A place for a file: a folder that is held by a descriptor, and a name in it.
//!
//! A path is resolved once. From then on the folder is known by its descriptor, so it does not matter what happens to the path.
//! Everything is done with the rights of the user for whom the file is made ([`FileRights`]), so whoever exchanges something
//! under way gains nothing.
//!
//! A file has no name until it is complete (`O_TMPFILE`): nothing is left of it however this process ends. Where the file system
//! has no files without a name, it is called `.ctxtrace-…` until then.

use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::io::{self, Write};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::sync::Arc;

use nix::errno::Errno;
use nix::fcntl::{
    AT_FDCWD, AtFlags, FcntlArg, FdFlag, OFlag, RenameFlags, fcntl, openat, readlinkat, renameat, renameat2,
};
use nix::sys::signal::{SigSet, SigmaskHow};
use nix::sys::stat::{FileStat, Mode, SFlag, fstat, fstatat, mkdirat, stat};
use nix::unistd::{UnlinkatFlags, linkat, unlinkat};

use crate::target::user::FileRights;

/// How many symbolic links may lead from one to the next (kernel: `MAXSYMLINKS`).
const MOST_LINKS: u32 = 40;

/// What a file is made with, as far as the mask of this process allows.
const NEW_FILE: u32 = 0o666;

/// Which file it is, whatever the path that leads to it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DeviceInode {
    device: u64,
    inode: u64,
}

impl From<&FileStat> for DeviceInode {
    fn from(stat: &FileStat) -> Self {
        Self {
            device: stat.st_dev,
            inode: stat.st_ino,
        }
    }
}

impl DeviceInode {
    /// The file that a descriptor is of; `None` if what is read from it is not what was written to it, as with a terminal.
    #[must_use]
    pub fn of_descriptor(fd: impl AsFd) -> Option<Self> {
        fstat(fd).ok().and_then(|stat| Self::of_content(&stat))
    }

    /// The file that a path leads to.
    #[must_use]
    pub fn of_path(path: &Path) -> Option<Self> {
        stat(path).ok().and_then(|stat| Self::of_content(&stat))
    }

    fn of_content(stat: &FileStat) -> Option<Self> {
        (kind(stat) != SFlag::S_IFCHR).then(|| stat.into())
    }
}

/// A folder, held open.
#[derive(Clone, Debug)]
pub struct OutputFolder {
    fd: Arc<OwnedFd>,
    rights: FileRights,
}

/// A folder, and a name in it.
#[derive(Clone, Debug)]
pub struct OutputPlace {
    folder: OutputFolder,
    name: OsString,
}

/// What is at a place.
#[derive(Debug)]
pub(super) enum Existing {
    /// Nothing, so far.
    Nothing,
    /// A file, or a symbolic link of the user's own to one: a new file takes its place. Its identity, if it is known.
    Replaceable(Option<DeviceInode>),
    /// A device or a pipe, held open, to be opened for writing.
    Stream(OwnedFd),
    /// A descriptor of this process, under its number.
    Descriptor(i32),
}

/// A file that is written with the rights of the user for whom it is made.
#[derive(Debug)]
pub struct UserFile {
    file: File,
    rights: FileRights,
}

impl UserFile {
    pub(super) fn new(file: File, rights: &FileRights) -> Self {
        Self {
            file,
            rights: rights.clone(),
        }
    }

    fn try_clone(&self) -> io::Result<Self> {
        Ok(Self::new(self.file.try_clone()?, &self.rights))
    }

    /// The file itself, for reading.
    #[must_use]
    pub fn into_file(self) -> File {
        self.file
    }
}

impl AsFd for UserFile {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.file.as_fd()
    }
}

impl Write for UserFile {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let Self { file, rights } = self;
        rights.apply(|| file.write(bytes))
    }

    fn flush(&mut self) -> io::Result<()> {
        self.file.flush()
    }
}

/// Whether a name that is taken is given to the new file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Replace {
    /// It is.
    Yes,
    /// It is an error.
    No,
}

/// A file that has no name yet. If it never gets one, nothing is left of it.
#[derive(Debug)]
pub struct NamelessFile {
    file: UserFile,
    /// Where the file system has no files without a name: its folder, and how it is called there.
    temporary: Option<(OutputFolder, String)>,
}

impl OutputFolder {
    /// Opens a folder.
    ///
    /// # Errors
    ///
    /// If there is none that the user can reach.
    pub fn open(path: &Path, rights: &FileRights) -> io::Result<Self> {
        Self::open_at(AT_FDCWD, path, rights)
    }

    fn open_at(at: BorrowedFd<'_>, path: &Path, rights: &FileRights) -> io::Result<Self> {
        let path = if path.as_os_str().is_empty() {
            Path::new(".")
        } else {
            path
        };
        let fd = rights.apply(|| Ok(openat(at, path, OFlag::O_DIRECTORY | HELD, Mode::empty())?))?;
        Ok(Self {
            fd: Arc::new(fd),
            rights: rights.clone(),
        })
    }

    /// Opens a path, or what there is of it: the deepest folder that is there, and the names of those that are not.
    ///
    /// # Errors
    ///
    /// If there is something else than a folder in the way, or a symbolic link of somebody who is neither the user nor root.
    pub fn open_deepest(path: &Path, rights: &FileRights) -> io::Result<(Self, Vec<OsString>)> {
        Self::deepest_at(AT_FDCWD, path, rights, 0)
    }

    fn deepest_at(
        at: BorrowedFd<'_>,
        path: &Path,
        rights: &FileRights,
        links: u32,
    ) -> io::Result<(Self, Vec<OsString>)> {
        let (Some(parent), Some(name)) = (path.parent(), path.file_name()) else {
            return Ok((Self::open_at(at, path, rights)?, Vec::new()));
        };
        let (folder, mut missing) = Self::deepest_at(at, parent, rights, links)?;
        if missing.is_empty() {
            match folder.subfolder_following(name, links)? {
                Some(subfolder) => return Ok((subfolder, missing)),
                None => missing.push(name.to_owned()),
            }
        } else {
            missing.push(name.to_owned());
        }
        Ok((folder, missing))
    }

    /// The folder of this name in it, if there is one. A symbolic link is followed if it is the user's own or root's.
    fn subfolder_following(&self, name: &OsStr, links: u32) -> io::Result<Option<Self>> {
        let Some((fd, stat)) = self.look_at(name)? else {
            return Ok(None);
        };
        if kind(&stat) != SFlag::S_IFLNK {
            return self.as_folder(fd, &stat).map(Some);
        }
        if stat.st_uid != self.rights.user().as_raw() && stat.st_uid != 0 {
            return Err(not_followed(&stat));
        }
        if links == MOST_LINKS {
            return Err(Errno::ELOOP.into());
        }
        let target = self.rights.apply(|| Ok(readlinkat(&fd, "")?))?;
        match Self::deepest_at(self.fd.as_fd(), Path::new(&target), &self.rights, links + 1)? {
            (folder, missing) if missing.is_empty() => Ok(Some(folder)),
            _ => Err(io::Error::new(
                io::ErrorKind::NotADirectory,
                "it is a symbolic link that leads to no folder: remove it, or make the folder",
            )),
        }
    }

    /// The folder of this name in it, if there is one. A symbolic link counts as none.
    ///
    /// # Errors
    ///
    /// If there is something else of that name.
    pub fn subfolder(&self, name: &OsStr) -> io::Result<Option<Self>> {
        match self.look_at(name)? {
            Some((_, stat)) if kind(&stat) == SFlag::S_IFLNK => Err(not_followed(&stat)),
            Some((fd, stat)) => self.as_folder(fd, &stat).map(Some),
            None => Ok(None),
        }
    }

    /// The same; if there is none, it is made. The flag says whether it was.
    ///
    /// # Errors
    ///
    /// If there is something else of that name, or it cannot be made.
    pub fn subfolder_or_new(&self, name: &OsStr) -> io::Result<(Self, bool)> {
        if let Some(folder) = self.subfolder(name)? {
            return Ok((folder, false));
        }
        let made = self.rights.apply(|| match mkdirat(&self.fd, name, Mode::all()) {
            Ok(()) => Ok(true),
            Err(Errno::EEXIST) => Ok(false),
            Err(errno) => Err(errno.into()),
        })?;
        let folder = self.subfolder(name)?.ok_or(io::ErrorKind::NotFound)?;
        Ok((folder, made))
    }

    /// Removes a folder in it, if nothing is in that one.
    pub fn remove_empty_subfolder(&self, name: &OsStr) {
        // A folder that something is in stays, and so does one that is gone already.
        let _ = self
            .rights
            .apply(|| Ok(unlinkat(&self.fd, name, UnlinkatFlags::RemoveDir)?));
    }

    fn as_folder(&self, fd: OwnedFd, stat: &FileStat) -> io::Result<Self> {
        if kind(stat) != SFlag::S_IFDIR {
            return Err(io::Error::new(
                io::ErrorKind::NotADirectory,
                "it is a file, and the tables need a folder",
            ));
        }
        Ok(Self {
            fd: Arc::new(fd),
            rights: self.rights.clone(),
        })
    }

    /// Holds what has this name, be it a link, and says what it is; `None` if there is nothing.
    fn look_at(&self, name: &OsStr) -> io::Result<Option<(OwnedFd, FileStat)>> {
        self.rights.apply(|| {
            let fd = match openat(&self.fd, name, OFlag::O_NOFOLLOW | HELD, Mode::empty()) {
                Ok(fd) => fd,
                Err(Errno::ENOENT) => return Ok(None),
                Err(errno) => return Err(errno.into()),
            };
            let stat = fstat(&fd)?;
            Ok(Some((fd, stat)))
        })
    }

    /// Finds out whether a file can be made in it, by making one that is gone at once. The kernel's answer to `faccessat` is no
    /// substitute: in `/proc` root has all rights, and can make no file.
    ///
    /// # Errors
    ///
    /// If no file can be made.
    pub fn check_writable(&self) -> io::Result<()> {
        self.nameless_file().map(drop)
    }

    /// A file that has no name, and that gets none; it can be read too.
    ///
    /// # Errors
    ///
    /// If there can be none.
    pub fn scratch_file(&self) -> io::Result<UserFile> {
        if let Some(file) = self.without_a_name(OFlag::O_RDWR)? {
            return Ok(file);
        }
        let (file, name) = self.temporary_file(OFlag::O_RDWR)?;
        self.remove(&name);
        Ok(file)
    }

    /// A file that is to get a name.
    ///
    /// # Errors
    ///
    /// If there can be none.
    pub fn nameless_file(&self) -> io::Result<NamelessFile> {
        if let Some(file) = self.without_a_name(OFlag::O_WRONLY)? {
            return Ok(NamelessFile { file, temporary: None });
        }
        self.named_file()
    }

    /// The same where the file system has no files without a name.
    pub(super) fn named_file(&self) -> io::Result<NamelessFile> {
        let (file, name) = self.temporary_file(OFlag::O_WRONLY)?;
        Ok(NamelessFile {
            file,
            temporary: Some((self.clone(), name)),
        })
    }

    /// `None` if the file system has no files without a name.
    fn without_a_name(&self, access: OFlag) -> io::Result<Option<UserFile>> {
        let flags = OFlag::O_TMPFILE | OFlag::O_CLOEXEC | access;
        let mode = Mode::from_bits_truncate(NEW_FILE);
        let opened = self.rights.apply(|| Ok(openat(&self.fd, ".", flags, mode)));
        match opened? {
            Ok(fd) => Ok(Some(UserFile::new(fd.into(), &self.rights))),
            Err(Errno::EOPNOTSUPP | Errno::EISDIR | Errno::EINVAL) => Ok(None),
            Err(errno) => Err(errno.into()),
        }
    }

    fn temporary_file(&self, access: OFlag) -> io::Result<(UserFile, String)> {
        let flags = OFlag::O_CREAT | OFlag::O_EXCL | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC | access;
        let mode = Mode::from_bits_truncate(NEW_FILE);
        let (fd, name) = self.with_temporary_name(|name| openat(&self.fd, name, flags, mode))?;
        Ok((UserFile::new(fd.into(), &self.rights), name))
    }

    /// Does something with a name that is not taken.
    fn with_temporary_name<T>(&self, mut make: impl FnMut(&str) -> nix::Result<T>) -> io::Result<(T, String)> {
        const ATTEMPTS: usize = 100;
        self.rights.apply(|| {
            for _ in 0..ATTEMPTS {
                let letters = std::iter::repeat_with(fastrand::alphanumeric).take(8);
                let name = format!(".ctxtrace-{}", letters.collect::<String>());
                match make(&name) {
                    Err(Errno::EEXIST) => {}
                    made => return Ok((made?, name)),
                }
            }
            Err(Errno::EEXIST.into())
        })
    }

    fn remove(&self, name: &str) {
        // What cannot be removed stays.
        let _ = self
            .rights
            .apply(|| Ok(unlinkat(&self.fd, name, UnlinkatFlags::NoRemoveDir)?));
    }
}

/// How what is only looked at, or is a folder, is opened.
const HELD: OFlag = OFlag::O_PATH.union(OFlag::O_CLOEXEC);

impl OutputPlace {
    /// Finds the folder of a path.
    ///
    /// # Errors
    ///
    /// If there is no folder, or no name.
    pub fn find(path: &Path, rights: &FileRights) -> io::Result<Self> {
        Self::find_at(AT_FDCWD, path, rights)
    }

    fn find_at(at: BorrowedFd<'_>, path: &Path, rights: &FileRights) -> io::Result<Self> {
        let no_file = |what| io::Error::new(io::ErrorKind::InvalidInput, what);
        let name = path.file_name().ok_or_else(|| no_file("it names no file"))?;
        if path.as_os_str().as_bytes().ends_with(b"/") {
            return Err(no_file("it names a folder, because of the / at its end"));
        }
        Ok(Self {
            folder: OutputFolder::open_at(at, path.parent().unwrap_or(Path::new("")), rights)?,
            name: name.to_owned(),
        })
    }

    /// The folder.
    #[must_use]
    pub fn folder(&self) -> &OutputFolder {
        &self.folder
    }

    /// Whether both are one place.
    pub(super) fn is(&self, other: &Self) -> bool {
        let identity = |place: &Self| fstat(&place.folder.fd).ok().map(|stat| DeviceInode::from(&stat));
        self.name == other.name && identity(self) == identity(other)
    }

    /// Looks at what is there, and refuses what is somebody else's.
    pub(super) fn existing(&self) -> io::Result<Existing> {
        self.existing_after(0)
    }

    fn existing_after(&self, links: u32) -> io::Result<Existing> {
        if let Some(number) = self.own_descriptor()? {
            return Ok(Existing::Descriptor(number));
        }
        let Some((fd, stat)) = self.folder.look_at(&self.name)? else {
            return Ok(Existing::Nothing);
        };
        let user = self.folder.rights.user().as_raw();
        let is_own = stat.st_uid == user;
        let refused = |what: String| Err(io::Error::new(io::ErrorKind::PermissionDenied, what));
        match kind(&stat) {
            SFlag::S_IFREG => {
                self.check_replaceable(&stat)?;
                Ok(Existing::Replaceable(Some(DeviceInode::from(&stat))))
            }
            SFlag::S_IFDIR => Err(io::Error::new(io::ErrorKind::IsADirectory, "it is a directory")),
            SFlag::S_IFLNK if links == MOST_LINKS => Err(Errno::ELOOP.into()),
            SFlag::S_IFLNK => {
                let behind = if is_own || stat.st_uid == 0 {
                    self.behind_link(&fd, links)
                } else {
                    Ok(Existing::Nothing)
                };
                match behind {
                    // As /dev/stdout is one.
                    Ok(Existing::Descriptor(number)) => Ok(Existing::Descriptor(number)),
                    _ if !is_own => Err(not_followed(&stat)),
                    Ok(Existing::Stream(fd)) => Ok(Existing::Stream(fd)),
                    Err(error) if error.kind() == io::ErrorKind::IsADirectory => Err(error),
                    _ => Ok(Existing::Replaceable(self.identity_of_target())),
                }
            }
            SFlag::S_IFIFO if is_own => Ok(Existing::Stream(fd)),
            SFlag::S_IFCHR if is_own || stat.st_uid == 0 => Ok(Existing::Stream(fd)),
            SFlag::S_IFIFO => refused(format!(
                "it is a FIFO of user {}, who could read what is written: remove it, or give another path",
                stat.st_uid
            )),
            SFlag::S_IFCHR => refused(format!(
                "it is a device of user {}: give the path of a file",
                stat.st_uid
            )),
            _ => refused("it is no file, pipe or terminal: give the path of a file".to_owned()),
        }
    }

    fn behind_link(&self, link: &OwnedFd, links: u32) -> io::Result<Existing> {
        let rights = &self.folder.rights;
        let target = rights.apply(|| Ok(readlinkat(link, "")?))?;
        Self::find_at(self.folder.fd.as_fd(), Path::new(&target), rights)?.existing_after(links + 1)
    }

    fn identity_of_target(&self) -> Option<DeviceInode> {
        let folder = &self.folder;
        let stat = folder
            .rights
            .apply(|| Ok(fstatat(&folder.fd, self.name.as_os_str(), AtFlags::empty())?));
        stat.ok().map(|stat| DeviceInode::from(&stat))
    }

    /// The number of the descriptor of this process that the place stands for, if it is in `/proc/self/fd`.
    fn own_descriptor(&self) -> io::Result<Option<i32>> {
        let Some(number) = self.name.to_str().and_then(|name| name.parse().ok()) else {
            return Ok(None);
        };
        let folder = DeviceInode::from(&fstat(&self.folder.fd)?);
        let is_it = |path: &str| stat(path).is_ok_and(|stat| DeviceInode::from(&stat) == folder);
        Ok((is_it("/proc/self/fd") || is_it("/proc/thread-self/fd")).then_some(number))
    }

    /// In a folder like `/tmp`, where anybody makes files, only its owner replaces one.
    fn check_replaceable(&self, file: &FileStat) -> io::Result<()> {
        let folder = fstat(&self.folder.fd)?;
        let user = self.folder.rights.user();
        let is_sticky = folder.st_mode & libc::S_ISVTX != 0;
        if is_sticky && !user.is_root() && ![file.st_uid, folder.st_uid].contains(&user.as_raw()) {
            return Err(io::Error::new(
                io::ErrorKind::PermissionDenied,
                format!(
                    "it is a file of user {}, and nobody else may replace it in this folder: give another path",
                    file.st_uid
                ),
            ));
        }
        Ok(())
    }
}

impl NamelessFile {
    /// What is written to it.
    ///
    /// # Errors
    ///
    /// If there are no descriptors left.
    pub fn writer(&self) -> io::Result<UserFile> {
        self.file.try_clone()
    }

    /// Gives it its name.
    ///
    /// # Errors
    ///
    /// If it cannot have that name.
    pub fn put_at(&mut self, place: &OutputPlace, replace: Replace) -> io::Result<()> {
        self.put_in(&place.folder, &place.name, replace)
    }

    /// Gives it a name in a folder of the same file system. No signal comes between the steps.
    ///
    /// # Errors
    ///
    /// If it cannot have that name.
    pub fn put_in(&mut self, folder: &OutputFolder, name: &OsStr, replace: Replace) -> io::Result<()> {
        without_signals(|| {
            folder.rights.apply(|| match self.temporary.take() {
                Some((from, temporary)) => {
                    let put = rename_to(&from, &temporary, folder, name, replace);
                    if put.is_err() {
                        self.temporary = Some((from, temporary));
                    }
                    put
                }
                None => self.link_to(folder, name, replace),
            })
        })
    }

    fn link_to(&self, folder: &OutputFolder, name: &OsStr, replace: Replace) -> io::Result<()> {
        let from = format!("/proc/self/fd/{}", self.file.as_fd().as_raw_fd());
        let link = |name: &OsStr| linkat(AT_FDCWD, from.as_str(), &folder.fd, name, AtFlags::AT_SYMLINK_FOLLOW);
        match link(name) {
            Err(Errno::EEXIST) if replace == Replace::Yes => {}
            other => return Ok(other?),
        }
        // The kernel replaces a file only by renaming, which takes another name first.
        let ((), temporary) = folder.with_temporary_name(|name| link(OsStr::new(name)))?;
        let renamed = renameat(&folder.fd, temporary.as_str(), &folder.fd, name);
        if renamed.is_err() {
            folder.remove(&temporary);
        }
        Ok(renamed?)
    }
}

impl Drop for NamelessFile {
    fn drop(&mut self) {
        if let Some((folder, name)) = &self.temporary {
            folder.remove(name);
        }
    }
}

fn rename_to(
    from: &OutputFolder,
    temporary: &str,
    folder: &OutputFolder,
    name: &OsStr,
    replace: Replace,
) -> io::Result<()> {
    if replace == Replace::Yes {
        return Ok(renameat(&from.fd, temporary, &folder.fd, name)?);
    }
    match renameat2(&from.fd, temporary, &folder.fd, name, RenameFlags::RENAME_NOREPLACE) {
        // NFS does not know of it, and has links.
        Err(Errno::EINVAL | Errno::ENOSYS) => {
            linkat(&from.fd, temporary, &folder.fd, name, AtFlags::empty())?;
            from.remove(temporary);
            Ok(())
        }
        other => Ok(other?),
    }
}

/// Does something while no signal can end this process, but for `SIGKILL`.
fn without_signals<T>(work: impl FnOnce() -> io::Result<T>) -> io::Result<T> {
    let before = SigSet::all().thread_swap_mask(SigmaskHow::SIG_SETMASK)?;
    let done = work();
    before.thread_set_mask()?;
    done
}

/// Another descriptor of what this process was given under a number: a file, a pipe, a terminal.
pub(super) fn inherited_descriptor(number: i32) -> io::Result<File> {
    let not_given = || {
        io::Error::new(
            io::ErrorKind::InvalidInput,
            format!("descriptor {number} is not open for writing"),
        )
    };
    if number < 0 {
        return Err(not_given());
    }
    // SAFETY: it is used in this function only, and a number that is not open is answered by an error.
    let fd = unsafe { BorrowedFd::borrow_raw(number) };
    // What this process has opened itself is marked so that no program it starts inherits it.
    let flags = fcntl(fd, FcntlArg::F_GETFD).map_err(|_| not_given())?;
    let mode = OFlag::from_bits_truncate(fcntl(fd, FcntlArg::F_GETFL)?) & OFlag::O_ACCMODE;
    if FdFlag::from_bits_truncate(flags).contains(FdFlag::FD_CLOEXEC) || mode == OFlag::O_RDONLY {
        return Err(not_given());
    }
    let copy = fcntl(fd, FcntlArg::F_DUPFD_CLOEXEC(3))?;
    // SAFETY: the kernel has just given this descriptor.
    Ok(unsafe { File::from_raw_fd(copy) })
}

fn kind(stat: &FileStat) -> SFlag {
    SFlag::from_bits_truncate(stat.st_mode & libc::S_IFMT)
}

fn not_followed(link: &FileStat) -> io::Error {
    io::Error::new(
        io::ErrorKind::PermissionDenied,
        format!(
            "it is a symbolic link of user {}, and it is not followed: remove it, or give another path",
            link.st_uid
        ),
    )
}
