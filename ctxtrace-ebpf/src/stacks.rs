//! Walking stacks.

use aya_ebpf::bindings::BPF_F_USER_STACK;
use aya_ebpf::helpers::bpf_get_stack;

use crate::maps::{STACKS, Scratch};

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
