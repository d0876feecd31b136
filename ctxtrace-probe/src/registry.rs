//! The state that a program has once for all its threads: the tasks' names, and the measured section.

use std::cell::UnsafeCell;
use std::sync::atomic::{AtomicU64, Ordering, compiler_fence};

use ctxtrace_abi::{NAME_BYTES, NAMED_TASKS, Registry};

use crate::expose::expose;

/// The program's registry. Its symbol contains no crate name or version, so a program that contains two copies of this
/// crate does not link. If it did, each copy would number tasks on its own.
#[unsafe(export_name = "CTXTRACE_PROBE_REGISTRY")]
pub(crate) static REGISTRY: Shared = Shared::new();

/// A [`Registry`] that all threads write and the kernel side reads.
#[repr(transparent)]
pub(crate) struct Shared(UnsafeCell<Registry>);

// SAFETY: `section` and `tasks` are accessed only as atomics. A name is written only once, by the call of `register`
// that obtained its id.
unsafe impl Sync for Shared {}

impl Shared {
    pub(crate) const fn new() -> Self {
        Self(UnsafeCell::new(Registry::EMPTY))
    }

    /// Returns the address at which ctxtrace finds the registry.
    pub(crate) fn address(&self) -> u64 {
        expose(self.0.get());
        self.0.get() as u64
    }

    /// Returns the number of the measured section that the program is in, or 0.
    #[inline(always)]
    pub(crate) fn section(&self) -> u64 {
        self.section_number().load(Ordering::Relaxed)
    }

    #[inline(always)]
    pub(crate) fn section_number(&self) -> &AtomicU64 {
        // SAFETY: the field is aligned, lives as long as `self`, and is accessed only as an atomic.
        unsafe { AtomicU64::from_ptr(&raw mut (*self.0.get()).section) }
    }

    fn tasks(&self) -> &AtomicU64 {
        // SAFETY: as above.
        unsafe { AtomicU64::from_ptr(&raw mut (*self.0.get()).tasks) }
    }

    /// Returns the id of a new task. If there is room for a name, the name has been stored when this returns.
    pub(crate) fn register(&self, name: &str) -> u64 {
        let id = self.tasks().fetch_add(1, Ordering::Relaxed) + 1;
        if id < NAMED_TASKS as u64 {
            let name = cut(name);
            // All bytes of the entry are written, the zeroes too: BPF programs cannot read memory that was never
            // touched.
            let mut padded = [0; NAME_BYTES];
            padded[..name.len()].copy_from_slice(name.as_bytes());
            // SAFETY: the id is below the number of names, and no other call gets the same id, so no other call writes
            // this entry.
            unsafe { (&raw mut (*self.0.get()).names[id as usize]).write_volatile(padded) };
            compiler_fence(Ordering::SeqCst);
        }
        id
    }
}

/// Returns the longest prefix of a name that has room, in whole characters.
fn cut(name: &str) -> &str {
    let mut end = name.len().min(NAME_BYTES);
    while !name.is_char_boundary(end) {
        end -= 1;
    }
    &name[..end]
}

#[cfg(test)]
mod tests {
    use std::thread;

    use ctxtrace_abi::MAGIC;

    use super::*;

    /// Returns the name of a task whose registration has finished.
    fn name(registry: &Shared, id: u64) -> String {
        // SAFETY: the index is in bounds, and the entry is not written any more.
        let name = unsafe { (*registry.0.get()).names[id as usize] };
        let length = name.iter().position(|byte| *byte == 0).unwrap_or(NAME_BYTES);
        String::from_utf8(name[..length].to_vec()).expect("UTF-8")
    }

    #[test]
    fn ids_count_from_one_and_names_are_theirs() {
        let registry = Box::new(Shared::new());
        assert_eq!(registry.register("sender"), 1);
        assert_eq!(registry.register(""), 2);
        assert_eq!(registry.register("receiver"), 3);
        assert_eq!(name(&registry, 1), "sender");
        assert_eq!(name(&registry, 2), "");
        assert_eq!(name(&registry, 3), "receiver");
        // SAFETY: no thread writes the registry at this point.
        let registry = unsafe { *registry.0.get() };
        assert_eq!((registry.magic, registry.section, registry.tasks), (MAGIC, 0, 3));
    }

    #[test]
    fn a_long_name_is_cut_between_characters() {
        let registry = Box::new(Shared::new());
        let cases = [
            ("a".repeat(NAME_BYTES), "a".repeat(NAME_BYTES)),
            ("a".repeat(NAME_BYTES + 1), "a".repeat(NAME_BYTES)),
            // Two bytes for each character: the 20th one ends exactly at the limit.
            ("é".repeat(30), "é".repeat(20)),
            // The character that begins at byte 39 needs two bytes.
            (format!("a{}", "é".repeat(30)), format!("a{}", "é".repeat(19))),
            // A character of four bytes that begins at byte 37, 38 or 39 does not fit; one that begins at byte 36 does.
            (format!("{}🦀", "a".repeat(37)), "a".repeat(37)),
            (format!("{}🦀", "a".repeat(38)), "a".repeat(38)),
            (format!("{}🦀", "a".repeat(39)), "a".repeat(39)),
            (format!("{}🦀b", "a".repeat(36)), format!("{}🦀", "a".repeat(36))),
        ];
        for (given, kept) in cases {
            let id = registry.register(&given);
            assert_eq!(name(&registry, id), kept, "{given}");
        }
    }

    #[test]
    fn tasks_beyond_the_names_have_ids_all_the_same() {
        let registry = Box::new(Shared::new());
        for id in 1..=NAMED_TASKS as u64 + 100 {
            assert_eq!(registry.register(&format!("task {id}")), id);
        }
        assert_eq!(name(&registry, 0), "");
        assert_eq!(name(&registry, 1), "task 1");
        assert_eq!(name(&registry, NAMED_TASKS as u64 - 1), "task 511");
        assert_eq!(registry.tasks().load(Ordering::Relaxed), NAMED_TASKS as u64 + 100);
    }

    #[test]
    fn threads_that_register_at_once_get_ids_of_their_own() {
        let registry = Box::new(Shared::new());
        thread::scope(|scope| {
            for thread in 0..4 {
                let registry = &registry;
                scope.spawn(move || {
                    for n in 0..100 {
                        let given = format!("{thread}/{n}");
                        let id = registry.register(&given);
                        assert_eq!(name(registry, id), given);
                    }
                });
            }
        });
        assert_eq!(registry.tasks().load(Ordering::Relaxed), 400);
    }
}
