//! The other end: this executable as the workload, and the one message it sends home.

use std::io::Write;
use std::os::fd::{BorrowedFd, FromRawFd, OwnedFd, RawFd};

use nix::sys::prctl;
use serde::{Deserialize, Serialize};

use crate::error::{Error, Result, status};
use crate::terminal::data_output;
use crate::workload::progress::Progress;
use crate::workload::{self, Outcome, Spec};

/// How a workload ended, in its own words.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Message {
    /// Well.
    Done(Outcome),
    /// With an error.
    Failed(String),
}

/// Runs the workload that `spec` describes and reports how it ended, to a descriptor or to standard output.
///
/// # Errors
///
/// If the command line is not one that `run` makes.
pub fn be_a_workload(spec: &str, report_fd: Option<RawFd>, progress_fd: Option<RawFd>) -> Result<u8> {
    let spec: Spec = serde_json::from_str(spec).map_err(|error| Error::Usage(format!("--spec: {error}")))?;
    // Threads inherit it, so that what is not named otherwise is named after what it does. A name is 15 bytes at most.
    let name = std::ffi::CString::new(spec.mode.name()).unwrap_or_default();
    prctl::set_name(&name).map_err(Error::errno("prctl"))?;
    let progress = match progress_fd {
        // SAFETY: the tracer has opened this descriptor for us and told us its number; it stays open for good.
        Some(fd) => Progress::map(unsafe { BorrowedFd::borrow_raw(fd) })?,
        None => Progress::create()?.0,
    };
    let message = match workload::run(&spec, &progress) {
        Ok(outcome) => Message::Done(outcome),
        Err(error) => Message::Failed(error.to_string()),
    };
    let line = serde_json::to_string(&message).map_err(|error| Error::Workload(error.to_string()))? + "\n";
    let sent = match report_fd {
        // SAFETY: as above; nobody else in this process uses the descriptor.
        Some(fd) => std::fs::File::from(unsafe { OwnedFd::from_raw_fd(fd) }).write_all(line.as_bytes()),
        None => data_output().write_all(line.as_bytes()),
    };
    sent.map_err(Error::system("reporting the outcome"))?;
    Ok(match message {
        Message::Done(_) => 0,
        Message::Failed(_) => status::FAILURE,
    })
}
