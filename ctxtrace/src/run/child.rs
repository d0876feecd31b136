//! The workload side: this executable runs as the workload, and reports once to the tracer.

use std::io::Write;
use std::os::fd::{BorrowedFd, FromRawFd, OwnedFd, RawFd};

use nix::sys::prctl;
use serde::{Deserialize, Serialize};

use crate::error::{Error, Result, status};
use crate::terminal::data_output;
use crate::workload;
use crate::workload::progress::Progress;
use ctxtrace_format::workload::{Outcome, Spec};

/// How a workload ended, as it reports itself.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum WorkloadMessage {
    /// The workload completed.
    Done(Outcome),
    /// The workload failed with this error.
    Failed(String),
}

/// Runs the workload that `spec` describes, and reports how it ended on the descriptor, or on standard output if there is none.
///
/// # Errors
///
/// If the command line is not valid, or if the report cannot be written.
pub fn be_a_workload(spec: &str, report_fd: Option<RawFd>, progress_fd: Option<RawFd>) -> Result<u8> {
    let spec: Spec = serde_json::from_str(spec).map_err(|error| Error::Usage(format!("--spec: {error}")))?;
    // Threads inherit this name, so threads without a name of their own have the workload's name. The kernel keeps 15 bytes.
    let name = std::ffi::CString::new(spec.mode.name()).unwrap_or_default();
    prctl::set_name(&name).map_err(Error::errno("prctl"))?;
    let progress = match progress_fd {
        // SAFETY: the tracer has opened this descriptor for this process and passed its number; it stays open until the process
        // ends.
        Some(fd) => Progress::map(unsafe { BorrowedFd::borrow_raw(fd) })?,
        None => Progress::create()?.0,
    };
    let message = match workload::run(&spec, &progress) {
        Ok(outcome) => WorkloadMessage::Done(outcome),
        Err(error) => WorkloadMessage::Failed(error.to_string()),
    };
    let line = serde_json::to_string(&message).map_err(|error| Error::Workload(error.to_string()))? + "\n";
    let sent = match report_fd {
        // SAFETY: as above; nothing else in this process uses the descriptor.
        Some(fd) => std::fs::File::from(unsafe { OwnedFd::from_raw_fd(fd) }).write_all(line.as_bytes()),
        None => data_output().write_all(line.as_bytes()),
    };
    sent.map_err(Error::system("reporting the outcome"))?;
    Ok(match message {
        WorkloadMessage::Done(_) => 0,
        WorkloadMessage::Failed(_) => status::FAILURE,
    })
}
