//! `cargo xtask msrv`: checks that the `rust-version` of the workspace is sufficient.
//!
//! It must not be lower than the `rust-version` of any dependency. If rustup has that version, the workspace is checked with it.
//! Without it, clippy's `incompatible_msrv` still finds uses of newer parts of `std`.

use anyhow::{Context as _, Result, bail};
use cargo_metadata::MetadataCommand;
use cargo_metadata::semver::Version;

use crate::process;

/// Compares the versions, and checks the workspace with the stated version if it is installed.
pub(crate) fn main() -> Result<()> {
    let metadata = MetadataCommand::new()
        .manifest_path(process::root().join("Cargo.toml"))
        .other_options(vec!["--locked".to_owned()])
        .exec()
        .context("cargo cannot read the workspace")?;
    let ours = metadata.workspace_packages();
    let stated = ours
        .iter()
        .find(|package| package.name.as_str() == "ctxtrace")
        .and_then(|package| package.rust_version.clone())
        .context("the package ctxtrace has no rust-version")?;
    let too_new: Vec<String> = metadata
        .packages
        .iter()
        .filter_map(|package| Some((package, package.rust_version.as_ref()?)))
        .filter(|(_, wanted)| **wanted > stated)
        .map(|(package, wanted)| format!("{} {} needs {wanted}", package.name, package.version))
        .collect();
    if !too_new.is_empty() {
        bail!("rust-version is {stated}, but {}", too_new.join(", "));
    }
    eprintln!("no dependency needs a newer Rust than {stated}");
    build_with(&stated)
}

/// Checks the workspace with this toolchain, if it is installed.
fn build_with(stated: &Version) -> Result<()> {
    let toolchain = format!("{}.{}", stated.major, stated.minor);
    let installed = process::output(process::clean("rustup").args(["toolchain", "list"])).unwrap_or_default();
    if !installed.lines().any(|line| line.starts_with(&toolchain)) {
        eprintln!(
            "Rust {toolchain} is not installed, so the workspace was not checked with it; install it with `rustup toolchain install {toolchain}`"
        );
        return Ok(());
    }
    process::run(process::clean("rustup").current_dir(process::root()).args([
        "run",
        &toolchain,
        "cargo",
        "check",
        "--workspace",
        "--locked",
        "--target-dir",
        "target/msrv",
    ]))
}
