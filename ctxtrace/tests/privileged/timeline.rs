//! Timelines: every switch and wakeup is an event, and the events agree with the sums.

use std::collections::HashMap;

use ctxtrace::run::watch::Observer;
use ctxtrace_analysis::correlate::timeline::{Replay, disagreements};
use ctxtrace_common::event::{Decoded, EVENT_BYTES, Event};
use ctxtrace_format::events::EventSink;
use ctxtrace_format::name_of;
use serde_json::Value;

use crate::programs;
use crate::support::{ctxtrace, number, reconciled, run_json, stderr, stdout, trace_events};

pub(crate) const KERNEL_TESTS: &[(&str, fn())] = &[(
    "events_agree_whatever_threads_and_processes_do",
    events_agree_whatever_threads_and_processes_do,
)];

pub(crate) const TESTS: &[(&str, fn())] = &[
    (
        "the_events_of_every_mode_agree_with_its_counts",
        the_events_of_every_mode_agree_with_its_counts,
    ),
    (
        "twenty_thousand_round_trips_are_all_events",
        twenty_thousand_round_trips_are_all_events,
    ),
    ("events_give_the_names_of_threads", events_give_the_names_of_threads),
    (
        "a_storm_on_all_cpus_overflows_no_ring",
        a_storm_on_all_cpus_overflows_no_ring,
    ),
    (
        "events_beyond_a_full_ring_are_counted_and_reported",
        events_beyond_a_full_ring_are_counted_and_reported,
    ),
    (
        "outputs_that_need_stacks_are_refused_with_a_timeline",
        outputs_that_need_stacks_are_refused_with_a_timeline,
    ),
];

/// Checks the timeline of a report in which no event was lost.
fn check_timeline(json: &Value, line: &str) {
    assert_eq!(json["timeline"]["agrees"], Value::Bool(true), "{line}: {json:#}");
    assert_eq!(number(json, "/reconciliation/difference"), 0, "{line}");
    let switches = number(json, "/timeline/switches");
    assert_eq!(switches, number(json, "/kernel_switches/total"), "{line}");
    assert_eq!(switches, number(json, "/reconciliation/kernel"), "{line}");
    let events = number(json, "/timeline/events");
    assert_eq!(
        number(json, "/timeline/bytes"),
        events * EVENT_BYTES as i64,
        "{line}: each event is {EVENT_BYTES} bytes"
    );
    assert_eq!(number(json, "/lost/timeline_events"), 0, "{line}");
    assert_eq!(json["lost"]["by_cpu"], Value::Array(vec![]), "{line}");
}

fn the_events_of_every_mode_agree_with_its_counts() {
    for line in [
        "--mode process --iterations 5000 --pin split-cpus",
        "--mode thread --iterations 5000 --pin none",
        "--mode task --iterations 100000",
        "--mode task --iterations 100000 --buffer 4096 --root block-on",
        "--mode task-pool --iterations 200000 --buffer 0",
        "--mode task-pool --iterations 200000 --buffer 4096",
        "--mode task-pool --iterations 50000 --pin same-cpu",
        "--mode task-pool --iterations 50000 --workers 8 --root block-on",
    ] {
        let json = run_json(&format!("{line} --level timeline --repeat 2"));
        check_timeline(&json, line);
    }
}

fn twenty_thousand_round_trips_are_all_events() {
    for mode in ["process", "thread"] {
        let json = run_json(&format!("--mode {mode} --iterations 20000 --level timeline"));
        check_timeline(&json, mode);
        assert!(number(&json, "/timeline/switches") >= 40_000);
        // A thread that goes to sleep, and is not preempted before it does, has to be woken.
        let asleep = number(&json, "/kernel_switches/voluntary");
        assert!(number(&json, "/timeline/wakeups") >= asleep - 100, "{json:#}");
        // A switch from one side directly to the other is one event; with another program in between there are two. Events of
        // threads and names add a few.
        let most = 2 * number(&json, "/timeline/switches") + number(&json, "/timeline/wakeups") + 100;
        assert!(number(&json, "/timeline/events") <= most, "{json:#}");
    }
}

fn events_agree_whatever_threads_and_processes_do() {
    for program in [
        "sleeper",
        "yielder",
        "thread-storm",
        "fork-storm",
        "exec-by-thread",
        "many-threads",
    ] {
        let mut replay = Replay::default();
        let traced = trace_events(program, &mut replay);
        reconciled(&traced);
        let counters = &traced.aggregates.counters;
        assert_eq!(counters.lost_timeline_events, 0, "{program}");
        assert_eq!(replay.switches, counters.switches, "{program}");
        assert_eq!(
            disagreements(&replay, &traced.aggregates),
            Vec::<String>::new(),
            "{program}"
        );
        assert_eq!(replay.strangers, 0, "{program}");
    }
}

/// An observer that collects the names of threads from the events.
#[derive(Default)]
struct NameTags {
    /// The current name of each thread, by thread id.
    names: HashMap<u32, String>,
    /// The name of each thread at its last switch-out, by thread id.
    at_switch: HashMap<u32, String>,
    /// The number of switch-outs of threads without a name.
    unnamed: u64,
    /// The number of executed programs.
    executed: u64,
}

impl EventSink for NameTags {
    fn events(&mut self, batch: &[Event]) {
        for event in batch {
            match event.decode() {
                Some(Decoded::Name { tid, comm }) => {
                    self.names.insert(tid, name_of(&comm));
                }
                Some(Decoded::Switch { out: Some(out), .. }) => match self.names.get(&out.tid) {
                    Some(name) => {
                        self.at_switch.insert(out.tid, name.clone());
                    }
                    None => self.unnamed += 1,
                },
                Some(Decoded::Exec { executed_ns, .. }) => {
                    assert!(executed_ns > 0 && executed_ns <= event.at_ns, "{event:?}");
                    self.executed += 1;
                }
                _ => {}
            }
        }
    }
}

impl Observer for NameTags {}

fn events_give_the_names_of_threads() {
    let mut tags = NameTags::default();
    let traced = trace_events("sleeper", &mut tags);
    assert_eq!(tags.unnamed, 0);
    // The launched process executes one program.
    assert_eq!(tags.executed, 1);
    for record in &traced.aggregates.threads {
        let thread = &record.thread;
        assert_eq!(tags.at_switch[&thread.tid], name_of(&thread.comm));
    }
    assert!(tags.at_switch.values().any(|name| name == "sleeper"));

    let mut tags = NameTags::default();
    trace_events("fork-storm", &mut tags);
    assert_eq!(tags.unnamed, 0);
    assert_eq!(tags.executed, 1 + programs::FORKS);
    let named = tags.at_switch.values().filter(|name| *name == "true").count();
    assert_eq!(
        named as u64,
        programs::FORKS,
        "each child must have the name `true` at its last switch"
    );
}

fn a_storm_on_all_cpus_overflows_no_ring() {
    let mut replay = Replay::default();
    let traced = trace_events("storm", &mut replay);
    reconciled(&traced);
    assert_eq!(traced.aggregates.counters.lost_timeline_events, 0);
    assert_eq!(traced.aggregates.lost_by_cpu, []);
    assert_eq!(disagreements(&replay, &traced.aggregates), Vec::<String>::new());
    assert!(replay.switches >= 2 * programs::STORM, "{}", replay.switches);
}

fn events_beyond_a_full_ring_are_counted_and_reported() {
    // The rings hold 32 events per CPU on two CPUs, and the tracer reads them about once per millisecond at most.
    let line = "run --mode process --iterations 20000 --level timeline --ring-size 2560 --json -";
    let output = ctxtrace(line);
    assert_eq!(output.status.code(), Some(0), "{}", stderr(&output));
    let json: Value = serde_json::from_slice(&output.stdout).expect("valid JSON");
    let lost = number(&json, "/lost/timeline_events");
    assert!(lost > 1_000, "{lost}");
    let by_cpu = json["lost"]["by_cpu"].as_array().expect("an array");
    assert!(!by_cpu.is_empty());
    let sum: i64 = by_cpu.iter().map(|cpu| number(cpu, "/timeline_events")).sum();
    assert_eq!(sum, lost);
    assert!(
        by_cpu.iter().all(|cpu| number(cpu, "/timeline_events") > 0),
        "{by_cpu:?}"
    );
    // The counts are complete nevertheless.
    assert_eq!(number(&json, "/reconciliation/difference"), 0);
    assert_eq!(number(&json, "/lost/events"), 0);
    assert_eq!(json["ledger_adds_up"], Value::Bool(true));
    assert!(number(&json, "/timeline/switches") < number(&json, "/kernel_switches/total"));
    assert_eq!(json["timeline"]["agrees"], Value::Null);
    let reasons = json["unavailable"].as_array().expect("an array");
    assert!(reasons.iter().any(|entry| entry["path"] == "timeline.agrees"));
    let table = stderr(&output);
    assert!(table.contains("events of the timeline"), "{table}");
    assert!(table.contains("incomplete"), "{table}");
}

fn outputs_that_need_stacks_are_refused_with_a_timeline() {
    for option in ["--flamegraph", "--wakeups-flamegraph", "--folded"] {
        let output = ctxtrace(&format!("run --mode task --level timeline {option} /nowhere/x"));
        assert_eq!(output.status.code(), Some(2));
        assert!(
            stderr(&output).contains("--level timeline records none"),
            "{}",
            stderr(&output)
        );
    }
    let output = ctxtrace("run --mode thread --iterations 2000 --level timeline");
    assert_eq!(output.status.code(), Some(0), "{}", stderr(&output));
    let table = stdout(&output);
    assert!(table.contains("replayed, with the same counts"), "{table}");
}
