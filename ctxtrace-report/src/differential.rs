//! A differential flamegraph: the flamegraph of the subject, coloured by its difference from the base. All times are divided by
//! the number of messages, runs or seconds ([`Unit`]).

use std::fmt::Write;

use inferno::differential;
use inferno::flamegraph::{self, Options};

use super::{folded, printable};
use crate::RenderError;
use ctxtrace_analysis::budget::Unit;
use ctxtrace_analysis::budget::account::Stacks;

/// Picoseconds per nanosecond. Widths must be whole numbers, so they are picoseconds per message, run or second.
const PS: f64 = 1e3;

/// Text of the title and the subtitle.
#[derive(Clone, Copy, Debug)]
pub struct Labels<'a> {
    /// The quantity that the widths show, for example `Off-CPU time`.
    pub what: &'a str,
    /// The unit that the widths are divided by.
    pub unit: Unit,
    /// Name of the case that the subject is compared with.
    pub base: &'a str,
    /// Name of the case whose stacks are drawn.
    pub subject: &'a str,
}

/// Draws the flamegraph as SVG.
///
/// # Errors
///
/// If neither side has stacks, or if inferno cannot draw them.
pub fn render(base: &Stacks, subject: &Stacks, labels: &Labels<'_>) -> Result<Vec<u8>, RenderError> {
    let failed = |reason: String| RenderError {
        what: "differential flamegraph",
        reason,
    };
    if base.is_empty() && subject.is_empty() {
        return Err(failed("neither side has stacks".to_owned()));
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
