//! The measured section: the part of a program's run that the report covers.

use std::sync::atomic::{AtomicU64, Ordering};

use crate::registry::REGISTRY;
use crate::slot::SLOT;

/// Number of the section that was begun last.
static LAST: AtomicU64 = AtomicU64::new(0);

/// Begins a measured section, which ends when the guard is dropped. The sections of a program are numbered from 1.
///
/// With a section, ctxtrace can exclude what comes before and after it, such as starting a runtime or filling buffers.
/// A section applies to the whole program: to the calling thread at once, to every other thread from its next outermost
/// poll on. There is one section at a time. A section that is begun within another replaces it, and ends when its own
/// guard is dropped.
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
    /// Returns the section's number.
    #[must_use]
    pub fn number(&self) -> u64 {
        self.number
    }
}

impl Drop for SectionGuard {
    fn drop(&mut self) {
        // If another section has replaced this one, that section continues.
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

    /// Returns the section of the calling thread now, and after its next poll has begun.
    fn seen() -> (u64, u64) {
        SLOT.with(|state: &State| {
            let now = state.copy().slot.section;
            let outer = state.begin(1, 1);
            state.end(outer);
            (now, state.copy().slot.section)
        })
    }

    /// A single test, because a program has one section at a time.
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

        // The second section replaces the first.
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
