//! The waker that a traced future is polled with where wakes are told: it writes a record and passes the wake on.

use std::sync::Arc;
use std::task::{Wake, Waker};

use ctxtrace_abi::HOOKED;
use ctxtrace_abi::rings::{WAKE, short_task, what};

use crate::rings;

/// A task's waker, and what it passes wakes on to. Made once for each task: a runtime polls a task with the same waker
/// again and again, so whoever keeps one may compare (`Waker::will_wake`), and finds that this one stays the same, too.
#[derive(Debug)]
pub(crate) struct OwnWaker {
    telling: Arc<Telling>,
    waker: Waker,
}

#[derive(Debug)]
struct Telling {
    /// The record, but for the time.
    what: u64,
    inner: Waker,
}

impl Telling {
    #[inline]
    fn tell_and_wake(&self) {
        // First: whoever it wakes may be polled before the next instruction.
        rings::tell(self.what);
        self.inner.wake_by_ref();
    }
}

impl Wake for Telling {
    fn wake(self: Arc<Self>) {
        self.tell_and_wake();
    }

    fn wake_by_ref(self: &Arc<Self>) {
        self.tell_and_wake();
    }
}

impl OwnWaker {
    /// The waker to poll the future of task `id` with, in place of `inner`; kept in `own`. `outer` is the task in whose poll
    /// that is. `None` if wakes go by the name of the outer task, which has a waker like this already.
    ///
    /// A hooked task has none, because hooks are not told of wakers: the wakes of a traced future in it are taken for its own.
    #[cold]
    #[inline(never)]
    pub(crate) fn of_task<'a>(own: &'a mut Option<Box<Self>>, inner: &Waker, id: u64, outer: u64) -> Option<&'a Waker> {
        let woken = match outer {
            0 => id,
            hooked if hooked & HOOKED != 0 => hooked,
            _ => return None,
        };
        let what = what(WAKE, short_task(woken));
        let is_it = |own: &Self| own.telling.what == what && own.telling.inner.will_wake(inner);
        if !own.as_deref().is_some_and(is_it) {
            let telling = Arc::new(Telling {
                what,
                inner: inner.clone(),
            });
            let waker = Waker::from(Arc::clone(&telling));
            *own = Some(Box::new(Self { telling, waker }));
        }
        own.as_deref().map(|own| &own.waker)
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicU64, Ordering};

    use super::*;

    #[derive(Default)]
    struct Counting(AtomicU64);

    impl Wake for Counting {
        fn wake(self: Arc<Self>) {
            self.0.fetch_add(1, Ordering::Relaxed);
        }
    }

    #[test]
    fn wakes_are_passed_on_and_the_waker_stays_the_same() {
        let counting = Arc::new(Counting::default());
        let inner = Waker::from(Arc::clone(&counting));
        let mut own = None;
        let first = OwnWaker::of_task(&mut own, &inner, 7, 0).expect("outermost").clone();
        first.wake_by_ref();
        let again = OwnWaker::of_task(&mut own, &inner, 7, 0).expect("outermost").clone();
        assert!(first.will_wake(&again));
        first.wake();
        assert_eq!(counting.0.load(Ordering::Relaxed), 2);
        // Another runtime's.
        let other = Arc::new(Counting::default());
        let moved = OwnWaker::of_task(&mut own, &Waker::from(Arc::clone(&other)), 7, 0).expect("outermost");
        assert!(!moved.will_wake(&again));
        moved.wake_by_ref();
        assert_eq!(
            (counting.0.load(Ordering::Relaxed), other.0.load(Ordering::Relaxed)),
            (2, 1)
        );
    }

    #[test]
    fn a_task_within_another_goes_by_the_others_waker() {
        let mut own = None;
        assert!(OwnWaker::of_task(&mut own, Waker::noop(), 7, 3).is_none());
        assert!(OwnWaker::of_task(&mut own, Waker::noop(), 7, HOOKED | 3).is_some());
        assert_eq!(
            own.map(|own| own.telling.what),
            Some(what(WAKE, short_task(HOOKED | 3)))
        );
    }
}
