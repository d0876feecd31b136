//! Renders the findings of `ctxtrace doctor` for a terminal.

use super::table::Style;
use super::{printable, wrapped};
use ctxtrace_analysis::doctor::{CheckLine, Diagnosis, Standing};

/// Indent of continuation lines: the width of the first two columns.
const INDENT: &str = "                           ";

/// Renders the findings for a terminal.
#[must_use]
pub fn render(diagnosis: &Diagnosis, style: Style) -> String {
    let mut text = lines(&diagnosis.machine, style);
    if let Some(program) = &diagnosis.program {
        let path = printable(&program.path);
        text += &format!("\n{}\n{}", style.bold(&path), lines(&program.lines, style));
    }
    let missing = diagnosis
        .machine
        .iter()
        .filter(|line| line.standing == Standing::Missing)
        .count();
    text.push('\n');
    text += &match missing {
        0 => style.bold("Tracing works here."),
        1 => style.red("Tracing does not work here: one requirement is missing."),
        _ => style.red(&format!(
            "Tracing does not work here: {missing} requirements are missing."
        )),
    };
    text.push('\n');
    text
}

fn lines(lines: &[CheckLine], style: Style) -> String {
    lines.iter().map(|of| line(of, style)).collect()
}

fn line(line: &CheckLine, style: Style) -> String {
    let word = match line.standing {
        Standing::Ok => "ok",
        Standing::Less => "less",
        Standing::Missing => "missing",
        Standing::Unknown => "unknown",
    };
    let begin = format!("{word:<8} {:<18}", line.about);
    let mut text = wrapped(&printable(&line.found), &begin, INDENT);
    match line.standing {
        Standing::Ok => {}
        Standing::Less | Standing::Unknown => text = text.replacen(word, &style.bold(word), 1),
        Standing::Missing => text = text.replacen(word, &style.red(word), 1),
    }
    if let Some(fix) = &line.fix {
        // Not wrapped, so that it can be copied.
        text += &format!("\n{INDENT}{} {}", style.bold("fix:"), printable(fix));
    }
    text.push('\n');
    text
}
