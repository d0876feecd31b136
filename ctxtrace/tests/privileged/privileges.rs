//! Who may trace, and as whom everything else is done.

use std::os::unix::fs::{MetadataExt, PermissionsExt, chown, lchown, symlink};
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

use procfs::process::Process;
use serde_json::Value;
use tempfile::TempDir;

use crate::harness::require_program;
use crate::support::{CTXTRACE, number, stderr, wait_for_workload, wait_until};

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
fn for_nobody() -> (TempDir, PathBuf) {
    let folder = tempfile::tempdir_in("/tmp").expect("a folder");
    std::fs::set_permissions(folder.path(), std::fs::Permissions::from_mode(0o755)).expect("allowed");
    let program = folder.path().join("ctxtrace");
    std::fs::copy(CTXTRACE, &program).expect("copied");
    chown(folder.path(), Some(NOBODY), Some(NOBODY)).expect("given away");
    (folder, program)
}

/// A command as that user, with these capabilities handed down to it.
fn as_nobody(program: &Path, capabilities: Option<&str>) -> Command {
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
    require_program("setcap", "libcap2-bin");
    let (folder, program) = for_nobody();
    let set = Command::new("setcap")
        .arg("cap_bpf,cap_perfmon=ep")
        .arg(&program)
        .status()
        .expect("started");
    assert!(set.success(), "the file system of /tmp keeps no capabilities");
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
