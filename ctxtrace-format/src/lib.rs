//! The recorded data of ctxtrace, decoded but not interpreted, and the file that keeps it: the boundary between recording and
//! analysis.
//!
//! * [`Aggregates`]: the sums that the kernel side had made when a run ended.
//! * [`threads`]: the threads that have ended; a limited number of them is kept as individual threads.
//! * [`wakeups`]: the wakeups along one edge, from a waker to a woken thread.
//! * [`run`]: one recording: the aggregates, and the other data about the recorded program.
//! * [`mappings`]: which file was mapped where in each process.
//! * [`programs`]: which program each process ran. [`executable`]: what was found in the program.
//! * [`samples`]: samples of what the target did on its CPUs (`--sample`).
//! * [`events`]: the consumer and the source of the events of a timeline.
//! * [`lanes`]: the timeline, reduced to a size that can be drawn.
//! * [`polls`]: when tasks were polled and woken (`--polls`).
//! * [`symbols`]: the function names of the stacks.
//! * [`cgroups`]: what CPU quotas and freezers did during the recording.
//! * [`workload`]: the description of a built-in workload, and its result. [`counted`]: the events that are counted for a command.
//! * [`machine`]: what `ctxtrace doctor` inspects.
//! * [`mod@file`]: recordings in a file.
//!
//! A capture may come from anyone: [`printable`] makes its texts safe to print, and [`sums`] adds its numbers without overflow.
//!
//! The feature `clap` makes the options of the command line out of the enumerations, and `fixtures` has captures for tests.

#![warn(clippy::print_stdout, clippy::print_stderr)]

mod aggregates;
#[cfg(any(test, feature = "fixtures"))]
pub mod build;
pub mod cgroups;
pub mod counted;
pub mod events;
pub mod executable;
pub mod file;
pub mod lanes;
pub mod machine;
pub mod mappings;
pub mod polls;
pub mod printable;
pub mod programs;
pub mod run;
pub mod samples;
mod stored_path;
pub mod sums;
pub mod symbols;
pub mod threads;
pub mod wakeups;
pub mod workload;

pub use aggregates::{
    Aggregates, CpuLosses, Fate, Latencies, Level, OpenInterval, ProgramCost, SilentThread, ThreadRecord, TracerCost,
    merge, name_of,
};
