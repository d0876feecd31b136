//! One traced run of a built-in workload: the command that starts it, and what it says of itself.

use std::ffi::OsStr;
use std::io::Read;
use std::os::fd::{AsFd, AsRawFd};

use nix::fcntl::{FcntlArg, OFlag, fcntl};
use nix::sys::signal::Signal;

use super::bar::Bar;
use super::child::Message;
use super::observe::Keeper;
use super::program::Program;
use super::save::Saver;
use super::watch::{Recorded, Recorder, Underway};
use crate::cli::settings::RunSettings;
use crate::error::{Error, Result};
use crate::symbolize::symbols;
use crate::target::launch::Command;
use crate::target::user::Invoker;
use crate::trace::run::{Exit, Run};
use crate::workload::progress::Progress;

/// Runs the workload once under tracing; `number` tells which of the repeats it is.
pub(super) fn recorded(
    settings: &RunSettings,
    program: &Program,
    recorder: &Recorder<'_>,
    user: Option<&Invoker>,
    number: u64,
    saver: &mut Saver,
) -> Result<Run> {
    let (progress, progress_fd) = Progress::create()?;
    let (mut report, report_writer) = std::io::pipe().map_err(Error::system("pipe"))?;
    let args = program.arguments(report_writer.as_raw_fd(), progress_fd.as_raw_fd());
    let args: Vec<&OsStr> = args.iter().map(OsStr::new).collect();
    let command = Command {
        program: &program.path,
        args: &args,
        env: &program.environment(user),
        inherit: &[report_writer.as_fd(), progress_fd.as_fd()],
        user,
        own_group: true,
    };
    let mut bar = Bar::new(settings.spec.iterations, number, settings.repeat);
    let mut keeper = Keeper::new(settings.capture.level, saver, |underway: &Underway<'_>| {
        if bar.is_wanted() {
            bar.update(progress.messages(), underway.session.switches_so_far());
        }
    });
    let Recorded { mut run, cut } = recorder.command(&command, &mut keeper)?;

    let message = last_message(&mut report);
    run.messages_seen = progress.messages();
    if let (Some(Message::Failed(reason)), 0, None) = (&message, run.messages_seen, cut.interrupted) {
        // It could not even begin: there is nothing to report but why.
        return Err(Error::Workload(reason.clone()));
    }
    run.outcome = match &message {
        Some(Message::Done(outcome)) => Some(*outcome),
        _ => None,
    };
    run.cut_short = cut_short(cut.interrupted, message.as_ref(), run.exit.unwrap_or_default());
    run.symbols = symbols::resolve(&run.aggregates);
    keeper.finish(&mut run);
    Ok(run)
}

/// What the workload said before it ended; `None` if it said nothing that can be understood.
fn last_message(report: &mut std::io::PipeReader) -> Option<Message> {
    // Somebody who outlives the workload may hold the pipe open: take what is there, and wait for nothing.
    fcntl(&*report, FcntlArg::F_SETFL(OFlag::O_NONBLOCK)).ok()?;
    let mut text = Vec::new();
    let _ = report.read_to_end(&mut text);
    serde_json::from_slice(&text).ok()
}

/// Why the run is partial; `None` if it is not.
fn cut_short(signal: Option<Signal>, message: Option<&Message>, exit: Exit) -> Option<String> {
    if let Some(signal) = signal {
        return Some(format!("interrupted by {signal}"));
    }
    match (message, exit.signal, exit.status) {
        (Some(Message::Done(_)), None, Some(0)) => None,
        (Some(Message::Failed(reason)), _, _) => Some(format!("the workload failed: {reason}")),
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
    use crate::workload::Outcome;

    fn ended(status: Option<i32>, signal: Option<i32>) -> Exit {
        Exit { status, signal }
    }

    #[test]
    fn a_run_is_whole_only_if_everything_says_so() {
        let done = Message::Done(Outcome {
            elapsed_ns: 1,
            messages: 1,
        });
        let failed = Message::Failed("no pipe".to_owned());
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
