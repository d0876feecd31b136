//! What a built-in workload is started as: this executable again or, in another language, one that is built for it.

use std::os::fd::RawFd;
use std::path::PathBuf;

use crate::error::{Error, Result};
use crate::target::toolchain::{self, Compiler, Source};
use crate::target::user::Invoker;
use crate::workload::pin::Pinning;
use crate::workload::{Language, PROCESS_IN_C, Spec};

/// An executable, and the arguments that make it the workload.
pub(super) struct Program {
    /// The executable.
    pub(super) path: PathBuf,
    /// Its arguments up to the descriptors.
    arguments: Vec<String>,
    /// What announces the descriptors, each one word or none.
    announce: [Option<&'static str>; 2],
}

impl Program {
    /// Finds the executable, or builds it.
    pub(super) fn of(spec: &Spec, user: Option<&Invoker>) -> Result<Self> {
        match spec.language {
            Language::Rust => {
                let spec = serde_json::to_string(spec).map_err(|error| Error::Workload(error.to_string()))?;
                Ok(Self {
                    path: std::env::current_exe().map_err(Error::system("finding this executable"))?,
                    arguments: ["ctxtrace", "workload", "--spec", &spec].map(str::to_owned).to_vec(),
                    announce: [Some("--report-fd"), Some("--progress-fd")],
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
                })
            }
        }
    }

    /// All its arguments, the first one being its own name, once it is known where it reports to.
    pub(super) fn arguments(&self, report: RawFd, progress: RawFd) -> Vec<String> {
        let mut arguments = self.arguments.clone();
        for (word, fd) in self.announce.iter().zip([report, progress]) {
            arguments.extend(word.map(str::to_owned));
            arguments.push(fd.to_string());
        }
        arguments
    }
}
