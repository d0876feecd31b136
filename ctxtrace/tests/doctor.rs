//! `ctxtrace doctor`, which needs no root.

use std::path::Path;
use std::process::{Command, Output};

use serde_json::Value;

fn doctor(args: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_ctxtrace"))
        .arg("doctor")
        .args(args)
        .output()
        .expect("the program starts")
}

fn lines_of_program(program: &Path) -> Value {
    let output = doctor(&["--json", "-", "--", program.to_str().expect("a path in UTF-8")]);
    let json: Value = serde_json::from_slice(&output.stdout).expect("valid JSON");
    json["program"].clone()
}

#[test]
fn the_exit_status_is_0_if_tracing_works() {
    let output = doctor(&[]);
    let said = String::from_utf8(output.stdout).expect("valid UTF-8");
    let works = said.contains("Tracing works here.");
    assert_eq!(output.status.code(), Some(i32::from(!works)), "{said}");
    for about in ["kernel", "BTF", "rights", "BPF programs", "CPUs"] {
        assert!(said.contains(about), "{about} is missing in\n{said}");
    }
    // If tracing does not work, the output has a command that fixes it.
    assert!(works || said.contains("fix: "), "{said}");
}

#[test]
fn a_program_of_ours_has_tasks_names_and_frame_pointers() {
    let program = lines_of_program(Path::new(env!("CARGO_BIN_EXE_ctxtrace")));
    assert_eq!(program["locator"], "probe+tokio", "{program:#}");
    let lines = program["lines"].as_array().expect("lines");
    let standing = |about: &str| {
        let line = lines.iter().find(|line| line["about"] == about).expect(about);
        line["standing"].as_str().expect("a string")
    };
    for about in [
        "architecture",
        "tasks",
        "probe",
        "tokio",
        "symbols",
        "debug info",
        "frame pointers",
    ] {
        assert_eq!(standing(about), "ok", "{about}: {program:#}");
    }
}

#[test]
fn a_file_that_is_not_a_program_is_reported_as_missing() {
    for path in [Path::new("/nowhere/at/all"), Path::new("/dev/null"), Path::new(file!())] {
        let program = lines_of_program(path);
        assert_eq!(program["locator"], Value::Null);
        assert_eq!(program["lines"][0]["standing"], "missing", "{program:#}");
    }
}
