//! Pins the participants of a workload to CPUs.

use nix::sched::{CpuSet, sched_getaffinity, sched_setaffinity};
use nix::unistd::Pid;

use crate::error::{Error, Result};
use ctxtrace_format::workload::Pin;

/// Returns the CPUs that this process may use, in ascending order.
///
/// # Errors
///
/// If `sched_getaffinity` fails.
pub fn allowed_cpus() -> Result<Vec<usize>> {
    let set = sched_getaffinity(Pid::from_raw(0)).map_err(Error::errno("sched_getaffinity"))?;
    Ok((0..CpuSet::count())
        .filter(|&cpu| set.is_set(cpu).unwrap_or(false))
        .collect())
}

/// Pins the participants to CPUs. The allowed CPUs are read once, before the first thread is pinned, because pinning changes them.
#[derive(Clone, Debug)]
pub struct Pinning {
    pin: Pin,
    allowed: Vec<usize>,
}

impl Pinning {
    /// Prepares to pin `players` threads.
    ///
    /// # Errors
    ///
    /// If each thread needs a different CPU and the process may use fewer CPUs than that.
    pub fn new(pin: Pin, players: usize) -> Result<Self> {
        let allowed = allowed_cpus()?;
        if pin == Pin::SplitCpus && allowed.len() < players {
            return Err(Error::Workload(format!(
                "--pin split-cpus needs {players} CPUs, but this process may use only {}: use --pin same-cpu or none{}",
                allowed.len(),
                if players > 2 { ", or fewer --workers" } else { "" }
            )));
        }
        Ok(Self { pin, allowed })
    }

    /// The CPU of the participant with this index; `None` if it is not pinned.
    #[must_use]
    pub fn cpu(&self, player: usize) -> Option<usize> {
        match self.pin {
            Pin::None => None,
            // Use the last CPU, because the first one usually handles more interrupts.
            Pin::SameCpu => self.allowed.last().copied(),
            Pin::SplitCpus => self.allowed.get(player).copied(),
        }
    }

    /// Pins the calling thread to the CPU of the participant with this index.
    ///
    /// # Errors
    ///
    /// If `sched_setaffinity` fails.
    pub fn apply(&self, player: usize) -> Result<()> {
        let Some(cpu) = self.cpu(player) else { return Ok(()) };
        let mut set = CpuSet::new();
        set.set(cpu).map_err(Error::errno("CPU_SET"))?;
        sched_setaffinity(Pid::from_raw(0), &set).map_err(Error::errno("sched_setaffinity"))
    }
}
