//! Renders results as JSON, and the schemas that they follow.
//!
//! Characters that a terminal would act on (control characters, including those of C1, and characters that change the direction
//! of text) are written as `\u` escapes. So a terminal that shows the JSON is safe, and a program that parses it gets every text
//! unchanged.

use std::io::{self, Write};

use schemars::JsonSchema;
use serde::Serialize;
use serde_json::ser::{Formatter, PrettyFormatter, Serializer};

use crate::RenderError;
use ctxtrace_format::printable::is_harmful;

/// Renders a result as indented JSON with a newline at the end.
///
/// # Errors
///
/// If the result cannot be serialised. No result should cause this.
pub fn render(result: &impl Serialize) -> Result<Vec<u8>, RenderError> {
    let mut bytes = Vec::new();
    let formatter = EscapingFormatter(PrettyFormatter::new());
    let made = result.serialize(&mut Serializer::with_formatter(&mut bytes, formatter));
    with_newline(made.map(|()| bytes))
}

/// Renders the JSON Schema of a type of result.
///
/// # Errors
///
/// The errors of [`render`].
pub fn schema<T: JsonSchema>() -> Result<Vec<u8>, RenderError> {
    render(&schemars::schema_for!(T))
}

fn with_newline(bytes: serde_json::Result<Vec<u8>>) -> Result<Vec<u8>, RenderError> {
    let mut bytes = bytes.map_err(|error| RenderError {
        what: "JSON",
        reason: error.to_string(),
    })?;
    bytes.push(b'\n');
    Ok(bytes)
}

/// Indents the JSON and escapes the characters that a terminal would act on.
struct EscapingFormatter(PrettyFormatter<'static>);

impl Formatter for EscapingFormatter {
    fn write_string_fragment<W: ?Sized + Write>(&mut self, to: &mut W, fragment: &str) -> io::Result<()> {
        let mut plain = 0;
        for (at, c) in fragment.char_indices().filter(|&(_, c)| is_harmful(c)) {
            to.write_all(&fragment.as_bytes()[plain..at])?;
            for unit in c.encode_utf16(&mut [0; 2]) {
                write!(to, "\\u{unit:04x}")?;
            }
            plain = at + c.len_utf8();
        }
        to.write_all(&fragment.as_bytes()[plain..])
    }

    fn begin_array<W: ?Sized + Write>(&mut self, to: &mut W) -> io::Result<()> {
        self.0.begin_array(to)
    }

    fn end_array<W: ?Sized + Write>(&mut self, to: &mut W) -> io::Result<()> {
        self.0.end_array(to)
    }

    fn begin_array_value<W: ?Sized + Write>(&mut self, to: &mut W, first: bool) -> io::Result<()> {
        self.0.begin_array_value(to, first)
    }

    fn end_array_value<W: ?Sized + Write>(&mut self, to: &mut W) -> io::Result<()> {
        self.0.end_array_value(to)
    }

    fn begin_object<W: ?Sized + Write>(&mut self, to: &mut W) -> io::Result<()> {
        self.0.begin_object(to)
    }

    fn end_object<W: ?Sized + Write>(&mut self, to: &mut W) -> io::Result<()> {
        self.0.end_object(to)
    }

    fn begin_object_key<W: ?Sized + Write>(&mut self, to: &mut W, first: bool) -> io::Result<()> {
        self.0.begin_object_key(to, first)
    }

    fn begin_object_value<W: ?Sized + Write>(&mut self, to: &mut W) -> io::Result<()> {
        self.0.begin_object_value(to)
    }

    fn end_object_value<W: ?Sized + Write>(&mut self, to: &mut W) -> io::Result<()> {
        self.0.end_object_value(to)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_text_comes_back_whole_and_no_terminal_acts_on_it() {
        let text = "\u{9b}31m \u{202e}x\u{7f}\u{e0001} \"\\ \u{1b}]0;t\u{7}\u{85} é→";
        let bytes = render(&[text]).expect("valid JSON");
        let written = String::from_utf8(bytes.clone()).expect("valid UTF-8");
        assert!(!written.chars().any(|c| c != '\n' && is_harmful(c)), "{written:?}");
        let back: Vec<String> = serde_json::from_slice(&bytes).expect("valid JSON");
        assert_eq!(back, [text]);
        assert!(
            written.contains(r"\u009b31m \u202ex") && written.contains("é→"),
            "{written}"
        );
    }
}
