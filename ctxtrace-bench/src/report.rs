//! `cargo xtask bench report`: the time and memory of `ctxtrace report` for captures of several sizes, compared with
//! `perf sched timehist -s` for recordings of the same ping-pong.
//!
//! The captures are recordings of the built-in ping-pong of two processes, pinned to one CPU, with the number of round trips that
//! gives the wanted size. The two tools have different events: ctxtrace records one for a switch and one for a wakeup, perf
//! records more. So the times are compared both per event and per switch.
//!
//! perf computes the sums when it reports; ctxtrace has computed them while it recorded. `ctxtrace report --check` replays the
//! events, as perf has to, so it is measured as well.

use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context as _, Result, bail};
use serde_json::{Value, json};

use crate::figures::{ValueSpread, megabytes, ratios, thousands};
use crate::losses::Losses;
use crate::process;
use crate::{child, ctxtrace, perf, switches};

/// The goal: how many times as fast as perf `ctxtrace report` should be, per event.
const GOAL: f64 = 20.0;
/// The sizes of the recordings of perf, in millions of events.
const FOR_PERF: [u64; 2] = [1, 5];
/// The number of round trips of the first recording, which shows how many events a round trip makes.
const TRIAL: u64 = 50_000;
/// The maximum deviation of a recording from the wanted size, as a share of it. A recording beyond it is made again.
const TOLERANCE: f64 = 0.1;
/// The maximum number of recordings that are made for one size. After that the benchmark fails.
const ATTEMPTS: usize = 6;

/// A recording and the measurements of its reports.
struct Recording {
    by: Tool,
    path: PathBuf,
    /// The wanted size, in millions of events.
    millions: u64,
    events: u64,
    lost: Losses,
    /// The number of kernel switches of the ping-pong.
    switches: u64,
    bytes: u64,
    /// The time of the report in nanoseconds, round by round.
    ns: Vec<f64>,
    peak_bytes: u64,
}

/// The tool that makes the report.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Tool {
    Ctxtrace,
    Check,
    Perf,
}

impl Tool {
    fn name(self) -> &'static str {
        match self {
            Self::Ctxtrace => "ctxtrace report",
            Self::Check => "ctxtrace report --check",
            Self::Perf => "perf sched timehist -s",
        }
    }
}

/// Makes the recordings, measures the reports, prints the table, and writes the JSON file, if there is one. `millions` are the
/// sizes of the captures.
pub(crate) fn main(rounds: usize, millions: &[u64], json: Option<&Path>) -> Result<()> {
    if !process::is_root() {
        bail!("recording needs root: sudo cargo xtask bench report");
    }
    let folder = tempfile::tempdir_in(process::root().join("target")).context("cannot create a temporary folder")?;
    let mut recordings = Vec::new();
    let mut per_trip = None;
    for &size in millions {
        let recording = of_size(size, &mut per_trip, |round_trips| {
            by_ctxtrace(folder.path(), round_trips)
        })?;
        let check = recording.reported_by(Tool::Check);
        recordings.extend([recording, check]);
    }
    let mut per_trip = None;
    let mut without_perf = None;
    for size in FOR_PERF.into_iter().filter(|size| millions.contains(size)) {
        match of_size(size, &mut per_trip, |round_trips| by_perf(folder.path(), round_trips)) {
            Ok(recording) => recordings.push(recording),
            Err(error) => without_perf = Some(format!("{error:#}")),
        }
    }
    for round in 0..rounds {
        for place in 0..recordings.len() {
            let index = (place + round) % recordings.len();
            recordings[index].report()?;
        }
        eprintln!("report: round {} of {rounds}", round + 1);
    }
    let ratios = compare(&recordings);
    print(&recordings, &ratios, rounds, without_perf.as_deref());
    crate::write(json, &to_json(&recordings, &ratios, without_perf.as_deref()))
}

/// Makes recordings until one has about this many million events. The number of events per round trip differs from run to run,
/// because a wakeup ends a sleep only if the other process was not preempted before it slept. `per_trip` is the number of the
/// latest recording.
fn of_size(millions: u64, per_trip: &mut Option<f64>, record: impl Fn(u64) -> Result<Recording>) -> Result<Recording> {
    let wanted = (millions * 1_000_000) as f64;
    for _ in 0..ATTEMPTS {
        let round_trips = per_trip.map_or(TRIAL, |per_trip| (wanted / per_trip).ceil() as u64);
        let mut recording = record(round_trips)?;
        *per_trip = Some(recording.events.max(1) as f64 / round_trips as f64);
        if (recording.events as f64 / wanted - 1.0).abs() <= TOLERANCE {
            recording.millions = millions;
            return Ok(recording);
        }
        // The file may be large, and the next recording has another name.
        let _ = std::fs::remove_file(&recording.path);
    }
    bail!("none of {ATTEMPTS} recordings had about {millions} million events: the machine is too busy")
}

/// Records the ping-pong with ctxtrace.
fn by_ctxtrace(folder: &Path, round_trips: u64) -> Result<Recording> {
    let path = folder.join(format!("{round_trips}.ctx"));
    let report = folder.join("report.json");
    let mut command = Command::new(ctxtrace::program());
    command.args(["run", "--mode", "process", "--level", "timeline", "--quiet", "--force"]);
    command.args(["--iterations", &round_trips.to_string(), "--json"]);
    command.arg(&report).arg("-o").arg(&path);
    eprintln!("recording {} round trips with ctxtrace", thousands(round_trips));
    child::run(&mut command)?;
    let report = ctxtrace::read(&report)?;
    let number = |pointer| Ok::<_, anyhow::Error>(ctxtrace::number(&report, pointer)? as u64);
    let (events, switches) = (number("/timeline/events")?, number("/kernel_switches/total")?);
    Recording::new(Tool::Ctxtrace, path, events, switches, Losses::in_report(&report))
}

/// Records the ping-pong with perf.
fn by_perf(folder: &Path, round_trips: u64) -> Result<Recording> {
    let path = folder.join(format!("{round_trips}.data"));
    eprintln!("recording {} round trips with perf", thousands(round_trips));
    let events = perf::record(&path, &switches::Placing::Pinned.target(round_trips))?;
    let lost = perf::losses(&path)?;
    Recording::new(Tool::Perf, path, events, 2 * round_trips, lost)
}

impl Recording {
    fn new(by: Tool, path: PathBuf, events: u64, switches: u64, lost: Losses) -> Result<Self> {
        Ok(Self {
            by,
            bytes: std::fs::metadata(&path)?.len(),
            path,
            millions: 0,
            events,
            lost,
            switches,
            ns: Vec::new(),
            peak_bytes: 0,
        })
    }

    /// Returns the same recording, without measurements, to be reported by another tool.
    fn reported_by(&self, by: Tool) -> Self {
        Self {
            by,
            path: self.path.clone(),
            lost: self.lost.clone(),
            ns: Vec::new(),
            ..*self
        }
    }

    /// Makes one report and stores its measurements.
    fn report(&mut self) -> Result<()> {
        // Read the file into the page cache first, so that the speed of the disk and the state of the cache do not matter.
        let mut file = File::open(&self.path).context("cannot read the recording")?;
        io::copy(&mut file, &mut io::sink()).context("cannot read the recording")?;
        let finished = match self.by {
            Tool::Ctxtrace => child::run(Command::new(ctxtrace::program()).arg("report").arg(&self.path))?,
            Tool::Check => child::run(
                Command::new(ctxtrace::program())
                    .args(["report", "--check"])
                    .arg(&self.path),
            )?,
            Tool::Perf => child::run(perf::command(&["sched", "timehist", "-s", "-i"])?.arg(&self.path))?,
        };
        self.ns.push(finished.wall.as_nanos() as f64);
        self.peak_bytes = self.peak_bytes.max(finished.peak_bytes);
        Ok(())
    }

    fn per_event(&self) -> Vec<f64> {
        self.ns.iter().map(|ns| ns / self.events as f64).collect()
    }

    fn per_switch(&self) -> Vec<f64> {
        self.ns.iter().map(|ns| ns / self.switches as f64).collect()
    }
}

/// The comparison of a report of ctxtrace with perf at one size: the time of perf divided by that of ctxtrace.
struct Ratio {
    by: Tool,
    /// The size, in millions of events.
    millions: u64,
    by_event: ValueSpread,
    by_switch: ValueSpread,
}

fn compare(recordings: &[Recording]) -> Vec<Ratio> {
    let perf_of = |millions| {
        let of_perf = |recording: &&Recording| recording.by == Tool::Perf && recording.millions == millions;
        recordings.iter().find(of_perf)
    };
    recordings
        .iter()
        .filter(|ours| ours.by != Tool::Perf)
        .filter_map(|ours| {
            let perf = perf_of(ours.millions)?;
            let ratio =
                |figure: fn(&Recording) -> Vec<f64>| ValueSpread::from_values(&ratios(&figure(perf), &figure(ours)));
            Some(Ratio {
                by: ours.by,
                millions: perf.millions,
                by_event: ratio(Recording::per_event)?,
                by_switch: ratio(Recording::per_switch)?,
            })
        })
        .collect()
}

#[expect(clippy::print_stdout, reason = "the table is the output of the command")]
fn print(recordings: &[Recording], ratios: &[Ratio], rounds: usize, without_perf: Option<&str>) {
    println!(
        "{:24} {:>11} {:>9} {:>9}  {:24} {:>7} {:>9} {:>9}",
        "",
        "events",
        "file",
        "time",
        format!("ns/event (of {rounds} rounds)"),
        "M/s",
        "ns/switch",
        "memory"
    );
    for recording in recordings {
        let (Some(all), Some(event), Some(switch)) = (
            ValueSpread::from_values(&recording.ns),
            ValueSpread::from_values(&recording.per_event()),
            ValueSpread::from_values(&recording.per_switch()),
        ) else {
            continue;
        };
        println!(
            "{:24} {:>11} {:>9} {:>9}  {:24} {:>7.1} {:>9.1} {:>9}  {}",
            recording.by.name(),
            thousands(recording.events),
            megabytes(recording.bytes),
            format!("{:.2?}", Duration::from_nanos(all.median as u64)),
            format!("{event:.1}"),
            1e3 / event.median,
            switch.median,
            megabytes(recording.peak_bytes),
            recording.lost
        );
    }
    println!();
    if let Some(why) = without_perf {
        println!("perf: not measured: {why}");
    }
    for ratio in ratios {
        let goal = match ratio.by {
            Tool::Ctxtrace if ratio.by_event.median >= GOAL => format!(" (goal: at least {GOAL}, reached)"),
            Tool::Ctxtrace => format!(" (goal: at least {GOAL}, not reached)"),
            _ => String::new(),
        };
        println!(
            "{} million events, {}: {:.1} times as fast as perf per event{goal}, {:.1} per switch",
            ratio.millions,
            ratio.by.name(),
            ratio.by_event,
            ratio.by_switch
        );
    }
    for by in [Tool::Ctxtrace, Tool::Check] {
        if let Some(growth) = growth(recordings, by) {
            println!(
                "{}: the time per event of the largest capture is {growth:.2} times that of the smallest.",
                by.name()
            );
        }
    }
}

/// Returns the time per event of the largest capture divided by that of the smallest, which is 1 if the time is linear in the size.
fn growth(recordings: &[Recording], by: Tool) -> Option<f64> {
    let ours = || recordings.iter().filter(|recording| recording.by == by);
    let per_event = |recording: &Recording| Some(ValueSpread::from_values(&recording.per_event())?.median);
    let smallest = ours().min_by_key(|recording| recording.events)?;
    let largest = ours().max_by_key(|recording| recording.events)?;
    (largest.events > smallest.events).then_some(per_event(largest)? / per_event(smallest)?)
}

fn to_json(recordings: &[Recording], ratios: &[Ratio], without_perf: Option<&str>) -> Value {
    let recordings_json: Vec<Value> = recordings
        .iter()
        .map(|recording| {
            json!({
                "by": recording.by.name(),
                "events": recording.events,
                "lost": recording.lost.to_json(),
                "kernel_switches": recording.switches,
                "file_bytes": recording.bytes,
                "ns": recording.ns,
                "ns_per_event": ValueSpread::from_values(&recording.per_event()).map(ValueSpread::to_json),
                "ns_per_switch": ValueSpread::from_values(&recording.per_switch()).map(ValueSpread::to_json),
                "peak_bytes": recording.peak_bytes,
            })
        })
        .collect();
    let ratios: Vec<Value> = ratios
        .iter()
        .map(|ratio| {
            json!({
                "by": ratio.by.name(),
                "millions": ratio.millions,
                "goal_at_least": (ratio.by == Tool::Ctxtrace).then_some(GOAL),
                "by_event": ratio.by_event.to_json(),
                "by_switch": ratio.by_switch.to_json(),
            })
        })
        .collect();
    json!({
        "recordings": recordings_json,
        "times_as_fast_as_perf": ratios,
        "growth": growth(recordings, Tool::Ctxtrace),
        "growth_checked": growth(recordings, Tool::Check),
        "perf_failure": without_perf,
    })
}

#[cfg(test)]
mod tests {
    use std::cell::RefCell;

    use super::*;

    fn recording(by: Tool, events: u64, switches: u64, ns: &[f64]) -> Recording {
        Recording {
            by,
            path: PathBuf::new(),
            millions: (events as f64 / 1e6).round() as u64,
            events,
            lost: Losses::default(),
            switches,
            bytes: 0,
            ns: ns.to_vec(),
            peak_bytes: 0,
        }
    }

    #[test]
    fn a_recording_of_another_size_is_made_again_with_what_it_has_shown() {
        let asked = RefCell::new(Vec::new());
        let mut per_trip = None;
        // A round trip has three events, but four in the trial.
        let record = |round_trips: u64| {
            asked.borrow_mut().push(round_trips);
            let of_each = if round_trips == TRIAL { 4 } else { 3 };
            Ok(recording(Tool::Ctxtrace, of_each * round_trips, 2 * round_trips, &[]))
        };
        let made = of_size(1, &mut per_trip, record).expect("a recording of this size");
        assert_eq!(*asked.borrow(), [TRIAL, 250_000, 333_334]);
        assert_eq!((made.millions, made.events, per_trip), (1, 1_000_002, Some(3.0)));
    }

    #[test]
    fn a_machine_that_never_gives_that_size_is_too_busy() {
        let record = |_| Ok(recording(Tool::Perf, 10, 2, &[]));
        let error = of_size(5, &mut None, record).err().expect("an error");
        assert!(error.to_string().contains("5 million events"), "{error}");
    }

    #[test]
    fn perf_is_compared_at_its_own_size_by_event_and_by_switch() {
        let recordings = [
            recording(Tool::Ctxtrace, 1_010_000, 505_000, &[1.01e7, 2.02e7]),
            recording(Tool::Ctxtrace, 10_000_000, 5_000_000, &[2e8, 2e8]),
            recording(Tool::Perf, 990_000, 330_000, &[9.9e7, 9.9e7]),
            recording(Tool::Check, 1_010_000, 505_000, &[1.01e8, 1.01e8]),
        ];
        let ratios = compare(&recordings);
        assert_eq!(
            ratios
                .iter()
                .map(|ratio| (ratio.by, ratio.millions))
                .collect::<Vec<_>>(),
            [(Tool::Ctxtrace, 1), (Tool::Check, 1)]
        );
        assert_eq!(format!("{:.1}", ratios[0].by_event), "10.0 (5.0 to 10.0)");
        assert_eq!(format!("{:.1}", ratios[0].by_switch), "15.0 (7.5 to 15.0)");
        let growth = growth(&recordings, Tool::Ctxtrace).expect("recordings of two sizes");
        assert!((growth - 1.0).abs() < 1e-9, "{growth}");
        assert_eq!(
            super::growth(&recordings[..1], Tool::Ctxtrace),
            None,
            "one size has no growth"
        );
    }
}
