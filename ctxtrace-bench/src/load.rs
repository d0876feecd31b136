//! `cargo xtask bench load`: as many kernel switches as the machine can make, at each level. Measures what is lost with the
//! default buffers, and the CPU time and memory that ctxtrace itself uses.

use std::path::Path;
use std::process::Command;
use std::thread::available_parallelism;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};
use serde_json::{Value, json};

use crate::child::{self, Finished};
use crate::figures::{megabytes, thousands};
use crate::losses::Losses;
use crate::process;
use crate::{ctxtrace, tools};

/// The levels that are measured, after an untraced run.
const LEVELS: [&str; 3] = ["counts", "stacks", "timeline"];

/// The end of ctxtrace's advice on how to lose less.
const ROOM: &str = " makes room";

/// The number of loops of [`Load::Messaging`] in the trial run that measures how long a loop takes.
const TRIAL_LOOPS: u64 = 200;
/// The number of round trips of [`Load::PingPongs`] in the trial run that measures how long a round trip takes.
const TRIAL_ROUND_TRIPS: u64 = 100_000;

/// A program that makes the machine switch context at a high rate.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Load {
    /// `stress-ng` with eight processes that exchange messages over pipes.
    StressNg,
    /// The same as `hackbench`: many senders and receivers over sockets.
    Messaging,
    /// A minimal ping-pong on each CPU, which does little but switch context.
    PingPongs,
}

impl Load {
    const ALL: [Self; 3] = [Self::StressNg, Self::Messaging, Self::PingPongs];

    fn name(self) -> &'static str {
        match self {
            Self::StressNg => "stress-ng --switch 4",
            Self::Messaging => "perf bench sched messaging",
            Self::PingPongs => "a pinned ping-pong on each CPU",
        }
    }

    /// Returns the command line of a load that lasts about this many seconds. A load without an option for its duration is run
    /// once as a trial to find out how much work that is.
    fn words(self, seconds: u64) -> Result<Vec<String>> {
        match self {
            Self::StressNg => {
                let program = tools::find("stress-ng", "stress-ng")?.display().to_string();
                let timeout = format!("{seconds}s");
                Ok([&program, "--quiet", "--switch", "4", "--timeout", &timeout]
                    .map(str::to_owned)
                    .to_vec())
            }
            Self::Messaging => {
                tools::find("perf", tools::OF_PERF)?;
                let words = |loops: u64| {
                    let loops = loops.to_string();
                    ["perf", "bench", "sched", "messaging", "-l", &loops]
                        .map(str::to_owned)
                        .to_vec()
                };
                let trial = run(&words(TRIAL_LOOPS))?.wall;
                Ok(words(repetitions(TRIAL_LOOPS, trial, seconds)))
            }
            Self::PingPongs => {
                tools::find("taskset", "util-linux")?;
                let trial = run(&ping_pongs(TRIAL_ROUND_TRIPS))?.wall;
                Ok(ping_pongs(repetitions(TRIAL_ROUND_TRIPS, trial, seconds)))
            }
        }
    }
}

/// Returns the amount of work that lasts this many seconds, if `of_trial` lasted for the duration of `trial`.
fn repetitions(of_trial: u64, trial: Duration, seconds: u64) -> u64 {
    (of_trial as f64 * seconds as f64 / trial.as_secs_f64()).ceil() as u64
}

/// Returns the command line of a shell that runs a ping-pong on each CPU.
fn ping_pongs(round_trips: u64) -> Vec<String> {
    let plain = ctxtrace::plain().display().to_string();
    let script =
        r#"for cpu in $(seq 0 $(($3 - 1))); do taskset -c "$cpu" "$1" process "$2" free >/dev/null & done; wait"#;
    [
        "sh",
        "-c",
        script,
        "sh",
        &plain,
        &round_trips.to_string(),
        &cpus().to_string(),
    ]
    .map(str::to_owned)
    .to_vec()
}

fn cpus() -> usize {
    available_parallelism().map_or(1, usize::from)
}

/// The measurements of a load at a level.
struct LoadRow {
    load: Load,
    level: &'static str,
    /// The kernel switches of the whole machine per second, as the kernel counts them.
    switches_per_second: f64,
    /// The figures of ctxtrace, unless the run was untraced.
    traced: Option<Traced>,
}

/// The figures of ctxtrace for a run.
struct Traced {
    switches: u64,
    switches_per_second: f64,
    lost: Losses,
    /// The CPU time of ctxtrace, as a share of the time of all CPUs.
    own_cpu_share: f64,
    /// The CPU time of the BPF programs, as a share of the target's on-CPU time.
    programs_share: Option<f64>,
    peak_bytes: u64,
    /// ctxtrace's advice on how to lose less, if anything was lost.
    advice: Option<String>,
}

/// Measures all loads, prints the table, and writes the JSON file, if there is one.
pub(crate) fn main(seconds: u64, json: Option<&Path>) -> Result<()> {
    if !process::is_root() {
        bail!("recording needs root: sudo cargo xtask bench load");
    }
    let mut rows = Vec::new();
    let mut failures = Vec::new();
    for load in Load::ALL {
        if let Err(error) = measure(load, seconds, &mut rows) {
            failures.push((load, format!("{error:#}")));
        }
    }
    print(&rows, &failures, seconds);
    crate::write(json, &to_json(&rows, &failures, seconds))
}

/// Measures a load untraced and at each level, and appends the rows.
fn measure(load: Load, seconds: u64, rows: &mut Vec<LoadRow>) -> Result<()> {
    let words = load.words(seconds)?;
    eprintln!("{}: untraced", load.name());
    let (_, switches_per_second) = counted(|| run(&words))?;
    rows.push(LoadRow {
        load,
        level: "untraced",
        switches_per_second,
        traced: None,
    });
    let words: Vec<&str> = words.iter().map(String::as_str).collect();
    for level in LEVELS {
        eprintln!("{}: {level}", load.name());
        let (recorded, switches_per_second) =
            counted(|| ctxtrace::record(&["--level", level], &words, child::run_and_watch))?;
        rows.push(LoadRow {
            load,
            level,
            switches_per_second,
            traced: Some(Traced::new(&recorded.report, &recorded.finished)?),
        });
    }
    Ok(())
}

impl Traced {
    fn new(report: &Value, finished: &Finished) -> Result<Self> {
        let wall_ns = ctxtrace::number(report, "/recorded_ns")?;
        let switches = ctxtrace::number(report, "/kernel_switches/total")?;
        Ok(Self {
            switches: switches as u64,
            switches_per_second: switches / wall_ns * 1e9,
            lost: Losses::in_report(report),
            own_cpu_share: ctxtrace::number(report, "/overhead/tracer_cpu_ns")? / wall_ns / cpus() as f64,
            programs_share: ctxtrace::number(report, "/overhead/share_of_on_cpu").ok(),
            peak_bytes: finished.peak_bytes,
            advice: advice(&finished.stderr),
        })
    }

    fn to_json(&self) -> Value {
        json!({
            "kernel_switches": self.switches,
            "kernel_switches_per_second": self.switches_per_second,
            "lost": self.lost.to_json(),
            "own_cpu_share": self.own_cpu_share,
            "programs_share_of_on_cpu": self.programs_share,
            "peak_bytes": self.peak_bytes,
            "advice": self.advice,
        })
    }
}

/// Returns the advice in ctxtrace's table on what makes room. The table may have broken its line.
fn advice(table: &str) -> Option<String> {
    let words = table.split_whitespace().collect::<Vec<_>>().join(" ");
    let (before, _) = words.split_once(ROOM)?;
    let (_, option) = before.rsplit_once('(')?;
    Some(format!("{option}{ROOM}"))
}

fn run(words: &[String]) -> Result<Finished> {
    child::run(Command::new(&words[0]).args(&words[1..]))
}

/// Calls a function, and returns its result and the kernel switches of the whole machine per second meanwhile.
fn counted<T>(function: impl FnOnce() -> Result<T>) -> Result<(T, f64)> {
    let (before, since) = (switches_of_the_machine()?, Instant::now());
    let result = function()?;
    let switches = switches_of_the_machine()? - before;
    Ok((result, switches as f64 / since.elapsed().as_secs_f64()))
}

fn switches_of_the_machine() -> Result<u64> {
    let stat = std::fs::read_to_string("/proc/stat").context("cannot read /proc/stat")?;
    switches_in(&stat).context("/proc/stat has no ctxt")
}

fn switches_in(stat: &str) -> Option<u64> {
    let line = stat.lines().find_map(|line| line.strip_prefix("ctxt "))?;
    line.trim().parse().ok()
}

#[expect(clippy::print_stdout, reason = "the table is the output of the command")]
fn print(rows: &[LoadRow], failures: &[(Load, String)], seconds: u64) {
    println!(
        "{:42} {:>10} {:>10} {:>12} {:>9} {:>9}  lost",
        format!("switches/s, runs of {seconds} s"),
        "machine",
        "traced",
        "own CPU time",
        "programs",
        "memory"
    );
    for row in rows {
        let name = format!("{}, {}", row.load.name(), row.level);
        let machine = thousands(row.switches_per_second as u64);
        let Some(traced) = &row.traced else {
            println!("{name:42} {machine:>10}");
            continue;
        };
        println!(
            "{name:42} {machine:>10} {:>10} {:>12} {:>9} {:>9}  {}",
            thousands(traced.switches_per_second as u64),
            format!("{:.1} %", 100.0 * traced.own_cpu_share),
            traced
                .programs_share
                .map_or_else(|| "?".to_owned(), |share| format!("{:.1} %", 100.0 * share)),
            megabytes(traced.peak_bytes),
            traced.lost
        );
        if let Some(advice) = &traced.advice {
            println!("{:42} advice of ctxtrace: {advice}", "");
        }
    }
    for (load, why) in failures {
        println!("{}: not measured: {why}", load.name());
    }
    println!();
    println!(
        "own CPU time: CPU time of ctxtrace, as a share of that of all CPUs; programs: CPU time of its BPF programs, as a share of the \
         target's on-CPU time"
    );
}

fn to_json(rows: &[LoadRow], failures: &[(Load, String)], seconds: u64) -> Value {
    let rows: Vec<Value> = rows
        .iter()
        .map(|row| {
            json!({
                "load": row.load.name(),
                "level": row.level,
                "switches_per_second": row.switches_per_second,
                "traced": row.traced.as_ref().map(Traced::to_json),
            })
        })
        .collect();
    let failures: Vec<Value> = failures
        .iter()
        .map(|(load, why)| json!({"load": load.name(), "failure": why}))
        .collect();
    json!({"seconds": seconds, "cpus": cpus(), "rows": rows, "failures": failures})
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_trial_says_how_much_work_lasts_so_long() {
        assert_eq!(repetitions(200, Duration::from_millis(500), 60), 24_000);
    }

    #[test]
    fn the_machine_counts_its_switches() {
        assert_eq!(switches_in("cpu 1 2\nctxt 12345\nbtime 1\n"), Some(12_345));
        assert_eq!(switches_in("cpu 1 2\n"), None);
    }

    #[test]
    fn a_row_says_what_ctxtrace_took_and_lost() {
        let report = json!({
            "recorded_ns": 2_000_000_000_u64,
            "kernel_switches": {"total": 1_000_000},
            "lost": {"timeline_events": 5},
            "overhead": {"tracer_cpu_ns": 200_000_000, "share_of_on_cpu": null},
        });
        let finished = Finished {
            stdout: String::new(),
            stderr: "Lost   5 events of the timeline\n       (a larger --ring-size makes room)\n".to_owned(),
            wall: Duration::from_secs(2),
            peak_bytes: 1_000_000,
        };
        let traced = Traced::new(&report, &finished).expect("a complete report");
        assert_eq!(traced.switches_per_second, 500_000.0);
        assert!((traced.own_cpu_share * cpus() as f64 - 0.1).abs() < 1e-9);
        assert_eq!(traced.programs_share, None);
        assert_eq!(traced.lost, Losses::single("timeline_events", 5));
        assert_eq!(traced.advice.as_deref(), Some("a larger --ring-size makes room"));
        assert_eq!(advice("Lost   nothing\n"), None);
        assert_eq!(
            advice("Lost (9 of x)\n (a larger --max-threads and --ring-size\n   makes room)").as_deref(),
            Some("a larger --max-threads and --ring-size makes room")
        );
    }
}
