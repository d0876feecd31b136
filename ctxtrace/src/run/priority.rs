//! The priority of the thread that reads the kernel side's tables and rings.
//!
//! A target with hundreds of runnable threads would keep it from a CPU for a quarter of a second, in which tables and rings fill. So
//! while it records it has the nice value -20: it gets a CPU as soon as it wakes up, an idle one if there is one, and gives it back
//! after some milliseconds at most. It is no real-time thread, so it cannot keep anything from running.

/// While it lives, the thread that made it has the highest priority of an ordinary thread. Whatever the thread starts meanwhile has not.
#[derive(Debug)]
pub(super) struct Raised {
    /// The nice value before; `None` if nothing was changed.
    before: Option<libc::c_int>,
}

/// The nice value of the highest priority.
const HIGHEST: libc::c_int = -20;

impl Raised {
    /// Raises the priority. Without `CAP_SYS_NICE`, or for a thread with another policy than the ordinary one, nothing changes.
    pub(super) fn new() -> Self {
        let before = nice_value().filter(|_| has_policy(libc::SCHED_OTHER) && set_policy(libc::SCHED_RESET_ON_FORK));
        let raised = Self { before };
        if raised.before.is_some() && !set_nice_value(HIGHEST) {
            drop(raised);
            return Self { before: None };
        }
        raised
    }
}

impl Drop for Raised {
    fn drop(&mut self) {
        if let Some(before) = self.before.take() {
            // What could be raised can be lowered.
            set_nice_value(before);
            set_policy(0);
        }
    }
}

/// The nice value of this thread.
fn nice_value() -> Option<libc::c_int> {
    // SAFETY: the system call takes two numbers; the raw one returns 20 less the nice value, or an error, and touches no memory of
    // ours.
    let value = unsafe { libc::syscall(libc::SYS_getpriority, libc::PRIO_PROCESS, 0) };
    (value > 0).then(|| 20 - value as libc::c_int)
}

fn set_nice_value(value: libc::c_int) -> bool {
    // SAFETY: the system call takes three numbers and touches no memory of ours.
    unsafe { libc::syscall(libc::SYS_setpriority, libc::PRIO_PROCESS, 0, value) == 0 }
}

fn has_policy(policy: libc::c_int) -> bool {
    // SAFETY: the call takes a number; 0 is this thread.
    unsafe { libc::sched_getscheduler(0) == policy }
}

/// Gives this thread the ordinary policy with these flags.
fn set_policy(flags: libc::c_int) -> bool {
    let parameters = libc::sched_param { sched_priority: 0 };
    // SAFETY: the parameters live to the end of the call, which reads them; 0 is this thread.
    unsafe { libc::sched_setscheduler(0, libc::SCHED_OTHER | flags, &raw const parameters) == 0 }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_priority_is_what_it_was_before_when_the_recording_is_over() {
        let of_child = || {
            let output = std::process::Command::new("nice")
                .output()
                .expect("coreutils are there");
            String::from_utf8_lossy(&output.stdout).trim().to_owned()
        };
        let (before, childs) = (nice_value(), of_child());
        let raised = Raised::new();
        if raised.before.is_some() {
            assert_eq!(nice_value(), Some(HIGHEST));
            assert_ne!(of_child(), HIGHEST.to_string());
        }
        drop(raised);
        assert_eq!((nice_value(), of_child()), (before, childs));
    }
}
