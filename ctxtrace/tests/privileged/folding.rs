//! Tests that a capture keeps the sums of ended threads that were added up by name (`threads[].folded`).

use serde_json::Value;

use crate::large::{ONE_BY_ONE, build, counted};
use crate::support::{command, stderr};

pub(crate) const TESTS: &[(&str, fn())] = &[(
    "folded_threads_are_the_same_in_a_report_of_the_capture",
    folded_threads_are_the_same_in_a_report_of_the_capture,
)];

/// The number of threads of the program. It exceeds the number of ended threads that are kept individually (`MOST_ENDED` in
/// `trace/threads.rs`), so that some are added up.
const THREADS: i64 = 20_000;

fn folded_threads_are_the_same_in_a_report_of_the_capture() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let path = |name: &str| folder.path().join(name);
    let program = build("one_by_one", &counted(THREADS, ONE_BY_ONE), folder.path());
    let recorded = command("record --level counts -o")
        .arg(path("x.ctx"))
        .arg("--json")
        .arg(path("live.json"))
        .arg("--")
        .arg(program)
        .output()
        .expect("the program starts");
    assert_eq!(recorded.status.code(), Some(0), "{}", stderr(&recorded));
    let reported = command("report --quiet --json -").arg(path("x.ctx")).output();
    let reported = reported.expect("the program starts");
    assert_eq!(reported.status.code(), Some(0), "{}", stderr(&reported));
    let live: Value =
        serde_json::from_slice(&std::fs::read(path("live.json")).expect("the file is written")).expect("valid JSON");
    let reported: Value = serde_json::from_slice(&reported.stdout).expect("valid JSON");
    let folded = |json: &Value| -> Vec<Value> {
        let threads = json["threads"].as_array().expect("threads").iter();
        threads.filter(|thread| thread["folded"].is_u64()).cloned().collect()
    };
    let count = |json: &Value| -> u64 {
        let threads = json["threads"].as_array().expect("threads").iter();
        threads.map(|thread| thread["folded"].as_u64().unwrap_or(1)).sum()
    };
    assert!(!folded(&live).is_empty(), "no thread was added up to others");
    assert_eq!(folded(&reported), folded(&live));
    assert_eq!(count(&live), THREADS as u64 + 1);
    assert!(reported["threads"] == live["threads"], "the other threads differ");
}
