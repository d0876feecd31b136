//! ctxtrace measures which task switches of an async program hit the kernel, and what that costs.
//!
//! The modules, in the order in which data flows through them:
//!
//! 1. [`workload`]: the built-in programs under test.
//! 2. [`tracee`]: starts a target suspended or attaches to a running one, and examines its process and its files.
//! 3. [`capture`]: loads and attaches the BPF programs and drains their maps and rings. The only module that uses aya.
//! 4. [`symbols`]: looks up the names of the functions in all stacks.
//! 5. [`files`]: the files that outputs are written to, with the rights of the invoking user.
//!
//! [`ctxtrace_format`] has the recorded data and the capture file, and [`ctxtrace_analysis`] computes the result of a run from the
//! recorded data. [`ctxtrace_report`] renders it in every output format.
//!
//! [`reader`] reads the executables of targets in a separate process without privileges; the modules from `tracee` on use it.
//!
//! [`run`] implements the commands with these modules. [`cli`] turns a command line into plain settings.
//! `docs/ARCHITECTURE.md` has a diagram of the whole.

#![warn(clippy::print_stdout, clippy::print_stderr)]

pub mod capture;
pub mod cli;
pub mod error;
pub mod files;
pub mod reader;
pub mod run;
pub mod symbols;
pub mod terminal;
pub mod tracee;
pub mod workload;
