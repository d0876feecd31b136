//! `cargo xtask run -- ARGS`: builds ctxtrace as the user, and runs it as root.

use std::ffi::OsString;
use std::os::unix::process::CommandExt as _;

use anyhow::{Context as _, Result};

use crate::process;

/// The options of `run`.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// Build without optimisation: quicker to build, but its figures are not to be trusted
    #[arg(long)]
    debug: bool,
    /// What ctxtrace is run with
    #[arg(last = true)]
    args: Vec<OsString>,
}

/// Builds and runs. Only returns where that fails: otherwise this process becomes ctxtrace, so that its exit status and
/// the signals it gets are its own.
pub(crate) fn main(args: &Args) -> Result<()> {
    let mut build = process::cargo();
    build.current_dir(process::root());
    build.args(["build", "--package", "ctxtrace"]);
    build.args((!args.debug).then_some("--release"));
    process::run(&mut build)?;

    let profile = if args.debug { "debug" } else { "release" };
    let target = process::workspace()?.target_directory;
    let mut ctxtrace = process::as_root(target.join(profile).join("ctxtrace"));
    ctxtrace.args(&args.args);
    process::announce(&ctxtrace);
    Err(ctxtrace.exec()).context("cannot run ctxtrace")
}
