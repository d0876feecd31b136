//! Reads the executables of targets, in a process of its own that may do nothing else.
//!
//! Such a file is written by somebody who is not trusted, and ELF and DWARF are hard to read safely: a few bytes promise sizes of
//! 2^62, a file is truncated while it is mapped, a debug link names a FIFO. So the tracer itself never maps or parses one:
//!
//! ```text
//!   tracer                                          reading process (`ctxtrace read-files`)
//!   open: regular files only, never a device
//!   FileReader ── Request, descriptor (SCM_RIGHTS) ─▶ serve: maps the file, target::locate, names (blazesym)
//!              ◀── Reply, bounded and checked ──────  no privileges, RLIMIT_AS, seccomp (sandbox)
//!   deadline; its death is a ReadFailure
//! ```
//!
//! A request that takes too long, or that kills the reading process, costs its own answer and nothing else: the reason is in the
//! report, and the next request starts a new process.
//!
//! * `open`: from a path to the descriptor of a regular file.
//! * `message`: what the two processes send to each other.
//! * `deadline`: how long a question may take.
//! * `process`: the reading process as the tracer sees it.
//! * `sandbox`: what the reading process gives up before it reads anything.
//! * `serve`: the reading process itself.
//! * `names`: functions by the offsets of their code.
//! * `loaded`: bytes and pointers of an executable by their addresses.
//! * `go_functions`: names from the table of functions that every Go program has.
//! * `go_module`: the Go runtime's record of where the parts of its program are.
//! * `go_wrappers`: the function that a goroutine's start function calls, where the compiler made that start function.

mod deadline;
mod go_functions;
mod go_module;
#[cfg(test)]
mod go_synthetic;
mod go_wrappers;
mod loaded;
mod message;
mod names;
mod open;
mod process;
mod sandbox;
mod serve;
#[cfg(test)]
mod tests;

use std::collections::HashMap;
use std::fs::File;
use std::os::fd::BorrowedFd;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

use deadline::Deadline;
use message::{Reply, Request};
pub(crate) use names::symbolized_frames;
pub use open::open_regular_file;
use process::ReaderProcess;
pub use serve::serve;

use crate::target::held::{FileIdentity, HeldFile};
use crate::target::locate::{Found, Look};
use crate::target::programs::{Examiner, Runtimes};
use crate::trace::symbols::Frame;

/// The argument with which this executable is the reading process.
pub const SUBCOMMAND: &str = "read-files";

/// Longest time for one question about what a file contains.
const EXAMINATION_TIME: Duration = Duration::from_secs(10);
/// Longest time for the names of all functions of one file.
const NAMES_TIME: Duration = Duration::from_secs(20);
/// Most files that wait for their examination. What is beyond them is submitted again later.
const MAX_WAITING: usize = 64;
/// Most bytes of all names of one file.
const MAX_NAME_BYTES_OF_FILE: usize = 256 << 20;

/// Why a file could not be read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ReadFailure {
    /// The reading process could not be started, or could not give up its privileges.
    NotStarted(String),
    /// It took longer than this.
    TookTooLong(Duration),
    /// The file needs more memory than the reading process may have (4 GiB).
    TooMuchMemory,
    /// The file is larger than the files that are read (2 GiB).
    TooLarge,
    /// The file was truncated while it was read.
    Truncated,
    /// The reading process stopped at contents that contradict each other.
    Contradiction,
    /// The reading process was killed by a signal of this name.
    Killed(String),
    /// The reading process answered what cannot be an answer.
    Nonsense,
    /// A signal ended the look-up.
    Interrupted,
    /// The time for all files together was over.
    NoTimeLeft(Duration),
    /// The system refused something.
    System(String),
}

impl ReadFailure {
    /// The reason as a part of a sentence; `shown` is the name of the file.
    #[must_use]
    pub fn in_words(&self, shown: &str) -> String {
        match self {
            Self::NotStarted(why) => {
                format!("{shown} was not read: the process that reads files could not be started ({why})")
            }
            Self::TookTooLong(limit) => format!("reading {shown} took longer than {} s", limit.as_secs_f64()),
            Self::TooMuchMemory => format!(
                "{shown} needs more memory to be read than ctxtrace allows ({} GiB)",
                sandbox::MAX_MEMORY_BYTES >> 30
            ),
            Self::TooLarge => format!(
                "{shown} is larger than the files that ctxtrace reads ({} GiB)",
                sandbox::MAX_FILE_BYTES >> 30
            ),
            Self::Truncated => format!("{shown} was truncated while it was read"),
            Self::Contradiction => format!("{shown} has contents that contradict each other"),
            Self::Killed(signal) => format!("the process that read {shown} was killed by {signal}"),
            Self::Nonsense => format!("the process that read {shown} gave no valid answer"),
            Self::Interrupted => format!("a signal ended the look-up before {shown} was read"),
            Self::NoTimeLeft(limit) => format!(
                "{shown} was not read: reading all files took longer than {} s",
                limit.as_secs_f64()
            ),
            Self::System(why) => format!("{shown} was not read: {why}"),
        }
    }
}

/// The places of one file whose functions are looked up, as offsets in the file, bytes.
#[derive(Debug, Default)]
pub struct Places {
    /// Code.
    pub code: Vec<u64>,
    /// Functions that goroutines start with. One that the Go compiler made as a wrapper has the name of the function it calls.
    pub starts: Vec<u64>,
}

impl Places {
    /// The number of places.
    pub(crate) fn len(&self) -> usize {
        self.code.len() + self.starts.len()
    }
}

/// Reads files through a process of its own, which is started with the first request.
///
/// To be used by the thread that has made it: the reading process ends with that thread.
#[derive(Debug, Default)]
pub struct FileReader {
    process: Option<ReaderProcess>,
    /// The examination that the process is at.
    under_way: Option<Examination>,
    /// Executables that are to be examined, the last one first.
    waiting: Vec<Arc<HeldFile>>,
    examined: HashMap<FileIdentity, Found>,
}

/// One examination that nothing waits for.
#[derive(Debug)]
struct Examination {
    file: Arc<HeldFile>,
    deadline: Deadline<'static>,
}

impl FileReader {
    /// Reads nothing yet.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Finds out how the tasks of an executable are found, and waits for it. `shown` is its name in reasons.
    pub fn examine(&mut self, file: &File, shown: &Path) -> Found {
        match self.ask(&Request::Examine, &[file], Deadline::after(EXAMINATION_TIME)) {
            Ok(Reply::Examined(found)) => found,
            Ok(_) => unreadable(&ReadFailure::Nonsense, shown),
            Err(failure) => unreadable(&failure, shown),
        }
    }

    /// Finds out what kind of file it is, and what an examination says.
    ///
    /// # Errors
    ///
    /// If the file cannot be read.
    pub fn look(&mut self, file: &File) -> Result<(Look, Found), ReadFailure> {
        match self.ask(&Request::Look, &[file], Deadline::after(EXAMINATION_TIME))? {
            Reply::Looked(look, found) => Ok((look, found)),
            _ => Err(ReadFailure::Nonsense),
        }
    }

    /// Finds out whether a shared object has the runtime of tokio, or of Go, inside.
    ///
    /// # Errors
    ///
    /// If the file cannot be read until then.
    pub fn mentions(&mut self, file: &File, tokio: bool, go: bool, until: Instant) -> Result<bool, ReadFailure> {
        let deadline = Deadline::at(until, EXAMINATION_TIME);
        match self.ask(&Request::Mentions { tokio, go }, &[file], deadline)? {
            Reply::Mentions(mentioned) => Ok(mentioned),
            _ => Err(ReadFailure::Nonsense),
        }
    }

    /// Names the functions that have code at these places of a file, each with the functions that are inlined there, outermost
    /// first: at the places of `code`, then at those of `starts`. `path` is where the file lies as its process sees it. What is named before a failure stays named.
    ///
    /// The look-up ends when `interrupt` becomes readable.
    pub fn functions(
        &mut self,
        file: &File,
        path: &Path,
        places: &Places,
        until: Instant,
        interrupt: Option<BorrowedFd<'_>>,
    ) -> (Vec<Vec<Frame>>, Option<ReadFailure>) {
        let mut named = Vec::with_capacity(places.len());
        let deadline = Deadline::at(until, NAMES_TIME).or_interrupt(interrupt);
        let failure = self.name_functions(file, path, places, deadline, &mut named).err();
        if let Some(failure) = &failure {
            let shown = path.file_name().unwrap_or(path.as_os_str()).to_string_lossy();
            let frame = Frame::reason(&format!("unknown: {}", failure.in_words(&shown)));
            named.resize(places.len(), vec![frame]);
        }
        (named, failure)
    }

    fn name_functions(
        &mut self,
        file: &File,
        path: &Path,
        places: &Places,
        deadline: Deadline<'_>,
        named: &mut Vec<Vec<Frame>>,
    ) -> Result<(), ReadFailure> {
        if places.len() == 0 {
            return Ok(());
        }
        let debug_file = match self.ask(&Request::DebugLink, &[file], deadline)? {
            Reply::DebugLink(link) => open::open_debug_file(&link, path),
            _ => return Err(ReadFailure::Nonsense),
        };
        let files: Vec<&File> = [Some(file), debug_file.as_ref()].into_iter().flatten().collect();
        let request = Request::Functions {
            code: places.code.clone(),
            starts: places.starts.clone(),
            shown: path
                .file_name()
                .unwrap_or(path.as_os_str())
                .to_string_lossy()
                .into_owned(),
        };
        let mut reply = self.ask(&request, &files, deadline)?;
        let mut bytes = 0;
        loop {
            let Reply::Functions(part) = reply else {
                return Err(ReadFailure::Nonsense);
            };
            bytes += part.iter().flatten().map(|frame| frame.name.len()).sum::<usize>();
            if part.is_empty() || named.len() + part.len() > places.len() || bytes > MAX_NAME_BYTES_OF_FILE {
                self.process = None;
                return Err(ReadFailure::Nonsense);
            }
            named.extend(part);
            if named.len() == places.len() {
                return Ok(());
            }
            reply = self.answer(deadline)?;
        }
    }

    /// Has an executable examined, and waits for the result no longer than `patience`: `None` is to be asked again later, when
    /// [`FileReader::examination_fd`] has become readable or some time has passed. A result is returned once.
    ///
    /// The executables that were submitted last are examined first: those before them have run for a while, and may have ended.
    pub fn examine_within(&mut self, file: &Arc<HeldFile>, patience: Duration) -> Option<Found> {
        let identity = file.identity();
        let until = Instant::now() + patience;
        self.take_answers();
        // Where there is no room it is submitted at a later call.
        if !self.examined.contains_key(&identity) && !self.is_examining(identity) && self.waiting.len() < MAX_WAITING {
            self.waiting.push(Arc::clone(file));
            self.begin_next();
        }
        loop {
            if let Some(found) = self.examined.remove(&identity) {
                return Some(found);
            }
            let left = until.saturating_duration_since(Instant::now());
            let mut answers = [PollFd::new(self.examination_fd()?, PollFlags::POLLIN)];
            let wait = PollTimeout::try_from(left).unwrap_or(PollTimeout::ZERO);
            if left.is_zero() || poll(&mut answers, wait).is_err() {
                return None;
            }
            self.take_answers();
        }
    }

    fn is_examining(&self, identity: FileIdentity) -> bool {
        self.under_way
            .iter()
            .map(|examination| &examination.file)
            .chain(&self.waiting)
            .any(|file| file.identity() == identity)
    }

    /// Becomes readable when an examination that was submitted is over; `None` if none is under way.
    #[must_use]
    pub fn examination_fd(&self) -> Option<BorrowedFd<'_>> {
        self.under_way.as_ref()?;
        self.process.as_ref().map(ReaderProcess::descriptor)
    }

    /// Takes the results that have come, without waiting for any, and ends an examination that takes too long.
    fn take_answers(&mut self) {
        self.begin_next();
        while let Some(examination) = &self.under_way {
            let answered = match self.process.as_mut().map(ReaderProcess::answer_so_far) {
                Some(Ok(None)) if Instant::now() < examination.deadline.until => break,
                Some(Ok(None)) => Err(ReadFailure::TookTooLong(EXAMINATION_TIME)),
                Some(Ok(Some(reply))) => Ok(reply),
                Some(Err(failure)) => Err(failure),
                None => Err(ReadFailure::Nonsense),
            };
            self.end_examination(answered);
            self.begin_next();
        }
    }

    fn begin_next(&mut self) {
        while self.under_way.is_none()
            && let Some(file) = self.waiting.pop()
        {
            let deadline = Deadline::after(EXAMINATION_TIME);
            match self.send(&Request::Examine, &[file.file()], deadline) {
                Ok(()) => self.under_way = Some(Examination { file, deadline }),
                Err(failure) => {
                    let found = unreadable(&failure, file.shown_path());
                    self.examined.insert(file.identity(), found);
                }
            }
        }
    }

    fn end_examination(&mut self, answered: Result<Reply, ReadFailure>) {
        let Some(Examination { file, .. }) = self.under_way.take() else {
            return;
        };
        let found = match answered {
            Ok(Reply::Examined(found)) => found,
            Ok(_) => {
                self.process = None;
                unreadable(&ReadFailure::Nonsense, file.shown_path())
            }
            Err(failure) => {
                self.process = None;
                unreadable(&failure, file.shown_path())
            }
        };
        self.examined.insert(file.identity(), found);
    }

    fn wait_for_examination(&mut self) {
        let Some(examination) = &self.under_way else {
            return;
        };
        let deadline = examination.deadline;
        let answered = self.answer(deadline);
        self.end_examination(answered);
    }

    /// Sends a request and waits for the first answer to it.
    fn ask(&mut self, request: &Request, files: &[&File], deadline: Deadline<'_>) -> Result<Reply, ReadFailure> {
        self.wait_for_examination();
        self.send(request, files, deadline)?;
        self.answer(deadline)
    }

    fn send(&mut self, request: &Request, files: &[&File], deadline: Deadline<'_>) -> Result<(), ReadFailure> {
        for file in files {
            let metadata = file
                .metadata()
                .map_err(|error| ReadFailure::System(error.to_string()))?;
            if !metadata.is_file() {
                return Err(ReadFailure::System("it is no regular file".to_owned()));
            }
            if metadata.len() > sandbox::MAX_FILE_BYTES {
                return Err(ReadFailure::TooLarge);
            }
        }
        let mut process = match self.process.take() {
            Some(process) => process,
            None => ReaderProcess::start()?,
        };
        process.send(request, files, deadline)?;
        self.process = Some(process);
        Ok(())
    }

    /// The next answer. After a failure the process is gone: what it would answer later answers nothing else.
    fn answer(&mut self, deadline: Deadline<'_>) -> Result<Reply, ReadFailure> {
        let mut process = self.process.take().ok_or(ReadFailure::Nonsense)?;
        let reply = process.answer(deadline)?;
        self.process = Some(process);
        Ok(reply)
    }
}

impl Examiner for FileReader {
    fn examine(&mut self, held: &HeldFile) -> Found {
        Self::examine(self, held.file(), held.shown_path())
    }

    fn examine_until(&mut self, held: &HeldFile, until: Instant, limit: Duration) -> Found {
        if Instant::now() >= until {
            return unreadable(&ReadFailure::NoTimeLeft(limit), held.shown_path());
        }
        Examiner::examine(self, held)
    }

    fn examine_within(&mut self, held: &Arc<HeldFile>, patience: Duration) -> Option<Found> {
        Self::examine_within(self, held, patience)
    }

    fn mentions(&mut self, held: &HeldFile, runtimes: Runtimes, until: Instant, shown: &str) -> Result<bool, String> {
        Self::mentions(self, held.file(), runtimes.tokio, runtimes.go, until).map_err(|failure| failure.in_words(shown))
    }
}

/// What is found in an executable that could not be read.
fn unreadable(failure: &ReadFailure, path: &Path) -> Found {
    let shown = path.file_name().unwrap_or(path.as_os_str()).to_string_lossy();
    Found::unreadable(failure.in_words(&shown))
}
