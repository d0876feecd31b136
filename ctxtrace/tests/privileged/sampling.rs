//! Timer samples of the CPUs (`--sample`), compared with programs whose CPU use is known in advance.

use std::path::Path;

use ctxtrace_analysis::correlate::timeline::Replay;
use ctxtrace_analysis::profile::{Profile, places};
use ctxtrace_analysis::symbolize::category::Category;
use ctxtrace_format::run::Run;
use ctxtrace_format::samples::Samples;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::Value;

use crate::support::{
    SpawnPiped, command, ctxtrace, number, reconciled, stderr, stdout, trace_samples, wait_for_workload, wait_until,
};

pub(crate) const TESTS: &[(&str, fn())] = &[
    (
        "samples_find_a_thread_where_it_spends_its_time",
        samples_find_a_thread_where_it_spends_its_time,
    ),
    (
        "a_thread_that_sleeps_is_not_sampled",
        a_thread_that_sleeps_is_not_sampled,
    ),
    ("a_capture_keeps_its_samples", a_capture_keeps_its_samples),
    (
        "lost_samples_are_counted_and_reported",
        lost_samples_are_counted_and_reported,
    ),
];

/// The number of samples per second. It is a prime number, so that samples do not coincide with the timer tick.
const HZ: u32 = 997;

fn sampled(program: &str) -> Run {
    let mut replay = Replay::with_sink(Samples::default());
    let mut recorded = trace_samples(program, HZ, &mut replay);
    reconciled(&recorded.run);
    recorded.run.samples = replay.into_intervals();
    recorded.name_stacks(None);
    recorded.run
}

fn on_cpu_seconds(run: &Run) -> f64 {
    let threads = run.aggregates.threads.iter();
    threads.map(|record| record.thread.on_cpu_ns).sum::<u64>() as f64 / 1e9
}

/// `half-and-half` spends equal CPU time, measured by its own CPU clock, in one of its functions and in reads from the kernel. So
/// half of the samples are in each of them, however busy the machine is.
fn samples_find_a_thread_where_it_spends_its_time() {
    let run = sampled("half-and-half");
    assert_eq!(
        (
            run.aggregates.counters.lost_samples,
            run.aggregates.counters.lost_sample_stacks
        ),
        (0, 0)
    );
    let profile = Profile::from_places(&run, &places(&run, |_| true));
    let expected = on_cpu_seconds(&run) * f64::from(HZ);
    let samples = profile.samples() as f64;
    assert!(
        (0.6..1.1).contains(&(samples / expected)),
        "{samples} samples, {expected} expected"
    );
    let in_kernel = profile.in_kernel() as f64 / samples;
    assert!((0.35..0.65).contains(&in_kernel), "{in_kernel} in the kernel");
    let of = |function: &str, category| {
        let functions = profile.functions().into_iter();
        let found = functions.filter(|share| share.of.function.ends_with(function) && share.of.category == category);
        found.map(|share| share.samples).sum::<u64>() as f64 / samples
    };
    let (spinning, reading) = (of("spin_in_user", Category::Program), of("read", Category::Kernel));
    assert!(spinning > 0.3 && reading > 0.3, "{:#?}", profile.functions());
}

fn a_thread_that_sleeps_is_not_sampled() {
    let run = sampled("sleeper");
    let expected = on_cpu_seconds(&run) * f64::from(HZ);
    // The program sleeps for half a second, which would be about 500 samples if the sleeps were sampled.
    assert!(
        (run.samples.len() as f64) < expected + 50.0,
        "{} samples",
        run.samples.len()
    );
}

fn a_capture_keeps_its_samples() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let path = |name: &str| folder.path().join(name).to_str().expect("a path in UTF-8").to_owned();
    let (capture, picture) = (path("c.ctx"), path("c.svg"));
    let line = format!(
        "run --mode task --iterations 1000000 --level timeline --sample {HZ} --json - -o {capture} --on-cpu-flamegraph {picture}"
    );
    let recorded: Value = serde_json::from_str(&stdout(&ctxtrace(&line))).expect("valid JSON");
    assert!(number(&recorded, "/on_cpu/samples") > 50, "{:#}", recorded["on_cpu"]);
    let again = path("again.svg");
    let reported = ctxtrace(&format!("report {capture} --json - --on-cpu-flamegraph {again}"));
    let reported: Value = serde_json::from_str(&stdout(&reported)).expect("valid JSON");
    assert_eq!(reported["on_cpu"], recorded["on_cpu"]);
    let read = |path: &str| std::fs::read_to_string(Path::new(path)).expect("the file exists");
    assert_eq!(read(&picture), read(&again));
    assert!(
        read(&picture).contains("futures_channel::mpsc"),
        "the channel is missing"
    );

    let without = path("without.ctx");
    ctxtrace(&format!(
        "run --mode task --iterations 1000 --level timeline -o {without}"
    ));
    let refused = ctxtrace(&format!("report {without} --on-cpu-flamegraph {}", path("none.svg")));
    assert!(stderr(&refused).contains("it has no samples"), "{}", stderr(&refused));
}

/// While the tracer is stopped it empties neither the table of stacks, which has room for two, nor the rings, which hold four
/// events each.
fn lost_samples_are_counted_and_reported() {
    let run = command(&format!(
        "run --mode task --iterations 4000000 --level timeline --sample {HZ} --max-stacks 1 --ring-size 160 --json -"
    ))
    .spawn_piped();
    let tracer = Pid::from_raw(run.id() as i32);
    let workload = wait_for_workload(&run);
    let ticks = || {
        workload
            .stat()
            .map(|stat| stat.utime + stat.stime)
            .expect("the workload still runs")
    };
    kill(tracer, Signal::SIGSTOP).expect("the signal is sent");
    // A tick is a hundredth of a second.
    let before = ticks();
    wait_until("the workload has used CPU time", || ticks() >= before + 20);
    kill(tracer, Signal::SIGCONT).expect("the signal is sent");
    let output = run.wait_with_output().expect("the program ends");
    assert_eq!(output.status.code(), Some(0), "{}", stderr(&output));
    let json: Value = serde_json::from_slice(&output.stdout).expect("JSON");
    assert!(number(&json, "/lost/sample_stacks") > 0, "{:#}", json["lost"]);
    assert!(number(&json, "/lost/samples") > 0, "{:#}", json["lost"]);
}
