//! `ctxtrace doctor`: what this machine allows, and what can be told of a program.

use std::path::Path;

use super::outputs;

use crate::analyze::doctor::{self, Diagnosis};
use crate::error::{Result, status};
use crate::report::doctor::render;
use crate::report::json;
use crate::report::output::{Destination, Output, OutputAccess};
use crate::report::place::FileIdentity;
use crate::target::locate::{examine, look};
use crate::target::user::invoker;
use crate::trace::machine::Machine;

/// Looks, says what there is, and returns the status: 0 if tracing works for who asks.
///
/// # Errors
///
/// If the machine cannot be looked at, or an output cannot be written.
pub fn run(program: Option<&Path>, json: Option<&Destination>) -> Result<u8> {
    let access = OutputAccess::new(invoker()?.as_ref()).reading(program.and_then(FileIdentity::of_path));
    let output = json.map(|destination| Output::open(destination, &access)).transpose()?;
    let program = program.map(|path| doctor::program(path, &look(path), &examine(path)));
    let diagnosis = Diagnosis::new(doctor::machine(&Machine::this()?), program);
    if let Some(output) = output {
        output.commit(&json::render(&diagnosis)?)?;
    }
    outputs::print(json == Some(&Destination::Stdout), |style| render(&diagnosis, style))?;
    Ok(if diagnosis.tracing_works { 0 } else { status::FAILURE })
}
