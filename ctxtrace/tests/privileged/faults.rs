//! Failures during a recording: what survives them and how ctxtrace reports them.

use std::os::unix::process::CommandExt;
use std::process::{Child, Command};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::Value;

use crate::support::{
    CTXTRACE, SpawnPiped, bpf_objects, command, ctxtrace, held_by, held_by_no_process, number, processes_with, stderr,
    stdout, wait_for_switches, wait_for_workload, wait_until,
};

pub(crate) const TESTS: &[(&str, fn())] = &[
    (
        "a_dropped_event_in_ten_is_counted_and_reported",
        a_dropped_event_in_ten_is_counted_and_reported,
    ),
    ("ctrl_c_leaves_a_partial_report", ctrl_c_leaves_a_partial_report),
    (
        "a_killed_workload_leaves_a_partial_report",
        a_killed_workload_leaves_a_partial_report,
    ),
    (
        "a_killed_tracer_leaves_nothing_behind",
        a_killed_tracer_leaves_nothing_behind,
    ),
    (
        "an_unwritable_output_is_found_before_the_run",
        an_unwritable_output_is_found_before_the_run,
    ),
    (
        "without_root_the_sudo_command_is_printed",
        without_root_the_sudo_command_is_printed,
    ),
    (
        "a_program_that_the_user_cannot_execute_is_an_error",
        a_program_that_the_user_cannot_execute_is_an_error,
    ),
    ("a_refused_bpf_call_is_reported", a_refused_bpf_call_is_reported),
    ("a_kernel_without_btf_is_reported", a_kernel_without_btf_is_reported),
    ("a_full_disk_leaves_the_old_file", a_full_disk_leaves_the_old_file),
];

pub(crate) const LONG_TESTS: &[(&str, fn())] = &[("ten_runs_leave_nothing_loaded", ten_runs_leave_nothing_loaded)];

fn a_dropped_event_in_ten_is_counted_and_reported() {
    let output = command("run --mode process --iterations 5000 --drop-one-in 10 --json -")
        .env("CLICOLOR_FORCE", "1")
        .output()
        .expect("the program starts");
    assert_eq!(output.status.code(), Some(4), "{}", stderr(&output));
    let json: Value = serde_json::from_slice(&output.stdout).expect("valid JSON");
    let kernel = number(&json, "/reconciliation/kernel");
    let difference = number(&json, "/reconciliation/difference");
    assert!(kernel >= 10_000);
    // The BPF program drops one event in ten on each CPU. The events of other programs count too, so the number of dropped events
    // of the workload depends on what else runs on its CPUs.
    assert!(difference < 0 && -difference < kernel, "{difference} of {kernel}");
    assert_eq!(
        number(&json, "/lost/events"),
        -difference,
        "lost.events must equal the gaps in the threads' counters"
    );
    assert!(number(&json, "/lost/intervals") > 0);
    let table = stderr(&output);
    let threads = json["reconciliation"]["threads"].as_array().expect("threads");
    let wrong: Vec<_> = threads
        .iter()
        .filter(|thread| number(thread, "/difference") != 0)
        .collect();
    assert!(!wrong.is_empty());
    for thread in wrong {
        // The report may lack a thread's last name, because the event that carries it may be dropped. So the test takes the name
        // from the report.
        let name = thread["name"].as_str().expect("a name");
        let line = format!("\x1b[1;31mthread {} ({name}): traced ", thread["tid"]);
        assert!(
            table.contains(&line),
            "the table must have a red line for the thread:\n{table}"
        );
    }
}

/// Returns a number of iterations that takes longer than any test waits. It contains the id of this process, so that no command
/// line of another test program on this machine contains it.
fn many_iterations() -> String {
    (100_000_000 + std::process::id()).to_string()
}

/// Starts a run that would take minutes, and waits until its workload exchanges messages. Returns the tracer and the workload.
fn long_run(extra: &str) -> (Child, Pid) {
    let child = command(&format!(
        "run --mode process --iterations {} {extra}",
        many_iterations()
    ))
    .spawn_piped();
    let workload = wait_for_workload(&child);
    // Each message makes about one switch of this process, and the workload reports its progress every 1,024 messages.
    wait_for_switches(workload.pid, 10_000);
    (child, Pid::from_raw(workload.pid))
}

fn pid(child: &Child) -> Pid {
    Pid::from_raw(child.id() as i32)
}

fn ctrl_c_leaves_a_partial_report() {
    for signal in [Signal::SIGINT, Signal::SIGTERM] {
        let (child, _) = long_run("--json -");
        kill(pid(&child), signal).expect("the signal is sent");
        let output = child.wait_with_output().expect("the program ends");
        assert_eq!(output.status.code(), Some(130));
        let json: Value = serde_json::from_slice(&output.stdout).expect("valid JSON");
        assert_eq!(json["complete"], Value::Bool(false));
        assert_eq!(json["cut_short"], Value::String(format!("interrupted by {signal}")));
        assert!(
            number(&json, "/kernel_switches/total") > 0,
            "no switch was recorded before the signal"
        );
        assert!(number(&json, "/workload/messages") > 0);
        assert_eq!(
            number(&json, "/reconciliation/difference"),
            0,
            "a partial report must reconcile"
        );
        assert!(json["workload"]["ns_per_message"].is_null());
        assert!(
            stderr(&output).starts_with(&format!("PARTIAL: interrupted by {signal}")),
            "{}",
            stderr(&output)
        );
        wait_until("the workload is gone", || processes_with(&many_iterations()).is_empty());
    }
}

fn a_killed_workload_leaves_a_partial_report() {
    for (signal, name) in [(Signal::SIGKILL, "SIGKILL"), (Signal::SIGABRT, "SIGABRT")] {
        let (child, workload) = long_run("");
        kill(workload, signal).expect("the signal is sent");
        let output = child.wait_with_output().expect("the program ends");
        assert_eq!(output.status.code(), Some(1));
        let table = stdout(&output);
        assert!(
            table.starts_with(&format!("PARTIAL: the workload was killed by {name}")),
            "{table}"
        );
        assert!(table.contains("difference 0"), "{table}");
        wait_until("the echo process is gone", || {
            processes_with(&many_iterations()).is_empty()
        });
    }
}

fn a_killed_tracer_leaves_nothing_behind() {
    let (mut child, workload) = long_run("");
    let loaded = held_by("prog", &child.id().to_string());
    assert!(!loaded.is_empty(), "ctxtrace has loaded no BPF program");
    kill(pid(&child), Signal::SIGKILL).expect("the signal is sent");
    child.wait().expect("the program ends");
    wait_until("the workload and its child are gone", || {
        kill(workload, None).is_err() && processes_with(&many_iterations()).is_empty()
    });
    wait_until("the programs are gone", || {
        let left = bpf_objects("prog");
        loaded.is_disjoint(&left)
    });
}

fn an_unwritable_output_is_found_before_the_run() {
    // A run of a trillion messages would take days.
    for option in ["--json", "--flamegraph", "--folded"] {
        for path in ["/nowhere/at/all.json", "/", "/proc/x.json"] {
            let output = ctxtrace(&format!("run --mode task --iterations 1000000000000 {option} {path}"));
            assert_eq!(output.status.code(), Some(1));
            let message = stderr(&output);
            assert!(
                message.starts_with(&format!("ctxtrace: cannot write {path}: ")),
                "{message}"
            );
            assert_eq!(
                message.lines().count(),
                1,
                "the message has more than one line: {message}"
            );
            assert_eq!(stdout(&output), "");
        }
    }
}

fn without_root_the_sudo_command_is_printed() {
    let folder = tempfile::tempdir_in("/tmp").expect("a temporary folder");
    std::fs::set_permissions(folder.path(), std::os::unix::fs::PermissionsExt::from_mode(0o755))
        .expect("the permissions are set");
    let program = folder.path().join("ctxtrace");
    std::fs::copy(CTXTRACE, &program).expect("the file is copied");
    let output = Command::new(&program)
        .args(["run", "--mode", "task-pool", "--buffer", "4096"])
        .uid(65_534)
        .gid(65_534)
        .output()
        .expect("the program starts");
    assert_eq!(output.status.code(), Some(1));
    let wanted = format!("\n  sudo {} run --mode task-pool --buffer 4096\n", program.display());
    assert!(stderr(&output).ends_with(&wanted), "{}", stderr(&output));
}

fn a_program_that_the_user_cannot_execute_is_an_error() {
    // A folder that only root may enter.
    let folder = tempfile::tempdir().expect("a temporary folder");
    std::fs::set_permissions(folder.path(), std::os::unix::fs::PermissionsExt::from_mode(0o700))
        .expect("the permissions are set");
    let program = folder.path().join("ctxtrace");
    std::fs::copy(CTXTRACE, &program).expect("the file is copied");
    let output = Command::new(&program)
        .args(["run", "--mode", "task", "--iterations", "10"])
        .envs([("SUDO_UID", "65534"), ("SUDO_GID", "65534")])
        .output()
        .expect("the program starts");
    assert_eq!(output.status.code(), Some(1));
    let message = stderr(&output);
    assert!(message.contains("for user 65534, who invoked sudo"), "{message}");
    assert_eq!(
        message.lines().count(),
        1,
        "the message has more than one line: {message}"
    );
}

fn a_refused_bpf_call_is_reported() {
    // Root of a new user namespace has its capabilities in that namespace only, and bpf() checks them in the initial one.
    let output = Command::new("unshare")
        .args([
            "--user",
            "--map-root-user",
            CTXTRACE,
            "run",
            "--mode",
            "task",
            "--iterations",
            "10",
        ])
        .output()
        .expect("unshare is installed (Debian package util-linux)");
    assert_eq!(output.status.code(), Some(1));
    let message = stderr(&output);
    assert!(message.starts_with("ctxtrace: the kernel refused to "), "{message}");
    assert!(message.contains("CAP_BPF"), "{message}");
}

fn a_kernel_without_btf_is_reported() {
    let script = format!("mount -t tmpfs none /sys/kernel/btf && exec {CTXTRACE} run --mode task --iterations 10");
    let output = Command::new("unshare")
        .args(["--mount", "sh", "-c", &script])
        .output()
        .expect("the program starts");
    assert_eq!(output.status.code(), Some(1));
    assert!(stderr(&output).contains("CONFIG_DEBUG_INFO_BTF"), "{}", stderr(&output));
}

fn ten_runs_leave_nothing_loaded() {
    let before = held_by_no_process("prog");
    for _ in 0..10 {
        let output = ctxtrace("run --mode thread --iterations 50317 --level counts");
        assert_eq!(output.status.code(), Some(0), "{}", stderr(&output));
    }
    // The kernel frees programs and maps shortly after their last descriptor is closed.
    wait_until("all programs are unloaded", || {
        held_by_no_process("prog").is_subset(&before)
    });
    assert!(processes_with("50317").is_empty());
}

fn a_full_disk_leaves_the_old_file() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let script = format!(
        "mount -t tmpfs -o size=64k none {0} && echo old > {0}/x.svg && dd if=/dev/zero of={0}/fill bs=1k 2>/dev/null; \
         {CTXTRACE} run --mode task-pool --iterations 20000 --flamegraph {0}/x.svg; status=$?; \
         cat {0}/x.svg; rm -f {0}/fill {0}/x.svg; ls -A {0}; exit $status",
        folder.path().display()
    );
    let output = Command::new("unshare")
        .args(["--mount", "sh", "-c", &script])
        .output()
        .expect("the program starts");
    assert_eq!(output.status.code(), Some(1), "{}", stderr(&output));
    assert!(
        stderr(&output).contains("No space left on device"),
        "{}",
        stderr(&output)
    );
    let said = stdout(&output);
    assert!(said.contains("difference 0"), "the table is missing: {said}");
    assert!(
        said.ends_with("\nold\n"),
        "the old file must be unchanged, and no other file may remain: {said}"
    );
}
