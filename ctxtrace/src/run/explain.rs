//! `ctxtrace explain`: makes the runs, and hands them to [`crate::analyze::explain`].
//!
//! ```text
//!   gap: base and subject, untraced ─▶ is there one? ─▶ budget: both, traced ─▶ interventions, untraced ─▶ answer
//! ```
//!
//! Whatever is compared runs in blocks, each once a block and in random order, so that a machine that is slow for a while is
//! slow for all of them.

use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use ctxtrace_common::event::Event;
use nix::sched::{CpuSet, sched_setaffinity};

use super::interrupt::Interrupts;
use super::program::Program;
use super::suite::bar;
use super::watch::{Observer, OnInterrupt, Recorder};
use super::written::{Opened, Written};
use super::{host, outputs, workload};
use crate::analyze::explain::account::{Account, Asleep, Stacks};
use crate::analyze::explain::explain::{CONFIDENCE, Measured, Pair, Runs, explain, gap_of, is_enough};
use crate::analyze::explain::intervention::{CommandCase, Intervention, of_commands, of_workloads};
use crate::analyze::explain::result::{NotTried, Unit};
use crate::analyze::statistics::family;
use crate::analyze::statistics::order::Order;
use crate::capture::{Kernel, Settings, preflight};
use crate::cli::settings::{Cases, ExplainSettings};
use crate::correlate::budget::{Budget, Window};
use crate::correlate::timeline::Replay;
use crate::error::{Error, Result, status};
use crate::report::output::Output;
use crate::report::{differential, explain as report, json};
use crate::symbolize::symbols;
use crate::target::environment::Environment;
use crate::target::launch::Command;
use crate::target::search::find_program;
use crate::target::user::{Invoker, invoker};
use crate::trace::Level;
use crate::trace::events::EventSink;
use crate::trace::run::Run;
use crate::trace::samples::Samples;
use crate::workload::pin::allowed_cpus;
use crate::workload::{Outcome, Spec};

/// Samples a second; not a divisor of any timer's rate.
const SAMPLE_HZ: u32 = 1_999;

/// How long things may take.
struct Effort {
    /// A run of a workload.
    run: Duration,
    /// A traced run.
    traced_run: Duration,
    /// All runs for the gap.
    gap: Duration,
    /// All traced runs.
    budget: Duration,
    /// All interventions.
    interventions: Duration,
    /// Interventions at most.
    most: usize,
}

impl Effort {
    fn of(quick: bool) -> Self {
        let seconds = Duration::from_secs;
        if quick {
            Self {
                run: Duration::from_millis(60),
                traced_run: Duration::from_millis(100),
                gap: seconds(7),
                budget: seconds(14),
                interventions: seconds(15),
                most: 6,
            }
        } else {
            Self {
                run: Duration::from_millis(120),
                traced_run: Duration::from_millis(300),
                gap: seconds(30),
                budget: seconds(45),
                interventions: seconds(85),
                most: usize::MAX,
            }
        }
    }
}

/// The most blocks of anything: from there on the machine's drift is what is measured.
const MOST_BLOCKS: usize = 60;

/// Traced runs of each side: enough for the interval of each of a dozen causes.
const TRACED_BLOCKS: usize = 12;

/// Measures, writes every output, and returns the exit status.
///
/// # Errors
///
/// If tracing is not possible here, if a case cannot be run or fails, or if an output cannot be written.
pub fn run(settings: &ExplainSettings) -> Result<u8> {
    preflight::check()?;
    let user = invoker();
    let open = |destination: &Option<_>| {
        let opened = destination.as_ref().map(|to| Output::open(to, user.as_ref()));
        opened.transpose()
    };
    let (json, markdown) = (open(&settings.json)?, open(&settings.markdown)?);
    let (on_cpu, off_cpu) = (open(&settings.on_cpu_flamegraph)?, open(&settings.flamegraph)?);
    let kernel = Kernel::discover()?;
    let interrupts = Interrupts::catch()?;
    let bench = Bench {
        kernel: &kernel,
        interrupts: &interrupts,
        user: user.as_ref(),
        effort: Effort::of(settings.quick),
    };
    let measured = match &settings.cases {
        Cases::Workloads { base, subject } => {
            let tried = of_workloads(base, subject);
            let names = (base.in_words(), subject.in_words());
            bench.measure(settings, base.as_ref(), subject.as_ref(), tried, names)?
        }
        Cases::Commands { base, subject } => {
            let case = |words: &Vec<String>| CommandCase {
                words: words.clone(),
                variables: Vec::new(),
                cpu: None,
            };
            let (base, subject) = (case(base), case(subject));
            let cpu = *allowed_cpus()?.last().unwrap_or(&0);
            let tried = of_commands(&base, &subject, cpu, &allocators());
            let names = (base.words.join(" "), subject.words.join(" "));
            bench.measure(settings, &base, &subject, tried, names)?
        }
    };
    let answer = explain(env!("CARGO_PKG_VERSION"), &host()?, &measured);
    let mut written = Written::default();
    if let Some(output) = json {
        written.commit(output, &json::render(&answer)?, "answer", Opened::With("jq ."))?;
    }
    if let Some(output) = markdown {
        written.commit(output, report::markdown(&answer).as_bytes(), "answer", Opened::Pasted)?;
    }
    if let Some(output) = on_cpu {
        let mean = |side: fn(&(Account, Account)) -> &Account| {
            let mut mean = Stacks::new();
            for account in &measured.accounts {
                for (frames, ns) in &side(account).stacks {
                    *mean.entry(frames.clone()).or_default() += ns / measured.accounts.len() as f64;
                }
            }
            mean
        };
        let (base, subject) = (mean(|both| &both.0), mean(|both| &both.1));
        let svg = differential::render(&base, &subject, "On-CPU time", &answer)?;
        written.commit(output, &svg, "on-CPU flamegraph, red is added", Opened::Browser)?;
    }
    if let Some(output) = off_cpu {
        let (base, subject) = measured
            .asleep
            .as_ref()
            .map(|(base, subject)| (&base.stacks, &subject.stacks))
            .unzip();
        let none = Stacks::new();
        let svg = differential::render(base.unwrap_or(&none), subject.unwrap_or(&none), "Off-CPU time", &answer)?;
        written.commit(output, &svg, "off-CPU flamegraph, red is added", Opened::Browser)?;
    }
    outputs::print(settings.table_to_stderr, |style| report::render(&answer, style))?;
    written.tell();
    Ok(if interrupts.any_seen() {
        status::INTERRUPTED
    } else if answer.complete {
        0
    } else {
        status::FAILURE
    })
}

/// What a case is described by, and how it is run.
trait Case: Clone + PartialEq {
    /// What its times are for one of.
    const UNIT: Unit;

    /// Makes it ready to be run for about so long.
    fn prepare(&self, bench: &Bench<'_>, duration: Duration) -> Result<Arm>;

    /// The same case with the most messages in flight counted, if it can be.
    fn counting(&self) -> Option<Self>;
}

/// A case that can be run again and again.
struct Arm {
    start: Start,
}

enum Start {
    Workload(Program),
    Command {
        program: PathBuf,
        words: Vec<OsString>,
        environment: Environment,
        cpu: Option<usize>,
    },
}

/// Messages of the run that shows how long one takes.
const CALIBRATION: u64 = 50_000;

impl Case for Spec {
    const UNIT: Unit = Unit::Message;

    fn prepare(&self, bench: &Bench<'_>, duration: Duration) -> Result<Arm> {
        let few = Self {
            // Round trips of processes take a hundred times as long as messages of tasks.
            iterations: if self.mode.is_tasks() {
                CALIBRATION
            } else {
                CALIBRATION / 20
            },
            ..self.clone()
        };
        let program = Program::of(&few, bench.user)?;
        let Some(outcome) = workload::timed(&program, bench.interrupts, bench.user)? else {
            return Err(Error::Workload("interrupted".to_owned()));
        };
        let iterations = (duration.as_nanos() as f64 / outcome.ns_per_message()).clamp(1_000.0, 1e9) as u64;
        let enough = Self {
            iterations,
            ..self.clone()
        };
        Ok(Arm {
            start: Start::Workload(Program::of(&enough, bench.user)?),
        })
    }

    fn counting(&self) -> Option<Self> {
        self.protocol()?;
        Some(Self {
            count_in_flight: true,
            ..self.clone()
        })
    }
}

impl Case for CommandCase {
    const UNIT: Unit = Unit::Run;

    fn prepare(&self, bench: &Bench<'_>, _duration: Duration) -> Result<Arm> {
        let mut environment = Environment::for_user(bench.user);
        for (name, value) in &self.variables {
            environment = environment.with(name, value);
        }
        let words: Vec<OsString> = self.words.iter().map(OsString::from).collect();
        let name = words.first().map_or(OsStr::new(""), OsString::as_os_str);
        Ok(Arm {
            start: Start::Command {
                program: find_program(name, environment.get("PATH"))?,
                words,
                environment,
                cpu: self.cpu,
            },
        })
    }

    fn counting(&self) -> Option<Self> {
        None
    }
}

/// Takes every event.
#[derive(Default)]
struct Collected(Vec<Event>);

impl EventSink for Collected {
    fn events(&mut self, batch: &[Event]) {
        self.0.extend_from_slice(batch);
    }
}

impl Observer for Collected {}

/// What everything that is run needs.
struct Bench<'a> {
    kernel: &'a Kernel,
    interrupts: &'a Interrupts,
    user: Option<&'a Invoker>,
    effort: Effort,
}

impl Bench<'_> {
    fn measure<C: Case>(
        &self,
        settings: &ExplainSettings,
        base: &C,
        subject: &C,
        list: Vec<Intervention<C>>,
        names: (String, String),
    ) -> Result<Measured> {
        let (chosen, mut not_tried) = choose(settings, list, self.effort.most)?;
        let mut order = Order::new(0);
        let mut measured = Measured {
            unit: C::UNIT,
            names,
            gap: Vec::new(),
            accounts: Vec::new(),
            asleep: None,
            interventions: Vec::new(),
            not_tried: Vec::new(),
            in_flight: (None, None),
            cut_short: None,
        };
        let sides = [
            base.prepare(self, self.effort.run)?,
            subject.prepare(self, self.effort.run)?,
        ];
        let progress = bar(4, false);
        progress.set_message("the gap");
        let until = Instant::now() + self.effort.gap;
        while !is_enough(&measured.gap) && measured.gap.len() < MOST_BLOCKS {
            if measured.gap.len() >= family::blocks_needed(CONFIDENCE) && Instant::now() > until {
                break;
            }
            let Some(took) = self.block(&mut order, &[&sides[0], &sides[1]])? else {
                measured.cut_short = Some("interrupted".to_owned());
                return Ok(measured);
            };
            measured.gap.push(Pair {
                base: took[0],
                subject: took[1],
            });
        }
        progress.inc(1);
        let is_clear = gap_of(&measured.gap).is_clear;
        if is_clear {
            progress.set_message("where the time goes");
            self.accounts(&mut order, base, subject, &mut measured)?;
        }
        progress.inc(1);
        if base != subject {
            let count = |case: &C| case.counting().map(|case| self.most_in_flight(&case)).transpose();
            measured.in_flight = (count(base)?.flatten(), count(subject)?.flatten());
            progress.set_message("interventions");
            let cut = self.interventions(&mut order, &sides, chosen, &mut measured, &mut not_tried)?;
            measured.cut_short = cut;
        }
        progress.finish_and_clear();
        measured.not_tried = not_tried;
        Ok(measured)
    }

    /// One block: each once, in random order. `None` if it was interrupted.
    fn block(&self, order: &mut Order, arms: &[&Arm]) -> Result<Option<Vec<f64>>> {
        let mut took = vec![0.0; arms.len()];
        for index in order.block(arms.len()) {
            match self.time(arms[index])? {
                Some(ns) => took[index] = ns,
                None => return Ok(None),
            }
        }
        Ok(Some(took))
    }

    fn interventions<C: Case>(
        &self,
        order: &mut Order,
        sides: &[Arm; 2],
        chosen: Vec<Intervention<C>>,
        measured: &mut Measured,
        not_tried: &mut Vec<NotTried>,
    ) -> Result<Option<String>> {
        // Base and subject as they are, then whatever is changed.
        let mut arms: Vec<Arm> = Vec::new();
        let mut tried: Vec<(Intervention<C>, Option<usize>, Option<usize>)> = Vec::new();
        for each in chosen {
            let mut prepare = |case: &Option<C>| -> Result<Option<usize>> {
                let Some(case) = case else { return Ok(None) };
                arms.push(case.prepare(self, self.effort.run)?);
                Ok(Some(arms.len() + 1))
            };
            let prepared = prepare(&each.base).and_then(|base| Ok((base, prepare(&each.subject)?)));
            if self.interrupts.any_seen() {
                return Ok(Some("interrupted".to_owned()));
            }
            match prepared {
                Ok((base, subject)) => tried.push((each, base, subject)),
                Err(error) => not_tried.push(NotTried {
                    name: each.name,
                    reason: error.to_string(),
                }),
            }
        }
        let all: Vec<&Arm> = sides.iter().chain(&arms).collect();
        let needed = family::blocks_needed(family::each(CONFIDENCE, tried.len()));
        let until = Instant::now() + self.effort.interventions;
        let mut runs: Vec<Runs> = vec![Runs::default(); tried.len()];
        let mut cut = None;
        for block in 0..MOST_BLOCKS {
            if tried.is_empty() || block >= needed && (Instant::now() > until || block >= needed + 4) {
                break;
            }
            let Some(took) = self.block(order, &all)? else {
                cut = Some("interrupted".to_owned());
                break;
            };
            for ((_, base, subject), runs) in tried.iter().zip(&mut runs) {
                runs.plain.push(Pair {
                    base: took[0],
                    subject: took[1],
                });
                runs.changed.push(Pair {
                    base: took[base.unwrap_or(0)],
                    subject: took[subject.unwrap_or(1)],
                });
            }
        }
        let told = tried
            .into_iter()
            .zip(runs)
            .map(|((each, _, _), runs)| (each.name, each.what, each.kind, runs));
        measured.interventions = told.collect();
        Ok(cut)
    }

    /// What one run takes, nanoseconds a message or run. `None` if it was interrupted.
    fn time(&self, arm: &Arm) -> Result<Option<f64>> {
        match &arm.start {
            Start::Workload(program) => {
                Ok(workload::timed(program, self.interrupts, self.user)?.map(|outcome| outcome.ns_per_message()))
            }
            Start::Command { cpu, .. } => arm.with_command(self.user, |command| {
                let suspended = command.launch_suspended()?;
                if let Some(cpu) = cpu {
                    let mut only = CpuSet::new();
                    only.set(*cpu)
                        .and_then(|()| sched_setaffinity(suspended.pid(), &only))
                        .map_err(Error::errno("sched_setaffinity"))?;
                }
                let since = Instant::now();
                let mut child = suspended.resume()?;
                let interrupted = workload::until_the_end(&child, self.interrupts)?;
                let took = since.elapsed();
                let ended = child.wait()?;
                if interrupted.is_some() {
                    return Ok(None);
                }
                if ended.exit.status != Some(0) {
                    return Err(failed(command));
                }
                Ok(Some(took.as_nanos() as f64))
            }),
        }
    }

    fn most_in_flight<C: Case>(&self, case: &C) -> Result<Option<u64>> {
        let arm = case.prepare(self, self.effort.run)?;
        let Start::Workload(program) = &arm.start else {
            return Ok(None);
        };
        Ok(workload::timed(program, self.interrupts, self.user)?.and_then(|outcome| outcome.max_in_flight))
    }

    fn recorder(&self, settings: Settings) -> Recorder<'_> {
        Recorder {
            kernel: self.kernel,
            settings,
            interrupts: Some(self.interrupts),
            on_interrupt: OnInterrupt::Kill,
            duration: None,
        }
    }

    /// Traces a run.
    fn trace(&self, arm: &Arm, settings: Settings, observer: &mut dyn Observer) -> Result<(Run, Option<Outcome>)> {
        let recorder = self.recorder(settings);
        match &arm.start {
            Start::Workload(program) => {
                let run = workload::observed(program, &recorder, self.user, observer)?;
                let outcome = run.outcome;
                Ok((run, outcome))
            }
            Start::Command { .. } => arm.with_command(self.user, |command| {
                let run = recorder.command(command, observer)?.run;
                if run.exit.and_then(|exit| exit.status) != Some(0) {
                    return Err(failed(command));
                }
                Ok((run, None))
            }),
        }
    }

    /// The budgets of traced runs.
    fn accounts<C: Case>(&self, order: &mut Order, base: &C, subject: &C, measured: &mut Measured) -> Result<()> {
        let duration = self.effort.traced_run;
        let arms = [base.prepare(self, duration)?, subject.prepare(self, duration)?];
        let mut asleep = Vec::new();
        for arm in &arms {
            let (mut run, outcome) = self.trace(arm, Settings::default(), &mut ())?;
            run.symbols = symbols::resolve(&run.aggregates, &run.samples);
            asleep.push(Asleep::of(&run, messages(outcome)));
        }
        let until = Instant::now() + self.effort.budget;
        if let Ok([base, subject]) = <[Asleep; 2]>::try_from(asleep.clone()) {
            measured.asleep = Some((base, subject));
        }
        let accounts = &mut measured.accounts;
        while accounts.len() < TRACED_BLOCKS && (accounts.len() < 3 || Instant::now() < until) {
            let mut both = [Account::default(), Account::default()];
            for index in order.block(2) {
                if self.interrupts.any_seen() {
                    return Ok(());
                }
                both[index] = self.account(&arms[index], &asleep[index])?;
            }
            let [base, subject] = both;
            accounts.push((base, subject));
        }
        Ok(())
    }

    fn account(&self, arm: &Arm, asleep: &Asleep) -> Result<Account> {
        let settings = Settings {
            level: Level::Timeline,
            sample_hz: Some(SAMPLE_HZ),
            ..Settings::default()
        };
        let mut collected = Collected::default();
        let (mut run, outcome) = self.trace(arm, settings, &mut collected)?;
        let events = &collected.0;
        let whole = Window {
            from_ns: events.first().map_or(0, |event| event.at_ns),
            to_ns: events.last().map_or(0, |event| event.at_ns),
        };
        let window = outcome
            .and_then(|outcome| {
                let from_ns = outcome.started_ns?;
                Some(Window {
                    from_ns,
                    to_ns: from_ns + outcome.elapsed_ns,
                })
            })
            .unwrap_or(whole);
        let mut replay = Replay::telling((Budget::of(window), Samples::default()));
        replay.events(events);
        let (budget, samples) = replay.into_intervals();
        run.symbols = symbols::resolve(&run.aggregates, &samples);
        run.samples = samples;
        Ok(Account::of(&run, &budget, window, messages(outcome), asleep))
    }
}

impl Arm {
    /// Calls `run` with a command of the user's, whose output goes nowhere.
    fn with_command<T>(&self, user: Option<&Invoker>, run: impl FnOnce(&Command<'_>) -> Result<T>) -> Result<T> {
        let Start::Command {
            program,
            words,
            environment,
            ..
        } = &self.start
        else {
            return Err(Error::Workload("a workload is no command".to_owned()));
        };
        let args: Vec<&OsStr> = words.iter().map(OsString::as_os_str).collect();
        let _silence = Silence::begin()?;
        run(&Command {
            program,
            args: &args,
            env: environment,
            inherit: &[],
            user,
            own_group: true,
        })
    }
}

/// While it is there, what goes to standard output goes nowhere: a command that is run fifty times is not run for its output.
struct Silence(std::os::fd::OwnedFd);

impl Silence {
    fn begin() -> Result<Self> {
        let duplicate = nix::unistd::dup(std::io::stdout()).map_err(Error::errno("dup"))?;
        let nowhere = File::options()
            .write(true)
            .open("/dev/null")
            .map_err(Error::system("opening /dev/null"))?;
        nix::unistd::dup2_stdout(nowhere).map_err(Error::errno("dup2"))?;
        Ok(Self(duplicate))
    }
}

impl Drop for Silence {
    fn drop(&mut self) {
        // Nothing is printed if it fails, and nobody is left to be told.
        let _ = nix::unistd::dup2_stdout(&self.0);
    }
}

/// What times are divided by.
fn messages(outcome: Option<Outcome>) -> f64 {
    outcome.map_or(1.0, |outcome| outcome.messages as f64)
}

fn failed(command: &Command<'_>) -> Error {
    let words: Vec<_> = command.args.iter().map(|word| word.to_string_lossy()).collect();
    Error::Workload(format!(
        "`{}` does not end with status 0: only commands that succeed can be compared",
        words.join(" ")
    ))
}

/// Those that are wanted.
fn choose<C>(
    settings: &ExplainSettings,
    list: Vec<Intervention<C>>,
    most: usize,
) -> Result<(Vec<Intervention<C>>, Vec<NotTried>)> {
    let known: Vec<&str> = list.iter().map(|each| each.name.as_str()).collect();
    for name in settings.only.iter().chain(&settings.skip) {
        if !known.contains(&name.as_str()) {
            return Err(Error::Usage(format!(
                "there is no intervention {name} for these cases; there are {}",
                known.join(", ")
            )));
        }
    }
    let mut chosen = Vec::new();
    let mut not_tried = Vec::new();
    for each in list {
        let reason = if settings.skip.contains(&each.name) {
            Some("--skip")
        } else if !settings.only.is_empty() && !settings.only.contains(&each.name) {
            Some("--only")
        } else if settings.only.is_empty() && chosen.len() == most {
            Some("--quick tries the first few only")
        } else {
            None
        };
        match reason {
            Some(reason) => not_tried.push(NotTried {
                name: each.name,
                reason: reason.to_owned(),
            }),
            None => chosen.push(each),
        }
    }
    Ok((chosen, not_tried))
}

/// The allocators that can be preloaded here, by name and path.
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
