//! The program that is traced: how it is started, whom it runs as, and what its memory looks like.
//!
//! * [`cgroups`]: what CPU quotas and freezers do to it meanwhile.
//! * [`counters`]: what the processor and the kernel count of it.
//! * [`load`]: how busy the machine is with others.
//! * [`launch`]: starts it suspended before its first instruction, so that nothing it does goes untraced.
//! * [`attach`]: finds a process that runs already.
//! * [`environment`]: what a program is started with, also under `sudo`.
//! * [`search`]: from the name of a command to its file.
//! * [`toolchain`]: builds what has to be compiled first, as that user, once.
//! * [`user`]: the user who called `sudo`; the workload and the output files are theirs.
//! * [`procfs`]: what `/proc` says of processes and threads.
//! * [`pidfd`]: signals that reach the process that is meant, or none.
//! * [`descriptors`]: the limit of open descriptors, raised for the tracer alone.
//! * [`silent`]: threads that make no switch while they are recorded.
//! * [`held`]: files of the target, known by what they are and not by their path.
//! * [`mappings`]: which file lies where in which process, kept after the process has gone.
//! * [`locate`]: how the tasks of an executable are found, out of its symbols and types.
//! * [`programs`]: which executable each process runs.

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

/// Paths as they are stored: text, whatever the bytes.
mod stored_path {
    use std::path::{Path, PathBuf};

    use serde::{Deserialize, Deserializer, Serialize, Serializer};

    pub(super) fn serialize<S: Serializer>(path: &Path, serializer: S) -> Result<S::Ok, S::Error> {
        path.to_string_lossy().serialize(serializer)
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<PathBuf, D::Error> {
        String::deserialize(deserializer).map(PathBuf::from)
    }
}
