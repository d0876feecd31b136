//! Tests that the tasks of a tokio program are found if another file, or no file, is at the path of the program.
//!
//! The tokio program is a copy of this executable that runs `tasks-after-a-wait`. It starts its tasks only after its file was examined,
//! so every switch of the tasks must be attributed.

use std::ffi::OsStr;
use std::fs;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command};
use std::time::Duration;

use ctxtrace::capture::Settings;
use ctxtrace::run::watch::{Observer, Underway};
use ctxtrace::tracee::attach::Attached;
use ctxtrace::tracee::environment::Environment;
use ctxtrace_common::event::Event;
use ctxtrace_common::ledger::Class;
use ctxtrace_common::locator::{HAS_TOKIO, Reason};
use ctxtrace_common::process::Image;
use ctxtrace_format::events::EventSink;
use ctxtrace_format::name_of;
use ctxtrace_format::programs::{LocatorChoice, Program};
use ctxtrace_format::run::Run;
use ctxtrace_probe::{runtime_thread, traced};
use nix::sys::memfd::{MFdFlags, memfd_create};
use nix::sys::resource::{UsageWho, getrusage};
use tempfile::TempDir;

use crate::harness::require_variable;
use crate::programs::VARIABLE;
use crate::support::{launch_command, ledger_of, switches_of, wait_until, with_recorder};
use crate::tasks::blocked;

pub(crate) const TESTS: &[(&str, fn())] = &[
    (
        "the_tasks_of_a_program_in_a_memfd_are_found",
        the_tasks_of_a_program_in_a_memfd_are_found,
    ),
    (
        "the_tasks_of_a_program_in_a_mount_namespace_are_found",
        the_tasks_of_a_program_in_a_mount_namespace_are_found,
    ),
    (
        "the_tasks_of_the_second_program_at_a_path_are_found",
        the_tasks_of_the_second_program_at_a_path_are_found,
    ),
    (
        "two_tokio_releases_at_one_path_are_both_attributed",
        two_tokio_releases_at_one_path_are_both_attributed,
    ),
    (
        "the_tasks_of_a_replaced_program_are_found",
        the_tasks_of_a_replaced_program_are_found,
    ),
    (
        "the_tasks_of_a_program_in_a_changed_root_are_found",
        the_tasks_of_a_program_in_a_changed_root_are_found,
    ),
];

/// The variable with the path of the file that `tasks-after-a-wait` waits for.
const GATE: &str = "CTXTRACE_TEST_GATE";
/// The variable with the path of the file that `from-memory` executes.
const EXECUTED: &str = "CTXTRACE_TEST_EXECUTED";
/// The variable with the path of the file by which `tasks-after-a-wait` replaces its own executable, if it is set.
const REPLACEMENT: &str = "CTXTRACE_TEST_REPLACEMENT";

/// The tasks of `tasks-after-a-wait`, each with the number of its sleeps during polls.
const SLEEPS: [(&str, u64); 2] = [("alpha", 40), ("beta", 20)];

/// The number of times that a program checks whether its file exists, 10 ms apart. After that it continues without the file, so that the
/// test fails and does not hang.
const MOST_LOOKS: usize = 6_000;

/// Runs the program of this name. Returns false if there is none.
pub(crate) fn run(name: &str) -> bool {
    match name {
        "tasks-after-a-wait" => tasks_after_a_wait(),
        "from-memory" => from_memory(),
        _ => return false,
    }
    true
}

/// Waits for a file, then runs two tasks that sleep during their polls. It does not use `/proc`, which does not exist in a changed root.
fn tasks_after_a_wait() {
    if let Some(replacement) = std::env::var_os(REPLACEMENT) {
        let executable = std::env::current_exe().expect("a path");
        fs::rename(replacement, executable).expect("the file is replaced");
    }
    let gate = PathBuf::from(std::env::var_os(GATE).expect("set by the test"));
    for _ in 0..MOST_LOOKS {
        if gate.exists() {
            break;
        }
        std::thread::sleep(Duration::from_millis(10));
    }
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .thread_name("worker")
        .on_thread_start(runtime_thread)
        .build()
        .expect("a runtime");
    let tasks = SLEEPS.map(|(name, times)| {
        runtime.spawn(traced(name, async move {
            for _ in 0..times {
                sleep_off_the_cpu();
                tokio::task::yield_now().await;
            }
        }))
    });
    runtime.block_on(async {
        for task in tasks {
            task.await.expect("the process ends");
        }
    });
}

/// Sleeps until the thread was switched out: a timer that expires before the thread leaves its CPU causes no switch.
fn sleep_off_the_cpu() {
    let switches = || {
        let usage = getrusage(UsageWho::RUSAGE_THREAD).expect("the kernel counts switches");
        usage.voluntary_context_switches()
    };
    let before = switches();
    while switches() == before {
        std::thread::sleep(Duration::from_millis(1));
    }
}

/// Executes a copy of a file in a memfd.
fn from_memory() {
    let executed = std::env::var_os(EXECUTED).expect("set by the test");
    let memory = memfd_create("tasks", MFdFlags::MFD_CLOEXEC).expect("the path is created");
    let mut copy = fs::File::from(memory);
    let mut file = fs::File::open(&executed).expect("the file is readable");
    std::io::copy(&mut file, &mut copy).expect("the file is copied");
    let path = format!("/proc/self/fd/{}", std::os::fd::AsRawFd::as_raw_fd(&copy));
    let error = Command::new(path).env(VARIABLE, "tasks-after-a-wait").exec();
    panic!("could not execute: {error}");
}

/// A temporary folder for the files of a test.
struct LocatorFiles(TempDir);

impl LocatorFiles {
    fn new() -> Self {
        Self(tempfile::tempdir().expect("a temporary folder"))
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    /// Copies the tokio program to a file of this name, and returns its path.
    fn tokio_program(&self, name: &str) -> PathBuf {
        self.copy("/proc/self/exe", name)
    }

    fn copy(&self, file: impl AsRef<Path>, name: &str) -> PathBuf {
        let path = self.path(name);
        fs::copy(file, &path).expect("the file is copied");
        path
    }

    /// Returns the path of the file that the tokio program waits for.
    fn gate(&self) -> PathBuf {
        self.path("gate")
    }

    fn environment(&self) -> Environment {
        Environment::for_user(None)
            .with(VARIABLE, "tasks-after-a-wait")
            .with(GATE, self.gate())
    }

    /// Starts a shell command that executes the tokio program.
    fn start(&self, line: &str) -> WaitingProgram {
        let mut shell = Command::new("/bin/sh");
        shell
            .args(["-c", line])
            .env(VARIABLE, "tasks-after-a-wait")
            .env(GATE, self.gate());
        WaitingProgram(shell.spawn().expect("the program starts"))
    }
}

/// A process that waits for a file. It is killed when the value is dropped.
struct WaitingProgram(Child);

impl WaitingProgram {
    /// Waits until `is_executed` holds for the path of the executable, as the kernel shows it.
    fn until_it_executes(&self, is_executed: impl Fn(&Path) -> bool) {
        let link = format!("/proc/{}/exe", self.0.id());
        wait_until("the program is executed", || {
            fs::read_link(&link).is_ok_and(|path| is_executed(&path))
        });
    }
}

impl Drop for WaitingProgram {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// A file, and the condition on the recording so far under which the file is created.
struct StartGate<'a> {
    file: PathBuf,
    opens: &'a dyn Fn(&Run) -> bool,
}

/// Creates the files of its gates, in this order, during a recording.
struct StartGates<'a>(Vec<StartGate<'a>>);

impl EventSink for StartGates<'_> {
    fn events(&mut self, _batch: &[Event]) {}
}

impl Observer for StartGates<'_> {
    fn tick(&mut self, underway: &Underway<'_>) {
        let Some(gate) = self.0.first() else { return };
        if underway.so_far().is_ok_and(|run| (gate.opens)(&run)) {
            fs::write(&gate.file, "").expect("the file is written");
            self.0.remove(0);
        }
    }
}

/// Whether the recording has examined a program with tokio for which `is_it` holds.
fn knows_tokio(run: &Run, is_it: impl Fn(&Program) -> bool) -> bool {
    let mut programs = run.aggregates.programs.all().iter();
    programs.any(|program| has_tokio(program) && is_it(program))
}

fn has_tokio(program: &Program) -> bool {
    program.found.locator.flags & HAS_TOKIO != 0
}

/// Returns the settings of a recording with these locators.
fn settings(locator: LocatorChoice) -> Settings {
    Settings {
        locator,
        ..Settings::default()
    }
}

/// Records a shell command, and creates the files of the gates while it runs.
fn record_line(line: &str, environment: &Environment, locator: LocatorChoice, gates: Vec<StartGate<'_>>) -> Run {
    let words = ["sh", "-c", line].map(OsStr::new);
    let command = launch_command(Path::new("/bin/sh"), &words, environment);
    let mut gates = StartGates(gates);
    let recorded = with_recorder(settings(locator), None, |recorder| {
        recorder.command(&command, &mut gates)
    });
    let run = recorded.expect("the command is recorded").run;
    assert_eq!(run.exit.expect("waited for").status, Some(0), "{line}");
    run
}

/// Records a shell command that executes the tokio program. The program continues once it was examined.
fn record_program(place: &LocatorFiles, line: &str, locator: LocatorChoice) -> Run {
    let opens = |run: &Run| knows_tokio(run, |_| true);
    let gate = StartGate {
        file: place.gate(),
        opens: &opens,
    };
    record_line(line, &place.environment(), locator, vec![gate])
}

/// Records a waiting process, and lets it continue when it is being recorded. With `children`, the process waits for the file `begin`
/// and then starts the tokio program, which continues once it was examined.
fn record_process(place: &LocatorFiles, waiting: &mut WaitingProgram, locator: LocatorChoice, children: bool) -> Run {
    let attached = Attached::find(waiting.0.id()).expect("it runs");
    let opens = |run: &Run| knows_tokio(run, |_| true);
    let gate = StartGate {
        file: place.gate(),
        opens: &opens,
    };
    let (first, gates) = if children {
        (place.path("begin"), vec![gate])
    } else {
        (place.gate(), Vec::new())
    };
    let began = || fs::write(first, "").expect("the file is written");
    let mut gates = StartGates(gates);
    let recorded = with_recorder(settings(locator), None, |recorder| {
        recorder.process(&attached, children, began, &mut gates)
    });
    assert!(waiting.0.wait().expect("a child process").success());
    recorded.expect("the command is recorded").run
}

/// Asserts that the program at this path has tokio, and that every sleep of the two tasks is attributed to its task.
#[track_caller]
fn assert_tasks_are_found(run: &Run, locator: LocatorChoice, path: &Path) {
    let programs = run.aggregates.programs.all();
    let with_tokio: Vec<_> = programs.iter().filter(|program| has_tokio(program)).collect();
    assert!(
        with_tokio.iter().any(|program| program.path == path),
        "{} is not among the programs with tokio: {programs:#?}",
        path.display()
    );
    // A task that could not be read, because its page was not in memory, is counted as lost.
    let lost = run.aggregates.counters.lost_task_reads;
    let counts: Vec<(String, u64)> = match locator {
        LocatorChoice::Tokio => blocked(run).into_iter().take(SLEEPS.len()).collect(),
        _ => SLEEPS
            .map(|(task, _)| (task.to_owned(), switches_of(run, task, Class::TaskBlocked)))
            .into(),
    };
    assert_eq!(counts.len(), SLEEPS.len(), "{counts:?}");
    for ((name, count), (_, times)) in counts.iter().zip(SLEEPS) {
        // WaitingProgram for a lock or a page adds switches.
        assert!(
            count + lost >= times && *count < 2 * times,
            "{name}: {count}, expected {times}"
        );
        if locator == LocatorChoice::Tokio {
            assert!(name.starts_with('#'), "tokio's tasks have numbers: {counts:?}");
        }
    }
    let unattributed = of_workers(run, |reason| reason != Reason::None && reason != Reason::ReadFailed);
    assert_eq!(unattributed, 0, "{:#?}", ledger_of(run));
}

/// Returns the number of switches of threads named `worker` for whose reason `is_counted` holds.
fn of_workers(run: &Run, is_counted: impl Fn(Reason) -> bool) -> u64 {
    let sums = run.aggregates.switch_sums.iter();
    sums.filter(|(key, _)| name_of(&key.comm) == "worker" && is_counted(Reason::from_number(key.reason.into())))
        .map(|(_, sum)| sum.count)
        .sum()
}

/// The locators to test: all of them, where the probe provides the names of the tasks, and tokio's alone.
const BOTH: [LocatorChoice; 2] = [LocatorChoice::Auto, LocatorChoice::Tokio];

/// The path of the program in a memfd, as the kernel shows it.
const IN_MEMORY: &str = "/memfd:tasks";

fn the_tasks_of_a_program_in_a_memfd_are_found() {
    let line = |place: &LocatorFiles| {
        let this = place.tokio_program("starter").display().to_string();
        format!("exec env {VARIABLE}=from-memory {EXECUTED}={this} {this}")
    };
    for locator in BOTH {
        let place = LocatorFiles::new();
        let is_in_memory = |program: &Program| program.path == Path::new(IN_MEMORY);
        let opens = |run: &Run| knows_tokio(run, is_in_memory);
        let gate = StartGate {
            file: place.gate(),
            opens: &opens,
        };
        let run = record_line(&line(&place), &place.environment(), locator, vec![gate]);
        assert_tasks_are_found(&run, locator, Path::new(IN_MEMORY));
    }
    let place = LocatorFiles::new();
    let mut waiting = place.start(&line(&place));
    waiting.until_it_executes(|path| path.to_string_lossy().starts_with(IN_MEMORY));
    let run = record_process(&place, &mut waiting, LocatorChoice::Auto, false);
    assert_tasks_are_found(&run, LocatorChoice::Auto, Path::new(IN_MEMORY));
}

fn the_tasks_of_a_program_in_a_mount_namespace_are_found() {
    /// Returns a path, and a shell command that mounts the tokio program over the file at this path, which has no tasks.
    fn bind(place: &LocatorFiles) -> (PathBuf, String) {
        let (inside, outside) = (place.tokio_program("inside"), place.copy("/bin/true", "server"));
        let line = format!(
            "mount --make-rprivate / && mount --bind {} {}",
            inside.display(),
            outside.display()
        );
        (outside, line)
    }
    for locator in BOTH {
        let place = LocatorFiles::new();
        let (server, bind) = bind(&place);
        let line = format!("exec unshare -m sh -c '{bind} && exec {}'", server.display());
        let run = record_program(&place, &line, locator);
        assert_tasks_are_found(&run, locator, &server);
    }
    // The namespace exists before ctxtrace attaches.
    let place = LocatorFiles::new();
    let (server, line) = bind(&place);
    let mut waiting = place.start(&format!("exec unshare -m sh -c '{line} && exec {}'", server.display()));
    waiting.until_it_executes(|path| path == server);
    let run = record_process(&place, &mut waiting, LocatorChoice::Auto, false);
    assert_tasks_are_found(&run, LocatorChoice::Auto, &server);
    // A child process creates the namespace during the recording.
    let place = LocatorFiles::new();
    let (server, line) = bind(&place);
    let begin = place.path("begin");
    let mut waiting = place.start(&format!(
        "until [ -e {} ]; do sleep 0.01; done; unshare -m sh -c '{line} && exec {}'; true",
        begin.display(),
        server.display()
    ));
    let run = record_process(&place, &mut waiting, LocatorChoice::Auto, true);
    assert_tasks_are_found(&run, LocatorChoice::Auto, &server);
}

fn the_tasks_of_the_second_program_at_a_path_are_found() {
    for locator in BOTH {
        let place = LocatorFiles::new();
        // A C program without tasks, which waits until it was examined.
        let (first, second) = (place.copy("/bin/sh", "first"), place.tokio_program("second"));
        let (server, examined) = (place.path("server"), place.path("examined"));
        let line = format!(
            "mv {} {server}; {server} -c 'until [ -e {} ]; do sleep 0.01; done'; mv {} {server}; exec {server}",
            first.display(),
            examined.display(),
            second.display(),
            server = server.display(),
        );
        let knows_first = |run: &Run| {
            let mut programs = run.aggregates.programs.all().iter();
            programs.any(|program| program.path == server && !has_tokio(program))
        };
        let knows_second = |run: &Run| knows_tokio(run, |program| program.path == server);
        let gates = vec![
            StartGate {
                file: examined,
                opens: &knows_first,
            },
            StartGate {
                file: place.gate(),
                opens: &knows_second,
            },
        ];
        let run = record_line(&line, &place.environment(), locator, gates);
        assert_tasks_are_found(&run, locator, &server);
        let at_the_path = run.aggregates.programs.all().iter();
        let at_the_path: Vec<_> = at_the_path.filter(|program| program.path == server).collect();
        assert_eq!(at_the_path.len(), 2, "{at_the_path:#?}");
    }
}

/// The number of sleeps of the two tasks of `programs/unmodified.rs`.
const UNMODIFIED_SLEEPS: u64 = 60;

/// Each of the two programs runs repeatedly, at the same path, until enough of its sleeps are attributed.
fn two_tokio_releases_at_one_path_are_both_attributed() {
    const RUNS: usize = 200;
    let programs = PathBuf::from(require_variable("CTXTRACE_TOKIO_PROGRAMS"));
    let releases = ["1.42.1", "1.54.1"];
    let place = LocatorFiles::new();
    let server = place.path("server");
    let mut line = String::new();
    for release in releases {
        let copied = place.copy(programs.join(format!("pie-{release}")), release);
        let enough = place.path(&format!("enough-{release}"));
        line += &format!(
            "mv {} {server}; i=0; until [ -e {} ] || [ $i -ge {RUNS} ]; do {server}; i=$((i+1)); done; ",
            copied.display(),
            enough.display(),
            server = server.display(),
        );
    }
    let is_attributed = releases.map(|release| move |run: &Run| task_sleeps(run, release) >= UNMODIFIED_SLEEPS);
    let gates = releases.iter().zip(&is_attributed).map(|(release, opens)| StartGate {
        file: place.path(&format!("enough-{release}")),
        opens,
    });
    let run = record_line(
        &line,
        &Environment::for_user(None),
        LocatorChoice::Auto,
        gates.collect(),
    );
    let all = run.aggregates.programs.all();
    let known: Vec<Option<&str>> = all
        .iter()
        .filter(|program| program.path == server)
        .map(|program| program.found.tokio_version.as_deref())
        .collect();
    assert_eq!(known, releases.map(Some), "{all:#?}");
    for release in releases {
        let sleeps = task_sleeps(&run, release);
        assert!(sleeps >= UNMODIFIED_SLEEPS, "{release}: {sleeps} of tasks in {all:#?}");
    }
}

/// Returns the number of attributed sleeps during polls, in all processes of the program with this release of tokio.
fn task_sleeps(run: &Run, release: &str) -> u64 {
    let sums = run.aggregates.switch_sums.iter();
    let of_release = |tgid, number| {
        let program = run.aggregates.programs.get(Image { tgid, number });
        program.is_some_and(|program| program.found.tokio_version.as_deref() == Some(release))
    };
    sums.filter(|(key, _)| key.class == Class::TaskBlocked as u8 && key.reason == 0)
        .filter(|(key, _)| of_release(key.tgid, key.image))
        .map(|(_, sum)| sum.count)
        .sum()
}

fn the_tasks_of_a_replaced_program_are_found() {
    for locator in BOTH {
        // The program replaces its own executable when it starts.
        let place = LocatorFiles::new();
        let (server, other) = (place.tokio_program("server"), place.copy("/bin/true", "other"));
        let line = format!("exec env {REPLACEMENT}={} {}", other.display(), server.display());
        let run = record_program(&place, &line, locator);
        assert!(!other.exists(), "it was renamed");
        assert_tasks_are_found(&run, locator, &server);
    }
    // The executable is replaced or deleted before ctxtrace attaches.
    for is_replaced in [true, false] {
        let place = LocatorFiles::new();
        let (server, other) = (place.tokio_program("server"), place.copy("/bin/true", "other"));
        let mut waiting = place.start(&format!("exec {}", server.display()));
        waiting.until_it_executes(|path| path == server);
        if is_replaced {
            fs::rename(&other, &server).expect("the file is replaced");
        } else {
            fs::remove_file(&server).expect("the file is removed");
        }
        let run = record_process(&place, &mut waiting, LocatorChoice::Auto, false);
        assert_tasks_are_found(&run, LocatorChoice::Auto, &server);
    }
}

/// Creates a root folder with the tokio program at `/server`, its libraries, and the loader. Returns a shell command that runs the
/// program in this root.
fn root_with_program(place: &LocatorFiles) -> String {
    let root = place.path("root");
    for folder in ["lib64", "libraries"] {
        fs::create_dir_all(root.join(folder)).expect("the path is created");
    }
    place.tokio_program("root/server");
    let maps = fs::read_to_string("/proc/self/maps").expect("the file is readable");
    let files = maps.lines().filter_map(|line| line.split_whitespace().nth(5));
    for file in files.map(Path::new).filter(|file| file.is_absolute()) {
        let name = file.file_name().expect("it has one");
        let is_library = name.to_string_lossy().contains(".so");
        if is_library {
            fs::copy(file, root.join("libraries").join(name)).expect("the file is copied");
        }
    }
    let loader = "/lib64/ld-linux-x86-64.so.2";
    fs::copy(loader, root.join(&loader[1..])).expect("the file is copied");
    format!(
        "exec env {GATE}=/gate LD_LIBRARY_PATH=/libraries chroot {} /server",
        root.display()
    )
}

fn the_tasks_of_a_program_in_a_changed_root_are_found() {
    let server = Path::new("/server");
    for locator in BOTH {
        let place = LocatorFiles::new();
        let line = root_with_program(&place);
        let opens = |run: &Run| knows_tokio(run, |_| true);
        let gate = StartGate {
            file: place.path("root/gate"),
            opens: &opens,
        };
        let run = record_line(&line, &place.environment(), locator, vec![gate]);
        let root = place.path("root/server");
        let shown = run.aggregates.programs.all().iter().find(|program| has_tokio(program));
        let shown = shown.map(|program| program.path.clone());
        assert!(
            shown.as_deref() == Some(server) || shown.as_ref() == Some(&root),
            "{shown:?}"
        );
        assert_tasks_are_found(&run, locator, &shown.expect("just seen"));
    }
}
