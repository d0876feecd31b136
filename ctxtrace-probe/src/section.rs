//! The measured section: the part of a program's run that its figures are about.

use std::sync::atomic::{AtomicU64, Ordering};

use crate::registry::REGISTRY;
use crate::slot::SLOT;

/// Number of the section begun last.
static LAST: AtomicU64 = AtomicU64::new(0);

/// Begins a measured section, which ends when the guard is dropped. The sections of a program are numbered from 1.
///
/// It lets ctxtrace leave out what comes before and after: starting a runtime, filling buffers. It is the whole
/// program's: the calling thread is in it at once, every other thread from its next outermost poll on. There is one
/// section at a time: one begun within another takes its place, and is over when its own guard goes.
pub fn section() -> SectionGuard {
    let number = LAST.fetch_add(1, Ordering::Relaxed) + 1;
    REGISTRY.section_number().store(number, Ordering::Relaxed);
    SLOT.with(|state| state.enter_section(number));
    SectionGuard { number }
}

/// A measured section, begun by [`section`].
#[derive(Debug)]
#[must_use = "the section ends when this is dropped"]
pub struct SectionGuard {
    number: u64,
}

impl SectionGuard {
    /// The section's number.
    #[must_use]
    pub fn number(&self) -> u64 {
        self.number
    }
}

impl Drop for SectionGuard {
    fn drop(&mut self) {
        // A section that has taken this one's place goes on.
        let section = REGISTRY.section_number();
        if section
            .compare_exchange(self.number, 0, Ordering::Relaxed, Ordering::Relaxed)
            .is_ok()
        {
            SLOT.with(|state| state.enter_section(0));
        }
    }
}

#[cfg(test)]
mod tests {
    use std::thread;

    use super::*;
    use crate::slot::State;

    /// Section of the calling thread as of now, and as of its next poll.
    fn seen() -> (u64, u64) {
        SLOT.with(|state: &State| {
            let now = state.copy().slot.section;
            let outer = state.begin(1, 1);
            state.end(outer);
            (now, state.copy().slot.section)
        })
    }

    /// One test, because there is one section in a program.
    #[test]
    fn a_section_is_seen_at_once_here_and_from_the_next_poll_on_elsewhere() {
        let elsewhere = || thread::spawn(seen).join().expect("no panic");
        let before = LAST.load(Ordering::Relaxed);
        assert_eq!(elsewhere(), (0, 0));

        let first = section();
        let number = first.number();
        assert_eq!(number, before + 1);
        assert_eq!(seen(), (number, number));
        assert_eq!(elsewhere(), (0, number));
        drop(first);
        assert_eq!(seen(), (0, 0));
        assert_eq!(elsewhere(), (0, 0));

        // One takes the other's place.
        let outer = section();
        let inner = section();
        assert_eq!(inner.number(), outer.number() + 1);
        assert_eq!(seen().0, inner.number());
        drop(outer);
        assert_eq!(seen(), (inner.number(), inner.number()));
        drop(inner);
        assert_eq!(seen(), (0, 0));
    }
}
