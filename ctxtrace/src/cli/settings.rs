//! From raw options to settings in which everything is decided.
//!
//! An option that has no meaning for what is asked is an error, never ignored: somebody typed it expecting an effect.

use crate::cli::RunArgs;
use crate::error::{Error, Result};
use crate::report::Weight;
use crate::report::output::Destination;
use crate::target::programs::LocatorChoice;
use crate::trace::Level;
use crate::workload::pin::Pin;
use crate::workload::{Mode, Root, Spec};

/// `ctxtrace run`, every option resolved.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RunSettings {
    /// What to run.
    pub spec: Spec,
    /// How often.
    pub repeat: u64,
    /// How much to record.
    pub level: Level,
    /// How tasks are found.
    pub locator: LocatorChoice,
    /// What widths mean.
    pub weight: Weight,
    /// Where the JSON goes.
    pub json: Option<Destination>,
    /// Where the flamegraph goes.
    pub flamegraph: Option<Destination>,
    /// Where the flamegraph of wakers goes.
    pub wakeups_flamegraph: Option<Destination>,
    /// Where the folded stacks go.
    pub folded: Option<Destination>,
    /// Size of the rings of events.
    pub ring_bytes: Option<usize>,
    /// Fault injection.
    pub drop_one_in: u32,
}

impl RunSettings {
    /// Whether an output takes standard output, so that the table must not.
    #[must_use]
    pub fn stdout_is_taken(&self) -> bool {
        self.destinations()
            .any(|(_, destination)| *destination == Destination::Stdout)
    }

    fn destinations(&self) -> impl Iterator<Item = (&'static str, &Destination)> {
        [
            ("--json", &self.json),
            ("--flamegraph", &self.flamegraph),
            ("--wakeups-flamegraph", &self.wakeups_flamegraph),
            ("--folded", &self.folded),
        ]
        .into_iter()
        .filter_map(|(option, destination)| Some((option, destination.as_ref()?)))
    }
}

impl TryFrom<RunArgs> for RunSettings {
    type Error = Error;

    fn try_from(args: RunArgs) -> Result<Self> {
        let spec = spec(&args)?;
        let settings = Self {
            spec,
            repeat: args.repeat,
            level: args.level,
            locator: args.locator,
            weight: args.weight.unwrap_or(Weight::Time),
            json: args.json.map(Destination::from),
            flamegraph: args.flamegraph.map(Destination::from),
            wakeups_flamegraph: args.wakeups_flamegraph.map(Destination::from),
            folded: args.folded.map(Destination::from),
            ring_bytes: args.ring_bytes,
            drop_one_in: args.drop_one_in,
        };
        if settings.ring_bytes.is_some() && settings.level != Level::Timeline {
            return Err(Error::Usage(
                "--ring-bytes has no meaning without --level timeline: there are no events".to_owned(),
            ));
        }
        check_outputs(&settings, args.weight.is_some())?;
        Ok(settings)
    }
}

fn spec(args: &RunArgs) -> Result<Spec> {
    let mode = args.mode;
    let no_meaning = |option: &str, reason: &str| {
        Err(Error::Usage(format!(
            "{option} has no meaning for --mode {}: {reason}",
            mode.name()
        )))
    };
    if !mode.is_tasks() {
        if args.buffer.is_some() {
            return no_meaning(
                "--buffer",
                "it talks over pipes, not channels (use --mode task or task-pool)",
            );
        }
        if args.root.is_some() {
            return no_meaning("--root", "it has no runtime (use --mode task or task-pool)");
        }
    }
    if mode != Mode::TaskPool && args.workers.is_some() {
        return no_meaning("--workers", "it has no pool of workers (use --mode task-pool)");
    }
    if mode == Mode::Task && args.pin == Some(Pin::SplitCpus) {
        return no_meaning(
            "--pin split-cpus",
            "all its tasks are on one thread (use --mode task-pool)",
        );
    }
    Ok(Spec {
        mode,
        iterations: args.iterations.unwrap_or_else(|| mode.default_iterations()),
        pin: args.pin.unwrap_or_else(|| mode.default_pin()),
        // The parser has bounded these far below what a `usize` holds.
        buffer: mode.is_tasks().then(|| args.buffer.unwrap_or(0) as usize),
        workers: (mode == Mode::TaskPool).then(|| args.workers.unwrap_or(2) as usize),
        root: mode.is_tasks().then(|| args.root.unwrap_or(Root::Spawned)),
    })
}

fn check_outputs(settings: &RunSettings, weight_given: bool) -> Result<()> {
    let wants_stacks =
        settings.flamegraph.is_some() || settings.wakeups_flamegraph.is_some() || settings.folded.is_some();
    if wants_stacks && settings.level != Level::Stacks {
        return Err(Error::Usage(format!(
            "--flamegraph, --wakeups-flamegraph and --folded need stacks, and --level {} takes none: leave --level out",
            settings.level.name()
        )));
    }
    if weight_given && !wants_stacks {
        return Err(Error::Usage(
            "--weight says what the widths in a flamegraph mean: give --flamegraph, --wakeups-flamegraph or --folded too".to_owned(),
        ));
    }
    let destinations: Vec<_> = settings.destinations().collect();
    for (index, (option, destination)) in destinations.iter().enumerate() {
        if let Some((other, _)) = destinations[..index].iter().find(|(_, other)| other == destination) {
            return Err(Error::Usage(format!(
                "{other} and {option} go to the same place: give each its own"
            )));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::{Cli, Command};
    use clap::Parser;

    fn settings(line: &str) -> Result<RunSettings> {
        let cli = Cli::try_parse_from(["ctxtrace", "run"].into_iter().chain(line.split_whitespace()))
            .map_err(|error| Error::Usage(error.to_string()))?;
        match cli.command {
            Command::Run(args) => RunSettings::try_from(args),
            Command::Workload(_) => unreachable!("`run` was given"),
        }
    }

    #[test]
    fn defaults_are_the_articles() {
        let pool = settings("--mode task-pool").expect("valid");
        assert_eq!(
            pool.spec,
            Spec {
                mode: Mode::TaskPool,
                iterations: 2_000_000,
                pin: Pin::None,
                buffer: Some(0),
                workers: Some(2),
                root: Some(Root::Spawned),
            }
        );
        let process = settings("--mode process").expect("valid");
        assert_eq!((process.spec.iterations, process.spec.pin), (200_000, Pin::SameCpu));
        assert_eq!(
            (process.spec.buffer, process.spec.workers, process.spec.root),
            (None, None, None)
        );
        assert_eq!((pool.repeat, pool.level, pool.weight), (1, Level::Stacks, Weight::Time));
    }

    #[test]
    fn options_without_meaning_are_errors_that_say_why() {
        for (line, option) in [
            ("--mode process --buffer 4096", "--buffer"),
            ("--mode thread --root block-on", "--root"),
            ("--mode thread --workers 2", "--workers"),
            ("--mode task --workers 2", "--workers"),
            ("--mode task --pin split-cpus", "--pin split-cpus"),
        ] {
            let error = settings(line).expect_err(line);
            assert_eq!(error.exit_status(), 2);
            assert!(
                error
                    .to_string()
                    .starts_with(&format!("{option} has no meaning for --mode ")),
                "{error}"
            );
        }
    }

    #[test]
    fn absurd_numbers_are_errors() {
        for line in [
            "--mode task --iterations 0",
            "--mode task --buffer 99999999999",
            "--mode task-pool --workers 0",
            "--mode task-pool --workers 100000",
            "--mode task --repeat 0",
            "--mode task --iterations -5",
        ] {
            assert!(settings(line).is_err(), "{line}");
        }
    }

    #[test]
    fn an_unknown_mode_is_answered_with_the_known_ones() {
        let error = settings("--mode goroutine").expect_err("unknown").to_string();
        for mode in ["process", "thread", "task", "task-pool"] {
            assert!(error.contains(mode), "{error}");
        }
    }

    #[test]
    fn outputs_that_do_not_go_together_are_errors() {
        for line in [
            "--mode task --level counts --flamegraph x.svg",
            "--mode task --level counts --wakeups-flamegraph x.svg",
            "--mode task --level timeline --flamegraph x.svg",
            "--mode task --level timeline --wakeups-flamegraph x.svg",
            "--mode task --level timeline --folded x",
            "--mode task --ring-bytes 4096",
            "--mode task --weight count",
            "--mode task --json - --folded -",
            "--mode task --json x --folded x",
        ] {
            assert!(settings(line).is_err(), "{line}");
        }
        assert!(settings("--mode task --json -").expect("valid").stdout_is_taken());
        assert!(!settings("--mode task --json x").expect("valid").stdout_is_taken());
    }
}
