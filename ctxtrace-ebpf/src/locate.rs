//! What a thread is doing: one bounded read of its thread-locals for each locator its program has.
//!
//! The probe's slot names the task and numbers the polls; tokio's context tells a runtime's thread from others, and names
//! the tasks that no probe wraps. Where both speak the probe is believed first. A task that was seen with both is known
//! from then on by the probe's id, also in the instants before and after the wrapped poll, when only tokio speaks.
//!
//! Go's threads have a goroutine, and tokio's have none. Both in one program is possible, through C: then Go is asked first.

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

/// The locator of the thread's program; looked up once a thread and program.
#[inline(always)]
pub(crate) fn locator_of(thread: &mut Thread) -> Option<&'static Locator> {
    if thread.locator == 0 {
        let image = Image {
            tgid: thread.tgid,
            number: thread.image,
        };
        // SAFETY: the value is copied out at once.
        thread.locator = unsafe { IMAGES.get(&image) }.copied()?;
    }
    LOCATORS.get(thread.locator)
}

/// What the thread that is `current` is doing. The probe's slot is left in the scratch space; its `magic` says whether
/// there is one.
#[inline(always)]
pub(crate) fn locate(thread: &mut Thread, thread_pointer: u64, scratch: &mut Scratch) -> Plain {
    let kind = look(thread, thread_pointer, scratch);
    Plain::new(kind, scratch.value)
}

/// Returns the kind of a [`Plain`] and leaves its value in the scratch space.
///
/// Kept out of line: a program and what it calls have 512 bytes of stack together, so what needs much of it must not all lie
/// in one frame (kernel: `kernel/bpf/verifier.c`, `check_max_stack_depth()`).
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
        // Its memory is gone, or soon will be; what it was before is all there is to say.
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

/// [`Doing`] as two plain numbers, both of which always have a value: where the paths of a program meet, an enum's payload
/// may have none, and the verifier refuses to move it (before Linux 6.3 even from one place on the stack to another).
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

    /// Nothing that anybody could have a name for.
    pub(crate) const OTHER: Self = Self { kind: OTHER, value: 0 };

    /// The same with a payload that says nothing: for all who ask only which of them it is.
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

    /// The task that is polled, or 0.
    #[inline(always)]
    pub(crate) fn task(self) -> u64 {
        if self.kind == TASK { self.value } else { 0 }
    }

    /// The number of the [`Reason`] why it is not known, or 0.
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
    // SAFETY: the slot is as large as the size given; a read that fails says so.
    if unsafe { read_user((&raw mut scratch.slot).cast(), size_of::<Slot>() as u32, address) } != 0 {
        scratch.slot.magic = 0;
        return Plain::unknown(Reason::ReadFailed as u64);
    }
    let slot = &mut scratch.slot;
    if slot.magic == 0 {
        return admitted(thread, by_tokio, &mut scratch.key);
    }
    // What only the program itself can have done: another mark, or a number of polls that went down.
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
        // The program has announced this thread and wraps what it gives to `block_on`; it is not being polled, so this is
        // the runtime's own work around the poll of another task.
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
    // SAFETY: the buffer is as large as `size` may be; a read that fails says so.
    if unsafe { read_user((&raw mut scratch.context).cast(), size, context) } != 0 {
        return Plain::unknown(Reason::ReadFailed as u64);
    }
    let plain = Plain::from(locator.tokio.decode(&scratch.context, thread.tid == thread.tgid));
    match plain.kind {
        // The runtime's own work around a poll.
        TASK if plain.value == thread.launch_task => Plain::new(RUNTIME_KIND, 0),
        RUNTIME_KIND => {
            let id = locator.tokio.id(&scratch.context);
            if thread.launch_task == 0 {
                thread.launch_task = id;
            }
            // A worker whose id is another than its launch task's polls that task, without a budget, or drops it.
            if id != thread.launch_task && id != 0 {
                return Plain::new(TASK, id);
            }
            plain
        }
        POOL_IDLE => {
            // Should it be launched as a worker again, then by another task.
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
        // A thread that C has made, or one that has not begun.
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
        // The first thread's `g0` has no M in its first instants.
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

/// Reads eight bytes of the thread's memory; tells whether it could. Plain numbers, as in [`Plain`] and for its reason.
#[inline(always)]
fn load(address: u64, offset: u32, into: &mut u64) -> bool {
    let address = address.wrapping_add(u64::from(offset)) as *const u64;
    // SAFETY: a read that fails says so.
    match unsafe { bpf_probe_read_user(address) } {
        Ok(value) => {
            *into = value;
            true
        }
        Err(_) => false,
    }
}

/// A goroutine's id as it may stand in a key: those beyond what the table holds share one with all that were started with
/// the same function, so that a program with very many of them is still told apart by what they do.
#[inline(always)]
fn admit_goroutine(thread: &mut Thread, go: &GoLayout, goroutine: u64, id: u64, key: &mut TaskKey) -> u64 {
    if id == thread.last_task {
        return id;
    }
    *key = key_of(thread, id);
    let key = &*key;
    if GOROUTINES.get_ptr(key).is_none() {
        let mut startpc = 0;
        // Should it not be readable, the function has no name.
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

/// A task's id as it may stand in a key: that of a task beyond what the tables hold becomes [`OTHER_TASKS`].
///
/// `key` is a place in the scratch space for looking it up, which takes less room on the stack than one for each look-up.
#[inline(always)]
fn admit(thread: &mut Thread, id: u64, key: &mut TaskKey) -> u64 {
    if id == ROOT_TASK || id < NAMED_TASKS as u64 || id == thread.last_task {
        return id;
    }
    if id & (HOOKED | TOKIO_TASK) == 0 {
        // One of the probe's that has no name; the probe's own count tells how many there are.
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

/// Notes that tokio's `alias` is the probe's `task`.
#[inline(always)]
fn learn(thread: &Thread, alias: u64, task: u64, key: &mut TaskKey) {
    if alias == ROOT_TASK || task == OTHER_TASKS {
        return;
    }
    *key = key_of(thread, alias);
    let key = &*key;
    if ALIASES.get_ptr(key).is_none() {
        // Should there be no room, the task goes by both its names.
        let _ = ALIASES.insert(key, &task, 0);
    }
}

#[inline(always)]
fn known_as(thread: &mut Thread, id: u64, key: &mut TaskKey) -> u64 {
    if id != ROOT_TASK {
        *key = key_of(thread, id);
        // SAFETY: the value is copied out at once.
        if let Some(&task) = unsafe { ALIASES.get(&*key) } {
            return task;
        }
    }
    admit(thread, id, key)
}
