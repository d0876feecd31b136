//! Captures of every version of the format stay readable: their reports equal the committed ones. The tests need no root.
//!
//! The captures of a version are never recorded again; a change of the format adds captures. With `CTXTRACE_BLESS=1` the tests
//! overwrite the committed reports by the current ones.

use std::path::{Path, PathBuf};
use std::process::Command;

fn captures() -> Vec<PathBuf> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/captures");
    let entries = std::fs::read_dir(folder).expect("a readable folder").flatten();
    let mut paths: Vec<PathBuf> = entries
        .map(|entry| entry.path())
        .filter(|path| path.extension().is_some_and(|extension| extension == "ctx"))
        .collect();
    paths.sort();
    paths
}

fn reported(capture: &Path, options: &[&str]) -> String {
    let output = Command::new(env!("CARGO_BIN_EXE_ctxtrace"))
        .arg("report")
        .arg(capture)
        .args(options)
        .env_remove("CLICOLOR_FORCE")
        .output()
        .expect("the program starts");
    let errors = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(0), "{}: {errors}", capture.display());
    String::from_utf8(output.stdout).expect("UTF-8")
}

fn compare(golden: &Path, found: &str) {
    if std::env::var_os("CTXTRACE_BLESS").is_some() {
        std::fs::write(golden, found).expect("the file is written");
    }
    let expected = std::fs::read_to_string(golden).unwrap_or_default();
    assert!(
        found == expected,
        "the report differs from {} (CTXTRACE_BLESS=1 overwrites the file):\n{found}",
        golden.display()
    );
}

#[test]
fn captures_of_every_version_have_unchanged_reports() {
    let captures = captures();
    assert_eq!(captures.len(), 4);
    for capture in captures {
        compare(&capture.with_extension("table"), &reported(&capture, &[]));
        compare(&capture.with_extension("json"), &reported(&capture, &["--json", "-"]));
    }
}

#[test]
fn a_capture_contains_the_names_of_functions() {
    let capture = &captures()[2];
    assert!(capture.ends_with("v1-stacks.ctx"));
    compare(
        &capture.with_extension("folded"),
        &reported(capture, &["--folded", "-"]),
    );
    let svg = reported(capture, &["--wakeups-flamegraph", "-"]);
    assert!(svg.contains("tokio::runtime"));
}

/// Runs `ctxtrace report` with an option that the capture has no data for, and returns the error.
fn refused(capture: &str, option: &str) -> String {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let file = folder.path().join("file");
    let output = Command::new(env!("CARGO_BIN_EXE_ctxtrace"))
        .arg("report")
        .arg(
            Path::new(env!("CARGO_MANIFEST_DIR"))
                .join("tests/captures")
                .join(capture),
        )
        .arg(option)
        .arg(&file)
        .output()
        .expect("the program starts");
    assert_eq!(output.status.code(), Some(1));
    assert!(!file.exists());
    String::from_utf8(output.stderr).expect("UTF-8")
}

#[test]
fn a_report_refuses_outputs_that_the_capture_lacks_data_for() {
    let error = refused("v1-stacks.ctx", "--perfetto");
    assert!(error.contains("--level stacks, which records no events"), "{error}");
    let error = refused("v1-timeline.ctx", "--pprof");
    assert!(error.contains("--level timeline, which takes no stacks"), "{error}");
    let folder = tempfile::tempdir().expect("a temporary folder");
    for (capture, option) in [("v1-timeline.ctx", "--perfetto"), ("v1-stacks.ctx", "--pprof")] {
        let capture = Path::new(env!("CARGO_MANIFEST_DIR"))
            .join("tests/captures")
            .join(capture);
        let file = folder.path().join("file");
        reported(&capture, &[option, file.to_str().expect("UTF-8")]);
        assert!(std::fs::metadata(&file).expect("the file exists").len() > 1_000);
        std::fs::remove_file(&file).expect("the file exists");
    }
}
