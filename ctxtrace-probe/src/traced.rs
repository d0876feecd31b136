//! The wrapper that gives a future a name and records its polls.

use std::future::Future;
use std::hint::black_box;
use std::mem::ManuallyDrop;
use std::pin::Pin;
use std::task::{Context, Poll};

use ctxtrace_abi::task_index;

use crate::registry::REGISTRY;
use crate::rings;
use crate::slot::{SLOT, State};
use crate::waker::OwnWaker;

/// Makes `future` a task that ctxtrace shows by `name`.
///
/// The task exists from this call on, and gets the next id. The name is cut to 40 bytes. The first 511 tasks of a
/// program have names. Later tasks have only an id, and their polls are counted together. Several tasks may have the
/// same name. Ids and names are never freed: a program that creates a task for each request should name its long-lived
/// tasks, and leave the others to the [hooks](crate::hook).
///
/// Pass the wrapper itself to the runtime. If it is polled by another future, its poll is nested: while it is polled,
/// the thread's task is this one, and afterwards the outer one again.
///
/// ```
/// let runtime = tokio::runtime::Builder::new_current_thread().build()?;
/// let answer = runtime.block_on(ctxtrace_probe::traced("root", async {
///     let worker = tokio::spawn(ctxtrace_probe::traced("worker", async { 6 * 7 }));
///     worker.await
/// }))?;
/// assert_eq!(answer, 42);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
pub fn traced<F: Future>(name: impl AsRef<str>, future: F) -> Traced<F> {
    Traced::new(REGISTRY.register(name.as_ref()), future)
}

/// A future whose polls ctxtrace sees, made by [`traced`].
///
/// It is `Send`, `Sync` and `Unpin` if the future in it is.
#[derive(Debug)]
#[must_use = "a future does nothing unless it is polled"]
pub struct Traced<F> {
    id: u64,
    index: u16,
    /// The waker that records wakes; `None` until one is needed.
    waker: Option<Box<OwnWaker>>,
    future: F,
}

impl<F> Traced<F> {
    fn new(id: u64, future: F) -> Self {
        Self {
            id,
            index: task_index(id),
            waker: None,
            future,
        }
    }
}

impl<F: Future> Future for Traced<F> {
    type Output = F::Output;

    #[inline]
    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<F::Output> {
        if !rings::is_plain() {
            return self.poll_otherwise(cx);
        }
        // SAFETY: `future` is pinned together with the struct: it is never moved out, no `Drop` implementation could
        // move it, the struct is not packed, and it is `Unpin` only if `F` is (by the compiler's automatic rule).
        let (id, index, future) = unsafe {
            let this = self.get_unchecked_mut();
            (this.id, this.index, Pin::new_unchecked(&mut this.future))
        };
        SLOT.with(|state| {
            let _polling = Polling {
                state,
                outer: state.begin(id, index),
            };
            future.poll(cx)
        })
    }
}

impl<F: Future> Traced<F> {
    /// Polls the future with stamps and with a waker of the probe's own, if polls are recorded. A thread's first poll
    /// also comes here, and determines whether they are.
    ///
    /// This function then calls the ordinary `poll` through a pointer that is opaque to the compiler. So the future's
    /// code is generated only once, in the ordinary `poll`.
    #[cold]
    #[inline(never)]
    fn poll_otherwise(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<F::Output> {
        type PollFn<F> = fn(Pin<&mut Traced<F>>, &mut Context<'_>) -> Poll<<F as Future>::Output>;
        let poll = black_box(<Self as Future>::poll as PollFn<F>);
        if !rings::are_wanted() {
            return poll(self, cx);
        }
        let id = self.id;
        let outer = SLOT.with(State::task);
        // SAFETY: the pinned future is neither moved nor accessed.
        let own = unsafe { &mut self.as_mut().get_unchecked_mut().waker };
        // SAFETY: the copy can be used like a reference, because it is not dropped, and is not used after the waker in
        // `own` has changed. Only this function changes that waker, and `is_plain` prevents this function from being
        // called again within this poll. A reference would borrow `self`, and a clone would change the reference count.
        let waker = OwnWaker::of_task(own, cx.waker(), id, outer)
            .map(|waker| ManuallyDrop::new(unsafe { std::ptr::read(waker) }));
        let _polling = rings::Polling::begin(id, outer);
        match &waker {
            Some(waker) => poll(self, &mut Context::from_waker(waker)),
            None => poll(self, cx),
        }
    }
}

/// A poll in progress. The poll ends when this is dropped, also when a panic unwinds through it.
struct Polling<'a> {
    state: &'a State,
    outer: u64,
}

impl Drop for Polling<'_> {
    #[inline(always)]
    fn drop(&mut self) {
        self.state.end(self.outer);
    }
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;
    use std::future::{poll_fn, ready};
    use std::marker::PhantomPinned;
    use std::panic::{AssertUnwindSafe, catch_unwind};
    use std::pin::pin;
    use std::task::Waker;
    use std::thread;

    use ctxtrace_abi::{NAMED_TASKS, ThreadState};

    use super::*;
    use crate::slot::SLOT;

    fn state() -> ThreadState {
        SLOT.with(State::copy)
    }

    fn poll_once<F: Future>(future: Pin<&mut F>) -> Poll<F::Output> {
        future.poll(&mut Context::from_waker(Waker::noop()))
    }

    /// Runs `test` on a new thread, whose slot has not been used.
    fn on_a_new_thread(test: impl FnOnce() + Send + 'static) {
        if let Err(panic) = thread::spawn(test).join() {
            std::panic::resume_unwind(panic);
        }
    }

    #[test]
    fn the_task_is_named_while_it_is_polled_and_not_after() {
        on_a_new_thread(|| {
            let mut future = pin!(Traced::new(9, poll_fn(|_| Poll::Ready(state().slot.task))));
            assert_eq!(poll_once(future.as_mut()), Poll::Ready(9));
            let state = state();
            assert_eq!((state.slot.task, state.slot.polls), (0, 1));
            assert_eq!(state.tables.polls_by_task[9], 1);
        });
    }

    #[test]
    fn a_future_in_a_future_is_named_itself_and_then_the_outer_again() {
        on_a_new_thread(|| {
            let mut future = pin!(Traced::new(3, async {
                let inner = Traced::new(4, async { state().slot.task }).await;
                (inner, state().slot.task)
            }));
            assert_eq!(poll_once(future.as_mut()), Poll::Ready((4, 3)));
            let slot = state().slot;
            assert_eq!((slot.task, slot.polls, slot.nested_polls), (0, 1, 1));
        });
    }

    #[test]
    fn a_panic_ends_the_polls_it_goes_through() {
        on_a_new_thread(|| {
            let seen = Cell::new((0, 0));
            let mut future = pin!(Traced::new(
                3,
                poll_fn(|_| {
                    let mut inner = pin!(Traced::new(
                        4,
                        poll_fn(|_| -> Poll<()> { panic!("deliberate panic of the test") })
                    ));
                    let panic = catch_unwind(AssertUnwindSafe(|| poll_once(inner.as_mut())));
                    assert!(panic.is_err());
                    seen.set((state().slot.task, state().slot.nested_polls));
                    if true {
                        panic!("second deliberate panic of the test");
                    }
                    Poll::Ready(())
                })
            ));
            let panic = catch_unwind(AssertUnwindSafe(|| poll_once(future.as_mut())));
            assert!(panic.is_err());
            assert_eq!(seen.get(), (3, 1));
            let state = state();
            assert_eq!((state.slot.task, state.slot.polls), (0, 1));
            assert_eq!(state.tables.messages_per_poll[0], 1);
        });
    }

    #[test]
    fn a_task_without_a_name_has_its_id_and_the_common_index() {
        on_a_new_thread(|| {
            let id = NAMED_TASKS as u64 + 7;
            let mut future = pin!(Traced::new(id, poll_fn(|_| Poll::Ready(state().slot.task))));
            assert_eq!(poll_once(future.as_mut()), Poll::Ready(id));
            assert_eq!(state().tables.polls_by_task[0], 1);
        });
    }

    #[test]
    fn tasks_have_distinct_ids() {
        let first = traced("first", ready(1));
        let second = traced(String::from("second"), ready(2));
        assert!(first.id >= 1 && second.id > first.id);
    }

    #[test]
    fn the_wrapper_can_be_sent_and_moved_where_the_future_can() {
        fn has_all<T: Send + Sync + Unpin>(_: &T) {}
        has_all(&traced("ready", ready(1)));

        // These traits show that a type does not have a property: if it had, both implementations would apply, and `_`
        // would be ambiguous.
        trait NotSend<Marker> {
            const HOLDS: () = ();
        }
        impl<T> NotSend<()> for T {}
        impl<T: Send> NotSend<u8> for T {}
        let () = <Traced<*const u8> as NotSend<_>>::HOLDS;

        trait NotUnpin<Marker> {
            const HOLDS: () = ();
        }
        impl<T> NotUnpin<()> for T {}
        impl<T: Unpin> NotUnpin<u8> for T {}
        let () = <Traced<PhantomPinned> as NotUnpin<_>>::HOLDS;
    }
}
