//! The timer that samples, at a steady rate and on every CPU, what the target does there: a `perf` event, `cpu-clock`, that runs
//! a BPF program (`ctxtrace-ebpf/src/sample.rs`).
//!
//! The event needs no hardware counters, so it also exists on virtual machines. It is a timer interrupt: kernel code that runs
//! with interrupts disabled is sampled where the kernel enables them again.

use aya::Ebpf;
use aya::programs::PerfEvent;
use aya::programs::perf_event::{PerfEventConfig, PerfEventScope, SamplePolicy, SoftwareEvent};

use super::{missing, refused, refused_for};
use crate::error::{Error, Result};

/// The name of the BPF program.
pub(super) const SAMPLER: &str = "cpu_clock";

pub(super) fn load(ebpf: &mut Ebpf) -> Result<()> {
    sampler(ebpf)?.load().map_err(refused_for("load", SAMPLER))
}

/// Starts sampling every CPU that is online, `hz` times a second.
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

/// Stops sampling.
pub(super) fn unload(ebpf: &mut Ebpf) -> Result<()> {
    sampler(ebpf)?.unload().map_err(refused_for("detach", SAMPLER))
}

fn sampler(ebpf: &mut Ebpf) -> Result<&mut PerfEvent> {
    ebpf.program_mut(SAMPLER)
        .ok_or_else(|| missing(SAMPLER))?
        .try_into()
        .map_err(refused("use a BPF program"))
}
