//! The timer that asks, at a steady rate and on every CPU, what the target does there: a `perf` event, `cpu-clock`, that
//! calls a program of ours (`ctxtrace-ebpf/src/sample.rs`).
//!
//! The event needs no hardware counters, so it is there on virtual machines too. It is a timer's interrupt: what the kernel
//! does with interrupts disabled is found where it enables them again.

use aya::Ebpf;
use aya::programs::PerfEvent;
use aya::programs::perf_event::{PerfEventConfig, PerfEventScope, SamplePolicy, SoftwareEvent};

use super::{missing, refused, refused_for};
use crate::error::{Error, Result};

/// The program.
pub(super) const SAMPLER: &str = "cpu_clock";

pub(super) fn load(ebpf: &mut Ebpf) -> Result<()> {
    sampler(ebpf)?.load().map_err(refused_for("load", SAMPLER))
}

/// Begins to sample every CPU that is online, `hz` times a second.
pub(super) fn attach(ebpf: &mut Ebpf, hz: u32) -> Result<()> {
    let cpus = aya::util::online_cpus().map_err(|(what, error)| Error::system(what)(error))?;
    let sampler = sampler(ebpf)?;
    for cpu in cpus {
        sampler
            .attach(
                PerfEventConfig::Software(SoftwareEvent::CpuClock),
                PerfEventScope::AllProcessesOneCpu { cpu },
                SamplePolicy::Frequency(u64::from(hz)),
                false,
            )
            .map_err(refused_for("attach", SAMPLER))?;
    }
    Ok(())
}

/// Ends the sampling.
pub(super) fn unload(ebpf: &mut Ebpf) -> Result<()> {
    sampler(ebpf)?.unload().map_err(refused_for("detach", SAMPLER))
}

fn sampler(ebpf: &mut Ebpf) -> Result<&mut PerfEvent> {
    ebpf.program_mut(SAMPLER)
        .ok_or_else(|| missing(SAMPLER))?
        .try_into()
        .map_err(refused("use a BPF program"))
}
