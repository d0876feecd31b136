//! Where a program keeps what it is doing: how the current task of a thread is read, without the program's help.
//!
//! At a kernel switch the thread that leaves is still `current`, its memory is still mapped, and its thread pointer is
//! known (`task_struct.thread.fsbase`). A thread-local of the main executable lies at a fixed distance below the thread
//! pointer (x86-64 is a variant II architecture: Drepper, *ELF Handling For Thread-Local Storage*, section 3.4.6), so one
//! bounded read brings it home. User space finds the distances in the executable ([`Locator`]); the kernel side reads and
//! decodes ([`TokioLayout::decode`]), with the same code that the tests run without a kernel.

use bytemuck::{Pod, Zeroable};

/// Most bytes read of tokio's thread-local.
pub const MAX_CONTEXT_BYTES: usize = 8 * CONTEXT_WORDS;
/// The same in words; a power of two.
const CONTEXT_WORDS: usize = 64;

/// What is read of tokio's thread-local.
pub type Context = [u64; CONTEXT_WORDS];

/// [`Locator::flags`]: the program has a probe.
pub const HAS_PROBE: u32 = 1;
/// [`Locator::flags`]: the program has tokio, and the layout of its thread-local is known.
pub const HAS_TOKIO: u32 = 2;

/// [`Locator::flags`]: the program is Go's, and it is known where its goroutines are.
pub const HAS_GO: u32 = 4;

/// The id of the future given to `block_on`, which tokio gives none.
pub const ROOT_TASK: u64 = u64::MAX - 1;
/// The id that tasks share for which there was no room in a table.
pub const OTHER_TASKS: u64 = u64::MAX;
/// Set in the ids that tokio has given, to tell them from the probe's.
pub const TOKIO_TASK: u64 = 1 << 61;
/// Set in the ids that Go has given to its goroutines.
pub const GO_TASK: u64 = 1 << 60;
/// Set in the ids that goroutines share for which there was no room in a table, by the function they were started with:
/// below it is that function's address. No program's address reaches as far as [`GO_OTHERS`] itself.
pub const GO_OTHERS: u64 = 1 << 59;

/// An integer inside tokio's thread-local, and the value of it that has a meaning.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Pod, Zeroable)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub struct Field {
    /// The value looked for: the discriminant of `None`, of `NotEntered`, of a null pointer.
    pub special: u64,
    /// Offset in bytes from the beginning of the thread-local.
    pub offset: u32,
    /// Size in bytes: 1, 2, 4 or 8.
    pub size: u32,
}

/// Where tokio's thread-local `CONTEXT` lies, and what in it tells what the thread is doing.
///
/// It is `tokio::runtime::context::CONTEXT`, a `std` thread-local with a destructor, so the structure `Context` is
/// preceded or followed by a byte that says whether it is alive. The layout is the compiler's choice, hence from DWARF.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Pod, Zeroable)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub struct TokioLayout {
    /// Distance from the thread-local up to the thread pointer, bytes.
    pub below_tp: u64,
    /// State of the thread-local; special: alive.
    pub state: Field,
    /// `Context.budget`, an `Option<u8>`; special: `None`, which is no poll within a budget.
    pub budget: Field,
    /// `Context.current_task_id`; special: `None`.
    pub task_id: Field,
    /// `Context.scheduler`, a pointer; special: null.
    pub scheduler: Field,
    /// `Context.runtime`; special: `NotEntered`.
    pub runtime: Field,
    /// `EnterRuntime::Entered.allow_block_in_place`; special: false, as on a `current_thread` runtime.
    pub block_in_place: Field,
    /// `Context.current`'s handle; special: `None`.
    pub handle: Field,
    /// `Context.current.depth`: how many handles are entered, one in another; special: 1.
    pub depth: Field,
    /// Offset of the id itself where there is one, 8 bytes.
    pub task_id_offset: u32,
    /// Size of the thread-local in bytes, at most [`MAX_CONTEXT_BYTES`].
    pub size: u32,
}

/// Where Go keeps the goroutine that a thread runs.
///
/// Each thread has a thread-local `g`: the goroutine whose stack it is on. A thread (an *M*) has a goroutine of its own for
/// the runtime's work, `g0`, and one for signals, `gsignal`; both have the number 0, and lead through their M to the
/// goroutine that is served meanwhile.
#[repr(C)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Pod, Zeroable)]
pub struct GoLayout {
    /// Distance from the thread-local up to the thread pointer, bytes.
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

/// Places for locators, the first of which is not used: so many layouts can be told apart at a time, less one.
pub const MAX_LOCATORS: u32 = 1_024;

/// How the tasks of one executable are found; made by user space, used by the kernel side.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Pod, Zeroable)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub struct Locator {
    /// Distance from the probe's thread-local up to the thread pointer, bytes; with [`HAS_PROBE`].
    pub probe_below_tp: u64,
    /// With [`HAS_TOKIO`].
    pub tokio: TokioLayout,
    /// With [`HAS_GO`].
    pub go: GoLayout,
    /// [`HAS_PROBE`], [`HAS_TOKIO`], [`HAS_GO`].
    pub flags: u32,
    /// A [`Reason`] if the program has tasks that cannot be found; [`Reason::None`] otherwise.
    pub reason: u32,
}

const _: () = assert!(size_of::<Locator>() == 8 + 8 + 8 * 16 + 8 + 24 + 8);

/// Why the task of a thread is not known.
#[repr(u8)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Reason {
    /// It is known, or there is none to know.
    None = 0,
    /// The thread's memory could not be read (`lost.task_reads`).
    ReadFailed = 1,
    /// The process had executed a program that nobody had looked at yet.
    NotExamined = 2,
    /// The program has tokio inside, and no symbol table.
    Stripped = 3,
    /// The program has tokio inside, and no type information about it.
    NoTypeInfo = 4,
    /// The program has tokio inside, with types that are not laid out as any known release's.
    UnknownLayout = 5,
    /// tokio, or Go, is in a shared object, whose thread-locals lie at no fixed place.
    SharedObject = 6,
    /// The program is not for x86-64.
    NotX86_64 = 7,
    /// The slot or the context holds what cannot be: the program wrote over it.
    Overwritten = 8,
    /// The executable could not be read.
    Unreadable = 9,
    /// The program is Go's, has no types, and is of a version whose layout nobody has looked at.
    GoVersion = 10,
    /// The program is Go's, linked by the C linker, and has no symbols: where `g` lies is not in it.
    GoStripped = 11,
    /// The program is Go's, and its types, or its thread-locals, are not as in any known version.
    GoUnknownLayout = 12,
    /// The executable was replaced or deleted before it could be opened.
    Replaced = 13,
}

impl Reason {
    /// The reason of this number; [`Reason::None`] for what is no reason's.
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
    /// It polls the task of this id.
    Task(u64),
    /// It is a runtime's thread, and polls nothing.
    Runtime,
    /// It belongs to a runtime's pool for blocking work, and has none.
    PoolIdle,
    /// It is no runtime's.
    Other,
    /// Not to be known.
    Unknown(Reason),
}

/// What a thread of Go's is doing, given the number of the goroutine it serves, and 0 if it serves none.
#[inline(always)]
#[must_use]
pub fn go_doing(goid: u64) -> Doing {
    match goid {
        0 => Doing::Runtime,
        // Go counts up from 1: what has come this far is no number of Go's.
        GO_OTHERS.. => Doing::Unknown(Reason::Overwritten),
        goid => Doing::Task(goid | GO_TASK),
    }
}

/// The id of goroutines that were started with the function at `startpc`, and have no room in a table.
#[inline(always)]
#[must_use]
pub fn go_others(startpc: u64) -> u64 {
    match startpc {
        1..GO_OTHERS => GO_OTHERS | startpc,
        _ => OTHER_TASKS,
    }
}

/// The address of the function that an id of [`go_others`] stands for; `None` of another id.
#[must_use]
pub fn start_of_go_others(id: u64) -> Option<u64> {
    (id >> GO_OTHERS.trailing_zeros() == 1).then_some(id & !GO_OTHERS)
}

impl Field {
    /// Whether the integer lies within one word, as one that is aligned to its size does.
    #[must_use]
    pub fn is_in_one_word(&self) -> bool {
        u64::from(self.offset % 8) + u64::from(self.size) <= 8
    }

    /// The integer, little-endian. No branch: the word it lies in is read whatever the size, at an index that is masked into the
    /// array, and what is too much is cut off; so the verifier sees one path.
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
    /// The id in a context, or 0 if there is none. Of a worker between polls ([`Doing::Runtime`]) it is that of the task that
    /// launched it.
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

    /// What a thread with this context is doing. `leader`: it is its process's first thread.
    ///
    /// From tokio's source (1.42 to 1.54: `runtime/context.rs`, `runtime/task/core.rs`, `task/coop/mod.rs`,
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
    /// The budget is set around a poll, not only in it, so the first two rows also fit a few instructions of the runtime's own:
    /// then the id is the launch task's, or none. A worker is told by its launch task, once that is known; a `current_thread`
    /// runtime is not. What else cannot be told apart is in `docs/SEMANTICS.md`.
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
        // The first thread of a program is nobody's pool thread: it has a handle because it holds an `enter()` guard.
        if !leader && depth == 1 && !self.handle.is_special(context) {
            return Doing::PoolIdle;
        }
        Doing::Other
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A context as tokio 1.54 lays it out with one compiler; any other serves as well.
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

    /// A context in which nothing is set.
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
    /// With `block_in_place` allowed.
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
            "its launch task"
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
