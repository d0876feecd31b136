//! `cargo xtask bench overhead`: the cost of tracing for a kernel switch ([`crate::switches`]) and for a message
//! ([`crate::messages`]).

use std::path::Path;

use anyhow::{Result, bail};
use serde_json::{Map, Value};

use crate::messages::Messages;
use crate::process;
use crate::switches::{Placing, Switches};

/// The parts of the benchmark.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum ReportedPart {
    /// A switch of the ping-pong, pinned to one CPU
    Pinned,
    /// A switch of the ping-pong, not pinned
    Unpinned,
    /// A message of each workload that has tasks
    Messages,
}

/// All parts, in the order in which they are measured.
const PARTS: [ReportedPart; 3] = [ReportedPart::Pinned, ReportedPart::Unpinned, ReportedPart::Messages];

/// Measures and prints one part after the other. `only` selects parts, all if it is empty. `iterations` is the number of round
/// trips of a run.
pub(crate) fn main(only: &[ReportedPart], rounds: usize, iterations: u64, json: Option<&Path>) -> Result<()> {
    if !process::is_root() {
        bail!("the tools trace the whole system, which needs root: sudo cargo xtask bench overhead");
    }
    let mut figures = Map::new();
    for part in PARTS.into_iter().filter(|part| only.is_empty() || only.contains(part)) {
        let (name, of_part) = match part {
            ReportedPart::Pinned => ("pinned", switches(Placing::Pinned, rounds, iterations)?),
            ReportedPart::Unpinned => ("unpinned", switches(Placing::Free, rounds, iterations)?),
            ReportedPart::Messages => {
                let messages = Messages::measure(rounds)?;
                messages.print();
                ("messages", messages.to_json())
            }
        };
        figures.insert(name.to_owned(), of_part);
        // Write the file after each part, so that no figures are lost if the next part fails.
        crate::write(json, &Value::Object(figures.clone()))?;
    }
    Ok(())
}

fn switches(placing: Placing, rounds: usize, iterations: u64) -> Result<Value> {
    let switches = Switches::measure(placing, rounds, iterations)?;
    switches.print();
    Ok(switches.to_json())
}
