//! Whether the tracer may trace a thread: the kernel's own rule, for a tracer that may not trace every process.
//!
//! The rule is that of `__ptrace_may_access()` with `PTRACE_MODE_READ_FSCREDS` (kernel: `kernel/ptrace.c`), and of
//! `cap_ptrace_access_check()` (`security/commoncap.c`). What another security module adds to it is not asked for. The loader leaves
//! all of it out for root, and where the tracer has `CAP_SYS_PTRACE`.

use aya_ebpf::Global;
use aya_ebpf::helpers::bpf_probe_read_kernel;

use crate::task::{OFFSET_MM, Task, offsets};

/// Whether the tracer may trace its own user's processes only.
#[unsafe(no_mangle)]
static ASKS_FOR_RIGHTS: Global<u32> = Global::new(0);

/// The user in effect for the tracer's looks at `/proc` (`fsuid`).
#[unsafe(no_mangle)]
static TRACER_UID: Global<u32> = Global::new(0);

/// The group likewise (`fsgid`).
#[unsafe(no_mangle)]
static TRACER_GID: Global<u32> = Global::new(0);

/// The tracer's capabilities in effect: the lower half of the kernel's mask.
#[unsafe(no_mangle)]
static TRACER_CAPABILITIES_LOW: Global<u32> = Global::new(0);

/// The upper half.
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

/// `SUID_DUMP_USER`: the process may be dumped, and traced, by its user.
const DUMPABLE_BY_USER: u64 = 1;

/// Levels of user namespaces that there can be (kernel: `kernel/user_namespace.c`, `create_user_ns()`).
const MOST_LEVELS: u32 = 33;

/// Whether the rule has to be asked for at all.
#[inline(always)]
pub(crate) fn are_limited() -> bool {
    ASKS_FOR_RIGHTS.load() != 0
}

/// Whether the tracer may trace this thread.
#[inline(always)]
pub(crate) fn may_trace(task: Task) -> bool {
    !are_limited() || is_allowed(task)
}

/// Kept out of line: it runs once a thread that is adopted and once an `execve`.
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
    // BPF programs are loaded from the first user namespace only, so the tracer is in that one.
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

/// Whether the tracer's user has made this user namespace, or one that it is in: then it has every capability there (kernel:
/// `security/commoncap.c`, `cap_capable()`).
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

/// A field of one of the kernel's structures; 0 if it cannot be read.
#[inline(always)]
fn field<T: Copy + Default>(structure: u64, offset: &Global<u32>) -> T {
    let field = structure.wrapping_add(u64::from(offset.load())) as *const T;
    // SAFETY: a read that fails says so.
    unsafe { bpf_probe_read_kernel(field) }.unwrap_or_default()
}
