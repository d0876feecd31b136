//! `cargo xtask bench overhead`: what a kernel switch costs more under ctxtrace, and under the tools that people use for the same,
//! side by side.
//!
//! The target is the plainest ping-pong of two processes over two pipes (`ctxtrace/examples/plain.rs`), pinned to one CPU: two
//! switches a message. Rounds: everything once a round, each round beginning with another, so that the machine's drift touches all
//! of them. Tools that trace the whole system are started before the target and ended after it; the target says itself how long it
//! took, so nothing of their start and end is in the figure.

use std::io::Read;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::process;

/// How long a tool may take until it traces: some compile their program first.
const READY: Duration = Duration::from_secs(10);

/// Who traces.
enum Tracer {
    /// Nobody.
    Nobody,
    /// `ctxtrace record` of the target, with these options.
    Ctxtrace(&'static [&'static str]),
    /// ctxtrace, of somebody else: what an uninvolved program pays.
    CtxtraceOfAnother,
    /// A tool that traces everything: its words, and what it prints when it does (nothing: it is given a second).
    System(&'static [&'static str], Option<&'static str>),
}

/// A row.
struct Row {
    name: &'static str,
    tracer: Tracer,
    /// The Debian package it is in.
    package: Option<&'static str>,
}

const NOBODY: usize = 0;
const EMPTY: usize = 1;
const RUNQLAT: usize = 7;
const OFFCPUTIME: usize = 9;
const PERF: usize = 11;

const ROWS: [Row; 12] = [
    Row {
        name: "untraced",
        tracer: Tracer::Nobody,
        package: None,
    },
    Row {
        name: "an empty program (bpftrace)",
        tracer: Tracer::System(
            &[
                "bpftrace",
                "-B",
                "line",
                "-e",
                "tracepoint:sched:sched_switch { $x = 1; }",
            ],
            Some("Attach"),
        ),
        package: Some("bpftrace"),
    },
    Row {
        name: "ctxtrace, of another process",
        tracer: Tracer::CtxtraceOfAnother,
        package: None,
    },
    Row {
        name: "ctxtrace --level counts",
        tracer: Tracer::Ctxtrace(&["--level", "counts"]),
        package: None,
    },
    Row {
        name: "ctxtrace --level stacks",
        tracer: Tracer::Ctxtrace(&["--level", "stacks"]),
        package: None,
    },
    Row {
        name: "ctxtrace --level timeline",
        tracer: Tracer::Ctxtrace(&["--level", "timeline"]),
        package: None,
    },
    Row {
        name: "cpudist -O",
        tracer: Tracer::System(&["cpudist", "-O", "600"], None),
        package: Some("libbpf-tools"),
    },
    Row {
        name: "runqlat",
        tracer: Tracer::System(&["runqlat", "600"], None),
        package: Some("libbpf-tools"),
    },
    Row {
        name: "bpftrace count",
        tracer: Tracer::System(
            &[
                "bpftrace",
                "-e",
                "tracepoint:sched:sched_switch { @[args->prev_pid] = count(); }",
            ],
            Some("Attach"),
        ),
        package: Some("bpftrace"),
    },
    Row {
        name: "offcputime",
        tracer: Tracer::System(&["offcputime", "--stack-storage-size", "16384", "600"], None),
        package: Some("libbpf-tools"),
    },
    Row {
        name: "bpftrace kernel and user stacks",
        tracer: Tracer::System(
            &[
                "bpftrace",
                "-e",
                "tracepoint:sched:sched_switch { @[kstack, ustack] = count(); }",
            ],
            Some("Attach"),
        ),
        package: Some("bpftrace"),
    },
    Row {
        name: "perf sched record",
        tracer: Tracer::System(&["perf", "sched", "record", "-o", "/dev/null"], None),
        package: Some("linux-perf"),
    },
];

/// What the ratios are held against: subject, peer, and what is wanted.
const GOALS: [(usize, usize, f64); 4] = [
    (3, RUNQLAT, 0.6),
    (3, EMPTY, 4.0),
    (4, OFFCPUTIME, 0.25),
    (5, PERF, 0.4),
];

/// Everything measured of a row.
#[derive(Default)]
struct Measured {
    /// Nanoseconds a switch, round by round.
    ns: Vec<f64>,
    /// Events that ctxtrace has lost.
    lost: u64,
    /// Why it could not be measured.
    failure: Option<String>,
}

/// Measures and prints. `iterations` are round trips of a run.
pub(crate) fn main(rounds: usize, iterations: u64, json: Option<&Path>) -> Result<()> {
    if !process::is_root() {
        bail!("the tools trace the whole system, which needs root: sudo cargo xtask bench overhead");
    }
    let mut measured: Vec<Measured> = ROWS.iter().map(|_| Measured::default()).collect();
    for round in 0..rounds {
        for place in 0..ROWS.len() {
            let index = (place + round) % ROWS.len();
            let of = &mut measured[index];
            if of.failure.is_some() {
                continue;
            }
            match measure(&ROWS[index], iterations) {
                Ok((ns, lost)) => {
                    of.ns.push(ns);
                    of.lost += lost;
                }
                Err(error) => of.failure = Some(format!("{error:#}")),
            }
        }
        eprintln!("round {} of {rounds}", round + 1);
    }
    let untraced = measured[NOBODY].ns.clone();
    if untraced.is_empty() {
        bail!(
            "{}",
            measured[NOBODY].failure.as_deref().unwrap_or("nothing was measured")
        );
    }
    let added: Vec<Vec<f64>> = measured
        .iter()
        .map(|of| {
            of.ns
                .iter()
                .zip(&untraced)
                .map(|(ns, untraced)| ns - untraced)
                .collect()
        })
        .collect();
    print(&measured, &added, rounds);
    if let Some(path) = json {
        std::fs::write(path, as_json(&measured, &added)).with_context(|| format!("cannot write {}", path.display()))?;
    }
    Ok(())
}

#[expect(clippy::print_stdout, reason = "the table is what was asked for")]
fn print(measured: &[Measured], added: &[Vec<f64>], rounds: usize) {
    println!(
        "{:34} {:>9} {:>9}   (quartiles of {rounds} rounds)   lost",
        "ns a switch", "in all", "added"
    );
    for ((row, of), added) in ROWS.iter().zip(measured).zip(added) {
        match &of.failure {
            Some(failure) => println!("{:34} not measured: {failure}", row.name),
            None => println!(
                "{:34} {:>9.0} {:>9.0}   ({:.0} to {:.0}){:>24}",
                row.name,
                quantile(&of.ns, 0.5),
                quantile(added, 0.5),
                quantile(added, 0.25),
                quantile(added, 0.75),
                of.lost
            ),
        }
    }
    println!();
    for (subject, peer, goal) in GOALS {
        if let Some(ratio) = ratio(added, subject, peer) {
            println!(
                "{} by {}: {ratio:.2} (goal: at most {goal}, {})",
                ROWS[subject].name,
                ROWS[peer].name,
                if ratio <= goal { "reached" } else { "not reached" }
            );
        }
    }
}

/// Added by added, medians.
fn ratio(added: &[Vec<f64>], subject: usize, peer: usize) -> Option<f64> {
    let of = |index: usize| (!added[index].is_empty()).then(|| quantile(&added[index], 0.5));
    Some(of(subject)? / of(peer).filter(|ns| *ns > 0.0)?)
}

fn as_json(measured: &[Measured], added: &[Vec<f64>]) -> String {
    let numbers = |values: &[f64]| {
        values
            .iter()
            .map(|ns| format!("{ns:.1}"))
            .collect::<Vec<_>>()
            .join(", ")
    };
    let quoted = |text: &str| {
        format!(
            "\"{}\"",
            text.replace('\\', "\\\\").replace('"', "\\\"").replace('\n', " ")
        )
    };
    let rows: Vec<String> = ROWS
        .iter()
        .zip(measured)
        .zip(added)
        .map(|((row, of), added)| {
            format!(
                "    {{\"name\": {}, \"ns_per_switch\": [{}], \"added_ns\": [{}], \"lost\": {}, \"failure\": {}}}",
                quoted(row.name),
                numbers(&of.ns),
                numbers(added),
                of.lost,
                of.failure.as_deref().map_or("null".to_owned(), quoted)
            )
        })
        .collect();
    format!("{{\n  \"rows\": [\n{}\n  ]\n}}\n", rows.join(",\n"))
}

/// One run of the target under a tracer: nanoseconds a switch, and the events that were lost.
fn measure(row: &Row, iterations: u64) -> Result<(f64, u64)> {
    match &row.tracer {
        Tracer::Nobody => Ok((target(iterations)?, 0)),
        Tracer::Ctxtrace(options) => by_ctxtrace(options, iterations),
        Tracer::CtxtraceOfAnother => {
            let mut other = Command::new("sleep").arg("600").spawn().context("cannot run sleep")?;
            let pid = other.id().to_string();
            let mut command = Command::new(process::root().join("target/release/ctxtrace"));
            command.args(["record", "--level", "counts", "--json", "/dev/null", "-p", &pid]);
            let result = beside(&mut command, Some("Ctrl-C ends it"), iterations);
            let _ = other.kill();
            let _ = other.wait();
            Ok((result?, 0))
        }
        Tracer::System(words, says) => {
            if process::programs(words[0]).is_empty() && !Path::new("/usr/sbin").join(words[0]).is_file() {
                bail!(
                    "there is no {} (Debian: apt install {})",
                    words[0],
                    row.package.unwrap_or("?")
                );
            }
            let mut command = Command::new(words[0]);
            command.args(&words[1..]);
            if let Ok(path) = std::env::var("PATH") {
                command.env("PATH", format!("{path}:/usr/sbin"));
            }
            Ok((beside(&mut command, *says, iterations)?, 0))
        }
    }
}

/// Runs the target, which prints the nanoseconds it took.
fn target(iterations: u64) -> Result<f64> {
    let mut command = Command::new(process::root().join("target/release/examples/plain"));
    let text = process::output(command.args(["process", &iterations.to_string()]))?;
    per_switch(&text, iterations)
}

fn per_switch(text: &str, iterations: u64) -> Result<f64> {
    let ns: f64 = text.trim().parse().context("the target printed no number")?;
    // A round trip is two switches.
    Ok(ns / iterations as f64 / 2.0)
}

fn by_ctxtrace(options: &[&str], iterations: u64) -> Result<(f64, u64)> {
    let folder = std::env::temp_dir().join(format!("ctxtrace-bench-{}", std::process::id()));
    std::fs::create_dir_all(&folder).context("cannot make a temporary folder")?;
    let report = folder.join("report.json");
    let mut command = Command::new(process::root().join("target/release/ctxtrace"));
    command.arg("record").args(options).arg("--json").arg(&report).arg("--");
    command.arg(process::root().join("target/release/examples/plain"));
    let text = process::output(command.args(["process", &iterations.to_string()]));
    let json = std::fs::read_to_string(&report);
    let _ = std::fs::remove_dir_all(&folder);
    Ok((
        per_switch(&text?, iterations)?,
        lost(&json.context("ctxtrace wrote no report")?),
    ))
}

/// Kernel switches and events of the timeline that a report says were lost.
fn lost(json: &str) -> u64 {
    let Some((_, lost)) = json.split_once("\"lost\": {") else {
        return 0;
    };
    ["\"events\": ", "\"timeline_events\": "]
        .iter()
        .filter_map(|name| {
            let (_, rest) = lost.split_once(name)?;
            let digits: String = rest.chars().take_while(char::is_ascii_digit).collect();
            digits.parse::<u64>().ok()
        })
        .sum()
}

/// Runs the target while this traces.
fn beside(tracer: &mut Command, says: Option<&str>, iterations: u64) -> Result<f64> {
    let mut child = Ended(
        tracer
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .context("it cannot be started")?,
    );
    match says {
        Some(says) => wait_for(&mut child.0, says)?,
        None => std::thread::sleep(Duration::from_millis(1_500)),
    }
    if let Some(status) = child.0.try_wait()? {
        let mut said = String::new();
        if let Some(stderr) = child.0.stderr.as_mut() {
            let _ = stderr.read_to_string(&mut said);
        }
        bail!(
            "it ended by itself: {status} {}",
            said.lines().next().unwrap_or_default()
        );
    }
    target(iterations)
}

/// Waits until a tool says on either stream that it traces.
fn wait_for(child: &mut Child, says: &str) -> Result<()> {
    let (sender, receiver) = std::sync::mpsc::sync_channel(16);
    let streams: [Option<Box<dyn Read + Send>>; 2] = [
        child.stdout.take().map(|stream| Box::new(stream) as _),
        child.stderr.take().map(|stream| Box::new(stream) as _),
    ];
    for mut stream in streams.into_iter().flatten() {
        let sender = sender.clone();
        // Reads to the end, so that the tool never waits for somebody to read what it says.
        std::thread::spawn(move || {
            let mut buffer = [0; 4_096];
            while let Ok(count @ 1..) = stream.read(&mut buffer) {
                let _ = sender.try_send(String::from_utf8_lossy(&buffer[..count]).into_owned());
            }
        });
    }
    let since = Instant::now();
    let mut said = String::new();
    while let Some(left) = READY.checked_sub(since.elapsed()) {
        let Ok(more) = receiver.recv_timeout(left) else { break };
        said.push_str(&more);
        if said.contains(says) {
            std::thread::sleep(Duration::from_millis(300));
            return Ok(());
        }
    }
    bail!("it did not say within {} s that it traces", READY.as_secs())
}

/// A tool that is ended as Ctrl-C would end it, and then reaped.
struct Ended(Child);

impl Drop for Ended {
    fn drop(&mut self) {
        let pid = Pid::from_raw(self.0.id() as i32);
        let _ = kill(pid, Signal::SIGINT);
        // What nobody reads would keep it from ending.
        drop(self.0.stdout.take());
        drop(self.0.stderr.take());
        for _ in 0..100 {
            if matches!(self.0.try_wait(), Ok(Some(_)) | Err(_)) {
                return;
            }
            std::thread::sleep(Duration::from_millis(50));
        }
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// The value below which a share `q` of the values lies.
fn quantile(values: &[f64], q: f64) -> f64 {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    let last = sorted.len().saturating_sub(1);
    sorted
        .get((last as f64 * q).round() as usize)
        .copied()
        .unwrap_or(f64::NAN)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_goals_are_about_the_rows_that_they_name() {
        let names = |index: usize| ROWS[index].name;
        assert_eq!(
            [
                names(NOBODY),
                names(EMPTY),
                names(RUNQLAT),
                names(OFFCPUTIME),
                names(PERF)
            ],
            [
                "untraced",
                "an empty program (bpftrace)",
                "runqlat",
                "offcputime",
                "perf sched record"
            ]
        );
        let subjects: Vec<&str> = GOALS.iter().map(|&(subject, ..)| names(subject)).collect();
        assert_eq!(
            subjects,
            [
                "ctxtrace --level counts",
                "ctxtrace --level counts",
                "ctxtrace --level stacks",
                "ctxtrace --level timeline"
            ]
        );
    }

    #[test]
    fn losses_are_read_from_the_report() {
        let json = "{\"x\": {\"events\": 9},\n \"lost\": {\n  \"events\": 3,\n  \"timeline_events\": 40\n }}";
        assert_eq!(lost(json), 43);
        assert_eq!(lost("{}"), 0);
    }

    #[test]
    fn a_ratio_is_of_medians() {
        let added = vec![vec![], vec![10.0, 20.0, 30.0], vec![5.0, 5.0, 50.0]];
        assert_eq!(ratio(&added, 2, 1), Some(0.25));
        assert_eq!(ratio(&added, 1, 0), None);
    }
}
