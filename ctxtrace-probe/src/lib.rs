//! Makes the tasks of a program visible to [ctxtrace](https://github.com/ctxtrace/ctxtrace).
//!
//! ctxtrace records a program's kernel switches from inside the kernel. At a switch it can read the memory of the
//! thread that leaves the CPU, but a runtime does not store in a fixed place which task it polls. This crate does: it
//! keeps the task that the thread is polling, the number of the poll and a few counters in a thread-local slot. It
//! calls no other program and sends nothing. If ctxtrace is running, it reads the slot in place.
//!
//! # Cost
//!
//! A poll takes fewer than forty additional plain instructions, none of them locked, which take about 2 ns. The crate
//! uses 12.5 KiB of memory for each thread, and 20 KiB once for the program. `cargo bench -p ctxtrace-probe` measures
//! the time. The cost is the same whether or not ctxtrace is running, and the crate does not change the program's
//! behaviour.
//!
//! Only a program that ctxtrace has started with `--polls` does more: it reads the clock at the beginning and the end
//! of each poll and at each wake, and writes one word of shared memory for each, which takes about 15 ns. To see the
//! wakes, a [`traced()`] future is then polled with a waker of the probe's own, which passes every wake on to the
//! runtime's waker.
//!
//! # Usage
//!
//! With tokio, or any other runtime, wrap the futures that are to have names, and announce the runtime's threads:
//!
//! ```
//! use ctxtrace_probe::{message, runtime_thread, section, traced};
//!
//! let runtime = tokio::runtime::Builder::new_multi_thread()
//!     .worker_threads(2)
//!     .on_thread_start(runtime_thread)
//!     .build()?;
//! let (sender, mut receiver) = tokio::sync::mpsc::channel(16);
//!
//! let section = section(); // The report covers what follows …
//! runtime.block_on(traced("root", async {
//!     let _sending = tokio::spawn(traced("sender", async move {
//!         for n in 0..100 {
//!             sender.send(n).await.ok();
//!         }
//!     }));
//!     while receiver.recv().await.is_some() {
//!         message(); // … and also gives its figures per message.
//!     }
//! }));
//! drop(section);
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
//!
//! Alternatively, tokio can announce the polls of all tasks, without names, through its unstable [hooks](hook).
//! Wrappers and hooks can be used together.
//!
//! ctxtrace's own workloads (`ctxtrace run --mode task-pool`) use this crate. `ctxtrace record -- PROGRAM` records any
//! other program that uses it.
//!
//! # How ctxtrace finds the slot
//!
//! ctxtrace finds the thread-local variable by its symbol, which is that of `ctxtrace_probe::slot::SLOT`. Therefore:
//!
//! * The executable must have its symbol table: do not set `strip = true` or `strip = "symbols"` in the profile. `strip
//!   = "debuginfo"` and every kind of LTO work.
//! * This crate must be linked into the executable itself. In a shared object that is loaded later (`dlopen`),
//!   thread-local variables have no fixed position.
//! * The crate must be linked once. Cargo may put two incompatible versions into one program; both define the symbol
//!   `CTXTRACE_PROBE_REGISTRY`, so the linker reports an error.
//!
//! ctxtrace reads programs for Linux on x86-64. On other platforms this crate does the same work, but nothing reads the
//! result.

mod expose;
pub mod hook;
mod registry;
mod rings;
mod section;
mod slot;
mod traced;
mod waker;

pub use section::{SectionGuard, section};
pub use traced::{Traced, traced};

/// Announces the calling thread as a thread of a runtime: it polls tasks, or will poll some.
///
/// ctxtrace then attributes the thread's waits outside any poll to the runtime. Pass this function to tokio's
/// `Builder::on_thread_start`, and call it on a thread that drives a runtime by `block_on`. tokio also calls it on the
/// threads of its blocking pool, so these count as threads of the runtime, too.
pub fn runtime_thread() {
    slot::SLOT.with(slot::State::mark_runtime_thread);
}

/// Marks one message, or any other unit of the program's work, on the calling thread.
///
/// It takes one instruction. ctxtrace reports its figures per message, and the number of messages that were marked in
/// each poll. On a thread that polls no task, call [`runtime_thread`] or [`section()`] first; otherwise ctxtrace does
/// not read the thread's slot.
#[inline]
pub fn message() {
    slot::SLOT.with(slot::State::message);
}

/// Returns a copy of the calling thread's state, for tests.
#[doc(hidden)]
#[must_use]
pub fn snapshot() -> ctxtrace_abi::ThreadState {
    slot::SLOT.with(slot::State::copy)
}
