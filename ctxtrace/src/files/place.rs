//! The place of an output file: a folder that is held open by a descriptor, and a file name in that folder.
//!
//! A path is resolved once. From then on the folder is used through its descriptor, so later changes of the path have no effect.
//! All file operations use the rights of the user for whom the file is made ([`FileRights`]), so an attacker who exchanges files
//! or folders during the run gains nothing.
//!
//! A file has no name until it is complete (`O_TMPFILE`), so nothing is left of it if this process ends early. On a file system
//! without `O_TMPFILE` the file has a temporary name, `.ctxtrace-…`, until it is complete.

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

use crate::tracee::user::FileRights;

/// Maximum length of a chain of symbolic links (kernel: `MAXSYMLINKS`). A longer chain fails with `ELOOP`.
const MOST_LINKS: u32 = 40;

/// Mode of a new file, before the umask of this process is applied.
const NEW_FILE: u32 = 0o666;

/// The identity of a file, which does not depend on the path that leads to it.
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
    /// The file that a descriptor refers to; `None` if it is a character device such as a terminal, from which one does not read
    /// what was written to it.
    #[must_use]
    pub fn of_descriptor(fd: impl AsFd) -> Option<Self> {
        fstat(fd).ok().and_then(|stat| Self::of_content(&stat))
    }

    /// The file that a path leads to; `None` if there is no such file, or if it is a character device.
    #[must_use]
    pub fn of_path(path: &Path) -> Option<Self> {
        stat(path).ok().and_then(|stat| Self::of_content(&stat))
    }

    fn of_content(stat: &FileStat) -> Option<Self> {
        (kind(stat) != SFlag::S_IFCHR).then(|| stat.into())
    }
}

/// A folder that is held open, and the rights with which it is used.
#[derive(Clone, Debug)]
pub struct OutputFolder {
    fd: Arc<OwnedFd>,
    rights: FileRights,
}

/// A folder and a file name in it.
#[derive(Clone, Debug)]
pub struct OutputPlace {
    folder: OutputFolder,
    name: OsString,
}

/// What exists at a place.
#[derive(Debug)]
pub(super) enum Existing {
    /// Nothing exists there yet.
    Nothing,
    /// A file, or a symbolic link of the user to a file or to nothing. The new file replaces it. The value is the identity of the
    /// file, if it is known.
    Replaceable(Option<DeviceInode>),
    /// A device or a pipe, held with `O_PATH`. It must be opened for writing.
    Stream(OwnedFd),
    /// A descriptor of this process with this number.
    Descriptor(i32),
}

/// An open file that is written with the rights of the user for whom it is made.
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

    /// Returns the file itself, for reading.
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

/// Whether a new file replaces an existing file of the same name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Replace {
    /// The new file replaces the existing one.
    Yes,
    /// An existing file is an error.
    No,
}

/// A file that has no name yet. If it is dropped before it gets a name, nothing is left of it.
#[derive(Debug)]
pub struct NamelessFile {
    file: UserFile,
    /// On a file system without `O_TMPFILE`: the folder of the file and its temporary name there.
    temporary: Option<(OutputFolder, String)>,
}

impl OutputFolder {
    /// Opens a folder.
    ///
    /// # Errors
    ///
    /// If the folder does not exist, or if the user cannot reach it.
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

    /// Opens the deepest folder of a path that exists. Returns it together with the names of the missing folders below it.
    ///
    /// # Errors
    ///
    /// If a component of the path exists and is not a folder, or is a symbolic link that belongs neither to the user nor to root.
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

    /// Opens the subfolder of this name, if it exists. A symbolic link is followed if it belongs to the user or to root.
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
                "it is a symbolic link that does not lead to a folder: remove it, or create the folder",
            )),
        }
    }

    /// Opens the subfolder of this name, if it exists. A symbolic link is not followed.
    ///
    /// # Errors
    ///
    /// If the name belongs to something other than a folder, for example to a symbolic link.
    pub fn subfolder(&self, name: &OsStr) -> io::Result<Option<Self>> {
        match self.look_at(name)? {
            Some((_, stat)) if kind(&stat) == SFlag::S_IFLNK => Err(not_followed(&stat)),
            Some((fd, stat)) => self.as_folder(fd, &stat).map(Some),
            None => Ok(None),
        }
    }

    /// Opens the subfolder of this name, and creates it if it does not exist. The flag is true if it was created.
    ///
    /// # Errors
    ///
    /// If the name belongs to something other than a folder, or if the folder cannot be created.
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

    /// Removes a subfolder if it is empty.
    pub fn remove_empty_subfolder(&self, name: &OsStr) {
        // The error is ignored: a folder that is not empty stays, and a folder that does not exist needs no removal.
        let _ = self
            .rights
            .apply(|| Ok(unlinkat(&self.fd, name, UnlinkatFlags::RemoveDir)?));
    }

    fn as_folder(&self, fd: OwnedFd, stat: &FileStat) -> io::Result<Self> {
        if kind(stat) != SFlag::S_IFDIR {
            return Err(io::Error::new(
                io::ErrorKind::NotADirectory,
                "it is a file, but the tables need a folder: give the path of a folder",
            ));
        }
        Ok(Self {
            fd: Arc::new(fd),
            rights: self.rights.clone(),
        })
    }

    /// Opens whatever has this name with `O_PATH`, without following a link, and reads its metadata; `None` if nothing has the
    /// name.
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

    /// Checks that a file can be created in the folder, by creating one and dropping it at once. `faccessat` cannot replace this:
    /// it grants root all rights in `/proc`, where no file can be created.
    ///
    /// # Errors
    ///
    /// If no file can be created.
    pub fn check_writable(&self) -> io::Result<()> {
        self.nameless_file().map(drop)
    }

    /// Creates a temporary file that never gets a name. It can be written and read.
    ///
    /// # Errors
    ///
    /// If no file can be created in the folder.
    pub fn scratch_file(&self) -> io::Result<UserFile> {
        if let Some(file) = self.without_a_name(OFlag::O_RDWR)? {
            return Ok(file);
        }
        let (file, name) = self.temporary_file(OFlag::O_RDWR)?;
        self.remove(&name);
        Ok(file)
    }

    /// Creates a file that gets its name later, with [`NamelessFile::put_at`] or [`NamelessFile::put_in`].
    ///
    /// # Errors
    ///
    /// If no file can be created in the folder.
    pub fn nameless_file(&self) -> io::Result<NamelessFile> {
        if let Some(file) = self.without_a_name(OFlag::O_WRONLY)? {
            return Ok(NamelessFile { file, temporary: None });
        }
        self.named_file()
    }

    /// Creates such a file with a temporary name, for a file system without `O_TMPFILE`.
    pub(super) fn named_file(&self) -> io::Result<NamelessFile> {
        let (file, name) = self.temporary_file(OFlag::O_WRONLY)?;
        Ok(NamelessFile {
            file,
            temporary: Some((self.clone(), name)),
        })
    }

    /// Creates a file with `O_TMPFILE`; `None` if the file system does not support that.
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

    /// Calls `make` with random temporary names until one does not exist yet. Fails with `EEXIST` after 100 attempts.
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
        // The error is ignored: a file that cannot be removed stays.
        let _ = self
            .rights
            .apply(|| Ok(unlinkat(&self.fd, name, UnlinkatFlags::NoRemoveDir)?));
    }
}

/// Flags for opening a folder, or a file that is only examined.
const HELD: OFlag = OFlag::O_PATH.union(OFlag::O_CLOEXEC);

impl OutputPlace {
    /// Opens the folder of a path and splits off the file name.
    ///
    /// # Errors
    ///
    /// If the folder cannot be opened, or if the path has no file name.
    pub fn find(path: &Path, rights: &FileRights) -> io::Result<Self> {
        Self::find_at(AT_FDCWD, path, rights)
    }

    fn find_at(at: BorrowedFd<'_>, path: &Path, rights: &FileRights) -> io::Result<Self> {
        let no_file = |what| io::Error::new(io::ErrorKind::InvalidInput, what);
        let name = path
            .file_name()
            .ok_or_else(|| no_file("the path has no file name: give the path of a file"))?;
        if path.as_os_str().as_bytes().ends_with(b"/") {
            return Err(no_file(
                "the path ends in / and so names a folder: give the path of a file",
            ));
        }
        Ok(Self {
            folder: OutputFolder::open_at(at, path.parent().unwrap_or(Path::new("")), rights)?,
            name: name.to_owned(),
        })
    }

    /// The folder of the place.
    #[must_use]
    pub fn folder(&self) -> &OutputFolder {
        &self.folder
    }

    /// Whether both places are the same: the same name in the same folder.
    pub(super) fn is(&self, other: &Self) -> bool {
        let identity = |place: &Self| fstat(&place.folder.fd).ok().map(|stat| DeviceInode::from(&stat));
        self.name == other.name && identity(self) == identity(other)
    }

    /// Examines what exists at the place. Files that the user must not replace or write to are an error.
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
                let target = if is_own || stat.st_uid == 0 {
                    self.behind_link(&fd, links)
                } else {
                    Ok(Existing::Nothing)
                };
                match target {
                    // Such links may belong to root: /dev/stdout is one.
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
                "it is a device that belongs to user {}: give the path of a file",
                stat.st_uid
            )),
            _ => refused("it is not a file, a pipe or a character device: give the path of a file".to_owned()),
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

    /// The number of the descriptor of this process that the place stands for, if its folder is `/proc/self/fd` or
    /// `/proc/thread-self/fd`.
    fn own_descriptor(&self) -> io::Result<Option<i32>> {
        let Some(number) = self.name.to_str().and_then(|name| name.parse().ok()) else {
            return Ok(None);
        };
        let folder = DeviceInode::from(&fstat(&self.folder.fd)?);
        let is_folder = |path: &str| stat(path).is_ok_and(|stat| DeviceInode::from(&stat) == folder);
        Ok((is_folder("/proc/self/fd") || is_folder("/proc/thread-self/fd")).then_some(number))
    }

    /// Checks the rule of sticky folders such as `/tmp`: a file may be replaced only by its owner, by the owner of the folder, or
    /// by root.
    fn check_replaceable(&self, file: &FileStat) -> io::Result<()> {
        let folder = fstat(&self.folder.fd)?;
        let user = self.folder.rights.user();
        let is_sticky = folder.st_mode & libc::S_ISVTX != 0;
        if is_sticky && !user.is_root() && ![file.st_uid, folder.st_uid].contains(&user.as_raw()) {
            return Err(io::Error::new(
                io::ErrorKind::PermissionDenied,
                format!(
                    "it is a file of user {}, and other users may not replace it in this folder: give another path",
                    file.st_uid
                ),
            ));
        }
        Ok(())
    }
}

impl NamelessFile {
    /// Returns a second handle of the file, for writing to it.
    ///
    /// # Errors
    ///
    /// If no descriptor is available.
    pub fn writer(&self) -> io::Result<UserFile> {
        self.file.try_clone()
    }

    /// Gives the file the name of this place.
    ///
    /// # Errors
    ///
    /// If the file cannot get that name.
    pub fn put_at(&mut self, place: &OutputPlace, replace: Replace) -> io::Result<()> {
        self.put_in(&place.folder, &place.name, replace)
    }

    /// Gives the file a name in a folder of the same file system. Signals are blocked meanwhile.
    ///
    /// # Errors
    ///
    /// If the file cannot get that name.
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
        // Only a rename can replace a file, and a rename needs a file that has a name: link it to a temporary name first.
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
        // NFS does not support RENAME_NOREPLACE, but it has hard links.
        Err(Errno::EINVAL | Errno::ENOSYS) => {
            linkat(&from.fd, temporary, &folder.fd, name, AtFlags::empty())?;
            from.remove(temporary);
            Ok(())
        }
        other => Ok(other?),
    }
}

/// Runs `work` with all signals blocked. Only `SIGKILL` can end this process meanwhile.
fn without_signals<T>(work: impl FnOnce() -> io::Result<T>) -> io::Result<T> {
    let before = SigSet::all().thread_swap_mask(SigmaskHow::SIG_SETMASK)?;
    let done = work();
    before.thread_set_mask()?;
    done
}

/// Duplicates a descriptor that this process inherited, by its number. It may refer to a file, a pipe or a terminal. Fails if the
/// descriptor was not inherited or is not open for writing.
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
    // SAFETY: the borrow ends with this function, and for a number that is not open `fcntl` returns an error.
    let fd = unsafe { BorrowedFd::borrow_raw(number) };
    // A descriptor that this process opened itself has FD_CLOEXEC. It was not inherited.
    let flags = fcntl(fd, FcntlArg::F_GETFD).map_err(|_| not_given())?;
    let mode = OFlag::from_bits_truncate(fcntl(fd, FcntlArg::F_GETFL)?) & OFlag::O_ACCMODE;
    if FdFlag::from_bits_truncate(flags).contains(FdFlag::FD_CLOEXEC) || mode == OFlag::O_RDONLY {
        return Err(not_given());
    }
    let copy = fcntl(fd, FcntlArg::F_DUPFD_CLOEXEC(3))?;
    // SAFETY: the kernel has just returned this descriptor, and no other owner exists.
    Ok(unsafe { File::from_raw_fd(copy) })
}

fn kind(stat: &FileStat) -> SFlag {
    SFlag::from_bits_truncate(stat.st_mode & libc::S_IFMT)
}

fn not_followed(link: &FileStat) -> io::Error {
    io::Error::new(
        io::ErrorKind::PermissionDenied,
        format!(
            "it is a symbolic link of user {}, so it is not followed: remove it, or give another path",
            link.st_uid
        ),
    )
}
