//! Are two cases different, by how much, and what share of it does a change take away? From few runs on a noisy machine.
//!
//! * [`order`]: who runs when: all that are compared once in every block, in random order, so that a machine that is slow for
//!   a while is slow for all of them.
//! * [`signed_rank`]: what the pairs of a block say, without the assumption that times are normally distributed.
//! * [`estimate`]: a figure with its interval.
//! * [`groups`]: whether runs fall into two groups, so that one figure would be nobody's.
//! * [`family`]: intervals that hold all at once, however many there are.
//!
//! All of it is deterministic: the same runs give the same figures.

pub mod estimate;
pub mod family;
pub mod groups;
pub mod order;
pub mod signed_rank;
