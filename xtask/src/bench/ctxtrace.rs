//! The program that is measured, as it was built for it.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result};
use serde_json::Value;

#[cfg(doc)]
use super::child;
use super::child::Finished;
use crate::process;

/// Builds ctxtrace, and the plainest programs that do what its workloads do.
pub(super) fn build() -> Result<()> {
    process::run(process::cargo().current_dir(process::root()).args([
        "build",
        "--release",
        "--package",
        "ctxtrace",
        "--bins",
        "--examples",
    ]))
}

/// ctxtrace's executable.
pub(super) fn program() -> PathBuf {
    process::root().join("target/release/ctxtrace")
}

/// The executable of `ctxtrace/examples/plain.rs`.
pub(super) fn plain() -> PathBuf {
    process::root().join("target/release/examples/plain")
}

/// What `ctxtrace record` of a command gave.
pub(super) struct Recorded {
    pub(super) finished: Finished,
    /// Its `--json`.
    pub(super) report: Value,
}

/// Records a command; `run` is one of those of [`child`].
pub(super) fn record(options: &[&str], words: &[&str], run: fn(&mut Command) -> Result<Finished>) -> Result<Recorded> {
    let folder = tempfile::tempdir().context("cannot make a temporary folder")?;
    let json = folder.path().join("report.json");
    let mut command = Command::new(program());
    command
        .arg("record")
        .args(options)
        .arg("--json")
        .arg(&json)
        .arg("--")
        .args(words);
    let finished = run(&mut command)?;
    Ok(Recorded {
        finished,
        report: read(&json)?,
    })
}

/// Reads a report.
pub(super) fn read(json: &Path) -> Result<Value> {
    let text = std::fs::read_to_string(json).context("ctxtrace wrote no report")?;
    serde_json::from_str(&text).context("ctxtrace wrote no JSON")
}

/// A number in a report.
pub(super) fn number(report: &Value, pointer: &str) -> Result<f64> {
    let number = report.pointer(pointer).and_then(Value::as_f64);
    number.with_context(|| format!("the report has no {pointer}"))
}
