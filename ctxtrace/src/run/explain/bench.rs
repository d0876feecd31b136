//! Makes the runs.
//!
//! The cases to be compared run in blocks. Each case runs once per block, in random order, so that a machine that is temporarily
//! slow slows all of them.

use ctxtrace_common::event::Event;
use indicatif::ProgressBar;

use super::case::{Arm, CaseEnvironment, PreparedCase, Took};
use super::effort::Effort;
use super::order::Order;
use crate::capture::Settings;
use crate::error::{Error, Result};
use crate::run::suite::bar;
use crate::run::watch::Observer;
use crate::tracee::counters;
use crate::tracee::load::CpuTimes;
use ctxtrace_analysis::budget::account::{Account, SleepCauses};
use ctxtrace_analysis::correlate::budget::{ThreadTimeBudget, Window};
use ctxtrace_analysis::correlate::timeline::Replay;
use ctxtrace_analysis::explain::answer::{
    self, CONFIDENCE, Measurements, Pair, Runs, Trial, are_narrow, blocks_for, gap_of, is_enough,
};
use ctxtrace_analysis::explain::intervention::Intervention;
use ctxtrace_analysis::explain::result::{NotTried, Others};
use ctxtrace_analysis::statistics::family;
use ctxtrace_format::Level;
use ctxtrace_format::events::EventSink;
use ctxtrace_format::samples::Samples;
use ctxtrace_format::workload::Outcome;

/// Samples per second. This number does not divide the rate of any timer.
const SAMPLE_HZ: u32 = 1_999;

/// Maximum number of causes in a budget, which is the number of intervals that must hold simultaneously.
const CAUSES: usize = 12;

/// A traced run is discarded if the parts of its budget miss more than this share of its time.
const MOST_MISSED: f64 = 0.01;

/// The interventions to be tried, and those that are not tried.
pub(super) struct Chosen<C> {
    pub(super) interventions: Vec<Intervention<C>>,
    pub(super) not_tried: Vec<NotTried>,
}

/// A sink that collects all events.
#[derive(Default)]
struct EventCollector(Vec<Event>);

impl EventSink for EventCollector {
    fn events(&mut self, batch: &[Event]) {
        self.0.extend_from_slice(batch);
    }
}

impl Observer for EventCollector {}

/// Whether the measurement continues.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Go {
    On,
    Interrupted,
}

/// The environment of the measurement, and the results so far.
pub(super) struct Bench<'a> {
    place: CaseEnvironment<'a>,
    effort: Effort,
    order: Order,
    measured: Measurements,
    progress: ProgressBar,
}

/// Makes the whole measurement.
///
/// # Errors
///
/// If a case cannot be run, or if it fails.
pub(super) fn measure<C: PreparedCase>(
    place: CaseEnvironment<'_>,
    effort: Effort,
    base: &C,
    subject: &C,
    chosen: Chosen<C>,
) -> Result<Measurements> {
    let case = |case: &C| answer::CaseFacts {
        name: case.name(),
        buffer: case.buffer(),
        max_in_flight: None,
    };
    let mut bench = Bench {
        place,
        effort,
        order: Order::new(fastrand::u64(..)),
        measured: Measurements {
            unit: C::UNIT,
            base: case(base),
            subject: case(subject),
            gap: Vec::new(),
            accounts: Vec::new(),
            discarded: 0,
            asleep: None,
            counters: Vec::new(),
            no_counters: Vec::new(),
            interventions: Vec::new(),
            not_tried: chosen.not_tried,
            others: None,
            cut_short: None,
        },
        progress: bar(4, false),
    };
    let before = CpuTimes::now()?;
    let went = bench.all(base, subject, chosen.interventions)?;
    bench.progress.finish_and_clear();
    let others = CpuTimes::now()?.others_since(&before);
    let mut measured = bench.measured;
    measured.others = Some(Others {
        share: others.share,
        stolen: others.stolen,
    });
    if went == Go::Interrupted {
        measured.cut_short = Some("interrupted".to_owned());
    }
    Ok(measured)
}

impl Bench<'_> {
    fn all<C: PreparedCase>(&mut self, base: &C, subject: &C, interventions: Vec<Intervention<C>>) -> Result<Go> {
        let sides = [
            base.prepare(&self.place, self.effort.run)?,
            subject.prepare(&self.place, self.effort.run)?,
        ];
        self.progress.set_message("measuring the gap");
        if self.gap(&sides)? == Go::Interrupted {
            return Ok(Go::Interrupted);
        }
        self.progress.inc(1);
        if gap_of(&self.measured.gap).is_clear {
            self.progress.set_message("tracing where the time goes");
            if self.accounts(base, subject)? == Go::Interrupted {
                return Ok(Go::Interrupted);
            }
            self.progress.inc(1);
            self.progress.set_message("measuring with counters");
            if self.counters(&sides)? == Go::Interrupted {
                return Ok(Go::Interrupted);
            }
            self.progress.inc(1);
        } else {
            self.progress.inc(2);
        }
        if base == subject {
            return Ok(Go::On);
        }
        for (case, is_base) in [(base, true), (subject, false)] {
            let most = match case.counting() {
                Some(counting) => {
                    let arm = counting.prepare(&self.place, self.effort.run)?;
                    match arm.time(&self.place)? {
                        Some(took) => took.max_in_flight,
                        None => return Ok(Go::Interrupted),
                    }
                }
                None => None,
            };
            let side = if is_base {
                &mut self.measured.base
            } else {
                &mut self.measured.subject
            };
            side.max_in_flight = most;
        }
        self.progress.set_message("trying interventions");
        self.interventions(&sides, interventions)
    }

    fn gap(&mut self, sides: &[Arm; 2]) -> Result<Go> {
        let stage = self.effort.gap.begin();
        let needed = family::blocks_needed(CONFIDENCE).max(answer::LEAST_BLOCKS);
        while stage.wants_more(self.measured.gap.len(), needed, is_enough(&self.measured.gap)) {
            let Some(took) = self.block(&[&sides[0], &sides[1]])? else {
                return Ok(Go::Interrupted);
            };
            self.measured.gap.push(Pair {
                base: took[0].ns,
                subject: took[1].ns,
            });
        }
        Ok(Go::On)
    }

    /// Runs one block: each arm once, in random order. `None` if it was interrupted.
    fn block(&mut self, arms: &[&Arm]) -> Result<Option<Vec<Took>>> {
        self.block_of(arms, |place, arm| arm.time(place))
    }

    fn block_of(
        &mut self,
        arms: &[&Arm],
        run: impl Fn(&CaseEnvironment<'_>, &Arm) -> Result<Option<Took>>,
    ) -> Result<Option<Vec<Took>>> {
        let mut took: Vec<Option<Took>> = arms.iter().map(|_| None).collect();
        for index in self.order.block(arms.len()) {
            took[index] = run(&self.place, arms[index])?;
            if took[index].is_none() || self.place.interrupts.any_seen() {
                return Ok(None);
            }
        }
        Ok(took.into_iter().collect())
    }

    fn counters(&mut self, sides: &[Arm; 2]) -> Result<Go> {
        let (there, missing) = counters::available();
        self.measured.no_counters = missing;
        let needed = family::blocks_needed(family::each(CONFIDENCE, there.len()));
        let stage = self.effort.counters.begin();
        while !there.is_empty() && stage.wants_more(self.measured.counters.len(), needed, false) {
            let arms = [&sides[0], &sides[1]];
            let Some(took) = self.block_of(&arms, |place, arm| arm.count(place, &there))? else {
                return Ok(Go::Interrupted);
            };
            let [base, subject] = [0, 1].map(|side| took[side].counts.clone());
            self.measured.counters.push((base, subject));
        }
        Ok(Go::On)
    }

    fn interventions<C: PreparedCase>(&mut self, sides: &[Arm; 2], interventions: Vec<Intervention<C>>) -> Result<Go> {
        // The unchanged base and subject are arms 0 and 1, followed by the changed cases.
        let mut arms: Vec<Arm> = Vec::new();
        let mut tried: Vec<(Intervention<C>, usize, usize)> = Vec::new();
        for each in interventions {
            let mut prepare = |case: &Option<C>, plain: usize| -> Result<usize> {
                let Some(case) = case else { return Ok(plain) };
                arms.push(case.prepare(&self.place, self.effort.run)?);
                Ok(arms.len() + 1)
            };
            let prepared = prepare(&each.base, 0).and_then(|base| Ok((base, prepare(&each.subject, 1)?)));
            if self.place.interrupts.any_seen() {
                return Ok(Go::Interrupted);
            }
            match prepared {
                Ok((base, subject)) => tried.push((each, base, subject)),
                Err(error) => self.measured.not_tried.push(NotTried {
                    name: each.name,
                    reason: error.to_string(),
                }),
            }
        }
        let all: Vec<&Arm> = sides.iter().chain(&arms).collect();
        let needed = blocks_for(tried.len());
        let stage = self.effort.interventions.begin();
        let mut runs: Vec<Runs> = vec![Runs::default(); tried.len()];
        let mut went = Go::On;
        let mut blocks = 0;
        while !tried.is_empty() && stage.wants_more(blocks, needed, blocks >= needed && are_narrow(runs.iter())) {
            let Some(took) = self.block(&all)? else {
                went = Go::Interrupted;
                break;
            };
            let pair = |base: usize, subject: usize| Pair {
                base: took[base].ns,
                subject: took[subject].ns,
            };
            for ((_, base, subject), runs) in tried.iter().zip(&mut runs) {
                runs.plain.push(pair(0, 1));
                runs.changed.push(pair(*base, *subject));
            }
            blocks += 1;
        }
        let trials = tried.into_iter().zip(runs).map(|((each, _, _), runs)| Trial {
            name: each.name,
            what: each.what,
            kind: each.kind,
            runs,
        });
        self.measured.interventions = trials.collect();
        Ok(went)
    }

    /// Measures the budgets of traced runs.
    fn accounts<C: PreparedCase>(&mut self, base: &C, subject: &C) -> Result<Go> {
        let duration = self.effort.traced_run;
        let arms = [
            base.prepare(&self.place, duration)?,
            subject.prepare(&self.place, duration)?,
        ];
        let mut asleep = Vec::new();
        for arm in &arms {
            let (mut recorded, outcome) = arm.trace(&self.place, Settings::default(), &mut ())?;
            if self.place.interrupts.any_seen() {
                return Ok(Go::Interrupted);
            }
            recorded.name_stacks(Some(self.place.interrupts.fd()));
            if self.place.interrupts.take().is_some() {
                return Ok(Go::Interrupted);
            }
            asleep.push(SleepCauses::from_run(&recorded.run, messages(outcome)));
        }
        let stage = self.effort.budget.begin();
        let needed = family::blocks_needed(family::each(CONFIDENCE, CAUSES));
        let most = self.effort.traced_blocks;
        while stage.wants_more(
            self.measured.accounts.len(),
            needed,
            self.measured.accounts.len() >= most,
        ) {
            let mut both = [Account::default(), Account::default()];
            for index in self.order.block(2) {
                both[index] = self.account(&arms[index], &asleep[index])?;
                if self.place.interrupts.any_seen() {
                    return Ok(Go::Interrupted);
                }
            }
            if both.iter().any(|account| account.misses() > MOST_MISSED) {
                self.measured.discarded += 1;
                continue;
            }
            let [base, subject] = both;
            self.measured.accounts.push((base, subject));
        }
        if let Ok([base, subject]) = <[SleepCauses; 2]>::try_from(asleep) {
            self.measured.asleep = Some((base, subject));
        }
        Ok(Go::On)
    }

    fn account(&self, arm: &Arm, asleep: &SleepCauses) -> Result<Account> {
        let settings = Settings {
            level: Level::Timeline,
            sample_hz: Some(SAMPLE_HZ),
            ..Settings::default()
        };
        let mut collected = EventCollector::default();
        let (mut recorded, outcome) = arm.trace(&self.place, settings, &mut collected)?;
        let events = &collected.0;
        let window = match outcome {
            Some(outcome) => Window::measured(&outcome).ok_or_else(|| {
                Error::Workload("the workload did not report when its measured section began".to_owned())
            })?,
            None => Window {
                from_ns: events.first().map_or(0, |event| event.at_ns),
                to_ns: events.last().map_or(0, |event| event.at_ns),
            },
        };
        let mut replay = Replay::with_sink((ThreadTimeBudget::new(window), Samples::default()));
        replay.events(events);
        let (budget, samples) = replay.into_intervals();
        recorded.run.samples = samples;
        recorded.name_stacks(Some(self.place.interrupts.fd()));
        // The caller checks whether a signal was seen.
        let _ = self.place.interrupts.take();
        Ok(Account::from_timeline(
            &recorded.run,
            &budget,
            window,
            messages(outcome),
            asleep,
        ))
    }
}

/// The number that times are divided by.
fn messages(outcome: Option<Outcome>) -> f64 {
    outcome.map_or(1.0, |outcome| outcome.messages as f64)
}
