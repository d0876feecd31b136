//! Stamps of polls and wakes, in rings that ctxtrace hands to the program it starts: `ctxtrace … --polls`.
//!
//! Nearly always there are none, and then this is one test a poll of a variable of the thread. Where there are, each thread
//! takes a ring of its own and writes one word for each beginning and end of an outermost poll, and for each wake: a reading
//! of the clock, the kind and the task. [`ctxtrace_abi::rings`] describes the memory. Nobody else writes to a thread's ring,
//! so the stores are plain ones, and the number that publishes them is a plain one, too (x86-64 keeps stores in their order).
//!
//! A ring is given back when its thread ends. After a `fork` the child's one thread takes another ring than its parent's.

use std::cell::Cell;
use std::ptr::null;
use std::sync::atomic::{AtomicU64, Ordering};

use ctxtrace_abi::HOOKED;
use ctxtrace_abi::rings::{BEGIN, CLAIMED, CLOCK_TSC, END, RingState, is_free, last, owner, record, short_task, what};

use self::system::Rings;

/// What a thread's polls are to be.
#[derive(Clone, Copy, PartialEq, Eq)]
enum How {
    /// Nobody has looked yet.
    Unknown,
    /// Polls and nothing else; also within a poll that is told.
    Plain,
    /// Told.
    Told,
}

/// How many records a thread without a ring counts as lost before it looks for a ring again.
const PATIENCE: u32 = 4_096;

/// Whether the calling thread's polls are polls and nothing else.
#[inline(always)]
pub(crate) fn is_plain() -> bool {
    HOW.get() == How::Plain
}

/// Whether they are to be told; to be asked where they are not plain.
pub(crate) fn are_wanted() -> bool {
    if HOW.get() == How::Unknown {
        HOW.set(match system::rings() {
            Some(_) => How::Told,
            None => How::Plain,
        });
    }
    HOW.get() == How::Told
}

/// A poll that is told, until it is dropped; those within it are plain.
pub(crate) struct Polling {
    is_outermost: bool,
}

impl Polling {
    /// Task `id` begins to be polled, within the poll of `outer`, if that is not 0: then only what is within it changes.
    pub(crate) fn begin(id: u64, outer: u64) -> Self {
        HOW.set(How::Plain);
        let is_outermost = outer == 0;
        if is_outermost {
            tell(what(BEGIN, short_task(id)));
        }
        Self { is_outermost }
    }
}

impl Drop for Polling {
    fn drop(&mut self) {
        if self.is_outermost {
            tell(what(END, 0));
        }
        HOW.set(How::Told);
    }
}

/// A hook announces a poll of `id`, while `current` was being polled.
#[cold]
#[inline(never)]
pub(crate) fn begin_hooked(id: u64, current: u64) {
    if !are_wanted() || current != 0 && current & HOOKED == 0 {
        return;
    }
    if current != 0 {
        // Its end was never announced.
        tell(what(END, 0));
    }
    tell(what(BEGIN, short_task(id)));
}

/// A hook announces the end of the poll of `current`, which began while `outer` was being polled.
#[cold]
#[inline(never)]
pub(crate) fn end_hooked(current: u64, outer: u64) {
    if are_wanted() && outer == 0 && current & HOOKED != 0 {
        tell(what(END, 0));
    }
}

/// Writes a record, with the time.
#[inline]
pub(crate) fn tell(what: u64) {
    // A thread's plain variables are there to its very end.
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

/// The ring of a thread; without a destructor, so that it can be used in those of others.
struct Writer {
    ring: Cell<*const RingState>,
    records: Cell<*const AtomicU64>,
    mask: Cell<u64>,
    by_tsc: Cell<bool>,
    /// Records to be counted as lost before the next try to get a ring.
    patience: Cell<u32>,
    /// The thread has given its ring back, and takes none any more.
    ended: Cell<bool>,
}

/// Gives the ring back when the thread ends.
struct GiveBack;

impl Drop for GiveBack {
    fn drop(&mut self) {
        WRITER.with(|writer| {
            writer.ended.set(true);
            writer.give_back();
        });
    }
}

/// An atomic view of a number in shared memory.
///
/// # Safety
///
/// `word` must be aligned, and in memory that is mapped for good and accessed by atomics alone.
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

    /// Writes a record to the ring, which there must be.
    #[inline(always)]
    fn write(&self, what: u64) {
        self.append(record(what, system::clock(self.by_tsc.get())));
    }

    #[inline(always)]
    fn append(&self, record: u64) {
        // SAFETY: `ring` is not null, so it and `records` are where `takes_a_ring` found them: in the mapping, which has
        // so many records as the mask lets through.
        unsafe {
            let head = shared(&raw const (*self.ring.get()).head);
            let number = head.load(Ordering::Relaxed);
            let place = self.records.get().add((number & self.mask.get()) as usize);
            (*place).store(record, Ordering::Relaxed);
            head.store(number.wrapping_add(1), Ordering::Release);
        }
    }

    /// Takes a free ring, if there is one. Otherwise the record that was to be written is counted as lost.
    #[cold]
    #[inline(never)]
    fn takes_a_ring(&self) -> bool {
        let Some(rings) = system::rings() else { return false };
        if !self.ended.get() && self.patience.get() == 0 && self.claims(rings) {
            return true;
        }
        self.patience
            .set(self.patience.get().checked_sub(1).unwrap_or(PATIENCE));
        rings.homeless().fetch_add(1, Ordering::Relaxed);
        false
    }

    fn claims(&self, rings: &Rings) -> bool {
        let owner = owner(std::process::id(), system::thread_id());
        let free = (0..rings.count()).find(|&index| {
            let state = rings.state(index);
            // SAFETY: in the mapping.
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
        // SAFETY: in the mapping.
        unsafe {
            let number = shared(&raw const (*state).head).load(Ordering::Relaxed);
            shared(&raw const (*state).since).store(number, Ordering::Release);
            shared(&raw const (*state).owner).store(owner, Ordering::Release);
        }
        self.append(owner);
        // A thread that is in its destructors already keeps the ring.
        let _ = GIVE_BACK.try_with(|_| ());
        true
    }

    fn give_back(&self) {
        let ring = self.ring.replace(null());
        if ring.is_null() {
            return;
        }
        // SAFETY: it was in the mapping, and is this thread's.
        let owner = unsafe { shared(&raw const (*ring).owner) };
        // Whose the records are must be known until they are read, however late that is.
        owner.store(last(owner.load(Ordering::Relaxed)), Ordering::Release);
    }
}

/// In a new process, on its one thread: the ring is the parent's.
extern "C" fn forked() {
    WRITER.with(|writer| writer.ring.set(null()));
}

/// What takes the operating system: finding and mapping the memory, reading the clock.
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

    // What the standard library links anyway; the crate has no dependency for it.
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

    /// The rings, mapped for as long as the process lives.
    pub(super) struct Rings {
        base: *mut u8,
        count: usize,
        capacity: u64,
        clock: u32,
    }

    // SAFETY: the memory is mapped for good, and accessed by atomics alone.
    unsafe impl Send for Rings {}
    // SAFETY: as above.
    unsafe impl Sync for Rings {}

    impl Rings {
        /// How many there are.
        pub(super) fn count(&self) -> usize {
            self.count
        }

        /// Records in each.
        pub(super) fn capacity(&self) -> u64 {
            self.capacity
        }

        /// Which clock the records have.
        pub(super) fn clock(&self) -> u32 {
            self.clock
        }

        /// A ring's state. `index` must be below `count`.
        pub(super) fn state(&self, index: usize) -> *const RingState {
            debug_assert!(index < self.count);
            // SAFETY: the mapping has so many of them there.
            unsafe { self.base.add(STATES_AT).cast::<RingState>().add(index) }
        }

        /// A ring's records.
        pub(super) fn records(&self, index: usize) -> *const AtomicU64 {
            debug_assert!(index < self.count);
            // SAFETY: the mapping has so many of them there.
            unsafe {
                let first = self.base.add(records_at(self.count)).cast::<AtomicU64>();
                first.add(index * self.capacity as usize)
            }
        }

        /// Counts records of threads without a ring.
        pub(super) fn homeless(&self) -> &AtomicU64 {
            // SAFETY: aligned, in the mapping, and accessed as an atomic only.
            unsafe { AtomicU64::from_ptr(&raw mut (*self.base.cast::<Header>()).homeless) }
        }
    }

    /// The rings that ctxtrace has left for this process; looked for once.
    pub(super) fn rings() -> Option<&'static Rings> {
        static RINGS: OnceLock<Option<Rings>> = OnceLock::new();
        RINGS.get_or_init(find).as_ref()
    }

    /// Something else may have come to be under the descriptor's number, so nothing is written before it has proved to be
    /// what was announced.
    fn find() -> Option<Rings> {
        let announced = std::env::var_os(VARIABLE)?;
        let (fd, nonce) = announced.to_str()?.split_once(',')?;
        let (fd, nonce): (RawFd, u128) = (fd.parse().ok()?, u128::from_str_radix(nonce, 16).ok()?);
        if fd < 0 {
            return None;
        }
        // It is not closed: programs that this one starts may want it, too.
        // SAFETY: whatever it is, it is only asked for its size and read.
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
        // SAFETY: a new mapping where the kernel likes, of a file that is that long.
        let base = unsafe { mmap(std::ptr::null_mut(), bytes, READ_AND_WRITE, SHARED, fd, 0) };
        if base as isize == -1 {
            return None;
        }
        // SAFETY: the function may be called in a new process: it changes a thread's plain variable.
        unsafe { pthread_atfork(None, None, Some(super::forked)) };
        Some(Rings {
            base: base.cast(),
            count,
            capacity: header.capacity,
            clock: header.clock,
        })
    }

    /// The calling thread's id.
    pub(super) fn thread_id() -> u32 {
        // SAFETY: this call takes nothing and cannot fail.
        unsafe { syscall(GETTID) as u32 }
    }

    /// What time it is, by one clock or the other.
    #[inline(always)]
    pub(super) fn clock(by_tsc: bool) -> u64 {
        if by_tsc {
            // SAFETY: the instruction is there, or ctxtrace would not have chosen this clock.
            unsafe { std::arch::x86_64::_rdtsc() }
        } else {
            monotonic_ns()
        }
    }

    #[cold]
    fn monotonic_ns() -> u64 {
        let mut time = [0; 2];
        // SAFETY: on x86-64 the structure is two 64-bit numbers.
        unsafe { clock_gettime(MONOTONIC, &raw mut time) };
        time[0] as u64 * 1_000_000_000 + time[1] as u64
    }
}

/// Elsewhere ctxtrace is not.
#[cfg(not(all(target_os = "linux", target_arch = "x86_64", not(miri))))]
mod system {
    use std::sync::atomic::AtomicU64;

    use ctxtrace_abi::rings::RingState;

    /// There are none.
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

        pub(super) fn homeless(&self) -> &AtomicU64 {
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
