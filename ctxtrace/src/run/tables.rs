//! The tables of `--parquet`. They are opened before the run and written after it.

#[cfg(feature = "parquet")]
pub(super) use with::Tables;
#[cfg(not(feature = "parquet"))]
pub(super) use without::Tables;

#[cfg(feature = "parquet")]
mod with {
    use std::path::{Path, PathBuf};

    use crate::error::Result;
    use crate::files::output::OutputAccess;
    use crate::files::place::OutputFolder;
    use crate::files::tables::ParquetFolder;
    use ctxtrace_format::events::EventSource;
    use ctxtrace_format::run::{Info, Run};
    use ctxtrace_report::parquet;

    /// The folder of the tables, which is writable.
    pub(in crate::run) struct Tables {
        path: PathBuf,
        folder: ParquetFolder,
    }

    impl Tables {
        pub(in crate::run) fn open(path: &Path, access: &OutputAccess) -> Result<Self> {
            Ok(Self {
                path: path.to_owned(),
                folder: ParquetFolder::open(path, access)?,
            })
        }

        pub(in crate::run) fn holder(&self) -> &OutputFolder {
            self.folder.holder()
        }

        /// Writes all tables and returns their folder. `damage` says what is wrong with the capture that was read, if anything.
        pub(in crate::run) fn write(
            mut self,
            info: &Info,
            runs: &[Run],
            damage: Option<&str>,
            events: &mut dyn EventSource,
        ) -> Result<PathBuf> {
            let written = parquet::write(&mut self.folder, info, runs, damage, events);
            written.map_err(|source| self.folder.error(source))?;
            self.folder.commit()?;
            Ok(self.path)
        }
    }
}

#[cfg(not(feature = "parquet"))]
mod without {
    use std::path::{Path, PathBuf};

    use crate::error::{Error, Result};
    use crate::files::output::OutputAccess;
    use crate::files::place::OutputFolder;
    use ctxtrace_format::events::EventSource;
    use ctxtrace_format::run::{Info, Run};

    /// A type without values, because this build cannot write tables.
    pub(in crate::run) enum Tables {}

    impl Tables {
        pub(in crate::run) fn open(_path: &Path, _access: &OutputAccess) -> Result<Self> {
            Err(Error::Usage(
                "this ctxtrace was built without --parquet: build it with the feature `parquet`, which is on by default"
                    .to_owned(),
            ))
        }

        pub(in crate::run) fn holder(&self) -> &OutputFolder {
            match *self {}
        }

        pub(in crate::run) fn write(
            self,
            _info: &Info,
            _runs: &[Run],
            _damage: Option<&str>,
            _events: &mut dyn EventSource,
        ) -> Result<PathBuf> {
            match self {}
        }
    }
}
