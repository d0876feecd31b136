//! Time limits of a measurement.

use std::time::{Duration, Instant};

use ctxtrace_analysis::budget::Unit;

/// Maximum number of blocks of a stage. With more blocks the result would mainly show the machine's drift.
const MOST_BLOCKS: usize = 60;

/// A stage of a measurement: blocks of runs until the result is precise enough or the time is up.
#[derive(Clone, Copy, Debug)]
pub(super) struct Stage {
    /// The stage ends after this time, if it has the minimum number of blocks.
    limit: Duration,
    /// Whether the stage ends after 1.5 times the limit even without the minimum number of blocks. This holds for workloads,
    /// whose runs can be made as short as necessary. It does not hold for commands: their runs cannot be shortened, and fewer
    /// blocks than the minimum would not give any result.
    gives_up: bool,
}

/// A stage in progress.
#[derive(Clone, Copy, Debug)]
pub(super) struct Underway {
    began: Instant,
    stage: Stage,
}

impl Stage {
    pub(super) fn begin(self) -> Underway {
        Underway {
            began: Instant::now(),
            stage: self,
        }
    }
}

impl Underway {
    /// Whether another block should be run. `needed` is the minimum number of blocks that can give a result.
    pub(super) fn wants_more(&self, blocks: usize, needed: usize, is_enough: bool) -> bool {
        if blocks >= MOST_BLOCKS || is_enough {
            return false;
        }
        let elapsed = self.began.elapsed();
        let limit = self.stage.limit;
        elapsed < limit || (blocks < needed && !(self.stage.gives_up && elapsed > limit * 3 / 2))
    }
}

/// The limits of the whole measurement: `ctxtrace explain` should end within three minutes, with `--quick` within 45 seconds.
#[derive(Clone, Copy, Debug)]
pub(super) struct Effort {
    /// Duration of one run of a workload.
    pub(super) run: Duration,
    /// Duration of one traced run.
    pub(super) traced_run: Duration,
    /// Limits of the runs that measure the gap.
    pub(super) gap: Stage,
    /// Limits of the traced runs.
    pub(super) budget: Stage,
    /// Maximum number of blocks of traced runs.
    pub(super) traced_blocks: usize,
    /// Limits of the runs with counters.
    pub(super) counters: Stage,
    /// Limits of the runs with interventions.
    pub(super) interventions: Stage,
    /// Maximum number of interventions.
    pub(super) most: usize,
}

impl Effort {
    pub(super) fn new(quick: bool, unit: Unit) -> Self {
        let seconds = |seconds| Stage {
            limit: Duration::from_secs(seconds),
            gives_up: unit == Unit::Message,
        };
        if quick {
            Self {
                run: Duration::from_millis(60),
                traced_run: Duration::from_millis(100),
                gap: seconds(6),
                budget: seconds(13),
                traced_blocks: 13,
                counters: seconds(2),
                interventions: seconds(10),
                most: 6,
            }
        } else {
            Self {
                run: Duration::from_millis(120),
                traced_run: Duration::from_millis(300),
                gap: seconds(25),
                budget: seconds(35),
                traced_blocks: 24,
                counters: seconds(6),
                interventions: seconds(75),
                most: usize::MAX,
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_stage_ends_when_there_is_enough_or_the_time_is_up() {
        let stage = |gives_up| Stage {
            limit: Duration::from_secs(10),
            gives_up,
        };
        let began = |ago_s: u64, gives_up| Underway {
            began: Instant::now()
                .checked_sub(Duration::from_secs(ago_s))
                .expect("the machine has been running longer"),
            stage: stage(gives_up),
        };
        let underway = |ago_s| began(ago_s, true);
        assert!(underway(0).wants_more(0, 5, false));
        assert!(!underway(0).wants_more(20, 5, true));
        assert!(!underway(0).wants_more(MOST_BLOCKS, 5, false));
        assert!(
            underway(11).wants_more(4, 5, false),
            "the minimum number of blocks is made"
        );
        assert!(!underway(11).wants_more(5, 5, false));
        assert!(
            !underway(16).wants_more(4, 5, false),
            "the stage ends after 1.5 times the limit"
        );
        assert!(
            began(60, false).wants_more(4, 5, false),
            "a stage that does not give up continues"
        );
    }
}
