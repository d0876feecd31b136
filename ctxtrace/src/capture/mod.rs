//! The kernel side's other half: loads the BPF programs, attaches them, and brings home what they have summed up.
//!
//! This is the only folder that knows of aya. In the order things happen:
//!
//! 1. [`preflight`]: may this process trace at all, and what to do if not.
//! 2. [`offsets`]: where the fields of the running kernel's `task_struct` lie.
//! 3. [`Session`]: one run's programs and maps, from load to the last count.
//! 4. `cost`: what the programs cost, as measured by the kernel.
//!
//! Everything is attached through file descriptors of this process, so nothing can stay behind: when the process ends, even
//! by `kill -9`, the kernel detaches and frees it all.

mod cost;
pub mod offsets;
pub mod preflight;
mod wire;

use std::time::{Duration, Instant};

use aya::maps::{HashMap as BpfHashMap, MapData, MapError, PerCpuArray, RingBuf};
use aya::programs::BtfTracePoint;
use aya::{Btf, Ebpf, EbpfLoader};
use ctxtrace_common::counters::Counters;
use ctxtrace_common::histogram::{Histogram, Latency};
use ctxtrace_common::process::Process;
use ctxtrace_common::stack::{Stack, StackKey, StackSum};
use ctxtrace_common::thread::{PENDING_SUM, Thread};

use crate::error::{Error, Result};
use crate::target::mappings::Tracker;
use crate::target::procfs;
use crate::trace::{Aggregates, Fate, Latencies, Level, ThreadRecord, merge};
use cost::CostMeter;
use offsets::Offsets;
use wire::Wire;

/// The BPF object, aligned as the ELF parser wants it.
static OBJECT: &[u8] = aya::include_bytes_aligned!("../../bpf/ctxtrace.bpf.o");

/// The programs, by the name of their tracepoint, which is the program's name too. `sched_switch` comes last: when it is
/// attached everything that explains a switch is there.
const PROGRAMS: [&str; 6] = [
    "sched_process_fork",
    "sched_process_exec",
    "sched_process_exit",
    "sched_waking",
    "sched_wakeup_new",
    "sched_switch",
];

/// How long threads that have ended may take to make their last switch; it is microseconds after their process is reaped.
const LAST_SWITCH_TIMEOUT: Duration = Duration::from_secs(1);

/// What to record.
#[derive(Clone, Copy, Debug)]
pub struct Settings {
    /// How much.
    pub level: Level,
    /// Fault injection: drop one `sched_switch` run in this many; 0 for none.
    pub drop_one_in: u32,
}

/// What is known of the running kernel; read once, used for every run.
pub struct Kernel {
    btf: Btf,
    offsets: Offsets,
}

impl Kernel {
    /// Reads the running kernel's BTF.
    ///
    /// # Errors
    ///
    /// If there is none, or if it lacks a field that is needed.
    pub fn discover() -> Result<Self> {
        let offsets = Offsets::from_running_kernel()?;
        let btf = Btf::from_sys_fs().map_err(|error| Error::BtfLacks {
            what: format!("a readable type table ({error})"),
        })?;
        Ok(Self { btf, offsets })
    }
}

/// One run's programs and maps.
///
/// Dropping it detaches and frees everything.
pub struct Session {
    ebpf: Ebpf,
    exited_ring: RingBuf<MapData>,
    ended: Vec<ThreadRecord>,
    settings: Settings,
    cost: CostMeter,
}

impl Session {
    /// Loads the programs. Nothing is attached yet.
    ///
    /// # Errors
    ///
    /// If the kernel refuses, with its reason.
    pub fn load(kernel: &Kernel, settings: Settings) -> Result<Self> {
        let with_stacks = u32::from(settings.level == Level::Stacks);
        let mut loader = EbpfLoader::new();
        loader.btf(Some(&kernel.btf));
        for (name, value) in kernel.offsets.constants() {
            loader.override_global(name, value, true);
        }
        loader.override_global("WITH_STACKS", &with_stacks, true);
        loader.override_global("DROP_ONE_IN", &settings.drop_one_in, true);
        if settings.level == Level::Counts {
            // The stack tables are 17 MB of locked memory that would stay empty.
            loader.map_max_entries("STACKS", 1).map_max_entries("STACK_SUMS", 1);
        }
        let mut ebpf = loader.load(OBJECT).map_err(refused("load the BPF maps"))?;
        for name in PROGRAMS {
            program(&mut ebpf, name)?
                .load(name, &kernel.btf)
                .map_err(refused("load a BPF program"))?;
        }
        let ring = ebpf.take_map("EXITED").ok_or_else(|| missing("EXITED"))?;
        let exited_ring = RingBuf::try_from(ring).map_err(refused("map the ring of exited threads"))?;
        Ok(Self {
            cost: CostMeter::new(&ebpf, &PROGRAMS)?,
            ebpf,
            exited_ring,
            ended: Vec::new(),
            settings,
        })
    }

    /// Follows a process, and from then on its children too.
    ///
    /// # Errors
    ///
    /// If the kernel refuses.
    pub fn follow(&mut self, tgid: u32) -> Result<()> {
        let map = self.ebpf.map_mut("PROCESSES").ok_or_else(|| missing("PROCESSES"))?;
        let mut processes = BpfHashMap::<_, u32, Wire<Process>>::try_from(map).map_err(refused("open a BPF map"))?;
        processes
            .insert(tgid, Wire(Process::new(0, 0)), 0)
            .map_err(refused("follow the process"))
    }

    /// Attaches the programs: from here on events are seen.
    ///
    /// # Errors
    ///
    /// If the kernel refuses.
    pub fn attach(&mut self) -> Result<()> {
        for name in PROGRAMS {
            program(&mut self.ebpf, name)?
                .attach()
                .map_err(refused("attach a BPF program"))?;
        }
        self.cost.start();
        Ok(())
    }

    /// To be called now and then while the target runs: empties the ring and measures the programs' cost.
    pub fn tick(&mut self) {
        self.drain();
        self.cost.tick();
    }

    /// Kernel switches of the target so far.
    #[must_use]
    pub fn switches_so_far(&self) -> u64 {
        self.counters().map_or(0, |counters| counters.switches)
    }

    /// Waits until the last thread has made its last switch, which comes after its process has been reaped, then detaches
    /// and brings everything home. Threads that do not end are reported as they are.
    ///
    /// # Errors
    ///
    /// If a map cannot be read.
    pub fn finish(mut self, mut mappings: Tracker) -> Result<Aggregates> {
        let deadline = Instant::now() + LAST_SWITCH_TIMEOUT;
        while self.targets_alive()? && Instant::now() < deadline {
            std::thread::sleep(Duration::from_micros(200));
            self.drain();
            mappings.tick();
        }
        let cost = self.cost.stop();
        let recursion_misses = self.cost.recursion_misses();
        // Unloading detaches; the maps stay for as long as they are open.
        for name in PROGRAMS {
            program(&mut self.ebpf, name)?
                .unload()
                .map_err(refused("detach a BPF program"))?;
        }
        self.drain();

        let counters = self.counters()?;
        let latencies = self.latencies()?;
        let live = self.live_threads()?;
        let stack_sums = self.stack_sums(&live)?;
        let stacks = self.stacks()?;
        let mut threads = self.ended;
        threads.extend(live.into_iter().map(|thread| ThreadRecord {
            thread,
            fate: fate_of(&thread),
        }));
        Ok(Aggregates {
            level: self.settings.level,
            threads,
            counters,
            latencies,
            stacks,
            stack_sums,
            mappings: mappings.finish(),
            recursion_misses,
            cost,
        })
    }

    fn drain(&mut self) {
        while let Some(item) = self.exited_ring.next() {
            // The kernel side writes whole records only.
            if let Ok(thread) = bytemuck::try_pod_read_unaligned::<Thread>(&item) {
                self.ended.push(ThreadRecord {
                    thread,
                    fate: Fate::Ended,
                });
            }
        }
    }

    fn targets_alive(&self) -> Result<bool> {
        let processes = self.hash_map::<u32, Process>("PROCESSES")?;
        Ok(processes.keys().next().is_some())
    }

    fn counters(&self) -> Result<Counters> {
        let map = self.ebpf.map("COUNTERS").ok_or_else(|| missing("COUNTERS"))?;
        let map = PerCpuArray::<_, Wire<Counters>>::try_from(map).map_err(refused("open a BPF map"))?;
        let mut sum = Counters::default();
        for Wire(counters) in map.get(&0, 0).map_err(refused("read a BPF map"))?.iter() {
            sum.add(counters);
        }
        Ok(sum)
    }

    fn latencies(&self) -> Result<Latencies> {
        let map = self.ebpf.map("HISTOGRAMS").ok_or_else(|| missing("HISTOGRAMS"))?;
        let map = PerCpuArray::<_, Wire<Histogram>>::try_from(map).map_err(refused("open a BPF map"))?;
        let mut latencies = Latencies::default();
        for latency in [
            Latency::OffCpu,
            Latency::Blocked,
            Latency::RunQueue,
            Latency::OnCpu,
            Latency::WakeToRun,
        ] {
            for Wire(histogram) in map.get(&(latency as u32), 0).map_err(refused("read a BPF map"))?.iter() {
                merge(latencies.get_mut(latency), histogram);
            }
        }
        Ok(latencies)
    }

    fn live_threads(&self) -> Result<Vec<Thread>> {
        let mut threads = self.entries::<u64, Thread>("THREADS")?;
        threads.sort_by_key(|(_, thread)| (thread.start_boottime_ns, thread.tid));
        Ok(threads.into_iter().map(|(_, thread)| thread).collect())
    }

    /// The kernel's sums, and the switch-outs of threads that are off the CPU still, with no time.
    fn stack_sums(&self, live: &[Thread]) -> Result<Vec<(StackKey, StackSum)>> {
        let mut sums = self.entries::<StackKey, StackSum>("STACK_SUMS")?;
        for thread in live.iter().filter(|thread| thread.flags & PENDING_SUM != 0) {
            match sums.iter_mut().find(|(key, _)| *key == thread.pending) {
                Some((_, sum)) => sum.count += 1,
                None => sums.push((
                    thread.pending,
                    StackSum {
                        count: 1,
                        off_cpu_ns: 0,
                    },
                )),
            }
        }
        sums.sort_by_key(|&(key, _)| key);
        Ok(sums)
    }

    fn stacks(&self) -> Result<std::collections::HashMap<u64, Vec<u64>>> {
        let stacks = self.entries::<u64, Stack>("STACKS")?;
        Ok(stacks
            .into_iter()
            .map(|(key, stack)| {
                let depth = (stack.depth as usize).min(stack.frames.len());
                (key, stack.frames[..depth].to_vec())
            })
            .collect())
    }

    fn hash_map<K: bytemuck::Pod, V: bytemuck::Pod>(
        &self,
        name: &'static str,
    ) -> Result<BpfHashMap<&MapData, Wire<K>, Wire<V>>> {
        let map = self.ebpf.map(name).ok_or_else(|| missing(name))?;
        BpfHashMap::try_from(map).map_err(refused("open a BPF map"))
    }

    fn entries<K: bytemuck::Pod, V: bytemuck::Pod>(&self, name: &'static str) -> Result<Vec<(K, V)>> {
        self.hash_map::<K, V>(name)?
            .iter()
            .map(|entry| entry.map(|(Wire(key), Wire(value))| (key, value)))
            .collect::<std::result::Result<_, MapError>>()
            .map_err(refused("read a BPF map"))
    }
}

/// Whether a thread that is still in the table lives, or was missed when it made its last switch.
fn fate_of(thread: &Thread) -> Fate {
    match procfs::status(thread.tgid as i32, thread.tid as i32) {
        Some(_) => Fate::Alive,
        None => Fate::Vanished,
    }
}

fn program<'a>(ebpf: &'a mut Ebpf, name: &'static str) -> Result<&'a mut BtfTracePoint> {
    ebpf.program_mut(name)
        .ok_or_else(|| missing(name))?
        .try_into()
        .map_err(refused("use a BPF program"))
}

/// The committed object lacks something the loader asks for. The build checks that the object comes from these sources, so
/// this is a bug and not a user's mistake.
fn missing(name: &str) -> Error {
    Error::Refused {
        action: format!("find {name} in the BPF object"),
        reason: "it is not there; please report this".to_owned(),
    }
}

/// Turns an error of aya's, with everything behind it, into one sentence.
fn refused<E: std::error::Error>(action: &'static str) -> impl Fn(E) -> Error {
    move |error| {
        let mut reason = error.to_string();
        let mut source = error.source();
        while let Some(cause) = source {
            let text = cause.to_string();
            if !reason.contains(&text) {
                reason = format!("{reason}: {text}");
            }
            source = cause.source();
        }
        Error::Refused {
            action: action.to_owned(),
            reason,
        }
    }
}
