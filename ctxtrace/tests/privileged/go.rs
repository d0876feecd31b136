//! Attribution of kernel switches to goroutines, and `--mode go`, which runs the article's Go program.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use ctxtrace_analysis::correlate::tasks;
use ctxtrace_analysis::correlate::wakeups::wakeups;
use ctxtrace_analysis::symbolize::stacks::task_types;
use ctxtrace_common::ledger::Class;
use ctxtrace_common::locator::{HAS_GO, Reason};
use ctxtrace_common::wakeup::WakeupOrigin;
use ctxtrace_format::executable::Found;
use ctxtrace_format::name_of;
use ctxtrace_format::programs::LocatorChoice;
use ctxtrace_format::run::Run;
use procfs::process::Process;
use tempfile::TempDir;

use crate::harness::require_program;
use crate::support::{command, ctxtrace, ledger_of, number, reconciled, run_json, stderr, trace, wait_until};

pub(crate) const TESTS: &[(&str, fn())] = &[
    ("go_mode_counts_and_names", go_mode_counts_and_names),
    ("go_mode_on_one_cpu_stays_there", go_mode_on_one_cpu_stays_there),
    (
        "an_interrupted_go_mode_reports_its_messages",
        an_interrupted_go_mode_reports_its_messages,
    ),
    (
        "goroutines_in_system_calls_are_known_however_built",
        goroutines_in_system_calls_are_known_however_built,
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
    ("goroutines_in_c_are_known", goroutines_in_c_are_known),
    (
        "goroutines_beyond_the_table_are_summed_by_function",
        goroutines_beyond_the_table_are_summed_by_function,
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

/// The number of sleeps of `main.napper`.
const NAPS: u64 = 40;
/// The number of reads of `main.reader`.
const READS: u64 = 25;
/// The number of sleeps of the thread that the C code of `cgo.go` creates.
const NAPS_OF_STRANGER: u64 = 20;
/// The number of goroutines of `crowd.go`.
const CROWD: u64 = 3_000;
/// The maximum number of switches beyond the expected ones, for example for page faults and contended locks.
const FEW: u64 = 6;

/// Skips the running test unless Go is installed.
pub(crate) fn require_go() {
    require_program("go", "golang-go");
}

/// Builds one of the programs in `programs/go`, with or without cgo, with these options of `go build`. Returns the folder of the
/// executable, which must outlive its use, and the executable.
fn build(name: &str, cgo: bool, options: &[&str]) -> (TempDir, PathBuf) {
    let folder = tempfile::tempdir().expect("a temporary folder");
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
    let output = go.output().expect("Go is installed");
    assert!(output.status.success(), "{name} {options:?}: {}", stderr(&output));
    (folder, program)
}

/// Traces a Go program. Panics if the program fails or its switches do not reconcile.
fn trace_go(program: &Path, locator: LocatorChoice) -> Run {
    let traced = trace(program, &[], locator).run;
    assert_eq!(traced.exit.and_then(|exit| exit.status), Some(0));
    let reconciliation = reconciled(&traced);
    assert!(reconciliation.holds(), "{reconciliation:#?}");
    traced
}

fn found(traced: &Run) -> &Found {
    &traced
        .aggregates
        .programs
        .all()
        .last()
        .expect("the program was examined")
        .found
}

/// Returns the number of `task-blocked` switches of goroutines by the function that they were started with, or by the goroutine's
/// number if that function has no name.
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

/// Returns the number of switches that must be found for this many naps: half of them. A nap makes no switch of its own if the
/// kernel preempts the thread on its way to sleep and the nap is over when the thread runs again. How often that happens depends
/// on the load of the machine.
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
    let validator = jsonschema::validator_for(&serde_json::from_str(schema).expect("valid JSON")).expect("a schema");
    for (buffer, workers) in [(0, 2), (4_096, 2), (0, 1)] {
        // On one CPU the runtime's monitor thread (sysmon) preempts the goroutines' threads, thousands of times a second at first
        // and at least a hundred times a second later. With two CPUs free, they might not be switched out at all.
        let line = format!("--mode go --buffer {buffer} --workers {workers} --pin same-cpu --iterations 2000000");
        // `run_json` checks for exit status 0, which means that the counts reconcile and the ledger adds up.
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
            .expect("goroutine 1 is in the report");
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

/// Waits until a `ctxtrace run --mode go` has started its Go program, and returns the process.
fn wait_for_go(tracer: &mut Child) -> Process {
    let mut workload = None;
    wait_until("the Go program runs", || {
        let all = procfs::process::all_processes().expect("/proc is readable").flatten();
        workload = all.into_iter().find(|process| {
            let of_ours = process.stat().is_ok_and(|stat| stat.ppid == tracer.id() as i32);
            let file = process
                .exe()
                .ok()
                .and_then(|exe| exe.file_name().map(ToOwned::to_owned));
            of_ours && file.is_some_and(|file| file.to_string_lossy().starts_with("go-ping-pong"))
        });
        workload.is_some() || tracer.try_wait().expect("the tracer is a child").is_some()
    });
    workload.expect("the tracer did not end before its workload ran")
}

fn interrupt(tracer: &Child) {
    let pid = nix::unistd::Pid::from_raw(tracer.id() as i32);
    nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGINT).expect("the process is alive");
}

fn go_mode_on_one_cpu_stays_there() {
    require_go();
    let mut child = command("run --mode go --pin same-cpu --iterations 1000000000")
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .expect("the program starts");
    let workload = wait_for_go(&mut child);
    // The program pins itself before its first message.
    wait_until("all threads of the program are on one CPU", || {
        let threads: Vec<_> = workload.tasks().expect("the process is alive").flatten().collect();
        threads.len() >= 3
            && threads.iter().all(|thread| {
                let cpus = thread.status().ok().and_then(|status| status.cpus_allowed_list);
                cpus.is_some_and(|cpus| matches!(cpus[..], [(first, last)] if first == last))
            })
    });
    interrupt(&child);
    assert_eq!(child.wait().expect("the program ends").code(), Some(130));
}

fn an_interrupted_go_mode_reports_its_messages() {
    require_go();
    let mut child = command("run --mode go --iterations 1000000000 --json -")
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .expect("the program starts");
    let workload = wait_for_go(&mut child);
    // In half a second of CPU time the program passes on millions of messages.
    wait_until("the program has used half a second of CPU time", || {
        workload.stat().is_ok_and(|stat| stat.utime + stat.stime > 50)
    });
    interrupt(&child);
    let output = child.wait_with_output().expect("the program ends");
    assert_eq!(output.status.code(), Some(130));
    let json: serde_json::Value = serde_json::from_slice(&output.stdout).expect("valid JSON");
    let messages = number(&json, "/workload/messages");
    assert!(messages > 0 && messages % 1_024 == 0, "{messages}");
    assert_eq!(number(&json, "/reconciliation/difference"), 0);
}

fn go_mode_under_sudo_is_the_invoking_users() {
    use std::os::unix::fs::{MetadataExt, PermissionsExt};
    const INVOKING_USER: u32 = 65_534;
    require_go();
    let folder = tempfile::tempdir_in("/tmp").expect("a temporary folder");
    std::fs::set_permissions(folder.path(), std::fs::Permissions::from_mode(0o755)).expect("the permissions are set");
    let program = folder.path().join("ctxtrace");
    std::fs::copy(crate::support::CTXTRACE, &program).expect("the file is copied");
    let cache = folder.path().join("cache");
    std::fs::create_dir(&cache).expect("the folder is created");
    std::os::unix::fs::chown(&cache, Some(INVOKING_USER), Some(INVOKING_USER)).expect("the owner is set");
    let mut child = Command::new(&program)
        .args(["run", "--mode", "go", "--iterations", "20000000"])
        .envs([
            ("SUDO_UID", INVOKING_USER.to_string()),
            ("SUDO_GID", INVOKING_USER.to_string()),
        ])
        .env("XDG_CACHE_HOME", &cache)
        .env_remove("GOCACHE")
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .expect("the program starts");
    let workload = wait_for_go(&mut child);
    assert_eq!(workload.uid().expect("the process is alive"), INVOKING_USER);
    let built = workload.exe().expect("the process is alive");
    assert!(built.starts_with(&cache), "{built:?}");
    let built = std::fs::metadata(built).expect("the file exists");
    assert_eq!((built.uid(), built.mode() & 0o022), (INVOKING_USER, 0));
    assert!(child.wait().expect("the program ends").success());
}

fn goroutines_in_system_calls_are_known_however_built() {
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
        // A read does not block if its byte has already arrived, which is often the case on a busy machine.
        let reads = blocked["main.reader"];
        assert!((1..=READS + FEW).contains(&reads), "{options:?}: {reads} reads");
        let ledger = ledger_of(&traced);
        assert!(ledger.of(Class::WorkerParked).count > 0, "{options:?}: {ledger:#?}");
        assert_eq!(
            ledger.of(Class::Unattributed).count,
            traced.aggregates.counters.lost_task_reads,
            "{options:?}"
        );
        assert_eq!(
            tasks::task_switches(&traced.aggregates),
            None,
            "task switches of goroutines are not counted"
        );
    }
}

/// The number of naps in `starts.go`, by the function in the `go` statement.
const NAPS_BY_START: [(&str, u64); 6] = [
    ("main.plain", 20),
    ("main.courier", 70),
    ("main.porter", 20),
    ("main.(*van).deliver", 30),
    ("main.van.park", 40),
    ("main.carry", 40),
];

/// The number of naps of the anonymous function in `starts.go`.
const NAPS_OF_CLOSURE: u64 = 20;

/// Checks the goroutines of `starts.go`. `count` returns the number of switches of the goroutines of a type, `types` are all
/// types, and `how` describes the build in messages.
fn starts_are_named(count: impl Fn(&str) -> Option<u64>, types: &[&str], how: &str) {
    for (name, naps) in NAPS_BY_START {
        let found = count(name).unwrap_or_else(|| panic!("{how}: {name} is not among {types:?}"));
        assert!(found >= least_of(naps), "{how}: {name}: {found}, expected {naps}");
    }
    let without_a_name: Vec<&&str> = types.iter().filter(|name| name.starts_with("main.main.")).collect();
    assert_eq!(without_a_name.len(), 1, "{how}: {types:?}");
    let found = count(without_a_name[0]).expect("the type has a count");
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

/// Records the command `go` in a folder, and returns the numbers of switches of all goroutines by their type.
fn types_under_go(folder: &Path, arguments: &[&str]) -> BTreeMap<String, u64> {
    let report = tempfile::NamedTempFile::new().expect("a file");
    let cache = tempfile::tempdir().expect("a temporary folder");
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
    let output = record.output().expect("the program starts");
    assert_eq!(output.status.code(), Some(0), "{}", stderr(&output));
    let json = std::fs::read(report.path()).expect("the file exists");
    let json: serde_json::Value = serde_json::from_slice(&json).expect("valid JSON");
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
    // Without -count Go would print a cached result and run nothing.
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
    let parent = traced.launched.as_ref().expect("the program was launched").pid;
    let sums = traced.aggregates.switch_sums.iter();
    let of_children: Vec<_> = sums.filter(|(key, _)| key.tgid != parent && key.task != 0).collect();
    assert!(of_children.is_empty(), "{of_children:#?}");
    let threads = traced.aggregates.threads.iter();
    let programs = threads.filter(|record| name_of(&record.thread.comm) == "true").count();
    assert_eq!(programs, 20);
    // The goroutine's thread is switched out in each `clone` (CLONE_VFORK) until the child has executed its program.
    let blocked = blocked(&traced);
    assert!(blocked["main.launcher"] >= 20, "{blocked:?}");
}

fn goroutines_in_c_are_known() {
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
            "naps of the thread that C creates",
        );
        assert_eq!(of_stranger(Class::TaskBlocked), 0);
    }
    // The TLS segment also holds the thread-locals of C, and without symbols ctxtrace cannot find the offset of Go's.
    let (_folder, program) = build("cgo", true, &["-ldflags=-s -w"]);
    let traced = trace_go(&program, LocatorChoice::Auto);
    assert_eq!(found(&traced).reason(), Reason::GoStripped);
    let ledger = ledger_of(&traced);
    assert!(ledger.of(Class::Unattributed).count >= NAPS, "{ledger:#?}");
    let reasons = ledger.rows.keys().filter(|entry| entry.class == Class::Unattributed);
    assert!(reasons.into_iter().all(|entry| entry.reason == Reason::GoStripped));
}

fn goroutines_beyond_the_table_are_summed_by_function() {
    require_go();
    let (_folder, program) = build("crowd", false, &[]);
    let traced = trace_go(&program, LocatorChoice::Auto);
    let tracked = traced.aggregates.goroutines.len() as u64;
    assert!((500..=1_024).contains(&tracked), "{tracked}");
    assert!(traced.aggregates.counters.lost_tasks > 0);
    // Each goroutine sleeps once. Some sleeps may be over before the thread is switched out.
    let blocked = blocked(&traced);
    let short = blocked["main.short"];
    assert!((CROWD * 9 / 10..=CROWD * 11 / 10).contains(&short), "{short}");
    assert!(
        !blocked.contains_key("other"),
        "the function of some goroutines is unknown: {blocked:?}"
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
        .filter(|edge| edge.origin == WakeupOrigin::Task && edge.from_task.as_deref() == Some("goroutine 1"));
    // The main goroutine writes to the pipe and starts threads.
    let count: u64 = by_main.map(|edge| edge.edge.count).sum();
    assert!(count > 0, "{edges:#?}");
    assert!(
        edges.iter().any(|edge| edge.origin == WakeupOrigin::Interrupt),
        "no wakeup by the timers that end the naps: {edges:#?}"
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
    // The report must not need the program.
    std::fs::remove_file(&program).expect("the file is removed");
    let output = ctxtrace(&format!("report {} --json -", capture.display()));
    assert_eq!(output.status.code(), Some(0), "{}", stderr(&output));
    let json: serde_json::Value = serde_json::from_slice(&output.stdout).expect("valid JSON");
    assert_eq!(json["locators"][0]["locator"], "go");
    let types = json["task_types"].as_array().expect("types").iter();
    let napper = types.clone().find(|row| row["type"] == "main.napper");
    between(
        number(napper.expect("main.napper is in the report"), "/kernel_switches") as u64,
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
    // The Go locator finds nothing in the built-in workloads, which are not Go programs.
    let json = run_json("--mode task-pool --iterations 20000 --locator go");
    assert_eq!(json["locators"][0]["locator"], "none");
    let output = ctxtrace("run --mode go --iterations 1000 --locator tokio --json -");
    assert_eq!(output.status.code(), Some(0), "{}", stderr(&output));
}
