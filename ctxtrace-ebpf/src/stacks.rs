//! Walking stacks, and knowing when it is not necessary.

use aya_ebpf::bindings::BPF_F_USER_STACK;
use aya_ebpf::helpers::bpf_get_stack;
use aya_ebpf::helpers::generated::bpf_probe_read_kernel;
use ctxtrace_common::memo::CHECKED_ONE_IN;
use ctxtrace_common::thread::Thread;

use crate::maps::{STACKS, Scratch, count};
use crate::task::Task;

/// Which of a thread's stacks.
#[derive(Clone, Copy)]
pub(crate) enum Space {
    Kernel,
    User,
}

pub(crate) enum Walked {
    /// The stack's key in the table.
    Stack(u64),
    Failed,
    TableFull,
}

/// Walks one stack of the thread that is `current`, and puts it into the table if it is new.
#[inline(always)]
pub(crate) fn walk(ctx: *mut core::ffi::c_void, space: Space, scratch: &mut Scratch) -> Walked {
    let flags = match space {
        Space::Kernel => 0,
        Space::User => u64::from(BPF_F_USER_STACK),
    };
    let stack = &mut scratch.stack;
    // SAFETY: `frames` is as large as the size given.
    let bytes = unsafe {
        bpf_get_stack(
            ctx,
            (&raw mut stack.frames).cast(),
            size_of_val(&stack.frames) as u32,
            flags,
        )
    };
    if bytes <= 0 {
        return Walked::Failed;
    }
    stack.depth = bytes as u64 / 8;
    let hash = stack.hash();
    if STACKS.get_ptr(&hash).is_none() && STACKS.insert(&hash, &*stack, 0).is_err() {
        return Walked::TableFull;
    }
    Walked::Stack(hash)
}

/// The kernel stack of the thread that leaves, which is `current`: the one of its last switch-out, if it is as it was
/// ([`ctxtrace_common::memo`]), or else walked.
#[inline(always)]
pub(crate) fn kernel_stack(
    ctx: *mut core::ffi::c_void,
    task: Task,
    thread: &mut Thread,
    scratch: &mut Scratch,
) -> Walked {
    let base = address_of(ctx, scratch);
    let read = read_from(base, task.saved_registers(), scratch);
    let is_alike = read > 0 && thread.memo.base == base && holds(thread, scratch) != 0;
    if is_alike && thread.memo.reused < CHECKED_ONE_IN - 1 {
        thread.memo.reused += 1;
        count(|counters| &mut counters.stacks_reused);
        return Walked::Stack(thread.memo.key);
    }
    let walked = walk(ctx, Space::Kernel, scratch);
    let Walked::Stack(key) = walked else {
        thread.memo.begin(0, 0);
        return walked;
    };
    if is_alike && key != thread.memo.key {
        count(|counters| &mut counters.mistaken_stacks);
    }
    if key != thread.memo.key || base != thread.memo.base {
        thread.memo.begin(key, base);
    } else if !thread.memo.is_placed() && read > 0 {
        // Twice in a row: it may come again.
        place(thread, scratch, read);
    } else {
        thread.memo.reused = 0;
    }
    walked
}

/// Where the tracepoint's arguments lie, as a number: on the stack of the thread, right inside the frames of the kernel.
#[inline(always)]
fn address_of(ctx: *mut core::ffi::c_void, scratch: &mut Scratch) -> u64 {
    // The verifier lets nobody calculate with a context; what has been in a map is a number like any other.
    let place = &raw mut scratch.value;
    // SAFETY: a field of this CPU's own scratch space, which nobody else uses meanwhile.
    unsafe {
        place.write_volatile(ctx as u64);
        place.read_volatile()
    }
}

/// Copies the stack from `base` to `top`. Tells how many words it has; 0 if they are too many, or cannot be read.
#[inline(always)]
fn read_from(base: u64, top: u64, scratch: &mut Scratch) -> u64 {
    let bytes = top.wrapping_sub(base);
    if bytes == 0 || bytes > size_of_val(&scratch.words) as u64 {
        return 0;
    }
    // SAFETY: the buffer is at least as large as the size given; a read that fails says so.
    let failed = unsafe { bpf_probe_read_kernel((&raw mut scratch.words).cast(), bytes as u32, base as *const _) };
    if failed != 0 { 0 } else { bytes / 8 }
}

/// Kept out of line, as what follows: loops, whose every step the verifier takes.
#[inline(never)]
fn holds(thread: &Thread, scratch: &Scratch) -> u64 {
    u64::from(thread.memo.holds(&scratch.words))
}

#[inline(never)]
fn place(thread: &mut Thread, scratch: &Scratch, words: u64) {
    thread.memo.place(&scratch.stack, &scratch.words, words as usize);
}
