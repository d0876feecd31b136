//! Why is this case slower? From runs of two cases to an answer that was tested, or to none. Pure: the runs are made elsewhere.
//!
//! * [`account`]: where the threads' time goes, for each message.
//! * [`intervention`]: what can be changed of a case.
//! * [`result`]: the answer; its JSON form is `ctxtrace.explain/1`.
//! * [`mod@explain`]: makes it out of the runs.
//! * [`verdict`]: what may be claimed, in sentences.

pub mod account;
#[expect(clippy::module_inception, reason = "it is what the folder is about")]
pub mod explain;
pub mod intervention;
pub mod result;
pub mod verdict;
