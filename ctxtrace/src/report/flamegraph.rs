//! The picture: an off-CPU flamegraph, drawn by inferno.
//!
//! Width is off-CPU time, or the number of kernel switches. Colours tell the kinds of frames apart: what the thread was
//! doing, at the root, in purples, the thread grey, the program's functions in blues, inlined ones in teals, the kernel's in
//! oranges, reasons in light grey. Within a kind the shade depends on the name, so that neighbours are told apart and a
//! function looks the same in every picture.
//!
//! The second picture is of wakeups: over what a woken thread had been doing, the stacks of those who woke it.

use inferno::flamegraph::color::{BackgroundColor, Color, PaletteMap};
use inferno::flamegraph::{self, Options};

use super::{Weight, folded, printable};
use crate::error::{Error, Result};
use crate::symbolize::stacks::Resolved;
use crate::trace::symbols::FrameKind;

/// Text around the picture.
pub struct Labels {
    /// What was recorded.
    pub subject: String,
    /// What was lost, if anything.
    pub lost: Option<String>,
}

/// What the stacks are of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Subject {
    /// Switch-outs.
    Switches,
    /// The makers of wakeups.
    Wakeups,
    /// Samples of what it did on its CPUs.
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

/// Draws it.
///
/// # Errors
///
/// If there is nothing to draw.
pub fn render(resolved: &Resolved, subject: Subject, weight: Weight, labels: &Labels) -> Result<Vec<u8>> {
    let values = resolved.stacks.iter().map(|stack| match weight {
        Weight::Time => u128::from(stack.ns),
        Weight::Count => u128::from(stack.count),
    });
    // A capture may have been made up.
    if values.sum::<u128>() > i64::MAX as u128 {
        return Err(Error::Render {
            what: "flamegraph",
            reason: "its stacks add up to more than a picture can show".to_owned(),
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
    flamegraph::from_lines(&mut options, lines.lines(), &mut svg).map_err(|error| Error::Render {
        what: "flamegraph",
        reason: format!("{error} (the capture has no stacks)"),
    })?;
    Ok(svg)
}

fn subtitle(resolved: &Resolved, labels: &Labels) -> String {
    let mut parts = vec![labels.subject.clone()];
    let share = 100.0 * resolved.broken as f64 / resolved.with_user_stack.max(1) as f64;
    // Less than that would be shown as 0.0.
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
    // inferno's own root below the threads, which it calls "all" and looks up without a name.
    palette.insert("", color(FrameKind::Thread, ""));
    for frame in resolved.stacks.iter().flat_map(|stack| &stack.frames) {
        let name = folded::name(frame);
        let color = color(frame.kind, &name);
        palette.insert(name, color);
    }
    palette
}

fn color(kind: FrameKind, name: &str) -> Color {
    // FNV-1a: the same shade for the same name in every picture.
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

    /// Found by the fuzzer of names.
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
        let error = render(&resolved, Subject::Switches, Weight::Time, &labels).expect_err("too much");
        assert!(error.to_string().contains("more than a picture can show"), "{error}");
        render(&resolved, Subject::Switches, Weight::Count, &labels).expect("two");
    }
    use crate::symbolize::stacks::ResolvedStack;
    use crate::trace::symbols::Frame;

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
        let svg = render(&resolved(), Subject::Switches, Weight::Time, &labels(Some("3 events"))).expect("drawn");
        let svg = String::from_utf8(svg).expect("text");
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
        let draw = || render(&resolved(), Subject::Switches, Weight::Count, &labels(None)).expect("drawn");
        assert!(draw() == draw());
    }

    #[test]
    fn nothing_to_draw_is_an_error_and_not_an_empty_picture() {
        assert!(render(&Resolved::default(), Subject::Switches, Weight::Count, &labels(None)).is_err());
    }
}
