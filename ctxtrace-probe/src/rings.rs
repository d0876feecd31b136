//! Stamps of polls and wakes, in rings that ctxtrace passes to the program it starts: `ctxtrace … --polls`.
//!
//! Usually there are no rings, and then the cost is one test of a thread-local variable per poll. If there are rings,
//! each thread claims one of its own, and writes one word to it for each beginning and end of an outermost poll, and
//! for each wake: the clock's reading, the kind and the task. [`ctxtrace_abi::rings`] describes the memory. Only the
//! owning thread writes to a ring, so the records are plain stores, and so is the number that publishes them (x86-64
//! keeps stores in their order).
//!
//! A thread gives its ring back when it ends. After a `fork`, the only thread of the child claims a ring other than its
//! parent's.

use std::cell::Cell;
use std::ptr::null;
use std::sync::atomic::{AtomicU64, Ordering};

use ctxtrace_abi::HOOKED;
use ctxtrace_abi::rings::{BEGIN, CLAIMED, CLOCK_TSC, END, RingState, is_free, last, owner, record, short_task, what};

use self::system::Rings;

/// Whether a thread records its polls.
#[derive(Clone, Copy, PartialEq, Eq)]
enum How {
    /// Not decided yet.
    Unknown,
    /// Polls are not recorded: there are no rings, or the thread is within a recorded poll.
    Plain,
    /// Outermost polls are recorded in the thread's ring.
    Recorded,
}

/// Number of records that a thread without a ring drops between two attempts to claim one.
const PATIENCE: u32 = 4_096;

/// Returns whether the calling thread's polls are known not to be recorded.
#[inline(always)]
pub(crate) fn is_plain() -> bool {
    HOW.get() == How::Plain
}

/// Returns whether the calling thread's polls are to be recorded. Call it only if [`is_plain`] returns false.
pub(crate) fn are_wanted() -> bool {
    if HOW.get() == How::Unknown {
        HOW.set(match system::rings() {
            Some(_) => How::Recorded,
            None => How::Plain,
        });
    }
    HOW.get() == How::Recorded
}

/// A recorded poll in progress. Dropping it records the end of the poll. Polls within it are not recorded.
pub(crate) struct Polling {
    is_outermost: bool,
}

impl Polling {
    /// Begins the poll of task `id`. `outer` is the task whose poll it is within, or 0. Only an outermost poll is
    /// recorded.
    pub(crate) fn begin(id: u64, outer: u64) -> Self {
        HOW.set(How::Plain);
        let is_outermost = outer == 0;
        if is_outermost {
            write_record(what(BEGIN, short_task(id)));
        }
        Self { is_outermost }
    }
}

impl Drop for Polling {
    fn drop(&mut self) {
        if self.is_outermost {
            write_record(what(END, 0));
        }
        HOW.set(How::Recorded);
    }
}

/// Records that a hook announces a poll of `id` while `current` was being polled, or no task if that is 0.
#[cold]
#[inline(never)]
pub(crate) fn begin_hooked(id: u64, current: u64) {
    if !are_wanted() || current != 0 && current & HOOKED == 0 {
        return;
    }
    if current != 0 {
        // The end of the current poll was never announced.
        write_record(what(END, 0));
    }
    write_record(what(BEGIN, short_task(id)));
}

/// Records that a hook announces the end of the poll of `current`, which began while `outer` was being polled.
#[cold]
#[inline(never)]
pub(crate) fn end_hooked(current: u64, outer: u64) {
    if are_wanted() && outer == 0 && current & HOOKED != 0 {
        write_record(what(END, 0));
    }
}

/// Writes a record, with the current time.
#[inline]
pub(crate) fn write_record(what: u64) {
    // This variable has no destructor, so it can be used until the thread ends.
    WRITER.with(|writer| {
        if !writer.ring.get().is_null() || writer.takes_a_ring() {
            writer.write(what);
        }
    });
}

thread_local! {
    static HOW: Cell<How> = const { Cell::new(How::Unknown) };
    static WRITER: Writer = const { Writer::none() };
    static GIVE_BACK: GiveBack = const { GiveBack };
}

/// The ring that a thread writes to. It has no destructor, so that it can be used in the destructors of other
/// thread-local variables.
struct Writer {
    ring: Cell<*const RingState>,
    records: Cell<*const AtomicU64>,
    mask: Cell<u64>,
    by_tsc: Cell<bool>,
    /// Number of records to drop before the next attempt to claim a ring.
    patience: Cell<u32>,
    /// Whether the thread has given its ring back. If so, it claims no other.
    ended: Cell<bool>,
}

/// Gives the thread's ring back when the thread ends.
struct GiveBack;

impl Drop for GiveBack {
    fn drop(&mut self) {
        WRITER.with(|writer| {
            writer.ended.set(true);
            writer.give_back();
        });
    }
}

/// Returns an atomic view of a number in shared memory.
///
/// # Safety
///
/// `word` must be aligned, and in memory that stays mapped and is accessed only by atomics.
unsafe fn shared<'a>(word: *const u64) -> &'a AtomicU64 {
    // SAFETY: as above.
    unsafe { AtomicU64::from_ptr(word.cast_mut()) }
}

impl Writer {
    const fn none() -> Self {
        Self {
            ring: Cell::new(null()),
            records: Cell::new(null()),
            mask: Cell::new(0),
            by_tsc: Cell::new(false),
            patience: Cell::new(0),
            ended: Cell::new(false),
        }
    }

    /// Writes a record to the ring. The thread must have a ring.
    #[inline(always)]
    fn write(&self, what: u64) {
        self.append(record(what, system::clock(self.by_tsc.get())));
    }

    #[inline(always)]
    fn append(&self, record: u64) {
        // SAFETY: `ring` is not null, so `ring` and `records` are those that `claims` found: they are in the mapping,
        // and every index that the mask lets through is below the number of records.
        unsafe {
            let head = shared(&raw const (*self.ring.get()).head);
            let number = head.load(Ordering::Relaxed);
            let place = self.records.get().add((number & self.mask.get()) as usize);
            (*place).store(record, Ordering::Relaxed);
            head.store(number.wrapping_add(1), Ordering::Release);
        }
    }

    /// Claims a free ring, if there is one. Otherwise counts the record that was to be written as dropped.
    #[cold]
    #[inline(never)]
    fn takes_a_ring(&self) -> bool {
        let Some(rings) = system::rings() else { return false };
        if !self.ended.get() && self.patience.get() == 0 && self.claims(rings) {
            return true;
        }
        self.patience
            .set(self.patience.get().checked_sub(1).unwrap_or(PATIENCE));
        rings.dropped_without_ring().fetch_add(1, Ordering::Relaxed);
        false
    }

    fn claims(&self, rings: &Rings) -> bool {
        let owner = owner(std::process::id(), system::thread_id());
        let free = (0..rings.count()).find(|&index| {
            let state = rings.state(index);
            // SAFETY: the state is in the mapping.
            let owned_by = unsafe { shared(&raw const (*state).owner) };
            let before = owned_by.load(Ordering::Relaxed);
            is_free(before)
                && owned_by
                    .compare_exchange(before, CLAIMED, Ordering::Acquire, Ordering::Relaxed)
                    .is_ok()
        });
        let Some(index) = free else { return false };
        let state = rings.state(index);
        self.ring.set(state);
        self.records.set(rings.records(index));
        self.mask.set(rings.capacity() - 1);
        self.by_tsc.set(rings.clock() == CLOCK_TSC);
        // SAFETY: the state is in the mapping.
        unsafe {
            let number = shared(&raw const (*state).head).load(Ordering::Relaxed);
            shared(&raw const (*state).since).store(number, Ordering::Release);
            shared(&raw const (*state).owner).store(owner, Ordering::Release);
        }
        self.append(owner);
        // This fails if the thread's variables are being destroyed already. The ring is then never given back.
        let _ = GIVE_BACK.try_with(|_| ());
        true
    }

    fn give_back(&self) {
        let ring = self.ring.replace(null());
        if ring.is_null() {
            return;
        }
        // SAFETY: the state is in the mapping, and the ring belongs to this thread.
        let owner = unsafe { shared(&raw const (*ring).owner) };
        // The owner remains named, because the reader must know whose records these are until it has read them.
        owner.store(last(owner.load(Ordering::Relaxed)), Ordering::Release);
    }
}

/// Runs in the new process after a `fork`, on its only thread. The ring belongs to the parent.
extern "C" fn forked() {
    WRITER.with(|writer| writer.ring.set(null()));
}

/// Code that depends on the operating system: finding and mapping the memory, reading the clock.
#[cfg(all(target_os = "linux", target_arch = "x86_64", not(miri)))]
mod system {
    use std::ffi::{c_int, c_long, c_void};
    use std::fs::File;
    use std::mem::ManuallyDrop;
    use std::os::fd::{FromRawFd, RawFd};
    use std::os::unix::fs::FileExt;
    use std::sync::OnceLock;
    use std::sync::atomic::AtomicU64;

    use ctxtrace_abi::rings::{Header, MAGIC, RingState, STATES_AT, VARIABLE, records_at, total_bytes};

    // Functions of the C library, which the standard library links anyway. Declared here, so that the crate needs no
    // dependency.
    unsafe extern "C" {
        fn mmap(address: *mut c_void, bytes: usize, access: c_int, flags: c_int, fd: c_int, offset: i64)
        -> *mut c_void;
        fn pthread_atfork(
            before: Option<extern "C" fn()>,
            parent: Option<extern "C" fn()>,
            child: Option<extern "C" fn()>,
        ) -> c_int;
        fn syscall(number: c_long, ...) -> c_long;
        fn clock_gettime(clock: c_int, time: *mut [i64; 2]) -> c_int;
    }

    const READ_AND_WRITE: c_int = 1 | 2;
    const SHARED: c_int = 1;
    const GETTID: c_long = 186;
    const MONOTONIC: c_int = 1;

    /// The rings, which stay mapped for the life of the process.
    pub(super) struct Rings {
        base: *mut u8,
        count: usize,
        capacity: u64,
        clock: u32,
    }

    // SAFETY: the memory stays mapped, and is accessed only by atomics.
    unsafe impl Send for Rings {}
    // SAFETY: as above.
    unsafe impl Sync for Rings {}

    impl Rings {
        /// Returns the number of rings.
        pub(super) fn count(&self) -> usize {
            self.count
        }

        /// Returns the number of records that each ring holds.
        pub(super) fn capacity(&self) -> u64 {
            self.capacity
        }

        /// Returns the number of the clock that the records use ([`Header::clock`]).
        pub(super) fn clock(&self) -> u32 {
            self.clock
        }

        /// Returns the state of a ring. `index` must be below `count`.
        pub(super) fn state(&self, index: usize) -> *const RingState {
            debug_assert!(index < self.count);
            // SAFETY: the mapping has `count` states there.
            unsafe { self.base.add(STATES_AT).cast::<RingState>().add(index) }
        }

        /// Returns the address of a ring's first record. `index` must be below `count`.
        pub(super) fn records(&self, index: usize) -> *const AtomicU64 {
            debug_assert!(index < self.count);
            // SAFETY: the mapping has the records of `count` rings there.
            unsafe {
                let first = self.base.add(records_at(self.count)).cast::<AtomicU64>();
                first.add(index * self.capacity as usize)
            }
        }

        /// Returns the number of records that were dropped because their thread had no ring.
        pub(super) fn dropped_without_ring(&self) -> &AtomicU64 {
            // SAFETY: the field is aligned, in the mapping, and accessed only as an atomic.
            unsafe { AtomicU64::from_ptr(&raw mut (*self.base.cast::<Header>()).dropped_without_ring) }
        }
    }

    /// Returns the rings that ctxtrace has passed to this process, if any. They are searched for only once.
    pub(super) fn rings() -> Option<&'static Rings> {
        static RINGS: OnceLock<Option<Rings>> = OnceLock::new();
        RINGS.get_or_init(find).as_ref()
    }

    /// Maps the rings. The descriptor's number may refer to another file by now, so the memory is mapped only after its
    /// header has been checked against the environment variable.
    fn find() -> Option<Rings> {
        let announced = std::env::var_os(VARIABLE)?;
        let (fd, nonce) = announced.to_str()?.split_once(',')?;
        let (fd, nonce): (RawFd, u128) = (fd.parse().ok()?, u128::from_str_radix(nonce, 16).ok()?);
        if fd < 0 {
            return None;
        }
        // The descriptor is not closed, because programs that this one starts may use it, too.
        // SAFETY: the file behind the descriptor is only read and asked for its size, and never closed here.
        let file = ManuallyDrop::new(unsafe { File::from_raw_fd(fd) });
        let mut words = [0; size_of::<Header>()];
        file.read_exact_at(&mut words, 0).ok()?;
        let header = Header::from_bytes(words);
        let is_meant = header.magic == MAGIC && header.nonce == [(nonce >> 64) as u64, nonce as u64];
        let (count, capacity) = (header.rings as usize, header.capacity as usize);
        let is_sound = count > 0 && count < 1 << 20 && capacity.is_power_of_two() && capacity < 1 << 32;
        if !is_meant || !is_sound || file.metadata().ok()?.len() < total_bytes(count, capacity) as u64 {
            return None;
        }
        let bytes = total_bytes(count, capacity);
        // SAFETY: a new mapping at an address that the kernel chooses, of a file that is at least that long.
        let base = unsafe { mmap(std::ptr::null_mut(), bytes, READ_AND_WRITE, SHARED, fd, 0) };
        if base as isize == -1 {
            return None;
        }
        // SAFETY: `forked` may run in a new process, because it only changes a thread-local variable without a
        // destructor.
        unsafe { pthread_atfork(None, None, Some(super::forked)) };
        Some(Rings {
            base: base.cast(),
            count,
            capacity: header.capacity,
            clock: header.clock,
        })
    }

    /// Returns the calling thread's id.
    pub(super) fn thread_id() -> u32 {
        // SAFETY: this system call takes no arguments and cannot fail.
        unsafe { syscall(GETTID) as u32 }
    }

    /// Reads the time-stamp counter if `by_tsc`, otherwise `CLOCK_MONOTONIC`.
    #[inline(always)]
    pub(super) fn clock(by_tsc: bool) -> u64 {
        if by_tsc {
            // SAFETY: every CPU on which ctxtrace chooses this clock has the instruction.
            unsafe { std::arch::x86_64::_rdtsc() }
        } else {
            monotonic_ns()
        }
    }

    #[cold]
    fn monotonic_ns() -> u64 {
        let mut time = [0; 2];
        // SAFETY: on x86-64 the structure `timespec` consists of two 64-bit numbers.
        unsafe { clock_gettime(MONOTONIC, &raw mut time) };
        time[0] as u64 * 1_000_000_000 + time[1] as u64
    }
}

/// Replacement for platforms on which ctxtrace does not run, and for Miri: there are no rings.
#[cfg(not(all(target_os = "linux", target_arch = "x86_64", not(miri))))]
mod system {
    use std::sync::atomic::AtomicU64;

    use ctxtrace_abi::rings::RingState;

    /// A type without values.
    pub(super) enum Rings {}

    impl Rings {
        pub(super) fn count(&self) -> usize {
            match *self {}
        }

        pub(super) fn capacity(&self) -> u64 {
            match *self {}
        }

        pub(super) fn clock(&self) -> u32 {
            match *self {}
        }

        pub(super) fn state(&self, _index: usize) -> *const RingState {
            match *self {}
        }

        pub(super) fn records(&self, _index: usize) -> *const AtomicU64 {
            match *self {}
        }

        pub(super) fn dropped_without_ring(&self) -> &AtomicU64 {
            match *self {}
        }
    }

    pub(super) fn rings() -> Option<&'static Rings> {
        None
    }

    pub(super) fn thread_id() -> u32 {
        0
    }

    pub(super) fn clock(_by_tsc: bool) -> u64 {
        0
    }
}
