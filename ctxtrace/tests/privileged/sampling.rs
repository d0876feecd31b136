//! What the timer finds on the CPUs, against programs of which that is known in advance.

use std::path::Path;

use ctxtrace::analyze::profile::{Profile, places};
use ctxtrace::correlate::timeline::Replay;
use ctxtrace::symbolize::category::Category;
use ctxtrace::symbolize::symbols;
use ctxtrace::trace::run::Run;
use ctxtrace::trace::samples::Samples;
use serde_json::Value;

use crate::support::{ctxtrace, number, reconciled, run_json, stderr, stdout, trace_samples};

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
    ("lost_samples_are_counted_and_told", lost_samples_are_counted_and_told),
];

/// Samples a second; not a divisor of the timer tick.
const HZ: u32 = 997;

fn sampled(program: &str) -> Run {
    let mut replay = Replay::telling(Samples::default());
    let mut run = trace_samples(program, HZ, &mut replay);
    reconciled(&run);
    run.samples = replay.into_intervals();
    run.symbols = symbols::resolve(&run.aggregates, &run.samples);
    run
}

fn on_cpu_seconds(run: &Run) -> f64 {
    let threads = run.aggregates.threads.iter();
    threads.map(|record| record.thread.on_cpu_ns).sum::<u64>() as f64 / 1e9
}

/// `half-and-half` uses as much CPU time in one function of its own as in reading from the kernel, by its own CPU clock: however
/// busy the machine is, half of the samples are here and half are there.
fn samples_find_a_thread_where_it_spends_its_time() {
    let run = sampled("half-and-half");
    assert_eq!(
        (
            run.aggregates.counters.lost_samples,
            run.aggregates.counters.lost_sample_stacks
        ),
        (0, 0)
    );
    let profile = Profile::of(&run, &places(&run, |_| true));
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
    // It sleeps for half a second: 500 samples, if it were taken for busy.
    assert!(
        (run.samples.len() as f64) < expected + 50.0,
        "{} samples",
        run.samples.len()
    );
}

fn a_capture_keeps_its_samples() {
    let folder = tempfile::tempdir().expect("a folder");
    let path = |name: &str| folder.path().join(name).to_str().expect("plain").to_owned();
    let (capture, picture) = (path("c.ctx"), path("c.svg"));
    let line = format!(
        "run --mode task --iterations 1000000 --level timeline --sample {HZ} --json - -o {capture} --on-cpu-flamegraph {picture}"
    );
    let recorded: Value = serde_json::from_str(&stdout(&ctxtrace(&line))).expect("JSON");
    assert!(number(&recorded, "/on_cpu/samples") > 50, "{:#}", recorded["on_cpu"]);
    let again = path("again.svg");
    let reported = ctxtrace(&format!("report {capture} --json - --on-cpu-flamegraph {again}"));
    let reported: Value = serde_json::from_str(&stdout(&reported)).expect("JSON");
    assert_eq!(reported["on_cpu"], recorded["on_cpu"]);
    let read = |path: &str| std::fs::read_to_string(Path::new(path)).expect("written");
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

fn lost_samples_are_counted_and_told() {
    let line = format!("--mode task --iterations 1000000 --level timeline --sample {HZ}");
    let small_table = run_json(&format!("{line} --max-stacks 1"));
    assert!(
        number(&small_table, "/lost/sample_stacks") > 0,
        "{:#}",
        small_table["lost"]
    );
    let small_ring = run_json(&format!("{line} --ring-size 160"));
    assert!(number(&small_ring, "/lost/samples") > 0, "{:#}", small_ring["lost"]);
}
