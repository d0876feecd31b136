//! Access to array elements whose index the compiler can prove to be in bounds and the kernel's verifier cannot.
//!
//! If rustc can prove that an index is in bounds, it omits the comparison. The verifier must then find the proof
//! itself. Before about Linux 5.15, it loses the bounds in a chain of shifts, and rejects the program. So [`element`]
//! hides the index from the compiler, and the comparison stays.
//!
//! The index is also masked. On a path that cannot be taken at run time, the verifier may hold contradictory bounds (at
//! least 16, at most 15), which a comparison does not correct. A mask gives it a valid range again.

/// Returns the element at `index`. The index must be below `N`.
#[inline(always)]
pub(crate) fn element<const N: usize>(values: &mut [u64; N], index: usize) -> Option<&mut u64> {
    let mask = const { N.next_power_of_two() - 1 };
    values.get_mut(unproven(index) & mask)
}

/// Returns the same number, about which the compiler then knows nothing.
#[cfg(target_arch = "bpf")]
#[inline(always)]
fn unproven(mut index: usize) -> usize {
    // An instruction without effect. Without any instruction, two entries of the line information would refer to the
    // same offset in the program, which the kernel rejects.
    // SAFETY: the instruction moves a register to itself.
    unsafe { core::arch::asm!("{0} = {0}", inout(reg) index, options(pure, nomem, nostack)) };
    index
}

/// Returns the same number. Outside the kernel there is no verifier.
#[cfg(not(target_arch = "bpf"))]
#[inline(always)]
fn unproven(index: usize) -> usize {
    index
}
