//! Sums up the stacks of a run by the names of their functions, with a reason where there is no name.
//!
//! * [`stacks`]: the stacks of a run by their names, below frames that say what the threads were doing. Pure functions.
//! * [`category`]: what the code of a stack is for.
//! * `future`: the type of the task that a stack belongs to.
//! * [`goroutine`]: the function that a goroutine was started with.

pub mod category;
mod future;
pub mod goroutine;
pub mod stacks;

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
