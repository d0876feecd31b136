//! `ctxtrace suite`: measures the article's table with one command.
//!
//! In every round each case is run twice: untraced for its speed, and traced for its counts. A temporary disturbance of the
//! machine therefore affects all cases alike.

use indicatif::{ProgressBar, ProgressStyle};

use super::interrupt::Interrupts;
use super::program::WorkloadProgram;
use super::watch::{OnInterrupt, Recorder};
use super::written::{Opened, WrittenFiles};
use super::{host, info, outputs, workload};
use crate::capture::{RunningKernel, Settings, preflight};
use crate::cli::settings::SuiteSettings;
use crate::error::{Error, Result, status};
use crate::files::output::{Output, OutputAccess};
use crate::terminal::Stream;
use crate::tracee::user::{Invoker, invoker};
use ctxtrace_analysis::suite::{MeasuredCase, cases, name, suite};
use ctxtrace_analysis::summarize::summarize;
use ctxtrace_analysis::verdict::suite_agrees;
use ctxtrace_format::Level;
use ctxtrace_format::run::Subject;
use ctxtrace_report::{json, suite as report};

/// Measures every case, writes every output, and returns the exit status. A case that cannot be run becomes a row with the
/// reason.
///
/// # Errors
///
/// If tracing is not possible here, or if an output cannot be written.
pub fn run(settings: &SuiteSettings) -> Result<u8> {
    preflight::check()?;
    let user = invoker()?;
    let access = OutputAccess::new(user.as_ref());
    let open = |destination: &Option<_>| {
        let opened = destination.as_ref().map(|to| Output::open(to, &access));
        opened.transpose()
    };
    let (json, markdown) = (open(&settings.json)?, open(&settings.markdown)?);
    let mut cases = Cases::prepare(settings, user.as_ref());
    let kernel = RunningKernel::discover()?;
    let interrupts = Interrupts::catch()?;
    let recorder = Recorder {
        kernel: &kernel,
        settings: Settings {
            level: Level::Counts,
            ..Settings::default()
        },
        interrupts: Some(&interrupts),
        on_interrupt: OnInterrupt::Kill,
        duration: None,
    };
    let bar = bar(settings.repeat * cases.0.len() as u64, settings.quiet);
    for round in 0..settings.repeat {
        // Each round begins with another case.
        cases.0.rotate_left(usize::from(round > 0));
        for case in &mut cases.0 {
            bar.set_message(name(&case.measured.spec));
            case.measure(&recorder, &interrupts, user.as_ref())?;
            bar.inc(1);
        }
    }
    bar.finish_and_clear();

    let table = suite(
        env!("CARGO_PKG_VERSION"),
        &host()?,
        settings.repeat,
        &cases.into_measured(),
    );
    let mut written = WrittenFiles::default();
    let mut failed = Vec::new();
    if let Some(output) = json {
        let made = json::render(&table);
        let made = made
            .map_err(Error::from)
            .and_then(|json| written.commit(output, &json, "table", Opened::With("jq .")));
        failed.extend(made.err());
    }
    if let Some(output) = markdown {
        let made = written.commit(output, report::markdown(&table).as_bytes(), "table", Opened::Pasted);
        failed.extend(made.err());
    }
    if !settings.quiet {
        let printed = outputs::print(settings.table_to_stderr, |style| report::render(&table, style));
        failed.extend(printed.err());
        written.print();
    }
    Error::all(failed)?;
    Ok(if interrupts.any_seen() {
        status::INTERRUPTED
    } else if !table.complete {
        status::FAILURE
    } else if !suite_agrees(&table) {
        status::MISMATCH
    } else {
        0
    })
}

struct Cases(Vec<SuiteCase>);

struct SuiteCase {
    /// The row of the case in the table.
    place: usize,
    /// The program to start; `None` if it cannot be started.
    program: Option<WorkloadProgram>,
    measured: MeasuredCase,
}

impl Cases {
    /// Creates the cases, and builds the programs that have to be built.
    fn prepare(settings: &SuiteSettings, user: Option<&Invoker>) -> Self {
        let specs = cases(settings.iterations).into_iter().enumerate();
        let cases = specs.map(|(place, spec)| {
            let program = WorkloadProgram::find_or_build(&spec, user);
            let mut measured = MeasuredCase::nothing(spec);
            measured.cut_short = program.as_ref().err().map(Error::to_string);
            SuiteCase {
                place,
                program: program.ok(),
                measured,
            }
        });
        Self(cases.collect())
    }

    fn into_measured(mut self) -> Vec<MeasuredCase> {
        self.0.sort_by_key(|case| case.place);
        self.0.into_iter().map(|case| case.measured).collect()
    }
}

impl SuiteCase {
    /// Runs the case once untraced and once traced, unless it has failed before.
    fn measure(&mut self, recorder: &Recorder<'_>, interrupts: &Interrupts, user: Option<&Invoker>) -> Result<()> {
        let Some(program) = self.program.as_ref().filter(|_| self.measured.cut_short.is_none()) else {
            return Ok(());
        };
        if interrupts.any_seen() {
            self.measured.cut_short = Some("interrupted".to_owned());
            return Ok(());
        }
        match workload::timed(program, interrupts, user) {
            Ok(Some(outcome)) => self.measured.untraced.push(outcome),
            Ok(None) => {
                self.measured.cut_short = Some("interrupted".to_owned());
                return Ok(());
            }
            Err(error) => {
                self.measured.cut_short = Some(error.to_string());
                return Ok(());
            }
        }
        match workload::observed(program, recorder, user, &mut ()) {
            Ok(recorded) if recorded.run.cut_short.is_some() => self.measured.cut_short = recorded.run.cut_short,
            Ok(recorded) => {
                let info = info(Subject::Workload(self.measured.spec.clone()), &recorder.settings)?;
                self.measured.traced.push(summarize(&info, &[recorded.run]));
            }
            Err(error) => self.measured.cut_short = Some(error.to_string()),
        }
        Ok(())
    }
}

/// A progress bar, hidden unless standard error is a terminal.
pub(super) fn bar(length: u64, quiet: bool) -> ProgressBar {
    if quiet || !Stream::Error.is_terminal() {
        return ProgressBar::hidden();
    }
    let bar = ProgressBar::new(length);
    if let Ok(style) = ProgressStyle::with_template("[{bar:30}] {pos}/{len}  {msg}  {eta} left") {
        bar.set_style(style.progress_chars("=> "));
    }
    bar.enable_steady_tick(std::time::Duration::from_millis(500));
    bar
}
