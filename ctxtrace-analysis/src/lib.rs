//! Computes results from the recorded data. All functions are pure.
//!
//! * [`correlate`]: compares the traced data with the kernel's own counts, and replays events.
//! * [`symbolize`]: the stacks of a run by the names of their functions.
//! * [`units`]: numbers with their units.
//! * [`assertion`]: `--assert`, a condition on one figure of the result.
//! * [`attribution`]: the part of the result about tasks.
//! * [`budget`]: where the threads spend their time in two cases, compared.
//! * [`compare`]: two captures side by side.
//! * [`doctor`]: what a machine or a program lacks for tracing.
//! * [`explain`]: why one case is slower than another.
//! * [`percentile`]: percentiles of log-linear histograms.
//! * `polls`: the part of the result about polls and wakes.
//! * [`profile`]: on-CPU time by category of code and by function, from samples.
//! * [`result`]: the result itself, [`result::Report`]. Its JSON form is the contract.
//! * [`statistics`]: whether two cases differ, by how much, and how much of the difference a change removes.
//! * [`summarize`]: makes the result of one or several runs.
//! * [`suite`]: the table of the article's cases.
//! * [`verdict`]: whether the figures of a result can be trusted.
//! * `unseen`: the part of the result about what was not seen to begin or to end.

#![warn(clippy::print_stdout, clippy::print_stderr)]

pub mod assertion;
pub mod attribution;
pub mod budget;
pub mod compare;
pub mod correlate;
pub mod doctor;
pub mod explain;
#[cfg(any(test, feature = "fixtures"))]
pub mod fixtures;
mod nulls;
pub mod percentile;
mod polls;
pub mod profile;
pub mod result;
pub mod statistics;
pub mod suite;
pub mod summarize;
pub mod symbolize;
pub mod units;
mod unseen;
pub mod verdict;
