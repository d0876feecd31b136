//! How many descriptors a process may have open. The tracer takes several for each CPU, so it raises its soft limit to the hard one;
//! what it starts has the limit that the tracer was started with.

use std::io;
use std::sync::OnceLock;

use nix::sys::resource::{Resource, getrlimit, setrlimit};

/// The limits that this process was started with, where they were raised.
static AT_START: OnceLock<libc::rlimit> = OnceLock::new();

/// Raises the soft limit to the hard one. What fails changes nothing: then there are as many as there were.
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

/// The limits to be given to what is started; `None` where they are as they were.
#[must_use]
pub fn at_start() -> Option<libc::rlimit> {
    AT_START.get().copied()
}

/// Gives this process the limits that the tracer was started with. Async-signal-safe.
///
/// # Errors
///
/// If the kernel refuses.
pub fn restore(limit: Option<&libc::rlimit>) -> io::Result<()> {
    match limit {
        // SAFETY: async-signal-safe; the pointer is to a value of the right type.
        Some(limit) if unsafe { libc::setrlimit(libc::RLIMIT_NOFILE, limit) } != 0 => Err(io::Error::last_os_error()),
        _ => Ok(()),
    }
}
