//! Finds threads of a running process that make no switch while it is recorded. No event shows them, so `/proc` is read at the
//! beginning and at the end of the recording. A thread with the same kernel count of switches in both readings has made none.

use std::collections::HashMap;
use std::time::Instant;

use ctxtrace_common::thread::KernelCount;

use super::procfs::{self, Status};
use ctxtrace_format::SilentThread;

/// The reading of `/proc` at the beginning of a recording.
#[derive(Debug)]
pub struct FirstReading {
    threads: HashMap<(u32, u32), KernelCount>,
    at: Instant,
}

impl FirstReading {
    /// Reads the threads of these processes.
    #[must_use]
    pub fn read(processes: impl Iterator<Item = u32>) -> Self {
        let at = Instant::now();
        let mut threads = HashMap::new();
        for pid in processes {
            for (tid, status) in read(pid) {
                threads.insert((pid, tid), status.switches);
            }
        }
        Self { threads, at }
    }

    /// Reads the same threads again, and returns those that have made no switch since the first reading.
    #[must_use]
    pub fn silent(&self) -> Vec<SilentThread> {
        let ns = self.at.elapsed().as_nanos() as u64;
        let mut silent: Vec<SilentThread> = self
            .threads
            .iter()
            .filter_map(|(&(pid, tid), before)| {
                let status = procfs::status(pid, tid).ok()??;
                let is_silent = status.switches == *before && !status.has_ended();
                let name = is_silent.then(|| procfs::thread_stat(pid, tid).ok()?).flatten()?.name;
                Some(SilentThread {
                    tid,
                    tgid: pid,
                    name,
                    state: status.state,
                    ns,
                })
            })
            .collect();
        silent.sort_by_key(|thread| (thread.tgid, thread.tid));
        silent
    }
}

fn read(pid: u32) -> Vec<(u32, Status)> {
    let tids = procfs::threads(pid).unwrap_or_default().into_iter();
    tids.filter_map(|tid| Some((tid, procfs::status(pid, tid).ok()??)))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::process::Command;

    #[test]
    fn a_thread_that_sleeps_all_the_time_is_silent_and_one_that_has_slept_is_not() {
        let mut sleeper = Command::new("sleep").arg("1000").spawn().expect("started");
        let pid = sleeper.id();
        let is_asleep = || {
            let stat = procfs::stat(pid).expect("readable").expect("it lives");
            let status = procfs::status(pid, pid).expect("readable").expect("it lives");
            stat.name == "sleep" && status.is_sleeping()
        };
        while !is_asleep() {
            std::thread::yield_now();
        }
        let this = std::process::id();
        let tid = nix::unistd::gettid().as_raw() as u32;
        let reading = FirstReading::read([pid, this].into_iter());
        std::thread::sleep(std::time::Duration::from_millis(20));
        let silent = reading.silent();
        let _ = sleeper.kill();
        let _ = sleeper.wait();
        let found = silent.iter().find(|thread| thread.tid == pid).expect("it slept");
        assert_eq!((found.state, found.name.as_str(), found.tgid), ('S', "sleep", pid));
        assert!(found.ns > 0);
        assert!(
            !silent.iter().any(|thread| thread.tid == tid),
            "the thread of this test has switched in between"
        );
    }
}
