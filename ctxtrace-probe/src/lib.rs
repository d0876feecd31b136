//! Lets [ctxtrace](https://github.com/ctxtrace/ctxtrace) see the tasks of a program.
//!
//! ctxtrace records a program's kernel switches from inside the kernel. At a switch it can read the memory of the
//! thread that leaves, but a runtime's tasks are not written anywhere it could look. This crate writes them down: a
//! thread-local slot with the task the thread is polling and the number of the poll, and a few counters. Nobody is
//! called and nothing is sent: ctxtrace, if it is there, reads the slot where it lies.
//!
//! # What it costs
//!
//! Fewer than forty plain instructions a poll, none of them locked, which take some 2 ns; 12.5 KiB for each thread, and
//! 20 KiB once. `cargo bench -p ctxtrace-probe` measures it. It is the same whether ctxtrace is there or not, and has no
//! effect on what the program does.
//!
//! Only a program that is started by ctxtrace with `--polls` does more: it reads the clock at the beginning and the end of each
//! poll and at each wake, and writes a word of shared memory for each, which takes some 15 ns. For the wakes a [`traced()`]
//! future is then polled with a waker of its own, which passes everything on to the runtime's.
//!
//! # How to use it
//!
//! With tokio, or any other runtime, wrap the futures whose names matter, and announce the runtime's threads:
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
//! let section = section(); // Figures are about what follows …
//! runtime.block_on(traced("root", async {
//!     let _sending = tokio::spawn(traced("sender", async move {
//!         for n in 0..100 {
//!             sender.send(n).await.ok();
//!         }
//!     }));
//!     while receiver.recv().await.is_some() {
//!         message(); // … and may be given for each message.
//!     }
//! }));
//! drop(section);
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
//!
//! Or let tokio announce the polls of all tasks, without names, through its unstable [hooks](hook). Both go together.
//!
//! ctxtrace's own workloads (`ctxtrace run --mode task-pool`) use it. The command for any program, `ctxtrace record`, is in the
//! making.
//!
//! # How it is found
//!
//! By the symbol of the thread-local, which is that of `ctxtrace_probe::slot::SLOT`. Therefore:
//!
//! * The executable must have its symbol table: no `strip = true` or `strip = "symbols"` in the profile. `strip =
//!   "debuginfo"` and any kind of LTO are all right.
//! * This crate must be linked into the executable itself. In a shared object that is loaded later (`dlopen`),
//!   thread-locals lie at no fixed place.
//! * It must be there once. Cargo may put two incompatible versions into one program; they define the same symbol,
//!   `CTXTRACE_PROBE_REGISTRY`, and the linker refuses them.
//!
//! ctxtrace reads programs for Linux on x86-64. Elsewhere this crate does the same, for nobody.

pub mod hook;
mod registry;
mod rings;
mod section;
mod slot;
mod traced;
mod waker;

pub use section::{SectionGuard, section};
pub use traced::{Traced, traced};

/// Says that the calling thread polls tasks, or will: it belongs to a runtime.
///
/// Its waits outside any poll are then known to be the runtime's. Give it to tokio's `Builder::on_thread_start`, and
/// call it on a thread that drives a runtime by `block_on`. tokio starts the threads of its blocking pool in the same
/// way, so they count as threads of the runtime, too.
pub fn runtime_thread() {
    slot::SLOT.with(slot::State::mark_runtime_thread);
}

/// Marks one message, or whatever the program calls a unit of its work, on the calling thread.
///
/// One instruction. ctxtrace gives its figures for each message, and how many messages a poll has handled. On a
/// thread that polls no task, call [`runtime_thread`] or [`section()`] first, or nobody will look at it.
#[inline]
pub fn message() {
    slot::SLOT.with(slot::State::message);
}

/// What the calling thread has written down, for tests.
#[doc(hidden)]
#[must_use]
pub fn snapshot() -> ctxtrace_abi::ThreadState {
    slot::SLOT.with(slot::State::copy)
}
