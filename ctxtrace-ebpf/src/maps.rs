//! The maps, and the load-time constants that several modules use.
//!
//! The constants are read-only data that the loader sets before the verifier runs. A branch on one of them costs
//! nothing at run time, because the verifier knows the value and removes the code that cannot be reached.

use aya_ebpf::Global;
use aya_ebpf::macros::map;
use aya_ebpf::maps::{Array, HashMap, PerCpuArray, RingBuf};
use ctxtrace_abi::Slot;
use ctxtrace_common::chain::CHAIN_WORDS;
use ctxtrace_common::counters::Counters;
use ctxtrace_common::event::{Event, RingState};
use ctxtrace_common::histogram::{Histogram, Latency};
use ctxtrace_common::ledger::Class;
use ctxtrace_common::locator::{Context, Locator, MAX_LOCATORS};
use ctxtrace_common::memo::MEMO_WORDS;
use ctxtrace_common::process::{FILTER_PLACES, Image, Process, TaskKey};
use ctxtrace_common::stack::{Stack, SumKey, SwitchSum};
use ctxtrace_common::table::{Table, TableState};
use ctxtrace_common::thread::Thread;
use ctxtrace_common::wakeup::{Edge, EdgeAddition, EdgeKey, Waker, WakerStackKey};

/// Flag of a ring buffer: submit without a wakeup of the reader. The reader polls, and a wakeup would be a scheduler
/// event within a scheduler event.
pub(crate) const BPF_RB_NO_WAKEUP: u64 = 1;

/// The error for an element that exists already.
pub(crate) const EEXIST: i32 = -17;

/// Live threads of the target, by the address of their `task_struct`.
#[map]
pub(crate) static THREADS: HashMap<u64, Thread> = HashMap::with_max_entries(16_384, 0);

/// Processes of the target, by thread-group id.
#[map]
pub(crate) static PROCESSES: HashMap<u32, Process> = HashMap::with_max_entries(8_192, 0);

/// A filter for processes, by [`filter_place`](ctxtrace_common::process::filter_place): 0 if no process with this place
/// has ever been a target. An entry is set before the process is followed, and never cleared. Each entry is stored as a
/// whole, so no CPU overwrites the entry of another.
#[map]
pub(crate) static FILTER: Array<u64> = Array::with_max_entries(FILTER_PLACES, 0);

/// The [`ThreadSummary`](ctxtrace_common::thread::ThreadSummary) of each exited thread, for user space. The loader
/// makes the ring large enough for all threads that can be followed at a time. User space is woken when it is half
/// full.
#[map]
pub(crate) static EXITED: RingBuf = RingBuf::with_byte_size(8 << 20, 0);

/// The states of the tables that user space empties during a run, by [`Table`].
#[map]
pub(crate) static TABLES: Array<TableState> = Array::with_max_entries(Table::COUNT as u32, 0);

/// The distributions, indexed by [`Latency`].
#[map]
pub(crate) static HISTOGRAMS: PerCpuArray<Histogram> = PerCpuArray::with_max_entries(Latency::COUNT, 0);

/// Totals and losses.
#[map]
pub(crate) static COUNTERS: PerCpuArray<Counters> = PerCpuArray::with_max_entries(1, 0);

/// Distinct stacks, by their hash.
#[map]
pub(crate) static STACKS: HashMap<u64, Stack> = HashMap::with_max_entries(16_384, 0);

/// Number and off-CPU time of switch-outs, by class and task and, if stacks are taken, by thread name and by kernel and
/// user stack.
#[map]
pub(crate) static SWITCH_SUMS: HashMap<SumKey, SwitchSum> = HashMap::with_max_entries(16_384, 0);

/// Number and off-CPU time, by class alone, of switch-outs that found no room in the table of sums. So the ledger adds
/// up in any case.
#[map]
pub(crate) static OVERFLOW_SUMS: PerCpuArray<SwitchSum> = PerCpuArray::with_max_entries(Class::COUNT as u32, 0);

/// How tasks are found, by the index that [`IMAGES`] contains. Index 0 is not used.
#[map]
pub(crate) static LOCATORS: Array<Locator> = Array::with_max_entries(MAX_LOCATORS, 0);

/// Index of the locator of each program that user space has examined.
#[map]
pub(crate) static IMAGES: HashMap<Image, u32> = HashMap::with_max_entries(8_192, 0);

/// Tasks of tokio, and tasks announced by hooks, that have been seen. The table bounds the number of tasks that are
/// distinguished.
#[map]
pub(crate) static TASKS: HashMap<TaskKey, u64> = HashMap::with_max_entries(4_096, 0);

/// The address of the start function of each goroutine; 0 if it is not known. The table is smaller than [`TASKS`], so
/// that [`SWITCH_SUMS`] has room for the stacks of all of them.
#[map]
pub(crate) static GOROUTINES: HashMap<TaskKey, u64> = HashMap::with_max_entries(1_024, 0);

/// The probe's id of a task, by tokio's id, for tasks that were seen with both.
#[map]
pub(crate) static ALIASES: HashMap<TaskKey, u64> = HashMap::with_max_entries(4_096, 0);

/// Task switches that hit the kernel, by the index of the task that was switched to.
#[map]
pub(crate) static HITS: HashMap<TaskKey, u64> = HashMap::with_max_entries(4_096, 0);

/// The final counts of ended threads, for user space.
#[map]
pub(crate) static HANDOVERS: RingBuf = RingBuf::with_byte_size(4 << 20, 0);

/// Names of tasks, for user space.
#[map]
pub(crate) static NAMES: RingBuf = RingBuf::with_byte_size(1 << 20, 0);

/// Additions to tables of sums that had no room, for user space: see [`ctxtrace_common::table`].
#[map]
pub(crate) static ADDITIONS: RingBuf = RingBuf::with_byte_size(4 << 20, 0);

/// Programs that have been executed, for user space to examine. It is woken for each of them.
#[map]
pub(crate) static EXECUTED: RingBuf = RingBuf::with_byte_size(64 << 10, 0);

/// The events of the timeline: [`RING_CAPACITY`] entries for each CPU, one CPU after the other. User space maps the
/// array, and the loader sets its size.
#[map]
pub(crate) static EVENTS: Array<Event> = Array::with_max_entries(1, BPF_F_MMAPABLE);

/// The number of events that each CPU has written and that user space has read. Mapped like [`EVENTS`].
#[map]
pub(crate) static RINGS: Array<RingState> = Array::with_max_entries(1, BPF_F_MMAPABLE);

/// Wakes user space when a CPU's ring of events or the ring of exited threads is half full, or when a quarter of a
/// table is occupied. The contents of its records have no meaning.
#[map]
pub(crate) static HALF_FULL: RingBuf = RingBuf::with_byte_size(4 << 10, 0);

/// Flag of a map: user space may map the array into its memory.
const BPF_F_MMAPABLE: u32 = 1 << 10;

/// Wakeups, by waker and woken thread.
#[map]
pub(crate) static EDGES: HashMap<EdgeKey, Edge> = HashMap::with_max_entries(8_192, 0);

/// Wakeups, by the stacks of the waker, if those are taken.
#[map]
pub(crate) static WAKER_SUMS: HashMap<WakerStackKey, SwitchSum> = HashMap::with_max_entries(16_384, 0);

/// The wakeup that the current thread of each CPU is making, from `sched_waking` to the end of its system call.
#[map]
pub(crate) static WAKEUPS: PerCpuArray<WakeupInProgress> = PerCpuArray::with_max_entries(1, 0);

/// Whether the cost of wakeups is measured: not 0 while [`sys_exit`](crate::wakeup::sys_exit) is attached.
#[map]
pub(crate) static TIMES_WAKEUPS: Array<u64> = Array::with_max_entries(1, 0);

/// Address of each CPU's preemption counter; 0 while it is not known.
#[map]
pub(crate) static PREEMPT_COUNTERS: PerCpuArray<u64> = PerCpuArray::with_max_entries(1, 0);

/// Memory for values that are too large for the BPF stack, which has 512 bytes. There is one for each [`Lane`].
#[map]
pub(crate) static SCRATCH: PerCpuArray<Scratch> = PerCpuArray::with_max_entries(Lane::COUNT, 0);

/// The scratch space of one lane of a CPU; see [`SCRATCH`].
#[repr(C)]
pub(crate) struct Scratch {
    pub(crate) slot: Slot,
    pub(crate) context: Context,
    pub(crate) stack: Stack,
    /// A part of a kernel stack, with its number of valid words and the index of its base; see
    /// [`ctxtrace_common::memo`].
    pub(crate) words: [u64; MEMO_WORDS],
    pub(crate) length: u64,
    pub(crate) base: u64,
    /// The innermost part of a user stack; see [`ctxtrace_common::chain`].
    pub(crate) chain: [u64; CHAIN_WORDS],
    /// A link that is not in the copy.
    pub(crate) link: [u64; 2],
    /// The frame that is being followed.
    pub(crate) frame: u64,
    /// The outermost frame that was in the copy, and the outermost frame that could have been in a larger copy.
    pub(crate) inside: u64,
    pub(crate) outside: u64,
    /// Key of the user stack of the thread that is switched out, if it was recognised without a walk by the kernel;
    /// otherwise 0.
    pub(crate) user_stack: u64,
    /// Key of that thread's kernel stack, and 1 in `stack_lost` if the stack found no room in the table.
    pub(crate) kernel_stack: u64,
    pub(crate) stack_lost: u64,
    pub(crate) thread: Thread,
    pub(crate) edge: Edge,
    pub(crate) event: Event,
    pub(crate) waker: Waker,
    pub(crate) key: TaskKey,
    /// The value of the result of [`crate::locate::locate`].
    pub(crate) value: u64,
    /// 1 while a thread wakes itself and the wakeup uses this scratch space and this CPU's ring of events; see
    /// [`Lane::Scheduler`].
    pub(crate) self_wakeup: u64,
}

impl Scratch {
    /// Sets [`Scratch::self_wakeup`]. The store is volatile, because a sample reads it in an interrupt.
    #[inline(always)]
    pub(crate) fn set_self_wakeup(&mut self, is_running: bool) {
        // SAFETY: the pointer comes from a valid reference.
        unsafe { (&raw mut self.self_wakeup).write_volatile(u64::from(is_running)) };
    }
}

/// A wakeup that is being made; see [`WAKEUPS`].
#[repr(C)]
pub(crate) struct WakeupInProgress {
    /// Address of the `task_struct` of the thread that makes it; 0 if no wakeup is being made.
    pub(crate) waker: u64,
    pub(crate) since_ns: u64,
    pub(crate) edge: EdgeAddition,
}

/// Selects one of a CPU's scratch spaces. A program that runs with interrupts enabled can be interrupted by one that
/// runs with interrupts disabled, so the two must not share a scratch space.
#[derive(Clone, Copy)]
pub(crate) enum Lane {
    /// For `sched_switch`, `sched_waking`, `sched_wakeup_new` and the timer of samples. The kernel runs them with
    /// interrupts disabled, with one exception: where `try_to_wake_up()` wakes `current`, it disables only preemption
    /// before it raises `sched_waking`. A sample that interrupts such a wakeup of the target is counted as lost
    /// ([`Scratch::self_wakeup`]); the kernel itself skips and counts a wakeup that interrupts another one.
    Scheduler = 0,
    /// For the birth, `execve` and end of threads, and for `sys_exit`.
    Lifecycle = 1,
}

impl Lane {
    const COUNT: u32 = 2;

    /// Returns this CPU's scratch space.
    #[inline(always)]
    pub(crate) fn scratch(self) -> Option<&'static mut Scratch> {
        let scratch = SCRATCH.get_ptr_mut(self as u32)?;
        // SAFETY: this is this CPU's own element. No other program on this CPU uses the lane at the same time: programs
        // run with preemption disabled, those of the first lane with interrupts disabled (see [`Lane::Scheduler`] for
        // the exception), and none of the second lane runs in an interrupt.
        Some(unsafe { &mut *scratch })
    }
}

/// Whether stacks are taken (`--level stacks`).
#[unsafe(no_mangle)]
pub(crate) static WITH_STACKS: Global<u32> = Global::new(0);

/// Whether the stacks of wakers are taken (`--wakeups-flamegraph`).
#[unsafe(no_mangle)]
pub(crate) static WITH_WAKER_STACKS: Global<u32> = Global::new(0);

/// Whether the processes that a target forks are targets, too.
#[unsafe(no_mangle)]
pub(crate) static FOLLOW_CHILDREN: Global<u32> = Global::new(1);

/// Whether every switch and every wakeup is emitted as an event (`--level timeline`).
#[unsafe(no_mangle)]
pub(crate) static WITH_EVENTS: Global<u32> = Global::new(0);

/// Number of events that each CPU's ring holds; a power of two.
#[unsafe(no_mangle)]
pub(crate) static RING_CAPACITY: Global<u32> = Global::new(1);

/// Fault injection for the tests: drop one `sched_switch` run in this many; 0 for none.
#[unsafe(no_mangle)]
pub(crate) static DROP_ONE_IN: Global<u32> = Global::new(0);

/// Whether `sched_switch` passes `prev_state` as its fourth argument (since Linux 5.18).
#[unsafe(no_mangle)]
pub(crate) static HAS_PREV_STATE_ARG: Global<u32> = Global::new(1);

/// Whether the kernel has `bpf_task_pt_regs` (since Linux 5.15).
#[unsafe(no_mangle)]
pub(crate) static HAS_TASK_PT_REGS: Global<u32> = Global::new(1);

/// Whether the kernel has `bpf_get_current_task_btf` (since Linux 5.11).
#[unsafe(no_mangle)]
pub(crate) static HAS_CURRENT_TASK_BTF: Global<u32> = Global::new(1);

/// Adds one to a counter of this CPU: `count(|counters| &mut counters.switches)`.
#[inline(always)]
pub(crate) fn count(counter: impl FnOnce(&mut Counters) -> &mut u64) {
    add(counter, 1);
}

/// Adds `n` to a counter of this CPU.
#[inline(always)]
pub(crate) fn add(counter: impl FnOnce(&mut Counters) -> &mut u64, n: u64) {
    if let Some(counters) = COUNTERS.get_ptr_mut(0) {
        // SAFETY: the pointer is to this CPU's own element, and programs run with preemption disabled. A program that
        // runs with interrupts enabled (those of [`Lane::Lifecycle`]) can be interrupted between the load and the store
        // by one that adds to the same counter; that addition is then lost.
        *counter(unsafe { &mut *counters }) += n;
    }
}

/// Records one value in a distribution of this CPU.
#[inline(always)]
pub(crate) fn record(latency: Latency, ns: u64) {
    if let Some(histogram) = HISTOGRAMS.get_ptr_mut(latency as u32) {
        // SAFETY: this CPU's own element. Only the `sched_switch` program records values, and it runs with interrupts
        // disabled.
        unsafe { &mut *histogram }.record(ns);
    }
}
