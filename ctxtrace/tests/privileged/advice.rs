//! Tests that an error message does not advise root to run ctxtrace as root.

use std::process::{Child, Command, Output, Stdio};

use crate::harness::{require_program, skip};
use crate::privileges::{as_unprivileged_user, copy_for_unprivileged_user};
use crate::support::{CTXTRACE, said, stderr};

pub(crate) const TESTS: &[(&str, fn())] = &[
    (
        "root_without_a_capability_is_not_advised_to_be_root",
        root_without_a_capability_is_not_advised_to_be_root,
    ),
    (
        "root_of_a_user_namespace_is_not_advised_to_be_root",
        root_of_a_user_namespace_is_not_advised_to_be_root,
    ),
    (
        "a_user_is_advised_to_be_root_for_a_process_of_root",
        a_user_is_advised_to_be_root_for_a_process_of_root,
    ),
];

/// A sleeping process of root with all capabilities. It is killed when the value is dropped.
struct RootSleeper(Child);

impl RootSleeper {
    fn start() -> Self {
        Self(Command::new("sleep").arg("1000").spawn().expect("the program starts"))
    }

    /// Attaches to the process with `recorder`, a command that runs ctxtrace, and returns what the command printed.
    fn attached(&self, mut recorder: Command) -> Output {
        recorder
            .args(["record", "--duration", "100ms", "-p", &self.0.id().to_string()])
            .env_remove("SUDO_UID")
            .env_remove("SUDO_GID")
            .stdin(Stdio::null())
            .output()
            .expect("the program starts")
    }
}

impl Drop for RootSleeper {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn root_without_a_capability_is_not_advised_to_be_root() {
    require_program("setpriv", "util-linux");
    let sleeper = RootSleeper::start();
    let mut recorder = Command::new("setpriv");
    recorder.args(["--bounding-set=-sys_ptrace", "--inh-caps=-sys_ptrace", CTXTRACE]);
    let output = sleeper.attached(recorder);
    assert_eq!(output.status.code(), Some(1), "{}", stderr(&output));
    let said = said(&output);
    assert!(!said.contains("ctxtrace as root"), "{said}");
    assert!(said.contains("root lacks CAP_SYS_PTRACE"), "{said}");
}

/// Root of a user namespace has all capabilities in this namespace, and none in the parent namespace.
fn root_of_a_user_namespace_is_not_advised_to_be_root() {
    require_program("unshare", "util-linux");
    let in_namespace = || {
        let mut command = Command::new("unshare");
        command.args(["--user", "--map-root-user"]);
        command
    };
    let tried = in_namespace().arg("true").output().expect("the program starts");
    if !tried.status.success() {
        skip(format!("no user namespace can be made: {}", stderr(&tried).trim()));
    }
    let sleeper = RootSleeper::start();
    let mut recorder = in_namespace();
    recorder.arg(CTXTRACE);
    let output = sleeper.attached(recorder);
    assert_eq!(output.status.code(), Some(1), "{}", stderr(&output));
    let said = said(&output);
    assert!(!said.contains("ctxtrace as root"), "{said}");
    assert!(said.contains("run ctxtrace on the host"), "{said}");
}

fn a_user_is_advised_to_be_root_for_a_process_of_root() {
    let (_folder, program) = copy_for_unprivileged_user();
    let sleeper = RootSleeper::start();
    let output = sleeper.attached(as_unprivileged_user(&program, Some("+bpf,+perfmon")));
    assert_eq!(output.status.code(), Some(1), "{}", stderr(&output));
    assert!(said(&output).contains("run ctxtrace as root"), "{}", stderr(&output));
}
