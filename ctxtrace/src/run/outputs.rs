//! Every output but the capture: opened before the run, written after it.

use std::io::{self, IsTerminal, Write};
use std::path::Path;

use super::spool::Spool;
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
}

impl Outputs {
    pub(super) fn open(settings: &OutputSettings, user: Option<&Invoker>) -> Result<Self> {
        let open = |destination: &Option<_>| destination.as_ref().map(|to| Output::open(to, user)).transpose();
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
        })
    }

    /// Where the events are put aside that will be asked for: beside the file that is made of them.
    pub(super) fn spool(&self) -> Spool {
        let elsewhere = std::env::temp_dir();
        let folder = self
            .perfetto
            .as_ref()
            .map(|output| match output.path().and_then(Path::parent) {
                Some(parent) if !parent.as_os_str().is_empty() => parent,
                Some(_) => Path::new("."),
                None => &elsewhere,
            });
        Spool::new(folder)
    }

    /// Writes them. Stacks and timelines are those of the median run, like the counts beside them.
    pub(super) fn write(self, info: &Info, report: &Report, runs: &[Run], events: &mut dyn EventSource) -> Result<()> {
        let mut written = Vec::new();
        let mut commit = |output: Output, bytes: &[u8], how: &'static str| {
            if let Some(path) = output.path() {
                written.push((path.to_owned(), how));
            }
            output.commit(bytes)
        };
        if let Some(output) = self.json {
            commit(output, &json::render(report)?, "the result as JSON")?;
        }
        let workload = report.workload.as_ref();
        let median = workload.and_then(|workload| workload.runs.iter().position(|run| run.median));
        let shown = median.unwrap_or(0);
        let run = &runs[shown];
        if let Some(output) = self.html {
            let page = html::render(report, run, runs)?;
            commit(output, &page, "the report as a page: open it in a web browser")?;
        }
        let labels = Labels {
            subject: table::subject_in_words(report),
            lost: report.lost.in_words(),
        };
        if self.flamegraph.is_some() || self.folded.is_some() {
            let resolved = stacks::switches(run);
            if let Some(output) = self.folded {
                let lines = folded::render(&resolved.stacks, self.weight);
                commit(
                    output,
                    lines.as_bytes(),
                    "folded stacks, for speedscope and other flamegraph tools",
                )?;
            }
            if let Some(output) = self.flamegraph {
                let svg = flamegraph::render(&resolved, Subject::Switches, self.weight, &labels)?;
                commit(output, &svg, "flamegraph: open it in a web browser, click to zoom")?;
            }
        }
        if let Some(output) = self.on_cpu_flamegraph {
            let threads = run.aggregates.threads.iter();
            let on_cpu_ns = threads.map(|record| record.thread.on_cpu_ns).sum();
            let resolved = stacks::samples(run, &profile::places(run, |_| true), on_cpu_ns);
            let svg = flamegraph::render(&resolved, Subject::Samples, self.weight, &labels)?;
            commit(
                output,
                &svg,
                "on-CPU flamegraph: open it in a web browser, click to zoom",
            )?;
        }
        if let Some(output) = self.wakeups_flamegraph {
            let resolved = stacks::wakers(run);
            let svg = flamegraph::render(&resolved, Subject::Wakeups, self.weight, &labels)?;
            commit(output, &svg, "flamegraph of wakeups: who ended the sleeps, from where")?;
        }
        if let Some(output) = self.pprof {
            let profile = pprof::render(info, run, &labels).map_err(|error| Error::Render {
                what: "pprof profile",
                reason: error.to_string(),
            })?;
            commit(
                output,
                &profile,
                "off-CPU profile: open it with `go tool pprof -http=: FILE`, Pyroscope, Parca or speedscope",
            )?;
        }
        if let Some(output) = self.perfetto {
            if let Some(path) = output.path() {
                written.push((
                    path.to_owned(),
                    "timeline: open it in https://ui.perfetto.dev, it stays on this machine",
                ));
            }
            output.stream(|to| {
                let mut trace = perfetto::Trace::begin(to, info, run, &labels);
                events.tell(shown, &mut trace)?;
                trace.end().map(drop)
            })?;
        }
        for (path, how) in written {
            wrote(&path, how);
        }
        Ok(())
    }
}

/// Says that a file was written, and what it is.
pub(super) fn wrote(path: &Path, what: &str) {
    // Nobody is there to be told if standard error is gone.
    let _ = writeln!(io::stderr(), "wrote {} ({what})", path.display());
}

/// Prints the table, where nothing else goes: to standard output, or to standard error.
pub(super) fn print_table(settings: &OutputSettings, report: &Report) -> Result<()> {
    print(settings.table_to_stderr, |style| table::render(report, style))
}

/// Prints a text for people.
pub(super) fn print(to_stderr: bool, render: impl FnOnce(Style) -> String) -> Result<()> {
    let unwritable = |source| Error::Output {
        path: "standard output".into(),
        source,
    };
    if to_stderr {
        let text = render(style(io::stderr().is_terminal()));
        io::stderr().write_all(text.as_bytes()).map_err(unwritable)
    } else {
        let text = render(style(io::stdout().is_terminal()));
        match io::stdout().write_all(text.as_bytes()) {
            // The reader of a pipe has seen enough.
            Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Ok(()),
            other => other.map_err(unwritable),
        }
    }
}

/// Colour on a terminal unless `NO_COLOR` is set (no-color.org); anywhere if `CLICOLOR_FORCE` is.
fn style(terminal: bool) -> Style {
    let set = |name| std::env::var_os(name).is_some_and(|value| !value.is_empty());
    let forced = set("CLICOLOR_FORCE") && std::env::var_os("CLICOLOR_FORCE").is_some_and(|value| value != "0");
    Style {
        color: !set("NO_COLOR") && (terminal || forced),
    }
}
