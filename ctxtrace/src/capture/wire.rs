//! Lets aya copy the shared types in and out of maps.

/// A shared type as aya wants it.
///
/// aya asks for its own marker trait on whatever it copies between user space and a map; the shared types live in a crate
/// that does not know aya. `bytemuck::Pod` promises more than that trait asks for.
#[derive(Clone, Copy)]
#[repr(transparent)]
pub(super) struct Wire<T>(pub(super) T);

// SAFETY: `aya::Pod` wants a type that can be made from, and read as, any bytes: what `bytemuck::Pod` stands for, and
// `repr(transparent)` hands on.
unsafe impl<T: bytemuck::Pod> aya::Pod for Wire<T> {}
