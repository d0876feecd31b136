//! `ctxtrace report`: every output again, from a capture.

use std::fs::File;
use std::io::BufReader;

use super::outputs::{self, Outputs};
use super::verdict;
use crate::analyze::summarize::summarize;
use crate::cli::settings::ReportSettings;
use crate::error::{Error, Result, status};
use crate::target::user::invoker;
use crate::trace::Level;
use crate::trace::file;

/// Reads a capture and writes every output. Of a file that is damaged the readable part is reported, and the status says so.
///
/// # Errors
///
/// If there is nothing in the file that can be reported, or if an output cannot be written.
pub fn report(settings: &ReportSettings) -> Result<u8> {
    let path = &settings.file;
    let unreadable = |reason: String| Error::Capture {
        path: path.clone(),
        reason,
    };
    let opened = File::open(path).map_err(|error| unreadable(error.to_string()))?;
    if opened.metadata().is_ok_and(|file| file.is_dir()) {
        return Err(unreadable("it is a folder".to_owned()));
    }
    let saved = file::read(BufReader::new(opened), |_| {}).map_err(unreadable)?;
    if settings.outputs.wants_stacks() && saved.info.level != Level::Stacks {
        return Err(unreadable(format!(
            "it was recorded with --level {}, which takes no stacks for a flamegraph",
            saved.info.level.name()
        )));
    }
    if settings.outputs.wakeups_flamegraph.is_some()
        && saved.runs.iter().all(|run| run.aggregates.waker_sums.is_empty())
    {
        return Err(unreadable(
            "it has no stacks of wakers: they are taken only where --wakeups-flamegraph is given to `run` or `record`"
                .to_owned(),
        ));
    }
    let outputs = Outputs::open(&settings.outputs, invoker().as_ref())?;
    let mut report = summarize(&saved.info, &saved.runs);
    if let Some(damage) = &saved.damage {
        report.complete = false;
        report.cut_short = Some(format!("the file is damaged: {damage}"));
    }
    outputs.write(&report, &saved.runs)?;
    outputs::print_table(&settings.outputs, &report)?;
    let verdict = verdict(&settings.outputs.assertions, &report)?;
    Ok(if saved.damage.is_some() {
        status::FAILURE
    } else {
        verdict
    })
}
