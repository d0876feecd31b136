//! From captures to one result: pure functions.
//!
//! * [`assertion`]: `--assert`, a sentence about one figure of the result.
//! * [`attribution`]: the part of the result that is about tasks.
//! * [`budget`]: where the threads' time goes in one case and in another.
//! * [`compare`]: two captures side by side.
//! * [`explain`]: why one case is slower than another.
//! * [`percentile`]: figures out of log-linear histograms.
//! * [`profile`]: what samples of the time on the CPU were in.
//! * [`result`]: the result itself, [`result::Report`]; its JSON form is the contract.
//! * [`statistics`]: whether two cases differ, by how much, and what takes it away.
//! * [`summarize`]: makes it out of one or several runs.
//! * [`suite`]: the article's table, out of the results of its cases.
//! * `unseen`: what was not seen to begin or to end.

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
