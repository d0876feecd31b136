//! Flamegraphs as SVG, drawn by the library inferno: of switch-outs, of wakeups, and of samples on the CPU ([`Subject`]).
//!
//! Width is time, or the number of switches, wakeups or samples ([`Weight`]). The colour shows the kind of a frame: purple for
//! what the thread was doing (at the root), grey for the thread, blue for functions of the program, teal for inlined functions,
//! orange for functions of the kernel, light grey for reasons. Within a kind the shade depends on the name, so that neighbouring
//! frames are distinguishable and a function looks the same in every flamegraph.
//!
//! In the flamegraph of wakeups the root is what the woken thread had been doing, and the frames above it are the waker's stack.

use inferno::flamegraph::color::{BackgroundColor, Color, PaletteMap};
use inferno::flamegraph::{self, Options};

use super::{Weight, folded, printable};
use crate::RenderError;
use ctxtrace_analysis::symbolize::stacks::Resolved;
use ctxtrace_format::symbols::FrameKind;

/// Text of the subtitle.
pub struct Labels {
    /// What was recorded.
    pub subject: String,
    /// What was lost, in words; `None` if nothing was lost.
    pub lost: Option<String>,
}

/// The kind of event whose stacks are drawn.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Subject {
    /// Switch-outs.
    Switches,
    /// Wakeups, with the stacks of their wakers.
    Wakeups,
    /// Samples of threads on a CPU.
    Samples,
}

impl Subject {
    fn title(self, weight: Weight) -> &'static str {
        match (self, weight) {
            (Self::Switches, Weight::Time) => "Off-CPU time by stack",
            (Self::Switches, Weight::Count) => "Kernel switches by stack",
            (Self::Wakeups, Weight::Time) => "Off-CPU time by the stack that ended it",
            (Self::Wakeups, Weight::Count) => "Wakeups by stack",
            (Self::Samples, Weight::Time) => "On-CPU time by stack",
            (Self::Samples, Weight::Count) => "Samples on the CPU by stack",
        }
    }

    fn count_name(self, weight: Weight) -> &'static str {
        match (self, weight) {
            (_, Weight::Time) => "ns",
            (Self::Switches, Weight::Count) => "switches",
            (Self::Wakeups, Weight::Count) => "wakeups",
            (Self::Samples, Weight::Count) => "samples",
        }
    }
}

/// Draws the flamegraph as SVG.
///
/// # Errors
///
/// If there are no stacks, or if their sum does not fit a 64-bit number.
pub fn render(resolved: &Resolved, subject: Subject, weight: Weight, labels: &Labels) -> Result<Vec<u8>, RenderError> {
    let values = resolved.stacks.iter().map(|stack| match weight {
        Weight::Time => u128::from(stack.ns),
        Weight::Count => u128::from(stack.count),
    });
    // Only a forged capture has such sums.
    if values.sum::<u128>() > i64::MAX as u128 {
        return Err(RenderError {
            what: "flamegraph",
            reason: "the sum of its stacks is too large to be drawn".to_owned(),
        });
    }
    let lines = folded::render(&resolved.stacks, weight);
    let mut palette = palette(resolved);
    let mut options = Options::default();
    options.title = subject.title(weight).to_owned();
    options.subtitle = Some(printable(&subtitle(resolved, labels)));
    options.count_name = subject.count_name(weight).to_owned();
    options.deterministic = true;
    options.palette_map = Some(&mut palette);
    options.bgcolors = Some(BackgroundColor::Flat(Color {
        r: 0xfc,
        g: 0xfc,
        b: 0xfa,
    }));
    options.font_type = "monospace".to_owned();
    options.image_width = Some(1_400);
    let mut svg = Vec::new();
    flamegraph::from_lines(&mut options, lines.lines(), &mut svg).map_err(|error| RenderError {
        what: "flamegraph",
        reason: format!("{error} (the capture has no stacks)"),
    })?;
    Ok(svg)
}

fn subtitle(resolved: &Resolved, labels: &Labels) -> String {
    let mut parts = vec![labels.subject.clone()];
    let share = 100.0 * resolved.broken as f64 / resolved.with_user_stack.max(1) as f64;
    // A smaller share would be printed as 0.0.
    if share >= 0.05 {
        parts.push(format!("{share:.1} % of user stacks broken (no frame pointers)"));
    }
    parts.push(match &labels.lost {
        Some(lost) => format!("LOST: {lost}"),
        None => "nothing lost".to_owned(),
    });
    parts.join(" · ")
}

fn palette(resolved: &Resolved) -> PaletteMap {
    let mut palette = PaletteMap::default();
    // The root frame that inferno adds. It shows it as "all", and looks up its colour under the empty name.
    palette.insert("", color(FrameKind::Thread, ""));
    for frame in resolved.stacks.iter().flat_map(|stack| &stack.frames) {
        let name = folded::name(frame);
        let color = color(frame.kind, &name);
        palette.insert(name, color);
    }
    palette
}

fn color(kind: FrameKind, name: &str) -> Color {
    // FNV-1a: the same name gets the same shade in every flamegraph.
    let hash = name.bytes().fold(0x811c_9dc5_u32, |hash, byte| {
        (hash ^ u32::from(byte)).wrapping_mul(0x0100_0193)
    });
    let shade = (hash >> 24) as u8 / 6;
    let (r, g, b) = match kind {
        FrameKind::Doing => (170 + shade, 140 + shade, 210 + shade / 2),
        FrameKind::Thread => (186, 186, 186),
        FrameKind::User => (110 + shade, 160 + shade, 215 + shade / 2),
        FrameKind::Inlined => (130 + shade, 200 + shade / 2, 190 + shade),
        FrameKind::Kernel => (235 + shade / 3, 140 + shade, 60 + shade),
        FrameKind::Reason => (222, 222, 222),
    };
    Color { r, g, b }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A case found by fuzzing.
    #[test]
    fn more_than_can_be_shown_is_an_error() {
        let stack = |ns: u64| ResolvedStack {
            frames: vec![Frame {
                kind: FrameKind::Thread,
                name: ns.to_string().into(),
            }],
            count: 1,
            ns,
        };
        let resolved = Resolved {
            stacks: vec![stack(u64::MAX - 1), stack(u64::MAX)],
            ..Resolved::default()
        };
        let labels = Labels {
            subject: String::new(),
            lost: None,
        };
        let error = render(&resolved, Subject::Switches, Weight::Time, &labels).expect_err("the sum is too large");
        assert!(error.to_string().contains("too large to be drawn"), "{error}");
        render(&resolved, Subject::Switches, Weight::Count, &labels).expect("two switches can be drawn");
    }
    use ctxtrace_analysis::symbolize::stacks::ResolvedStack;
    use ctxtrace_format::symbols::Frame;

    fn resolved() -> Resolved {
        let frame = |kind, name: &str| Frame {
            kind,
            name: name.into(),
        };
        Resolved {
            stacks: vec![ResolvedStack {
                frames: vec![
                    frame(FrameKind::Thread, "worker"),
                    frame(FrameKind::User, "park<T>"),
                    frame(FrameKind::Kernel, "__schedule"),
                ],
                count: 2,
                ns: 900,
            }],
            with_user_stack: 8,
            broken: 2,
        }
    }

    fn labels(lost: Option<&str>) -> Labels {
        Labels {
            subject: "task-pool".to_owned(),
            lost: lost.map(str::to_owned),
        }
    }

    #[test]
    fn the_picture_says_what_it_shows_and_what_was_lost() {
        let svg = render(&resolved(), Subject::Switches, Weight::Time, &labels(Some("3 events")))
            .expect("the flamegraph renders");
        let svg = String::from_utf8(svg).expect("the SVG is valid UTF-8");
        for text in [
            "Off-CPU time by stack",
            "task-pool",
            "LOST: 3 events",
            "25.0 % of user stacks broken",
            "park&lt;T&gt;",
        ] {
            assert!(svg.contains(text), "{text} is missing");
        }
    }

    #[test]
    fn the_same_result_makes_the_same_picture() {
        let draw =
            || render(&resolved(), Subject::Switches, Weight::Count, &labels(None)).expect("the flamegraph renders");
        assert!(draw() == draw());
    }

    #[test]
    fn nothing_to_draw_is_an_error_and_not_an_empty_picture() {
        assert!(render(&Resolved::default(), Subject::Switches, Weight::Count, &labels(None)).is_err());
    }
}
