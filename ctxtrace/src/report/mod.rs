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
pub mod pprof;
pub mod suite;
pub mod table;

/// What a flamegraph's widths mean.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum Weight {
    /// Off-CPU time
    Time,
    /// Kernel switches
    Count,
}

/// Text that comes from outside (thread names, symbols) with everything a terminal or a parser could act on replaced.
#[must_use]
pub fn printable(text: &str) -> String {
    // Bidirectional controls are no control characters to Unicode, and can reorder what is shown.
    let harmless = |c: char| {
        !c.is_control() && !matches!(c, '\u{200e}' | '\u{200f}' | '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}')
    };
    text.chars().map(|c| if harmless(c) { c } else { '\u{fffd}' }).collect()
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
    textwrap::fill(text, options)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_a_terminal_acts_on_gets_through() {
        assert_eq!(printable("a\x1b[31mb\nc\u{202e}d"), "a\u{fffd}[31mb\u{fffd}c\u{fffd}d");
        assert_eq!(printable("tokio-rt-worker"), "tokio-rt-worker");
    }
}
