//! Counters of the processor and of the kernel (`perf_event_open`), over the whole life of a command that is launched, its
//! children included.
//!
//! Which there are is asked of the machine: virtual machines often have none of the processor's.

use nix::unistd::Pid;
use perf_event::events::{Event, Hardware, Software};
use perf_event::{Builder, Counter, ReadFormat};
use serde::Serialize;

use crate::error::{Error, Result};

/// What is counted.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, schemars::JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum Counted {
    /// Clock cycles of the processor
    Cycles,
    /// Instructions
    Instructions,
    /// Misses of the last cache
    CacheMisses,
    /// Mispredicted branches
    BranchMisses,
    /// Page faults
    PageFaults,
    /// Moves of a thread to another CPU
    CpuMigrations,
}

impl Counted {
    /// All of them.
    pub const ALL: [Self; 6] = [
        Self::Cycles,
        Self::Instructions,
        Self::CacheMisses,
        Self::BranchMisses,
        Self::PageFaults,
        Self::CpuMigrations,
    ];

    /// As it is called in tables.
    #[must_use]
    pub fn in_words(self) -> &'static str {
        match self {
            Self::Cycles => "cycles",
            Self::Instructions => "instructions",
            Self::CacheMisses => "misses of the last cache",
            Self::BranchMisses => "mispredicted branches",
            Self::PageFaults => "page faults",
            Self::CpuMigrations => "moves to another CPU",
        }
    }

    fn builder(self) -> Builder<'static> {
        fn of(event: impl Event) -> Builder<'static> {
            Builder::new(event)
        }
        match self {
            Self::Cycles => of(Hardware::CPU_CYCLES),
            Self::Instructions => of(Hardware::INSTRUCTIONS),
            Self::CacheMisses => of(Hardware::CACHE_MISSES),
            Self::BranchMisses => of(Hardware::BRANCH_MISSES),
            Self::PageFaults => of(Software::PAGE_FAULTS),
            Self::CpuMigrations => of(Software::CPU_MIGRATIONS),
        }
    }
}

/// Those that this machine has, and why not the others.
#[must_use]
pub fn available() -> (Vec<Counted>, Vec<(Counted, String)>) {
    let mut there = Vec::new();
    let mut missing = Vec::new();
    for counted in Counted::ALL {
        match counted.builder().observe_self().any_cpu().build() {
            Ok(_) => there.push(counted),
            Err(error) if error.raw_os_error() == Some(libc::ENOENT) => {
                missing.push((
                    counted,
                    "this machine has no such counter, as virtual machines often".to_owned(),
                ));
            }
            Err(error) => missing.push((counted, format!("perf_event_open: {error}"))),
        }
    }
    (there, missing)
}

/// Counters of one process and its children.
pub struct Counters(Vec<(Counted, Counter)>);

impl Counters {
    /// Of a process that has not executed its program yet: they count from there.
    ///
    /// # Errors
    ///
    /// If the kernel does not give them.
    pub fn from_exec(pid: Pid, counted: &[Counted]) -> Result<Self> {
        let counter = |&counted: &Counted| {
            let mut builder = counted.builder();
            builder
                .observe_pid(pid.as_raw())
                .any_cpu()
                .include_kernel()
                .inherit(true)
                .enabled(false)
                .enable_on_exec(true)
                .read_format(ReadFormat::TOTAL_TIME_ENABLED | ReadFormat::TOTAL_TIME_RUNNING);
            builder.build().map(|counter| (counted, counter))
        };
        let counters: std::io::Result<_> = counted.iter().map(counter).collect();
        Ok(Self(counters.map_err(Error::system("perf_event_open"))?))
    }

    /// What they have come to, to be asked when all has ended. Where there are more than the processor can count at a time, a
    /// count is scaled to the whole time by the time in which it was on.
    ///
    /// # Errors
    ///
    /// If one cannot be read.
    pub fn read(&mut self) -> Result<Vec<(Counted, f64)>> {
        let read = |(counted, counter): &mut (Counted, Counter)| {
            let read = counter
                .read_count_and_time()
                .map_err(Error::system("reading a counter"))?;
            let scale = if read.time_running == 0 {
                // It was never on: there was nothing, or nothing is known.
                0.0
            } else {
                read.time_enabled as f64 / read.time_running as f64
            };
            Ok((*counted, read.count as f64 * scale))
        };
        self.0.iter_mut().map(read).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_counter_is_there_or_has_a_reason() {
        let (there, missing) = available();
        let mut all: Vec<Counted> = there
            .into_iter()
            .chain(missing.iter().map(|(counted, _)| *counted))
            .collect();
        all.sort_unstable();
        assert_eq!(all, Counted::ALL);
        assert!(missing.iter().all(|(_, reason)| !reason.is_empty()));
    }
}
