//! Whether the tracer may trace a thread: the kernel's own rule, for a tracer that may not trace every process.
//!
//! The rule is that of `__ptrace_may_access()` with `PTRACE_MODE_READ_FSCREDS` (kernel: `kernel/ptrace.c`), and of
//! `cap_ptrace_access_check()` (`security/commoncap.c`). Restrictions by other security modules are not checked. The
//! loader disables the rule for root, and if the tracer has `CAP_SYS_PTRACE`.

use aya_ebpf::Global;
use aya_ebpf::helpers::bpf_probe_read_kernel;

use crate::task::{OFFSET_MM, Task, offsets};

/// 1 if the rule is to be applied, because the tracer may not trace every process; otherwise 0.
#[unsafe(no_mangle)]
static ASKS_FOR_RIGHTS: Global<u32> = Global::new(0);

/// The user id with which the tracer accesses `/proc` (`fsuid`).
#[unsafe(no_mangle)]
static TRACER_UID: Global<u32> = Global::new(0);

/// The group id with which the tracer accesses `/proc` (`fsgid`).
#[unsafe(no_mangle)]
static TRACER_GID: Global<u32> = Global::new(0);

/// The tracer's effective capabilities: the lower half of the kernel's mask.
#[unsafe(no_mangle)]
static TRACER_CAPABILITIES_LOW: Global<u32> = Global::new(0);

/// The tracer's effective capabilities: the upper half of the kernel's mask.
#[unsafe(no_mangle)]
static TRACER_CAPABILITIES_HIGH: Global<u32> = Global::new(0);

offsets! {
    /// Offset of `task_struct.real_cred`.
    OFFSET_REAL_CRED,
    /// Offset of `cred.uid`.
    OFFSET_CRED_UID,
    /// Offset of `cred.euid`.
    OFFSET_CRED_EUID,
    /// Offset of `cred.suid`.
    OFFSET_CRED_SUID,
    /// Offset of `cred.gid`.
    OFFSET_CRED_GID,
    /// Offset of `cred.egid`.
    OFFSET_CRED_EGID,
    /// Offset of `cred.sgid`.
    OFFSET_CRED_SGID,
    /// Offset of `cred.cap_permitted`.
    OFFSET_CRED_CAP_PERMITTED,
    /// Offset of `cred.user_ns`.
    OFFSET_CRED_USER_NS,
    /// Offset of `mm_struct.flags`.
    OFFSET_MM_FLAGS,
    /// Offset of `mm_struct.user_ns`.
    OFFSET_MM_USER_NS,
    /// Offset of `user_namespace.parent`.
    OFFSET_USER_NS_PARENT,
    /// Offset of `user_namespace.level`.
    OFFSET_USER_NS_LEVEL,
    /// Offset of `user_namespace.owner`.
    OFFSET_USER_NS_OWNER,
}

/// `MMF_DUMPABLE_MASK` (kernel: `include/linux/sched/coredump.h`), the same since Linux 2.6.23.
const DUMPABLE_MASK: u64 = 3;

/// `SUID_DUMP_USER`: the user of the process may dump it, and so may trace it.
const DUMPABLE_BY_USER: u64 = 1;

/// Highest level that a user namespace can have (kernel: `kernel/user_namespace.c`, `create_user_ns()`).
const MOST_LEVELS: u32 = 33;

/// Returns whether the rule is to be applied.
#[inline(always)]
pub(crate) fn are_limited() -> bool {
    ASKS_FOR_RIGHTS.load() != 0
}

/// Returns whether the tracer may trace this thread.
#[inline(always)]
pub(crate) fn may_trace(task: Task) -> bool {
    !are_limited() || is_allowed(task)
}

/// Applies the rule. Not inlined, because it runs only once for each adopted thread and once for each `execve`.
#[inline(never)]
fn is_allowed(task: Task) -> bool {
    let credentials: u64 = field(task.address(), &OFFSET_REAL_CRED);
    if credentials == 0 {
        return false;
    }
    let id = |offset: &Global<u32>| field::<u32>(credentials, offset);
    let (uid, gid) = (TRACER_UID.load(), TRACER_GID.load());
    let is_users = id(&OFFSET_CRED_UID) == uid
        && id(&OFFSET_CRED_EUID) == uid
        && id(&OFFSET_CRED_SUID) == uid
        && id(&OFFSET_CRED_GID) == gid
        && id(&OFFSET_CRED_EGID) == gid
        && id(&OFFSET_CRED_SGID) == gid;
    let namespace: u64 = field(credentials, &OFFSET_CRED_USER_NS);
    let permitted: u64 = field(credentials, &OFFSET_CRED_CAP_PERMITTED);
    let tracers = u64::from(TRACER_CAPABILITIES_HIGH.load()) << 32 | u64::from(TRACER_CAPABILITIES_LOW.load());
    // BPF programs can be loaded only from the initial user namespace, so the tracer is in that one.
    let has_no_more = level(namespace) == 0 && permitted & !tracers == 0;
    let may_by_credentials = is_users && has_no_more || owns(namespace);
    if !may_by_credentials {
        return false;
    }
    let memory: u64 = field(task.address(), &OFFSET_MM);
    if memory == 0 {
        return true;
    }
    let flags: u64 = field(memory, &OFFSET_MM_FLAGS);
    flags & DUMPABLE_MASK == DUMPABLE_BY_USER || owns(field(memory, &OFFSET_MM_USER_NS))
}

#[inline(always)]
fn level(namespace: u64) -> u32 {
    field(namespace, &OFFSET_USER_NS_LEVEL)
}

/// Returns whether the tracer's user created this user namespace, or one that contains it. If so, the user has every
/// capability in it (kernel: `security/commoncap.c`, `cap_capable()`).
#[inline(never)]
fn owns(namespace: u64) -> bool {
    let mut namespace = namespace;
    let mut count = 0;
    while count < MOST_LEVELS {
        match level(namespace) {
            0 => return false,
            1 => return field::<u32>(namespace, &OFFSET_USER_NS_OWNER) == TRACER_UID.load(),
            _ => namespace = field(namespace, &OFFSET_USER_NS_PARENT),
        }
        count += 1;
    }
    false
}

/// Returns a field of one of the kernel's structures, or 0 if it cannot be read.
#[inline(always)]
fn field<T: Copy + Default>(structure: u64, offset: &Global<u32>) -> T {
    let field = structure.wrapping_add(u64::from(offset.load())) as *const T;
    // SAFETY: a failed read returns an error.
    unsafe { bpf_probe_read_kernel(field) }.unwrap_or_default()
}
