//! Tests of libraries that are mapped during a recording: in another root, and while reports of mappings are lost.

use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::path::Path;
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use procfs::process::Process;
use serde_json::Value;

use crate::files::{Builds, FileRecording, NAPS};
use crate::harness::require_program;
use crate::privileges::{as_unprivileged_user, copy_for_unprivileged_user};
use crate::support::{at_work, command, number, said, wait_until};

pub(crate) const TESTS: &[(&str, fn())] = &[
    (
        "without_map_files_a_library_in_a_changed_root_is_found",
        without_map_files_a_library_in_a_changed_root_is_found,
    ),
    (
        "a_library_whose_mapping_was_lost_has_names",
        a_library_whose_mapping_was_lost_has_names,
    ),
];

/// A program that does one step for each line of its input, and prints a line after each step. The steps: it loads the library of its
/// first argument, naps in the library, exits. With a second argument it runs on one CPU, and maps and unmaps code 20,000 times
/// before it loads the library.
const STEPS: &str = r#"
#define _GNU_SOURCE
#include <dlfcn.h>
#include <sched.h>
#include <stdio.h>
#include <sys/mman.h>
static int next(void) { char line[8]; puts("done"); fflush(stdout); return fgets(line, sizeof line, stdin) != 0; }
int main(int argc, char **argv) {
    cpu_set_t cpu;
    CPU_ZERO(&cpu);
    CPU_SET(sched_getcpu(), &cpu);
    if (argc > 2 && sched_setaffinity(0, sizeof cpu, &cpu)) return 1;
    if (!next()) return 2;
    for (int i = 0; argc > 2 && i < 20000; i++) {
        void *code = mmap(0, 4096, PROT_READ | PROT_EXEC, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
        if (code == MAP_FAILED || munmap(code, 4096)) return 3;
    }
    void *lib = dlopen(argv[1], RTLD_NOW);
    if (!lib || !next()) return 4;
    ((void (*)(int))dlsym(lib, "play"))(60);
    next();
    return 0;
}
"#;

/// A process of [`STEPS`]. It is killed when the value is dropped.
struct SteppedProgram {
    child: Child,
    stdin: ChildStdin,
    stdout: BufReader<ChildStdout>,
}

impl SteppedProgram {
    /// Starts the process and waits for its first line.
    fn start(mut command: Command) -> Self {
        let mut child = command
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .expect("the program starts");
        let stdin = child.stdin.take().expect("a pipe");
        let stdout = BufReader::new(child.stdout.take().expect("a pipe"));
        let mut steps = Self { child, stdin, stdout };
        steps.wait();
        steps
    }

    fn id(&self) -> u32 {
        self.child.id()
    }

    /// Waits for the line that the process prints after a step.
    fn wait(&mut self) {
        let mut line = String::new();
        self.stdout.read_line(&mut line).expect("text");
        assert_eq!(line, "done\n");
    }

    /// Lets the process do its next step, and waits for the end of the step.
    fn step(&mut self) {
        self.stdin.write_all(b"go\n").expect("the program reads its input");
        self.wait();
    }
}

impl Drop for SteppedProgram {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Ends a recording whose process still runs. Returns the stacks and the JSON report, which the recorder wrote to the folder.
fn ended(recorder: Child, folder: &Path) -> (FileRecording, Value) {
    kill(Pid::from_raw(recorder.id() as i32), Signal::SIGINT).expect("ctxtrace runs");
    let output = recorder.wait_with_output().expect("the process ends");
    assert_eq!(output.status.code(), Some(130), "{}", said(&output));
    let stacks = fs::read_to_string(folder.join("folded")).expect("the file is written");
    let json = fs::read(folder.join("report.json")).expect("the file is written");
    let recorded = FileRecording {
        table: said(&output),
        stacks,
    };
    (recorded, serde_json::from_slice(&json).expect("valid JSON"))
}

/// Starts a recorder that writes stacks and a JSON report to the folder. Returns when it records the process.
fn recorder(mut ctxtrace: Command, pid: u32, folder: &Path) -> Child {
    let line = format!("record -p {pid} --weight count --folded");
    ctxtrace
        .args(line.split_whitespace())
        .arg(folder.join("folded"))
        .arg("--json")
        .arg(folder.join("report.json"));
    at_work(ctxtrace)
}

/// Asserts that all naps have this function in their stacks, and no function without a name. A nap may cause no switch if its time is over
/// before the thread is off the CPU.
#[track_caller]
fn assert_naps_are_named(recorded: &FileRecording, function: &str) {
    let naps = recorded.naps_in(function);
    assert!((NAPS / 2..=NAPS).contains(&naps), "{naps} naps\n{}", recorded.stacks);
    assert_eq!(recorded.naps_in("[unknown"), 0, "{}", recorded.stacks);
}

/// Outside the root, another library is at the path of the library.
fn without_map_files_a_library_in_a_changed_root_is_found() {
    require_program("chroot", "coreutils");
    let (_folder, ctxtrace) = copy_for_unprivileged_user();
    let builds = Builds::new();
    let place = builds.path("");
    let everybody = std::os::unix::fs::PermissionsExt::from_mode(0o777);
    fs::set_permissions(&place, everybody).expect("the permissions are set");
    let (red, blue) = (builds.library("red"), builds.library("blue"));
    let program = builds.build("steps", STEPS, &["-ldl"]);
    let root = builds.path("root");
    let inside = |path: &Path| root.join(path.strip_prefix("/").expect("absolute"));
    let put = |from: &Path, path: &Path| {
        let to = inside(path);
        fs::create_dir_all(to.parent().expect("it has one")).expect("the path is created");
        fs::copy(from, to).expect("the file is copied");
    };
    let library = builds.path("library.so");
    put(&red, &library);
    fs::copy(&blue, &library).expect("the file is copied");
    put(&program, Path::new("/steps"));
    let needed = Command::new("ldd").arg(&program).output().expect("the program starts");
    let needed = String::from_utf8_lossy(&needed.stdout);
    for file in needed.split_whitespace().filter(|word| word.starts_with('/')) {
        put(Path::new(file), Path::new(file));
    }
    let mut chroot = Command::new("chroot");
    chroot
        .args(["--userspec=65534:65534", "--groups="])
        .args([root.as_path(), Path::new("/steps"), &library]);
    let mut steps = SteppedProgram::start(chroot);
    // The kernel reports a later mapping by the path as the process sees it.
    let unprivileged = as_unprivileged_user(&ctxtrace, Some("+bpf,+perfmon,+syslog"));
    let recorder = recorder(unprivileged, steps.id(), &place);
    steps.step();
    steps.step();
    let (recorded, _) = ended(recorder, &place);
    drop(steps);
    assert_naps_are_named(&recorded, "red_nap");
    assert_eq!(recorded.naps_in("blue_nap"), 0, "{}", recorded.stacks);
}

/// The tracer is stopped while the process creates more mappings than fit into the ring buffer, and then that of the library.
fn a_library_whose_mapping_was_lost_has_names() {
    let builds = Builds::new();
    let place = builds.path("");
    let mut program = Command::new(builds.build("steps", STEPS, &["-ldl"]));
    program.arg(builds.library("late")).arg("flood");
    let mut steps = SteppedProgram::start(program);
    let recorder = recorder(command(""), steps.id(), &place);
    let tracer = Pid::from_raw(recorder.id() as i32);
    kill(tracer, Signal::SIGSTOP).expect("ctxtrace runs");
    wait_until("the tracer is stopped", || {
        let threads = Process::new(tracer.as_raw()).and_then(|process| process.tasks());
        let mut threads = threads.expect("the process runs").flatten();
        threads.all(|thread| thread.stat().is_ok_and(|stat| stat.state == 'T'))
    });
    steps.step();
    steps.step();
    kill(tracer, Signal::SIGCONT).expect("it is stopped");
    let (recorded, json) = ended(recorder, &place);
    drop(steps);
    assert_naps_are_named(&recorded, "late_nap");
    assert_eq!(number(&json, "/lost/mappings"), 0);
}
