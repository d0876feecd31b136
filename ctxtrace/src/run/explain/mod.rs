//! `ctxtrace explain`: makes the runs and passes them to [`ctxtrace_analysis::explain`].
//!
//! ```text
//!   gap: base and subject, untraced ─▶ is there one? ─▶ budget: both, traced ─▶ interventions, untraced ─▶ answer
//! ```
//!
//! * `case`: a workload or a command, and the ways to run it.
//! * `bench`: makes the runs, in blocks.
//! * `effort`: time limits.

mod bench;
mod case;
mod effort;
mod order;

use bench::{Chosen, measure};
use case::{CaseEnvironment, PreparedCase};
use effort::Effort;

use super::comparison::{self, Comparison};
use super::interrupt::Interrupts;
use super::{host, outputs};
use crate::capture::{RunningKernel, preflight};
use crate::cli::comparison::{Cases, ExplainSettings};
use crate::error::{Error, Result, status};
use crate::files::output::OutputAccess;
use crate::tracee::user::invoker;
use crate::workload::pin::allowed_cpus;
use ctxtrace_analysis::budget::account::{Account, Stacks};
use ctxtrace_analysis::explain::answer::{Measurements, explain};
use ctxtrace_analysis::explain::intervention::{CommandCase, Intervention, of_commands, of_workloads};
use ctxtrace_analysis::explain::result::NotTried;
use ctxtrace_format::workload::Spec;
use ctxtrace_report::{differential, explain as report, json};

/// Makes the measurements, writes every output, and returns the exit status.
///
/// # Errors
///
/// If tracing is not possible here, if a case cannot be run or fails, or if an output cannot be written.
pub fn run(settings: &ExplainSettings) -> Result<u8> {
    preflight::check()?;
    let user = invoker()?;
    let outputs = comparison::Outputs::open(&settings.outputs, &OutputAccess::new(user.as_ref()))?;
    let kernel = RunningKernel::discover()?;
    let interrupts = Interrupts::catch()?;
    let place = CaseEnvironment {
        kernel: &kernel,
        interrupts: &interrupts,
        user: user.as_ref(),
    };
    let measured = measured(settings, place)?;
    let answer = explain(env!("CARGO_PKG_VERSION"), &host()?, &measured);
    let on_cpu = mean_stacks(&measured);
    let none = Stacks::new();
    let off_cpu = match &measured.asleep {
        Some((base, subject)) => (&base.stacks, &subject.stacks),
        None => (&none, &none),
    };
    let (written, mut failed) = outputs.write(&Comparison {
        json: &json::render(&answer)?,
        markdown: &report::markdown(&answer),
        on_cpu: (&on_cpu.0, &on_cpu.1),
        off_cpu,
        labels: differential::Labels {
            what: "",
            unit: answer.unit,
            base: &answer.base.name,
            subject: &answer.subject.name,
        },
    });
    let printed = outputs::print(settings.outputs.table_to_stderr, |style| report::render(&answer, style));
    written.print();
    failed.extend(printed.err());
    Error::all(failed)?;
    Ok(if interrupts.any_seen() {
        status::INTERRUPTED
    } else if answer.complete {
        0
    } else {
        status::FAILURE
    })
}

fn measured(settings: &ExplainSettings, place: CaseEnvironment<'_>) -> Result<Measurements> {
    match &settings.cases {
        Cases::Workloads { base, subject } => {
            let effort = Effort::new(settings.quick, Spec::UNIT);
            let chosen = choose(settings, of_workloads(base, subject), effort.most)?;
            measure(place, effort, base.as_ref(), subject.as_ref(), chosen)
        }
        Cases::Commands { base, subject } => {
            let effort = Effort::new(settings.quick, CommandCase::UNIT);
            let case = |words: &Vec<String>| CommandCase {
                words: words.clone(),
                variables: Vec::new(),
                cpu: None,
            };
            let (base, subject) = (case(base), case(subject));
            let cpu = *allowed_cpus()?.last().unwrap_or(&0);
            let list = of_commands(&base, &subject, cpu, &allocators());
            let chosen = choose(settings, list, effort.most)?;
            measure(place, effort, &base, &subject, chosen)
        }
    }
}

/// On-CPU time by stack of base and subject, each as the mean of its traced runs.
fn mean_stacks(measured: &Measurements) -> (Stacks, Stacks) {
    let mean = |side: fn(&(Account, Account)) -> &Account| {
        let mut mean = Stacks::new();
        for account in &measured.accounts {
            for (frames, ns) in &side(account).stacks {
                *mean.entry(frames.clone()).or_default() += ns / measured.accounts.len() as f64;
            }
        }
        mean
    };
    (mean(|both| &both.0), mean(|both| &both.1))
}

/// Selects the interventions to be tried.
fn choose<C>(settings: &ExplainSettings, list: Vec<Intervention<C>>, most: usize) -> Result<Chosen<C>> {
    let known: Vec<&str> = list.iter().map(|each| each.name.as_str()).collect();
    for name in settings.only.iter().chain(&settings.skip) {
        if !known.contains(&name.as_str()) {
            return Err(Error::Usage(format!(
                "there is no intervention {name} for these cases; available are {}",
                known.join(", ")
            )));
        }
    }
    let mut chosen = Chosen {
        interventions: Vec::new(),
        not_tried: Vec::new(),
    };
    for each in list {
        let reason = if settings.skip.contains(&each.name) {
            Some("--skip")
        } else if !settings.only.is_empty() && !settings.only.contains(&each.name) {
            Some("--only")
        } else if settings.only.is_empty() && chosen.interventions.len() == most {
            Some("--quick tries only the first few")
        } else {
            None
        };
        match reason {
            Some(reason) => chosen.not_tried.push(NotTried {
                name: each.name,
                reason: reason.to_owned(),
            }),
            None => chosen.interventions.push(each),
        }
    }
    Ok(chosen)
}

/// The allocators that can be preloaded on this machine, by name and path.
fn allocators() -> Vec<(&'static str, String)> {
    const FOLDERS: [&str; 4] = ["/usr/lib/x86_64-linux-gnu", "/usr/lib64", "/usr/lib", "/usr/local/lib"];
    const NAMES: [(&str, &str); 3] = [
        ("jemalloc", "libjemalloc.so.2"),
        ("mimalloc", "libmimalloc.so.2"),
        ("tcmalloc", "libtcmalloc_minimal.so.4"),
    ];
    let found = NAMES.into_iter().filter_map(|(name, file)| {
        let mut paths = FOLDERS.iter().map(|folder| format!("{folder}/{file}"));
        Some((name, paths.find(|path| std::path::Path::new(path).exists())?))
    });
    found.collect()
}
