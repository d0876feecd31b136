//! Lets aya copy the shared types from and to maps.

/// A shared type in the form that aya requires.
///
/// aya requires its own marker trait for everything that it copies between user space and a map, but the crate of the shared
/// types does not depend on aya. `bytemuck::Pod` guarantees more than that trait requires.
#[derive(Clone, Copy)]
#[repr(transparent)]
pub(super) struct Wire<T>(pub(super) T);

// SAFETY: `aya::Pod` requires a type that can be created from, and read as, any bytes. `bytemuck::Pod` guarantees this, and
// `repr(transparent)` gives the wrapper the same layout.
unsafe impl<T: bytemuck::Pod> aya::Pod for Wire<T> {}
