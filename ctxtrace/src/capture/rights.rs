//! Whose processes this process may trace: the facts about the tracer by which the BPF programs judge a process as the kernel
//! would (see `rights.rs` on the BPF side).

use procfs::process::{Process, Status};

use super::offsets::Offsets;
use crate::error::{Error, Result};

/// `CAP_SYS_PTRACE` in the kernel's capability mask (kernel: `include/uapi/linux/capability.h`).
const CAP_SYS_PTRACE: u64 = 1 << 19;

/// The rights of this process, as load-time constants of the BPF object.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct TracerRights {
    constants: [(&'static str, u32); 5],
}

impl TracerRights {
    /// Reads the rights of this process.
    ///
    /// # Errors
    ///
    /// If the rights cannot be read, or if the tracer may trace only its own user's processes and the running kernel's BTF does
    /// not describe the fields by which the kernel decides.
    pub(super) fn of_this_process(offsets: &Offsets) -> Result<Self> {
        let status = Process::myself().and_then(|process| process.status());
        let rights = Self::from_status(&status.map_err(|error| Error::Refused {
            action: "read the rights of ctxtrace in /proc/self/status".to_owned(),
            reason: error.to_string(),
            errno: None,
        })?);
        if rights.are_limited() && !offsets.has_credentials() {
            return Err(Error::BtfLacks {
                what: "the fields that say who may trace a process (not needed with root or CAP_SYS_PTRACE)".to_owned(),
            });
        }
        Ok(rights)
    }

    fn from_status(status: &Status) -> Self {
        let capabilities = status.capeff;
        Self {
            constants: [
                ("ASKS_FOR_RIGHTS", u32::from(capabilities & CAP_SYS_PTRACE == 0)),
                ("TRACER_UID", status.fuid),
                ("TRACER_GID", status.fgid),
                ("TRACER_CAPABILITIES_LOW", capabilities as u32),
                ("TRACER_CAPABILITIES_HIGH", (capabilities >> 32) as u32),
            ],
        }
    }

    fn are_limited(&self) -> bool {
        self.constants[0].1 != 0
    }

    /// The name and value of each constant.
    pub(super) fn constants(&self) -> impl Iterator<Item = (&'static str, &u32)> {
        self.constants.iter().map(|(name, value)| (*name, value))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_cap_sys_ptrace_may_trace_everybody() {
        let mut status = Process::myself()
            .and_then(|process| process.status())
            .expect("/proc/self/status is readable");
        (status.fuid, status.fgid) = (1_000, 100);
        status.capeff = 0xff_ffff_ffff;
        assert!(!TracerRights::from_status(&status).are_limited());
        status.capeff &= !CAP_SYS_PTRACE;
        let rights = TracerRights::from_status(&status);
        assert!(rights.are_limited());
        let value = |wanted| {
            rights
                .constants()
                .find(|&(name, _)| name == wanted)
                .map(|(_, &value)| value)
        };
        assert_eq!((value("TRACER_UID"), value("TRACER_GID")), (Some(1_000), Some(100)));
        assert_eq!(value("TRACER_CAPABILITIES_LOW"), Some(0xfff7_ffff));
        assert_eq!(value("TRACER_CAPABILITIES_HIGH"), Some(0xff));
    }
}
