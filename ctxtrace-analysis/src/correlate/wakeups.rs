//! The wakeups by the names of waker and woken thread.

use std::collections::HashMap;

use ctxtrace_common::process::TaskKey;
use ctxtrace_common::wakeup::{EdgeKey, Waker, WakeupOrigin};

use super::tasks;
use ctxtrace_format::wakeups::EdgeSums;
use ctxtrace_format::{Aggregates, name_of};

/// The wakeups along one edge.
#[derive(Clone, Debug)]
pub struct WakeupPair {
    /// What made the wakeups.
    pub origin: WakeupOrigin,
    /// Name of the task that made the wakeups; `interrupt` for an interrupt; `None` if the waker was not polling a task.
    pub from_task: Option<String>,
    /// Name of the thread that made the wakeups; `interrupt` for an interrupt.
    pub from_thread: String,
    /// Id of the thread that made the wakeups; `None` for an interrupt, and for a sum of several wakers.
    pub from_tid: Option<u32>,
    /// Name of the woken thread.
    pub to_thread: String,
    /// Id of the woken thread; 0 for a sum of several threads.
    pub to_tid: u32,
    /// Whether the number of wasted wakeups is known, which is the case if the polls of the woken thread are counted.
    pub wasted_is_known: bool,
    /// The sums of the wakeups.
    pub edge: EdgeSums,
}

/// Returns every edge whose wakeups ended a sleep, in descending order of their number.
#[must_use]
pub fn wakeups(aggregates: &Aggregates) -> Vec<WakeupPair> {
    let names = ThreadNames::new(aggregates);
    let mut wakeups: Vec<WakeupPair> = aggregates
        .edges
        .iter()
        .filter(|(_, edge)| edge.count > 0)
        .map(|(key, edge)| names.describe(key, edge))
        .collect();
    wakeups.sort_by_key(|wakeups| std::cmp::Reverse(wakeups.edge.count));
    wakeups
}

/// Shown for a thread whose name is unknown.
const NO_NAME: &str = "?";

/// The name, padded with zeroes, that a thread outside the target had when it made a wakeup. Captures of older versions contain
/// only one name for each thread, which is not necessarily the name at that time.
#[must_use]
pub fn outsider_name(aggregates: &Aggregates, waker: &Waker) -> Option<[u8; 16]> {
    match waker.outsider_name()? {
        [0, ..] => aggregates.outsiders.get(&waker.tid).copied(),
        comm => Some(comm),
    }
}

/// Looks up the names of threads by id.
pub struct ThreadNames<'a> {
    of_targets: HashMap<u32, String>,
    counted: HashMap<u32, bool>,
    aggregates: &'a Aggregates,
}

impl<'a> ThreadNames<'a> {
    /// Collects the names of the threads of a capture.
    #[must_use]
    pub fn new(aggregates: &'a Aggregates) -> Self {
        let threads = || aggregates.threads.iter().map(|record| &record.thread);
        Self {
            of_targets: threads().map(|thread| (thread.tid, name_of(&thread.comm))).collect(),
            counted: threads().map(|thread| (thread.tid, thread.polls.is_read())).collect(),
            aggregates,
        }
    }

    fn of(&self, tid: u32) -> Option<String> {
        if tid == 0 {
            // The sum of edges for which a table had no room.
            return Some("(others)".to_owned());
        }
        self.of_targets.get(&tid).cloned()
    }

    /// The name of the thread that made a wakeup; `interrupt` for an interrupt, `unknown` for an unknown waker.
    #[must_use]
    pub fn of_waker(&self, waker: &Waker) -> String {
        let name = match WakeupOrigin::from_number(waker.origin) {
            WakeupOrigin::Interrupt => return "interrupt".to_owned(),
            WakeupOrigin::Unknown => return "unknown".to_owned(),
            WakeupOrigin::Task | WakeupOrigin::Runtime | WakeupOrigin::Thread => self.of(waker.tid),
            WakeupOrigin::Outside if waker.tid == 0 => self.of(0),
            WakeupOrigin::Outside => outsider_name(self.aggregates, waker).map(|comm| name_of(&comm)),
        };
        name.unwrap_or_else(|| NO_NAME.to_owned())
    }

    fn describe(&self, key: &EdgeKey, edge: &EdgeSums) -> WakeupPair {
        let origin = WakeupOrigin::from_number(key.origin.into());
        let waker = key.waker();
        let task = TaskKey {
            task: waker.task(),
            image: waker.program(),
        };
        WakeupPair {
            origin,
            from_task: match origin {
                WakeupOrigin::Task => Some(tasks::name(self.aggregates, task)),
                WakeupOrigin::Interrupt => Some("interrupt".to_owned()),
                _ => None,
            },
            from_thread: self.of_waker(&waker),
            from_tid: (key.from_tid != 0).then_some(key.from_tid),
            to_thread: self.of(key.to_tid).unwrap_or_else(|| NO_NAME.to_owned()),
            to_tid: key.to_tid,
            wasted_is_known: self.counted.get(&key.to_tid).copied().unwrap_or(false),
            edge: edge.clone(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use ctxtrace_common::process::Image;
    use ctxtrace_format::build;

    fn key(origin: WakeupOrigin, from_tid: u32, from_task: u64, to_tid: u32) -> EdgeKey {
        let waker = Waker {
            task: from_task,
            tid: from_tid,
            tgid: 100,
            origin: origin as u32,
            ..Waker::default()
        };
        EdgeKey::new(&waker, to_tid, 100)
    }

    #[test]
    fn a_waker_is_named_by_what_it_was() {
        let mut aggregates = build::aggregates(vec![
            build::thread(101, "worker", 1, 0),
            build::thread(102, "main", 1, 0),
        ]);
        let image = Image { tgid: 100, number: 0 };
        aggregates.names.insert(image, vec![String::new(), "sender".to_owned()]);
        let mut outsider = [0; 16];
        outsider[..4].copy_from_slice(b"sshd");
        aggregates.outsiders.insert(7, outsider);
        let renamed = |name: &[u8; 5]| {
            let mut comm = [0; 16];
            comm[..5].copy_from_slice(name);
            let mut waker = Waker {
                tid: 9,
                ..Waker::default()
            };
            waker.set_outsider(bytemuck::cast(comm));
            EdgeKey::new(&waker, 102, 100)
        };
        let mut edge = |key, count| {
            let edge = EdgeSums {
                count,
                ..EdgeSums::default()
            };
            aggregates.edges.push((key, edge));
        };
        edge(key(WakeupOrigin::Task, 101, 1, 102), 9);
        edge(key(WakeupOrigin::Interrupt, 0, 0, 102), 3);
        // As in a capture of a version that recorded one name for each thread.
        let mut unnamed = key(WakeupOrigin::Outside, 7, 0, 102);
        unnamed.from_tgid = 0;
        edge(unnamed, 2);
        edge(renamed(b"alpha"), 50);
        edge(renamed(b"beta\0"), 500);
        edge(key(WakeupOrigin::Runtime, 101, 0, 102), 0);
        let found: Vec<_> = wakeups(&aggregates)
            .into_iter()
            .map(|wakeups| {
                (
                    wakeups.from_task,
                    wakeups.from_thread,
                    wakeups.to_thread,
                    wakeups.edge.count,
                )
            })
            .collect();
        let text = |text: &str| text.to_owned();
        assert_eq!(
            found,
            [
                (None, text("beta"), text("main"), 500),
                (None, text("alpha"), text("main"), 50),
                (Some(text("sender")), text("worker"), text("main"), 9),
                (Some(text("interrupt")), text("interrupt"), text("main"), 3),
                (None, text("sshd"), text("main"), 2),
            ],
            "in descending order of their number, without the edge whose wakeups ended no sleep"
        );
    }
}
