//! Finds and examines a running process to attach to.
//!
//! The process is only observed from the kernel's side: ctxtrace does not stop it and does not inject or write anything, so
//! detaching changes nothing. The only resource that ctxtrace holds is a pidfd, which reports the end of the process.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::PathBuf;

use nix::unistd::{Uid, User, geteuid};

use super::pidfd;
use super::procfs::{self, Stat, Status, process_folder};
use crate::error::{Error, Result};

/// A process that ctxtrace attaches to.
#[derive(Debug)]
pub struct Attached {
    /// The process id.
    pub pid: u32,
    /// The name of the process.
    pub name: String,
    /// The path of the executable, as the process sees it.
    pub executable: PathBuf,
    /// Notes about the process for the user, one sentence each.
    pub notes: Vec<String>,
    pidfd: OwnedFd,
}

impl Attached {
    /// Finds a process by its id.
    ///
    /// # Errors
    ///
    /// If there is no process with this id, or if it cannot be attached to. The error gives the reason.
    pub fn find(pid: u32) -> Result<Self> {
        let refuse = |reason: String| Error::Attach { pid, reason };
        let unreadable = |error: io::Error| refuse(in_words(&error));
        let none = || refuse(NO_PROCESS.to_owned());
        let status = procfs::status(pid, pid).map_err(unreadable)?.ok_or_else(none)?;
        if status.tgid != pid {
            return Err(refuse(format!(
                "it is a thread of process {0}; attach to the process: -p {0}",
                status.tgid
            )));
        }
        if pid == std::process::id() {
            return Err(refuse("that is ctxtrace itself".to_owned()));
        }
        let stat = procfs::stat(pid).map_err(unreadable)?.ok_or_else(none)?;
        let name = stat.name.clone();
        if stat.is_kernel_thread() {
            return Err(refuse(format!("{name} is a kernel thread, which runs no program")));
        }
        // The main thread may have ended while the process continues, so another thread is used then.
        let Some(tid) = procfs::living_thread(pid).map_err(unreadable)? else {
            return Err(refuse(format!(
                "{name} has ended, but its parent has not waited for it yet"
            )));
        };
        let pidfd = pidfd::open(pid).map_err(unreadable)?;
        let status = procfs::status(pid, tid).map_err(unreadable)?.ok_or_else(none)?;
        let executable = std::fs::read_link(process_folder(pid).join("exe")).map_err(|error| match error.kind() {
            io::ErrorKind::PermissionDenied => {
                let user = user_name(status.effective_uid);
                refuse(format!(
                    "{name} runs as {user}, and you may not trace it: {}",
                    what_lacks()
                ))
            }
            _ => unreadable(error),
        })?;
        Ok(Self {
            pid,
            notes: notes(pid, &name, &status),
            name,
            executable,
            pidfd,
        })
    }

    /// A descriptor of the process, which becomes readable when the process has ended.
    #[must_use]
    pub fn pidfd(&self) -> BorrowedFd<'_> {
        self.pidfd.as_fd()
    }

    /// A path that opens the executable even if it was replaced since, or is in another mount namespace.
    #[must_use]
    pub fn executable_file(&self) -> PathBuf {
        process_folder(self.pid).join("exe")
    }
}

/// Returns all living descendants of a process, parents before their children.
#[must_use]
pub fn descendants(pid: u32) -> Vec<u32> {
    let parent_of = |pid: u32| Some((pid, procfs::stat(pid).ok()??.parent));
    let all: Vec<(u32, u32)> = procfs::processes()
        .unwrap_or_default()
        .into_iter()
        .filter_map(parent_of)
        .collect();
    let mut family = vec![pid];
    let mut next = 0;
    while next < family.len() {
        let parent = family[next];
        family.extend(all.iter().filter(|&&(_, of)| of == parent).map(|&(child, _)| child));
        next += 1;
    }
    family.remove(0);
    family
}

/// Whether the kernel lets this process trace the given process. Tracing another user's process needs `CAP_SYS_PTRACE`.
#[must_use]
pub fn may_be_traced(pid: u32) -> bool {
    // Reading this link needs the right to trace the process (kernel: `fs/proc/base.c`, `proc_pid_readlink()`).
    let link = std::fs::read_link(format!("/proc/{pid}/exe"));
    link.map_or_else(|error| error.kind() != io::ErrorKind::PermissionDenied, |_| true)
}

/// Whether a path can mean different files for the given process and for this one, because the process is in another mount
/// namespace or has another root.
#[must_use]
pub fn has_own_root(pid: u32) -> bool {
    let identity = |folder: PathBuf| {
        let namespace = std::fs::read_link(folder.join("ns/mnt"));
        let root = std::fs::read_link(folder.join("root"));
        Some((namespace.ok()?, root.ok()?))
    };
    match (identity(PathBuf::from("/proc/self")), identity(process_folder(pid))) {
        (Some(ours), Some(theirs)) => ours != theirs,
        _ => false,
    }
}

fn notes(pid: u32, name: &str, status: &Status) -> Vec<String> {
    let mut notes = Vec::new();
    notes.extend(what_stops(
        pid,
        name,
        status.state,
        tracer_in_words(status.tracer_pid).as_deref(),
    ));
    let namespace = |folder: PathBuf| std::fs::read_link(folder.join("ns/pid")).ok();
    let (ours, theirs) = (namespace(PathBuf::from("/proc/self")), namespace(process_folder(pid)));
    if theirs.is_some() && ours != theirs {
        let inside = status.innermost_pid;
        let inside = inside.map_or(String::new(), |id| format!(", where it is process {id}"));
        notes.push(format!(
            "{name} is in another pid namespace{inside}; the report shows the ids of ctxtrace's own namespace"
        ));
    }
    notes
}

/// A note for a process that is stopped: why there is nothing to record, and how it can be continued.
fn what_stops(pid: u32, name: &str, state: char, tracer: Option<&str>) -> Option<String> {
    match (state, tracer) {
        ('T', _) => Some(format!(
            "{name} is stopped: there is nothing to record until it is continued (kill -CONT {pid})"
        )),
        ('t', Some(tracer)) => Some(format!(
            "{name} is stopped by a debugger: there is nothing to record until {tracer} continues it"
        )),
        ('t', None) => Some(format!(
            "{name} is stopped by a debugger: there is nothing to record until the debugger continues it"
        )),
        _ => None,
    }
}

/// Formats the name and the process id of a debugger; `None` if the process is gone.
fn tracer_in_words(pid: u32) -> Option<String> {
    let Stat { name, .. } = procfs::stat(pid).ok()??;
    Some(format!("{name} ({pid})"))
}

fn user_name(uid: u32) -> String {
    let user = User::from_uid(Uid::from_raw(uid)).ok().flatten();
    user.map_or_else(|| format!("user {uid}"), |user| user.name)
}

const NO_PROCESS: &str = "there is no such process";

/// Advises what the user can do if a process may not be traced. A root user needs other advice than "run as root".
fn what_lacks() -> &'static str {
    /// The bit of the capability mask (kernel: `include/uapi/linux/capability.h`).
    const CAP_SYS_PTRACE: u64 = 1 << 19;
    advice(
        geteuid().is_root(),
        procfs::effective_capabilities() & CAP_SYS_PTRACE != 0,
    )
}

/// Returns the advice for a user with these rights.
fn advice(is_root: bool, has_ptrace: bool) -> &'static str {
    match (is_root, has_ptrace) {
        (false, _) => "run ctxtrace as root",
        (true, false) => {
            "root lacks CAP_SYS_PTRACE here, as in a container; run ctxtrace on the host or give the container this capability"
        }
        (true, true) => {
            "a security module of the kernel forbids it even for root, or the process is in a parent user namespace; run ctxtrace on \
             the host"
        }
    }
}

fn in_words(error: &io::Error) -> String {
    match error.raw_os_error() {
        Some(libc::ENOENT | libc::ESRCH) => NO_PROCESS.to_owned(),
        Some(libc::EACCES | libc::EPERM) => format!("you may not trace it: {}", what_lacks()),
        _ => format!("{error}{}", crate::error::shortage(error).unwrap_or_default()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tracee::procfs::is_gone;
    use std::process::{Command, Stdio};

    fn refusal(pid: u32) -> String {
        Attached::find(pid)
            .expect_err("a process that cannot be attached to")
            .to_string()
    }

    /// A child process that is killed at the end of the test.
    struct Sleeper(std::process::Child);

    impl Sleeper {
        fn start() -> Self {
            let mut command = Command::new("sleep");
            Self(command.arg("1000").stdin(Stdio::null()).spawn().expect("started"))
        }
    }

    impl Drop for Sleeper {
        fn drop(&mut self) {
            let _ = self.0.kill();
            let _ = self.0.wait();
        }
    }

    #[test]
    fn what_cannot_be_attached_to_says_what_it_is() {
        let mut ended = Sleeper::start();
        let pid = ended.0.id();
        ended.0.kill().expect("killed");
        while !is_gone(pid) {
            std::thread::yield_now();
        }
        assert!(refusal(pid).contains("has ended"), "{}", refusal(pid));
        ended.0.wait().expect("reaped");
        assert!(refusal(pid).contains("there is no such process"), "{}", refusal(pid));
        assert!(refusal(std::process::id()).contains("ctxtrace itself"));
        // The test does not run on the main thread of its process.
        let tid = nix::unistd::gettid().as_raw() as u32;
        let process = format!("-p {}", std::process::id());
        assert!(refusal(tid).contains(&process), "{}", refusal(tid));
    }

    #[test]
    fn root_is_not_advised_to_be_root() {
        for has_ptrace in [false, true] {
            assert!(!advice(true, has_ptrace).contains("as root"), "{has_ptrace}");
            assert!(advice(false, has_ptrace).contains("as root"), "{has_ptrace}");
        }
        assert!(advice(true, false).contains("CAP_SYS_PTRACE"));
        assert!(!advice(true, true).contains("CAP_SYS_PTRACE"), "it is there");
    }

    #[test]
    fn a_process_is_found_with_its_program() {
        let sleeper = Sleeper::start();
        let found = loop {
            // Before its `execve` the child is a copy of this process.
            let found = Attached::find(sleeper.0.id()).expect("it sleeps");
            if found.name == "sleep" {
                break found;
            }
        };
        assert!(found.executable.ends_with("sleep") || found.executable.ends_with("coreutils"));
        assert!(found.notes.is_empty(), "{:?}", found.notes);
        assert!(descendants(std::process::id()).contains(&sleeper.0.id()));
        assert!(!has_own_root(sleeper.0.id()));
    }

    #[test]
    fn a_stopped_process_gets_a_note() {
        let sleeper = Sleeper::start();
        let pid = nix::unistd::Pid::from_raw(sleeper.0.id() as i32);
        nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGSTOP).expect("stopped");
        let note = loop {
            let found = Attached::find(sleeper.0.id()).expect("it is there");
            if let Some(note) = found.notes.first() {
                break note.clone();
            }
        };
        assert!(note.contains("is stopped"), "{note}");
    }

    #[test]
    fn what_lets_a_stopped_process_go_on_is_what_stopped_it() {
        let stopped = what_stops(7, "server", 'T', None).expect("it is stopped");
        assert!(stopped.contains("kill -CONT 7"), "{stopped}");
        let held = what_stops(7, "server", 't', Some("gdb (9)")).expect("it is stopped");
        assert!(held.contains("gdb (9)") && !held.contains("kill"), "{held}");
        assert_eq!(what_stops(7, "server", 'S', None), None);
    }
}
