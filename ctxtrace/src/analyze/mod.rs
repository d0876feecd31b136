//! From captures to one result: pure functions.
//!
//! * [`assertion`]: `--assert`, a sentence about one figure of the result.
//! * [`attribution`]: the part of the result that is about tasks.
//! * [`percentile`]: figures out of log-linear histograms.
//! * [`result`]: the result itself, [`result::Report`]; its JSON form is the contract.
//! * [`summarize`]: makes it out of one or several runs.
//! * [`suite`]: the article's table, out of the results of its cases.

pub mod assertion;
pub mod attribution;
pub mod percentile;
pub mod result;
pub mod suite;
pub mod summarize;
