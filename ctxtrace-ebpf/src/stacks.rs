//! Walks stacks, and recognises stacks that need not be walked.

use aya_ebpf::bindings::BPF_F_USER_STACK;
use aya_ebpf::helpers::bpf_get_stack;
use aya_ebpf::helpers::generated::{bpf_probe_read_kernel, bpf_probe_read_user as read_user};
use ctxtrace_common::chain::{Chain, LOWEST_FRAME, MOST_LINKS, UserStacks, link, reach};
use ctxtrace_common::memo::{MEMO_WORDS, StackMemo, Window};
use ctxtrace_common::table::Table;
use ctxtrace_common::thread::Thread;

use crate::maps::{EEXIST, STACKS, Scratch, count};
use crate::tables::made_one;
use crate::task::Task;

/// Selects one of a thread's stacks.
#[derive(Clone, Copy)]
pub(crate) enum Space {
    /// The kernel stack, from the registers with which the program was called.
    Kernel,
    /// The kernel stack, from the tracepoint on: without this program and without its direct caller in the kernel. The
    /// return address in that caller depends on whether the kernel measures the run time of programs.
    KernelAtTracepoint,
    User,
}

/// Flag of an update: an existing element is kept, because user space may be reading it.
const BPF_NOEXIST: u64 = 1;

/// The number of these two frames.
const OUR_FRAMES: u64 = 2;

pub(crate) enum Walked {
    /// The stack's key in the table.
    Stack(u64),
    Failed,
    TableFull,
}

/// Walks one stack of the thread that is `current`, and adds it to the table if it is new.
#[inline(always)]
pub(crate) fn walk(ctx: *mut core::ffi::c_void, space: Space, scratch: &mut Scratch) -> Walked {
    let flags = match space {
        Space::Kernel => 0,
        Space::KernelAtTracepoint => OUR_FRAMES,
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
    if STACKS.get_ptr(&hash).is_none() {
        match STACKS.insert(&hash, &*stack, BPF_NOEXIST) {
            Ok(()) => made_one(Table::Stacks as u32),
            // Another CPU has just added it.
            Err(EEXIST) => {}
            Err(_) => return Walked::TableFull,
        }
    }
    Walked::Stack(hash)
}

/// Bit of [`Thread::last_used`]: the second memo was used last.
const LAST_MEMO: u32 = 2;

/// Returns the kernel stack of the thread that is switched out, which is `current`. The stack is walked only if it is
/// not recognised as one of the thread's last ones ([`ctxtrace_common::memo`]).
#[inline(always)]
pub(crate) fn kernel_stack(
    ctx: *mut core::ffi::c_void,
    task: Task,
    thread: &mut Thread,
    scratch: &mut Scratch,
) -> Walked {
    let (words, other_words) = (thread.memos[0].reach(), thread.memos[1].reach());
    let words = if words < other_words { other_words } else { words };
    // Both indices are constants, so no check of bounds is needed, which could panic. A BPF program cannot panic.
    let which = if words == 0 || !read_stack(ctx, task, words, scratch) {
        NO_MEMO
    } else if holds(&thread.memos[0], scratch) != 0 {
        thread.last_used &= !LAST_MEMO;
        0
    } else if holds(&thread.memos[1], scratch) != 0 {
        thread.last_used |= LAST_MEMO;
        1
    } else {
        NO_MEMO
    };
    let known = match which {
        0 => thread.memos[0].reuse(),
        1 => thread.memos[1].reuse(),
        _ => 0,
    };
    if known != 0 {
        count(|counters| &mut counters.stacks_reused);
        return Walked::Stack(known);
    }
    let walked = walk(ctx, Space::KernelAtTracepoint, scratch);
    let Walked::Stack(key) = walked else {
        return walked;
    };
    match which {
        0 => check(&mut thread.memos[0], key),
        1 => check(&mut thread.memos[1], key),
        _ => remember(ctx, task, thread, key, scratch),
    }
    walked
}

/// The stack was not recognised by a memo.
const NO_MEMO: u32 = 2;

/// Compares a recognised stack with the key of the walk that was made as a check.
#[inline(always)]
fn check(memo: &mut StackMemo, key: u64) {
    if key == memo.key {
        memo.reused = 0;
    } else {
        count(|counters| &mut counters.mistaken_stacks);
        memo.begin(0);
    }
}

/// Remembers a stack that was walked.
#[inline(always)]
fn remember(ctx: *mut core::ffi::c_void, task: Task, thread: &mut Thread, key: u64, scratch: &mut Scratch) {
    let memo = if thread.memos[0].key == key {
        thread.last_used &= !LAST_MEMO;
        &mut thread.memos[0]
    } else if thread.memos[1].key == key {
        thread.last_used |= LAST_MEMO;
        &mut thread.memos[1]
    } else {
        thread.last_used ^= LAST_MEMO;
        if thread.last_used & LAST_MEMO == 0 {
            thread.memos[0].begin(key);
        } else {
            thread.memos[1].begin(key);
        }
        return;
    };
    // The stack has come a second time, so it is likely to come again.
    memo.reused = 0;
    if read_stack(ctx, task, MEMO_WORDS as u32, scratch) {
        place(memo, scratch);
    }
}

/// Returns an address as a number. The verifier restricts arithmetic with values that it knows to be pointers. A value
/// that was stored in a map and loaded again is an ordinary number.
#[inline(always)]
fn as_number(address: u64, scratch: &mut Scratch) -> u64 {
    let place = &raw mut scratch.value;
    // SAFETY: a field of this CPU's own scratch space, which no other program uses meanwhile.
    unsafe {
        place.write_volatile(address);
        place.read_volatile()
    }
}

/// Copies this many words of the thread's stack, from the tracepoint's arguments on, or the outermost words of the
/// stack if there are fewer. Returns whether it succeeded.
#[inline(always)]
fn read_stack(ctx: *mut core::ffi::c_void, task: Task, words: u32, scratch: &mut Scratch) -> bool {
    let bytes = (8 * u64::from(words)).min(size_of_val(&scratch.words) as u64);
    // The arguments are on the thread's stack, directly below the frames of the kernel.
    let base = as_number(ctx as u64, scratch);
    let last = as_number(task.stack_end(), scratch).wrapping_sub(bytes);
    let from = if base < last { base } else { last };
    scratch.base = base.wrapping_sub(from) / 8;
    scratch.length = bytes / 8;
    // SAFETY: the buffer is as large as the size given. A failed read returns an error.
    let failed = unsafe { bpf_probe_read_kernel((&raw mut scratch.words).cast(), bytes as u32, from as *const _) };
    failed == 0 && scratch.base < MEMO_WORDS as u64
}

#[inline(always)]
fn window(scratch: &Scratch) -> Window<'_> {
    Window {
        words: &scratch.words,
        length: scratch.length as usize,
        base: scratch.base as usize % MEMO_WORDS,
    }
}

/// Returns the key of the user stack of the thread that is switched out, which is `current`, if it is recognised as one
/// of the thread's last ones by following its frames; otherwise 0. See [`ctxtrace_common::chain`].
#[inline(always)]
pub(crate) fn known_user_stack(task: Task, thread: &mut Thread, scratch: &mut Scratch) -> u64 {
    if !thread.user_stacks.try_next() {
        return 0;
    }
    let Some((ip, frame)) = task.user_registers() else {
        return 0;
    };
    (scratch.frame, scratch.inside, scratch.outside) = (frame, frame, frame);
    let key = follow(ip, &mut thread.user_stacks, scratch);
    if !thread.user_stacks.takes(key) {
        return 0;
    }
    thread.user_stacks.reached(frame, scratch.inside, scratch.outside);
    count(|counters| &mut counters.user_stacks_reused);
    key
}

/// Walks the user stack of the thread that is switched out, and remembers it.
#[inline(always)]
pub(crate) fn user_stack(ctx: *mut core::ffi::c_void, thread: &mut Thread, scratch: &mut Scratch) -> Walked {
    let walked = walk(ctx, Space::User, scratch);
    if let Walked::Stack(key) = walked {
        thread.user_stacks.remember(key);
    }
    walked
}

/// Returns the key of the user stack from `scratch.frame` on, or 0 if it has too many frames. Not inlined, because it
/// contains a loop.
#[inline(never)]
fn follow(ip: u64, stacks: &mut UserStacks, scratch: &mut Scratch) -> u64 {
    let from = scratch.frame;
    let mut chain = Chain::begin(ip);
    if from < LOWEST_FRAME {
        return chain.key();
    }
    let bytes = copy_stack(from, stacks, scratch);
    let mut links = 0;
    while links < MOST_LINKS {
        let frame = scratch.frame;
        if frame < LOWEST_FRAME {
            return chain.key();
        }
        let (next, address) = match link(&scratch.chain, from, bytes, frame) {
            Some(link) => {
                scratch.inside = frame;
                link
            }
            None => {
                let size = size_of_val(&scratch.link) as u32;
                // SAFETY: the buffer is as large as the size given. A failed read returns an error.
                if unsafe { read_user((&raw mut scratch.link).cast(), size, frame as *const _) } != 0 {
                    return chain.key();
                }
                // `frame` is loaded again: with the bounds that the verifier knows of it from `link`, it would check
                // the following code on a separate path.
                // SAFETY: the pointer comes from a valid reference.
                let frame = unsafe { (&raw const scratch.frame).read_volatile() };
                if reach(from, frame).is_some() {
                    scratch.outside = frame;
                }
                (scratch.link[0], scratch.link[1])
            }
        };
        chain.add(address);
        scratch.frame = next;
        links += 1;
    }
    0
}

/// Copies the stack from this frame on. Returns the number of bytes copied; 0 if the copy failed.
#[inline(always)]
fn copy_stack(from: u64, stacks: &mut UserStacks, scratch: &mut Scratch) -> u64 {
    // The result of `to_copy` is never larger, but the verifier needs the bound here.
    let bytes = stacks.to_copy(from).min(size_of_val(&scratch.chain) as u64);
    // SAFETY: the buffer is at least as large as the size given. A failed read returns an error.
    let failed = unsafe { read_user((&raw mut scratch.chain).cast(), bytes as u32, from as *const _) };
    if failed == 0 {
        return bytes;
    }
    if bytes != 0 {
        stacks.is_unreadable(from, bytes);
    }
    0
}

/// Returns whether the memo matches the copied part of the stack. Not inlined, like `place`: both contain loops, of
/// which the verifier checks every iteration.
#[inline(never)]
fn holds(memo: &StackMemo, scratch: &Scratch) -> u64 {
    u64::from(memo.holds(window(scratch)))
}

#[inline(never)]
fn place(memo: &mut StackMemo, scratch: &Scratch) {
    memo.place(&scratch.stack, window(scratch));
}
