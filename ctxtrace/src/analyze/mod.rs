//! Computes results from captures. All functions are pure.
//!
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
//! * `unseen`: the part of the result about what was not seen to begin or to end.

pub mod assertion;
pub mod attribution;
pub mod budget;
pub mod compare;
pub mod doctor;
pub mod explain;
pub mod percentile;
mod polls;
pub mod profile;
pub mod result;
pub mod statistics;
pub mod suite;
pub mod summarize;
mod unseen;
