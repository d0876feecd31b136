//! Evaluates `--assert` after the run, and reports the assertions that do not hold on standard error.

use crate::error::Result;
use crate::terminal::write_notice;
use ctxtrace_analysis::assertion::Assertion;
use ctxtrace_analysis::result::Report;
use ctxtrace_analysis::units::thousands;
use ctxtrace_format::printable::printable;
use ctxtrace_report::RenderError;

/// Evaluates all assertions and prints each one that does not hold. If all hold, prints one line, unless `quiet`. Returns whether
/// all hold.
///
/// # Errors
///
/// If the report cannot be converted to JSON, which should not happen.
pub(super) fn all_hold(assertions: &[Assertion], report: &Report, quiet: bool) -> Result<bool> {
    if assertions.is_empty() {
        return Ok(true);
    }
    let report = serde_json::to_value(report).map_err(|error| RenderError {
        what: "JSON",
        reason: error.to_string(),
    })?;
    let mut all_hold = true;
    for assertion in assertions {
        if let Err(not_met) = assertion.evaluate(&report) {
            all_hold = false;
            print_notice(&format!("`{assertion}` does not hold: {not_met}"));
        }
    }
    if all_hold && !quiet {
        match assertions.len() {
            1 => print_notice("the assertion holds"),
            number => print_notice(&format!("{} assertions hold", thousands(number as u64))),
        }
    }
    Ok(all_hold)
}

/// Prints a sentence on standard error; write errors are ignored, because the exit status also has the result.
fn print_notice(sentence: &str) {
    write_notice(&format!("ctxtrace: {}", printable(sentence)));
}
