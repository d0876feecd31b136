//! One recording: of a command from its launch to its last switch, or of a process that is already running.

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
use crate::capture::{RunningKernel, Session, Settings};
use crate::error::{Error, Result};
use crate::symbols;
use crate::tracee::attach::{Attached, descendants, may_be_traced};
use crate::tracee::held::HeldFiles;
use crate::tracee::launch::{Child, Command, Ended};
use crate::tracee::mappings::Tracker;
use crate::tracee::silent::FirstReading;
use ctxtrace_analysis::correlate::intervals::IntervalSink;
use ctxtrace_analysis::correlate::timeline::Replay;
use ctxtrace_format::events::EventSink;
use ctxtrace_format::run::{Launched, Run};
use ctxtrace_format::samples::Samples;
use ctxtrace_format::symbols::Symbols;

/// How often the tracer wakes up while the target runs. This is seldom, because each time it takes a CPU for some microseconds.
/// The rings have room for the events of a much longer time.
const TICK: Duration = Duration::from_millis(50);

/// The parameters of a recording.
#[derive(Clone, Copy)]
pub struct Recorder<'a> {
    /// The running kernel.
    pub kernel: &'a RunningKernel,
    /// What to record.
    pub settings: Settings,
    /// Ctrl-C and similar signals, if they are caught.
    pub interrupts: Option<&'a Interrupts>,
    /// What to do with a command when a signal arrives.
    pub on_interrupt: OnInterrupt,
    /// Maximum duration; `None` for no limit.
    pub duration: Option<Duration>,
}

/// What happens to a command when a signal arrives.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OnInterrupt {
    /// The command is killed, with all processes that it has started.
    Kill,
    /// The first signal is passed on to the command, unless the command got it from the terminal, and recording continues until
    /// the command ends. The second signal kills the command, with all processes that it has started.
    PassOn,
}

/// Why a recording ended before its target did.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Cut {
    /// The first signal that arrived.
    pub interrupted: Option<Signal>,
    /// Whether the maximum duration was reached.
    pub time_is_up: bool,
    /// Whether processes that did not end after SIGTERM were killed.
    pub killed: bool,
}

/// A recording that has ended. Its stacks have no names yet.
#[derive(Debug)]
pub struct RecordedRun {
    /// The recorded data.
    pub run: Run,
    /// The files in which the names of functions are looked up.
    pub held: HeldFiles,
    /// What happened before the target's end, if anything.
    pub cut: Cut,
}

impl RecordedRun {
    /// Looks up the names of all stacks of the run, also of those in its samples, until `interrupt` is readable.
    pub fn name_stacks(&mut self, interrupt: Option<BorrowedFd<'_>>) {
        let Run {
            aggregates, samples, ..
        } = &self.run;
        self.run.symbols = symbols::resolve(aggregates, samples, &self.held, interrupt);
    }
}

/// A recording in progress.
pub struct Underway<'a> {
    /// The programs and maps.
    pub session: &'a Session,
    tracker: &'a Tracker,
    launched: Option<Launched>,
    since: Instant,
}

impl Underway<'_> {
    /// The run as recorded so far.
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

/// Receives the events of a recording in progress, with [`ctxtrace_format::Level::Timeline`], and can inspect its state at each
/// tick.
pub trait Observer: EventSink {
    /// Called every 50 ms.
    fn tick(&mut self, _underway: &Underway<'_>) {}
}

impl Observer for () {}
impl<I: IntervalSink> Observer for Replay<I> {}

impl Recorder<'_> {
    /// Records a command from its first switch to its last, including its children.
    ///
    /// Call it on the main thread, because the command is killed when the thread that started it ends.
    ///
    /// # Errors
    ///
    /// If the command cannot be started, or if the kernel refuses to trace.
    #[expect(
        clippy::redundant_closure_for_method_calls,
        reason = "the method path has one lifetime, but the command with the rings has another"
    )]
    pub fn command(&self, command: &Command<'_>, observer: &mut dyn Observer) -> Result<RecordedRun> {
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
        // Until it executes its program, the child is a sleeping copy of this process.
        session.expect_no_tasks(image(0))?;
        // A program that cannot be opened now is examined when it is executed.
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

    /// Creates the rings to which a command writes its polls, if polls are requested.
    fn poll_rings(&self) -> Result<Option<PollRings>> {
        let rings = || PollRings::create(polls::clock().clock, self.settings.poll_ring_bytes);
        self.settings.polls.then(rings).transpose()
    }

    /// Records a process that is already running until it ends, a signal arrives or the time is up. With `children`, its present
    /// and future children are recorded, too. `began` is called when recording has started.
    ///
    /// # Errors
    ///
    /// If the kernel refuses to trace, or if the process ended before anything was recorded.
    pub fn process(
        &self,
        attached: &Attached,
        children: bool,
        began: impl FnOnce(),
        observer: &mut dyn Observer,
    ) -> Result<RecordedRun> {
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
        // Follow the process only after everything is attached. Otherwise a thread's wakeup could be seen without its switch-out,
        // because only one of the two programs is attached yet, and a switch would be missing.
        follow_running(&mut session, &mut tracker, pid)?;
        if children {
            follow_descendants(&mut session, &mut tracker, pid)?;
        }
        let processes = session.processes()?.into_iter().map(|(pid, _)| pid);
        let first_reading = FirstReading::read(processes);
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
        // A thread that was silent when it was read may have made a switch before everything was detached.
        recorded.run.aggregates.silent = silent
            .into_iter()
            .filter(|thread| !seen.contains(&thread.tid))
            .collect();
        if cut == Cut::default() && recorded.run.aggregates.threads.is_empty() {
            return Err(Error::Attach {
                pid,
                reason: format!(
                    "{} ended as the recording began, and nothing was recorded",
                    attached.name
                ),
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
    ) -> Result<RecordedRun> {
        let (aggregates, held) = session.finish(tracker, sink)?;
        Ok(RecordedRun {
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
            held,
            cut,
        })
    }
}

/// Calls `start` with a command that inherits the rings and has their environment variable.
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

/// Follows all descendants of a process that the user may trace, including those that are born meanwhile.
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

/// The main loop of one recording.
struct Watch<'a> {
    recorder: &'a Recorder<'a>,
    /// The command that ctxtrace started, if it did; it is ended when the recording ends.
    child: Option<&'a Child>,
    /// A descriptor that becomes readable when the target has ended.
    end: BorrowedFd<'a>,
    launched: Option<Launched>,
    since: Instant,
}

impl Watch<'_> {
    /// Waits until the target ends, calling `tick` meanwhile. When the time is up, a command that ctxtrace started is ended, with
    /// all processes that it has started. A process that was attached to is released when the time is up or at the first signal.
    /// Returns what happened before the target's end, and whether the target has ended.
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
            // This must be the last entry. It is left out once it has become readable, because it stays readable.
            fds.extend((!has_ended).then(|| PollFd::new(self.end, PollFlags::POLLIN)));
            let until = deadline
                .filter(|_| !cut.time_is_up)
                .map_or(next_tick, |at| at.min(next_tick));
            let wait = until.saturating_duration_since(Instant::now());
            // Rounded up, because a `poll` that returns a fraction of a millisecond early would only have to be called again.
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
                tracker.refuse(session.take_refused());
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
                tracker.refuse(session.take_refused());
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

    /// Handles a signal that has arrived, and returns whether there was one.
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
