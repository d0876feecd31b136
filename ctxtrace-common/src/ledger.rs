//! The switch ledger: every kernel switch is in exactly one class.
//!
//! The class is decided at the switch-out from four facts: how the thread left the CPU, the state it left in, what it
//! was doing in user space ([`Doing`]), and the system call it was in. The first rule that matches wins. The rules are
//! tried in the order of [`Class`].

use crate::clock::Leave;
use crate::locator::{Doing, Reason};

/// `__TASK_STOPPED | __TASK_TRACED` (kernel: `include/linux/sched.h`): stopped by a signal or by a debugger.
pub const STATE_STOPPED: u32 = 0x4 | 0x8;

/// `TASK_FROZEN` (kernel: `include/linux/sched.h`): the state in which the freezer of cgroup v1 keeps a thread since
/// Linux 6.1. Earlier kernels have no state with this value.
pub const STATE_FROZEN: u32 = 0x8000;

/// `JOBCTL_TRAP_FREEZE` (kernel: `include/linux/sched/jobctl.h`): the freezer of cgroup v2 asks the thread to stop. The
/// thread has stopped if `task_struct.frozen` is set as well. That field alone is not sufficient: the kernel also sets
/// it while a thread waits for the child of its `vfork`, whether or not anything is frozen.
pub const JOBCTL_TRAP_FREEZE: u64 = 1 << 23;

/// Class of a kernel switch: what the thread was doing when it was switched out.
#[repr(u8)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[cfg_attr(
    feature = "serde",
    derive(serde::Serialize, serde::Deserialize, schemars::JsonSchema),
    serde(rename_all = "kebab-case")
)]
pub enum Class {
    /// The last switch-out of a thread that ended.
    Exited = 1,
    /// The thread was stopped by a signal or a debugger, or was frozen.
    Stopped = 2,
    /// It is not known what the thread was doing.
    Unattributed = 3,
    /// The thread yielded by itself (`sched_yield`).
    Yielded = 4,
    /// The thread slept while it polled a task.
    TaskBlocked = 5,
    /// The thread was preempted while it polled a task.
    TaskPreempted = 6,
    /// A thread of a runtime had nothing to poll and parked.
    WorkerParked = 7,
    /// A thread of the pool for blocking work had no work.
    PoolIdle = 8,
    /// A thread of a runtime slept between polls for another reason.
    RuntimeBlocked = 9,
    /// A thread of a runtime was preempted between polls.
    RuntimePreempted = 10,
    /// Any other thread slept.
    ThreadBlocked = 11,
    /// Any other thread was preempted.
    ThreadPreempted = 12,
}

impl Class {
    /// Number of class numbers, including the unused 0.
    pub const COUNT: usize = 13;

    /// All classes, in the order of their numbers.
    pub const ALL: [Self; 12] = [
        Self::Exited,
        Self::Stopped,
        Self::Unattributed,
        Self::Yielded,
        Self::TaskBlocked,
        Self::TaskPreempted,
        Self::WorkerParked,
        Self::PoolIdle,
        Self::RuntimeBlocked,
        Self::RuntimePreempted,
        Self::ThreadBlocked,
        Self::ThreadPreempted,
    ];

    /// Returns the name of the class in the JSON.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Exited => "exited",
            Self::Stopped => "stopped",
            Self::Unattributed => "unattributed",
            Self::Yielded => "yielded",
            Self::TaskBlocked => "task-blocked",
            Self::TaskPreempted => "task-preempted",
            Self::WorkerParked => "worker-parked",
            Self::PoolIdle => "pool-idle",
            Self::RuntimeBlocked => "runtime-blocked",
            Self::RuntimePreempted => "runtime-preempted",
            Self::ThreadBlocked => "thread-blocked",
            Self::ThreadPreempted => "thread-preempted",
        }
    }

    /// Returns the name of the class as in the JSON, with spaces in place of hyphens.
    #[must_use]
    pub fn in_words(self) -> &'static str {
        match self {
            Self::Exited => "exited",
            Self::Stopped => "stopped",
            Self::Unattributed => "unattributed",
            Self::Yielded => "yielded",
            Self::TaskBlocked => "task blocked",
            Self::TaskPreempted => "task preempted",
            Self::WorkerParked => "worker parked",
            Self::PoolIdle => "pool idle",
            Self::RuntimeBlocked => "runtime blocked",
            Self::RuntimePreempted => "runtime preempted",
            Self::ThreadBlocked => "thread blocked",
            Self::ThreadPreempted => "thread preempted",
        }
    }

    /// Returns the class with this number, or `None` if there is none.
    #[must_use]
    pub fn from_number(number: u32) -> Option<Self> {
        Self::ALL.into_iter().find(|&class| class as u32 == number)
    }
}

/// The kinds of system calls that the ledger distinguishes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Syscall {
    /// `sched_yield`.
    Yield,
    /// A wait on a futex or on an epoll instance. Runtimes park in these calls.
    Park,
    /// Any other system call, or none.
    Other,
}

impl Syscall {
    /// Returns the kind of a system call, given the number in `pt_regs.orig_ax`, which is negative outside system
    /// calls. `compat` selects the table for 32-bit system calls (kernel: `arch/x86/entry/syscalls/syscall_64.tbl` and
    /// `syscall_32.tbl`).
    #[inline(always)]
    #[must_use]
    pub fn from_number(number: i64, compat: bool) -> Self {
        if compat {
            return match number {
                158 => Self::Yield,
                // futex, futex_time64, futex_waitv, futex_wait; epoll_wait, epoll_pwait, epoll_pwait2.
                240 | 422 | 449 | 455 | 256 | 319 | 441 => Self::Park,
                _ => Self::Other,
            };
        }
        match number {
            24 => Self::Yield,
            // futex, futex_waitv, futex_wait; epoll_wait, epoll_pwait, epoll_pwait2.
            202 | 449 | 455 | 232 | 281 | 441 => Self::Park,
            _ => Self::Other,
        }
    }
}

/// Returns the class of a switch-out, and the reason if the class is [`Class::Unattributed`].
///
/// `stopped` is whether the state in which the thread left contains [`STATE_STOPPED`], or the thread's cgroup is
/// frozen.
#[inline(always)]
#[must_use]
pub fn classify(leave: Leave, stopped: bool, doing: Doing, syscall: Syscall) -> (Class, Reason) {
    let slept = match leave {
        Leave::Dead => return (Class::Exited, Reason::None),
        Leave::Slept => true,
        Leave::Runnable => false,
    };
    if slept && stopped {
        return (Class::Stopped, Reason::None);
    }
    if let Doing::Unknown(reason) = doing {
        return (Class::Unattributed, reason);
    }
    (known(slept, doing, syscall), Reason::None)
}

/// Returns the class of a switch-out of a thread that neither ended nor was stopped, and whose activity is known.
///
/// This is a separate function because it also gives the class of an unattributed switch-out for the case that the
/// program turns out to have no tasks.
#[inline(always)]
#[must_use]
pub fn known(slept: bool, doing: Doing, syscall: Syscall) -> Class {
    if !slept && syscall == Syscall::Yield {
        return Class::Yielded;
    }
    match (doing, slept) {
        (Doing::Task(_), true) => Class::TaskBlocked,
        (Doing::Task(_), false) => Class::TaskPreempted,
        (Doing::Runtime, true) if syscall == Syscall::Park => Class::WorkerParked,
        (Doing::PoolIdle, true) if syscall == Syscall::Park => Class::PoolIdle,
        (Doing::Runtime | Doing::PoolIdle, true) => Class::RuntimeBlocked,
        (Doing::Runtime | Doing::PoolIdle, false) => Class::RuntimePreempted,
        (Doing::Other | Doing::Unknown(_), true) => Class::ThreadBlocked,
        (Doing::Other | Doing::Unknown(_), false) => Class::ThreadPreempted,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const DOINGS: [Doing; 5] = [
        Doing::Task(7),
        Doing::Runtime,
        Doing::PoolIdle,
        Doing::Other,
        Doing::Unknown(Reason::Stripped),
    ];
    const SYSCALLS: [Syscall; 3] = [Syscall::Yield, Syscall::Park, Syscall::Other];

    #[test]
    fn the_rules_in_their_order() {
        use Class::*;
        let class = |leave, stopped, doing, syscall| classify(leave, stopped, doing, syscall).0;
        for doing in DOINGS {
            for syscall in SYSCALLS {
                for stopped in [false, true] {
                    assert_eq!(class(Leave::Dead, stopped, doing, syscall), Exited);
                }
                assert_eq!(class(Leave::Slept, true, doing, syscall), Stopped);
            }
        }
        let unknown = Doing::Unknown(Reason::NoTypeInfo);
        assert_eq!(
            classify(Leave::Runnable, false, unknown, Syscall::Yield),
            (Unattributed, Reason::NoTypeInfo)
        );
        assert_eq!(class(Leave::Runnable, false, Doing::Task(1), Syscall::Yield), Yielded);
        assert_eq!(class(Leave::Slept, false, Doing::Task(1), Syscall::Park), TaskBlocked);
        assert_eq!(
            class(Leave::Runnable, false, Doing::Task(1), Syscall::Park),
            TaskPreempted
        );
        assert_eq!(class(Leave::Slept, false, Doing::Runtime, Syscall::Park), WorkerParked);
        assert_eq!(class(Leave::Slept, false, Doing::PoolIdle, Syscall::Park), PoolIdle);
        assert_eq!(
            class(Leave::Slept, false, Doing::PoolIdle, Syscall::Other),
            RuntimeBlocked
        );
        assert_eq!(
            class(Leave::Slept, false, Doing::Runtime, Syscall::Other),
            RuntimeBlocked
        );
        assert_eq!(
            class(Leave::Runnable, false, Doing::Runtime, Syscall::Park),
            RuntimePreempted
        );
        assert_eq!(class(Leave::Slept, false, Doing::Other, Syscall::Park), ThreadBlocked);
        assert_eq!(
            class(Leave::Runnable, false, Doing::Other, Syscall::Other),
            ThreadPreempted
        );
    }

    #[test]
    fn only_what_is_unattributed_has_a_reason() {
        for leave in [Leave::Slept, Leave::Runnable, Leave::Dead] {
            for stopped in [false, true] {
                for doing in DOINGS {
                    for syscall in SYSCALLS {
                        let (class, reason) = classify(leave, stopped, doing, syscall);
                        assert_eq!(class == Class::Unattributed, reason != Reason::None);
                    }
                }
            }
        }
    }

    #[test]
    fn a_system_call_is_known_by_its_number_in_both_tables() {
        assert_eq!(Syscall::from_number(24, false), Syscall::Yield);
        assert_eq!(Syscall::from_number(202, false), Syscall::Park);
        assert_eq!(Syscall::from_number(24, true), Syscall::Other, "getuid");
        assert_eq!(Syscall::from_number(158, true), Syscall::Yield);
        assert_eq!(Syscall::from_number(-1, false), Syscall::Other);
    }

    #[test]
    fn every_class_has_its_number_back() {
        for class in Class::ALL {
            assert_eq!(Class::from_number(class as u32), Some(class));
        }
        assert_eq!(Class::from_number(0), None);
        assert_eq!(Class::from_number(Class::COUNT as u32), None);
    }
}
