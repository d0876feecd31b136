//! One run of a built-in workload: starts it, and collects what it reports about itself.

use std::ffi::OsStr;
use std::io::{PipeReader, PipeWriter, Read};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};

use nix::errno::Errno;
use nix::fcntl::{FcntlArg, OFlag, fcntl};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::signal::Signal;

use super::bar::Bar;
use super::child::WorkloadMessage;
use super::interrupt::Interrupts;
use super::observe::RecordingObserver;
use super::program::WorkloadProgram;
use super::save::Saver;
use super::spool::Spool;
use super::watch::{Observer, RecordedRun, Recorder, Underway};
use crate::cli::settings::RunSettings;
use crate::error::{Error, Result};
use crate::tracee::launch::{Child, Command, Suspended};
use crate::tracee::user::Invoker;
use crate::workload::progress::Progress;
use ctxtrace_analysis::correlate::lanes::Limits;
use ctxtrace_format::run::{Exit, Run};
use ctxtrace_format::workload::Outcome;

/// One start of a workload: the pipe for its report, and its progress counter.
struct Start<'a> {
    program: &'a WorkloadProgram,
    user: Option<&'a Invoker>,
    progress: Progress,
    progress_fd: OwnedFd,
    report: PipeReader,
    report_writer: PipeWriter,
}

/// What a workload has reported about itself.
struct WorkloadReport {
    outcome: Option<Outcome>,
    messages_seen: u64,
    cut_short: Option<String>,
}

impl<'a> Start<'a> {
    fn new(program: &'a WorkloadProgram, user: Option<&'a Invoker>) -> Result<Self> {
        let (progress, progress_fd) = Progress::create()?;
        let (report, report_writer) = std::io::pipe().map_err(Error::system("pipe"))?;
        Ok(Self {
            program,
            user,
            progress,
            progress_fd,
            report,
            report_writer,
        })
    }

    /// Calls `run` with the command that starts the workload.
    fn with_command<T>(&self, run: impl FnOnce(&Command<'_>) -> T) -> T {
        let (report, progress) = (self.report_writer.as_fd(), self.progress_fd.as_fd());
        let args = self.program.arguments(report.as_raw_fd(), progress.as_raw_fd());
        let args: Vec<&OsStr> = args.iter().map(OsStr::new).collect();
        run(&Command {
            program: &self.program.path,
            args: &args,
            env: &self.program.environment(self.user),
            inherit: &[report, progress],
            user: self.user,
            own_group: true,
        })
    }

    /// Collects the workload's report. Call it after the workload has ended.
    ///
    /// # Errors
    ///
    /// If the workload failed before its first message, and was not interrupted. In this case only the reason can be reported.
    fn finish(mut self, interrupted: Option<Signal>, exit: Exit) -> Result<WorkloadReport> {
        let message = last_message(&mut self.report);
        let messages_seen = self.progress.messages();
        if let (Some(WorkloadMessage::Failed(reason)), 0, None) = (&message, messages_seen, interrupted) {
            return Err(Error::Workload(reason.clone()));
        }
        Ok(WorkloadReport {
            outcome: match &message {
                Some(WorkloadMessage::Done(outcome)) => Some(*outcome),
                _ => None,
            },
            messages_seen,
            cut_short: cut_short(interrupted, message.as_ref(), exit),
        })
    }
}

/// Runs the workload once under tracing; `number` is the number of the repetition, counted from 1.
pub(super) fn recorded(
    settings: &RunSettings,
    program: &WorkloadProgram,
    recorder: &Recorder<'_>,
    user: Option<&Invoker>,
    number: u64,
    saver: &mut Saver,
    spool: &mut Spool,
) -> Result<Run> {
    let start = Start::new(program, user)?;
    let mut bar = Bar::new(
        settings.spec.iterations,
        number,
        settings.repeat,
        settings.outputs.quiet,
    );
    let drawn = settings
        .outputs
        .html
        .is_some()
        .then(|| Limits::for_each_of(settings.repeat));
    let mut keeper = RecordingObserver::new(&settings.capture, drawn, saver, spool, |underway: &Underway<'_>| {
        if bar.is_wanted() {
            bar.update(start.progress.messages(), underway.session.switches_so_far());
        }
    });
    let recorded = start.with_command(|command| recorder.command(command, &mut keeper))?;
    let kept = keeper.stop();
    Ok(kept.finish(finished(recorded, start)?, recorder.interrupts))
}

/// Runs the workload once under tracing. The observer gets the events. The stacks have no names yet.
pub(super) fn observed(
    program: &WorkloadProgram,
    recorder: &Recorder<'_>,
    user: Option<&Invoker>,
    observer: &mut dyn Observer,
) -> Result<RecordedRun> {
    let start = Start::new(program, user)?;
    let recorded = start.with_command(|command| recorder.command(command, observer))?;
    finished(recorded, start)
}

/// Adds to a recording what the workload has reported.
fn finished(mut recorded: RecordedRun, start: Start<'_>) -> Result<RecordedRun> {
    let run = &mut recorded.run;
    let reported = start.finish(recorded.cut.interrupted, run.exit.unwrap_or_default())?;
    run.messages_seen = reported.messages_seen;
    run.outcome = reported.outcome;
    run.cut_short = reported.cut_short;
    Ok(recorded)
}

/// Runs the workload once, untraced.
///
/// # Errors
///
/// If the workload cannot be started, or fails. An interrupted run is not an error but `Ok(None)`.
pub(super) fn timed(
    program: &WorkloadProgram,
    interrupts: &Interrupts,
    user: Option<&Invoker>,
) -> Result<Option<Outcome>> {
    timed_with(program, interrupts, user, |_| Ok(()))
}

/// Like [`timed`]; `begin` is called when the child is about to execute its program.
pub(super) fn timed_with(
    program: &WorkloadProgram,
    interrupts: &Interrupts,
    user: Option<&Invoker>,
    begin: impl FnOnce(&Suspended) -> Result<()>,
) -> Result<Option<Outcome>> {
    let start = Start::new(program, user)?;
    let mut child = start.with_command(|command| {
        let suspended = command.launch_suspended()?;
        begin(&suspended)?;
        suspended.resume()
    })?;
    let interrupted = until_the_end(&child, interrupts)?;
    let exit = child.wait()?.exit;
    let reported = start.finish(interrupted, exit)?;
    match (reported.outcome, reported.cut_short) {
        _ if interrupted.is_some() => Ok(None),
        (Some(outcome), None) => Ok(Some(outcome)),
        (_, reason) => Err(Error::Workload(reason.unwrap_or_default())),
    }
}

/// Waits until a child ends. The first signal kills the child.
pub(super) fn until_the_end(child: &Child, interrupts: &Interrupts) -> Result<Option<Signal>> {
    loop {
        let mut fds = [
            PollFd::new(child.pidfd(), PollFlags::POLLIN),
            PollFd::new(interrupts.fd(), PollFlags::POLLIN),
        ];
        match poll(&mut fds, PollTimeout::NONE) {
            Ok(_) | Err(Errno::EINTR) => {}
            Err(errno) => return Err(Error::errno("poll")(errno)),
        }
        if let Some(interrupt) = interrupts.take() {
            child.kill();
            return Ok(Some(interrupt.signal));
        }
        if fds[0].revents().is_some_and(|events| !events.is_empty()) {
            return Ok(None);
        }
    }
}

/// The message that the workload sent before it ended; `None` if there is no valid one.
fn last_message(report: &mut PipeReader) -> Option<WorkloadMessage> {
    // A process that outlives the workload may hold the pipe open, so read what is there without waiting.
    fcntl(&*report, FcntlArg::F_SETFL(OFlag::O_NONBLOCK)).ok()?;
    let mut text = Vec::new();
    let _ = report.read_to_end(&mut text);
    serde_json::from_slice(&text).ok()
}

/// Why the run is partial; `None` if it is complete.
fn cut_short(signal: Option<Signal>, message: Option<&WorkloadMessage>, exit: Exit) -> Option<String> {
    if let Some(signal) = signal {
        return Some(format!("interrupted by {signal}"));
    }
    match (message, exit.signal, exit.status) {
        (Some(WorkloadMessage::Done(_)), None, Some(0)) => None,
        (Some(WorkloadMessage::Failed(reason)), _, _) => Some(format!("the workload failed: {reason}")),
        (_, Some(number), _) => {
            let name = Signal::try_from(number).map_or_else(|_| number.to_string(), |signal| signal.to_string());
            Some(format!("the workload was killed by {name}"))
        }
        (_, None, exit_status) => Some(format!(
            "the workload ended with status {} and did not say why",
            exit_status.unwrap_or(-1)
        )),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ended(status: Option<i32>, signal: Option<i32>) -> Exit {
        Exit { status, signal }
    }

    #[test]
    fn a_run_is_complete_only_if_all_sources_agree() {
        let done = WorkloadMessage::Done(Outcome {
            elapsed_ns: 1,
            messages: 1,
            started_ns: None,
            max_in_flight: None,
        });
        let failed = WorkloadMessage::Failed("no pipe".to_owned());
        assert_eq!(cut_short(None, Some(&done), ended(Some(0), None)), None);
        for (signal, message, ended, reason) in [
            (
                Some(Signal::SIGINT),
                None,
                ended(None, Some(9)),
                "interrupted by SIGINT",
            ),
            (
                None,
                Some(&failed),
                ended(Some(1), None),
                "the workload failed: no pipe",
            ),
            (None, None, ended(None, Some(11)), "the workload was killed by SIGSEGV"),
            (
                None,
                None,
                ended(Some(3), None),
                "the workload ended with status 3 and did not say why",
            ),
            (
                None,
                Some(&done),
                ended(None, Some(9)),
                "the workload was killed by SIGKILL",
            ),
        ] {
            assert_eq!(cut_short(signal, message, ended).as_deref(), Some(reason));
        }
    }
}
