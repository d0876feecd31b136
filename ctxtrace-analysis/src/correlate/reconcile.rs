//! Compares the traced switches with the kernel's own counts.
//!
//! For every thread two independent numbers are compared: how often our BPF program ran when the thread was switched out, and by
//! how much the kernel's counters `nvcsw` + `nivcsw` rose over the same period. The period begins at the creation of the thread,
//! when both counters are 0. For the launched thread it begins where that thread slept, suspended, when tracing began and `/proc`
//! was read. The period ends with the thread's last switch, or with the last recorded switch of a thread that still lives.
//!
//! The `rusage` of `wait4` is a third source, with known limits. It does not contain the last switch of any thread except the
//! leader, because that switch comes after the kernel has accounted for the thread; the last switch of the leader may or may not
//! be contained. It includes the switches of the launched process before tracing began.

use ctxtrace_common::thread::{KernelCount, REFUSED};
use ctxtrace_format::sums::SaturatingSum;

use ctxtrace_format::run::Launched;
use ctxtrace_format::{Fate, ThreadRecord, name_of};

/// The two counts of one thread.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ThreadCounts {
    /// Thread id.
    pub tid: u32,
    /// Name, cut at its first NUL; not necessarily printable.
    pub name: String,
    /// Number of switch-outs of the thread that the `sched_switch` program saw.
    pub traced: u64,
    /// The kernel's count over the same period.
    pub kernel: u64,
}

impl ThreadCounts {
    /// The traced count minus the kernel's count: negative if events were lost, 0 if the counts agree. A difference beyond the
    /// range of the result is its nearest value.
    #[must_use]
    pub fn difference(&self) -> i64 {
        let difference = i128::from(self.traced) - i128::from(self.kernel);
        difference.clamp(i64::MIN.into(), i64::MAX.into()) as i64
    }
}

/// The count of switches in `rusage`, and the bounds within which it agrees with the traced counts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rusage {
    /// The sum of voluntary and involuntary switches in the `rusage` of `wait4`.
    pub switches: u64,
    /// The smallest number that agrees with the traced counts.
    pub lower: u64,
    /// The greatest number that agrees with the traced counts.
    pub upper: u64,
}

impl Rusage {
    /// Whether the count is within its bounds.
    #[must_use]
    pub fn agrees(&self) -> bool {
        (self.lower..=self.upper).contains(&self.switches)
    }
}

/// The comparison, thread by thread.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Reconciliation {
    /// The counts of every thread.
    pub threads: Vec<ThreadCounts>,
    /// The third source; `None` if the target was not waited for, or if the bounds are unknown.
    pub rusage: Option<Rusage>,
}

impl Reconciliation {
    /// The traced switches of all threads.
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

/// Compares the traced switches of all threads with the kernel's counts.
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
    // `rusage` also counts switches after the recording of a thread was stopped (`REFUSED`). If threads are folded, the launched
    // thread may be among them, and the number of last switches that `rusage` lacks is not the number of records.
    let is_folded = records.iter().any(|record| record.threads != 1);
    let is_refused = records.iter().any(|record| record.thread.flags & REFUSED != 0);
    let rusage = launched
        .filter(|_| !is_folded && !is_refused)
        .and_then(|launched| rusage(launched, &threads));
    Reconciliation { threads, rusage }
}

/// Finds the launched thread. Another thread that calls `execve` takes over the launched thread's id (kernel: `de_thread()`), but
/// keeps its own, later start time.
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

/// Returns the counts of a thread; `base` is the kernel's count at the beginning of the period.
fn counts(record: &ThreadRecord, base: KernelCount) -> ThreadCounts {
    let thread = &record.thread;
    let counted = thread.kernel.total().saturating_sub(base.total());
    ThreadCounts {
        tid: thread.tid,
        name: name_of(&thread.comm),
        traced: thread.traced(),
        // A thread that no longer exists has made a last switch, even though it was not recorded.
        kernel: counted + u64::from(record.fate == Fate::Vanished),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use ctxtrace_format::build;

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
    fn a_difference_beyond_its_range_is_the_nearest_value() {
        let counts = |traced, kernel| ThreadCounts {
            tid: 1,
            name: String::new(),
            traced,
            kernel,
        };
        assert_eq!(counts(u64::MAX, 0).difference(), i64::MAX);
        assert_eq!(counts(0, u64::MAX).difference(), i64::MIN);
        assert_eq!(counts(u64::MAX, u64::MAX - 1).difference(), 1);
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
        // The kernel counted 3 switches before tracing. If the first traced switch is lost, the base taken by the BPF side hides
        // that.
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
        // Two threads, 49 traced switches, and 3 switches before tracing.
        assert_eq!((rusage(50).lower, rusage(50).upper), (50, 52));
        assert!(!rusage(49).agrees());
        assert!(rusage(50).agrees());
        assert!(rusage(52).agrees());
        assert!(!rusage(53).agrees());
    }
}
