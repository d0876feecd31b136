//! Runs a chore that is a crate of its own, so that the other chores do not wait until its dependencies are compiled.

use std::ffi::OsString;
use std::os::unix::process::CommandExt as _;

use anyhow::{Context as _, Result};

use crate::process;

/// The options of a chore that parses them itself, `--help` too.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// Options of the benchmarks; `--help` lists them
    #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
    pub(crate) args: Vec<OsString>,
}

/// Builds the crate of a chore with these options of cargo, and runs its program. Returns only on failure: otherwise this process
/// becomes cargo and then the program, so that the program receives the signals and its exit status is passed on.
pub(crate) fn main(options: &[&str], args: &[OsString]) -> Result<()> {
    let mut run = process::cargo();
    // The working folder stays, because arguments may be relative paths.
    run.args(["run", "--manifest-path"])
        .arg(process::root().join("Cargo.toml"))
        .args(options)
        .arg("--")
        .args(args);
    process::announce(&run);
    Err(run.exec()).context("cannot run cargo")
}
