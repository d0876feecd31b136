//! Files for Perfetto and pprof from real runs: they agree with the JSON report.

use std::collections::BTreeMap;
use std::path::Path;
use std::process::{Command, Stdio};

use serde_json::Value;
use tempfile::TempDir;

use crate::decode::perfetto::Trace;
use crate::decode::pprof::Profile;
use crate::go::require_go;
use crate::support::{ctxtrace, number, stderr};

pub(crate) const TESTS: &[(&str, fn())] = &[
    (
        "a_perfetto_trace_has_every_switch_and_wakeup",
        a_perfetto_trace_has_every_switch_and_wakeup,
    ),
    (
        "threads_and_processes_come_and_go_in_a_perfetto_trace",
        threads_and_processes_come_and_go_in_a_perfetto_trace,
    ),
    ("a_perfetto_trace_has_every_poll", a_perfetto_trace_has_every_poll),
    (
        "perfetto_gets_the_median_of_several_runs",
        perfetto_gets_the_median_of_several_runs,
    ),
    (
        "a_pprof_profile_adds_up_to_the_ledger",
        a_pprof_profile_adds_up_to_the_ledger,
    ),
    ("pprof_reads_a_profile", pprof_reads_a_profile),
];

/// Runs `ctxtrace` with these arguments, in which `@` stands for the folder, and additionally writes the JSON report to `run.json`
/// there. Returns the JSON and standard error.
fn run_in(folder: &TempDir, line: &str) -> (Value, String) {
    let place = format!("{}/", folder.path().display());
    let line = format!("{line} --json @run.json").replace('@', &place);
    // Move the option in front of `--`, because what follows belongs to the command.
    let line = match line.split_once(" -- ") {
        Some((options, rest)) => {
            let (command, json) = rest.split_once(" --json").expect("the option was appended above");
            format!("{options} --json{json} -- {command}")
        }
        None => line,
    };
    let output = ctxtrace(&line);
    assert_eq!(output.status.code(), Some(0), "{line}: {}", stderr(&output));
    let json = std::fs::read(folder.path().join("run.json")).expect("the file exists");
    (serde_json::from_slice(&json).expect("valid JSON"), stderr(&output))
}

fn read(path: &Path) -> Vec<u8> {
    std::fs::read(path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

/// Checks that the counts of a trace and of the JSON report are equal. Returns the number of lost intervals, which is the number
/// of slices that may be missing.
fn check(trace: &Trace, json: &Value) -> usize {
    let of_target = trace.switches.iter().filter(|switch| switch.prev != 0).count();
    assert_eq!(of_target as i64, number(json, "/kernel_switches/total"));
    assert_eq!(trace.wakeups.len() as i64, number(json, "/timeline/wakeups"));
    let flows = trace.flows().len() as i64;
    assert_eq!(
        flows,
        number(json, "/latency/wake_to_run/count"),
        "there must be one flow for each wakeup that ended a sleep"
    );
    let lost = number(json, "/lost/intervals") as usize;
    // The thread that a CPU switches from is the one that it switched to before.
    let mut on: BTreeMap<i64, i64> = BTreeMap::new();
    let mut breaks = 0;
    for switch in &trace.switches {
        let before = on.insert(switch.cpu, switch.next).unwrap_or(switch.prev);
        breaks += usize::from(before != switch.prev);
    }
    assert!(breaks <= 2 * lost, "{breaks} breaks, {lost} intervals lost");
    lost
}

fn a_perfetto_trace_has_every_switch_and_wakeup() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let (json, said) = run_in(
        &folder,
        "run --mode task-pool --iterations 50000 --level timeline --perfetto @run.pftrace -o @run.ctx",
    );
    assert!(
        said.contains("run.pftrace  timeline: ") && said.contains("https://ui.perfetto.dev"),
        "{said}"
    );
    let bytes = read(&folder.path().join("run.pftrace"));
    let trace = Trace::read(&bytes);
    let lost = check(&trace, &json);

    // Each switch-out during a poll ends a slice of its task.
    let ledger = json["ledger"].as_array().expect("an array");
    let with_task = ledger.iter().filter(|row| !row["task"].is_null());
    let known: i64 = with_task.map(|row| number(row, "/count")).sum();
    let slices = trace.task_slices();
    assert!(
        slices.len() as i64 <= known,
        "{} slices, {known} switches",
        slices.len()
    );
    assert!(
        slices.len() + lost >= known as usize,
        "{} slices, {known} switches",
        slices.len()
    );
    // A task that is preempted before the probe has named it has tokio's number as its name, in the trace and in the ledger.
    for slice in &slices {
        assert!(ledger.iter().any(|row| row["task"] == slice.name), "{slice:?}");
    }
    let mut counted: Vec<_> = trace.slices();
    counted.retain(|slice| slice.name == "measured section");
    let elapsed = counted[0].end - counted[0].start;
    assert_eq!(elapsed, number(&json, "/workload/elapsed_ns"));

    let threads = json["reconciliation"]["threads"].as_array().expect("an array");
    for thread in threads {
        let (tid, name) = (number(thread, "/tid"), thread["name"].as_str().expect("a name"));
        let mut of_it = trace.switches.iter().rev().filter(|switch| switch.prev == tid);
        assert_eq!(of_it.next().map(|switch| switch.prev_comm.as_str()), Some(name));
        assert!(trace.tree.contains_key(&tid) || trace.created.contains(&tid), "{tid}");
    }

    // A report from the capture makes the same trace.
    let again = folder.path().join("again.pftrace");
    let capture = folder.path().join("run.ctx");
    let output = ctxtrace(&format!("report {} --perfetto {}", capture.display(), again.display()));
    assert_eq!(output.status.code(), Some(0), "{}", stderr(&output));
    assert!(read(&again) == bytes, "the trace from the capture differs");
    assert_eq!(
        std::fs::read_dir(folder.path()).expect("a readable folder").count(),
        4,
        "the folder must contain the four outputs and nothing else"
    );
}

fn a_perfetto_trace_has_every_poll() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let (json, _) = run_in(
        &folder,
        "run --mode task-pool --iterations 20000 --level timeline --polls --perfetto @run.pftrace -o @run.ctx",
    );
    let bytes = read(&folder.path().join("run.pftrace"));
    let trace = Trace::read(&bytes);
    check(&trace, &json);
    assert_eq!(trace.task_slices().len() as i64, number(&json, "/polls/polls"));
    assert_eq!(number(&json, "/polls/polls"), number(&json, "/task_switches/total"));
    let again = folder.path().join("again.pftrace");
    let capture = folder.path().join("run.ctx");
    let output = ctxtrace(&format!("report {} --perfetto {}", capture.display(), again.display()));
    assert_eq!(output.status.code(), Some(0), "{}", stderr(&output));
    assert!(read(&again) == bytes, "the trace from the capture differs");
}

fn threads_and_processes_come_and_go_in_a_perfetto_trace() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let script = folder.path().join("script.sh");
    std::fs::write(
        &script,
        "#!/bin/sh\nfor i in 1 2 3 4 5 6 7 8; do /bin/true & done\nwait\n",
    )
    .expect("the file is written");
    let line = format!(
        "record --level timeline --perfetto @run.pftrace -- sh {}",
        script.display()
    );
    let (json, _) = run_in(&folder, &line);
    let trace = Trace::read(&read(&folder.path().join("run.pftrace")));
    check(&trace, &json);
    // A process whose first wakeup event arrives late, from another CPU, is in the process tree instead of `created`.
    let named = trace.names.values().filter(|name| *name == "true").count();
    assert_eq!(named, 8, "{:?}", trace.names);
    assert!(
        !trace.created.is_empty() && trace.created.len() <= 8,
        "{:?}",
        trace.created
    );
    for process in &trace.created {
        assert_eq!(trace.names[process], "true");
        assert!(trace.freed.contains(process), "the end of {process} is missing");
    }
    assert_eq!(trace.freed.len(), 9, "the eight processes and the shell must end");
}

fn perfetto_gets_the_median_of_several_runs() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let (json, _) = run_in(
        &folder,
        "run --mode thread --iterations 2000 --repeat 3 --level timeline --perfetto @run.pftrace",
    );
    let trace = Trace::read(&read(&folder.path().join("run.pftrace")));
    let of_target = trace.switches.iter().filter(|switch| switch.prev != 0).count();
    assert_eq!(of_target as i64, number(&json, "/kernel_switches/total"));
}

/// Records a run with `--pprof`. Returns the folder with the profile, and the JSON report.
fn profiled() -> (TempDir, Value) {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let (json, said) = run_in(&folder, "run --mode task-pool --iterations 50000 --pprof @run.pb.gz");
    assert!(
        said.contains("run.pb.gz  profile: ") && said.contains("go tool pprof"),
        "{said}"
    );
    (folder, json)
}

/// Returns the rows of the ledger: class, task, and the number of switches and the off-CPU time.
fn ledger_of(json: &Value) -> Vec<(String, Option<String>, [i64; 2])> {
    let rows = json["ledger"].as_array().expect("an array").iter();
    rows.map(|row| {
        (
            row["class"].as_str().expect("a name").replace('-', " "),
            row["task"].as_str().map(str::to_owned),
            [number(row, "/count"), number(row, "/off_cpu_ns")],
        )
    })
    .collect()
}

fn a_pprof_profile_adds_up_to_the_ledger() {
    let (folder, json) = profiled();
    let profile = Profile::read(&read(&folder.path().join("run.pb.gz")));
    let ledger = ledger_of(&json);
    let mut sum = [0; 2];
    for (class, task, values) in &ledger {
        sum = [sum[0] + values[0], sum[1] + values[1]];
        let mut labels = vec![("class", class.as_str())];
        labels.extend(task.as_deref().map(|task| ("task", task)));
        assert_eq!(profile.sums(&labels), values, "{labels:?}");
    }
    assert_eq!(profile.sums(&[]), sum);
    assert_eq!(sum[0], number(&json, "/kernel_switches/total"));
    assert_eq!(profile.duration_ns, number(&json, "/recorded_ns"));
    let of_year_2020 = 1_577_836_800_000_000_000;
    assert!(profile.time_ns > of_year_2020, "{}", profile.time_ns);
}

/// Runs `go tool pprof` on a file and returns its standard output.
fn pprof(options: &[&str], file: &Path) -> String {
    let output = Command::new("go")
        .args(["tool", "pprof"])
        .args(options)
        .arg(file)
        .stdin(Stdio::null())
        .env("GOTOOLCHAIN", "local")
        .output()
        .expect("Go is installed");
    assert!(output.status.success(), "{options:?}: {}", stderr(&output));
    String::from_utf8(output.stdout).expect("valid UTF-8")
}

fn pprof_reads_a_profile() {
    require_go();
    let (folder, json) = profiled();
    let file = folder.path().join("run.pb.gz");
    let raw = pprof(&["-raw"], &file);
    assert!(raw.contains("switches/count off_cpu/nanoseconds[dflt]"), "{raw}");
    // Between two headings there is a line per sample, such as `     40      73000: 1 2 3`, and a line with the labels of the
    // sample.
    let samples = raw
        .lines()
        .skip_while(|line| !line.contains("[dflt]"))
        .take_while(|line| *line != "Locations");
    let mut sum = [0; 2];
    for (values, _) in samples.filter_map(|line| line.split_once(": ")) {
        let values: Vec<i64> = values
            .split_whitespace()
            .filter_map(|value| value.parse().ok())
            .collect();
        if let [count, ns] = values[..] {
            sum = [sum[0] + count, sum[1] + ns];
        }
    }
    let ledger = ledger_of(&json);
    let total = |index: usize| ledger.iter().map(|row| row.2[index]).sum::<i64>();
    assert_eq!(sum, [total(0), total(1)]);
    let top = pprof(&["-top", "-sample_index=switches"], &file);
    assert!(top.contains("Type: switches"), "{top}");
    assert!(top.contains("__schedule"), "{top}");
    let of_task = pprof(&["-top", "-sample_index=switches", "-tagroot=class"], &file);
    assert!(of_task.contains("worker parked"), "{of_task}");
}
