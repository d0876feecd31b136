//! Types and algorithms shared by both sides of the kernel boundary.
//!
//! The BPF programs (`ctxtrace-ebpf`) and the loader (`ctxtrace`) are compiled separately, for different machines, and
//! exchange map values and ring buffer records. Every such type is defined here and nowhere else. Each is `repr(C)`,
//! has no padding (`bytemuck::Pod` rejects padding) and has its size asserted, so that an unintended change of a layout
//! fails the build and not a run.
//!
//! The crate also contains the algorithms that run inside the kernel. Their unit tests need no root; they replay drawn
//! timelines with the same code that runs in the kernel:
//!
//! * [`clock`]: the state machine that turns scheduler events into intervals.
//! * [`locator`]: decodes what a thread is doing from the bytes of its thread-local variables.
//! * [`polls`]: finds which task switches hit the kernel.
//! * [`ledger`]: the class of every kernel switch.
//! * [`memo`] and [`chain`]: recognise a kernel stack, or a user stack, that was walked before.
//! * [`table`]: how user space empties tables of sums while programs add to them.
//! * [`event`]: the events that describe switches and wakeups, so that all of these algorithms can be run again outside
//!   the kernel.
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
