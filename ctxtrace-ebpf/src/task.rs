//! Reading the kernel's `task_struct`.
//!
//! A `tp_btf` argument is a pointer whose type the verifier knows, and a load through it at a constant offset that lies in
//! a field is checked at load time and done as one plain instruction. The offsets come from the running kernel's BTF: the
//! loader overrides the constants below before the verifier sees them. That is portability across kernels without CO-RE
//! relocations, which rustc cannot emit.

use aya_ebpf::Global;
use ctxtrace_common::thread::KernelCount;

macro_rules! offsets {
    ($($(#[$doc:meta])* $name:ident),* $(,)?) => {
        $($(#[$doc])* #[unsafe(no_mangle)] static $name: Global<u32> = Global::new(0);)*
    };
}

offsets! {
    /// Offset of `task_struct.pid`.
    OFFSET_PID,
    /// Offset of `task_struct.tgid`.
    OFFSET_TGID,
    /// Offset of `task_struct.__state` (`state` before Linux 5.14).
    OFFSET_STATE,
    /// Offset of `task_struct.nvcsw`.
    OFFSET_NVCSW,
    /// Offset of `task_struct.nivcsw`.
    OFFSET_NIVCSW,
    /// Offset of `task_struct.comm`.
    OFFSET_COMM,
    /// Offset of `task_struct.start_boottime`.
    OFFSET_START_BOOTTIME,
    /// Offset of `task_struct.group_leader`.
    OFFSET_GROUP_LEADER,
}

/// `TASK_DEAD`, set for the very last switch of a thread (kernel: `include/linux/sched.h`, `do_task_dead()`). The value has
/// been 0x80 since Linux 4.14; being a macro it is not in BTF.
pub(crate) const TASK_DEAD: u32 = 0x80;

/// A pointer to a `task_struct` that came out of a `tp_btf` argument.
#[derive(Clone, Copy)]
pub(crate) struct Task(*const u8);

impl Task {
    pub(crate) fn from_arg(pointer: *const u8) -> Self {
        Self(pointer)
    }

    /// Key of the thread table.
    #[inline(always)]
    pub(crate) fn address(self) -> u64 {
        self.0 as u64
    }

    #[inline(always)]
    fn load<T: Copy>(self, offset: &Global<u32>) -> T {
        // SAFETY: the verifier checks that the offset lies within a field of `task_struct` of this size, and refuses the
        // program otherwise. Should the task be gone, the kernel's fault handler makes the load yield 0.
        unsafe { *self.0.add(offset.load() as usize).cast::<T>() }
    }

    #[inline(always)]
    pub(crate) fn tid(self) -> u32 {
        self.load(&OFFSET_PID)
    }

    #[inline(always)]
    pub(crate) fn tgid(self) -> u32 {
        self.load(&OFFSET_TGID)
    }

    #[inline(always)]
    pub(crate) fn state(self) -> u32 {
        self.load(&OFFSET_STATE)
    }

    #[inline(always)]
    pub(crate) fn kernel_count(self) -> KernelCount {
        KernelCount {
            voluntary: self.load(&OFFSET_NVCSW),
            involuntary: self.load(&OFFSET_NIVCSW),
        }
    }

    #[inline(always)]
    pub(crate) fn comm(self) -> [u8; 16] {
        // SAFETY: as in `load`, for the two halves of `char comm[16]`; byte loads because nothing promises alignment.
        let comm = unsafe { self.0.add(OFFSET_COMM.load() as usize) };
        let mut copy = [0; 16];
        let mut index = 0;
        while index < 16 {
            // SAFETY: as above; `index` is within `comm`.
            copy[index] = unsafe { *comm.add(index) };
            index += 1;
        }
        copy
    }

    #[inline(always)]
    pub(crate) fn start_boottime_ns(self) -> u64 {
        self.load(&OFFSET_START_BOOTTIME)
    }

    #[inline(always)]
    pub(crate) fn group_leader(self) -> Self {
        Self(self.load(&OFFSET_GROUP_LEADER))
    }
}
