//! Golden tests: they render synthetic results in every format and compare the output with the files in `tests/golden`.
//!
//! After an intended change, review the difference and write the files again: `CTXTRACE_BLESS=1 cargo test golden`.

use std::path::{Path, PathBuf};

use super::flamegraph::{Labels, Subject};
use super::table::Style;
use super::{Weight, explain, flamegraph, folded, html, json, suite, table};
use ctxtrace_abi::rings;
use ctxtrace_analysis::correlate::intervals::{Interval, IntervalSink, State, ThreadId};
use ctxtrace_analysis::correlate::lanes::{LanesBuilder, Limits};
use ctxtrace_analysis::correlate::polls::PollReplay;
use ctxtrace_analysis::correlate::timeline::Replay;
use ctxtrace_analysis::doctor::{self, Diagnosis};
use ctxtrace_analysis::fixtures::woken;
use ctxtrace_analysis::fixtures::{self, explanations, machines};
use ctxtrace_analysis::fixtures::{info, run};
use ctxtrace_analysis::result::Report;
use ctxtrace_analysis::suite::Suite;
use ctxtrace_analysis::summarize::summarize;
use ctxtrace_analysis::symbolize::stacks::{Resolved, ResolvedStack};
use ctxtrace_common::clock::{Leave, NotedWakeup};
use ctxtrace_common::event::Event;
use ctxtrace_common::handover::Handover;
use ctxtrace_common::histogram::Latency;
use ctxtrace_common::ledger::Class;
use ctxtrace_common::locator::Reason;
use ctxtrace_common::polls::{Gap, PollCounts};
use ctxtrace_common::process::{Image, TaskKey};
use ctxtrace_common::stack::{SumKey, SwitchSum};
use ctxtrace_common::wakeup::{Edge, EdgeKey, Waker, WakeupOrigin};
use ctxtrace_format::build;
use ctxtrace_format::events::EventSink;
use ctxtrace_format::polls::{PollBatch, PollClock, PollInfo, Stamp, ThreadStamps};
use ctxtrace_format::run::Run;
use ctxtrace_format::samples::SamplePlace;
use ctxtrace_format::symbols::{Frame, FrameKind};
use ctxtrace_format::workload::Mode;
use ctxtrace_format::{CpuLosses, Level, ProgramCost};

fn manifest() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// Compares the output with a file, or writes the file if `CTXTRACE_BLESS` is set.
fn compare(path: &Path, actual: &[u8]) {
    if std::env::var_os("CTXTRACE_BLESS").is_some() {
        std::fs::write(path, actual).expect("the golden file is written");
        return;
    }
    let expected = std::fs::read(path).unwrap_or_default();
    assert!(
        expected == actual,
        "{} differs; if the change is intended, run CTXTRACE_BLESS=1 cargo test golden\n{}",
        path.display(),
        String::from_utf8_lossy(actual)
    );
}

pub(super) fn golden(name: &str, actual: impl AsRef<[u8]>) {
    let path: PathBuf = manifest().join("tests/golden").join(name);
    compare(&path, actual.as_ref());
}

/// A run that has data for every part of the report.
fn full_run() -> Run {
    let mut run = run(670_000);
    let latencies = &mut run.aggregates.latencies;
    for i in 1..=1_000_u64 {
        latencies.get_mut(Latency::OffCpu).record(i * i * 7);
        latencies.get_mut(Latency::RunQueue).record(i * 11);
        latencies.get_mut(Latency::OnCpu).record(1_370 + i);
    }
    run.aggregates.cost.programs = vec![
        ProgramCost {
            name: "sched_waking".to_owned(),
            timed_runs: 100,
            timed_ns: 17_300,
        },
        ProgramCost {
            name: "sched_switch".to_owned(),
            timed_runs: 0,
            timed_ns: 0,
        },
    ];
    run.aggregates.cost.tracer_cpu_ns = 2_770_000;
    add_tasks(&mut run);
    run
}

/// Adds two tasks, their switch-outs, 900 polls of which two hit the kernel, and the wakeups of one pair.
fn add_tasks(run: &mut Run) {
    let aggregates = &mut run.aggregates;
    let image = Image { tgid: 100, number: 0 };
    aggregates.names.insert(
        image,
        vec![String::new(), "sender".to_owned(), "\u{1b}[31mred".to_owned()],
    );
    let sum = |count, off_cpu_ns| SwitchSum { count, off_cpu_ns };
    let mut unattributed = build::sum_key(Class::ThreadBlocked, 0);
    unattributed.reason = Reason::NoTypeInfo as u8;
    aggregates.switch_sums = vec![
        (build::sum_key(Class::Exited, 0), sum(1, 0)),
        (build::sum_key(Class::TaskPreempted, 2), sum(1, 900)),
        (build::sum_key(Class::WorkerParked, 0), sum(2, 70_000)),
        (unattributed, sum(1, 5)),
    ];
    let mut handover: Handover = bytemuck::Zeroable::zeroed();
    handover.image = image;
    handover.tables.polls_by_task[1] = 600;
    handover.tables.polls_by_task[2] = 300;
    handover.tables.messages_per_poll[0] = 10;
    handover.tables.messages_per_poll[1] = 880;
    handover.tables.messages_per_poll[40] = 10;
    aggregates.handovers = vec![handover];
    aggregates.hits = vec![(TaskKey { task: 1, image }, 2)];
    let polls = &mut aggregates.threads[0].thread.polls;
    let counts = |polls, repolls| PollCounts {
        polls,
        repolls,
        nested_polls: 7,
    };
    polls.observe(counts(0, 0), Some(Gap::Parked), true);
    polls.observe(counts(400, 1), Some(Gap::Preempted), true);
    polls.observe(counts(900, 2), Some(Gap::Parked), true);
    let waker = Waker {
        task: 1,
        tid: 101,
        tgid: 100,
        origin: WakeupOrigin::Task as u32,
        ..Waker::default()
    };
    let mut edge = Edge::EMPTY;
    edge.record(14_000);
    edge.record(16_000);
    (edge.wasted, edge.wasted_on_cpu_ns, edge.timed, edge.waking_ns) = (1, 3_000, 2, 9_000);
    aggregates.edges = vec![(EdgeKey::new(&waker, 101, 100), (&edge).into())];
}

fn report(mode: Mode, runs: &[Run]) -> Report {
    let mut report = summarize(&info(mode), runs);
    report.ctxtrace_version = "0.0.0".to_owned();
    report
}

fn resolved() -> Resolved {
    let frame = |kind, name: &str| Frame {
        kind,
        name: name.into(),
    };
    let stack = |frames: Vec<Frame>, count, ns| ResolvedStack { frames, count, ns };
    Resolved {
        stacks: vec![
            stack(
                vec![
                    frame(FrameKind::Doing, "task: sender"),
                    frame(FrameKind::Doing, "preempted"),
                    frame(FrameKind::Thread, "tokio-rt-worker"),
                    frame(FrameKind::User, "start_thread"),
                    frame(FrameKind::User, "tokio::runtime::park::Inner::park"),
                    frame(FrameKind::Inlined, "<[u8; 4] as Clone>::clone"),
                    frame(FrameKind::Kernel, "do_futex"),
                    frame(FrameKind::Kernel, "__schedule"),
                ],
                40,
                73_000,
            ),
            stack(
                vec![
                    frame(FrameKind::Doing, "exited"),
                    frame(FrameKind::Thread, "<b>&\u{1b}[31m"),
                    frame(FrameKind::Reason, "[no user stack: the thread is exiting]"),
                    frame(FrameKind::Kernel, "__schedule"),
                ],
                1,
                27_000,
            ),
        ],
        with_user_stack: 40,
        broken: 4,
    }
}

#[test]
fn golden_tables() {
    golden(
        "task-pool.table",
        table::render(&report(Mode::TaskPool, &[full_run()]), Style { color: false }),
    );
    let mut bad = full_run();
    bad.aggregates.threads[0].thread.traced_involuntary -= 1;
    bad.aggregates.counters.lost_events = 1;
    bad.outcome = None;
    bad.messages_seen = 384;
    bad.cut_short = Some("the workload was killed by SIGKILL".to_owned());
    let bad = report(Mode::Process, &[full_run(), bad]);
    golden("partial-with-losses.table", table::render(&bad, Style { color: true }));
}

/// The same run, recorded at `--level timeline`.
fn run_with_events() -> Run {
    let mut run = full_run();
    run.aggregates.level = Level::Timeline;
    let mut replay = Replay::default();
    (replay.events, replay.switches, replay.wakeups) = (1_234_567, 5, 3);
    run.timeline = Some(replay.conclude(&run.aggregates, true));
    run
}

#[test]
fn golden_timelines() {
    let mut lossy = run_with_events();
    lossy.aggregates.counters.lost_timeline_events = 40;
    lossy.timeline.as_mut().expect("set above").disagreements = None;
    lossy.aggregates.lost_by_cpu = vec![CpuLosses {
        cpu: 1,
        events: 0,
        timeline_events: 40,
    }];
    let lossy = report(Mode::TaskPool, &[lossy]);
    golden("lossy-timeline.table", table::render(&lossy, Style { color: true }));
    golden("lossy-timeline.json", json::render(&lossy).expect("valid JSON"));
    // The events of this run do not agree with its counts.
    let wrong = report(Mode::TaskPool, &[run_with_events()]);
    golden("wrong-timeline.table", table::render(&wrong, Style { color: true }));
}

/// A run with everything that a page can show: two workers that wake each other in turn, `turns` times in all, samples, and the
/// stacks of switches. The names of threads and functions are hostile.
fn run_to_look_at(turns: u64) -> Run {
    let mut run = run_with_events();
    let threads = [(101_u32, &b"</script><b>"[..]), (102, b"\x1b[31m&amp;<!--")];
    run.aggregates.threads[0].thread.comm = [0; 16];
    run.aggregates.threads[0].thread.comm[..threads[0].1.len()].copy_from_slice(threads[0].1);
    let mut builder = LanesBuilder::new(Limits::ONE);
    let image = Image { tgid: 100, number: 0 };
    let interval = |tid, state, class: Class, start_ns, end_ns| Interval {
        thread: ThreadId {
            tid,
            tgid: 100,
            start_boottime_ns: 0,
        },
        state,
        start_ns,
        end_ns,
        image,
        task: u64::from(tid - 100),
        class: class as u8,
        reason: 0,
        throttled: false,
        cpu: Some(tid as u16 % 2),
        before: None,
    };
    for turn in 0..turns {
        let (tid, other) = if turn % 2 == 0 { (101, 102) } else { (102, 101) };
        // Every 997th turn has a longer wait.
        let (at_ns, wait_ns) = (5_000 * turn, 300 + turn % 5 * 100 + u64::from(turn % 997 == 0) * 1_500);
        let waker = Waker {
            task: u64::from(other - 100),
            tid: other,
            tgid: 100,
            origin: WakeupOrigin::Task as u32,
            ..Waker::default()
        };
        builder.woken(&woken(
            at_ns,
            interval(tid, State::OnCpu, Class::Exited, 0, 0).thread,
            &waker,
        ));
        builder.interval(&interval(
            tid,
            State::RunQueue,
            Class::WorkerParked,
            at_ns,
            at_ns + wait_ns,
        ));
        let (on_ns, blocks) = (at_ns + wait_ns, turn % 7 == 0);
        let class = if blocks {
            Class::TaskBlocked
        } else {
            Class::WorkerParked
        };
        builder.interval(&interval(tid, State::OnCpu, class, on_ns, at_ns + 5_100));
        builder.interval(&interval(tid, State::Blocked, class, at_ns + 5_100, at_ns + 10_000));
    }
    run.lanes = Some(builder.finish());
    for (index, (key, _)) in run.aggregates.switch_sums.iter_mut().enumerate() {
        key.user_stack = 1 + index as u64 % 2;
    }
    let place = |user_stack| SamplePlace {
        image,
        in_kernel: false,
        kernel_stack: 0,
        user_stack,
    };
    let frame = |name: &str| Frame {
        kind: FrameKind::User,
        name: name.into(),
    };
    for (key, names) in [(1, ["_start", "main", "</script>"]), (2, ["_start", "main", "park"])] {
        run.aggregates.stacks.insert(key, [1, 2, 3].into());
        run.symbols.add_user(image, key, &names.map(frame));
        (0..key * 10).for_each(|at_ns| run.samples.add(at_ns, place(key)));
    }
    run
}

#[test]
fn golden_pages() {
    let run = full_run();
    let page = html::data(
        &report(Mode::TaskPool, std::slice::from_ref(&run)),
        &run,
        std::slice::from_ref(&run),
    );
    golden("task-pool.page.json", page.expect("valid JSON"));
    let run = run_to_look_at(40);
    let report = report(Mode::TaskPool, std::slice::from_ref(&run));
    let page = html::data(&report, &run, std::slice::from_ref(&run)).expect("valid JSON");
    golden("timeline.page.json", page);
    let page = html::render(&report, &run, std::slice::from_ref(&run)).expect("the page renders");
    let page = String::from_utf8(page).expect("the page is valid UTF-8");
    // Text that comes from the traced program is in the page only in escaped form.
    assert!(!page.contains("</script><b>") && !page.contains("\u{1b}") && !page.contains("{{"));
    assert_eq!(
        page.matches("</script>").count(),
        3,
        "the page has three script elements: the licences, the data, and the script"
    );
}

/// Not a test of its own: writes the pages that `cargo xtask test-web` opens in a browser.
#[test]
#[ignore = "writes files for cargo xtask test-web, which runs it"]
fn reports_for_the_browser() {
    let folder = std::env::var_os("CTXTRACE_WEB_TEST").expect("CTXTRACE_WEB_TEST is the folder to write to");
    // A turn has three intervals and a wakeup, which take two events: a switch and a wakeup. So 2.5 million turns are 5 million
    // events.
    for (name, turns) in [("drawn", 400), ("five-million", 2_500_000)] {
        let mut run = run_to_look_at(turns);
        if name == "drawn" {
            run.aggregates.level = Level::Stacks;
        }
        let report = report(Mode::TaskPool, std::slice::from_ref(&run));
        let page = html::render(&report, &run, std::slice::from_ref(&run)).expect("the page renders");
        std::fs::write(Path::new(&folder).join(name).with_extension("html"), page).expect("the page is written");
    }
}

/// The same run with recorded polls: the sender wakes itself, and then another task, whose thread sleeps and must be woken first.
fn run_with_polls() -> Run {
    let stamp = |(ns, kind, task)| {
        let record = rings::record(rings::what(kind, rings::short_task(task)), 0);
        Stamp::of_record(record, ns).expect("the record is a valid stamp")
    };
    let recorded = |tid, stamps: &[(u64, u64, u64)]| ThreadStamps {
        tgid: 100,
        tid,
        lost: 0,
        stamps: stamps.iter().copied().map(stamp).collect(),
    };
    let came = |at_ns, tid, woken_ns| {
        let mut event = Event::switch(at_ns, 0);
        event.set_in(tid, NotedWakeup::OffCpu, woken_ns);
        event
    };
    let mut left = Event::switch(1_500, 1);
    left.set_out(102, Leave::Slept, true, &SumKey::EMPTY);
    let mut replay = PollReplay::<()>::default();
    replay.events(&[
        Event::thread(900, 0, 101, 0, 1, Image { tgid: 100, number: 0 }, true),
        came(900, 101, 0),
        came(900, 102, 0),
        left,
        came(61_000, 102, 12_000),
    ]);
    replay.polls(&PollBatch {
        base_ns: 1_000,
        until_ns: 100_000,
        dropped_without_ring: 0,
        threads: vec![
            recorded(
                101,
                &[
                    (0, rings::BEGIN, 1),
                    (250, rings::WAKE, 1),
                    (300, rings::END, 0),
                    (380, rings::BEGIN, 1),
                    (1_000, rings::WAKE, 2),
                    (1_100, rings::END, 0),
                ],
            ),
            recorded(102, &[(62_500, rings::BEGIN, 2), (64_000, rings::END, 0)]),
        ],
    });
    let mut run = run_with_events();
    run.polls = Some(replay.conclude().0);
    run
}

#[test]
fn golden_polls() {
    let mut info = info(Mode::TaskPool);
    info.polls = Some(PollInfo {
        clock: PollClock::Tsc,
        reading_ns: 12.7,
    });
    let report = |run| {
        let mut report = summarize(&info, &[run]);
        report.ctxtrace_version = "0.0.0".to_owned();
        report
    };
    let differs = report(run_with_polls());
    let table = table::render(&differs, Style { color: true });
    assert!(table.lines().all(|line| line.chars().count() < 160));
    golden("polls.table", table);
    let polls = serde_json::to_string_pretty(&differs.polls).expect("valid JSON");
    golden("polls.json", polls + "\n");
    let mut lossy = run_with_polls();
    lossy.polls.as_mut().expect("set above").lost = 1_000;
    let lossy = report(lossy);
    assert_eq!(lossy.lost.poll_stamps, 1_000);
    assert_eq!(lossy.polls.as_ref().and_then(|polls| polls.agrees), None);
    golden_schema_of::<Report>(
        "report",
        &[differs, lossy].map(|report| serde_json::to_value(report).expect("valid JSON")),
    );
}

#[test]
fn golden_json() {
    let json = json::render(&report(Mode::TaskPool, &[full_run()])).expect("valid JSON");
    golden("task-pool.json", &json);
}

#[test]
fn golden_stacks() {
    golden("stacks.time.folded", folded::render(&resolved().stacks, Weight::Time));
    golden("stacks.count.folded", folded::render(&resolved().stacks, Weight::Count));
    let labels = Labels {
        subject: "task-pool, buffer 0".to_owned(),
        lost: Some("3 kernel switches".to_owned()),
    };
    golden(
        "stacks.svg",
        flamegraph::render(&resolved(), Subject::Switches, Weight::Time, &labels).expect("the flamegraph renders"),
    );
}

#[test]
fn golden_suite() {
    let drawn = fixtures::suite();
    golden("suite.table", suite::render(&drawn, Style { color: false }));
    golden("suite.md", suite::markdown(&drawn));
    let json = json::render(&drawn).expect("valid JSON");
    golden("suite.json", &json);
    let schema = json::schema::<Suite>().expect("valid JSON");
    compare(&manifest().join("../docs/schema/ctxtrace.suite-1.schema.json"), &schema);
    let validator =
        jsonschema::validator_for(&serde_json::from_slice(&schema).expect("valid JSON")).expect("valid schema");
    let json = serde_json::from_slice(&json).expect("valid JSON");
    let errors: Vec<String> = validator.iter_errors(&json).map(|error| error.to_string()).collect();
    assert!(errors.is_empty(), "{errors:?}");
}

/// Compares the schema of a type with the one in the documentation, and asserts that these values are valid under it. Returns its
/// validator.
fn golden_schema_of<T: schemars::JsonSchema>(kind: &str, values: &[serde_json::Value]) -> jsonschema::Validator {
    let schema = json::schema::<T>().expect("valid JSON");
    compare(
        &manifest().join(format!("../docs/schema/ctxtrace.{kind}-1.schema.json")),
        &schema,
    );
    let schema = serde_json::from_slice(&schema).expect("valid JSON");
    let validator = jsonschema::validator_for(&schema).expect("valid schema");
    for value in values {
        let errors: Vec<String> = validator.iter_errors(value).map(|error| error.to_string()).collect();
        assert!(errors.is_empty(), "{errors:?}");
    }
    validator
}

/// Compares every format of a result about two cases with its golden file, and validates the JSON against its schema.
fn golden_comparison<T: serde::Serialize + schemars::JsonSchema>(name: &str, drawn: &T, table: &str, markdown: &str) {
    golden(&format!("{name}.table"), table);
    golden(&format!("{name}.md"), markdown);
    let json = json::render(drawn).expect("valid JSON");
    golden(&format!("{name}.json"), &json);
    let json = serde_json::from_slice(&json).expect("valid JSON");
    golden_schema_of::<T>(name.split('-').next().unwrap_or(name), &[json]);
}

#[test]
fn golden_explanations() {
    for (name, drawn) in [
        ("explain-gap", explanations::with_a_gap()),
        ("explain-none", explanations::without_a_gap()),
    ] {
        let table = explain::render(&drawn, Style { color: false });
        let widest = table.lines().map(|line| line.trim_end().chars().count()).max();
        assert!(widest <= Some(80), "{widest:?}\n{table}");
        golden_comparison(name, &drawn, &table, &explain::markdown(&drawn));
    }
}

#[test]
fn golden_compared() {
    let drawn = fixtures::compared();
    golden_comparison(
        "compare-two",
        &drawn,
        &super::compare::render(&drawn, Style { color: false }),
        &super::compare::markdown(&drawn),
    );
}

/// A name in which GitHub would find links, a mention and a reference.
const LINKS: &str = "[x](http://e.org) @name www.e.org o/r#1";

/// Asserts that a Markdown text contains the name, and that no link results from it.
#[track_caller]
fn assert_no_link(markdown: &str) {
    let mut fence: Option<&str> = None;
    let mut names = 0;
    for line in markdown.lines() {
        let backticks = line.len() - line.trim_start_matches('`').len();
        match fence {
            Some(begun) if line == begun => fence = None,
            // Text in a fence makes no links.
            Some(_) => {}
            None if backticks >= 3 => fence = Some(&line[..backticks]),
            None => {
                names += line.matches("name").count();
                for link in ["[x](", "://", "@name", "www.e", "#1"] {
                    let is_there = line.match_indices(link).any(|(at, _)| !line[..at].ends_with('\\'));
                    assert!(!is_there, "{link} in {line:?}");
                }
            }
        }
    }
    assert_eq!(fence, None, "a fence does not end");
    assert!(names >= 2, "{markdown}");
}

#[test]
fn names_make_no_links_in_markdown() {
    let links = || LINKS.to_owned();
    let mut compared = fixtures::compared();
    compared.ctxtrace_version = links();
    for side in [&mut compared.base, &mut compared.subject] {
        (side.name, side.host.name, side.host.kernel) = (links(), links(), links());
        side.complete = false;
    }
    for figure in &mut compared.figures {
        figure.name = format!("```\n{LINKS}");
    }
    assert_no_link(&super::compare::markdown(&compared));
    for mut answer in [explanations::with_a_gap(), explanations::without_a_gap()] {
        (answer.ctxtrace_version, answer.host.kernel) = (links(), links());
        (answer.base.name, answer.subject.name) = (links(), links());
        for claim in &mut answer.verdict {
            claim.sentence = links();
        }
        answer.not_explained = vec![links()];
        assert_no_link(&explain::markdown(&answer));
    }
    let mut suite = fixtures::suite();
    (suite.host.name, suite.host.kernel) = (links(), links());
    for row in &mut suite.rows {
        row.name = links();
        row.cut_short = Some(links());
    }
    assert_no_link(&suite::markdown(&suite));
}

/// A machine on which everything works, and one on which little works, with a program that lacks what tracing of tasks needs.
#[test]
fn golden_diagnoses() {
    let good = Diagnosis::new(doctor::machine(&machines::good()), None);
    let bad = Diagnosis::new(doctor::machine(&machines::bad()), Some(machines::server()));
    for (name, drawn) in [("doctor-good", &good), ("doctor-bad", &bad)] {
        golden(
            &format!("{name}.table"),
            super::doctor::render(drawn, Style { color: false }),
        );
    }
    let json = json::render(&bad).expect("valid JSON");
    golden("doctor-bad.json", &json);
    let json = serde_json::from_slice(&json).expect("valid JSON");
    golden_schema_of::<Diagnosis>("doctor", &[json]);
}

/// The schema in the documentation equals the schema of the types, and the reports are valid under it.
#[test]
fn golden_schema() {
    let reports = [full_run(), run_with_events()]
        .map(|run| serde_json::to_value(report(Mode::Process, &[run])).expect("valid JSON"));
    let validator = golden_schema_of::<Report>("report", &reports);
    // The schema rejects a report with a wrong type.
    let mut wrong = serde_json::to_value(report(Mode::Process, &[full_run()])).expect("valid JSON");
    wrong["kernel_switches"]["total"] = serde_json::Value::from("many");
    assert!(!validator.is_valid(&wrong));
}
