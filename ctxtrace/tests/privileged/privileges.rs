//! Privileges: which users may trace which programs, and with which rights workloads run and files are written.

use std::os::unix::fs::{MetadataExt, PermissionsExt, chown, lchown, symlink};
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

use procfs::process::Process;
use serde_json::Value;
use tempfile::TempDir;

use crate::harness::require_program;
use crate::support::{CTXTRACE, at_work, number, said, stderr, wait_for_workload, wait_until};

pub(crate) const TESTS: &[(&str, fn())] = &[
    (
        "with_ambient_capabilities_a_user_traces_and_the_workload_has_none",
        with_ambient_capabilities_a_user_traces_and_the_workload_has_none,
    ),
    (
        "with_file_capabilities_a_user_traces_and_the_workload_has_none",
        with_file_capabilities_a_user_traces_and_the_workload_has_none,
    ),
    (
        "with_one_of_the_capabilities_nothing_is_traced",
        with_one_of_the_capabilities_nothing_is_traced,
    ),
    (
        "a_planted_link_is_refused_and_not_followed",
        a_planted_link_is_refused_and_not_followed,
    ),
    (
        "a_planted_link_to_a_device_is_refused",
        a_planted_link_to_a_device_is_refused,
    ),
    (
        "with_capabilities_a_child_of_another_user_is_not_recorded",
        with_capabilities_a_child_of_another_user_is_not_recorded,
    ),
    (
        "with_capabilities_a_set_user_id_program_is_recorded_up_to_its_start",
        with_capabilities_a_set_user_id_program_is_recorded_up_to_its_start,
    ),
    (
        "with_capabilities_a_program_with_capabilities_is_recorded_up_to_its_start",
        with_capabilities_a_program_with_capabilities_is_recorded_up_to_its_start,
    ),
    (
        "with_capabilities_an_unreadable_program_is_recorded_up_to_its_start",
        with_capabilities_an_unreadable_program_is_recorded_up_to_its_start,
    ),
    (
        "with_capabilities_an_unreadable_command_is_recorded_up_to_its_start",
        with_capabilities_an_unreadable_command_is_recorded_up_to_its_start,
    ),
    (
        "root_records_what_a_user_may_not_trace",
        root_records_what_a_user_may_not_trace,
    ),
    (
        "the_doctor_finds_nothing_in_the_way",
        the_doctor_finds_nothing_in_the_way,
    ),
    (
        "the_doctor_names_the_command_that_works_and_it_does",
        the_doctor_names_the_command_that_works_and_it_does,
    ),
];

const UNPRIVILEGED_USER: u32 = 65_534;

/// The capabilities for loading and attaching BPF programs, in the notation of `setpriv`.
const TRACING: &str = "+bpf,+perfmon";

/// Copies ctxtrace to a new folder of the unprivileged user 65534, where all users can execute it. Returns the folder and the copy.
pub(crate) fn copy_for_unprivileged_user() -> (TempDir, PathBuf) {
    let folder = tempfile::tempdir_in("/tmp").expect("a temporary folder");
    std::fs::set_permissions(folder.path(), std::fs::Permissions::from_mode(0o755)).expect("the permissions are set");
    let program = folder.path().join("ctxtrace");
    std::fs::copy(CTXTRACE, &program).expect("the file is copied");
    chown(folder.path(), Some(UNPRIVILEGED_USER), Some(UNPRIVILEGED_USER)).expect("the owner is set");
    (folder, program)
}

/// Returns a command that runs a program as user 65534, with these inheritable and ambient capabilities.
pub(crate) fn as_unprivileged_user(program: &Path, capabilities: Option<&str>) -> Command {
    require_program("setpriv", "util-linux");
    let mut command = Command::new("setpriv");
    command.args(["--reuid=65534", "--regid=65534", "--clear-groups"]);
    if let Some(capabilities) = capabilities {
        command.arg(format!("--inh-caps={capabilities}"));
        command.arg(format!("--ambient-caps={capabilities}"));
    }
    command
        .arg(program)
        .env_remove("SUDO_UID")
        .env_remove("SUDO_GID")
        .stdin(Stdio::null());
    command
}

/// Traces a workload that runs long enough to be examined. Checks the rights of the workload and the report.
fn traces_without_root(folder: &TempDir, mut command: Command) {
    let json = folder.path().join("x.json");
    let child = command
        .args([
            "run",
            "--mode",
            "process",
            "--iterations",
            "100000",
            "--level",
            "counts",
        ])
        .arg("--json")
        .arg(&json)
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .expect("the program starts");
    let workload = wait_for_workload(&child);
    assert_holds_nothing(&workload);
    let output = child.wait_with_output().expect("the program ends");
    assert_eq!(output.status.code(), Some(0), "{}", stderr(&output));
    let metadata = std::fs::metadata(&json).expect("the file exists");
    assert_eq!((metadata.uid(), metadata.gid()), (UNPRIVILEGED_USER, UNPRIVILEGED_USER));
    let json: Value = serde_json::from_slice(&std::fs::read(&json).expect("the file exists")).expect("valid JSON");
    assert_eq!(number(&json, "/reconciliation/difference"), 0);
    assert!(number(&json, "/kernel_switches/total") >= 200_000);
}

/// Checks that the workload runs as user 65534, without capabilities.
fn assert_holds_nothing(workload: &Process) {
    let status = workload.status().expect("the process is alive");
    assert_eq!(
        (status.ruid, status.euid, status.suid),
        (UNPRIVILEGED_USER, UNPRIVILEGED_USER, UNPRIVILEGED_USER)
    );
    assert_eq!(
        (status.capeff, status.capprm, status.capinh, status.capamb),
        (0, 0, 0, Some(0))
    );
    assert_eq!(
        status.nonewprivs,
        Some(1),
        "the workload can gain privileges by executing a program"
    );
}

fn with_ambient_capabilities_a_user_traces_and_the_workload_has_none() {
    let (folder, program) = copy_for_unprivileged_user();
    traces_without_root(&folder, as_unprivileged_user(&program, Some(TRACING)));
}

fn with_file_capabilities_a_user_traces_and_the_workload_has_none() {
    let (folder, program) = copy_for_unprivileged_user();
    set_capabilities(&program, "cap_bpf,cap_perfmon=ep");
    traces_without_root(&folder, as_unprivileged_user(&program, None));
}

fn with_capabilities_a_child_of_another_user_is_not_recorded() {
    let (folder, program) = copy_for_unprivileged_user();
    let others = folder.path().join("others-program");
    std::fs::copy("/bin/sleep", &others).expect("the file is copied");
    std::fs::set_permissions(&others, std::fs::Permissions::from_mode(0o4755)).expect("the permissions are set");
    let mut shell = Command::new("setpriv")
        .args(["--reuid=65534", "--regid=65534", "--clear-groups", "bash", "-c"])
        .arg(format!("{} 30 & while :; do sleep 0.05; done", others.display()))
        .spawn()
        .expect("setpriv is installed (Debian package util-linux)");
    let is_set = |pid: i32| {
        let status = Process::new(pid).and_then(|process| process.status());
        status.is_ok_and(|status| status.name == "others-program" && status.euid == 0)
    };
    let mut child = None;
    wait_until("the other user's program runs", || {
        let all = procfs::process::all_processes().expect("/proc is readable").flatten();
        child = all.map(|process| process.pid).find(|&pid| is_set(pid));
        child.is_some()
    });
    let json = folder.path().join("x.json");
    let output = as_unprivileged_user(&program, Some(TRACING))
        .args([
            "record",
            "--children",
            "--duration",
            "1s",
            "-p",
            &shell.id().to_string(),
            "--json",
        ])
        .arg(&json)
        .output()
        .expect("the program starts");
    shell.kill().expect("the process is alive");
    shell.wait().expect("the program ends");
    let child = nix::unistd::Pid::from_raw(child.expect("the program was found above"));
    nix::sys::signal::kill(child, nix::sys::signal::Signal::SIGKILL).expect("the process is alive");
    assert_eq!(output.status.code(), Some(0), "{}", stderr(&output));
    assert!(
        stderr(&output).contains("belong to other users are not recorded: 1 ("),
        "{}",
        stderr(&output)
    );
    let json = std::fs::read_to_string(&json).expect("the file exists");
    assert!(json.contains("sleep") && !json.contains("others-program"));
}

/// A program that writes `PID SWITCHES CHILD` to a file: its process id, the number of its switches when it started, and the id of
/// a child that it starts. Both processes are switched out a hundred times.
const STRANGER: &str = r#"
#include <stdio.h>
#include <stdlib.h>
#include <sys/resource.h>
#include <sys/wait.h>
#include <unistd.h>
int main(int argc, char **argv) {
    struct rusage usage;
    getrusage(RUSAGE_SELF, &usage);
    int child = fork();
    if (child != 0) {
        FILE *out = fopen(argv[1], "w");
        fprintf(out, "%d %ld %d\n", getpid(), usage.ru_nvcsw + usage.ru_nivcsw, child);
        if (fclose(out) != 0) return 1;
    }
    for (int i = 0; i < 100; i++) usleep(100);
    if (child != 0) waitpid(child, NULL, 0);
    return 0;
}
"#;

/// A compiled [`STRANGER`] in a folder that any user may write to.
struct Stranger {
    folder: TempDir,
    program: PathBuf,
}

/// The numbers that a [`Stranger`] has written.
#[derive(Debug)]
struct SaidOfItself {
    pid: i64,
    switches_before: i64,
    child: i64,
}

impl Stranger {
    fn build() -> Self {
        require_program("cc", "gcc");
        let folder = tempfile::tempdir_in("/tmp").expect("a temporary folder");
        std::fs::set_permissions(folder.path(), std::fs::Permissions::from_mode(0o777))
            .expect("the permissions are set");
        let program = folder.path().join("others-program");
        let source = folder.path().join("stranger.c");
        std::fs::write(&source, STRANGER).expect("the file is written");
        let built = Command::new("cc").arg("-o").arg(&program).arg(&source).status();
        assert!(built.expect("the compiler starts").success());
        Self { folder, program }
    }

    fn with_mode(self, mode: u32) -> Self {
        std::fs::set_permissions(&self.program, std::fs::Permissions::from_mode(mode))
            .expect("the permissions are set");
        self
    }

    fn with_capabilities(self, capabilities: &str) -> Self {
        set_capabilities(&self.program, capabilities);
        self
    }

    fn output(&self) -> PathBuf {
        self.folder.path().join("said")
    }

    /// Returns a shell script that waits for the file `go` and then runs the program.
    fn script(&self) -> String {
        let (folder, program, said) = (self.folder.path(), &self.program, self.output());
        format!(
            "while [ ! -e {}/go ]; do sleep 0.01; done; {} {}; true",
            folder.display(),
            program.display(),
            said.display()
        )
    }

    fn go(&self) {
        std::fs::write(self.folder.path().join("go"), "").expect("the file is written");
    }

    fn said(&self) -> SaidOfItself {
        let said = std::fs::read_to_string(self.output()).expect("the program has run");
        let numbers: Vec<i64> = said
            .split_whitespace()
            .map(|word| word.parse().expect("a number"))
            .collect();
        let &[pid, switches_before, child] = numbers.as_slice() else {
            panic!("the program did not write three numbers: {said:?}");
        };
        SaidOfItself {
            pid,
            switches_before,
            child,
        }
    }
}

fn set_capabilities(program: &Path, capabilities: &str) {
    require_program("setcap", "libcap2-bin");
    let set = Command::new("setcap")
        .arg(capabilities)
        .arg(program)
        .status()
        .expect("the program starts");
    assert!(set.success(), "the file system of /tmp does not store capabilities");
}

/// Returns the number of switches of a thread in a report, or `None` if the report has no such thread.
fn switches_of_thread(json: &Value, tid: i64) -> Option<i64> {
    let mut threads = json["threads"].as_array().expect("threads").iter();
    let thread = threads.find(|thread| thread["tid"] == tid)?;
    Some(number(thread, "/voluntary") + number(thread, "/involuntary"))
}

/// Attaches `recorder`, which starts ctxtrace, to a shell that runs `stranger`. Returns the report and what ctxtrace printed.
fn record_shell_with(stranger: &Stranger, mut recorder: Command, level: &str) -> (Value, Output) {
    let mut shell = Command::new("setpriv")
        .args(["--reuid=65534", "--regid=65534", "--clear-groups", "bash", "-c"])
        .arg(stranger.script())
        .spawn()
        .expect("setpriv is installed (Debian package util-linux)");
    let is_bash = || {
        let name = std::fs::read_to_string(format!("/proc/{}/comm", shell.id()));
        name.is_ok_and(|name| name.trim() == "bash")
    };
    wait_until("the shell runs", is_bash);
    let json = tempfile::NamedTempFile::new_in(stranger.folder.path()).expect("a file");
    chown(json.path(), Some(UNPRIVILEGED_USER), Some(UNPRIVILEGED_USER)).expect("the owner is set");
    recorder
        .args([
            "record",
            "--children",
            "--level",
            level,
            "-p",
            &shell.id().to_string(),
            "--json",
        ])
        .arg(json.path());
    let recorder = at_work(recorder);
    stranger.go();
    shell.wait().expect("the program ends");
    let output = recorder.wait_with_output().expect("the program ends");
    assert_eq!(output.status.code(), Some(0), "{}", stderr(&output));
    let json = serde_json::from_slice(&std::fs::read(json.path()).expect("the file exists")).expect("valid JSON");
    (json, output)
}

/// Checks that a report contains the process of a [`Stranger`] only up to the execution of the program.
fn has_nothing_of(stranger: &Stranger, json: &Value, output: &Output) {
    let said_of_itself = stranger.said();
    let recorded = switches_of_thread(json, said_of_itself.pid).expect("the process is in the report");
    assert!(
        recorded <= said_of_itself.switches_before,
        "{recorded} of {said_of_itself:?}"
    );
    assert_eq!(switches_of_thread(json, said_of_itself.child), None);
    assert_eq!(number(json, "/lost/refused_processes"), 1);
    assert_eq!(number(json, "/reconciliation/difference"), 0);
    // The name may only be in `target`, which has the recorded command line, and in `wakeups`, where the program is a waker
    // outside the recording: its exit wakes its parent.
    let mut others = json.clone();
    for known in ["target", "wakeups"] {
        others[known] = Value::Null;
    }
    assert!(!others.to_string().contains("others-program"), "{others:#}");
    let printed = said(output);
    assert!(
        printed.contains("1 process that you may not trace") && printed.contains("CAP_SYS_PTRACE"),
        "{printed}"
    );
}

fn a_stranger_is_recorded_up_to_its_start(stranger: &Stranger) {
    let (_folder, program) = copy_for_unprivileged_user();
    set_capabilities(&program, "cap_bpf,cap_perfmon=ep");
    for level in ["stacks", "timeline"] {
        let (json, output) = record_shell_with(stranger, as_unprivileged_user(&program, None), level);
        has_nothing_of(stranger, &json, &output);
        if level == "timeline" {
            assert_eq!(json["timeline"]["agrees"], Value::Bool(true), "{:#}", json["timeline"]);
        }
        std::fs::remove_file(stranger.folder.path().join("go")).expect("the file exists");
        std::fs::remove_file(stranger.output()).expect("the file exists");
    }
}

fn with_capabilities_a_set_user_id_program_is_recorded_up_to_its_start() {
    a_stranger_is_recorded_up_to_its_start(&Stranger::build().with_mode(0o4755));
}

fn with_capabilities_a_program_with_capabilities_is_recorded_up_to_its_start() {
    a_stranger_is_recorded_up_to_its_start(&Stranger::build().with_capabilities("cap_net_raw=ep"));
}

fn with_capabilities_an_unreadable_program_is_recorded_up_to_its_start() {
    a_stranger_is_recorded_up_to_its_start(&Stranger::build().with_mode(0o711));
}

fn with_capabilities_an_unreadable_command_is_recorded_up_to_its_start() {
    let (folder, program) = copy_for_unprivileged_user();
    set_capabilities(&program, "cap_bpf,cap_perfmon=ep");
    let stranger = Stranger::build().with_mode(0o711);
    let json = folder.path().join("x.json");
    let output = as_unprivileged_user(&program, None)
        .args(["record", "--json"])
        .arg(&json)
        .arg("--")
        .arg(&stranger.program)
        .arg(stranger.output())
        .output()
        .expect("the program starts");
    assert_eq!(output.status.code(), Some(0), "{}", stderr(&output));
    let json: Value = serde_json::from_slice(&std::fs::read(&json).expect("the file exists")).expect("valid JSON");
    has_nothing_of(&stranger, &json, &output);
    assert_eq!(json["reconciliation"]["rusage"], Value::Null);
    assert!(!said(&output).contains("never taken off its CPU"), "{}", said(&output));
}

fn root_records_what_a_user_may_not_trace() {
    let stranger = Stranger::build().with_mode(0o4755);
    let mut recorder = Command::new(CTXTRACE);
    recorder
        .env_remove("SUDO_UID")
        .env_remove("SUDO_GID")
        .stdin(Stdio::null());
    let (json, _) = record_shell_with(&stranger, recorder, "stacks");
    let said_of_itself = stranger.said();
    for tid in [said_of_itself.pid, said_of_itself.child] {
        let recorded = switches_of_thread(&json, tid).expect("the process is in the report");
        assert!(recorded >= 100, "{recorded} of {said_of_itself:?}");
    }
    assert_eq!(number(&json, "/lost/refused_processes"), 0);
}

fn with_one_of_the_capabilities_nothing_is_traced() {
    let (_folder, program) = copy_for_unprivileged_user();
    for (capability, missing) in [("+bpf", "CAP_PERFMON"), ("+perfmon", "CAP_BPF")] {
        let output = as_unprivileged_user(&program, Some(capability))
            .args(["run", "--mode", "process", "--iterations", "100"])
            .output()
            .expect("the program starts");
        assert_eq!(output.status.code(), Some(1), "{capability}");
        let said = stderr(&output);
        assert!(said.contains(missing) && said.contains("doctor"), "{said}");
    }
}

/// Runs `doctor --json -` and returns the JSON and the exit status.
fn diagnosis(mut command: Command) -> (Value, Option<i32>) {
    let output = command
        .args(["doctor", "--json", "-"])
        .output()
        .expect("the program starts");
    let json = serde_json::from_slice(&output.stdout).expect("nothing but JSON on standard output");
    (json, output.status.code())
}

/// Returns the standing (`ok`, `missing`, `unknown`, …) of the line about `about`.
fn standing<'a>(json: &'a Value, about: &str) -> &'a str {
    let mut lines = json["machine"].as_array().expect("lines").iter();
    let line = lines.find(|line| line["about"] == about).expect(about);
    line["standing"].as_str().expect("a string")
}

fn the_doctor_finds_nothing_in_the_way() {
    let (json, status) = diagnosis(Command::new(CTXTRACE));
    assert_eq!(
        (&json["tracing_works"], status),
        (&Value::Bool(true), Some(0)),
        "{json:#}"
    );
    for about in ["BTF", "rights", "map types", "BPF programs"] {
        assert_eq!(standing(&json, about), "ok", "{about}");
    }
}

fn the_doctor_names_the_command_that_works_and_it_does() {
    require_program("setcap", "libcap2-bin");
    let (_folder, program) = copy_for_unprivileged_user();
    let (json, status) = diagnosis(as_unprivileged_user(&program, None));
    assert_eq!(
        (&json["tracing_works"], status),
        (&Value::Bool(false), Some(1)),
        "{json:#}"
    );
    assert_eq!(standing(&json, "rights"), "missing");
    assert_eq!(
        standing(&json, "BPF programs"),
        "unknown",
        "without rights the doctor must not try to load programs"
    );
    let lines = json["machine"].as_array().expect("lines");
    let rights = lines.iter().find(|line| line["about"] == "rights").expect("a line");
    let fix = rights["fix"].as_str().expect("a command");
    let setcap = fix.split_once("sudo setcap ").expect("a setcap command").1;
    let set = Command::new("setcap").args(setcap.split_whitespace()).status();
    assert!(set.expect("setcap starts").success());
    let (json, status) = diagnosis(as_unprivileged_user(&program, None));
    assert_eq!(
        (&json["tracing_works"], status),
        (&Value::Bool(true), Some(0)),
        "{json:#}"
    );
    for about in ["rights", "BPF programs", "kernel names"] {
        assert_eq!(standing(&json, about), "ok", "{about}: {json:#}");
    }
}

/// Runs ctxtrace as root with the variables that sudo sets for user 65534, with its JSON report at `path`.
fn under_sudo(path: &Path) -> Output {
    let (_folder, program) = copy_for_unprivileged_user();
    Command::new(program)
        .args([
            "run",
            "--mode",
            "thread",
            "--iterations",
            "100",
            "--level",
            "counts",
            "--json",
        ])
        .arg(path)
        .stdin(Stdio::null())
        .env("SUDO_UID", UNPRIVILEGED_USER.to_string())
        .env("SUDO_GID", UNPRIVILEGED_USER.to_string())
        .output()
        .expect("the program starts")
}

/// Creates a folder like `/tmp` in which another user has planted a symbolic link to `target`. Returns the folder and the link.
fn planted(target: &Path) -> (TempDir, PathBuf) {
    const OTHER_USER: u32 = 12_345;
    let folder = tempfile::tempdir_in("/tmp").expect("a temporary folder");
    std::fs::set_permissions(folder.path(), std::fs::Permissions::from_mode(0o1777)).expect("the permissions are set");
    let link = folder.path().join("x.json");
    symlink(target, &link).expect("the link is created");
    lchown(&link, Some(OTHER_USER), Some(OTHER_USER)).expect("the owner is set");
    (folder, link)
}

fn a_planted_link_is_refused_and_not_followed() {
    let elsewhere = tempfile::tempdir().expect("a temporary folder");
    let precious = elsewhere.path().join("precious");
    std::fs::write(&precious, "precious").expect("the file is written");
    let missing = elsewhere.path().join("missing");
    for target in [&precious, &missing] {
        let (_folder, path) = planted(target);
        let output = under_sudo(&path);
        assert_eq!(output.status.code(), Some(1), "{}", stderr(&output));
        let said = stderr(&output);
        assert!(said.contains("a symbolic link of user 12345"), "{said}");
        // A link of the user's own is replaced.
        lchown(&path, Some(UNPRIVILEGED_USER), Some(UNPRIVILEGED_USER)).expect("the owner is set");
        let output = under_sudo(&path);
        assert_eq!(output.status.code(), Some(0), "{}", stderr(&output));
        let metadata = std::fs::symlink_metadata(&path).expect("the file exists");
        assert!(metadata.is_file(), "the link was not replaced by a file");
        assert_eq!((metadata.uid(), metadata.gid()), (UNPRIVILEGED_USER, UNPRIVILEGED_USER));
    }
    assert_eq!(std::fs::read_to_string(&precious).expect("the file exists"), "precious");
    assert!(!missing.exists(), "a file was created at the target of the link");
}

fn a_planted_link_to_a_device_is_refused() {
    let (_folder, path) = planted(Path::new("/dev/null"));
    let output = under_sudo(&path);
    assert_eq!(output.status.code(), Some(1), "{}", stderr(&output));
    assert!(stderr(&output).contains("it is not followed"), "{}", stderr(&output));
}
