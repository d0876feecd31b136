//! One traced run of a built-in workload: the command that starts it, and what it says of itself.

use std::ffi::OsStr;
use std::io::Read;
use std::os::fd::{AsFd, AsRawFd};

use nix::fcntl::{FcntlArg, OFlag, fcntl};
use nix::sys::signal::Signal;

use super::bar::Bar;
use super::child::Message;
use super::interrupt::Interrupts;
use super::watch::trace_command;
use crate::analyze::summarize::TracedRun;
use crate::capture::{Kernel, Settings};
use crate::cli::settings::RunSettings;
use crate::correlate::timeline::Replay;
use crate::error::{Error, Result};
use crate::symbolize;
use crate::target::launch::{Command, Ended};
use crate::target::user::Invoker;
use crate::trace::Level;
use crate::workload::progress::Progress;

/// Runs the workload once under tracing; `number` tells which of the repeats it is.
pub(super) fn traced(
    settings: &RunSettings,
    kernel: &Kernel,
    interrupts: &Interrupts,
    user: Option<&Invoker>,
    number: u64,
) -> Result<TracedRun> {
    let program = std::env::current_exe().map_err(Error::system("finding this executable"))?;
    let spec = serde_json::to_string(&settings.spec).map_err(|error| Error::Workload(error.to_string()))?;
    let (progress, progress_fd) = Progress::create()?;
    let (mut report, report_writer) = std::io::pipe().map_err(Error::system("pipe"))?;
    let report_fd = report_writer.as_raw_fd().to_string();
    let progress_number = progress_fd.as_raw_fd().to_string();
    let args = [
        "ctxtrace",
        "workload",
        "--spec",
        &spec,
        "--report-fd",
        &report_fd,
        "--progress-fd",
        &progress_number,
    ];
    let command = Command {
        program: &program,
        args: &args.map(OsStr::new),
        env: &[],
        inherit: &[report_writer.as_fd(), progress_fd.as_fd()],
        user,
    };
    let capture = Settings {
        level: settings.level,
        locator: settings.locator,
        waker_stacks: settings.wakeups_flamegraph.is_some(),
        ring_bytes: settings.ring_bytes,
        drop_one_in: settings.drop_one_in,
    };
    let mut timeline = (settings.level == Level::Timeline).then(Replay::default);
    let mut bar = Bar::new(settings.spec.iterations, number, settings.repeat);
    let traced = trace_command(&command, kernel, capture, Some(interrupts), &mut timeline, |session| {
        if bar.is_wanted() {
            bar.update(progress.messages(), session.switches_so_far());
        }
    })?;
    drop(bar);

    let message = last_message(&mut report);
    let messages_seen = progress.messages();
    if let (Some(Message::Failed(reason)), 0, None) = (&message, messages_seen, traced.interrupted) {
        // It could not even begin: there is nothing to report but why.
        return Err(Error::Workload(reason.clone()));
    }
    Ok(TracedRun {
        outcome: match &message {
            Some(Message::Done(outcome)) => Some(*outcome),
            _ => None,
        },
        messages_seen,
        cut_short: cut_short(traced.interrupted, message.as_ref(), traced.ended),
        task_types: symbolize::task_types(&traced.aggregates),
        aggregates: traced.aggregates,
        timeline,
        launched: traced.launched,
    })
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
fn cut_short(signal: Option<Signal>, message: Option<&Message>, ended: Ended) -> Option<String> {
    if let Some(signal) = signal {
        return Some(format!("interrupted by {signal}"));
    }
    match (message, ended.signal, ended.exit_status) {
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
    use ctxtrace_common::thread::KernelCount;

    fn ended(exit_status: Option<i32>, signal: Option<i32>) -> Ended {
        Ended {
            exit_status,
            signal,
            rusage: KernelCount::default(),
        }
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
