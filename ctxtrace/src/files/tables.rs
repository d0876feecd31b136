//! The folder of the tables. It has a subfolder for each table, and a subfolder has a file for each run.
//!
//! As with every output, the folder is checked for write access before the run, files and folders appear only when all tables are
//! complete, and all file operations use the rights of the invoking user.

use std::ffi::{OsStr, OsString};
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use super::output::OutputAccess;
use super::place::{NamelessFile, OutputFolder, Replace};
use crate::error::{Error, Result};
use ctxtrace_report::parquet::{TABLES, TableFolder};

/// The folder of the tables, which was found to be writable.
#[derive(Debug)]
pub struct ParquetFolder {
    path: PathBuf,
    /// The folder itself, or the deepest folder above it that exists.
    base: OutputFolder,
    /// Names of the folders that must be created below `base`, the outermost first. Empty if the folder exists.
    missing: Vec<OsString>,
    /// The files, which get their names together when all of them are complete.
    created: Vec<TableInFolder>,
}

/// A table's file, which has no name yet.
#[derive(Debug)]
struct TableInFolder {
    table: String,
    name: String,
    file: NamelessFile,
}

/// Folders that were created. When this is dropped, those that are still empty are removed, the last one first.
#[derive(Default)]
struct MadeFolders(Vec<(OutputFolder, OsString)>);

impl ParquetFolder {
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
            created: Vec::new(),
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

    /// Gives every file its name, in the order in which the files were created. An existing file of that name belongs to the
    /// same run, and is replaced.
    ///
    /// # Errors
    ///
    /// If a file cannot get its name. The files after it then do not appear.
    pub fn commit(&mut self) -> Result<()> {
        let mut made = MadeFolders::default();
        for mut table in std::mem::take(&mut self.created) {
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

impl TableFolder for ParquetFolder {
    /// Creates a file of a table. It has no name until [`ParquetFolder::commit`].
    fn create(&mut self, table: &str, name: &str) -> io::Result<Box<dyn Write + Send>> {
        // Use the table's own folder if it exists, because it may be on another file system than `base`.
        let subfolder = if self.missing.is_empty() {
            self.base.subfolder(OsStr::new(table))?
        } else {
            None
        };
        let file = subfolder.as_ref().unwrap_or(&self.base).nameless_file()?;
        let writer = file.writer()?;
        self.created.push(TableInFolder {
            table: table.to_owned(),
            name: format!("{name}.parquet"),
            file,
        });
        Ok(Box::new(writer))
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
    use std::os::unix::fs::symlink;

    fn names(folder: &Path) -> Vec<String> {
        let entries = fs::read_dir(folder).expect("the folder is readable").flatten();
        let mut names: Vec<String> = entries
            .map(|entry| entry.file_name().to_string_lossy().into_owned())
            .collect();
        names.sort();
        names
    }

    fn open(path: &Path) -> Result<ParquetFolder> {
        ParquetFolder::open(path, &OutputAccess::new(None))
    }

    fn write(folder: &mut ParquetFolder, text: &[u8]) {
        let mut file = folder.create("host", "vm-1").expect("the table is created");
        file.write_all(text).expect("the table is written");
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
}
