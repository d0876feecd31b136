//! The reading process from the tracer's side: starts it, sends requests, and kills it when it takes too long.

use std::fs::File;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::fcntl::{FcntlArg, OFlag, fcntl};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::signal::Signal;
use nix::sys::socket::{AddressFamily, SockFlag, SockType, socketpair};

use super::deadline::Deadline;
use super::message::{self, LENGTH_BYTES, MAX_REPLY_BYTES, Reply, Request};
use super::{ReadFailure, SUBCOMMAND};

/// The exit status of a Rust program that panicked.
const PANICKED: i32 = 101;
/// Maximum number of bytes received at once.
const PIECE_BYTES: usize = 64 << 10;

/// A process that reads files for this one. It is killed when this value is dropped.
#[derive(Debug)]
pub(super) struct ReaderProcess {
    child: Child,
    socket: OwnedFd,
    /// The bytes of the next reply received so far.
    received: Vec<u8>,
}

impl Drop for ReaderProcess {
    fn drop(&mut self) {
        self.end();
    }
}

impl ReaderProcess {
    /// Starts a reading process: another instance of this executable.
    pub(super) fn start() -> Result<Self, ReadFailure> {
        let failed = |error: std::io::Error| ReadFailure::NotStarted(error.to_string());
        let no_flags = SockFlag::SOCK_CLOEXEC;
        let (ours, theirs) =
            socketpair(AddressFamily::Unix, SockType::Stream, None, no_flags).map_err(|errno| failed(errno.into()))?;
        fcntl(&ours, FcntlArg::F_SETFL(OFlag::O_NONBLOCK)).map_err(|errno| failed(errno.into()))?;
        let child = command()
            .stdin(Stdio::from(theirs))
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            // Ctrl-C is handled by the tracer, which ends this process when needed.
            .process_group(0)
            .spawn()
            .map_err(failed)?;
        Ok(Self {
            child,
            socket: ours,
            received: Vec::new(),
        })
    }

    /// Sends a signal to the process.
    #[cfg(test)]
    pub(super) fn signal(&self, signal: Signal) {
        let pid = nix::unistd::Pid::from_raw(self.child.id() as i32);
        nix::sys::signal::kill(pid, signal).expect("the process is a child of this one");
    }

    /// A descriptor that becomes readable when bytes of a reply have arrived.
    pub(super) fn descriptor(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }

    /// Sends a request and the descriptors of its files.
    pub(super) fn send(
        &mut self,
        request: &Request,
        files: &[&File],
        deadline: Deadline<'_>,
    ) -> Result<(), ReadFailure> {
        let bytes = message::encode(request).map_err(|error| ReadFailure::System(error.to_string()))?;
        let (mut rest, mut files) = (bytes.as_slice(), files);
        while !rest.is_empty() {
            match message::send(self.socket.as_fd(), rest, files) {
                Ok(sent) => (rest, files) = (&rest[sent..], &[]),
                Err(Errno::EINTR) => {}
                Err(Errno::EAGAIN) => self.wait(PollFlags::POLLOUT, deadline)?,
                // A process that cannot give up its privileges sends the reason before it ends.
                Err(Errno::EPIPE | Errno::ECONNRESET) => {
                    return Err(self.answer_so_far().err().unwrap_or(ReadFailure::Nonsense));
                }
                Err(errno) => return Err(ReadFailure::System(errno.to_string())),
            }
        }
        Ok(())
    }

    /// Waits for the next reply.
    pub(super) fn answer(&mut self, deadline: Deadline<'_>) -> Result<Reply, ReadFailure> {
        loop {
            if let Some(reply) = self.answer_so_far()? {
                return Ok(reply);
            }
            self.wait(PollFlags::POLLIN, deadline)?;
        }
    }

    /// The next reply, if it has arrived completely.
    pub(super) fn answer_so_far(&mut self) -> Result<Option<Reply>, ReadFailure> {
        let mut piece = vec![0; PIECE_BYTES];
        loop {
            if let Some(length) = message::length(&self.received) {
                if length > MAX_REPLY_BYTES {
                    return Err(ReadFailure::Nonsense);
                }
                let end = LENGTH_BYTES + length;
                if let Some(bytes) = self.received.get(LENGTH_BYTES..end) {
                    let reply = message::decode::<Reply>(bytes).ok().and_then(Reply::checked);
                    self.received.drain(..end);
                    return match reply {
                        Some(Reply::Failed(reason)) => Err(ReadFailure::System(reason)),
                        Some(reply) => Ok(Some(reply)),
                        None => Err(ReadFailure::Nonsense),
                    };
                }
            }
            match nix::unistd::read(&self.socket, &mut piece) {
                Ok(0) | Err(Errno::ECONNRESET) => return Err(self.cause_of_death()),
                Ok(count) => self.received.extend_from_slice(&piece[..count]),
                Err(Errno::EAGAIN) => return Ok(None),
                Err(Errno::EINTR) => {}
                Err(errno) => return Err(ReadFailure::System(errno.to_string())),
            }
        }
    }

    fn wait(&self, flags: PollFlags, deadline: Deadline<'_>) -> Result<(), ReadFailure> {
        let left = deadline.until.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Err(ReadFailure::TookTooLong(deadline.limit));
        }
        let mut fds = vec![PollFd::new(self.socket.as_fd(), flags)];
        fds.extend(deadline.interrupt.map(|fd| PollFd::new(fd, PollFlags::POLLIN)));
        let wait = PollTimeout::try_from(left + Duration::from_micros(999)).unwrap_or(PollTimeout::MAX);
        match poll(&mut fds, wait) {
            Ok(_) | Err(Errno::EINTR) => {}
            Err(errno) => return Err(ReadFailure::System(errno.to_string())),
        }
        let is_interrupted = fds
            .get(1)
            .and_then(PollFd::revents)
            .is_some_and(|events| !events.is_empty());
        if is_interrupted {
            return Err(ReadFailure::Interrupted);
        }
        Ok(())
    }

    /// Determines why the process has closed its end of the socket.
    fn cause_of_death(&mut self) -> ReadFailure {
        // The socket closes only when the process ends: the process never closes it by itself.
        self.end().map_or(ReadFailure::Nonsense, cause_of)
    }

    /// Kills the process if it has not ended, and returns its exit status.
    fn end(&mut self) -> Option<ExitStatus> {
        // A process whose socket is closed may not have ended yet. Its own exit status says more than the status of a killed
        // process.
        let patience = Instant::now() + Duration::from_millis(100);
        while self.received_end() && Instant::now() < patience {
            match self.child.try_wait() {
                Ok(None) => std::thread::sleep(Duration::from_millis(1)),
                Ok(status) => return status,
                Err(_) => break,
            }
        }
        let _ = self.child.kill();
        self.child.wait().ok()
    }

    /// Whether the other end of the socket is closed.
    fn received_end(&self) -> bool {
        let mut fds = [PollFd::new(self.socket.as_fd(), PollFlags::empty())];
        poll(&mut fds, PollTimeout::ZERO).is_ok()
            && fds[0]
                .revents()
                .is_some_and(|events| events.contains(PollFlags::POLLHUP))
    }
}

/// Determines the failure from the exit status of the process.
fn cause_of(status: ExitStatus) -> ReadFailure {
    match (status.signal(), status.code()) {
        (Some(libc::SIGABRT), _) => ReadFailure::TooMuchMemory,
        (Some(libc::SIGBUS), _) => ReadFailure::Truncated,
        (Some(signal), _) => {
            let name = Signal::try_from(signal).map_or_else(|_| signal.to_string(), |name| name.to_string());
            ReadFailure::Killed(name)
        }
        (_, Some(PANICKED)) => ReadFailure::Contradiction,
        _ => ReadFailure::Nonsense,
    }
}

/// The command that starts the reading process.
#[cfg(not(test))]
fn command() -> Command {
    let mut command = Command::new("/proc/self/exe");
    command.arg0("ctxtrace").arg(SUBCOMMAND).env_clear();
    command
}

/// The executable of the unit tests has no command line of its own, so one of its tests runs as the reading process.
#[cfg(test)]
fn command() -> Command {
    let mut command = Command::new("/proc/self/exe");
    command
        .args([
            "--exact",
            "reader::tests::be_the_reading_process",
            "--nocapture",
            "--test-threads=1",
        ])
        .env_clear()
        .env(super::tests::VARIABLE, SUBCOMMAND);
    command
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_reason_that_came_before_the_process_ended_is_reported() {
        let (socket, theirs) =
            socketpair(AddressFamily::Unix, SockType::Stream, None, SockFlag::SOCK_CLOEXEC).expect("a pair of sockets");
        let reply = message::encode(&Reply::Failed("a reason".to_owned())).expect("a short message");
        message::send(theirs.as_fd(), &reply, &[]).expect("the reply is sent");
        drop(theirs);
        let mut process = ReaderProcess {
            child: Command::new("true").spawn().expect("the program starts"),
            socket,
            received: Vec::new(),
        };
        let sent = process.send(&Request::Examine, &[], Deadline::after(Duration::from_secs(10)));
        assert_eq!(sent, Err(ReadFailure::System("a reason".to_owned())));
    }

    #[test]
    fn how_it_ended_says_why() {
        for (status, cause) in [
            (libc::SIGABRT, ReadFailure::TooMuchMemory),
            (libc::SIGBUS, ReadFailure::Truncated),
            (libc::SIGSEGV, ReadFailure::Killed("SIGSEGV".to_owned())),
            (PANICKED << 8, ReadFailure::Contradiction),
            (0, ReadFailure::Nonsense),
        ] {
            assert_eq!(cause_of(ExitStatus::from_raw(status)), cause);
        }
    }
}
