//! Traced switches against the kernel's own count.
//!
//! For every thread two numbers are compared that come about independently of each other: how often our program ran when
//! the thread was switched out, and by how much the kernel's `nvcsw` + `nivcsw` rose over the same span. The span begins at
//! the thread's birth (both counters are 0), or, for the thread that was launched, where it slept when tracing began and
//! `/proc` was read; it ends with the thread's last switch, or with the last one seen of a thread that lives on.
//!
//! `wait4`'s `rusage` is a third source, with known limits: it lacks the last switch of every thread but the leader, which
//! comes after the thread has been accounted for, and may or may not contain the leader's. It includes what the launched
//! process did before tracing began.

use crate::sums::SaturatingSum;
use ctxtrace_common::thread::{KernelCount, REFUSED};

use crate::trace::run::Launched;
use crate::trace::{Fate, ThreadRecord, name_of};

/// One thread's two counts.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ThreadCounts {
    /// Thread id.
    pub tid: u32,
    /// Name, cut at its first NUL; not necessarily printable.
    pub name: String,
    /// Runs of the `sched_switch` program that saw it switched out.
    pub traced: u64,
    /// The kernel's count over the same span.
    pub kernel: u64,
}

impl ThreadCounts {
    /// Traced minus kernel: negative if events were lost, 0 if all is well.
    #[must_use]
    pub fn difference(&self) -> i64 {
        self.traced as i64 - self.kernel as i64
    }
}

/// `rusage` and the bounds it must lie in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rusage {
    /// Voluntary and involuntary switches together, as `wait4` says.
    pub switches: u64,
    /// Least that agrees with what was traced.
    pub lower: u64,
    /// Most that agrees with what was traced.
    pub upper: u64,
}

impl Rusage {
    /// Whether it agrees.
    #[must_use]
    pub fn agrees(&self) -> bool {
        (self.lower..=self.upper).contains(&self.switches)
    }
}

/// The comparison, thread by thread.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Reconciliation {
    /// Every thread.
    pub threads: Vec<ThreadCounts>,
    /// The third source, where the target was waited for.
    pub rusage: Option<Rusage>,
}

impl Reconciliation {
    /// Traced switches of all threads.
    #[must_use]
    pub fn traced(&self) -> u64 {
        self.threads.iter().map(|thread| thread.traced).saturating_sum()
    }

    /// The kernel's count of all threads.
    #[must_use]
    pub fn kernel(&self) -> u64 {
        self.threads.iter().map(|thread| thread.kernel).saturating_sum()
    }

    /// Whether every thread's counts are the same.
    #[must_use]
    pub fn holds(&self) -> bool {
        self.threads.iter().all(|thread| thread.difference() == 0)
    }
}

/// Compares.
#[must_use]
pub fn reconcile(records: &[ThreadRecord], launched: Option<&Launched>) -> Reconciliation {
    let first = launched.and_then(|launched| first_thread(records, launched.pid));
    let mut threads = Vec::with_capacity(records.len());
    for (index, record) in records.iter().enumerate() {
        let before = launched
            .filter(|_| first == Some(index))
            .map(|launched| launched.before);
        threads.push(counts(record, before.unwrap_or(record.thread.base)));
    }
    // `rusage` goes on where the recording of a thread has stopped. Of folded threads it is not known which one is the process's own, and how many last switches are missing.
    let is_folded = records.iter().any(|record| record.threads != 1);
    let is_refused = records.iter().any(|record| record.thread.flags & REFUSED != 0);
    let rusage = launched
        .filter(|_| !is_folded && !is_refused)
        .and_then(|launched| rusage(launched, &threads));
    Reconciliation { threads, rusage }
}

/// The thread that was launched. Another one that executes a program takes over its id (kernel: `de_thread()`), but not the
/// time of its start.
fn first_thread(records: &[ThreadRecord], pid: u32) -> Option<usize> {
    let of_this_id = records
        .iter()
        .enumerate()
        .filter(|(_, record)| record.thread.tid == pid);
    of_this_id
        .min_by_key(|(_, record)| record.thread.start_boottime_ns)
        .map(|(index, _)| index)
}

fn rusage(launched: &Launched, threads: &[ThreadCounts]) -> Option<Rusage> {
    let traced: u64 = threads.iter().map(|thread| thread.traced).saturating_sum();
    let upper = traced.saturating_add(launched.before.total());
    Some(Rusage {
        switches: launched.rusage?.total(),
        lower: upper.saturating_sub(threads.len() as u64),
        upper,
    })
}

/// `base`: the kernel's count where the span begins.
fn counts(record: &ThreadRecord, base: KernelCount) -> ThreadCounts {
    let thread = &record.thread;
    let counted = thread.kernel.total().saturating_sub(base.total());
    ThreadCounts {
        tid: thread.tid,
        name: name_of(&thread.comm),
        traced: thread.traced(),
        // A thread that is gone has made a last switch: a fact, seen or not.
        kernel: counted + u64::from(record.fate == Fate::Vanished),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::trace::build;

    const LAUNCHED: Launched = Launched {
        pid: 100,
        before: KernelCount {
            voluntary: 2,
            involuntary: 1,
        },
        rusage: None,
    };

    #[test]
    fn what_agrees_has_no_difference() {
        let reconciliation = reconcile(
            &[build::thread(101, "worker", 40, 2), build::thread(102, "x", 7, 0)],
            Some(&LAUNCHED),
        );
        assert!(reconciliation.holds());
        assert_eq!((reconciliation.traced(), reconciliation.kernel()), (49, 49));
        assert_eq!(reconciliation.threads[0].name, "worker");
    }

    #[test]
    fn a_lost_event_shows_at_its_thread() {
        let mut record = build::thread(101, "worker", 40, 2);
        record.thread.traced_voluntary -= 3;
        let reconciliation = reconcile(&[record, build::thread(102, "x", 7, 0)], Some(&LAUNCHED));
        assert!(!reconciliation.holds());
        assert_eq!(reconciliation.threads[0].difference(), -3);
        assert_eq!(reconciliation.threads[1].difference(), 0);
    }

    #[test]
    fn losses_and_surpluses_of_different_threads_do_not_cancel_out() {
        let mut short = build::thread(101, "a", 10, 0);
        let mut long = build::thread(102, "b", 10, 0);
        short.thread.traced_voluntary -= 1;
        long.thread.traced_voluntary += 1;
        let reconciliation = reconcile(&[short, long], Some(&LAUNCHED));
        assert_eq!(reconciliation.traced(), reconciliation.kernel());
        assert!(!reconciliation.holds());
    }

    #[test]
    fn the_launched_thread_is_counted_from_where_it_slept() {
        // The kernel has 3 switches from before; were the first traced one lost, the base the BPF side took would hide it.
        let mut record = build::thread(100, "main", 10, 0);
        record.thread.kernel = KernelCount {
            voluntary: 13,
            involuntary: 1,
        };
        record.thread.base = KernelCount {
            voluntary: 3,
            involuntary: 1,
        };
        assert_eq!(reconcile(&[record], Some(&LAUNCHED)).threads[0].difference(), -1);
    }

    #[test]
    fn a_thread_that_takes_over_the_first_ones_id_has_its_own_base() {
        let mut leader = build::thread(100, "main", 10, 0);
        leader.thread.kernel.voluntary = 12;
        leader.thread.kernel.involuntary = 1;
        let mut heir = build::thread(100, "program", 7, 0);
        heir.thread.start_boottime_ns = 5;
        for records in [[leader, heir], [heir, leader]] {
            assert!(reconcile(&records, Some(&LAUNCHED)).holds());
        }
    }

    #[test]
    fn a_process_that_was_attached_to_is_counted_from_its_first_event() {
        let mut record = build::thread(100, "main", 10, 0);
        (record.thread.base.voluntary, record.thread.kernel.voluntary) = (1_000, 1_010);
        let reconciliation = reconcile(&[record], None);
        assert!(reconciliation.holds());
        assert_eq!(reconciliation.rusage, None);
    }

    #[test]
    fn a_thread_that_vanished_lacks_its_last_switch() {
        let mut record = build::thread(101, "worker", 40, 2);
        record.fate = Fate::Vanished;
        assert_eq!(reconcile(&[record], Some(&LAUNCHED)).threads[0].difference(), -1);
        record.fate = Fate::Alive;
        assert_eq!(reconcile(&[record], Some(&LAUNCHED)).threads[0].difference(), 0);
    }

    #[test]
    fn rusage_says_nothing_of_a_process_that_is_recorded_in_part() {
        let launched = Launched {
            rusage: Some(KernelCount::default()),
            ..LAUNCHED
        };
        let mut record = build::thread(100, "main", 10, 0);
        assert!(reconcile(&[record], Some(&launched)).rusage.is_some());
        record.thread.flags |= REFUSED;
        assert_eq!(reconcile(&[record], Some(&launched)).rusage, None);
    }

    #[test]
    fn rusage_may_lack_one_switch_a_thread() {
        let rusage = |voluntary| {
            let launched = Launched {
                rusage: Some(KernelCount {
                    voluntary,
                    involuntary: 0,
                }),
                ..LAUNCHED
            };
            let records = [build::thread(101, "a", 40, 2), build::thread(102, "b", 7, 0)];
            reconcile(&records, Some(&launched)).rusage.expect("given")
        };
        // 49 traced and 3 before, two threads.
        assert_eq!((rusage(50).lower, rusage(50).upper), (50, 52));
        assert!(!rusage(49).agrees());
        assert!(rusage(50).agrees());
        assert!(rusage(52).agrees());
        assert!(!rusage(53).agrees());
    }
}
