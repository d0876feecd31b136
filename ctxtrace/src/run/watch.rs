//! One traced run, from the launch of the workload to its last switch.

use std::ffi::OsStr;
use std::io::Read;
use std::os::fd::{AsFd, AsRawFd};
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::fcntl::{FcntlArg, OFlag, fcntl};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::signal::Signal;

use super::bar::Bar;
use super::child::Message;
use super::interrupt::Interrupts;
use crate::analyze::summarize::TracedRun;
use crate::capture::{Kernel, Session, Settings};
use crate::cli::settings::RunSettings;
use crate::correlate::reconcile::Launched;
use crate::error::{Error, Result};
use crate::target::launch::{Child, Command, Ended};
use crate::target::mappings::Tracker;
use crate::target::user::Invoker;
use crate::workload::progress::Progress;

/// How often the tracer wakes up while the workload runs: seldom, because each time it takes a CPU for some microseconds.
/// The rings are sized for much longer.
const TICK: Duration = Duration::from_millis(50);

/// Runs the workload once under tracing.
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
    let suspended = Command {
        program: &program,
        args: &args.map(OsStr::new),
        inherit: &[report_writer.as_fd(), progress_fd.as_fd()],
        user,
    }
    .launch_suspended()?;
    // The child has its own copies; ours would keep the pipe open after its end.
    drop(report_writer);

    let pid = suspended.pid().as_raw() as u32;
    let mut session = Session::load(
        kernel,
        Settings {
            level: settings.level,
            drop_one_in: settings.drop_one_in,
        },
    )?;
    let mut tracker = Tracker::start().map_err(Error::system("perf_event_open"))?;
    tracker.follow(pid);
    session.follow(pid)?;
    session.attach()?;
    let before = suspended.switches_before;
    let mut child = suspended.resume()?;

    let mut bar = Bar::new(settings.spec.iterations, number, settings.repeat);
    let signal = watch(
        &child,
        interrupts,
        |run| {
            session.tick();
            tracker.tick();
            if bar.is_wanted() {
                bar.update(run.messages(), session.switches_so_far());
            }
        },
        &progress,
    )?;
    drop(bar);
    let ended = child.wait()?;
    let aggregates = session.finish(tracker)?;

    let message = last_message(&mut report);
    let messages_seen = progress.messages();
    if let (Some(Message::Failed(reason)), 0, None) = (&message, messages_seen, signal) {
        // It could not even begin: there is nothing to report but why.
        return Err(Error::Workload(reason.clone()));
    }
    Ok(TracedRun {
        aggregates,
        launched: Launched {
            pid,
            before,
            rusage: Some(ended.rusage),
        },
        outcome: match &message {
            Some(Message::Done(outcome)) => Some(*outcome),
            _ => None,
        },
        messages_seen,
        cut_short: cut_short(signal, message.as_ref(), ended),
    })
}

/// Waits for the child's end, ticking meanwhile. Returns the signal that made us end it, if one did.
fn watch(
    child: &Child,
    interrupts: &Interrupts,
    mut tick: impl FnMut(&Progress),
    progress: &Progress,
) -> Result<Option<Signal>> {
    let mut interrupted = None;
    let mut next_tick = Instant::now() + TICK;
    loop {
        let mut fds = [
            PollFd::new(child.pidfd(), PollFlags::POLLIN),
            PollFd::new(interrupts.fd(), PollFlags::POLLIN),
        ];
        let wait = next_tick.saturating_duration_since(Instant::now());
        // Rounded up: a poll that returns a fraction of a millisecond early would only be called again.
        let wait = PollTimeout::try_from(wait + Duration::from_micros(999)).unwrap_or(PollTimeout::ZERO);
        match poll(&mut fds, wait) {
            Ok(_) | Err(Errno::EINTR) => {}
            Err(errno) => return Err(Error::errno("poll")(errno)),
        }
        let ready = |fd: &PollFd<'_>| fd.revents().is_some_and(|events| !events.is_empty());
        let (child_ended, signal_came) = (ready(&fds[0]), ready(&fds[1]));
        if signal_came {
            if let Some(signal) = interrupts.take() {
                interrupted.get_or_insert(signal);
                child.kill();
            }
        }
        if Instant::now() >= next_tick {
            tick(progress);
            next_tick = Instant::now() + TICK;
        }
        if child_ended {
            return Ok(interrupted);
        }
    }
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
