//! Elements of arrays whose index the compiler knows to be within bounds, and the kernel's verifier does not.
//!
//! Where rustc can prove an index it leaves the comparison out. The verifier then has to find the proof itself, and before
//! Linux 5.15 or so it loses it in a chain of shifts: the program is refused. So the compiler is made to forget, and the
//! comparison stays.
//!
//! The index is masked besides. A verifier that has followed a branch nobody can take holds bounds that contradict each other
//! (at least 16, at most 15), and no comparison mends them; what is left of a mask is a range again.

/// The element at `index`, which is below `N`.
#[inline(always)]
pub(crate) fn element<const N: usize>(values: &mut [u64; N], index: usize) -> Option<&mut u64> {
    let mask = const { N.next_power_of_two() - 1 };
    values.get_mut(unproven(index) & mask)
}

/// The same number, of which the compiler knows nothing.
#[cfg(target_arch = "bpf")]
#[inline(always)]
fn unproven(mut index: usize) -> usize {
    // An instruction that does nothing; with none at all the table of line numbers has two entries for the same place, which
    // the kernel refuses.
    // SAFETY: it moves a register to itself.
    unsafe { core::arch::asm!("{0} = {0}", inout(reg) index, options(pure, nomem, nostack)) };
    index
}

/// The same number; elsewhere than in the kernel there is nobody to convince.
#[cfg(not(target_arch = "bpf"))]
#[inline(always)]
fn unproven(index: usize) -> usize {
    index
}
