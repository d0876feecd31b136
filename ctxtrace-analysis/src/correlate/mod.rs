//! Pure functions over a capture, without input, output or clock.
//!
//! * [`budget`]: the time of all threads in a window, by state.
//! * [`intervals`]: the intervals of each thread: on a CPU, in a run queue, asleep.
//! * [`lanes`]: the timeline, reduced to a size that can be drawn.
//! * [`ledger`]: every kernel switch in its class.
//! * [`polls`]: polls and wakes, combined with the events.
//! * [`reconcile`]: the comparison of traced switches with the kernel's own counts.
//! * [`slices`]: the periods in which a thread polled a task.
//! * [`tasks`]: the tasks by name, and their switches.
//! * [`timeline`]: the replay of the events, and the comparison of its sums with those of the kernel side.
//! * [`wakes`]: the wakeup that led to each switch-in.
//! * [`wakeups`]: the wakeups by the names of waker and woken thread.

pub mod budget;
pub mod intervals;
pub mod lanes;
pub mod ledger;
pub mod polls;
pub mod reconcile;
pub mod slices;
pub mod tasks;
pub mod timeline;
pub mod wakes;
pub mod wakeups;

#[cfg(test)]
mod tests;
