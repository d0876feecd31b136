//! Text from outside, made harmless: names of threads and functions, whatever a capture holds, and what is said of it.

/// What stands in the place of a character that is not shown.
const REPLACEMENT: char = '\u{fffd}';

/// Whether a terminal, or the layout of a page, could act on this character: controls (those of ASCII and of C1, line breaks
/// included), the separators of lines and paragraphs, and what changes the direction of text or marks text as an annotation.
#[must_use]
pub fn is_harmful(c: char) -> bool {
    c.is_control()
        || matches!(
            c,
            '\u{061c}'
                | '\u{200e}'
                | '\u{200f}'
                | '\u{2028}'..='\u{202e}'
                | '\u{2066}'..='\u{2069}'
                | '\u{fff9}'..='\u{fffb}'
                | '\u{e0000}'..='\u{e007f}'
        )
}

/// A name, or a text in one line, with every harmful character replaced, line breaks included.
#[must_use]
pub fn printable(text: &str) -> String {
    text.chars()
        .map(|c| if is_harmful(c) { REPLACEMENT } else { c })
        .collect()
}

/// A text of several lines with every harmful character replaced but its line breaks.
#[must_use]
pub fn printable_lines(text: &str) -> String {
    text.chars()
        .map(|c| if c != '\n' && is_harmful(c) { REPLACEMENT } else { c })
        .collect()
}

/// A name of at most `most` bytes. A longer one ends with `…` in place of what is cut off.
pub(crate) fn cut_name(mut name: String, most: usize) -> String {
    const MARK: char = '…';
    if name.len() > most {
        let mut end = most - MARK.len_utf8();
        while !name.is_char_boundary(end) {
            end -= 1;
        }
        name.truncate(end);
        name.push(MARK);
        name.shrink_to_fit();
    }
    name
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_a_terminal_acts_on_gets_through() {
        assert_eq!(printable("a\x1b[31mb\nc\u{202e}d"), "a\u{fffd}[31mb\u{fffd}c\u{fffd}d");
        assert_eq!(
            printable("\u{9b}2J\u{61c}\u{2028}\u{7f}"),
            "\u{fffd}2J\u{fffd}\u{fffd}\u{fffd}"
        );
        assert_eq!(printable("tokio-rt-worker"), "tokio-rt-worker");
        assert_eq!(printable_lines("a\nb\rc"), "a\nb\u{fffd}c");
    }
}
