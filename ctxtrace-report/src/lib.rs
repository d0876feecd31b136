//! Renders results as bytes. Each output format has its own file or folder, which does not depend on how the result was computed.
//!
//! * [`table`]: the report as text for a terminal.
//! * [`suite`]: the table of `suite`, as text and as Markdown.
//! * [`explain`]: the answer of `explain`, as text and as Markdown.
//! * [`compare`]: two captures side by side, as text and as Markdown.
//! * [`doctor`]: the findings of `doctor`, as text.
//! * [`words`]: words and quantities that several formats share.
//! * [`style`]: the escape sequences of the texts for a terminal.
//! * [`json`]: results for programs. The schema is a contract with its readers.
//! * [`folded`]: stacks as lines of text, the input format of flamegraph tools.
//! * [`flamegraph`]: a flamegraph as SVG, drawn by the library inferno.
//! * [`differential`]: the difference of two flamegraphs as SVG.
//! * [`html`]: the whole report as one HTML page.
//! * [`parquet`]: tables for databases (only with the Cargo feature `parquet`).
//! * [`perfetto`]: a timeline for the trace viewer Perfetto.
//! * [`pprof`]: stacks as a pprof profile.

#![warn(clippy::print_stdout, clippy::print_stderr)]

mod budget;
pub mod compare;
#[cfg(test)]
#[path = "../tests/decode/mod.rs"]
mod decode;
pub mod differential;
pub mod doctor;
pub mod explain;
pub mod flamegraph;
pub mod folded;
#[cfg(test)]
mod golden;
pub mod html;
pub mod json;
#[cfg(feature = "parquet")]
pub mod parquet;
pub mod perfetto;
pub mod pprof;
pub mod style;
pub mod suite;
pub mod table;
pub mod words;

use ctxtrace_format::printable::{printable, printable_lines};

/// A result that cannot be rendered.
#[derive(Debug, thiserror::Error)]
#[error("cannot render the {what}: {reason}")]
pub struct RenderError {
    /// The output format.
    pub what: &'static str,
    /// Why the format cannot be rendered.
    pub reason: String,
}

/// The quantity that the widths in a flamegraph show.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[cfg_attr(feature = "clap", derive(clap::ValueEnum))]
pub enum Weight {
    /// Off-CPU time
    Time,
    /// Kernel switches
    Count,
}

/// Width of all text output, in columns. Longer text is wrapped.
const WIDTH: usize = 80;

/// Wraps a text into lines that fit [`WIDTH`]. `first` is put before the first line, `rest` before the others.
fn wrapped(text: &str, first: &str, rest: &str) -> String {
    let options = textwrap::Options::new(WIDTH)
        .initial_indent(first)
        .subsequent_indent(rest)
        .word_separator(textwrap::WordSeparator::AsciiSpace)
        .word_splitter(textwrap::WordSplitter::NoHyphenation)
        .break_words(false);
    textwrap::fill(&printable_lines(text), options)
}

/// U+2060, which joins two characters and is invisible. GitHub searches the rendered text, in which backslashes are already gone,
/// for addresses and mentions, and does not recognise one that contains this character.
const WORD_JOINER: char = '\u{2060}';

/// Escapes text for Markdown, outside of code: no part of it becomes a link, a mention, emphasis, code, a formula or HTML.
#[must_use]
fn markdown_text(text: &str) -> String {
    let mut escaped = String::with_capacity(text.len());
    for (at, c) in text.char_indices() {
        if matches!(
            c,
            '\\' | '`' | '*' | '_' | '~' | '$' | '|' | '[' | ']' | '<' | '>' | '&'
        ) {
            escaped.push('\\');
        }
        escaped.push(c);
        let (before, after) = (&text[..at], &text[at + c.len_utf8()..]);
        let makes_a_link = match c {
            '@' | '#' => true,
            ':' => after.starts_with("//"),
            'w' | 'W' => after.starts_with('.') && before.to_ascii_lowercase().ends_with("ww"),
            '-' => before.to_ascii_lowercase().ends_with("gh"),
            _ => false,
        };
        if makes_a_link {
            escaped.push(WORD_JOINER);
        }
    }
    escaped
}

/// Puts a block of text into a Markdown code fence, unchanged. The fence is longer than any run of backticks that begins a line
/// of the block.
#[must_use]
fn fenced(block: &str) -> String {
    let longest = block
        .lines()
        .map(|line| line.trim_start().chars().take_while(|&c| c == '`').count())
        .max();
    let fence = "`".repeat(longest.map_or(3, |longest| (longest + 1).max(3)));
    format!("{fence}text\n{block}\n{fence}\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_makes_no_markdown() {
        assert_eq!(
            markdown_text("![x](http://y) <b>*`&amp;"),
            "!\\[x\\](http:\u{2060}//y) \\<b\\>\\*\\`\\&amp;"
        );
        assert_eq!(
            markdown_text("@user a@b.org www.x.org WWW.x #1 GH-1 o/r#2 ~~x~~ _y_ $z$"),
            "@\u{2060}user a@\u{2060}b.org www\u{2060}.x.org WWW\u{2060}.x #\u{2060}1 GH-\u{2060}1 o/r#\u{2060}2 \\~\\~x\\~\\~ \
             \\_y\\_ \\$z\\$"
        );
        assert_eq!(markdown_text("task-pool, buffer 4,096"), "task-pool, buffer 4,096");
    }

    #[test]
    fn a_name_does_not_end_the_fence_it_is_in() {
        assert_eq!(fenced("a\nb"), "```text\na\nb\n```\n");
        assert_eq!(fenced("a\n  ````\nb"), "`````text\na\n  ````\nb\n`````\n");
    }
}
