//! Stacks as lines of text, `task: sender;preempted;thread;outer;…;inner value`: the format that Brendan Gregg's tools, inferno
//! and speedscope read.
//!
//! By the convention of these tools, kernel functions end in `_[k]` and inlined functions in `_[i]`.

use std::fmt::Write;

use super::{Weight, printable};
use ctxtrace_analysis::symbolize::stacks::ResolvedStack;
use ctxtrace_format::symbols::{Frame, FrameKind};

/// Renders the stacks as lines, each ended by a newline. The value is nanoseconds for [`Weight::Time`], and the number of
/// switches, wakeups or samples for [`Weight::Count`].
#[must_use]
pub fn render(stacks: &[ResolvedStack], weight: Weight) -> String {
    let mut lines = String::new();
    for stack in stacks {
        let line = lines.len();
        for (index, frame) in stack.frames.iter().enumerate() {
            if index > 0 {
                lines.push(';');
            }
            lines.push_str(&name(frame));
        }
        let value = match weight {
            Weight::Time => stack.ns,
            Weight::Count => stack.count,
        };
        // Readers strip spaces at the end of the last name, so strip them before the checks below.
        lines.truncate(line + lines[line..].trim_end().len());
        // A number at the end of a name, as in `worker 3`, would be read as the first column of a differential.
        let last_word = lines.rfind([' ', ';', '\n']).map_or(0, |at| at + 1);
        if lines[last_word..].parse::<f64>().is_ok() && lines[..last_word].ends_with(' ') {
            lines.replace_range(last_word - 1..last_word, "\u{a0}");
        }
        // Writing to a string does not fail.
        let _ = writeln!(lines, " {value}");
    }
    lines
}

/// The name of a frame as it is written: with the suffix of its kind, and without the separator `;`.
#[must_use]
pub fn name(frame: &Frame) -> String {
    let suffix = match frame.kind {
        FrameKind::Kernel => "_[k]",
        FrameKind::Inlined => "_[i]",
        FrameKind::Doing | FrameKind::Thread | FrameKind::User | FrameKind::Reason => "",
    };
    // A semicolon, as in the type `[u8; 4]`, would end the frame.
    let mut name = printable(&frame.name).replace(';', ":");
    if name.is_empty() {
        name.push_str("[no name]");
    }
    name + suffix
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A case found by fuzzing.
    #[test]
    fn a_number_at_the_end_of_a_name_is_no_column() {
        let stack = |name: &str| ResolvedStack {
            frames: vec![Frame {
                kind: FrameKind::Thread,
                name: name.into(),
            }],
            count: 2,
            ns: 5,
        };
        let lines = |name| render(&[stack(name)], Weight::Count);
        assert_eq!(lines("worker 3"), "worker\u{a0}3 2\n");
        assert_eq!(lines("worker 3 4.5"), "worker 3\u{a0}4.5 2\n");
        assert_eq!(
            lines("worker 35 "),
            "worker\u{a0}35 2\n",
            "a trailing space does not hide the number"
        );
        assert_eq!(lines("7"), "7 2\n");
        assert_eq!(lines("worker three"), "worker three 2\n");
    }

    #[test]
    fn a_line_holds_the_kinds_and_escapes_the_separator() {
        let frame = |kind, name: &str| Frame {
            kind,
            name: name.into(),
        };
        let stacks = [ResolvedStack {
            frames: vec![
                frame(FrameKind::Thread, "worker\n"),
                frame(FrameKind::User, "<[u8; 4] as Read>::read"),
                frame(FrameKind::Inlined, "park"),
                frame(FrameKind::Kernel, "__schedule"),
            ],
            count: 3,
            ns: 4_500,
        }];
        let line = "worker\u{fffd};<[u8: 4] as Read>::read;park_[i];__schedule_[k]";
        assert_eq!(render(&stacks, Weight::Time), format!("{line} 4500\n"));
        assert_eq!(render(&stacks, Weight::Count), format!("{line} 3\n"));
    }
}
