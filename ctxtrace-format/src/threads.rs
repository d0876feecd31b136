//! Threads that have ended: a limited number of individual records, and sums of the others.
//!
//! A server may start a thread for each request and be recorded for a day, so not every thread can be kept. The [`MOST_ENDED`]
//! threads with the most switches are kept as individual records. The others are *folded*, which means summed by name. Every sum
//! over all threads is the same as without folding.

use std::collections::HashMap;

use ctxtrace_common::polls::Gap;
use ctxtrace_common::process::Image;
use ctxtrace_common::thread::{INHERITED, KERNEL_WORKER, KernelCount, REFUSED, ThreadSummary};

use super::{Fate, ThreadRecord};

/// Number of ended threads that are kept as individual records at the end of a recording. During the recording there are up to
/// twice as many. Further threads are folded.
pub const MOST_ENDED: usize = 16_384;
/// Number of sums of folded threads. When there are this many, threads with other keys are added to sums with the name
/// [`OTHER_NAMES`].
pub const MOST_NAMES: usize = 1_000;
/// Name of the sums of threads whose own names have no sum.
pub const OTHER_NAMES: &[u8; 16] = b"(other threads)\0";

/// The threads that have ended so far.
#[derive(Clone, Debug, Default)]
pub struct EndedThreads {
    /// The individual records, in the order of the threads' last switches.
    apart: Vec<ThreadRecord>,
    folded: HashMap<FoldKey, ThreadRecord>,
}

/// Key by which threads are folded: all properties by which an analysis selects threads for a sum.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
struct FoldKey {
    comm: [u8; 16],
    /// The program, if the thread's polls were read.
    image: Option<Image>,
    flags: u32,
    unconfirmed: Option<Gap>,
    /// Sign of the difference between the traced switches and the kernel's count: 1 if more were traced, -1 if fewer. It is part
    /// of the key so that positive and negative differences never cancel out in a sum.
    difference: i64,
}

impl FoldKey {
    fn new(thread: &ThreadSummary) -> Self {
        let image = Image {
            tgid: thread.tgid,
            number: thread.image,
        };
        let difference = thread.traced() as i64 - thread.counted_by_kernel() as i64;
        Self {
            comm: thread.comm,
            image: thread.polls.is_read().then_some(image),
            flags: thread.flags & (INHERITED | KERNEL_WORKER | REFUSED),
            unconfirmed: thread.polls.unconfirmed(),
            difference: difference.signum(),
        }
    }

    fn without_name(self) -> Self {
        Self {
            comm: *OTHER_NAMES,
            image: None,
            ..self
        }
    }
}

impl EndedThreads {
    /// Adds a thread that has made its last switch. Threads for which `always_apart` returns true are never folded.
    pub fn push(&mut self, thread: ThreadSummary, always_apart: impl Fn(&ThreadSummary) -> bool) {
        self.apart.push(ThreadRecord::new(thread, Fate::Ended));
        if self.apart.len() >= 2 * MOST_ENDED {
            self.fold(MOST_ENDED, always_apart);
        }
    }

    /// All records: first the individual threads in the order of their last switches, then the sums by name.
    #[must_use]
    pub fn records(&self, always_apart: impl Fn(&ThreadSummary) -> bool) -> Vec<ThreadRecord> {
        let mut all = self.clone();
        all.fold(MOST_ENDED, always_apart);
        let mut folded: Vec<ThreadRecord> = all.folded.into_values().collect();
        folded.sort_by_key(|record| {
            (
                std::cmp::Reverse(record.threads),
                record.thread.comm,
                record.thread.tgid,
            )
        });
        all.apart.append(&mut folded);
        all.apart
    }

    /// Folds all threads except the `most` with the most switches, and except those for which `always_apart` returns true.
    fn fold(&mut self, most: usize, always_apart: impl Fn(&ThreadSummary) -> bool) {
        let Self { apart, folded } = self;
        let switches = |record: &ThreadRecord| record.thread.traced();
        keep_most(apart, most, switches, |record| {
            let goes = !always_apart(&record.thread);
            if goes {
                add_folded(folded, record);
            }
            goes
        });
    }
}

/// Keeps the `most` items of greatest weight, in their order. `fold` is called for each of the others and returns whether to
/// remove that item.
pub fn keep_most<T>(items: &mut Vec<T>, most: usize, weight: impl Fn(&T) -> u64, mut fold: impl FnMut(&T) -> bool) {
    let Some(surplus) = items.len().checked_sub(most).filter(|&surplus| surplus > 0) else {
        return;
    };
    let mut weights: Vec<u64> = items.iter().map(&weight).collect();
    let (less, &mut threshold, _) = weights.select_nth_unstable(surplus - 1);
    // Number of items to remove whose weight equals the threshold. The first ones are removed.
    let mut of_threshold = surplus - less.iter().filter(|&&weight| weight < threshold).count();
    items.retain(|item| {
        let weight = weight(item);
        let goes = weight < threshold || (weight == threshold && of_threshold > 0);
        if !goes || !fold(item) {
            return true;
        }
        of_threshold -= usize::from(weight == threshold);
        false
    });
}

fn add_folded(folded: &mut HashMap<FoldKey, ThreadRecord>, record: &ThreadRecord) {
    let key = FoldKey::new(&record.thread);
    let key = if folded.contains_key(&key) || folded.len() < MOST_NAMES {
        key
    } else {
        key.without_name()
    };
    match folded.get_mut(&key) {
        Some(sum) => add(sum, record),
        None => {
            let mut sum = as_sum(record);
            sum.thread.comm = key.comm;
            folded.insert(key, sum);
        }
    }
}

/// Converts a record to the sum of one thread, without the thread id and with the kernel's count relative to 0.
fn as_sum(record: &ThreadRecord) -> ThreadRecord {
    let mut sum = *record;
    let ThreadSummary { base, kernel, tid, .. } = &mut sum.thread;
    *kernel = KernelCount {
        voluntary: kernel.voluntary.wrapping_sub(base.voluntary),
        involuntary: kernel.involuntary.wrapping_sub(base.involuntary),
    };
    *base = KernelCount::default();
    *tid = 0;
    sum
}

fn add(sum: &mut ThreadRecord, record: &ThreadRecord) {
    let other = as_sum(record);
    sum.threads += other.threads;
    let ThreadSummary {
        clock: _,
        base: _,
        kernel,
        traced_voluntary,
        traced_involuntary,
        off_cpu_ns,
        on_cpu_ns,
        run_queue_ns,
        migrations,
        start_boottime_ns,
        polls,
        comm: _,
        tid: _,
        tgid,
        image,
        flags: _,
    } = other.thread;
    let thread = &mut sum.thread;
    thread.kernel.voluntary = thread.kernel.voluntary.wrapping_add(kernel.voluntary);
    thread.kernel.involuntary = thread.kernel.involuntary.wrapping_add(kernel.involuntary);
    thread.traced_voluntary += traced_voluntary;
    thread.traced_involuntary += traced_involuntary;
    thread.off_cpu_ns += off_cpu_ns;
    thread.on_cpu_ns += on_cpu_ns;
    thread.run_queue_ns += run_queue_ns;
    thread.migrations += migrations;
    thread.start_boottime_ns = thread.start_boottime_ns.min(start_boottime_ns);
    thread.polls.add(&polls);
    if (thread.tgid, thread.image) != (tgid, image) {
        (thread.tgid, thread.image) = (0, 0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::build;

    fn ended(count: u64, of: impl Fn(u64) -> ThreadSummary) -> Vec<ThreadRecord> {
        let mut ended = EndedThreads::default();
        for number in 0..count {
            ended.push(of(number), |thread| thread.tid == 1);
        }
        ended.records(|thread| thread.tid == 1)
    }

    fn thread(number: u64, name: &str) -> ThreadSummary {
        let mut thread = build::thread(number as u32 + 1, name, number + 1, 1).thread;
        (thread.on_cpu_ns, thread.off_cpu_ns, thread.migrations) = (number, 2 * number, 1);
        thread
    }

    fn sums(records: &[ThreadRecord]) -> [u64; 6] {
        records.iter().fold([0; 6], |sum, record| {
            let thread = &record.thread;
            let each = [
                record.threads,
                thread.traced(),
                thread.counted_by_kernel(),
                thread.on_cpu_ns,
                thread.off_cpu_ns,
                thread.migrations,
            ];
            std::array::from_fn(|index| sum[index] + each[index])
        })
    }

    #[test]
    fn every_sum_is_what_it_would_be_without_folding() {
        let count = 3 * MOST_ENDED as u64 + 7;
        let all: Vec<_> = (0..count)
            .map(|number| ThreadRecord::new(thread(number, "worker"), Fate::Ended))
            .collect();
        let records = ended(count, |number| thread(number, "worker"));
        assert_eq!(
            records.len(),
            MOST_ENDED + 2,
            "the first thread is never folded, and the other folded threads are one sum"
        );
        assert_eq!(sums(&records), sums(&all));
        assert_eq!(
            records.last().map(|sum| sum.threads),
            Some(count - MOST_ENDED as u64 - 1)
        );
        let least = records[1..MOST_ENDED + 1]
            .iter()
            .map(|record| record.thread.traced())
            .min();
        assert_eq!(
            least,
            Some(count - MOST_ENDED as u64 + 2),
            "the threads with the most switches are kept as individual records"
        );
    }

    #[test]
    fn few_threads_are_all_individual() {
        let records = ended(MOST_ENDED as u64, |number| thread(number, "worker"));
        assert!(records.iter().all(|record| record.threads == 1));
        assert!(
            records.is_sorted_by_key(|record| record.thread.tid),
            "in the order of their ends"
        );
    }

    #[test]
    fn differences_of_folded_threads_never_cancel_out() {
        let records = ended(2 * MOST_ENDED as u64, |number| {
            let mut thread = thread(number, "worker");
            match number {
                10 => thread.traced_voluntary += 1,
                11 => thread.traced_voluntary -= 1,
                _ => {}
            }
            thread
        });
        let mut differences: Vec<i64> = records
            .iter()
            .map(|record| record.thread.traced() as i64 - record.thread.counted_by_kernel() as i64)
            .filter(|&difference| difference != 0)
            .collect();
        differences.sort_unstable();
        assert_eq!(differences, [-1, 1]);
    }

    #[test]
    fn threads_of_very_many_names_take_no_more_room() {
        let count = 2 * MOST_ENDED as u64 + 3 * MOST_NAMES as u64;
        let records = ended(count, |number| thread(number, &format!("w{number}")));
        assert!(records.len() <= MOST_ENDED + MOST_NAMES + 2, "{}", records.len());
        assert_eq!(sums(&records)[0], count);
        assert!(
            records
                .iter()
                .any(|record| &record.thread.comm == OTHER_NAMES && record.threads > 1)
        );
    }
}
