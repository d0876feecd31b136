//! `cargo xtask fuzz`: runs every target of `fuzz/` for a while.
//!
//! The folder has the layout of `cargo fuzz`, so that tool works too. This command passes the same flags to a plain build, so a
//! stable toolchain is enough: LLVM instruments the code for the coverage that libFuzzer needs, and for nothing else. Inputs that
//! make a target fail are kept in `target/fuzz/failures`. Turn each into a regression test before you fix the fault.

use std::ffi::OsString;
use std::fs;

use anyhow::{Context as _, Result, bail};
use cargo_metadata::{MetadataCommand, TargetKind};

use crate::process;

/// The compiler flags that instrument branches and comparisons for libFuzzer.
const FLAGS: &str = "-Cpasses=sancov-module -Cllvm-args=-sanitizer-coverage-level=4 \
    -Cllvm-args=-sanitizer-coverage-inline-8bit-counters -Cllvm-args=-sanitizer-coverage-pc-table \
    -Cllvm-args=-sanitizer-coverage-trace-compares -Ccodegen-units=16 --cfg fuzzing";

/// The target triple. It is passed explicitly, so that the flags do not apply to build scripts.
const MACHINE: &str = "x86_64-unknown-linux-gnu";

/// The options of `fuzz`.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// Seconds to run each target
    #[arg(long, value_name = "N", default_value_t = 60)]
    seconds: u64,
    /// The seed of the random alterations, so that a run tries the same inputs as an earlier one; a new one for each run if it is
    /// not given
    #[arg(long, value_name = "N")]
    seed: Option<u32>,
    /// Run only these targets
    #[arg(value_name = "TARGET")]
    targets: Vec<String>,
}

/// Builds all targets and runs one after the other, even if one of them fails.
pub(crate) fn main(args: &Args) -> Result<()> {
    let manifest = process::root().join("fuzz/Cargo.toml");
    let metadata = MetadataCommand::new()
        .manifest_path(&manifest)
        .no_deps()
        .exec()
        .context("cargo cannot read the fuzz targets")?;
    let package = metadata.root_package().context("fuzz/Cargo.toml has no package")?;
    let known: Vec<&str> = package
        .targets
        .iter()
        .filter(|target| target.kind.contains(&TargetKind::Bin))
        .map(|target| target.name.as_str())
        .collect();
    if let Some(unknown) = args.targets.iter().find(|name| !known.contains(&name.as_str())) {
        bail!(
            "there is no fuzz target `{unknown}`; the targets are {}",
            known.join(", ")
        );
    }
    let folder = process::root().join("target/fuzz");
    let mut build = process::cargo();
    build
        .env("RUSTFLAGS", FLAGS)
        .args(["build", "--release", "--locked", "--target", MACHINE, "--manifest-path"])
        .arg(&manifest)
        .arg("--target-dir")
        .arg(&folder);
    process::run(&mut build)?;
    let mut failures = Vec::new();
    for name in known {
        if !args.targets.is_empty() && !args.targets.iter().any(|wanted| wanted == name) {
            continue;
        }
        let (found, kept) = (folder.join("found").join(name), folder.join("failures").join(name));
        fs::create_dir_all(&found)?;
        fs::create_dir_all(&kept)?;
        let mut prefix = OsString::from("-artifact_prefix=");
        prefix.push(kept.join(""));
        let mut fuzzer = process::clean(folder.join(MACHINE).join("release").join(name));
        fuzzer
            .args([
                "-rss_limit_mb=4096",
                "-timeout=30",
                "-print_final_stats=1",
                "-verbosity=1",
            ])
            .arg(format!("-max_total_time={}", args.seconds))
            .args(args.seed.map(|seed| format!("-seed={seed}")))
            .arg(prefix)
            .arg(&found)
            .arg(process::root().join("fuzz/seeds").join(name));
        if let Err(error) = process::run(&mut fuzzer) {
            failures.push(format!(
                "{error:#}; the input that made it fail is in {}",
                kept.display()
            ));
        }
    }
    if !failures.is_empty() {
        bail!("{}", failures.join("\n"));
    }
    Ok(())
}
