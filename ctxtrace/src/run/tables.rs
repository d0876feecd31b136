//! `--parquet`: the tables, opened before the run, written after it.

#[cfg(feature = "parquet")]
pub(super) use with::Tables;
#[cfg(not(feature = "parquet"))]
pub(super) use without::Tables;

#[cfg(feature = "parquet")]
mod with {
    use std::path::{Path, PathBuf};

    use crate::error::Result;
    use crate::report::parquet::{self, Folder};
    use crate::run::spool::Spool;
    use crate::target::user::Invoker;
    use crate::trace::events::EventSource;
    use crate::trace::run::{Info, Run};

    /// The folder, known to be writable, and the events that come until it is written.
    pub(in crate::run) struct Tables {
        path: PathBuf,
        folder: Folder,
        spool: Option<Spool>,
    }

    impl Tables {
        /// `events`: whether events will come that have to be kept.
        pub(in crate::run) fn open(path: &Path, events: bool, user: Option<&Invoker>) -> Result<Self> {
            let folder = Folder::open(path, user)?;
            let begin = || Spool::begin(folder.unnamed_file()?);
            let spool = events.then(begin).transpose().map_err(|error| folder.error(error))?;
            Ok(Self {
                path: path.to_owned(),
                folder,
                spool,
            })
        }

        /// Where events are to be kept.
        pub(in crate::run) fn spool(&mut self) -> Option<&mut Spool> {
            self.spool.as_mut()
        }

        /// Writes them all; `events` has those of a capture that is read, and `damage` what is wrong with it.
        pub(in crate::run) fn write(
            mut self,
            info: &Info,
            runs: &[Run],
            damage: Option<&str>,
            events: Option<&mut dyn EventSource>,
        ) -> Result<PathBuf> {
            match (events, &mut self.spool) {
                (Some(events), _) => parquet::write(&mut self.folder, info, runs, damage, Some(events)),
                (None, Some(spool)) => parquet::write(&mut self.folder, info, runs, damage, Some(spool)),
                (None, None) => parquet::write(&mut self.folder, info, runs, damage, None),
            }?;
            Ok(self.path)
        }
    }
}

#[cfg(not(feature = "parquet"))]
mod without {
    use std::path::{Path, PathBuf};

    use crate::error::{Error, Result};
    use crate::run::spool::Spool;
    use crate::target::user::Invoker;
    use crate::trace::events::EventSource;
    use crate::trace::run::{Info, Run};

    /// There are none.
    pub(in crate::run) enum Tables {}

    impl Tables {
        pub(in crate::run) fn open(_path: &Path, _events: bool, _user: Option<&Invoker>) -> Result<Self> {
            Err(Error::Usage(
                "--parquet is not in this ctxtrace: build it with the feature `parquet`, which is on by default"
                    .to_owned(),
            ))
        }

        pub(in crate::run) fn spool(&mut self) -> Option<&mut Spool> {
            match *self {}
        }

        pub(in crate::run) fn write(
            self,
            _info: &Info,
            _runs: &[Run],
            _damage: Option<&str>,
            _events: Option<&mut dyn EventSource>,
        ) -> Result<PathBuf> {
            match self {}
        }
    }
}
