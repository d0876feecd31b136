//! Failures while the target switches context at a high rate: killed targets and tracers, a stopped tracer, two tracers, full
//! disks, changes of the clock and of the CPUs. `docs/FAULTS.md` lists them.

use std::os::unix::fs::MetadataExt;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Child, Command, Output, Stdio};
use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use nix::time::{ClockId, clock_gettime, clock_settime};
use nix::unistd::Pid;
use serde_json::Value;

use crate::harness::skip;
use crate::programs::VARIABLE;
use crate::support::{
    CTXTRACE, SpawnPiped, command, ctxtrace, held_by_no_process, number, recorder_at_work, said, stderr, stdout,
    switches_of_process, trace_program, wait_for_switches, wait_for_workload, wait_until,
};

pub(crate) const TESTS: &[(&str, fn())] = &[
    (
        "a_target_killed_in_a_storm_is_counted_to_the_end",
        a_target_killed_in_a_storm_is_counted_to_the_end,
    ),
    (
        "a_bounded_capture_outlives_its_tracer",
        a_bounded_capture_outlives_its_tracer,
    ),
    (
        "a_stopped_tracer_loses_events_and_no_counts",
        a_stopped_tracer_loses_events_and_no_counts,
    ),
    (
        "two_tracers_of_one_target_both_count_right",
        two_tracers_of_one_target_both_count_right,
    ),
    ("every_output_reports_a_full_disk", every_output_reports_a_full_disk),
];

/// Tests that change the machine for all programs on it, or take long.
pub(crate) const LONG_TESTS: &[(&str, fn())] = &[
    (
        "a_jump_of_the_wall_clock_changes_no_time",
        a_jump_of_the_wall_clock_changes_no_time,
    ),
    (
        "a_cpu_that_goes_offline_and_online_loses_no_count",
        a_cpu_that_goes_offline_and_online_loses_no_count,
    ),
    (
        "ten_recordings_in_a_row_leave_nothing_open",
        ten_recordings_in_a_row_leave_nothing_open,
    ),
];

/// A running program that switches context at a high rate and is killed when the value is dropped.
struct Storm(Child);

impl Storm {
    /// Starts the program, which has two pairs of threads that wake each other endlessly.
    fn begin() -> Self {
        let executable = std::env::current_exe().expect("the path of this executable");
        let storm = Command::new(executable)
            .env(VARIABLE, "endless-storm")
            .spawn()
            .expect("the program starts");
        Self(storm)
    }

    fn pid(&self) -> u32 {
        self.0.id()
    }
}

impl Drop for Storm {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn json_of(output: &Output) -> Value {
    serde_json::from_slice(&output.stdout).unwrap_or_else(|error| panic!("{error}: {}", stderr(output)))
}

/// Checks that the counts of a report are those of the kernel and that the ledger adds up to them.
fn counts_hold(json: &Value) {
    assert!(number(json, "/kernel_switches/total") > 1_000, "{json:#}");
    assert_eq!(number(json, "/reconciliation/difference"), 0, "{json:#}");
    assert_eq!(json["ledger_adds_up"], true, "{json:#}");
}

fn send(process: &Child, signal: Signal) {
    kill(Pid::from_raw(process.id() as i32), signal).expect("the signal is sent");
}

fn pause(ms: u64) {
    std::thread::sleep(Duration::from_millis(ms));
}

fn long_run(line: &str) -> Child {
    let run = command(line).spawn_piped();
    wait_for_switches(wait_for_workload(&run).pid, 1_000);
    run
}

fn a_target_killed_in_a_storm_is_counted_to_the_end() {
    for level in ["stacks", "timeline"] {
        let mut storm = Storm::begin();
        let recorder = recorder_at_work(&format!("record -p {} --level {level} --json -", storm.pid()));
        pause(300);
        storm.0.kill().expect("the signal is sent");
        storm.0.wait().expect("the program ends");
        let output = recorder.wait_with_output().expect("the program ends");
        assert_eq!(output.status.code(), Some(0), "{}", stderr(&output));
        let json = json_of(&output);
        counts_hold(&json);
        let ledger = json["ledger"].as_array().expect("an array");
        let exited = ledger
            .iter()
            .find(|row| row["class"] == "exited")
            .expect("the ledger has exits");
        assert_eq!(number(exited, "/count"), 5, "the main thread and four others must exit");
        if level == "timeline" {
            assert_eq!(json["timeline"]["agrees"], true);
        }
    }
}

fn a_bounded_capture_outlives_its_tracer() {
    const MOST: u64 = 1 << 20;
    let folder = tempfile::tempdir().expect("a temporary folder");
    let capture = folder.path().join("run.ctx");
    let path = capture.display();
    let mut run = long_run(&format!(
        "run --mode process --iterations 100000000 --level timeline --max-size 1MiB -o {path}"
    ));
    wait_until("the first state is saved", || capture.exists());
    let file = || std::fs::metadata(&capture).expect("the capture exists since the first state");
    let first = file().ino();
    let succeeded = (0..6_000).any(|_| {
        pause(10);
        assert!(file().len() <= MOST);
        file().ino() != first
    });
    assert!(succeeded, "the capture was not replaced when it had become too long");
    wait_until("the capture contains a state", || {
        let report = ctxtrace(&format!("report {path} --json -"));
        assert!(file().len() <= MOST);
        !report.stdout.is_empty() && number(&json_of(&report), "/timeline/dropped") > 0
    });
    send(&run, Signal::SIGKILL);
    run.wait().expect("the program ends");
    let names: Vec<_> = std::fs::read_dir(folder.path()).expect("a readable folder").collect();
    assert_eq!(names.len(), 1, "the folder must contain only the capture: {names:?}");
    let report = ctxtrace(&format!("report {path} --json -"));
    assert_eq!(report.status.code(), Some(1), "{}", stderr(&report));
    let json = json_of(&report);
    // The ledger may differ by a few switches, because the tables were read while the threads ran.
    assert!(number(&json, "/kernel_switches/total") > 1_000);
    assert_eq!(number(&json, "/reconciliation/difference"), 0);
    assert!(number(&json, "/timeline/dropped") > 0);
    assert!(number(&json, "/timeline/events") > 0);
    assert!(number(&json, "/timeline/begins_ns") > 0);
    assert_eq!(json["timeline"]["agrees"], Value::Null);
    assert!(said(&report).contains("older ones were dropped"), "{}", stderr(&report));
}

fn a_stopped_tracer_loses_events_and_no_counts() {
    let run = long_run("run --mode process --iterations 200000 --level timeline --ring-size 64KiB --json -");
    send(&run, Signal::SIGSTOP);
    // While the tracer is stopped, the workload makes more switches than fit a ring.
    let workload = wait_for_workload(&run).pid;
    let before = switches_of_process(workload).expect("the workload still runs");
    wait_for_switches(workload, before + 20_000);
    send(&run, Signal::SIGCONT);
    let output = run.wait_with_output().expect("the program ends");
    assert_eq!(output.status.code(), Some(0), "{}", stderr(&output));
    let json = json_of(&output);
    counts_hold(&json);
    assert_eq!(number(&json, "/lost/events"), 0);
    assert!(number(&json, "/lost/timeline_events") > 0);
    assert!(said(&output).contains("events of the timeline"), "{}", stderr(&output));
    // The records of threads that exit while the tracer is stopped stay in a ring until it continues.
    let executable = std::env::current_exe().expect("the path of this executable");
    let recorder = command("record --json -")
        .arg("--")
        .arg(executable)
        .env(VARIABLE, "thread-storm")
        .spawn_piped();
    wait_until("the recorder has a child", || {
        std::fs::read_to_string(format!("/proc/{0}/task/{0}/children", recorder.id()))
            .is_ok_and(|children| !children.trim().is_empty())
    });
    send(&recorder, Signal::SIGSTOP);
    pause(300);
    send(&recorder, Signal::SIGCONT);
    let output = recorder.wait_with_output().expect("the program ends");
    assert_eq!(output.status.code(), Some(0), "{}", stderr(&output));
    counts_hold(&json_of(&output));
}

fn two_tracers_of_one_target_both_count_right() {
    let storm = Storm::begin();
    let record = |level: &str| {
        recorder_at_work(&format!(
            "record -p {} --duration 1s --level {level} --json -",
            storm.pid()
        ))
    };
    let both = [record("counts"), record("stacks")];
    for recorder in both {
        let output = recorder.wait_with_output().expect("the program ends");
        assert_eq!(output.status.code(), Some(0), "{}", stderr(&output));
        counts_hold(&json_of(&output));
    }
}

/// A change of the wall clock, which is undone when the value is dropped. The monotonic clock gives the time that has passed since.
struct Jump {
    monotonic: Duration,
    realtime: Duration,
}

impl Jump {
    /// Sets the wall clock ahead. Returns `None` if this process may not set it.
    fn ahead(by: Duration) -> Option<Self> {
        let now = |clock| clock_gettime(clock).map(Duration::from).expect("the clock is readable");
        let before = Self {
            monotonic: now(ClockId::CLOCK_MONOTONIC),
            realtime: now(ClockId::CLOCK_REALTIME),
        };
        clock_settime(ClockId::CLOCK_REALTIME, (before.realtime + by).into()).ok()?;
        Some(before)
    }
}

impl Drop for Jump {
    fn drop(&mut self) {
        let monotonic = Duration::from(clock_gettime(ClockId::CLOCK_MONOTONIC).expect("the clock is readable"));
        let now = self.realtime + (monotonic - self.monotonic);
        clock_settime(ClockId::CLOCK_REALTIME, now.into()).expect("the wall clock can be set");
    }
}

fn a_jump_of_the_wall_clock_changes_no_time() {
    const HOUR: Duration = Duration::from_secs(3_600);
    let run = long_run("run --mode process --iterations 60000 --json -");
    let Some(jump) = Jump::ahead(HOUR) else {
        send(&run, Signal::SIGKILL);
        drop(run.wait_with_output());
        skip("this process may not set the wall clock");
    };
    pause(30);
    drop(jump);
    let output = run.wait_with_output().expect("the program ends");
    assert_eq!(output.status.code(), Some(0), "{}", stderr(&output));
    let json = json_of(&output);
    counts_hold(&json);
    for latency in ["off_cpu", "blocked", "run_queue", "on_cpu", "wake_to_run"] {
        let max = number(&json, &format!("/latency/{latency}/max_ns"));
        assert!(max < HOUR.as_nanos() as i64 / 2, "{latency}: {max}");
    }
    assert!(number(&json, "/workload/elapsed_ns") < HOUR.as_nanos() as i64 / 2);
}

/// A CPU that is offline until the value is dropped. A shell sets it online when the shell's standard input ends, so a CPU does
/// not stay offline even if the test is killed.
struct Offline(Child);

impl Offline {
    /// Sets the last CPU offline. Returns `None` if the machine does not allow it.
    fn last() -> Option<Self> {
        let mut cpus: Vec<_> = std::fs::read_dir("/sys/devices/system/cpu")
            .ok()?
            .filter_map(|entry| Some(entry.ok()?.path().join("online")))
            // CPU 0 has no such file, or should stay online.
            .filter(|path| path.exists() && !path.starts_with("/sys/devices/system/cpu/cpu0"))
            .collect();
        cpus.sort();
        let path = cpus.pop()?;
        let mut guard = Command::new("sh");
        guard
            .args(["-c", "trap '' INT TERM; read -r _; echo 1 > \"$0\""])
            .arg(&path)
            .stdin(Stdio::piped())
            .process_group(0);
        let guard = Self(guard.spawn().expect("the program starts"));
        std::fs::write(&path, "0").ok()?;
        Some(guard)
    }
}

impl Drop for Offline {
    fn drop(&mut self) {
        drop(self.0.stdin.take());
        assert!(
            self.0.wait().expect("the program ends").success(),
            "the CPU could not be set online again"
        );
    }
}

fn a_cpu_that_goes_offline_and_online_loses_no_count() {
    for level in ["stacks", "timeline"] {
        // The CPU goes offline and online again during the recording.
        let storm = Storm::begin();
        let line = format!("record -p {} --duration 1500ms --level {level} --json -", storm.pid());
        let recorder = recorder_at_work(&line);
        pause(200);
        let Some(offline) = Offline::last() else {
            send(&recorder, Signal::SIGKILL);
            drop(recorder.wait_with_output());
            skip("no CPU of this machine can be set offline");
        };
        pause(300);
        drop(offline);
        let output = recorder.wait_with_output().expect("the program ends");
        assert_eq!(output.status.code(), Some(0), "{level}: {}", stderr(&output));
        counts_hold(&json_of(&output));

        // The CPU is offline when the recording begins and goes online during it.
        let offline = Offline::last().expect("the CPU can be set offline again");
        let recorder = recorder_at_work(&line);
        pause(200);
        drop(offline);
        let output = recorder.wait_with_output().expect("the program ends");
        assert_eq!(output.status.code(), Some(0), "{level}: {}", stderr(&output));
        counts_hold(&json_of(&output));
    }
}

/// Runs ctxtrace with these arguments while `folder` is an almost full file system. Standard output is that of ctxtrace, followed
/// by an empty line, the content of `folder/x`, and the names of the files in `folder`.
fn on_a_full_disk(folder: &Path, line: &str) -> Output {
    let script = format!(
        "mount -t tmpfs -o size=64k none {0} && echo old > {0}/x && dd if=/dev/zero of={0}/fill bs=4k count=14 2>/dev/null; \
         {CTXTRACE} {line}; status=$?; echo; cat {0}/x; ls -A {0}; exit $status",
        folder.display()
    );
    Command::new("unshare")
        .args(["--mount", "sh", "-c", &script])
        .output()
        .expect("the program starts")
}

fn every_output_reports_a_full_disk() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let path = folder.path().display();
    for option in ["--json", "--folded", "--wakeups-flamegraph"] {
        let line = format!("run --mode task-pool --iterations 20000 {option} {path}/x");
        let output = on_a_full_disk(folder.path(), &line);
        assert_eq!(output.status.code(), Some(1), "{option}: {}", stderr(&output));
        assert!(
            stderr(&output).contains("No space left on device"),
            "{}",
            stderr(&output)
        );
        assert!(
            stdout(&output).ends_with("\nold\nfill\nx\n"),
            "the old file must be unchanged, and no other file may remain: {}",
            stdout(&output)
        );
        assert!(stdout(&output).contains("difference 0"), "the table is missing");
    }
    // A run whose capture does not fit the disk goes on to its end.
    let line = format!("run --mode process --level timeline --iterations 20000 -o {path}/y");
    let output = on_a_full_disk(folder.path(), &line);
    assert_eq!(output.status.code(), Some(1), "{}", stderr(&output));
    assert!(
        stderr(&output).contains("/y: No space left on device"),
        "{}",
        stderr(&output)
    );
    assert!(
        stdout(&output).contains("difference 0"),
        "the table is missing: {}",
        stdout(&output)
    );
}

fn ten_recordings_in_a_row_leave_nothing_open() {
    let descriptors = || std::fs::read_dir("/proc/self/fd").expect("/proc is readable").count();
    let threads = || std::fs::read_dir("/proc/self/task").expect("/proc is readable").count();
    let children = || {
        let path = format!("/proc/self/task/{}/children", std::process::id());
        std::fs::read_to_string(path).unwrap_or_default()
    };
    // The first recording opens what stays open for the whole process.
    drop(trace_program("root"));
    let kinds = ["map", "link", "prog"];
    let before = kinds.map(held_by_no_process);
    // An earlier test that failed may have left a child process.
    let (open, running, processes) = (descriptors(), threads(), children());
    for _ in 0..10 {
        drop(trace_program("root"));
    }
    assert_eq!((descriptors(), threads()), (open, running));
    // The kernel frees programs and maps shortly after their last descriptor is closed.
    wait_until("maps, links and programs are gone", || {
        kinds
            .iter()
            .zip(&before)
            .all(|(kind, before)| held_by_no_process(kind).is_subset(before))
    });
    assert_eq!(children(), processes, "a recording has left a child process");
}
