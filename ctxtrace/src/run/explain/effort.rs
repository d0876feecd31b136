//! How long things may take.

use std::time::{Duration, Instant};

use crate::analyze::budget::Unit;

/// The most blocks of anything: from there on the machine's drift is what is measured.
const MOST_BLOCKS: usize = 60;

/// A stage: blocks of runs, until they say enough or the time is up.
#[derive(Clone, Copy, Debug)]
pub(super) struct Stage {
    /// After so long it ends, if it has what it needs.
    limit: Duration,
    /// Whether it ends without, after half as much time again: runs of workloads can be made as short as they have to be. Runs of a
    /// command cannot, and with fewer than are needed nothing could be said.
    gives_up: bool,
}

/// A stage that has begun.
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
    /// Whether another block is to be made. `needed` are the fewest with which anything can be said.
    pub(super) fn wants_more(&self, blocks: usize, needed: usize, is_enough: bool) -> bool {
        if blocks >= MOST_BLOCKS || is_enough {
            return false;
        }
        let elapsed = self.began.elapsed();
        let limit = self.stage.limit;
        elapsed < limit || (blocks < needed && !(self.stage.gives_up && elapsed > limit * 3 / 2))
    }
}

/// The whole measurement: `ctxtrace explain` is to end within three minutes, with `--quick` within 45 seconds.
#[derive(Clone, Copy, Debug)]
pub(super) struct Effort {
    /// A run of a workload.
    pub(super) run: Duration,
    /// A traced run.
    pub(super) traced_run: Duration,
    /// All runs for the gap.
    pub(super) gap: Stage,
    /// All traced runs.
    pub(super) budget: Stage,
    /// Blocks of traced runs at most.
    pub(super) traced_blocks: usize,
    /// All runs with counters.
    pub(super) counters: Stage,
    /// All interventions.
    pub(super) interventions: Stage,
    /// Interventions at most.
    pub(super) most: usize,
}

impl Effort {
    pub(super) fn of(quick: bool, unit: Unit) -> Self {
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
                .expect("the machine runs for longer"),
            stage: stage(gives_up),
        };
        let underway = |ago_s| began(ago_s, true);
        assert!(underway(0).wants_more(0, 5, false));
        assert!(!underway(0).wants_more(20, 5, true));
        assert!(!underway(0).wants_more(MOST_BLOCKS, 5, false));
        assert!(underway(11).wants_more(4, 5, false), "what is needed is made");
        assert!(!underway(11).wants_more(5, 5, false));
        assert!(!underway(16).wants_more(4, 5, false), "but not at any price");
        assert!(began(60, false).wants_more(4, 5, false), "unless nothing else would do");
    }
}
