//! The lanes, packed: a few bytes a cell, an interval or a waking, as base64.
//!
//! Times are nanoseconds after the timeline's beginning. What is written as a *number* takes as many bytes as it needs: seven bits
//! in each, the lowest first, and the eighth bit set where another byte follows (LEB128).

use std::collections::HashMap;

use ctxtrace_common::ledger::Class;
use ctxtrace_common::process::TaskKey;
use data_encoding::BASE64;
use serde::Serialize;

use crate::analyze::attribution::class;
use crate::analyze::result::Report;
use crate::correlate::tasks;
use crate::report::{printable, table};
use crate::trace::lanes::{Cell, Lane, Lanes, Moment, MomentKind, Shown, Span, Wake};
use crate::trace::run::Run;
use crate::trace::{Aggregates, name_of};
use crate::units::{duration, thousands};

/// See the text of this module.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub(super) struct Timeline {
    /// How long it is.
    length_ns: u64,
    /// Length of a cell.
    cell_ns: u64,
    /// When the cell that is called 0 begins; not after the timeline.
    cells_from_ns: i64,
    lanes: Vec<PackedLane>,
    /// Names of the tasks, from number 1 on.
    tasks: Vec<String>,
    /// Names of the classes of the ledger by number.
    classes: Vec<&'static str>,
    /// Where intervals and wakings are all there.
    exact: Vec<[u64; 2]>,
    is_exact: bool,
    /// Numbers: time since the one before, lane of the woken, lane of the waker plus one or 0, origin, task.
    wakes: String,
    moments: Vec<PackedMoment>,
    /// What it lacks, and how well it can be trusted.
    notes: Vec<String>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
struct PackedLane {
    name: String,
    tid: u32,
    pid: u32,
    /// The number of its first cell.
    first_cell: u64,
    cells: u64,
    /// Five bytes a cell: the part of it in each state, of 255.
    shares: String,
    /// A number a cell.
    switches: String,
    /// A number a cell: the task.
    tasks: String,
    /// Numbers: time since the end of the one before, length, state and class (the class times 8), CPU plus one or 0, task.
    spans: String,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
struct PackedMoment {
    text: String,
    lane: u32,
    from_ns: u64,
    to_ns: u64,
}

impl Timeline {
    /// Of a run that has lanes.
    pub(super) fn of(lanes: &Lanes, report: &Report, run: &Run) -> Self {
        let names = Names::of(report, run);
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
            .map(|number| Class::from_number(number).map_or("", |of| class(of).in_words()))
            .collect();
        Self {
            length_ns: lanes.end_ns - lanes.start_ns,
            cell_ns: lanes.cell_ns,
            cells_from_ns,
            lanes: lanes
                .lanes
                .iter()
                .map(|lane| PackedLane::of(lane, lanes, first_cell, &names))
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
    fn of(lane: &Lane, lanes: &Lanes, first_cell: u64, names: &Names<'_>) -> Self {
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

/// The parts of a cell, of 255 each. What is there is never nothing.
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

fn packed_wakes(wakes: &[Wake], start_ns: u64) -> String {
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

/// A number, seven bits a byte.
fn put(bytes: &mut Vec<u8>, mut number: u64) {
    while number >= 0x80 {
        bytes.push(number as u8 | 0x80);
        number >>= 7;
    }
    bytes.push(number as u8);
}

/// Who is who.
struct Names<'a> {
    threads: HashMap<(u32, u64), String>,
    types: HashMap<(u64, u32), &'a str>,
    aggregates: &'a Aggregates,
}

impl<'a> Names<'a> {
    fn of(report: &'a Report, run: &'a Run) -> Self {
        let threads = run.aggregates.threads.iter().map(|record| &record.thread);
        let key = |thread: &ctxtrace_common::thread::ThreadSummary| (thread.tid, thread.start_boottime_ns);
        let typed = report.tasks.iter().filter_map(|task| {
            let future_type = task.future_type.as_deref()?;
            table::is_number(&task.name).then_some(((task.id, task.pid), future_type))
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

    /// A number alone says nothing, so its type goes with it.
    fn of_task(&self, key: TaskKey) -> String {
        let name = tasks::name(self.aggregates, key);
        let future_type = self.types.get(&(tasks::number(key.task), key.image.tgid));
        printable(&match future_type {
            Some(future_type) if table::is_number(&name) => format!("{name} {future_type}"),
            _ => name,
        })
    }
}

fn in_words(moment: &Moment, lane: &Lane, names: &Names<'_>, tasks: &[String]) -> String {
    let (who, took) = (format!("{} {}", names.of_thread(lane), lane.tid), duration(moment.ns()));
    let task = (moment.task as usize).checked_sub(1).and_then(|index| tasks.get(index));
    match (moment.kind, task) {
        (MomentKind::LongWait, None) => format!("{who} waited {took} for a CPU"),
        (MomentKind::LongWait, Some(task)) => format!("{who} waited {took} for a CPU, having left it in {task}"),
        (MomentKind::LongBlock, None) => format!("{who} slept {took} in a poll"),
        (MomentKind::LongBlock, Some(task)) => format!("{who} slept {took} while it polled {task}"),
    }
}

fn notes(lanes: &Lanes, report: &Report) -> Vec<String> {
    let mut notes = Vec::new();
    if let Some(timeline) = &report.timeline {
        notes.push(match timeline.agrees {
            Some(true) => format!(
                "{} events, played again, give exactly the counts and times that the kernel side has added up.",
                thousands(timeline.events)
            ),
            Some(false) => format!(
                "{} events do NOT give the counts that the kernel side has added up: {}.",
                thousands(timeline.events),
                timeline.disagreements.join("; ")
            ),
            None => format!(
                "{} events, and not all of them are there: see what was lost. The counts do not suffer.",
                thousands(timeline.events)
            ),
        });
    }
    if !lanes.is_exact {
        notes.push(format!(
            "It is too long for every single interval to be in this page. All of it is there in steps of {}; single intervals and \
             wakeups are there where the strip above the lanes is marked, the longest waits among them. A Perfetto trace (--perfetto \
             FILE) has them all.",
            duration(lanes.cell_ns)
        ));
    }
    if lanes.left_out > 0 {
        notes.push(format!(
            "Shown are the {} busiest threads; {} more are in the table of threads.",
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
            bytes.expect("base64"),
            [5, 5, state_and_class, 4, 2, 2, 8, state_and_class, 4, 2]
        );
    }
}
