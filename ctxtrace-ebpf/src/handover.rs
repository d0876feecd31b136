//! A thread's final counts, read at the last moment at which its memory can be read: in `sched_process_exit`.
//!
//! Since Linux 6.16, that tracepoint comes before the thread releases its memory (kernel: `kernel/exit.c`,
//! `do_exit()`), also for threads that are killed. On earlier kernels they are read at the beginning of `do_exit()`. If
//! neither is possible, the read fails and the handover is counted as lost. Then the counts of the thread's last switch
//! are used.

use aya_ebpf::helpers::bpf_probe_read_user;
use aya_ebpf::helpers::generated::bpf_probe_read_user as read_user;
use ctxtrace_abi::{MAGIC, NAME_BYTES, NAMED_TASKS, Registry, Slot, Tables, ThreadState};
use ctxtrace_common::handover::{Handover, PollTables, TaskNames};
use ctxtrace_common::locator::HAS_PROBE;
use ctxtrace_common::process::Image;
use ctxtrace_common::thread::{INHERITED, KERNEL_WORKER, Thread};

use crate::hits::observe;
use crate::locate::locator_of;
use crate::maps::{BPF_RB_NO_WAKEUP, HANDOVERS, NAMES, PROCESSES, count};

/// Reads the final counts of the thread that is `current`, has this thread pointer, and is about to end.
#[inline(always)]
pub(crate) fn final_numbers(thread_pointer: u64, thread: &mut Thread) {
    if thread.flags & (KERNEL_WORKER | INHERITED) != 0 {
        return;
    }
    let Some(locator) = locator_of(thread) else {
        return;
    };
    if locator.flags & HAS_PROBE == 0 || thread_pointer == 0 {
        return;
    }
    let address = thread_pointer.wrapping_sub(locator.probe_below_tp);
    // SAFETY: a failed read returns an error.
    let Ok(slot) = (unsafe { bpf_probe_read_user(address as *const Slot) }) else {
        count(|counters| &mut counters.lost_handovers);
        return;
    };
    if slot.magic != MAGIC || slot.polls < thread.polls.last.polls {
        return;
    }
    observe(thread, &slot, address, None);
    if slot.polls > 0 && !hand_over(thread, address) {
        count(|counters| &mut counters.lost_handovers);
    }
}

/// Copies the thread's tables to user space, and the program's names if there are new ones. Returns whether the tables
/// were copied.
#[inline(always)]
fn hand_over(thread: &Thread, address: u64) -> bool {
    let tables = address.wrapping_add(core::mem::offset_of!(ThreadState, tables) as u64);
    let registry_field = tables.wrapping_add(core::mem::offset_of!(Tables, registry) as u64);
    // SAFETY: failed reads return an error.
    let (registry, tasks_created) = unsafe {
        let Ok(registry) = bpf_probe_read_user(registry_field as *const u64) else {
            return false;
        };
        let magic = registry.wrapping_add(core::mem::offset_of!(Registry, magic) as u64);
        let tasks = registry.wrapping_add(core::mem::offset_of!(Registry, tasks) as u64);
        let (Ok(magic), Ok(tasks)) = (
            bpf_probe_read_user(magic as *const u64),
            bpf_probe_read_user(tasks as *const u64),
        ) else {
            return false;
        };
        if magic != MAGIC {
            return false;
        }
        (registry, tasks)
    };
    let image = Image {
        tgid: thread.tgid,
        number: thread.image,
    };
    hand_over_names(image, registry, tasks_created);

    let Some(mut record) = HANDOVERS.reserve::<Handover>(0) else {
        return false;
    };
    let copied = tables.wrapping_add(core::mem::offset_of!(Tables, polls_by_task) as u64);
    let handover = record.as_mut_ptr();
    // SAFETY: no other code accesses the record until it is submitted, and every field that user space reads is written
    // here.
    let read = unsafe {
        (&raw mut (*handover).image).write(image);
        (&raw mut (*handover).tid).write(thread.tid);
        (&raw mut (*handover).reserved).write(0);
        (&raw mut (*handover).tasks_created).write(tasks_created);
        read_user(
            (&raw mut (*handover).tables).cast(),
            size_of::<PollTables>() as u32,
            copied as *const core::ffi::c_void,
        )
    };
    if read != 0 {
        record.discard(BPF_RB_NO_WAKEUP);
        return false;
    }
    record.submit(BPF_RB_NO_WAKEUP);
    true
}

/// Copies the program's names to user space, if the program has named more tasks than were known before.
#[inline(always)]
fn hand_over_names(image: Image, registry: u64, tasks_created: u64) {
    let last_named = NAMED_TASKS as u64 - 1;
    let named = if tasks_created < last_named {
        tasks_created
    } else {
        last_named
    };
    let Some(process) = PROCESSES.get_ptr_mut(&image.tgid) else {
        return;
    };
    // SAFETY: a live element. If two threads end at the same time, the names are copied twice.
    let tasks_named = unsafe { &raw mut (*process).tasks_named };
    // SAFETY: as above.
    if unsafe { tasks_named.read_volatile() } >= named {
        return;
    }
    let Some(mut record) = NAMES.reserve::<TaskNames>(0) else {
        count(|counters| &mut counters.lost_handovers);
        return;
    };
    let names = record.as_mut_ptr();
    let copied = registry.wrapping_add(core::mem::offset_of!(Registry, names) as u64);
    // Only names that have been written are read, because BPF programs cannot read memory that was never touched. User
    // space ignores the entries after them.
    let size = (named as u32 + 1) * NAME_BYTES as u32;
    // SAFETY: no other code accesses the record until it is submitted.
    let read = unsafe {
        (&raw mut (*names).image).write(image);
        (&raw mut (*names).count).write(named + 1);
        read_user(
            (&raw mut (*names).names).cast(),
            size,
            copied as *const core::ffi::c_void,
        )
    };
    if read != 0 {
        record.discard(BPF_RB_NO_WAKEUP);
        count(|counters| &mut counters.lost_handovers);
        return;
    }
    record.submit(BPF_RB_NO_WAKEUP);
    // SAFETY: as above.
    unsafe { tasks_named.write_volatile(named) };
}
