//! `ctxtrace record`: records any program.

use std::ffi::{OsStr, OsString};
use std::path::PathBuf;

use nix::sys::signal::Signal;

use super::interrupt::Interrupts;
use super::observe::RecordingObserver;
use super::outputs::{OutputData, Outputs};
use super::save::Saver;
use super::watch::{Cut, OnInterrupt, Recorder, Underway};
use super::{info, verdict};
use crate::capture::{RunningKernel, preflight};
use crate::cli::settings::{RecordSettings, RecordTarget};
use crate::error::{Result, status};
use crate::files::output::OutputAccess;
use crate::files::place::DeviceInode;
use crate::terminal::write_notice;
use crate::tracee::attach::{Attached, descendants, may_be_traced};
use crate::tracee::environment::Environment;
use crate::tracee::launch::Command;
use crate::tracee::search::find_program;
use crate::tracee::user::{Invoker, invoker};
use ctxtrace_analysis::correlate::lanes::Limits;
use ctxtrace_analysis::summarize::summarize;
use ctxtrace_format::printable::printable;
use ctxtrace_format::run::{Exit, Subject};

/// Records a command or a process, writes every output, and returns the exit status, which is the command's if there is a
/// command.
///
/// # Errors
///
/// If tracing is not possible here, if an output cannot be written, or if there is nothing to record.
pub fn record(settings: &RecordSettings) -> Result<u8> {
    preflight::check()?;
    let user = invoker()?;
    let target = Found::find(&settings.target, user.as_ref())?;
    let access = OutputAccess::new(user.as_ref()).reading(target.executable());
    let outputs = Outputs::open(&settings.outputs, &access)?;
    let kernel = RunningKernel::discover()?;
    let interrupts = Interrupts::catch()?;
    let info = info(target.subject(), &settings.capture)?;
    let mut saver = Saver::begin(settings.save.as_ref(), &info, &access)?;
    let recorder = Recorder {
        kernel: &kernel,
        settings: settings.capture,
        interrupts: Some(&interrupts),
        on_interrupt: OnInterrupt::PassOn,
        duration: settings.duration,
    };
    let drawn = settings.outputs.html.is_some().then_some(Limits::ONE);
    let mut spool = outputs.spool(settings.capture.level);
    let mut keeper = RecordingObserver::new(&settings.capture, drawn, &mut saver, &mut spool, |_: &Underway<'_>| {});
    let recorded = match &target {
        Found::Command { words, program, env } => {
            let args: Vec<&OsStr> = words.iter().map(OsString::as_os_str).collect();
            let command = Command {
                program,
                args: &args,
                env,
                inherit: &[],
                user: user.as_ref(),
                own_group: false,
            };
            recorder.command(&command, &mut keeper)?
        }
        Found::Process { attached, children } => {
            for note in &attached.notes {
                say(&format!("ctxtrace: {note}"));
            }
            let began = || {
                let (pid, name) = (attached.pid, &attached.name);
                if !settings.outputs.quiet {
                    say(&format!("recording process {pid} ({name}); Ctrl-C ends it"));
                }
            };
            recorder.process(attached, *children, began, &mut keeper)?
        }
    };
    let cut = recorded.cut;
    if cut.killed && !settings.outputs.quiet {
        say("ctxtrace: processes that had not ended two seconds after SIGTERM were killed (SIGKILL)");
    }
    let runs = [keeper.stop().finish(recorded, recorder.interrupts)];
    let report = summarize(&info, &runs);
    let data = OutputData {
        info: &info,
        report: &report,
        runs: &runs,
        damage: None,
        events: &mut spool,
    };
    outputs.conclude(&settings.outputs, data, Some(saver))?;
    let verdict = verdict(&settings.outputs, &report)?;
    Ok(match runs[0].exit {
        Some(exit) => match exit_status(exit, cut) {
            0 => verdict,
            of_command => of_command,
        },
        None if cut.interrupted.is_some() => status::INTERRUPTED,
        None => verdict,
    })
}

/// The target of a recording, known to exist.
enum Found {
    Command {
        words: Vec<OsString>,
        program: PathBuf,
        env: Environment,
    },
    Process {
        attached: Attached,
        children: bool,
    },
}

impl Found {
    fn find(target: &RecordTarget, user: Option<&Invoker>) -> Result<Self> {
        Ok(match target {
            RecordTarget::Command(words) => {
                let env = Environment::for_user(user);
                let name = words.first().map_or(OsStr::new(""), OsString::as_os_str);
                Self::Command {
                    program: find_program(name, env.get("PATH"))?,
                    words: words.clone(),
                    env,
                }
            }
            RecordTarget::Process { pid, children } => {
                let mut attached = Attached::find(*pid)?;
                if *children {
                    attached.notes.extend(others_among_children(*pid));
                }
                Self::Process {
                    attached,
                    children: *children,
                }
            }
        })
    }

    /// The file that is executed. No output may overwrite it.
    fn executable(&self) -> Option<DeviceInode> {
        match self {
            Self::Command { program, .. } => DeviceInode::of_path(program),
            Self::Process { attached, .. } => DeviceInode::of_path(&attached.executable_file()),
        }
    }

    fn subject(&self) -> Subject {
        match self {
            Self::Command { words, .. } => Subject::Command {
                words: words.iter().map(|word| word.to_string_lossy().into_owned()).collect(),
            },
            Self::Process { attached, children } => Subject::Process {
                pid: attached.pid,
                name: attached.name.clone(),
                children: *children,
            },
        }
    }
}

/// A note on children of the process that the user may not trace; `None` if there are none.
fn others_among_children(pid: u32) -> Option<String> {
    let children = descendants(pid).into_iter();
    match children.filter(|&child| !may_be_traced(child)).count() {
        0 => None,
        others => Some(format!(
            "children of the process that belong to other users are not recorded: {others} (that needs root or CAP_SYS_PTRACE)"
        )),
    }
}

/// Prints a sentence on standard error; write errors are ignored.
fn say(sentence: &str) {
    write_notice(&printable(sentence));
}

/// The exit status that corresponds to how the command ended. A command that was ended because the time was up counts as
/// successful.
fn exit_status(exit: Exit, cut: Cut) -> u8 {
    let ended_it = |signal| signal == Signal::SIGTERM as i32 || cut.killed && signal == Signal::SIGKILL as i32;
    match (exit.status, exit.signal) {
        (_, Some(signal)) if cut.time_is_up && cut.interrupted.is_none() && ended_it(signal) => 0,
        (_, Some(signal)) => status::KILLED_BY.saturating_add(signal as u8),
        (Some(code), None) => code as u8,
        (None, None) => 0,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_commands_status_is_passed_on() {
        let ended = |status, signal| Exit { status, signal };
        let cut = |interrupted, time_is_up| Cut {
            interrupted,
            time_is_up,
            killed: false,
        };
        let alone = Cut::default();
        assert_eq!(exit_status(ended(Some(7), None), alone), 7);
        assert_eq!(exit_status(ended(None, Some(9)), alone), 137);
        assert_eq!(exit_status(ended(None, Some(15)), alone), 143);
        assert_eq!(exit_status(ended(None, Some(15)), cut(None, true)), 0);
        assert_eq!(exit_status(ended(None, Some(9)), cut(None, true)), 137);
        let killed = Cut {
            killed: true,
            ..cut(None, true)
        };
        assert_eq!(exit_status(ended(None, Some(9)), killed), 0);
        assert_eq!(exit_status(ended(Some(1), None), cut(None, true)), 1);
        assert_eq!(exit_status(ended(None, Some(2)), cut(Some(Signal::SIGINT), false)), 130);
    }
}
