//! `go`: the article's Go program, two goroutines in lockstep over two channels.
//!
//! ```text
//!   main ──(channel, buffer N)──▶ child
//!        ◀─(channel, buffer N)──
//! ```
//!
//! It cannot be this executable started again: it is a program of its own, `ping_pong.go`, built by the machine's Go once
//! and kept in the user's cache folder (`build`). Its command line is made here; it answers as the other workloads do.

mod build;

use std::ffi::OsString;
use std::os::fd::RawFd;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::Command;

pub use build::build;

use super::Spec;
use super::pin::Pin;
use crate::error::Error;

/// The variable that tells Go how many threads may run goroutines at a time.
pub const MAX_PROCS: &str = "GOMAXPROCS";

/// How the Go program is told what to do: its arguments, the first one being its own name.
#[must_use]
pub fn arguments(spec: &Spec, report_fd: Option<RawFd>, progress_fd: Option<RawFd>) -> Vec<OsString> {
    let mut arguments = vec![
        build::NAME.to_owned(),
        format!("-iterations={}", spec.iterations),
        format!("-buffer={}", spec.buffer.unwrap_or(0)),
        format!("-same-cpu={}", spec.pin == Pin::SameCpu),
    ];
    arguments.extend(report_fd.map(|fd| format!("-report-fd={fd}")));
    arguments.extend(progress_fd.map(|fd| format!("-progress-fd={fd}")));
    arguments.into_iter().map(OsString::from).collect()
}

/// The value of [`MAX_PROCS`].
#[must_use]
pub fn max_procs(spec: &Spec) -> String {
    spec.workers.unwrap_or(1).to_string()
}

/// Makes this process the Go program. Returns only if that is not possible.
pub fn become_program(program: &Path, spec: &Spec, report_fd: Option<RawFd>, progress_fd: Option<RawFd>) -> Error {
    let arguments = arguments(spec, report_fd, progress_fd);
    let (name, rest) = arguments.split_first().expect("the name comes first");
    let mut command = Command::new(program);
    command.arg0(name).args(rest).env(MAX_PROCS, max_procs(spec));
    Error::Launch {
        program: program.to_owned(),
        user: None,
        source: command.exec(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::workload::Mode;

    #[test]
    fn the_program_is_told_everything() {
        let mut spec = Spec {
            mode: Mode::Go,
            iterations: 7,
            pin: Pin::None,
            buffer: Some(4_096),
            workers: Some(3),
            root: None,
        };
        assert_eq!(
            arguments(&spec, Some(5), None),
            [
                "go-ping-pong",
                "-iterations=7",
                "-buffer=4096",
                "-same-cpu=false",
                "-report-fd=5"
            ]
        );
        assert_eq!(max_procs(&spec), "3");
        spec.pin = Pin::SameCpu;
        let arguments = arguments(&spec, None, Some(9));
        assert_eq!(arguments[3..], ["-same-cpu=true", "-progress-fd=9"]);
    }
}
