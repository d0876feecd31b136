//! How a built-in workload is started: by this executable itself, by a second executable with another allocator, or, for another
//! language, by a program that is compiled for it.

use std::os::fd::RawFd;
use std::path::{Path, PathBuf};

use crate::error::{Error, Result};
use crate::tracee::environment::Environment;
use crate::tracee::toolchain::{self, Compiler, Source};
use crate::tracee::user::Invoker;
use crate::workload::pin::Pinning;
use crate::workload::{PING_PONG_IN_GO, PROCESS_IN_C};
use ctxtrace_format::workload::{Allocator, Language, Pin, Protocol, Spec};

/// The executable with the same workloads and jemalloc.
const WITH_JEMALLOC: &str = "ctxtrace-workload-jemalloc";

/// The path of an executable with this name in the folder of another one.
fn beside(executable: &Path, name: &str) -> Result<PathBuf> {
    let path = executable.with_file_name(name);
    if path.is_file() {
        return Ok(path);
    }
    Err(Error::Workload(format!(
        "--allocator jemalloc needs a second executable, and {} does not exist: `cargo install` and `cargo build` put it next to \
         ctxtrace, unless the feature `jemalloc` is disabled",
        path.display()
    )))
}

/// An executable, and the arguments that make it run a workload.
pub(super) struct WorkloadProgram {
    /// Path of the executable.
    pub(super) path: PathBuf,
    /// The arguments before the descriptors.
    arguments: Vec<String>,
    /// The option before each descriptor; `None` if the descriptor has no option.
    announce: [Option<&'static str>; 2],
    /// An environment variable to set.
    variable: Option<(&'static str, String)>,
}

impl WorkloadProgram {
    /// Finds the executable, or compiles it.
    pub(super) fn find_or_build(spec: &Spec, user: Option<&Invoker>) -> Result<Self> {
        match spec.language {
            Language::Rust => {
                let allocator = spec.allocator;
                let spec = serde_json::to_string(spec).map_err(|error| Error::Workload(error.to_string()))?;
                let this = std::env::current_exe().map_err(Error::system("finding this executable"))?;
                let path = match allocator {
                    Allocator::System => this,
                    Allocator::Jemalloc => beside(&this, WITH_JEMALLOC)?,
                };
                Ok(Self {
                    path,
                    arguments: ["ctxtrace", "workload", "--spec", &spec].map(str::to_owned).to_vec(),
                    announce: [Some("--report-fd"), Some("--progress-fd")],
                    variable: None,
                })
            }
            Language::C => {
                let source = Source {
                    name: spec.mode.name(),
                    compiler: Compiler::C,
                    text: PROCESS_IN_C,
                };
                let pinning = Pinning::new(spec.pin, 2)?;
                let cpu = |player| pinning.cpu(player).map_or("-1".to_owned(), |cpu| cpu.to_string());
                Ok(Self {
                    path: toolchain::build(&source, user)?,
                    arguments: vec![source.name.to_owned(), spec.iterations.to_string(), cpu(0), cpu(1)],
                    announce: [None, None],
                    variable: None,
                })
            }
            Language::Go => {
                let source = Source {
                    name: "go-ping-pong",
                    compiler: Compiler::Go,
                    text: PING_PONG_IN_GO,
                };
                let protocol = spec.protocol().unwrap_or(Protocol::LockStep);
                Ok(Self {
                    path: toolchain::build(&source, user)?,
                    arguments: vec![
                        source.name.to_owned(),
                        format!("-iterations={}", spec.iterations),
                        format!("-buffer={}", spec.buffer.unwrap_or(0)),
                        format!("-same-cpu={}", spec.pin == Pin::SameCpu),
                        format!("-pipelined={}", protocol == Protocol::Pipelined),
                        format!("-count-in-flight={}", spec.count_in_flight),
                    ],
                    announce: [Some("-report-fd"), Some("-progress-fd")],
                    variable: spec.workers.map(|workers| ("GOMAXPROCS", workers.to_string())),
                })
            }
        }
    }

    /// The environment in which the program runs.
    pub(super) fn environment(&self, user: Option<&Invoker>) -> Environment {
        let environment = Environment::for_user(user);
        match &self.variable {
            Some((name, value)) => environment.with(*name, value),
            None => environment,
        }
    }

    /// All arguments, beginning with the program's own name, with the descriptors for the report and the progress.
    pub(super) fn arguments(&self, report: RawFd, progress: RawFd) -> Vec<String> {
        let mut arguments = self.arguments.clone();
        for (word, fd) in self.announce.iter().zip([report, progress]) {
            arguments.extend(word.map(str::to_owned));
            arguments.push(fd.to_string());
        }
        arguments
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_neighbour_that_is_missing_is_asked_for() {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let this = folder.path().join("ctxtrace");
        let error = beside(&this, WITH_JEMALLOC)
            .expect_err("the executable is missing")
            .to_string();
        assert!(
            error.contains("cargo install") && error.contains(WITH_JEMALLOC),
            "{error}"
        );
        let there = folder.path().join(WITH_JEMALLOC);
        std::fs::write(&there, "").expect("the file is written");
        assert_eq!(beside(&this, WITH_JEMALLOC).expect("the executable is found"), there);
    }
}
