//! Pidfds: descriptors that refer to the same process as long as they are open, even if the process id is used again.

use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};

use nix::sys::signal::Signal;

use super::procfs;

/// Opens a pidfd of the process that has this id now. The descriptor becomes readable when the process has ended.
///
/// # Errors
///
/// If there is no such process, or if no descriptor is available.
pub fn open(pid: u32) -> io::Result<OwnedFd> {
    // SAFETY: the call only creates a descriptor; it fails if the process has ended.
    let pidfd = unsafe { libc::syscall(libc::SYS_pidfd_open, pid, 0) };
    if pidfd < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the kernel has just created this descriptor, and nothing else owns it.
    Ok(unsafe { OwnedFd::from_raw_fd(pidfd as i32) })
}

/// Sends a signal to the process with this id and this start time. A later process with the same id is not signalled: the pidfd
/// is opened first, so the start time that is read afterwards belongs either to the process of the pidfd or to an even later
/// process.
///
/// Returns `Ok(false)` if the process has ended.
///
/// # Errors
///
/// If the process may not be signalled.
pub fn signal_if_started_at(pid: u32, start_boottime_ns: u64, signal: Signal) -> io::Result<bool> {
    let pidfd = match open(pid) {
        Err(error) if error.raw_os_error() == Some(libc::ESRCH) => return Ok(false),
        opened => opened?,
    };
    if !procfs::stat(pid)?.is_some_and(|stat| stat.started_at(start_boottime_ns)) {
        return Ok(false);
    }
    let no_info = std::ptr::null::<libc::siginfo_t>();
    // SAFETY: the descriptor is open, and the kernel accepts a null pointer and fills in the signal information itself.
    let sent = unsafe {
        libc::syscall(
            libc::SYS_pidfd_send_signal,
            pidfd.as_raw_fd(),
            signal as i32,
            no_info,
            0,
        )
    };
    match io::Error::last_os_error() {
        _ if sent == 0 => Ok(true),
        error if error.raw_os_error() == Some(libc::ESRCH) => Ok(false),
        error => Err(error),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::process::ExitStatusExt;
    use std::process::Command;

    #[test]
    fn a_process_of_another_start_is_not_signalled() {
        let mut child = Command::new("sleep").arg("1000").spawn().expect("started");
        let pid = child.id();
        let stat = procfs::stat(pid).expect("readable").expect("it lives");
        let started_ns = (0..).map(|tick| tick * 10_000_000).find(|&ns| stat.started_at(ns));
        let started_ns = started_ns.expect("the tick of the start");
        let sent = signal_if_started_at(pid, started_ns + 10_000_000, Signal::SIGKILL);
        assert!(!sent.expect("no error"));
        assert!(child.try_wait().expect("a child").is_none());
        assert!(signal_if_started_at(pid, started_ns, Signal::SIGKILL).expect("a child"));
        assert_eq!(child.wait().expect("ended").signal(), Some(libc::SIGKILL));
        assert!(!signal_if_started_at(pid, started_ns, Signal::SIGKILL).expect("no error for an ended process"));
    }
}
