//! The priority of the thread that drains the kernel's tables and rings.
//!
//! A target with hundreds of runnable threads could keep this thread off the CPU for a quarter of a second, while tables and
//! rings fill. So during a recording the thread has the nice value -20. It then gets a CPU as soon as it wakes up, an idle one if
//! there is one, and gives it back after a few milliseconds at most. It is not a real-time thread, so it cannot starve other
//! threads.

/// Gives the thread that creates this value the highest priority of an ordinary thread, until the value is dropped. Threads and
/// processes that it starts meanwhile do not inherit the priority.
#[derive(Debug)]
pub(super) struct Raised {
    /// The previous nice value; `None` if the priority was not changed.
    before: Option<libc::c_int>,
}

/// The nice value with the highest priority.
const HIGHEST: libc::c_int = -20;

impl Raised {
    /// Raises the priority. Without `CAP_SYS_NICE`, or for a thread with another policy than `SCHED_OTHER`, nothing is changed.
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
            // This cannot fail: a thread that may raise its priority may also lower it.
            set_nice_value(before);
            set_policy(0);
        }
    }
}

/// The nice value of this thread; `None` if it cannot be read.
fn nice_value() -> Option<libc::c_int> {
    // SAFETY: the system call takes two numbers and does not access this process's memory. The raw system call returns 20 minus
    // the nice value, or an error.
    let value = unsafe { libc::syscall(libc::SYS_getpriority, libc::PRIO_PROCESS, 0) };
    (value > 0).then(|| 20 - value as libc::c_int)
}

fn set_nice_value(value: libc::c_int) -> bool {
    // SAFETY: the system call takes three numbers and does not access this process's memory.
    unsafe { libc::syscall(libc::SYS_setpriority, libc::PRIO_PROCESS, 0, value) == 0 }
}

fn has_policy(policy: libc::c_int) -> bool {
    // SAFETY: the call takes a number; 0 means this thread.
    unsafe { libc::sched_getscheduler(0) == policy }
}

/// Gives this thread the policy `SCHED_OTHER` with these flags.
fn set_policy(flags: libc::c_int) -> bool {
    let parameters = libc::sched_param { sched_priority: 0 };
    // SAFETY: the call only reads the parameters, which live until it returns; 0 means this thread.
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
                .expect("coreutils are installed");
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
