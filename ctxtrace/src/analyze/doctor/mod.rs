//! What a machine, or a program, lacks for tracing: facts in, lines out.
//!
//! Each line says that something is there or what is missing, and a line that finds something missing has the command that
//! gives it. A line is one of three kinds: without some nothing can be traced, without others one part is left out, and some
//! are only for the record.

mod machine;
mod program;

use schemars::JsonSchema;
use serde::Serialize;

pub use machine::machine;
pub use program::{Program, program};

/// What the tests of renderers draw.
#[cfg(test)]
pub(crate) mod tests {
    pub(crate) use super::machine::tests as machine;
    pub(crate) use super::program::tests as program;
}

/// The version of the JSON.
pub const SCHEMA: &str = "ctxtrace.doctor/1";

/// How it stands with one thing.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum Standing {
    /// It is there.
    Ok,
    /// It is not there, and one part is left out without it.
    Less,
    /// It is not there, and without it nothing can be traced; or no task can be told.
    Missing,
    /// It cannot be told with the rights that this user has.
    Unknown,
}

/// One line.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, JsonSchema)]
pub struct Line {
    /// What it is about.
    pub about: &'static str,
    /// How it stands.
    pub standing: Standing,
    /// What was found, in a sentence.
    pub found: String,
    /// The command, or the setting, that gives what is missing; null where nothing is, or nothing helps.
    pub fix: Option<String>,
}

impl Line {
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

/// Everything that `ctxtrace doctor` has to say.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, JsonSchema)]
pub struct Diagnosis {
    /// [`SCHEMA`].
    pub schema: &'static str,
    /// Whether tracing works here and now, for this user.
    pub tracing_works: bool,
    /// The machine.
    pub machine: Vec<Line>,
    /// The program that was asked for; null if none was.
    pub program: Option<Program>,
}

impl Diagnosis {
    /// Of these lines.
    #[must_use]
    pub fn new(machine: Vec<Line>, program: Option<Program>) -> Self {
        let in_the_way = |line: &Line| line.standing == Standing::Missing;
        Self {
            schema: SCHEMA,
            tracing_works: !machine.iter().any(in_the_way),
            machine,
            program,
        }
    }
}
