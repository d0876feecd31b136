//! A process that runs already: found, looked at, and not touched.
//!
//! Attaching is looking from the kernel's side: nothing is stopped, injected or written, so leaving changes nothing. All that
//! is taken of the process is a descriptor that tells its end.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, FromRawFd, OwnedFd};
use std::path::PathBuf;

use nix::unistd::{Uid, User};
use procfs::process::{Process, StatFlags};
use procfs::{ProcError, ProcResult};

use super::procfs::is_gone;
use crate::error::{Error, Result};

/// A process to attach to.
#[derive(Debug)]
pub struct Attached {
    /// Its id.
    pub pid: u32,
    /// Its name.
    pub name: String,
    /// Its executable as the process sees it.
    pub executable: PathBuf,
    /// What the user should know about it, in sentences.
    pub notes: Vec<String>,
    pidfd: OwnedFd,
}

impl Attached {
    /// Finds a process.
    ///
    /// # Errors
    ///
    /// If there is none of this id, or none that can be attached to; the sentence says what it is instead.
    pub fn find(pid: u32) -> Result<Self> {
        let refuse = |reason: String| Error::Attach { pid, reason };
        let unreadable = |error: ProcError| refuse(in_words(&error));
        let process = Process::new(pid as i32).map_err(unreadable)?;
        let status = process.status().map_err(unreadable)?;
        let stat = process.stat().map_err(unreadable)?;
        let name = stat.comm.clone();
        if status.tgid != pid as i32 {
            return Err(refuse(format!(
                "it is a thread of process {0}; attach to the process: -p {0}",
                status.tgid
            )));
        }
        if pid == std::process::id() {
            return Err(refuse("that is ctxtrace itself".to_owned()));
        }
        if StatFlags::from_bits_truncate(stat.flags).contains(StatFlags::PF_KTHREAD) {
            return Err(refuse(format!(
                "{name} is a thread of the kernel, which runs no program"
            )));
        }
        if is_gone(pid as i32) {
            return Err(refuse(format!(
                "{name} has ended; its parent has not asked for its status yet"
            )));
        }
        // SAFETY: makes a descriptor; should the process have ended since, the kernel says so.
        let pidfd = unsafe { libc::syscall(libc::SYS_pidfd_open, pid, 0) };
        if pidfd < 0 {
            return Err(refuse(in_words(&ProcError::from(io::Error::last_os_error()))));
        }
        let executable = process.exe().map_err(|error| match error {
            ProcError::PermissionDenied(_) => refuse(format!(
                "{name} runs as {}, and may not be looked at by you: run ctxtrace as root",
                user_name(status.euid)
            )),
            other => unreadable(other),
        })?;
        Ok(Self {
            pid,
            notes: notes(&process, &name, &status, stat.state).unwrap_or_default(),
            name,
            executable,
            // SAFETY: the kernel has just given us this descriptor.
            pidfd: unsafe { OwnedFd::from_raw_fd(pidfd as i32) },
        })
    }

    /// Becomes readable when the process has ended.
    #[must_use]
    pub fn pidfd(&self) -> BorrowedFd<'_> {
        self.pidfd.as_fd()
    }

    /// Its executable as a file that can be opened, even if it was replaced since, or lies in another mount namespace.
    #[must_use]
    pub fn executable_file(&self) -> PathBuf {
        PathBuf::from(format!("/proc/{}/exe", self.pid))
    }
}

/// Every descendant of a process that is alive, parents before their children.
#[must_use]
pub fn descendants(pid: u32) -> Vec<u32> {
    let all: Vec<(u32, u32)> = procfs::process::all_processes()
        .into_iter()
        .flatten()
        .filter_map(|process| process.ok()?.stat().ok())
        .map(|stat| (stat.pid as u32, stat.ppid as u32))
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

/// Whether the kernel lets the caller trace a process: without `CAP_SYS_PTRACE` it lets nobody trace another user's.
#[must_use]
pub fn may_be_traced(pid: u32) -> bool {
    // Reading this link takes the right to trace (kernel: `fs/proc/base.c`, `proc_pid_readlink()`).
    let link = std::fs::read_link(format!("/proc/{pid}/exe"));
    link.map_or_else(|error| error.kind() != io::ErrorKind::PermissionDenied, |_| true)
}

/// Whether a process sees other files under the same names than this one: it is in another mount namespace, or has another
/// root.
#[must_use]
pub fn has_own_root(pid: u32) -> bool {
    let identity = |pid: &str| {
        let namespace = std::fs::read_link(format!("/proc/{pid}/ns/mnt"));
        let root = std::fs::read_link(format!("/proc/{pid}/root"));
        Some((namespace.ok()?, root.ok()?))
    };
    match (identity("self"), identity(&pid.to_string())) {
        (Some(ours), Some(theirs)) => ours != theirs,
        _ => false,
    }
}

fn notes(process: &Process, name: &str, status: &procfs::process::Status, state: char) -> ProcResult<Vec<String>> {
    let mut notes = Vec::new();
    let pid = process.pid;
    if matches!(state, 'T' | 't') {
        notes.push(format!(
            "{name} is stopped: there is nothing to record until it goes on (kill -CONT {pid})"
        ));
    }
    let namespace = |pid: &str| std::fs::read_link(format!("/proc/{pid}/ns/pid"));
    if namespace("self")? != namespace(&pid.to_string())? {
        let inside = status.nspid.as_ref().and_then(|ids| ids.last().copied());
        let inside = inside.map_or(String::new(), |id| format!(", where it is process {id}"));
        notes.push(format!(
            "{name} is in another pid namespace{inside}; the report has the ids of this one"
        ));
    }
    Ok(notes)
}

fn user_name(uid: u32) -> String {
    let user = User::from_uid(Uid::from_raw(uid)).ok().flatten();
    user.map_or_else(|| format!("user {uid}"), |user| user.name)
}

fn in_words(error: &ProcError) -> String {
    match error {
        ProcError::NotFound(_) => "there is no such process".to_owned(),
        ProcError::PermissionDenied(_) => "it may not be looked at by you: run ctxtrace as root".to_owned(),
        ProcError::Io(error, _) if error.raw_os_error() == Some(libc::ESRCH) => "there is no such process".to_owned(),
        other => other.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::process::{Command, Stdio};

    fn refusal(pid: u32) -> String {
        Attached::find(pid).expect_err("not to be attached to").to_string()
    }

    /// Ends with the test.
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
        while !is_gone(pid as i32) {
            std::thread::yield_now();
        }
        assert!(refusal(pid).contains("has ended"), "{}", refusal(pid));
        ended.0.wait().expect("reaped");
        assert!(refusal(pid).contains("there is no such process"), "{}", refusal(pid));
        assert!(refusal(std::process::id()).contains("ctxtrace itself"));
        // The test runs on a thread that is not its process's first.
        let tid = nix::unistd::gettid().as_raw() as u32;
        let process = format!("-p {}", std::process::id());
        assert!(refusal(tid).contains(&process), "{}", refusal(tid));
    }

    #[test]
    fn a_process_is_found_with_its_program() {
        let sleeper = Sleeper::start();
        let found = loop {
            // Until it has executed its program it is a copy of this one.
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
    fn a_stopped_process_is_said_to_be_stopped() {
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
}
