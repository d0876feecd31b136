//! What `/proc` says of a thread: its state and the kernel's own count of its switches.

use ctxtrace_common::thread::KernelCount;
use procfs::process::Process;

/// One reading of `/proc/PID/task/TID/status`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Status {
    /// Asleep in the kernel, waiting for an event (state `S`).
    pub sleeping: bool,
    /// `voluntary_ctxt_switches` and `nonvoluntary_ctxt_switches`.
    pub switches: KernelCount,
}

/// Reads a thread's status; `None` if the thread is gone.
#[must_use]
pub fn status(pid: i32, tid: i32) -> Option<Status> {
    let status = Process::new(pid).ok()?.task_from_tid(tid).ok()?.status().ok()?;
    Some(Status {
        sleeping: status.state.starts_with('S'),
        switches: KernelCount {
            voluntary: status.voluntary_ctxt_switches?,
            involuntary: status.nonvoluntary_ctxt_switches?,
        },
    })
}

/// Whether a process has ended: nothing is left of it, or nothing but its status for its parent.
#[must_use]
pub fn is_gone(pid: i32) -> bool {
    let stat = Process::new(pid).and_then(|process| process.stat());
    stat.map_or(true, |stat| matches!(stat.state, 'Z' | 'X'))
}

/// The capabilities in effect for this process, as the kernel's bit mask.
#[must_use]
pub fn effective_capabilities() -> u64 {
    Process::myself()
        .and_then(|process| process.status())
        .map_or(0, |status| status.capeff)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn this_thread_has_a_status_and_thread_0_has_none() {
        let pid = std::process::id() as i32;
        assert!(status(pid, pid).is_some());
        assert_eq!(status(pid, 0), None);
    }
}
