//! Writes the tables of a capture as Parquet files, for `DuckDB`, Polars, Spark and other readers (see `docs/FLEET.md`).
//!
//! ```text
//!   DIR/host/HOST-RUN.parquet       one row: the run               DIR/wakeups/…   wakeups by waker and woken thread
//!   DIR/programs/…                  the programs that were run     DIR/threads/…
//!   DIR/ledger/…   DIR/tasks/…      DIR/latency/…   DIR/latency_buckets/…
//!   with --level timeline also:     DIR/switches/…  DIR/wakings/…  one row per event
//!   with --polls also:              DIR/polls/…                    one row per poll
//! ```
//!
//! Every row has the host and the run that it belongs to, and every run has its own files, so the folders of any number of
//! machines can be merged into one. All runs of a capture (`--repeat`) are written, although its report shows only the median
//! one.
//!
//! * `rows`: the types of the rows. `file`: writes a table as a file. [`TableFolder`]: the folder that the files are created in.
//! * `sums`: the rows of sums and distributions. They come from the report of the run, so they equal its JSON.
//! * `timeline`: the rows of events. They are written as the events come; one row group of each table is kept in memory.

mod file;
mod rows;
mod sums;
mod timeline;

use std::io::{self, Write};

use ctxtrace_analysis::summarize::summarize;
use ctxtrace_format::Level;
use ctxtrace_format::events::EventSource;
use ctxtrace_format::run::{Info, Run};

/// Names of all tables.
pub const TABLES: [&str; 11] = [
    "host",
    "programs",
    "ledger",
    "tasks",
    "latency",
    "latency_buckets",
    "wakeups",
    "threads",
    "switches",
    "wakings",
    "polls",
];

/// The folder that the files of the tables are created in.
pub trait TableFolder {
    /// Creates a file of a table, whose name is given without the extension.
    ///
    /// # Errors
    ///
    /// If the file cannot be created.
    fn create(&mut self, table: &str, name: &str) -> io::Result<Box<dyn Write + Send>>;
}

/// The run that the rows of a file belong to.
struct Identity {
    host: String,
    run: String,
    /// The name of the run's files, without the extension. It is the same in every table.
    file_name: String,
}

impl Identity {
    fn new(info: &Info, run: &Run, index: usize) -> Self {
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

/// Writes every table of every run. `events` is the source of the timeline's events. `damage` describes the damage of the capture
/// file, if there is any.
///
/// # Errors
///
/// If the tables cannot be written, or if the events cannot be read.
pub fn write(
    folder: &mut dyn TableFolder,
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
        let place = sums::RunPosition {
            index,
            runs: runs.len(),
            median: index == median.unwrap_or(0),
            damage,
        };
        sums::write(folder, info, run, &place)?;
    }
    Ok(())
}

/// Converts a count or a time to a signed number, as the columns need it (see [`rows`]). Larger values become `i64::MAX`.
fn signed(value: u64) -> i64 {
    i64::try_from(value).unwrap_or(i64::MAX)
}

/// Converts a thread id, a process id or the number of a CPU to a column's type. Larger values become `i32::MAX`.
fn small(value: impl TryInto<i32>) -> i32 {
    value.try_into().unwrap_or(i32::MAX)
}

#[cfg(test)]
mod tests;
