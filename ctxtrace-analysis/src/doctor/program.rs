//! The lines about a program: which locator would be used, why others would not, and whether stacks will be complete.

use std::path::Path;

use ctxtrace_common::locator::{HAS_GO, HAS_PROBE, HAS_TOKIO, Reason};
use schemars::JsonSchema;
use serde::Serialize;

use super::{CheckLine, Standing};
use ctxtrace_format::executable::{Found, Frames, Look, Parts, concerns_go, concerns_tokio, reason_in_words};

/// A program is reported as keeping frame pointers if at least this share of its functions does, 0 to 1.
const MOST: f64 = 0.9;
/// A program is reported as keeping no frame pointers if less than this share of its functions does, 0 to 1.
const FEW: f64 = 0.2;

/// What was found about a program.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, JsonSchema)]
pub struct ExaminedProgram {
    /// Path of the program as it was given on the command line.
    pub path: String,
    /// How the program's tasks would be found, for example `probe+tokio`. Null if they would not be found.
    pub locator: Option<String>,
    /// The lines about the program.
    pub lines: Vec<CheckLine>,
}

/// Returns what is reported about the file at `path`. `look` is the kind of file, and `found` is what was found in it.
#[must_use]
pub fn program(path: &Path, look: &Look, found: &Found) -> ExaminedProgram {
    let (locator, lines) = match look {
        Look::Unreadable(why) => (
            None,
            vec![unreadable(&format!(
                "the file cannot be read or is not a program: {why}"
            ))],
        ),
        Look::NotElf => (
            None,
            vec![unreadable(
                "the file is not an ELF executable; for a script, name its interpreter",
            )],
        ),
        Look::Foreign => (
            None,
            vec![
                CheckLine::new("architecture", Standing::Missing, "the program is not for x86-64")
                    .fixed_by("build it for x86_64-unknown-linux-gnu, or with GOARCH=amd64"),
            ],
        ),
        Look::Executable(parts) => (locator(found), executable(parts, found)),
    };
    ExaminedProgram {
        path: path.to_string_lossy().into_owned(),
        locator,
        lines,
    }
}

fn unreadable(why: &str) -> CheckLine {
    CheckLine::new("program", Standing::Missing, why).fixed_by("name an executable file that this user can read")
}

/// Returns the names of the locators that would be used, joined with `+`. Returns `None` if there are none.
fn locator(found: &Found) -> Option<String> {
    let names: Vec<&str> = [(HAS_PROBE, "probe"), (HAS_TOKIO, "tokio"), (HAS_GO, "go")]
        .into_iter()
        .filter(|(flag, _)| found.locator.flags & flag != 0)
        .map(|(_, name)| name)
        .collect();
    (!names.is_empty()).then(|| names.join("+"))
}

fn executable(parts: &Parts, found: &Found) -> Vec<CheckLine> {
    vec![
        CheckLine::ok("architecture", "x86-64"),
        tasks(found),
        probe(found),
        tokio(found),
        go(found),
        symbols(parts, found),
        debug_info(parts),
        thread_locals(parts),
        frame_pointers(parts, found),
    ]
}

fn has(found: &Found, flag: u32) -> bool {
    found.locator.flags & flag != 0
}

fn tasks(found: &Found) -> CheckLine {
    match locator(found) {
        Some(locator) => CheckLine::ok("tasks", format!("tasks would be found by {locator}")),
        None if found.reason() == Reason::None => CheckLine::ok(
            "tasks",
            "the program has no tasks of a known runtime: switches are reported by thread",
        ),
        None => CheckLine::new("tasks", Standing::Missing, reason_in_words(found.reason())),
    }
}

fn probe(found: &Found) -> CheckLine {
    if has(found, HAS_PROBE) {
        return CheckLine::ok(
            "probe",
            "ctxtrace-probe is linked: tasks have names, and every poll is counted",
        );
    }
    let detail = found.detail.as_deref().filter(|detail| detail.contains("probe"));
    // Without tokio there are no polls, so the missing probe is not a loss.
    if detail.is_none() && !has(found, HAS_TOKIO) && !concerns_tokio(found.reason()) {
        return CheckLine::ok(
            "probe",
            "ctxtrace-probe is not linked, and the program has no tokio whose tasks it would name",
        );
    }
    let why = detail.map_or("no symbol of ctxtrace-probe", |detail| detail);
    CheckLine::new("probe", Standing::Less, format!("{why}: polls are not counted"))
        .fixed_by("cargo add ctxtrace-probe   # and wrap futures with `traced`")
}

fn tokio(found: &Found) -> CheckLine {
    let version = found
        .tokio_version
        .as_ref()
        .map_or("tokio".to_owned(), |version| format!("tokio {version}"));
    if has(found, HAS_TOKIO) {
        return CheckLine::ok(
            "tokio",
            format!("{version}: tasks are found in its thread-local CONTEXT"),
        );
    }
    if concerns_tokio(found.reason()) {
        let detail = found
            .detail
            .as_ref()
            .map_or(String::new(), |detail| format!(" ({detail})"));
        let line = CheckLine::new(
            "tokio",
            Standing::Missing,
            format!("{version}: {}{detail}", reason_in_words(found.reason())),
        );
        return match found.reason() {
            Reason::Stripped | Reason::NoTypeInfo => {
                line.fixed_by("CARGO_PROFILE_RELEASE_DEBUG=2 CARGO_PROFILE_RELEASE_STRIP=false cargo build --release")
            }
            _ => line,
        };
    }
    CheckLine::ok("tokio", "the program does not contain tokio")
}

fn go(found: &Found) -> CheckLine {
    let version = found
        .go_version
        .as_ref()
        .map_or("Go".to_owned(), |version| format!("Go {version}"));
    if has(found, HAS_GO) {
        return CheckLine::ok("Go", format!("{version}: goroutines are found in its thread-local g"));
    }
    if concerns_go(found.reason()) {
        let line = CheckLine::new(
            "Go",
            Standing::Missing,
            format!("{version}: {}", reason_in_words(found.reason())),
        );
        return match found.reason() {
            Reason::GoVersion | Reason::GoStripped => {
                line.fixed_by("go build   # without -ldflags=-s or -w, and not stripped")
            }
            _ => line,
        };
    }
    CheckLine::ok("Go", "the program is not written in Go")
}

fn symbols(parts: &Parts, found: &Found) -> CheckLine {
    if parts.symbols {
        return CheckLine::ok("symbols", "the program's functions have names in stacks");
    }
    // Go programs contain a second table of function names, which strip does not remove.
    let consequence = if has(found, HAS_GO) {
        "the program is stripped; the functions of a Go program have names in stacks nevertheless"
    } else {
        "the program is stripped: its functions have no names in stacks"
    };
    CheckLine::new("symbols", Standing::Less, consequence)
        .fixed_by("build the program with `strip = false`, and do not run strip on it")
}

fn debug_info(parts: &Parts) -> CheckLine {
    if parts.debug_info {
        return CheckLine::ok("debug info", "the program has debug info: inlined functions are shown");
    }
    CheckLine::new(
        "debug info",
        Standing::Less,
        "the program has no debug info: inlined functions will not be shown",
    )
    .fixed_by("CARGO_PROFILE_RELEASE_DEBUG=2 cargo build --release   # for C: cc -g")
}

fn thread_locals(parts: &Parts) -> CheckLine {
    match parts.tls_bytes {
        Some(bytes) => CheckLine::ok(
            "thread-locals",
            format!("{bytes} bytes per thread, at a fixed offset from the thread pointer"),
        ),
        None => CheckLine::ok("thread-locals", "the program has no thread-locals of its own"),
    }
}

fn frame_pointers(parts: &Parts, found: &Found) -> CheckLine {
    const ABOUT: &str = "frame pointers";
    let fix = "RUSTFLAGS='-C force-frame-pointers=yes' cargo build --release   # for C: cc -fno-omit-frame-pointer";
    if found.go_version.is_some() {
        return CheckLine::ok(ABOUT, "Go keeps frame pointers: user stacks are complete");
    }
    let Some(frames) = parts.frames else {
        return CheckLine::new(
            ABOUT,
            Standing::Unknown,
            "the program has no .eh_frame section, so it is not known whether its functions keep frame pointers",
        );
    };
    let share = frames.with_pointer as f64 / frames.functions as f64;
    let found = in_numbers(frames);
    if share >= MOST {
        CheckLine::ok(ABOUT, format!("{found}: user stacks are complete"))
    } else if share < FEW {
        CheckLine::new(ABOUT, Standing::Less, format!("{found}: user stacks end early")).fixed_by(fix)
    } else {
        CheckLine::new(ABOUT, Standing::Less, format!("{found}: user stacks may end early")).fixed_by(fix)
    }
}

fn in_numbers(frames: Frames) -> String {
    format!(
        "{} of {} functions keep a frame pointer (according to .eh_frame: the caller is found from rbp)",
        frames.with_pointer, frames.functions
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fixtures::machines::{found, parts, server};

    fn standing(program: &ExaminedProgram, about: &str) -> Standing {
        program
            .lines
            .iter()
            .find(|line| line.about == about)
            .expect("there is a line about it")
            .standing
    }

    #[test]
    fn the_locator_that_would_be_used_is_named() {
        let both = program(
            Path::new("x"),
            &Look::Executable(parts(100)),
            &found(HAS_PROBE | HAS_TOKIO, Reason::None),
        );
        assert_eq!(both.locator.as_deref(), Some("probe+tokio"));
        assert!(both.lines.iter().all(|line| line.standing == Standing::Ok), "{both:#?}");
    }

    #[test]
    fn a_reason_why_not_has_its_cure() {
        let server = server();
        assert_eq!(server.locator, None);
        assert_eq!(standing(&server, "tasks"), Standing::Missing);
        let tokio = server
            .lines
            .iter()
            .find(|line| line.about == "tokio")
            .expect("there is a line about it");
        assert!(tokio.found.starts_with("tokio 1.54.1: "), "{tokio:?}");
        assert!(
            tokio.fix.as_ref().is_some_and(|fix| fix.contains("DEBUG=2")),
            "{tokio:?}"
        );
    }

    #[test]
    fn a_program_without_tasks_lacks_nothing() {
        let plain = program(Path::new("x"), &Look::Executable(parts(100)), &found(0, Reason::None));
        assert_eq!(plain.locator, None);
        assert_eq!(standing(&plain, "tasks"), Standing::Ok);
    }

    #[test]
    fn frame_pointers_are_judged_by_their_share() {
        for (with, expected) in [
            (100, Standing::Ok),
            (90, Standing::Ok),
            (50, Standing::Less),
            (0, Standing::Less),
        ] {
            let program = program(Path::new("x"), &Look::Executable(parts(with)), &found(0, Reason::None));
            assert_eq!(standing(&program, "frame pointers"), expected, "{with}");
        }
        let without = Parts {
            frames: None,
            ..parts(0)
        };
        let program = program(Path::new("x"), &Look::Executable(without), &found(0, Reason::None));
        assert_eq!(standing(&program, "frame pointers"), Standing::Unknown);
    }

    #[test]
    fn a_file_that_is_not_a_program_is_reported() {
        for look in [
            Look::Unreadable("permission denied".to_owned()),
            Look::NotElf,
            Look::Foreign,
        ] {
            let program = program(Path::new("x"), &look, &Found::default());
            assert_eq!(program.lines.len(), 1);
            assert_eq!(program.lines[0].standing, Standing::Missing);
            assert!(program.lines[0].fix.is_some());
        }
    }
}
