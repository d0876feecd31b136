//! `process` and `thread`: four bytes to and fro over two pipes.
//!
//! The textbook's way to measure a context switch (lmbench's `lat_ctx`, OSTEP's homework): whoever has written must wait
//! for the answer, so on one CPU the kernel has to switch for every byte to go on.

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
use super::{MESSAGE, Outcome, Spec, altered};
use crate::error::{Error, Result};

/// One side's two pipe ends.
struct Line {
    from_peer: OwnedFd,
    to_peer: OwnedFd,
}

impl Line {
    /// Two ends connected by two pipes.
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
            // Four bytes go into a pipe whole or not at all (POSIX: up to PIPE_BUF are atomic).
            Ok(_) => Ok(()),
            Err(Errno::EPIPE) => Err(peer_gone()),
            Err(errno) => Err(Error::errno("write")(errno)),
        }
    }

    /// Receives one message, or tells what came instead.
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

    /// The side that begins: sends and waits for each answer.
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

    /// The side that answers.
    fn pong(&self, iterations: u64) -> Result<()> {
        for index in 0..iterations {
            self.receive(index)?;
            self.send(MESSAGE.as_bytes())?;
        }
        Ok(())
    }
}

fn peer_gone() -> Error {
    Error::Workload("the other side of the pipe went away in mid-run".to_owned())
}

/// Two threads of this process.
pub(super) fn between_threads(spec: &Spec, progress: &Progress) -> Result<Outcome> {
    let pinning = Pinning::new(spec.pin, 2)?;
    let (near, far) = Line::pair()?;
    let iterations = spec.iterations;
    std::thread::scope(|scope| {
        let echo = std::thread::Builder::new().name("pong".to_owned());
        let echo_pinning = pinning.clone();
        let echo = echo
            .spawn_scoped(scope, move || {
                echo_pinning.apply(1)?;
                // `far` moves in: were this side to fail, its ends close and the other one learns of it.
                let far = far;
                far.pong(iterations)
            })
            .map_err(Error::system("starting a thread"))?;
        let played = pinning.apply(0).and_then(|()| near.ping(iterations, progress));
        // Close this side's ends before waiting, so that a peer that still reads sees the end.
        drop(near);
        let echoed = echo
            .join()
            .map_err(|_| Error::Workload("the echo thread panicked".to_owned()))?;
        let outcome = played?;
        echoed.map(|()| outcome)
    })
}

/// This process and a child of it.
pub(super) fn between_processes(spec: &Spec, progress: &Progress) -> Result<Outcome> {
    let pinning = Pinning::new(spec.pin, 2)?;
    let (near, far) = Line::pair()?;
    let parent = nix::unistd::getpid();
    // SAFETY: this process has one thread, so the child may do anything.
    match unsafe { fork() }.map_err(Error::errno("fork"))? {
        ForkResult::Child => {
            drop(near);
            let echoed = prctl::set_pdeathsig(Signal::SIGKILL)
                .map_err(Error::errno("prctl"))
                .and_then(|()| {
                    // The parent may have died before the request took effect.
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
            // SAFETY: ends the child at once; nothing of the parent's (buffers, destructors) may run twice.
            unsafe { libc::_exit(i32::from(echoed.is_err())) }
        }
        ForkResult::Parent { child } => {
            drop(far);
            let played = pinning
                .apply(0)
                .and_then(|()| IdleThreads::start(spec.idle_threads))
                .and_then(|_idle| {
                    if spec.idle_threads > 0 {
                        // The other side's threads are there.
                        near.receive(0)?;
                    }
                    near.ping(spec.iterations, progress)
                });
            drop(near);
            let ended = waitpid(child, None).map_err(Error::errno("waitpid"))?;
            let outcome = played?;
            match ended {
                WaitStatus::Exited(_, 0) => Ok(outcome),
                other => Err(Error::Workload(format!("the echo process ended badly: {other:?}"))),
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
            ..Spec::of(mode)
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
        let (near, far) = Line::pair().expect("pipes");
        far.send(b"jim0").expect("sent");
        let error = near.receive(7).expect_err("altered");
        assert!(error.to_string().contains("message 7"), "{error}");
    }

    #[test]
    fn a_peer_that_goes_away_is_noticed() {
        let (near, far) = Line::pair().expect("pipes");
        drop(far);
        assert!(
            near.receive(0)
                .expect_err("end of file")
                .to_string()
                .contains("went away")
        );
    }
}
