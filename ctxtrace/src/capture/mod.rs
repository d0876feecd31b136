//! The user-space half of the BPF programs: loads and attaches them, drains their maps and rings while they run, and reads back
//! what they have summed up.
//!
//! This is the only folder that uses aya. Its modules, in the order of their use:
//!
//! 1. [`preflight`]: whether this process may trace at all, and what the user can do if it may not.
//! 2. [`offsets`]: the field offsets of the running kernel's `task_struct`; `rights`: whose processes may be traced.
//! 3. [`Session`]: one run's programs and maps, from loading to the final counts.
//! 4. [`events`]: the rings of events, with [`Level::Timeline`].
//! 5. [`polls`]: the rings of polls that the traced program itself writes, with `--polls`.
//! 6. `sampling`: the timer that samples what the target does on each CPU, with `--sample`.
//! 7. `drain`: moves the elements of the kernel's tables to user space, while they fill and at the end.
//! 8. `batch`: reads hash tables, many elements with one system call.
//! 9. `layouts`: which indices of the table of locators are free.
//! 10. `cost`: what the programs cost, as measured by the kernel.
//!
//! Everything is attached through file descriptors of this process, so nothing outlives it: when the process ends, even by `kill
//! -9`, the kernel detaches and frees all of it.

mod batch;
mod btf;
mod cost;
mod drain;
pub mod events;
mod layouts;
pub mod machine;
pub mod offsets;
pub mod polls;
pub mod preflight;
mod rights;
mod sampling;
mod wire;

use std::collections::{HashMap, HashSet};
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};
use std::time::{Duration, Instant};

use aya::maps::{Array, HashMap as BpfHashMap, MapData, MapError, PerCpuArray, RingBuf};
use aya::programs::tp_btf::BtfTracePointLinkId;
use aya::programs::{BtfTracePoint, KProbe};
use aya::{Btf, Ebpf, EbpfLoader};
use ctxtrace_common::clock::Phase;
use ctxtrace_common::counters::Counters;
use ctxtrace_common::event::Event;
use ctxtrace_common::handover::{Handover, TaskNames};
use ctxtrace_common::histogram::{Histogram, Latency};
use ctxtrace_common::ledger::Class;
use ctxtrace_common::locator::Locator;
use ctxtrace_common::process::{ATTACHED, Image, Process, TaskKey, filter_place};
use ctxtrace_common::stack::SwitchSum;
use ctxtrace_common::table::Generational as _;
use ctxtrace_common::thread::{PENDING_SUM, REFUSED, Thread, ThreadSummary};

use crate::error::{Error, Result};
use crate::reader::FileReader;
use crate::tracee::cgroups::CgroupWatch;
use crate::tracee::held::HeldFile;
use crate::tracee::held::HeldFiles;
use crate::tracee::locate::is_elf;
use crate::tracee::mappings::{FollowedMappings, Tracker};
use crate::tracee::procfs;
use crate::tracee::programs::ProgramSearch;
use cost::CostMeter;
use ctxtrace_format::events::EventSink;
use ctxtrace_format::programs::LocatorChoice;
use ctxtrace_format::run::ClockAnchor;
use ctxtrace_format::threads::EndedThreads;
use ctxtrace_format::{Aggregates, CpuLosses, Fate, Latencies, Level, OpenInterval, ThreadRecord, merge, name_of};
use drain::{DrainedTables, Drainer, entries};
use events::{EventRings, Layout};
use layouts::{Layouts, LocatorSlot};
use offsets::Offsets;
use polls::PollRings;
use rights::TracerRights;
use wire::Wire;

/// The BPF object, aligned as the ELF parser requires.
static OBJECT: &[u8] = aya::include_bytes_aligned!("../../bpf/ctxtrace.bpf.o");

/// The BPF programs. Each has the name of its tracepoint. `sched_switch` comes last: once it is attached, every program that
/// explains a switch is attached already.
const PROGRAMS: [&str; 6] = [
    "sched_process_fork",
    "sched_process_exec",
    "sched_process_exit",
    "sched_waking",
    "sched_wakeup_new",
    "sched_switch",
];

/// Measures how long making a wakeup takes. It runs at the end of every system call of every program, so it is attached only for
/// short periods.
const WAKEUP_TIMER: &str = "sys_exit";

/// Records name changes of threads as events. Attached only with [`Level::Timeline`].
const RENAME: &str = "task_rename";

/// Reads a thread's final counters on kernels where `sched_process_exit` comes after the thread has given up its memory.
const EXIT: &str = "do_exit";

/// `BPF_NOEXIST`: do not replace an existing element (kernel: `include/uapi/linux/bpf.h`).
const BPF_NOEXIST: u64 = 1;

/// How long to wait for the last switch of threads that have ended. It follows the reaping of their process by microseconds.
const LAST_SWITCH_TIMEOUT: Duration = Duration::from_secs(1);

/// Upper bound on the processes listed to inspect their cgroups. It equals the capacity of the `PROCESSES` map; the bound is
/// needed because reading a list that changes meanwhile could return more.
const PROCESSES_LISTED: usize = 8_192;

/// Processes whose cgroups are inspected at once when many have executed a program at the same time. The remaining ones are
/// inspected when their turn comes in [`Session::tick`].
const EXECUTED_LOOKED_AT: usize = 16;

/// What a session records.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Settings {
    /// The amount of detail.
    pub level: Level,
    /// How tasks are found.
    pub locator: LocatorChoice,
    /// Whether to record the stacks of wakers; needs [`Level::Stacks`].
    pub waker_stacks: bool,
    /// Whether processes that a target forks become targets.
    pub follow_children: bool,
    /// Maximum number of threads followed at a time. Further threads are counted in `lost.threads`.
    pub max_threads: u32,
    /// Capacity of the kernel's table of sums, in distinct sums; the table is drained while it fills. The table of stacks has
    /// twice this capacity.
    pub max_stacks: u32,
    /// Total size in bytes of the rings of events, with [`Level::Timeline`]; the memory is not swappable. `None` for
    /// [`events::DEFAULT_RING_BYTES`], or more if there are many CPUs.
    pub ring_bytes: Option<usize>,
    /// Samples per second and CPU, with [`Level::Timeline`]; `None` for no sampling.
    pub sample_hz: Option<u32>,
    /// Whether a launched program is asked to record when it polls and wakes its tasks; needs [`Level::Timeline`].
    pub polls: bool,
    /// Size in bytes of each thread's ring of polls; `None` for [`polls::DEFAULT_RING_BYTES`].
    pub poll_ring_bytes: Option<usize>,
    /// Fault injection for tests: drop one run of `sched_switch` in this many; 0 for none.
    pub drop_one_in: u32,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            level: Level::Stacks,
            locator: LocatorChoice::Auto,
            waker_stacks: false,
            follow_children: true,
            max_threads: 16_384,
            max_stacks: 16_384,
            ring_bytes: None,
            sample_hz: None,
            polls: false,
            poll_ring_bytes: None,
            drop_one_in: 0,
        }
    }
}

/// What is known of the running kernel: read once and used for every run.
pub struct RunningKernel {
    btf: Btf,
    offsets: Offsets,
}

impl RunningKernel {
    /// Reads the running kernel's BTF.
    ///
    /// # Errors
    ///
    /// If the kernel has no BTF, or if its BTF lacks a field that is needed.
    pub fn discover() -> Result<Self> {
        let offsets = Offsets::from_running_kernel()?;
        let btf = Btf::from_sys_fs().map_err(|error| Error::BtfLacks {
            what: format!("a readable type table ({error})"),
        })?;
        Ok(Self { btf, offsets })
    }
}

/// The BPF programs and maps of one run.
///
/// Dropping a session detaches and frees all of them.
pub struct Session {
    ebpf: Ebpf,
    rings: Rings,
    events: EventRings,
    /// The rings that the launched program writes itself.
    polls: Option<PollRings>,
    ended: EndedThreads,
    /// The processes that user space follows by their ids. Their first threads are always kept as records of their own.
    followed: HashSet<u32>,
    collected: DrainedTables,
    drainer: Drainer,
    /// One sum per program, because there may be very many threads.
    handovers: HashMap<Image, Handover>,
    names: HashMap<Image, Vec<String>>,
    programs: ProgramSearch,
    reader: FileReader,
    cgroups: CgroupWatch,
    layouts: Layouts,
    /// Threads that executed a program which may not be traced. Their last event is still to be sent to the sink.
    refused: Vec<ThreadSummary>,
    /// The images that may not be traced, until [`Session::take_refused`] returns them.
    refused_images: Vec<Image>,
    /// Number of programs for which the kernel's tables had no room.
    lost_programs: u64,
    settings: Settings,
    cost: CostMeter,
    /// Whether [`EXIT`] is needed and the kernel accepted it. If it is needed and was not accepted, `lost.handovers` counts the
    /// threads whose counters are missing.
    reads_at_exit: bool,
    /// Whether the kernel accepted [`WAKEUP_TIMER`].
    can_time_wakeups: bool,
    /// The link of [`WAKEUP_TIMER`] while it is attached.
    wakeup_timer: Option<BtfTracePointLinkId>,
}

/// The rings through which the BPF programs send records while the target runs.
struct Rings {
    exited: RingBuf<MapData>,
    handovers: RingBuf<MapData>,
    names: RingBuf<MapData>,
    executed: RingBuf<MapData>,
    /// Records for which a table had no room.
    additions: RingBuf<MapData>,
}

impl Session {
    /// Loads the programs without attaching them.
    ///
    /// # Errors
    ///
    /// If the kernel refuses; the error has the kernel's reason.
    pub fn load(kernel: &RunningKernel, settings: Settings) -> Result<Self> {
        let with_stacks = u32::from(settings.level == Level::Stacks);
        let waker_stacks = u32::from(settings.waker_stacks);
        let follow_children = u32::from(settings.follow_children);
        let with_events = u32::from(settings.level == Level::Timeline);
        let layout = if settings.level == Level::Timeline {
            Layout::new(settings.ring_bytes)?
        } else {
            Layout::NONE
        };
        let rights = TracerRights::of_this_process(&kernel.offsets)?;
        let mut loader = EbpfLoader::new();
        loader.btf(Some(&kernel.btf));
        for (name, value) in kernel.offsets.constants().chain(rights.constants()) {
            loader.override_global(name, value, true);
        }
        loader.override_global("WITH_STACKS", &with_stacks, true);
        loader.override_global("DROP_ONE_IN", &settings.drop_one_in, true);
        loader.override_global("WITH_WAKER_STACKS", &waker_stacks, true);
        loader.override_global("FOLLOW_CHILDREN", &follow_children, true);
        loader.override_global("WITH_EVENTS", &with_events, true);
        layout.apply(&mut loader);
        loader.map_max_entries("THREADS", settings.max_threads);
        let ended_bytes = bytes_for_ended(settings.max_threads);
        loader.map_max_entries("EXITED", ended_bytes);
        loader.map_max_entries("SWITCH_SUMS", settings.max_stacks);
        // Tables that stay empty are made minimal, because they take locked memory: the table of stacks takes 35 MB.
        let takes_stacks = with_stacks != 0 || settings.sample_hz.is_some();
        // A sum has two stacks, a kernel stack and a user stack.
        let stacks = if takes_stacks {
            settings.max_stacks.saturating_mul(2)
        } else {
            1
        };
        loader.map_max_entries("STACKS", stacks);
        let waker_sums = if settings.waker_stacks { settings.max_stacks } else { 1 };
        loader.map_max_entries("WAKER_SUMS", waker_sums);
        let mut ebpf = loader.load(OBJECT).map_err(refused("load the BPF maps"))?;
        for name in PROGRAMS.into_iter().chain(rename(settings.level)) {
            load(&mut ebpf, kernel, name)?;
        }
        // If this fails, the cost of making wakeups is not measured, and the report says that it is missing.
        let can_time_wakeups = load(&mut ebpf, kernel, WAKEUP_TIMER).is_ok();
        if settings.sample_hz.is_some() {
            sampling::load(&mut ebpf)?;
        }
        let reads_at_exit = !kernel.offsets.exit_comes_in_time() && load_at_exit(&mut ebpf).is_ok();
        let mut ring = |name: &'static str| {
            let map = ebpf.take_map(name).ok_or_else(|| missing(name))?;
            RingBuf::try_from(map).map_err(refused("map a ring"))
        };
        let rings = Rings {
            exited: ring("EXITED")?,
            handovers: ring("HANDOVERS")?,
            names: ring("NAMES")?,
            executed: ring("EXECUTED")?,
            additions: ring("ADDITIONS")?,
        };
        Ok(Self {
            cost: CostMeter::new(&ebpf, &PROGRAMS)?,
            drainer: Drainer::begin(&mut ebpf, ended_bytes)?,
            events: EventRings::new(&mut ebpf, layout)?,
            polls: None,
            ebpf,
            rings,
            ended: EndedThreads::default(),
            followed: HashSet::new(),
            collected: DrainedTables::default(),
            handovers: HashMap::new(),
            names: HashMap::new(),
            programs: ProgramSearch::new(settings.locator),
            reader: FileReader::new(),
            cgroups: CgroupWatch::start(kernel.offsets.has_throttled()),
            layouts: Layouts::default(),
            refused: Vec::new(),
            refused_images: Vec::new(),
            lost_programs: 0,
            settings,
            wakeup_timer: None,
            can_time_wakeups,
            reads_at_exit,
        })
    }

    /// Records which file an image will run, so that its tasks are found from its first switch on. May be called before the image
    /// exists. For a script nothing is installed, because its interpreter will be executed.
    ///
    /// # Errors
    ///
    /// If the kernel refuses to store the locator.
    pub fn expect_program(&mut self, image: Image, held: &HeldFile) -> Result<()> {
        if !is_elf(held.file()) {
            return Ok(());
        }
        match self.programs.expect(image, held, &mut self.reader) {
            Some(locator) => self.install(image, locator),
            None => Ok(()),
        }
    }

    /// Reads polls from these rings, which the program to be launched has been given.
    pub fn read_polls(&mut self, rings: PollRings) {
        self.polls = Some(rings);
    }

    /// Marks an image as having no tasks. Used for the child that has not executed its program yet.
    ///
    /// # Errors
    ///
    /// If the kernel refuses to store the locator.
    pub fn expect_no_tasks(&mut self, image: Image) -> Result<()> {
        let locator = self.programs.assign_none(image);
        self.install(image, locator)
    }

    /// Starts the examination of programs that were executed and have not been examined, and installs the locators found so far.
    fn examine_new_programs(&mut self, tracker: &Tracker) {
        for (image, locator) in self.programs.examine_new(tracker.mappings(), &mut self.reader) {
            let installed = self.install(image, locator);
            // The process may have ended meanwhile; its image would then stay in the table.
            if installed.is_ok() && !self.is_followed(image.tgid) {
                let _ = self.forget_image(image);
            }
        }
    }

    /// A descriptor that becomes readable when a program has been examined; `None` while none is being examined.
    #[must_use]
    pub fn examined_fd(&self) -> Option<BorrowedFd<'_>> {
        self.reader.examination_fd()
    }

    /// Installs the results of examinations. Call it when [`Session::examined_fd`] is readable.
    pub fn programs_examined(&mut self, tracker: &Tracker) {
        self.examine_new_programs(tracker);
    }

    /// Installs how an image's tasks are found. If the tables have no room even after ended processes are removed, the image's
    /// switches stay unattributed, and the program is counted as lost.
    fn install(&mut self, image: Image, locator: Locator) -> Result<()> {
        if self.put(image, &locator)? {
            return Ok(());
        }
        self.forget_ended()?;
        if !self.put(image, &locator)? {
            self.lost_programs += 1;
        }
        Ok(())
    }

    /// Puts an image and its locator into the kernel's tables. Returns whether there was room.
    fn put(&mut self, image: Image, locator: &Locator) -> Result<bool> {
        let index = match self.layouts.place(locator) {
            LocatorSlot::Known(index) => index,
            LocatorSlot::Free(index) => {
                let map = self.ebpf.map_mut("LOCATORS").ok_or_else(|| missing("LOCATORS"))?;
                let mut map = Array::<_, Wire<Locator>>::try_from(map).map_err(refused("open a BPF map"))?;
                map.set(index, Wire(*locator), 0)
                    .map_err(refused("store how a program's tasks are found"))?;
                self.layouts.put(index, *locator);
                index
            }
            LocatorSlot::None => return Ok(false),
        };
        match self.images()?.insert(Wire(image), index, 0) {
            Ok(()) => Ok(true),
            Err(MapError::SyscallError(error)) if error.io_error.raw_os_error() == Some(libc::E2BIG) => Ok(false),
            Err(error) => Err(refused("store how a program's tasks are found")(error)),
        }
    }

    /// Removes the images of processes that have ended, and the locators that no image uses any more.
    fn forget_ended(&mut self) -> Result<()> {
        let processes: HashSet<u32> = entries::<u32, Process>(&self.ebpf, "PROCESSES")?
            .into_iter()
            .map(|(tgid, _)| tgid)
            .collect();
        let mut used = HashSet::new();
        for (image, index) in entries::<Image, u32>(&self.ebpf, "IMAGES")? {
            if processes.contains(&image.tgid) {
                used.insert(index);
            } else {
                self.forget_image(image)?;
            }
        }
        self.layouts.keep(&used);
        Ok(())
    }

    fn forget_image(&mut self, image: Image) -> Result<()> {
        match self.images()?.remove(&Wire(image)) {
            // The BPF program may have removed it first.
            Ok(()) | Err(MapError::KeyNotFound) => Ok(()),
            Err(MapError::SyscallError(error)) if error.io_error.kind() == io::ErrorKind::NotFound => Ok(()),
            Err(error) => Err(refused("remove a program that has ended")(error)),
        }
    }

    fn is_followed(&self, tgid: u32) -> bool {
        self.hash_map::<u32, Process>("PROCESSES")
            .is_ok_and(|processes| processes.get(&Wire(tgid), 0).is_ok())
    }

    fn images(&mut self) -> Result<BpfHashMap<&mut MapData, Wire<Image>, u32>> {
        let map = self.ebpf.map_mut("IMAGES").ok_or_else(|| missing("IMAGES"))?;
        BpfHashMap::try_from(map).map_err(refused("open a BPF map"))
    }

    /// A descriptor that becomes readable when the target has executed a program.
    #[must_use]
    pub fn executed_fd(&self) -> BorrowedFd<'_> {
        // SAFETY: the ring, and therefore its descriptor, lives as long as `self`.
        unsafe { BorrowedFd::borrow_raw(self.rings.executed.as_raw_fd()) }
    }

    /// Follows a process and, from then on, its children.
    ///
    /// # Errors
    ///
    /// If the kernel refuses.
    pub fn follow(&mut self, tgid: u32) -> Result<()> {
        self.insert_process(tgid, Process::new(0, 0))
            .map_err(refused("follow the process"))
    }

    /// Follows a process that is already running; does nothing if it is followed already.
    ///
    /// # Errors
    ///
    /// If the kernel refuses.
    pub fn follow_running(&mut self, tgid: u32) -> Result<()> {
        match self.insert_process(tgid, Process::new(0, ATTACHED)) {
            Err(MapError::SyscallError(error)) if error.io_error.kind() == io::ErrorKind::AlreadyExists => Ok(()),
            inserted => inserted.map_err(refused("follow the process")),
        }
    }

    fn insert_process(&mut self, tgid: u32, process: Process) -> std::result::Result<(), MapError> {
        self.followed.insert(tgid);
        self.cgroups.look_at(tgid);
        let map = self.ebpf.map_mut("FILTER").ok_or(MapError::ElementNotFound)?;
        let mut filter = Array::<_, u64>::try_from(map)?;
        filter.set(filter_place(tgid), 1, 0)?;
        let map = self.ebpf.map_mut("PROCESSES").ok_or(MapError::ElementNotFound)?;
        let mut processes = BpfHashMap::<_, u32, Wire<Process>>::try_from(map)?;
        processes.insert(tgid, Wire(process), BPF_NOEXIST)
    }

    /// Attaches the programs. Events are recorded from here on.
    ///
    /// # Errors
    ///
    /// If the kernel refuses.
    pub fn attach(&mut self) -> Result<()> {
        for name in rename(self.settings.level).into_iter().chain(PROGRAMS) {
            program(&mut self.ebpf, name)?
                .attach()
                .map_err(refused_for("attach", name))?;
        }
        if self.reads_at_exit {
            self.reads_at_exit = at_exit(&mut self.ebpf)?.attach(EXIT, 0).is_ok();
        }
        if let Some(hz) = self.settings.sample_hz {
            sampling::attach(&mut self.ebpf, hz)?;
        }
        self.cost.start();
        self.update_wakeup_timer();
        Ok(())
    }

    /// Drains the rings and advances the measurement of the programs' cost. Call it regularly while the target runs.
    pub fn tick(&mut self, tracker: &Tracker, sink: &mut dyn EventSink) {
        self.drain_events(sink);
        self.examine_new_programs(tracker);
        let Self { cgroups, ebpf, .. } = self;
        cgroups.tick(|| followed_processes(ebpf));
        self.cost.tick();
        self.update_wakeup_timer();
    }

    /// Attaches and detaches [`WAKEUP_TIMER`], so that wakeups are timed in the same periods in which the programs themselves are
    /// timed.
    fn update_wakeup_timer(&mut self) {
        // If the kernel refuses any of this, nothing is timed, and the report says that the cost is missing.
        match (self.cost.is_measuring(), self.wakeup_timer.take()) {
            (true, None) => {
                if let Ok(timer) = program(&mut self.ebpf, WAKEUP_TIMER) {
                    self.wakeup_timer = timer.attach().ok();
                }
                let _ = self.set_wakeup_timing(self.wakeup_timer.is_some());
            }
            (true, attached) => self.wakeup_timer = attached,
            (false, Some(attached)) => {
                let _ = self.set_wakeup_timing(false);
                if let Ok(timer) = program(&mut self.ebpf, WAKEUP_TIMER) {
                    drop(timer.detach(attached));
                }
            }
            (false, None) => {}
        }
    }

    /// Sets the flag that makes the wakeup programs record when each wakeup began.
    fn set_wakeup_timing(&mut self, timed: bool) -> Result<()> {
        let map = self
            .ebpf
            .map_mut("TIMES_WAKEUPS")
            .ok_or_else(|| missing("TIMES_WAKEUPS"))?;
        Array::<_, u64>::try_from(map)
            .and_then(|mut times| times.set(0, u64::from(timed), 0))
            .map_err(refused("store whether wakeups are timed"))
    }

    /// A descriptor that becomes readable when enough events, ended threads or sums have accumulated to be drained
    /// before the next tick.
    #[must_use]
    pub fn events_fd(&self) -> BorrowedFd<'_> {
        self.events.fd()
    }

    /// Drains the rings and tables. Call it when [`Session::events_fd`] is readable.
    pub fn drain_events(&mut self, sink: &mut dyn EventSink) {
        self.drain();
        let until_ns = self.events.drain(sink);
        self.end_refused(until_ns, sink);
        if let Some(polls) = &mut self.polls {
            polls.drain(until_ns, sink);
        }
        // If the kernel refuses any of this, the tables fill up, and what has no room in them is counted as lost.
        let _ = self.drainer.drain(&mut self.ebpf, &mut self.collected);
    }

    /// Returns the images that may not be traced and that no earlier call has returned. The caller passes them to
    /// [`Tracker::refuse`].
    pub fn take_refused(&mut self) -> Vec<Image> {
        self.drain();
        std::mem::take(&mut self.refused_images)
    }

    /// Sends the last event of each thread that executed a program which may not be traced, once all its other events, which are
    /// before `until_ns`, have been sent.
    fn end_refused(&mut self, until_ns: u64, sink: &mut dyn EventSink) {
        let (over, to_come): (Vec<_>, Vec<_>) = std::mem::take(&mut self.refused)
            .into_iter()
            .partition(|thread| thread.clock.since_ns < until_ns);
        self.refused = to_come;
        if self.settings.level == Level::Timeline {
            let last = |thread: &ThreadSummary| Event::exec(until_ns, 0, thread.tid, thread.clock.since_ns, None);
            let events: Vec<Event> = over.iter().map(last).collect();
            sink.events(&events);
        }
    }

    /// Examines newly executed programs. Call it when [`Session::executed_fd`] is readable.
    pub fn programs_executed(&mut self, tracker: &Tracker) {
        let mut executed = Vec::new();
        while let Some(item) = self.rings.executed.next() {
            executed.extend(bytemuck::try_pod_read_unaligned::<Image>(&item));
        }
        // A program that a shell has moved into another cgroup is in that cgroup by the time it is executed.
        for image in executed.iter().take(EXECUTED_LOOKED_AT) {
            self.cgroups.look_at(image.tgid);
        }
        self.examine_new_programs(tracker);
    }

    /// The image number of each followed process, counted as the BPF programs count it.
    #[must_use]
    pub fn image_numbers(&self) -> HashMap<u32, u32> {
        let mut numbers = HashMap::new();
        for (_, thread) in self.live_threads().unwrap_or_default() {
            let number = numbers.entry(thread.tgid).or_insert(thread.image);
            *number = thread.image.max(*number);
        }
        numbers
    }

    /// Number of kernel switches of the target so far.
    #[must_use]
    pub fn switches_so_far(&self) -> u64 {
        self.counters().map_or(0, |counters| counters.switches)
    }

    /// The aggregates collected so far. Does not wait for anything.
    ///
    /// # Errors
    ///
    /// If a map cannot be read.
    pub fn so_far(&self, mappings: &FollowedMappings) -> Result<Aggregates> {
        // No thread is reported as vanished: the last switch of a thread that is ending now may still be seen.
        let now_ns = ClockAnchor::now().monotonic_ns;
        self.aggregates(self.collected.clone(), mappings, &HashSet::new(), now_ns)
    }

    /// Builds the aggregates. `until_ns` is the end of the recording (`CLOCK_MONOTONIC`), at which everything was attached.
    fn aggregates(
        &self,
        mut collected: DrainedTables,
        mappings: &FollowedMappings,
        vanished: &HashSet<u64>,
        until_ns: u64,
    ) -> Result<Aggregates> {
        let live = self.live_threads()?;
        let mut threads = self.ended.records(|thread| self.is_always_apart(thread));
        threads.extend(live.iter().map(|&(address, thread)| {
            let fate = if vanished.contains(&address) {
                Fate::Vanished
            } else {
                Fate::Alive
            };
            ThreadRecord::new(thread.summary, fate)
        }));
        collected.add_tables(&self.ebpf)?;
        add_pending(&mut collected, live.iter().map(|(_, thread)| thread));
        let (mut counters, mut overflow_sums) = (self.counters()?, self.overflow_sums()?);
        collected.settle_stacks(&mut counters);
        collected.add_losses(&mut counters, &mut overflow_sums);
        Ok(Aggregates {
            level: self.settings.level,
            threads,
            counters,
            lost_by_cpu: self.lost_by_cpu()?,
            latencies: self.latencies()?,
            stacks: collected.stacks,
            open: Some(open_intervals(&live, vanished, until_ns)),
            silent: Vec::new(),
            switch_sums: sorted(collected.switch_sums),
            overflow_sums,
            handovers: self.handovers.values().copied().collect(),
            names: self.names.clone(),
            goroutines: sorted(entries::<TaskKey, u64>(&self.ebpf, "GOROUTINES")?),
            hits: sorted(collected.hits),
            edges: sorted(collected.edges),
            outsiders: HashMap::new(),
            waker_sums: sorted(collected.waker_sums),
            lost_programs: self.lost_programs,
            programs: self.programs.programs().clone(),
            mappings: mappings.recorded().clone(),
            recursion_misses: self.cost.recursion_misses(),
            cost: self.cost.so_far(),
            cgroups: Some(self.cgroups.so_far()),
        })
    }

    /// Whether a thread keeps a record of its own however many have ended: true for the first thread of a process that user space
    /// follows.
    fn is_always_apart(&self, thread: &ThreadSummary) -> bool {
        self.followed.contains(&thread.tid)
    }

    /// Waits until the last thread of every process that has ended has made its last switch, which comes after the process has
    /// been reaped. Then detaches the programs and reads back all tables. Processes that are still alive are reported in their
    /// current state. The held files are those in which the names of functions are looked up.
    ///
    /// # Errors
    ///
    /// If a map cannot be read.
    pub fn finish(mut self, mut tracker: Tracker, sink: &mut dyn EventSink) -> Result<(Aggregates, HeldFiles)> {
        let deadline = Instant::now() + LAST_SWITCH_TIMEOUT;
        while self.last_switch_is_to_come()? && Instant::now() < deadline {
            std::thread::sleep(Duration::from_micros(200));
            self.drain();
            self.drain_events(sink);
            tracker.tick();
        }
        let vanished = self.vanished(&mut tracker, sink)?;
        let until_ns = ClockAnchor::now().monotonic_ns;
        self.cost.stop();
        // Unloading detaches the programs; the maps stay as long as they are open.
        if self.settings.sample_hz.is_some() {
            sampling::unload(&mut self.ebpf)?;
        }
        if self.reads_at_exit {
            at_exit(&mut self.ebpf)?.unload().map_err(refused_for("detach", EXIT))?;
        }
        let timer = self.can_time_wakeups.then_some(WAKEUP_TIMER);
        for name in PROGRAMS.into_iter().chain(rename(self.settings.level)).chain(timer) {
            program(&mut self.ebpf, name)?
                .unload()
                .map_err(refused_for("detach", name))?;
        }
        self.drain();
        self.events.drain_all(sink);
        self.end_refused(ClockAnchor::now().monotonic_ns, sink);
        if let Some(polls) = &mut self.polls {
            polls.drain_all(sink);
        }
        tracker.refuse(self.take_refused());
        let mappings = tracker.finish();
        self.programs.complete(&mappings, &mut self.reader);
        self.cgroups.read_all();
        let collected = std::mem::take(&mut self.collected);
        let mut aggregates = self.aggregates(collected, &mappings, &vanished, until_ns)?;
        aggregates.count_lost_code();
        Ok((aggregates, mappings.into_held()))
    }

    /// The threads that are gone although no program run saw their last switch, by the address of their record.
    ///
    /// Call it while everything is still attached, because threads that end after the programs are detached do not count. A
    /// thread leaves `/proc` a little before its last switch, so threads that have just left it are given time.
    fn vanished(&mut self, tracker: &mut Tracker, sink: &mut dyn EventSink) -> Result<HashSet<u64>> {
        let mut gone = self.live_threads()?;
        gone.retain(|(_, thread)| matches!(procfs::status(thread.tgid, thread.tid), Ok(None)));
        let deadline = Instant::now() + LAST_SWITCH_TIMEOUT;
        while !gone.is_empty() && Instant::now() < deadline {
            std::thread::sleep(Duration::from_micros(200));
            self.drain();
            self.drain_events(sink);
            tracker.tick();
            let still: HashMap<u64, Thread> = self.live_threads()?.into_iter().collect();
            // The kernel may have reused the address for another thread.
            gone.retain(|(address, thread)| {
                still
                    .get(address)
                    .is_some_and(|there| there.start_boottime_ns == thread.start_boottime_ns)
            });
        }
        Ok(gone.into_iter().map(|(address, _)| address).collect())
    }

    fn drain(&mut self) {
        // The BPF programs write whole records only.
        while let Some(item) = self.rings.exited.next() {
            if let Ok(thread) = bytemuck::try_pod_read_unaligned::<ThreadSummary>(&item) {
                if thread.flags & REFUSED != 0 {
                    self.refused.push(thread);
                    self.refused_images.push(Image {
                        tgid: thread.tgid,
                        number: thread.image + 1,
                    });
                }
                self.ended.push(thread, |thread| self.followed.contains(&thread.tid));
            }
        }
        while let Some(item) = self.rings.handovers.next() {
            if let Ok(handover) = bytemuck::try_pod_read_unaligned::<Handover>(&item) {
                self.handovers
                    .entry(handover.image)
                    .and_modify(|sum| sum.add(&handover))
                    .or_insert(handover);
            }
        }
        while let Some(item) = self.rings.additions.next() {
            self.collected.add_addition(&item);
        }
        while let Some(item) = self.rings.names.next() {
            if let Ok(names) = bytemuck::try_pod_read_unaligned::<TaskNames>(&item) {
                let count = (names.count as usize).min(names.names.len());
                self.names
                    .insert(names.image, names.names[..count].iter().map(name_of).collect());
            }
        }
    }

    fn last_switch_is_to_come(&self) -> Result<bool> {
        let processes = entries::<u32, Process>(&self.ebpf, "PROCESSES")?;
        Ok(processes
            .iter()
            .any(|(tgid, process)| process.threads_to_end() > 0 && procfs::is_gone(*tgid)))
    }

    /// The target's processes whose last switch was not seen, each with its start time (`CLOCK_BOOTTIME`, nanoseconds), parents
    /// before their children.
    ///
    /// # Errors
    ///
    /// If a map cannot be read.
    pub fn processes(&self) -> Result<Vec<(u32, u64)>> {
        let processes = entries::<u32, Process>(&self.ebpf, "PROCESSES")?.into_iter();
        let mut processes: Vec<_> = processes
            .map(|(pid, process)| (pid, process.start_boottime_ns))
            .collect();
        processes.sort_by_key(|&(pid, start_boottime_ns)| (start_boottime_ns, pid));
        Ok(processes)
    }

    fn counters(&self) -> Result<Counters> {
        let mut sum = Counters::default();
        for counters in self.counters_by_cpu()? {
            sum.add(&counters);
        }
        Ok(sum)
    }

    fn counters_by_cpu(&self) -> Result<Vec<Counters>> {
        let map = self.ebpf.map("COUNTERS").ok_or_else(|| missing("COUNTERS"))?;
        let map = PerCpuArray::<_, Wire<Counters>>::try_from(map).map_err(refused("open a BPF map"))?;
        let values = map.get(&0, 0).map_err(refused("read a BPF map"))?;
        Ok(values.iter().map(|&Wire(counters)| counters).collect())
    }

    fn lost_by_cpu(&self) -> Result<Vec<CpuLosses>> {
        let counters = self.counters_by_cpu()?.into_iter().enumerate();
        let losses = counters.map(|(cpu, counters)| CpuLosses {
            cpu: cpu as u32,
            events: counters.lost_events,
            timeline_events: counters.lost_timeline_events,
        });
        Ok(losses
            .filter(|losses| losses.events + losses.timeline_events > 0)
            .collect())
    }

    fn latencies(&self) -> Result<Latencies> {
        let map = self.ebpf.map("HISTOGRAMS").ok_or_else(|| missing("HISTOGRAMS"))?;
        let map = PerCpuArray::<_, Wire<Histogram>>::try_from(map).map_err(refused("open a BPF map"))?;
        let mut latencies = Latencies::default();
        for latency in Latency::ALL {
            for Wire(histogram) in map.get(&(latency as u32), 0).map_err(refused("read a BPF map"))?.iter() {
                merge(latencies.get_mut(latency), histogram);
            }
        }
        Ok(latencies)
    }

    /// The threads in the `THREADS` map, by the address of their `task_struct`, ordered by start time.
    fn live_threads(&self) -> Result<Vec<(u64, Thread)>> {
        let mut threads = entries::<u64, Thread>(&self.ebpf, "THREADS")?;
        threads.sort_by_key(|(_, thread)| (thread.start_boottime_ns, thread.tid));
        Ok(threads)
    }

    fn overflow_sums(&self) -> Result<Vec<SwitchSum>> {
        let map = self.ebpf.map("OVERFLOW_SUMS").ok_or_else(|| missing("OVERFLOW_SUMS"))?;
        let map = PerCpuArray::<_, Wire<SwitchSum>>::try_from(map).map_err(refused("open a BPF map"))?;
        let sum_of = |class: usize| {
            let mut sum = SwitchSum::default();
            for Wire(part) in map.get(&(class as u32), 0).map_err(refused("read a BPF map"))?.iter() {
                sum += *part;
            }
            Ok(sum)
        };
        (0..Class::COUNT).map(sum_of).collect()
    }

    fn hash_map<K: bytemuck::Pod, V: bytemuck::Pod>(
        &self,
        name: &'static str,
    ) -> Result<BpfHashMap<&MapData, Wire<K>, Wire<V>>> {
        let map = self.ebpf.map(name).ok_or_else(|| missing(name))?;
        BpfHashMap::try_from(map).map_err(refused("open a BPF map"))
    }
}

/// Adds the sums that threads still buffer in their own records, and the switch-outs of threads that are still off-CPU, these
/// with a time of 0.
fn add_pending<'a>(collected: &mut DrainedTables, live: impl Iterator<Item = &'a Thread>) {
    for thread in live {
        for gathered in thread.gathered.iter().filter(|gathered| gathered.sum.count > 0) {
            collected.add_switches(gathered.key.without_generation(), gathered.sum);
        }
        if thread.flags & PENDING_SUM != 0 {
            let once = SwitchSum {
                count: 1,
                off_cpu_ns: 0,
            };
            collected.add_switches(thread.pending, once);
        }
    }
}

fn sorted<K: Ord + Copy, V>(entries: impl IntoIterator<Item = (K, V)>) -> Vec<(K, V)> {
    let mut entries: Vec<_> = entries.into_iter().collect();
    entries.sort_by_key(|&(key, _)| key);
    entries
}

/// Size in bytes of the ring of ended threads: room for every thread that can be followed, each with the kernel's record header.
fn bytes_for_ended(max_threads: u32) -> u32 {
    const HEADER: usize = 8;
    let bytes = max_threads as usize * (size_of::<ThreadSummary>() + HEADER);
    (bytes.clamp(64 << 10, 1 << 30) as u32).next_power_of_two()
}

/// The intervals of living threads that are off-CPU, up to the end of the recording.
fn open_intervals(threads: &[(u64, Thread)], vanished: &HashSet<u64>, until_ns: u64) -> Vec<OpenInterval> {
    let is_open = |thread: &Thread| {
        let asleep_or_runnable = matches!(thread.clock.phase(), Phase::Slept | Phase::Runnable);
        asleep_or_runnable && thread.flags & PENDING_SUM != 0
    };
    let living = threads.iter().filter(|(address, _)| !vanished.contains(address));
    living
        .filter(|(_, thread)| is_open(thread))
        .map(|(_, thread)| OpenInterval {
            tid: thread.tid,
            key: thread.pending,
            off_ns: until_ns.saturating_sub(thread.clock.since_ns),
        })
        .collect()
}

/// The ids of the followed processes, at most [`PROCESSES_LISTED`]; empty if the map cannot be read.
fn followed_processes(ebpf: &Ebpf) -> Vec<u32> {
    let map = ebpf.map("PROCESSES");
    let map = map.and_then(|map| BpfHashMap::<_, u32, Wire<Process>>::try_from(map).ok());
    map.map_or_else(Vec::new, |map| map.keys().take(PROCESSES_LISTED).flatten().collect())
}

/// The program that only a timeline needs, if this level is one.
fn rename(level: Level) -> Option<&'static str> {
    (level == Level::Timeline).then_some(RENAME)
}

/// The outcome of loading a program as a trial, without attaching it.
struct Tried {
    name: &'static str,
    /// The level that the program was configured for.
    level: Level,
    loaded: Result<()>,
}

/// Loads every program as a trial, configured for stacks and for a timeline. Both include what plain counts need.
fn tried(kernel: &RunningKernel) -> Vec<Tried> {
    [Level::Stacks, Level::Timeline]
        .into_iter()
        .flat_map(|level| tried_at(kernel, level))
        .collect()
}

fn tried_at(kernel: &RunningKernel, level: Level) -> Vec<Tried> {
    let (stacks, events) = (u32::from(level == Level::Stacks), u32::from(level == Level::Timeline));
    let tried = |name, loaded| Tried { name, level, loaded };
    let rights = match TracerRights::of_this_process(&kernel.offsets) {
        Ok(rights) => rights,
        Err(error) => return vec![tried("sched_switch", Err(error))],
    };
    let mut loader = EbpfLoader::new();
    loader.btf(Some(&kernel.btf));
    for (name, value) in kernel.offsets.constants().chain(rights.constants()) {
        loader.override_global(name, value, true);
    }
    loader.override_global("WITH_STACKS", &stacks, true);
    loader.override_global("WITH_WAKER_STACKS", &stacks, true);
    loader.override_global("WITH_EVENTS", &events, true);
    Layout::NONE.apply(&mut loader);
    // The smallest size that the kernel accepts.
    for name in ["THREADS", "SWITCH_SUMS", "STACKS", "WAKER_SUMS", "EDGES"] {
        loader.map_max_entries(name, 1);
    }
    let mut ebpf = match loader.load(OBJECT).map_err(refused("load the BPF maps")) {
        Ok(ebpf) => ebpf,
        Err(error) => return vec![tried("sched_switch", Err(error))],
    };
    let scheduler = PROGRAMS.into_iter().chain(rename(level));
    let mut all: Vec<Tried> = scheduler
        .map(|name| tried(name, load(&mut ebpf, kernel, name)))
        .collect();
    match level {
        Level::Timeline => all.push(tried(sampling::SAMPLER, sampling::load(&mut ebpf))),
        Level::Counts | Level::Stacks => {
            all.push(tried(WAKEUP_TIMER, load(&mut ebpf, kernel, WAKEUP_TIMER)));
            if !kernel.offsets.exit_comes_in_time() {
                all.push(tried(EXIT, load_at_exit(&mut ebpf)));
            }
        }
    }
    all
}

fn load(ebpf: &mut Ebpf, kernel: &RunningKernel, name: &'static str) -> Result<()> {
    program(ebpf, name)?
        .load(name, &kernel.btf)
        .map_err(refused_for("load", name))
}

fn program<'a>(ebpf: &'a mut Ebpf, name: &'static str) -> Result<&'a mut BtfTracePoint> {
    ebpf.program_mut(name)
        .ok_or_else(|| missing(name))?
        .try_into()
        .map_err(refused("use a BPF program"))
}

fn at_exit(ebpf: &mut Ebpf) -> Result<&mut KProbe> {
    ebpf.program_mut(EXIT)
        .ok_or_else(|| missing(EXIT))?
        .try_into()
        .map_err(refused("use a BPF program"))
}

fn load_at_exit(ebpf: &mut Ebpf) -> Result<()> {
    at_exit(ebpf)?.load().map_err(refused_for("load", EXIT))
}

/// The committed object lacks something that the loader asks for. The build checks that the object was built from these sources,
/// so this is a bug and not a mistake of the user.
fn missing(name: &str) -> Error {
    Error::Refused {
        action: format!("find {name} in the BPF object"),
        reason: "the object does not contain it; please report this bug".to_owned(),
        errno: None,
    }
}

/// Turns an error of aya and all its sources into one sentence.
fn refused<E: std::error::Error + 'static>(action: &'static str) -> impl Fn(E) -> Error {
    move |error| Error::Refused {
        action: action.to_owned(),
        reason: in_one_sentence(&error),
        errno: errno_of(&error),
    }
}

/// Like [`refused`], for an action on one of the programs.
fn refused_for<E: std::error::Error + 'static>(action: &'static str, program: &'static str) -> impl Fn(E) -> Error {
    move |error| Error::Refused {
        action: format!("{action} the BPF program {program}"),
        reason: in_one_sentence(&error),
        errno: errno_of(&error),
    }
}

/// The error number of the system call that caused the error, if a system call did.
fn errno_of(error: &(dyn std::error::Error + 'static)) -> Option<i32> {
    let mut cause = Some(error);
    while let Some(error) = cause {
        if let Some(errno) = error.downcast_ref::<io::Error>().and_then(io::Error::raw_os_error) {
            return Some(errno);
        }
        cause = error.source();
    }
    None
}

fn in_one_sentence(error: &dyn std::error::Error) -> String {
    let mut sentence = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        let text = cause.to_string();
        if !sentence.contains(&text) {
            sentence = format!("{sentence}: {text}");
        }
        source = cause.source();
    }
    sentence
}

#[cfg(test)]
mod tests {
    use object::{Object as _, ObjectSection as _, ObjectSymbol as _, RelocationTarget};

    use super::*;

    /// A `memset` or `memmove` in BPF copies byte by byte. Another CPU once stored the time of a wakeup during such a copy: only
    /// half of the value survived, and the reported wakeup latency was the uptime of the machine.
    #[test]
    fn what_runs_at_each_switch_stores_whole_words() {
        let file = object::File::parse(OBJECT).expect("the object is an ELF file");
        for name in ["tp_btf/sched_switch", "tp_btf/sched_waking"] {
            let section = file.section_by_name(name).expect("the program exists");
            let called: Vec<&str> = section
                .relocations()
                .filter_map(|(_, relocation)| match relocation.target() {
                    RelocationTarget::Symbol(index) => file.symbol_by_index(index).ok()?.name().ok(),
                    _ => None,
                })
                .collect();
            assert!(called.contains(&"THREADS"), "{name}: its relocations must name symbols");
            assert!(
                !called.iter().any(|name| name.starts_with("mem")),
                "{name} calls {called:?}: see ctxtrace_common::words"
            );
        }
    }
}
