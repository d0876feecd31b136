//! One recording: of a command from its launch to its last switch, or of a process that runs already.

use std::collections::HashSet;
use std::os::fd::{AsRawFd, BorrowedFd};
use std::time::{Duration, Instant};

use ctxtrace_common::process::Image;
use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::signal::Signal;

use super::ending::{Ending, all_have_ended};
use super::interrupt::Interrupts;
use super::priority::Raised;
use crate::capture::polls::{self, PollRings};
use crate::capture::{Kernel, Session, Settings};
use crate::correlate::intervals::IntervalSink;
use crate::correlate::timeline::Replay;
use crate::error::{Error, Result};
use crate::target::attach::{Attached, descendants, may_be_traced};
use crate::target::launch::{Child, Command, Ended};
use crate::target::mappings::Tracker;
use crate::target::silent::FirstReading;
use crate::trace::events::EventSink;
use crate::trace::run::{Launched, Run};
use crate::trace::samples::Samples;
use crate::trace::symbols::Symbols;

/// How often the tracer wakes up while the target runs: seldom, because each time it takes a CPU for some microseconds.
/// The rings are sized for much longer.
const TICK: Duration = Duration::from_millis(50);

/// What every recording needs.
#[derive(Clone, Copy)]
pub struct Recorder<'a> {
    /// The running kernel.
    pub kernel: &'a Kernel,
    /// What to record.
    pub settings: Settings,
    /// Ctrl-C and its kin, if they are caught.
    pub interrupts: Option<&'a Interrupts>,
    /// What to do with a command when one comes.
    pub on_interrupt: OnInterrupt,
    /// For how long; `None` for as long as it takes.
    pub duration: Option<Duration>,
}

/// What becomes of a command that is interrupted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OnInterrupt {
    /// It is killed, with everything that it has started.
    Kill,
    /// It gets the signal, if it has not got it from the terminal, and is recorded until it ends; it is killed at the second
    /// one, with everything that it has started.
    PassOn,
}

/// Why a recording ended before its target did.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Cut {
    /// The first signal that came.
    pub interrupted: Option<Signal>,
    /// The time was up.
    pub time_is_up: bool,
    /// What did not end when it was asked to was killed.
    pub killed: bool,
}

/// A recording that is over. Its stacks have no names yet.
#[derive(Debug)]
pub struct Recorded {
    /// What was seen.
    pub run: Run,
    /// What came in between.
    pub cut: Cut,
}

/// A recording that goes on.
pub struct Underway<'a> {
    /// The programs and maps.
    pub session: &'a Session,
    tracker: &'a Tracker,
    launched: Option<Launched>,
    since: Instant,
}

impl Underway<'_> {
    /// What there is by now.
    ///
    /// # Errors
    ///
    /// If a map cannot be read.
    pub fn so_far(&self) -> Result<Run> {
        Ok(Run {
            aggregates: self.session.so_far(self.tracker.mappings())?,
            symbols: Symbols::default(),
            launched: self.launched,
            recorded_ns: self.since.elapsed().as_nanos() as u64,
            exit: None,
            outcome: None,
            messages_seen: 0,
            cut_short: None,
            timeline: None,
            polls: None,
            samples: Samples::default(),
            lanes: None,
        })
    }
}

/// Is told of a recording while it goes on: of the events of [`crate::trace::Level::Timeline`] as they come, and of where it
/// stands.
pub trait Observer: EventSink {
    /// Called every 50 ms.
    fn tick(&mut self, _underway: &Underway<'_>) {}
}

impl Observer for () {}
impl<I: IntervalSink> Observer for Replay<I> {}

impl Recorder<'_> {
    /// Runs a command under tracing, from its first switch to its last, its children included.
    ///
    /// To be called from the main thread: the command does not outlive the
    /// thread that started it.
    ///
    /// # Errors
    ///
    /// If the command cannot be started, or the kernel refuses to trace.
    #[expect(
        clippy::redundant_closure_for_method_calls,
        reason = "the method by itself is that of one lifetime, and the command with the rings has another"
    )]
    pub fn command(&self, command: &Command<'_>, observer: &mut dyn Observer) -> Result<Recorded> {
        let rings = self.poll_rings()?;
        let suspended = match &rings {
            Some(rings) => with_rings(command, rings, |command| command.launch_suspended()),
            None => command.launch_suspended(),
        }?;
        let pid = suspended.pid().as_raw() as u32;
        let mut launched = Launched {
            pid,
            before: suspended.switches_before,
            rusage: None,
        };
        let mut session = Session::load(self.kernel, self.settings)?;
        let mut tracker = start_tracker()?;
        tracker.follow(pid);
        session.follow(pid)?;
        if let Some(rings) = rings {
            session.read_polls(rings);
        }
        let image = |number| Image { tgid: pid, number };
        // Until it executes its program the child is a copy of this process, asleep.
        session.expect_no_tasks(image(0))?;
        // What cannot be opened is found when it is executed.
        if let Ok(held) = tracker.hold(command.program) {
            session.expect_program(image(1), &held)?;
        }
        session.attach()?;
        let since = Instant::now();
        let mut child = suspended.resume()?;
        let watch = Watch {
            recorder: self,
            child: Some(&child),
            end: child.pidfd(),
            launched: Some(launched),
            since,
        };
        let (cut, has_ended) = watch.until_the_end(&mut session, &mut tracker, observer)?;
        let ended = if has_ended {
            Some(child.wait()?)
        } else {
            child.leave();
            None
        };
        launched.rusage = ended.map(|ended| ended.rusage);
        Self::over(session, tracker, observer, since, Some((launched, ended)), cut)
    }

    /// What a command tells its polls in, if that is wanted.
    fn poll_rings(&self) -> Result<Option<PollRings>> {
        let rings = || PollRings::create(polls::clock().clock, self.settings.poll_ring_bytes);
        self.settings.polls.then(rings).transpose()
    }

    /// Records a process that runs already, with the children it has and makes if `children` says so, until it ends, is
    /// interrupted, or the time is up. `began` is called when it is being recorded.
    ///
    /// # Errors
    ///
    /// If the kernel refuses to trace, or if the process ended before anything could be recorded.
    pub fn process(
        &self,
        attached: &Attached,
        children: bool,
        began: impl FnOnce(),
        observer: &mut dyn Observer,
    ) -> Result<Recorded> {
        let settings = Settings {
            follow_children: children,
            ..self.settings
        };
        let pid = attached.pid;
        let mut session = Session::load(self.kernel, settings)?;
        let mut tracker = start_tracker()?;
        let image = Image { tgid: pid, number: 0 };
        if let Ok(held) = tracker.hold_as(&attached.executable_file(), &attached.executable) {
            session.expect_program(image, &held)?;
        }
        session.attach()?;
        let since = Instant::now();
        // Only now: a thread whose waking is seen and whose switch-out is not, because one program was attached before the
        // other, would lack a switch.
        follow_running(&mut session, &mut tracker, pid)?;
        if children {
            follow_descendants(&mut session, &mut tracker, pid)?;
        }
        let processes = session.processes()?.into_iter().map(|(pid, _)| pid);
        let first_reading = FirstReading::of(processes);
        began();
        let watch = Watch {
            recorder: self,
            child: None,
            end: attached.pidfd(),
            launched: None,
            since,
        };
        let (cut, _) = watch.until_the_end(&mut session, &mut tracker, observer)?;
        let silent = first_reading.silent();
        let mut recorded = Self::over(session, tracker, observer, since, None, cut)?;
        let seen: HashSet<u32> = recorded
            .run
            .aggregates
            .threads
            .iter()
            .map(|record| record.thread.tid)
            .collect();
        // What was read before everything was detached may have made a switch since.
        recorded.run.aggregates.silent = silent
            .into_iter()
            .filter(|thread| !seen.contains(&thread.tid))
            .collect();
        if cut == Cut::default() && recorded.run.aggregates.threads.is_empty() {
            return Err(Error::Attach {
                pid,
                reason: format!("{} ended at that moment, and nothing was recorded", attached.name),
            });
        }
        Ok(recorded)
    }

    fn over(
        session: Session,
        tracker: Tracker,
        sink: &mut dyn EventSink,
        since: Instant,
        launched: Option<(Launched, Option<Ended>)>,
        cut: Cut,
    ) -> Result<Recorded> {
        let aggregates = session.finish(tracker, sink)?;
        Ok(Recorded {
            run: Run {
                aggregates,
                symbols: Symbols::default(),
                launched: launched.map(|(launched, _)| launched),
                recorded_ns: since.elapsed().as_nanos() as u64,
                exit: launched.and_then(|(_, ended)| Some(ended?.exit)),
                outcome: None,
                messages_seen: 0,
                cut_short: None,
                timeline: None,
                polls: None,
                samples: Samples::default(),
                lanes: None,
            },
            cut,
        })
    }
}

/// Calls `start` with a command that inherits the rings and knows of them.
fn with_rings<T>(command: &Command<'_>, rings: &PollRings, start: impl FnOnce(&Command<'_>) -> T) -> T {
    let fd = rings.fd();
    let (name, value) = rings.variable(fd.as_raw_fd());
    let inherit: Vec<_> = command.inherit.iter().copied().chain([fd]).collect();
    start(&Command {
        env: &command.env.clone().with(name, value),
        inherit: &inherit,
        ..*command
    })
}

/// Follows all descendants of a process that the caller may trace, those too that are born meanwhile.
fn follow_descendants(session: &mut Session, tracker: &mut Tracker, tgid: u32) -> Result<()> {
    loop {
        let unknown: Vec<u32> = descendants(tgid)
            .into_iter()
            .filter(|&child| !tracker.follows(child) && may_be_traced(child))
            .collect();
        if unknown.is_empty() {
            return Ok(());
        }
        for child in unknown {
            follow_running(session, tracker, child)?;
        }
    }
}

fn follow_running(session: &mut Session, tracker: &mut Tracker, tgid: u32) -> Result<()> {
    tracker.follow(tgid);
    session.follow_running(tgid)
}

fn start_tracker() -> Result<Tracker> {
    Tracker::start().map_err(Error::system("perf_event_open"))
}

/// The loop around one recording.
struct Watch<'a> {
    recorder: &'a Recorder<'a>,
    /// To be ended with the recording.
    child: Option<&'a Child>,
    /// Readable when the target has ended.
    end: BorrowedFd<'a>,
    launched: Option<Launched>,
    since: Instant,
}

impl Watch<'_> {
    /// Waits for the target's end, ticking meanwhile. A target of ours is ended when the time is up, with everything that it has
    /// started; one that was attached to is let go then, or at the first signal. Says what came in between, and whether the target
    /// has ended.
    fn until_the_end(
        &self,
        session: &mut Session,
        tracker: &mut Tracker,
        observer: &mut dyn Observer,
    ) -> Result<(Cut, bool)> {
        let _raised = Raised::new();
        let interrupts = self.recorder.interrupts;
        let deadline = self.recorder.duration.map(|duration| self.since + duration);
        let mut cut = Cut::default();
        let mut ending = Ending::default();
        let mut has_ended = false;
        let mut next_tick = Instant::now() + TICK;
        loop {
            let mut fds = vec![
                PollFd::new(session.executed_fd(), PollFlags::POLLIN),
                PollFd::new(session.events_fd(), PollFlags::POLLIN),
            ];
            fds.extend(interrupts.map(|interrupts| PollFd::new(interrupts.fd(), PollFlags::POLLIN)));
            let examined = session.examined_fd().map(|fd| PollFd::new(fd, PollFlags::POLLIN));
            let examined_at = examined.as_ref().map(|_| fds.len());
            fds.extend(examined);
            // The last one, and no longer when it has become readable, which it stays.
            fds.extend((!has_ended).then(|| PollFd::new(self.end, PollFlags::POLLIN)));
            let until = deadline
                .filter(|_| !cut.time_is_up)
                .map_or(next_tick, |at| at.min(next_tick));
            let wait = until.saturating_duration_since(Instant::now());
            // Rounded up: a poll that returns a fraction of a millisecond early would only be called again.
            let wait = PollTimeout::try_from(wait + Duration::from_micros(999)).unwrap_or(PollTimeout::ZERO);
            match poll(&mut fds, wait) {
                Ok(_) | Err(Errno::EINTR) => {}
                Err(errno) => return Err(Error::errno("poll")(errno)),
            }
            let is_ready = |fd: &PollFd<'_>| fd.revents().is_some_and(|events| !events.is_empty());
            let (program_executed, many_events) = (is_ready(&fds[0]), is_ready(&fds[1]));
            let program_examined = examined_at.is_some_and(|at| is_ready(&fds[at]));
            has_ended |= fds.last().is_some_and(|end| !has_ended && is_ready(end));
            let is_over = self.take_signals(&mut cut, &mut ending, session)?;
            if !cut.time_is_up && deadline.is_some_and(|at| Instant::now() >= at) {
                cut.time_is_up = true;
                if let Some(child) = self.child {
                    let asked = ending.ask(session, Instant::now())?;
                    if !asked.contains(&(child.pid().as_raw() as u32)) {
                        child.signal(Signal::SIGTERM);
                    }
                }
            }
            if program_executed {
                tracker.tick();
                session.programs_executed(tracker);
            }
            if program_examined {
                session.programs_examined(tracker);
            }
            if many_events {
                session.drain_events(observer);
            }
            if Instant::now() >= next_tick {
                tracker.tick();
                if tracker.has_lost_processes() {
                    tracker.renumber(&session.image_numbers());
                }
                session.tick(tracker, observer);
                observer.tick(&Underway {
                    session,
                    tracker,
                    launched: self.launched,
                    since: self.since,
                });
                ending.tick(session, Instant::now())?;
                cut.killed |= cut.time_is_up && ending.is_killing();
                next_tick = Instant::now() + TICK;
            }
            let let_go = self.child.is_none() && (is_over || cut.time_is_up);
            let is_done = match (has_ended, ending.has_begun()) {
                (true, true) => all_have_ended(session)?,
                (has_ended, _) => has_ended,
            };
            if let_go || is_done || ending.is_given_up(Instant::now()) {
                return Ok((cut, has_ended));
            }
        }
    }

    /// Deals with what signals have come, and says whether there was one.
    fn take_signals(&self, cut: &mut Cut, ending: &mut Ending, session: &Session) -> Result<bool> {
        let Some(interrupt) = self.recorder.interrupts.and_then(Interrupts::take) else {
            return Ok(false);
        };
        let first = cut.interrupted.is_none();
        cut.interrupted.get_or_insert(interrupt.signal);
        match (self.child, self.recorder.on_interrupt) {
            (None, _) => {}
            (Some(child), OnInterrupt::PassOn) if first && !ending.has_begun() => {
                if !interrupt.from_terminal {
                    child.signal(interrupt.signal);
                }
            }
            (Some(child), _) => {
                child.kill();
                ending.kill(session, Instant::now())?;
            }
        }
        Ok(true)
    }
}
