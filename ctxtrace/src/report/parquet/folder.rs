//! The folder of the tables. It has a subfolder for each table, and a subfolder has a file for each run.
//!
//! As with every output, the folder is checked for write access before the run, files and folders appear only when all tables are
//! complete, and all file operations use the rights of the invoking user.

use std::ffi::{OsStr, OsString};
use std::io;
use std::path::{Path, PathBuf};

use crate::error::{Error, Result};
use crate::report::output::OutputAccess;
use crate::report::place::{NamelessFile, OutputFolder, Replace};

/// Names of all tables.
const TABLES: [&str; 11] = [
    "host",
    "programs",
    "ledger",
    "tasks",
    "latency",
    "latency_buckets",
    "wakeups",
    "threads",
    "switches",
    "wakings",
    "polls",
];

/// The folder of the tables, which was found to be writable.
#[derive(Debug)]
pub struct Folder {
    path: PathBuf,
    /// The folder itself, or the deepest folder above it that exists.
    base: OutputFolder,
    /// Names of the folders that must be created below `base`, the outermost first. Empty if the folder exists.
    missing: Vec<OsString>,
    /// Complete files, which get their names together.
    complete: Vec<TableInFolder>,
}

/// A table's file, which has no name yet.
#[derive(Debug)]
pub(super) struct TableInFolder {
    table: String,
    name: String,
    file: NamelessFile,
}

/// Folders that were created. When this is dropped, those that are still empty are removed, the last one first.
#[derive(Default)]
struct MadeFolders(Vec<(OutputFolder, OsString)>);

impl Folder {
    /// Opens the folder and checks that files can be created in it. A folder that does not exist is created later, when the
    /// tables are complete.
    ///
    /// # Errors
    ///
    /// If the folder, or a folder of a table in it, cannot be opened or written.
    pub fn open(path: &Path, access: &OutputAccess) -> Result<Self> {
        let opened = OutputFolder::open_deepest(path, access.rights()).and_then(|(base, missing)| {
            base.check_writable()?;
            if missing.is_empty() {
                for table in TABLES {
                    base.subfolder(OsStr::new(table))?;
                }
            }
            Ok((base, missing))
        });
        let (base, missing) = opened.map_err(|source| Error::Output {
            path: path.to_owned(),
            source,
        })?;
        Ok(Self {
            path: path.to_owned(),
            base,
            missing,
            complete: Vec::new(),
        })
    }

    /// The folder for temporary files: this folder, or the deepest folder above it that exists.
    #[must_use]
    pub fn holder(&self) -> &OutputFolder {
        &self.base
    }

    /// Makes an error that names the path of this folder.
    #[must_use]
    pub fn error(&self, source: io::Error) -> Error {
        Error::Output {
            path: self.path.clone(),
            source,
        }
    }

    /// Creates a file of a table. It has no name until [`Folder::commit`].
    pub(super) fn begin(&self, table: &str, name: &str) -> io::Result<TableInFolder> {
        // Use the table's own folder if it exists, because it may be on another file system than `base`.
        let subfolder = if self.missing.is_empty() {
            self.base.subfolder(OsStr::new(table))?
        } else {
            None
        };
        Ok(TableInFolder {
            table: table.to_owned(),
            name: format!("{name}.parquet"),
            file: subfolder.as_ref().unwrap_or(&self.base).nameless_file()?,
        })
    }

    pub(super) fn complete(&mut self, table: TableInFolder) {
        self.complete.push(table);
    }

    /// Gives every file its name, in the order in which the files were completed. An existing file of that name belongs to the
    /// same run, and is replaced.
    ///
    /// # Errors
    ///
    /// If a file cannot get its name. The files after it then do not appear.
    pub fn commit(&mut self) -> Result<()> {
        let mut made = MadeFolders::default();
        for mut table in std::mem::take(&mut self.complete) {
            let put = self
                .make(&table.table, &mut made)
                .and_then(|folder| table.file.put_in(&folder, OsStr::new(&table.name), Replace::Yes));
            put.map_err(|source| Error::Output {
                path: self.path.join(&table.table).join(&table.name),
                source,
            })?;
        }
        Ok(())
    }

    /// Opens the folder of a table, and creates the folders that are missing.
    fn make(&self, table: &str, made: &mut MadeFolders) -> io::Result<OutputFolder> {
        let mut folder = self.base.clone();
        for name in self.missing.iter().map(OsString::as_os_str).chain([OsStr::new(table)]) {
            let (subfolder, is_new) = folder.subfolder_or_new(name)?;
            if is_new {
                made.0.push((folder, name.to_owned()));
            }
            folder = subfolder;
        }
        Ok(folder)
    }
}

impl TableInFolder {
    /// Returns a handle for writing to the file.
    pub(super) fn writer(&self) -> io::Result<crate::report::place::UserFile> {
        self.file.writer()
    }
}

impl Drop for MadeFolders {
    fn drop(&mut self) {
        // Only empty folders are removed.
        for (folder, name) in self.0.iter().rev() {
            folder.remove_empty_subfolder(name);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;
    use std::io::Write;
    use std::os::unix::fs::symlink;

    fn names(folder: &Path) -> Vec<String> {
        let entries = fs::read_dir(folder).expect("the folder is readable").flatten();
        let mut names: Vec<String> = entries
            .map(|entry| entry.file_name().to_string_lossy().into_owned())
            .collect();
        names.sort();
        names
    }

    fn open(path: &Path) -> Result<Folder> {
        Folder::open(path, &OutputAccess::new(None))
    }

    fn write(folder: &mut Folder, text: &[u8]) {
        let table = folder.begin("host", "vm-1").expect("the table is created");
        table
            .writer()
            .and_then(|mut to| to.write_all(text))
            .expect("the table is written");
        folder.complete(table);
    }

    #[test]
    fn nothing_appears_before_all_is_complete() {
        let place = tempfile::tempdir().expect("a temporary folder is created");
        let path = place.path().join("new/fleet");
        for text in [b"table", b"again"] {
            let mut folder = open(&path).expect("the folder is writable");
            let before = names(place.path());
            write(&mut folder, text);
            assert_eq!(names(place.path()), before);
            folder.commit().expect("the files get their names");
            drop(folder);
            assert_eq!(
                fs::read(path.join("host/vm-1.parquet")).expect("the file is readable"),
                text
            );
            assert_eq!(names(&path.join("host")), ["vm-1.parquet"]);
        }
    }

    #[test]
    fn what_is_given_up_leaves_nothing_behind() {
        let place = tempfile::tempdir().expect("a temporary folder is created");
        fs::create_dir(place.path().join("fleet")).expect("the folder is created");
        let mut folder = open(&place.path().join("fleet")).expect("the folder is writable");
        write(&mut folder, b"table");
        drop(folder);
        assert_eq!(names(&place.path().join("fleet")), Vec::<String>::new());
        let mut folder = open(&place.path().join("other/one")).expect("the folder is writable");
        write(&mut folder, b"table");
        // Another process creates a file at the path of the missing folder.
        fs::write(place.path().join("other"), "precious").expect("the file is written");
        folder.commit().expect_err("a file is at the path of the folder");
        drop(folder);
        assert_eq!(names(place.path()), ["fleet", "other"]);
    }

    #[test]
    fn a_file_is_no_folder() {
        let place = tempfile::tempdir().expect("a temporary folder is created");
        let path = place.path().join("file");
        fs::write(&path, "precious").expect("the file is written");
        for path in [path.clone(), path.join("in-it")] {
            let error = open(&path).expect_err("a file is refused").to_string();
            assert!(error.contains("it is a file, but the tables need a folder"), "{error}");
        }
        assert_eq!(fs::read(&path).expect("the file is readable"), b"precious");
    }

    #[test]
    fn a_link_of_ones_own_is_followed_to_the_folder_and_not_within_it() {
        let place = tempfile::tempdir().expect("a temporary folder is created");
        let (fleet, elsewhere) = (place.path().join("fleet"), place.path().join("elsewhere"));
        fs::create_dir(&elsewhere).expect("the folder is created");
        symlink("elsewhere", &fleet).expect("the link is created");
        let mut folder = open(&fleet).expect("the folder is writable");
        write(&mut folder, b"table");
        folder.commit().expect("the files get their names");
        assert_eq!(names(&elsewhere), ["host"]);
        symlink("/", elsewhere.join("tasks")).expect("the link is created");
        let error = open(&fleet)
            .expect_err("a link within the folder is refused")
            .to_string();
        assert!(error.contains("it is not followed"), "{error}");
        fs::remove_file(&fleet).expect("the link is removed");
        symlink("missing", &fleet).expect("the link is created");
        let error = open(&fleet).expect_err("a dangling link is refused").to_string();
        assert!(error.contains("does not lead to a folder"), "{error}");
    }

    #[test]
    fn every_table_is_looked_at_before_the_run() {
        let rows = include_str!("mod.rs");
        for table in TABLES {
            assert!(rows.contains(&format!("DIR/{table}/")), "{table}");
        }
        assert_eq!(rows.matches("DIR/").count(), TABLES.len());
    }
}
