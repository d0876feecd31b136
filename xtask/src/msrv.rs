//! `cargo xtask msrv`: is the Rust version that we state one that everything can be built with?
//!
//! The dependencies state theirs, and ours can be no lower. Where rustup has that very version the workspace is built with
//! it; elsewhere clippy's `incompatible_msrv` still finds what `std` did not have by then.

use anyhow::{Context as _, Result, bail};
use cargo_metadata::MetadataCommand;
use cargo_metadata::semver::Version;

use crate::process;

/// Checks.
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
        .context("ctxtrace states no rust-version")?;
    let too_new: Vec<String> = metadata
        .packages
        .iter()
        .filter_map(|package| Some((package, package.rust_version.as_ref()?)))
        .filter(|(_, wanted)| **wanted > stated)
        .map(|(package, wanted)| format!("{} {} wants {wanted}", package.name, package.version))
        .collect();
    if !too_new.is_empty() {
        bail!("rust-version is {stated}, and {}", too_new.join(", "));
    }
    eprintln!("no dependency wants more than Rust {stated}");
    build_with(&stated)
}

/// Builds with that toolchain, if it is installed.
fn build_with(stated: &Version) -> Result<()> {
    let toolchain = format!("{}.{}", stated.major, stated.minor);
    let installed = process::output(process::clean("rustup").args(["toolchain", "list"])).unwrap_or_default();
    if !installed.lines().any(|line| line.starts_with(&toolchain)) {
        eprintln!(
            "Rust {toolchain} is not installed, so nothing was built with it: rustup toolchain install {toolchain}"
        );
        return Ok(());
    }
    process::run(process::clean("rustup").current_dir(process::root()).args([
        "run",
        &toolchain,
        "cargo",
        "check",
        "--locked",
        "--target-dir",
        "target/msrv",
    ]))
}
