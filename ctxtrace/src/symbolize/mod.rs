//! Addresses to names, with the reason where there is none; and stacks of names, summed up.
//!
//! * [`symbols`]: looks every stack of a run up, on the machine it was recorded on, while its files are there.
//! * [`stacks`]: pure: the stacks of a run by their names, under what the threads were doing.
//! * [`category`]: what the code of a stack is for.
//! * `future`: what kind of task a stack belongs to.
//! * `goroutine`: what function a goroutine was started with.

pub mod category;
mod future;
mod goroutine;
pub mod stacks;
pub mod symbols;

/// The outermost functions of complete user stacks: where a program, a thread of glibc or musl, or a goroutine begins.
const ENTRY_POINTS: [&str; 13] = [
    "_start",
    "__clone",
    "clone",
    "__clone3",
    "clone3",
    "start_thread",
    "__libc_start_main",
    "__libc_start_call_main",
    "_start_c",
    "runtime.goexit",
    "runtime.goexit.abi0",
    "runtime.rt0_go",
    "runtime.rt0_go.abi0",
];
