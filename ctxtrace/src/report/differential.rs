//! Two flamegraphs in one: the subject's, coloured by what it adds to the base's for each message.

use std::fmt::Write;

use inferno::differential;
use inferno::flamegraph::{self, Options};

use super::{folded, printable};
use crate::analyze::budget::Unit;
use crate::analyze::budget::account::Stacks;
use crate::error::{Error, Result};

/// Widths are whole numbers: of picoseconds a message.
const PS: f64 = 1e3;

/// What is drawn.
#[derive(Clone, Copy, Debug)]
pub struct Labels<'a> {
    /// What the widths are: `Off-CPU time`.
    pub what: &'a str,
    /// What they are for one of.
    pub unit: Unit,
    /// What the subject is held against.
    pub base: &'a str,
    /// Whose the widths are.
    pub subject: &'a str,
}

/// Draws them.
///
/// # Errors
///
/// If there are no stacks.
pub fn render(base: &Stacks, subject: &Stacks, labels: &Labels<'_>) -> Result<Vec<u8>> {
    let failed = |reason: String| Error::Render {
        what: "differential flamegraph",
        reason,
    };
    if base.is_empty() && subject.is_empty() {
        return Err(failed("there are no stacks of either side".to_owned()));
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
    options.title = format!("{} {}, subject against base", labels.what, labels.unit.in_words());
    options.subtitle = Some(printable(&format!(
        "widths: {} · red: more than {}, blue: less",
        labels.subject, labels.base
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
