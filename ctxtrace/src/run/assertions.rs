//! `--assert`, after the run: what does not hold is told on standard error.

use crate::analyze::assertion::Assertion;
use crate::analyze::result::Report;
use crate::error::{Error, Result};
use crate::report::printable;
use crate::terminal::write_notice;
use crate::units::thousands;

/// Judges every assertion, tells each that does not hold (or, in one line, that all do), and returns whether all do. That they do is not
/// told if `quiet`.
///
/// # Errors
///
/// If the report cannot be made into JSON, which no report should bring about.
pub(super) fn all_hold(assertions: &[Assertion], report: &Report, quiet: bool) -> Result<bool> {
    if assertions.is_empty() {
        return Ok(true);
    }
    let report = serde_json::to_value(report).map_err(|error| Error::Render {
        what: "JSON",
        reason: error.to_string(),
    })?;
    let mut all_hold = true;
    for assertion in assertions {
        if let Err(not_met) = assertion.evaluate(&report) {
            all_hold = false;
            tell(&format!("`{assertion}` does not hold: {not_met}"));
        }
    }
    if all_hold && !quiet {
        match assertions.len() {
            1 => tell("the assertion holds"),
            number => tell(&format!("{} assertions hold", thousands(number as u64))),
        }
    }
    Ok(all_hold)
}

/// Nobody is there to be told if standard error is gone; the exit status says it too.
fn tell(sentence: &str) {
    write_notice(&format!("ctxtrace: {}", printable(sentence)));
}
