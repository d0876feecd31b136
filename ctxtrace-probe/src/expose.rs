//! Keeps memory that only ctxtrace reads from being optimised away.

/// Passes an address to code that is opaque to the compiler, which must then assume that stores to this memory are
/// read.
///
/// Without this, an optimiser that sees the whole program could find that they are never read, and remove them.
#[inline(always)]
pub(crate) fn expose<T>(memory: *mut T) {
    // ctxtrace reads only programs for x86-64, and Miri does not support inline assembly.
    #[cfg(all(target_arch = "x86_64", not(miri)))]
    // SAFETY: the assembly contains no instruction.
    unsafe {
        std::arch::asm!("/* {0} */", in(reg) memory, options(nostack, preserves_flags));
    }
    #[cfg(not(all(target_arch = "x86_64", not(miri))))]
    std::hint::black_box(memory);
}
