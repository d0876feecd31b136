//! Who may trace, and as whom everything else is done.

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

const NOBODY: u32 = 65_534;

/// What loading and attaching take.
const TRACING: &str = "+bpf,+perfmon";

/// A copy of the program where any user can execute it, in a folder that is that user's.
pub(crate) fn for_nobody() -> (TempDir, PathBuf) {
    let folder = tempfile::tempdir_in("/tmp").expect("a folder");
    std::fs::set_permissions(folder.path(), std::fs::Permissions::from_mode(0o755)).expect("allowed");
    let program = folder.path().join("ctxtrace");
    std::fs::copy(CTXTRACE, &program).expect("copied");
    chown(folder.path(), Some(NOBODY), Some(NOBODY)).expect("given away");
    (folder, program)
}

/// A command as that user, with these capabilities handed down to it.
pub(crate) fn as_nobody(program: &Path, capabilities: Option<&str>) -> Command {
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

/// Runs a workload long enough to be looked at, and checks what it is and what comes of it.
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
        .expect("started");
    let workload = wait_for_workload(&child);
    assert_holds_nothing(&workload);
    let output = child.wait_with_output().expect("ended");
    assert_eq!(output.status.code(), Some(0), "{}", stderr(&output));
    let metadata = std::fs::metadata(&json).expect("there");
    assert_eq!((metadata.uid(), metadata.gid()), (NOBODY, NOBODY));
    let json: Value = serde_json::from_slice(&std::fs::read(&json).expect("there")).expect("JSON");
    assert_eq!(number(&json, "/reconciliation/difference"), 0);
    assert!(number(&json, "/kernel_switches/total") >= 200_000);
}

/// The workload is the user's, and has no right that the user has not.
fn assert_holds_nothing(workload: &Process) {
    let status = workload.status().expect("alive");
    assert_eq!((status.ruid, status.euid, status.suid), (NOBODY, NOBODY, NOBODY));
    assert_eq!(
        (status.capeff, status.capprm, status.capinh, status.capamb),
        (0, 0, 0, Some(0))
    );
    assert_eq!(status.nonewprivs, Some(1), "nor can it get one by executing something");
}

fn with_ambient_capabilities_a_user_traces_and_the_workload_has_none() {
    let (folder, program) = for_nobody();
    traces_without_root(&folder, as_nobody(&program, Some(TRACING)));
}

fn with_file_capabilities_a_user_traces_and_the_workload_has_none() {
    let (folder, program) = for_nobody();
    set_capabilities(&program, "cap_bpf,cap_perfmon=ep");
    traces_without_root(&folder, as_nobody(&program, None));
}

fn with_capabilities_a_child_of_another_user_is_not_recorded() {
    let (folder, program) = for_nobody();
    let others = folder.path().join("others-program");
    std::fs::copy("/bin/sleep", &others).expect("copied");
    std::fs::set_permissions(&others, std::fs::Permissions::from_mode(0o4755)).expect("set-user-ID");
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
        let all = procfs::process::all_processes().expect("/proc").flatten();
        child = all.map(|process| process.pid).find(|&pid| is_set(pid));
        child.is_some()
    });
    let json = folder.path().join("x.json");
    let output = as_nobody(&program, Some(TRACING))
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
        .expect("started");
    shell.kill().expect("alive");
    shell.wait().expect("ended");
    let child = nix::unistd::Pid::from_raw(child.expect("just seen"));
    nix::sys::signal::kill(child, nix::sys::signal::Signal::SIGKILL).expect("alive");
    assert_eq!(output.status.code(), Some(0), "{}", stderr(&output));
    assert!(
        stderr(&output).contains("1 of its children belong to other users"),
        "{}",
        stderr(&output)
    );
    let json = std::fs::read_to_string(&json).expect("there");
    assert!(json.contains("sleep") && !json.contains("others-program"));
}

/// A program that says how often it had been switched when it began, and the id of a child that it starts: `PID SWITCHES CHILD`. Both of
/// them are switched a hundred times.
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

/// What a stranger has said of itself.
#[derive(Debug)]
struct SaidOfItself {
    pid: i64,
    switches_before: i64,
    child: i64,
}

impl Stranger {
    fn build() -> Self {
        require_program("cc", "gcc");
        let folder = tempfile::tempdir_in("/tmp").expect("a folder");
        std::fs::set_permissions(folder.path(), std::fs::Permissions::from_mode(0o777)).expect("allowed");
        let program = folder.path().join("others-program");
        let source = folder.path().join("stranger.c");
        std::fs::write(&source, STRANGER).expect("written");
        let built = Command::new("cc").arg("-o").arg(&program).arg(&source).status();
        assert!(built.expect("started").success());
        Self { folder, program }
    }

    fn with_mode(self, mode: u32) -> Self {
        std::fs::set_permissions(&self.program, std::fs::Permissions::from_mode(mode)).expect("allowed");
        self
    }

    fn with_capabilities(self, capabilities: &str) -> Self {
        set_capabilities(&self.program, capabilities);
        self
    }

    fn output(&self) -> PathBuf {
        self.folder.path().join("said")
    }

    /// What a shell executes to run it once there is a file `go`.
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
        std::fs::write(self.folder.path().join("go"), "").expect("written");
    }

    fn said(&self) -> SaidOfItself {
        let said = std::fs::read_to_string(self.output()).expect("it has run");
        let numbers: Vec<i64> = said
            .split_whitespace()
            .map(|word| word.parse().expect("a number"))
            .collect();
        let &[pid, switches_before, child] = numbers.as_slice() else {
            panic!("three numbers in {said:?}");
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
        .expect("started");
    assert!(set.success(), "the file system of /tmp keeps no capabilities");
}

/// The switches that a report has of a thread.
fn switches_of_thread(json: &Value, tid: i64) -> Option<i64> {
    let mut threads = json["threads"].as_array().expect("threads").iter();
    let thread = threads.find(|thread| thread["tid"] == tid)?;
    Some(number(thread, "/voluntary") + number(thread, "/involuntary"))
}

/// Records a shell that runs a stranger, with `recorder`, and returns the report and what was said.
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
    chown(json.path(), Some(NOBODY), Some(NOBODY)).expect("given away");
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
    shell.wait().expect("ended");
    let output = recorder.wait_with_output().expect("ended");
    assert_eq!(output.status.code(), Some(0), "{}", stderr(&output));
    let json = serde_json::from_slice(&std::fs::read(json.path()).expect("there")).expect("JSON");
    (json, output)
}

/// Checks that nothing of a stranger is in a report but what its process was before.
fn has_nothing_of(stranger: &Stranger, json: &Value, output: &Output) {
    let said_of_itself = stranger.said();
    let recorded = switches_of_thread(json, said_of_itself.pid).expect("it was followed before");
    assert!(
        recorded <= said_of_itself.switches_before,
        "{recorded} of {said_of_itself:?}"
    );
    assert_eq!(switches_of_thread(json, said_of_itself.child), None);
    assert_eq!(number(json, "/lost/refused_processes"), 1);
    assert_eq!(number(json, "/reconciliation/difference"), 0);
    // The path is in the words of the command that was recorded, and the name is that of a waker outside of what is recorded: its end
    // wakes its parent.
    let mut others = json.clone();
    for known in ["target", "wakeups"] {
        others[known] = Value::Null;
    }
    assert!(!others.to_string().contains("others-program"), "{others:#}");
    let told = said(output);
    assert!(
        told.contains("1 process that you may not trace") && told.contains("CAP_SYS_PTRACE"),
        "{told}"
    );
}

fn a_stranger_is_recorded_up_to_its_start(stranger: &Stranger) {
    let (_folder, program) = for_nobody();
    set_capabilities(&program, "cap_bpf,cap_perfmon=ep");
    for level in ["stacks", "timeline"] {
        let (json, output) = record_shell_with(stranger, as_nobody(&program, None), level);
        has_nothing_of(stranger, &json, &output);
        if level == "timeline" {
            assert_eq!(json["timeline"]["agrees"], Value::Bool(true), "{:#}", json["timeline"]);
        }
        std::fs::remove_file(stranger.folder.path().join("go")).expect("there");
        std::fs::remove_file(stranger.output()).expect("there");
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
    let (folder, program) = for_nobody();
    set_capabilities(&program, "cap_bpf,cap_perfmon=ep");
    let stranger = Stranger::build().with_mode(0o711);
    let json = folder.path().join("x.json");
    let output = as_nobody(&program, None)
        .args(["record", "--json"])
        .arg(&json)
        .arg("--")
        .arg(&stranger.program)
        .arg(stranger.output())
        .output()
        .expect("started");
    assert_eq!(output.status.code(), Some(0), "{}", stderr(&output));
    let json: Value = serde_json::from_slice(&std::fs::read(&json).expect("there")).expect("JSON");
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
        let recorded = switches_of_thread(&json, tid).expect("it was followed");
        assert!(recorded >= 100, "{recorded} of {said_of_itself:?}");
    }
    assert_eq!(number(&json, "/lost/refused_processes"), 0);
}

fn with_one_of_the_capabilities_nothing_is_traced() {
    let (_folder, program) = for_nobody();
    for (capability, missing) in [("+bpf", "CAP_PERFMON"), ("+perfmon", "CAP_BPF")] {
        let output = as_nobody(&program, Some(capability))
            .args(["run", "--mode", "process", "--iterations", "100"])
            .output()
            .expect("started");
        assert_eq!(output.status.code(), Some(1), "{capability}");
        let said = stderr(&output);
        assert!(said.contains(missing) && said.contains("doctor"), "{said}");
    }
}

/// What `doctor --json -` says, and its status.
fn diagnosis(mut command: Command) -> (Value, Option<i32>) {
    let output = command.args(["doctor", "--json", "-"]).output().expect("started");
    let json = serde_json::from_slice(&output.stdout).expect("nothing but JSON on standard output");
    (json, output.status.code())
}

/// How it stands with one thing.
fn standing<'a>(json: &'a Value, about: &str) -> &'a str {
    let mut lines = json["machine"].as_array().expect("lines").iter();
    let line = lines.find(|line| line["about"] == about).expect(about);
    line["standing"].as_str().expect("a word")
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
    let (_folder, program) = for_nobody();
    let (json, status) = diagnosis(as_nobody(&program, None));
    assert_eq!(
        (&json["tracing_works"], status),
        (&Value::Bool(false), Some(1)),
        "{json:#}"
    );
    assert_eq!(standing(&json, "rights"), "missing");
    assert_eq!(standing(&json, "BPF programs"), "unknown", "it was not tried");
    let lines = json["machine"].as_array().expect("lines");
    let rights = lines.iter().find(|line| line["about"] == "rights").expect("a line");
    let fix = rights["fix"].as_str().expect("a command");
    let setcap = fix.split_once("sudo setcap ").expect("the other way").1;
    let set = Command::new("setcap").args(setcap.split_whitespace()).status();
    assert!(set.expect("started").success());
    let (json, status) = diagnosis(as_nobody(&program, None));
    assert_eq!(
        (&json["tracing_works"], status),
        (&Value::Bool(true), Some(0)),
        "{json:#}"
    );
    for about in ["rights", "BPF programs", "kernel names"] {
        assert_eq!(standing(&json, about), "ok", "{about}: {json:#}");
    }
}

/// Runs as root for that user, as sudo does, with its JSON at `path`.
fn under_sudo(path: &Path) -> Output {
    let (_folder, program) = for_nobody();
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
        .env("SUDO_UID", NOBODY.to_string())
        .env("SUDO_GID", NOBODY.to_string())
        .output()
        .expect("started")
}

/// A folder like `/tmp`, in which another user has planted a link.
fn planted(target: &Path) -> (TempDir, PathBuf) {
    const SOMEBODY: u32 = 12_345;
    let folder = tempfile::tempdir_in("/tmp").expect("a folder");
    std::fs::set_permissions(folder.path(), std::fs::Permissions::from_mode(0o1777)).expect("allowed");
    let link = folder.path().join("x.json");
    symlink(target, &link).expect("planted");
    lchown(&link, Some(SOMEBODY), Some(SOMEBODY)).expect("given away");
    (folder, link)
}

fn a_planted_link_is_refused_and_not_followed() {
    let elsewhere = tempfile::tempdir().expect("a folder");
    let precious = elsewhere.path().join("precious");
    std::fs::write(&precious, "precious").expect("written");
    let missing = elsewhere.path().join("missing");
    for target in [&precious, &missing] {
        let (_folder, path) = planted(target);
        let output = under_sudo(&path);
        assert_eq!(output.status.code(), Some(1), "{}", stderr(&output));
        let said = stderr(&output);
        assert!(said.contains("a symbolic link of user 12345"), "{said}");
        // One's own is replaced.
        lchown(&path, Some(NOBODY), Some(NOBODY)).expect("given away");
        let output = under_sudo(&path);
        assert_eq!(output.status.code(), Some(0), "{}", stderr(&output));
        let metadata = std::fs::symlink_metadata(&path).expect("there");
        assert!(metadata.is_file(), "the link is gone");
        assert_eq!((metadata.uid(), metadata.gid()), (NOBODY, NOBODY));
    }
    assert_eq!(std::fs::read_to_string(&precious).expect("there"), "precious");
    assert!(!missing.exists(), "nothing was made where the link led");
}

fn a_planted_link_to_a_device_is_refused() {
    let (_folder, path) = planted(Path::new("/dev/null"));
    let output = under_sudo(&path);
    assert_eq!(output.status.code(), Some(1), "{}", stderr(&output));
    assert!(stderr(&output).contains("it is not followed"), "{}", stderr(&output));
}
