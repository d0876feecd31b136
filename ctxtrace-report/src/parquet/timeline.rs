//! The tables of a timeline, with a row for every switch-out, every wakeup and (with `--polls`) every poll. The rows are written
//! as the events come, one row group at a time.
//!
//! The row of a switch-out is complete when its thread is switched in again, so at most one row per living thread waits for that.
//! Switches and wakeups come from [`Replay`], which uses the same state machine as the BPF programs; polls come from
//! [`PollReplay`].

use std::collections::HashMap;
use std::hash::Hash;
use std::io;
use std::sync::Arc;

use ctxtrace_common::clock::NotedWakeup as Noted;
use ctxtrace_common::event::Event;
use ctxtrace_common::locator::Reason;
use ctxtrace_common::process::{Image, TaskKey};
use ctxtrace_common::stack::SumKey;
use ctxtrace_common::wakeup::{Waker, WakeupOrigin};
use parquet::record::RecordWriter;

use super::TableFolder;
use super::file::TableFile;
use super::rows::{Poll, SwitchRow, WakeupRow};
use super::{Identity, signed, small};
use ctxtrace_analysis::correlate::intervals::{Arrival, Departure, Interval, IntervalSink, ThreadId, Woken};
use ctxtrace_analysis::correlate::ledger::entry_of;
use ctxtrace_analysis::correlate::polls::{PollReplay, PollSink, PollSlice};
use ctxtrace_analysis::correlate::tasks;
use ctxtrace_analysis::correlate::timeline::Replay;
use ctxtrace_analysis::correlate::wakeups::ThreadNames as WakerNames;
use ctxtrace_format::events::{EventSink, EventSource};
use ctxtrace_format::executable::reason_in_words;
use ctxtrace_format::polls::PollBatch;
use ctxtrace_format::run::{Info, Run};
use ctxtrace_format::{Aggregates, name_of};

/// Rows in a full row group. The rows that are kept in memory take some tens of megabytes.
const ROWS_IN_GROUP: usize = 1 << 16;
/// Maximum number of entries in a cache of names. A full cache is cleared.
const MOST_NAMES: usize = 1 << 16;

/// Writes the timeline tables of every run.
pub(super) fn write(
    folder: &mut dyn TableFolder,
    info: &Info,
    runs: &[Run],
    events: &mut dyn EventSource,
) -> io::Result<()> {
    for (index, run) in runs.iter().enumerate() {
        let mut both = Both {
            replay: Replay::with_sink(EventTables::begin(folder, info, run, index)?),
            polls: match info.polls {
                Some(_) => Some(PollReplay::with_sink(PollRows::begin(folder, info, run, index)?)),
                None => None,
            },
        };
        events.replay(index, &mut both)?;
        both.replay.into_intervals().end()?;
        if let Some(polls) = both.polls {
            polls.conclude().1.end()?;
        }
    }
    Ok(())
}

/// Replays the events of a run for the tables of switches and wakeups and, if polls were recorded, for the table of polls.
struct Both<'a> {
    replay: Replay<EventTables<'a>>,
    polls: Option<PollReplay<PollRows<'a>>>,
}

impl EventSink for Both<'_> {
    fn events(&mut self, batch: &[Event]) {
        self.replay.events(batch);
        self.polls.events(batch);
    }

    fn polls(&mut self, batch: &PollBatch) {
        self.polls.polls(batch);
    }
}

/// A task's name and number.
type NamedTask = (String, i64);

/// What a thread was doing when it was switched out, as the columns name it.
struct Doing {
    class: &'static str,
    reason: Option<&'static str>,
    task: Option<NamedTask>,
}

/// A row of the table of switches, before it is written; see [`SwitchRow`].
struct Departed {
    departure: Departure,
    thread: Arc<str>,
    doing: Arc<Doing>,
    arrival: Option<Arrival>,
}

/// A row of the table of wakeups, before it is written; see [`WakeupRow`].
struct Awoken {
    woken: Woken,
    pid: Option<u32>,
    thread: Arc<str>,
    waker: Arc<NamedWaker>,
}

struct NamedWaker {
    thread: String,
    task: Option<NamedTask>,
}

/// Collects and writes the switches and wakeups of one run.
struct EventTables<'a> {
    identity: Identity,
    info: &'a Info,
    names: RowNames<'a>,
    /// The switch-outs of threads that are off the CPU.
    away: HashMap<ThreadId, Departed>,
    switches: Vec<Departed>,
    switches_file: TableFile,
    wakeups: Vec<Awoken>,
    wakeups_file: TableFile,
    failed: Option<io::Error>,
}

impl<'a> EventTables<'a> {
    fn begin(folder: &mut dyn TableFolder, info: &'a Info, run: &'a Run, index: usize) -> io::Result<Self> {
        let identity = Identity::new(info, run, index);
        Ok(Self {
            switches_file: TableFile::begin::<SwitchRow<'_>>(folder, "switches", &identity.file_name)?,
            wakeups_file: TableFile::begin::<WakeupRow<'_>>(folder, "wakings", &identity.file_name)?,
            identity,
            info,
            names: RowNames::new(&run.aggregates),
            away: HashMap::new(),
            switches: Vec::new(),
            wakeups: Vec::new(),
            failed: None,
        })
    }

    fn end(mut self) -> io::Result<()> {
        let mut away: Vec<Departed> = self.away.drain().map(|(_, departed)| departed).collect();
        away.sort_by_key(|departed| (departed.departure.at_ns, departed.departure.thread.tid));
        for departed in away {
            self.push(departed);
        }
        self.write_switches();
        self.write_wakeups();
        if let Some(error) = self.failed {
            return Err(error);
        }
        self.switches_file.end()?;
        self.wakeups_file.end()
    }

    fn push(&mut self, departed: Departed) {
        self.switches.push(departed);
        if self.switches.len() == ROWS_IN_GROUP {
            self.write_switches();
        }
    }

    fn write_switches(&mut self) {
        let departed = std::mem::take(&mut self.switches);
        let row = |row| switch_row(&self.identity, self.info, row);
        write_group(&mut self.switches_file, &mut self.failed, &departed, row);
    }

    fn write_wakeups(&mut self) {
        let awoken = std::mem::take(&mut self.wakeups);
        let row = |row| wakeup_row(&self.identity, self.info, row);
        write_group(&mut self.wakeups_file, &mut self.failed, &awoken, row);
    }
}

/// Writes the collected rows as a row group. After the first error nothing more is written; the error is returned at the end.
fn write_group<'t, T, R>(file: &mut TableFile, failed: &mut Option<io::Error>, come: &'t [T], row: impl Fn(&'t T) -> R)
where
    for<'r> &'r [R]: RecordWriter<R>,
{
    if failed.is_none() {
        let rows: Vec<R> = come.iter().map(row).collect();
        *failed = file.rows(&rows).err();
    }
}

impl IntervalSink for EventTables<'_> {
    fn interval(&mut self, _interval: &Interval) {}

    fn left(&mut self, departure: &Departure) {
        let departed = Departed {
            departure: *departure,
            thread: self.names.of_thread(&departure.thread),
            doing: self.names.of_departure(departure),
            arrival: None,
        };
        // The switch-in after the previous switch-out was lost, so that row stays without it.
        if let Some(before) = self.away.insert(identity_of(&departure.thread), departed) {
            self.push(before);
        }
    }

    fn came(&mut self, arrival: &Arrival) {
        if let Some(departed) = self.away.remove(&identity_of(&arrival.thread)) {
            self.push(Departed {
                arrival: Some(*arrival),
                ..departed
            });
        }
    }

    fn woken(&mut self, woken: &Woken) {
        let (pid, thread) = self.names.of_tid(woken.tid);
        self.wakeups.push(Awoken {
            woken: *woken,
            pid,
            thread,
            waker: self.names.of_waker(&woken.waker),
        });
        if self.wakeups.len() == ROWS_IN_GROUP {
            self.write_wakeups();
        }
    }
}

/// A row of the table of polls, before it is written; see [`Poll`].
struct Polled {
    slice: PollSlice,
    thread: Arc<str>,
    task: Arc<NamedTask>,
}

/// Collects and writes the polls of one run.
struct PollRows<'a> {
    identity: Identity,
    info: &'a Info,
    names: RowNames<'a>,
    polls: Vec<Polled>,
    file: TableFile,
    failed: Option<io::Error>,
}

impl<'a> PollRows<'a> {
    fn begin(folder: &mut dyn TableFolder, info: &'a Info, run: &'a Run, index: usize) -> io::Result<Self> {
        let identity = Identity::new(info, run, index);
        Ok(Self {
            file: TableFile::begin::<Poll<'_>>(folder, "polls", &identity.file_name)?,
            identity,
            info,
            names: RowNames::new(&run.aggregates),
            polls: Vec::new(),
            failed: None,
        })
    }

    fn end(mut self) -> io::Result<()> {
        self.write();
        match self.failed {
            Some(error) => Err(error),
            None => self.file.end(),
        }
    }

    fn write(&mut self) {
        let polls = std::mem::take(&mut self.polls);
        let row = |polled| poll_row(&self.identity, self.info, polled);
        write_group(&mut self.file, &mut self.failed, &polls, row);
    }
}

impl PollSink for PollRows<'_> {
    fn slice(&mut self, slice: &PollSlice) {
        self.polls.push(Polled {
            slice: *slice,
            thread: self.names.of_tid(slice.tid).1,
            task: self.names.of_task(slice.task),
        });
        if self.polls.len() == ROWS_IN_GROUP {
            self.write();
        }
    }
}

/// The key of a thread in the maps here. An `execve` can change the id of a thread while it is off the CPU, so the key is the
/// process id and the start time, without the thread id. If the start time is unknown, the thread id is part of the key.
fn identity_of(thread: &ThreadId) -> ThreadId {
    ThreadId {
        tid: if thread.start_boottime_ns == 0 { thread.tid } else { 0 },
        ..*thread
    }
}

/// Converts a time of `CLOCK_MONOTONIC` to the wall clock, in nanoseconds since 1970.
fn time_ns(info: &Info, at_ns: u64) -> i64 {
    let since = signed(at_ns).wrapping_sub(signed(info.started.monotonic_ns));
    signed(info.started.realtime_ns).saturating_add(since)
}

fn switch_row<'r>(of: &'r Identity, info: &Info, row: &'r Departed) -> SwitchRow<'r> {
    let departure = &row.departure;
    let entered = row.arrival.map(|arrival| arrival.entered).unwrap_or_default();
    let (task, task_id) = row
        .doing
        .task
        .as_ref()
        .map_or((None, None), |(name, id)| (Some(name.as_str()), Some(*id)));
    SwitchRow {
        host: &of.host,
        run: &of.run,
        at_ns: signed(departure.at_ns),
        time_ns: time_ns(info, departure.at_ns),
        cpu: small(departure.cpu),
        pid: small(departure.thread.tgid),
        tid: small(departure.thread.tid),
        thread: &row.thread,
        class: row.doing.class,
        reason: row.doing.reason,
        task,
        task_id,
        voluntary: departure.out.voluntary,
        on_cpu_ns: departure.on_cpu_ns.map(signed),
        off_cpu_ns: entered.off_cpu_ns.ns().map(signed),
        blocked_ns: entered.blocked_ns.ns().map(signed),
        run_queue_ns: entered.run_queue_ns.ns().map(signed),
        wake_to_run_ns: entered.wake_to_run_ns.ns().map(signed),
        next_cpu: row.arrival.map(|arrival| small(arrival.cpu)),
    }
}

fn wakeup_row<'r>(of: &'r Identity, info: &Info, row: &'r Awoken) -> WakeupRow<'r> {
    let woken = &row.woken;
    let origin = WakeupOrigin::from_number(woken.waker.origin);
    let (task, task_id) = row
        .waker
        .task
        .as_ref()
        .map_or((None, None), |(name, id)| (Some(name.as_str()), Some(*id)));
    WakeupRow {
        host: &of.host,
        run: &of.run,
        at_ns: signed(woken.at_ns),
        time_ns: time_ns(info, woken.at_ns),
        cpu: small(woken.cpu),
        pid: row.pid.map(small),
        tid: small(woken.tid),
        thread: &row.thread,
        noted: woken.noted.map(|noted| match noted {
            Noted::OffCpu => "off-cpu",
            Noted::OnCpu => "on-cpu",
        }),
        newborn: woken.newborn,
        origin: origin.name(),
        from_pid: woken.waker.is_of_target().then(|| small(woken.waker.program().tgid)),
        from_tid: (woken.waker.tid != 0).then(|| small(woken.waker.tid)),
        from_thread: &row.waker.thread,
        from_task: task,
        from_task_id: task_id,
    }
}

fn poll_row<'r>(of: &'r Identity, info: &Info, polled: &'r Polled) -> Poll<'r> {
    let Polled { slice, thread, task } = polled;
    Poll {
        host: &of.host,
        run: &of.run,
        at_ns: signed(slice.begin_ns),
        time_ns: time_ns(info, slice.begin_ns),
        pid: small(slice.tgid),
        tid: small(slice.tid),
        thread,
        task: &task.0,
        task_id: task.1,
        poll_ns: signed(slice.end_ns.saturating_sub(slice.begin_ns)),
        wake_to_poll_ns: slice.wait.map(|wait| signed(wait.ns)),
        path: slice.wait.map(|wait| wait.path.name()),
    }
}

/// Looks up the names in a run. Names that were made are cached.
struct RowNames<'a> {
    aggregates: &'a Aggregates,
    wakers: WakerNames<'a>,
    /// Process id and name of the last thread that had a thread id.
    of_tids: HashMap<u32, (u32, Arc<str>)>,
    of_threads: HashMap<ThreadId, Arc<str>>,
    unknown: Arc<str>,
    tasks: Made<TaskKey, NamedTask>,
    doings: Made<(Image, u64, u8, u8), Doing>,
    named_wakers: Made<Waker, NamedWaker>,
}

impl<'a> RowNames<'a> {
    fn new(aggregates: &'a Aggregates) -> Self {
        let mut of_tids = HashMap::new();
        let mut of_threads = HashMap::new();
        for record in &aggregates.threads {
            let thread = &record.thread;
            let name: Arc<str> = name_of(&thread.comm).into();
            let id = ThreadId {
                start_boottime_ns: thread.start_boottime_ns,
                tgid: thread.tgid,
                tid: thread.tid,
            };
            of_threads.insert(identity_of(&id), Arc::clone(&name));
            of_tids.insert(thread.tid, (thread.tgid, name));
        }
        Self {
            aggregates,
            wakers: WakerNames::new(aggregates),
            of_tids,
            of_threads,
            unknown: "?".into(),
            tasks: Made::new(),
            doings: Made::new(),
            named_wakers: Made::new(),
        }
    }

    fn of_thread(&self, thread: &ThreadId) -> Arc<str> {
        let known = self.of_threads.get(&identity_of(thread));
        known.map_or_else(|| self.of_tid(thread.tid).1, Arc::clone)
    }

    fn of_tid(&self, tid: u32) -> (Option<u32>, Arc<str>) {
        let known = self.of_tids.get(&tid);
        known.map_or_else(
            || (None, Arc::clone(&self.unknown)),
            |(tgid, name)| (Some(*tgid), Arc::clone(name)),
        )
    }

    fn of_task(&mut self, key: TaskKey) -> Arc<NamedTask> {
        self.tasks.get(key, || named(self.aggregates, key))
    }

    fn of_departure(&mut self, departure: &Departure) -> Arc<Doing> {
        let out = &departure.out;
        let known = (departure.image, out.task, out.class, out.reason);
        self.doings.get(known, || {
            let mut key = SumKey::EMPTY;
            (key.task, key.class, key.reason) = (out.task, out.class, out.reason);
            (key.tgid, key.image) = (departure.image.tgid, departure.image.number);
            let entry = entry_of(&key, self.aggregates);
            Doing {
                class: entry.class.name(),
                reason: (entry.reason != Reason::None).then(|| reason_in_words(entry.reason)),
                task: entry.task.map(|key| named(self.aggregates, key)),
            }
        })
    }

    fn of_waker(&mut self, waker: &Waker) -> Arc<NamedWaker> {
        self.named_wakers.get(*waker, || {
            let task = (WakeupOrigin::from_number(waker.origin) == WakeupOrigin::Task).then_some(TaskKey {
                task: waker.task(),
                image: waker.program(),
            });
            NamedWaker {
                thread: self.wakers.of_waker(waker),
                task: task.map(|key| named(self.aggregates, key)),
            }
        })
    }
}

/// The name and the number of a task.
fn named(aggregates: &Aggregates, key: TaskKey) -> NamedTask {
    (tasks::name(aggregates, key), signed(tasks::number(key.task)))
}

/// A cache of values by the key that they are made of. When it has [`MOST_NAMES`] entries it is cleared.
struct Made<K, V>(HashMap<K, Arc<V>>);

impl<K: Eq + Hash, V> Made<K, V> {
    fn new() -> Self {
        Self(HashMap::new())
    }

    fn get(&mut self, key: K, make: impl FnOnce() -> V) -> Arc<V> {
        if let Some(made) = self.0.get(&key) {
            return Arc::clone(made);
        }
        let made = Arc::new(make());
        if self.0.len() == MOST_NAMES {
            self.0.clear();
        }
        self.0.insert(key, Arc::clone(&made));
        made
    }
}
