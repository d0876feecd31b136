//! Writes a timeline as a protobuf trace for Perfetto (<https://ui.perfetto.dev>, `trace_processor`), while the events come.
//!
//! * **The tracks of CPUs and threads** are made from events of the kernel in the form of `ftrace`: `sched_switch`,
//!   `sched_waking` and `sched_wakeup_new`. A thread appears with `task_newtask` or in a process tree, is named by `task_rename`,
//!   and disappears with `sched_process_free`. The events do not identify threads outside of the target. They are thread 0, like
//!   the idle thread.
//! * **Each thread that polled tasks has a track of slices.** A slice is a time in which the thread is known to have polled a
//!   task ([`ctxtrace_analysis::correlate::slices`]) or, if the thread's polls were recorded, a poll ([`ctxtrace_analysis::correlate::polls`]).
//! * **Flows** are arrows from a wakeup to the switch-in that it caused ([`ctxtrace_analysis::correlate::wakes`]). A flow ends at the slice
//!   that begins with the switch-in. If there is no such slice, it leads to an event `woken`, and from there to the next slice
//!   before the thread is switched out, if there is one. Every flow has both ends.
//! * **Counters**, **a clock snapshot**, and a track that shows what was recorded and what was lost.
//!
//! In memory there is a state for each living thread and each CPU, and the names of some ten thousand tasks at most. Packets are
//! compressed while they are written.
//!
//! Perfetto reads the times of kernel events as `CLOCK_BOOTTIME`, so all times are converted to it; the snapshot relates it to
//! `CLOCK_MONOTONIC`. The packets as a whole are not sorted by time, because a slice is written when it has ended. The packets of
//! one CPU, of the slices of one thread, and of one counter are sorted.

mod packets;
mod proto;
mod sched;
#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, HashMap, HashSet, VecDeque};
use std::io::{self, Write};

use ctxtrace_common::clock::Leave;
use ctxtrace_common::event::{Decoded, Event, In, Out};
use ctxtrace_common::process::{Image, TaskKey};
use ctxtrace_common::stack::SumKey;
use ctxtrace_common::wakeup::{Waker, WakeupOrigin};

use self::packets::{Named, Packets};
use self::proto::{
    Clock, ClockSnapshot, CounterDescriptor, Data, DebugAnnotation, Ftrace, ProcessTree, SchedProcessFree, SchedSwitch,
    SchedWaking, SystemInfo, TaskNewtask, TaskRename, ThreadDescriptor, TrackDescriptor, TrackEvent, TreeThread,
    Utsname, clock, kind,
};
use self::sched::{Bundles, CLONE_THREAD, PRIORITY};
use super::flamegraph::Labels;
use super::printable;
use ctxtrace_analysis::correlate::intervals::ThreadId;
use ctxtrace_analysis::correlate::ledger::entry_of;
use ctxtrace_analysis::correlate::polls::{PollReplay, PollSlice};
use ctxtrace_analysis::correlate::slices::{AtSwitches, TaskSlice};
use ctxtrace_analysis::correlate::tasks;
use ctxtrace_analysis::correlate::timeline::Replay;
use ctxtrace_analysis::correlate::wakes::{EffectiveWakeup, Wakes};
use ctxtrace_analysis::correlate::wakeups::outsider_name;
use ctxtrace_analysis::symbolize::stacks::task_types;
use ctxtrace_format::events::EventSink;
use ctxtrace_format::name_of;
use ctxtrace_format::polls::PollBatch;
use ctxtrace_format::run::{Info, Run};

/// The name of thread 0, which stands for every thread outside of the target.
const OUTSIDE_THREAD_NAME: &str = "not recorded";

/// Maximum number of events that wait for the polls of their time. This is more than the rings hold, so only a forged file
/// exceeds it. Beyond it the oldest events are drawn without polls.
const MOST_WAITING: usize = 1 << 20;

/// Minimum distance between two values of the counter of kernel switches, in nanoseconds.
const COUNTER_STEP_NS: u64 = 1_000_000;

// Numbers of the fixed tracks. The tracks of threads are numbered from `FIRST_OF_THREADS`.
const RECORDING: u64 = 1;
const INTERRUPTS: u64 = 2;
const OTHER_PROGRAMS: u64 = 3;
const UNKNOWN_WAKERS: u64 = 4;
const WAITING: u64 = 5;
const SWITCHES: u64 = 6;
const FIRST_OF_THREADS: u64 = 16;

/// The state of a thread between two events.
#[derive(Clone, Debug, Default)]
struct ThreadTrack {
    start_boottime_ns: u64,
    tgid: u32,
    comm: String,
    /// Whether the thread was created during the recording and nothing of it has been written yet.
    is_new: bool,
    /// Time of the thread's first event.
    seen_ns: u64,
    /// Number of the thread's track, if it has one.
    track: Option<u64>,
    /// Whether the thread sleeps.
    sleeps: bool,
    /// Whether the thread is ready to run and on no CPU.
    waits: bool,
    /// The flow of the wakeup that led to the last switch-in, and the time of the switch-in; `None` once a slice or an event has
    /// ended the flow.
    woken: Option<(u64, u64)>,
}

/// The state of a process.
#[derive(Clone, Copy, Debug, Default)]
struct Process {
    /// Number of living threads.
    living: u64,
    leader_is_dead: bool,
}

/// The state for drawing polls among the events of the same time.
#[derive(Default)]
struct WithPolls {
    replay: PollReplay<Vec<PollSlice>>,
    /// Events that wait because the polls of their time have not come yet.
    waiting: VecDeque<Event>,
    /// Ids of the threads whose polls were recorded.
    recorded_tids: HashSet<u32>,
}

/// Writes the trace of one run. It is a sink of the run's events and polls. The documentation of this module describes the trace.
pub struct Trace<'a, W> {
    run: &'a Run,
    labels: &'a Labels,
    packets: Packets<W>,
    bundles: Bundles,
    boot_minus_monotonic_ns: u64,
    /// The type of each task's future, or the function that a goroutine was started with, if it is known.
    types: HashMap<TaskKey, String>,
    replay: Replay<AtSwitches<Vec<TaskSlice>>>,
    wakes: Wakes,
    /// Present if polls were recorded. Events then wait until the polls of their time have come.
    polls: Option<WithPolls>,
    threads: HashMap<u32, ThreadTrack>,
    processes: HashMap<u32, Process>,
    /// The names that were written for threads of other programs, by thread id.
    named_outsiders: HashMap<u32, [u8; 16]>,
    /// The fixed tracks whose descriptors have been written.
    described: BTreeMap<u64, ()>,
    tracks: u64,
    flows: u64,
    waiting: i64,
    switches: i64,
    last_switch_counter_ns: Option<u64>,
    first_ns: Option<u64>,
    last_ns: u64,
}

impl<'a, W: Write> Trace<'a, W> {
    /// Begins the trace of a run, with the packets about clocks, system and losses.
    #[must_use]
    pub fn begin(to: W, info: &Info, run: &'a Run, labels: &'a Labels) -> Self {
        let mut trace = Self {
            run,
            labels,
            packets: Packets::new(to),
            bundles: Bundles::default(),
            boot_minus_monotonic_ns: info.started.boot_minus_monotonic_ns(),
            types: task_types(&run.aggregates, &run.symbols),
            replay: Replay::with_sink(AtSwitches::default()),
            wakes: Wakes::default(),
            polls: info.polls.map(|_| WithPolls::default()),
            threads: HashMap::new(),
            processes: HashMap::new(),
            named_outsiders: HashMap::new(),
            described: BTreeMap::new(),
            tracks: FIRST_OF_THREADS,
            flows: 0,
            waiting: 0,
            switches: 0,
            last_switch_counter_ns: None,
            first_ns: None,
            last_ns: 0,
        };
        trace.introduction(info);
        trace
    }

    /// Ends the trace. Slices and flows that are still open end with the last event.
    ///
    /// # Errors
    ///
    /// If a packet could not be written, now or earlier.
    pub fn end(mut self) -> io::Result<W> {
        self.events_until(u64::MAX);
        self.replay.close(self.last_ns);
        self.replay.intervals_mut().close();
        self.slices();
        let mut tids: Vec<u32> = self.threads.keys().copied().collect();
        tids.sort_unstable();
        for tid in tids {
            self.end_of_flow(tid);
        }
        if self.first_ns.is_some() {
            self.counter(SWITCHES, self.last_ns, self.switches);
            self.recording();
        }
        self.bundles.end(&mut self.packets);
        self.packets.end()
    }

    fn boot(&self, monotonic_ns: u64) -> u64 {
        monotonic_ns.wrapping_add(self.boot_minus_monotonic_ns)
    }

    fn introduction(&mut self, info: &Info) {
        let started = info.started;
        let at = self.boot(started.monotonic_ns);
        let clock = |clock_id, timestamp| Clock {
            clock_id: Some(clock_id),
            timestamp: Some(timestamp),
        };
        let clocks = vec![
            clock(clock::BOOTTIME, at),
            clock(clock::MONOTONIC, started.monotonic_ns),
            clock(clock::REALTIME, started.realtime_ns),
        ];
        let snapshot = Data::ClockSnapshot(ClockSnapshot { clocks });
        self.packets.packet(Some(at), snapshot);
        let system = SystemInfo {
            utsname: Some(Utsname {
                sysname: Some("Linux".to_owned()),
                release: Some(printable(&info.host.kernel)),
            }),
            tracing_service_version: Some(format!("ctxtrace {}", printable(&info.ctxtrace_version))),
        };
        self.packets.packet(Some(at), Data::SystemInfo(system));
        for losses in &self.run.aggregates.lost_by_cpu {
            if let (true, Ok(cpu)) = (losses.timeline_events > 0, u16::try_from(losses.cpu)) {
                self.bundles.lost(cpu);
            }
        }
    }

    /// Writes the track `ctxtrace`: a slice for the whole recording, and a slice for the measured section of a workload.
    fn recording(&mut self) {
        let (first_ns, last_ns) = (self.first_ns.unwrap_or(0), self.last_ns);
        self.describe(RECORDING, first_ns, "ctxtrace", None);
        let annotation = |name: &str, value: String| DebugAnnotation {
            name: Some(name.to_owned()),
            string_value: Some(value),
            ..DebugAnnotation::default()
        };
        let lost = self.labels.lost.as_deref().unwrap_or("nothing");
        let whole = annotation("lost", printable(lost));
        self.slice(
            RECORDING,
            (first_ns, last_ns),
            TrackEvent {
                name: Some(printable(&self.labels.subject)),
                debug_annotations: vec![whole],
                ..TrackEvent::default()
            },
        );
        if let Some(outcome) = self.run.outcome
            && let Some(started_ns) = outcome.started_ns
        {
            let start_ns = started_ns.clamp(first_ns, last_ns);
            let end_ns = started_ns.saturating_add(outcome.elapsed_ns).clamp(start_ns, last_ns);
            self.slice(
                RECORDING,
                (start_ns, end_ns),
                TrackEvent {
                    name: Some("measured section".to_owned()),
                    ..TrackEvent::default()
                },
            );
        }
    }

    fn kernel(&mut self, event: &Event, tid: u32, what: Ftrace) {
        let timestamp = self.boot(event.at_ns);
        self.bundles.add(&mut self.packets, event.cpu, timestamp, tid, what);
    }

    /// The name of a thread; `not recorded` for thread 0, and empty if the name is unknown.
    fn comm(&self, tid: u32) -> String {
        match self.threads.get(&tid) {
            Some(thread) => thread.comm.clone(),
            None if tid == 0 => OUTSIDE_THREAD_NAME.to_owned(),
            None => String::new(),
        }
    }

    // --- Threads -----------------------------------------------------------------------------------------------------

    /// The state of the thread with this id. It is created if the event that introduces the thread was lost.
    fn thread(&mut self, tid: u32, at_ns: u64) -> &mut ThreadTrack {
        self.threads.entry(tid).or_insert_with(|| ThreadTrack {
            seen_ns: at_ns,
            ..ThreadTrack::default()
        })
    }

    fn introduce(&mut self, event: &Event, tid: u32, previous_tid: u32, start_boottime_ns: u64, tgid: u32, new: bool) {
        let is_same = |thread: &ThreadTrack| thread.start_boottime_ns == start_boottime_ns;
        if self.threads.get(&tid).is_some_and(is_same) {
            return;
        }
        self.end_of_flow(tid);
        let known = self.threads.get(&previous_tid).is_some_and(is_same);
        let thread = if known {
            self.end_of_flow(previous_tid);
            let mut thread = self.threads.remove(&previous_tid).unwrap_or_default();
            // An execve changed the thread's id. For Perfetto it is another thread from now on.
            (thread.track, thread.seen_ns) = (None, event.at_ns);
            thread
        } else {
            self.processes.entry(tgid).or_default().living += 1;
            ThreadTrack {
                start_boottime_ns,
                tgid,
                is_new: new,
                seen_ns: event.at_ns,
                ..ThreadTrack::default()
            }
        };
        let other = self.threads.insert(tid, thread);
        if let (true, Some(mut other)) = (known, other) {
            (other.track, other.seen_ns) = (None, event.at_ns);
            self.threads.insert(previous_tid, other);
            self.place_in_tree(event, previous_tid);
        }
        if !new || known {
            self.place_in_tree(event, tid);
        }
    }

    /// Writes the process that a thread belongs to, and the thread's name if it is known.
    fn place_in_tree(&mut self, event: &Event, tid: u32) {
        let timestamp = self.boot(event.at_ns);
        let Some(thread) = self.threads.get_mut(&tid) else {
            return;
        };
        thread.is_new = false;
        let tree = ProcessTree {
            threads: vec![TreeThread {
                tid: Some(tid as i32),
                tgid: Some(thread.tgid as i32),
            }],
        };
        let comm = thread.comm.clone();
        self.packets.packet(Some(timestamp), Data::ProcessTree(tree));
        if !comm.is_empty() {
            self.rename(event, tid, "", &comm);
        }
    }

    fn rename(&mut self, event: &Event, tid: u32, old: &str, new: &str) {
        let rename = TaskRename {
            pid: Some(tid as i32),
            oldcomm: Some(old.to_owned()),
            newcomm: Some(new.to_owned()),
        };
        self.kernel(event, tid, Ftrace::TaskRename(rename));
    }

    fn name(&mut self, event: &Event, tid: u32, comm: &[u8; 16]) {
        let comm = printable(&name_of(comm));
        let thread = self.thread(tid, event.at_ns);
        let old = std::mem::replace(&mut thread.comm, comm.clone());
        // The name of a new thread is written with `task_newtask`.
        if !thread.is_new && old != comm {
            self.rename(event, tid, &old, &comm);
        }
    }

    /// Handles the last switch of a thread. For Perfetto a process ends with its leader, so the leader is freed only when no
    /// other thread of its process is left, as in the kernel.
    fn ended(&mut self, event: &Event, tid: u32) {
        self.end_of_flow(tid);
        let Some(thread) = self.threads.remove(&tid) else {
            return;
        };
        if thread.waits {
            self.wait(event.at_ns, -1);
        }
        let process = self.processes.entry(thread.tgid).or_default();
        process.living = process.living.saturating_sub(1);
        let mut gone = Vec::new();
        if tid == thread.tgid {
            process.leader_is_dead = true;
        } else {
            gone.push((tid, thread.comm));
        }
        if process.living == 0 {
            if process.leader_is_dead {
                gone.push((thread.tgid, String::new()));
            }
            self.processes.remove(&thread.tgid);
        }
        for (gone, comm) in gone {
            let free = SchedProcessFree {
                comm: Some(comm),
                pid: Some(gone as i32),
                prio: Some(PRIORITY),
            };
            self.kernel(event, tid, Ftrace::SchedProcessFree(free));
        }
    }

    // --- Events of the kernel ----------------------------------------------------------------------------------------

    fn wakeup(&mut self, event: &Event, tid: u32, newborn: bool, waker: &Waker) {
        self.name_outsider(event, waker);
        let thread = self.thread(tid, event.at_ns);
        let (comm, tgid) = (thread.comm.clone(), thread.tgid);
        let was_new = std::mem::take(&mut thread.is_new);
        let waits = newborn || thread.sleeps;
        if waits && !thread.waits {
            thread.waits = true;
            self.wait(event.at_ns, 1);
        }
        if newborn && was_new {
            let created = TaskNewtask {
                pid: Some(tid as i32),
                comm: Some(comm.clone()),
                clone_flags: Some(if tid == tgid { 0 } else { CLONE_THREAD }),
            };
            self.kernel(event, waker.tid, Ftrace::TaskNewtask(created));
        } else if was_new {
            self.place_in_tree(event, tid);
        }
        let wakeup = SchedWaking {
            comm: Some(comm),
            pid: Some(tid as i32),
            prio: Some(PRIORITY),
            success: Some(1),
        };
        let what = if newborn {
            Ftrace::SchedWakeupNew(wakeup)
        } else {
            Ftrace::SchedWaking(wakeup)
        };
        self.kernel(event, waker.tid, what);
    }

    /// Writes the name of a waker that belongs to another program, before its first wakeup under that name.
    fn name_outsider(&mut self, event: &Event, waker: &Waker) {
        let Some(comm) = outsider_name(&self.run.aggregates, waker) else {
            return;
        };
        if self.named_outsiders.insert(waker.tid, comm) != Some(comm) {
            self.rename(event, waker.tid, "", &printable(&name_of(&comm)));
        }
    }

    fn switch(&mut self, event: &Event, out: Option<&Out>, into: Option<&In>) {
        if let Some(out) = out {
            self.switches += 1;
            let thread = self.thread(out.tid, event.at_ns);
            thread.sleeps = out.leave == Leave::Slept;
            let waited = std::mem::replace(&mut thread.waits, out.leave == Leave::Runnable);
            let waits = thread.waits;
            self.wait(event.at_ns, i64::from(waits) - i64::from(waited));
            if self.threads.get(&out.tid).is_some_and(|thread| thread.is_new) {
                self.place_in_tree(event, out.tid);
            }
        }
        if let Some(into) = into {
            let thread = self.thread(into.tid, event.at_ns);
            thread.sleeps = false;
            let (waited, was_new) = (std::mem::take(&mut thread.waits), thread.is_new);
            self.wait(event.at_ns, -i64::from(waited));
            if was_new {
                self.place_in_tree(event, into.tid);
            }
        }
        let (out_tid, in_tid) = (out.map_or(0, |out| out.tid), into.map_or(0, |into| into.tid));
        let switch = SchedSwitch {
            prev_comm: Some(self.comm(out_tid)),
            prev_pid: Some(out_tid as i32),
            prev_prio: Some(PRIORITY),
            prev_state: Some(out.map_or(0, sched::state)),
            next_comm: Some(self.comm(in_tid)),
            next_pid: Some(in_tid as i32),
            next_prio: Some(PRIORITY),
        };
        self.kernel(event, out_tid, Ftrace::SchedSwitch(switch));
        let next_ns = self
            .last_switch_counter_ns
            .map_or(0, |at_ns| at_ns.saturating_add(COUNTER_STEP_NS));
        if event.at_ns >= next_ns {
            self.last_switch_counter_ns = Some(event.at_ns);
            self.counter(SWITCHES, event.at_ns, self.switches);
        }
        if let Some(out) = out.filter(|out| out.leave == Leave::Dead) {
            self.ended(event, out.tid);
        }
    }

    // --- Tracks ------------------------------------------------------------------------------------------------------

    /// Writes the descriptor of a fixed track, unless it was written before.
    fn describe(&mut self, track: u64, at_ns: u64, name: &str, unit: Option<&str>) {
        if self.described.insert(track, ()).is_some() {
            return;
        }
        let counter = unit.map(|unit| CounterDescriptor {
            unit_name: Some(unit.to_owned()),
        });
        let descriptor = TrackDescriptor {
            uuid: Some(track),
            name: Some(name.to_owned()),
            counter,
            ..TrackDescriptor::default()
        };
        let timestamp = self.boot(at_ns);
        self.packets.packet(Some(timestamp), Data::TrackDescriptor(descriptor));
    }

    /// Returns the track of a thread, and writes its descriptor if the track is new.
    fn track(&mut self, tid: u32, at_ns: u64) -> u64 {
        let next = self.tracks;
        let thread = self.thread(tid, at_ns);
        if let Some(track) = thread.track {
            return track;
        }
        thread.track = Some(next);
        let (tgid, seen_ns) = (thread.tgid, thread.seen_ns.min(at_ns));
        self.tracks += 1;
        let descriptor = TrackDescriptor {
            uuid: Some(next),
            thread: Some(ThreadDescriptor {
                pid: Some(tgid as i32),
                tid: Some(i64::from(tid)),
            }),
            ..TrackDescriptor::default()
        };
        let timestamp = self.boot(seen_ns);
        self.packets.packet(Some(timestamp), Data::TrackDescriptor(descriptor));
        next
    }

    fn counter(&mut self, track: u64, at_ns: u64, value: i64) {
        let (name, unit) = match track {
            WAITING => ("threads waiting for a CPU", "threads"),
            _ => ("kernel switches", "switches"),
        };
        self.describe(track, at_ns, name, Some(unit));
        let timestamp = self.boot(at_ns);
        self.packets.event(
            timestamp,
            TrackEvent {
                r#type: Some(kind::COUNTER),
                track_uuid: Some(track),
                counter_value: Some(value),
                ..TrackEvent::default()
            },
        );
    }

    /// Changes the number of threads that wait for a CPU by `more`, which may be negative.
    fn wait(&mut self, at_ns: u64, more: i64) {
        if more != 0 {
            self.waiting += more;
            self.counter(WAITING, at_ns, self.waiting);
        }
    }

    /// Writes a slice on a track: its beginning, which carries the fields of `event`, and its end.
    fn slice(&mut self, track: u64, (start_ns, end_ns): (u64, u64), event: TrackEvent) {
        let (start, end) = (self.boot(start_ns), self.boot(end_ns));
        self.packets.event(
            start,
            TrackEvent {
                r#type: Some(kind::SLICE_BEGIN),
                track_uuid: Some(track),
                ..event
            },
        );
        self.packets.event(
            end,
            TrackEvent {
                r#type: Some(kind::SLICE_END),
                track_uuid: Some(track),
                ..TrackEvent::default()
            },
        );
    }

    fn instant(&mut self, track: u64, at_ns: u64, named: Named, text: &str, event: TrackEvent) {
        let name_iid = self.packets.event_name(named, || text.to_owned());
        let timestamp = self.boot(at_ns);
        self.packets.event(
            timestamp,
            TrackEvent {
                r#type: Some(kind::INSTANT),
                track_uuid: Some(track),
                name_iid: Some(name_iid),
                ..event
            },
        );
    }

    /// Writes the slices that the replay has emitted, except for threads whose polls were recorded.
    fn slices(&mut self) {
        // The vector is given back empty, to reuse its allocation.
        let mut slices = std::mem::take(self.replay.intervals_mut().sink_mut());
        let has_polls = |tid| {
            self.polls
                .as_ref()
                .is_some_and(|polls| polls.recorded_tids.contains(&tid))
        };
        slices.retain(|slice| !has_polls(slice.thread.tid));
        for slice in &slices {
            self.task_slice(slice);
        }
        slices.clear();
        *self.replay.intervals_mut().sink_mut() = slices;
    }

    fn task_slice(&mut self, slice: &TaskSlice) {
        let tid = slice.thread.tid;
        let track = self.track(tid, slice.start_ns);
        let woken = self.thread(tid, slice.start_ns).woken;
        let mut terminating_flow_ids = Vec::new();
        if let Some((flow, in_ns)) = woken.filter(|&(_, in_ns)| in_ns <= slice.start_ns) {
            self.thread(tid, slice.start_ns).woken = None;
            if in_ns < slice.start_ns {
                let step = TrackEvent {
                    flow_ids: vec![flow],
                    ..TrackEvent::default()
                };
                self.woken(track, in_ns, step);
            }
            terminating_flow_ids.push(flow);
        }
        let key = TaskKey {
            task: slice.task,
            image: slice.image,
        };
        let aggregates = &self.run.aggregates;
        let name_iid = self.packets.event_name(Named::Task(key), || {
            let name = printable(&tasks::name(aggregates, key));
            match self.types.get(&key) {
                Some(of) => format!("{name} {}", printable(of)),
                None => name,
            }
        });
        let mut debug_annotations = Vec::new();
        if let Some((class, reason)) = slice.switched_out {
            debug_annotations.push(DebugAnnotation {
                name_iid: Some(self.packets.annotation_name("switched out")),
                string_value_iid: Some(self.packets.annotation_value(self.class(slice, class, reason))),
                ..DebugAnnotation::default()
            });
        }
        self.slice(
            track,
            (slice.start_ns, slice.end_ns),
            TrackEvent {
                name_iid: Some(name_iid),
                debug_annotations,
                terminating_flow_ids,
                ..TrackEvent::default()
            },
        );
    }

    /// The class in the ledger of the switch-out from which a slice is known.
    fn class(&self, slice: &TaskSlice, number: u8, reason: u8) -> &'static str {
        let Image { tgid, number: image } = slice.image;
        let mut key = SumKey::EMPTY;
        (key.task, key.tgid, key.image) = (slice.task, tgid, image);
        (key.class, key.reason) = (number, reason);
        entry_of(&key, &self.run.aggregates).class.in_words()
    }

    // --- Flows -------------------------------------------------------------------------------------------------------

    fn woken(&mut self, track: u64, at_ns: u64, event: TrackEvent) {
        self.instant(track, at_ns, Named::Text("woken".to_owned()), "woken", event);
    }

    /// Begins the flow of a wakeup that led to a switch-in. A slice or an event of the woken thread will end it.
    fn flow(&mut self, wake: &EffectiveWakeup) {
        self.end_of_flow(wake.tid);
        self.flows += 1;
        let flow = self.flows;
        let waker = &wake.waker;
        let track = match WakeupOrigin::from_number(waker.origin) {
            WakeupOrigin::Interrupt => INTERRUPTS,
            WakeupOrigin::Outside => OTHER_PROGRAMS,
            WakeupOrigin::Task | WakeupOrigin::Runtime | WakeupOrigin::Thread
                if self.threads.contains_key(&waker.tid) =>
            {
                self.track(waker.tid, wake.woken_ns)
            }
            _ => UNKNOWN_WAKERS,
        };
        let fixed_name = match track {
            INTERRUPTS => Some("wakeups by interrupts"),
            OTHER_PROGRAMS => Some("wakeups by other programs"),
            UNKNOWN_WAKERS => Some("wakeups by unknown threads"),
            _ => None,
        };
        if let Some(name) = fixed_name {
            self.describe(track, wake.woken_ns, name, None);
        }
        let text = format!("wakes {} {}", self.comm(wake.tid), wake.tid);
        let begin = TrackEvent {
            flow_ids: vec![flow],
            ..TrackEvent::default()
        };
        self.instant(track, wake.woken_ns, Named::Text(text.clone()), &text, begin);
        self.thread(wake.tid, wake.in_ns).woken = Some((flow, wake.in_ns));
    }

    /// Ends the flow to a thread's last switch-in with an event `woken`, if no slice has ended it.
    fn end_of_flow(&mut self, tid: u32) {
        let woken = self.threads.get_mut(&tid).and_then(|thread| thread.woken.take());
        if let Some((flow, in_ns)) = woken {
            let track = self.track(tid, in_ns);
            let end = TrackEvent {
                terminating_flow_ids: vec![flow],
                ..TrackEvent::default()
            };
            self.woken(track, in_ns, end);
        }
    }

    fn event(&mut self, event: &Event) {
        self.first_ns.get_or_insert(event.at_ns);
        self.last_ns = self.last_ns.max(event.at_ns);
        self.replay.event(event);
        self.slices();
        if let Some(wake) = self.wakes.event(event) {
            self.flow(&wake);
        } else if let Some(Decoded::Switch { into: Some(into), .. }) = event.decode() {
            // The thread is switched in without a wakeup, so no slice can end the flow of its previous wakeup any more.
            self.end_of_flow(into.tid);
        }
        match event.decode() {
            Some(Decoded::Switch { out, into }) => self.switch(event, out.as_ref(), into.as_ref()),
            Some(Decoded::Wakeup {
                tid, newborn, waker, ..
            }) => self.wakeup(event, tid, newborn, &waker),
            Some(Decoded::Thread {
                tid,
                previous_tid,
                start_boottime_ns,
                image,
                new,
            }) => self.introduce(event, tid, previous_tid, start_boottime_ns, image.tgid, new),
            Some(Decoded::Name { tid, comm }) => self.name(event, tid, &comm),
            Some(Decoded::Exec { .. } | Decoded::Sample(_)) | None => {}
        }
    }
}

impl<W: Write> Trace<'_, W> {
    /// Draws the waiting events up to this time.
    fn events_until(&mut self, until_ns: u64) {
        while let Some(polls) = &mut self.polls
            && polls.waiting.front().is_some_and(|event| event.at_ns <= until_ns)
            && let Some(event) = polls.waiting.pop_front()
        {
            self.event(&event);
        }
    }

    fn poll_slice(&mut self, slice: &PollSlice) {
        let thread = self.thread(slice.tid, slice.begin_ns);
        let slice = TaskSlice {
            thread: ThreadId {
                start_boottime_ns: thread.start_boottime_ns,
                tgid: slice.tgid,
                tid: slice.tid,
            },
            image: slice.task.image,
            task: slice.task.task,
            start_ns: slice.begin_ns,
            end_ns: slice.end_ns,
            switched_out: None,
        };
        self.task_slice(&slice);
    }
}

impl<W: Write> EventSink for Trace<'_, W> {
    fn events(&mut self, batch: &[Event]) {
        if let Some(polls) = &mut self.polls {
            polls.replay.events(batch);
            polls.waiting.extend(batch);
            while let Some(polls) = &mut self.polls
                && polls.waiting.len() > MOST_WAITING
                && let Some(event) = polls.waiting.pop_front()
            {
                self.event(&event);
            }
            return;
        }
        for event in batch {
            self.event(event);
        }
    }

    fn polls(&mut self, batch: &PollBatch) {
        let Some(polls) = &mut self.polls else { return };
        polls.replay.polls(batch);
        polls
            .recorded_tids
            .extend(batch.threads.iter().map(|thread| thread.tid));
        let mut slices = std::mem::take(polls.replay.sink_mut());
        // A poll is emitted when it ends, so a long poll comes late. The sort is stable: the polls of one thread keep their
        // order.
        slices.sort_by_key(|slice| slice.begin_ns);
        for slice in &slices {
            self.events_until(slice.begin_ns);
            self.poll_slice(slice);
        }
        self.events_until(batch.until_ns);
        slices.clear();
        if let Some(polls) = &mut self.polls {
            *polls.replay.sink_mut() = slices;
        }
    }
}
