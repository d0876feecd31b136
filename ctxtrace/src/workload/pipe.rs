//! The workloads `process` and `thread`: four bytes go back and forth over two pipes.
//!
//! This is the textbook method to measure a context switch (lmbench's `lat_ctx`, OSTEP's homework): the side that has written waits
//! for the answer, so on one CPU every message needs a kernel switch.

use std::os::fd::{AsFd, OwnedFd};

use nix::errno::Errno;
use nix::sys::prctl;
use nix::sys::signal::Signal;
use nix::sys::wait::{WaitStatus, waitpid};
use nix::unistd::{ForkResult, fork, getppid, pipe, read, write};

use super::clock::Stopwatch;
use super::idle::IdleThreads;
use super::pin::Pinning;
use super::progress::Progress;
use super::{MESSAGE, altered};
use crate::error::{Error, Result};
use ctxtrace_format::workload::{Outcome, Spec};

/// The two pipe ends of one side.
struct PipePair {
    from_peer: OwnedFd,
    to_peer: OwnedFd,
}

impl PipePair {
    /// Creates two sides that are connected by two pipes.
    fn pair() -> Result<(Self, Self)> {
        let (ping_read, ping_write) = pipe().map_err(Error::errno("pipe"))?;
        let (pong_read, pong_write) = pipe().map_err(Error::errno("pipe"))?;
        let near = Self {
            from_peer: pong_read,
            to_peer: ping_write,
        };
        let far = Self {
            from_peer: ping_read,
            to_peer: pong_write,
        };
        Ok((near, far))
    }

    #[inline(always)]
    fn send(&self, message: &[u8]) -> Result<()> {
        match write(self.to_peer.as_fd(), message) {
            // A write of four bytes to a pipe is never partial (POSIX: writes of up to PIPE_BUF bytes are atomic).
            Ok(_) => Ok(()),
            Err(Errno::EPIPE) => Err(peer_gone()),
            Err(errno) => Err(Error::errno("write")(errno)),
        }
    }

    /// Receives one message. Fails if the message was altered or the peer has closed its end.
    #[inline(always)]
    fn receive(&self, index: u64) -> Result<()> {
        let mut buffer = [0; MESSAGE.len()];
        match read(self.from_peer.as_fd(), &mut buffer) {
            Ok(0) => Err(peer_gone()),
            Ok(_) if buffer == *MESSAGE.as_bytes() => Ok(()),
            Ok(_) => Err(altered(index)),
            Err(errno) => Err(Error::errno("read")(errno)),
        }
    }

    /// Runs the side that starts: sends each message and waits for its answer.
    fn ping(&self, iterations: u64, progress: &Progress) -> Result<Outcome> {
        let stopwatch = Stopwatch::start();
        for index in 0..iterations {
            self.send(MESSAGE.as_bytes())?;
            self.receive(index)?;
            progress.reached(index + 1);
        }
        let outcome = stopwatch.outcome(iterations);
        progress.ended(iterations);
        Ok(outcome)
    }

    /// Runs the side that answers each message.
    fn pong(&self, iterations: u64) -> Result<()> {
        for index in 0..iterations {
            self.receive(index)?;
            self.send(MESSAGE.as_bytes())?;
        }
        Ok(())
    }
}

fn peer_gone() -> Error {
    Error::Workload("the other side of the pipe ended during the run".to_owned())
}

/// Runs the workload `thread`, between two threads of this process.
pub(super) fn between_threads(spec: &Spec, progress: &Progress) -> Result<Outcome> {
    let pinning = Pinning::new(spec.pin, 2)?;
    let (near, far) = PipePair::pair()?;
    let iterations = spec.iterations;
    std::thread::scope(|scope| {
        let echo = std::thread::Builder::new().name("pong".to_owned());
        let echo_pinning = pinning.clone();
        let echo = echo
            .spawn_scoped(scope, move || {
                echo_pinning.apply(1)?;
                // `far` is moved into the thread, so that its ends close if this side fails and the other side notices.
                let far = far;
                far.pong(iterations)
            })
            .map_err(Error::system("starting a thread"))?;
        let played = pinning.apply(0).and_then(|()| near.ping(iterations, progress));
        // Close this side's ends before joining, so that a peer that is still reading gets end of file.
        drop(near);
        let echoed = echo
            .join()
            .map_err(|_| Error::Workload("the echo thread panicked".to_owned()))?;
        let outcome = played?;
        echoed.map(|()| outcome)
    })
}

/// Runs the workload `process`, between this process and a child.
pub(super) fn between_processes(spec: &Spec, progress: &Progress) -> Result<Outcome> {
    let pinning = Pinning::new(spec.pin, 2)?;
    let (near, far) = PipePair::pair()?;
    let parent = nix::unistd::getpid();
    // SAFETY: this process has only one thread, so the child may call any function after the fork.
    match unsafe { fork() }.map_err(Error::errno("fork"))? {
        ForkResult::Child => {
            drop(near);
            let echoed = prctl::set_pdeathsig(Signal::SIGKILL)
                .map_err(Error::errno("prctl"))
                .and_then(|()| {
                    // The parent may have ended before `prctl` took effect.
                    if getppid() == parent { Ok(()) } else { Err(peer_gone()) }
                })
                .and_then(|()| pinning.apply(1))
                .and_then(|()| IdleThreads::start(spec.idle_threads))
                .and_then(|_idle| {
                    if spec.idle_threads > 0 {
                        far.send(MESSAGE.as_bytes())?;
                    }
                    far.pong(spec.iterations)
                });
            // SAFETY: `_exit` ends the child immediately, so that the parent's buffers are not flushed and its destructors are not
            // run a second time.
            unsafe { libc::_exit(i32::from(echoed.is_err())) }
        }
        ForkResult::Parent { child } => {
            drop(far);
            let played = pinning
                .apply(0)
                .and_then(|()| IdleThreads::start(spec.idle_threads))
                .and_then(|_idle| {
                    if spec.idle_threads > 0 {
                        // Wait for the message that the child sends after its idle threads have started.
                        near.receive(0)?;
                    }
                    near.ping(spec.iterations, progress)
                });
            drop(near);
            let ended = waitpid(child, None).map_err(Error::errno("waitpid"))?;
            let outcome = played?;
            match ended {
                WaitStatus::Exited(_, 0) => Ok(outcome),
                other => Err(Error::Workload(format!("the echo process failed: {other:?}"))),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::{Mode, run};
    use super::*;

    fn spec(mode: Mode, iterations: u64) -> Spec {
        Spec {
            iterations,
            ..Spec::new(mode)
        }
    }

    #[test]
    fn threads_exchange_every_message() {
        let (progress, _fd) = Progress::create().expect("a page");
        let outcome = run(&spec(Mode::Thread, 1_500), &progress).expect("a run");
        assert_eq!(outcome.messages, 1_500);
        assert_eq!(progress.messages(), 1_500);
        assert!(outcome.elapsed_ns > 0);
    }

    #[test]
    fn an_altered_message_is_noticed() {
        let (near, far) = PipePair::pair().expect("pipes");
        far.send(b"jim0").expect("sent");
        let error = near.receive(7).expect_err("altered");
        assert!(error.to_string().contains("message 7"), "{error}");
    }

    #[test]
    fn a_peer_that_goes_away_is_noticed() {
        let (near, far) = PipePair::pair().expect("pipes");
        drop(far);
        assert!(
            near.receive(0)
                .expect_err("end of file")
                .to_string()
                .contains("ended during the run")
        );
    }
}
