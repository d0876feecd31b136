//! Every map and every load-time constant.
//!
//! The constants are read-only data that the loader fills in before the verifier looks, so a branch on one of them costs
//! nothing at run time: the verifier knows the value and prunes the dead side.

use aya_ebpf::Global;
use aya_ebpf::macros::map;
use aya_ebpf::maps::{HashMap, PerCpuArray, RingBuf};
use ctxtrace_common::counters::Counters;
use ctxtrace_common::histogram::{Histogram, Latency};
use ctxtrace_common::process::Process;
use ctxtrace_common::stack::{Stack, StackKey, StackSum};
use ctxtrace_common::thread::Thread;

/// Live target threads by the address of their `task_struct`.
#[map]
pub(crate) static THREADS: HashMap<u64, Thread> = HashMap::with_max_entries(16_384, 0);

/// Target processes by thread-group id.
#[map]
pub(crate) static PROCESSES: HashMap<u32, Process> = HashMap::with_max_entries(8_192, 0);

/// Records of exited threads, for user space to collect.
#[map]
pub(crate) static EXITED: RingBuf = RingBuf::with_byte_size(4 << 20, 0);

/// The distributions, indexed by [`Latency`].
#[map]
pub(crate) static HISTOGRAMS: PerCpuArray<Histogram> = PerCpuArray::with_max_entries(Latency::COUNT, 0);

/// Totals and losses.
#[map]
pub(crate) static COUNTERS: PerCpuArray<Counters> = PerCpuArray::with_max_entries(1, 0);

/// Distinct stacks by their hash.
#[map]
pub(crate) static STACKS: HashMap<u64, Stack> = HashMap::with_max_entries(16_384, 0);

/// Switch-outs and off-CPU time by thread name and stack pair.
#[map]
pub(crate) static STACK_SUMS: HashMap<StackKey, StackSum> = HashMap::with_max_entries(16_384, 0);

/// Where a stack is put together before it is looked up: a BPF stack frame has only 512 bytes.
#[map]
pub(crate) static SCRATCH: PerCpuArray<Stack> = PerCpuArray::with_max_entries(1, 0);

/// Whether stacks are taken (`--level stacks`).
#[unsafe(no_mangle)]
pub(crate) static WITH_STACKS: Global<u32> = Global::new(0);

/// Fault injection for the tests: drop one `sched_switch` run in this many; 0 for none.
#[unsafe(no_mangle)]
pub(crate) static DROP_ONE_IN: Global<u32> = Global::new(0);

/// Whether `sched_switch` passes `prev_state` as its fourth argument (since Linux 5.18).
#[unsafe(no_mangle)]
pub(crate) static HAS_PREV_STATE_ARG: Global<u32> = Global::new(1);

/// Adds one to a counter of this CPU: `count(|counters| &mut counters.switches)`.
#[inline(always)]
pub(crate) fn count(counter: impl FnOnce(&mut Counters) -> &mut u64) {
    add(counter, 1);
}

/// Adds `n` to a counter of this CPU.
#[inline(always)]
pub(crate) fn add(counter: impl FnOnce(&mut Counters) -> &mut u64, n: u64) {
    if let Some(counters) = COUNTERS.get_ptr_mut(0) {
        // SAFETY: the pointer is this CPU's own element, and no other program can run on this CPU meanwhile: all of them
        // run from tracepoints with preemption disabled, and none is reached from an interrupt handler while another holds
        // the reference (a waking in an interrupt comes before or after, as `sched_switch` runs with interrupts off).
        *counter(unsafe { &mut *counters }) += n;
    }
}

/// Records one value in a distribution of this CPU.
#[inline(always)]
pub(crate) fn record(latency: Latency, ns: u64) {
    if let Some(histogram) = HISTOGRAMS.get_ptr_mut(latency as u32) {
        // SAFETY: as in `add`: this CPU's own element. Only the `sched_switch` program records.
        unsafe { &mut *histogram }.record(ns);
    }
}
