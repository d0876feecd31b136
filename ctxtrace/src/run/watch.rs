//! One traced run of a command, from its launch to its last switch.

use std::time::{Duration, Instant};

use ctxtrace_common::process::Image;
use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::signal::Signal;

use super::interrupt::Interrupts;
use crate::capture::{Kernel, Session, Settings};
use crate::correlate::reconcile::Launched;
use crate::error::{Error, Result};
use crate::target::launch::{Child, Command, Ended};
use crate::target::mappings::Tracker;
use crate::trace::Aggregates;
use crate::trace::events::EventSink;

/// How often the tracer wakes up while the workload runs: seldom, because each time it takes a CPU for some microseconds.
/// The rings are sized for much longer.
const TICK: Duration = Duration::from_millis(50);

/// A command that has run under tracing.
#[derive(Debug)]
pub struct Traced {
    /// What was seen of it.
    pub aggregates: Aggregates,
    /// What is known of it from outside.
    pub launched: Launched,
    /// How it ended.
    pub ended: Ended,
    /// The signal that made us end it, if one did.
    pub interrupted: Option<Signal>,
}

/// Runs a command under tracing, from its first switch to its last, its children included.
///
/// `sink` gets the events of [`crate::trace::Level::Timeline`]. `tick` is called every 50 ms while it runs. To be called from the main thread: the command does not outlive the thread
/// that started it.
///
/// # Errors
///
/// If the command cannot be started, or the kernel refuses to trace.
pub fn trace_command(
    command: &Command<'_>,
    kernel: &Kernel,
    settings: Settings,
    interrupts: Option<&Interrupts>,
    sink: &mut dyn EventSink,
    mut tick: impl FnMut(&Session),
) -> Result<Traced> {
    let suspended = command.launch_suspended()?;
    let pid = suspended.pid().as_raw() as u32;
    let before = suspended.switches_before;
    let mut session = Session::load(kernel, settings)?;
    let mut tracker = Tracker::start().map_err(Error::system("perf_event_open"))?;
    tracker.follow(pid);
    session.follow(pid)?;
    let image = |number| Image { tgid: pid, number };
    // Until it executes its program the child is a copy of this process, asleep.
    session.expect_no_tasks(image(0))?;
    session.expect_program(image(1), command.program)?;
    session.attach()?;
    let mut child = suspended.resume()?;
    let interrupted = watch(&child, interrupts, &mut session, &mut tracker, sink, &mut tick)?;
    let ended = child.wait()?;
    Ok(Traced {
        aggregates: session.finish(tracker, sink)?,
        launched: Launched {
            pid,
            before,
            rusage: Some(ended.rusage),
        },
        ended,
        interrupted,
    })
}

/// Waits for the child's end, ticking meanwhile. Returns the signal that made us end it, if one did.
fn watch(
    child: &Child,
    interrupts: Option<&Interrupts>,
    session: &mut Session,
    tracker: &mut Tracker,
    sink: &mut dyn EventSink,
    tick: &mut impl FnMut(&Session),
) -> Result<Option<Signal>> {
    let mut interrupted = None;
    let mut next_tick = Instant::now() + TICK;
    loop {
        let mut fds = vec![
            PollFd::new(child.pidfd(), PollFlags::POLLIN),
            PollFd::new(session.executed_fd(), PollFlags::POLLIN),
            PollFd::new(session.events_fd(), PollFlags::POLLIN),
        ];
        fds.extend(interrupts.map(|interrupts| PollFd::new(interrupts.fd(), PollFlags::POLLIN)));
        let wait = next_tick.saturating_duration_since(Instant::now());
        // Rounded up: a poll that returns a fraction of a millisecond early would only be called again.
        let wait = PollTimeout::try_from(wait + Duration::from_micros(999)).unwrap_or(PollTimeout::ZERO);
        match poll(&mut fds, wait) {
            Ok(_) | Err(Errno::EINTR) => {}
            Err(errno) => return Err(Error::errno("poll")(errno)),
        }
        let is_ready = |fd: &PollFd<'_>| fd.revents().is_some_and(|events| !events.is_empty());
        let (child_ended, program_executed, many_events) = (is_ready(&fds[0]), is_ready(&fds[1]), is_ready(&fds[2]));
        if let Some(signal) = interrupts.and_then(Interrupts::take) {
            interrupted.get_or_insert(signal);
            child.kill();
        }
        if program_executed {
            tracker.tick();
            session.programs_executed(tracker);
        }
        if many_events {
            session.drain_events(sink);
        }
        if Instant::now() >= next_tick {
            tracker.tick();
            session.tick(tracker, sink);
            tick(session);
            next_tick = Instant::now() + TICK;
        }
        if child_ended {
            return Ok(interrupted);
        }
    }
}
