//! Pure functions over a capture: no input, no output, no clock.
//!
//! * [`reconcile`]: traced switches against the kernel's own count.
//! * [`lanes`]: the timeline made small enough to be drawn.
//! * [`ledger`]: every kernel switch in its class.
//! * [`slices`]: which task a thread polled from when to when.
//! * [`tasks`]: the tasks by name, and their switches.
//! * [`timeline`]: the events, added up again.
//! * [`wakes`]: which waking brought a thread onto its CPU.
//! * [`wakeups`]: who woke whom.

pub mod budget;
pub mod intervals;
pub mod lanes;
pub mod ledger;
pub mod reconcile;
pub mod slices;
pub mod tasks;
pub mod timeline;
pub mod wakes;
pub mod wakeups;
