//! The target: the program that is traced, the user that it runs as, its files and its memory mappings.
//!
//! * [`cgroups`]: follows the CPU quotas and freezers of the target's cgroups during a recording.
//! * [`counters`]: counts events of the processor and of the kernel for the target.
//! * [`load`]: measures how busy other programs keep the machine.
//! * [`launch`]: starts a program suspended before its first instruction, so that everything it does is traced.
//! * [`attach`]: finds a running process to attach to.
//! * [`environment`]: the environment that a program is started with, also under `sudo`.
//! * [`search`]: finds the file of a command by its name.
//! * [`toolchain`]: compiles the workloads in C and Go, once, as the user that runs them.
//! * [`user`]: the user who invoked `sudo` and who owns the workload and the output files.
//! * [`procfs`]: reads the states of processes and threads from `/proc`.
//! * [`pidfd`]: sends signals that cannot reach another process with the same id.
//! * [`descriptors`]: raises the limit of open descriptors for the tracer only.
//! * [`silent`]: finds threads that make no switch during a recording.
//! * [`held`]: holds the target's files open, identified by device and inode instead of by path.
//! * [`mappings`]: records which file is mapped where in each process, and keeps this after the process has ended.
//! * [`locate`]: determines from the symbols and types of an executable how its tasks are found.
//! * [`programs`]: determines the executable that each process runs.

pub mod attach;
pub mod cgroups;
pub mod counters;
pub mod descriptors;
pub mod environment;
pub mod held;
pub mod launch;
pub mod load;
pub mod locate;
pub mod mappings;
pub mod pidfd;
mod proc_maps;
pub mod procfs;
pub mod programs;
pub mod search;
pub mod silent;
pub mod toolchain;
pub mod user;
