//! Loads and stores of one word that LLVM neither merges nor splits.
//!
//! LLVM turns adjacent stores of zeroes, and copies, into one `memset` or `memmove`. On a processor that is the fastest
//! way. On BPF it is a call of a function that loops over single bytes: it takes longer than all other work of a
//! wakeup, and another CPU that stores a word at the same time finds half of its word overwritten. So fields that
//! several CPUs change, and fields that change at each switch, are stored with these functions.

/// Stores a value of at most one word with one store.
#[inline(always)]
pub fn store<T: Copy>(place: &mut T, value: T) {
    const { assert!(size_of::<T>() <= 8) };
    // SAFETY: `place` is a valid reference.
    unsafe { core::ptr::from_mut(place).write_volatile(value) }
}

/// Loads a value of at most one word with one load.
#[inline(always)]
pub fn load<T: Copy>(place: &T) -> T {
    const { assert!(size_of::<T>() <= 8) };
    // SAFETY: `place` is a valid reference.
    unsafe { core::ptr::from_ref(place).read_volatile() }
}
