//! Ctrl-C and its kin, taken as events instead of as death: a run that is interrupted still reports what it has seen.

use std::cell::Cell;
use std::os::fd::{AsFd, BorrowedFd};

use nix::sys::signal::{SigSet, Signal};
use nix::sys::signalfd::{SfdFlags, SignalFd};

use crate::error::{Error, Result};

/// The signals that end a run early.
const SIGNALS: [Signal; 3] = [Signal::SIGINT, Signal::SIGTERM, Signal::SIGHUP];

/// One that has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Interrupt {
    /// Which.
    pub signal: Signal,
    /// It was typed, so it has come to every process that the terminal runs in the foreground (kernel:
    /// `drivers/tty/tty_io.c`).
    pub from_terminal: bool,
}

/// Catches the signals for as long as it lives.
pub struct Interrupts {
    fd: SignalFd,
    seen: Cell<Option<Signal>>,
}

impl Interrupts {
    /// Begins to catch. To be called while there is one thread.
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

    /// Becomes readable when a signal has come.
    #[must_use]
    pub fn fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }

    /// The signal that has come since it was last asked.
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

    /// Catches no further signal: the next one ends this process.
    pub fn let_through(&self) {
        let signals: SigSet = SIGNALS.into_iter().collect();
        let _ = signals.thread_unblock();
    }

    /// Whether one has ever come.
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
