//! Tables of sums that the kernel side adds to.

use aya_ebpf::maps::HashMap;
use ctxtrace_common::ledger::Class;
use ctxtrace_common::process::{Image, TaskKey};
use ctxtrace_common::stack::{Gathered, SwitchSum};
use ctxtrace_common::table::{HIT_GENERATION_SHIFT, Table};
use ctxtrace_common::thread::Thread;
use ctxtrace_common::wakeup::{Edge, EdgeAddition, WakerAddition};

use crate::atomic;
use crate::maps::{
    ADDITIONS, BPF_RB_NO_WAKEUP, EDGES, HITS, OVERFLOW_SUMS, SWITCH_SUMS, Scratch, WAKER_SUMS, add as add_to_counter,
    count,
};
use crate::tables::{generation, made_one};

const NOTHING: SwitchSum = SwitchSum {
    count: 0,
    off_cpu_ns: 0,
};

/// Adds the thread's last switch-out to the sum with the same key in the thread's record. See
/// [`ctxtrace_common::stack::Gathered`].
#[inline(always)]
pub(crate) fn add_switch(thread: &mut Thread, off_cpu_ns: u64) {
    // Both indices are constants, so no check of bounds is needed, which could panic. A BPF program cannot panic.
    if thread.gathered[0].takes(&thread.pending) {
        thread.last_used &= !LAST_GATHERED;
        thread.gathered[0].add(off_cpu_ns);
    } else if thread.gathered[1].takes(&thread.pending) {
        thread.last_used |= LAST_GATHERED;
        thread.gathered[1].add(off_cpu_ns);
    } else {
        begin_to_gather(thread, off_cpu_ns);
    }
}

/// Bit of [`Thread::last_used`]: the second sum was used last.
const LAST_GATHERED: u32 = 1;

/// Replaces one of the thread's sums by one with another key. Not inlined, because it needs room on the stack: see
/// `crate::locate::look`.
#[inline(never)]
fn begin_to_gather(thread: &mut Thread, off_cpu_ns: u64) {
    thread.last_used ^= LAST_GATHERED;
    let gathered = if thread.last_used & LAST_GATHERED == 0 {
        &mut thread.gathered[0]
    } else {
        &mut thread.gathered[1]
    };
    bring_in(gathered);
    gathered.begin(&thread.pending);
    gathered.add(off_cpu_ns);
}

/// Adds a thread's own sum to the table.
#[inline(always)]
pub(crate) fn bring_in(gathered: &mut Gathered) {
    let Gathered { key, sum: alike } = gathered;
    if alike.count == 0 {
        return;
    }
    // The key may be changed: it is replaced after this, or not used again.
    key.generation = generation(Table::SwitchSums) as u8;
    if add(&SWITCH_SUMS, Table::SwitchSums, key, alike) || hand_over(gathered) {
        return;
    }
    let Gathered { key, sum: alike } = gathered;
    add_to_counter(|counters| &mut counters.lost_stack_sums, alike.count);
    let class = if key.reason != 0 {
        Class::Unattributed as u32
    } else {
        u32::from(key.class)
    };
    if let Some(sum) = OVERFLOW_SUMS.get_ptr_mut(class) {
        // SAFETY: this CPU's own element. Only `sched_switch` and `sched_process_exec` add to it, and with preemption
        // disabled neither can run in the middle of the other.
        let sum = unsafe { &mut *sum };
        sum.count += alike.count;
        sum.off_cpu_ns += alike.off_cpu_ns;
    }
}

/// Adds one wakeup to the sum of its waker's stacks.
#[inline(always)]
pub(crate) fn add_waker(addition: &mut WakerAddition) {
    addition.key.generation = generation(Table::WakerSums) as u16;
    if !add(&WAKER_SUMS, Table::WakerSums, &addition.key, &addition.sum) && !hand_over(addition) {
        count(|counters| &mut counters.lost_wakeup_edges);
    }
}

/// Sends an addition to user space because its table had no room. Returns whether the ring had room. The reader need
/// not be woken here, because it was woken long before, when a quarter of the table was occupied.
#[inline(always)]
fn hand_over<T>(addition: &T) -> bool {
    ADDITIONS.output::<T>(addition, BPF_RB_NO_WAKEUP).is_ok()
}

/// Adds to the element with this key, which is made if there is none. Returns whether there was room.
#[inline(always)]
fn add<K>(sums: &HashMap<K, SwitchSum>, table: Table, key: &K, alike: &SwitchSum) -> bool {
    let known = match sums.get_ptr_mut(key) {
        Some(known) => Some(known),
        None => {
            // This fails with EEXIST if another CPU has just made the element. The next lookup then finds it.
            if sums.insert(key, &NOTHING, 1).is_ok() {
                made_one(table as u32);
            }
            sums.get_ptr_mut(key)
        }
    };
    let Some(known) = known else {
        return false;
    };
    // SAFETY: a live element that several CPUs add to. Both fields are aligned, and only added to atomically.
    unsafe {
        atomic::add(&raw mut (*known).count, alike.count);
        atomic::add(&raw mut (*known).off_cpu_ns, alike.off_cpu_ns);
    }
    true
}

/// Returns the element of the edge that `addition` is for, which is made if there is none. If there is no room, the
/// addition is sent to user space.
#[inline(always)]
pub(crate) fn edge(addition: &mut EdgeAddition, scratch: &mut Scratch) -> Option<*mut Edge> {
    let key = &mut addition.key;
    key.generation = generation(Table::Edges) as u16;
    if let Some(edge) = EDGES.get_ptr_mut(&*key) {
        return Some(edge);
    }
    // The scratch edge is never written to, so it still holds the zeroes that the map was created with.
    if EDGES.insert(&*key, &scratch.edge, 1).is_ok() {
        made_one(Table::Edges as u32);
    }
    let edge = EDGES.get_ptr_mut(&*key);
    if edge.is_none() && !hand_over(addition) {
        count(|counters| &mut counters.lost_wakeup_edges);
    }
    edge
}

/// Adds a hit to the task with this index. If there is no room, the hit is counted as one of an unknown task.
#[inline(always)]
pub(crate) fn add_hit(thread: &mut Thread, index: u16) {
    let key = TaskKey {
        task: u64::from(index) | (generation(Table::Hits) & 1) << HIT_GENERATION_SHIFT,
        image: Image {
            tgid: thread.tgid,
            number: thread.image,
        },
    };
    if HITS.get_ptr_mut(&key).is_none() && HITS.insert(&key, &0, 1).is_ok() {
        made_one(Table::Hits as u32);
    }
    match HITS.get_ptr_mut(&key) {
        // SAFETY: a live element that is only added to atomically.
        Some(hits) => unsafe { atomic::add(hits, 1) },
        None => thread.polls.hits_of_unknown_task += 1,
    }
}
