//! Every output except the capture. The outputs are opened before the run and written after it.

use std::io;
use std::path::PathBuf;

use super::save::Saver;
use super::spool::Spool;
use super::tables::Tables;
use super::written::{Opened, WrittenFiles};
use crate::cli::settings::OutputSettings;
use crate::error::{Error, Result};
use crate::files::output::{Output, OutputAccess};
use crate::files::place::OutputFolder;
use crate::terminal::{Stream, Styles, write_text};
use ctxtrace_analysis::profile;
use ctxtrace_analysis::result::Report;
use ctxtrace_analysis::symbolize::stacks;
use ctxtrace_format::Level;
use ctxtrace_format::events::EventSource;
use ctxtrace_format::run::{Info, Run};
use ctxtrace_format::sums::SaturatingSum as _;
use ctxtrace_report::flamegraph::{self, Labels, Subject};
use ctxtrace_report::table::{self, Style};
use ctxtrace_report::{RenderError, Weight, folded, html, json, perfetto, pprof, words};

/// The requested output files, which are open and writable.
pub(super) struct Outputs {
    /// Folder for spooled events, if the output that needs them has no folder.
    elsewhere: Option<OutputFolder>,
    weight: Weight,
    json: Option<Output>,
    html: Option<Output>,
    flamegraph: Option<Output>,
    on_cpu_flamegraph: Option<Output>,
    wakeups_flamegraph: Option<Output>,
    folded: Option<Output>,
    perfetto: Option<Output>,
    pprof: Option<Output>,
    tables: Option<Tables>,
}

/// The data that outputs are made from.
pub(super) struct OutputData<'a> {
    pub(super) info: &'a Info,
    pub(super) report: &'a Report,
    pub(super) runs: &'a [Run],
    /// What is wrong with the capture from which the data were read, if anything.
    pub(super) damage: Option<&'a str>,
    /// The events of the timeline.
    pub(super) events: &'a mut dyn EventSource,
}

impl Outputs {
    pub(super) fn open(settings: &OutputSettings, access: &OutputAccess) -> Result<Self> {
        let open = |destination: &Option<_>| destination.as_ref().map(|to| Output::open(to, access)).transpose();
        let tables = |path: &PathBuf| Tables::open(path, access);
        Ok(Self {
            elsewhere: access.temporary_folder().ok(),
            weight: settings.weight,
            json: open(&settings.json)?,
            html: open(&settings.html)?,
            flamegraph: open(&settings.flamegraph)?,
            on_cpu_flamegraph: open(&settings.on_cpu_flamegraph)?,
            wakeups_flamegraph: open(&settings.wakeups_flamegraph)?,
            folded: open(&settings.folded)?,
            perfetto: open(&settings.perfetto)?,
            pprof: open(&settings.pprof)?,
            tables: settings.parquet.as_ref().map(tables).transpose()?,
        })
    }

    /// Creates the spool for the events that outputs will need after the run, in the folder of the output that needs them.
    pub(super) fn spool(&self, level: Level) -> Spool {
        let of_output = |output: &Output| output.folder().or(self.elsewhere.as_ref()).cloned();
        let of_tables = || self.tables.as_ref().map(|tables| tables.holder().clone());
        let folder = match &self.perfetto {
            Some(output) => of_output(output),
            None => of_tables(),
        };
        Spool::new(folder.filter(|_| level == Level::Timeline))
    }

    /// Writes all outputs, completes the capture if one is being saved, and prints the table, even if a file could not be
    /// written. An output that fails does not prevent the others from being written, and each failure is reported.
    pub(super) fn conclude(self, settings: &OutputSettings, data: OutputData<'_>, saver: Option<Saver>) -> Result<()> {
        let report = data.report;
        let mut written = WrittenFiles::default();
        let mut failed = self.write(data, &mut written);
        let saved = saver.map_or(Ok(()), |saver| saver.end(&mut written));
        failed.extend(saved.err());
        failed.extend(print_table(settings, report, &written).err());
        Error::all(failed)
    }

    /// Writes the outputs except the capture. Stacks and timelines are those of the median run, as are the counts shown with
    /// them. Returns the errors.
    fn write(self, data: OutputData<'_>, written: &mut WrittenFiles) -> Vec<Error> {
        let OutputData {
            info,
            report,
            runs,
            damage,
            events,
        } = data;
        let mut failed = Vec::new();
        let mut note = |made: Result<()>| failed.extend(made.err());
        if let Some(output) = self.json {
            let made = json::render(report);
            note(
                made.map_err(Error::from)
                    .and_then(|json| written.commit(output, &json, "result", Opened::With("jq ."))),
            );
        }
        let workload = report.workload.as_ref();
        let median = workload.and_then(|workload| workload.runs.iter().position(|run| run.median));
        let shown = median.unwrap_or(0);
        let run = &runs[shown];
        if let Some(output) = self.html {
            let made = html::render(report, run, runs);
            let how = Opened::By("any web browser");
            note(
                made.map_err(Error::from)
                    .and_then(|page| written.commit(output, &page, "report as a page", how)),
            );
        }
        let labels = Labels {
            subject: words::subject_in_words(report),
            lost: report.lost.in_words(),
        };
        if self.flamegraph.is_some() || self.folded.is_some() {
            let resolved = stacks::switches(run);
            if let Some(output) = self.folded {
                let lines = folded::render(&resolved.stacks, self.weight);
                let how = Opened::Either("https://www.speedscope.app", "inferno-flamegraph");
                note(written.commit(output, lines.as_bytes(), "stacks", how));
            }
            if let Some(output) = self.flamegraph {
                let made = flamegraph::render(&resolved, Subject::Switches, self.weight, &labels);
                note(
                    made.map_err(Error::from)
                        .and_then(|svg| written.commit(output, &svg, "off-CPU flamegraph", Opened::Browser)),
                );
            }
        }
        if let Some(output) = self.on_cpu_flamegraph {
            let threads = run.aggregates.threads.iter();
            let on_cpu_ns = threads.map(|record| record.thread.on_cpu_ns).saturating_sum();
            let resolved = stacks::samples(run, &profile::places(run, |_| true), on_cpu_ns);
            let made = flamegraph::render(&resolved, Subject::Samples, self.weight, &labels);
            note(
                made.map_err(Error::from)
                    .and_then(|svg| written.commit(output, &svg, "on-CPU flamegraph", Opened::Browser)),
            );
        }
        if let Some(output) = self.wakeups_flamegraph {
            let resolved = stacks::wakers(run);
            let made = flamegraph::render(&resolved, Subject::Wakeups, self.weight, &labels);
            note(
                made.map_err(Error::from)
                    .and_then(|svg| written.commit(output, &svg, "flamegraph of wakers", Opened::Browser)),
            );
        }
        if let Some(output) = self.pprof {
            let made = pprof::render(info, run, &labels).map_err(|error| RenderError {
                what: "pprof profile",
                reason: error.to_string(),
            });
            let how = Opened::With("go tool pprof -http=:");
            note(
                made.map_err(Error::from)
                    .and_then(|profile| written.commit(output, &profile, "profile", how)),
            );
        }
        if let Some(output) = self.perfetto {
            let how = Opened::Page("https://ui.perfetto.dev");
            note(written.stream(output, "timeline", how, |to| {
                let mut trace = perfetto::Trace::begin(to, info, run, &labels);
                events.replay(shown, &mut trace)?;
                trace.end().map(drop)
            }));
        }
        if let Some(tables) = self.tables {
            let made = tables.write(info, runs, damage, events);
            note(made.map(|path| written.add(&path, "tables", Opened::DuckDb)));
        }
        failed
    }
}

/// Prints the table and then the list of written files. The table goes to standard output, or to standard error if standard
/// output is used by another output.
fn print_table(settings: &OutputSettings, report: &Report, written: &WrittenFiles) -> Result<()> {
    if settings.quiet {
        return Ok(());
    }
    print(settings.table_to_stderr, |style| table::render(report, style))?;
    written.print();
    Ok(())
}

/// Prints a text for the user.
pub(super) fn print(to_stderr: bool, render: impl FnOnce(Style) -> String) -> Result<()> {
    let written = |to: &str, result: io::Result<()>| match result {
        // The reader has closed the pipe, as `head` does; that is not an error.
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Ok(()),
        other => other.map_err(|source| Error::Output {
            path: to.into(),
            source,
        }),
    };
    let (stream, name) = if to_stderr {
        (Stream::Error, "standard error")
    } else {
        (Stream::Output, "standard output")
    };
    let style = style(stream.is_terminal());
    let text = render(style);
    let text = if shows_unicode() { text } else { table::in_ascii(&text) };
    let styles = if style.color { Styles::Kept } else { Styles::Escaped };
    written(name, write_text(stream, &text, styles))
}

/// Whether the text may contain Unicode: true if the locale's encoding is UTF-8. If no locale is set, as in a container, nothing is
/// known about the user's terminal, and Unicode is assumed.
fn shows_unicode() -> bool {
    let set = |name| std::env::var(name).ok().filter(|value| !value.is_empty());
    let locale = set("LC_ALL").or_else(|| set("LC_CTYPE")).or_else(|| set("LANG"));
    locale.is_none_or(|locale| {
        let locale = locale.to_ascii_lowercase();
        locale.contains("utf-8") || locale.contains("utf8")
    })
}

/// No colour if `NO_COLOR` is set (no-color.org). Otherwise colour on a terminal, and everywhere if `CLICOLOR_FORCE` is set and not
/// 0.
fn style(terminal: bool) -> Style {
    let set = |name| std::env::var_os(name).is_some_and(|value| !value.is_empty());
    let forced = set("CLICOLOR_FORCE") && std::env::var_os("CLICOLOR_FORCE").is_some_and(|value| value != "0");
    Style {
        color: !set("NO_COLOR") && (terminal || forced),
    }
}
