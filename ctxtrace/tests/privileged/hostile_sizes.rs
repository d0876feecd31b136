//! Tests that executables with huge sections do not exhaust the memory. Each test asserts on the memory that was used, and on the
//! reported reason.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use flate2::{Compress, Compression, FlushCompress};
use serde_json::Value;

use crate::hostile_files::HostileTarget;
use crate::large::{MEASURE, build};
use crate::programs::VARIABLE;
use crate::support::CTXTRACE;

pub(crate) const TESTS: &[(&str, fn())] = &[(
    "four_sections_of_two_gibibytes_are_not_read",
    four_sections_of_two_gibibytes_are_not_read,
)];

pub(crate) const LONG_TESTS: &[(&str, fn())] = &[
    (
        "millions_of_units_end_an_examination",
        millions_of_units_end_an_examination,
    ),
    (
        "four_sections_that_unpack_to_two_gibibytes_stay_in_bounds",
        four_sections_that_unpack_to_two_gibibytes_stay_in_bounds,
    ),
];

/// The maximum resident set size of an examination in units of 1,024 bytes: 1 GiB for decompressed sections (`MAX_BYTES` in
/// `tracee/locate/budget.rs`), and 512 MiB for the file and for what is built from the sections.
const MOST_OF_EXAMINATION_KB: u64 = (1 << 20) + (512 << 10);

/// The maximum resident set size of the reading process in units of 1,024 bytes, which is the limit of its address space
/// (`MAX_MEMORY_BYTES` in `reader/sandbox.rs`).
const MOST_OF_NAMES_KB: u64 = 4 << 20;

/// The limit of the tracer's address space in units of 1,024 bytes. An allocation beyond it fails and aborts the tracer. The reading
/// process sets its own limit.
const MOST_OF_TRACER_KB: u64 = 1 << 20;

/// The reason that `ctxtrace doctor` reports for a program whose debug information exceeds the budget.
const TOO_MUCH: &str = "the DWARF is too large to be read";

/// Runs a command with the address space limit of the tracer. Returns the larger of the maximum resident set sizes of the command and
/// of the processes that it waited for, in units of 1,024 bytes.
fn resident_kb(folder: &Path, words: &[&Path]) -> u64 {
    let measure = build("measure", MEASURE, folder);
    let output = Command::new("sh")
        .args(["-c", &format!("ulimit -S -v {MOST_OF_TRACER_KB} && exec \"$@\""), "sh"])
        .arg(measure)
        .args(words)
        .env(VARIABLE, "replaced")
        .env_remove("SUDO_UID")
        .env_remove("SUDO_GID")
        .stdin(Stdio::null())
        .output()
        .expect("the program starts");
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{words:?}: {said}");
    let kb = String::from_utf8_lossy(&output.stdout).trim().parse();
    kb.expect("a number of kilobytes")
}

/// Runs `ctxtrace doctor` on the executable. Returns the part of the report about the executable, and the memory that was used.
fn examined(target: &HostileTarget) -> (Value, u64) {
    let json = target.folder.path().join("doctor.json");
    let words: [PathBuf; 6] = [
        CTXTRACE.into(),
        "doctor".into(),
        "--json".into(),
        json.clone(),
        "--".into(),
        target.path(),
    ];
    let kb = resident_kb(target.folder.path(), &words.each_ref().map(PathBuf::as_path));
    let text = fs::read(json).expect("the file is written");
    let mut diagnosis: Value = serde_json::from_slice(&text).expect("valid JSON");
    (diagnosis["program"].take(), kb)
}

/// Records the executable. Returns the folded stacks, and the memory that was used.
fn recorded(target: &HostileTarget) -> (String, u64) {
    let words: [PathBuf; 7] = [
        CTXTRACE.into(),
        "record".into(),
        "--quiet".into(),
        "--folded".into(),
        target.folded(),
        "--".into(),
        target.path(),
    ];
    let kb = resident_kb(target.folder.path(), &words.each_ref().map(PathBuf::as_path));
    (fs::read_to_string(target.folded()).expect("the file is written"), kb)
}

/// Returns the text of the line about tokio in the report of `ctxtrace doctor`.
fn of_tokio(program: &Value) -> &str {
    let lines = program["lines"].as_array().expect("lines");
    let line = lines.iter().find(|line| line["about"] == "tokio");
    let found = line.and_then(|line| line["found"].as_str());
    found.unwrap_or_else(|| panic!("nothing of tokio in {program:#}"))
}

/// Returns a zlib stream that unpacks to `block`, repeated `times` times.
fn packed(block: &[u8], times: usize) -> Vec<u8> {
    let mut packed = Vec::with_capacity(block.len() / 4);
    let mut compress = Compress::new(Compression::best(), false);
    compress
        .compress_vec(block, &mut packed, FlushCompress::Full)
        .expect("the data is compressed");
    [&[0x78, 0x01], packed.repeat(times).as_slice()].concat()
}

/// Asserts that functions of the file that was not read have a reason instead of a name, and that functions of the kernel have names.
fn assert_only_its_names_are_missing(stacks: &str) {
    assert!(stacks.contains("[unknown: "), "{stacks}");
    assert!(stacks.contains("nanosleep"), "{stacks}");
}

/// Examines and records a target whose debug information is too large to be read. Checks the reason and the memory, and returns the stacks.
fn stacks_in_bounds(target: &HostileTarget) -> String {
    let (program, kb) = examined(target);
    assert!(of_tokio(&program).contains(TOO_MUCH), "{program:#}");
    eprintln!("examination: {kb} KB resident");
    assert!(kb < MOST_OF_EXAMINATION_KB, "{kb} KB are resident");
    let (stacks, kb) = recorded(target);
    eprintln!("recording: {kb} KB resident");
    assert!(kb <= MOST_OF_NAMES_KB, "{kb} KB are resident");
    stacks
}

/// The section `.debug_info` unpacks to 512 MiB of compilation units of eleven bytes each.
fn millions_of_units_end_an_examination() {
    // The header of a unit: its length, version 4, the offset of the abbreviations, and the size of an address (DWARF 4, 7.5.1.1).
    let unit = [7_u8, 0, 0, 0, 4, 0, 0, 0, 0, 0, 8];
    let units = unit.repeat((16 << 20) / unit.len());
    let target = HostileTarget::new("replaced");
    target.compress_debug_info(&packed(&units, 32), 32 * units.len() as u64);
    let stacks = stacks_in_bounds(&target);
    assert!(stacks.contains("nanosleep"), "{stacks}");
}

/// The sections that the tests make too large. An examination or a lookup of names reads each of them.
const SECTIONS: [&[u8]; 4] = [b".debug_info", b".debug_abbrev", b".debug_str", b".debug_line"];

/// The four sections are in a hole of a sparse file.
fn four_sections_of_two_gibibytes_are_not_read() {
    const SIZE: u64 = 2 << 30;
    const WHY: &str = "is larger than the files that ctxtrace reads (2 GiB)";
    let target = HostileTarget::new("replaced");
    let bytes = target.bytes();
    let end = (bytes.len() as u64).next_multiple_of(4_096);
    for (number, name) in (0..).zip(SECTIONS) {
        target.set_section(name, 0, end + number * SIZE, SIZE, &bytes);
    }
    let file = fs::OpenOptions::new().write(true).open(target.path());
    file.and_then(|file| file.set_len(end + 4 * SIZE))
        .expect("the file is extended");
    let (program, kb) = examined(&target);
    assert!(program["lines"].to_string().contains(WHY), "{program:#}");
    assert!(kb < MOST_OF_TRACER_KB, "{kb} KB are resident");
    let (stacks, kb) = recorded(&target);
    assert!(stacks.contains(&format!("[unknown: target {WHY}]")), "{stacks}");
    assert_only_its_names_are_missing(&stacks);
    assert!(kb < MOST_OF_TRACER_KB, "{kb} KB are resident");
}

/// Each of the four sections is compressed to about 2 MB and unpacks to 2 GiB of zeros.
fn four_sections_that_unpack_to_two_gibibytes_stay_in_bounds() {
    const BLOCK: usize = 16 << 20;
    const TIMES: usize = 128;
    let zeros = packed(&vec![0; BLOCK], TIMES);
    let target = HostileTarget::new("replaced");
    for name in SECTIONS {
        target.compress_section(name, &zeros, (BLOCK * TIMES) as u64);
    }
    let stacks = stacks_in_bounds(&target);
    assert_only_its_names_are_missing(&stacks);
}
