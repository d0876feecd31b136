//! What both sides of the kernel boundary agree on.
//!
//! The BPF programs (`ctxtrace-ebpf`) and the loader (`ctxtrace`) are compiled apart, for different machines, and meet in
//! map values and ring-buffer records. Every such type stands here and nowhere else: `repr(C)`, free of padding
//! (`bytemuck::Pod` refuses it) and with its size asserted, so that a change of layout fails the build instead of a run.
//!
//! The crate also holds the algorithms that run inside the kernel, so that their unit tests, which need no root, draw
//! timelines against the very code that runs there:
//!
//! * [`clock`]: the state machine that turns scheduler events into intervals.
//! * [`locator`]: what a thread is doing, out of the bytes of its thread-locals.
//! * [`polls`]: which task switches hit the kernel.
//! * [`ledger`]: the class of every kernel switch.
//! * [`memo`] and [`chain`]: whether a kernel stack, or a user stack, is one that was walked before.
//! * [`table`]: how tables of sums are emptied while programs add to them.
//! * [`event`]: what is told of a switch, so that all of these can be run again outside the kernel.
#![no_std]
#![cfg_attr(target_arch = "bpf", feature(asm_experimental_arch))]

mod bound;
pub mod chain;
pub mod clock;
pub mod counters;
pub mod event;
pub mod handover;
pub mod histogram;
pub mod ledger;
pub mod locator;
pub mod memo;
pub mod polls;
pub mod process;
#[cfg(feature = "serde")]
mod sparse;
pub mod stack;
pub mod table;
pub mod thread;
pub mod wakeup;
pub mod words;
