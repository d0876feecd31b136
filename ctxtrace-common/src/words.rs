//! Loads and stores of one word, as they are written.
//!
//! Of stores of zero that lie side by side, and of copies, LLVM makes one `memset` or `memmove`. For a processor that is the quickest
//! way. For BPF it is a call of a loop that goes from byte to byte: it takes longer than all the rest of what a waking costs, and
//! another CPU that stores a word meanwhile finds half of it gone. What several CPUs change, and what is changed at each switch, is
//! therefore stored with these.

/// Stores a value of at most one word at one go.
#[inline(always)]
pub fn store<T: Copy>(place: &mut T, value: T) {
    const { assert!(size_of::<T>() <= 8) };
    // SAFETY: a valid reference.
    unsafe { core::ptr::from_mut(place).write_volatile(value) }
}

/// Loads a value of at most one word at one go.
#[inline(always)]
pub fn load<T: Copy>(place: &T) -> T {
    const { assert!(size_of::<T>() <= 8) };
    // SAFETY: a valid reference.
    unsafe { core::ptr::from_ref(place).read_volatile() }
}
