//! Capture files: reports from them, captures of killed tracers, and errors while they are written.

use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Command, Stdio};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::Value;

use crate::support::{CTXTRACE, command, ctxtrace, stderr, stdout, wait_for_workload, wait_until};

pub(crate) const TESTS: &[(&str, fn())] = &[
    (
        "a_report_of_a_capture_is_the_runs_own",
        a_report_of_a_capture_is_the_runs_own,
    ),
    ("a_report_needs_no_root", a_report_needs_no_root),
    (
        "a_killed_tracer_leaves_a_readable_capture",
        a_killed_tracer_leaves_a_readable_capture,
    ),
    (
        "a_timeline_is_kept_and_played_again",
        a_timeline_is_kept_and_played_again,
    ),
    (
        "a_killed_tracer_leaves_the_events_so_far",
        a_killed_tracer_leaves_the_events_so_far,
    ),
    (
        "a_capture_is_not_overwritten_by_accident",
        a_capture_is_not_overwritten_by_accident,
    ),
    (
        "a_run_that_does_not_begin_leaves_no_capture",
        a_run_that_does_not_begin_leaves_no_capture,
    ),
    (
        "a_full_disk_is_reported_and_the_written_part_stays_readable",
        a_full_disk_is_reported_and_the_written_part_stays_readable,
    ),
];

fn in_folder(folder: &Path, line: &str) -> std::process::Output {
    command(line).current_dir(folder).output().expect("the program starts")
}

fn read(path: &Path) -> Vec<u8> {
    std::fs::read(path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

fn a_report_of_a_capture_is_the_runs_own() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let outputs = |name: &str| {
        format!("--json {name}.json --flamegraph {name}.svg --folded {name}.folded --wakeups-flamegraph {name}-w.svg")
    };
    let run = in_folder(
        folder.path(),
        &format!(
            "run --mode task-pool --iterations 20000 --repeat 3 -o run.ctx {}",
            outputs("run")
        ),
    );
    assert_eq!(run.status.code(), Some(0), "{}", stderr(&run));
    let report = in_folder(folder.path(), &format!("report run.ctx {}", outputs("again")));
    assert_eq!(report.status.code(), Some(0), "{}", stderr(&report));
    assert_eq!(stdout(&report), stdout(&run));
    for (one, other) in [
        ("run.json", "again.json"),
        ("run.svg", "again.svg"),
        ("run.folded", "again.folded"),
        ("run-w.svg", "again-w.svg"),
    ] {
        assert!(
            read(&folder.path().join(one)) == read(&folder.path().join(other)),
            "{one} and {other} differ"
        );
    }
    let json: Value = serde_json::from_slice(&read(&folder.path().join("again.json"))).expect("valid JSON");
    assert_eq!(json["workload"]["runs"].as_array().expect("an array").len(), 3);
}

fn a_report_needs_no_root() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    std::fs::set_permissions(folder.path(), std::os::unix::fs::PermissionsExt::from_mode(0o755))
        .expect("the permissions are set");
    let run = in_folder(folder.path(), "record --level counts -o run.ctx -- true");
    assert_eq!(run.status.code(), Some(0), "{}", stderr(&run));
    let mut report = command("report run.ctx --json -");
    report.current_dir(folder.path()).uid(65_534).gid(65_534);
    let output = report.output().expect("the program starts");
    assert_eq!(output.status.code(), Some(0), "{}", stderr(&output));
    let json: Value = serde_json::from_slice(&output.stdout).expect("valid JSON");
    assert_eq!(json["target"]["command"][0], "true");
    let without_stacks = in_folder(folder.path(), "report run.ctx --flamegraph x.svg");
    assert_eq!(without_stacks.status.code(), Some(1));
    assert!(
        stderr(&without_stacks).contains("takes no stacks"),
        "{}",
        stderr(&without_stacks)
    );
    assert!(!folder.path().join("x.svg").exists());
}

fn a_killed_tracer_leaves_a_readable_capture() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let capture = folder.path().join("run.ctx");
    let mut tracer = command("run --mode process --iterations 1000000000 -o")
        .arg(&capture)
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .expect("the program starts");
    wait_for_workload(&tracer);
    // The header has a few hundred bytes, so a file of more than 2,000 bytes contains a state.
    wait_until("the capture contains a state", || {
        std::fs::metadata(&capture).is_ok_and(|file| file.len() > 2_000)
    });
    kill(Pid::from_raw(tracer.id() as i32), Signal::SIGKILL).expect("the signal is sent");
    tracer.wait().expect("the program ends");
    let report = ctxtrace(&format!("report {}", capture.display()));
    assert_eq!(report.status.code(), Some(1), "{}", stderr(&report));
    let table = stdout(&report);
    assert!(
        table.starts_with("PARTIAL: the file is damaged: it has no end"),
        "{table}"
    );
    assert!(table.contains("difference 0"), "{table}");
    assert!(table.contains("thread blocked"), "{table}");
    // The functions of its stacks were not looked up, so frames consist of a file name and an offset.
    let folded = ctxtrace(&format!("report {} --folded -", capture.display()));
    assert!(stdout(&folded).contains("ctxtrace+0x"), "{}", stdout(&folded));
}

fn a_timeline_is_kept_and_played_again() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    for (verb, rest) in [
        ("run", "--mode process --iterations 5000 --repeat 2"),
        ("record", "-- ls /"),
    ] {
        let run = in_folder(
            folder.path(),
            &format!("{verb} --level timeline -o run.ctx --force --json run.json {rest}"),
        );
        assert_eq!(run.status.code(), Some(0), "{verb}: {}", stderr(&run));
        // The sums of the run and a replay of the events (`--check`) give the same report.
        for options in ["", "--check"] {
            let report = in_folder(folder.path(), &format!("report run.ctx --json - {options}"));
            assert_eq!(report.status.code(), Some(0), "{verb}: {}", stderr(&report));
            assert!(
                report.stdout == read(&folder.path().join("run.json")),
                "{verb} {options}"
            );
            let json: Value = serde_json::from_slice(&report.stdout).expect("valid JSON");
            assert_eq!(json["timeline"]["agrees"], true, "{verb}");
            assert!(json["timeline"]["events"].as_u64().expect("a number") > 0);
        }
        let mut piped = Command::new("sh");
        let line = format!("cat run.ctx | {CTXTRACE} report /dev/stdin --json -");
        let report = piped
            .current_dir(folder.path())
            .args(["-c", &line])
            .output()
            .expect("the program starts");
        assert!(
            report.stdout == read(&folder.path().join("run.json")),
            "{}",
            stderr(&report)
        );
    }
}

fn a_killed_tracer_leaves_the_events_so_far() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let capture = folder.path().join("run.ctx");
    let mut tracer = command("run --mode process --level timeline --iterations 1000000000 -o")
        .arg(&capture)
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .expect("the program starts");
    wait_for_workload(&tracer);
    let report = || ctxtrace(&format!("report {} --json -", capture.display()));
    // The report succeeds partially as soon as the capture contains a first state.
    wait_until("the capture contains a state", || {
        report().status.code() == Some(1) && !report().stdout.is_empty()
    });
    kill(Pid::from_raw(tracer.id() as i32), Signal::SIGKILL).expect("the signal is sent");
    tracer.wait().expect("the program ends");
    let json: Value = serde_json::from_slice(&report().stdout).expect("valid JSON");
    assert_eq!(json["complete"], false);
    let switches = |pointer: &str| json.pointer(pointer).and_then(Value::as_u64).expect("a number");
    assert!(switches("/timeline/switches") > switches("/kernel_switches/total") / 2);
    assert_eq!(json["timeline"]["agrees"], Value::Null);
    let reasons = json["unavailable"].as_array().expect("an array");
    assert!(reasons.iter().any(|row| row["path"] == "timeline.agrees"));
    assert_eq!(json["reconciliation"]["difference"], 0);
}

fn a_capture_is_not_overwritten_by_accident() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    std::fs::write(folder.path().join("run.ctx"), "precious").expect("the file is written");
    let refused = in_folder(folder.path(), "run --mode process --iterations 10 -o run.ctx");
    assert_eq!(refused.status.code(), Some(1));
    assert!(stderr(&refused).contains("--force"), "{}", stderr(&refused));
    assert_eq!(read(&folder.path().join("run.ctx")), b"precious");
    let forced = in_folder(folder.path(), "run --mode process --iterations 10 -o run.ctx --force");
    assert_eq!(forced.status.code(), Some(0), "{}", stderr(&forced));
    let report = in_folder(folder.path(), "report run.ctx");
    assert_eq!(report.status.code(), Some(0), "{}", stderr(&report));
    let missing = in_folder(folder.path(), "report missing.ctx");
    assert_eq!(missing.status.code(), Some(1));
    assert!(
        stderr(&missing).contains("cannot report missing.ctx: No such file"),
        "{}",
        stderr(&missing)
    );
}

fn a_run_that_does_not_begin_leaves_no_capture() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let script = folder.path().join("not-a-program");
    std::fs::write(&script, "#!/nowhere/an-interpreter").expect("the file is written");
    std::fs::set_permissions(&script, std::os::unix::fs::PermissionsExt::from_mode(0o755))
        .expect("the permissions are set");
    for line in [
        "record -o run.ctx -- there-is-no-such-program",
        "record -o run.ctx -p 4194304",
    ] {
        let output = in_folder(folder.path(), line);
        assert_ne!(output.status.code(), Some(0), "{line}");
        assert!(!folder.path().join("run.ctx").exists(), "{line}");
    }
    // This error is only found at `execve`.
    let output = in_folder(folder.path(), "record -o run.ctx -- ./not-a-program");
    assert_eq!(output.status.code(), Some(127), "{}", stderr(&output));
    assert!(!folder.path().join("run.ctx").exists());
}

fn a_full_disk_is_reported_and_the_written_part_stays_readable() {
    // The file size limit is half of the size of the whole capture, so the beginning of the capture fits and the rest does not.
    let folder = tempfile::tempdir().expect("a temporary folder");
    let line = "run --mode task-pool --iterations 20000 --repeat 5 -o";
    let whole = in_folder(folder.path(), &format!("{line} whole.ctx"));
    assert_eq!(whole.status.code(), Some(0), "{}", stderr(&whole));
    let bytes = std::fs::metadata(folder.path().join("whole.ctx"))
        .expect("the file exists")
        .len();
    // The shell counts in blocks of 512 bytes.
    let script = format!(
        "trap '' XFSZ; ulimit -f {}; exec {CTXTRACE} {line} run.ctx",
        bytes / 1_024
    );
    let output = Command::new("sh")
        .args(["-c", &script])
        .current_dir(folder.path())
        .output()
        .expect("the program starts");
    assert_eq!(output.status.code(), Some(1), "{}", stderr(&output));
    assert!(
        stderr(&output).contains("cannot write run.ctx: File too large"),
        "{}",
        stderr(&output)
    );
    let report = in_folder(folder.path(), "report run.ctx");
    assert_eq!(report.status.code(), Some(1), "{}", stderr(&report));
    assert!(
        stdout(&report).contains("it ends in the middle of a block"),
        "{}",
        stdout(&report)
    );
}
