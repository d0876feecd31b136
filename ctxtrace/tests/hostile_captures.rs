//! Runs the command on forged captures. It must make every output without a panic, without a character that controls a terminal,
//! and within the memory that `docs/CAPTURES.md` promises. The tests need no root.

mod hostile;

use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use ciborium::Value;
use hostile::{Block, Choices, Contents, END_OF_RUN, EVENT, EVENTS, NAMES, PLAYED, Parts, STATE, field, list};

/// The address space limit of the command, in bytes: the 1 GiB that is promised for any file, and 256 MiB for the program itself.
/// An allocation beyond it fails, which aborts the command and fails the test.
const MEMORY: u64 = (1 << 30) + (256 << 20);

/// Output options with file names, grouped by the data that a capture must have for them.
const OUTPUTS: [&[(&str, &str)]; 5] = [
    &[("--json", "run.json"), ("--html", "run.html"), ("--parquet", "tables")],
    &[
        ("--flamegraph", "off.svg"),
        ("--folded", "run.folded"),
        ("--pprof", "run.pb.gz"),
    ],
    &[("--wakeups-flamegraph", "wakers.svg")],
    &[("--on-cpu-flamegraph", "on.svg")],
    &[("--perfetto", "run.pftrace")],
];

/// Output options of `compare` with file names.
const COMPARED: &[(&str, &str)] = &[
    ("--json", "both.json"),
    ("--markdown", "both.md"),
    ("--flamegraph", "off-both.svg"),
    ("--on-cpu-flamegraph", "on-both.svg"),
];

fn seed(name: &str) -> Parts {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/captures").join(name);
    Parts::read(&std::fs::read(path).expect("the file exists"))
}

/// Runs the command with the memory limit [`MEMORY`].
fn ctxtrace(arguments: &[PathBuf]) -> Output {
    let limit = nix::sys::resource::setrlimit;
    let mut command = Command::new(env!("CARGO_BIN_EXE_ctxtrace"));
    command
        .args(arguments)
        .env_remove("CLICOLOR_FORCE")
        .env("LC_ALL", "C.UTF-8");
    // SAFETY: `setrlimit` is async-signal-safe, so it may be called between fork and exec.
    unsafe {
        std::os::unix::process::CommandExt::pre_exec(&mut command, move || {
            limit(nix::sys::resource::Resource::RLIMIT_AS, MEMORY, MEMORY).map_err(Into::into)
        })
    };
    command.output().expect("the program starts")
}

/// Returns a description of the first fault in the exit status and the printed output of the command, if there is one.
fn wrong(output: &Output) -> Option<String> {
    let errors = String::from_utf8_lossy(&output.stderr).into_owned();
    let status = output.status.code();
    // The status of a failed assertion would be 3 and that of a panic 101; a process that aborts has none.
    if !matches!(status, Some(0 | 1 | 4)) {
        return Some(format!("{:?}: {errors}", output.status));
    }
    [&output.stdout, &output.stderr]
        .into_iter()
        .find_map(|bytes| harmful(bytes))
}

/// Returns a description of the first character that would control a terminal, if there is one.
fn harmful(bytes: &[u8]) -> Option<String> {
    let Ok(text) = std::str::from_utf8(bytes) else {
        return Some("the output is not UTF-8".to_owned());
    };
    let found = text
        .char_indices()
        .find(|&(_, c)| c != '\n' && ctxtrace_format::printable::is_harmful(c))?;
    let before = text[..found.0].chars().rev().take(60).collect::<Vec<_>>();
    Some(format!(
        "{:?} after {:?}",
        found.1,
        before.into_iter().rev().collect::<String>()
    ))
}

/// Makes all outputs of a capture and returns descriptions of their faults.
fn all_wrong(capture: &[u8]) -> Vec<String> {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let file = folder.path().join("hostile.ctx");
    std::fs::write(&file, capture).expect("the file is written");
    let with = |command: &str, inputs: usize, options: &[(&str, &str)]| {
        let mut arguments = vec![PathBuf::from(command)];
        arguments.extend(std::iter::repeat_n(file.clone(), inputs));
        for (option, name) in options {
            arguments.push(option.into());
            arguments.push(folder.path().join(name));
        }
        ctxtrace(&arguments)
    };
    let mut outputs: Vec<(String, Output)> = OUTPUTS
        .iter()
        .map(|options| (format!("report {options:?}"), with("report", 1, options)))
        .collect();
    outputs.push(("report".to_owned(), with("report", 1, &[])));
    outputs.push(("compare".to_owned(), with("compare", 2, COMPARED)));
    let mut all: Vec<String> = outputs
        .iter()
        .filter_map(|(what, output)| Some(format!("{what}: {}", wrong(output)?)))
        .collect();
    for name in [
        "run.json",
        "run.html",
        "off.svg",
        "run.folded",
        "wakers.svg",
        "on.svg",
        "both.json",
        "both.md",
    ] {
        if let Ok(bytes) = std::fs::read(folder.path().join(name)) {
            all.extend(harmful(&bytes).map(|what| format!("{name}: {what}")));
        }
    }
    all
}

#[track_caller]
fn is_harmless(capture: &Parts) {
    assert_eq!(all_wrong(&capture.written()), Vec::<String>::new());
}

fn event(at_ns: u64, kind: u8, tid: u32) -> Vec<u8> {
    let mut event = vec![0; EVENT];
    event[..8].copy_from_slice(&at_ns.to_le_bytes());
    event[24..28].copy_from_slice(&tid.to_le_bytes());
    event[34] = kind;
    event
}

/// Returns a capture of a timeline with these events in front of its own.
fn with_events(events: Vec<u8>) -> Parts {
    let mut parts = seed("v1-timeline.ctx");
    let at = parts
        .blocks
        .iter()
        .position(|block| block.kind == EVENTS)
        .expect("a block of events");
    parts.blocks.insert(
        at,
        Block {
            kind: EVENTS,
            contents: Contents::Bytes(events),
        },
    );
    parts
}

/// A text with harmful characters, none of which may reach a terminal. Its part `]0;t` is harmless.
const HOSTILE: &str = "\u{1b}]0;t\u{7}\u{9b}2J\u{202e}\r\u{1b}[1m";

#[test]
fn no_text_of_a_capture_reaches_a_terminal() {
    let hostile = HOSTILE;
    for name in ["v1-go.ctx", "v1-polls.ctx", "v1-stacks.ctx", "v1-timeline.ctx"] {
        let mut parts = seed(name);
        let count = parts.blocks.len();
        for index in 0..count {
            let mut altered = seed(name);
            if let Contents::Value(value) = &mut altered.blocks[index].contents {
                replace_texts(value, hostile);
                // If a text is the name of a variant, the block becomes unreadable, and the error message is checked.
                is_harmless(&altered);
            }
            if let Contents::Value(value) = &mut parts.blocks[index].contents {
                replace_free_texts(value, hostile);
            }
        }
        is_harmless(&parts);
    }
}

/// Sets a field, whether it exists or not.
fn set(of: &mut Value, name: &str, value: Value) {
    let entries = of.as_map_mut().expect("a map");
    entries.retain(|(key, _)| key.as_text() != Some(name));
    entries.push((Value::from(name), value));
}

/// Asserts that a capture is harmless, and that its report contains a sentence and a part of the hostile text.
#[track_caller]
fn is_harmless_and_reported(capture: &Parts, sentence: &str) {
    is_harmless(capture);
    let folder = tempfile::tempdir().expect("a folder");
    let file = folder.path().join("hostile.ctx");
    std::fs::write(&file, capture.written()).expect("written");
    let output = ctxtrace(&["report".into(), file]);
    let said = String::from_utf8_lossy(&output.stderr) + String::from_utf8_lossy(&output.stdout);
    assert!(said.contains(sentence) && said.contains("]0;t"), "{said}");
}

/// The captures of the tests have no such reason, so it is added.
#[test]
fn the_reason_of_an_early_end_does_not_reach_a_terminal() {
    for name in ["v1-go.ctx", "v1-polls.ctx", "v1-stacks.ctx", "v1-timeline.ctx"] {
        let mut parts = seed(name);
        set(parts.value(STATE), "cut_short", Value::from(HOSTILE));
        is_harmless_and_reported(&parts, "PARTIAL: ");
    }
}

/// The captures of the tests have no such disagreements, so they are added.
#[test]
fn what_a_timeline_disagrees_in_does_not_reach_a_terminal() {
    let field = |name: &str, value: Value| (Value::from(name), value);
    let numbers = ["events", "bytes", "switches", "wakeups", "first_ns", "dropped"];
    let mut timeline: Vec<_> = numbers.map(|name| field(name, Value::from(7))).into();
    let disagreements = vec![Value::from(HOSTILE), Value::from("the ledger, class by class")];
    timeline.push(field("disagreements", Value::Array(disagreements)));
    let played = vec![
        field("timeline", Value::Map(timeline)),
        field("samples", Value::from(0)),
    ];
    let mut parts = seed("v1-timeline.ctx");
    parts.blocks.retain(|block| block.kind != PLAYED);
    let at = parts.blocks.iter().position(|block| block.kind == END_OF_RUN);
    parts.blocks.insert(
        at.expect("a run that is whole"),
        Block {
            kind: PLAYED,
            contents: Contents::Value(Value::Map(played)),
        },
    );
    is_harmless_and_reported(&parts, "REPLAYED, THEY GIVE OTHER COUNTS");
}

fn replace_texts(value: &mut Value, by: &str) {
    match value {
        Value::Text(text) => *text = by.to_owned(),
        Value::Array(list) => list.iter_mut().for_each(|value| replace_texts(value, by)),
        Value::Map(entries) => entries.iter_mut().for_each(|(_, value)| replace_texts(value, by)),
        _ => {}
    }
}

/// Replaces all texts except the names of variants, which are short words of lower-case letters and hyphens.
fn replace_free_texts(value: &mut Value, by: &str) {
    match value {
        Value::Text(text) if !text.chars().all(|c| c.is_ascii_lowercase() || c == '-') || text.len() > 20 => {
            *text = by.to_owned();
        }
        Value::Array(list) => list.iter_mut().for_each(|value| replace_free_texts(value, by)),
        Value::Map(entries) => entries.iter_mut().for_each(|(_, value)| replace_free_texts(value, by)),
        _ => {}
    }
}

#[test]
fn a_long_name_in_many_frames_is_bounded() {
    let mut parts = seed("v1-stacks.ctx");
    let names = parts.value(NAMES);
    *field(names, "names") = Value::Array(vec![Value::from("a".repeat(1 << 20))]);
    for (stacks, kind) in [("user", "user"), ("kernel", "kernel")] {
        let frame = Value::Array(vec![Value::from(kind), Value::from(0)]);
        let Value::Map(entries) = field(names, stacks) else {
            panic!("the stacks are not a map")
        };
        for (_, frames) in entries {
            *frames = Value::Array(vec![frame.clone(); 40_000]);
        }
    }
    is_harmless(&parts);
}

#[test]
fn a_long_name_of_a_task_on_many_edges_is_bounded() {
    let mut parts = seed("v1-stacks.ctx");
    let aggregates = field(parts.value(STATE), "aggregates");
    let Value::Map(names) = field(aggregates, "names") else {
        panic!("the names are not a map")
    };
    for (_, names) in names {
        *names = Value::Array(vec![Value::from("b".repeat(8 << 20)); 3]);
    }
    let edges = list(field(aggregates, "edges"));
    let first = edges[0].clone();
    *edges = (0..3_000_u64)
        .map(|number| {
            let mut edge = first.clone();
            let key = &mut list(&mut edge)[0];
            *field(key, "from_task") = Value::from(1);
            *field(key, "to_tid") = Value::from(number);
            *field(key, "origin") = Value::from(number % 6);
            edge
        })
        .collect();
    is_harmless(&parts);
}

#[test]
fn too_many_threads_are_refused_before_they_exhaust_the_memory() {
    let events = (1..4_000_000_u32).flat_map(|tid| event(1, 3, tid)).collect();
    let parts = with_events(events);
    let capture = parts.written();
    assert_eq!(all_wrong(&capture), Vec::<String>::new());
    let folder = tempfile::tempdir().expect("a temporary folder");
    let file = folder.path().join("threads.ctx");
    std::fs::write(&file, capture).expect("the file is written");
    let output = ctxtrace(&["report".into(), "--check".into(), file]);
    let said = String::from_utf8_lossy(&output.stderr) + String::from_utf8_lossy(&output.stdout);
    assert!(said.contains("more than a recording of its size can"), "{said}");
}

#[test]
fn times_at_the_end_of_the_clock_and_times_that_step_back_are_accepted() {
    let wakeups = |at_ns| -> Vec<u8> { std::iter::repeat_n(event(at_ns, 2, 1), 130_000).flatten().collect() };
    is_harmless(&with_events(wakeups(0)));
    is_harmless(&with_events(wakeups(u64::MAX)));
    let mut parts = seed("v1-timeline.ctx");
    for block in &mut parts.blocks {
        if let (EVENTS, Contents::Bytes(bytes)) = (block.kind, &mut block.contents) {
            let count = bytes.len() / EVENT;
            for (index, event) in bytes.chunks_exact_mut(EVENT).enumerate() {
                let at_ns = if index > count / 2 {
                    u64::MAX - index as u64
                } else {
                    (count - index) as u64
                };
                event[..8].copy_from_slice(&at_ns.to_le_bytes());
            }
        }
    }
    is_harmless(&parts);
}

#[test]
fn altered_captures_are_reported_or_refused() {
    let number = |name, otherwise| {
        std::env::var(name)
            .ok()
            .and_then(|text| text.parse().ok())
            .unwrap_or(otherwise)
    };
    let (rounds, mut random) = (number("HOSTILE_ROUNDS", 40_u64), number("HOSTILE_SEED", 1_u64));
    let seeds = ["v1-go.ctx", "v1-polls.ctx", "v1-stacks.ctx", "v1-timeline.ctx"].map(seed);
    let mut found = Vec::new();
    for round in 0..rounds {
        let bytes: Vec<u8> = (0..400)
            .map(|_| {
                random = random
                    .wrapping_mul(0x5851_f42d_4c95_7f2d)
                    .wrapping_add(0x1405_7b7e_f767_814f);
                (random >> 56) as u8
            })
            .collect();
        let mut parts = seeds[(round % 4) as usize].clone();
        parts.mutate(&mut Choices(&bytes));
        let wrong = all_wrong(&parts.written());
        if !wrong.is_empty() {
            if let Ok(folder) = std::env::var("HOSTILE_KEEP") {
                std::fs::write(format!("{folder}/{round}.ctx"), parts.written()).expect("the file is written");
            }
            found.push(format!("round {round}: {}", wrong.join("\n")));
        }
    }
    assert!(found.is_empty(), "{}", found.join("\n\n"));
}
