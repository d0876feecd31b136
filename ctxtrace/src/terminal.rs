//! The only module that writes to standard output and standard error.
//!
//! Every table, message, notice and error is written with [`write_text`], which replaces all characters that could control a
//! terminal, so no message can omit this step. `clippy.toml` forbids the use of the streams elsewhere. Output for programs
//! (`--json -`) is written to [`data_output`]; its format does its own escaping.
#![expect(clippy::disallowed_methods, reason = "the only module that writes to the streams")]

use std::borrow::Cow;
use std::io::{self, IsTerminal, StdoutLock, Write};

use ctxtrace_format::printable::{is_harmful, printable_lines};
use ctxtrace_report::style::STYLES;

/// A standard stream of this process.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stream {
    /// Standard output.
    Output,
    /// Standard error.
    Error,
}

impl Stream {
    /// Whether the stream is a terminal.
    #[must_use]
    pub fn is_terminal(self) -> bool {
        match self {
            Self::Output => io::stdout().is_terminal(),
            Self::Error => io::stderr().is_terminal(),
        }
    }
}

/// Whether a text may contain the tool's own style sequences ([`ctxtrace_report::style`]).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Styles {
    /// The tool's own style sequences are written unchanged.
    Kept,
    /// All escape characters are replaced.
    Escaped,
}

/// Writes a text for people, with all characters replaced that could control a terminal.
///
/// # Errors
///
/// If the stream cannot be written to.
pub fn write_text(to: Stream, text: &str, styles: Styles) -> io::Result<()> {
    let text = harmless(text, styles);
    match to {
        Stream::Output => {
            let mut stdout = io::stdout().lock();
            stdout.write_all(text.as_bytes())?;
            stdout.flush()
        }
        Stream::Error => io::stderr().write_all(text.as_bytes()),
    }
}

/// Writes a line to standard error. Errors of the write are ignored; the exit status still shows a failure.
pub fn write_notice(line: &str) {
    let _ = write_text(Stream::Error, &format!("{line}\n"), Styles::Escaped);
}

/// Returns standard output, for a format that is read by programs and does its own escaping.
pub fn data_output() -> StdoutLock<'static> {
    io::stdout().lock()
}

/// Prints the help, the version, or the error in the command line. Only the error can contain untrusted text, so only the error
/// is escaped.
pub fn print_usage(error: &clap::Error) {
    if error.use_stderr() {
        let _ = write_text(Stream::Error, &error.render().to_string(), Styles::Escaped);
    } else {
        let _ = error.print();
    }
}

/// Returns the text with all harmful characters replaced, except line breaks and, if `styles` allows them, style sequences.
#[must_use]
pub fn harmless(text: &str, styles: Styles) -> Cow<'_, str> {
    if !text.chars().any(|c| c != '\n' && is_harmful(c)) {
        return Cow::Borrowed(text);
    }
    if styles == Styles::Escaped {
        return Cow::Owned(printable_lines(text));
    }
    let mut written = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(at) = rest.find('\x1b') {
        written += &printable_lines(&rest[..at]);
        rest = &rest[at..];
        let style = STYLES.into_iter().find(|style| rest.starts_with(style));
        let length = match style {
            Some(style) => {
                written += style;
                style.len()
            }
            None => {
                written += &printable_lines("\x1b");
                1
            }
        };
        rest = &rest[length..];
    }
    written += &printable_lines(rest);
    Cow::Owned(written)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_tools_own_styles_reach_a_terminal() {
        let text = "\x1b[1mbold\x1b[0m \x1b]0;title\x07 \x1b[2J\u{9b}31m\u{202e}\r\nnext\x1b";
        assert_eq!(
            harmless(text, Styles::Kept),
            "\x1b[1mbold\x1b[0m \u{fffd}]0;title\u{fffd} \u{fffd}[2J\u{fffd}31m\u{fffd}\u{fffd}\nnext\u{fffd}"
        );
        assert!(!harmless(text, Styles::Escaped).contains('\x1b'));
        assert!(matches!(harmless("plain\ntext", Styles::Escaped), Cow::Borrowed(_)));
    }
}
