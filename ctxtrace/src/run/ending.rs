//! Ends all processes that a recorded command has started: SIGTERM first, SIGKILL two seconds later.
//!
//! The BPF programs know the processes of the recording: all descendants of the command, including those whose parents have ended
//! or that have a session of their own. Only processes of this list are signalled, after a check of their start time.

use std::time::{Duration, Instant};

use nix::sys::signal::Signal;

use crate::capture::Session;
use crate::error::Result;
use crate::tracee::{pidfd, procfs};

/// Time between SIGTERM and SIGKILL.
const TIME_TO_END: Duration = Duration::from_secs(2);
/// How long to wait for processes after the first SIGKILL. A process that is blocked in the kernel ends later or never.
const TIME_TO_DIE: Duration = Duration::from_secs(2);

/// The progress of ending the processes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) enum Ending {
    /// Nothing has been signalled.
    #[default]
    NotBegun,
    /// All processes were sent SIGTERM at this time.
    Asked(Instant),
    /// All processes are being killed, since this time.
    Killing(Instant),
}

impl Ending {
    /// Sends SIGTERM to every process, once: processes that start afterwards may be needed for an orderly end. Returns the
    /// processes that were signalled.
    pub(super) fn ask(&mut self, session: &Session, now: Instant) -> Result<Vec<u32>> {
        if self.has_begun() {
            return Ok(Vec::new());
        }
        *self = Self::Asked(now);
        signal_all(session, Signal::SIGTERM)
    }

    /// Sends SIGKILL to every process.
    pub(super) fn kill(&mut self, session: &Session, now: Instant) -> Result<()> {
        if !self.is_killing() {
            *self = Self::Killing(now);
        }
        signal_all(session, Signal::SIGKILL)?;
        Ok(())
    }

    /// Kills processes that have not ended in time, and processes that have been started since. Call it regularly.
    pub(super) fn tick(&mut self, session: &Session, now: Instant) -> Result<()> {
        if self.is_killing() || self.is_time_to_kill(now) {
            return self.kill(session, now);
        }
        Ok(())
    }

    /// Whether processes have been signalled.
    pub(super) fn has_begun(self) -> bool {
        self != Self::NotBegun
    }

    /// Whether processes are being killed.
    pub(super) fn is_killing(self) -> bool {
        matches!(self, Self::Killing(_))
    }

    fn is_time_to_kill(self, now: Instant) -> bool {
        matches!(self, Self::Asked(at) if now.saturating_duration_since(at) >= TIME_TO_END)
    }

    /// Whether to stop waiting for the processes that remain.
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

/// Signals every process, parents before their children, because a shell that saw its child end first could continue with the
/// next command. Returns the processes that were signalled. A process that may not be signalled continues, and the report names
/// it.
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
        assert!(!asked.is_given_up(at(9_000)), "nothing has been killed yet");
        let killing = Ending::Killing(at(2_000));
        assert!(!killing.is_given_up(at(3_999)) && killing.is_given_up(at(4_000)));
    }
}
