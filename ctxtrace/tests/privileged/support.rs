//! What the tests share: running the command, tracing a program of ours, looking at what is left.

use std::collections::BTreeSet;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};

use ctxtrace::capture::{Kernel, Settings};
use ctxtrace::correlate::ledger::{Ledger, ledger};
use ctxtrace::correlate::reconcile::{Reconciliation, reconcile};
use ctxtrace::correlate::tasks;
use ctxtrace::run::watch::{Observer, OnInterrupt, Recorder};
use ctxtrace::symbolize::symbols;
use ctxtrace::target::environment::Environment;
use ctxtrace::target::launch;
use ctxtrace::target::programs::LocatorChoice;
use ctxtrace::trace::Level;
use ctxtrace::trace::run::Run;
use ctxtrace_common::ledger::Class;
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

/// Runs `ctxtrace` to its end.
pub(crate) fn ctxtrace(line: &str) -> Output {
    command(line).output().expect("the command starts")
}

/// Runs `ctxtrace run … --json -` and returns the JSON, having checked that all is well.
pub(crate) fn run_json(line: &str) -> Value {
    let output = ctxtrace(&format!("run {line} --json -"));
    assert_eq!(output.status.code(), Some(0), "{line}: {}", stderr(&output));
    serde_json::from_slice(&output.stdout).expect("nothing but JSON on standard output")
}

pub(crate) fn stderr(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

/// The same with one space between words, wherever lines were broken.
pub(crate) fn said(output: &Output) -> String {
    let words: Vec<String> = stderr(output).split_whitespace().map(str::to_owned).collect();
    words.join(" ")
}

pub(crate) fn stdout(output: &Output) -> String {
    String::from_utf8_lossy(&output.stdout).into_owned()
}

/// A number out of a JSON value: `number(&json, "/kernel_switches/total")`.
pub(crate) fn number(json: &Value, pointer: &str) -> i64 {
    json.pointer(pointer)
        .and_then(Value::as_i64)
        .unwrap_or_else(|| panic!("{pointer} is no number in {json:#}"))
}

/// Traces one of [`crate::programs`].
pub(crate) fn trace_program(name: &str) -> Run {
    trace_program_by(name, LocatorChoice::Auto)
}

/// The same, with tasks found in this way.
pub(crate) fn trace_program_by(name: &str, locator: LocatorChoice) -> Run {
    let executable = std::env::current_exe().expect("a path");
    let traced = trace(&executable, &[(crate::programs::VARIABLE, name)], locator);
    assert_eq!(
        traced.exit.expect("waited for").status,
        Some(0),
        "the program {name} failed"
    );
    traced
}

/// Traces one of [`crate::programs`] with all its events, which go to `observer`.
pub(crate) fn trace_events(name: &str, observer: &mut dyn Observer) -> Run {
    let settings = Settings {
        level: Level::Timeline,
        ..Settings::default()
    };
    trace_program_at(settings, name, observer)
}

/// The same, with so many samples a second besides.
pub(crate) fn trace_samples(name: &str, hz: u32, observer: &mut dyn Observer) -> Run {
    let settings = Settings {
        level: Level::Timeline,
        sample_hz: Some(hz),
        ..Settings::default()
    };
    trace_program_at(settings, name, observer)
}

fn trace_program_at(settings: Settings, name: &str, observer: &mut dyn Observer) -> Run {
    let executable = std::env::current_exe().expect("a path");
    let traced = trace_at(settings, &executable, &[(crate::programs::VARIABLE, name)], observer);
    assert_eq!(
        traced.exit.expect("waited for").status,
        Some(0),
        "the program {name} failed"
    );
    traced
}

/// Traces an executable.
pub(crate) fn trace(executable: &Path, env: &[(&str, &str)], locator: LocatorChoice) -> Run {
    let settings = Settings {
        locator,
        ..Settings::default()
    };
    trace_at(settings, executable, env, &mut ())
}

fn trace_at(settings: Settings, executable: &Path, env: &[(&str, &str)], observer: &mut dyn Observer) -> Run {
    let mut environment = Environment::for_user(None);
    for &(name, value) in env {
        environment = environment.with(name, value);
    }
    let command = launch::Command {
        program: executable,
        args: &[executable.as_os_str()],
        env: &environment,
        inherit: &[],
        user: None,
        own_group: true,
    };
    let recorder = Recorder {
        kernel: &Kernel::discover().expect("a kernel with BTF"),
        settings,
        interrupts: None,
        on_interrupt: OnInterrupt::Kill,
        duration: None,
    };
    let mut run = recorder.command(&command, observer).expect("traced").run;
    run.symbols = symbols::resolve(&run.aggregates, &run.samples);
    run
}

/// The ledger of a traced program, which must add up.
pub(crate) fn ledger_of(traced: &Run) -> Ledger {
    let ledger = ledger(&traced.aggregates);
    assert_eq!(ledger.count(), traced.aggregates.counters.switches, "{ledger:#?}");
    ledger
}

/// Kernel switches of one class while the task of this name was polled.
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

/// The reconciliation of a traced program, which must hold.
pub(crate) fn reconciled(traced: &Run) -> Reconciliation {
    let reconciliation = reconcile(&traced.aggregates.threads, traced.launched.as_ref());
    assert!(reconciliation.holds(), "{reconciliation:#?}");
    let rusage = reconciliation.rusage.expect("waited for");
    // A thread that ends is switched out at least once after its switches were added to its process's, and each time that it is
    // preempted in between.
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

/// Checks the sums of a run of which the JSON is this, as [`reconciled`] does.
pub(crate) fn rusage_agrees(json: &Value) {
    let rusage = |field: &str| number(json, &format!("/reconciliation/rusage/{field}"));
    let least = rusage("lower") - number(json, "/kernel_switches/involuntary");
    assert!(
        (least..=rusage("upper")).contains(&rusage("switches")),
        "{:#}",
        json["reconciliation"]
    );
}

/// Ids of all BPF objects of a kind (`prog`, `map` or `link`) that the kernel has.
pub(crate) fn bpf_objects(kind: &str) -> BTreeSet<u64> {
    require_program("bpftool", "bpftool");
    let output = Command::new("bpftool")
        .args(["--json", kind, "show"])
        .output()
        .expect("started");
    let objects: Value = serde_json::from_slice(&output.stdout).expect("JSON");
    let objects = objects.as_array().map(Vec::as_slice).unwrap_or_default();
    objects.iter().filter_map(|object| object["id"].as_u64()).collect()
}

/// Ids of the BPF objects of a kind that a process has descriptors of; a descriptor of a link holds the link's program, too.
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

/// Ids of the BPF objects of a kind that no process has a descriptor of. What a tracer has left behind is among them; what other tracers
/// on this machine use is not.
pub(crate) fn held_by_no_process(kind: &str) -> BTreeSet<u64> {
    let mut objects = bpf_objects(kind);
    let processes = std::fs::read_dir("/proc").expect("/proc").flatten();
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

/// Waits until a process has made so many context switches.
pub(crate) fn wait_for_switches(pid: i32, switches: u64) {
    wait_until("the process has made its switches", || {
        switches_of_process(pid).is_none_or(|made| made >= switches)
    });
}

/// The context switches of a process's first thread. `None` if the process has ended.
pub(crate) fn switches_of_process(pid: i32) -> Option<u64> {
    let status = Process::new(pid).ok()?.status().ok()?;
    Some(status.voluntary_ctxt_switches? + status.nonvoluntary_ctxt_switches?)
}

/// Processes whose command line contains `text`, but for this one.
pub(crate) fn processes_with(text: &str) -> Vec<PathBuf> {
    let this = PathBuf::from(format!("/proc/{}", std::process::id()));
    std::fs::read_dir("/proc")
        .expect("/proc")
        .filter_map(|entry| Some(entry.ok()?.path()))
        .filter(|path| *path != this)
        .filter(|path| {
            // Arguments end with a zero byte each.
            std::fs::read(path.join("cmdline"))
                .is_ok_and(|line| String::from_utf8_lossy(&line).replace('\0', " ").contains(text))
        })
        .collect()
}

/// Waits until `condition` holds. The limit of two minutes ends a test that would hang; on a machine that is busy with other programs a
/// condition may well take ten seconds.
pub(crate) fn wait_until(what: &str, mut condition: impl FnMut() -> bool) {
    for _ in 0..12_000 {
        if condition() {
            return;
        }
        std::thread::sleep(std::time::Duration::from_millis(10));
    }
    panic!("waited two minutes in vain until {what}");
}

/// Waits until a `ctxtrace run` has started its workload, and returns the workload's process.
pub(crate) fn wait_for_workload(tracer: &Child) -> Process {
    let mut workload = None;
    wait_until("the workload runs", || {
        workload = workload_of(tracer.id());
        workload.is_some()
    });
    workload.expect("just seen")
}

fn workload_of(tracer: u32) -> Option<Process> {
    let is_child = |process: &Process| process.stat().is_ok_and(|stat| stat.ppid == tracer as i32);
    // Before its `execve` the child has the tracer's command line.
    let is_workload = |process: &Process| {
        let line = process.cmdline().unwrap_or_default();
        line.get(1).is_some_and(|word| word == "workload")
    };
    procfs::process::all_processes()
        .ok()?
        .filter_map(Result::ok)
        .find(|process| is_child(process) && is_workload(process))
}

/// A recorder of a running process that is at work; what it writes is piped.
pub(crate) fn recorder_at_work(line: &str) -> Child {
    at_work(command(line))
}

/// Starts a recorder of a running process, and returns when it is at work.
pub(crate) fn at_work(mut recorder: Command) -> Child {
    let mut recorder = recorder
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("started");
    let mut said = Vec::new();
    let mut byte = [0];
    while !String::from_utf8_lossy(&said).contains("; Ctrl-C ends it") {
        let stderr = recorder.stderr.as_mut().expect("piped");
        let read = stderr.read(&mut byte).expect("readable");
        assert_eq!(read, 1, "it ended early: {}", String::from_utf8_lossy(&said));
        said.extend(byte);
    }
    recorder
}
