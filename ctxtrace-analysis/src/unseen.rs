//! The part of the result about what was not seen to begin or to end: threads without a switch, open intervals, and processes
//! that were still running. Pure functions.

use std::collections::{BTreeMap, HashMap};

use ctxtrace_common::clock::Phase;
use ctxtrace_common::ledger::Class;

use super::nulls::Nulls;
use super::result::{LedgerRow, OpenInterval, RunningProcess, Thread, ThreadState};
use crate::correlate::ledger::{Ledger, LedgerEntry, entry_of};
use crate::correlate::tasks;
use crate::symbolize::stacks;
use ctxtrace_format::SilentThread;
use ctxtrace_format::run::Run;
use ctxtrace_format::{Aggregates, Fate, Level, ThreadRecord, name_of};

/// Number of open intervals, and the sum of their times so far in nanoseconds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct OpenSum {
    pub(super) count: u64,
    pub(super) ns: u64,
}

impl OpenSum {
    fn add(&mut self, ns: u64) {
        self.count += 1;
        // A forged capture may contain any value, so the sum saturates.
        self.ns = self.ns.saturating_add(ns);
    }
}

/// Why the figures about open intervals are null.
pub(super) const OPEN_NOT_RECORDED: &str =
    "the version of ctxtrace that recorded the capture did not record open intervals";

/// Returns the sum of the times so far of all open intervals. Returns `None` if they were not recorded.
pub(super) fn open_ns(aggregates: &Aggregates) -> Option<u64> {
    let mut sum = OpenSum::default();
    aggregates.open.as_ref()?.iter().for_each(|open| sum.add(open.off_ns));
    Some(sum.ns)
}

/// Returns the open intervals of each row of the ledger. Returns `None` if they were not recorded.
fn open_by_entry(aggregates: &Aggregates) -> Option<BTreeMap<LedgerEntry, OpenSum>> {
    let mut sums: BTreeMap<LedgerEntry, OpenSum> = BTreeMap::new();
    for open in aggregates.open.as_ref()? {
        sums.entry(entry_of(&open.key, aggregates))
            .or_default()
            .add(open.off_ns);
    }
    Some(sums)
}

/// Sets the number and time of open intervals in each row of a ledger. `rows` must be in the order of `ledger.rows`.
pub(super) fn with_open(
    mut rows: Vec<LedgerRow>,
    aggregates: &Aggregates,
    ledger: &Ledger,
    nulls: &mut Nulls,
) -> Vec<LedgerRow> {
    let open = open_by_entry(aggregates);
    for (index, (row, entry)) in rows.iter_mut().zip(ledger.rows.keys()).enumerate() {
        let sum = open.as_ref().map(|open| open.get(entry).copied().unwrap_or_default());
        let path = |field: &str| format!("ledger[{index}].{field}");
        row.open = nulls.or(sum.map(|sum| sum.count), &path("open"), OPEN_NOT_RECORDED);
        row.open_ns = nulls.or(sum.map(|sum| sum.ns), &path("open_ns"), OPEN_NOT_RECORDED);
    }
    rows
}

/// Returns the open intervals, the longest first. Returns `None` if they were not recorded.
pub(super) fn open_intervals(run: &Run) -> Option<Vec<OpenInterval>> {
    let aggregates = &run.aggregates;
    let mut names = HashMap::new();
    for record in &aggregates.threads {
        names.insert(record.thread.tid, name_of(&record.thread.comm));
    }
    let mut intervals: Vec<OpenInterval> = aggregates
        .open
        .as_ref()?
        .iter()
        .map(|open| {
            let entry = entry_of(&open.key, aggregates);
            let stack = match aggregates.level {
                Level::Stacks => stacks::switched(run, &open.key),
                Level::Counts | Level::Timeline => Vec::new(),
            };
            OpenInterval {
                tid: open.tid,
                pid: open.key.tgid,
                thread: names.get(&open.tid).cloned().unwrap_or_default(),
                class: entry.class,
                task: entry.task.map(|key| tasks::name(aggregates, key)),
                off_ns: open.off_ns,
                stack: stack.into_iter().map(|frame| frame.name).collect(),
            }
        })
        .collect();
    intervals.sort_by_key(|interval| (std::cmp::Reverse(interval.off_ns), interval.tid));
    Some(intervals)
}

/// Returns all threads of a run. Threads without a switch come last.
pub(super) fn threads(aggregates: &Aggregates) -> Vec<Thread> {
    let open: HashMap<u32, (u64, Class)> = aggregates
        .open
        .iter()
        .flatten()
        .map(|open| (open.tid, (open.off_ns, entry_of(&open.key, aggregates).class)))
        .collect();
    let seen = aggregates.threads.iter().map(|record| {
        let is_alive = record.fate == Fate::Alive;
        let open = open.get(&record.thread.tid).filter(|_| is_alive);
        Thread {
            state: state(record, open.is_some_and(|(_, class)| *class == Class::Stopped)),
            open_off_cpu_ns: open.map(|&(ns, _)| ns),
            ..of_record(record)
        }
    });
    seen.chain(aggregates.silent.iter().map(silent_thread)).collect()
}

fn of_record(record: &ThreadRecord) -> Thread {
    let thread = &record.thread;
    Thread {
        tid: thread.tid,
        pid: thread.tgid,
        name: name_of(&thread.comm),
        folded: (record.threads != 1).then_some(record.threads),
        voluntary: thread.traced_voluntary,
        involuntary: thread.traced_involuntary,
        on_cpu_ns: thread.on_cpu_ns,
        off_cpu_ns: thread.off_cpu_ns,
        run_queue_ns: thread.run_queue_ns,
        migrations: thread.migrations,
        state: None,
        open_off_cpu_ns: None,
    }
}

fn state(record: &ThreadRecord, is_stopped: bool) -> Option<ThreadState> {
    match (record.fate, record.thread.clock.phase()) {
        (Fate::Ended | Fate::Vanished, _) | (_, Phase::Unknown | Phase::Dead) => None,
        (Fate::Alive, Phase::On) => Some(ThreadState::Running),
        (Fate::Alive, Phase::Slept) if is_stopped => Some(ThreadState::Stopped),
        (Fate::Alive, Phase::Slept) => Some(ThreadState::Asleep),
        (Fate::Alive, Phase::Runnable | Phase::New) => Some(ThreadState::Runnable),
    }
}

/// Converts a thread without a switch. Such a thread was in the same state during the whole recording.
fn silent_thread(thread: &SilentThread) -> Thread {
    let state = match thread.state {
        'R' => ThreadState::Running,
        'T' | 't' => ThreadState::Stopped,
        _ => ThreadState::Asleep,
    };
    Thread {
        tid: thread.tid,
        pid: thread.tgid,
        name: thread.name.clone(),
        folded: None,
        voluntary: 0,
        involuntary: 0,
        on_cpu_ns: 0,
        off_cpu_ns: 0,
        run_queue_ns: 0,
        migrations: 0,
        state: Some(state),
        open_off_cpu_ns: (state != ThreadState::Running).then_some(thread.ns),
    }
}

/// Returns the processes with threads that have not ended. The name is that of the main thread, or, if the main thread has ended,
/// of another thread.
pub(super) fn still_running(aggregates: &Aggregates) -> Vec<RunningProcess> {
    let mut processes: BTreeMap<u32, String> = BTreeMap::new();
    for record in aggregates.threads.iter().filter(|record| record.fate == Fate::Alive) {
        let thread = &record.thread;
        let name = || name_of(&thread.comm);
        if thread.tid == thread.tgid {
            processes.insert(thread.tgid, name());
        } else {
            processes.entry(thread.tgid).or_insert_with(name);
        }
    }
    let processes = processes.into_iter();
    processes.map(|(pid, name)| RunningProcess { pid, name }).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use ctxtrace_common::clock::Leave;
    use ctxtrace_format::build;

    /// Returns aggregates with a thread that is asleep since 100 ns, a thread that is on the CPU, a thread that has ended, and a
    /// thread without a switch.
    fn aggregates() -> Aggregates {
        let mut asleep = build::thread(101, "asleep", 4, 0);
        asleep.fate = Fate::Alive;
        asleep.thread.clock.switch_out(100, Leave::Slept);
        let mut running = build::thread(100, "running", 1, 0);
        running.fate = Fate::Alive;
        running.thread.clock.switch_in(100);
        let mut aggregates = build::aggregates(vec![asleep, running, build::thread(102, "ended", 1, 0)]);
        aggregates.open = Some(vec![ctxtrace_format::OpenInterval {
            tid: 101,
            key: build::sum_key(Class::ThreadBlocked, 0),
            off_ns: 900,
        }]);
        aggregates.silent = vec![SilentThread {
            tid: 103,
            tgid: 100,
            name: "deep".to_owned(),
            state: 'S',
            ns: 1_000,
        }];
        aggregates
    }

    #[test]
    fn every_thread_has_the_state_that_it_was_left_in() {
        let threads = threads(&aggregates());
        let states: Vec<_> = threads
            .iter()
            .map(|thread| (thread.tid, thread.state, thread.open_off_cpu_ns))
            .collect();
        let expected = [
            (101, Some(ThreadState::Asleep), Some(900)),
            (100, Some(ThreadState::Running), None),
            (102, None, None),
            (103, Some(ThreadState::Asleep), Some(1_000)),
        ];
        assert_eq!(states, expected);
        assert!(threads[3].is_silent() && threads[3].off_cpu_ns == 0);
    }

    #[test]
    fn what_was_not_recorded_is_null_and_says_why() {
        let mut aggregates = aggregates();
        aggregates.open = None;
        let ledger = crate::correlate::ledger::ledger(&aggregates);
        let mut nulls = Nulls::default();
        let rows = super::super::attribution::ledger_rows(&aggregates, &ledger, &mut nulls);
        assert_eq!((rows[0].count, rows[0].open, rows[0].open_ns), (6, None, None));
        let nulls = nulls.into_entries();
        assert_eq!(nulls.len(), 2 * rows.len());
        assert!(
            nulls[1].path == "ledger[0].open_ns" && nulls[1].reason == OPEN_NOT_RECORDED,
            "{nulls:?}"
        );
        assert_eq!(open_ns(&aggregates), None);
        assert!(open_intervals(&build::run(aggregates)).is_none());
    }

    #[test]
    fn what_is_open_is_in_no_sum_and_beside_it() {
        let aggregates = aggregates();
        let ledger = crate::correlate::ledger::ledger(&aggregates);
        let mut nulls = Nulls::default();
        let rows = super::super::attribution::ledger_rows(&aggregates, &ledger, &mut nulls);
        let row = &rows[0];
        assert_eq!(
            (row.count, row.off_cpu_ns, row.open, row.open_ns),
            (6, 0, Some(1), Some(900))
        );
        assert_eq!(open_ns(&aggregates), Some(900));
        assert_eq!(nulls.into_entries(), []);
        let intervals = open_intervals(&build::run(aggregates)).expect("recorded");
        assert_eq!(intervals[0].thread, "asleep");
        assert!(intervals[0].stack.is_empty(), "no stacks are recorded at this level");
    }

    #[test]
    fn a_process_goes_on_under_the_name_of_its_first_thread() {
        let processes = still_running(&aggregates());
        let expected = RunningProcess {
            pid: 100,
            name: "running".to_owned(),
        };
        assert_eq!(processes, [expected]);
    }
}
