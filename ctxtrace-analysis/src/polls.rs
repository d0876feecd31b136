//! The part of the result about polls and wakes: how long a woken task waits for its poll, and where.

use ctxtrace_common::histogram::Histogram;
use ctxtrace_common::locator::OTHER_TASKS;
use ctxtrace_common::process::TaskKey;

use super::nulls::Nulls;
use super::percentile::percentile;
use super::result::{PollLeg, PollPath, PolledTask, Polls, Spread, TaskWakes};
use crate::correlate::tasks;
use ctxtrace_format::Aggregates;
use ctxtrace_format::polls::{Leg, Path, PollInfo, PollWaker, TaskPolls, WakeEdge};
use ctxtrace_format::run::{Info, Run};

/// Maximum number of tasks, and of pairs of waker and task, in the result. The rows with the fewest polls or wakes are left out.
const MOST_ROWS: usize = 256;

/// Returns the polls of a run. Returns `None`, and records the reason, if no polls were recorded.
pub(super) fn polls(info: &Info, run: &Run, nulls: &mut Nulls) -> Option<Polls> {
    let (Some(PollInfo { clock, reading_ns }), Some(sums)) = (info.polls, &run.polls) else {
        nulls.note(
            "polls",
            "polls were not recorded: use --level timeline --polls with a program that links ctxtrace-probe and is started by ctxtrace",
        );
        return None;
    };
    if sums.stamps == 0 && sums.lost == 0 && sums.dropped == 0 {
        nulls.note(
            "polls",
            "no polls were reported: the program is not built with this version of ctxtrace-probe, or closes inherited file descriptors",
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
        (None, "the capture did not keep all stamps (polls.dropped)")
    } else if sums.lost > 0 {
        (None, "stamps were lost (lost.poll_stamps)")
    } else {
        let agrees = counted.map(|counted| counted == sums.polls);
        (agrees, "the number of polls that the probe counted was not read")
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
    let rows = Path::ALL.into_iter().zip(chains).filter_map(|(path, chain)| {
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
    rows.collect()
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

/// Converts a histogram that is not empty.
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
