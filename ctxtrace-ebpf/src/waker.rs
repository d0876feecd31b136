//! Finds the maker of a wakeup: the thread that is `current`, unless an interrupt is running on top of it.

use aya_ebpf::Global;
use aya_ebpf::helpers::generated::bpf_get_current_comm;
use aya_ebpf::helpers::{bpf_get_current_pid_tgid, bpf_get_current_task, bpf_probe_read_kernel};
use ctxtrace_common::locator::Doing;
use ctxtrace_common::process::Image;
use ctxtrace_common::wakeup::{Waker, WakeupOrigin};

use crate::locate::locate;
use crate::maps::{PREEMPT_COUNTERS, Scratch, THREADS, WITH_WAKER_STACKS};
use crate::stacks::{Space, Walked, walk};
use crate::task::thread_pointer_of;

/// Whether the offsets below are known.
#[unsafe(no_mangle)]
static PER_CPU_KNOWN: Global<u32> = Global::new(0);
/// Offset of `task_struct.se.cfs_rq`.
#[unsafe(no_mangle)]
static OFFSET_CFS_RQ: Global<u32> = Global::new(0);
/// Offset of `cfs_rq.rq`.
#[unsafe(no_mangle)]
static OFFSET_RQ: Global<u32> = Global::new(0);
/// Offset of the per-CPU variable `runqueues` in its section.
#[unsafe(no_mangle)]
static PER_CPU_RUNQUEUES: Global<u32> = Global::new(0);
/// Offset of the per-CPU variable that holds `current`.
#[unsafe(no_mangle)]
static PER_CPU_CURRENT: Global<u32> = Global::new(0);
/// Offset of the per-CPU preemption counter.
#[unsafe(no_mangle)]
static PER_CPU_PREEMPT_COUNT: Global<u32> = Global::new(0);

/// `HARDIRQ_MASK | NMI_MASK | SOFTIRQ_OFFSET` (kernel: `include/linux/preempt.h`): an interrupt or a softirq is being
/// served. Code that has merely disabled softirqs counts in the bits above `SOFTIRQ_OFFSET`, and does not match.
const SERVING: u32 = 0x000f_0000 | 0x00f0_0000 | 0x0100;

/// Stores the maker of the wakeup that is being made on this CPU in the scratch space.
#[inline(always)]
pub(crate) fn waker(ctx: *mut core::ffi::c_void, scratch: &mut Scratch) {
    // SAFETY: the helpers have no preconditions.
    let (current, ids) = unsafe { (bpf_get_current_task(), bpf_get_current_pid_tgid()) };
    let tid = ids as u32;
    scratch.waker.clear();
    match is_interrupt(current) {
        // The idle task makes no wakeups of its own, so this one is attributed to an interrupt.
        Some(true) => scratch.waker.origin = WakeupOrigin::Interrupt as u32,
        Some(false) if tid == 0 => scratch.waker.origin = WakeupOrigin::Interrupt as u32,
        Some(false) => from_thread(current, tid, scratch),
        None => {}
    }
    if WITH_WAKER_STACKS.load() != 0 {
        if let Walked::Stack(key) = walk(ctx, Space::KernelAtTracepoint, scratch) {
            scratch.waker.kernel_stack = key;
        }
        if scratch.waker.origin != WakeupOrigin::Interrupt as u32
            && let Walked::Stack(key) = walk(ctx, Space::User, scratch)
        {
            scratch.waker.user_stack = key;
        }
    }
}

#[inline(always)]
fn from_thread(current: u64, tid: u32, scratch: &mut Scratch) {
    scratch.waker.tid = tid;
    let Some(thread) = THREADS.get_ptr_mut(&current) else {
        name_outsider(&mut scratch.waker);
        return;
    };
    // SAFETY: a live element of a preallocated map. The thread that it belongs to is running here, so no other CPU
    // switches it meanwhile.
    let thread = unsafe { &mut *thread };
    scratch.waker.set_program(Image {
        tgid: thread.tgid,
        number: thread.image,
    });
    let plain = locate(thread, thread_pointer_of(current), scratch);
    scratch.waker.set_task(plain.task());
    let origin = match plain.shape() {
        Doing::Task(_) => WakeupOrigin::Task,
        Doing::Runtime | Doing::PoolIdle => WakeupOrigin::Runtime,
        Doing::Other | Doing::Unknown(_) => WakeupOrigin::Thread,
    };
    scratch.waker.origin = origin as u32;
}

/// Stores the present name of the thread that is `current`. Not inlined, because the name needs room on the stack.
#[inline(never)]
fn name_outsider(waker: &mut Waker) {
    let mut name = [0_u64; 2];
    // SAFETY: the helper writes at most as many bytes as it is given, padded with zeroes.
    let _ = unsafe { bpf_get_current_comm((&raw mut name).cast(), size_of_val(&name) as u32) };
    waker.set_outsider(name);
}

/// Returns whether this CPU is serving an interrupt or a softirq; `None` if that cannot be determined.
///
/// No helper returns this before Linux 6.18, and not every kernel has the counter's address in `/proc/kallsyms`. But
/// the counter lies at a known distance (BTF) from another per-CPU variable, the run queue, which can be reached from
/// `current`.
#[inline(always)]
fn is_interrupt(current: u64) -> Option<bool> {
    if PER_CPU_KNOWN.load() == 0 {
        return None;
    }
    let counter = PREEMPT_COUNTERS.get_ptr_mut(0)?;
    // SAFETY: this CPU's own element. A program that interrupts this one stores the same value.
    let mut address = unsafe { *counter };
    if address == 0 {
        address = find_counter(current)?;
        // SAFETY: as above.
        unsafe { *counter = address };
    }
    // SAFETY: a failed read returns an error.
    let count: u32 = unsafe { bpf_probe_read_kernel(address as *const u32) }.ok()?;
    Some(count & SERVING != 0)
}

/// Finds the address of this CPU's preemption counter. Not inlined, because it runs only once for each CPU.
#[inline(never)]
fn find_counter(current: u64) -> Option<u64> {
    // SAFETY: failed reads return an error.
    unsafe {
        let cfs_rq: u64 = bpf_probe_read_kernel((current + u64::from(OFFSET_CFS_RQ.load())) as *const u64).ok()?;
        let rq: u64 = bpf_probe_read_kernel((cfs_rq + u64::from(OFFSET_RQ.load())) as *const u64).ok()?;
        let base = rq.wrapping_sub(u64::from(PER_CPU_RUNQUEUES.load()));
        // This proves that `base` is the base of this CPU's variables: its variable that holds `current` holds
        // `current`.
        let field = base.wrapping_add(u64::from(PER_CPU_CURRENT.load()));
        let proof: u64 = bpf_probe_read_kernel(field as *const u64).ok()?;
        if proof != current {
            return None;
        }
        Some(base.wrapping_add(u64::from(PER_CPU_PREEMPT_COUNT.load())))
    }
}
