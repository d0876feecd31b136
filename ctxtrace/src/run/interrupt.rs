//! Ctrl-C and similar signals, which are handled as events and do not kill the process: an interrupted run still reports what it
//! has seen.

use std::cell::Cell;
use std::os::fd::{AsFd, BorrowedFd};

use nix::sys::signal::{SigSet, Signal};
use nix::sys::signalfd::{SfdFlags, SignalFd};

use crate::error::{Error, Result};

/// The signals that end a run early.
const SIGNALS: [Signal; 3] = [Signal::SIGINT, Signal::SIGTERM, Signal::SIGHUP];

/// A signal that has arrived.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Interrupt {
    /// The signal.
    pub signal: Signal,
    /// Whether the signal was typed on the terminal, which sends it to every process in its foreground group (kernel:
    /// `drivers/tty/tty_io.c`).
    pub from_terminal: bool,
}

/// Catches the signals while it exists.
pub struct Interrupts {
    fd: SignalFd,
    seen: Cell<Option<Signal>>,
}

impl Interrupts {
    /// Starts catching the signals. Call it while the process has only one thread.
    ///
    /// # Errors
    ///
    /// If the kernel refuses.
    pub fn catch() -> Result<Self> {
        let signals: SigSet = SIGNALS.into_iter().collect();
        signals.thread_block().map_err(Error::errno("blocking signals"))?;
        let fd = SignalFd::with_flags(&signals, SfdFlags::SFD_NONBLOCK | SfdFlags::SFD_CLOEXEC)
            .map_err(Error::errno("signalfd"))?;
        Ok(Self {
            fd,
            seen: Cell::new(None),
        })
    }

    /// A descriptor that becomes readable when a signal has arrived.
    #[must_use]
    pub fn fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }

    /// The next signal that has arrived, if there is one.
    #[must_use]
    pub fn take(&self) -> Option<Interrupt> {
        let info = self.fd.read_signal().ok().flatten()?;
        let signal = Signal::try_from(info.ssi_signo as i32).ok()?;
        self.seen.set(Some(signal));
        Some(Interrupt {
            signal,
            from_terminal: info.ssi_code == libc::SI_KERNEL,
        })
    }

    /// Stops catching signals: the next one ends this process.
    pub fn let_through(&self) {
        let signals: SigSet = SIGNALS.into_iter().collect();
        let _ = signals.thread_unblock();
    }

    /// Whether any signal has arrived.
    #[must_use]
    pub fn any_seen(&self) -> bool {
        self.seen.get().is_some()
    }
}

impl Drop for Interrupts {
    fn drop(&mut self) {
        self.let_through();
    }
}
