//! Whether the figures of a result can be trusted: the conditions for exit status 4.

use crate::result::Report;
use crate::suite::Suite;

/// Whether the traced counts of every run agree with the kernel's own counts.
#[must_use]
pub fn counts_agree(report: &Report) -> bool {
    let runs_agree = report
        .workload
        .as_ref()
        .is_none_or(|workload| workload.runs.iter().all(|run| run.difference == 0));
    runs_agree && report.reconciliation.difference == 0
}

/// Whether all sums of a result agree: the counts agree with the kernel's, the ledger adds up, and the events of a complete
/// timeline give the same sums.
#[must_use]
pub fn sums_agree(report: &Report) -> bool {
    let timeline_agrees = report.timeline.as_ref().and_then(|timeline| timeline.agrees);
    counts_agree(report) && report.ledger_adds_up && timeline_agrees != Some(false)
}

/// Whether the traced counts of all rows of a suite agree with the kernel's, and their ledgers add up.
#[must_use]
pub fn suite_agrees(suite: &Suite) -> bool {
    suite.rows.iter().all(|row| row.difference == 0 && row.ledger_adds_up)
}

#[cfg(test)]
mod tests {
    use ctxtrace_format::run::Timeline;
    use ctxtrace_format::workload::Mode;

    use super::*;
    use crate::fixtures::{self, info, run};
    use crate::summarize::summarize;

    #[test]
    fn each_difference_is_a_disagreement() {
        let good = || run(670_000);
        let report = |runs: &[_]| summarize(&info(Mode::Task), runs);
        assert!(counts_agree(&report(&[good()])) && sums_agree(&report(&[good()])));
        let mut lost = good();
        lost.aggregates.threads[0].thread.traced_voluntary -= 2;
        for runs in [&[lost.clone()][..], &[good(), good(), lost]] {
            assert!(!counts_agree(&report(runs)) && !sums_agree(&report(runs)));
        }
        let mut without_a_class = good();
        without_a_class.aggregates.switch_sums.clear();
        assert!(counts_agree(&report(&[without_a_class.clone()])));
        assert!(!sums_agree(&report(&[without_a_class])));
        let mut other_events = good();
        other_events.timeline = Some(Timeline {
            disagreements: Some(vec!["the counts".to_owned()]),
            ..Timeline::default()
        });
        assert!(counts_agree(&report(&[other_events.clone()])));
        assert!(!sums_agree(&report(&[other_events])));
    }

    #[test]
    fn a_row_with_a_difference_is_a_disagreement() {
        let mut suite = fixtures::suite();
        suite.rows.iter_mut().for_each(|row| row.difference = 0);
        assert!(suite_agrees(&suite));
        suite.rows[1].difference = -1;
        assert!(!suite_agrees(&suite));
    }
}
