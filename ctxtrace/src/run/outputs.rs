//! Every output but the capture: opened before the run, written after it.

use std::io;
use std::path::{Path, PathBuf};

use super::save::Saver;
use super::spool::Spool;
use super::tables::Tables;
use super::written::{Opened, Written};
use crate::analyze::profile;
use crate::analyze::result::Report;
use crate::cli::settings::OutputSettings;
use crate::error::{Error, Result};
use crate::report::flamegraph::{self, Labels, Subject};
use crate::report::output::Output;
use crate::report::table::{self, Style};
use crate::report::{Weight, folded, html, json, perfetto, pprof};
use crate::symbolize::stacks;
use crate::target::user::Invoker;
use crate::terminal::{Stream, Styles, write_text};
use crate::trace::Level;
use crate::trace::events::EventSource;
use crate::trace::run::{Info, Run};

/// The files asked for, open and known to be writable.
pub(super) struct Outputs {
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
    pub(super) fn open(settings: &OutputSettings, user: Option<&Invoker>) -> Result<Self> {
        let open = |destination: &Option<_>| destination.as_ref().map(|to| Output::open(to, user)).transpose();
        let tables = |path: &PathBuf| Tables::open(path, user);
        Ok(Self {
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
        let elsewhere = std::env::temp_dir();
        let of_file = |output: &'_ Output| match output.path().and_then(Path::parent) {
            Some(parent) if !parent.as_os_str().is_empty() => parent.to_owned(),
            Some(_) => PathBuf::from("."),
            None => elsewhere.clone(),
        };
        let of_tables = || self.tables.as_ref().map(|tables| tables.path().to_owned());
        let folder = self.perfetto.as_ref().map(of_file).or_else(of_tables);
        Spool::new(folder.filter(|_| level == Level::Timeline).as_deref())
    }

    /// Writes them, ends the capture if one was kept, and prints the table, which is there whatever the disk does.
    pub(super) fn conclude(self, settings: &OutputSettings, told: Told<'_>, saver: Option<Saver>) -> Result<()> {
        let report = told.report;
        let mut written = Written::default();
        let made = self.write(told, &mut written);
        let saved = saver.map_or(Ok(()), |saver| saver.end(&mut written));
        print_table(settings, report, &written)?;
        made.and(saved)
    }

    /// Stacks and timelines are those of the median run, like the counts beside them.
    fn write(self, told: Told<'_>, written: &mut Written) -> Result<()> {
        let Told {
            info,
            report,
            runs,
            damage,
            events,
        } = told;
        if let Some(output) = self.json {
            written.commit(output, &json::render(report)?, "result", Opened::With("jq ."))?;
        }
        let workload = report.workload.as_ref();
        let median = workload.and_then(|workload| workload.runs.iter().position(|run| run.median));
        let shown = median.unwrap_or(0);
        let run = &runs[shown];
        if let Some(output) = self.html {
            let page = html::render(report, run, runs)?;
            written.commit(output, &page, "report as a page", Opened::By("any web browser"))?;
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
                written.commit(output, lines.as_bytes(), "stacks", how)?;
            }
            if let Some(output) = self.flamegraph {
                let svg = flamegraph::render(&resolved, Subject::Switches, self.weight, &labels)?;
                written.commit(output, &svg, "off-CPU flamegraph", Opened::Browser)?;
            }
        }
        if let Some(output) = self.on_cpu_flamegraph {
            let threads = run.aggregates.threads.iter();
            let on_cpu_ns = threads.map(|record| record.thread.on_cpu_ns).sum();
            let resolved = stacks::samples(run, &profile::places(run, |_| true), on_cpu_ns);
            let svg = flamegraph::render(&resolved, Subject::Samples, self.weight, &labels)?;
            written.commit(output, &svg, "on-CPU flamegraph", Opened::Browser)?;
        }
        if let Some(output) = self.wakeups_flamegraph {
            let resolved = stacks::wakers(run);
            let svg = flamegraph::render(&resolved, Subject::Wakeups, self.weight, &labels)?;
            written.commit(output, &svg, "flamegraph of wakers", Opened::Browser)?;
        }
        if let Some(output) = self.pprof {
            let profile = pprof::render(info, run, &labels).map_err(|error| Error::Render {
                what: "pprof profile",
                reason: error.to_string(),
            })?;
            written.commit(output, &profile, "profile", Opened::With("go tool pprof -http=:"))?;
        }
        if let Some(output) = self.perfetto {
            let path = output.path().map(Path::to_owned);
            output.stream(|to| {
                let mut trace = perfetto::Trace::begin(to, info, run, &labels);
                events.tell(shown, &mut trace)?;
                trace.end().map(drop)
            })?;
            if let Some(path) = path {
                written.add(&path, "timeline", Opened::Page("https://ui.perfetto.dev"));
            }
        }
        if let Some(tables) = self.tables {
            let path = tables.write(info, runs, damage, events)?;
            written.add(&path, "tables", Opened::DuckDb);
        }
        Ok(())
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
    let unwritable = |source| Error::Output {
        path: "standard output".into(),
        source,
    };
    let stream = if to_stderr { Stream::Error } else { Stream::Output };
    let style = style(stream.is_terminal());
    let text = render(style);
    let text = if shows_unicode() { text } else { table::in_ascii(&text) };
    let styles = if style.color { Styles::Kept } else { Styles::Escaped };
    match write_text(stream, &text, styles) {
        // The reader of a pipe has seen enough.
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe && !to_stderr => Ok(()),
        other => other.map_err(unwritable),
    }
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
