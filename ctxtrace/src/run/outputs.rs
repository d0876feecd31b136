//! Every output but the capture: opened before the run, written after it.

use std::io;
use std::path::PathBuf;

use super::save::Saver;
use super::spool::Spool;
use super::tables::Tables;
use super::written::{Opened, Written};
use crate::analyze::profile;
use crate::analyze::result::Report;
use crate::cli::settings::OutputSettings;
use crate::error::{Error, Result};
use crate::report::flamegraph::{self, Labels, Subject};
use crate::report::output::{Output, OutputAccess};
use crate::report::place::OutputFolder;
use crate::report::table::{self, Style};
use crate::report::{Weight, folded, html, json, perfetto, pprof};
use crate::symbolize::stacks;
use crate::terminal::{Stream, Styles, write_text};
use crate::trace::Level;
use crate::trace::events::EventSource;
use crate::trace::run::{Info, Run};

/// The files asked for, open and known to be writable.
pub(super) struct Outputs {
    /// For what is put aside, where no output has a folder.
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

/// What outputs are made of.
pub(super) struct Told<'a> {
    pub(super) info: &'a Info,
    pub(super) report: &'a Report,
    pub(super) runs: &'a [Run],
    /// What is wrong with the capture that it was read from.
    pub(super) damage: Option<&'a str>,
    /// The events of its timeline.
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

    /// Where the events are put aside that will be asked for: beside what is made of them.
    pub(super) fn spool(&self, level: Level) -> Spool {
        let of_output = |output: &Output| output.folder().or(self.elsewhere.as_ref()).cloned();
        let of_tables = || self.tables.as_ref().map(|tables| tables.holder().clone());
        let folder = match &self.perfetto {
            Some(output) => of_output(output),
            None => of_tables(),
        };
        Spool::new(folder.filter(|_| level == Level::Timeline))
    }

    /// Writes them, ends the capture if one was kept, and prints the table, which is there whatever the disk does. One that
    /// fails keeps no other from being written, and each that fails is reported.
    pub(super) fn conclude(self, settings: &OutputSettings, told: Told<'_>, saver: Option<Saver>) -> Result<()> {
        let report = told.report;
        let mut written = Written::default();
        let mut failed = self.write(told, &mut written);
        let saved = saver.map_or(Ok(()), |saver| saver.end(&mut written));
        failed.extend(saved.err());
        failed.extend(print_table(settings, report, &written).err());
        Error::all(failed)
    }

    /// Stacks and timelines are those of the median run, like the counts beside them. Returns what went wrong.
    fn write(self, told: Told<'_>, written: &mut Written) -> Vec<Error> {
        let Told {
            info,
            report,
            runs,
            damage,
            events,
        } = told;
        let mut failed = Vec::new();
        let mut note = |made: Result<()>| failed.extend(made.err());
        if let Some(output) = self.json {
            let made = json::render(report);
            note(made.and_then(|json| written.commit(output, &json, "result", Opened::With("jq ."))));
        }
        let workload = report.workload.as_ref();
        let median = workload.and_then(|workload| workload.runs.iter().position(|run| run.median));
        let shown = median.unwrap_or(0);
        let run = &runs[shown];
        if let Some(output) = self.html {
            let made = html::render(report, run, runs);
            let how = Opened::By("any web browser");
            note(made.and_then(|page| written.commit(output, &page, "report as a page", how)));
        }
        let labels = Labels {
            subject: table::subject_in_words(report),
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
                note(made.and_then(|svg| written.commit(output, &svg, "off-CPU flamegraph", Opened::Browser)));
            }
        }
        if let Some(output) = self.on_cpu_flamegraph {
            let threads = run.aggregates.threads.iter();
            let on_cpu_ns = threads.map(|record| record.thread.on_cpu_ns).sum();
            let resolved = stacks::samples(run, &profile::places(run, |_| true), on_cpu_ns);
            let made = flamegraph::render(&resolved, Subject::Samples, self.weight, &labels);
            note(made.and_then(|svg| written.commit(output, &svg, "on-CPU flamegraph", Opened::Browser)));
        }
        if let Some(output) = self.wakeups_flamegraph {
            let resolved = stacks::wakers(run);
            let made = flamegraph::render(&resolved, Subject::Wakeups, self.weight, &labels);
            note(made.and_then(|svg| written.commit(output, &svg, "flamegraph of wakers", Opened::Browser)));
        }
        if let Some(output) = self.pprof {
            let made = pprof::render(info, run, &labels).map_err(|error| Error::Render {
                what: "pprof profile",
                reason: error.to_string(),
            });
            let how = Opened::With("go tool pprof -http=:");
            note(made.and_then(|profile| written.commit(output, &profile, "profile", how)));
        }
        if let Some(output) = self.perfetto {
            let how = Opened::Page("https://ui.perfetto.dev");
            note(written.stream(output, "timeline", how, |to| {
                let mut trace = perfetto::Trace::begin(to, info, run, &labels);
                events.tell(shown, &mut trace)?;
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

/// Prints the table, where nothing else goes, to standard output or to standard error; and then says what was written.
fn print_table(settings: &OutputSettings, report: &Report, written: &Written) -> Result<()> {
    if settings.quiet {
        return Ok(());
    }
    print(settings.table_to_stderr, |style| table::render(report, style))?;
    written.tell();
    Ok(())
}

/// Prints a text for people.
pub(super) fn print(to_stderr: bool, render: impl FnOnce(Style) -> String) -> Result<()> {
    let written = |to: &str, result: io::Result<()>| match result {
        // The reader of a pipe has seen enough.
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

/// Whether the locale's letters are Unicode's: unless it says otherwise. (Where none is set at all, in a container, the terminal
/// that one looks from is not told of.)
fn shows_unicode() -> bool {
    let set = |name| std::env::var(name).ok().filter(|value| !value.is_empty());
    let locale = set("LC_ALL").or_else(|| set("LC_CTYPE")).or_else(|| set("LANG"));
    locale.is_none_or(|locale| {
        let locale = locale.to_ascii_lowercase();
        locale.contains("utf-8") || locale.contains("utf8")
    })
}

/// Colour on a terminal unless `NO_COLOR` is set (no-color.org); anywhere if `CLICOLOR_FORCE` is.
fn style(terminal: bool) -> Style {
    let set = |name| std::env::var_os(name).is_some_and(|value| !value.is_empty());
    let forced = set("CLICOLOR_FORCE") && std::env::var_os("CLICOLOR_FORCE").is_some_and(|value| value != "0");
    Style {
        color: !set("NO_COLOR") && (terminal || forced),
    }
}
