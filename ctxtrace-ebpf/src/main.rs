//! ctxtrace's BPF programs, which the kernel runs at every switch and wakeup.
//!
//! The programs are in one module for each group of hooks:
//!
//! * [`switch`]: `sched_switch`. Counts the thread that is switched out, assigns the switch to its ledger class, and
//!   takes the thread's stacks. Closes the off-CPU interval of the thread that is switched in.
//! * [`wakeup`]: `sched_waking`, `sched_wakeup_new`, `sys_exit`. Records the ends of sleeps, the wakers, and the cost
//!   of wakeups.
//! * [`sample`]: a timer. Records what the target is doing while it is on its CPU.
//! * [`lifecycle`]: `sched_process_fork`, `sched_process_exec`, `sched_process_exit`, `do_exit`, `task_rename`.
//!   Determines which threads belong to the target.
//!
//! They share these modules: [`maps`] (every map, and most constants that the loader sets), [`task`] (reads the kernel's
//! `task_struct` with offsets from the running kernel's BTF), [`target`] (finds the record of a thread, given its
//! `task_struct`), [`rights`] (whether the tracer's user may trace a thread), [`locate`] (what a thread is doing),
//! [`hits`] (which task switches hit the kernel), [`handover`] (a thread's final counts), [`waker`] (the maker of a
//! wakeup), [`stacks`] and [`sums`] (the tables of stacks and of sums), [`tables`] (the fill levels of these tables),
//! [`events`] (the events of the timeline).
//!
//! All programs except the timer's and the kprobe at `do_exit` are `tp_btf` programs: they get typed pointers and read
//! through them directly, without a helper call for each field.
#![cfg_attr(target_arch = "bpf", no_std, no_main, feature(asm_experimental_arch))]
#![cfg_attr(
    target_arch = "bpf",
    expect(clippy::needless_pass_by_value, reason = "aya's macros pass the context by value"),
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

/// The licence that the kernel checks before it lets a program call GPL-only helpers (which walk stacks and read user
/// memory).
#[cfg(target_arch = "bpf")]
#[unsafe(link_section = "license")]
#[unsafe(no_mangle)]
static LICENSE: [u8; 13] = *b"Dual MIT/GPL\0";

#[cfg(target_arch = "bpf")]
#[panic_handler]
fn panic(_info: &core::panic::PanicInfo<'_>) -> ! {
    // The verifier rejects a program that could reach this loop.
    loop {}
}

#[cfg(not(target_arch = "bpf"))]
fn main() {}
