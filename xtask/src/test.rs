//! `cargo xtask test`: every test of the workspace.
//!
//! `cargo test` runs all tests as one user and each file's tests in parallel. The target `privileged` loads BPF programs,
//! so it needs root, and it measures the scheduler, so it wants the machine to itself. Hence: cargo builds all of them
//! once, in the release profile (the workloads should be the real thing), and we run each executable, that one last. It also
//! traces a program that is built with several releases of tokio ([`tokio_releases`]).

use std::ffi::OsString;
use std::io::{self, BufReader, IsTerminal as _};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context as _, Result, bail};
use cargo_metadata::{Artifact, Message, TargetKind};

use crate::kernels::{self, Kernel};
use crate::{process, tokio_releases};

/// The integration test of the crate `ctxtrace` that needs root.
const PRIVILEGED: &str = "privileged";

/// With this variable a privileged test that cannot run fails, where it would otherwise skip itself.
const REQUIRE_PRIVILEGED: &str = "CTXTRACE_REQUIRE_PRIVILEGED=1";

/// The options of `test`.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// Leave out the tests that need root
    #[arg(long)]
    without_privileged: bool,

    /// Run privileged tests on another kernel, in QEMU, and no others; may be given several times
    #[arg(long, value_enum, value_name = "VERSION", conflicts_with = "without_privileged")]
    kernel: Vec<Kernel>,

    /// What to add to that kernel's command line, as preempt=full
    #[arg(long, value_name = "WORDS", requires = "kernel")]
    append: Option<String>,
}

/// One executable with tests in it.
#[derive(Debug)]
struct TestProgram {
    /// The name of its target.
    name: String,
    /// Whether it needs root.
    privileged: bool,
    /// The executable.
    path: PathBuf,
    /// Its package's folder.
    folder: PathBuf,
}

impl TestProgram {
    /// What cargo says it built, if that is an executable with tests.
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

    /// Runs it as the user.
    fn run(&self) -> Result<()> {
        self.run_with(&mut Command::new(&self.path))
    }

    /// Runs it as root, or fails where root cannot be had. `env` sets the variables, because sudo drops what
    /// it does not know.
    fn run_as_root(&self) -> Result<()> {
        if !process::is_root() && !sudo_works() {
            bail!(
                "PRIVILEGED TESTS WERE NOT RUN: this is not root, and sudo does not work here \
                 (--without-privileged leaves them out)"
            );
        }
        let mut folder = OsString::from("CARGO_MANIFEST_DIR=");
        folder.push(&self.folder);
        let mut programs = OsString::from(format!("{}=", tokio_releases::VARIABLE));
        programs.push(tokio_releases::build()?);
        let mut command = process::as_root("env");
        command.args([REQUIRE_PRIVILEGED.as_ref(), folder.as_os_str(), programs.as_os_str()]);
        self.run_with(command.arg(&self.path).arg("--test-threads=1"))
    }

    /// Runs a command as `cargo test` would run this: in the package's folder, which is also in the environment.
    fn run_with(&self, command: &mut Command) -> Result<()> {
        command
            .current_dir(&self.folder)
            .env("CARGO_MANIFEST_DIR", &self.folder)
            .env("CARGO_MANIFEST_PATH", self.folder.join("Cargo.toml"));
        process::run(command)
    }
}

/// Runs everything, whatever fails on the way, and says at the end what did.
pub(crate) fn main(args: &Args) -> Result<()> {
    let (privileged, others): (Vec<_>, Vec<_>) = build()?.into_iter().partition(|program| program.privileged);
    let Some(first) = privileged.first() else {
        bail!("there is no test target `{PRIVILEGED}`");
    };
    if !args.kernel.is_empty() {
        return on_kernels(&args.kernel, first, args.append.as_deref());
    }
    let mut failures = Vec::new();
    let mut note = |name: &str, result: Result<()>| {
        if let Err(error) = result {
            failures.push(format!("{name}: {error:#}"));
        }
    };
    for program in &others {
        note(&program.name, program.run());
    }
    note("documentation", process::run(&mut cargo_test(&["--doc"])));
    for program in privileged.iter().filter(|_| !args.without_privileged) {
        note(&program.name, program.run_as_root());
    }
    conclude(&failures, args)
}

/// Privileged tests on other kernels.
fn on_kernels(wanted: &[Kernel], privileged: &TestProgram, append: Option<&str>) -> Result<()> {
    // The executables that tests start are two folders up from the tests.
    let folder = privileged
        .path
        .parent()
        .and_then(Path::parent)
        .context("the tests are in no folder")?;
    let others = ["ctxtrace", "ctxtrace-workload-jemalloc"].map(|name| folder.join(name));
    for &kernel in wanted {
        kernels::test(kernel, &privileged.path, &others, append)?;
    }
    Ok(())
}

/// The last lines: what failed, and what was left out.
fn conclude(failures: &[String], args: &Args) -> Result<()> {
    for failure in failures {
        eprintln!("FAILED {failure}");
    }
    if args.without_privileged {
        eprintln!("PRIVILEGED TESTS WERE NOT RUN (--without-privileged)");
    }
    if !failures.is_empty() {
        bail!("tests failed");
    }
    eprintln!("all tests that were run passed");
    Ok(())
}

/// Builds all test executables.
fn build() -> Result<Vec<TestProgram>> {
    let mut build = cargo_test(&["--no-run", "--message-format=json-render-diagnostics"]);
    process::announce(&build);
    let mut child = build.stdout(Stdio::piped()).spawn().context("cannot run cargo")?;
    let stdout = child.stdout.take().context("cargo has no output")?;
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

/// `cargo test` of everything, with further options.
fn cargo_test(options: &[&str]) -> Command {
    let mut command = process::cargo();
    command
        .current_dir(process::root())
        .args(["test", "--workspace", "--release"])
        .args(options);
    command
}

/// Whether sudo lets us; it may ask for the password, if there is somebody to ask.
fn sudo_works() -> bool {
    let mut sudo = Command::new("sudo");
    if !io::stdin().is_terminal() {
        sudo.arg("--non-interactive");
    }
    let status = sudo.args(["--", "true"]).status();
    status.is_ok_and(|status| status.success())
}
