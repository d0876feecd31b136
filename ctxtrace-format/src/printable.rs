//! Makes untrusted text safe to print: names of threads and functions, all text in a capture, and messages that quote it.

/// The character that every harmful character is replaced with.
const REPLACEMENT: char = '\u{fffd}';

/// Whether the character could control a terminal or change the layout of a page: control characters (ASCII and C1, including
/// line breaks), line and paragraph separators, and characters that change the direction of text or mark annotations or tags.
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

/// Returns a name, or a text of one line, with every harmful character replaced, including line breaks.
#[must_use]
pub fn printable(text: &str) -> String {
    text.chars()
        .map(|c| if is_harmful(c) { REPLACEMENT } else { c })
        .collect()
}

/// Returns a text of several lines with every harmful character replaced except its line breaks.
#[must_use]
pub fn printable_lines(text: &str) -> String {
    text.chars()
        .map(|c| if c != '\n' && is_harmful(c) { REPLACEMENT } else { c })
        .collect()
}

/// Cuts a name to at most `most` bytes. A name that was cut ends with `…`.
pub fn cut_name(mut name: String, most: usize) -> String {
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
