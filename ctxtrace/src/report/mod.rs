//! One result in, bytes out: a file a format, none of which knows how the result came about.
//!
//! * [`table`]: for people, on a terminal.
//! * [`suite`]: the article's table, for people.
//! * [`explain`]: the answer of `explain`, for people.
//! * [`compare`]: two captures side by side, for people.
//! * [`json`]: for programs; the contract.
//! * [`folded`]: stacks as lines, which every flamegraph tool reads.
//! * [`flamegraph`]: the picture (inferno).
//! * [`html`]: all of it as a page, to be looked at.
//! * [`differential`]: two of them in one.
//! * [`parquet`]: tables, for databases (only if the feature of that name is on).
//! * [`perfetto`]: a timeline, for Perfetto.
//! * [`pprof`]: stacks, for pprof and what reads its files.
//! * [`output`]: where the bytes go; every target is opened before the run, and written whole or not at all.

mod budget;
pub mod compare;
#[cfg(test)]
#[path = "../../tests/decode/mod.rs"]
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
pub mod output;
#[cfg(feature = "parquet")]
pub mod parquet;
pub mod perfetto;
pub mod place;
pub mod pprof;
pub mod suite;
pub mod table;

pub(crate) use crate::printable::printable;
use crate::printable::printable_lines;

/// What a flamegraph's widths mean.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum Weight {
    /// Off-CPU time
    Time,
    /// Kernel switches
    Count,
}

/// Columns of a terminal.
const WIDTH: usize = 80;

/// A text in lines that fit a terminal; what comes before the first one, and before the others.
fn wrapped(text: &str, first: &str, rest: &str) -> String {
    let options = textwrap::Options::new(WIDTH)
        .initial_indent(first)
        .subsequent_indent(rest)
        .word_separator(textwrap::WordSeparator::AsciiSpace)
        .word_splitter(textwrap::WordSplitter::NoHyphenation)
        .break_words(false);
    textwrap::fill(&printable_lines(text), options)
}

/// Joins two characters without being seen. Between them GitHub sees no address and no mention, which it looks for in the rendered
/// text, where a backslash is gone.
const WORD_JOINER: char = '\u{2060}';

/// Text for Markdown, outside of code: names in it make no links, mentions, emphasis, code, formulas or HTML.
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

/// A block of text for Markdown as it is, in a fence that is longer than any in it.
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
