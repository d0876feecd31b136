//! ctxtrace measures which task switches of an async program hit the kernel, and what that costs.
//!
//! The modules, in the order in which data flows through them:
//!
//! 1. [`workload`]: the built-in programs under test.
//! 2. [`tracee`]: starts a target suspended or attaches to a running one, and examines its process and its files.
//! 3. [`capture`]: loads and attaches the BPF programs and drains their maps and rings. The only module that uses aya.
//! 4. [`ctxtrace_format`]: the recorded data, decoded but not interpreted, and the capture file.
//! 5. [`correlate`]: pure functions that compare the traced data with the kernel's own counts and replay events.
//! 6. [`symbolize`]: translates addresses to names.
//! 7. [`analyze`]: pure functions that compute percentiles and the result of a run.
//! 8. [`report`]: renders a result in every output format.
//!
//! [`reader`] reads the executables of targets in a separate process without privileges; the modules from `tracee` on use it.
//!
//! [`run`] implements the commands with these modules. [`cli`] turns a command line into plain settings.
//! `docs/ARCHITECTURE.md` has a diagram of the whole.

#![warn(clippy::print_stdout, clippy::print_stderr)]

pub mod analyze;
pub mod capture;
pub mod cli;
pub mod correlate;
pub mod error;
pub mod reader;
pub mod report;
pub mod run;
pub mod symbolize;
pub mod terminal;
pub mod tracee;
pub mod units;
pub mod workload;
