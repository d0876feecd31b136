//! Hooks for runtimes that announce the polls of all their tasks, whether the tasks are wrapped or not.
//!
//! tokio announces them if it is compiled with `RUSTFLAGS="--cfg tokio_unstable"`:
//!
//! ```ignore
//! let runtime = tokio::runtime::Builder::new_multi_thread()
//!     .on_thread_start(ctxtrace_probe::runtime_thread)
//!     .on_before_task_poll(|task| ctxtrace_probe::hook::before_poll(&task.id()))
//!     .on_after_task_poll(|_| ctxtrace_probe::hook::after_poll())
//!     .build()?;
//! ```
//!
//! (`tests/tokio_hooks.rs` of this crate compiles and runs this example; without that flag tokio has no such methods.)
//!
//! Hooked tasks have the runtime's own ids and no names. A [`traced`](crate::traced()) future in such a task is nested:
//! while the future is polled, the thread's task is the named one, and afterwards the hooked task again.
//!
//! What the hooks see differs from what a wrapper sees (tokio 1.54):
//!
//! * The time of a poll includes tokio's work around it: the future's destructor when the future is finished, and the
//!   wakeup of the task that joins it. A cancelled task is announced too, although its future is only dropped.
//! * The future given to `block_on`, and the futures of a `LocalSet`, are not announced. Wrap them.
//!
//! Both hooks must be set. tokio calls the second one even if the task panics, because tokio catches the panic in
//! between. If the end of a poll is missing nevertheless, the poll is treated as ended when the next poll is announced
//! on the same thread. So if a runtime with hooks is driven from within a hooked poll of another runtime
//! (`block_in_place`, then `block_on`), the outer poll ends early: for the rest of it, the thread appears to poll no
//! task.

use std::cell::Cell;
use std::hash::{Hash, Hasher};

use ctxtrace_abi::{HOOKED, task_index};

use crate::rings;
use crate::slot::{SLOT, State};

thread_local! {
    /// The traced future in whose poll the hooked poll was announced, or 0. It is not 0 if a runtime is driven from
    /// within a traced future.
    static OUTER: Cell<u64> = const { Cell::new(0) };
}

/// Records that the calling thread begins to poll the runtime's task `id`.
///
/// `id` is any value by which the runtime identifies a task. tokio's type is opaque, so the number in it is obtained by
/// hashing it.
#[inline]
pub fn before_poll(id: &impl Hash) {
    let id = HOOKED | number(id);
    if !rings::is_plain() {
        rings::begin_hooked(id, SLOT.with(State::task));
    }
    OUTER.set(SLOT.with(|state| state.begin_hooked(id, task_index(id))));
}

/// Records the end of the poll that was announced last on the calling thread. Does nothing if there is no such poll.
#[inline]
pub fn after_poll() {
    if !rings::is_plain() {
        rings::end_hooked(SLOT.with(State::task), OUTER.get());
    }
    SLOT.with(|state| state.end_hooked(OUTER.get()));
}

/// Returns the integer that an id consists of, without the two highest bits, which the probe uses itself.
#[inline(always)]
fn number(id: &impl Hash) -> u64 {
    let mut number = Number(0);
    id.hash(&mut number);
    number.finish() & (HOOKED - 1)
}

/// A "hash" that equals the hashed integer if exactly one integer was hashed.
struct Number(u64);

impl Hasher for Number {
    #[inline(always)]
    fn finish(&self) -> u64 {
        self.0
    }

    #[inline(always)]
    fn write_u64(&mut self, number: u64) {
        // Several integers are combined, so that different sequences usually give different results.
        self.0 = self.0.rotate_left(24) ^ number;
    }

    /// Receives integers of other sizes, in the byte order of the machine.
    #[inline]
    fn write(&mut self, bytes: &[u8]) {
        for part in bytes.chunks(8) {
            let mut number = [0; 8];
            if cfg!(target_endian = "little") {
                number[..part.len()].copy_from_slice(part);
            } else {
                number[8 - part.len()..].copy_from_slice(part);
            }
            self.write_u64(u64::from_ne_bytes(number));
        }
    }
}

#[cfg(test)]
mod tests {
    use std::future::{Future, poll_fn};
    use std::pin::pin;
    use std::task::{Context, Poll, Waker};
    use std::thread;

    use ctxtrace_abi::ThreadState;

    use super::*;
    use crate::slot::State;
    use crate::traced;

    fn state() -> ThreadState {
        SLOT.with(State::copy)
    }

    fn task() -> u64 {
        state().slot.task
    }

    /// Polls a traced future that calls `inside`, and returns the future's id and the result of `inside`.
    fn in_a_traced_poll<T>(inside: impl Fn() -> T) -> (u64, T) {
        let mut future = pin!(traced("traced", poll_fn(|_| Poll::Ready((task(), inside())))));
        match future.as_mut().poll(&mut Context::from_waker(Waker::noop())) {
            Poll::Ready(result) => result,
            Poll::Pending => unreachable!("the future is ready at once"),
        }
    }

    /// Runs `test` on a new thread, whose slot has not been used.
    fn on_a_new_thread(test: impl FnOnce() + Send + 'static) {
        if let Err(panic) = thread::spawn(test).join() {
            std::panic::resume_unwind(panic);
        }
    }

    #[test]
    fn an_id_is_the_integer_in_it_whatever_its_type() {
        #[derive(Hash)]
        struct Id(std::num::NonZeroU64);
        assert_eq!(number(&Id(std::num::NonZeroU64::MIN)), 1);
        assert_eq!(number(&0x0102_0304_0506_0708_u64), 0x0102_0304_0506_0708);
        assert_eq!(number(&77_u32), 77);
        assert_eq!(number(&77_usize), 77);
        assert_eq!(number(&77_u8), 77);
        assert_ne!(number(&(1, 2)), number(&(2, 1)));
        assert_eq!(number(&u64::MAX), HOOKED - 1);
    }

    #[test]
    fn tokios_ids_are_the_numbers_it_prints() {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .build()
            .expect("a runtime can be built");
        for _ in 0..3 {
            let id = runtime.spawn(async {}).id();
            assert_eq!(number(&id).to_string(), id.to_string());
        }
    }

    #[test]
    fn a_hooked_poll_is_an_outermost_one() {
        on_a_new_thread(|| {
            for id in [5_u64, 5, 600] {
                before_poll(&id);
                assert_eq!(task(), HOOKED | id);
                after_poll();
                assert_eq!(task(), 0);
            }
            let state = state();
            assert_eq!(
                (state.slot.polls, state.slot.repolls, state.slot.nested_polls),
                (3, 1, 0)
            );
            assert_eq!(state.tables.polls_by_task[usize::from(task_index(HOOKED | 5))], 2);
            assert_eq!(state.tables.polls_by_task[0], 1);
            assert_eq!(state.tables.messages_per_poll[0], 3);
        });
    }

    #[test]
    fn a_traced_future_in_a_hooked_poll_is_nested_and_gives_the_task_back() {
        on_a_new_thread(|| {
            before_poll(&5_u64);
            let (id, ()) = in_a_traced_poll(|| ());
            assert_eq!(id & HOOKED, 0);
            assert_eq!(task(), HOOKED | 5);
            after_poll();
            let slot = state().slot;
            assert_eq!((slot.task, slot.polls, slot.nested_polls), (0, 1, 1));
        });
    }

    #[test]
    fn a_hooked_poll_in_a_traced_one_is_nested_and_gives_the_task_back() {
        on_a_new_thread(|| {
            let (id, (during, after)) = in_a_traced_poll(|| {
                before_poll(&5_u64);
                let during = task();
                after_poll();
                (during, task())
            });
            assert_eq!((during, after), (HOOKED | 5, id));
            let slot = state().slot;
            assert_eq!((slot.task, slot.polls, slot.nested_polls), (0, 1, 1));
        });
    }

    #[test]
    fn a_poll_whose_end_is_missing_does_not_make_the_next_ones_nested() {
        on_a_new_thread(|| {
            before_poll(&5_u64);
            before_poll(&6_u64);
            assert_eq!(task(), HOOKED | 6);
            after_poll();
            assert_eq!(task(), 0);
            before_poll(&7_u64);
            after_poll();
            let state = state();
            assert_eq!((state.slot.task, state.slot.polls, state.slot.nested_polls), (0, 3, 0));
            assert_eq!(state.tables.messages_per_poll[0], 3);

            // The same holds if the unfinished poll was within a traced one.
            in_a_traced_poll(|| before_poll(&8_u64));
            assert_eq!(task(), 0);
            before_poll(&9_u64);
            after_poll();
            assert_eq!(task(), 0);
        });
    }

    #[test]
    fn an_end_without_a_beginning_does_nothing() {
        on_a_new_thread(|| {
            after_poll();
            assert_eq!(state().slot, ctxtrace_abi::Slot::default());
            let (id, after) = in_a_traced_poll(|| {
                after_poll();
                task()
            });
            assert_eq!(after, id);
            assert_eq!(state().tables.messages_per_poll[0], 1);
        });
    }
}
