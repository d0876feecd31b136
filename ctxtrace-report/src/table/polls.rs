//! The section about polls: how long they take, and how long tasks wait for them after a wake.

use super::Style;
use super::layout::{Columns, wrapped};
use super::switches::TASKS_SHOWN;
use crate::printable;
use ctxtrace_analysis::result::{Leg, Path, Polls, Spread};
use ctxtrace_analysis::units::{duration, significant, thousands};
use ctxtrace_format::polls::PollClock;

/// Renders the delays of all tasks by their parts, then a table of the tasks, then a line about the stamps.
pub(super) fn polls(polls: &Polls, style: Style) -> String {
    let clock = match polls.clock {
        PollClock::Tsc => "the time-stamp counter",
        PollClock::Monotonic => "CLOCK_MONOTONIC",
    };
    let counted = match polls.agrees {
        Some(true) => "as many polls as the probe counted".to_owned(),
        Some(false) => "NOT AS MANY POLLS AS THE PROBE COUNTED".to_owned(),
        None if polls.dropped > 0 => format!("{} older ones were dropped", thousands(polls.dropped)),
        None => "incomplete, see \"Lost\" below".to_owned(),
    };
    let read = wrapped(
        &format!(
            "{} stamps by {clock}, {} ns each: {counted}",
            thousands(polls.stamps),
            significant(polls.reading_ns),
        ),
        2,
    )
    .join("\n");
    let read = if polls.agrees == Some(false) {
        style.red(&read)
    } else {
        read
    };
    format!("{}\n\n{}\n{read}", delays(polls), tasks(polls))
}

fn delays(polls: &Polls) -> String {
    let mut table = Columns::new(&["Polls", "count", "p50", "p90", "p99", "max"]);
    let mut row = |name: &str, spread: &Spread| {
        table.row([
            name.to_owned(),
            thousands(spread.count),
            duration(spread.p50_ns),
            duration(spread.p90_ns),
            duration(spread.p99_ns),
            duration(spread.max_ns),
        ]);
    };
    for (name, spread) in [("a poll", &polls.poll), ("wake to poll", &polls.wake_to_poll)] {
        if let Some(spread) = spread {
            row(name, spread);
        }
    }
    for path in &polls.paths {
        row(&format!("  {}", path_in_words(path.path)), &path.wake_to_poll);
        let legs = path.legs.iter().filter_map(|leg| Some((leg_in_words(leg.leg)?, leg)));
        for (name, leg) in legs.filter(|_| matches!(path.path, Path::Kernel | Path::AlreadyComing)) {
            row(&format!("    {name}"), &leg.spread);
        }
    }
    table.render()
}

fn tasks(polls: &Polls) -> String {
    let mut table = Columns::new(&["Wake to poll", "polls", "poll p50", "p99", "wait p50", "p99"]);
    let time = |spread: &Option<Spread>, of: fn(&Spread) -> u64| {
        spread
            .as_ref()
            .map_or_else(|| "–".to_owned(), |spread| duration(of(spread)))
    };
    for task in polls.tasks.iter().take(TASKS_SHOWN) {
        table.row([
            printable(&task.name),
            thousands(task.polls),
            time(&task.poll, |spread| spread.p50_ns),
            time(&task.poll, |spread| spread.p99_ns),
            time(&task.wake_to_poll, |spread| spread.p50_ns),
            time(&task.wake_to_poll, |spread| spread.p99_ns),
        ]);
    }
    table.render()
}

fn path_in_words(path: Path) -> &'static str {
    match path {
        Path::UserSpace => "in user space",
        Path::Kernel => "through the kernel",
        Path::AlreadyComing => "already runnable",
        Path::Unknown => "on unknown threads",
    }
}

/// The name of a part of the delay; `None` for a leg that is not a part of it.
fn leg_in_words(leg: Leg) -> Option<&'static str> {
    match leg {
        Leg::WakeToWaking => Some("to its wakeup"),
        Leg::WakingToSwitchIn => Some("to its switch-in"),
        Leg::WakeToSwitchIn => Some("to its switch-in"),
        Leg::SwitchInToPoll => Some("to the poll"),
        Leg::WakersPoll | Leg::WakeToPoll | Leg::Poll => None,
    }
}
