//! Reads the executables of targets, in a separate process that may do nothing else.
//!
//! The author of such a file is not trusted, and ELF and DWARF are hard to read safely: a few bytes claim sizes of 2^62, a file
//! is truncated while it is mapped, a debug link names a FIFO. So the tracer itself never maps or parses such a file:
//!
//! ```text
//!   tracer                                          reading process (`ctxtrace read-files`)
//!   open: regular files only, never a device
//!   FileReader ── Request, descriptor (SCM_RIGHTS) ─▶ serve: maps the file, tracee::locate, names (blazesym)
//!              ◀── Reply, bounded and checked ──────  no privileges, RLIMIT_AS, seccomp (sandbox)
//!   deadline; if it dies: a ReadFailure
//! ```
//!
//! A request that takes too long, or that kills the reading process, fails alone: the report has the reason, and the next request
//! starts a new process.
//!
//! * `open`: opens the regular file at a path.
//! * `message`: the messages between the two processes.
//! * `deadline`: how long a request may take.
//! * `process`: the reading process, as the tracer controls it.
//! * `sandbox`: drops the reading process's privileges before it reads anything.
//! * `serve`: the main loop of the reading process.
//! * `names`: names functions by the offsets of their code.
//! * `loaded`: bytes and pointers of an executable by their addresses.
//! * `go_functions`: names from the table of functions that every Go program has.
//! * `go_module`: the Go runtime's record of where the parts of the program are.
//! * `go_wrappers`: the function that a goroutine's start function calls, if the compiler generated the start function.

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

use crate::tracee::held::HeldFile;
use crate::tracee::programs::{CommonDeadline, Examiner, Runtimes};
use ctxtrace_format::executable::{Found, Look};
use ctxtrace_format::mappings::FileIdentity;
use ctxtrace_format::symbols::Frame;

/// The argument that makes this executable run as the reading process.
pub const SUBCOMMAND: &str = "read-files";

/// Maximum time for one request about the contents of a file.
const EXAMINATION_TIME: Duration = Duration::from_secs(10);
/// Maximum time to name the functions of one file.
const NAMES_TIME: Duration = Duration::from_secs(20);
/// Maximum number of files that wait for their examination. Further files must be submitted again later.
const MAX_WAITING: usize = 64;
/// Maximum total size in bytes of the names of one file. A longer answer is refused.
const MAX_NAME_BYTES_OF_FILE: usize = 256 << 20;

/// Why a file could not be read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ReadFailure {
    /// The reading process could not be started, or could not give up its privileges.
    NotStarted(String),
    /// Reading took longer than this limit.
    TookTooLong(Duration),
    /// The file needs more memory than the reading process may have (4 GiB).
    TooMuchMemory,
    /// The file is larger than the limit (2 GiB).
    TooLarge,
    /// The file was truncated while it was read.
    Truncated,
    /// The reading process panicked because the file's contents are inconsistent.
    Contradiction,
    /// The reading process was killed by the signal with this name.
    Killed(String),
    /// The reading process sent an invalid answer.
    Nonsense,
    /// A signal ended the lookup.
    Interrupted,
    /// The time limit for all files together was exceeded.
    NoTimeLeft(Duration),
    /// A system call failed, for this reason.
    System(String),
}

impl ReadFailure {
    /// The reason as part of a sentence; `shown` is the name of the file.
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

/// The places in one file whose functions are looked up, as offsets in the file in bytes.
#[derive(Debug, Default)]
pub struct Places {
    /// Places of code.
    pub code: Vec<u64>,
    /// Functions that goroutines start with. A wrapper generated by the Go compiler gets the name of the function it calls.
    pub starts: Vec<u64>,
}

impl Places {
    /// The number of places.
    pub(crate) fn len(&self) -> usize {
        self.code.len() + self.starts.len()
    }
}

/// Reads files through a separate process, which is started with the first request.
///
/// Use it only on the thread that created it: the reading process is killed when that thread ends.
#[derive(Debug, Default)]
pub struct FileReader {
    process: Option<ReaderProcess>,
    /// The examination that the process is working on.
    under_way: Option<Examination>,
    /// Executables waiting for examination. The last one is examined first.
    waiting: Vec<Arc<HeldFile>>,
    examined: HashMap<FileIdentity, Found>,
}

/// An examination that runs in the background.
#[derive(Debug)]
struct Examination {
    file: Arc<HeldFile>,
    deadline: Deadline<'static>,
}

impl FileReader {
    /// Creates a reader without starting its process.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Whether the reading process runs.
    #[cfg(test)]
    pub(crate) fn has_process(&self) -> bool {
        self.process.is_some()
    }

    /// Determines how the tasks of an executable are found. Blocks until the answer comes. `shown` is the file's name in reasons.
    pub fn examine(&mut self, file: &File, shown: &Path) -> Found {
        self.examine_by(file, shown, Deadline::after(EXAMINATION_TIME))
    }

    fn examine_by(&mut self, file: &File, shown: &Path, deadline: Deadline<'_>) -> Found {
        match self.ask(&Request::Examine, &[file], deadline) {
            Ok(Reply::Examined(found)) => found,
            Ok(_) => unreadable(&ReadFailure::Nonsense, shown),
            Err(failure) => unreadable(&failure, shown),
        }
    }

    /// Determines the kind of a file, and examines it.
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

    /// Determines whether a shared object contains the runtime of tokio, or of Go.
    ///
    /// # Errors
    ///
    /// If the file cannot be read before `until`.
    pub fn mentions(&mut self, file: &File, tokio: bool, go: bool, until: Instant) -> Result<bool, ReadFailure> {
        let deadline = Deadline::at(until, EXAMINATION_TIME);
        match self.ask(&Request::Mentions { tokio, go }, &[file], deadline)? {
            Reply::Mentions(mentioned) => Ok(mentioned),
            _ => Err(ReadFailure::Nonsense),
        }
    }

    /// Names the functions at these places of a file: first those at `code`, then those at `starts`. Each answer has the function
    /// and the functions inlined there, outermost first. `path` is the file's path as its process sees it. If reading fails, the
    /// names found before the failure are kept, and the remaining places get the reason.
    ///
    /// The lookup ends early when `interrupt` becomes readable.
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

    /// Submits an executable for examination, and waits at most `patience` for the result. If it returns `None`, call it again
    /// when [`FileReader::examination_fd`] has become readable, or after some time. Each result is returned once.
    ///
    /// The executables submitted last are examined first: the earlier ones have run for a while and may have ended.
    pub fn examine_within(&mut self, file: &Arc<HeldFile>, patience: Duration) -> Option<Found> {
        let identity = file.identity();
        let until = Instant::now() + patience;
        self.take_answers();
        // If the queue is full, the file is submitted by a later call.
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

    /// A descriptor that becomes readable when the current examination is complete; `None` if there is none.
    #[must_use]
    pub fn examination_fd(&self) -> Option<BorrowedFd<'_>> {
        self.under_way.as_ref()?;
        self.process.as_ref().map(ReaderProcess::descriptor)
    }

    /// Takes the results that have arrived, without waiting, and ends an examination that takes too long.
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

    /// Sends a request and waits for the first reply to it.
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
                return Err(ReadFailure::System("it is not a regular file".to_owned()));
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

    /// Waits for the next reply. After a failure the process is dropped, so a late reply cannot be taken for the reply to another
    /// request.
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

    fn examine_until(&mut self, held: &HeldFile, deadline: CommonDeadline) -> Found {
        match check_time_left(deadline) {
            Ok(()) => {
                let deadline = Deadline::at(deadline.until, EXAMINATION_TIME);
                self.examine_by(held.file(), held.shown_path(), deadline)
            }
            Err(failure) => unreadable(&failure, held.shown_path()),
        }
    }

    fn examine_within(&mut self, held: &Arc<HeldFile>, patience: Duration) -> Option<Found> {
        Self::examine_within(self, held, patience)
    }

    fn mentions_until(
        &mut self,
        held: &HeldFile,
        runtimes: Runtimes,
        deadline: CommonDeadline,
        shown: &str,
    ) -> Result<bool, String> {
        check_time_left(deadline)
            .and_then(|()| Self::mentions(self, held.file(), runtimes.tokio, runtimes.go, deadline.until))
            .map_err(|failure| failure.in_words(shown))
    }
}

/// Fails if the time for all files is over, so that no reading process is started.
fn check_time_left(deadline: CommonDeadline) -> Result<(), ReadFailure> {
    if Instant::now() >= deadline.until {
        return Err(ReadFailure::NoTimeLeft(deadline.limit));
    }
    Ok(())
}

/// The result for an executable that could not be read.
fn unreadable(failure: &ReadFailure, path: &Path) -> Found {
    let shown = path.file_name().unwrap_or(path.as_os_str()).to_string_lossy();
    Found::unreadable(failure.in_words(&shown))
}
