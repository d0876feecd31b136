//! Bad days: what survives, and what is said.

use std::os::unix::process::CommandExt;
use std::process::{Child, Command, Stdio};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::Value;

use crate::support::{
    CTXTRACE, bpf_objects, command, ctxtrace, held_by, held_by_no_process, number, processes_with, stderr, stdout,
    wait_for_switches, wait_for_workload, wait_until,
};

pub(crate) const TESTS: &[(&str, fn())] = &[
    (
        "a_dropped_event_in_ten_is_seen_and_told",
        a_dropped_event_in_ten_is_seen_and_told,
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
        "a_program_out_of_the_users_reach_says_so",
        a_program_out_of_the_users_reach_says_so,
    ),
    ("a_refused_bpf_call_says_so", a_refused_bpf_call_says_so),
    ("a_kernel_without_btf_says_so", a_kernel_without_btf_says_so),
    ("a_full_disk_leaves_the_old_file", a_full_disk_leaves_the_old_file),
];

pub(crate) const LONG_TESTS: &[(&str, fn())] = &[("ten_runs_leave_nothing_loaded", ten_runs_leave_nothing_loaded)];

fn a_dropped_event_in_ten_is_seen_and_told() {
    let output = command("run --mode process --iterations 5000 --drop-one-in 10 --json -")
        .env("CLICOLOR_FORCE", "1")
        .output()
        .expect("started");
    assert_eq!(output.status.code(), Some(4), "{}", stderr(&output));
    let json: Value = serde_json::from_slice(&output.stdout).expect("JSON");
    let kernel = number(&json, "/reconciliation/kernel");
    let difference = number(&json, "/reconciliation/difference");
    assert!(kernel >= 10_000);
    // One program run in ten was dropped on this CPU. How many of these were the workload's depends on what else ran there.
    assert!(difference < 0 && -difference < kernel, "{difference} of {kernel}");
    assert_eq!(
        number(&json, "/lost/events"),
        -difference,
        "the gap in each thread's counters tells the same"
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
        // The event that brings a thread's last name may be one of those that are dropped.
        let name = thread["name"].as_str().expect("a name");
        let line = format!("\x1b[1;31mthread {} ({name}): traced ", thread["tid"]);
        assert!(table.contains(&line), "in red, by thread:\n{table}");
    }
}

/// More iterations than any test waits for, and a number that is in the command lines of no other test program on this machine.
fn many_iterations() -> String {
    (100_000_000 + std::process::id()).to_string()
}

/// Starts a run that would take minutes and waits until its workload is at work.
fn long_run(extra: &str) -> (Child, Pid) {
    let child = command(&format!(
        "run --mode process --iterations {} {extra}",
        many_iterations()
    ))
    .stdout(Stdio::piped())
    .stderr(Stdio::piped())
    .spawn()
    .expect("started");
    let workload = wait_for_workload(&child);
    // Enough for some messages.
    wait_for_switches(workload.pid, 1_000);
    (child, Pid::from_raw(workload.pid))
}

fn pid(child: &Child) -> Pid {
    Pid::from_raw(child.id() as i32)
}

fn ctrl_c_leaves_a_partial_report() {
    for signal in [Signal::SIGINT, Signal::SIGTERM] {
        let (child, _) = long_run("--json -");
        kill(pid(&child), signal).expect("sent");
        let output = child.wait_with_output().expect("ended");
        assert_eq!(output.status.code(), Some(130));
        let json: Value = serde_json::from_slice(&output.stdout).expect("JSON");
        assert_eq!(json["complete"], Value::Bool(false));
        assert_eq!(json["cut_short"], Value::String(format!("interrupted by {signal}")));
        assert!(number(&json, "/kernel_switches/total") > 0, "what was seen up to then");
        assert!(number(&json, "/workload/messages") > 0);
        assert_eq!(number(&json, "/reconciliation/difference"), 0, "partial, and exact");
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
        kill(workload, signal).expect("sent");
        let output = child.wait_with_output().expect("ended");
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
    assert!(!loaded.is_empty(), "attached while it runs");
    kill(pid(&child), Signal::SIGKILL).expect("sent");
    child.wait().expect("ended");
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
            assert_eq!(message.lines().count(), 1, "one sentence: {message}");
            assert_eq!(stdout(&output), "");
        }
    }
}

fn without_root_the_sudo_command_is_printed() {
    let folder = tempfile::tempdir_in("/tmp").expect("a folder");
    std::fs::set_permissions(folder.path(), std::os::unix::fs::PermissionsExt::from_mode(0o755)).expect("allowed");
    let program = folder.path().join("ctxtrace");
    std::fs::copy(CTXTRACE, &program).expect("copied");
    let output = Command::new(&program)
        .args(["run", "--mode", "task-pool", "--buffer", "4096"])
        .uid(65_534)
        .gid(65_534)
        .output()
        .expect("started");
    assert_eq!(output.status.code(), Some(1));
    let wanted = format!("\n  sudo {} run --mode task-pool --buffer 4096\n", program.display());
    assert!(stderr(&output).ends_with(&wanted), "{}", stderr(&output));
}

fn a_program_out_of_the_users_reach_says_so() {
    // A folder that only root may enter.
    let folder = tempfile::tempdir().expect("a folder");
    std::fs::set_permissions(folder.path(), std::os::unix::fs::PermissionsExt::from_mode(0o700)).expect("allowed");
    let program = folder.path().join("ctxtrace");
    std::fs::copy(CTXTRACE, &program).expect("copied");
    let output = Command::new(&program)
        .args(["run", "--mode", "task", "--iterations", "10"])
        .envs([("SUDO_UID", "65534"), ("SUDO_GID", "65534")])
        .output()
        .expect("started");
    assert_eq!(output.status.code(), Some(1));
    let message = stderr(&output);
    assert!(message.contains("for user 65534, whom sudo runs for"), "{message}");
    assert_eq!(message.lines().count(), 1, "one sentence: {message}");
}

fn a_refused_bpf_call_says_so() {
    // Root of a user namespace of its own is root to itself, and nobody to bpf().
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
        .expect("unshare is part of util-linux");
    assert_eq!(output.status.code(), Some(1));
    let message = stderr(&output);
    assert!(message.starts_with("ctxtrace: the kernel refused to "), "{message}");
    assert!(message.contains("CAP_BPF"), "{message}");
}

fn a_kernel_without_btf_says_so() {
    let script = format!("mount -t tmpfs none /sys/kernel/btf && exec {CTXTRACE} run --mode task --iterations 10");
    let output = Command::new("unshare")
        .args(["--mount", "sh", "-c", &script])
        .output()
        .expect("started");
    assert_eq!(output.status.code(), Some(1));
    assert!(stderr(&output).contains("CONFIG_DEBUG_INFO_BTF"), "{}", stderr(&output));
}

fn ten_runs_leave_nothing_loaded() {
    let before = held_by_no_process("prog");
    for _ in 0..10 {
        let output = ctxtrace("run --mode thread --iterations 50317 --level counts");
        assert_eq!(output.status.code(), Some(0), "{}", stderr(&output));
    }
    // The kernel frees programs and maps a moment after their last descriptor is closed.
    wait_until("all programs are unloaded", || {
        held_by_no_process("prog").is_subset(&before)
    });
    assert!(processes_with("50317").is_empty());
}

fn a_full_disk_leaves_the_old_file() {
    let folder = tempfile::tempdir().expect("a folder");
    let script = format!(
        "mount -t tmpfs -o size=64k none {0} && echo old > {0}/x.svg && dd if=/dev/zero of={0}/fill bs=1k 2>/dev/null; \
         {CTXTRACE} run --mode task-pool --iterations 20000 --flamegraph {0}/x.svg; status=$?; \
         cat {0}/x.svg; rm -f {0}/fill {0}/x.svg; ls -A {0}; exit $status",
        folder.path().display()
    );
    let output = Command::new("unshare")
        .args(["--mount", "sh", "-c", &script])
        .output()
        .expect("started");
    assert_eq!(output.status.code(), Some(1), "{}", stderr(&output));
    assert!(
        stderr(&output).contains("No space left on device"),
        "{}",
        stderr(&output)
    );
    let said = stdout(&output);
    assert!(said.contains("difference 0"), "the table is there: {said}");
    assert!(
        said.ends_with("\nold\n"),
        "the old file is as it was, and nothing is left beside it: {said}"
    );
}
