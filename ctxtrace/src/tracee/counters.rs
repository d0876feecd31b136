//! Counters of the processor and of the kernel (`perf_event_open`) for the whole life of a launched command, including its
//! children.
//!
//! The available counters are determined at run time, because virtual machines often have no counters of the processor.

use nix::unistd::Pid;
use perf_event::events::{Event, Hardware, Software};
use perf_event::{Builder, Counter, ReadFormat};

use crate::error::{Error, Result};
use ctxtrace_format::counted::Counted;

/// Returns the builder of a counter of an event.
fn builder(counted: Counted) -> Builder<'static> {
    fn builder(event: impl Event) -> Builder<'static> {
        Builder::new(event)
    }
    match counted {
        Counted::Cycles => builder(Hardware::CPU_CYCLES),
        Counted::Instructions => builder(Hardware::INSTRUCTIONS),
        Counted::CacheMisses => builder(Hardware::CACHE_MISSES),
        Counted::BranchMisses => builder(Hardware::BRANCH_MISSES),
        Counted::PageFaults => builder(Software::PAGE_FAULTS),
        Counted::CpuMigrations => builder(Software::CPU_MIGRATIONS),
    }
}

/// Returns the events that this machine can count, and the others with the reason why it cannot count them.
#[must_use]
pub fn available() -> (Vec<Counted>, Vec<(Counted, String)>) {
    let mut there = Vec::new();
    let mut missing = Vec::new();
    for counted in Counted::ALL {
        match builder(counted).observe_self().any_cpu().build() {
            Ok(_) => there.push(counted),
            Err(error) if error.raw_os_error() == Some(libc::ENOENT) => {
                missing.push((
                    counted,
                    "this machine has no such counter, which is common for virtual machines".to_owned(),
                ));
            }
            Err(error) => missing.push((counted, format!("perf_event_open: {error}"))),
        }
    }
    (there, missing)
}

/// Running counters of one process and its children.
pub struct Counters(Vec<(Counted, Counter)>);

impl Counters {
    /// Opens counters for a process that has not executed its program yet. They start at its `execve`.
    ///
    /// # Errors
    ///
    /// If `perf_event_open` fails.
    pub fn from_exec(pid: Pid, counted: &[Counted]) -> Result<Self> {
        let counter = |&counted: &Counted| {
            let mut counter = builder(counted);
            counter
                .observe_pid(pid.as_raw())
                .any_cpu()
                .include_kernel()
                .inherit(true)
                .enabled(false)
                .enable_on_exec(true)
                .read_format(ReadFormat::TOTAL_TIME_ENABLED | ReadFormat::TOTAL_TIME_RUNNING);
            counter.build().map(|counter| (counted, counter))
        };
        let counters: std::io::Result<_> = counted.iter().map(counter).collect();
        Ok(Self(counters.map_err(Error::system("perf_event_open"))?))
    }

    /// Reads the final counts, after the process and its children have ended. If there are more counters than the processor can
    /// run at the same time, each count is scaled up from the time in which its counter ran to the whole time.
    ///
    /// # Errors
    ///
    /// If a counter cannot be read.
    pub fn read(&mut self) -> Result<Vec<(Counted, f64)>> {
        let read = |(counted, counter): &mut (Counted, Counter)| {
            let read = counter
                .read_count_and_time()
                .map_err(Error::system("reading a counter"))?;
            let scale = if read.time_running == 0 {
                // The counter never ran: nothing happened, or nothing is known.
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
