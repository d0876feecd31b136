//! The settings of `explain` and `compare`, with every option resolved.

use std::path::PathBuf;

use super::settings::{same_place, spec};
use super::{CaseArgs, CompareArgs, ComparisonOutputArgs, ExplainArgs};
use crate::error::{Error, Result};
use crate::files::output::Destination;
use ctxtrace_format::workload::Pin;
use ctxtrace_format::workload::{Mode, Spec};

/// The outputs of a comparison.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ComparisonOutputs {
    /// Destination of the JSON.
    pub json: Option<Destination>,
    /// Destination of the Markdown.
    pub markdown: Option<Destination>,
    /// Destination of the differential on-CPU flamegraph.
    pub on_cpu_flamegraph: Option<Destination>,
    /// Destination of the differential off-CPU flamegraph.
    pub flamegraph: Option<Destination>,
    /// Whether the table goes to standard error, because another output uses standard output.
    pub table_to_stderr: bool,
}

impl TryFrom<ComparisonOutputArgs> for ComparisonOutputs {
    type Error = Error;

    fn try_from(args: ComparisonOutputArgs) -> Result<Self> {
        let outputs = Self {
            json: args.json.map(Destination::from),
            markdown: args.markdown.map(Destination::from),
            on_cpu_flamegraph: args.on_cpu_flamegraph.map(Destination::from),
            flamegraph: args.flamegraph.map(Destination::from),
            table_to_stderr: false,
        };
        let destinations: Vec<_> = [
            ("--json", &outputs.json),
            ("--markdown", &outputs.markdown),
            ("--on-cpu-flamegraph", &outputs.on_cpu_flamegraph),
            ("--flamegraph", &outputs.flamegraph),
        ]
        .into_iter()
        .filter_map(|(option, destination)| Some((option, destination.as_ref()?)))
        .collect();
        for (index, (option, destination)) in destinations.iter().enumerate() {
            if let Some((other, _)) = destinations[..index].iter().find(|(_, other)| other == destination) {
                return Err(same_place(other, option));
            }
        }
        let table_to_stderr = destinations.iter().any(|(_, to)| **to == Destination::Stdout);
        Ok(Self {
            table_to_stderr,
            ..outputs
        })
    }
}

/// `ctxtrace compare`, every option resolved.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CompareSettings {
    /// The capture to compare with.
    pub base: PathBuf,
    /// The capture that is compared with the base.
    pub subject: PathBuf,
    /// The outputs to write.
    pub outputs: ComparisonOutputs,
}

impl TryFrom<CompareArgs> for CompareSettings {
    type Error = Error;

    fn try_from(args: CompareArgs) -> Result<Self> {
        Ok(Self {
            base: args.base,
            subject: args.subject,
            outputs: args.outputs.try_into()?,
        })
    }
}

/// `ctxtrace explain`, every option resolved.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ExplainSettings {
    /// The two cases.
    pub cases: Cases,
    /// Whether to make fewer runs and try fewer interventions.
    pub quick: bool,
    /// Names of the interventions to try; if empty, all are tried.
    pub only: Vec<String>,
    /// Names of the interventions to skip.
    pub skip: Vec<String>,
    /// The outputs to write.
    pub outputs: ComparisonOutputs,
}

/// The base of a comparison, and the subject, which may be slower.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Cases {
    /// Built-in workloads.
    Workloads {
        /// The base.
        base: Box<Spec>,
        /// The subject.
        subject: Box<Spec>,
    },
    /// Commands, each as a list of its words.
    Commands {
        /// The base.
        base: Vec<String>,
        /// The subject.
        subject: Vec<String>,
    },
}

/// Default capacity of the channels, in messages: that of the case which the article could not explain.
const SUBJECT_BUFFER: u64 = 4_096;

/// The case after `--against`, parsed like a command line.
#[derive(Debug, clap::Parser)]
#[command(no_binary_name = true, disable_help_flag = true)]
struct AgainstLine {
    #[arg(value_enum)]
    mode: Mode,
    #[command(flatten)]
    case: CaseArgs,
}

impl TryFrom<ExplainArgs> for ExplainSettings {
    type Error = Error;

    fn try_from(args: ExplainArgs) -> Result<Self> {
        Ok(Self {
            cases: compared(&args)?,
            quick: args.quick,
            only: args.only,
            skip: args.skip,
            outputs: args.outputs.try_into()?,
        })
    }
}

fn compared(args: &ExplainArgs) -> Result<Cases> {
    if let (Some(base), Some(subject)) = (&args.base, &args.subject) {
        if args.case != CaseArgs::default() {
            return Err(Error::Usage(
                "--base and --subject are commands, for which the options of built-in workloads have no meaning: leave these options out"
                    .to_owned(),
            ));
        }
        return Ok(Cases::Commands {
            base: words("--base", base)?,
            subject: words("--subject", subject)?,
        });
    }
    let mut subject = args.case.clone();
    if args.mode.is_none() && subject.buffer.is_none() {
        subject.buffer = Some(SUBJECT_BUFFER);
    }
    let mode = args.mode.unwrap_or(Mode::TaskPool);
    let base = if args.against.is_empty() {
        // The same options, except those that have no meaning for `task`.
        let mut base = subject.clone();
        base.workers = None;
        base.pin = base.pin.filter(|&pin| pin != Pin::SplitCpus);
        if mode == Mode::Task {
            return Err(Error::Usage(
                "--mode task is itself the default base: give the case to compare it with after --against".to_owned(),
            ));
        }
        spec(Mode::Task, &base)?
    } else {
        let line = <AgainstLine as clap::Parser>::try_parse_from(&args.against).map_err(|error| {
            let text = error.to_string();
            let first = text.lines().next().unwrap_or_default().trim_start_matches("error: ");
            Error::Usage(format!(
                "--against takes a mode and its options, up to the end of the line: {first} (options of `explain` go before --against)"
            ))
        })?;
        spec(line.mode, &line.case)?
    };
    Ok(Cases::Workloads {
        base: Box::new(base),
        subject: Box::new(spec(mode, &subject)?),
    })
}

/// Splits a command into words as a shell does.
fn words(option: &str, line: &str) -> Result<Vec<String>> {
    match shlex::split(line) {
        Some(words) if !words.is_empty() => Ok(words),
        Some(_) => Err(Error::Usage(format!("{option} is empty: give a command"))),
        None => Err(Error::Usage(format!("{option} has a quote that is not closed: {line}"))),
    }
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;
    use crate::cli::{Cli, Command};

    fn explain(line: &str) -> Result<ExplainSettings> {
        let words = std::iter::once("ctxtrace").chain(std::iter::once("explain"));
        let words: Vec<String> = words
            .map(str::to_owned)
            .chain(shlex::split(line).expect("a line"))
            .collect();
        match Cli::try_parse_from(words)
            .map_err(|error| Error::Usage(error.to_string()))?
            .command
        {
            Command::Explain(args) => args.try_into(),
            other => panic!("{other:?}"),
        }
    }

    fn workloads(line: &str) -> (Spec, Spec) {
        match explain(line).expect(line).cases {
            Cases::Workloads { base, subject } => (*base, *subject),
            other @ Cases::Commands { .. } => panic!("{other:?}"),
        }
    }

    #[test]
    fn the_default_is_what_the_article_ended_on() {
        let (base, subject) = workloads("");
        assert_eq!((base.mode, base.buffer), (Mode::Task, Some(4_096)));
        assert_eq!((subject.mode, subject.buffer), (Mode::TaskPool, Some(4_096)));
    }

    #[test]
    fn the_base_is_the_subject_without_the_pool_or_the_given_one() {
        let (base, subject) = workloads("--mode task-pool --buffer 64 --workers 3 --channel tokio --pin split-cpus");
        assert_eq!(
            (base.mode, base.buffer, base.channel, base.workers),
            (Mode::Task, Some(64), subject.channel, None)
        );
        assert_eq!(
            (base.pin, subject.pin, subject.workers),
            (Pin::None, Pin::SplitCpus, Some(3))
        );
        let (base, subject) = workloads("--mode go --buffer 4096 --quick --against go --buffer 0");
        assert_eq!((base.mode, base.buffer), (Mode::Go, Some(0)));
        assert_eq!((subject.mode, subject.buffer), (Mode::Go, Some(4_096)));
    }

    #[test]
    fn commands_are_split_as_a_shell_would() {
        let settings = explain("--base 'sort -n \"a file\"' --subject 'sort a'").expect("valid");
        let Cases::Commands { base, subject } = settings.cases else {
            panic!("{:?}", settings.cases)
        };
        assert_eq!(
            (base, subject),
            (
                vec!["sort".to_owned(), "-n".to_owned(), "a file".to_owned()],
                vec!["sort".to_owned(), "a".to_owned()],
            )
        );
    }

    #[test]
    fn what_makes_no_sense_is_an_error_that_says_what_does() {
        for (line, says) in [
            ("--mode task", "--against"),
            ("--mode task-pool --against nothing", "--against takes a mode"),
            ("--mode task-pool --against task --quick", "go before --against"),
            ("--base 'a' --subject 'b' --buffer 4", "no meaning"),
            ("--base '' --subject 'b'", "--base is empty"),
            ("--base \"a 'b\" --subject 'b'", "not closed"),
            ("--base 'a'", "--subject"),
            ("--json x --markdown x", "--markdown"),
        ] {
            let error = explain(line).expect_err(line);
            assert_eq!(error.exit_status(), 2, "{line}");
            assert!(error.to_string().contains(says), "{line}: {error}");
        }
    }
}
