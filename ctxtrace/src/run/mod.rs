//! The commands, which combine the stages.
//!
//! ```text
//!   run, record:  check ─▶ open outputs ─▶ [ launch or attach ─▶ load, attach ─▶ watch ─▶ drain maps, name ] × repeat
//!                                                                      │                        │
//!                                                             save as it goes on            summarize
//!                                                                      ▼                        ▼
//!   report:                                     open outputs ─▶ read the capture ─▶ summarize ─▶ write outputs
//! ```

mod assertions;
mod bar;
pub mod child;
mod compare;
mod comparison;
pub mod doctor;
mod ending;
pub mod explain;
pub mod interrupt;
mod observe;
mod outputs;
mod priority;
mod program;
mod record;
mod report;
mod save;
mod spool;
pub mod suite;
mod tables;
pub mod watch;
mod workload;
mod written;

pub use compare::compare;
pub use record::record;
pub use report::report;

use crate::capture::{RunningKernel, Settings, polls, preflight};
use crate::cli::settings::{OutputSettings, RunSettings};
use crate::error::{Error, Result, status};
use crate::files::output::OutputAccess;
use crate::tracee::user::invoker;
use crate::workload::pin::allowed_cpus;
use ctxtrace_analysis::result::Report;
use ctxtrace_analysis::summarize::summarize;
use ctxtrace_analysis::verdict::sums_agree;
use ctxtrace_format::run::{ClockAnchor, Host, Info, Run, Subject};
use interrupt::Interrupts;
use outputs::{OutputData, Outputs};
use program::WorkloadProgram;
use save::Saver;
use watch::{OnInterrupt, Recorder};

/// `ctxtrace run`: runs the workload the requested number of times, writes every output, and returns the exit status.
///
/// # Errors
///
/// If tracing is not possible here, if an output cannot be written, or if the workload fails before its first message. A workload
/// that fails later is not an error of this function: it results in a partial report and an exit status.
pub fn run(settings: &RunSettings) -> Result<u8> {
    preflight::check()?;
    let user = invoker()?;
    let access = OutputAccess::new(user.as_ref());
    let outputs = Outputs::open(&settings.outputs, &access)?;
    let program = WorkloadProgram::find_or_build(&settings.spec, user.as_ref())?;
    let kernel = RunningKernel::discover()?;
    let interrupts = Interrupts::catch()?;
    let info = info(Subject::Workload(settings.spec.clone()), &settings.capture)?;
    let mut saver = Saver::begin(settings.save.as_ref(), &info, &access)?;
    let mut spool = outputs.spool(settings.capture.level);
    let recorder = Recorder {
        kernel: &kernel,
        settings: settings.capture,
        interrupts: Some(&interrupts),
        on_interrupt: OnInterrupt::Kill,
        duration: None,
    };

    let mut runs: Vec<Run> = Vec::new();
    for number in 1..=settings.repeat {
        let run = workload::recorded(
            settings,
            &program,
            &recorder,
            user.as_ref(),
            number,
            &mut saver,
            &mut spool,
        )?;
        let cut_short = run.cut_short.is_some() || interrupts.any_seen();
        runs.push(run);
        if cut_short {
            break;
        }
    }

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
    Ok(if interrupts.any_seen() {
        status::INTERRUPTED
    } else if !report.complete {
        status::FAILURE
    } else {
        verdict
    })
}

/// Returns the exit status for a complete report, and prints the assertions that do not hold.
fn verdict(outputs: &OutputSettings, report: &Report) -> Result<u8> {
    let assertions_hold = assertions::all_hold(&outputs.assertions, report, outputs.quiet)?;
    Ok(if !sums_agree(report) {
        status::MISMATCH
    } else if !assertions_hold {
        status::ASSERTION
    } else {
        0
    })
}

/// The metadata of a recording that begins now.
fn info(subject: Subject, capture: &Settings) -> Result<Info> {
    Ok(Info {
        ctxtrace_version: env!("CARGO_PKG_VERSION").to_owned(),
        host: host()?,
        subject,
        level: capture.level,
        started: ClockAnchor::now(),
        polls: capture.polls.then(polls::clock),
    })
}

/// Describes this machine.
fn host() -> Result<Host> {
    let of_kernel = |what: &str| {
        let text = std::fs::read_to_string(format!("/proc/sys/kernel/{what}"));
        text.map(|text| text.trim().to_owned())
            .map_err(Error::system("reading the kernel's name and release"))
    };
    Ok(Host {
        name: of_kernel("hostname")?,
        kernel: of_kernel("osrelease")?,
        cpus: allowed_cpus()?.len() as u64,
    })
}
