//! Whether two cases differ, by how much, and what share of the difference a change removes, determined from few runs on a noisy
//! machine.
//!
//! * [`signed_rank`]: intervals from paired runs, without the assumption that times are normally distributed.
//! * [`estimate`]: a figure with its interval.
//! * [`groups`]: whether runs fall into two groups, so that one figure would describe no run.
//! * [`family`]: intervals that hold simultaneously, however many there are.
//!
//! All functions are deterministic: the same runs give the same figures.

pub mod estimate;
pub mod family;
pub mod groups;
pub mod signed_rank;
