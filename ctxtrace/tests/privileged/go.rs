//! Is every kernel switch of a Go program under the right goroutine? And is the article's Go program one of them?

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use ctxtrace::correlate::tasks;
use ctxtrace::correlate::wakeups::wakeups;
use ctxtrace::symbolize::stacks::task_types;
use ctxtrace::target::locate::Found;
use ctxtrace::target::programs::LocatorChoice;
use ctxtrace::trace::name_of;
use ctxtrace::trace::run::Run;
use ctxtrace_common::ledger::Class;
use ctxtrace_common::locator::{HAS_GO, Reason};
use ctxtrace_common::wakeup::Origin;
use procfs::process::Process;
use tempfile::TempDir;

use crate::harness::require_program;
use crate::support::{command, ctxtrace, ledger_of, number, reconciled, run_json, stderr, trace, wait_until};

pub(crate) const TESTS: &[(&str, fn())] = &[
    ("go_mode_counts_and_names", go_mode_counts_and_names),
    ("go_mode_on_one_cpu_stays_there", go_mode_on_one_cpu_stays_there),
    ("go_mode_interrupted_says_how_far", go_mode_interrupted_says_how_far),
    (
        "goroutines_in_system_calls_are_told_however_built",
        goroutines_in_system_calls_are_told_however_built,
    ),
    (
        "a_goroutine_has_the_type_of_the_function_that_go_names",
        a_goroutine_has_the_type_of_the_function_that_go_names,
    ),
    ("go_run_is_traced_as_what_it_runs", go_run_is_traced_as_what_it_runs),
    ("go_test_is_traced_as_what_it_tests", go_test_is_traced_as_what_it_tests),
    (
        "programs_that_a_goroutine_starts_run_no_goroutine",
        programs_that_a_goroutine_starts_run_no_goroutine,
    ),
    ("goroutines_in_c_are_told", goroutines_in_c_are_told),
    (
        "very_many_goroutines_go_by_their_function",
        very_many_goroutines_go_by_their_function,
    ),
    ("goroutines_make_wakeups", goroutines_make_wakeups),
    (
        "a_capture_keeps_the_functions_of_goroutines",
        a_capture_keeps_the_functions_of_goroutines,
    ),
    (
        "only_the_go_locator_finds_goroutines",
        only_the_go_locator_finds_goroutines,
    ),
];

pub(crate) const LONG_TESTS: &[(&str, fn())] = &[(
    "go_mode_under_sudo_is_the_invoking_users",
    go_mode_under_sudo_is_the_invoking_users,
)];

/// Sleeps of `main.napper`.
const NAPS: u64 = 40;
/// Reads of `main.reader`.
const READS: u64 = 25;
/// Sleeps of the thread that C makes.
const NAPS_OF_STRANGER: u64 = 20;
/// Goroutines of `crowd.go`.
const CROWD: u64 = 3_000;
/// How many more switches there may be than those that are known: a page that had to be fetched, a lock.
const FEW: u64 = 6;

/// Skips the test that runs unless Go is there.
pub(crate) fn require_go() {
    require_program("go", "golang-go");
}

/// One of `programs/go`, built in this way.
fn build(name: &str, cgo: bool, options: &[&str]) -> (TempDir, PathBuf) {
    let folder = tempfile::tempdir().expect("a folder");
    let program = folder.path().join(name);
    let source = Path::new("tests/privileged/programs/go")
        .join(name)
        .with_extension("go");
    let mut go = Command::new("go");
    go.envs([("GOTOOLCHAIN", "local"), ("GOFLAGS", "-mod=mod"), ("GOPROXY", "off")])
        .env("CGO_ENABLED", if cgo { "1" } else { "0" })
        .args(["build", "-o"])
        .arg(&program)
        .args(options)
        .arg(source);
    if std::env::var_os("HOME").is_none() {
        go.env("GOCACHE", folder.path().join("cache"));
    }
    let output = go.output().expect("Go is there");
    assert!(output.status.success(), "{name} {options:?}: {}", stderr(&output));
    (folder, program)
}

/// Traces a Go program, all of whose switches must be accounted for.
fn trace_go(program: &Path, locator: LocatorChoice) -> Run {
    let traced = trace(program, &[], locator);
    assert_eq!(traced.exit.and_then(|exit| exit.status), Some(0));
    let reconciliation = reconciled(&traced);
    assert!(reconciliation.holds(), "{reconciliation:#?}");
    traced
}

fn found(traced: &Run) -> &Found {
    &traced.aggregates.programs.all().last().expect("examined").found
}

/// Switches of goroutines that slept, by the function they were started with; by number where that has no name.
fn blocked(traced: &Run) -> BTreeMap<String, u64> {
    let types = task_types(&traced.aggregates, &traced.symbols);
    let ledger = ledger_of(traced);
    let mut counts = BTreeMap::new();
    for (entry, sum) in &ledger.rows {
        if let (Class::TaskBlocked, Some(task)) = (entry.class, entry.task) {
            let name = types.get(&task).cloned();
            *counts
                .entry(name.unwrap_or_else(|| tasks::name(&traced.aggregates, task)))
                .or_default() += sum.count;
        }
    }
    counts
}

/// How many of so many naps are found at least. The kernel may preempt a thread on its way to sleep, and the nap may be over when the
/// thread runs again; how often that happens depends on what else the machine does.
fn least_of(naps: u64) -> u64 {
    naps / 2
}

fn between(count: u64, naps: u64, what: &str) {
    assert!(
        (least_of(naps)..=naps + FEW).contains(&count),
        "{what}: {count}, expected {naps} or a few more"
    );
}

fn go_mode_counts_and_names() {
    require_go();
    let schema = include_str!("../../../docs/schema/ctxtrace.report-1.schema.json");
    let validator = jsonschema::validator_for(&serde_json::from_str(schema).expect("JSON")).expect("a schema");
    for (buffer, workers) in [(0, 2), (4_096, 2), (0, 1)] {
        // On one CPU the runtime's own monitor has to take it from the goroutines, thousands of times a second at
        // first and a hundred at the least: with two CPUs free, neither of them may be switched out at all.
        let line = format!("--mode go --buffer {buffer} --workers {workers} --pin same-cpu --iterations 2000000");
        // Exit status 0: the counts reconcile, and the ledger adds up.
        let json = run_json(&line);
        let errors: Vec<String> = validator.iter_errors(&json).map(|error| error.to_string()).collect();
        assert!(errors.is_empty(), "{line}: {errors:?}");
        assert_eq!(number(&json, "/reconciliation/difference"), 0, "{line}");
        assert_eq!(json["workload"]["mode"], "go");
        assert_eq!(number(&json, "/workload/buffer"), buffer);
        assert_eq!(number(&json, "/workload/workers"), workers);
        assert_eq!(number(&json, "/workload/messages"), 2_000_000);
        assert!(number(&json, "/workload/elapsed_ns") > 1_000_000);
        assert_eq!(json["locators"][0]["locator"], "go", "{:#}", json["locators"]);
        assert!(
            json["locators"][0]["go_version"]
                .as_str()
                .is_some_and(|version| version.starts_with("1."))
        );
        let types: Vec<&str> = json["task_types"]
            .as_array()
            .expect("types")
            .iter()
            .filter_map(|row| row["type"].as_str())
            .collect();
        for function in ["runtime.main", "main.child"] {
            assert!(types.contains(&function), "{line}: {types:?}");
        }
        let tasks = json["tasks"].as_array().expect("tasks");
        let main = tasks
            .iter()
            .find(|task| task["name"] == "goroutine 1")
            .expect("one of them is the first");
        assert_eq!(main["type"], "runtime.main");
        let reasons = json["unavailable"].as_array().expect("reasons");
        for path in ["task_switches", "workload.root", "tasks[0].hit_kernel"] {
            assert!(reasons.iter().any(|row| row["path"] == path), "{path}: {reasons:#?}");
        }
        let unattributed: i64 = json["ledger"]
            .as_array()
            .expect("rows")
            .iter()
            .filter(|row| row["class"] == "unattributed")
            .map(|row| number(row, "/count"))
            .sum();
        assert_eq!(unattributed, number(&json, "/lost/task_reads"), "{line}");
    }
}

/// The Go program that a `ctxtrace run --mode go` has started.
fn wait_for_go(tracer: &mut Child) -> Process {
    let mut workload = None;
    wait_until("the Go program runs", || {
        let all = procfs::process::all_processes().expect("/proc").flatten();
        workload = all.into_iter().find(|process| {
            let of_ours = process.stat().is_ok_and(|stat| stat.ppid == tracer.id() as i32);
            let file = process
                .exe()
                .ok()
                .and_then(|exe| exe.file_name().map(ToOwned::to_owned));
            of_ours && file.is_some_and(|file| file.to_string_lossy().starts_with("go-ping-pong"))
        });
        workload.is_some() || tracer.try_wait().expect("ours").is_some()
    });
    workload.expect("it did not end before")
}

fn interrupt(tracer: &Child) {
    let pid = nix::unistd::Pid::from_raw(tracer.id() as i32);
    nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGINT).expect("alive");
}

fn go_mode_on_one_cpu_stays_there() {
    require_go();
    let mut child = command("run --mode go --pin same-cpu --iterations 1000000000")
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .expect("started");
    let workload = wait_for_go(&mut child);
    // It pins itself before its first message.
    wait_until("all its threads are on one CPU", || {
        let threads: Vec<_> = workload.tasks().expect("alive").flatten().collect();
        threads.len() >= 3
            && threads.iter().all(|thread| {
                let cpus = thread.status().ok().and_then(|status| status.cpus_allowed_list);
                cpus.is_some_and(|cpus| matches!(cpus[..], [(first, last)] if first == last))
            })
    });
    interrupt(&child);
    assert_eq!(child.wait().expect("ended").code(), Some(130));
}

fn go_mode_interrupted_says_how_far() {
    require_go();
    let mut child = command("run --mode go --iterations 1000000000 --json -")
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .expect("started");
    let workload = wait_for_go(&mut child);
    // Half a second of CPU time, in which it passes on millions of messages.
    wait_until("it has played for a while", || {
        workload.stat().is_ok_and(|stat| stat.utime + stat.stime > 50)
    });
    interrupt(&child);
    let output = child.wait_with_output().expect("ended");
    assert_eq!(output.status.code(), Some(130));
    let json: serde_json::Value = serde_json::from_slice(&output.stdout).expect("JSON");
    let messages = number(&json, "/workload/messages");
    assert!(messages > 0 && messages % 1_024 == 0, "{messages}");
    assert_eq!(number(&json, "/reconciliation/difference"), 0);
}

fn go_mode_under_sudo_is_the_invoking_users() {
    use std::os::unix::fs::{MetadataExt, PermissionsExt};
    const NOBODY: u32 = 65_534;
    require_go();
    let folder = tempfile::tempdir_in("/tmp").expect("a folder");
    std::fs::set_permissions(folder.path(), std::fs::Permissions::from_mode(0o755)).expect("allowed");
    let program = folder.path().join("ctxtrace");
    std::fs::copy(crate::support::CTXTRACE, &program).expect("copied");
    let cache = folder.path().join("cache");
    std::fs::create_dir(&cache).expect("made");
    std::os::unix::fs::chown(&cache, Some(NOBODY), Some(NOBODY)).expect("root may");
    let mut child = Command::new(&program)
        .args(["run", "--mode", "go", "--iterations", "20000000"])
        .envs([("SUDO_UID", NOBODY.to_string()), ("SUDO_GID", NOBODY.to_string())])
        .env("XDG_CACHE_HOME", &cache)
        .env_remove("GOCACHE")
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .expect("started");
    let workload = wait_for_go(&mut child);
    assert_eq!(workload.uid().expect("alive"), NOBODY);
    let built = workload.exe().expect("alive");
    assert!(built.starts_with(&cache), "{built:?}");
    let built = std::fs::metadata(built).expect("there");
    assert_eq!((built.uid(), built.mode() & 0o022), (NOBODY, 0));
    assert!(child.wait().expect("ended").success());
}

fn goroutines_in_system_calls_are_told_however_built() {
    require_go();
    // Without symbols the names come from the table of functions that every Go program has.
    for (options, cgo) in [
        (&[][..], false),
        (&["-ldflags=-w"], false),
        (&["-ldflags=-s -w"], false),
        (&["-buildmode=pie"], false),
        (&["-buildmode=pie", "-ldflags=-linkmode=external"], true),
        (&["-ldflags=-linkmode=external -s -w"], true),
    ] {
        let (_folder, program) = build("naps", cgo, options);
        let traced = trace_go(&program, LocatorChoice::Auto);
        let found = found(&traced);
        assert_eq!(
            (found.reason(), found.detail.as_deref()),
            (Reason::None, None),
            "{options:?}"
        );
        assert_eq!(found.locator.flags, HAS_GO, "{options:?}");
        let blocked = blocked(&traced);
        between(blocked["main.napper"], NAPS, "naps");
        // A byte may be there already, if the reader was held up, as it often is on a busy machine.
        let reads = blocked["main.reader"];
        assert!((1..=READS + FEW).contains(&reads), "{options:?}: {reads} reads");
        let ledger = ledger_of(&traced);
        assert!(ledger.of(Class::WorkerParked).count > 0, "{options:?}: {ledger:#?}");
        assert_eq!(
            ledger.of(Class::Unattributed).count,
            traced.aggregates.counters.lost_task_reads,
            "{options:?}"
        );
        assert_eq!(tasks::task_switches(&traced.aggregates), None, "nothing counts them");
    }
}

/// The naps of `starts.go` by the function that the source names after `go`.
const NAPS_BY_START: [(&str, u64); 6] = [
    ("main.plain", 20),
    ("main.courier", 70),
    ("main.porter", 20),
    ("main.(*van).deliver", 30),
    ("main.van.park", 40),
    ("main.carry", 40),
];

/// The naps of the function without a name in `starts.go`.
const NAPS_OF_CLOSURE: u64 = 20;

/// Checks the goroutines of `starts.go`: how often those of a type were switched out.
fn starts_are_named(count: impl Fn(&str) -> Option<u64>, types: &[&str], how: &str) {
    for (name, naps) in NAPS_BY_START {
        let found = count(name).unwrap_or_else(|| panic!("{how}: {name} is not among {types:?}"));
        assert!(found >= least_of(naps), "{how}: {name}: {found}, expected {naps}");
    }
    let without_a_name: Vec<&&str> = types.iter().filter(|name| name.starts_with("main.main.")).collect();
    assert_eq!(without_a_name.len(), 1, "{how}: {types:?}");
    let found = count(without_a_name[0]).expect("it is a type");
    assert!(found >= least_of(NAPS_OF_CLOSURE), "{how}: {found}");
    let are_wrappers = |name: &&str| name.contains("gowrap") || name.ends_with("-fm");
    assert!(!types.iter().any(are_wrappers), "{how}: {types:?}");
}

fn a_goroutine_has_the_type_of_the_function_that_go_names() {
    require_go();
    for (options, cgo) in [
        (&[][..], false),
        (&["-ldflags=-s -w"], false),
        (&["-buildmode=pie"], false),
        (&["-buildmode=pie", "-ldflags=-s -w"], false),
        (&["-ldflags=-linkmode=external -s -w"], true),
        (&["-buildmode=pie", "-ldflags=-linkmode=external -s -w"], true),
    ] {
        let (_folder, program) = build("starts", cgo, options);
        let traced = trace_go(&program, LocatorChoice::Auto);
        let blocked = blocked(&traced);
        let types: Vec<&str> = blocked.keys().map(String::as_str).collect();
        starts_are_named(|name| blocked.get(name).copied(), &types, &format!("{options:?}"));
    }
}

/// Records `go` in a folder, and returns the switches of its processes' goroutines by their type.
fn types_under_go(folder: &Path, arguments: &[&str]) -> BTreeMap<String, u64> {
    let report = tempfile::NamedTempFile::new().expect("a file");
    let cache = tempfile::tempdir().expect("a folder");
    let mut record = command("record --json");
    record
        .arg(report.path())
        .args(["--", "go"])
        .args(arguments)
        .current_dir(folder)
        .envs([("GOTOOLCHAIN", "local"), ("GOFLAGS", ""), ("GOPROXY", "off")]);
    if std::env::var_os("HOME").is_none() {
        record.env("GOCACHE", cache.path());
    }
    let output = record.output().expect("started");
    assert_eq!(output.status.code(), Some(0), "{}", stderr(&output));
    let json = std::fs::read(report.path()).expect("the report");
    let json: serde_json::Value = serde_json::from_slice(&json).expect("JSON");
    assert_eq!(number(&json, "/reconciliation/difference"), 0);
    let mut counts = BTreeMap::new();
    for row in json["task_types"].as_array().expect("types") {
        if let Some(name) = row["type"].as_str() {
            *counts.entry(name.to_owned()).or_default() += number(row, "/kernel_switches") as u64;
        }
    }
    counts
}

fn go_run_is_traced_as_what_it_runs() {
    require_go();
    let folder = Path::new("tests/privileged/programs/go");
    let counts = types_under_go(folder, &["run", "starts.go"]);
    for (name, naps) in NAPS_BY_START {
        let found = counts.get(name).copied().unwrap_or_default();
        assert!(found >= least_of(naps), "{name}: {found}, expected {naps}: {counts:?}");
    }
}

fn go_test_is_traced_as_what_it_tests() {
    require_go();
    let folder = Path::new("tests/privileged/programs/go/post");
    // Without -count a result that Go has kept would be shown, and nothing run.
    let counts = types_under_go(folder, &["test", "-count=1", "./..."]);
    for (name, naps) in [("ctxtrace.test/post.courier", 60), ("testing.tRunner", 20)] {
        let found = counts.get(name).copied().unwrap_or_default();
        assert!(found >= least_of(naps), "{name}: {found}, expected {naps}: {counts:?}");
    }
}

fn programs_that_a_goroutine_starts_run_no_goroutine() {
    require_go();
    let (_folder, program) = build("exec", false, &[]);
    let traced = trace_go(&program, LocatorChoice::Auto);
    let parent = traced.launched.as_ref().expect("started").pid;
    let sums = traced.aggregates.switch_sums.iter();
    let of_children: Vec<_> = sums.filter(|(key, _)| key.tgid != parent && key.task != 0).collect();
    assert!(of_children.is_empty(), "{of_children:#?}");
    let threads = traced.aggregates.threads.iter();
    let programs = threads.filter(|record| name_of(&record.thread.comm) == "true").count();
    assert_eq!(programs, 20);
    // It is switched out in each `clone` until the child has executed its program.
    let blocked = blocked(&traced);
    assert!(blocked["main.launcher"] >= 20, "{blocked:?}");
}

fn goroutines_in_c_are_told() {
    require_go();
    for options in [&[][..], &["-buildmode=pie"], &["-ldflags=-w"]] {
        let (_folder, program) = build("cgo", true, options);
        let traced = trace_go(&program, LocatorChoice::Auto);
        between(blocked(&traced)["main.napper"], NAPS, "naps in C");
        let of_stranger = |class: Class| -> u64 {
            let sums = traced.aggregates.switch_sums.iter();
            sums.filter(|(key, _)| name_of(&key.comm) == "stranger" && key.class == class as u8)
                .map(|(_, sum)| sum.count)
                .sum()
        };
        between(
            of_stranger(Class::ThreadBlocked),
            NAPS_OF_STRANGER,
            "naps of C's thread",
        );
        assert_eq!(of_stranger(Class::TaskBlocked), 0);
    }
    // C's thread-locals are in the segment, and there is no symbol to tell which is Go's.
    let (_folder, program) = build("cgo", true, &["-ldflags=-s -w"]);
    let traced = trace_go(&program, LocatorChoice::Auto);
    assert_eq!(found(&traced).reason(), Reason::GoStripped);
    let ledger = ledger_of(&traced);
    assert!(ledger.of(Class::Unattributed).count >= NAPS, "{ledger:#?}");
    let reasons = ledger.rows.keys().filter(|entry| entry.class == Class::Unattributed);
    assert!(reasons.into_iter().all(|entry| entry.reason == Reason::GoStripped));
}

fn very_many_goroutines_go_by_their_function() {
    require_go();
    let (_folder, program) = build("crowd", false, &[]);
    let traced = trace_go(&program, LocatorChoice::Auto);
    let told_apart = traced.aggregates.goroutines.len() as u64;
    assert!((500..=1_024).contains(&told_apart), "{told_apart}");
    assert!(traced.aggregates.counters.lost_tasks > 0);
    // Each sleeps once. Some may find their time over before they are asleep.
    let blocked = blocked(&traced);
    let short = blocked["main.short"];
    assert!((CROWD * 9 / 10..=CROWD * 11 / 10).contains(&short), "{short}");
    assert!(
        !blocked.contains_key("other"),
        "all of them are known by their function: {blocked:?}"
    );
    let ledger = ledger_of(&traced);
    let rows = tasks::tasks(&traced.aggregates, &ledger);
    let shared = rows.iter().filter(|(key, _)| tasks::is_shared(key.task));
    let of_shared: u64 = shared.map(|(_, task)| task.kernel_switches).sum();
    assert!(of_shared > CROWD / 4, "{of_shared}");
}

fn goroutines_make_wakeups() {
    require_go();
    let (_folder, program) = build("naps", false, &[]);
    let traced = trace_go(&program, LocatorChoice::Auto);
    let edges = wakeups(&traced.aggregates);
    let by_main = edges
        .iter()
        .filter(|edge| edge.origin == Origin::Task && edge.from_task.as_deref() == Some("goroutine 1"));
    // It writes to the pipe, and starts threads.
    let count: u64 = by_main.map(|edge| edge.edge.count).sum();
    assert!(count > 0, "{edges:#?}");
    assert!(
        edges.iter().any(|edge| edge.origin == Origin::Interrupt),
        "timers end the naps: {edges:#?}"
    );
}

fn a_capture_keeps_the_functions_of_goroutines() {
    require_go();
    let (folder, program) = build("naps", false, &[]);
    let capture = folder.path().join("naps.ctx");
    let output = ctxtrace(&format!(
        "record --level counts -o {} -- {}",
        capture.display(),
        program.display()
    ));
    assert_eq!(output.status.code(), Some(0), "{}", stderr(&output));
    // The report is made where the program is no more.
    std::fs::remove_file(&program).expect("removed");
    let output = ctxtrace(&format!("report {} --json -", capture.display()));
    assert_eq!(output.status.code(), Some(0), "{}", stderr(&output));
    let json: serde_json::Value = serde_json::from_slice(&output.stdout).expect("JSON");
    assert_eq!(json["locators"][0]["locator"], "go");
    let types = json["task_types"].as_array().expect("types").iter();
    let napper = types.clone().find(|row| row["type"] == "main.napper");
    between(
        number(napper.expect("it sleeps"), "/kernel_switches") as u64,
        NAPS,
        "naps",
    );
}

fn only_the_go_locator_finds_goroutines() {
    require_go();
    let (_folder, program) = build("naps", false, &[]);
    for (choice, tasks) in [
        (LocatorChoice::Go, true),
        (LocatorChoice::Tokio, false),
        (LocatorChoice::Probe, false),
        (LocatorChoice::None, false),
    ] {
        let traced = trace_go(&program, choice);
        assert_eq!(blocked(&traced).contains_key("main.napper"), tasks, "{choice:?}");
        let ledger = ledger_of(&traced);
        assert_eq!(
            ledger.of(Class::ThreadBlocked).count >= NAPS,
            !tasks,
            "{choice:?}: {ledger:#?}"
        );
        assert_eq!(found(&traced).reason(), Reason::None, "{choice:?}");
    }
    // And of our own programs it finds nothing.
    let json = run_json("--mode task-pool --iterations 20000 --locator go");
    assert_eq!(json["locators"][0]["locator"], "none");
    let output = ctxtrace("run --mode go --iterations 1000 --locator tokio --json -");
    assert_eq!(output.status.code(), Some(0), "{}", stderr(&output));
}
