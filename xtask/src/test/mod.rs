//! `cargo xtask test`: runs the tests of the workspace.
//!
//! `cargo test` runs all tests as one user, and the tests of a file in parallel. But the tests of the target `privileged` load BPF
//! programs, so they need root, and measure the scheduler, so no other test may run at the same time. Therefore this command
//! builds all tests once, in the release profile (so that the workloads are realistic), and then runs one executable after the
//! other, `privileged` last. The privileged tests also trace a program that is built with several releases of tokio
//! ([`tokio_releases`]).
//!
//! [`outcome`] sums the results that test programs print; [`repeat`] runs privileged tests many times.

mod outcome;
mod repeat;

use std::ffi::OsString;
use std::io::{self, BufReader, IsTerminal as _};
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode, Stdio};

use anyhow::{Context as _, Result, bail};
use cargo_metadata::{Artifact, Message, TargetKind};

use self::outcome::Outcome;
use self::repeat::Repetition;
use crate::kernels::{self, KernelImage, KernelTest, Way};
use crate::{process, setup, tokio_releases};

/// The integration test of the crate `ctxtrace` that needs root.
const PRIVILEGED: &str = "privileged";

/// Variables that are passed on to privileged tests explicitly, because sudo removes unknown variables. With the first one, a test
/// that cannot run fails instead of being skipped.
const PASSED_ON: [&str; 2] = ["CTXTRACE_REQUIRE_PRIVILEGED", "RUST_BACKTRACE"];

/// The beginning of the kinds of tests that only `--long` runs, in the notation of the harness of the privileged tests.
const LONG: &str = "[long";

/// The kind of the tests that only `--long --repeat` runs.
const LONG_REPEATED: &str = "[long repeated]";

/// The options of `test`.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// Skip the tests that need root
    #[arg(long, conflicts_with_all = ["long", "repeat", "kernel"])]
    without_privileged: bool,

    /// Install nothing; tests that need a missing program are skipped
    #[arg(long)]
    no_setup: bool,

    /// Run only the tests that take long
    #[arg(long, conflicts_with = "kernel")]
    long: bool,

    /// Run only the privileged tests, each this many times; an interrupted command continues where it stopped
    #[arg(long, value_name = "TIMES", value_parser = clap::value_parser!(u32).range(1..), conflicts_with = "kernel")]
    repeat: Option<u32>,

    /// Keep every CPU busy with another program while a repeated test runs
    #[arg(long, requires = "repeat")]
    beside_load: bool,

    /// Repeat only the tests with this text in their names; may be given several times
    #[arg(long, value_name = "TEXT", requires = "repeat")]
    filter: Vec<String>,

    /// Run only privileged tests, on this kernel in QEMU; may be given several times
    #[arg(long, value_enum, value_name = "VERSION")]
    kernel: Vec<KernelImage>,

    /// Add these words to the kernel's command line; with preempt=full the tests that count sleeps do not run
    #[arg(long, value_name = "WORDS", requires = "kernel")]
    append: Option<String>,

    /// Run only this test on the kernel; may be given several times
    #[arg(long, value_name = "TEST", requires = "kernel")]
    only: Vec<String>,
}

/// An executable with tests.
#[derive(Debug)]
struct TestProgram {
    /// The name of the cargo target.
    name: String,
    /// Whether the tests need root.
    privileged: bool,
    /// The path of the executable.
    path: PathBuf,
    /// The folder of the package.
    folder: PathBuf,
}

impl TestProgram {
    /// Converts an artifact that cargo has built. Returns `None` if it is not an executable with tests.
    fn new(artifact: &Artifact) -> Option<Self> {
        let target = &artifact.target;
        let path = artifact.executable.as_ref().filter(|_| artifact.profile.test)?;
        Some(Self {
            name: target.name.clone(),
            privileged: target.name == PRIVILEGED && target.kind.contains(&TargetKind::Test),
            path: path.clone().into_std_path_buf(),
            folder: artifact.manifest_path.parent()?.to_owned().into_std_path_buf(),
        })
    }

    /// Runs the tests as the current user, except for the long ones.
    fn run(&self) -> Result<Outcome> {
        self.run_command(self.in_its_folder(&mut Command::new(&self.path)))
    }

    /// Runs the tests as root. `programs` is the folder of [`tokio_releases`], and `options` are options of the harness.
    fn run_as_root(&self, programs: &Path, options: &[&str]) -> Result<Outcome> {
        self.run_command(self.as_root(programs).args(options))
    }

    /// Returns a command that runs the executable as root. `env` sets the variables, because sudo removes unknown ones.
    fn as_root(&self, programs: &Path) -> Command {
        let variable = |name: &str, value: &std::ffi::OsStr| {
            let mut word = OsString::from(format!("{name}="));
            word.push(value);
            word
        };
        let mut command = process::as_root("env");
        command
            .arg(variable("CARGO_MANIFEST_DIR", self.folder.as_os_str()))
            .arg(variable(tokio_releases::VARIABLE, programs.as_os_str()))
            .args(
                PASSED_ON
                    .iter()
                    .filter_map(|name| Some(variable(name, &std::env::var_os(name)?))),
            )
            .arg(&self.path);
        self.in_its_folder(&mut command);
        command
    }

    /// Sets the working folder and the variables of a command as `cargo test` does.
    fn in_its_folder<'a>(&self, command: &'a mut Command) -> &'a mut Command {
        command
            .current_dir(&self.folder)
            .env("CARGO_MANIFEST_DIR", &self.folder)
            .env("CARGO_MANIFEST_PATH", self.folder.join("Cargo.toml"))
    }

    fn run_command(&self, command: &mut Command) -> Result<Outcome> {
        run_tests(&self.name, command)
    }

    /// Returns the names of the tests, each with its kind in front if it has one: `[kernel] NAME`.
    fn list(&self) -> Result<Vec<String>> {
        let list = process::output(self.in_its_folder(Command::new(&self.path).arg("--list")))?;
        let tests = list.lines().filter_map(|line| line.strip_suffix(": test"));
        Ok(tests.map(str::to_owned).collect())
    }
}

/// Runs a command that runs tests, prints its output, and returns the sum of its results.
fn run_tests(name: &str, command: &mut Command) -> Result<Outcome> {
    process::announce(command);
    let mut child = command
        .stdout(Stdio::piped())
        .spawn()
        .with_context(|| format!("cannot run {name}"))?;
    let stdout = child
        .stdout
        .take()
        .context("the standard output of the tests is not piped")?;
    let output = outcome::copy(stdout, io::stdout())?;
    let status = child.wait()?;
    let mut outcome = Outcome::read(name, &output);
    if !status.success() && outcome.failed == 0 {
        outcome.fail(format!("{name}: {status}"));
    }
    Ok(outcome)
}

/// Runs all selected tests, even if some fail. The last line is the sum of all test programs.
pub(crate) fn main(args: &Args) -> Result<ExitCode> {
    if !args.no_setup {
        // Go on after a failure: the tests that need a missing program are reported as skipped.
        if let Err(error) = setup::for_tests(!args.kernel.is_empty()) {
            eprintln!("cannot install everything that the tests need: {error:#}");
        }
    }
    let (privileged, others): (Vec<_>, Vec<_>) = build()?.into_iter().partition(|program| program.privileged);
    let Some(privileged) = privileged.first() else {
        bail!("there is no test target `{PRIVILEGED}`");
    };
    if !args.kernel.is_empty() {
        on_kernels(args, privileged)?;
        return Ok(ExitCode::SUCCESS);
    }
    let mut sum = Outcome::default();
    if !args.long && args.repeat.is_none() {
        for program in &others {
            sum.add(program.run()?);
        }
        sum.add(documentation()?);
    }
    sum.add(run_privileged(args, privileged)?);
    Ok(conclude(&sum))
}

/// Runs the examples in the documentation. Cargo prints a result for each crate.
fn documentation() -> Result<Outcome> {
    run_tests("documentation", &mut cargo_test(&["--doc"]))
}

/// Runs the privileged tests that the options select.
fn run_privileged(args: &Args, program: &TestProgram) -> Result<Outcome> {
    let (mut long, ordinary): (Vec<String>, Vec<String>) =
        program.list()?.into_iter().partition(|test| test.starts_with(LONG));
    if args.repeat.is_none() {
        long.retain(|test| !test.starts_with(LONG_REPEATED));
    }
    let selected = if args.long { &long } else { &ordinary };
    let missing = if args.without_privileged {
        Some("--without-privileged")
    } else if !process::is_root() && !sudo_works() {
        Some("the tests need root, and sudo does not work")
    } else {
        None
    };
    if let Some(missing) = missing {
        let mut outcome = Outcome::default();
        let skipped = selected.iter().map(|test| format!("{PRIVILEGED}: {test}: {missing}"));
        outcome.skipped.extend(skipped);
        if !args.without_privileged {
            outcome.fail(format!(
                "{PRIVILEGED}: {missing} (--without-privileged skips these tests)"
            ));
        }
        return Ok(outcome);
    }
    let programs = tokio_releases::build()?;
    let Some(rounds) = args.repeat else {
        let options: &[&str] = if args.long {
            &["--ignored", "--skip", LONG_REPEATED]
        } else {
            &["--skip", LONG]
        };
        return program.run_as_root(&programs, options);
    };
    let names = selected.iter().map(|test| name_of_test(test).to_owned()).collect();
    let names = repeat::select(names, &args.filter)?;
    let mut executables = executables_beside(program)?;
    executables.push(program.path.clone());
    let repetition = Repetition {
        rounds,
        beside_load: args.beside_load,
        build: &repeat::build_id(&executables)?,
    };
    repeat::run(&names, repetition, |test| {
        let mut command = program.as_root(&programs);
        command.args(["--include-ignored", "--exact", test]);
        command
    })
}

/// Returns the name of a test from a line `[KIND] NAME` or `NAME`.
fn name_of_test(listed: &str) -> &str {
    listed.rsplit(' ').next().unwrap_or(listed)
}

/// Returns the executables that privileged tests start, which are in the parent of the folder of the tests.
fn executables_beside(privileged: &TestProgram) -> Result<Vec<PathBuf>> {
    let folder = privileged.path.parent().and_then(Path::parent);
    let folder = folder.context("the folder of the tests has no parent")?;
    Ok(["ctxtrace", "ctxtrace-workload-jemalloc"]
        .map(|name| folder.join(name))
        .into())
}

/// Runs privileged tests on other kernels.
fn on_kernels(args: &Args, privileged: &TestProgram) -> Result<()> {
    let tests: Vec<KernelTest> = privileged
        .list()?
        .iter()
        .filter_map(|test| KernelTest::read(test))
        .collect();
    let way = Way {
        append: args.append.as_deref(),
        only: &args.only,
        tests: &tests,
    };
    let others = executables_beside(privileged)?;
    for &kernel in &args.kernel {
        kernels::test(kernel, &privileged.path, &others, &way)?;
    }
    Ok(())
}

/// Prints the skipped and the failed tests, and the sum alone on the last line. Returns the exit status.
#[expect(
    clippy::print_stdout,
    reason = "the test programs print their results to standard output too"
)]
fn conclude(sum: &Outcome) -> ExitCode {
    for skipped in &sum.skipped {
        println!("skipped {skipped}");
    }
    for failure in &sum.failures {
        println!("FAILED {failure}");
    }
    println!("{}", sum.last_line());
    ExitCode::from(u8::from(sum.failed > 0))
}

/// Builds all test executables.
fn build() -> Result<Vec<TestProgram>> {
    let mut build = cargo_test(&["--no-run", "--message-format=json-render-diagnostics"]);
    process::announce(&build);
    let mut child = build.stdout(Stdio::piped()).spawn().context("cannot run cargo")?;
    let stdout = child
        .stdout
        .take()
        .context("the standard output of cargo is not piped")?;
    let mut programs = Vec::new();
    for message in Message::parse_stream(BufReader::new(stdout)) {
        if let Message::CompilerArtifact(artifact) = message? {
            programs.extend(TestProgram::new(&artifact));
        }
    }
    let status = child.wait()?;
    if !status.success() {
        bail!("the tests do not build: {status}");
    }
    Ok(programs)
}

/// Returns a `cargo test` command for the workspace, with further options.
fn cargo_test(options: &[&str]) -> Command {
    let mut command = process::cargo();
    command
        .current_dir(process::root())
        .args(["test", "--workspace", "--release"])
        .args(options);
    command
}

/// Returns whether the user may use sudo. On a terminal sudo may ask for the password.
fn sudo_works() -> bool {
    let mut sudo = Command::new("sudo");
    if !io::stdin().is_terminal() {
        sudo.arg("--non-interactive");
    }
    let status = sudo.args(["--", "true"]).status();
    status.is_ok_and(|status| status.success())
}
