//! Combines polls and wakes with the events: how long each poll took, and how long a woken task waited for its poll, leg by leg.
//!
//! ```text
//!   thread A   ──[ poll of sender ──── wake(receiver) ──]──
//!                └── waker's poll ────┤    │ sched_waking(B)
//!                                          │
//!   thread B   ── asleep ──────────────────┤             ├── on CPU ──[ poll of receiver ]──
//!                                     ├────┤             │            │
//!                            wake to wakeup│             │            │
//!                                          ├─────────────┤ wakeup to switch-in
//!                                                        ├────────────┤ switch-in to poll
//!                                     ├───────────────────────────────┤ the delay
//! ```
//!
//! Wakes and polls come from the probe's rings ([`PollBatch`]); switches and wakeups are events of the timeline. Here a *wake* is
//! made in user space and makes a task runnable, and a *wakeup* is made in the kernel and makes a thread runnable. Both sources
//! come in batches. A batch of polls contains the time up to which all stamps are known, so it can be merged with the events that
//! came before it.
//!
//! **Which wake.** A poll of a task belongs to the first wake since the task's previous poll began, because that wake made the
//! runtime put the task in a queue. The delay of a wake during the task's own poll begins at the end of that poll. A poll without
//! such a wake has no delay. This is the case for the first poll of a task, and for polls after a loss of stamps, because it is
//! then unknown whether a pending wake has already led to a poll.
//!
//! **Which path.** If the polling thread was switched in since the wake, the delay contains kernel time. The switch-in event has
//! the time of the wakeup that ended the thread's sleep. If that wakeup came after the wake, there are three legs, which add up
//! to the delay. If it came before the wake, or if the thread did not sleep, the thread was already coming, and there are two
//! legs.

use ctxtrace_format::sums::SaturatingSum;
use std::cmp::Reverse;
use std::collections::{BinaryHeap, HashMap, VecDeque};
use std::hash::BuildHasherDefault;

use ctxtrace_common::clock::Leave;
use ctxtrace_common::event::{Decoded, Event};
use ctxtrace_common::locator::OTHER_TASKS;
use ctxtrace_common::process::{Image, TaskKey};

use super::timeline::IdHasher;
use ctxtrace_format::events::EventSink;
use ctxtrace_format::polls::{Leg, Path, PollBatch, PollSums, PollWaker, Stamp, StampKind, TaskPolls, WakeEdge};

/// Maximum number of tasks, and of pairs of waker and task. Further tasks are summed in one row; further pairs are not recorded.
const MOST_ROWS: usize = 1_024;
/// Upper bound on live threads, so that forged rings cannot make the replay allocate without limit. Stamps of further threads are
/// counted as lost.
const MOST_THREADS: usize = 1 << 16;
/// Maximum number of switches that are queued until the polls of the same time arrive. Rings of events of the default size hold
/// fewer. If there are more, as in a forged file, the oldest ones are processed without waiting.
const MOST_WAITING: usize = 1 << 21;
/// The row of all tasks that have no row of their own.
const OTHERS: u32 = 0;

/// One finished poll.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PollSlice {
    /// Process id.
    pub tgid: u32,
    /// Thread id.
    pub tid: u32,
    /// The polled task: the probe's id, and the program that the process ran.
    pub task: TaskKey,
    /// Beginning of the poll, `CLOCK_MONOTONIC` nanoseconds.
    pub begin_ns: u64,
    /// End of the poll, `CLOCK_MONOTONIC` nanoseconds.
    pub end_ns: u64,
    /// The wait for the poll; `None` if no wake is known to have led to it.
    pub wait: Option<Wait>,
}

/// The time from a wake to the poll that it led to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Wait {
    /// What the polling thread did in this time.
    pub path: Path,
    /// Duration in nanoseconds.
    pub ns: u64,
}

/// One wake of a task.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TaskWake {
    /// Time of the wake, `CLOCK_MONOTONIC` nanoseconds.
    pub at_ns: u64,
    /// Id of the thread that made the wake.
    pub by_tid: u32,
    /// The task that this thread was polling, if any.
    pub by_task: Option<TaskKey>,
    /// The woken task.
    pub task: TaskKey,
}

/// Takes polls as they end, and wakes. Those of one thread come in order; those of different threads may be slightly out of
/// order.
pub trait PollSink {
    /// Takes a finished poll.
    fn slice(&mut self, slice: &PollSlice);

    /// Takes a wake.
    fn wake(&mut self, _wake: &TaskWake) {}
}

/// Ignores everything.
impl PollSink for () {
    fn slice(&mut self, _slice: &PollSlice) {}
}

/// Collects the polls.
impl PollSink for Vec<PollSlice> {
    fn slice(&mut self, slice: &PollSlice) {
        self.push(*slice);
    }
}

/// The last switch-in of a thread.
#[derive(Clone, Copy, Debug, Default)]
struct SwitchIn {
    at_ns: u64,
    /// Time of the wakeup that ended the thread's sleep; 0 if the thread did not sleep, or if the wakeup was not recorded.
    woken_ns: u64,
}

#[derive(Clone, Copy, Debug)]
struct OpenPoll {
    task: u32,
    begin_ns: u64,
    /// The wait for this poll, if its wake is known.
    wait: Option<Wait>,
}

#[derive(Clone, Debug, Default)]
struct PollingThread {
    tgid: u32,
    tid: u32,
    /// Whether the timeline contains a switch of the thread.
    is_known: bool,
    slept: bool,
    last: SwitchIn,
    open: Option<OpenPoll>,
}

#[derive(Clone, Copy, Debug)]
struct Pending {
    by: PollWaker,
    /// Time from which the delay is counted: `at_ns`, or the end of the poll during which the wake was made.
    since_ns: u64,
    at_ns: u64,
    /// Beginning of the poll that made the wake, if it was made in a poll.
    wakers_poll_ns: Option<u64>,
    epoch: u64,
}

#[derive(Clone, Debug)]
struct PolledTaskSums {
    key: TaskKey,
    sums: TaskPolls,
    last_begin_ns: u64,
    pending: Option<Pending>,
    /// The waker and index of the last used edge: a cache, because the next waker is usually the same.
    last_edge: Option<(PollWaker, usize)>,
}

/// A switch that is queued until the polls of the same time arrive.
#[derive(Clone, Copy, Debug)]
enum QueuedSwitch {
    Out { tid: u32, leave: Leave },
    In { tid: u32, woken_ns: u64 },
}

/// Combines polls and wakes with the events, and sends the finished polls to a sink; see the module's documentation.
#[derive(Clone, Debug)]
pub struct PollReplay<S = ()> {
    sums: PollSums,
    threads: Vec<PollingThread>,
    /// Indices in `threads` that are free, because their threads have ended.
    vacant: Vec<usize>,
    thread_of: HashMap<u32, usize, BuildHasherDefault<IdHasher>>,
    images: HashMap<u32, Image, BuildHasherDefault<IdHasher>>,
    tasks: Vec<PolledTaskSums>,
    task_of: HashMap<TaskKey, u32, BuildHasherDefault<IdHasher>>,
    edges: Vec<((PollWaker, TaskKey), WakeEdge)>,
    edge_of: HashMap<(PollWaker, TaskKey), usize>,
    switches: VecDeque<(u64, QueuedSwitch)>,
    last_ns: u64,
    /// Incremented when stamps were lost. Wakes that were pending before are then ignored.
    epoch: u64,
    sink: S,
}

impl<S: Default> Default for PollReplay<S> {
    fn default() -> Self {
        Self::with_sink(S::default())
    }
}

impl<S> PollReplay<S> {
    /// Creates a replay that sends slices and wakes to `sink`.
    #[must_use]
    pub fn with_sink(sink: S) -> Self {
        let others = TaskKey {
            task: OTHER_TASKS,
            image: Image::default(),
        };
        Self {
            sums: PollSums::default(),
            threads: Vec::new(),
            vacant: Vec::new(),
            thread_of: HashMap::default(),
            images: HashMap::default(),
            tasks: vec![PolledTaskSums::new(others)],
            task_of: HashMap::default(),
            edges: Vec::new(),
            edge_of: HashMap::new(),
            switches: VecDeque::new(),
            last_ns: 0,
            epoch: 0,
            sink,
        }
    }

    /// The sink.
    pub fn sink_mut(&mut self) -> &mut S {
        &mut self.sink
    }

    /// Ends the replay, and returns the sums and the sink.
    #[must_use]
    pub fn conclude(mut self) -> (PollSums, S) {
        let mut tasks: Vec<_> = self.tasks.into_iter().map(|task| (task.key, task.sums)).collect();
        tasks.retain(|(_, sums)| sums.polls > 0 || sums.wakes > 0);
        let ended: u64 = tasks.iter().map(|(_, sums)| sums.poll.count()).saturating_sum();
        self.sums.open = self.sums.polls - ended;
        self.sums.tasks = tasks;
        self.sums.edges = self.edges;
        (self.sums, self.sink)
    }
}

impl<S: PollSink> EventSink for PollReplay<S> {
    fn events(&mut self, batch: &[Event]) {
        for event in batch {
            match event.decode() {
                Some(Decoded::Switch { out, into }) => {
                    if let Some(out) = out {
                        let (tid, leave) = (out.tid, out.leave);
                        self.switches.push_back((event.at_ns, QueuedSwitch::Out { tid, leave }));
                    }
                    if let Some(into) = into {
                        let (tid, woken_ns) = (into.tid, into.woken_ns);
                        self.switches
                            .push_back((event.at_ns, QueuedSwitch::In { tid, woken_ns }));
                    }
                }
                Some(Decoded::Thread { image, .. }) => {
                    self.images.insert(image.tgid, image);
                }
                _ => {}
            }
            while self.switches.len() > MOST_WAITING {
                self.next_switch();
            }
        }
    }

    fn polls(&mut self, batch: &PollBatch) {
        self.sums.lost = self.sums.lost.saturating_add(batch.dropped_without_ring);
        if batch.dropped_without_ring > 0 {
            self.epoch += 1;
        }
        let mut parts: Vec<PendingStamps<'_>> = Vec::with_capacity(batch.threads.len());
        for read in &batch.threads {
            self.sums.lost = self.sums.lost.saturating_add(read.lost);
            match self.thread(read.tgid, read.tid) {
                Some(thread) => parts.push(PendingStamps {
                    thread,
                    lost: read.lost > 0,
                    stamps: &read.stamps,
                }),
                None => self.sums.lost = self.sums.lost.saturating_add(read.stamps.len() as u64),
            }
        }
        self.merge(batch.base_ns, &mut parts);
        self.switch_until(batch.until_ns);
    }
}

/// The stamps of one thread that are not processed yet.
struct PendingStamps<'a> {
    thread: usize,
    /// Whether stamps before the first one were lost.
    lost: bool,
    stamps: &'a [Stamp],
}

impl<S: PollSink> PollReplay<S> {
    /// Processes the stamps of all parts in the order of time. Two parts of the same thread follow each other and do not overlap.
    fn merge(&mut self, base_ns: u64, parts: &mut [PendingStamps<'_>]) {
        let mut next: BinaryHeap<Reverse<(u64, usize)>> = BinaryHeap::with_capacity(parts.len());
        for (index, part) in parts.iter().enumerate() {
            if let Some(first) = part.stamps.first() {
                next.push(Reverse((first.since_base_ns(), index)));
            }
        }
        while let Some(Reverse((_, index))) = next.pop() {
            let part = &mut parts[index];
            if std::mem::take(&mut part.lost) {
                self.epoch += 1;
                self.threads[part.thread].open = None;
            }
            // Process all stamps up to the first one of the next part.
            let until_ns = next.peek().map_or(u64::MAX, |Reverse((at_ns, _))| *at_ns);
            let mut taken = 0;
            for stamp in part.stamps {
                let since_ns = stamp.since_base_ns();
                if taken > 0 && since_ns > until_ns {
                    break;
                }
                taken += 1;
                self.stamp(part.thread, base_ns.saturating_add(since_ns), stamp.what());
            }
            part.stamps = &part.stamps[taken..];
            if let Some(first) = part.stamps.first() {
                next.push(Reverse((first.since_base_ns(), index)));
            }
        }
    }

    #[inline]
    fn stamp(&mut self, thread: usize, at_ns: u64, what: StampKind) {
        self.sums.stamps += 1;
        if at_ns < self.last_ns {
            self.sums.unordered += 1;
        } else {
            self.last_ns = at_ns;
        }
        if self
            .switches
            .front()
            .is_some_and(|(switched_ns, _)| *switched_ns <= at_ns)
        {
            self.switch_until(at_ns);
        }
        match what {
            StampKind::Begin(task) => self.begin(thread, at_ns, task),
            StampKind::End => self.end(thread, at_ns),
            StampKind::Wake(task) => self.wake(thread, at_ns, task),
        }
    }

    fn begin(&mut self, thread: usize, at_ns: u64, task: u64) {
        let row = self.task(self.threads[thread].tgid, task);
        self.sums.polls += 1;
        let task = &mut self.tasks[row as usize];
        task.sums.polls += 1;
        task.last_begin_ns = at_ns;
        let pending = task.pending.take().filter(|pending| pending.epoch == self.epoch);
        let wait = pending.map(|pending| self.arrived(thread, at_ns, row, &pending));
        self.sums.without_wake += u64::from(wait.is_none());
        self.threads[thread].open = Some(OpenPoll {
            task: row,
            begin_ns: at_ns,
            wait,
        });
    }

    /// Records the delay of a poll that begins now, and returns how the wake led to it.
    fn arrived(&mut self, thread: usize, now_ns: u64, row: u32, pending: &Pending) -> Wait {
        let PollingThread { is_known, last, .. } = self.threads[thread];
        let since_ns = pending.since_ns;
        let delay_ns = now_ns.saturating_sub(since_ns);
        let path = if !is_known {
            Path::Unknown
        } else if last.at_ns <= since_ns {
            Path::UserSpace
        } else if last.woken_ns >= since_ns {
            Path::Kernel
        } else {
            Path::AlreadyComing
        };
        let chain = &mut self.sums.chains[path as usize];
        chain.delay.record(delay_ns);
        let mut leg = |leg: Leg, ns| chain.legs[leg as usize].record(ns);
        if let Some(began_ns) = pending.wakers_poll_ns {
            leg(Leg::WakersPoll, pending.at_ns.saturating_sub(began_ns));
        }
        match path {
            Path::UserSpace | Path::Unknown => leg(Leg::WakeToPoll, delay_ns),
            Path::Kernel => {
                leg(Leg::WakeToWaking, last.woken_ns - since_ns);
                leg(Leg::WakingToSwitchIn, last.at_ns.saturating_sub(last.woken_ns));
                leg(Leg::SwitchInToPoll, now_ns.saturating_sub(last.at_ns));
            }
            Path::AlreadyComing => {
                leg(Leg::WakeToSwitchIn, last.at_ns - since_ns);
                leg(Leg::SwitchInToPoll, now_ns.saturating_sub(last.at_ns));
            }
        }
        let task = &mut self.tasks[row as usize];
        task.sums.delays[path as usize].record(delay_ns);
        if let Some(edge) = self.edge(row, pending.by) {
            edge.by_path[path as usize] += 1;
            edge.delay.record(delay_ns);
        }
        Wait { path, ns: delay_ns }
    }

    fn end(&mut self, thread: usize, at_ns: u64) {
        let PollingThread { tgid, tid, .. } = self.threads[thread];
        let Some(open) = self.threads[thread].open.take() else {
            // The beginning of this poll was lost.
            return;
        };
        let task = &mut self.tasks[open.task as usize];
        let ns = at_ns.saturating_sub(open.begin_ns);
        task.sums.poll.record(ns);
        if let Some(pending) = &mut task.pending {
            pending.since_ns = pending.since_ns.max(at_ns);
        }
        if let Some(Wait { path, .. }) = open.wait {
            self.sums.chains[path as usize].legs[Leg::Poll as usize].record(ns);
        }
        self.sink.slice(&PollSlice {
            tgid,
            tid,
            task: task.key,
            begin_ns: open.begin_ns,
            end_ns: at_ns,
            wait: open.wait,
        });
    }

    fn wake(&mut self, thread: usize, at_ns: u64, task: u64) {
        let PollingThread { tgid, tid, open, .. } = self.threads[thread];
        let row = self.task(tgid, task);
        self.sums.wakes += 1;
        let by_task = open.map(|open| self.tasks[open.task as usize].key);
        let epoch = self.epoch;
        let task = &mut self.tasks[row as usize];
        task.sums.wakes += 1;
        self.sink.wake(&TaskWake {
            at_ns,
            by_tid: tid,
            by_task,
            task: task.key,
        });
        // The row of all other tasks is not one task, and a wake from before the task's last poll has already led to that poll.
        let is_pending = task.pending.is_some_and(|pending| pending.epoch == epoch);
        if row == OTHERS || is_pending || at_ns < task.last_begin_ns {
            return;
        }
        task.pending = Some(Pending {
            by: by_task.map_or(PollWaker::Thread { tgid, tid }, PollWaker::Task),
            since_ns: at_ns,
            at_ns,
            wakers_poll_ns: open.map(|open| open.begin_ns),
            epoch,
        });
    }

    /// Processes the queued switches up to this time.
    fn switch_until(&mut self, until_ns: u64) {
        while self.switches.front().is_some_and(|(at_ns, _)| *at_ns <= until_ns) {
            self.next_switch();
        }
    }

    fn next_switch(&mut self) {
        let Some((at_ns, switch)) = self.switches.pop_front() else {
            return;
        };
        let (QueuedSwitch::Out { tid, .. } | QueuedSwitch::In { tid, .. }) = switch;
        let Some(index) = self.thread_by_tid(tid) else { return };
        let thread = &mut self.threads[index];
        thread.is_known = true;
        match switch {
            QueuedSwitch::Out { leave: Leave::Dead, .. } => {
                self.thread_of.remove(&tid);
                self.vacant.push(index);
            }
            QueuedSwitch::Out { leave, .. } => thread.slept = leave == Leave::Slept,
            QueuedSwitch::In { woken_ns, .. } => {
                thread.last = SwitchIn {
                    at_ns,
                    woken_ns: if thread.slept { woken_ns } else { 0 },
                };
            }
        }
    }

    /// The index of the thread with this id, which is created if it is not known. Returns `None` if there are too many threads.
    fn thread_by_tid(&mut self, tid: u32) -> Option<usize> {
        if let Some(&thread) = self.thread_of.get(&tid) {
            return Some(thread);
        }
        let thread = PollingThread {
            tid,
            ..PollingThread::default()
        };
        let index = match self.vacant.pop() {
            Some(index) => {
                self.threads[index] = thread;
                index
            }
            None if self.threads.len() >= MOST_THREADS => return None,
            None => {
                self.threads.push(thread);
                self.threads.len() - 1
            }
        };
        self.thread_of.insert(tid, index);
        Some(index)
    }

    /// The index of the thread with these ids in a ring.
    fn thread(&mut self, tgid: u32, tid: u32) -> Option<usize> {
        let index = self.thread_by_tid(tid)?;
        let thread = &mut self.threads[index];
        if thread.tgid != tgid {
            // The thread is new in the rings, or a thread of another process had this id before.
            thread.tgid = tgid;
            thread.open = None;
        }
        Some(index)
    }

    /// The row of a task, or [`OTHERS`] if the table is full.
    #[inline]
    fn task(&mut self, tgid: u32, task: u64) -> u32 {
        if task == 0 {
            return OTHERS;
        }
        let image = self.images.get(&tgid).copied().unwrap_or(Image { tgid, number: 0 });
        let key = TaskKey { task, image };
        if let Some(&row) = self.task_of.get(&key) {
            return row;
        }
        if self.tasks.len() >= MOST_ROWS {
            return OTHERS;
        }
        let row = self.tasks.len() as u32;
        self.tasks.push(PolledTaskSums::new(key));
        self.task_of.insert(key, row);
        row
    }

    fn edge(&mut self, row: u32, by: PollWaker) -> Option<&mut WakeEdge> {
        let task = &mut self.tasks[row as usize];
        let index = match task.last_edge {
            Some((last, index)) if last == by => index,
            _ => {
                let pair = (by, task.key);
                let index = match self.edge_of.get(&pair) {
                    Some(&index) => index,
                    None if self.edges.len() >= MOST_ROWS => return None,
                    None => {
                        self.edges.push((pair, WakeEdge::default()));
                        self.edge_of.insert(pair, self.edges.len() - 1);
                        self.edges.len() - 1
                    }
                };
                task.last_edge = Some((by, index));
                index
            }
        };
        Some(&mut self.edges[index].1)
    }
}

impl PolledTaskSums {
    fn new(key: TaskKey) -> Self {
        Self {
            key,
            sums: TaskPolls::default(),
            last_begin_ns: 0,
            pending: None,
            last_edge: None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use ctxtrace_abi::rings::{BEGIN, END, WAKE, record, short_task, what};
    use ctxtrace_common::clock::NotedWakeup;
    use ctxtrace_common::stack::SumKey;
    use ctxtrace_format::polls::ThreadStamps;

    const A: u32 = 11;
    const B: u32 = 12;
    const IMAGE: Image = Image { tgid: 10, number: 1 };
    const SENDER: u64 = 1;
    const RECEIVER: u64 = 2;

    fn key(task: u64) -> TaskKey {
        TaskKey { task, image: IMAGE }
    }

    #[derive(Default)]
    struct Collected(Vec<PollSlice>, Vec<TaskWake>);

    impl PollSink for Collected {
        fn slice(&mut self, slice: &PollSlice) {
            self.0.push(*slice);
        }

        fn wake(&mut self, wake: &TaskWake) {
            self.1.push(*wake);
        }
    }

    fn stamp((ns, kind, task): (u64, u64, u64)) -> Stamp {
        Stamp::of_record(record(what(kind, short_task(task)), 0), ns).expect("a stamp")
    }

    fn stamps_of(tid: u32, lost: u64, stamps: &[(u64, u64, u64)]) -> ThreadStamps {
        ThreadStamps {
            tgid: IMAGE.tgid,
            tid,
            lost,
            stamps: stamps.iter().copied().map(stamp).collect(),
        }
    }

    fn batch(until_ns: u64, threads: Vec<ThreadStamps>) -> PollBatch {
        PollBatch {
            base_ns: 1_000,
            until_ns,
            dropped_without_ring: 0,
            threads,
        }
    }

    fn introduced() -> PollReplay<Collected> {
        let mut replay = PollReplay::with_sink(Collected::default());
        replay.events(&[
            Event::thread(1, 0, A, 0, 5, IMAGE, true),
            Event::thread(1, 0, B, 0, 6, IMAGE, true),
            came(2, A, 0),
            came(2, B, 0),
        ]);
        replay
    }

    fn came(at_ns: u64, tid: u32, woken_ns: u64) -> Event {
        let mut event = Event::switch(at_ns, 0);
        event.set_in(tid, NotedWakeup::OffCpu, woken_ns);
        event
    }

    fn left(at_ns: u64, tid: u32, leave: Leave) -> Event {
        let mut event = Event::switch(at_ns, 0);
        event.set_out(tid, leave, leave == Leave::Slept, &SumKey::EMPTY);
        event
    }

    /// Count and sum of the durations of a leg.
    fn leg(polls: &PollSums, path: Path, leg: Leg) -> (u64, u64) {
        let leg = polls.chains[path as usize].legs[leg as usize].get();
        leg.map_or((0, 0), |leg| (leg.count, leg.sum_ns))
    }

    /// The case drawn in the module's documentation.
    #[test]
    fn a_wake_goes_through_the_kernel_leg_by_leg() {
        let mut replay = introduced();
        replay.events(&[left(1_005, B, Leave::Slept), came(1_150, B, 1_060)]);
        replay.polls(&batch(
            2_000,
            vec![
                stamps_of(A, 0, &[(10, BEGIN, SENDER), (50, WAKE, RECEIVER), (70, END, 0)]),
                stamps_of(B, 0, &[(180, BEGIN, RECEIVER), (200, END, 0)]),
            ],
        ));
        let (polls, Collected(slices, wakes)) = replay.conclude();
        assert_eq!((polls.stamps, polls.polls, polls.wakes, polls.open), (5, 2, 1, 0));
        assert_eq!(polls.without_wake, 1, "no wake of the sender");
        assert_eq!(leg(&polls, Path::Kernel, Leg::WakersPoll), (1, 40));
        assert_eq!(leg(&polls, Path::Kernel, Leg::WakeToWaking), (1, 10));
        assert_eq!(leg(&polls, Path::Kernel, Leg::WakingToSwitchIn), (1, 90));
        assert_eq!(leg(&polls, Path::Kernel, Leg::SwitchInToPoll), (1, 30));
        assert_eq!(leg(&polls, Path::Kernel, Leg::Poll), (1, 20));
        assert_eq!(leg(&polls, Path::Kernel, Leg::WakeToPoll), (0, 0));
        let delay = polls.chains[Path::Kernel as usize].delay.get().expect("one");
        assert_eq!((delay.count, delay.sum_ns), (1, 10 + 90 + 30));
        assert_eq!(
            slices,
            [
                PollSlice {
                    tgid: 10,
                    tid: A,
                    task: key(SENDER),
                    begin_ns: 1_010,
                    end_ns: 1_070,
                    wait: None,
                },
                PollSlice {
                    tgid: 10,
                    tid: B,
                    task: key(RECEIVER),
                    begin_ns: 1_180,
                    end_ns: 1_200,
                    wait: Some(Wait {
                        path: Path::Kernel,
                        ns: 130
                    }),
                },
            ]
        );
        assert_eq!(
            wakes,
            [TaskWake {
                at_ns: 1_050,
                by_tid: A,
                by_task: Some(key(SENDER)),
                task: key(RECEIVER)
            }]
        );
        let ((by, whom), edge) = &polls.edges[0];
        assert_eq!((*by, *whom), (PollWaker::Task(key(SENDER)), key(RECEIVER)));
        assert_eq!(edge.by_path, [0, 1, 0, 0]);
    }

    #[test]
    fn a_thread_that_stays_on_its_cpu_stays_in_user_space() {
        let mut replay = introduced();
        replay.polls(&batch(
            2_000,
            vec![stamps_of(
                A,
                0,
                &[
                    (10, BEGIN, SENDER),
                    (50, WAKE, RECEIVER),
                    // The second wake has no effect.
                    (55, WAKE, RECEIVER),
                    (70, END, 0),
                    (90, BEGIN, RECEIVER),
                ],
            )],
        ));
        let (polls, _) = replay.conclude();
        assert_eq!(leg(&polls, Path::UserSpace, Leg::WakeToPoll), (1, 40));
        assert_eq!(leg(&polls, Path::UserSpace, Leg::WakersPoll), (1, 40));
        assert_eq!((polls.wakes, polls.open), (2, 1));
        // A thread without any event.
        let mut replay = PollReplay::default();
        replay.polls(&batch(
            2_000,
            vec![stamps_of(A, 0, &[(50, WAKE, RECEIVER), (90, BEGIN, RECEIVER)])],
        ));
        let (polls, ()) = replay.conclude();
        assert_eq!(leg(&polls, Path::Unknown, Leg::WakeToPoll), (1, 40));
        assert_eq!(polls.edges[0].0.0, PollWaker::Thread { tgid: 10, tid: A });
    }

    #[test]
    fn a_thread_that_was_coming_already_has_its_own_path() {
        // The thread was woken before the wake, or it was preempted. In neither case did the wake cause its switch-in.
        for (leave, woken_ns) in [(Leave::Slept, 1_040), (Leave::Runnable, 1_060)] {
            let mut replay = introduced();
            replay.events(&[left(1_005, B, leave), came(1_150, B, woken_ns)]);
            replay.polls(&batch(
                2_000,
                vec![
                    stamps_of(A, 0, &[(50, WAKE, RECEIVER)]),
                    stamps_of(B, 0, &[(180, BEGIN, RECEIVER)]),
                ],
            ));
            let (polls, _) = replay.conclude();
            assert_eq!(leg(&polls, Path::AlreadyComing, Leg::WakeToSwitchIn), (1, 100));
            assert_eq!(leg(&polls, Path::AlreadyComing, Leg::SwitchInToPoll), (1, 30));
        }
    }

    #[test]
    fn a_wake_in_the_tasks_own_poll_counts_from_its_end() {
        let mut replay = introduced();
        replay.polls(&batch(
            2_000,
            vec![stamps_of(
                A,
                0,
                &[
                    (10, BEGIN, SENDER),
                    (20, WAKE, SENDER),
                    (70, END, 0),
                    (75, BEGIN, SENDER),
                    (76, END, 0),
                ],
            )],
        ));
        let (polls, _) = replay.conclude();
        assert_eq!(leg(&polls, Path::UserSpace, Leg::WakeToPoll), (1, 5));
        assert_eq!(leg(&polls, Path::UserSpace, Leg::WakersPoll), (1, 10));
    }

    #[test]
    fn after_a_gap_nothing_that_was_pending_is_believed() {
        let mut replay = introduced();
        replay.polls(&batch(
            1_100,
            vec![stamps_of(A, 0, &[(10, BEGIN, SENDER), (50, WAKE, RECEIVER)])],
        ));
        // The lost stamps may include the end of the poll, and a poll of the receiver.
        replay.polls(&batch(
            2_000,
            vec![stamps_of(A, 7, &[(190, END, 0), (200, BEGIN, RECEIVER), (210, END, 0)])],
        ));
        let (polls, Collected(slices, _)) = replay.conclude();
        assert_eq!((polls.lost, polls.open, polls.without_wake), (7, 1, 2));
        assert_eq!(slices.len(), 1);
        assert_eq!(polls.edges.len(), 0);
    }

    #[test]
    fn late_stamps_are_counted_and_ignored() {
        let mut replay = introduced();
        replay.polls(&batch(
            1_100,
            vec![stamps_of(B, 0, &[(60, BEGIN, RECEIVER), (70, END, 0)])],
        ));
        replay.polls(&batch(1_200, vec![stamps_of(A, 0, &[(50, WAKE, RECEIVER)])]));
        replay.polls(&batch(1_300, vec![stamps_of(B, 0, &[(260, BEGIN, RECEIVER)])]));
        let (polls, _) = replay.conclude();
        assert_eq!((polls.unordered, polls.without_wake), (1, 2));
    }

    #[test]
    fn switches_wait_for_the_polls_of_their_time() {
        let mut replay = introduced();
        // The events of the next sleep arrive before the stamps of the poll that preceded it.
        replay.events(&[left(1_300, A, Leave::Slept), came(1_400, A, 1_350)]);
        replay.polls(&batch(
            1_200,
            vec![stamps_of(
                A,
                0,
                &[(50, WAKE, RECEIVER), (90, BEGIN, RECEIVER), (95, END, 0)],
            )],
        ));
        let (polls, _) = replay.clone_and_conclude();
        assert_eq!(leg(&polls, Path::UserSpace, Leg::WakeToPoll), (1, 40));
        assert_eq!(replay.switches.len(), 2);
        replay.polls(&batch(1_500, vec![]));
        assert!(replay.switches.is_empty());
    }

    impl PollReplay<Collected> {
        fn clone_and_conclude(&self) -> (PollSums, ()) {
            let plain = PollReplay {
                sums: self.sums.clone(),
                tasks: self.tasks.clone(),
                ..PollReplay::default()
            };
            plain.conclude()
        }
    }

    #[test]
    fn tasks_beyond_the_table_are_one() {
        let mut replay = introduced();
        let many: Vec<_> = (1..2_000).flat_map(|n| [(n, BEGIN, n), (n, END, 0)]).collect();
        replay.polls(&batch(5_000, vec![stamps_of(A, 0, &many)]));
        let (polls, _) = replay.conclude();
        assert_eq!((polls.tasks.len(), polls.polls), (MOST_ROWS, 1_999));
        assert_eq!(polls.tasks[0].0.task, OTHER_TASKS);
        assert_eq!(polls.tasks[0].1.polls, 1_999 - (MOST_ROWS as u64 - 1));
    }
}
