//! Recognises a thread's user stack as one from an earlier switch-out, by following the frame pointers in a copy of the
//! stack.
//!
//! The kernel follows the frame pointers too (`perf_callchain_user()` in arch/x86/events/core.c). It reads them word by
//! word from user memory until a read fails, and that page fault takes longer than all the rest. Here the innermost
//! part of the stack is copied once, and only frames outside the copy are read one by one. A frame pointer that is a
//! small number, as the outermost one usually is, ends the chain without an attempt to read:
//!
//! ```text
//!         ┌────────────────┐
//!         │ return address │◄─┐ a link: two words
//!         │ frame pointer ─┼──┼──► the caller's link, and so on
//!         ├────────────────┤  │
//!         │ …              │  │
//!   rbp ─►│ frame pointer ─┼──┘
//!         └────────────────┘
//! ```
//!
//! The result is the hash of the stack ([`StackHash`]). It is used only in a comparison with the hashes of stacks that
//! the kernel has walked: if it equals one of them, the stacks have the same frames; otherwise the kernel walks the
//! stack.

use bytemuck::{Pod, Zeroable};

use crate::stack::StackHash;

/// Largest size of the copy in words: one page, so that the copy touches at most two pages.
pub const CHAIN_WORDS: usize = 512;
/// The same size in bytes.
const CHAIN_BYTES: u64 = 8 * CHAIN_WORDS as u64;

/// Maximum number of links that are followed. The kernel walks stacks with more.
pub const MOST_LINKS: usize = 64;

/// Lowest possible frame pointer. A lower value ends the chain, because nothing is mapped there (`vm.mmap_min_addr`).
pub const LOWEST_FRAME: u64 = 4_096;

const PAGE: u64 = 4_096;

/// After this many consecutive stacks that were followed and not recognised, the kernel walks most of this thread's
/// stacks for a while.
const MAX_FAILED_WALKS: u32 = 8;
/// During that time, one stack in this many is followed.
const RETRY_ONE_IN: u32 = 64;
/// Number of user stacks remembered for each thread.
const REMEMBERED: usize = 4;

/// The last distinct user stacks of a thread.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Pod, Zeroable)]
pub struct UserStacks {
    /// Keys of these stacks in the stack table, the one added last first; 0 for none.
    keys: [u64; REMEMBERED],
    /// Address of the first page above the readable part of the stack; 0 if it is not known.
    ends: u64,
    /// Number of consecutive stacks that were followed and not recognised.
    consecutive_failures: u32,
    /// Number of stacks that were left to the kernel since the last attempt to follow one.
    left: u32,
    /// Number of bytes in which the last recognised stacks lay, at most the size of the copy; 0 before the first one.
    reach: u32,
    reserved: u32,
}

const _: () = assert!(size_of::<UserStacks>() == 56);

impl UserStacks {
    /// Returns whether the next stack is to be followed.
    #[inline(always)]
    pub fn try_next(&mut self) -> bool {
        if self.consecutive_failures < MAX_FAILED_WALKS {
            return true;
        }
        self.left += 1;
        if self.left < RETRY_ONE_IN {
            return false;
        }
        self.left = 0;
        true
    }

    /// Returns how many bytes of the stack to copy from `frame` on: as many as the last recognised stacks needed, but
    /// none beyond the end of the stack, if that is known.
    #[inline(always)]
    #[must_use]
    pub fn to_copy(&self, frame: u64) -> u64 {
        let wanted = if self.reach == 0 {
            CHAIN_BYTES
        } else {
            u64::from(self.reach)
        };
        let left = self.ends.wrapping_sub(frame);
        if left < wanted { left & !7 } else { wanted }
    }

    /// Records how far a recognised stack from `frame` on reached. `inside` is the outermost link that was in the copy;
    /// `outside` is the outermost link that was not, but could have been in a larger copy. Deeper stacks of the past
    /// are forgotten gradually.
    #[inline(always)]
    pub fn reached(&mut self, frame: u64, inside: u64, outside: u64) {
        let outermost = if inside < outside { outside } else { inside };
        let bytes = reach(frame, outermost).unwrap_or(0) as u32;
        let forgotten = self.reach - self.reach / 16;
        let reach = if bytes < forgotten { forgotten } else { bytes };
        self.reach = reach & !7;
    }

    /// Records that a read of `bytes` bytes from `frame` on failed: the stack is assumed to end at the last page
    /// boundary within these bytes.
    #[inline(always)]
    pub fn is_unreadable(&mut self, frame: u64, bytes: u64) {
        self.ends = frame.wrapping_add(bytes - 1) & !(PAGE - 1);
    }

    /// Returns whether `key` is the key of one of these stacks, and counts the attempts for which it is not.
    #[inline(always)]
    pub fn takes(&mut self, key: u64) -> bool {
        let [a, b, c, d] = self.keys;
        let is_known = key != 0 && (key == a || key == b || key == c || key == d);
        self.consecutive_failures = if is_known { 0 } else { self.consecutive_failures + 1 };
        is_known
    }

    /// Remembers a stack that the kernel has walked.
    #[inline(always)]
    pub fn remember(&mut self, key: u64) {
        let [a, b, c, d] = self.keys;
        if key != a && key != b && key != c && key != d {
            self.keys = [key, a, b, c];
        }
    }
}

/// Returns the caller's frame pointer and the return address, if the link at `frame` lies in a copy of `bytes` bytes
/// from `copied_from` on.
#[inline(always)]
#[must_use]
pub fn link(copy: &[u64; CHAIN_WORDS], copied_from: u64, bytes: u64, frame: u64) -> Option<(u64, u64)> {
    let offset = frame.wrapping_sub(copied_from);
    if offset & 7 != 0 || offset.saturating_add(16) > bytes {
        return None;
    }
    // The index is in bounds. The remainder is for the verifier, which cannot derive that.
    let index = (offset / 8) as usize;
    Some((copy[index % CHAIN_WORDS], copy[(index + 1) % CHAIN_WORDS]))
}

/// Returns how many bytes a copy must have to contain the link at `frame`, or `None` if no copy can contain it.
#[inline(always)]
#[must_use]
pub fn reach(copied_from: u64, frame: u64) -> Option<u64> {
    let offset = frame.wrapping_sub(copied_from);
    if offset > CHAIN_BYTES - 16 {
        None
    } else {
        Some(offset + 16)
    }
}

/// A chain of frames, as far as it has been followed.
#[derive(Clone, Copy, Debug)]
pub struct Chain {
    hash: StackHash,
    frames: u64,
}

impl Chain {
    /// Begins a chain with the innermost frame, which is at this instruction.
    #[inline(always)]
    #[must_use]
    pub fn begin(ip: u64) -> Self {
        let mut hash = StackHash::BEGIN;
        hash.add(ip);
        Self { hash, frames: 1 }
    }

    /// Adds the next frame, which continues at this address.
    #[inline(always)]
    pub fn add(&mut self, address: u64) {
        self.hash.add(address);
        self.frames += 1;
    }

    /// Returns the key of the stack whose outermost frame was added last.
    #[inline(always)]
    #[must_use]
    pub fn key(self) -> u64 {
        self.hash.of_depth(self.frames)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::stack::Stack;

    const FROM: u64 = 0x7ffc_0000_0100;

    fn copy() -> [u64; CHAIN_WORDS] {
        core::array::from_fn(|index| 100 + index as u64)
    }

    #[test]
    fn a_link_is_two_words_of_the_copy() {
        let at = |frame| link(&copy(), FROM, CHAIN_BYTES, frame);
        assert_eq!(at(FROM), Some((100, 101)));
        assert_eq!(at(FROM + 80), Some((110, 111)));
        assert_eq!(at(FROM + CHAIN_BYTES - 16), Some((610, 611)));
    }

    #[test]
    fn what_is_not_in_the_copy_as_a_whole_is_not_there() {
        for frame in [
            FROM - 8,
            FROM + 4,
            FROM + CHAIN_BYTES - 8,
            FROM + CHAIN_BYTES,
            0,
            1,
            u64::MAX,
        ] {
            assert_eq!(link(&copy(), FROM, CHAIN_BYTES, frame), None, "{frame:#x}");
        }
        assert_eq!(link(&copy(), FROM, 32, FROM + 16), Some((102, 103)));
        assert_eq!(link(&copy(), FROM, 32, FROM + 24), None, "beyond the copied bytes");
        assert_eq!(link(&copy(), FROM, 0, FROM), None);
    }

    #[test]
    fn a_chain_comes_to_what_a_walk_comes_to() {
        let mut walked = Stack::zeroed();
        walked.depth = 3;
        walked.frames[..3].copy_from_slice(&[0x1000, 0x2000, 0x3000]);
        let mut chain = Chain::begin(0x1000);
        assert_ne!(chain.key(), walked.hash());
        chain.add(0x2000);
        chain.add(0x3000);
        assert_eq!(chain.key(), walked.hash());
        chain.add(0);
        assert_ne!(chain.key(), walked.hash(), "one frame more");
    }

    #[test]
    fn the_last_stacks_are_known() {
        let mut stacks = UserStacks::zeroed();
        assert!(!stacks.takes(0) && !stacks.takes(1));
        for key in 1..=5 {
            stacks.remember(key);
            stacks.remember(key);
        }
        assert!((1..=6).filter(|&key| stacks.takes(key)).eq([2, 3, 4, 5]));
    }

    #[test]
    fn repeated_failures_leave_stacks_to_the_kernel_for_a_while() {
        let mut stacks = UserStacks::zeroed();
        stacks.remember(1);
        let mut tried = 0;
        for _ in 0..MAX_FAILED_WALKS + 10 * RETRY_ONE_IN {
            if stacks.try_next() {
                tried += 1;
                assert!(!stacks.takes(2));
            }
        }
        assert_eq!(tried, MAX_FAILED_WALKS + 10);
        while !stacks.try_next() {}
        assert!(stacks.takes(1));
        assert!(stacks.try_next() && stacks.takes(1), "no longer backing off");
    }

    #[test]
    fn what_cannot_be_read_is_not_tried_again() {
        let mut stacks = UserStacks::zeroed();
        let top = 0x7ffc_0000_3000;
        assert_eq!(stacks.to_copy(top - 100 * 8), CHAIN_BYTES);
        stacks.is_unreadable(top - 100 * 8, CHAIN_BYTES);
        assert_eq!(stacks.to_copy(top - 100 * 8), 800);
        assert_eq!(stacks.to_copy(top - CHAIN_BYTES), CHAIN_BYTES, "up to the stack's end");
        assert_eq!(stacks.to_copy(top - 12), 8, "only whole words");
        assert_eq!(stacks.to_copy(top), 0);
        assert_eq!(stacks.to_copy(top + 8), CHAIN_BYTES, "another stack");
    }

    #[test]
    fn no_more_is_copied_than_the_last_ones_took() {
        let mut stacks = UserStacks::zeroed();
        assert_eq!(stacks.to_copy(FROM), CHAIN_BYTES, "no stack recognised yet");
        stacks.reached(FROM, FROM + 1000, FROM);
        assert_eq!(stacks.to_copy(FROM), 1016);
        stacks.reached(FROM, FROM, FROM);
        assert_eq!(stacks.to_copy(FROM), 952, "after a shallow stack");
        stacks.reached(FROM, FROM + 800, FROM + 1984);
        assert_eq!(stacks.to_copy(FROM), 2000);
        for _ in 0..200 {
            stacks.reached(FROM, FROM, FROM);
        }
        assert!((16..128).contains(&stacks.to_copy(FROM)), "{}", stacks.to_copy(FROM));
        assert_eq!(reach(FROM, FROM + CHAIN_BYTES - 16), Some(CHAIN_BYTES));
        for far in [FROM + CHAIN_BYTES - 8, FROM - 8, 0] {
            assert_eq!(reach(FROM, far), None);
        }
    }
}
