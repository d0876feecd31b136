//! Who called: under `sudo`, root is needed for tracing only, and everything else is the invoking user's.

use std::ffi::{CString, OsString};
use std::io::{self, Read, Write};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::PathBuf;

use nix::sys::prctl;
use nix::sys::signal::Signal;
use nix::sys::wait::waitpid;
use nix::unistd::{ForkResult, Gid, Uid, User, fork, geteuid, getgrouplist, setgid, setgroups, setuid};

/// A user to become: ids, and the groups they are in.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Invoker {
    /// User id.
    pub uid: Uid,
    /// Primary group.
    pub gid: Gid,
    /// All groups.
    pub groups: Vec<Gid>,
}

/// The user who called `sudo`, or `None` where nobody has to be become again: not root, no `sudo`, or root called it.
#[must_use]
pub fn invoker() -> Option<Invoker> {
    if !geteuid().is_root() {
        return None;
    }
    from_ids(
        std::env::var("SUDO_UID").ok()?.as_str(),
        std::env::var("SUDO_GID").ok()?.as_str(),
    )
}

fn from_ids(uid: &str, gid: &str) -> Option<Invoker> {
    let uid = Uid::from_raw(uid.parse().ok()?);
    let gid = Gid::from_raw(gid.parse().ok()?);
    if uid.is_root() {
        return None;
    }
    // A user without an entry in the user database is in no group but their own.
    let groups = User::from_uid(uid)
        .ok()
        .flatten()
        .and_then(|user| CString::new(user.name).ok())
        .and_then(|name| getgrouplist(&name, gid).ok())
        .unwrap_or_else(|| vec![gid]);
    Some(Invoker { uid, gid, groups })
}

impl Invoker {
    /// Does some work as this user, in a process of its own, so that nothing in the user's folders is ever touched by root.
    /// The work ends in a path, or in a reason why it failed. To be called while there is one thread.
    ///
    /// # Errors
    ///
    /// If the work fails, or the user cannot be become.
    pub fn perform(&self, work: impl FnOnce() -> Result<PathBuf, String>) -> Result<PathBuf, String> {
        let (mut from_child, mut to_parent) = io::pipe().map_err(|error| format!("pipe failed: {error}"))?;
        // SAFETY: this process has one thread, so the child may do anything.
        match unsafe { fork() }.map_err(|errno| format!("fork failed: {errno}"))? {
            ForkResult::Child => {
                drop(from_child);
                // A panic must not unwind into what the parent was doing.
                let worked = catch_unwind(AssertUnwindSafe(|| self.become_it().and_then(|()| work())))
                    .unwrap_or_else(|_| Err("it panicked".to_owned()));
                let (word, text) = match worked {
                    Ok(path) => (b'+', path.into_os_string()),
                    Err(reason) => (b'-', OsString::from(reason)),
                };
                let sent = to_parent.write_all(&[&[word], text.as_bytes()].concat());
                // SAFETY: ends the child at once; nothing of the parent's (buffers, destructors) may run twice.
                unsafe { libc::_exit(i32::from(sent.is_err())) }
            }
            ForkResult::Parent { child } => {
                drop(to_parent);
                let mut said = Vec::new();
                let read = from_child.read_to_end(&mut said);
                waitpid(child, None).map_err(|errno| format!("waitpid failed: {errno}"))?;
                match (read, said.split_first()) {
                    (Ok(_), Some((b'+', path))) => Ok(OsString::from_vec(path.to_vec()).into()),
                    (Ok(_), Some((b'-', reason))) => Err(String::from_utf8_lossy(reason).into_owned()),
                    _ => Err(format!(
                        "the process that did it as user {} ended and did not say why",
                        self.uid
                    )),
                }
            }
        }
    }

    /// Gives up everything of root's, for good.
    fn become_it(&self) -> Result<(), String> {
        setgroups(&self.groups)
            .and_then(|()| setgid(self.gid))
            .and_then(|()| setuid(self.uid))
            // The change of user clears it, so it comes after.
            .and_then(|()| prctl::set_pdeathsig(Signal::SIGKILL))
            .map_err(|errno| format!("becoming user {} failed: {errno}", self.uid))
    }
}

/// `_LINUX_CAPABILITY_VERSION_3` (kernel: `include/uapi/linux/capability.h`): 64 capabilities, in two halves.
const CAPABILITY_VERSION: u32 = 0x2008_0522;

/// `struct __user_cap_header_struct`.
#[repr(C)]
struct CapabilityHeader {
    version: u32,
    pid: i32,
}

/// `struct __user_cap_data_struct`.
#[repr(C)]
#[derive(Clone, Copy)]
struct CapabilityData {
    effective: u32,
    permitted: u32,
    inheritable: u32,
}

/// Gives up every capability of this thread, for good: those in effect, and those that a program executed later would have.
/// Returns what the system call does. It is async-signal-safe, for a child that has just been forked.
pub(crate) fn give_up_capabilities() -> i64 {
    let header = CapabilityHeader {
        version: CAPABILITY_VERSION,
        pid: 0,
    };
    let none = [CapabilityData {
        effective: 0,
        permitted: 0,
        inheritable: 0,
    }; 2];
    // SAFETY: both pointers are to structures as the kernel defines them for this version.
    unsafe { libc::syscall(libc::SYS_capset, &raw const header, none.as_ptr()) }
}

/// Keeps ambient capabilities from the programs that this process executes: they are for tracing, and not for a compiler or
/// for whatever is asked for the version of its Go. To be called while there is one thread.
///
/// # Errors
///
/// If the kernel refuses, which no kernel since Linux 4.3 does.
pub fn keep_capabilities_from_children() -> io::Result<()> {
    // SAFETY: changes this thread's credentials only, and takes no pointer.
    match unsafe { libc::prctl(libc::PR_CAP_AMBIENT, libc::PR_CAP_AMBIENT_CLEAR_ALL, 0, 0, 0) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_another_user_than_root_is_become() {
        assert_eq!(from_ids("0", "0"), None);
        assert_eq!(from_ids("nobody", "0"), None);
        assert_eq!(from_ids("", ""), None);
        let invoker = from_ids("4294967", "4294968").expect("a user without an entry");
        assert_eq!(invoker.groups, [Gid::from_raw(4_294_968)]);
    }
}
