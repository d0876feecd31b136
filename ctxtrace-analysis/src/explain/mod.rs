//! Explains why one case is slower than another: turns runs of two cases into an answer that was tested, or into the statement
//! that there is none. Pure functions; `run::explain` makes the runs.
//!
//! * [`intervention`]: what can be changed in a case.
//! * [`result`]: the answer. Its JSON form is `ctxtrace.explain/1`.
//! * [`answer`]: makes the answer from the runs.
//! * [`verdict`]: which claims the measurements support, as sentences.

pub mod answer;
pub mod intervention;
pub mod result;
pub mod verdict;
