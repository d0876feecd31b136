//! Where the tables go: a folder of folders, one a table, each with one file a run.
//!
//! As with every output, whether it can be written is found out before the run, nothing appears before all of it is complete (the
//! folders neither), and everything is done with the invoking user's rights.

use std::ffi::{OsStr, OsString};
use std::io;
use std::path::{Path, PathBuf};

use crate::error::{Error, Result};
use crate::report::output::OutputAccess;
use crate::report::place::{NamelessFile, OutputFolder, Replace};

/// Every table that there can be.
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

/// A folder that is known to be writable.
#[derive(Debug)]
pub struct Folder {
    path: PathBuf,
    /// The folder, or the one above it that is there.
    base: OutputFolder,
    /// What has to be made below that one, from the top.
    missing: Vec<OsString>,
    /// What is complete, to appear together.
    complete: Vec<TableInFolder>,
}

/// A file of a table that has no name yet.
#[derive(Debug)]
pub(super) struct TableInFolder {
    table: String,
    name: String,
    file: NamelessFile,
}

/// Folders that were made for files which then did not appear: they go, from the last one.
#[derive(Default)]
struct MadeFolders(Vec<(OutputFolder, OsString)>);

impl Folder {
    /// Sees whether files can be made in the folder. It is made, if it is not there, when the tables are complete.
    ///
    /// # Errors
    ///
    /// If not.
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

    /// The folder that holds what is temporary: this one, or the one above it that is there.
    #[must_use]
    pub fn holder(&self) -> &OutputFolder {
        &self.base
    }

    /// What could not be done with it.
    #[must_use]
    pub fn error(&self, source: io::Error) -> Error {
        Error::Output {
            path: self.path.clone(),
            source,
        }
    }

    /// A file of a table, without a name until [`Folder::commit`].
    pub(super) fn begin(&self, table: &str, name: &str) -> io::Result<TableInFolder> {
        // In the table's own folder, if there is one: it may be another file system.
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

    /// Gives every file its name, in the order in which they were completed. A file of that name is one of the same run: it is
    /// replaced.
    ///
    /// # Errors
    ///
    /// If one cannot be given its name; those after it then do not appear.
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

    /// The folder of a table.
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
    /// What is written to it.
    pub(super) fn writer(&self) -> io::Result<crate::report::place::UserFile> {
        self.file.writer()
    }
}

impl Drop for MadeFolders {
    fn drop(&mut self) {
        // A folder with a file in it stays.
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
        let entries = fs::read_dir(folder).expect("a folder").flatten();
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
        let table = folder.begin("host", "vm-1").expect("begun");
        table.writer().and_then(|mut to| to.write_all(text)).expect("written");
        folder.complete(table);
    }

    #[test]
    fn nothing_appears_before_all_is_complete() {
        let place = tempfile::tempdir().expect("a folder");
        let path = place.path().join("new/fleet");
        for text in [b"table", b"again"] {
            let mut folder = open(&path).expect("writable");
            let before = names(place.path());
            write(&mut folder, text);
            assert_eq!(names(place.path()), before);
            folder.commit().expect("committed");
            drop(folder);
            assert_eq!(fs::read(path.join("host/vm-1.parquet")).expect("there"), text);
            assert_eq!(names(&path.join("host")), ["vm-1.parquet"]);
        }
    }

    #[test]
    fn what_is_given_up_leaves_nothing_behind() {
        let place = tempfile::tempdir().expect("a folder");
        fs::create_dir(place.path().join("fleet")).expect("made");
        let mut folder = open(&place.path().join("fleet")).expect("writable");
        write(&mut folder, b"table");
        drop(folder);
        assert_eq!(names(&place.path().join("fleet")), Vec::<String>::new());
        let mut folder = open(&place.path().join("other/one")).expect("writable");
        write(&mut folder, b"table");
        // Somebody else's, made meanwhile.
        fs::write(place.path().join("other"), "precious").expect("written");
        folder.commit().expect_err("in the way");
        drop(folder);
        assert_eq!(names(place.path()), ["fleet", "other"]);
    }

    #[test]
    fn a_file_is_no_folder() {
        let place = tempfile::tempdir().expect("a folder");
        let path = place.path().join("file");
        fs::write(&path, "precious").expect("written");
        for path in [path.clone(), path.join("in-it")] {
            let error = open(&path).expect_err("a file").to_string();
            assert!(error.contains("it is a file, and the tables need a folder"), "{error}");
        }
        assert_eq!(fs::read(&path).expect("there"), b"precious");
    }

    #[test]
    fn a_link_of_ones_own_is_followed_to_the_folder_and_not_within_it() {
        let place = tempfile::tempdir().expect("a folder");
        let (fleet, elsewhere) = (place.path().join("fleet"), place.path().join("elsewhere"));
        fs::create_dir(&elsewhere).expect("made");
        symlink("elsewhere", &fleet).expect("made");
        let mut folder = open(&fleet).expect("writable");
        write(&mut folder, b"table");
        folder.commit().expect("committed");
        assert_eq!(names(&elsewhere), ["host"]);
        symlink("/", elsewhere.join("tasks")).expect("planted");
        let error = open(&fleet).expect_err("a link").to_string();
        assert!(error.contains("it is not followed"), "{error}");
        fs::remove_file(&fleet).expect("removed");
        symlink("missing", &fleet).expect("made");
        let error = open(&fleet).expect_err("leads nowhere").to_string();
        assert!(error.contains("leads to no folder"), "{error}");
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
