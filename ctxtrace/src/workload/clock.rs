//! Measures the time of the measured section.

use nix::time::{ClockId, clock_gettime};

use ctxtrace_format::workload::Outcome;

/// A stopwatch that starts at the beginning of the measured section. It uses the same clock as the tracer's events, so that their
/// times can be compared.
#[derive(Debug)]
pub(super) struct Stopwatch {
    started_ns: u64,
}

impl Stopwatch {
    pub(super) fn start() -> Self {
        Self { started_ns: now_ns() }
    }

    /// Stops at the end of the measured section and returns the outcome for this many messages.
    pub(super) fn outcome(self, messages: u64) -> Outcome {
        Outcome {
            elapsed_ns: now_ns().saturating_sub(self.started_ns),
            messages,
            started_ns: Some(self.started_ns),
            max_in_flight: None,
        }
    }
}

/// The time of `CLOCK_MONOTONIC` in nanoseconds. Reading this clock cannot fail on Linux.
fn now_ns() -> u64 {
    clock_gettime(ClockId::CLOCK_MONOTONIC).map_or(0, |now| now.tv_sec() as u64 * 1_000_000_000 + now.tv_nsec() as u64)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_section_is_where_it_says() {
        let before = now_ns();
        let stopwatch = Stopwatch::start();
        std::thread::sleep(std::time::Duration::from_millis(2));
        let outcome = stopwatch.outcome(7);
        let started = outcome.started_ns.expect("a start time");
        assert_eq!(outcome.messages, 7);
        assert!(outcome.elapsed_ns >= 2_000_000);
        assert!(before <= started && started + outcome.elapsed_ns <= now_ns());
    }
}
