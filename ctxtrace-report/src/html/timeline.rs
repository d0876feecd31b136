//! The lanes of the timeline, packed: each cell, interval and wakeup takes a few bytes, and the bytes are encoded as base64.
//!
//! Times are nanoseconds since the beginning of the timeline. A *number* below is unsigned LEB128: seven bits per byte, the
//! lowest first, and the eighth bit is set if another byte follows.

use std::collections::HashMap;

use ctxtrace_common::ledger::Class;
use ctxtrace_common::process::TaskKey;
use data_encoding::BASE64;
use serde::Serialize;

use crate::printable;
use ctxtrace_analysis::correlate::tasks;
use ctxtrace_analysis::result::Report;
use ctxtrace_analysis::units::{duration, thousands};
use ctxtrace_format::lanes::{Cell, Lane, LaneWakeup, Lanes, Moment, MomentKind, Shown, Span};
use ctxtrace_format::run::Run;
use ctxtrace_format::{Aggregates, name_of};

/// The timeline as the page's script reads it. The documentation of this module defines the encoding.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub(super) struct PageTimeline {
    /// Length of the timeline.
    length_ns: u64,
    /// Length of a cell.
    cell_ns: u64,
    /// Begin of cell 0. It is at or before the beginning of the timeline, so it is 0 or negative.
    cells_from_ns: i64,
    lanes: Vec<PackedLane>,
    /// Names of the tasks. Task numbers begin with 1; 0 means no task.
    tasks: Vec<String>,
    /// Names of the classes of the ledger, by number.
    classes: Vec<&'static str>,
    /// Begin and end of the times in which every interval and wakeup is present.
    exact: Vec<[u64; 2]>,
    /// Whether every interval and wakeup of the whole timeline is present.
    is_exact: bool,
    /// Five numbers for each wakeup: time since the previous wakeup, lane of the woken thread, lane of the waker plus one or 0,
    /// origin, task.
    wakes: String,
    moments: Vec<PackedMoment>,
    /// Sentences about what the timeline lacks and whether it agrees with the counts.
    notes: Vec<String>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
struct PackedLane {
    name: String,
    tid: u32,
    pid: u32,
    /// Number of the lane's first cell.
    first_cell: u64,
    /// Number of cells.
    cells: u64,
    /// Five bytes per cell: the share of each state in the cell, in units of 1/255.
    shares: String,
    /// One number per cell: switch-outs.
    switches: String,
    /// One number per cell: the task.
    tasks: String,
    /// Five numbers for each interval: time since the end of the previous interval, length, class times 8 plus state, CPU plus
    /// one or 0, task.
    spans: String,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
struct PackedMoment {
    text: String,
    lane: u32,
    from_ns: u64,
    to_ns: u64,
}

impl PageTimeline {
    /// Packs the lanes of a run.
    pub(super) fn pack(lanes: &Lanes, report: &Report, run: &Run) -> Self {
        let names = PageNames::new(report, run);
        let first_cell = lanes.lanes.iter().map(|lane| lane.first_cell).min().unwrap_or(0);
        let cells_from_ns = (first_cell * lanes.cell_ns).cast_signed() - lanes.start_ns.cast_signed();
        let relative = |ns: u64| ns.saturating_sub(lanes.start_ns);
        let tasks: Vec<String> = lanes.tasks.iter().map(|&key| names.of_task(key)).collect();
        let moment = |moment: &Moment| PackedMoment {
            text: in_words(moment, &lanes.lanes[moment.lane as usize], &names, &tasks),
            lane: moment.lane,
            from_ns: relative(moment.start_ns),
            to_ns: relative(moment.end_ns),
        };
        let classes = (0..Class::COUNT as u32)
            .map(|number| Class::from_number(number).map_or("", Class::in_words))
            .collect();
        Self {
            length_ns: lanes.end_ns - lanes.start_ns,
            cell_ns: lanes.cell_ns,
            cells_from_ns,
            lanes: lanes
                .lanes
                .iter()
                .map(|lane| PackedLane::pack(lane, lanes, first_cell, &names))
                .collect(),
            classes,
            exact: lanes
                .exact
                .iter()
                .map(|&(from_ns, to_ns)| [relative(from_ns), relative(to_ns)])
                .collect(),
            is_exact: lanes.is_exact,
            wakes: packed_wakes(&lanes.wakes, lanes.start_ns),
            moments: lanes.moments.iter().map(moment).collect(),
            notes: notes(lanes, report),
            tasks,
        }
    }
}

impl PackedLane {
    fn pack(lane: &Lane, lanes: &Lanes, first_cell: u64, names: &PageNames<'_>) -> Self {
        let mut shares = Vec::with_capacity(Shown::COUNT * lane.cells.len());
        let (mut switches, mut tasks) = (Vec::new(), Vec::new());
        for cell in &lane.cells {
            shares.extend(shares_of(cell, lanes.cell_ns));
            put(&mut switches, u64::from(cell.switches));
            put(&mut tasks, u64::from(cell.task));
        }
        Self {
            name: names.of_thread(lane),
            tid: lane.tid,
            pid: lane.tgid,
            first_cell: lane.first_cell - first_cell,
            cells: lane.cells.len() as u64,
            shares: BASE64.encode(&shares),
            switches: BASE64.encode(&switches),
            tasks: BASE64.encode(&tasks),
            spans: packed_spans(&lane.spans, lanes.start_ns),
        }
    }
}

/// The share of each state in a cell, in units of 1/255. A state with any time in the cell has at least 1.
fn shares_of(cell: &Cell, cell_ns: u64) -> [u8; Shown::COUNT] {
    cell.ns.map(|ns| {
        let share = (255.0 * ns as f64 / cell_ns as f64).round() as u8;
        share.max(u8::from(ns > 0))
    })
}

fn packed_spans(spans: &[Span], start_ns: u64) -> String {
    let mut bytes = Vec::new();
    let mut last_ns = start_ns;
    for span in spans {
        put(&mut bytes, span.start_ns.saturating_sub(last_ns));
        put(&mut bytes, span.end_ns - span.start_ns);
        put(&mut bytes, u64::from(span.class) << 3 | span.shown as u64);
        put(&mut bytes, span.cpu.map_or(0, |cpu| u64::from(cpu) + 1));
        put(&mut bytes, u64::from(span.task));
        last_ns = span.end_ns;
    }
    BASE64.encode(&bytes)
}

fn packed_wakes(wakes: &[LaneWakeup], start_ns: u64) -> String {
    let mut bytes = Vec::new();
    let mut last_ns = start_ns;
    for wake in wakes {
        let at_ns = wake.at_ns.max(last_ns);
        put(&mut bytes, at_ns - last_ns);
        put(&mut bytes, u64::from(wake.to));
        put(&mut bytes, wake.from.map_or(0, |from| u64::from(from) + 1));
        put(&mut bytes, u64::from(wake.origin));
        put(&mut bytes, u64::from(wake.task));
        last_ns = at_ns;
    }
    BASE64.encode(&bytes)
}

/// Appends a number as unsigned LEB128.
fn put(bytes: &mut Vec<u8>, mut number: u64) {
    while number >= 0x80 {
        bytes.push(number as u8 | 0x80);
        number >>= 7;
    }
    bytes.push(number as u8);
}

/// Looks up the names of threads and tasks.
struct PageNames<'a> {
    threads: HashMap<(u32, u64), String>,
    types: HashMap<(u64, u32), &'a str>,
    aggregates: &'a Aggregates,
}

impl<'a> PageNames<'a> {
    fn new(report: &'a Report, run: &'a Run) -> Self {
        let threads = run.aggregates.threads.iter().map(|record| &record.thread);
        let key = |thread: &ctxtrace_common::thread::ThreadSummary| (thread.tid, thread.start_boottime_ns);
        let typed = report.tasks.iter().filter_map(|task| {
            let future_type = task.future_type.as_deref()?;
            task.is_number.then_some(((task.id, task.pid), future_type))
        });
        Self {
            threads: threads.map(|thread| (key(thread), name_of(&thread.comm))).collect(),
            types: typed.collect(),
            aggregates: &run.aggregates,
        }
    }

    fn of_thread(&self, lane: &Lane) -> String {
        let name = self.threads.get(&(lane.tid, lane.start_boottime_ns));
        printable(name.map_or("?", String::as_str))
    }

    /// The name of a task. If it is only a number, the type of the task's future follows.
    fn of_task(&self, key: TaskKey) -> String {
        let name = tasks::task_name(self.aggregates, key);
        let future_type = self.types.get(&(tasks::number(key.task), key.image.tgid));
        printable(&match future_type {
            Some(future_type) if name.is_number() => format!("{name} {future_type}"),
            _ => name.to_string(),
        })
    }
}

fn in_words(moment: &Moment, lane: &Lane, names: &PageNames<'_>, tasks: &[String]) -> String {
    let (thread, took) = (format!("{} {}", names.of_thread(lane), lane.tid), duration(moment.ns()));
    let task = (moment.task as usize).checked_sub(1).and_then(|index| tasks.get(index));
    match (moment.kind, task) {
        (MomentKind::LongWait, None) => format!("{thread} waited {took} for a CPU"),
        (MomentKind::LongWait, Some(task)) => {
            format!("{thread} waited {took} for a CPU; it was switched out while it polled {task}")
        }
        (MomentKind::LongBlock, None) => format!("{thread} slept {took} in a poll"),
        (MomentKind::LongBlock, Some(task)) => format!("{thread} slept {took} while it polled {task}"),
    }
}

fn notes(lanes: &Lanes, report: &Report) -> Vec<String> {
    let mut notes = Vec::new();
    if let Some(timeline) = &report.timeline {
        notes.push(match timeline.agrees {
            Some(true) => format!(
                "Replaying the {} events gave exactly the counts and times that were added up in the kernel.",
                thousands(timeline.events)
            ),
            Some(false) => format!(
                "Replaying the {} events did NOT give the counts that were added up in the kernel: {}.",
                thousands(timeline.events),
                timeline.disagreements.join("; ")
            ),
            None => format!(
                "There are {} events, but some are missing: see what was lost. The counts are not affected.",
                thousands(timeline.events)
            ),
        });
    }
    if !lanes.is_exact {
        notes.push(format!(
            "The timeline is too long for this page to contain every interval. The whole timeline is shown in steps of {}. \
             Single intervals and wakeups are shown where the strip above the lanes is marked, which includes the longest waits. \
             A Perfetto trace (--perfetto FILE) contains all of them.",
            duration(lanes.cell_ns)
        ));
    }
    if lanes.left_out > 0 {
        notes.push(format!(
            "The {} busiest threads are shown; {} more are in the table of threads.",
            thousands(lanes.lanes.len() as u64),
            thousands(lanes.left_out)
        ));
    }
    notes
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_take_the_bytes_that_they_need() {
        let mut bytes = Vec::new();
        for number in [0, 127, 128, 300] {
            put(&mut bytes, number);
        }
        assert_eq!(bytes, [0, 127, 0x80, 1, 0xac, 2]);
        bytes.clear();
        put(&mut bytes, u64::MAX);
        assert_eq!(bytes.len(), 10);
    }

    #[test]
    fn what_is_there_is_never_rounded_to_nothing() {
        let cell = Cell {
            ns: [1, 0, 512, 0, 0],
            ..Cell::default()
        };
        assert_eq!(shares_of(&cell, 1_024), [1, 0, 128, 0, 0]);
    }

    #[test]
    fn spans_follow_one_another() {
        let span = |start_ns, end_ns| Span {
            start_ns,
            end_ns,
            shown: Shown::Blocked,
            class: Class::TaskBlocked as u8,
            cpu: Some(3),
            task: 2,
        };
        let bytes = BASE64.decode(packed_spans(&[span(105, 110), span(112, 120)], 100).as_bytes());
        let state_and_class = (Class::TaskBlocked as u8) << 3 | 3;
        assert_eq!(
            bytes.expect("valid base64"),
            [5, 5, state_and_class, 4, 2, 2, 8, state_and_class, 4, 2]
        );
    }
}
