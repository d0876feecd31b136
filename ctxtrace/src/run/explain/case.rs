//! The two kinds of cases, and the ways to run one: timed, counted or traced.

use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use nix::sched::{CpuSet, sched_setaffinity};

use crate::capture::{RunningKernel, Settings};
use crate::error::{Error, Result};
use crate::run::interrupt::Interrupts;
use crate::run::program::WorkloadProgram;
use crate::run::watch::{Observer, OnInterrupt, RecordedRun, Recorder};
use crate::run::workload;
use crate::terminal::data_output;
use crate::tracee::counters::Counters;
use crate::tracee::environment::Environment;
use crate::tracee::launch::{Command, Suspended};
use crate::tracee::search::find_program;
use crate::tracee::user::Invoker;
use ctxtrace_analysis::budget::Unit;
use ctxtrace_analysis::explain::intervention::CommandCase;
use ctxtrace_format::counted::Counted;
use ctxtrace_format::workload::{Outcome, Spec};

/// The shared environment of all runs.
#[derive(Clone, Copy)]
pub(super) struct CaseEnvironment<'a> {
    pub(super) kernel: &'a RunningKernel,
    pub(super) interrupts: &'a Interrupts,
    pub(super) user: Option<&'a Invoker>,
}

/// A description of a case that can be prepared for running.
pub(super) trait PreparedCase: Clone + PartialEq {
    /// The unit that the times are divided by.
    const UNIT: Unit;

    /// Prepares the case so that one run takes about this long, if its length can be chosen.
    fn prepare(&self, place: &CaseEnvironment<'_>, duration: Duration) -> Result<Arm>;

    /// The same case, which also counts the maximum number of messages in flight; `None` if the case cannot count them.
    fn counting(&self) -> Option<Self>;

    /// A description of the case for the user.
    fn name(&self) -> String;

    /// Number of messages that a channel has room for; `None` if there is no such number.
    fn buffer(&self) -> Option<u64>;
}

/// A prepared case, which can be run repeatedly.
pub(super) struct Arm(Start);

enum Start {
    Workload(WorkloadProgram),
    Command {
        program: PathBuf,
        words: Vec<OsString>,
        environment: Environment,
        cpu: Option<usize>,
    },
}

/// Number of messages of the run that measures how long one message takes.
const CALIBRATION: u64 = 50_000;

impl PreparedCase for Spec {
    const UNIT: Unit = Unit::Message;

    fn prepare(&self, place: &CaseEnvironment<'_>, duration: Duration) -> Result<Arm> {
        let few = Self {
            // A round trip of processes takes a hundred times as long as a message of tasks.
            iterations: if self.mode.is_tasks() {
                CALIBRATION
            } else {
                CALIBRATION / 20
            },
            ..self.clone()
        };
        let program = WorkloadProgram::find_or_build(&few, place.user)?;
        let Some(outcome) = workload::timed(&program, place.interrupts, place.user)? else {
            return Err(Error::Workload("interrupted".to_owned()));
        };
        let iterations = (duration.as_nanos() as f64 / outcome.ns_per_message()).clamp(1_000.0, 1e9) as u64;
        let enough = Self {
            iterations,
            ..self.clone()
        };
        Ok(Arm(Start::Workload(WorkloadProgram::find_or_build(
            &enough, place.user,
        )?)))
    }

    fn counting(&self) -> Option<Self> {
        self.protocol()?;
        Some(Self {
            count_in_flight: true,
            plant: None,
            ..self.clone()
        })
    }

    fn name(&self) -> String {
        self.in_words()
    }

    fn buffer(&self) -> Option<u64> {
        self.buffer.map(|buffer| buffer as u64)
    }
}

impl PreparedCase for CommandCase {
    const UNIT: Unit = Unit::Run;

    fn prepare(&self, place: &CaseEnvironment<'_>, _duration: Duration) -> Result<Arm> {
        let mut environment = Environment::for_user(place.user);
        for (name, value) in &self.variables {
            environment = environment.with(name, value);
        }
        let words: Vec<OsString> = self.words.iter().map(OsString::from).collect();
        let name = words.first().map_or(OsStr::new(""), OsString::as_os_str);
        Ok(Arm(Start::Command {
            program: find_program(name, environment.get("PATH"))?,
            words,
            environment,
            cpu: self.cpu,
        }))
    }

    fn counting(&self) -> Option<Self> {
        None
    }

    fn name(&self) -> String {
        // The folder of the program is left out: the user gave it, and a short name shows better how two cases differ.
        let mut words = self.words.clone();
        if let Some(program) = words.first_mut()
            && let Some(name) = Path::new(program.as_str()).file_name()
        {
            *program = name.to_string_lossy().into_owned();
        }
        words.join(" ")
    }

    fn buffer(&self) -> Option<u64> {
        None
    }
}

/// The result of one run.
#[derive(Clone, Debug)]
pub(super) struct Took {
    /// Nanoseconds per message or run.
    pub(super) ns: f64,
    /// Maximum number of messages in flight, if it was counted.
    pub(super) max_in_flight: Option<u64>,
    /// The requested counts, per message or run.
    pub(super) counts: Vec<(Counted, f64)>,
}

impl Arm {
    /// Runs the case once, untraced. `None` if it was interrupted.
    pub(super) fn time(&self, place: &CaseEnvironment<'_>) -> Result<Option<Took>> {
        self.count(place, &[])
    }

    /// Like [`Arm::time`], and also counts these events. Counting has a cost at each switch.
    pub(super) fn count(&self, place: &CaseEnvironment<'_>, counted: &[Counted]) -> Result<Option<Took>> {
        let mut counters = None;
        let begin = |suspended: &Suspended| {
            if !counted.is_empty() {
                counters = Some(Counters::from_exec(suspended.pid(), counted)?);
            }
            Ok(())
        };
        let ran = match &self.0 {
            Start::Workload(program) => workload::timed_with(program, place.interrupts, place.user, begin)?
                .map(|outcome| (outcome.ns_per_message(), outcome.messages as f64, outcome.max_in_flight)),
            Start::Command { .. } => self
                .time_command(place, begin)?
                .map(|took| (took.as_nanos() as f64, 1.0, None)),
        };
        let Some((ns, units, max_in_flight)) = ran else {
            return Ok(None);
        };
        let counts = counters.as_mut().map(Counters::read).transpose()?.unwrap_or_default();
        Ok(Some(Took {
            ns,
            max_in_flight,
            counts: counts
                .into_iter()
                .map(|(counted, count)| (counted, count / units))
                .collect(),
        }))
    }

    fn time_command(
        &self,
        place: &CaseEnvironment<'_>,
        begin: impl FnOnce(&Suspended) -> Result<()>,
    ) -> Result<Option<Duration>> {
        self.with_command(place.user, |command| {
            let suspended = command.launch_suspended()?;
            self.pin(&suspended)?;
            begin(&suspended)?;
            let since = Instant::now();
            let mut child = suspended.resume()?;
            let interrupted = workload::until_the_end(&child, place.interrupts)?;
            let took = since.elapsed();
            let ended = child.wait()?;
            if interrupted.is_some() {
                return Ok(None);
            }
            if ended.exit.status != Some(0) {
                return Err(failed(command));
            }
            Ok(Some(took))
        })
    }

    /// Runs the case once, traced. The stacks have no names yet.
    pub(super) fn trace(
        &self,
        place: &CaseEnvironment<'_>,
        settings: Settings,
        observer: &mut dyn Observer,
    ) -> Result<(RecordedRun, Option<Outcome>)> {
        let recorder = Recorder {
            kernel: place.kernel,
            settings,
            interrupts: Some(place.interrupts),
            on_interrupt: OnInterrupt::Kill,
            duration: None,
        };
        match &self.0 {
            Start::Workload(program) => {
                let recorded = workload::observed(program, &recorder, place.user, observer)?;
                let outcome = recorded.run.outcome;
                Ok((recorded, outcome))
            }
            Start::Command { .. } => self.with_command(place.user, |command| {
                let recorded = recorder.command(command, observer)?;
                let exit = recorded.run.exit;
                if place.interrupts.any_seen() || exit.and_then(|exit| exit.status) == Some(0) {
                    return Ok((recorded, None));
                }
                Err(failed(command))
            }),
        }
    }

    /// Restricts a command to the one CPU it may use.
    fn pin(&self, suspended: &Suspended) -> Result<()> {
        let Start::Command { cpu: Some(cpu), .. } = &self.0 else {
            return Ok(());
        };
        let mut only = CpuSet::new();
        only.set(*cpu)
            .and_then(|()| sched_setaffinity(suspended.pid(), &only))
            .map_err(Error::errno("sched_setaffinity"))
    }

    /// Calls `run` with the user's command, and discards the command's output.
    fn with_command<T>(&self, user: Option<&Invoker>, run: impl FnOnce(&Command<'_>) -> Result<T>) -> Result<T> {
        let Start::Command {
            program,
            words,
            environment,
            ..
        } = &self.0
        else {
            return Err(Error::Workload(
                "a built-in workload cannot be run as a command".to_owned(),
            ));
        };
        let args: Vec<&OsStr> = words.iter().map(OsString::as_os_str).collect();
        let _silence = Silence::begin()?;
        run(&Command {
            program,
            args: &args,
            env: environment,
            inherit: &[],
            user,
            own_group: true,
        })
    }
}

/// Discards standard output while it exists: the output of a command that is run fifty times is not wanted.
struct Silence(OwnedFd);

impl Silence {
    fn begin() -> Result<Self> {
        // The duplicate must not be inherited by a command: a reader of the standard output would then wait until that command
        // ends.
        let duplicate = data_output()
            .as_fd()
            .try_clone_to_owned()
            .map_err(Error::system("duplicating standard output"))?;
        let nowhere = File::options()
            .write(true)
            .open("/dev/null")
            .map_err(Error::system("opening /dev/null"))?;
        nix::unistd::dup2_stdout(nowhere).map_err(Error::errno("dup2"))?;
        Ok(Self(duplicate))
    }
}

impl Drop for Silence {
    fn drop(&mut self) {
        // If this fails, later output is lost, and there is no way to report it.
        let _ = nix::unistd::dup2_stdout(&self.0);
    }
}

fn failed(command: &Command<'_>) -> Error {
    let words: Vec<_> = command.args.iter().map(|word| word.to_string_lossy()).collect();
    Error::Workload(format!(
        "`{}` does not end with status 0: only commands that succeed can be compared",
        words.join(" ")
    ))
}
