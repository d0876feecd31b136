//! What the BPF programs cost, as measured by the kernel.
//!
//! The kernel times every run of every BPF program while its run-time statistics are on (`BPF_ENABLE_STATS`), which costs two
//! clock reads per run. To limit this cost, the statistics are on only during one tick in [`TICKS_A_CYCLE`], starting with the
//! first one. The kernel shows the statistics, and the number of runs it had to skip, in the `fdinfo` of a program's descriptor.

use std::fs;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::time::Duration;

use aya::Ebpf;
use aya::programs::Program;
use aya::sys::{Stats, enable_stats};
use nix::sys::resource::{UsageWho, getrusage};
use nix::sys::time::TimeVal;

use super::{missing, refused};
use crate::error::Result;
use ctxtrace_format::{ProgramCost, TracerCost};

/// The statistics are on during one tick in this many.
const TICKS_A_CYCLE: u64 = 20;

/// Switches the statistics on and off, and reads them.
pub(super) struct CostMeter {
    programs: Vec<(&'static str, OwnedFd)>,
    /// Keeps the statistics on while it is open.
    statistics: Option<OwnedFd>,
    ticks: u64,
    cpu_at_start: Duration,
    /// The CPU time of this process when tracing stopped.
    cpu_at_end: Option<Duration>,
}

impl CostMeter {
    pub(super) fn new(ebpf: &Ebpf, names: &[&'static str]) -> Result<Self> {
        let programs = names
            .iter()
            .map(|&name| {
                let program: &Program = ebpf.program(name).ok_or_else(|| missing(name))?;
                let fd = program.fd().map_err(refused("use a BPF program"))?;
                let fd = fd.as_fd().try_clone_to_owned();
                Ok((name, fd.map_err(refused("duplicate a program's descriptor"))?))
            })
            .collect::<Result<_>>()?;
        Ok(Self {
            programs,
            statistics: None,
            ticks: 0,
            cpu_at_start: Duration::ZERO,
            cpu_at_end: None,
        })
    }

    pub(super) fn start(&mut self) {
        self.cpu_at_start = own_cpu_time();
        // If the kernel refuses, no run is timed, and the report says that the cost is missing.
        self.statistics = enable_stats(Stats::RunTime).ok();
    }

    pub(super) fn tick(&mut self) {
        self.ticks += 1;
        if self.ticks.is_multiple_of(TICKS_A_CYCLE) {
            self.statistics = enable_stats(Stats::RunTime).ok();
        } else {
            self.statistics = None;
        }
    }

    /// Whether the statistics are on.
    pub(super) fn is_measuring(&self) -> bool {
        self.statistics.is_some()
    }

    pub(super) fn stop(&mut self) {
        self.statistics = None;
        self.cpu_at_end = Some(own_cpu_time());
    }

    pub(super) fn so_far(&self) -> TracerCost {
        let tracer_cpu = self
            .cpu_at_end
            .unwrap_or_else(own_cpu_time)
            .saturating_sub(self.cpu_at_start);
        let programs = self.programs.iter().map(|(name, fd)| {
            let info = fdinfo(fd);
            ProgramCost {
                name: (*name).to_owned(),
                timed_runs: field(&info, "run_cnt"),
                timed_ns: field(&info, "run_time_ns"),
            }
        });
        TracerCost {
            programs: programs.collect(),
            tracer_cpu_ns: tracer_cpu.as_nanos() as u64,
        }
    }

    /// The number of runs that the kernel skipped, summed over all programs.
    pub(super) fn recursion_misses(&self) -> u64 {
        self.programs
            .iter()
            .map(|(_, fd)| field(&fdinfo(fd), "recursion_misses"))
            .sum()
    }
}

fn fdinfo(fd: &OwnedFd) -> String {
    fs::read_to_string(format!("/proc/self/fdinfo/{}", fd.as_raw_fd())).unwrap_or_default()
}

/// A number from an `fdinfo`; 0 if this kernel does not show it.
fn field(info: &str, name: &str) -> u64 {
    info.lines()
        .find_map(|line| line.strip_prefix(name)?.strip_prefix(':')?.trim().parse().ok())
        .unwrap_or(0)
}

fn own_cpu_time() -> Duration {
    let duration = |time: TimeVal| Duration::new(time.tv_sec().unsigned_abs(), time.tv_usec() as u32 * 1_000);
    getrusage(UsageWho::RUSAGE_SELF).map_or(Duration::ZERO, |usage| {
        duration(usage.user_time()) + duration(usage.system_time())
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_field_is_found_by_its_whole_name() {
        let info = "prog_type:\t26\nrun_time_ns:\t1234\nrun_cnt:\t10\nrecursion_misses:\t2\n";
        assert_eq!(field(info, "run_cnt"), 10);
        assert_eq!(field(info, "run_time_ns"), 1_234);
        assert_eq!(field(info, "run"), 0);
        assert_eq!(field("", "run_cnt"), 0);
    }
}
