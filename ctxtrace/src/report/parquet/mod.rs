//! The tables of a capture as Parquet files, for `DuckDB`, Polars, Spark and whatever else reads them: `docs/FLEET.md`.
//!
//! ```text
//!   DIR/host/HOST-RUN.parquet       one row: the run               DIR/wakeups/…   who woke whom, added up
//!   DIR/programs/…                  the programs that were run     DIR/threads/…
//!   DIR/ledger/…   DIR/tasks/…      DIR/latency/…   DIR/latency_buckets/…
//!   --level timeline besides:       DIR/switches/…  DIR/wakings/…  one row an event
//!   --polls besides:                DIR/polls/…                    one row a poll
//! ```
//!
//! Every row says of which host and run it is, and no two runs have a file in common, so the folders of any number of machines can
//! be copied into one. Each run is a run of its own here, also where the report of a capture (`--repeat`) shows the median one.
//!
//! * `rows`: the tables; `file`: one of them as a file; [`Folder`]: all of them, at their places together or not at all.
//! * `sums`: the rows of what was added up. They are taken from the report of the run, so they are what its JSON says.
//! * `timeline`: the rows of events, as they come: in memory are those of one row group.

mod file;
mod folder;
mod rows;
mod sums;
mod timeline;

use std::io;

pub use folder::Folder;

use crate::analyze::summarize::summarize;
use crate::error::Result;
use crate::trace::Level;
use crate::trace::events::EventSource;
use crate::trace::run::{Info, Run};

/// Of which run the rows of a file are.
struct Identity {
    host: String,
    run: String,
    /// Of all files of the run.
    file_name: String,
}

impl Identity {
    fn of(info: &Info, run: &Run, index: usize) -> Self {
        const LONGEST_HOST: usize = 64;
        let host = info.host.name.clone();
        let run = info.run_id(run, index);
        let plain = |c: char| {
            if c.is_ascii_alphanumeric() || c == '-' || c == '.' {
                c
            } else {
                '_'
            }
        };
        let in_file_name: String = host.chars().take(LONGEST_HOST).map(plain).collect();
        Self {
            file_name: format!("{}-{run}", in_file_name.trim_start_matches('.')),
            host,
            run,
        }
    }
}

/// Writes every table of every run, and gives the files their names. `events` has those of a timeline. `damage` says what is wrong
/// with the capture, if something is.
///
/// # Errors
///
/// If they cannot be written, or if the events cannot be read.
pub fn write(
    folder: &mut Folder,
    info: &Info,
    runs: &[Run],
    damage: Option<&str>,
    events: &mut dyn EventSource,
) -> Result<()> {
    let written = write_tables(folder, info, runs, damage, events);
    written.map_err(|source| folder.error(source))?;
    folder.commit()
}

fn write_tables(
    folder: &mut Folder,
    info: &Info,
    runs: &[Run],
    damage: Option<&str>,
    events: &mut dyn EventSource,
) -> io::Result<()> {
    if info.level == Level::Timeline {
        timeline::write(folder, info, runs, events)?;
    }
    let median = summarize(info, runs)
        .workload
        .and_then(|workload| workload.runs.iter().position(|run| run.median));
    for (index, run) in runs.iter().enumerate() {
        let place = sums::Place {
            index,
            runs: runs.len(),
            median: index == median.unwrap_or(0),
            damage,
        };
        sums::write(folder, info, run, &place)?;
    }
    Ok(())
}

/// As Parquet has it: see [`rows`].
fn signed(value: u64) -> i64 {
    i64::try_from(value).unwrap_or(i64::MAX)
}

/// A thread or process id, or a number of a CPU.
fn small(value: impl TryInto<i32>) -> i32 {
    value.try_into().unwrap_or(i32::MAX)
}

#[cfg(test)]
mod tests;
