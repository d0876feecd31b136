//! Checks whether this process may trace at all. The check runs before anything is started, and its error has the command that
//! works.

use std::ffi::OsString;

use nix::unistd::geteuid;

use crate::error::{Error, Result};
use crate::tracee::procfs::effective_capabilities;

/// The initial pid namespace: `PROC_PID_INIT_INO` (kernel: `include/linux/proc_ns.h`).
const FIRST_PID_NAMESPACE: &str = "pid:[4026531836]";
/// Bits of the capability mask (kernel: `include/uapi/linux/capability.h`).
const CAP_SYS_ADMIN: u64 = 1 << 21;
const CAP_PERFMON: u64 = 1 << 38;
const CAP_BPF: u64 = 1 << 39;
/// Checks that this process may load BPF programs.
///
/// # Errors
///
/// If it may not. The error has the `sudo` command line that runs the same command with sufficient rights.
pub fn check() -> Result<()> {
    if may_trace() {
        return if is_first_pid_namespace() {
            Ok(())
        } else {
            Err(Error::PidNamespace)
        };
    }
    let program = std::env::current_exe().map_or_else(|_| OsString::from("ctxtrace"), OsString::from);
    Err(Error::NotRoot {
        missing: missing(effective_capabilities()),
        command: sudo_command(program, std::env::args_os().skip(1)),
    })
}

/// Whether this process has the rights that loading BPF programs requires.
#[must_use]
pub fn may_trace() -> bool {
    allows_tracing(geteuid().is_root(), effective_capabilities())
}

/// Whether this process is in the initial pid namespace, so that process ids mean the same here as in the kernel's events.
#[must_use]
pub fn is_first_pid_namespace() -> bool {
    !std::fs::read_link("/proc/self/ns/pid").is_ok_and(|namespace| namespace.as_os_str() != FIRST_PID_NAMESPACE)
}

/// The sentence that says which of the two capabilities is missing.
fn missing(capabilities: u64) -> &'static str {
    match (capabilities & CAP_BPF != 0, capabilities & CAP_PERFMON != 0) {
        (true, _) => "CAP_PERFMON is missing",
        (false, true) => "CAP_BPF is missing",
        (false, false) => "both are missing",
    }
}

fn allows_tracing(root: bool, capabilities: u64) -> bool {
    root || capabilities & CAP_SYS_ADMIN != 0 || capabilities & (CAP_PERFMON | CAP_BPF) == CAP_PERFMON | CAP_BPF
}

/// The command line that the user can type. It has the program's full path, because `sudo` usually does not search cargo's
/// folder.
fn sudo_command(program: OsString, args: impl Iterator<Item = OsString>) -> String {
    std::iter::once(program)
        .chain(args)
        .fold("sudo".to_owned(), |line, word| {
            line + " " + &shell_quoted(&word.to_string_lossy())
        })
}

/// Quotes a word so that a POSIX shell reads it back unchanged.
fn shell_quoted(word: &str) -> String {
    let plain = |c: char| c.is_ascii_alphanumeric() || "-_./=:,+@%".contains(c);
    if !word.is_empty() && word.chars().all(plain) {
        word.to_owned()
    } else {
        format!("'{}'", word.replace('\'', r"'\''"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_command_can_be_pasted_into_a_shell() {
        let args = ["run", "--mode", "task pool", "--json", "it's.json"].map(OsString::from);
        assert_eq!(
            sudo_command("/home/joe/.cargo/bin/ctxtrace".into(), args.into_iter()),
            r"sudo /home/joe/.cargo/bin/ctxtrace run --mode 'task pool' --json 'it'\''s.json'"
        );
    }

    #[test]
    fn root_or_the_two_capabilities_will_do() {
        assert!(allows_tracing(true, 0));
        assert!(allows_tracing(false, CAP_BPF | CAP_PERFMON));
        assert!(allows_tracing(false, CAP_SYS_ADMIN));
        assert!(!allows_tracing(false, CAP_BPF));
        assert_eq!(missing(CAP_BPF), "CAP_PERFMON is missing");
        assert_eq!(missing(CAP_PERFMON), "CAP_BPF is missing");
        assert_eq!(missing(0), "both are missing");
        assert!(!allows_tracing(false, 0));
    }
}
