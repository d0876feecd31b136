//! `ctxtrace compare`: compares two captures.
//!
//! A capture records its measured section only at its end. So a capture with a timeline is read twice: first for the sums and the
//! measured section, then for how the time was spent in it.

use std::fs::File;
use std::io::BufReader;
use std::path::Path;

use super::comparison::{Comparison, Outputs};
use super::outputs;
use crate::cli::comparison::CompareSettings;
use crate::error::{Error, Result, status};
use crate::files::output::OutputAccess;
use crate::files::place::DeviceInode;
use crate::tracee::user::invoker;
use ctxtrace_analysis::budget::account::{Account, SleepCauses};
use ctxtrace_analysis::compare::{self, Captured, units};
use ctxtrace_analysis::correlate::budget::{ThreadTimeBudget, Window};
use ctxtrace_analysis::correlate::timeline::Replay;
use ctxtrace_analysis::summarize::summarize;
use ctxtrace_format::events::EventSink;
use ctxtrace_format::file::{self, Saved};
use ctxtrace_format::samples::Samples;
use ctxtrace_format::{Level, run::Run};
use ctxtrace_report::{compare as report, differential, json, words};

/// Reads both captures, and writes every output.
///
/// # Errors
///
/// If a file has nothing that can be compared, or if an output cannot be written.
pub fn compare(settings: &CompareSettings) -> Result<u8> {
    let access = OutputAccess::new(invoker()?.as_ref())
        .reading(DeviceInode::of_path(&settings.base))
        .reading(DeviceInode::of_path(&settings.subject));
    let outputs = Outputs::open(&settings.outputs, &access)?;
    let (base, subject) = (Read::open(&settings.base)?, Read::open(&settings.subject)?);
    let unit = compare::unit_of(&base.report, &subject.report);
    let (base, subject) = (base.captured(unit)?, subject.captured(unit)?);
    let compared = compare::compare(env!("CARGO_PKG_VERSION"), unit, &base, &subject);
    let (written, mut failed) = outputs.write(&Comparison {
        json: &json::render(&compared)?,
        markdown: &report::markdown(&compared),
        on_cpu: (&base.account.stacks, &subject.account.stacks),
        off_cpu: (&base.asleep.stacks, &subject.asleep.stacks),
        labels: differential::Labels {
            what: "",
            unit,
            base: &base.name,
            subject: &subject.name,
        },
    });
    let printed = outputs::print(settings.outputs.table_to_stderr, |style| {
        report::render(&compared, style)
    });
    written.print();
    failed.extend(printed.err());
    Error::all(failed)?;
    Ok(if compared.base.complete && compared.subject.complete {
        0
    } else {
        status::FAILURE
    })
}

/// A capture after the first reading.
struct Read<'a> {
    path: &'a Path,
    saved: Saved,
    /// The period from the first event of each run to its last.
    events: Vec<Window>,
    report: ctxtrace_analysis::result::Report,
}

impl<'a> Read<'a> {
    fn open(path: &'a Path) -> Result<Self> {
        let mut events: Vec<Window> = Vec::new();
        let saved = read(path, |run, batch| {
            for event in batch {
                let at_ns = event.at_ns;
                if events.len() <= run {
                    events.resize(
                        run + 1,
                        Window {
                            from_ns: at_ns,
                            to_ns: at_ns,
                        },
                    );
                }
                events[run].from_ns = events[run].from_ns.min(at_ns);
                events[run].to_ns = events[run].to_ns.max(at_ns);
            }
        })?;
        let mut report = summarize(&saved.info, &saved.runs);
        report.complete &= saved.damage.is_none();
        Ok(Self {
            path,
            saved,
            events,
            report,
        })
    }

    /// The index of the median run, whose counts the report shows.
    fn median(&self) -> usize {
        let runs = self.report.workload.iter().flat_map(|workload| &workload.runs);
        runs.enumerate()
            .find(|(_, run)| run.median)
            .map_or(0, |(index, _)| index)
    }

    /// How the time of the median run was spent.
    fn captured(mut self, unit: ctxtrace_analysis::budget::Unit) -> Result<Captured> {
        let median = self.median();
        let units = units(&self.report, unit);
        let window = self.saved.runs[median]
            .outcome
            .and_then(|outcome| Window::measured(&outcome))
            .or_else(|| self.events.get(median).copied());
        let (asleep, account) = match window {
            Some(window) if self.saved.info.level == Level::Timeline => {
                let mut replay = Replay::with_sink((ThreadTimeBudget::new(window), Samples::default()));
                read(self.path, |run, batch| {
                    if run == median {
                        replay.events(batch);
                    }
                })?;
                let (budget, samples) = replay.into_intervals();
                let run: &mut Run = &mut self.saved.runs[median];
                run.samples = samples;
                self.saved.charge_samples();
                let run = &self.saved.runs[median];
                let asleep = SleepCauses::from_run(run, units);
                let account = Account::from_timeline(run, &budget, window, units, &asleep);
                (asleep, account)
            }
            _ => {
                let run = &self.saved.runs[median];
                let asleep = SleepCauses::from_run(run, units);
                let account = Account::of_sums(run, units, &asleep);
                (asleep, account)
            }
        };
        Ok(Captured {
            name: words::subject_in_words(&self.report),
            report: self.report,
            account,
            asleep,
        })
    }
}

fn read(path: &Path, events: impl FnMut(usize, &[ctxtrace_common::event::Event])) -> Result<Saved> {
    let unreadable = |reason: String| Error::Capture {
        path: path.to_owned(),
        reason,
    };
    let opened = File::open(path).map_err(|error| unreadable(error.to_string()))?;
    if opened.metadata().is_ok_and(|file| file.is_dir()) {
        return Err(unreadable("it is a folder".to_owned()));
    }
    file::read(BufReader::new(opened), events).map_err(unreadable)
}
