//! The result as JSON, and the schema it follows.

use crate::analyze::result::Report;
use crate::error::{Error, Result};

/// The result, indented, with a newline at its end.
///
/// # Errors
///
/// If it cannot be serialised, which no result should bring about.
pub fn render(report: &Report) -> Result<Vec<u8>> {
    with_newline(serde_json::to_vec_pretty(report))
}

/// The JSON Schema of `ctxtrace.report/1`.
///
/// # Errors
///
/// As `render`.
pub fn schema() -> Result<Vec<u8>> {
    with_newline(serde_json::to_vec_pretty(&schemars::schema_for!(Report)))
}

fn with_newline(bytes: serde_json::Result<Vec<u8>>) -> Result<Vec<u8>> {
    let mut bytes = bytes.map_err(|error| Error::Render {
        what: "JSON",
        reason: error.to_string(),
    })?;
    bytes.push(b'\n');
    Ok(bytes)
}
