//! Opens the regular file at a path that an untrusted program controls.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use super::message::DebugLink;

/// Folders into which distributions put the debug information removed from executables.
const DEBUG_FOLDERS: [&str; 2] = ["/usr/lib/debug", "/lib/debug"];
/// Minimum length in bytes of a build id that identifies a file.
const MIN_BUILD_ID_BYTES: usize = 8;

/// Opens a regular file for reading. The type of the file is checked before it is opened, so that a device is never opened and a
/// FIFO never blocks.
///
/// # Errors
///
/// If there is no such file, if it may not be read, or if it is not a regular file.
pub fn open_regular_file(path: &Path) -> io::Result<File> {
    // `O_PATH` refers to the file without opening it, so no driver is called.
    let found = OpenOptions::new()
        .read(true)
        .custom_flags(libc::O_PATH | libc::O_CLOEXEC)
        .open(path)?;
    if !found.metadata()?.is_file() {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, "it is not a regular file"));
    }
    // This opens the same file, even if the path leads to another one by now.
    OpenOptions::new()
        .read(true)
        .custom_flags(libc::O_NONBLOCK | libc::O_NOCTTY | libc::O_CLOEXEC)
        .open(format!("/proc/self/fd/{}", found.as_raw_fd()))
}

/// Opens the separate file with an executable's debug information, if there is one that only root can have put there. The reading
/// process checks whether it belongs to the executable.
pub(super) fn open_debug_file(link: &DebugLink, executable: &Path) -> Option<File> {
    if link.has_debug_info {
        return None;
    }
    let candidates = debug_file_candidates(link, executable);
    candidates.iter().find_map(|path| {
        let real = path.canonicalize().ok()?;
        if real == executable || !real.ancestors().all(belongs_to_root) {
            return None;
        }
        open_regular_file(&real).ok()
    })
}

/// The paths at which the debug file of an executable may be, the most reliable one first (GDB manual, "Debugging Information in
/// Separate Files").
fn debug_file_candidates(link: &DebugLink, executable: &Path) -> Vec<PathBuf> {
    let mut candidates = Vec::new();
    if link.build_id.len() >= MIN_BUILD_ID_BYTES {
        let digits = data_encoding::HEXLOWER.encode(&link.build_id);
        let (folder, file) = digits.split_at(2);
        candidates.extend(DEBUG_FOLDERS.map(|debug| Path::new(debug).join(format!(".build-id/{folder}/{file}.debug"))));
    }
    let folder = executable.parent().filter(|folder| folder.is_absolute());
    if let (Some((name, _)), Some(folder)) = (&link.file, folder)
        && is_plain_name(name)
    {
        let inner = folder.strip_prefix("/").unwrap_or(folder);
        candidates.extend(DEBUG_FOLDERS.map(|debug| Path::new(debug).join(inner).join(name)));
        candidates.push(folder.join(name));
        candidates.push(folder.join(".debug").join(name));
    }
    candidates
}

/// Whether this is the name of a file in a folder, and neither the folder itself nor a path out of it.
fn is_plain_name(name: &str) -> bool {
    !name.is_empty() && name != "." && name != ".." && !name.contains(['/', '\0']) && name.len() <= 255
}

/// Whether only root can change the file or folder at this path.
fn belongs_to_root(path: &Path) -> bool {
    path.symlink_metadata()
        .is_ok_and(|metadata| metadata.uid() == 0 && metadata.mode() & 0o022 == 0)
}

#[cfg(test)]
mod tests {
    use super::*;
    use nix::sys::stat::Mode;

    #[test]
    fn only_regular_files_are_opened_and_nothing_is_waited_for() {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let fifo = folder.path().join("fifo");
        nix::unistd::mkfifo(&fifo, Mode::S_IRUSR).expect("it is created");
        let link = folder.path().join("link");
        std::os::unix::fs::symlink("/dev/ptmx", &link).expect("it is created");
        for path in [
            &fifo,
            &link,
            Path::new("/dev/null"),
            Path::new("/etc"),
            &folder.path().join("gone"),
        ] {
            assert!(open_regular_file(path).is_err(), "{}", path.display());
        }
        let file = folder.path().join("file");
        std::fs::write(&file, "text").expect("the file is written");
        let opened = open_regular_file(&file).expect("the file is opened");
        assert_eq!(io::read_to_string(opened).expect("the file is readable"), "text");
    }

    #[test]
    fn a_debug_file_is_sought_by_its_build_id_and_by_its_name() {
        let link = |build_id: &[u8], name: &str| DebugLink {
            has_debug_info: false,
            build_id: build_id.to_vec(),
            file: Some((name.to_owned(), 1)),
        };
        let found = |link: &DebugLink| debug_file_candidates(link, Path::new("/usr/bin/tool"));
        assert_eq!(
            found(&link(&[0xab, 1, 2, 3, 4, 5, 6, 7], "tool.debug")),
            [
                "/usr/lib/debug/.build-id/ab/01020304050607.debug",
                "/lib/debug/.build-id/ab/01020304050607.debug",
                "/usr/lib/debug/usr/bin/tool.debug",
                "/lib/debug/usr/bin/tool.debug",
                "/usr/bin/tool.debug",
                "/usr/bin/.debug/tool.debug",
            ]
            .map(PathBuf::from)
        );
        assert_eq!(found(&link(&[1], "x")).len(), 4, "one byte is too short for a build id");
        for name in ["", ".", "..", "/dev/kmsg", "../x", "a\0b"] {
            assert_eq!(found(&link(&[], name)), Vec::<PathBuf>::new(), "{name:?}");
        }
    }

    #[test]
    fn what_others_can_write_to_is_not_roots() {
        let folder = tempfile::tempdir().expect("a temporary folder");
        assert!(belongs_to_root(Path::new("/usr/bin")));
        assert!(!belongs_to_root(Path::new("/tmp")));
        let mode = std::os::unix::fs::PermissionsExt::from_mode(0o777);
        std::fs::set_permissions(folder.path(), mode).expect("the mode is set");
        assert!(!belongs_to_root(folder.path()));
    }
}
