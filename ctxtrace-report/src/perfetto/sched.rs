//! The kernel's events in the form in which Perfetto records them from `ftrace`: in bundles, each with events of one CPU.

use std::collections::BTreeMap;
use std::io::Write;

use ctxtrace_common::clock::Leave;
use ctxtrace_common::event::Out;
use ctxtrace_common::ledger::Class;

use super::packets::Packets;
use super::proto::{Data, Ftrace, FtraceEvent, FtraceEventBundle};

/// Number of events in a full bundle. A full bundle is written.
const BUNDLE: usize = 512;

/// The priority in every event: that of a thread with nice value 0. ctxtrace does not record priorities, but without this value
/// Perfetto would show all threads as real-time.
pub(super) const PRIORITY: i32 = 120;

/// `CLONE_THREAD`: the new thread is not a new process.
pub(super) const CLONE_THREAD: u64 = 0x1_0000;

/// The state of a thread at its switch-out, in the encoding of `prev_state` in `sched_switch` since Linux 4.14
/// (`include/linux/sched.h`, `TASK_REPORT`; `include/trace/events/sched.h`).
pub(super) fn state(out: &Out) -> i64 {
    const RUNNING: i64 = 0;
    const INTERRUPTIBLE: i64 = 0x1;
    const STOPPED: i64 = 0x4;
    const DEAD: i64 = 0x10;
    const PREEMPTED: i64 = 0x100;
    const OF_PREEMPTED: [u8; 3] = [
        Class::TaskPreempted as u8,
        Class::RuntimePreempted as u8,
        Class::ThreadPreempted as u8,
    ];
    match out.leave {
        Leave::Dead => DEAD,
        Leave::Slept if out.class == Class::Stopped as u8 => STOPPED,
        // ctxtrace does not record whether a signal could have ended the sleep.
        Leave::Slept => INTERRUPTIBLE,
        Leave::Runnable if OF_PREEMPTED.contains(&out.class) => PREEMPTED,
        Leave::Runnable => RUNNING,
    }
}

/// The bundles that are not full yet, by CPU.
#[derive(Default)]
pub(super) struct Bundles(BTreeMap<u16, FtraceEventBundle>);

impl Bundles {
    /// Marks that events of a CPU were lost. When they were lost is not known, so the CPU's first bundle has the mark.
    pub(super) fn lost(&mut self, cpu: u16) {
        self.of(cpu).lost_events = Some(true);
    }

    fn of(&mut self, cpu: u16) -> &mut FtraceEventBundle {
        self.0.entry(cpu).or_insert_with(|| FtraceEventBundle {
            cpu: Some(u32::from(cpu)),
            ..FtraceEventBundle::default()
        })
    }

    /// Adds an event of a CPU. `tid` is the thread that was on the CPU.
    pub(super) fn add<W: Write>(&mut self, to: &mut Packets<W>, cpu: u16, timestamp: u64, tid: u32, event: Ftrace) {
        let bundle = self.of(cpu);
        bundle.event.push(FtraceEvent {
            timestamp: Some(timestamp),
            pid: Some(tid),
            event: Some(event),
        });
        if bundle.event.len() == BUNDLE {
            let rest = FtraceEventBundle {
                cpu: bundle.cpu,
                ..FtraceEventBundle::default()
            };
            let full = std::mem::replace(bundle, rest);
            to.packet(None, Data::FtraceEvents(full));
        }
    }

    /// Writes the bundles that are not full.
    pub(super) fn end<W: Write>(self, to: &mut Packets<W>) {
        for (_, bundle) in self.0 {
            if !bundle.event.is_empty() || bundle.lost_events.is_some() {
                to.packet(None, Data::FtraceEvents(bundle));
            }
        }
    }
}
