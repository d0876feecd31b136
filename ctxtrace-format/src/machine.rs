//! The properties of a machine that tracing depends on. This module only describes them; `ctxtrace_analysis::doctor` evaluates them.

use std::path::PathBuf;

/// Whether a kernel feature is available, and how that is known.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Answer {
    /// The feature was tried, and it works.
    Works,
    /// The kernel's BTF lists the feature, but it could not be tried as this user.
    Described,
    /// The feature is missing or does not work, for this reason.
    Missing(String),
}

/// One kernel feature that ctxtrace uses.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Wanted {
    /// The kernel's name for the feature.
    pub name: String,
    /// What is unavailable without the feature; `None` if ctxtrace cannot record at all without it.
    pub without: Option<&'static str>,
    /// Whether the feature is available.
    pub answer: Answer,
}

/// The properties of this machine, for the user who runs ctxtrace.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Machine {
    /// The kernel release, for example `6.1.0-50-cloud-amd64`.
    pub kernel: String,
    /// The processor architecture, for example `x86_64`.
    pub architecture: String,
    /// Path of this executable.
    pub program: PathBuf,
    /// The user id.
    pub user: u32,
    /// The effective capabilities, as the kernel's bit mask.
    pub capabilities: u64,
    /// Whether ctxtrace runs in the initial PID namespace, where process ids are those of the kernel's events.
    pub first_pid_namespace: bool,
    /// The problem with the kernel's BTF, if there is one.
    pub btf_problem: Option<String>,
    /// Whether a wakeup made in an interrupt can be distinguished from one made by the interrupted thread; `None` without BTF.
    pub distinguishes_interrupts: Option<bool>,
    /// The kernel's lockdown mode, for example `none`; `None` if the kernel has no lockdown.
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
    /// Memory that is free or can be reclaimed (`MemAvailable`), in bytes.
    pub available_bytes: Option<u64>,
    /// Memory that the BPF maps and the ring buffers take by default, in bytes.
    pub needed_bytes: u64,
    /// Number of online CPUs.
    pub cpus_online: usize,
    /// Number of CPUs that this process may run on.
    pub cpus_allowed: usize,
    /// Whether the processor's hardware counters are available.
    pub hardware_counters: Answer,
    /// The types of BPF maps.
    pub maps: Vec<Wanted>,
    /// The BPF helper functions.
    pub helpers: Vec<Wanted>,
    /// The BPF programs, each with the tracepoint, timer or function that it is attached to.
    pub programs: Vec<Wanted>,
}
