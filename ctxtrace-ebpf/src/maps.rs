//! Every map and every load-time constant.
//!
//! The constants are read-only data that the loader fills in before the verifier looks, so a branch on one of them costs
//! nothing at run time: the verifier knows the value and prunes the dead side.

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

/// Live target threads by the address of their `task_struct`.
#[map]
pub(crate) static THREADS: HashMap<u64, Thread> = HashMap::with_max_entries(16_384, 0);

/// Target processes by thread-group id.
#[map]
pub(crate) static PROCESSES: HashMap<u32, Process> = HashMap::with_max_entries(8_192, 0);

/// By [`filter_place`](ctxtrace_common::process::filter_place): 0 where no process of that place has ever been a target. Set
/// before the process is followed, and never taken back: each place is stored to as a whole, so no CPU undoes another's.
#[map]
pub(crate) static FILTER: Array<u64> = Array::with_max_entries(FILTER_PLACES, 0);

/// A [`ThreadSummary`](ctxtrace_common::thread::ThreadSummary) of each exited thread, for user space to collect. The loader makes it
/// large enough for every thread that can be followed at a time; user space is woken when it is half full.
#[map]
pub(crate) static EXITED: RingBuf = RingBuf::with_byte_size(8 << 20, 0);

/// By [`Table`]: how tables stand that user space empties while the run goes on.
#[map]
pub(crate) static TABLES: Array<TableState> = Array::with_max_entries(Table::COUNT as u32, 0);

/// The distributions, indexed by [`Latency`].
#[map]
pub(crate) static HISTOGRAMS: PerCpuArray<Histogram> = PerCpuArray::with_max_entries(Latency::COUNT, 0);

/// Totals and losses.
#[map]
pub(crate) static COUNTERS: PerCpuArray<Counters> = PerCpuArray::with_max_entries(1, 0);

/// Distinct stacks by their hash.
#[map]
pub(crate) static STACKS: HashMap<u64, Stack> = HashMap::with_max_entries(16_384, 0);

/// Switch-outs and off-CPU time by class, task and, where stacks are taken, thread name and stack pair.
#[map]
pub(crate) static SWITCH_SUMS: HashMap<SumKey, SwitchSum> = HashMap::with_max_entries(16_384, 0);

/// The same by class alone, for what does not fit the table of sums: so the ledger adds up, whatever happens.
#[map]
pub(crate) static OVERFLOW_SUMS: PerCpuArray<SwitchSum> = PerCpuArray::with_max_entries(Class::COUNT as u32, 0);

/// How tasks are found, by the index that [`IMAGES`] gives. Index 0 is not used.
#[map]
pub(crate) static LOCATORS: Array<Locator> = Array::with_max_entries(MAX_LOCATORS, 0);

/// Index of the locator of each program that user space has looked at.
#[map]
pub(crate) static IMAGES: HashMap<Image, u32> = HashMap::with_max_entries(8_192, 0);

/// Tasks seen that have no place in a table of their program's, so that their number is bounded.
#[map]
pub(crate) static TASKS: HashMap<TaskKey, u64> = HashMap::with_max_entries(4_096, 0);

/// The function that each goroutine was started with, by its address; 0 if it is not known. Fewer than [`TASKS`], so that
/// the stacks of all of them have room in [`SWITCH_SUMS`].
#[map]
pub(crate) static GOROUTINES: HashMap<TaskKey, u64> = HashMap::with_max_entries(1_024, 0);

/// The probe's id of a task by tokio's, for tasks that were seen with both.
#[map]
pub(crate) static ALIASES: HashMap<TaskKey, u64> = HashMap::with_max_entries(4_096, 0);

/// Task switches that hit the kernel, by the index of the task that was switched to.
#[map]
pub(crate) static HITS: HashMap<TaskKey, u64> = HashMap::with_max_entries(4_096, 0);

/// Tables of ended threads, for user space to collect.
#[map]
pub(crate) static HANDOVERS: RingBuf = RingBuf::with_byte_size(4 << 20, 0);

/// Names of tasks, likewise.
#[map]
pub(crate) static NAMES: RingBuf = RingBuf::with_byte_size(1 << 20, 0);

/// What found no room in a table of sums, for user space to add: see [`ctxtrace_common::table`].
#[map]
pub(crate) static ADDITIONS: RingBuf = RingBuf::with_byte_size(4 << 20, 0);

/// Programs that have been executed, for user space to look at: it is woken for each.
#[map]
pub(crate) static EXECUTED: RingBuf = RingBuf::with_byte_size(64 << 10, 0);

/// The events of the timeline: [`RING_CAPACITY`] places for each CPU, one CPU's after the other's. User space maps it, and
/// the loader says how large it is.
#[map]
pub(crate) static EVENTS: Array<Event> = Array::with_max_entries(1, BPF_F_MMAPABLE);

/// How far each CPU has written, and user space has read; mapped like [`EVENTS`].
#[map]
pub(crate) static RINGS: Array<RingState> = Array::with_max_entries(1, BPF_F_MMAPABLE);

/// Wakes user space when a ring of events or of exited threads is half full, or a quarter of a table is taken; what is in it says nothing.
#[map]
pub(crate) static HALF_FULL: RingBuf = RingBuf::with_byte_size(4 << 10, 0);

/// Lets user space map an array.
const BPF_F_MMAPABLE: u32 = 1 << 10;

/// Wakeups by who woke whom.
#[map]
pub(crate) static EDGES: HashMap<EdgeKey, Edge> = HashMap::with_max_entries(8_192, 0);

/// Wakeups by the stacks of their makers, where those are taken.
#[map]
pub(crate) static WAKER_SUMS: HashMap<WakerStackKey, SwitchSum> = HashMap::with_max_entries(16_384, 0);

/// The waking that the thread on each CPU is making, from `sched_waking` to the end of its system call.
#[map]
pub(crate) static WAKINGS: PerCpuArray<WakingNow> = PerCpuArray::with_max_entries(1, 0);

/// Whether the making of wakeups is timed: not 0 while [`sys_exit`](crate::wakeup::sys_exit) is attached.
#[map]
pub(crate) static TIMES_WAKINGS: Array<u64> = Array::with_max_entries(1, 0);

/// Address of each CPU's preemption counter; 0 while it is not known.
#[map]
pub(crate) static PREEMPT_COUNTERS: PerCpuArray<u64> = PerCpuArray::with_max_entries(1, 0);

/// Where things are put together that are too large for a BPF stack frame, which has 512 bytes; one for each [`Lane`].
#[map]
pub(crate) static SCRATCH: PerCpuArray<Scratch> = PerCpuArray::with_max_entries(Lane::COUNT, 0);

/// See [`SCRATCH`].
#[repr(C)]
pub(crate) struct Scratch {
    pub(crate) slot: Slot,
    pub(crate) context: Context,
    pub(crate) stack: Stack,
    /// A part of a kernel stack; see [`ctxtrace_common::memo`].
    pub(crate) words: [u64; MEMO_WORDS],
    pub(crate) length: u64,
    pub(crate) base: u64,
    /// The innermost part of a user stack; see [`ctxtrace_common::chain`].
    pub(crate) chain: [u64; CHAIN_WORDS],
    /// A link that is not in it.
    pub(crate) link: [u64; 2],
    /// The frame that is followed.
    pub(crate) frame: u64,
    /// The outermost one in the copy, and the outermost one that could have been.
    pub(crate) inside: u64,
    pub(crate) outside: u64,
    /// Key of the user stack of the thread that leaves, if that is known without walking it; 0 if not.
    pub(crate) user_stack: u64,
    /// Key of its kernel stack, and whether it found no place in the table.
    pub(crate) kernel_stack: u64,
    pub(crate) stack_lost: u64,
    pub(crate) thread: Thread,
    pub(crate) edge: Edge,
    pub(crate) event: Event,
    pub(crate) waker: Waker,
    pub(crate) key: TaskKey,
    /// What [`crate::locate`] has found; see there.
    pub(crate) value: u64,
}

/// See [`WAKINGS`].
#[repr(C)]
pub(crate) struct WakingNow {
    /// `task_struct` of the thread that makes it; 0 if none does.
    pub(crate) waker: u64,
    pub(crate) since_ns: u64,
    pub(crate) edge: EdgeAddition,
}

/// Which of a CPU's scratch spaces a program uses. A program that runs with interrupts enabled can be interrupted by one
/// that does not, so they must not share.
#[derive(Clone, Copy)]
pub(crate) enum Lane {
    /// `sched_switch`, `sched_waking`, `sched_wakeup_new`, and the timer of samples: the kernel runs them with interrupts
    /// disabled.
    Scheduler = 0,
    /// The birth, `execve` and end of threads.
    Lifecycle = 1,
}

impl Lane {
    const COUNT: u32 = 2;

    /// This CPU's scratch space.
    #[inline(always)]
    pub(crate) fn scratch(self) -> Option<&'static mut Scratch> {
        let scratch = SCRATCH.get_ptr_mut(self as u32)?;
        // SAFETY: this CPU's own element, and nobody else on this CPU uses this lane meanwhile: programs run with
        // preemption disabled, those of the first lane with interrupts disabled, and none of the second in an interrupt.
        Some(unsafe { &mut *scratch })
    }
}

/// Whether stacks are taken (`--level stacks`).
#[unsafe(no_mangle)]
pub(crate) static WITH_STACKS: Global<u32> = Global::new(0);

/// Whether the stacks of wakers are taken (`--wakeups-flamegraph`).
#[unsafe(no_mangle)]
pub(crate) static WITH_WAKER_STACKS: Global<u32> = Global::new(0);

/// Whether the processes that a target forks are targets.
#[unsafe(no_mangle)]
pub(crate) static FOLLOW_CHILDREN: Global<u32> = Global::new(1);

/// Whether every switch and every waking is told as an event (`--level timeline`).
#[unsafe(no_mangle)]
pub(crate) static WITH_EVENTS: Global<u32> = Global::new(0);

/// Events that each CPU's ring holds: a power of two.
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
