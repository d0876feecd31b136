//! The one place where text leaves for standard output and standard error.
//!
//! Every table, message, notice and error goes through [`write_text`], which replaces what a terminal would act on, whatever
//! the text is made of; so a new message cannot forget it. `clippy.toml` allows the streams themselves nowhere else. What is no
//! text for people (`--json -`) goes through [`data_output`], and its format escapes for itself.
#![expect(clippy::disallowed_methods, reason = "the one place that writes to the streams")]

use std::borrow::Cow;
use std::io::{self, IsTerminal, StdoutLock, Write};

use crate::printable::{is_harmful, printable_lines};

/// The sequences by which the tool itself styles text: bold, dim, red, and their end.
pub const BOLD: &str = "\x1b[1m";
/// See [`BOLD`].
pub const DIM: &str = "\x1b[2m";
/// See [`BOLD`].
pub const RED: &str = "\x1b[1;31m";
/// See [`BOLD`].
pub const RESET: &str = "\x1b[0m";

const STYLES: [&str; 4] = [BOLD, DIM, RED, RESET];

/// A stream of the process.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stream {
    /// Standard output.
    Output,
    /// Standard error.
    Error,
}

impl Stream {
    /// Whether it is a terminal.
    #[must_use]
    pub fn is_terminal(self) -> bool {
        match self {
            Self::Output => io::stdout().is_terminal(),
            Self::Error => io::stderr().is_terminal(),
        }
    }
}

/// Whether a text may have the sequences of the tool's own styles.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Styles {
    /// They pass.
    Kept,
    /// They are escaped like all others.
    Escaped,
}

/// Writes a text for people, with all that a terminal would act on replaced.
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

/// Writes a line to standard error. If standard error is gone, the exit status has to do.
pub fn write_notice(line: &str) {
    let _ = write_text(Stream::Error, &format!("{line}\n"), Styles::Escaped);
}

/// Standard output, for a format that is read by programs and escapes for itself.
pub fn data_output() -> StdoutLock<'static> {
    io::stdout().lock()
}

/// Prints the help or the version, which hold nothing from outside, or what is wrong with the command line, which may.
pub fn print_usage(error: &clap::Error) {
    if error.use_stderr() {
        let _ = write_text(Stream::Error, &error.render().to_string(), Styles::Escaped);
    } else {
        let _ = error.print();
    }
}

/// The text as it may be written.
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
