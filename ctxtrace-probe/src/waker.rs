//! The waker that a traced future is polled with if wakes are recorded: it writes a record and passes the wake on.

use std::sync::Arc;
use std::task::{Wake, Waker};

use ctxtrace_abi::HOOKED;
use ctxtrace_abi::rings::{WAKE, short_task, what};

use crate::rings;

/// A task's own waker, which records wakes and passes them on to the runtime's waker. It is made once for each task: a
/// runtime polls a task with the same waker again and again, so code that stores wakers may compare them
/// (`Waker::will_wake`), and this waker must compare equal, too.
#[derive(Debug)]
pub(crate) struct OwnWaker {
    recorder: Arc<WakeRecorder>,
    waker: Waker,
}

#[derive(Debug)]
struct WakeRecorder {
    /// The record, without its time.
    what: u64,
    inner: Waker,
}

impl WakeRecorder {
    #[inline]
    fn record_and_wake(&self) {
        // The record is written first, because the woken task may be polled before the next instruction here.
        rings::write_record(self.what);
        self.inner.wake_by_ref();
    }
}

impl Wake for WakeRecorder {
    fn wake(self: Arc<Self>) {
        self.record_and_wake();
    }

    fn wake_by_ref(self: &Arc<Self>) {
        self.record_and_wake();
    }
}

impl OwnWaker {
    /// Returns the waker with which to poll the future of task `id` instead of `inner`. The waker is kept in `own`.
    /// `outer` is the task in whose poll the future is polled, or 0. Returns `None` if that task is a traced one: wakes
    /// are then attributed to it, and it already has such a waker.
    ///
    /// A hooked task has no such waker, because hooks do not see wakers. The wakes of a traced future in it are
    /// attributed to the hooked task.
    #[cold]
    #[inline(never)]
    pub(crate) fn of_task<'a>(own: &'a mut Option<Box<Self>>, inner: &Waker, id: u64, outer: u64) -> Option<&'a Waker> {
        let woken = match outer {
            0 => id,
            hooked if hooked & HOOKED != 0 => hooked,
            _ => return None,
        };
        let what = what(WAKE, short_task(woken));
        let is_it = |own: &Self| own.recorder.what == what && own.recorder.inner.will_wake(inner);
        if !own.as_deref().is_some_and(is_it) {
            let recorder = Arc::new(WakeRecorder {
                what,
                inner: inner.clone(),
            });
            let waker = Waker::from(Arc::clone(&recorder));
            *own = Some(Box::new(Self { recorder, waker }));
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
        // The waker of another runtime.
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
            own.map(|own| own.recorder.what),
            Some(what(WAKE, short_task(HOOKED | 3)))
        );
    }
}
