//! Ending everything that a recorded command has started: asked first (SIGTERM), killed two seconds later (SIGKILL).
//!
//! The kernel side knows the processes of the recording: all that descend from the command, those too whose parents have ended or that
//! have a session of their own. A signal goes to a process of that list alone, checked by its start.

use std::time::{Duration, Instant};

use nix::sys::signal::Signal;

use crate::capture::Session;
use crate::error::Result;
use crate::target::{pidfd, procfs};

/// The time between SIGTERM and SIGKILL.
const TIME_TO_END: Duration = Duration::from_secs(2);
/// The time after the first SIGKILL that processes are waited for. One that the kernel does not let go ends later, or never.
const TIME_TO_DIE: Duration = Duration::from_secs(2);

/// How far it has got.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) enum Ending {
    /// Nothing is to end.
    #[default]
    NotBegun,
    /// Everything has been asked to end.
    Asked(Instant),
    /// Everything is killed.
    Killing(Instant),
}

impl Ending {
    /// Asks every process to end, once: what is started afterwards may belong to the way in which a process ends. Returns the
    /// processes that were asked.
    pub(super) fn ask(&mut self, session: &Session, now: Instant) -> Result<Vec<u32>> {
        if self.has_begun() {
            return Ok(Vec::new());
        }
        *self = Self::Asked(now);
        signal_all(session, Signal::SIGTERM)
    }

    /// Kills every process.
    pub(super) fn kill(&mut self, session: &Session, now: Instant) -> Result<()> {
        if !self.is_killing() {
            *self = Self::Killing(now);
        }
        signal_all(session, Signal::SIGKILL)?;
        Ok(())
    }

    /// To be called now and then: kills what has not ended in time, and what has been started meanwhile.
    pub(super) fn tick(&mut self, session: &Session, now: Instant) -> Result<()> {
        if self.is_killing() || self.is_time_to_kill(now) {
            return self.kill(session, now);
        }
        Ok(())
    }

    /// Whether it has begun.
    pub(super) fn has_begun(self) -> bool {
        self != Self::NotBegun
    }

    /// Whether processes are killed by now.
    pub(super) fn is_killing(self) -> bool {
        matches!(self, Self::Killing(_))
    }

    fn is_time_to_kill(self, now: Instant) -> bool {
        matches!(self, Self::Asked(at) if now.saturating_duration_since(at) >= TIME_TO_END)
    }

    /// Whether what is there by now is not waited for any longer.
    pub(super) fn is_given_up(self, now: Instant) -> bool {
        matches!(self, Self::Killing(since) if now.saturating_duration_since(since) >= TIME_TO_DIE)
    }
}

/// Whether every process of a recording has ended.
pub(super) fn all_have_ended(session: &Session) -> Result<bool> {
    let lives = |&(pid, start_boottime_ns): &(u32, u64)| {
        let is_it = procfs::stat(pid).map_or(true, |stat| stat.is_some_and(|stat| stat.started_at(start_boottime_ns)));
        is_it && !procfs::is_gone(pid)
    };
    Ok(!session.processes()?.iter().any(lives))
}

/// Signals every process, parents before their children: a shell that is to end does not see its child end first, and go on. Returns
/// those that were signalled. What may not be signalled goes on, and the report names it.
fn signal_all(session: &Session, signal: Signal) -> Result<Vec<u32>> {
    let is_signalled = |&(pid, start_boottime_ns): &(u32, u64)| {
        matches!(pidfd::signal_if_started_at(pid, start_boottime_ns, signal), Ok(true))
    };
    let processes = session.processes()?.into_iter();
    Ok(processes.filter(is_signalled).map(|(pid, _)| pid).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_asked_to_end_is_killed_later_and_given_up_at_last() {
        let begin = Instant::now();
        let at = |ms| begin + Duration::from_millis(ms);
        let asked = Ending::Asked(begin);
        assert!(!Ending::NotBegun.has_begun() && asked.has_begun());
        assert!(!asked.is_time_to_kill(at(1_999)) && asked.is_time_to_kill(at(2_000)));
        assert!(!asked.is_given_up(at(9_000)), "nothing was killed yet");
        let killing = Ending::Killing(at(2_000));
        assert!(!killing.is_given_up(at(3_999)) && killing.is_given_up(at(4_000)));
    }
}
