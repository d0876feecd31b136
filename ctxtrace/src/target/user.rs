//! Who called: under `sudo`, root is needed for tracing only, and everything else is the invoking user's.

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

/// The user who called `sudo`, or `None` where there is no user to become: not root, no `sudo`, or root called it.
///
/// # Errors
///
/// If `SUDO_UID` and `SUDO_GID` do not name a user whom this process can become. Root's rights are never used instead.
pub fn invoker() -> Result<Option<Invoker>> {
    if !geteuid().is_root() {
        return Ok(None);
    }
    let invoker = from_variables(std::env::var_os("SUDO_UID"), std::env::var_os("SUDO_GID"))?;
    if let Some(user) = &invoker {
        let refused = |source| Error::Sudo(format!("user {} cannot be become: {source}", user.uid));
        FileRights::of(Some(user)).apply(|| Ok(())).map_err(refused)?;
    }
    Ok(invoker)
}

fn from_variables(uid: Option<OsString>, gid: Option<OsString>) -> Result<Option<Invoker>> {
    let (uid, gid) = match (uid, gid) {
        (None, None) => return Ok(None),
        (Some(uid), Some(gid)) => (id("SUDO_UID", &uid)?, id("SUDO_GID", &gid)?),
        (Some(_), None) => return Err(Error::Sudo("SUDO_UID is set and SUDO_GID is not".to_owned())),
        (None, Some(_)) => return Err(Error::Sudo("SUDO_GID is set and SUDO_UID is not".to_owned())),
    };
    let (uid, gid) = (Uid::from_raw(uid), Gid::from_raw(gid));
    if uid.is_root() {
        return Ok(None);
    }
    // A user without an entry in the user database is in no group but their own.
    let groups = User::from_uid(uid)
        .ok()
        .flatten()
        .and_then(|user| CString::new(user.name).ok())
        .and_then(|name| getgrouplist(&name, gid).ok())
        .unwrap_or_else(|| vec![gid]);
    Ok(Some(Invoker { uid, gid, groups }))
}

/// The id in a variable: digits alone, and not the one number that means "no change" to the kernel.
fn id(variable: &str, value: &OsStr) -> Result<u32> {
    let digits = value
        .to_str()
        .filter(|text| text.bytes().all(|byte| byte.is_ascii_digit()));
    digits
        .and_then(|text| text.parse().ok())
        .filter(|&id| id != u32::MAX)
        .ok_or_else(|| Error::Sudo(format!("{variable} is {value:?}, which is no id")))
}

/// With whose rights files are looked at, opened, written, renamed and removed.
#[derive(Clone, Debug, Default)]
pub struct FileRights(Whose);

#[derive(Clone, Debug, Default)]
enum Whose {
    /// This process's own.
    #[default]
    Process,
    /// Those of this process's user, without the capabilities that it has for tracing.
    WithoutCapabilities,
    /// The invoking user's, without any of root's.
    Invoker(Arc<Invoker>),
}

impl FileRights {
    /// Those of the invoking user: the one who called `sudo`, or else this process's.
    #[must_use]
    pub fn of(user: Option<&Invoker>) -> Self {
        Self(match user {
            Some(user) => Whose::Invoker(Arc::new(user.clone())),
            None if !geteuid().is_root() && procfs::effective_capabilities() != 0 => Whose::WithoutCapabilities,
            None => Whose::Process,
        })
    }

    /// Whose new files are.
    #[must_use]
    pub fn user(&self) -> Uid {
        match &self.0 {
            Whose::Invoker(user) => user.uid,
            Whose::Process | Whose::WithoutCapabilities => geteuid(),
        }
    }

    /// Does some work on files with these rights, in this thread. Other threads keep theirs.
    ///
    /// # Errors
    ///
    /// Those of the work, or if the rights cannot be had; then the work is not done.
    pub fn apply<T>(&self, work: impl FnOnce() -> io::Result<T>) -> io::Result<T> {
        let _rights = match &self.0 {
            Whose::Process => None,
            Whose::WithoutCapabilities => Some(ThreadRights::reduce(None)?),
            Whose::Invoker(user) => Some(ThreadRights::reduce(Some(user))?),
        };
        work()
    }
}

/// What this thread could do before its rights on files were reduced; they are its rights again when this is dropped.
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
        // Where the thread works for this user already, there is nothing to change.
        if let Some(user) = user
            && file_user() != user.uid
        {
            let groups = getgroups()?;
            set_groups_of_thread(&user.groups)?;
            before.groups = Some(groups);
            setfsgid(user.gid);
            setfsuid(user.uid);
            // Both calls return what was before, and never an error.
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
        // Each of these restores what the thread had. Should one be refused, the thread has fewer rights, never more.
        let _ = set_capabilities(&self.capabilities);
        if let Some(groups) = &self.groups {
            setfsuid(geteuid());
            setfsgid(getegid());
            let _ = set_groups_of_thread(groups);
        }
    }
}

/// The user by whom this thread's access to files is judged.
fn file_user() -> Uid {
    // An id that no user has changes nothing, and the call returns the one in force.
    setfsuid(Uid::from_raw(u32::MAX))
}

/// Sets the groups of this thread alone; the function of the C library sets those of all threads.
fn set_groups_of_thread(groups: &[Gid]) -> io::Result<()> {
    let groups: Vec<libc::gid_t> = groups.iter().map(|group| group.as_raw()).collect();
    // SAFETY: the pointer is to as many ids as the length says.
    match unsafe { libc::syscall(libc::SYS_setgroups, groups.len(), groups.as_ptr()) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

impl Invoker {
    /// Does some work as this user, in a process of its own, so that nothing in the user's folders is ever touched by root.
    /// The work ends in a path, or in a reason why it failed. To be called while there is one thread.
    ///
    /// # Errors
    ///
    /// If the work fails, or the user cannot be become.
    pub fn perform(
        &self,
        work: impl FnOnce() -> std::result::Result<PathBuf, String>,
    ) -> std::result::Result<PathBuf, String> {
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
    fn become_it(&self) -> std::result::Result<(), String> {
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
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct CapabilityData {
    effective: u32,
    permitted: u32,
    inheritable: u32,
}

/// The capabilities of this thread.
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
    // SAFETY: as above.
    match unsafe { libc::syscall(libc::SYS_capset, &raw const header, data.as_ptr()) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
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
            (Some("nobody"), Some("1000")),
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
        let rights = FileRights::of(Some(&user));
        let work = || {
            // A work within a work changes nothing more, and takes nothing back.
            rights.apply(|| Ok(()))?;
            assert!(capabilities()?.iter().all(|half| half.effective == 0));
            assert_eq!((file_user(), getgroups()?), (user.uid, user.groups.clone()));
            std::fs::read_dir("/proc/self/fd").map(drop)
        };
        // Without root there is another reason, and the work is not done.
        assert_eq!(rights.apply(work).is_ok(), geteuid().is_root());
        let after = (capabilities().expect("read"), getgroups().expect("read"), file_user());
        assert_eq!(before, after);
    }
}
