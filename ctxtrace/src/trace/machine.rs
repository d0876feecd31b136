//! What a machine and an executable are like, as far as tracing needs to know: looked at, not judged. `analyze::doctor` judges.

use std::path::PathBuf;

/// Whether something is there, and how that is known.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Answer {
    /// It was tried, and works.
    Works,
    /// The kernel's own description says that it is there. Whether it works for this user was not to be tried.
    Described,
    /// It is not there, or does not work; why.
    Missing(String),
}

/// One thing that is wanted of the kernel.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Wanted {
    /// Its name in the kernel's terms.
    pub name: String,
    /// What is left out without it; `None` if nothing works then.
    pub without: Option<&'static str>,
    /// Whether it is there.
    pub answer: Answer,
}

/// This machine, for the user who asks.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Machine {
    /// The kernel's release, as `6.1.0-50-cloud-amd64`.
    pub kernel: String,
    /// What it runs on, as `x86_64`.
    pub architecture: String,
    /// This executable.
    pub program: PathBuf,
    /// The user's id.
    pub user: u32,
    /// The capabilities in effect, as the kernel's bit mask.
    pub capabilities: u64,
    /// Whether processes have the ids here that the kernel's events give.
    pub first_pid_namespace: bool,
    /// What is wrong with the kernel's description of its types, if anything.
    pub btf_problem: Option<String>,
    /// Whether makers of wakeups can be told from interrupts that happen to them; `None` without BTF.
    pub tells_interrupts: Option<bool>,
    /// The kernel's lockdown, as `none`; `None` if it has no such thing.
    pub lockdown: Option<String>,
    /// `kernel.perf_event_paranoid`.
    pub perf_event_paranoid: Option<i64>,
    /// `kernel.kptr_restrict`.
    pub kptr_restrict: Option<i64>,
    /// `kernel.unprivileged_bpf_disabled`.
    pub unprivileged_bpf_disabled: Option<i64>,
    /// `kernel.bpf_stats_enabled`.
    pub bpf_stats_enabled: Option<i64>,
    /// Whether `/proc/kallsyms` shows addresses.
    pub kernel_symbols: bool,
    /// `RLIMIT_MEMLOCK` in bytes; `None` if there is no limit.
    pub memlock_bytes: Option<u64>,
    /// Memory that is free, or can be made so, in bytes.
    pub available_bytes: Option<u64>,
    /// What the tables and the rings of events take by default, in bytes.
    pub needed_bytes: u64,
    /// CPUs that are online.
    pub cpus_online: usize,
    /// CPUs that this process may run on.
    pub cpus_allowed: usize,
    /// Whether the processor's own counters can be had.
    pub hardware_counters: Answer,
    /// Types of maps.
    pub maps: Vec<Wanted>,
    /// Helper functions.
    pub helpers: Vec<Wanted>,
    /// The tracepoints, timers and functions that programs are attached to, each with its program.
    pub programs: Vec<Wanted>,
}
