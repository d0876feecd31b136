//! Pure functions over a capture: no input, no output, no clock.

pub mod reconcile;
