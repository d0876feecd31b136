//! Bad days in the middle of a storm of switches: what is killed, stopped, full, or not alone. `docs/FAULTS.md` has the table.

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
    CTXTRACE, command, ctxtrace, held_by_no_process, number, recorder_at_work, said, stderr, stdout,
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
    ("every_output_tells_of_a_full_disk", every_output_tells_of_a_full_disk),
];

/// Tests that change the machine for everyone on it.
pub(crate) const LONG_TESTS: &[(&str, fn())] = &[
    (
        "a_jump_of_the_wall_clock_is_no_time",
        a_jump_of_the_wall_clock_is_no_time,
    ),
    (
        "a_cpu_that_goes_and_comes_loses_no_count",
        a_cpu_that_goes_and_comes_loses_no_count,
    ),
    (
        "ten_recordings_in_a_row_leave_nothing_open",
        ten_recordings_in_a_row_leave_nothing_open,
    ),
];

/// A process that is killed when the test is over.
struct Storm(Child);

impl Storm {
    /// Four threads that wake each other and go to sleep, for ever.
    fn begin() -> Self {
        let executable = std::env::current_exe().expect("a path");
        let storm = Command::new(executable)
            .env(VARIABLE, "endless-storm")
            .spawn()
            .expect("started");
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

/// Whatever happened, the counts are the kernel's and the ledger has every one of them.
fn counts_hold(json: &Value) {
    assert!(number(json, "/kernel_switches/total") > 1_000, "{json:#}");
    assert_eq!(number(json, "/reconciliation/difference"), 0, "{json:#}");
    assert_eq!(json["ledger_adds_up"], true, "{json:#}");
}

fn send(process: &Child, signal: Signal) {
    kill(Pid::from_raw(process.id() as i32), signal).expect("sent");
}

fn pause(ms: u64) {
    std::thread::sleep(Duration::from_millis(ms));
}

fn long_run(line: &str) -> Child {
    let run = command(line)
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("started");
    wait_for_switches(wait_for_workload(&run).pid, 1_000);
    run
}

fn a_target_killed_in_a_storm_is_counted_to_the_end() {
    for level in ["stacks", "timeline"] {
        let mut storm = Storm::begin();
        let recorder = recorder_at_work(&format!("record -p {} --level {level} --json -", storm.pid()));
        pause(300);
        storm.0.kill().expect("killed");
        storm.0.wait().expect("ended");
        let output = recorder.wait_with_output().expect("ended");
        assert_eq!(output.status.code(), Some(0), "{}", stderr(&output));
        let json = json_of(&output);
        counts_hold(&json);
        let ledger = json["ledger"].as_array().expect("a list");
        let exited = ledger.iter().find(|row| row["class"] == "exited").expect("they ended");
        assert_eq!(number(exited, "/count"), 5, "the main thread and four");
        if level == "timeline" {
            assert_eq!(json["timeline"]["agrees"], true);
        }
    }
}

fn a_bounded_capture_outlives_its_tracer() {
    const MOST: u64 = 1 << 20;
    let folder = tempfile::tempdir().expect("a folder");
    let capture = folder.path().join("run.ctx");
    let path = capture.display();
    let mut run = long_run(&format!(
        "run --mode process --iterations 100000000 --level timeline --max-size 1MiB -o {path}"
    ));
    wait_until("the first state is saved", || capture.exists());
    let file = || std::fs::metadata(&capture).expect("there since the first state");
    let first = file().ino();
    let succeeded = (0..6_000).any(|_| {
        pause(10);
        assert!(file().len() <= MOST);
        file().ino() != first
    });
    assert!(succeeded, "it has become too long, and another file has come");
    wait_until("there is a state in the capture", || {
        let report = ctxtrace(&format!("report {path} --json -"));
        assert!(file().len() <= MOST);
        !report.stdout.is_empty() && number(&json_of(&report), "/timeline/dropped") > 0
    });
    send(&run, Signal::SIGKILL);
    run.wait().expect("ended");
    let names: Vec<_> = std::fs::read_dir(folder.path()).expect("a folder").collect();
    assert_eq!(names.len(), 1, "nothing is left beside it: {names:?}");
    let report = ctxtrace(&format!("report {path} --json -"));
    assert_eq!(report.status.code(), Some(1), "{}", stderr(&report));
    let json = json_of(&report);
    // Its ledger may be a few switches off: the tables were read while the threads went on.
    assert!(number(&json, "/kernel_switches/total") > 1_000);
    assert_eq!(number(&json, "/reconciliation/difference"), 0);
    assert!(number(&json, "/timeline/dropped") > 0);
    assert!(number(&json, "/timeline/events") > 0);
    assert!(number(&json, "/timeline/begins_ns") > 0);
    assert_eq!(json["timeline"]["agrees"], Value::Null);
    assert!(
        said(&report).contains("older ones were not kept"),
        "{}",
        stderr(&report)
    );
}

fn a_stopped_tracer_loses_events_and_no_counts() {
    let run = long_run("run --mode process --iterations 200000 --level timeline --ring-size 64KiB --json -");
    send(&run, Signal::SIGSTOP);
    // More switches than a ring has room for.
    let workload = wait_for_workload(&run).pid;
    let before = switches_of_process(workload).expect("it has much to do yet");
    wait_for_switches(workload, before + 20_000);
    send(&run, Signal::SIGCONT);
    let output = run.wait_with_output().expect("ended");
    assert_eq!(output.status.code(), Some(0), "{}", stderr(&output));
    let json = json_of(&output);
    counts_hold(&json);
    assert_eq!(number(&json, "/lost/events"), 0);
    assert!(number(&json, "/lost/timeline_events") > 0);
    assert!(said(&output).contains("events of the timeline"), "{}", stderr(&output));
    // Threads that end meanwhile leave their records in a ring.
    let executable = std::env::current_exe().expect("a path");
    let recorder = command("record --json -")
        .arg("--")
        .arg(executable)
        .env(VARIABLE, "thread-storm")
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("started");
    wait_until("it has a child", || {
        std::fs::read_to_string(format!("/proc/{0}/task/{0}/children", recorder.id()))
            .is_ok_and(|children| !children.trim().is_empty())
    });
    send(&recorder, Signal::SIGSTOP);
    pause(300);
    send(&recorder, Signal::SIGCONT);
    let output = recorder.wait_with_output().expect("ended");
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
        let output = recorder.wait_with_output().expect("ended");
        assert_eq!(output.status.code(), Some(0), "{}", stderr(&output));
        counts_hold(&json_of(&output));
    }
}

/// The wall clock, put back by the monotonic one when the test is over.
struct Jump {
    monotonic: Duration,
    realtime: Duration,
}

impl Jump {
    /// Moves it ahead; `None` where it may not be set.
    fn ahead(by: Duration) -> Option<Self> {
        let now = |clock| clock_gettime(clock).map(Duration::from).expect("a clock");
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
        let monotonic = Duration::from(clock_gettime(ClockId::CLOCK_MONOTONIC).expect("a clock"));
        let now = self.realtime + (monotonic - self.monotonic);
        clock_settime(ClockId::CLOCK_REALTIME, now.into()).expect("it could be set before");
    }
}

fn a_jump_of_the_wall_clock_is_no_time() {
    const HOUR: Duration = Duration::from_secs(3_600);
    let run = long_run("run --mode process --iterations 60000 --json -");
    let Some(jump) = Jump::ahead(HOUR) else {
        send(&run, Signal::SIGKILL);
        drop(run.wait_with_output());
        skip("the wall clock may not be set here");
    };
    pause(30);
    drop(jump);
    let output = run.wait_with_output().expect("ended");
    assert_eq!(output.status.code(), Some(0), "{}", stderr(&output));
    let json = json_of(&output);
    counts_hold(&json);
    for latency in ["off_cpu", "blocked", "run_queue", "on_cpu", "wake_to_run"] {
        let max = number(&json, &format!("/latency/{latency}/max_ns"));
        assert!(max < HOUR.as_nanos() as i64 / 2, "{latency}: {max}");
    }
    assert!(number(&json, "/workload/elapsed_ns") < HOUR.as_nanos() as i64 / 2);
}

/// A CPU that is switched off. A shell switches it on again when its standard input ends, so even a test that is killed leaves no CPU
/// switched off.
struct Offline(Child);

impl Offline {
    /// The last CPU, if this machine lets go of it.
    fn last() -> Option<Self> {
        let mut cpus: Vec<_> = std::fs::read_dir("/sys/devices/system/cpu")
            .ok()?
            .filter_map(|entry| Some(entry.ok()?.path().join("online")))
            // CPU 0 has no such file, or should not be touched.
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
        let guard = Self(guard.spawn().expect("started"));
        std::fs::write(&path, "0").ok()?;
        Some(guard)
    }
}

impl Drop for Offline {
    fn drop(&mut self) {
        drop(self.0.stdin.take());
        assert!(self.0.wait().expect("ended").success(), "the CPU is switched off still");
    }
}

fn a_cpu_that_goes_and_comes_loses_no_count() {
    for level in ["stacks", "timeline"] {
        // It goes and comes.
        let storm = Storm::begin();
        let line = format!("record -p {} --duration 1500ms --level {level} --json -", storm.pid());
        let recorder = recorder_at_work(&line);
        pause(200);
        let Some(offline) = Offline::last() else {
            send(&recorder, Signal::SIGKILL);
            drop(recorder.wait_with_output());
            skip("no CPU can be switched off here");
        };
        pause(300);
        drop(offline);
        let output = recorder.wait_with_output().expect("ended");
        assert_eq!(output.status.code(), Some(0), "{level}: {}", stderr(&output));
        counts_hold(&json_of(&output));

        // It comes only when the recording has begun.
        let offline = Offline::last().expect("as before");
        let recorder = recorder_at_work(&line);
        pause(200);
        drop(offline);
        let output = recorder.wait_with_output().expect("ended");
        assert_eq!(output.status.code(), Some(0), "{level}: {}", stderr(&output));
        counts_hold(&json_of(&output));
    }
}

/// Runs a command line where `folder` is a disk with no room left; what it says is returned, then what is in `folder/x`.
fn on_a_full_disk(folder: &Path, line: &str) -> Output {
    let script = format!(
        "mount -t tmpfs -o size=64k none {0} && echo old > {0}/x && dd if=/dev/zero of={0}/fill bs=4k count=14 2>/dev/null; \
         {CTXTRACE} {line}; status=$?; echo; cat {0}/x; ls -A {0}; exit $status",
        folder.display()
    );
    Command::new("unshare")
        .args(["--mount", "sh", "-c", &script])
        .output()
        .expect("started")
}

fn every_output_tells_of_a_full_disk() {
    let folder = tempfile::tempdir().expect("a folder");
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
            "the old file is as it was, and nothing is beside it: {}",
            stdout(&output)
        );
        assert!(stdout(&output).contains("difference 0"), "the table is there");
    }
    // The run of which the capture has no room goes on to its end.
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
        "the table is there: {}",
        stdout(&output)
    );
}

fn ten_recordings_in_a_row_leave_nothing_open() {
    let descriptors = || std::fs::read_dir("/proc/self/fd").expect("/proc").count();
    let threads = || std::fs::read_dir("/proc/self/task").expect("/proc").count();
    let children = || {
        let path = format!("/proc/self/task/{}/children", std::process::id());
        std::fs::read_to_string(path).unwrap_or_default()
    };
    // What is opened once and kept is opened now.
    drop(trace_program("root"));
    let kinds = ["map", "link", "prog"];
    let before = kinds.map(held_by_no_process);
    // A test that failed before this one may have left a process.
    let (open, running, processes) = (descriptors(), threads(), children());
    for _ in 0..10 {
        drop(trace_program("root"));
    }
    assert_eq!((descriptors(), threads()), (open, running));
    // The kernel frees programs and maps a moment after their last descriptor is closed.
    wait_until("maps, links and programs are gone", || {
        kinds
            .iter()
            .zip(&before)
            .all(|(kind, before)| held_by_no_process(kind).is_subset(before))
    });
    assert_eq!(children(), processes, "no process is left");
}
