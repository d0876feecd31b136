//! Where the tables go: a folder of folders, one a table, each with one file a run.
//!
//! As with every output, whether it can be written is found out before the run, nothing appears before all of it is complete, and
//! what is made under `sudo` is the invoking user's.

use std::fs::{self, File};
use std::io;
use std::os::unix::fs::chown;
use std::path::{Path, PathBuf};

use tempfile::NamedTempFile;

use crate::error::{Error, Result};
use crate::report::output::temporary_beside;
use crate::target::user::Invoker;

/// A folder that is known to be writable.
#[derive(Debug)]
pub struct Folder {
    path: PathBuf,
    user: Option<Invoker>,
    /// The folders that were not there before.
    made: Vec<PathBuf>,
    /// What is complete, to appear together.
    complete: Vec<(NamedTempFile, PathBuf)>,
}

impl Folder {
    /// Makes the folder if it is not there, and sees whether files can be made in it.
    ///
    /// # Errors
    ///
    /// If not.
    pub fn open(path: &Path, user: Option<&Invoker>) -> Result<Self> {
        let mut folder = Self {
            path: path.to_owned(),
            user: user.cloned(),
            made: Vec::new(),
            complete: Vec::new(),
        };
        let opened = folder.make(path).and_then(|()| folder.unnamed_file().map(drop));
        opened.map_err(|source| folder.error(source))?;
        Ok(folder)
    }

    /// A file in it that nobody sees and that is gone with its descriptor.
    ///
    /// # Errors
    ///
    /// If there can be none.
    pub fn unnamed_file(&self) -> io::Result<File> {
        tempfile::tempfile_in(&self.path)
    }

    /// What could not be done with it.
    #[must_use]
    pub fn error(&self, source: io::Error) -> Error {
        Error::Output {
            path: self.path.clone(),
            source,
        }
    }

    /// A file of a table, under another name until [`Folder::commit`], and the path it is to have.
    pub(super) fn begin(&mut self, table: &str, name: &str) -> io::Result<(NamedTempFile, PathBuf)> {
        let folder = self.path.join(table);
        self.make(&folder)?;
        let path = folder.join(format!("{name}.parquet"));
        Ok((temporary_beside(&path, self.user.as_ref())?, path))
    }

    pub(super) fn complete(&mut self, file: NamedTempFile, path: PathBuf) {
        self.complete.push((file, path));
    }

    /// Gives every file its name, in the order in which they were completed. A file of that name is one of the same run: it is
    /// replaced.
    ///
    /// # Errors
    ///
    /// If one cannot be given its name; those after it then do not appear.
    pub fn commit(&mut self) -> Result<()> {
        for (file, path) in std::mem::take(&mut self.complete) {
            file.persist(&path).map_err(|error| Error::Output {
                path,
                source: error.error,
            })?;
        }
        Ok(())
    }

    fn make(&mut self, path: &Path) -> io::Result<()> {
        if path.as_os_str().is_empty() || path.is_dir() {
            return Ok(());
        }
        if let Some(parent) = path.parent() {
            self.make(parent)?;
        }
        match fs::create_dir(path) {
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists && path.is_dir() => return Ok(()),
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {
                return Err(io::Error::new(
                    io::ErrorKind::NotADirectory,
                    "it is a file, and the tables need a folder",
                ));
            }
            other => other?,
        }
        self.made.push(path.to_owned());
        if let Some(user) = &self.user {
            chown(path, Some(user.uid.as_raw()), Some(user.gid.as_raw()))?;
        }
        Ok(())
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        // Files that were not completed go first; a folder with something in it stays.
        self.complete.clear();
        for path in self.made.iter().rev() {
            let _ = fs::remove_dir(path);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;

    fn names(folder: &Path) -> Vec<String> {
        let mut names: Vec<String> = walk(folder).collect();
        names.sort();
        names
    }

    fn walk(folder: &Path) -> impl Iterator<Item = String> {
        let entries = fs::read_dir(folder).expect("a folder").flatten();
        entries.map(|entry| entry.file_name().to_string_lossy().into_owned())
    }

    #[test]
    fn nothing_appears_before_all_is_complete() {
        let place = tempfile::tempdir().expect("a folder");
        let path = place.path().join("new/fleet");
        let mut folder = Folder::open(&path, None).expect("writable");
        let (mut file, name) = folder.begin("host", "vm-1").expect("begun");
        file.write_all(b"table").expect("written");
        folder.complete(file, name);
        assert!(!path.join("host/vm-1.parquet").exists());
        folder.commit().expect("committed");
        drop(folder);
        assert_eq!(fs::read(path.join("host/vm-1.parquet")).expect("there"), b"table");
        assert_eq!(names(&path.join("host")), ["vm-1.parquet"]);
    }

    #[test]
    fn what_is_given_up_leaves_nothing_behind() {
        let place = tempfile::tempdir().expect("a folder");
        fs::create_dir(place.path().join("fleet")).expect("made");
        let mut folder = Folder::open(&place.path().join("fleet"), None).expect("writable");
        let (file, name) = folder.begin("host", "vm-1").expect("begun");
        folder.complete(file, name);
        drop(folder);
        assert_eq!(names(&place.path().join("fleet")), Vec::<String>::new());
        drop(Folder::open(&place.path().join("other/one"), None).expect("writable"));
        assert_eq!(names(place.path()), ["fleet"]);
    }

    #[test]
    fn a_file_is_no_folder() {
        let place = tempfile::tempdir().expect("a folder");
        let path = place.path().join("file");
        fs::write(&path, "precious").expect("written");
        for path in [path.clone(), path.join("in-it")] {
            let error = Folder::open(&path, None).expect_err("a file").to_string();
            assert!(error.contains("it is a file, and the tables need a folder"), "{error}");
        }
        assert_eq!(fs::read(&path).expect("there"), b"precious");
    }
}
