//! ctxtrace: which of an async program's task switches hit the kernel, and what did that cost?
//!
//! The folders stand in the order data flows through them, and depend only on those before them:
//!
//! 1. [`workload`]: the programs under test.
//! 2. [`target`]: starts them suspended, follows them.
//! 3. [`capture`]: eBPF: load, attach, bring home. The only part that knows aya.
//! 4. [`trace`]: what was seen, decoded and not interpreted.
//! 5. [`correlate`]: pure functions: reconciliation with the kernel's own counts.
//! 6. [`symbolize`]: addresses to names.
//! 7. [`analyze`]: pure functions: percentiles, the result of a run.
//! 8. [`report`]: one result in, bytes out.
//!
//! [`reader`] reads the executables of targets in a process of its own, for the parts from 2 on.
//!
//! [`run`] puts them together for `ctxtrace run`; [`cli`] turns a command line into plain settings, and nothing else knows
//! clap's parser. `docs/ARCHITECTURE.md` has the picture.

#![warn(clippy::print_stdout, clippy::print_stderr)]

pub mod analyze;
pub mod capture;
pub mod cli;
pub mod correlate;
pub mod error;
pub mod printable;
pub mod reader;
pub mod report;
pub mod run;
pub mod sums;
pub mod symbolize;
pub mod target;
pub mod terminal;
pub mod trace;
pub mod units;
pub mod workload;
