//! Two flamegraphs in one: the subject's, coloured by what it adds to the base's for each message.

use std::fmt::Write;

use inferno::differential;
use inferno::flamegraph::{self, Options};

use super::{folded, printable};
use crate::analyze::explain::account::Stacks;
use crate::analyze::explain::result::Explanation;
use crate::error::{Error, Result};

/// Widths are whole numbers: of picoseconds a message.
const PS: f64 = 1e3;

/// Draws them.
///
/// # Errors
///
/// If there are no stacks.
pub fn render(base: &Stacks, subject: &Stacks, what: &str, answer: &Explanation) -> Result<Vec<u8>> {
    let failed = |reason: String| Error::Render {
        what: "differential flamegraph",
        reason,
    };
    if base.is_empty() && subject.is_empty() {
        return Err(failed("there is no gap, so no run was traced".to_owned()));
    }
    let mut both = Vec::new();
    differential::from_readers(
        differential::Options::default(),
        lines(base).as_bytes(),
        lines(subject).as_bytes(),
        &mut both,
    )
    .map_err(|error| failed(error.to_string()))?;
    let mut options = Options::default();
    options.title = format!("{what} {}, subject against base", answer.unit.in_words());
    options.subtitle = Some(printable(&format!(
        "widths: {} · red: more than {}, blue: less",
        answer.subject.name, answer.base.name
    )));
    options.count_name = "ps".to_owned();
    options.deterministic = true;
    options.font_type = "monospace".to_owned();
    options.image_width = Some(1_400);
    let mut svg = Vec::new();
    flamegraph::from_lines(&mut options, String::from_utf8_lossy(&both).lines(), &mut svg)
        .map_err(|error| failed(error.to_string()))?;
    Ok(svg)
}

fn lines(stacks: &Stacks) -> String {
    let mut lines = String::new();
    for (frames, ns) in stacks {
        let names: Vec<String> = frames.iter().map(folded::name).collect();
        let _ = writeln!(lines, "{} {}", names.join(";"), (ns * PS).round());
    }
    lines
}
