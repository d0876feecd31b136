//! `cargo xtask vendor-web`: builds the JavaScript libraries of the HTML report from the npm packages that `ctxtrace-report/web/vendor`
//! pins.
//!
//! The libraries are committed with their licences and checksums, so that building ctxtrace needs neither node nor a network. npm
//! checks each package against the hash in the lock file, and no scripts of packages are run. The files of uPlot are copied;
//! esbuild bundles the flamegraph and the parts of d3 that it uses into one file, reproducibly.

use std::fmt::Write as _;
use std::fs;
use std::path::Path;

use anyhow::{Context as _, Result, bail};
use sha2::{Digest, Sha256};

use crate::process;

/// The options of `vendor-web`.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// Change nothing, and fail if the committed files differ from freshly built ones
    #[arg(long)]
    check: bool,
}

/// The files that pin the packages, and the source of the flamegraph bundle.
const SOURCES: [&str; 3] = ["package.json", "package-lock.json", "flamegraph.mjs"];
/// The files that are embedded in the HTML report.
const BUNDLES: [&str; 3] = ["flamegraph.min.js", "uplot.min.css", "uplot.min.js"];
const LICENCES: &str = "LICENCES.txt";
const SUMS: &str = "SHA256SUMS";

/// Builds the files, and compares them with the committed ones or replaces these.
pub(crate) fn main(args: &Args) -> Result<()> {
    if process::programs("npm").is_empty() {
        bail!("npm is not on PATH: install Node.js and npm (Debian: apt install nodejs npm)");
    }
    let folder = process::root().join("ctxtrace-report/web/vendor");
    let work = process::root().join("target/vendor-web");
    fs::create_dir_all(&work).with_context(|| format!("cannot create {}", work.display()))?;
    for name in SOURCES {
        fs::copy(folder.join(name), work.join(name)).with_context(|| format!("cannot copy {name}"))?;
    }
    make(&work)?;
    let mut different = Vec::new();
    for name in BUNDLES.into_iter().chain([LICENCES, SUMS]) {
        let made = fs::read(work.join(name)).with_context(|| format!("{name} was not made"))?;
        if args.check {
            if fs::read(folder.join(name)).ok().as_ref() != Some(&made) {
                different.push(name);
            }
        } else {
            fs::write(folder.join(name), made).with_context(|| format!("cannot write {name}"))?;
        }
    }
    if !different.is_empty() {
        bail!(
            "these files differ from what the pinned packages give: {}; run `cargo xtask vendor-web` to rebuild them",
            different.join(", ")
        );
    }
    eprintln!("the {} bundles are up to date", BUNDLES.len());
    Ok(())
}

fn make(work: &Path) -> Result<()> {
    let mut install = process::clean("npm");
    install
        .args(["ci", "--ignore-scripts", "--no-audit", "--no-fund"])
        .current_dir(work);
    process::run(&mut install)?;
    let mut bundle = process::clean(work.join("node_modules/.bin/esbuild"));
    bundle
        .args([
            "flamegraph.mjs",
            "--bundle",
            "--minify",
            "--format=iife",
            "--global-name=d3",
        ])
        .args([
            "--target=es2020",
            "--charset=utf8",
            "--legal-comments=none",
            "--log-level=warning",
        ])
        .arg("--outfile=flamegraph.min.js")
        .current_dir(work);
    process::run(&mut bundle)?;
    for (from, to) in [
        ("uPlot.iife.min.js", "uplot.min.js"),
        ("uPlot.min.css", "uplot.min.css"),
    ] {
        fs::copy(work.join("node_modules/uplot/dist").join(from), work.join(to))
            .with_context(|| format!("uPlot has no {from}"))?;
    }
    fs::write(work.join(LICENCES), licences(&work.join("node_modules"))?)?;
    let mut sums = String::new();
    for name in BUNDLES.into_iter().chain([LICENCES]) {
        let hash = Sha256::digest(fs::read(work.join(name))?);
        let hex = hash.iter().fold(String::new(), |mut hex, byte| {
            let _ = write!(hex, "{byte:02x}");
            hex
        });
        let _ = writeln!(sums, "{hex}  {name}");
    }
    fs::write(work.join(SUMS), sums)?;
    Ok(())
}

/// Returns the licences of all packages in the bundles, which are all installed packages except for the bundler.
fn licences(packages: &Path) -> Result<String> {
    let mut names: Vec<String> = fs::read_dir(packages)?
        .filter_map(|entry| entry.ok()?.file_name().into_string().ok())
        .filter(|name| !name.starts_with(['.', '@']) && name != "esbuild")
        .collect();
    names.sort();
    let mut text = String::new();
    for name in names {
        let folder = packages.join(&name);
        let about = fs::read_to_string(folder.join("package.json"))?;
        let version = about
            .lines()
            .find_map(|line| line.trim().strip_prefix("\"version\": \"")?.split('"').next())
            .with_context(|| format!("{name} has no version"))?;
        let licence = ["LICENSE", "LICENSE.md", "LICENCE"]
            .iter()
            .find_map(|file| fs::read_to_string(folder.join(file)).ok());
        let licence = licence.with_context(|| format!("the package {name} contains no licence"))?;
        let _ = writeln!(text, "== {name} {version} ==\n\n{}\n", licence.trim());
    }
    Ok(text)
}
