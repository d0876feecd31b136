//! Finds what a thread is doing, with bounded reads of its thread-local variables for each locator of its program.
//!
//! The probe's slot contains the task and the number of the poll. tokio's context distinguishes a runtime's threads
//! from others, and contains the tasks that are not wrapped by the probe. If both contain a task, the probe's is used.
//! A task that was seen with both is identified by the probe's id from then on, also directly before and after the
//! wrapped poll, when only tokio's context contains it.
//!
//! Go's threads have a goroutine, and tokio's threads have none. A program may contain both, through C; then Go's
//! goroutine is read first.

use aya_ebpf::helpers::bpf_probe_read_user;
use aya_ebpf::helpers::generated::bpf_probe_read_user as read_user;
use ctxtrace_abi::{HOOKED, MAGIC, NAMED_TASKS, RUNTIME_THREAD, Slot};
use ctxtrace_common::locator::{
    Doing, GoLayout, HAS_GO, HAS_PROBE, HAS_TOKIO, Locator, MAX_CONTEXT_BYTES, OTHER_TASKS, ROOT_TASK, Reason,
    TOKIO_TASK, go_doing, go_others,
};
use ctxtrace_common::process::{Image, TaskKey};
use ctxtrace_common::thread::{EXITING, KERNEL_WORKER, RUNTIME, Thread};

use crate::maps::{ALIASES, GOROUTINES, IMAGES, LOCATORS, Scratch, TASKS, count};

/// Returns the locator of the thread's program. It is looked up once for each thread and program.
#[inline(always)]
pub(crate) fn locator_of(thread: &mut Thread) -> Option<&'static Locator> {
    if thread.locator == 0 {
        let image = Image {
            tgid: thread.tgid,
            number: thread.image,
        };
        // SAFETY: the value is copied at once.
        thread.locator = unsafe { IMAGES.get(&image) }.copied()?;
    }
    LOCATORS.get(thread.locator)
}

/// Returns what the thread that is `current` is doing. Leaves the probe's slot in the scratch space; its `magic` is 0
/// if there is none.
#[inline(always)]
pub(crate) fn locate(thread: &mut Thread, thread_pointer: u64, scratch: &mut Scratch) -> Plain {
    let kind = look(thread, thread_pointer, scratch);
    Plain::new(kind, scratch.value)
}

/// Returns the kind of a [`Plain`], and leaves its value in the scratch space.
///
/// Not inlined: a program and the functions that it calls have 512 bytes of stack together, so code that needs much of
/// it must not be in one frame with other such code (kernel: `kernel/bpf/verifier.c`, `check_max_stack_depth()`).
#[inline(never)]
fn look(thread: &mut Thread, thread_pointer: u64, scratch: &mut Scratch) -> u64 {
    let plain = Plain::from(look_at(thread, thread_pointer, scratch));
    scratch.value = plain.value;
    plain.kind
}

#[inline(always)]
fn look_at(thread: &mut Thread, thread_pointer: u64, scratch: &mut Scratch) -> Doing {
    scratch.slot.magic = 0;
    if thread.flags & KERNEL_WORKER != 0 {
        return Doing::Other;
    }
    if thread.flags & EXITING != 0 {
        // The thread's memory is gone, or soon will be. Only what the thread was before is known.
        return if thread.flags & RUNTIME != 0 {
            Doing::Runtime
        } else {
            Doing::Other
        };
    }
    let Some(locator) = locator_of(thread) else {
        return Doing::Unknown(Reason::NotExamined);
    };
    if thread_pointer == 0 || thread_pointer == thread.stale_thread_pointer {
        return Doing::Other;
    }
    let doing = read(thread, locator, thread_pointer, scratch).doing();
    match doing {
        Doing::Task(_) | Doing::Runtime | Doing::PoolIdle => thread.flags |= RUNTIME,
        Doing::Unknown(Reason::ReadFailed) => count(|counters| &mut counters.lost_task_reads),
        Doing::Other | Doing::Unknown(_) => {}
    }
    doing
}

/// [`Doing`] as two plain numbers that always have a value. Where the paths of a program join, the payload of an enum
/// may be uninitialised, and the verifier rejects a program that moves it (before Linux 6.3, even from one stack slot
/// to another).
#[derive(Clone, Copy)]
pub(crate) struct Plain {
    kind: u64,
    value: u64,
}

const OTHER: u64 = 0;
const TASK: u64 = 1;
const RUNTIME_KIND: u64 = 2;
const POOL_IDLE: u64 = 3;
const UNKNOWN: u64 = 4;

impl Plain {
    #[inline(always)]
    fn new(kind: u64, value: u64) -> Self {
        Self { kind, value }
    }

    /// The thread is not a thread of a runtime.
    pub(crate) const OTHER: Self = Self { kind: OTHER, value: 0 };

    /// Returns the same as a [`Doing`] with a meaningless payload, for code that only needs the variant.
    #[inline(always)]
    pub(crate) fn shape(self) -> Doing {
        match self.kind {
            TASK => Doing::Task(0),
            RUNTIME_KIND => Doing::Runtime,
            POOL_IDLE => Doing::PoolIdle,
            UNKNOWN => Doing::Unknown(Reason::ReadFailed),
            _ => Doing::Other,
        }
    }

    /// Returns the task that is polled, or 0.
    #[inline(always)]
    pub(crate) fn task(self) -> u64 {
        if self.kind == TASK { self.value } else { 0 }
    }

    /// Returns the number of the [`Reason`] why it is not known what the thread is doing, or 0.
    #[inline(always)]
    pub(crate) fn reason(self) -> u8 {
        if self.kind == UNKNOWN { self.value as u8 } else { 0 }
    }

    #[inline(always)]
    fn unknown(reason: u64) -> Self {
        Self::new(UNKNOWN, reason)
    }

    #[inline(always)]
    fn from(doing: Doing) -> Self {
        match doing {
            Doing::Other => Self::new(OTHER, 0),
            Doing::Task(id) => Self::new(TASK, id),
            Doing::Runtime => Self::new(RUNTIME_KIND, 0),
            Doing::PoolIdle => Self::new(POOL_IDLE, 0),
            Doing::Unknown(reason) => Self::unknown(reason as u64),
        }
    }

    #[inline(always)]
    fn doing(self) -> Doing {
        match self.kind {
            TASK => Doing::Task(self.value),
            RUNTIME_KIND => Doing::Runtime,
            POOL_IDLE => Doing::PoolIdle,
            UNKNOWN => Doing::Unknown(Reason::from_number(self.value as u32)),
            _ => Doing::Other,
        }
    }
}

#[inline(always)]
fn read(thread: &mut Thread, locator: &Locator, thread_pointer: u64, scratch: &mut Scratch) -> Plain {
    if locator.flags & HAS_GO != 0 {
        let by_go = by_go(thread, &locator.go, thread_pointer, &mut scratch.key);
        if by_go.kind != OTHER || locator.flags & (HAS_PROBE | HAS_TOKIO) == 0 {
            return by_go;
        }
    }
    let by_tokio = if locator.flags & HAS_TOKIO != 0 {
        by_tokio(thread, locator, thread_pointer, scratch)
    } else if locator.flags & HAS_PROBE == 0 && locator.reason != 0 {
        Plain::unknown(u64::from(locator.reason))
    } else {
        Plain::new(OTHER, 0)
    };
    if locator.flags & HAS_PROBE == 0 {
        return admitted(thread, by_tokio, &mut scratch.key);
    }

    let address = thread_pointer.wrapping_sub(locator.probe_below_tp) as *const core::ffi::c_void;
    // SAFETY: the slot is as large as the size given. A failed read returns an error.
    if unsafe { read_user((&raw mut scratch.slot).cast(), size_of::<Slot>() as u32, address) } != 0 {
        scratch.slot.magic = 0;
        return Plain::unknown(Reason::ReadFailed as u64);
    }
    let slot = &mut scratch.slot;
    if slot.magic == 0 {
        return admitted(thread, by_tokio, &mut scratch.key);
    }
    // Only the program itself can cause this: another magic, or a number of polls that went down.
    if slot.magic != MAGIC || slot.polls < thread.polls.last.polls {
        slot.magic = 0;
        return Plain::unknown(Reason::Overwritten as u64);
    }
    let (task, flags, polls) = (slot.task, slot.flags, slot.polls);
    if task != 0 {
        let task = admit(thread, task, &mut scratch.key);
        if by_tokio.kind == TASK {
            learn(thread, by_tokio.value, task, &mut scratch.key);
        }
        return Plain::new(TASK, task);
    }
    let announced = flags & RUNTIME_THREAD != 0;
    if by_tokio.kind == TASK {
        // The program has announced this thread, and wraps the future that it gives to `block_on`. That future is not
        // being polled, so this is the runtime's own work around the poll of another task.
        if by_tokio.value == ROOT_TASK && announced {
            return Plain::new(RUNTIME_KIND, 0);
        }
        return Plain::new(TASK, known_as(thread, by_tokio.value, &mut scratch.key));
    }
    if by_tokio.kind == OTHER && (announced || (polls > 0 && locator.flags & HAS_TOKIO == 0)) {
        return Plain::new(RUNTIME_KIND, 0);
    }
    by_tokio
}

#[inline(always)]
fn admitted(thread: &mut Thread, plain: Plain, key: &mut TaskKey) -> Plain {
    if plain.kind == TASK {
        return Plain::new(TASK, admit(thread, plain.value, key));
    }
    plain
}

#[inline(always)]
fn by_tokio(thread: &mut Thread, locator: &Locator, thread_pointer: u64, scratch: &mut Scratch) -> Plain {
    let size = locator.tokio.size;
    if size == 0 || size > MAX_CONTEXT_BYTES as u32 {
        return Plain::unknown(Reason::UnknownLayout as u64);
    }
    let context = thread_pointer.wrapping_sub(locator.tokio.below_tp) as *const core::ffi::c_void;
    // SAFETY: `size` is at most the size of the buffer. A failed read returns an error.
    if unsafe { read_user((&raw mut scratch.context).cast(), size, context) } != 0 {
        return Plain::unknown(Reason::ReadFailed as u64);
    }
    let plain = Plain::from(locator.tokio.decode(&scratch.context, thread.tid == thread.tgid));
    match plain.kind {
        // This is the runtime's own work around a poll.
        TASK if plain.value == thread.launch_task => Plain::new(RUNTIME_KIND, 0),
        RUNTIME_KIND => {
            let id = locator.tokio.id(&scratch.context);
            if thread.launch_task == 0 {
                thread.launch_task = id;
            }
            // A worker with an id other than its launch task's polls that task without a budget, or drops it.
            if id != thread.launch_task && id != 0 {
                return Plain::new(TASK, id);
            }
            plain
        }
        POOL_IDLE => {
            // If the thread is launched as a worker again, it will have another launch task.
            thread.launch_task = 0;
            plain
        }
        _ => plain,
    }
}

#[inline(always)]
fn by_go(thread: &mut Thread, go: &GoLayout, thread_pointer: u64, key: &mut TaskKey) -> Plain {
    let mut goroutine = 0;
    let mut number = 0;
    if !load(thread_pointer.wrapping_sub(go.below_tp), 0, &mut goroutine) {
        return Plain::unknown(Reason::ReadFailed as u64);
    }
    if goroutine == 0 {
        // The thread was created by C code, or has not begun to run Go code.
        return Plain::new(OTHER, 0);
    }
    if !load(goroutine, go.goid, &mut number) {
        return Plain::unknown(Reason::ReadFailed as u64);
    }
    if number == 0 {
        let mut machine = 0;
        if !load(goroutine, go.m, &mut machine) {
            return Plain::unknown(Reason::ReadFailed as u64);
        }
        // When the program starts, the first thread's `g0` has no M for a short time.
        if machine != 0 {
            if !load(machine, go.curg, &mut goroutine) {
                return Plain::unknown(Reason::ReadFailed as u64);
            }
            if goroutine != 0 && !load(goroutine, go.goid, &mut number) {
                return Plain::unknown(Reason::ReadFailed as u64);
            }
        }
    }
    let plain = Plain::from(go_doing(number));
    if plain.kind == TASK {
        return Plain::new(TASK, admit_goroutine(thread, go, goroutine, plain.value, key));
    }
    plain
}

/// Reads eight bytes of the thread's memory. Returns whether it succeeded. It uses plain numbers for the same reason as
/// [`Plain`].
#[inline(always)]
fn load(address: u64, offset: u32, into: &mut u64) -> bool {
    let address = address.wrapping_add(u64::from(offset)) as *const u64;
    // SAFETY: a failed read returns an error.
    match unsafe { bpf_probe_read_user(address) } {
        Ok(value) => {
            *into = value;
            true
        }
        Err(_) => false,
    }
}

/// Returns a goroutine's id as it is used in keys. Goroutines for which the table has no room share one id with all
/// others that have the same start function. So even if a program has very many of them, they are distinguished by what
/// they do.
#[inline(always)]
fn admit_goroutine(thread: &mut Thread, go: &GoLayout, goroutine: u64, id: u64, key: &mut TaskKey) -> u64 {
    if id == thread.last_task {
        return id;
    }
    *key = key_of(thread, id);
    let key = &*key;
    if GOROUTINES.get_ptr(key).is_none() {
        let mut startpc = 0;
        // If this cannot be read, the function has no name.
        let _ = load(goroutine, go.startpc, &mut startpc);
        if GOROUTINES.insert(key, &startpc, 0).is_err() {
            count(|counters| &mut counters.lost_tasks);
            return go_others(startpc);
        }
    }
    thread.last_task = id;
    id
}

#[inline(always)]
fn key_of(thread: &Thread, task: u64) -> TaskKey {
    TaskKey {
        task,
        image: Image {
            tgid: thread.tgid,
            number: thread.image,
        },
    }
}

/// Returns a task's id as it is used in keys. Tasks for which the tables have no room have the id [`OTHER_TASKS`].
///
/// `key` is a place in the scratch space for the lookup, which saves stack space compared with one key for each lookup.
#[inline(always)]
fn admit(thread: &mut Thread, id: u64, key: &mut TaskKey) -> u64 {
    if id == ROOT_TASK || id < NAMED_TASKS as u64 || id == thread.last_task {
        return id;
    }
    if id & (HOOKED | TOKIO_TASK) == 0 {
        // A task of the probe without a name. The probe's own counter gives the number of such tasks.
        return OTHER_TASKS;
    }
    *key = key_of(thread, id);
    let key = &*key;
    if TASKS.get_ptr(key).is_none() && TASKS.insert(key, &0, 0).is_err() {
        count(|counters| &mut counters.lost_tasks);
        return OTHER_TASKS;
    }
    thread.last_task = id;
    id
}

/// Records that tokio's `alias` is the probe's `task`.
#[inline(always)]
fn learn(thread: &Thread, alias: u64, task: u64, key: &mut TaskKey) {
    if alias == ROOT_TASK || task == OTHER_TASKS {
        return;
    }
    *key = key_of(thread, alias);
    let key = &*key;
    if ALIASES.get_ptr(key).is_none() {
        // If there is no room, the task appears under both ids.
        let _ = ALIASES.insert(key, &task, 0);
    }
}

#[inline(always)]
fn known_as(thread: &mut Thread, id: u64, key: &mut TaskKey) -> u64 {
    if id != ROOT_TASK {
        *key = key_of(thread, id);
        // SAFETY: the value is copied at once.
        if let Some(&task) = unsafe { ALIASES.get(&*key) } {
            return task;
        }
    }
    admit(thread, id, key)
}
