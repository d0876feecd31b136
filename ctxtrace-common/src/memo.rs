//! A thread's kernel stack that is as it was at its last switch-out: told without walking it.
//!
//! Walking a kernel stack takes longer than all else that is done at a switch: for every frame the kernel searches its unwind
//! tables. But a thread that waits mostly waits where it waited before. So it is remembered where on the stack each return
//! address of the last walk lies; and if every one of these words is what it was, so is the stack:
//!
//! ```text
//!   top   ┌──────────────┐
//!         │ registers    │ of the user's code
//!         ├──────────────┤
//!         │ return into A│ ✓ the outermost frame begins at the top, so this is where A's call lies; it is the same call,
//!         │  …           │   so B was called, and its frame lies where it did
//!         │ return into B│ ✓ so this is where B's call lies; the same one, so C was called …
//!         │  …           │
//!         │ return into C│ ✓
//!   base  └──────────────┘ the arguments of the tracepoint: where they lie must be the same, too
//! ```
//!
//! From the outside in, each frame's place follows from the one before it, for a function's frame has one size at each of its
//! calls. (Where it has not, a variable-length array lies in it, or it was aligned at run time; the kernel has given up the
//! former and hardly uses the latter.) A word that only looks like a return address, left over from an earlier call, could be
//! taken for the place of one: then that word says nothing. Therefore one in [`CHECKED_ONE_IN`] is walked all the same, and what
//! differs is counted.

use bytemuck::{Pod, Zeroable};

use crate::stack::Stack;

/// Words of the stack that are looked at, from the tracepoint's arguments on.
pub const MEMO_WORDS: usize = 128;
/// Return addresses that are remembered. A stack with more is walked each time.
pub const MEMO_FRAMES: usize = 32;
/// So many of a thread's stacks in a row are taken for what they were; the next one is walked.
pub const CHECKED_ONE_IN: u32 = 64;
/// Innermost frames whose places lie below the tracepoint's arguments: our program itself, and what the kernel calls it through.
/// They are the same at every run.
const BELOW_THE_ARGUMENTS: usize = 3;

/// What is remembered of a thread's last kernel stack.
#[repr(C)]
#[derive(Clone, Copy, Debug, Pod, Zeroable)]
pub struct StackMemo {
    /// Its key in the stack table; 0 while there is none.
    pub key: u64,
    /// Address of the tracepoint's arguments.
    pub base: u64,
    /// Return addresses whose places are known; 0 while they are not.
    frames: u32,
    /// How often the stack was taken for this one since it was walked.
    pub reused: u32,
    /// Where each of them lies: words from the base.
    places: [u16; MEMO_FRAMES],
    /// The return addresses.
    addresses: [u64; MEMO_FRAMES],
}

impl StackMemo {
    /// Whether the places of the return addresses are known.
    #[inline(always)]
    #[must_use]
    pub fn is_placed(&self) -> bool {
        self.frames != 0
    }

    /// Remembers another stack, of which the places are not known.
    #[inline(always)]
    pub fn begin(&mut self, key: u64, base: u64) {
        (self.key, self.base) = (key, base);
        (self.frames, self.reused) = (0, 0);
    }

    /// Whether all return addresses are where they were, in these words from the base on.
    #[inline(always)]
    #[must_use]
    pub fn holds(&self, words: &[u64; MEMO_WORDS]) -> bool {
        let mut differing = 0;
        let mut index = 0;
        while index < MEMO_FRAMES {
            if index as u32 >= self.frames {
                break;
            }
            differing |= words[self.places[index] as usize & (MEMO_WORDS - 1)] ^ self.addresses[index];
            index += 1;
        }
        self.frames != 0 && differing == 0
    }

    /// Finds the places of a stack's return addresses, in the words from the base to the top of the stack, of which there are
    /// `count`. From the outside in, as each frame lies inside the one before it. What has no place that can be found is not
    /// remembered.
    #[inline(always)]
    pub fn place(&mut self, stack: &Stack, words: &[u64; MEMO_WORDS], count: usize) {
        self.frames = 0;
        let mut left = stack.depth as usize;
        let mut placed: usize = 0;
        let mut index = MEMO_WORDS;
        while index > 0 {
            index -= 1;
            if index >= count {
                continue;
            }
            // None is left: this is no index.
            let Some(&frame) = stack.frames.get(left.wrapping_sub(1)) else {
                break;
            };
            if words[index] != frame {
                continue;
            }
            let (Some(place), Some(address)) = (self.places.get_mut(placed), self.addresses.get_mut(placed)) else {
                return;
            };
            (*place, *address) = (index as u16, frame);
            placed += 1;
            left -= 1;
        }
        if left <= BELOW_THE_ARGUMENTS {
            self.frames = placed as u32;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const A: u64 = 0xffff_ffff_8100_0001;
    const B: u64 = 0xffff_ffff_8100_0002;
    const C: u64 = 0xffff_ffff_8100_0003;
    const OURS: u64 = 0xffff_ffff_c000_0000;

    fn stack(frames: &[u64]) -> Stack {
        let mut stack = Stack::zeroed();
        stack.depth = frames.len() as u64;
        stack.frames[..frames.len()].copy_from_slice(frames);
        stack
    }

    /// The innermost frame first, as walks give them; two of them lie below the arguments.
    fn walked() -> Stack {
        stack(&[OURS, OURS + 1, C, B, A])
    }

    /// Word by word from the base; what is not said is something else.
    fn words(places: &[(usize, u64)]) -> [u64; MEMO_WORDS] {
        let mut words: [u64; MEMO_WORDS] = core::array::from_fn(|index| 0x1000 + index as u64);
        for &(place, word) in places {
            words[place] = word;
        }
        words
    }

    const PLACES: [(usize, u64); 3] = [(3, C), (10, B), (20, A)];

    fn placed() -> StackMemo {
        let mut memo = StackMemo::zeroed();
        memo.begin(7, 0x8000);
        memo.place(&walked(), &words(&PLACES), 40);
        memo
    }

    #[test]
    fn a_stack_is_known_by_its_return_addresses_where_they_were() {
        let memo = placed();
        assert!(memo.is_placed());
        let mut others = words(&PLACES);
        others[4] = 99;
        others[39] = 99;
        assert!(memo.holds(&others), "locals may be what they like");
    }

    #[test]
    fn another_call_on_the_way_is_another_stack() {
        let memo = placed();
        for (place, _) in PLACES {
            let mut other = words(&PLACES);
            other[place] += 1;
            assert!(!memo.holds(&other), "{place}");
        }
        assert!(!memo.holds(&words(&[(4, C), (11, B), (20, A)])), "the same calls, deeper");
    }

    #[test]
    fn what_lies_inside_the_callee_is_no_place_of_its_caller() {
        let mut memo = StackMemo::zeroed();
        // A word that looks like a return into A, deeper than B's.
        memo.place(&walked(), &words(&[(3, C), (5, A), (10, B), (20, A)]), 40);
        assert!(memo.holds(&words(&[(3, C), (5, 0), (10, B), (20, A)])));
    }

    #[test]
    fn a_stack_of_which_a_frame_cannot_be_found_is_not_remembered() {
        let mut memo = StackMemo::zeroed();
        memo.place(&walked(), &words(&[(3, C), (10, B)]), 40);
        assert!(!memo.is_placed() && !memo.holds(&words(&[(3, C), (10, B)])));
        memo.place(&walked(), &words(&PLACES), 20);
        assert!(!memo.is_placed(), "a place beyond the top is none");
        let deep: std::vec::Vec<u64> = (0..=MEMO_FRAMES as u64).map(|frame| A + frame).collect();
        let places: std::vec::Vec<(usize, u64)> = deep.iter().copied().enumerate().collect();
        memo.place(&stack(&deep), &words(&places), MEMO_WORDS);
        assert!(!memo.is_placed(), "too deep");
    }

    #[test]
    fn nothing_is_known_of_what_was_not_walked() {
        assert!(!StackMemo::zeroed().holds(&words(&PLACES)));
        let mut memo = placed();
        memo.begin(8, 0x8000);
        assert!(!memo.holds(&words(&PLACES)));
    }

    #[test]
    fn whatever_is_walked_and_read_there_is_no_place_outside() {
        let mut memo = StackMemo::zeroed();
        let mut endless = walked();
        endless.depth = u64::MAX;
        memo.place(&endless, &words(&PLACES), usize::MAX);
        assert!(!memo.is_placed());
        memo.place(&stack(&[]), &words(&PLACES), 40);
        assert!(!memo.holds(&words(&PLACES)), "of no frames nothing is known");
    }
}
