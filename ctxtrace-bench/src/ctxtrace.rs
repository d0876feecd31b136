//! Builds and runs ctxtrace, the program that is measured.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result};
use serde_json::Value;

#[cfg(doc)]
use crate::child;
use crate::child::Finished;
use crate::process;

/// Builds ctxtrace and its examples, among them the minimal programs that do the same as the built-in workloads.
pub(crate) fn build() -> Result<()> {
    process::run(process::cargo().current_dir(process::root()).args([
        "build",
        "--release",
        "--package",
        "ctxtrace",
        "--bins",
        "--examples",
    ]))
}

/// Returns the path of the ctxtrace executable.
pub(crate) fn program() -> PathBuf {
    process::root().join("target/release/ctxtrace")
}

/// Returns the path of the executable of `ctxtrace/examples/plain.rs`.
pub(crate) fn plain() -> PathBuf {
    process::root().join("target/release/examples/plain")
}

/// The result of `ctxtrace record` of a command.
pub(crate) struct RecordedSwitches {
    pub(crate) finished: Finished,
    /// The JSON report.
    pub(crate) report: Value,
}

/// Records a command. `run` is [`child::run`] or [`child::run_and_watch`].
pub(crate) fn record(
    options: &[&str],
    words: &[&str],
    run: fn(&mut Command) -> Result<Finished>,
) -> Result<RecordedSwitches> {
    let folder = tempfile::tempdir().context("cannot create a temporary folder")?;
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
    Ok(RecordedSwitches {
        finished,
        report: read(&json)?,
    })
}

/// Reads a report.
pub(crate) fn read(json: &Path) -> Result<Value> {
    let text = std::fs::read_to_string(json).context("cannot read the report of ctxtrace")?;
    serde_json::from_str(&text).context("the report of ctxtrace is not valid JSON")
}

/// Returns the number at a JSON pointer in a report.
pub(crate) fn number(report: &Value, pointer: &str) -> Result<f64> {
    let number = report.pointer(pointer).and_then(Value::as_f64);
    number.with_context(|| format!("the report has no number at {pointer}"))
}
