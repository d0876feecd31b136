//! How far a workload has got, told without a system call: one counter in a page shared with the tracer.
//!
//! The workload stores, every [`STEP`] messages; the tracer loads, ten times a second. It feeds the progress bar, and says
//! how much was done when a run is cut short.

use std::num::NonZeroUsize;
use std::os::fd::{AsFd, OwnedFd};
use std::ptr::NonNull;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use nix::fcntl::{FcntlArg, SealFlag, fcntl};
use nix::sys::memfd::{MFdFlags, memfd_create};
use nix::sys::mman::{MapFlags, ProtFlags, mmap, munmap};

use crate::error::{Error, Result};

/// Messages between two stores.
pub const STEP: u64 = 1_024;

const PAGE: NonZeroUsize = NonZeroUsize::new(4_096).expect("not 0");

/// The shared counter, mapped into this process.
#[derive(Clone, Debug)]
pub struct Progress {
    page: Arc<Page>,
}

/// The mapping itself; it goes with the last handle.
#[derive(Debug)]
struct Page(NonNull<AtomicU64>);

// SAFETY: the pointer is to a shared page that lives as long as the value, and the only access is atomic.
unsafe impl Send for Page {}
// SAFETY: as above.
unsafe impl Sync for Page {}

impl Progress {
    /// A new counter at 0, and the descriptor through which another process can map it.
    ///
    /// # Errors
    ///
    /// If the kernel has no memory for it.
    pub fn create() -> Result<(Self, OwnedFd)> {
        let flags = MFdFlags::MFD_CLOEXEC | MFdFlags::MFD_ALLOW_SEALING;
        let fd = memfd_create("ctxtrace-progress", flags).map_err(Error::errno("memfd_create"))?;
        nix::unistd::ftruncate(&fd, PAGE.get() as i64).map_err(Error::errno("ftruncate"))?;
        // The workload's user could shorten it otherwise, and the tracer would be killed by its next look (SIGBUS).
        let seals = SealFlag::F_SEAL_SHRINK | SealFlag::F_SEAL_GROW | SealFlag::F_SEAL_SEAL;
        fcntl(&fd, FcntlArg::F_ADD_SEALS(seals)).map_err(Error::errno("sealing the page of progress"))?;
        Ok((Self::map(&fd)?, fd))
    }

    /// Maps the counter behind a descriptor.
    ///
    /// # Errors
    ///
    /// If it cannot be mapped.
    pub fn map(fd: impl AsFd) -> Result<Self> {
        // SAFETY: a new shared mapping at an address of the kernel's choice.
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

    /// Says that `messages` are done; cheap enough to be called for each.
    #[inline(always)]
    pub fn reached(&self, messages: u64) {
        if messages.is_multiple_of(STEP) {
            self.counter().store(messages, Ordering::Relaxed);
        }
    }

    /// Says that all are done, whatever their number.
    pub fn ended(&self, messages: u64) {
        self.counter().store(messages, Ordering::Relaxed);
    }

    /// Messages done, rounded down to a multiple of [`STEP`] while the workload runs.
    #[must_use]
    pub fn messages(&self) -> u64 {
        self.counter().load(Ordering::Relaxed)
    }

    fn counter(&self) -> &AtomicU64 {
        // SAFETY: the page is mapped until `drop`, aligned, and accessed in no other way.
        unsafe { self.page.0.as_ref() }
    }
}

impl Drop for Page {
    fn drop(&mut self) {
        // SAFETY: the mapping made in `map`, to which no reference can be left. Failing to unmap it would leak a page.
        let _ = unsafe { munmap(self.0.cast(), PAGE.get()) };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_one_mapping_says_the_other_sees() {
        let (tracer, fd) = Progress::create().expect("a shared page");
        let workload = Progress::map(&fd).expect("mapped again");
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
