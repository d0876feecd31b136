//! Reports the progress of a workload without system calls, with one counter in a page that is shared with the tracer.
//!
//! The workload stores the number of messages every [`STEP`] messages; the tracer loads it while it watches the run. The number
//! drives the progress bar, and a run that was cut short is reported with it.

use std::num::NonZeroUsize;
use std::os::fd::{AsFd, OwnedFd};
use std::ptr::NonNull;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use nix::fcntl::{FcntlArg, SealFlag, fcntl};
use nix::sys::memfd::{MFdFlags, memfd_create};
use nix::sys::mman::{MapFlags, ProtFlags, mmap, munmap};

use crate::error::{Error, Result};

/// The number of messages between two stores to the counter.
pub const STEP: u64 = 1_024;

const PAGE: NonZeroUsize = NonZeroUsize::new(4_096).expect("not 0");

/// The shared counter, mapped into this process.
#[derive(Clone, Debug)]
pub struct Progress {
    page: Arc<Page>,
}

/// The mapping of the page, which is unmapped when the last handle is dropped.
#[derive(Debug)]
struct Page(NonNull<AtomicU64>);

// SAFETY: the pointer is to a shared page that stays mapped as long as the value lives, and all accesses are atomic.
unsafe impl Send for Page {}
// SAFETY: as for `Send`.
unsafe impl Sync for Page {}

impl Progress {
    /// Creates a counter at 0, and the descriptor with which another process can map it.
    ///
    /// # Errors
    ///
    /// If the page cannot be created or mapped.
    pub fn create() -> Result<(Self, OwnedFd)> {
        let flags = MFdFlags::MFD_CLOEXEC | MFdFlags::MFD_ALLOW_SEALING;
        let fd = memfd_create("ctxtrace-progress", flags).map_err(Error::errno("memfd_create"))?;
        nix::unistd::ftruncate(&fd, PAGE.get() as i64).map_err(Error::errno("ftruncate"))?;
        // Without the seals, the workload's user could truncate the file, and the tracer's next read would kill it with SIGBUS.
        let seals = SealFlag::F_SEAL_SHRINK | SealFlag::F_SEAL_GROW | SealFlag::F_SEAL_SEAL;
        fcntl(&fd, FcntlArg::F_ADD_SEALS(seals)).map_err(Error::errno("sealing the page of progress"))?;
        Ok((Self::map(&fd)?, fd))
    }

    /// Maps the counter of a descriptor that [`Progress::create`] returned.
    ///
    /// # Errors
    ///
    /// If the page cannot be mapped.
    pub fn map(fd: impl AsFd) -> Result<Self> {
        // SAFETY: this creates a new shared mapping at an address that the kernel chooses.
        let page = unsafe {
            mmap(
                None,
                PAGE,
                ProtFlags::PROT_READ | ProtFlags::PROT_WRITE,
                MapFlags::MAP_SHARED,
                fd,
                0,
            )
        }
        .map_err(Error::errno("mmap"))?;
        Ok(Self {
            page: Arc::new(Page(page.cast())),
        })
    }

    /// Reports that `messages` messages are done. It is cheap enough to be called for each message.
    #[inline(always)]
    pub fn reached(&self, messages: u64) {
        if messages.is_multiple_of(STEP) {
            self.counter().store(messages, Ordering::Relaxed);
        }
    }

    /// Reports the final number of messages, which need not be a multiple of [`STEP`].
    pub fn ended(&self, messages: u64) {
        self.counter().store(messages, Ordering::Relaxed);
    }

    /// The number of messages done. While the workload runs, it is rounded down to a multiple of [`STEP`].
    #[must_use]
    pub fn messages(&self) -> u64 {
        self.counter().load(Ordering::Relaxed)
    }

    fn counter(&self) -> &AtomicU64 {
        // SAFETY: the page is aligned, stays mapped until `drop`, and is only accessed as an atomic.
        unsafe { self.page.0.as_ref() }
    }
}

impl Drop for Page {
    fn drop(&mut self) {
        // SAFETY: this is the mapping made in `map`, and no reference to it can exist any more. A failure only leaks a page.
        let _ = unsafe { munmap(self.0.cast(), PAGE.get()) };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_one_mapping_says_the_other_sees() {
        let (tracer, fd) = Progress::create().expect("a shared page");
        let workload = Progress::map(&fd).expect("a second mapping");
        workload.reached(1);
        assert_eq!(tracer.messages(), 0);
        workload.reached(2 * STEP);
        assert_eq!(tracer.messages(), 2 * STEP);
        workload.ended(2 * STEP + 7);
        assert_eq!(tracer.messages(), 2 * STEP + 7);
    }

    #[test]
    fn the_page_cannot_be_shortened() {
        let (progress, fd) = Progress::create().expect("a shared page");
        for length in [0, 1, 2 * PAGE.get() as i64] {
            let refused = nix::unistd::ftruncate(&fd, length);
            assert_eq!(refused, Err(nix::errno::Errno::EPERM));
        }
        assert_eq!(progress.messages(), 0);
    }
}
