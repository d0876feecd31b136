//! Which CPUs a workload's players may use.

use nix::sched::{CpuSet, sched_getaffinity, sched_setaffinity};
use nix::unistd::Pid;
use serde::{Deserialize, Serialize};

use crate::error::{Error, Result};

/// A choice of CPUs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, schemars::JsonSchema, clap::ValueEnum)]
#[serde(rename_all = "kebab-case")]
pub enum Pin {
    /// Wherever the scheduler puts them
    None,
    /// All on one CPU
    SameCpu,
    /// Each on a CPU of its own
    SplitCpus,
}

impl Pin {
    /// The name used on the command line and in JSON.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::None => "none",
            Self::SameCpu => "same-cpu",
            Self::SplitCpus => "split-cpus",
        }
    }
}

/// The CPUs this process may use, lowest first.
///
/// # Errors
///
/// If the kernel does not tell.
pub fn allowed_cpus() -> Result<Vec<usize>> {
    let set = sched_getaffinity(Pid::from_raw(0)).map_err(Error::errno("sched_getaffinity"))?;
    Ok((0..CpuSet::count())
        .filter(|&cpu| set.is_set(cpu).unwrap_or(false))
        .collect())
}

/// Pins players to CPUs. Worked out once, before anybody is pinned, because pinning changes what is allowed.
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
    /// If each wants a CPU of its own and there are fewer.
    pub fn new(pin: Pin, players: usize) -> Result<Self> {
        let allowed = allowed_cpus()?;
        if pin == Pin::SplitCpus && allowed.len() < players {
            return Err(Error::Workload(format!(
                "--pin split-cpus wants {players} CPUs, and this process may use {}: use --pin same-cpu or none{}",
                allowed.len(),
                if players > 2 { ", or fewer --workers" } else { "" }
            )));
        }
        Ok(Self { pin, allowed })
    }

    /// The CPU of the player with this index; `None` for any.
    #[must_use]
    pub fn cpu(&self, player: usize) -> Option<usize> {
        match self.pin {
            Pin::None => None,
            // The last CPU: the first one usually serves more interrupts.
            Pin::SameCpu => self.allowed.last().copied(),
            Pin::SplitCpus => self.allowed.get(player).copied(),
        }
    }

    /// Pins the calling thread as the player with this index.
    ///
    /// # Errors
    ///
    /// If the kernel refuses.
    pub fn apply(&self, player: usize) -> Result<()> {
        let Some(cpu) = self.cpu(player) else { return Ok(()) };
        let mut set = CpuSet::new();
        set.set(cpu).map_err(Error::errno("CPU_SET"))?;
        sched_setaffinity(Pid::from_raw(0), &set).map_err(Error::errno("sched_setaffinity"))
    }
}
