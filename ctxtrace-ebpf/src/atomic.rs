//! Atomic addition to map values that several CPUs change.
//!
//! BPF has always had the instruction (`BPF_XADD`), but rustc declares the target to have no atomic read-modify-write
//! operations, so `AtomicU64::fetch_add` does not exist there. The form without a result is used because every kernel
//! has it; `BPF_FETCH` came with Linux 5.12.

/// Adds to a `u64` atomically.
///
/// # Safety
///
/// `value` must be aligned and valid for reads and writes, and must be changed only atomically while others can see it.
#[inline(always)]
pub(crate) unsafe fn add(value: *mut u64, n: u64) {
    // SAFETY: one locked addition to memory for which the caller guarantees the above.
    unsafe {
        core::arch::asm!(
            "lock *(u64 *)({value} + 0) += {n}",
            value = in(reg) value,
            n = in(reg) n,
            options(nostack),
        );
    }
}
