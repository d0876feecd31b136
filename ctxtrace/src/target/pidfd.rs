//! Descriptors of processes: one refers to the same process for as long as it is open, whatever becomes of the id.

use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};

use nix::sys::signal::Signal;

use super::procfs;

/// Opens a process that has this id now. The descriptor becomes readable when the process has ended.
///
/// # Errors
///
/// If there is no such process, or no descriptor to be had.
pub fn open(pid: u32) -> io::Result<OwnedFd> {
    // SAFETY: makes a descriptor; should the process have ended since, the kernel says so.
    let pidfd = unsafe { libc::syscall(libc::SYS_pidfd_open, pid, 0) };
    if pidfd < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the kernel has just made this descriptor.
    Ok(unsafe { OwnedFd::from_raw_fd(pidfd as i32) })
}

/// Sends a signal to the process of this id and this start. A process that has got the id since is not signalled: the descriptor is
/// opened first, so the start that is read afterwards is that of the process it refers to, or of a process that came later.
///
/// # Errors
///
/// If the process may not be signalled; `Ok(false)` if it has ended.
pub fn signal_if_started_at(pid: u32, start_boottime_ns: u64, signal: Signal) -> io::Result<bool> {
    let pidfd = match open(pid) {
        Err(error) if error.raw_os_error() == Some(libc::ESRCH) => return Ok(false),
        opened => opened?,
    };
    if !procfs::stat(pid)?.is_some_and(|stat| stat.started_at(start_boottime_ns)) {
        return Ok(false);
    }
    let no_info = std::ptr::null::<libc::siginfo_t>();
    // SAFETY: the descriptor is open, and the kernel makes the information of the signal where it is given none.
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
        let started_ns = started_ns.expect("some tick");
        let sent = signal_if_started_at(pid, started_ns + 10_000_000, Signal::SIGKILL);
        assert!(!sent.expect("not tried"));
        assert!(child.try_wait().expect("a child").is_none());
        assert!(signal_if_started_at(pid, started_ns, Signal::SIGKILL).expect("a child"));
        assert_eq!(child.wait().expect("ended").signal(), Some(libc::SIGKILL));
        assert!(!signal_if_started_at(pid, started_ns, Signal::SIGKILL).expect("it is gone"));
    }
}
