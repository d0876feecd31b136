//! Functions that several test modules use: they run `ctxtrace`, trace a test program, and find BPF objects and processes.

use std::collections::BTreeSet;
use std::ffi::OsStr;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::Duration;

use ctxtrace::capture::{RunningKernel, Settings};
use ctxtrace::run::watch::{Observer, OnInterrupt, RecordedRun, Recorder};
use ctxtrace::tracee::environment::Environment;
use ctxtrace::tracee::launch;
use ctxtrace_analysis::correlate::ledger::{Ledger, ledger};
use ctxtrace_analysis::correlate::reconcile::{Reconciliation, reconcile};
use ctxtrace_analysis::correlate::tasks;
use ctxtrace_common::ledger::Class;
use ctxtrace_format::Level;
use ctxtrace_format::programs::LocatorChoice;
use ctxtrace_format::run::Run;
use procfs::process::Process;
use serde_json::Value;

use crate::harness::require_program;

/// The command under test.
pub(crate) const CTXTRACE: &str = env!("CARGO_BIN_EXE_ctxtrace");

/// `ctxtrace` with these arguments, separated by spaces.
pub(crate) fn command(line: &str) -> Command {
    let mut command = Command::new(CTXTRACE);
    command
        .args(line.split_whitespace())
        .stdin(Stdio::null())
        .env_remove("SUDO_UID")
        .env_remove("SUDO_GID")
        .env_remove("CLICOLOR_FORCE");
    command
}

/// Runs `ctxtrace` with these arguments, waits until it ends, and returns its output.
pub(crate) fn ctxtrace(line: &str) -> Output {
    command(line).output().expect("ctxtrace starts")
}

/// Runs `ctxtrace run … --json -`, checks that its exit status is 0, and returns the JSON.
pub(crate) fn run_json(line: &str) -> Value {
    let output = ctxtrace(&format!("run {line} --json -"));
    assert_eq!(output.status.code(), Some(0), "{line}: {}", stderr(&output));
    serde_json::from_slice(&output.stdout).expect("nothing but JSON on standard output")
}

pub(crate) fn stderr(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

/// Returns standard error with every run of white space replaced by one space, so that line breaks do not matter.
pub(crate) fn said(output: &Output) -> String {
    let words: Vec<String> = stderr(output).split_whitespace().map(str::to_owned).collect();
    words.join(" ")
}

pub(crate) fn stdout(output: &Output) -> String {
    String::from_utf8_lossy(&output.stdout).into_owned()
}

/// Returns the integer at a JSON pointer, as in `number(&json, "/kernel_switches/total")`. Panics if it is not an integer.
pub(crate) fn number(json: &Value, pointer: &str) -> i64 {
    json.pointer(pointer)
        .and_then(Value::as_i64)
        .unwrap_or_else(|| panic!("{pointer} is not an integer in {json:#}"))
}

/// Traces one of [`crate::programs`] with the default settings. Panics if the program fails.
pub(crate) fn trace_program(name: &str) -> Run {
    trace_program_by(name, LocatorChoice::Auto)
}

/// Traces one of [`crate::programs`] with this choice of locators.
pub(crate) fn trace_program_by(name: &str, locator: LocatorChoice) -> Run {
    let executable = std::env::current_exe().expect("the path of this executable");
    let traced = trace(&executable, &[(crate::programs::VARIABLE, name)], locator).run;
    assert_eq!(
        traced.exit.expect("the exit status is known").status,
        Some(0),
        "the program {name} failed"
    );
    traced
}

/// Traces one of [`crate::programs`] at level `timeline` and passes all events to `observer`.
pub(crate) fn trace_events(name: &str, observer: &mut dyn Observer) -> Run {
    let settings = Settings {
        level: Level::Timeline,
        ..Settings::default()
    };
    trace_program_at(settings, name, observer).run
}

/// Traces one of [`crate::programs`] at level `timeline` with `hz` CPU samples per second and passes all events to `observer`. The
/// names of stacks in samples are not looked up.
pub(crate) fn trace_samples(name: &str, hz: u32, observer: &mut dyn Observer) -> RecordedRun {
    let settings = Settings {
        level: Level::Timeline,
        sample_hz: Some(hz),
        ..Settings::default()
    };
    trace_program_at(settings, name, observer)
}

fn trace_program_at(settings: Settings, name: &str, observer: &mut dyn Observer) -> RecordedRun {
    let executable = std::env::current_exe().expect("the path of this executable");
    let traced = trace_at(settings, &executable, &[(crate::programs::VARIABLE, name)], observer);
    assert_eq!(
        traced.run.exit.expect("the exit status is known").status,
        Some(0),
        "the program {name} failed"
    );
    traced
}

/// Traces an executable with these environment variables and this choice of locators.
pub(crate) fn trace(executable: &Path, env: &[(&str, &str)], locator: LocatorChoice) -> RecordedRun {
    let settings = Settings {
        locator,
        ..Settings::default()
    };
    trace_at(settings, executable, env, &mut ())
}

fn trace_at(settings: Settings, executable: &Path, env: &[(&str, &str)], observer: &mut dyn Observer) -> RecordedRun {
    let mut environment = Environment::for_user(None);
    for &(name, value) in env {
        environment = environment.with(name, value);
    }
    let words = [executable.as_os_str()];
    let command = launch_command(executable, &words, &environment);
    let traced = with_recorder(settings, None, |recorder| recorder.command(&command, observer));
    let mut recorded = traced.expect("the program is traced");
    recorded.name_stacks(None);
    recorded
}

/// Returns the description of a program that a [`Recorder`] starts as the user of the tests. `words` are its name and its arguments.
pub(crate) fn launch_command<'a>(
    program: &'a Path,
    words: &'a [&'a OsStr],
    environment: &'a Environment,
) -> launch::Command<'a> {
    launch::Command {
        program,
        args: words,
        env: environment,
        inherit: &[],
        user: None,
        own_group: true,
    }
}

/// Calls `record` with a recorder that records in this process, for `duration` at most.
pub(crate) fn with_recorder<T>(
    settings: Settings,
    duration: Option<Duration>,
    record: impl FnOnce(&Recorder<'_>) -> T,
) -> T {
    record(&Recorder {
        kernel: &RunningKernel::discover().expect("a kernel with BTF"),
        settings,
        interrupts: None,
        on_interrupt: OnInterrupt::Kill,
        duration,
    })
}

/// Returns the ledger of a traced program. Panics if its counts do not add up to the number of kernel switches.
pub(crate) fn ledger_of(traced: &Run) -> Ledger {
    let ledger = ledger(&traced.aggregates);
    assert_eq!(ledger.count(), traced.aggregates.counters.switches, "{ledger:#?}");
    ledger
}

/// Returns the number of kernel switches of one class while a task of this name was polled.
pub(crate) fn switches_of(traced: &Run, task: &str, class: Class) -> u64 {
    let ledger = ledger_of(traced);
    let rows = ledger.rows.iter().filter(|(entry, _)| entry.class == class);
    rows.filter(|(entry, _)| {
        entry
            .task
            .is_some_and(|key| tasks::name(&traced.aggregates, key) == task)
    })
    .map(|(_, sum)| sum.count)
    .sum()
}

/// Returns the reconciliation of a traced program. Panics if traced counts differ from the kernel's, or if the total does not match
/// rusage.
pub(crate) fn reconciled(traced: &Run) -> Reconciliation {
    let reconciliation = reconcile(&traced.aggregates.threads, traced.launched.as_ref());
    assert!(reconciliation.holds(), "{reconciliation:#?}");
    let rusage = reconciliation.rusage.expect("the program was waited for");
    // After the kernel has added the switches of an exiting thread to those of its process, the thread is switched out once more,
    // and additionally each time that it is preempted before that. Rusage lacks these switches.
    let preempted: u64 = traced
        .aggregates
        .threads
        .iter()
        .map(|record| record.thread.traced_involuntary)
        .sum();
    let least = rusage.lower.saturating_sub(preempted);
    assert!((least..=rusage.upper).contains(&rusage.switches), "{rusage:?}");
    reconciliation
}

/// Checks the total of a JSON report against rusage, as [`reconciled`] does for a [`Run`].
pub(crate) fn rusage_agrees(json: &Value) {
    let rusage = |field: &str| number(json, &format!("/reconciliation/rusage/{field}"));
    let least = rusage("lower") - number(json, "/kernel_switches/involuntary");
    assert!(
        (least..=rusage("upper")).contains(&rusage("switches")),
        "{:#}",
        json["reconciliation"]
    );
}

/// Returns the ids of all BPF objects of a kind (`prog`, `map` or `link`) in the kernel.
pub(crate) fn bpf_objects(kind: &str) -> BTreeSet<u64> {
    require_program("bpftool", "bpftool");
    let output = Command::new("bpftool")
        .args(["--json", kind, "show"])
        .output()
        .expect("the program starts");
    let objects: Value = serde_json::from_slice(&output.stdout).expect("valid JSON");
    let objects = objects.as_array().map(Vec::as_slice).unwrap_or_default();
    objects.iter().filter_map(|object| object["id"].as_u64()).collect()
}

/// Returns the ids of the BPF objects of a kind that a process holds by its file descriptors. A descriptor of a link also holds the
/// link's program.
pub(crate) fn held_by(kind: &str, process: &str) -> BTreeSet<u64> {
    let descriptors = std::fs::read_dir(format!("/proc/{process}/fdinfo"));
    let descriptors = descriptors.into_iter().flatten().flatten();
    let field = format!("{kind}_id:");
    descriptors
        .filter_map(|descriptor| std::fs::read_to_string(descriptor.path()).ok())
        .filter_map(|info| {
            let line = info.lines().find_map(|line| line.strip_prefix(&field))?;
            line.trim().parse::<u64>().ok()
        })
        .collect()
}

/// Returns the ids of the BPF objects of a kind that no process has a descriptor of. They include the objects that a tracer failed
/// to release, and exclude those that other running tracers on this machine use.
pub(crate) fn held_by_no_process(kind: &str) -> BTreeSet<u64> {
    let mut objects = bpf_objects(kind);
    let processes = std::fs::read_dir("/proc").expect("/proc is readable").flatten();
    for process in processes {
        let name = process.file_name().to_string_lossy().into_owned();
        if name.bytes().all(|byte| byte.is_ascii_digit()) {
            for id in held_by(kind, &name) {
                objects.remove(&id);
            }
        }
    }
    objects
}

/// Waits until the first thread of a process has made at least `switches` context switches, or the process has ended.
pub(crate) fn wait_for_switches(pid: i32, switches: u64) {
    wait_until("the process has made the context switches", || {
        switches_of_process(pid).is_none_or(|made| made >= switches)
    });
}

/// Returns the number of context switches of a process's first thread, or `None` if the process has ended.
pub(crate) fn switches_of_process(pid: i32) -> Option<u64> {
    let status = Process::new(pid).ok()?.status().ok()?;
    Some(status.voluntary_ctxt_switches? + status.nonvoluntary_ctxt_switches?)
}

/// Returns the `/proc` folders of all processes other than this one whose command line contains `text`.
pub(crate) fn processes_with(text: &str) -> Vec<PathBuf> {
    let this = PathBuf::from(format!("/proc/{}", std::process::id()));
    std::fs::read_dir("/proc")
        .expect("/proc is readable")
        .filter_map(|entry| Some(entry.ok()?.path()))
        .filter(|path| *path != this)
        .filter(|path| {
            // Each argument ends with a zero byte.
            std::fs::read(path.join("cmdline"))
                .is_ok_and(|line| String::from_utf8_lossy(&line).replace('\0', " ").contains(text))
        })
        .collect()
}

/// Waits until `condition` holds, and panics after two minutes. The limit is generous because a condition may take ten seconds on a
/// machine that is busy with other programs.
pub(crate) fn wait_until(what: &str, mut condition: impl FnMut() -> bool) {
    for _ in 0..12_000 {
        if condition() {
            return;
        }
        std::thread::sleep(Duration::from_millis(10));
    }
    panic!("this did not become true within two minutes: {what}");
}

/// Waits until a `ctxtrace run` has started its workload, and returns the process of the workload.
pub(crate) fn wait_for_workload(tracer: &Child) -> Process {
    let mut workload = None;
    wait_until("the workload runs", || {
        workload = workload_of(tracer.id());
        workload.is_some()
    });
    workload.expect("the workload was found above")
}

fn workload_of(tracer: u32) -> Option<Process> {
    let is_child = |process: &Process| process.stat().is_ok_and(|stat| stat.ppid == tracer as i32);
    // Before its `execve` the child still has the tracer's command line.
    let is_workload = |process: &Process| {
        let line = process.cmdline().unwrap_or_default();
        line.get(1).is_some_and(|word| word == "workload")
    };
    procfs::process::all_processes()
        .ok()?
        .filter_map(Result::ok)
        .find(|process| is_child(process) && is_workload(process))
}

/// Starts commands whose output a test reads.
pub(crate) trait SpawnPiped {
    /// Starts the command with pipes for its standard output and standard error.
    fn spawn_piped(&mut self) -> Child;
}

impl SpawnPiped for Command {
    fn spawn_piped(&mut self) -> Child {
        self.stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .expect("the program starts")
    }
}

/// Starts `ctxtrace` with these arguments, which attach it to a running process, and returns when it records. Its standard output
/// and standard error are piped.
pub(crate) fn recorder_at_work(line: &str) -> Child {
    at_work(command(line))
}

/// Starts a command that attaches `ctxtrace` to a running process, and returns when it records. Its standard output and standard
/// error are piped.
pub(crate) fn at_work(mut recorder: Command) -> Child {
    let mut recorder = recorder.spawn_piped();
    let mut said = Vec::new();
    let mut byte = [0];
    while !String::from_utf8_lossy(&said).contains("; Ctrl-C ends it") {
        let stderr = recorder.stderr.as_mut().expect("the stream is piped");
        let read = stderr.read(&mut byte).expect("readable");
        assert_eq!(read, 1, "ctxtrace ended early: {}", String::from_utf8_lossy(&said));
        said.extend(byte);
    }
    recorder
}
