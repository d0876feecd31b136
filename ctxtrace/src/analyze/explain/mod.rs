//! Why is this case slower? From runs of two cases to an answer that was tested, or to none. Pure: the runs are made elsewhere.
//!
//! * [`intervention`]: what can be changed of a case.
//! * [`result`]: the answer; its JSON form is `ctxtrace.explain/1`.
//! * [`answer`]: makes it out of the runs.
//! * [`verdict`]: what may be claimed, in sentences.

pub mod answer;
pub mod intervention;
pub mod result;
pub mod verdict;
