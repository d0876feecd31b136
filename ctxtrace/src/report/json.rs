//! The result as JSON, and the schema it follows.

use schemars::JsonSchema;
use serde::Serialize;

use crate::error::{Error, Result};

/// The result, indented, with a newline at its end.
///
/// # Errors
///
/// If it cannot be serialised, which no result should bring about.
pub fn render(result: &impl Serialize) -> Result<Vec<u8>> {
    with_newline(serde_json::to_vec_pretty(result))
}

/// The JSON Schema of a kind of result.
///
/// # Errors
///
/// As `render`.
pub fn schema<T: JsonSchema>() -> Result<Vec<u8>> {
    with_newline(serde_json::to_vec_pretty(&schemars::schema_for!(T)))
}

fn with_newline(bytes: serde_json::Result<Vec<u8>>) -> Result<Vec<u8>> {
    let mut bytes = bytes.map_err(|error| Error::Render {
        what: "JSON",
        reason: error.to_string(),
    })?;
    bytes.push(b'\n');
    Ok(bytes)
}
