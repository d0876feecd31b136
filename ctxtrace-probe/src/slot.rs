//! The slot: a thread-local variable of the executable, in which a thread keeps what it is doing.
//!
//! The reader is a BPF program that the kernel runs on this very thread, at a switch. Like a signal handler, it runs
//! between any two instructions of this code and sees memory exactly as this thread does. So no store needs an ordering
//! between CPUs. It is only necessary that the compiler emits every store, in the order written, before or after the
//! poll as written. Three measures ensure that:
//!
//! * All accesses are relaxed atomics, which on x86-64 are plain instructions without a lock.
//! * A `compiler_fence` is placed where an order matters. It generates no instruction.
//! * The address is passed to code that is opaque to the compiler ([`expose`]), so that an optimiser that sees the
//!   whole program cannot conclude that the slot is never read.

use std::cell::UnsafeCell;
use std::sync::atomic::{AtomicU16, AtomicU64, Ordering, compiler_fence};

use ctxtrace_abi::{HOOKED, MAGIC, RECENT_POLLS, RUNTIME_THREAD, TASK_INDICES, ThreadState, bucket, message_bucket};

use crate::expose::expose;
use crate::registry::REGISTRY;

thread_local! {
    /// The calling thread's state. It starts as zeroes and has no destructor, so it is a plain thread-local variable of
    /// the executable (`.tbss`), with a symbol of its own and no code to initialise it. ctxtrace finds it by that
    /// symbol.
    pub(crate) static SLOT: State = const { State::new() };
}

/// A [`ThreadState`] that one thread writes and the kernel side reads.
#[repr(transparent)]
pub(crate) struct State(UnsafeCell<ThreadState>);

const _: () = assert!(size_of::<State>() == size_of::<ThreadState>() && !std::mem::needs_drop::<State>());

/// An atomic view of one field of a [`State`]: `word!(self, slot.task)`, `word!(self, tables.recent[n]: AtomicU16)`.
macro_rules! word {
    ($state:ident, $($field:tt)+) => { word!(@ $state, [] $($field)+) };
    (@ $state:ident, [$($done:tt)+] : $atomic:ident) => {
        // SAFETY: the field is aligned, lives as long as `$state`, and is accessed only through such views.
        unsafe { $atomic::from_ptr(&raw mut (*$state.0.get()).$($done)+) }
    };
    (@ $state:ident, [$($done:tt)+]) => { word!(@ $state, [$($done)+] : AtomicU64) };
    (@ $state:ident, [$($done:tt)*] $next:tt $($rest:tt)*) => { word!(@ $state, [$($done)* $next] $($rest)*) };
}

/// Adds to a counter that only this thread writes: a load and a store, or one `add` without a lock.
#[inline(always)]
fn add(counter: &AtomicU64, more: u64) {
    counter.store(counter.load(Ordering::Relaxed).wrapping_add(more), Ordering::Relaxed);
}

/// Prevents the compiler from moving any memory access past this point. Generates no instruction.
#[inline(always)]
fn in_this_order() {
    compiler_fence(Ordering::SeqCst);
}

impl State {
    pub(crate) const fn new() -> Self {
        Self(UnsafeCell::new(ThreadState::EMPTY))
    }

    /// Records that a poll begins. Returns the task that was being polled until now, or 0, which must be passed to
    /// [`end`](Self::end).
    #[inline(always)]
    #[must_use]
    pub(crate) fn begin(&self, id: u64, index: u16) -> u64 {
        let outer = word!(self, slot.task).load(Ordering::Relaxed);
        if outer == 0 {
            self.begin_outermost(id, index);
        } else {
            self.begin_nested(id);
        }
        outer
    }

    /// Records the end of the poll that began while `outer` was being polled.
    #[inline(always)]
    pub(crate) fn end(&self, outer: u64) {
        in_this_order();
        if outer == 0 {
            self.count_messages();
        }
        word!(self, slot.task).store(outer, Ordering::Relaxed);
        in_this_order();
    }

    #[inline(always)]
    fn begin_outermost(&self, id: u64, index: u16) {
        if word!(self, slot.magic).load(Ordering::Relaxed) == 0 {
            self.begin_first(id, index);
        } else {
            self.begin_usual(id, index);
        }
    }

    /// Begins the thread's first poll. This function does all of the work, so that its caller need not save registers
    /// across the call.
    #[cold]
    #[inline(never)]
    fn begin_first(&self, id: u64, index: u16) {
        self.set_up();
        self.begin_usual(id, index);
    }

    #[inline(always)]
    fn begin_usual(&self, id: u64, index: u16) {
        in_this_order();
        word!(self, slot.task).store(id, Ordering::Relaxed);
        in_this_order();

        let poll = word!(self, slot.polls).load(Ordering::Relaxed).wrapping_add(1);
        let nth = poll as usize % RECENT_POLLS;
        word!(self, tables.recent[nth]: AtomicU16).store(index, Ordering::Relaxed);
        // The index is always in bounds; the remainder lets the compiler omit the bounds check.
        let index = usize::from(index) % TASK_INDICES;
        add(word!(self, tables.polls_by_task[index]), 1);
        let last_task = word!(self, tables.last_task);
        add(
            word!(self, slot.repolls),
            u64::from(last_task.load(Ordering::Relaxed) == id),
        );
        last_task.store(id, Ordering::Relaxed);
        word!(self, slot.section).store(REGISTRY.section(), Ordering::Relaxed);
        let messages = word!(self, slot.messages).load(Ordering::Relaxed);
        word!(self, tables.messages_before).store(messages, Ordering::Relaxed);

        in_this_order();
        word!(self, slot.polls).store(poll, Ordering::Relaxed);
        in_this_order();
    }

    #[inline(always)]
    fn begin_nested(&self, id: u64) {
        in_this_order();
        add(word!(self, slot.nested_polls), 1);
        word!(self, slot.task).store(id, Ordering::Relaxed);
        in_this_order();
    }

    /// Counts the outermost poll that is ending by the number of messages marked in it.
    #[inline(always)]
    fn count_messages(&self) {
        let messages = word!(self, slot.messages).load(Ordering::Relaxed);
        let before = word!(self, tables.messages_before).load(Ordering::Relaxed);
        let messages = messages.wrapping_sub(before);
        let bucket = if messages < bucket::SUB_BUCKETS as u64 {
            messages as usize
        } else {
            many(messages)
        };
        add(word!(self, tables.messages_per_poll[bucket]), 1);
    }

    /// Records that a runtime's hook announces a poll. Returns the task to return to when the poll ends, or 0.
    ///
    /// If a hooked task is still being polled, the end of its poll was never announced. It is ended here; otherwise all
    /// later polls of the thread would count as nested.
    #[inline(always)]
    #[must_use]
    pub(crate) fn begin_hooked(&self, id: u64, index: u16) -> u64 {
        let outer = word!(self, slot.task).load(Ordering::Relaxed);
        if outer == 0 {
            self.begin_outermost(id, index);
            0
        } else if outer & HOOKED != 0 {
            self.end(0);
            self.begin_outermost(id, index);
            0
        } else {
            self.begin_nested(id);
            outer
        }
    }

    /// Records that a runtime's hook announces the end of a poll. Does nothing if no hooked task is being polled.
    #[inline(always)]
    pub(crate) fn end_hooked(&self, outer: u64) {
        if word!(self, slot.task).load(Ordering::Relaxed) & HOOKED != 0 {
            self.end(outer);
        }
    }

    /// Returns the innermost task being polled, or 0.
    #[inline(always)]
    pub(crate) fn task(&self) -> u64 {
        word!(self, slot.task).load(Ordering::Relaxed)
    }

    /// Marks one message.
    #[inline(always)]
    pub(crate) fn message(&self) {
        add(word!(self, slot.messages), 1);
    }

    /// Marks the thread as a thread of a runtime.
    pub(crate) fn mark_runtime_thread(&self) {
        self.set_up();
        let flags = word!(self, slot.flags);
        flags.store(flags.load(Ordering::Relaxed) | RUNTIME_THREAD, Ordering::Relaxed);
    }

    /// Sets the section at once, without waiting for the next poll.
    pub(crate) fn enter_section(&self, number: u64) {
        self.set_up();
        word!(self, slot.section).store(number, Ordering::Relaxed);
    }

    /// Prepares the slot for ctxtrace. The magic is stored last, so that everything else is valid when ctxtrace sees
    /// it.
    #[cold]
    #[inline(never)]
    fn set_up(&self) {
        self.touch();
        expose(self.0.get());
        word!(self, tables.registry).store(REGISTRY.address(), Ordering::Relaxed);
        in_this_order();
        word!(self, slot.magic).store(MAGIC, Ordering::Relaxed);
        in_this_order();
    }

    /// Writes to every page of the state. The kernel side cannot read memory that was never touched, because it may not
    /// wait for a page. glibc clears thread-local variables by writing to them, but other C libraries may not.
    fn touch(&self) {
        const PAGE: usize = 4_096;
        let first = self.0.get().cast::<u8>();
        let last = size_of::<ThreadState>() - 1;
        for offset in (0..last).step_by(PAGE).chain([last]) {
            // SAFETY: the byte is within the state, which only this thread writes.
            unsafe {
                let byte = first.add(offset);
                byte.write_volatile(byte.read_volatile());
            }
        }
    }

    /// Returns a copy of the whole state.
    #[cold]
    pub(crate) fn copy(&self) -> ThreadState {
        // SAFETY: only the calling thread writes the state.
        unsafe { self.0.get().read_volatile() }
    }
}

/// Returns the bucket of a number of messages that has no bucket of its own. A separate function, to keep it out of the
/// common path.
#[inline(never)]
fn many(messages: u64) -> usize {
    message_bucket(messages)
}

#[cfg(test)]
mod tests {
    use std::thread;

    use ctxtrace_abi::Slot;

    use super::*;

    /// A poll that ends immediately.
    fn poll(state: &State, id: u64) {
        let outer = state.begin(id, id as u16);
        state.end(outer);
    }

    #[test]
    fn a_slot_that_was_never_used_is_all_zeroes() {
        assert_eq!(State::new().copy().slot, Slot::default());
    }

    #[test]
    fn an_outermost_poll_is_counted_when_it_begins() {
        let state = State::new();
        let outer = state.begin(7, 7);
        assert_eq!(outer, 0);
        let during = state.copy();
        assert_eq!((during.slot.magic, during.slot.task, during.slot.polls), (MAGIC, 7, 1));
        assert_eq!(during.tables.registry, REGISTRY.address());
        assert_eq!(during.tables.recent[1], 7);
        assert_eq!(during.tables.messages_per_poll[0], 0);

        state.end(outer);
        let after = state.copy();
        assert_eq!((after.slot.task, after.slot.polls), (0, 1));
        assert_eq!(after.tables.polls_by_task[7], 1);
        assert_eq!(after.tables.messages_per_poll[0], 1);
    }

    #[test]
    fn only_a_poll_of_the_same_task_as_before_is_a_repoll() {
        let state = State::new();
        for id in [1, 1, 2, 1, 1, 1] {
            poll(&state, id);
        }
        let state = state.copy();
        assert_eq!((state.slot.polls, state.slot.repolls), (6, 3));
        assert_eq!(state.tables.polls_by_task[..4], [0, 5, 1, 0]);
    }

    #[test]
    fn nested_polls_name_the_innermost_task_and_count_apart() {
        let state = State::new();
        let first = state.begin(1, 1);
        let second = state.begin(2, 2);
        let third = state.begin(3, 3);
        assert_eq!((first, second, third), (0, 1, 2));
        assert_eq!(state.copy().slot.task, 3);
        state.end(third);
        assert_eq!(state.copy().slot.task, 2);
        state.end(second);
        assert_eq!(state.copy().slot.task, 1);
        state.end(first);

        poll(&state, 1);
        let state = state.copy();
        assert_eq!(state.slot.task, 0);
        assert_eq!(
            (state.slot.polls, state.slot.nested_polls, state.slot.repolls),
            (2, 2, 1)
        );
        assert_eq!(state.tables.polls_by_task[..4], [0, 2, 0, 0]);
        assert_eq!(state.tables.messages_per_poll[0], 2);
    }

    #[test]
    fn the_last_polls_are_remembered_by_their_number() {
        let state = State::new();
        for number in 1..=RECENT_POLLS as u64 + 3 {
            poll(&state, number % 1_000);
        }
        let recent = state.copy().tables.recent;
        // Polls 1,025 to 1,027 have replaced polls 1 to 3.
        assert_eq!(recent[..6], [24, 25, 26, 27, 4, 5]);
        assert_eq!(recent[RECENT_POLLS - 1], 23);
    }

    #[test]
    fn messages_are_counted_and_fall_to_the_poll_they_were_marked_in() {
        let state = State::new();
        state.message();
        for messages in [0, 3, 3, 15, 16, 40, 1 << 20] {
            let outer = state.begin(1, 1);
            for marked in 0..messages {
                if marked == 1 {
                    // It does not matter where in the poll a message is marked.
                    let outer = state.begin(2, 2);
                    state.message();
                    state.end(outer);
                } else {
                    state.message();
                }
            }
            state.end(outer);
        }
        let state = state.copy();
        assert_eq!(state.slot.messages, 1 + 77 + (1 << 20));
        let mut expected = [0; ctxtrace_abi::MESSAGE_BUCKETS];
        for messages in [0, 3, 3, 15, 16, 40, 1 << 20] {
            expected[message_bucket(messages)] += 1;
        }
        assert_eq!(state.tables.messages_per_poll, expected);
        assert_eq!(state.tables.messages_per_poll.iter().sum::<u64>(), state.slot.polls);
    }

    #[test]
    fn messages_marked_between_polls_belong_to_none() {
        let state = State::new();
        poll(&state, 1);
        state.message();
        poll(&state, 1);
        let state = state.copy();
        assert_eq!(state.slot.messages, 1);
        assert_eq!(state.tables.messages_per_poll[..2], [2, 0]);
    }

    #[test]
    fn a_thread_of_a_runtime_is_recognised_before_its_first_poll() {
        let state = State::new();
        state.message();
        assert_eq!(state.copy().slot.magic, 0);
        state.mark_runtime_thread();
        let state = state.copy();
        assert_eq!((state.slot.magic, state.slot.flags), (MAGIC, RUNTIME_THREAD));
        assert_eq!((state.slot.polls, state.slot.messages), (0, 1));
        assert_eq!(state.tables.registry, REGISTRY.address());
    }

    #[test]
    fn threads_have_slots_of_their_own() {
        let counts = [3, 5].map(|polls| {
            thread::spawn(move || {
                SLOT.with(|state| {
                    for _ in 0..polls {
                        poll(state, 1);
                    }
                    state.copy().slot
                })
            })
        });
        let [first, second] = counts.map(|thread| thread.join().expect("no panic"));
        assert_eq!((first.polls, first.repolls), (3, 2));
        assert_eq!((second.polls, second.repolls), (5, 4));
    }
}
