//! `ctxtrace doctor`: reports what this machine allows, and how the tasks of a program can be found.

use std::path::Path;

use super::outputs;

use crate::capture::machine::this_machine;
use crate::error::{Result, status};
use crate::files::output::{Destination, Output, OutputAccess};
use crate::files::place::DeviceInode;
use crate::reader::{FileReader, open_regular_file};
use crate::tracee::user::invoker;
use ctxtrace_analysis::doctor::{self, Diagnosis};
use ctxtrace_format::executable::{Found, Look};
use ctxtrace_report::doctor::render;
use ctxtrace_report::json;

/// Inspects the machine and the program, writes the outputs, and returns the status: 0 if tracing works for this user.
///
/// # Errors
///
/// If the machine cannot be inspected, or an output cannot be written.
pub fn run(program: Option<&Path>, json: Option<&Destination>) -> Result<u8> {
    let access = OutputAccess::new(invoker()?.as_ref()).reading(program.and_then(DeviceInode::of_path));
    let output = json.map(|destination| Output::open(destination, &access)).transpose()?;
    let program = program.map(|path| {
        let (look, found) = read(path);
        doctor::program(path, &look, &found)
    });
    let diagnosis = Diagnosis::new(doctor::machine(&this_machine()?), program);
    if let Some(output) = output {
        output.commit(&json::render(&diagnosis)?)?;
    }
    outputs::print(json == Some(&Destination::Stdout), |style| render(&diagnosis, style))?;
    Ok(if diagnosis.tracing_works { 0 } else { status::FAILURE })
}

/// The kind of a program file, and how its tasks are found.
fn read(path: &Path) -> (Look, Found) {
    let file = match open_regular_file(path) {
        Ok(file) => file,
        Err(error) => {
            return (
                Look::Unreadable(error.to_string()),
                Found::unreadable(error.to_string()),
            );
        }
    };
    FileReader::new().look(&file).unwrap_or_else(|failure| {
        let shown = path.file_name().unwrap_or(path.as_os_str()).to_string_lossy();
        let why = failure.in_words(&shown);
        (Look::Unreadable(why.clone()), Found::unreadable(why))
    })
}
