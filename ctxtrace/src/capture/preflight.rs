//! May this process trace at all? Asked before anything is started, answered with the command that works.

use std::ffi::OsString;

use nix::unistd::geteuid;

use crate::error::{Error, Result};
use crate::target::procfs::effective_capabilities;

/// Bits of the capability mask (kernel: `include/uapi/linux/capability.h`).
/// `PROC_PID_INIT_INO` (kernel: `include/linux/proc_ns.h`).
const FIRST_PID_NAMESPACE: &str = "pid:[4026531836]";
const CAP_SYS_ADMIN: u64 = 1 << 21;
const CAP_PERFMON: u64 = 1 << 38;
const CAP_BPF: u64 = 1 << 39;

/// Checks that BPF programs may be loaded.
///
/// # Errors
///
/// If not, with the `sudo` command line that does the same with the right to.
pub fn check() -> Result<()> {
    if allows_tracing(geteuid().is_root(), effective_capabilities()) {
        return check_pid_namespace();
    }
    let program = std::env::current_exe().map_or_else(|_| OsString::from("ctxtrace"), OsString::from);
    Err(Error::NotRoot {
        command: sudo_command(program, std::env::args_os().skip(1)),
    })
}

/// The kernel's events carry the ids of the first pid namespace; in any other one processes go by other ids.
fn check_pid_namespace() -> Result<()> {
    match std::fs::read_link("/proc/self/ns/pid") {
        Ok(namespace) if namespace.as_os_str() != FIRST_PID_NAMESPACE => Err(Error::PidNamespace),
        _ => Ok(()),
    }
}

fn allows_tracing(root: bool, capabilities: u64) -> bool {
    root || capabilities & CAP_SYS_ADMIN != 0 || capabilities & (CAP_PERFMON | CAP_BPF) == CAP_PERFMON | CAP_BPF
}

/// The command line to type. The program's full path, because `sudo` usually does not look into cargo's folder.
fn sudo_command(program: OsString, args: impl Iterator<Item = OsString>) -> String {
    std::iter::once(program)
        .chain(args)
        .fold("sudo".to_owned(), |line, word| {
            line + " " + &shell_quoted(&word.to_string_lossy())
        })
}

/// A word as a POSIX shell reads it back.
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
        assert!(!allows_tracing(false, 0));
    }
}
