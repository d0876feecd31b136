//! The switch ledger: every kernel switch in exactly one class.
//!
//! The class is decided at the switch-out, from four things that are known there: how the thread left the CPU, the state
//! it left in, what it was doing in user space ([`Doing`]), and the system call it was in. The first rule that fits wins;
//! their order is that of [`Class`].

use crate::clock::Leave;
use crate::locator::{Doing, Reason};

/// `__TASK_STOPPED | __TASK_TRACED` (kernel: `include/linux/sched.h`): a stop signal, or a debugger.
pub const STATE_STOPPED: u32 = 0x4 | 0x8;

/// `TASK_FROZEN` (kernel: `include/linux/sched.h`): the state in which the freezer of cgroup v1 keeps a thread since Linux 6.1. No
/// kernel before has a state of this value.
pub const STATE_FROZEN: u32 = 0x8000;

/// `JOBCTL_TRAP_FREEZE` (kernel: `include/linux/sched/jobctl.h`): the freezer of cgroup v2 wants the thread. The thread has obeyed where
/// `task_struct.frozen` is set as well. That field alone says less: the kernel sets it also while a thread waits for the child of its
/// `vfork`, whether or not anything is frozen.
pub const JOBCTL_TRAP_FREEZE: u64 = 1 << 23;

/// What a kernel switch was.
#[repr(u8)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Class {
    /// The thread's last one.
    Exited = 1,
    /// The thread was stopped, by a signal, a debugger or the freezer of its cgroup.
    Stopped = 2,
    /// What the thread was doing could not be known; there is a [`Reason`].
    Unattributed = 3,
    /// It gave way by itself, in `sched_yield`.
    Yielded = 4,
    /// It went to sleep while it polled a task.
    TaskBlocked = 5,
    /// It was made to give way while it polled a task.
    TaskPreempted = 6,
    /// A runtime's thread with nothing to poll went to sleep, in a futex or epoll wait.
    WorkerParked = 7,
    /// A thread of a pool for blocking work went to sleep because there is none.
    PoolIdle = 8,
    /// A runtime's thread went to sleep between polls, for another reason.
    RuntimeBlocked = 9,
    /// A runtime's thread was made to give way between polls.
    RuntimePreempted = 10,
    /// Any other thread went to sleep.
    ThreadBlocked = 11,
    /// Any other thread was made to give way.
    ThreadPreempted = 12,
}

impl Class {
    /// How many numbers there are, the unused 0 included.
    pub const COUNT: usize = 13;

    /// All of them, in the order of the rules.
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

    /// The class of this number.
    #[must_use]
    pub fn from_number(number: u32) -> Option<Self> {
        Self::ALL.into_iter().find(|&class| class as u32 == number)
    }
}

/// What matters of the system call a thread was in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Syscall {
    /// `sched_yield`.
    Yield,
    /// A wait on a futex or on an epoll instance: what runtimes park in.
    Park,
    /// Any other, or none.
    Other,
}

impl Syscall {
    /// From the number in `pt_regs.orig_ax`, which is negative outside of system calls, and the table it belongs to
    /// (kernel: `arch/x86/entry/syscalls/syscall_64.tbl` and `syscall_32.tbl`).
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

/// The class of a switch-out, and the reason if it is [`Class::Unattributed`].
///
/// `stopped`: the state it left in contains [`STATE_STOPPED`], or its cgroup is frozen.
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

/// The class of a switch-out of a thread that neither ended nor was stopped, and of which is known what it did.
///
/// Apart, because a thread of a program that turns out to have no tasks at all is put in its class afterwards.
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
