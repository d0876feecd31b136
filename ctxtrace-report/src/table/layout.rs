//! Fits text into 80 columns: text is wrapped, names are shortened in their middle, and shares and distributions are drawn as
//! small bars.
//!
//! The width is always 80 columns, even on a wider terminal, so that the text looks the same in an issue or a log.

use comfy_table::{CellAlignment, Table, presets};
use textwrap::{Options, WordSplitter, wrap};
use unicode_width::{UnicodeWidthChar as _, UnicodeWidthStr};

pub(super) use crate::WIDTH as COLUMNS;
use ctxtrace_format::printable::{printable, printable_lines};

/// Width of the column of labels; the labelled text begins after it.
const LABEL: usize = 18;
/// Spaces between the columns of a table.
const GAP: usize = 2;
/// Names are never shortened below this many characters, even if the table then exceeds 80 columns.
const SHORTEST_NAME: usize = 12;
/// A percent sign after a no-break space, so that wrapping does not put the sign at the beginning of a line.
const KEPT: &str = "\u{a0}%";
/// Width of a full bar in characters.
const BAR: usize = 16;

/// Wraps a text. Lines after the first are indented by `indent` spaces.
pub(crate) fn wrapped(text: &str, indent: usize) -> Vec<String> {
    let indent = " ".repeat(indent);
    let options = Options::new(COLUMNS)
        .subsequent_indent(&indent)
        .word_splitter(WordSplitter::NoHyphenation);
    wrap(&printable_lines(text), options)
        .into_iter()
        .map(std::borrow::Cow::into_owned)
        .collect()
}

/// Puts a text to the right of a label and wraps it there. `paint` is applied to each line of the text.
pub(super) fn labelled(label: &str, text: &str, paint: impl Fn(&str) -> String) -> String {
    let options = Options::new(COLUMNS - LABEL).word_splitter(WordSplitter::NoHyphenation);
    let text = printable_lines(text).replace(" %", KEPT);
    let lines: Vec<String> = wrap(&text, options)
        .iter()
        .enumerate()
        .map(|(index, line)| {
            let label = if index == 0 { label } else { "" };
            format!("{label:LABEL$}{}", paint(&line.replace(KEPT, " %")))
        })
        .collect();
    lines.join("\n")
}

/// Leaves a line as it is: the `paint` of plain text.
pub(super) fn plainly(line: &str) -> String {
    line.to_owned()
}

/// Shortens a text to at most `most` columns of a terminal; a character takes up to two. Characters are removed from the middle,
/// because both ends of a name matter.
pub(crate) fn shortened(text: &str, most: usize) -> String {
    if text.width() <= most {
        return text.to_owned();
    }
    let left = most.saturating_sub(1);
    let start: String = fitting(text.chars(), left.div_ceil(2)).collect();
    let end: Vec<char> = fitting(text.chars().rev(), left / 2).collect();
    let end: String = end.into_iter().rev().collect();
    format!("{start}…{end}")
}

/// Returns the first characters, as many as fit in `most` columns.
fn fitting(characters: impl Iterator<Item = char>, most: usize) -> impl Iterator<Item = char> {
    characters
        .scan(0, |taken, character| {
            *taken += character.width().unwrap_or(0);
            Some((*taken, character))
        })
        .take_while(move |&(taken, _)| taken <= most)
        .map(|(_, character)| character)
}

/// A table whose first column holds names. The names are shortened to the width that the other columns leave.
#[derive(Debug)]
pub(super) struct Columns {
    header: Vec<String>,
    rows: Vec<Vec<String>>,
    /// Whether the last column is a picture. A picture is aligned to the left, and is left out if the table would be too wide.
    picture: bool,
}

impl Columns {
    pub(super) fn new(header: &[&str]) -> Self {
        Self {
            header: header.iter().map(|&name| name.to_owned()).collect(),
            rows: Vec::new(),
            picture: false,
        }
    }

    /// Declares that the last column is a picture.
    pub(super) fn with_picture(mut self) -> Self {
        self.picture = true;
        self
    }

    pub(super) fn row(&mut self, cells: impl IntoIterator<Item = String>) {
        self.rows.push(cells.into_iter().map(|cell| printable(&cell)).collect());
    }

    pub(super) fn render(mut self) -> String {
        let widest = |column: usize| {
            let cells = std::iter::once(&self.header).chain(&self.rows);
            let widths = cells.filter_map(|cells| Some(cells.get(column)?.width()));
            widths.max().unwrap_or(0)
        };
        let mut columns = self.header.len();
        let mut others: usize = (1..columns).map(|column| GAP + widest(column)).sum();
        let names = widest(0).min(SHORTEST_NAME);
        if self.picture && names + others > COLUMNS {
            // Figures are more important than the picture, so the picture is left out.
            columns -= 1;
            others -= GAP + widest(columns);
            self.picture = false;
            self.header.truncate(columns);
            self.rows.iter_mut().for_each(|row| row.truncate(columns));
        }
        let room = COLUMNS.saturating_sub(others).max(SHORTEST_NAME);
        for row in &mut self.rows {
            if let Some(name) = row.first_mut() {
                *name = shortened(name, room);
            }
        }
        let header: Vec<&str> = self.header.iter().map(String::as_str).collect();
        let mut table = plain_table(&header);
        if self.picture
            && let Some(column) = table.column_mut(self.header.len() - 1)
        {
            column.set_cell_alignment(CellAlignment::Left);
        }
        for row in self.rows {
            table.add_row(row);
        }
        without_trailing_spaces(&table)
    }
}

/// Draws a share (0 to 1) as a bar. A share above 0 has at least an eighth of a character.
pub(super) fn bar(share: f64) -> String {
    const EIGHTHS: [&str; 8] = ["", "▏", "▎", "▍", "▌", "▋", "▊", "▉"];
    let whole = BAR as f64 * 8.0;
    let eighths = ((share * whole).round() as usize).clamp(usize::from(share > 0.0), BAR * 8);
    format!("{}{}", "█".repeat(eighths / 8), EIGHTHS[eighths % 8])
}

/// Draws counts as a row of bars, the largest as high as a line. A count above 0 has at least the smallest bar.
pub(super) fn sparkline(counts: &[u64]) -> String {
    const HEIGHTS: [char; 8] = ['▁', '▂', '▃', '▄', '▅', '▆', '▇', '█'];
    let most = counts.iter().copied().max().unwrap_or(0);
    let height = |&count: &u64| match count {
        0 => ' ',
        count => HEIGHTS[((8.0 * count as f64 / most as f64).ceil() as usize).clamp(1, 8) - 1],
    };
    counts.iter().map(height).collect()
}

/// Converts text for a terminal that shows ASCII only. Each character becomes one ASCII character, so that columns stay aligned.
#[must_use]
pub fn in_ascii(text: &str) -> String {
    let letter = |c| match c {
        '\0'..='\x7f' => c,
        '→' => '>',
        '–' => '-',
        'µ' => 'u',
        '…' => '~',
        '▍'..='▏' | '▁' | '▂' => '.',
        '▃' | '▄' => ':',
        '▌' | '▅' | '▆' => '+',
        '▇'..='▋' => '#',
        _ => '?',
    };
    text.chars().map(letter).collect()
}

pub(crate) fn without_trailing_spaces(table: &Table) -> String {
    let text = table.to_string();
    let lines: Vec<&str> = text.lines().map(str::trim_end).collect();
    lines.join("\n")
}

pub(crate) fn plain_table(header: &[&str]) -> Table {
    let mut table = Table::new();
    table.load_style(presets::NOTHING);
    table.set_header(header.to_vec());
    for (index, column) in table.column_iter_mut().enumerate() {
        column.set_padding((0, 2));
        if index > 0 {
            column.set_cell_alignment(CellAlignment::Right);
        }
    }
    table
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_keeps_both_its_ends() {
        assert_eq!(shortened("tokio-rt-worker", 15), "tokio-rt-worker");
        assert_eq!(shortened("tokio-rt-worker", 14), "tokio-r…worker");
        assert_eq!(shortened("Füße-und-Hände", 5), "Fü…de");
        // Each of these characters takes two columns.
        assert_eq!(shortened("任务调度器", 10), "任务调度器");
        assert_eq!(shortened("任务调度器", 9), "任务…度器");
        assert_eq!(shortened("任务调度器", 6), "任…器");
    }

    #[test]
    fn a_table_is_as_wide_as_the_terminal_at_most() {
        let mut table = Columns::new(&["Tasks", "polls", "off-CPU"]);
        table.row(["x".repeat(200), "1,234,567,890".to_owned(), "1.00 ms".to_owned()]);
        table.row(["short".to_owned()]);
        let text = table.render();
        let widths: Vec<usize> = text.lines().map(|line| line.chars().count()).collect();
        assert_eq!(widths.iter().max(), Some(&80), "{text}");
        assert!(text.contains("x…x"), "{text}");
    }

    #[test]
    fn wide_characters_do_not_move_the_columns() {
        let mut table = Columns::new(&["Tasks", "polls"]);
        for name in ["任务".repeat(40), "short".to_owned()] {
            table.row([name, "7".to_owned()]);
        }
        let text = table.render();
        let widths: Vec<usize> = text.lines().map(UnicodeWidthStr::width).collect();
        assert!(
            widths.iter().all(|&width| width == widths[0] && width <= 80),
            "{widths:?}\n{text}"
        );
    }

    #[test]
    fn text_behind_a_label_stays_behind_it() {
        let text = labelled("Lost", &"a cause, ".repeat(12), |line| format!("<{line}>"));
        let lines: Vec<&str> = text.lines().collect();
        assert_eq!(lines.len(), 2);
        assert!(lines[0].starts_with("Lost              <a cause, "), "{text}");
        assert!(lines[1].starts_with("                  <a cause, "), "{text}");
        assert!(lines.iter().all(|line| line.chars().count() <= 82));
    }

    #[test]
    fn what_there_is_can_be_seen() {
        assert_eq!(bar(0.0), "");
        assert_eq!(bar(1e-9), "▏");
        assert_eq!(bar(0.5), "████████");
        assert_eq!(bar(1.0), "█".repeat(16));
        assert_eq!(sparkline(&[0, 1, 1_000_000, 500_000]), " ▁█▄");
        assert_eq!(sparkline(&[0, 0]), "  ");
    }

    #[test]
    fn in_ascii_every_letter_is_one() {
        let text = "a → b – 1 µs █▌▏ ▁█ …é";
        assert_eq!(in_ascii(text), "a > b - 1 us #+. .# ~?");
        assert_eq!(in_ascii(text).chars().count(), text.chars().count());
    }
}
