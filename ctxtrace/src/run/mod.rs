//! `ctxtrace run`: the stages put together.
//!
//! ```text
//!   check ─▶ open outputs ─▶ [ launch suspended ─▶ load, attach ─▶ resume, watch ─▶ bring home ] × repeat
//!                                                                       │
//!                       write outputs ◀─ resolve stacks ◀─ summarize ◀──┘
//! ```

mod bar;
pub mod child;
pub mod interrupt;
pub mod watch;
mod workload;

use std::io::{self, IsTerminal, Write};

use crate::analyze::result::{Host, Report};
use crate::analyze::summarize::{TracedRun, summarize};
use crate::capture::{Kernel, preflight};
use crate::cli::settings::RunSettings;
use crate::error::{Error, Result, status};
use crate::report::flamegraph::{self, Labels, Subject};
use crate::report::output::Output;
use crate::report::table::{self, Style};
use crate::report::{folded, json};
use crate::symbolize;
use crate::target::user::{Invoker, invoker};
use crate::workload::pin::allowed_cpus;
use interrupt::Interrupts;

/// Runs the workload as often as asked, writes every output, and returns the exit status.
///
/// # Errors
///
/// If tracing is not possible here, if an output cannot be written, or if the workload fails before its first message. A
/// workload that fails later is no error of this function: there is a partial report, and a status.
pub fn run(settings: &RunSettings) -> Result<u8> {
    preflight::check_privileges()?;
    let user = invoker();
    let outputs = Outputs::open(settings, user.as_ref())?;
    let kernel = Kernel::discover()?;
    let interrupts = Interrupts::catch()?;

    let mut runs: Vec<TracedRun> = Vec::new();
    for number in 1..=settings.repeat {
        let run = workload::traced(settings, &kernel, &interrupts, user.as_ref(), number)?;
        let cut_short = run.cut_short.is_some();
        runs.push(run);
        if cut_short {
            break;
        }
    }

    let report = summarize(&settings.spec, host()?, &runs);
    outputs.write(settings, &report, &runs)?;
    print_table(settings, &report)?;
    Ok(if interrupts.any_seen() {
        status::INTERRUPTED
    } else if !report.complete {
        status::FAILURE
    } else if !table::agrees(&report) || !report.ledger_adds_up || timeline_differs(&report) {
        status::MISMATCH
    } else {
        0
    })
}

/// Whether events that are all there give other counts than those that were added up.
fn timeline_differs(report: &Report) -> bool {
    report
        .timeline
        .as_ref()
        .is_some_and(|timeline| timeline.agrees == Some(false))
}

fn host() -> Result<Host> {
    let kernel =
        std::fs::read_to_string("/proc/sys/kernel/osrelease").map_err(Error::system("reading the kernel's release"))?;
    Ok(Host {
        kernel: kernel.trim().to_owned(),
        cpus: allowed_cpus()?.len() as u64,
    })
}

/// The files asked for, open and known to be writable.
struct Outputs {
    json: Option<Output>,
    flamegraph: Option<Output>,
    wakeups_flamegraph: Option<Output>,
    folded: Option<Output>,
}

impl Outputs {
    fn open(settings: &RunSettings, user: Option<&Invoker>) -> Result<Self> {
        let open = |destination: &Option<_>| destination.as_ref().map(|to| Output::open(to, user)).transpose();
        Ok(Self {
            json: open(&settings.json)?,
            flamegraph: open(&settings.flamegraph)?,
            wakeups_flamegraph: open(&settings.wakeups_flamegraph)?,
            folded: open(&settings.folded)?,
        })
    }

    /// Writes them. Stacks are those of the median run, like the counts beside them.
    fn write(self, settings: &RunSettings, report: &Report, runs: &[TracedRun]) -> Result<()> {
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
        let aggregates = &runs[median.unwrap_or(0)].aggregates;
        let labels = Labels {
            workload: workload.map(table::workload_in_words).unwrap_or_default(),
            lost: report.lost.in_words(),
        };
        if self.flamegraph.is_some() || self.folded.is_some() {
            let resolved = symbolize::resolve(aggregates);
            if let Some(output) = self.folded {
                let lines = folded::render(&resolved.stacks, settings.weight);
                commit(
                    output,
                    lines.as_bytes(),
                    "folded stacks, for speedscope and other flamegraph tools",
                )?;
            }
            if let Some(output) = self.flamegraph {
                let svg = flamegraph::render(&resolved, Subject::Switches, settings.weight, &labels)?;
                commit(output, &svg, "flamegraph: open it in a web browser, click to zoom")?;
            }
        }
        if let Some(output) = self.wakeups_flamegraph {
            let resolved = symbolize::resolve_wakers(aggregates);
            let svg = flamegraph::render(&resolved, Subject::Wakeups, settings.weight, &labels)?;
            commit(output, &svg, "flamegraph of wakeups: who ended the sleeps, from where")?;
        }
        for (path, how) in written {
            // Nobody is there to be told if standard error is gone.
            let _ = writeln!(io::stderr(), "wrote {} ({how})", path.display());
        }
        Ok(())
    }
}

fn print_table(settings: &RunSettings, report: &Report) -> Result<()> {
    let unwritable = |source| Error::Output {
        path: "standard output".into(),
        source,
    };
    if settings.stdout_is_taken() {
        let text = table::render(report, style(io::stderr().is_terminal()));
        io::stderr().write_all(text.as_bytes()).map_err(unwritable)
    } else {
        let text = table::render(report, style(io::stdout().is_terminal()));
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
