//! Reads the kernel's `task_struct`.
//!
//! A `tp_btf` argument is a pointer whose type the verifier knows. A load through it at a constant offset within a
//! field is checked at load time, and executed as one plain instruction. The offsets come from the running kernel's
//! BTF: the loader sets the constants below before the verifier sees them. This replaces CO-RE relocations, which rustc
//! cannot emit, and works on every kernel in the same way.

use aya_ebpf::Global;
use aya_ebpf::helpers::{bpf_probe_read_kernel, bpf_task_pt_regs};
use ctxtrace_common::ledger::{JOBCTL_TRAP_FREEZE, STATE_FROZEN, Syscall};
use ctxtrace_common::thread::KernelCount;

use crate::maps::HAS_TASK_PT_REGS;

/// Defines load-time constants for the offsets of fields in the kernel's structures.
macro_rules! offsets {
    ($($(#[$doc:meta])* $name:ident),* $(,)?) => {
        $($(#[$doc])* #[unsafe(no_mangle)] pub(crate) static $name: Global<u32> = Global::new(0);)*
    };
}
pub(crate) use offsets;

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
    /// Offset of `task_struct.mm`.
    OFFSET_MM,
    /// Offset of `task_struct.flags`.
    OFFSET_FLAGS,
    /// Offset of `task_struct.thread.fsbase`.
    OFFSET_FSBASE,
    /// Offset of `task_struct.thread_info.status`.
    OFFSET_THREAD_STATUS,
    /// Offset of `pt_regs.orig_ax`.
    OFFSET_ORIG_AX,
    /// Offset of `pt_regs.cs`.
    OFFSET_CS,
    /// Offset of `pt_regs.ip`.
    OFFSET_IP,
    /// Offset of `pt_regs.bp`.
    OFFSET_BP,
    /// Size of `pt_regs`.
    SIZE_OF_PT_REGS,
    /// Offset of `task_struct.stack`.
    OFFSET_STACK,
    /// Offset of `task_struct.throttled`, a `bool` (since Linux 6.18).
    OFFSET_THROTTLED,
    /// 1 if the kernel has that field, otherwise 0.
    HAS_THROTTLED,
    /// Offset of `task_struct.jobctl`.
    OFFSET_JOBCTL,
    /// Offset of the byte that contains the bit `task_struct.frozen`, which is set while the freezer of cgroup v2 has
    /// stopped the thread.
    OFFSET_FROZEN,
    /// The mask of that bit in its byte; 0 if there is no such field.
    FROZEN_BIT,
    /// `PF_FROZEN` of `task_struct.flags`, which before Linux 6.1 is set while the freezer of cgroup v1 has stopped the
    /// thread; 0 since Linux 6.1.
    FROZEN_FLAG,
}

/// `TASK_DEAD`, which is set for the very last switch of a thread (kernel: `include/linux/sched.h`, `do_task_dead()`).
/// It is a macro, so it is not in BTF. The value has been 0x80 since Linux 4.14.
pub(crate) const TASK_DEAD: u32 = 0x80;

/// `PF_KTHREAD | PF_USER_WORKER | PF_IO_WORKER` (kernel: `include/linux/sched.h`). Such a thread never runs in user
/// space, and its `fsbase` is its creator's.
const KERNEL_WORKER_FLAGS: u32 = 0x0020_0000 | 0x4000 | 0x10;

/// `TS_COMPAT` (kernel: `arch/x86/include/asm/thread_info.h`): the thread is in a 32-bit system call.
const TS_COMPAT: u32 = 0x2;

/// A pointer to a `task_struct` whose type the verifier knows: a `tp_btf` argument, or `current`.
#[derive(Clone, Copy)]
pub(crate) struct Task(*const u8);

impl Task {
    pub(crate) fn from_arg(pointer: *const u8) -> Self {
        Self(pointer)
    }

    /// Returns the key of the thread table.
    #[inline(always)]
    pub(crate) fn address(self) -> u64 {
        self.0 as u64
    }

    #[inline(always)]
    fn load<T: Copy>(self, offset: &Global<u32>) -> T {
        // SAFETY: the verifier checks that the offset lies within a field of `task_struct` of this size, and rejects
        // the program otherwise. If the memory is gone, the kernel's fault handler makes the load return 0.
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
        // SAFETY: as in `load`, for `char comm[16]`.
        let comm = unsafe { self.0.add(OFFSET_COMM.load() as usize) };
        if OFFSET_COMM.load() & 7 == 0 {
            let words = comm.cast::<u64>();
            // SAFETY: as above. A `task_struct` is aligned to a word. The loads are volatile, because the compiler
            // would otherwise copy byte by byte: see `ctxtrace_common::words`.
            return bytemuck::cast(unsafe { [words.read_volatile(), words.add(1).read_volatile()] });
        }
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

    /// Returns whether the kernel created the thread to work for its process. Such a thread has no thread-local
    /// variables of its own.
    #[inline(always)]
    pub(crate) fn is_kernel_worker(self) -> bool {
        let flags: u32 = self.load(&OFFSET_FLAGS);
        flags & KERNEL_WORKER_FLAGS != 0
    }

    /// Returns whether the CPU quota of its cgroup keeps the thread off its CPU, on kernels that report this for a
    /// thread; otherwise false.
    #[inline(always)]
    pub(crate) fn is_throttled(self) -> bool {
        HAS_THROTTLED.load() != 0 && self.load::<u8>(&OFFSET_THROTTLED) != 0
    }

    /// Returns whether the thread, which goes to sleep in this state, does so because its cgroup is frozen.
    #[inline(always)]
    pub(crate) fn is_frozen(self, state: u32) -> bool {
        if state & STATE_FROZEN != 0 {
            return true;
        }
        if FROZEN_FLAG.load() != 0 && self.load::<u32>(&OFFSET_FLAGS) & FROZEN_FLAG.load() != 0 {
            return true;
        }
        FROZEN_BIT.load() != 0
            && self.load::<u64>(&OFFSET_JOBCTL) & JOBCTL_TRAP_FREEZE != 0
            && u32::from(self.load::<u8>(&OFFSET_FROZEN)) & FROZEN_BIT.load() != 0
    }

    /// Returns the identity of the thread's user memory, or 0 if it has none any more.
    #[inline(always)]
    pub(crate) fn memory(self) -> u64 {
        self.load(&OFFSET_MM)
    }

    /// Returns the thread pointer, as it was saved when the thread was last switched out or set it through the kernel;
    /// 0 if it has none.
    ///
    /// A program can also write the register without the kernel (`wrfsbase`). Programs do not do so on a thread whose
    /// thread-local variables are in use.
    #[inline(always)]
    pub(crate) fn thread_pointer(self) -> u64 {
        self.load(&OFFSET_FSBASE)
    }

    /// Returns the system call that the thread is in, by the number that was saved on its entry into the kernel.
    ///
    /// Interrupts and exceptions save -1 there (kernel: `arch/x86/entry/entry_64.S`).
    #[inline(always)]
    pub(crate) fn syscall(self) -> Syscall {
        let number: i64 = if HAS_TASK_PT_REGS.load() != 0 {
            // SAFETY: the helper takes a task that came from a `tp_btf` argument.
            let registers = unsafe { bpf_task_pt_regs(self.0.cast_mut().cast()) } as *const u8;
            // SAFETY: as in `load`, for a field of `struct pt_regs`, whose type the verifier knows from the helper.
            unsafe { *registers.add(OFFSET_ORIG_AX.load() as usize).cast() }
        } else {
            self.saved_syscall()
        };
        let status: u32 = self.load(&OFFSET_THREAD_STATUS);
        Syscall::from_number(number, status & TS_COMPAT != 0)
    }

    /// Returns the user-mode instruction pointer and frame pointer, which were saved on the way into the kernel.
    /// Returns `None` for a 32-bit program, whose frames have another size.
    #[inline(always)]
    pub(crate) fn user_registers(self) -> Option<(u64, u64)> {
        let (cs, ip, bp): (u64, u64, u64) = if HAS_TASK_PT_REGS.load() != 0 {
            // SAFETY: as in `syscall`.
            let registers = unsafe { bpf_task_pt_regs(self.0.cast_mut().cast()) } as *const u8;
            // SAFETY: as in `load`, for fields of `struct pt_regs`.
            let field = |offset: &Global<u32>| unsafe { *registers.add(offset.load() as usize).cast::<u64>() };
            (field(&OFFSET_CS), field(&OFFSET_IP), field(&OFFSET_BP))
        } else {
            let registers = self.stack_end().wrapping_sub(u64::from(SIZE_OF_PT_REGS.load()));
            let field = |offset: &Global<u32>| {
                let field = registers.wrapping_add(u64::from(offset.load())) as *const u64;
                // SAFETY: a failed read returns an error.
                unsafe { bpf_probe_read_kernel(field) }.unwrap_or(0)
            };
            (field(&OFFSET_CS), field(&OFFSET_IP), field(&OFFSET_BP))
        };
        (cs & 0xffff == USER_CODE).then_some((ip, bp))
    }

    /// Returns the end of the thread's kernel stack, which grows towards lower addresses.
    #[inline(always)]
    pub(crate) fn stack_end(self) -> u64 {
        let stack: u64 = self.load(&OFFSET_STACK);
        stack.wrapping_add(KERNEL_STACK_BYTES)
    }

    /// Returns the same number on kernels without a helper that finds the saved registers. They are at the very end of
    /// the thread's kernel stack. Returns -1 if they were not saved in user mode.
    #[inline(always)]
    fn saved_syscall(self) -> i64 {
        let registers = self.stack_end().wrapping_sub(u64::from(SIZE_OF_PT_REGS.load()));
        let field = |offset: &Global<u32>| registers.wrapping_add(u64::from(offset.load()));
        // SAFETY: failed reads return an error.
        unsafe {
            let (Ok(cs), Ok(number)) = (
                bpf_probe_read_kernel(field(&OFFSET_CS) as *const u64),
                bpf_probe_read_kernel(field(&OFFSET_ORIG_AX) as *const i64),
            ) else {
                return -1;
            };
            if cs & USER_MODE == USER_MODE { number } else { -1 }
        }
    }
}

/// `THREAD_SIZE` (kernel: `arch/x86/include/asm/page_64_types.h`): the size of a kernel stack since Linux 3.15. A
/// kernel built with KASAN has larger stacks, which the check of the saved code segment detects.
const KERNEL_STACK_BYTES: u64 = 16 << 10;

/// `__USER_CS` (kernel: `arch/x86/include/asm/segment.h`): the code segment of 64-bit programs.
const USER_CODE: u64 = 0x33;

/// The bits of `cs` that are set in user mode.
const USER_MODE: u64 = 3;

/// Returns the thread pointer of a task of which only the untyped address is known, such as the helper for `current`
/// returns it.
#[inline(always)]
pub(crate) fn thread_pointer_of(task: u64) -> u64 {
    let field = task.wrapping_add(u64::from(OFFSET_FSBASE.load())) as *const u64;
    // SAFETY: a failed read returns an error.
    unsafe { bpf_probe_read_kernel(field) }.unwrap_or(0)
}
