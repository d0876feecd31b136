//! Finds what a thread is doing in the program's own memory, without the program's help.
//!
//! At a kernel switch the thread that leaves is still `current`, its memory is still mapped, and its thread pointer is
//! known (`task_struct.thread.fsbase`). A thread-local variable of the main executable lies at a fixed distance below
//! the thread pointer (x86-64 is a variant II architecture: Drepper, *ELF Handling For Thread-Local Storage*, section
//! 3.4.6), so one read of bounded size is enough. User space finds the distances in the executable ([`Locator`]). The
//! kernel side reads and decodes ([`TokioLayout::decode`]), with the same code that the tests run without a kernel.

use bytemuck::{Pod, Zeroable};

/// Maximum number of bytes that are read of tokio's thread-local variable.
pub const MAX_CONTEXT_BYTES: usize = 8 * CONTEXT_WORDS;
/// The same number in words; a power of two.
const CONTEXT_WORDS: usize = 64;

/// The words that are read of tokio's thread-local variable.
pub type Context = [u64; CONTEXT_WORDS];

/// Flag of [`Locator::flags`]: the program has a probe.
pub const HAS_PROBE: u32 = 1;
/// Flag of [`Locator::flags`]: the program contains tokio, and the layout of its thread-local variable is known.
pub const HAS_TOKIO: u32 = 2;

/// Flag of [`Locator::flags`]: the program is written in Go, and the position of its goroutines is known.
pub const HAS_GO: u32 = 4;

/// Id of the future given to `block_on`. tokio itself gives it none.
pub const ROOT_TASK: u64 = u64::MAX - 1;
/// Id shared by all tasks for which a table had no room.
pub const OTHER_TASKS: u64 = u64::MAX;
/// Bit that is set in the ids of tokio, to distinguish them from the probe's.
pub const TOKIO_TASK: u64 = 1 << 61;
/// Bit that is set in the ids of Go's goroutines.
pub const GO_TASK: u64 = 1 << 60;
/// Bit that is set in the id shared by all goroutines with the same start function for which a table had no room. The
/// lower bits are the address of that function; no address of a program reaches this bit.
pub const GO_OTHERS: u64 = 1 << 59;

/// An integer in tokio's thread-local variable, and the one value of it that has a meaning.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Pod, Zeroable)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub struct Field {
    /// The special value: the discriminant of `None` or of `NotEntered`, or a null pointer.
    pub special: u64,
    /// Offset in bytes from the beginning of the thread-local variable.
    pub offset: u32,
    /// Size in bytes: 1, 2, 4 or 8.
    pub size: u32,
}

/// The position and layout of tokio's thread-local `CONTEXT`.
///
/// It is `tokio::runtime::context::CONTEXT`, a `std` thread-local with a destructor, so the structure `Context` is
/// preceded or followed by a byte that holds whether it is alive. The compiler chooses the layout, so it is taken from
/// DWARF.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Pod, Zeroable)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub struct TokioLayout {
    /// Distance from the thread-local variable up to the thread pointer, in bytes.
    pub below_tp: u64,
    /// State of the thread-local variable; special: alive.
    pub state: Field,
    /// `Context.budget`, an `Option<u8>`; special: `None`, which means that no poll with a budget is in progress.
    pub budget: Field,
    /// `Context.current_task_id`; special: `None`.
    pub task_id: Field,
    /// `Context.scheduler`, a pointer; special: null.
    pub scheduler: Field,
    /// `Context.runtime`; special: `NotEntered`.
    pub runtime: Field,
    /// `EnterRuntime::Entered.allow_block_in_place`; special: false, as on a `current_thread` runtime.
    pub block_in_place: Field,
    /// The handle in `Context.current`; special: `None`.
    pub handle: Field,
    /// `Context.current.depth`: the number of nested handles that are entered; special: 1.
    pub depth: Field,
    /// Offset in bytes of the id itself from the beginning of the thread-local variable, if there is an id; 8 bytes long.
    pub task_id_offset: u32,
    /// Size of the thread-local variable in bytes, at most [`MAX_CONTEXT_BYTES`].
    pub size: u32,
}

/// The position of the goroutine that a Go thread runs.
///
/// Each thread has a thread-local `g`: the goroutine whose stack the thread is on. A thread (an *M*) has its own
/// goroutine `g0` for the runtime's work, and `gsignal` for signals. Both have the number 0; the goroutine that they
/// work for is found through their M.
#[repr(C)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Pod, Zeroable)]
pub struct GoLayout {
    /// Distance from the thread-local variable up to the thread pointer, in bytes.
    pub below_tp: u64,
    /// Offset of `g.goid`, 8 bytes.
    pub goid: u32,
    /// Offset of `g.m`, a pointer.
    pub m: u32,
    /// Offset of `m.curg`, a pointer.
    pub curg: u32,
    /// Offset of `g.startpc`, an address.
    pub startpc: u32,
}

/// Number of entries for locators. Entry 0 is not used, so at most this many layouts less one can be known at a time.
pub const MAX_LOCATORS: u32 = 1_024;

/// Describes how to find the tasks of one executable. Made by user space, used by the kernel side.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Pod, Zeroable)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub struct Locator {
    /// With [`HAS_PROBE`]: distance from the probe's thread-local variable up to the thread pointer, in bytes.
    pub probe_below_tp: u64,
    /// With [`HAS_TOKIO`]: the layout of tokio's thread-local variable.
    pub tokio: TokioLayout,
    /// With [`HAS_GO`]: the layout of Go's goroutines.
    pub go: GoLayout,
    /// [`HAS_PROBE`], [`HAS_TOKIO`], [`HAS_GO`].
    pub flags: u32,
    /// A [`Reason`] if the program has tasks that cannot be found; otherwise [`Reason::None`].
    pub reason: u32,
}

const _: () = assert!(size_of::<Locator>() == 8 + 8 + 8 * 16 + 8 + 24 + 8);

/// Why it is not known what a thread is doing.
#[repr(u8)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Reason {
    /// It is known.
    None = 0,
    /// The thread's memory could not be read (`lost.task_reads`).
    ReadFailed = 1,
    /// The process had executed a program that was not examined yet.
    NotExamined = 2,
    /// The program contains tokio, and has no symbol table.
    Stripped = 3,
    /// The program contains tokio, and has no type information about it.
    NoTypeInfo = 4,
    /// The program contains tokio, with types whose layout is not that of a known release.
    UnknownLayout = 5,
    /// tokio, or Go, is in a shared object, whose thread-local variables have no fixed position.
    SharedObject = 6,
    /// The program is not for x86-64.
    NotX86_64 = 7,
    /// The slot or the context holds impossible values: the program has overwritten it.
    Overwritten = 8,
    /// The executable could not be read.
    Unreadable = 9,
    /// The program is written in Go, has no type information, and is of a version whose layout is not known.
    GoVersion = 10,
    /// The program is written in Go, was linked by the C linker, and has no symbols: it does not contain the position
    /// of `g`.
    GoStripped = 11,
    /// The program is written in Go, and its types or its thread-local variables differ from those of every known
    /// version.
    GoUnknownLayout = 12,
    /// The executable was replaced or deleted before it could be opened.
    Replaced = 13,
}

impl Reason {
    /// Returns the reason with this number, or [`Reason::None`] if there is none.
    #[inline(always)]
    #[must_use]
    pub fn from_number(number: u32) -> Self {
        match number {
            1 => Self::ReadFailed,
            2 => Self::NotExamined,
            3 => Self::Stripped,
            4 => Self::NoTypeInfo,
            5 => Self::UnknownLayout,
            6 => Self::SharedObject,
            7 => Self::NotX86_64,
            8 => Self::Overwritten,
            9 => Self::Unreadable,
            10 => Self::GoVersion,
            11 => Self::GoStripped,
            12 => Self::GoUnknownLayout,
            13 => Self::Replaced,
            _ => Self::None,
        }
    }
}

/// What a thread is doing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Doing {
    /// It polls the task with this id.
    Task(u64),
    /// It is a thread of a runtime, and polls no task.
    Runtime,
    /// It belongs to a runtime's pool for blocking work, and has no work.
    PoolIdle,
    /// It is not a thread of a runtime.
    Other,
    /// It could not be determined, for this reason.
    Unknown(Reason),
}

/// Returns what a Go thread is doing, given the number of the goroutine that it serves, or 0 if it serves none.
#[inline(always)]
#[must_use]
pub fn go_doing(goid: u64) -> Doing {
    match goid {
        0 => Doing::Runtime,
        // Go counts from 1. It never reaches such a number.
        GO_OTHERS.. => Doing::Unknown(Reason::Overwritten),
        goid => Doing::Task(goid | GO_TASK),
    }
}

/// Returns the id shared by goroutines with the start function at `startpc` for which a table had no room.
#[inline(always)]
#[must_use]
pub fn go_others(startpc: u64) -> u64 {
    match startpc {
        1..GO_OTHERS => GO_OTHERS | startpc,
        _ => OTHER_TASKS,
    }
}

/// Returns the address of the start function for an id of [`go_others`], or `None` for any other id.
#[must_use]
pub fn start_of_go_others(id: u64) -> Option<u64> {
    (id >> GO_OTHERS.trailing_zeros() == 1).then_some(id & !GO_OTHERS)
}

impl Field {
    /// Returns whether the integer lies within one word. An integer that is aligned to its size does.
    #[must_use]
    pub fn is_in_one_word(&self) -> bool {
        u64::from(self.offset % 8) + u64::from(self.size) <= 8
    }

    /// Returns the integer (little-endian). There are no branches: the word that contains the integer is read whatever
    /// its size, at an index that is masked to the array, and the other bits are masked off. So the verifier has a
    /// single path to check.
    #[inline(always)]
    fn load(&self, context: &Context) -> u64 {
        let word = context[(self.offset / 8) as usize & (CONTEXT_WORDS - 1)];
        let value = word >> (8 * (self.offset & 7));
        value & (u64::MAX >> (64_u32.wrapping_sub(8_u32.wrapping_mul(self.size)) & 63))
    }

    #[inline(always)]
    fn is_special(&self, context: &Context) -> bool {
        self.load(context) == self.special
    }
}

impl TokioLayout {
    /// Returns the id in a context, or 0 if there is none. For a worker between polls ([`Doing::Runtime`]) it is the id
    /// of the task that launched the worker.
    #[inline(always)]
    #[must_use]
    pub fn id(&self, context: &Context) -> u64 {
        if self.task_id.is_special(context) {
            return 0;
        }
        let id = Field {
            special: 0,
            offset: self.task_id_offset,
            size: 8,
        };
        id.load(context) | TOKIO_TASK
    }

    /// Returns what a thread with this context is doing. `leader` is whether it is the first thread of its process.
    ///
    /// The rules follow tokio's source (1.42 to 1.54: `runtime/context.rs`, `runtime/task/core.rs`, `task/coop/mod.rs`,
    /// `runtime/scheduler/multi_thread/worker.rs`, `runtime/blocking/`):
    ///
    /// | budget | id | scheduler | runtime | handles | the thread |
    /// |---|---|---|---|---|---|
    /// | set | some | | | | polls that task |
    /// | set | none | | | | polls the future given to `block_on` |
    /// | none | some | null | | | runs a `spawn_blocking` closure |
    /// | none | some | set | not entered | | is in `block_in_place`, within that task |
    /// | none | some | set | entered, no `block_in_place` | | polls that task on a `current_thread` runtime, without a budget |
    /// | none | some | set | entered | more than 2 | is in `block_on` within `block_in_place`, within that task |
    /// | none | some | set | entered | 2 | is a worker between polls: the id is that of the task that launched it |
    /// | none | none | | entered | | is in `block_on`, between polls |
    /// | none | none | null | not entered | 1 | waits for blocking work |
    ///
    /// tokio sets the budget around a poll and not only during it, so the first two rows also match a few instructions
    /// of the runtime itself. The id is then the launch task's, or there is none. A worker in these instructions is
    /// recognised by the id of its launch task, once that is known; a `current_thread` runtime is not recognised.
    /// `docs/SEMANTICS.md` lists the other cases that cannot be distinguished.
    #[inline(always)]
    #[must_use]
    pub fn decode(&self, context: &Context, leader: bool) -> Doing {
        if !self.state.is_special(context) {
            return Doing::Other;
        }
        let in_budget = !self.budget.is_special(context);
        let id = self.id(context);
        let scheduled = !self.scheduler.is_special(context);
        let entered = !self.runtime.is_special(context);
        let depth = self.depth.load(context);
        if id != 0 && (in_budget || !scheduled || !entered || self.block_in_place.is_special(context) || depth > 2) {
            return Doing::Task(id);
        }
        if in_budget {
            return Doing::Task(ROOT_TASK);
        }
        if scheduled || entered {
            return Doing::Runtime;
        }
        // The first thread of a program is never a thread of a pool. If it has a handle, it holds an `enter()` guard.
        if !leader && depth == 1 && !self.handle.is_special(context) {
            return Doing::PoolIdle;
        }
        Doing::Other
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The layout of a context of tokio 1.54, as one compiler chooses it. Any other would do.
    const LAYOUT: TokioLayout = TokioLayout {
        below_tp: 96,
        state: field(1, 72, 1),
        budget: field(0, 64, 1),
        task_id: field(0, 32, 8),
        scheduler: field(0, 40, 8),
        runtime: field(2, 68, 1),
        block_in_place: field(0, 68, 1),
        handle: field(2, 8, 8),
        depth: field(1, 24, 8),
        task_id_offset: 32,
        size: 80,
    };

    const fn field(special: u64, offset: u32, size: u32) -> Field {
        Field { special, offset, size }
    }

    /// A context in which no field is set.
    fn idle() -> [u8; MAX_CONTEXT_BYTES] {
        let mut bytes = [0; MAX_CONTEXT_BYTES];
        bytes[8] = 2;
        bytes[68] = 2;
        bytes[72] = 1;
        bytes
    }

    fn with(changes: &[(usize, u8)]) -> Context {
        let mut bytes = idle();
        for &(at, value) in changes {
            bytes[at] = value;
        }
        bytemuck::cast(bytes)
    }

    const ID: (usize, u8) = (32, 7);
    const IN_BUDGET: (usize, u8) = (64, 1);
    const SCHEDULED: (usize, u8) = (40, 9);
    /// `block_in_place` is allowed.
    const ENTERED: (usize, u8) = (68, 1);
    const ENTERED_ALONE: (usize, u8) = (68, 0);
    const HANDLE: (usize, u8) = (8, 1);

    const fn depth(handles: u8) -> (usize, u8) {
        (24, handles)
    }

    #[test]
    fn every_row_of_the_table() {
        let doing = |changes: &[(usize, u8)]| LAYOUT.decode(&with(changes), false);
        let task = Doing::Task(7 | TOKIO_TASK);
        assert_eq!(doing(&[ID, IN_BUDGET, SCHEDULED, ENTERED, HANDLE, depth(2)]), task);
        assert_eq!(doing(&[IN_BUDGET, ENTERED, HANDLE, depth(1)]), Doing::Task(ROOT_TASK));
        assert_eq!(doing(&[ID, HANDLE, depth(1)]), task, "spawn_blocking");
        assert_eq!(doing(&[ID, SCHEDULED, HANDLE, depth(2)]), task, "block_in_place");
        assert_eq!(
            doing(&[ID, SCHEDULED, ENTERED_ALONE, HANDLE, depth(1)]),
            task,
            "unconstrained"
        );
        let within = [ID, SCHEDULED, ENTERED, HANDLE, depth(3)];
        assert_eq!(doing(&within), task, "block_in_place and block_on");
        assert_eq!(
            doing(&[ID, SCHEDULED, ENTERED, HANDLE, depth(2)]),
            Doing::Runtime,
            "the id is that of its launch task"
        );
        assert_eq!(
            doing(&[ENTERED, HANDLE, depth(1)]),
            Doing::Runtime,
            "block_on between polls"
        );
        assert_eq!(doing(&[SCHEDULED, ENTERED_ALONE, HANDLE, depth(1)]), Doing::Runtime);
        assert_eq!(doing(&[HANDLE, depth(1)]), Doing::PoolIdle);
        assert_eq!(doing(&[HANDLE, depth(2)]), Doing::Other, "block_in_place in a root");
        assert_eq!(doing(&[]), Doing::Other);
        let guarded = with(&[HANDLE, depth(1)]);
        assert_eq!(LAYOUT.decode(&guarded, true), Doing::Other, "an enter() guard");
    }

    #[test]
    fn a_thread_local_that_is_not_alive_says_nothing() {
        for state in [0, 2] {
            let bytes = with(&[ID, IN_BUDGET, SCHEDULED, ENTERED, HANDLE, (72, state)]);
            assert_eq!(LAYOUT.decode(&bytes, false), Doing::Other);
        }
    }

    #[test]
    fn a_field_of_any_size_is_read_whole_and_no_further() {
        let mut bytes = [0xff_u8; MAX_CONTEXT_BYTES];
        bytes[104..112].copy_from_slice(&[1, 2, 3, 4, 5, 6, 7, 8]);
        for (offset, size, value) in [
            (104, 1, 0x01),
            (105, 1, 0x02),
            (106, 2, 0x0403),
            (108, 4, 0x0807_0605),
            (104, 8, 0x0807_0605_0403_0201),
        ] {
            let field = field(0, offset, size);
            assert!(field.is_in_one_word());
            assert_eq!(field.load(&bytemuck::cast(bytes)), value);
        }
        assert!(!field(0, 100, 8).is_in_one_word());
    }

    #[test]
    fn a_hostile_layout_reads_something_and_nothing_outside() {
        let layout = TokioLayout {
            task_id_offset: u32::MAX,
            ..LAYOUT
        };
        let wild = Field {
            special: 1,
            offset: u32::MAX,
            size: u32::MAX / 8,
        };
        for layout in [
            layout,
            TokioLayout {
                state: wild,
                budget: wild,
                ..LAYOUT
            },
        ] {
            let _ = layout.decode(&with(&[ID, IN_BUDGET]), false);
        }
    }

    #[test]
    fn every_reason_has_its_number_back() {
        for number in 0..=13 {
            assert_eq!(Reason::from_number(number) as u32, number);
        }
        assert_eq!(Reason::from_number(14), Reason::None);
    }

    #[test]
    fn a_goroutines_number_stays_visible() {
        assert_eq!(go_doing(0), Doing::Runtime);
        assert_eq!(go_doing(1), Doing::Task(GO_TASK | 1));
        for wild in [GO_OTHERS, GO_TASK, u64::MAX] {
            assert_eq!(go_doing(wild), Doing::Unknown(Reason::Overwritten), "{wild:#x}");
        }
    }

    #[test]
    fn goroutines_without_a_place_go_by_the_function_they_were_started_with() {
        let id = go_others(0x48_1234);
        assert_eq!(start_of_go_others(id), Some(0x48_1234));
        for none in [0, GO_OTHERS, u64::MAX] {
            assert_eq!(go_others(none), OTHER_TASKS, "{none:#x}");
        }
        for other in [17, 17 | GO_TASK, 17 | TOKIO_TASK, ROOT_TASK, OTHER_TASKS] {
            assert_eq!(start_of_go_others(other), None, "{other:#x}");
        }
    }
}
