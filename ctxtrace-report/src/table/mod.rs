//! Renders a report as text for a terminal: first the answer, then the figures behind it, then what was lost.
//!
//! Each section has a file: `headline` (what was run, and the answer), `counts` (the check against the kernel's counts),
//! `switches` (ledger, tasks, wakeups), `times` (intervals, threads), `polls` (polls that the probe recorded), `footer` (losses,
//! overhead). `layout` makes the text fit 80 columns.

mod counts;
mod footer;
mod headline;
mod layout;
mod polls;
mod switches;
mod times;

pub use layout::in_ascii;
pub(super) use layout::{plain_table, shortened, without_trailing_spaces, wrapped};

use crate::style::{BOLD, DIM, RED, RESET};
use ctxtrace_analysis::result::Report;
use ctxtrace_format::printable::printable;

/// How text for a terminal is styled.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Style {
    /// Whether to use ANSI escapes for bold, dim and red text.
    pub color: bool,
}

impl Style {
    fn paint(self, style: &str, text: &str) -> String {
        if self.color {
            format!("{style}{text}{RESET}")
        } else {
            text.to_owned()
        }
    }

    pub(super) fn bold(self, text: &str) -> String {
        self.paint(BOLD, text)
    }

    pub(super) fn dim(self, text: &str) -> String {
        self.paint(DIM, text)
    }

    pub(super) fn red(self, text: &str) -> String {
        self.paint(RED, text)
    }
}

/// Wraps a text, and applies `paint` to each of its lines.
fn painted(text: &str, paint: impl Fn(&str) -> String) -> String {
    let lines: Vec<String> = wrapped(text, 0).iter().map(|line| paint(line)).collect();
    lines.join("\n")
}

/// Renders the whole report, with a newline at the end.
#[must_use]
pub fn render(report: &Report, style: Style) -> String {
    let mut sections = Vec::new();
    if let Some(reason) = &report.cut_short {
        sections.push(painted(
            &format!("PARTIAL: {}. What was recorded until then:", printable(reason)),
            |line| style.red(line),
        ));
    }
    if let Some(workload) = &report.workload {
        sections.push(headline::headline(report, workload, style));
    }
    if let Some(target) = &report.target {
        sections.push(headline::target_headline(report, target, style));
    }
    sections.push(headline::verdict(report, style));
    sections.push(counts::counts(report, style));
    if !report.ledger.is_empty() || !report.ledger_adds_up {
        sections.push(switches::ledger(report, style));
    }
    sections.extend(switches::tasks(report));
    sections.extend(switches::wakeups(report));
    sections.push(times::latencies(report));
    sections.extend(times::cgroups(report));
    sections.extend(report.polls.as_ref().map(|of| polls::polls(of, style)));
    sections.extend(report.on_cpu.as_ref().map(times::on_cpu));
    sections.extend(times::open_intervals(report));
    sections.push(times::threads(report));
    sections.push(footer::footer(report, style));
    sections.join("\n\n") + "\n"
}

#[cfg(test)]
mod tests {
    use super::*;
    use ctxtrace_analysis::fixtures::{about, command, info, run};
    use ctxtrace_analysis::result::{
        Leg, Path, PollLeg, PollPath, PolledTask, Polls, Spread, Task, WakeupOrigin, Wakeups,
    };
    use ctxtrace_analysis::summarize::summarize;
    use ctxtrace_format::polls::PollClock;
    use ctxtrace_format::run::{Exit, Subject};
    use ctxtrace_format::workload::{Allocator, Channel, Mode, Protocol, Spec};

    use ctxtrace_common::histogram::Latency;

    const PLAIN: Style = Style { color: false };
    const COLOR: Style = Style { color: true };

    #[test]
    fn a_ledger_that_does_not_add_up_is_reported() {
        let mut run = run(670_000);
        run.aggregates.switch_sums[0].1.count += 1;
        let report = summarize(&info(Mode::Task), &[run]);
        assert!(!report.ledger_adds_up);
        let text = render(&report, COLOR);
        assert!(
            text.contains("\x1b[1;31mTHE LEDGER DOES NOT ADD UP: 6 in it, 5 kernel switches"),
            "{text}"
        );
    }

    #[test]
    fn the_answer_comes_first() {
        let report = summarize(&info(Mode::TaskPool), &[run(670_000)]);
        let text = render(&report, PLAIN);
        let mut lines = text.lines();
        assert_eq!(
            lines.next(),
            Some("task-pool, buffer 0, 2 workers, not pinned, 1,000 messages")
        );
        assert_eq!(
            lines.nth(1),
            Some("  1,492,537 messages/s    670 ns/message    0.00500 kernel switches/message")
        );
        assert!(
            text.contains(
                "traced 5, the kernel counted 5: difference 0\n                  (rusage 5, expected 4 to 5)\n"
            ),
            "{text}"
        );
        assert!(text.contains("Lost              nothing"));
    }

    #[test]
    fn a_variant_is_named_by_what_is_not_as_usual() {
        let in_words = |spec: Spec, max_in_flight| {
            let mut run = run(670_000);
            if let Some(outcome) = &mut run.outcome {
                outcome.max_in_flight = max_in_flight;
            }
            let text = render(&summarize(&about(Subject::Workload(spec)), &[run]), PLAIN);
            text.lines().take(5).map(str::to_owned).collect::<Vec<_>>()
        };
        let variant = Spec {
            buffer: Some(1),
            channel: Some(Channel::Tokio),
            protocol: Some(Protocol::LockStep),
            count_in_flight: true,
            idle_threads: 1,
            allocator: Allocator::Jemalloc,
            ..Spec::new(Mode::Task)
        };
        let lines = in_words(variant, Some(1_234));
        assert_eq!(
            lines[0],
            "task, buffer 1, tokio's channel, lock-step, not pinned, jemalloc, 1 idle thread,"
        );
        assert_eq!(lines[1], "  1,000 messages");
        assert_eq!(lines[4], "  At most 1,234 messages in flight");
        let usual = in_words(Spec::new(Mode::Go), None);
        assert_eq!(usual[0], "go, buffer 0, 2 workers, not pinned, 1,000 messages");
        let variant = Spec {
            protocol: Some(Protocol::Pipelined),
            ..Spec::new(Mode::Go)
        };
        assert_eq!(
            in_words(variant, None)[0],
            "go, buffer 0, pipelined, 2 workers, not pinned, 1,000 messages"
        );
    }

    fn long_polls(many: u64) -> Polls {
        let spread = Spread {
            count: many,
            min_ns: many,
            p50_ns: many,
            p90_ns: many,
            p99_ns: many,
            p999_ns: many,
            max_ns: many,
            sum_ns: many,
        };
        let path = |path| PollPath {
            path,
            wake_to_poll: spread,
            legs: Leg::ALL.map(|leg| PollLeg { leg, spread }).to_vec(),
        };
        Polls {
            clock: PollClock::Monotonic,
            reading_ns: 1_234.5,
            stamps: many,
            dropped: many,
            polls: many,
            agrees: None,
            open: 0,
            without_wake: 0,
            wakes: many,
            unordered: 0,
            poll: Some(spread),
            wake_to_poll: Some(spread),
            paths: Path::ALL.map(path).to_vec(),
            tasks: vec![PolledTask {
                id: many,
                name: "y".repeat(99),
                pid: None,
                polls: many,
                wakes: many,
                poll: Some(spread),
                wake_to_poll: Some(spread),
                in_user_space: None,
                through_kernel: None,
            }],
            wakers: Vec::new(),
        }
    }

    /// The figures and the names of this run are as long as they can get.
    #[test]
    fn it_fits_eighty_columns() {
        const MANY: u64 = 1_234_567_890;
        let mut long = run(670_000_000_000);
        for record in &mut long.aggregates.threads {
            let thread = &mut record.thread;
            (thread.tid, thread.traced_voluntary, thread.traced_involuntary) = (4_194_303, MANY, MANY);
            (thread.kernel.voluntary, thread.kernel.involuntary) = (MANY, MANY - 1);
            (thread.on_cpu_ns, thread.off_cpu_ns, thread.run_queue_ns) = (MANY, MANY, MANY);
            thread.comm = *b"tokio-rt-worker\0";
        }
        for latency in Latency::ALL {
            let histogram = long.aggregates.latencies.get_mut(latency);
            for exponent in 0..11 {
                histogram.record(123 * 10_u64.pow(exponent));
            }
            histogram.count = MANY;
        }
        (
            long.aggregates.switch_sums[0].1.count,
            long.aggregates.switch_sums[0].1.off_cpu_ns,
        ) = (MANY, MANY);
        long.aggregates.counters.lost_wakeups = MANY;
        long.aggregates.counters.lost_stacks = MANY;
        long.aggregates.cost.tracer_cpu_ns = MANY;
        let words = (0..40)
            .map(|word| format!("--an-option-of-the-command={word}"))
            .collect();
        for about in [
            info(Mode::Process),
            info(Mode::TaskPool),
            about(Subject::Command { words }),
        ] {
            let mut report = summarize(&about, &[long.clone()]);
            report.tasks = vec![Task {
                id: MANY,
                name: "a task with a name that is far too long for one line of the table ".repeat(3),
                is_number: false,
                pid: 1,
                future_type: None,
                task_switches: Some(MANY),
                hit_kernel: Some(MANY),
                kernel_switches: MANY,
                off_cpu_ns: MANY,
            }];
            report.wakeups = vec![Wakeups {
                origin: WakeupOrigin::Task,
                from_task: Some("x".repeat(99)),
                from_thread: String::new(),
                from_tid: Some(4_194_303),
                to_thread: String::new(),
                to_tid: 4_194_303,
                count: MANY,
                wasted: Some(MANY),
                wasted_on_cpu_ns: Some(MANY),
                waking_ns: Some(MANY as f64),
                p50_ns: MANY,
                p99_ns: MANY,
                max_ns: MANY,
                sum_ns: MANY,
            }];
            report.polls = Some(long_polls(MANY));
            for line in render(&report, PLAIN).lines() {
                assert!(line.chars().count() <= 80, "{line}");
            }
        }
    }

    #[test]
    fn a_difference_is_red_and_names_its_thread() {
        let mut run = run(670_000);
        run.aggregates.threads[0].thread.traced_voluntary -= 2;
        let report = summarize(&info(Mode::Task), &[run]);
        let text = render(&report, COLOR);
        assert!(
            text.contains("\x1b[1;31mthread 101 (tokio-rt-worker): traced 3, kernel 5: -2\x1b[0m"),
            "{text}"
        );
    }

    #[test]
    fn events_that_agree_with_the_counts_say_so() {
        let mut run = run(670_000);
        run.timeline = Some(ctxtrace_format::run::Timeline {
            disagreements: Some(Vec::new()),
            ..Default::default()
        });
        let report = summarize(&info(Mode::Task), &[run]);
        assert_eq!(
            report.timeline.as_ref().and_then(|timeline| timeline.agrees),
            Some(true)
        );
        let text = render(&report, PLAIN);
        assert!(
            text.contains("Timeline          0 events, 0 B: replayed, with the same counts"),
            "{text}"
        );
    }

    #[test]
    fn losses_are_red() {
        let mut few = run(670_000);
        few.aggregates.counters.lost_wakeups = 7;
        let text = render(&summarize(&info(Mode::Task), &[few]), COLOR);
        assert!(
            text.contains("Lost              \x1b[1;31m7 wakeups\x1b[0m\n"),
            "{text}"
        );
        let mut crowded = run(670_000);
        (
            crowded.aggregates.counters.lost_threads,
            crowded.aggregates.counters.lost_stacks,
        ) = (1, 2);
        let text = render(&summarize(&info(Mode::Task), &[crowded]), PLAIN);
        assert!(
            text.contains("\n                  (a larger --max-threads and --max-stacks makes room)\n"),
            "{text}"
        );
    }

    #[test]
    fn without_colour_there_is_no_escape() {
        let mut run = run(670_000);
        run.cut_short = Some("interrupted".to_owned());
        run.aggregates.threads[0].thread.comm[..5].copy_from_slice(b"\x1b[31m");
        let text = render(&summarize(&info(Mode::Task), &[run]), PLAIN);
        assert!(!text.contains('\x1b'));
        assert!(text.starts_with("PARTIAL: interrupted. What was recorded until then:\n"));
    }

    #[test]
    fn many_threads_are_summed_up() {
        let mut run = run(670_000);
        for tid in 200..300 {
            run.aggregates
                .threads
                .push(ctxtrace_format::build::thread(tid, "x", 1, 0));
        }
        let text = render(&summarize(&info(Mode::Task), &[run]), PLAIN);
        assert!(text.contains("89 more"), "{text}");
    }

    #[test]
    fn a_commands_table_begins_with_the_command_and_how_it_ended() {
        let mut failed = run(1);
        failed.exit = Some(Exit {
            status: Some(3),
            signal: None,
        });
        let text = render(&summarize(&about(command()), &[failed]), PLAIN);
        assert!(
            text.starts_with("make -j2 (process 100)\n\n  2.00 ms recorded    5 kernel switches    2,500 "),
            "{text}"
        );
        assert!(text.contains("it ended with status 3"), "{text}");
        assert!(text.contains("\nmake: no task switches counted"), "{text}");
        let subject = Subject::Process {
            pid: 7,
            name: "ser\x1bver".to_owned(),
            children: true,
        };
        let text = render(&summarize(&about(subject), &[run(1)]), PLAIN);
        assert!(
            text.starts_with("process 7 (ser\u{fffd}ver) and its children\n"),
            "{text}"
        );
    }
}
