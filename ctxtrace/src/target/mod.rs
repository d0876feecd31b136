//! The program that is traced: how it is started, whom it runs as, and what its memory looks like.
//!
//! * [`launch`]: starts it suspended before its first instruction, so that nothing it does goes untraced.
//! * [`toolchain`]: builds what has to be compiled first, as that user, once.
//! * [`user`]: the user who called `sudo`; the workload and the output files are theirs.
//! * [`procfs`]: what `/proc` says of a thread.
//! * [`mappings`]: which file lies where in which process, kept after the process has gone.
//! * [`locate`]: how the tasks of an executable are found, out of its symbols and types.
//! * [`programs`]: which executable each process runs.

pub mod launch;
pub mod locate;
pub mod mappings;
pub mod procfs;
pub mod programs;
pub mod toolchain;
pub mod user;
