//! The limit of open descriptors (`RLIMIT_NOFILE`). The tracer needs several descriptors for each CPU, so it raises its soft
//! limit to the hard limit. The programs that it starts get the limit that the tracer was started with.

use std::io;
use std::sync::OnceLock;

use nix::sys::resource::{Resource, getrlimit, setrlimit};

/// The limits that this process was started with; set only if they were raised.
static AT_START: OnceLock<libc::rlimit> = OnceLock::new();

/// Raises the soft limit to the hard limit. Errors are ignored; the limit then stays as it is.
pub fn raise_limit() {
    if let Ok((soft, hard)) = getrlimit(Resource::RLIMIT_NOFILE)
        && soft < hard
        && setrlimit(Resource::RLIMIT_NOFILE, hard, hard).is_ok()
    {
        let _ = AT_START.set(libc::rlimit {
            rlim_cur: soft,
            rlim_max: hard,
        });
    }
}

/// Returns the limits for programs that the tracer starts; `None` if they were not raised.
#[must_use]
pub fn at_start() -> Option<libc::rlimit> {
    AT_START.get().copied()
}

/// Sets the limits of this process to those that the tracer was started with. This function is async-signal-safe.
///
/// # Errors
///
/// If `setrlimit` fails.
pub fn restore(limit: Option<&libc::rlimit>) -> io::Result<()> {
    match limit {
        // SAFETY: `setrlimit` is async-signal-safe, and the pointer is to a value of the right type.
        Some(limit) if unsafe { libc::setrlimit(libc::RLIMIT_NOFILE, limit) } != 0 => Err(io::Error::last_os_error()),
        _ => Ok(()),
    }
}
