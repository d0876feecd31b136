//! `ctxtrace suite`: the table has every case of the article, and the counts of each case are those of the kernel.

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::Value;

use crate::support::{SpawnPiped, command, number, said, stderr, stdout, wait_until};

pub(crate) const TESTS: &[(&str, fn())] = &[
    (
        "every_case_of_the_article_is_measured",
        every_case_of_the_article_is_measured,
    ),
    (
        "a_case_without_its_compiler_is_a_row_with_the_reason",
        a_case_without_its_compiler_is_a_row_with_the_reason,
    ),
    (
        "an_interrupted_suite_reports_the_cases_so_far",
        an_interrupted_suite_reports_the_cases_so_far,
    ),
];

fn every_case_of_the_article_is_measured() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let output = command("suite --repeat 2 --iterations 50000 --json suite.json --markdown suite.md")
        .current_dir(folder.path())
        .output()
        .expect("the program starts");
    assert_eq!(output.status.code(), Some(0), "{}", stderr(&output));
    let read = |name: &str| std::fs::read_to_string(folder.path().join(name)).expect("the file exists");
    let json: Value = serde_json::from_str(&read("suite.json")).expect("valid JSON");
    assert_eq!(json["complete"], true);
    let rows = json["rows"].as_array().expect("an array");
    assert_eq!(rows.len(), 9);
    for row in rows {
        let name = row["name"].as_str().expect("a string");
        assert_eq!(number(row, "/difference"), 0, "{name}");
        assert_eq!(row["ledger_adds_up"], true, "{name}");
        assert_eq!(number(row, "/runs"), 4, "{name}");
        let figure = |pointer: &str| row.pointer(pointer).and_then(Value::as_f64);
        let [least, median, most] =
            ["min", "median", "max"].map(|which| figure(&format!("/ns_per_message/{which}")).expect("a number"));
        assert!(0.0 < least && least <= median && median <= most, "{name}: {row}");
        let switches = figure("/kernel_switches_per_message").expect("a number");
        let is_pipes = name.starts_with("process") || name == "thread";
        if is_pipes {
            // On one CPU each read of an empty pipe makes a switch to the other side, so a round trip has two switches.
            assert!(switches >= 1.9, "{name}: {switches}");
            assert!((figure("/ns_per_kernel_switch").expect("a number") - median / switches).abs() < 1e-6);
            assert_eq!(number(row, "/messages"), 5_000);
        } else {
            assert!(switches < 1.0, "{name}: {switches}");
            assert_eq!(number(row, "/messages"), 50_000);
            assert!(figure("/article_ns_per_message").expect("a number") > 200.0);
        }
        assert!(stdout(&output).contains(name) && read("suite.md").contains(name));
    }
}

fn a_case_without_its_compiler_is_a_row_with_the_reason() {
    let output = command("suite --repeat 1 --iterations 2000 --json -")
        .env("PATH", "/nowhere")
        .output()
        .expect("the program starts");
    assert_eq!(output.status.code(), Some(1), "{}", stderr(&output));
    let json: Value = serde_json::from_slice(&output.stdout).expect("valid JSON");
    let in_c = &json["rows"][0];
    assert_eq!(in_c["ns_per_message"], Value::Null);
    let reason = in_c["cut_short"].as_str().expect("a reason");
    assert!(reason.contains("there is no C compiler"), "{reason}");
    assert_eq!(number(&json["rows"][1], "/runs"), 2);
    assert!(said(&output).contains("process, C: "), "{}", stderr(&output));
}

fn an_interrupted_suite_reports_the_cases_so_far() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let child = command("suite --iterations 200000000 --json suite.json")
        .current_dir(folder.path())
        .spawn_piped();
    let id = child.id();
    wait_until("the first workload runs", || {
        let all = procfs::process::all_processes().expect("/proc is readable").flatten();
        all.into_iter().any(|process| {
            process
                .stat()
                .is_ok_and(|stat| stat.ppid == id as i32 && stat.comm == "process")
        })
    });
    std::thread::sleep(std::time::Duration::from_millis(300));
    kill(Pid::from_raw(id as i32), Signal::SIGINT).expect("the signal is sent");
    let output = child.wait_with_output().expect("the program ends");
    assert_eq!(output.status.code(), Some(130), "{}", stderr(&output));
    assert!(stdout(&output).starts_with("PARTIAL"), "{}", stdout(&output));
    assert!(stdout(&output).contains("interrupted"), "{}", stdout(&output));
    let json = std::fs::read(folder.path().join("suite.json")).expect("the file exists");
    let json: Value = serde_json::from_slice(&json).expect("valid JSON");
    assert_eq!(json["complete"], false);
    assert_eq!(json["rows"].as_array().expect("an array").len(), 9);
}
