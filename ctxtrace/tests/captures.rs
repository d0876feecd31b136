//! Captures of every version of the format, which stay readable: what is reported of each is what was reported when it was
//! made. Needs no root.
//!
//! A version's captures were recorded once and are never made anew: whoever changes the format adds captures beside them.
//! `CTXTRACE_BLESS=1` takes what is reported now for what is to be reported.

use std::path::{Path, PathBuf};
use std::process::Command;

fn captures() -> Vec<PathBuf> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/captures");
    let entries = std::fs::read_dir(folder).expect("the captures").flatten();
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
        .expect("started");
    let errors = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(0), "{}: {errors}", capture.display());
    String::from_utf8(output.stdout).expect("UTF-8")
}

fn compare(golden: &Path, found: &str) {
    if std::env::var_os("CTXTRACE_BLESS").is_some() {
        std::fs::write(golden, found).expect("written");
    }
    let expected = std::fs::read_to_string(golden).unwrap_or_default();
    assert!(
        found == expected,
        "{} is another one (CTXTRACE_BLESS=1 takes it):\n{found}",
        golden.display()
    );
}

#[test]
fn captures_of_every_version_are_reported_as_ever() {
    let captures = captures();
    assert_eq!(captures.len(), 4);
    for capture in captures {
        compare(&capture.with_extension("table"), &reported(&capture, &[]));
        compare(&capture.with_extension("json"), &reported(&capture, &["--json", "-"]));
    }
}

#[test]
fn names_are_in_the_capture() {
    let capture = &captures()[2];
    assert!(capture.ends_with("v1-stacks.ctx"));
    compare(
        &capture.with_extension("folded"),
        &reported(capture, &["--folded", "-"]),
    );
    let svg = reported(capture, &["--wakeups-flamegraph", "-"]);
    assert!(svg.contains("tokio::runtime"));
}

/// What a report of a capture refuses to make, in a sentence.
fn refused(capture: &str, option: &str) -> String {
    let folder = tempfile::tempdir().expect("a folder");
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
        .expect("started");
    assert_eq!(output.status.code(), Some(1));
    assert!(!file.exists());
    String::from_utf8(output.stderr).expect("UTF-8")
}

#[test]
fn a_capture_gives_what_is_in_it_and_says_what_is_not() {
    let error = refused("v1-stacks.ctx", "--perfetto");
    assert!(error.contains("--level stacks, which tells no events"), "{error}");
    let error = refused("v1-timeline.ctx", "--pprof");
    assert!(error.contains("--level timeline, which takes no stacks"), "{error}");
    let folder = tempfile::tempdir().expect("a folder");
    for (capture, option) in [("v1-timeline.ctx", "--perfetto"), ("v1-stacks.ctx", "--pprof")] {
        let capture = Path::new(env!("CARGO_MANIFEST_DIR"))
            .join("tests/captures")
            .join(capture);
        let file = folder.path().join("file");
        reported(&capture, &[option, file.to_str().expect("UTF-8")]);
        assert!(std::fs::metadata(&file).expect("written").len() > 1_000);
        std::fs::remove_file(&file).expect("there");
    }
}
