//! The errors of this crate, each with a message of one sentence that says what to do, and the exit statuses.

use std::io;
use std::path::PathBuf;

use ctxtrace_report::RenderError;

/// The documented exit statuses.
pub mod status {
    /// The command failed.
    pub const FAILURE: u8 = 1;
    /// The command line is invalid.
    pub const USAGE: u8 = 2;
    /// An `--assert` condition does not hold.
    pub const ASSERTION: u8 = 3;
    /// The traced counts differ from the kernel's counts.
    pub const MISMATCH: u8 = 4;
    /// `record` itself failed, not the command that it ran.
    pub const RECORD_FAILED: u8 = 125;
    /// The command given to `record` cannot be executed.
    pub const NOT_EXECUTABLE: u8 = 126;
    /// The command given to `record` does not exist.
    pub const NOT_FOUND: u8 = 127;
    /// Added to the number of the signal that killed the command.
    pub const KILLED_BY: u8 = 128;
    /// The command was interrupted with Ctrl-C.
    pub const INTERRUPTED: u8 = 130;
}

/// An error that ends a command early.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The command line is invalid. The text says why, and what to write instead.
    #[error("{0}")]
    Usage(String),

    /// The process may not load BPF programs.
    #[error(
        "loading BPF programs needs root, or CAP_BPF and CAP_PERFMON ({missing}; `ctxtrace doctor` lists all requirements): run\n  \
         {command}"
    )]
    NotRoot {
        /// A clause that names the missing capabilities.
        missing: &'static str,
        /// The same command line with `sudo`, to be copied by the user.
        command: String,
    },

    /// The process is not in the initial pid namespace, so its process ids differ from those in the kernel's events.
    #[error(
        "ctxtrace runs in a separate pid namespace (a container), where process ids differ from those in the kernel's events: run \
         ctxtrace on the host, or let the container use the host's pid namespace (docker run --pid=host)"
    )]
    PidNamespace,

    /// The kernel has no BTF, the description of its types.
    #[error(
        "this kernel has no BTF ({path} cannot be read: {source}): ctxtrace needs a kernel built with CONFIG_DEBUG_INFO_BTF=y \
         (distributions have built their kernels with it since 2020)"
    )]
    NoBtf {
        /// The file that BTF is read from.
        path: &'static str,
        /// The error of reading that file.
        source: io::Error,
    },

    /// The kernel has BTF, but a required type or field is not in it.
    #[error("this kernel's BTF lacks {what}: ctxtrace supports Linux 5.10 and later on x86-64")]
    BtfLacks {
        /// The missing type or field.
        what: String,
    },

    /// The kernel refused an operation that the process has the capabilities for.
    #[error("the kernel refused to {action}: {reason}{}", refusal_advice(*errno))]
    Refused {
        /// The operation, as an infinitive without "to".
        action: String,
        /// The message of the kernel or of its verifier.
        reason: String,
        /// The error number of the system call, if there is one.
        errno: Option<i32>,
    },

    /// The variables of `sudo` do not name a valid invoking user. ctxtrace does not fall back to root's rights.
    #[error(
        "{0}, so the user who invoked sudo is unknown: set both SUDO_UID and SUDO_GID to the user's ids, as sudo does, or unset \
         both (`env -u SUDO_UID -u SUDO_GID`) to do everything as root"
    )]
    Sudo(String),

    /// An output file cannot be written.
    #[error("cannot write {}: {source}", path.display())]
    Output {
        /// The path of the output file.
        path: PathBuf,
        /// The error of the write.
        source: io::Error,
    },

    /// Several errors at once, for example of several outputs.
    #[error("{}", .0.iter().map(ToString::to_string).collect::<Vec<_>>().join("; "))]
    Several(Vec<Error>),

    /// The target program cannot be started.
    #[error("cannot start {}: {source}{}", program.display(), reach_hint(source, *user))]
    Launch {
        /// The program.
        program: PathBuf,
        /// The user id that the program should run as; `None` for the tracer's own.
        user: Option<u32>,
        /// The error of the start.
        source: io::Error,
    },

    /// The process given with `--pid` cannot be attached to.
    #[error("cannot attach to {pid}: {reason}")]
    Attach {
        /// The given process id.
        pid: u32,
        /// Why the process cannot be attached to.
        reason: String,
    },

    /// A capture file has no data that can be reported.
    #[error("cannot report {}: {reason}", path.display())]
    Capture {
        /// The capture file.
        path: PathBuf,
        /// What is wrong with the file.
        reason: String,
    },

    /// A system call failed unexpectedly.
    #[error("{action} failed: {source}{}", shortage(source).unwrap_or_default())]
    System {
        /// The system call, or the operation that it belongs to.
        action: &'static str,
        /// The error of the system call.
        source: io::Error,
    },

    /// A workload in another language could not be compiled.
    #[error("cannot build {what}: {reason}")]
    Build {
        /// The workload.
        what: String,
        /// Why the build failed, and what the user can do.
        reason: String,
    },

    /// A workload, or the run of one, failed. The text is the whole message.
    #[error("{0}")]
    Workload(String),

    /// A report cannot be rendered.
    #[error(transparent)]
    Render(#[from] RenderError),
}

/// The advice for a program that root can access and the invoking user cannot.
fn reach_hint(source: &io::Error, user: Option<u32>) -> String {
    match user {
        Some(uid) if source.kind() == io::ErrorKind::PermissionDenied => {
            format!(" for user {uid}, who invoked sudo: put the program into a folder that this user can access")
        }
        _ => String::new(),
    }
}

/// The advice about a shortage of descriptors or memory, to be appended to the error message; `None` for any other error.
pub(crate) fn shortage(error: &io::Error) -> Option<&'static str> {
    shortage_of(error.raw_os_error())
}

fn shortage_of(errno: Option<i32>) -> Option<&'static str> {
    match errno? {
        libc::EMFILE => Some(
            "\n  ctxtrace needs more descriptors, several for each CPU: raise the hard limit (ulimit -Hn, as root), or LimitNOFILE= \
             of its service",
        ),
        libc::ENFILE => Some(
            "\n  The machine has reached its limit of open files: end programs that hold many descriptors, or raise fs.file-max",
        ),
        libc::ENOMEM => Some(
            "\n  There is too little memory for the tables: free memory, raise the memory limit of the cgroup that ctxtrace runs in, \
             or request smaller tables with --max-threads and --max-stacks",
        ),
        _ => None,
    }
}

/// The advice about a refused operation: about the shortage if the error number means one, otherwise about missing rights.
fn refusal_advice(errno: Option<i32>) -> &'static str {
    shortage_of(errno).unwrap_or(
        "\n  If this is a container or a user namespace, run ctxtrace on the host or give the container CAP_BPF and CAP_PERFMON; if \
         /sys/kernel/security/lockdown shows [confidentiality], boot without lockdown",
    )
}

impl Error {
    /// The single errors that this error consists of; each has its own message.
    #[must_use]
    pub fn each(&self) -> &[Self] {
        match self {
            Self::Several(errors) => errors,
            one => std::slice::from_ref(one),
        }
    }

    /// Combines errors into one result.
    ///
    /// # Errors
    ///
    /// If `errors` is not empty.
    pub fn all(mut errors: Vec<Self>) -> Result<()> {
        match errors.len() {
            0 => Ok(()),
            1 => errors.pop().map_or(Ok(()), Err),
            _ => Err(Self::Several(errors)),
        }
    }

    /// Returns a function that wraps the error of a failed system call, for `map_err`.
    pub fn system(action: &'static str) -> impl FnOnce(io::Error) -> Self {
        move |source| Self::System { action, source }
    }

    /// Returns a function that wraps the error of a failed system call made through `nix`, for `map_err`.
    pub fn errno(action: &'static str) -> impl FnOnce(nix::errno::Errno) -> Self {
        move |errno| Self::System {
            action,
            source: errno.into(),
        }
    }

    /// The exit status for this error.
    #[must_use]
    pub fn exit_status(&self) -> u8 {
        match self {
            Self::Usage(_) => status::USAGE,
            _ => status::FAILURE,
        }
    }

    /// The exit status for this error if `record` runs a command. It differs from the usual statuses of commands, as with `env`
    /// and `nohup`, so that a failure of ctxtrace can be distinguished from a failure of the command.
    #[must_use]
    pub fn exit_status_beside_a_commands(&self) -> u8 {
        match self {
            Self::Usage(_) => status::USAGE,
            Self::Launch { source, .. } if source.kind() == io::ErrorKind::NotFound => status::NOT_FOUND,
            Self::Launch { .. } => status::NOT_EXECUTABLE,
            _ => status::RECORD_FAILED,
        }
    }
}

/// The result type of this crate.
pub type Result<T> = std::result::Result<T, Error>;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_lack_of_something_is_no_lack_of_rights() {
        let refused = |errno| {
            Error::Refused {
                action: "load the BPF maps".to_owned(),
                reason: "no".to_owned(),
                errno,
            }
            .to_string()
        };
        for (errno, advice) in [(libc::EMFILE, "ulimit -Hn"), (libc::ENOMEM, "too little memory")] {
            let text = refused(Some(errno));
            assert!(text.contains(advice) && !text.contains("lockdown"), "{text}");
            let failed = Error::system("pipe2")(io::Error::from_raw_os_error(errno)).to_string();
            assert!(failed.contains(advice), "{failed}");
        }
        for errno in [None, Some(libc::EPERM)] {
            assert!(refused(errno).contains("lockdown"));
        }
        let other = Error::system("pipe2")(io::Error::from_raw_os_error(libc::EIO)).to_string();
        assert!(other.starts_with("pipe2 failed: ") && !other.contains('\n'), "{other}");
    }
}
