//! What both sides of the kernel boundary agree on.
//!
//! The BPF programs (`ctxtrace-ebpf`) and the loader (`ctxtrace`) are compiled apart, for different machines, and meet in
//! map values and ring-buffer records. Every such type stands here and nowhere else: `repr(C)`, free of padding
//! (`bytemuck::Pod` refuses it) and with its size asserted, so that a change of layout fails the build instead of a run.
//!
//! The crate also holds the two algorithms that must be the same on both sides:
//!
//! * [`clock`]: the state machine that turns scheduler events into intervals. It runs inside the kernel, and its unit
//!   tests, which need no root, draw timelines against the very code that runs there.
//! * [`histogram`]: the log-linear buckets latencies are counted in.
#![no_std]

pub mod clock;
pub mod counters;
pub mod histogram;
pub mod process;
pub mod stack;
pub mod thread;
