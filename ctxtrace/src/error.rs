//! What can go wrong, each with one sentence that says what to do, and the exit status it ends in.

use std::io;
use std::path::PathBuf;

/// The exit statuses of the contract.
pub mod status {
    /// Something failed.
    pub const FAILURE: u8 = 1;
    /// The command line makes no sense.
    pub const USAGE: u8 = 2;
    /// An `--assert` does not hold.
    pub const ASSERTION: u8 = 3;
    /// What was traced differs from what the kernel counted.
    pub const MISMATCH: u8 = 4;
    /// `record` itself failed, and not its command.
    pub const RECORD_FAILED: u8 = 125;
    /// The command given to `record` cannot be executed.
    pub const NOT_EXECUTABLE: u8 = 126;
    /// The command given to `record` is not there.
    pub const NOT_FOUND: u8 = 127;
    /// Added to the number of the signal that killed the command.
    pub const KILLED_BY: u8 = 128;
    /// Ctrl-C.
    pub const INTERRUPTED: u8 = 130;
}

/// Everything that ends a command early.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The command line makes no sense; the text says why and what would.
    #[error("{0}")]
    Usage(String),

    /// The process may not load BPF programs.
    #[error(
        "loading BPF programs needs root, or CAP_BPF and CAP_PERFMON ({missing}; `ctxtrace doctor` says what else there is to \
         know): run\n  {command}"
    )]
    NotRoot {
        /// Which of the capabilities is not there.
        missing: &'static str,
        /// The very command that works.
        command: String,
    },

    /// Process ids mean something else here than to the kernel.
    #[error(
        "this is a pid namespace of its own (a container), where processes go by other ids than the kernel's events give: run \
         ctxtrace on the host, or give the container the host's (docker run --pid=host)"
    )]
    PidNamespace,

    /// The kernel does not describe its types.
    #[error(
        "this kernel has no BTF ({path} cannot be read: {source}): ctxtrace needs a kernel built with CONFIG_DEBUG_INFO_BTF=y, \
         as the distributions' kernels since 2020 are"
    )]
    NoBtf {
        /// Where it would be.
        path: &'static str,
        /// Why it could not be read.
        source: io::Error,
    },

    /// BTF is there, yet something wanted is not in it.
    #[error("this kernel's BTF lacks {what}: ctxtrace supports Linux 5.10 and later on x86-64")]
    BtfLacks {
        /// The type or field.
        what: String,
    },

    /// `bpf()` said no although the process seems to be privileged.
    #[error("the kernel refused to {action}: {reason}{}", refusal_advice(*errno))]
    Refused {
        /// What was tried.
        action: String,
        /// What the kernel, or its verifier, said.
        reason: String,
        /// The kernel's number for it, if it gave one.
        errno: Option<i32>,
    },

    /// What `sudo` says of its user cannot be: root's rights are not used instead.
    #[error(
        "{0}, so it is not known for whom sudo runs: set both SUDO_UID and SUDO_GID to the user's ids, as sudo does, or unset both \
         (`env -u SUDO_UID -u SUDO_GID`) to do everything as root"
    )]
    Sudo(String),

    /// An output cannot be written.
    #[error("cannot write {}: {source}", path.display())]
    Output {
        /// The path given.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },

    /// Several outputs cannot be written.
    #[error("{}", .0.iter().map(ToString::to_string).collect::<Vec<_>>().join("; "))]
    Several(Vec<Error>),

    /// The program to be traced could not be started.
    #[error("cannot start {}: {source}{}", program.display(), reach_hint(source, *user))]
    Launch {
        /// The program.
        program: PathBuf,
        /// Whom it was to run as, if not the tracer's own user.
        user: Option<u32>,
        /// Why.
        source: io::Error,
    },

    /// A process cannot be attached to.
    #[error("cannot attach to {pid}: {reason}")]
    Attach {
        /// The id given.
        pid: u32,
        /// What it is instead.
        reason: String,
    },

    /// A capture file has nothing that can be reported.
    #[error("cannot report {}: {reason}", path.display())]
    Capture {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        reason: String,
    },

    /// A system call failed that nothing in the user's hand makes fail.
    #[error("{action} failed: {source}{}", shortage(source).unwrap_or_default())]
    System {
        /// What was tried.
        action: &'static str,
        /// Why it failed.
        source: io::Error,
    },

    /// A workload in another language could not be compiled.
    #[error("cannot build {what}: {reason}")]
    Build {
        /// What was to be built.
        what: String,
        /// Why it was not, and what would help.
        reason: String,
    },

    /// The workload said what went wrong with it.
    #[error("{0}")]
    Workload(String),

    /// A report could not be rendered.
    #[error("cannot make the {what}: {reason}")]
    Render {
        /// The output.
        what: &'static str,
        /// Why.
        reason: String,
    },
}

/// What to do about a program that root can reach and the invoking user cannot.
fn reach_hint(source: &io::Error, user: Option<u32>) -> String {
    match user {
        Some(uid) if source.kind() == io::ErrorKind::PermissionDenied => {
            format!(" for user {uid}, whom sudo runs for: put it into a folder that this user can reach")
        }
        _ => String::new(),
    }
}

/// What to do about a lack of descriptors or memory, in words that follow the error; `None` if the error is another one.
pub(crate) fn shortage(error: &io::Error) -> Option<&'static str> {
    shortage_of(error.raw_os_error())
}

fn shortage_of(errno: Option<i32>) -> Option<&'static str> {
    match errno? {
        libc::EMFILE => Some(
            "\n  ctxtrace needs more descriptors, several for each CPU: raise the hard limit (ulimit -Hn, as root), or LimitNOFILE= \
             of its service",
        ),
        libc::ENFILE => {
            Some("\n  The whole machine has no more descriptors: end what holds many, or raise fs.file-max")
        }
        libc::ENOMEM => Some(
            "\n  There is too little memory for the tables: free some, raise the memory limit of the cgroup that ctxtrace runs in, \
             or ask for smaller tables with --max-threads and --max-stacks",
        ),
        _ => None,
    }
}

/// What to do about a refusal: a lack of something is no lack of rights.
fn refusal_advice(errno: Option<i32>) -> &'static str {
    shortage_of(errno).unwrap_or(
        "\n  If this is a container or a user namespace, run ctxtrace on the host or give the container CAP_BPF and CAP_PERFMON; if \
         /sys/kernel/security/lockdown says [confidentiality], boot without lockdown",
    )
}

impl Error {
    /// Each of the errors that it is made of, each with a sentence of its own.
    #[must_use]
    pub fn each(&self) -> &[Self] {
        match self {
            Self::Several(errors) => errors,
            one => std::slice::from_ref(one),
        }
    }

    /// All of these as one; nothing if there is none.
    ///
    /// # Errors
    ///
    /// If there is at least one.
    pub fn all(mut errors: Vec<Self>) -> Result<()> {
        match errors.len() {
            0 => Ok(()),
            1 => errors.pop().map_or(Ok(()), Err),
            _ => Err(Self::Several(errors)),
        }
    }

    /// A failed system call.
    pub fn system(action: &'static str) -> impl FnOnce(io::Error) -> Self {
        move |source| Self::System { action, source }
    }

    /// A failed system call made through `nix`.
    pub fn errno(action: &'static str) -> impl FnOnce(nix::errno::Errno) -> Self {
        move |errno| Self::System {
            action,
            source: errno.into(),
        }
    }

    /// The exit status it ends in.
    #[must_use]
    pub fn exit_status(&self) -> u8 {
        match self {
            Self::Usage(_) => status::USAGE,
            _ => status::FAILURE,
        }
    }

    /// The exit status it ends in where there is a command whose own statuses must be told from it (as `env` and `nohup`
    /// do).
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

/// Result of anything in this crate.
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
