//! The invoking user: under `sudo`, root's rights are used for tracing only, and everything else is done as the invoking user.

use std::ffi::{CString, OsStr, OsString};
use std::io::{self, Read, Write};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::PathBuf;
use std::sync::Arc;

use nix::errno::Errno;
use nix::sys::prctl;
use nix::sys::signal::Signal;
use nix::sys::wait::waitpid;
use nix::unistd::{
    ForkResult, Gid, Uid, User, fork, getegid, geteuid, getgrouplist, getgroups, setfsgid, setfsuid, setgid, setgroups,
    setuid,
};

use super::procfs;
use crate::error::{Error, Result};

/// The user who invoked `sudo`, to whom this process can switch.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Invoker {
    /// The user id.
    pub uid: Uid,
    /// The primary group.
    pub gid: Gid,
    /// All groups of the user.
    pub groups: Vec<Gid>,
}

/// Returns the user who invoked `sudo`; `None` if this process is not root, was not started by `sudo`, or if root invoked `sudo`.
///
/// # Errors
///
/// If `SUDO_UID` and `SUDO_GID` do not name a user to whom this process can switch. Root's rights are never used instead.
pub fn invoker() -> Result<Option<Invoker>> {
    if !geteuid().is_root() {
        return Ok(None);
    }
    let invoker = from_variables(std::env::var_os("SUDO_UID"), std::env::var_os("SUDO_GID"))?;
    if let Some(user) = &invoker {
        let refused = |source| Error::Sudo(format!("switching to user {} failed: {source}", user.uid));
        FileRights::for_user(Some(user)).apply(|| Ok(())).map_err(refused)?;
    }
    Ok(invoker)
}

fn from_variables(uid: Option<OsString>, gid: Option<OsString>) -> Result<Option<Invoker>> {
    let (uid, gid) = match (uid, gid) {
        (None, None) => return Ok(None),
        (Some(uid), Some(gid)) => (id("SUDO_UID", &uid)?, id("SUDO_GID", &gid)?),
        (Some(_), None) => return Err(Error::Sudo("SUDO_UID is set but SUDO_GID is not".to_owned())),
        (None, Some(_)) => return Err(Error::Sudo("SUDO_GID is set but SUDO_UID is not".to_owned())),
    };
    let (uid, gid) = (Uid::from_raw(uid), Gid::from_raw(gid));
    if uid.is_root() {
        return Ok(None);
    }
    // A user without an entry in the user database is only in the given group.
    let groups = User::from_uid(uid)
        .ok()
        .flatten()
        .and_then(|user| CString::new(user.name).ok())
        .and_then(|name| getgrouplist(&name, gid).ok())
        .unwrap_or_else(|| vec![gid]);
    Ok(Some(Invoker { uid, gid, groups }))
}

/// Parses the id in a variable. It must consist of digits only, and must not be `u32::MAX`, which means "no change" to the
/// kernel.
fn id(variable: &str, value: &OsStr) -> Result<u32> {
    let digits = value
        .to_str()
        .filter(|text| text.bytes().all(|byte| byte.is_ascii_digit()));
    digits
        .and_then(|text| text.parse().ok())
        .filter(|&id| id != u32::MAX)
        .ok_or_else(|| Error::Sudo(format!("{variable} is {value:?}, which is not a valid id")))
}

/// The rights with which files are examined, opened, written, renamed and removed.
#[derive(Clone, Debug, Default)]
pub struct FileRights(Whose);

#[derive(Clone, Debug, Default)]
enum Whose {
    /// The rights of this process.
    #[default]
    Process,
    /// The rights of this process's user, without the capabilities that the process has for tracing.
    WithoutCapabilities,
    /// The rights of the invoking user, without any of root's.
    Invoker(Arc<Invoker>),
}

impl FileRights {
    /// Returns the rights of `user`, who invoked `sudo`. If it is `None`, returns the rights of this process without the
    /// capabilities that it has for tracing.
    #[must_use]
    pub fn for_user(user: Option<&Invoker>) -> Self {
        Self(match user {
            Some(user) => Whose::Invoker(Arc::new(user.clone())),
            None if !geteuid().is_root() && procfs::effective_capabilities() != 0 => Whose::WithoutCapabilities,
            None => Whose::Process,
        })
    }

    /// The user who owns new files.
    #[must_use]
    pub fn user(&self) -> Uid {
        match &self.0 {
            Whose::Invoker(user) => user.uid,
            Whose::Process | Whose::WithoutCapabilities => geteuid(),
        }
    }

    /// Runs `work` with these rights in this thread. The rights of other threads do not change.
    ///
    /// # Errors
    ///
    /// If `work` fails, or if the rights cannot be set; then `work` is not run.
    pub fn apply<T>(&self, work: impl FnOnce() -> io::Result<T>) -> io::Result<T> {
        let _rights = match &self.0 {
            Whose::Process => None,
            Whose::WithoutCapabilities => Some(ThreadRights::reduce(None)?),
            Whose::Invoker(user) => Some(ThreadRights::reduce(Some(user))?),
        };
        work()
    }
}

/// The rights of this thread before they were reduced. Dropping this value restores them.
struct ThreadRights {
    capabilities: [CapabilityData; 2],
    groups: Option<Vec<Gid>>,
}

impl ThreadRights {
    fn reduce(user: Option<&Invoker>) -> io::Result<Self> {
        let capabilities = capabilities()?;
        let mut before = Self {
            capabilities,
            groups: None,
        };
        // If the thread already has the rights of this user, nothing is changed.
        if let Some(user) = user
            && file_user() != user.uid
        {
            let groups = getgroups()?;
            set_groups_of_thread(&user.groups)?;
            before.groups = Some(groups);
            setfsgid(user.gid);
            setfsuid(user.uid);
            // Both calls return the previous id and never an error, so the result is checked by further calls.
            if file_user() != user.uid || setfsgid(Gid::from_raw(u32::MAX)) != user.gid {
                return Err(Errno::EPERM.into());
            }
        }
        let none_in_effect = capabilities.map(|half| CapabilityData { effective: 0, ..half });
        set_capabilities(&none_in_effect)?;
        Ok(before)
    }
}

impl Drop for ThreadRights {
    fn drop(&mut self) {
        // Each call restores rights that the thread had. If one fails, the thread has fewer rights, never more.
        let _ = set_capabilities(&self.capabilities);
        if let Some(groups) = &self.groups {
            setfsuid(geteuid());
            setfsgid(getegid());
            let _ = set_groups_of_thread(groups);
        }
    }
}

/// Returns the user id that the kernel uses for this thread's access to files.
fn file_user() -> Uid {
    // An invalid id changes nothing, and the call returns the current id.
    setfsuid(Uid::from_raw(u32::MAX))
}

/// Sets the groups of this thread only; the function of the C library would set those of all threads.
fn set_groups_of_thread(groups: &[Gid]) -> io::Result<()> {
    let groups: Vec<libc::gid_t> = groups.iter().map(|group| group.as_raw()).collect();
    // SAFETY: the pointer is to an array with `groups.len()` ids.
    match unsafe { libc::syscall(libc::SYS_setgroups, groups.len(), groups.as_ptr()) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

impl Invoker {
    /// Runs `work` as this user in a separate process, so that root never touches the user's folders. The result of the work is a
    /// path, or the reason why it failed. Must be called while this process has only one thread.
    ///
    /// # Errors
    ///
    /// If the work fails, or if switching to the user fails.
    pub fn perform(
        &self,
        work: impl FnOnce() -> std::result::Result<PathBuf, String>,
    ) -> std::result::Result<PathBuf, String> {
        let (mut from_child, mut to_parent) = io::pipe().map_err(|error| format!("pipe failed: {error}"))?;
        // SAFETY: this process has only one thread, so the child may call any function after the fork.
        match unsafe { fork() }.map_err(|errno| format!("fork failed: {errno}"))? {
            ForkResult::Child => {
                drop(from_child);
                // A panic must not unwind into the code of the parent.
                let worked = catch_unwind(AssertUnwindSafe(|| self.become_it().and_then(|()| work())))
                    .unwrap_or_else(|_| Err("the child process panicked".to_owned()));
                let (word, text) = match worked {
                    Ok(path) => (b'+', path.into_os_string()),
                    Err(reason) => (b'-', OsString::from(reason)),
                };
                let sent = to_parent.write_all(&[&[word], text.as_bytes()].concat());
                // SAFETY: `_exit` ends the child immediately, so that the parent's buffers are not flushed and its destructors
                // are not run a second time.
                unsafe { libc::_exit(i32::from(sent.is_err())) }
            }
            ForkResult::Parent { child } => {
                drop(to_parent);
                let mut message = Vec::new();
                let read = from_child.read_to_end(&mut message);
                waitpid(child, None).map_err(|errno| format!("waitpid failed: {errno}"))?;
                match (read, message.split_first()) {
                    (Ok(_), Some((b'+', path))) => Ok(OsString::from_vec(path.to_vec()).into()),
                    (Ok(_), Some((b'-', reason))) => Err(String::from_utf8_lossy(reason).into_owned()),
                    _ => Err(format!("the child process of user {} ended without a result", self.uid)),
                }
            }
        }
    }

    /// Switches this process to the user permanently, so that it keeps no rights of root.
    fn become_it(&self) -> std::result::Result<(), String> {
        setgroups(&self.groups)
            .and_then(|()| setgid(self.gid))
            .and_then(|()| setuid(self.uid))
            // The change of user clears this setting, so it is made afterwards.
            .and_then(|()| prctl::set_pdeathsig(Signal::SIGKILL))
            .map_err(|errno| format!("switching to user {} failed: {errno}", self.uid))
    }
}

/// The constant `_LINUX_CAPABILITY_VERSION_3` (kernel: `include/uapi/linux/capability.h`): 64 capabilities in two halves.
const CAPABILITY_VERSION: u32 = 0x2008_0522;

/// The kernel's `struct __user_cap_header_struct`.
#[repr(C)]
struct CapabilityHeader {
    version: u32,
    pid: i32,
}

/// The kernel's `struct __user_cap_data_struct`.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct CapabilityData {
    effective: u32,
    permitted: u32,
    inheritable: u32,
}

/// Returns the capabilities of this thread.
fn capabilities() -> io::Result<[CapabilityData; 2]> {
    let header = CapabilityHeader {
        version: CAPABILITY_VERSION,
        pid: 0,
    };
    let mut data = [CapabilityData {
        effective: 0,
        permitted: 0,
        inheritable: 0,
    }; 2];
    // SAFETY: both pointers are to structures as the kernel defines them for this version.
    match unsafe { libc::syscall(libc::SYS_capget, &raw const header, data.as_mut_ptr()) } {
        0 => Ok(data),
        _ => Err(io::Error::last_os_error()),
    }
}

/// Sets the capabilities of this thread.
fn set_capabilities(data: &[CapabilityData; 2]) -> io::Result<()> {
    let header = CapabilityHeader {
        version: CAPABILITY_VERSION,
        pid: 0,
    };
    // SAFETY: both pointers are to structures as the kernel defines them for this version.
    match unsafe { libc::syscall(libc::SYS_capset, &raw const header, data.as_ptr()) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

/// Drops all capabilities of this thread permanently: the effective, the permitted and the inheritable ones. Returns the result
/// of the system call. This function is async-signal-safe, because a child calls it right after the fork.
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

/// Clears the ambient capabilities, so that the programs that this process executes do not inherit them. They are needed for
/// tracing only, not by a compiler or by the `go` command that prints its version. Must be called while this process has only one
/// thread.
///
/// # Errors
///
/// If `prctl` fails, which it does on no kernel since Linux 4.3.
pub fn keep_capabilities_from_children() -> io::Result<()> {
    // SAFETY: the call changes only this thread's credentials and takes no pointer.
    match unsafe { libc::prctl(libc::PR_CAP_AMBIENT, libc::PR_CAP_AMBIENT_CLEAR_ALL, 0, 0, 0) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn from_ids(uid: Option<&str>, gid: Option<&str>) -> Result<Option<Invoker>> {
        from_variables(uid.map(OsString::from), gid.map(OsString::from))
    }

    #[test]
    fn only_another_user_than_root_is_become() {
        assert_eq!(from_ids(None, None).expect("no sudo"), None);
        assert_eq!(from_ids(Some("0"), Some("0")).expect("root called it"), None);
        let invoker = from_ids(Some("4294967"), Some("4294968")).expect("ids");
        assert_eq!(
            invoker.expect("a user without an entry").groups,
            [Gid::from_raw(4_294_968)]
        );
    }

    #[test]
    fn what_names_no_user_is_an_error_and_not_root() {
        for (uid, gid) in [
            (Some("1000"), None),
            (None, Some("1000")),
            (Some("daemon"), Some("1000")),
            (Some("1000"), Some("")),
            (Some("+1000"), Some("1000")),
            (Some("-1"), Some("1000")),
            (Some("4294967295"), Some("1000")),
            (Some("1000"), Some("4294967296")),
        ] {
            let error = from_ids(uid, gid).expect_err("no user").to_string();
            assert!(error.contains("SUDO_") && error.contains("set both"), "{error}");
        }
    }

    #[test]
    fn rights_that_were_reduced_come_back() {
        let before = (capabilities().expect("read"), getgroups().expect("read"), file_user());
        let user = Invoker {
            uid: Uid::from_raw(12_345),
            gid: Gid::from_raw(12_346),
            groups: vec![Gid::from_raw(12_347)],
        };
        let rights = FileRights::for_user(Some(&user));
        let work = || {
            // A nested call changes nothing, and restores nothing when it ends.
            rights.apply(|| Ok(()))?;
            assert!(capabilities()?.iter().all(|half| half.effective == 0));
            assert_eq!((file_user(), getgroups()?), (user.uid, user.groups.clone()));
            std::fs::read_dir("/proc/self/fd").map(drop)
        };
        // Without root the rights cannot be set, and the work is not run.
        assert_eq!(rights.apply(work).is_ok(), geteuid().is_root());
        let after = (capabilities().expect("read"), getgroups().expect("read"), file_user());
        assert_eq!(before, after);
    }
}
