//! Finds the file of a program by the first word of a command.

use std::ffi::OsStr;
use std::io;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use crate::error::{Error, Result};

/// The folders in which programs are searched if `PATH` is not set.
const DEFAULT_PATH: &str = "/usr/local/bin:/usr/bin:/bin";

/// Returns the file of a command. A name that contains a slash is returned unchanged. Otherwise the result is the first
/// executable file of that name in `path`, a list of folders as in the variable `PATH`.
///
/// # Errors
///
/// If there is no such file, or if it may not be executed.
pub fn find_program(name: &OsStr, path: Option<&OsStr>) -> Result<PathBuf> {
    if name.as_encoded_bytes().contains(&b'/') {
        return Ok(PathBuf::from(name));
    }
    let folders = path.unwrap_or(OsStr::new(DEFAULT_PATH));
    let mut error = io::ErrorKind::NotFound;
    for folder in std::env::split_paths(folders) {
        // An empty entry means the current folder (POSIX, "Other Environment Variables").
        let folder = if folder.as_os_str().is_empty() {
            Path::new(".")
        } else {
            folder.as_path()
        };
        let candidate = folder.join(name);
        match candidate.metadata() {
            Ok(file) if file.is_file() && file.permissions().mode() & 0o111 != 0 && !name.is_empty() => {
                return Ok(candidate);
            }
            Ok(file) if file.is_file() => error = io::ErrorKind::PermissionDenied,
            _ => {}
        }
    }
    Err(Error::Launch {
        program: name.into(),
        user: None,
        source: match error {
            io::ErrorKind::PermissionDenied => io::Error::from_raw_os_error(libc::EACCES),
            _ => io::Error::from_raw_os_error(libc::ENOENT),
        },
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs::{self, Permissions};

    #[test]
    fn the_first_that_may_be_executed_is_taken() {
        let folders = tempfile::tempdir().expect("a folder");
        let file = |folder: &str, mode| {
            let folder = folders.path().join(folder);
            fs::create_dir_all(&folder).expect("made");
            let file = folder.join("tool");
            fs::write(&file, "").expect("written");
            fs::set_permissions(&file, Permissions::from_mode(mode)).expect("set");
            folder
        };
        let (plain, program) = (file("a", 0o644), file("b", 0o755));
        fs::create_dir_all(folders.path().join("c/tool")).expect("made");
        let path = |folders: &[&Path]| std::env::join_paths(folders).expect("no colons");
        let find = |path: &OsStr| find_program(OsStr::new("tool"), Some(path));
        let folder = folders.path().join("c");
        assert_eq!(
            find(&path(&[&folder, &plain, &program])).expect("found"),
            program.join("tool")
        );
        let denied = find(&path(&[&plain])).expect_err("not executable");
        assert_eq!(denied.exit_status_beside_a_commands(), 126);
        let missing = find(&path(&[&folder])).expect_err("a folder is not a program");
        assert_eq!(missing.exit_status_beside_a_commands(), 127);
    }

    #[test]
    fn a_name_with_a_slash_is_a_path() {
        assert_eq!(
            find_program(OsStr::new("./x"), None).expect("returned unchanged"),
            Path::new("./x")
        );
        assert!(find_program(OsStr::new("sh"), None).expect("found").ends_with("sh"));
        assert!(find_program(OsStr::new(""), None).is_err());
    }
}
