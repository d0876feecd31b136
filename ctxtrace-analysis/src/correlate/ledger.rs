//! The switch ledger of a capture: every kernel switch in exactly one class.
//!
//! The BPF side decides the class of each switch when it happens. This module sums the switches by class and task, and corrects
//! the classes that depend on facts which became known only later. If a program was not yet examined at its first switches and
//! proves to have no tasks, these switches keep the class of an ordinary thread. If a program proves to have its runtime in a
//! shared object, its switches become unattributed.

use ctxtrace_format::sums::{SaturatingSum, add};
use std::collections::BTreeMap;

use ctxtrace_common::ledger::Class;
use ctxtrace_common::locator::{OTHER_TASKS, Reason};
use ctxtrace_common::process::{Image, TaskKey};
use ctxtrace_common::stack::{SumKey, SwitchSum};

use ctxtrace_format::Aggregates;

/// The row of the ledger that a kernel switch belongs to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct LedgerEntry {
    /// The class of the switch.
    pub class: Class,
    /// The reason why the switch is [`Class::Unattributed`]; [`Reason::None`] for other classes.
    pub reason: Reason,
    /// The task that was being polled at the switch, if there was one.
    pub task: Option<TaskKey>,
}

/// The switch ledger: counts and off-CPU times by class, reason and task.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Ledger {
    /// The sums by entry, in the order of the classes.
    pub rows: BTreeMap<LedgerEntry, SwitchSum>,
}

impl Ledger {
    /// Number of kernel switches in the ledger.
    #[must_use]
    pub fn count(&self) -> u64 {
        self.rows.values().map(|sum| sum.count).saturating_sum()
    }

    /// The sum over all switches of one class.
    #[must_use]
    pub fn of(&self, class: Class) -> SwitchSum {
        let rows = self.rows.iter().filter(|(entry, _)| entry.class == class);
        rows.fold(SwitchSum::default(), |sum, (_, row)| SwitchSum {
            count: sum.count.saturating_add(row.count),
            off_cpu_ns: sum.off_cpu_ns.saturating_add(row.off_cpu_ns),
        })
    }

    fn add(&mut self, entry: LedgerEntry, sum: SwitchSum) {
        let row = self.rows.entry(entry).or_default();
        add(&mut row.count, sum.count);
        add(&mut row.off_cpu_ns, sum.off_cpu_ns);
    }
}

/// Makes the ledger of a capture.
#[must_use]
pub fn ledger(aggregates: &Aggregates) -> Ledger {
    let mut ledger = Ledger::default();
    for (key, sum) in &aggregates.switch_sums {
        ledger.add(entry_of(key, aggregates), *sum);
    }
    for (number, sum) in aggregates.overflow_sums.iter().enumerate() {
        if let (Some(class), true) = (Class::from_number(number as u32), sum.count > 0) {
            ledger.add(overflowed(class), *sum);
        }
    }
    ledger
}

/// The entry of a switch-out with this key.
#[must_use]
pub fn entry_of(key: &SumKey, aggregates: &Aggregates) -> LedgerEntry {
    let image = Image {
        tgid: key.tgid,
        number: key.image,
    };
    let noted = Class::from_number(u32::from(key.class));
    let reason = aggregates
        .programs
        .settle(image, Reason::from_number(u32::from(key.reason)));
    // These two classes take precedence over `Unattributed`, because they do not depend on what the thread was doing.
    let decided = matches!(noted, Some(Class::Exited | Class::Stopped));
    match noted {
        Some(class) if decided || reason == Reason::None => LedgerEntry {
            class,
            reason: Reason::None,
            task: (key.task != 0).then_some(TaskKey { task: key.task, image }),
        },
        // An invalid class number, which only a forged file contains, is unattributed too.
        _ => LedgerEntry {
            class: Class::Unattributed,
            reason: if reason == Reason::None {
                Reason::Unreadable
            } else {
                reason
            },
            task: None,
        },
    }
}

/// The entry of a switch that did not fit in the kernel's table of sums, so that only its class is known.
#[must_use]
pub fn overflowed(class: Class) -> LedgerEntry {
    let task = TaskKey {
        task: OTHER_TASKS,
        image: Image::default(),
    };
    LedgerEntry {
        class,
        reason: if class == Class::Unattributed {
            Reason::NotExamined
        } else {
            Reason::None
        },
        task: matches!(class, Class::TaskBlocked | Class::TaskPreempted).then_some(task),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use ctxtrace_format::build;

    fn sum(count: u64, off_cpu_ns: u64) -> SwitchSum {
        SwitchSum { count, off_cpu_ns }
    }

    #[test]
    fn sums_of_different_stacks_and_one_entry_are_one_row() {
        let mut aggregates = build::aggregates(vec![]);
        let mut other_stack = build::sum_key(Class::TaskBlocked, 3);
        other_stack.user_stack = 99;
        aggregates.switch_sums = vec![
            (build::sum_key(Class::TaskBlocked, 3), sum(2, 10)),
            (other_stack, sum(1, 5)),
            (build::sum_key(Class::TaskBlocked, 4), sum(7, 1)),
            (build::sum_key(Class::WorkerParked, 0), sum(4, 100)),
        ];
        let ledger = ledger(&aggregates);
        assert_eq!(ledger.rows.len(), 3);
        assert_eq!(ledger.count(), 14);
        assert_eq!(ledger.of(Class::TaskBlocked), sum(10, 16));
        assert_eq!(ledger.of(Class::WorkerParked), sum(4, 100));
    }

    #[test]
    fn a_reason_makes_a_switch_unattributed_unless_the_thread_ended_or_was_stopped() {
        let mut aggregates = build::aggregates(vec![]);
        let keys = [Class::ThreadBlocked, Class::Exited, Class::Stopped].map(|class| {
            let mut key = build::sum_key(class, 0);
            key.reason = Reason::Stripped as u8;
            (key, sum(1, 0))
        });
        aggregates.switch_sums = keys.to_vec();
        let ledger = ledger(&aggregates);
        for class in [Class::Unattributed, Class::Exited, Class::Stopped] {
            assert_eq!(ledger.of(class).count, 1, "{class:?}");
        }
        assert!(
            ledger
                .rows
                .keys()
                .all(|entry| (entry.class == Class::Unattributed) == (entry.reason == Reason::Stripped))
        );
    }

    #[test]
    fn what_did_not_fit_is_in_its_class_all_the_same() {
        let mut aggregates = build::aggregates(vec![]);
        aggregates.switch_sums = vec![(build::sum_key(Class::TaskPreempted, 1), sum(5, 5))];
        aggregates.overflow_sums = vec![SwitchSum::default(); Class::COUNT];
        aggregates.overflow_sums[Class::TaskPreempted as usize] = sum(3, 3);
        let ledger = ledger(&aggregates);
        assert_eq!(ledger.of(Class::TaskPreempted), sum(8, 8));
        assert_eq!(ledger.count(), 8);
    }

    #[test]
    fn an_invalid_class_is_unattributed() {
        let mut aggregates = build::aggregates(vec![]);
        let mut key = build::sum_key(Class::Exited, 0);
        key.class = 200;
        aggregates.switch_sums = vec![(key, sum(1, 0))];
        assert_eq!(ledger(&aggregates).of(Class::Unattributed).count, 1);
    }
}
