//! Runs the SQL of `docs/FLEET.md` in `DuckDB` over the tables of several captures, and compares the results with the JSON reports
//! of the captures. The test needs no root.
//!
//! The test needs Python with `duckdb`: `cargo xtask setup --for-tests` installs it into `target/duckdb`, and
//! `CTXTRACE_DUCKDB_PYTHON` names another one. Without it the test is skipped, or fails if `CTXTRACE_REQUIRE_DUCKDB` is `1`, as it
//! is in CI.

use std::collections::{BTreeMap, BTreeSet};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use ctxtrace_common::event::Event;
use ctxtrace_common::histogram::{Latency, upper_bound};
use ctxtrace_common::ledger::Class;
use ctxtrace_common::process::Image;
use ctxtrace_format::Latencies;
use ctxtrace_format::executable::Found;
use ctxtrace_format::file::{self, CapturePart, Writer};
use ctxtrace_format::polls::PollBatch;
use ctxtrace_format::programs::Program;
use ctxtrace_format::run::{Info, Run};
use libtest_mimic::{Arguments, Completion, Failed, Trial};
use serde_json::{Map, Value, json};

/// Rows of a query. Each row maps the names of columns to values.
type QueryRows = Vec<Map<String, Value>>;

/// A Python program that reads queries, `[[name, SQL], …]`, from standard input and prints `{name: rows}`.
const ASK: &str = "
import json, sys, duckdb
answers = {}
for name, sql in json.load(sys.stdin):
    asked = duckdb.execute(sql)
    columns = [column[0] for column in asked.description]
    answers[name] = [dict(zip(columns, row)) for row in asked.fetchall()]
json.dump(answers, sys.stdout, default=str)
";

fn main() {
    let test = || {
        let missing = "there is no Python with duckdb: run `cargo xtask setup --for-tests` to install one, or set \
                       CTXTRACE_DUCKDB_PYTHON to the path of another";
        let required = std::env::var_os("CTXTRACE_REQUIRE_DUCKDB").is_some_and(|value| value == "1");
        match python().filter(|python| has_duckdb(python)) {
            Some(python) => the_queries_agree_with_the_json_reports(&python),
            None if required => return Err(Failed::from(missing)),
            None => return Ok(Completion::ignored_with(missing)),
        }
        Ok(Completion::Completed)
    };
    let trial = Trial::ignorable_test("the_queries_agree_with_the_json_reports", test);
    libtest_mimic::run(&Arguments::from_args(), vec![trial]).exit();
}

fn package() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

fn python() -> Option<PathBuf> {
    let named = std::env::var_os("CTXTRACE_DUCKDB_PYTHON").map(PathBuf::from);
    named.or_else(|| {
        // Python finds its virtual environment by the path of the executable, which is a link there. So the link must not be
        // resolved.
        let folder = package().join("../target/duckdb/bin").canonicalize().ok()?;
        Some(folder.join("python"))
    })
}

fn has_duckdb(python: &Path) -> bool {
    let mut import = Command::new(python);
    import.args(["-c", "import duckdb"]).stderr(Stdio::null());
    import.status().is_ok_and(|status| status.success())
}

/// Returns the queries of the document by name. Each is in a code block that begins with ```` ```sql NAME ````.
fn questions(document: &str) -> BTreeMap<String, String> {
    let mut questions = BTreeMap::new();
    for block in document.split("```sql ").skip(1) {
        let (name, rest) = block.split_once('\n').expect("a code block has lines");
        let (sql, _) = rest.split_once("```").expect("a code block has an end");
        let before = questions.insert(name.to_owned(), sql.to_owned());
        assert!(before.is_none(), "the document has two queries named {name}");
    }
    questions
}

/// One run on one machine.
struct Member {
    host: String,
    run: String,
    recorded: Run,
    has_events: bool,
    has_polls: bool,
    report: Value,
}

/// A part of a capture between the ends of its runs.
#[derive(Clone)]
enum Batch {
    Events(Vec<Event>),
    Polls(PollBatch),
}

/// Writes the tables of the committed captures, each run as a separate capture, on two hosts. The runs of the second host are
/// altered by [`spoil`].
fn fleet(tables: &Path) -> Vec<Member> {
    let mut members = Vec::new();
    for name in ["v1-go", "v1-polls", "v1-stacks", "v1-timeline"] {
        let bytes = std::fs::read(package().join(format!("tests/captures/{name}.ctx"))).expect("the file exists");
        let mut batches: Vec<Vec<Batch>> = Vec::new();
        let saved = file::read_with_polls(bytes.as_slice(), |run, part| {
            let batch = match part {
                CapturePart::Info(_) => return,
                CapturePart::Events(events) => Batch::Events(events.to_vec()),
                CapturePart::Polls(polls) => Batch::Polls(polls.clone()),
            };
            batches.resize_with(batches.len().max(run + 1), Vec::new);
            batches[run].push(batch);
        })
        .expect("a readable capture");
        batches.resize_with(saved.runs.len(), Vec::new);
        for (run, of_run) in saved.runs.iter().zip(&batches) {
            for host in ["web-1", "web-2"] {
                let mut info = saved.info.clone();
                host.clone_into(&mut info.host.name);
                let mut run = run.clone();
                if host == "web-2" {
                    spoil(&mut run, members.len() as u64, of_run.is_empty());
                }
                members.push(member(tables, &info, run, of_run));
            }
        }
    }
    members
}

/// Alters a run: wakeups are lost, one run-queue wait is longer, and its processes have executed another program. If the run has
/// no events (`sums_only`), tasks also block where they were preempted; the classes of a run with events follow from its events.
fn spoil(run: &mut Run, number: u64, sums_only: bool) {
    run.aggregates.counters.lost_wakeups += 7;
    run.aggregates
        .latencies
        .get_mut(Latency::RunQueue)
        .record(123_456_789 * (1 + number));
    for (key, _) in &mut run.aggregates.switch_sums {
        if sums_only && key.class == Class::TaskPreempted as u8 {
            key.class = Class::TaskBlocked as u8;
        }
    }
    let processes: BTreeSet<u32> = run.aggregates.threads.iter().map(|record| record.thread.tgid).collect();
    let programs = &mut run.aggregates.programs;
    let next_build = programs.push(Program {
        path: "/srv/the-next-build".into(),
        found: Found {
            build_id: Some("0123456789abcdef".to_owned()),
            ..Found::default()
        },
        file: None,
    });
    for tgid in processes {
        programs.assign(Image { tgid, number: 99 }, Some(next_build));
    }
}

/// Writes a capture of one run and makes its tables and its JSON report.
fn member(tables: &Path, info: &Info, recorded: Run, batches: &[Batch]) -> Member {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let capture = folder.path().join("one.ctx");
    let mut writer = Writer::begin(std::fs::File::create(&capture).expect("the file is created"), info)
        .expect("the capture is begun");
    for batch in batches {
        match batch {
            Batch::Events(events) => events
                .chunks(100)
                .for_each(|events| writer.events(events).expect("the capture is written")),
            Batch::Polls(polls) => writer.polls(polls).expect("the capture is written"),
        }
    }
    writer.run(&recorded).expect("the capture is written");
    writer.end().expect("the capture is completed");
    let json = folder.path().join("one.json");
    let output = Command::new(env!("CARGO_BIN_EXE_ctxtrace"))
        .args(["report", "--quiet", "--json"])
        .args([&json, &PathBuf::from("--parquet"), &tables.to_owned(), &capture])
        .output()
        .expect("the program starts");
    let status = output.status.code();
    // The report of an altered run may find that its sums disagree, which is exit status 4.
    assert!(
        matches!(status, Some(0 | 4)),
        "{status:?}: {}",
        String::from_utf8_lossy(&output.stderr)
    );
    assert!(
        output.stdout.is_empty() && output.stderr.is_empty(),
        "--quiet must print nothing"
    );
    Member {
        host: info.host.name.clone(),
        run: info.run_id(&recorded, 0),
        recorded,
        has_events: !batches.is_empty(),
        has_polls: info.polls.is_some(),
        report: serde_json::from_slice(&std::fs::read(&json).expect("the file exists")).expect("valid JSON"),
    }
}

fn ask(python: &Path, tables: &Path, questions: &BTreeMap<String, String>) -> BTreeMap<String, QueryRows> {
    let mut child = Command::new(python)
        .args(["-c", ASK])
        .current_dir(tables)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .expect("the program starts");
    let asked = serde_json::to_vec(&questions.iter().collect::<Vec<_>>()).expect("serializable as JSON");
    child
        .stdin
        .take()
        .expect("the stream is piped")
        .write_all(&asked)
        .expect("the queries are sent");
    let output = child.wait_with_output().expect("the program ends");
    assert!(
        output.status.success(),
        "a query failed; the error of DuckDB is printed above"
    );
    serde_json::from_slice(&output.stdout).expect("the rows of each query")
}

fn rows(value: Value) -> QueryRows {
    serde_json::from_value(value).expect("an array of rows")
}

fn list<'a>(report: &'a Value, name: &str) -> &'a Vec<Value> {
    report[name].as_array().expect("an array")
}

fn number(value: &Value) -> i64 {
    value.as_i64().unwrap_or_else(|| panic!("{value} is not an integer"))
}

fn the_queries_agree_with_the_json_reports(python: &Path) {
    let place = tempfile::tempdir().expect("a temporary folder");
    let fleet = fleet(place.path());
    let document = std::fs::read_to_string(package().join("../docs/FLEET.md")).expect("the file exists");
    let mut questions = questions(&document);
    let sums = "SELECT host, run, class, count(*) AS count, coalesce(sum(off_cpu_ns), 0) AS off_cpu_ns
                FROM 'switches/*.parquet' GROUP BY ALL ORDER BY ALL";
    questions.insert("sums".to_owned(), sums.to_owned());
    let wakeups = "SELECT host, run, count(*) AS count FROM 'wakings/*.parquet' GROUP BY ALL ORDER BY ALL";
    questions.insert("wakings".to_owned(), wakeups.to_owned());
    let polls =
        "SELECT host, task, count(*) AS polls, sum(poll_ns)::BIGINT AS poll_ns, count(wake_to_poll_ns) AS waits,
                        sum(wake_to_poll_ns)::BIGINT AS waited_ns
                 FROM 'polls/*.parquet' GROUP BY ALL ORDER BY ALL";
    questions.insert("polls".to_owned(), polls.to_owned());
    let mut answers = ask(python, place.path(), &questions);
    let mut check = |name: &str, expected: QueryRows| {
        let answer = answers
            .remove(name)
            .unwrap_or_else(|| panic!("the document has no query named {name}"));
        assert!(
            !expected.is_empty(),
            "{name}: the captures have no data to compare the answer with"
        );
        assert_eq!(answer, expected, "{name}");
    };
    check("worst-run-queue", worst_run_queue(&fleet));
    check("p99-of-all-runs", p99_of_all_runs(&fleet));
    check("blocked-in-a-poll", blocked_in_a_poll(&fleet));
    check("hits-by-tokio", hits_by_tokio(&fleet));
    check("losses", losses(&fleet));
    check("not-to-be-trusted", not_to_be_trusted(&fleet));
    check("wasted-wakeups", wasted_wakeups(&fleet));
    check("sums", ledgers_of_timelines(&fleet));
    check("wakings", wakeups_of_timelines(&fleet));
    check("polls", polls_by_task(&fleet));

    let timelines = fleet.iter().filter(|member| member.has_events);
    let waited: i64 = timelines
        .map(|member| number(&member.report["latency"]["off_cpu"]["count"]))
        .sum();
    let with_events = || {
        fleet
            .iter()
            .filter(|member| member.has_events && member.host == "web-1")
    };
    let longest = with_events()
        .map(|member| number(&member.report["latency"]["run_queue"]["max_ns"]))
        .max();
    let waits = answers.remove("longest-waits").expect("the document has this query");
    assert_eq!(waits.len() as i64, waited.min(20));
    assert_eq!(Some(number(&waits[0]["run_queue_ns"])), longest);
    // The time that a thread keeps a CPU busy while another thread waits for it is at most the waiting time of the other one. The
    // factor 2 is the number of hosts, whose events are the same.
    let in_the_way = answers.remove("in-the-way").expect("the document has this query");
    let all: i64 = in_the_way.iter().map(|row| number(&row["in_the_way_ns"])).sum();
    let waited = with_events().map(|member| number(&member.report["latency"]["run_queue"]["sum_ns"]));
    assert!(all <= 2 * waited.sum::<i64>(), "{in_the_way:?}");
    slow_to_be_polled(
        &fleet,
        &answers
            .remove("slow-to-be-polled")
            .expect("the document has this query"),
    );
    let left: Vec<_> = answers.keys().collect();
    assert!(left.is_empty(), "no check for the answers to {left:?}");
}

fn worst_run_queue(fleet: &[Member]) -> QueryRows {
    let mut worst: BTreeMap<&str, (i64, &str)> = BTreeMap::new();
    for member in fleet {
        if let Some(p99_ns) = member.report["latency"]["run_queue"]["p99_ns"].as_i64() {
            let of_host = worst.entry(&member.host).or_insert((p99_ns, &member.run));
            if p99_ns > of_host.0 {
                *of_host = (p99_ns, &member.run);
            }
        }
    }
    let mut worst: Vec<_> = worst.into_iter().collect();
    worst.sort_by_key(|&(host, (p99_ns, _))| (std::cmp::Reverse(p99_ns), host));
    let row = |(host, (p99_ns, run))| json!({"host": host, "worst_p99_ns": p99_ns, "run": run});
    rows(worst.into_iter().map(row).collect())
}

fn p99_of_all_runs(fleet: &[Member]) -> QueryRows {
    let mut hosts: BTreeMap<&str, Latencies> = BTreeMap::new();
    for member in fleet {
        hosts
            .entry(&member.host)
            .or_default()
            .merge(&member.recorded.aggregates.latencies);
    }
    let kinds = [
        ("blocked", Latency::Blocked),
        ("off_cpu", Latency::OffCpu),
        ("on_cpu", Latency::OnCpu),
        ("run_queue", Latency::RunQueue),
        ("wake_to_run", Latency::WakeToRun),
    ];
    let mut expected = Vec::new();
    for (host, latencies) in &hosts {
        for (kind, latency) in kinds {
            let histogram = latencies.get(latency);
            let rank = (0.99 * histogram.count as f64).ceil() as u64;
            let mut seen = 0;
            let bucket = histogram.buckets.iter().position(|count| {
                seen += count;
                seen >= rank && *count > 0
            });
            if let Some(bucket) = bucket {
                let p99 = upper_bound(bucket);
                expected.push(json!({"host": host, "kind": kind, "intervals": histogram.count, "p99_at_most_ns": p99}));
            }
        }
    }
    rows(Value::Array(expected))
}

/// Returns the path and the build id of the program that a member's tasks belong to.
fn program(member: &Member) -> (Value, Value) {
    let locators = list(&member.report, "locators");
    let next = locators
        .iter()
        .find(|locator| locator["program"] == "/srv/the-next-build");
    let locator = next.unwrap_or(&locators[0]);
    (
        locator["program"].clone(),
        locator.get("build_id").cloned().unwrap_or_default(),
    )
}

/// The sums of the `task-blocked` switches of one task of one build.
#[derive(Default)]
struct Blocked<'a> {
    switches: i64,
    off_cpu_ns: i64,
    runs: BTreeSet<&'a str>,
}

fn blocked_in_a_poll(fleet: &[Member]) -> QueryRows {
    // The key is the program, the build and the task, each as JSON.
    let mut tasks: BTreeMap<[String; 3], Blocked<'_>> = BTreeMap::new();
    for member in fleet {
        let (program, build) = program(member);
        let ledger = list(&member.report, "ledger").iter();
        for row in ledger.filter(|row| row["class"] == "task-blocked") {
            let key = [&program, &build, &row["task"]].map(Value::to_string);
            let sums = tasks.entry(key).or_default();
            sums.switches += number(&row["count"]);
            sums.off_cpu_ns += number(&row["off_cpu_ns"]);
            sums.runs.insert(&member.run);
        }
    }
    let mut tasks: Vec<_> = tasks.into_iter().collect();
    tasks.sort_by_key(|(key, sums)| (std::cmp::Reverse(sums.switches), key.clone()));
    let mut expected = Vec::new();
    for (key, sums) in tasks {
        let [program, build, task] = key.map(|text| serde_json::from_str::<Value>(&text).expect("valid JSON"));
        expected.push(json!({
            "program": program, "build": build, "task": task,
            "switches": sums.switches, "off_cpu_ns": sums.off_cpu_ns, "runs": sums.runs.len(),
        }));
    }
    rows(Value::Array(expected))
}

fn hits_by_tokio(fleet: &[Member]) -> QueryRows {
    let mut versions: BTreeMap<String, (i64, i64)> = BTreeMap::new();
    for member in fleet {
        let switches = &member.report["task_switches"];
        let locators = list(&member.report, "locators").iter();
        let of_member: BTreeSet<&str> = locators
            .filter_map(|locator| locator["tokio_version"].as_str())
            .collect();
        if switches.is_null() {
            continue;
        }
        for version in of_member {
            let sums = versions.entry(version.to_owned()).or_default();
            sums.0 += number(&switches["total"]);
            sums.1 += number(&switches["hit_kernel"]);
        }
    }
    let row = |(version, (total, hit)): (String, (i64, i64))| {
        let share = hit as f64 / total as f64;
        json!({"tokio_version": version, "task_switches": total, "hit_kernel": hit, "share": share})
    };
    rows(versions.into_iter().map(row).collect())
}

fn by_run(fleet: &[Member]) -> Vec<&Member> {
    let mut members: Vec<&Member> = fleet.iter().collect();
    members.sort_by_key(|member| (&member.host, &member.run));
    members
}

fn losses(fleet: &[Member]) -> QueryRows {
    let mut expected = Vec::new();
    for member in by_run(fleet) {
        let lost = member.report["lost"].as_object().expect("an object");
        let mut causes: Vec<_> = lost.iter().filter(|(_, count)| count.is_number()).collect();
        causes.sort_by_key(|(cause, _)| (*cause).clone());
        for (cause, count) in causes {
            let cause = format!("lost_{cause}");
            expected.push(json!({"host": member.host, "run": member.run, "cause": cause, "lost": count}));
        }
    }
    rows(Value::Array(expected))
}

fn not_to_be_trusted(fleet: &[Member]) -> QueryRows {
    let mut expected = Vec::new();
    for member in by_run(fleet) {
        let report = &member.report;
        let (complete, adds_up) = (&report["complete"], &report["ledger_adds_up"]);
        let difference = &report["reconciliation"]["difference"];
        let agrees = report["timeline"].get("agrees").cloned().unwrap_or_default();
        if *complete == true && *adds_up == true && *difference == 0 && agrees != false {
            continue;
        }
        let name = report["workload"].get("mode").or_else(|| report["target"].get("name"));
        let name = name.and_then(Value::as_str).expect("a name").rsplit('/').next();
        expected.push(json!({
            "host": member.host, "run": member.run, "name": name, "complete": complete, "difference": difference,
            "ledger_adds_up": adds_up, "timeline_agrees": agrees,
        }));
    }
    rows(Value::Array(expected))
}

fn wasted_wakeups(fleet: &[Member]) -> QueryRows {
    let mut wakers: BTreeMap<(&str, &str), (i64, i64)> = BTreeMap::new();
    for member in fleet {
        for wakeups in list(&member.report, "wakeups")
            .iter()
            .filter(|row| !row["wasted"].is_null())
        {
            let waker = wakeups.get("from_task").unwrap_or(&wakeups["from_thread"]);
            let sums = wakers
                .entry((&member.host, waker.as_str().expect("a name")))
                .or_default();
            sums.0 += number(&wakeups["count"]);
            sums.1 += number(&wakeups["wasted"]);
        }
    }
    let mut wakers: Vec<_> = wakers.into_iter().collect();
    wakers.sort_by_key(|&(key, (_, wasted))| (std::cmp::Reverse(wasted), key));
    let row = |((host, waker), (wakeups, wasted))| json!({"host": host, "waker": waker, "wakeups": wakeups, "wasted": wasted});
    rows(wakers.into_iter().map(row).collect())
}

/// Returns the expected sums of the rows of `switches` by class, which are the ledgers of the reports.
fn ledgers_of_timelines(fleet: &[Member]) -> QueryRows {
    let mut expected = Vec::new();
    for member in by_run(fleet).into_iter().filter(|member| member.has_events) {
        let mut classes: BTreeMap<&str, (i64, i64)> = BTreeMap::new();
        for row in list(&member.report, "ledger") {
            let sums = classes.entry(row["class"].as_str().expect("a class")).or_default();
            sums.0 += number(&row["count"]);
            sums.1 += number(&row["off_cpu_ns"]);
        }
        for (class, (count, off_cpu_ns)) in classes {
            let (host, run) = (&member.host, &member.run);
            expected.push(json!({"host": host, "run": run, "class": class, "count": count, "off_cpu_ns": off_cpu_ns}));
        }
    }
    rows(Value::Array(expected))
}

fn wakeups_of_timelines(fleet: &[Member]) -> QueryRows {
    let members = by_run(fleet).into_iter().filter(|member| member.has_events);
    let row = |member: &Member| json!({"host": member.host, "run": member.run, "count": member.report["timeline"]["wakeups"]});
    rows(members.map(row).collect())
}

/// Returns the expected sums of the rows of `polls` by task. The table has only polls that have ended.
fn polls_by_task(fleet: &[Member]) -> QueryRows {
    let mut expected = Vec::new();
    for member in fleet.iter().filter(|member| member.has_polls) {
        for task in list(&member.report["polls"], "tasks") {
            let (poll, wait) = (&task["poll"], &task["wake_to_poll"]);
            expected.push(json!({
                "host": member.host, "task": task["name"], "polls": poll["count"], "poll_ns": poll["sum_ns"],
                "waits": wait["count"], "waited_ns": wait["sum_ns"],
            }));
        }
    }
    expected.sort_by_key(|row| (row["host"].to_string(), row["task"].to_string()));
    rows(Value::Array(expected))
}

/// Compares the slowest tasks with the reports. Percentiles in the JSON are bounds of histogram buckets, so they differ from those
/// of the rows by at most the width of a bucket.
fn slow_to_be_polled(fleet: &[Member], answer: &QueryRows) {
    let members: Vec<&Member> = fleet.iter().filter(|member| member.has_polls).collect();
    let tasks = |member: &&Member| list(&member.report["polls"], "tasks").clone();
    let all = members.iter().map(|member| tasks(member).len()).sum::<usize>();
    assert_eq!(answer.len(), all);
    for row in answer {
        let member = members.iter().find(|member| row["host"] == member.host);
        let of_host = tasks(member.expect("the fleet has this host"));
        let task = of_host
            .iter()
            .find(|task| task["name"] == row["task"])
            .expect("the report has this task");
        let (p99, in_json) = (number(&row["p99_ns"]), number(&task["wake_to_poll"]["p99_ns"]));
        assert!((p99 - in_json).abs() <= in_json / 16 + 1, "{row:?} {task}");
        let kernel = task["through_kernel"].get("count").map_or(0, number);
        assert_eq!(number(&row["through_kernel"]), kernel, "{row:?}");
    }
    let worst: Vec<i64> = answer.iter().map(|row| number(&row["p99_ns"])).collect();
    assert!(worst.is_sorted_by(|a, b| a >= b), "{worst:?}");
}
