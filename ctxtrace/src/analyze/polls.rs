//! Polls and wakes: the part of the result that says how long tasks wait for their polls, and where.

use ctxtrace_common::histogram::Histogram;
use ctxtrace_common::locator::OTHER_TASKS;
use ctxtrace_common::process::TaskKey;

use super::percentile::percentile;
use super::result::{PollLeg, PollPath, PolledTask, Polls, Spread, TaskWakes};
use super::summarize::Nulls;
use crate::correlate::tasks;
use crate::trace::Aggregates;
use crate::trace::polls::{Leg, Path, PollInfo, PollWaker, TaskPolls, WakeEdge};
use crate::trace::run::{Info, Run};

/// Tasks, and pairs of waker and task, that are told.
const MOST_ROWS: usize = 256;

/// Those of a run; null where none were recorded.
pub(super) fn polls(info: &Info, run: &Run, nulls: &mut Nulls) -> Option<Polls> {
    let (Some(PollInfo { clock, reading_ns }), Some(sums)) = (info.polls, &run.polls) else {
        nulls.note(
            "polls",
            "polls were not recorded: --level timeline --polls does, of a program that is started and links ctxtrace-probe",
        );
        return None;
    };
    if sums.stamps == 0 && sums.lost == 0 && sums.dropped == 0 {
        nulls.note(
            "polls",
            "no thread has told of any: the program does not poll with ctxtrace-probe of this release, or closes what it inherits",
        );
        return None;
    }
    let aggregates = &run.aggregates;
    let mut all = TaskPolls::default();
    for (_, task) in &sums.tasks {
        all.merge(task);
    }
    let counted = tasks::task_switches(aggregates).map(|switches| switches.polls.polls);
    let (agrees, why_not) = if sums.dropped > 0 {
        (None, "the capture has not kept all stamps (polls.dropped)")
    } else if sums.lost > 0 {
        (None, "stamps were lost (lost.poll_stamps)")
    } else {
        let agrees = counted.map(|counted| counted == sums.polls);
        (agrees, "the kernel side has not read how many the probe counted")
    };
    Some(Polls {
        clock,
        reading_ns,
        stamps: sums.stamps,
        dropped: sums.dropped,
        polls: sums.polls,
        agrees: nulls.or(agrees, "polls.agrees", why_not),
        open: sums.open,
        without_wake: sums.without_wake,
        wakes: sums.wakes,
        unordered: sums.unordered,
        poll: all.poll.get().map(spread),
        wake_to_poll: all.delay().get().map(spread),
        paths: paths(run),
        tasks: rows(aggregates, &sums.tasks),
        wakers: wakers(aggregates, &sums.edges),
    })
}

fn paths(run: &Run) -> Vec<PollPath> {
    let chains = run.polls.iter().flat_map(|polls| &polls.chains);
    let told = Path::ALL.into_iter().zip(chains).filter_map(|(path, chain)| {
        let legs = Leg::ALL.into_iter().zip(&chain.legs);
        Some(PollPath {
            path,
            wake_to_poll: spread(chain.delay.get()?),
            legs: legs
                .filter_map(|(leg, spent)| {
                    Some(PollLeg {
                        leg,
                        spread: spread(spent.get()?),
                    })
                })
                .collect(),
        })
    });
    told.collect()
}

fn rows(aggregates: &Aggregates, tasks: &[(TaskKey, TaskPolls)]) -> Vec<PolledTask> {
    let mut rows: Vec<&(TaskKey, TaskPolls)> = tasks.iter().collect();
    rows.sort_by_key(|(key, task)| (std::cmp::Reverse(task.polls), *key));
    let row = |(key, task): &(TaskKey, TaskPolls)| PolledTask {
        id: tasks::number(key.task),
        name: tasks::name(aggregates, *key),
        pid: (key.task != OTHER_TASKS).then_some(key.image.tgid),
        polls: task.polls,
        wakes: task.wakes,
        poll: task.poll.get().map(spread),
        wake_to_poll: task.delay().get().map(spread),
        in_user_space: task.delays[Path::UserSpace as usize].get().map(spread),
        through_kernel: task.delays[Path::Kernel as usize].get().map(spread),
    };
    rows.into_iter().take(MOST_ROWS).map(row).collect()
}

fn wakers(aggregates: &Aggregates, edges: &[((PollWaker, TaskKey), WakeEdge)]) -> Vec<TaskWakes> {
    let mut edges: Vec<_> = edges.iter().collect();
    edges.sort_by_key(|(pair, edge)| (std::cmp::Reverse(edge.delay.count()), *pair));
    let row = |((from, to), edge): &((PollWaker, TaskKey), WakeEdge)| {
        Some(TaskWakes {
            from_task: match from {
                PollWaker::Task(key) => Some(tasks::name(aggregates, *key)),
                PollWaker::Thread { .. } => None,
            },
            from_tid: match from {
                PollWaker::Task(_) => None,
                PollWaker::Thread { tid, .. } => Some(*tid),
            },
            to_task: tasks::name(aggregates, *to),
            pid: to.image.tgid,
            count: edge.delay.count(),
            in_user_space: edge.by_path[Path::UserSpace as usize],
            through_kernel: edge.by_path[Path::Kernel as usize],
            wake_to_poll: spread(edge.delay.get()?),
        })
    };
    edges.into_iter().take(MOST_ROWS).filter_map(row).collect()
}

/// Of a distribution with something in it.
fn spread(histogram: &Histogram) -> Spread {
    let at = |p| percentile(histogram, p).unwrap_or(0);
    Spread {
        count: histogram.count,
        min_ns: histogram.min_plus_one_ns.saturating_sub(1),
        p50_ns: at(0.5),
        p90_ns: at(0.9),
        p99_ns: at(0.99),
        p999_ns: at(0.999),
        max_ns: histogram.max_ns,
        sum_ns: histogram.sum_ns,
    }
}
