//! Restricts the reading process before it reads anything. It gives up root, its capabilities, the possibility to gain
//! privileges, memory beyond a limit, and all system calls except the few that reading needs.

use std::collections::BTreeMap;

use nix::sys::prctl;
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use nix::sys::signal::Signal;
use nix::unistd::{Gid, Uid, geteuid, setgid, setgroups, setuid};
use seccompiler::{
    BpfProgram, SeccompAction, SeccompCmpArgLen, SeccompCmpOp, SeccompCondition, SeccompFilter, SeccompRule,
    TargetArch, apply_filter_all_threads,
};

use crate::tracee::user::give_up_capabilities;

/// Maximum memory of the reading process in bytes, including mapped files. An allocation beyond it fails and ends the process.
pub(super) const MAX_MEMORY_BYTES: u64 = 4 << 30;
/// Maximum size in bytes of a file to be read. It is mapped as a whole; larger files are refused.
pub(super) const MAX_FILE_BYTES: u64 = 2 << 30;
/// Maximum number of descriptors: standard input, output and error, those of a request, and those that blazesym opens again.
const MAX_DESCRIPTORS: u64 = 32;
/// The user and group that own no files (kernel: `DEFAULT_OVERFLOWUID`).
const OVERFLOW_ID: u32 = 65_534;

/// Enters the sandbox. This cannot be undone.
pub(super) fn enter() -> Result<(), String> {
    let refused = |what: &'static str| move |errno: nix::Error| format!("{what} failed: {errno}");
    let _ = prctl::set_name(c"ctxtrace-reader");
    // Close descriptors that were inherited by mistake. SAFETY: this process does not use any descriptor above 2 yet.
    unsafe { libc::syscall(libc::SYS_close_range, 3, u32::MAX, 0) };
    // If memory runs out, the kernel should kill this process and no other. This is optional, so a failure is ignored.
    let _ = std::fs::write("/proc/self/oom_score_adj", "1000");
    for (resource, limit) in [
        (Resource::RLIMIT_AS, MAX_MEMORY_BYTES),
        (Resource::RLIMIT_CORE, 0),
        (Resource::RLIMIT_NOFILE, MAX_DESCRIPTORS),
    ] {
        // A lower hard limit stays: raising it requires `CAP_SYS_RESOURCE`, which root may lack in a container.
        let (_, hard) = getrlimit(resource).map_err(refused("getrlimit"))?;
        let limit = limit.min(hard);
        setrlimit(resource, limit, limit).map_err(refused("setrlimit"))?;
    }
    if geteuid().is_root() {
        setgroups(&[]).map_err(refused("setgroups"))?;
        setgid(Gid::from_raw(OVERFLOW_ID)).map_err(refused("setgid"))?;
        setuid(Uid::from_raw(OVERFLOW_ID)).map_err(refused("setuid"))?;
    }
    if give_up_capabilities() != 0 {
        return Err(format!("capset failed: {}", std::io::Error::last_os_error()));
    }
    prctl::set_no_new_privs().map_err(refused("prctl"))?;
    // Other processes of the same user must not be able to read this process or to inject code.
    prctl::set_dumpable(false).map_err(refused("prctl"))?;
    // Must come after the change of user, which clears the setting. If the tracer has ended already, it has closed the socket.
    prctl::set_pdeathsig(Signal::SIGKILL).map_err(refused("prctl"))?;
    let program = filter().map_err(|error| format!("a seccomp filter cannot be made: {error}"))?;
    apply_filter_all_threads(&program).map_err(|error| format!("seccomp failed: {error}"))
}

/// Builds a filter that allows the system calls needed for reading; all others fail with `EPERM`.
fn filter() -> Result<BpfProgram, seccompiler::BackendError> {
    let without_bits = |argument, bits: i32| {
        let operator = SeccompCmpOp::MaskedEq(bits as u64);
        SeccompCondition::new(argument, SeccompCmpArgLen::Dword, operator, 0)
            .and_then(|condition| SeccompRule::new(vec![condition]))
    };
    let own_pid = SeccompCondition::new(
        0,
        SeccompCmpArgLen::Dword,
        SeccompCmpOp::Eq,
        u64::from(std::process::id()),
    )?;
    let mut rules: BTreeMap<i64, Vec<SeccompRule>> = [
        libc::SYS_read,
        libc::SYS_pread64,
        libc::SYS_write,
        libc::SYS_writev,
        libc::SYS_pwrite64,
        libc::SYS_recvmsg,
        libc::SYS_sendmsg,
        libc::SYS_close,
        libc::SYS_lseek,
        libc::SYS_fstat,
        libc::SYS_stat,
        libc::SYS_lstat,
        libc::SYS_newfstatat,
        libc::SYS_statx,
        libc::SYS_readlink,
        libc::SYS_readlinkat,
        libc::SYS_fcntl,
        libc::SYS_memfd_create,
        libc::SYS_ftruncate,
        libc::SYS_munmap,
        libc::SYS_mremap,
        libc::SYS_madvise,
        libc::SYS_brk,
        libc::SYS_futex,
        libc::SYS_sched_yield,
        libc::SYS_sched_getaffinity,
        libc::SYS_rt_sigaction,
        libc::SYS_rt_sigprocmask,
        libc::SYS_rt_sigreturn,
        libc::SYS_sigaltstack,
        libc::SYS_getpid,
        libc::SYS_gettid,
        libc::SYS_getrandom,
        libc::SYS_clock_gettime,
        libc::SYS_restart_syscall,
        libc::SYS_exit,
        libc::SYS_exit_group,
    ]
    .into_iter()
    .map(|call| (call, Vec::new()))
    .collect();
    // The following calls are restricted: no executable memory, no files opened for writing or created, no signals to other
    // processes.
    rules.insert(libc::SYS_mmap, vec![without_bits(2, libc::PROT_EXEC)?]);
    rules.insert(libc::SYS_mprotect, vec![without_bits(2, libc::PROT_EXEC)?]);
    let writes = libc::O_ACCMODE | libc::O_CREAT | libc::O_TRUNC;
    rules.insert(libc::SYS_openat, vec![without_bits(2, writes)?]);
    rules.insert(libc::SYS_open, vec![without_bits(1, writes)?]);
    rules.insert(libc::SYS_tgkill, vec![SeccompRule::new(vec![own_pid])?]);
    let refuse = SeccompAction::Errno(libc::EPERM as u32);
    SeccompFilter::new(rules, refuse, SeccompAction::Allow, TargetArch::x86_64)?.try_into()
}
