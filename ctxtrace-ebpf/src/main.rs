//! ctxtrace's BPF programs: what runs in the kernel at every switch.
//!
//! One file a hook:
//!
//! * [`switch`]: `sched_switch`. The thread that leaves is counted, put in its class of the ledger, and its stacks are taken;
//!   the thread that comes gets its off-CPU interval closed.
//! * [`wakeup`]: `sched_waking`, `sched_wakeup_new`, `sys_exit`. Ends of sleeps, who ends them, and what that costs.
//! * [`sample`]: a timer. What the target is doing while it is on its CPU.
//! * [`lifecycle`]: `sched_process_fork`, `_exec`, `_exit`, `task_rename`. Who belongs to the target.
//!
//! and what they share: [`maps`] (every map, and every constant the loader sets), [`task`] (reading the kernel's
//! `task_struct` with offsets from the running kernel's BTF), [`target`] (from a `task_struct` to our record of the thread),
//! [`rights`] (whether the tracer's user may trace a thread),
//! [`locate`] (what the thread is doing), [`hits`] (its task switches), [`handover`] (its final numbers), [`waker`] (who makes a wakeup), [`stacks`] and
//! [`sums`] (the tables things are added up in), [`tables`] (how full those are), [`events`] (what is told one by one).
//!
//! All but the timer's are `tp_btf` programs: they get typed pointers and read through them directly, no helper call for each
//! field.
#![cfg_attr(target_arch = "bpf", no_std, no_main, feature(asm_experimental_arch))]
#![cfg_attr(
    target_arch = "bpf",
    expect(
        clippy::needless_pass_by_value,
        reason = "aya's macros hand the context over by value"
    ),
    expect(
        clippy::needless_borrows_for_generic_args,
        reason = "a key passed by value is copied onto the BPF stack, which has 512 bytes"
    )
)]

#[cfg(target_arch = "bpf")]
mod atomic;
#[cfg(target_arch = "bpf")]
mod events;
#[cfg(target_arch = "bpf")]
mod handover;
#[cfg(target_arch = "bpf")]
mod hits;
#[cfg(target_arch = "bpf")]
mod lifecycle;
#[cfg(target_arch = "bpf")]
mod locate;
#[cfg(target_arch = "bpf")]
mod maps;
#[cfg(target_arch = "bpf")]
mod rights;
#[cfg(target_arch = "bpf")]
mod sample;
#[cfg(target_arch = "bpf")]
mod stacks;
#[cfg(target_arch = "bpf")]
mod sums;
#[cfg(target_arch = "bpf")]
mod switch;
#[cfg(target_arch = "bpf")]
mod tables;
#[cfg(target_arch = "bpf")]
mod target;
#[cfg(target_arch = "bpf")]
mod task;
#[cfg(target_arch = "bpf")]
mod waker;
#[cfg(target_arch = "bpf")]
mod wakeup;

/// The licence the kernel checks before it lets a program call GPL-only helpers (stack walks, user memory reads).
#[cfg(target_arch = "bpf")]
#[unsafe(link_section = "license")]
#[unsafe(no_mangle)]
static LICENSE: [u8; 13] = *b"Dual MIT/GPL\0";

#[cfg(target_arch = "bpf")]
#[panic_handler]
fn panic(_info: &core::panic::PanicInfo<'_>) -> ! {
    // The verifier rejects a program from which this loop could be reached.
    loop {}
}

#[cfg(not(target_arch = "bpf"))]
fn main() {}
