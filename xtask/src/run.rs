//! `cargo xtask run -- ARGS`: builds ctxtrace as the user, and runs it as root.

use std::ffi::OsString;
use std::os::unix::process::CommandExt as _;

use anyhow::{Context as _, Result};

use crate::{process, workspace};

/// The options of `run`.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// Build without optimization, which is faster; do not trust the figures of such a build
    #[arg(long)]
    debug: bool,
    /// Arguments of ctxtrace
    #[arg(last = true)]
    args: Vec<OsString>,
}

/// Builds and runs ctxtrace. Returns only on failure: otherwise this process becomes ctxtrace, so that it receives the signals and
/// its exit status is passed on.
pub(crate) fn main(args: &Args) -> Result<()> {
    let mut build = process::cargo();
    build.current_dir(process::root());
    build.args(["build", "--package", "ctxtrace"]);
    build.args((!args.debug).then_some("--release"));
    process::run(&mut build)?;

    let profile = if args.debug { "debug" } else { "release" };
    let target = workspace::metadata()?.target_directory;
    let mut ctxtrace = process::as_root(target.join(profile).join("ctxtrace"));
    ctxtrace.args(&args.args);
    process::announce(&ctxtrace);
    Err(ctxtrace.exec()).context("cannot run ctxtrace")
}
