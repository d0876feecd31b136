//! Pure functions over a capture: no input, no output, no clock.
//!
//! * [`reconcile`]: traced switches against the kernel's own count.
//! * [`ledger`]: every kernel switch in its class.
//! * [`polls`]: polls and wakes put together with the events.
//! * [`tasks`]: the tasks by name, and their switches.
//! * [`timeline`]: the events, added up again.
//! * [`wakeups`]: who woke whom.

pub mod budget;
pub mod intervals;
pub mod ledger;
pub mod polls;
pub mod reconcile;
pub mod tasks;
pub mod timeline;
pub mod wakeups;
