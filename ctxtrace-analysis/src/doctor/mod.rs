//! What a machine or a program lacks for tracing. Turns facts into lines of text; it reads nothing from the system itself.
//!
//! Each line says that something is available or that it is missing. If a command or setting supplies what is missing, the line
//! has that, too. There are three kinds of lines: those that must be ok for tracing to work at all, those without which one part
//! is left out, and those that are only for information.

mod machine;
mod program;

use schemars::JsonSchema;
use serde::Serialize;

pub use machine::machine;
pub use program::{ExaminedProgram, program};

/// Name and version of the format of the JSON.
pub const SCHEMA: &str = "ctxtrace.doctor/1";

/// The verdict on one line.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum Standing {
    /// The requirement is met.
    Ok,
    /// The requirement is not met, and one part of the recording is left out because of that.
    Less,
    /// The requirement is not met, and without it nothing can be traced, or no task can be found.
    Missing,
    /// Whether the requirement is met cannot be determined, for example because this user lacks the rights to test it.
    Unknown,
}

/// One line: what was found about one requirement.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, JsonSchema)]
pub struct CheckLine {
    /// What the line is about, for example `kernel`.
    pub about: &'static str,
    /// The verdict.
    pub standing: Standing,
    /// What was found, as a sentence.
    pub found: String,
    /// The command or setting that supplies what is missing. Null if nothing is missing or no command helps.
    pub fix: Option<String>,
}

impl CheckLine {
    fn new(about: &'static str, standing: Standing, found: impl Into<String>) -> Self {
        Self {
            about,
            standing,
            found: found.into(),
            fix: None,
        }
    }

    fn ok(about: &'static str, found: impl Into<String>) -> Self {
        Self::new(about, Standing::Ok, found)
    }

    fn fixed_by(mut self, fix: impl Into<String>) -> Self {
        self.fix = Some(fix.into());
        self
    }
}

/// The full result of `ctxtrace doctor`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, JsonSchema)]
pub struct Diagnosis {
    /// Name and version of the format: `ctxtrace.doctor/1`.
    pub schema: &'static str,
    /// Whether tracing works on this machine for this user.
    pub tracing_works: bool,
    /// The lines about the machine.
    pub machine: Vec<CheckLine>,
    /// The program named on the command line. Null if none was named.
    pub program: Option<ExaminedProgram>,
}

impl Diagnosis {
    /// Makes the result from the lines about the machine and the program.
    #[must_use]
    pub fn new(machine: Vec<CheckLine>, program: Option<ExaminedProgram>) -> Self {
        let prevents_tracing = |line: &CheckLine| line.standing == Standing::Missing;
        Self {
            schema: SCHEMA,
            tracing_works: !machine.iter().any(prevents_tracing),
            machine,
            program,
        }
    }
}
