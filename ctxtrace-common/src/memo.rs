//! A thread's kernel stack that is as it was at a switch-out before: told without walking it.
//!
//! Walking a kernel stack takes longer than all else that is done at a switch: for every frame the kernel searches its unwind
//! tables. But a thread that waits mostly waits where it waited before. So it is remembered where on the stack each return
//! address of the last walk lies; and if every one of these words is what it was, so is the stack:
//!
//! ```text
//!   top   ┌──────────────┐
//!         │ registers    │ of the user's code
//!         ├──────────────┤
//!         │ return into A│   not looked at: it lies wherever it likes
//!         │  ░░░░░░░░░░  │   a gap of another size in each system call (CONFIG_RANDOMIZE_KSTACK_OFFSET)
//!         │ return into B│ ✓ so B called C, and B has one caller
//!         │  …           │
//!         │ return into C│ ✓ so C called D, and its frame has the size it had: this is where B's call lies …
//!         │  …           │
//!         │ return into D│ ✓ so D called us, and its frame has the size it had: this is where C's call lies
//!   base  └──────────────┘ the arguments of the tracepoint
//! ```
//!
//! From the inside out, each place follows from the one before it, for a function's frame has one size at each of its calls.
//! Where it has not (a variable-length array, of which the kernel has got rid, or alignment at run time), words are not where
//! they were, and the stack is walked. The outermost function, an entry from user space, is the only caller of the next one.
//!
//! What this rests on is not proved for every kernel, and a word that only looks like a return address, left over from an
//! earlier call, could be taken for the place of one, and then says nothing. Therefore one in [`CHECKED_ONE_IN`] is walked all
//! the same, and what differs is counted.

use bytemuck::{Pod, Zeroable};

use crate::stack::Stack;
use crate::words::store;

/// Words of the stack that are looked at. Of a stack whose frames take more room nothing is remembered.
pub const MEMO_WORDS: usize = 128;
/// Return addresses that are remembered. A stack with more is walked each time.
pub const MEMO_FRAMES: usize = 32;
/// So many of a thread's stacks in a row are taken for what they were; the next one is walked.
pub const CHECKED_ONE_IN: u32 = 64;
/// Innermost frames that are not looked for: what the kernel calls programs at this tracepoint through, which may lie below the
/// arguments and is the same each time.
const OURS: usize = 1;

/// A part of a stack.
#[derive(Clone, Copy, Debug)]
pub struct Window<'a> {
    /// Its words, towards the top.
    pub words: &'a [u64; MEMO_WORDS],
    /// How many there are.
    pub length: usize,
    /// Which of them is at the base.
    pub base: usize,
}

/// What is remembered of a kernel stack.
#[repr(C)]
#[derive(Clone, Copy, Debug, Pod, Zeroable)]
pub struct StackMemo {
    /// Its key in the stack table; 0 while there is none.
    pub key: u64,
    /// Return addresses whose places are known; 0 while they are not.
    frames: u32,
    /// How often a stack has been taken for this one since it was walked.
    pub reused: u32,
    /// Words from the base to the end of the outermost place.
    reach: u32,
    reserved: u32,
    /// Where each of them lies: words from the base.
    places: [u16; MEMO_FRAMES],
    /// The return addresses.
    addresses: [u64; MEMO_FRAMES],
}

const _: () = assert!(size_of::<StackMemo>() == 344);

impl StackMemo {
    /// Takes a stack for this one, whose key it returns; 0 if it is time to walk one and see.
    #[inline(always)]
    pub fn reuse(&mut self) -> u64 {
        self.reused += 1;
        if self.reused < CHECKED_ONE_IN { self.key } else { 0 }
    }

    /// Remembers another stack, of which the places are not known.
    #[inline(always)]
    pub fn begin(&mut self, key: u64) {
        store(&mut self.key, key);
        store(&mut self.frames, 0);
        store(&mut self.reused, 0);
        store(&mut self.reach, 0);
    }

    /// How many words from the base on tell whether a stack is this one; 0 while nothing tells.
    #[inline(always)]
    #[must_use]
    pub fn reach(&self) -> u32 {
        self.reach
    }

    /// Whether all return addresses are where they were.
    #[inline(always)]
    #[must_use]
    pub fn holds(&self, stack: Window<'_>) -> bool {
        // Outside the window it is not known to be the same.
        if self.reach == 0 || stack.base + self.reach as usize > stack.length {
            return false;
        }
        let mut differing = 0;
        let mut index = 0;
        while index < MEMO_FRAMES {
            if index as u32 >= self.frames {
                break;
            }
            let place = self.places[index] as usize + stack.base;
            differing |= stack.words[place % MEMO_WORDS] ^ self.addresses[index];
            index += 1;
        }
        differing == 0
    }

    /// Finds the places of the return addresses of a stack that was walked, from the inside out, as each frame lies inside the
    /// next one. Where one cannot be found nothing is remembered. The window is the largest there can be.
    #[inline(always)]
    pub fn place(&mut self, walked: &Stack, stack: Window<'_>) {
        self.reach = 0;
        self.set_placed(0);
        let mut from_base = 0;
        while from_base < MEMO_WORDS {
            let Some(&word) = stack.words.get(stack.base + from_base) else {
                break;
            };
            from_base += 1;
            let placed = self.placed();
            let frame = placed + OURS;
            // The outermost one is not looked for.
            if frame + 1 >= walked.depth as usize {
                break;
            }
            if walked.frames.get(frame) != Some(&word) {
                continue;
            }
            let (Some(place), Some(address)) = (self.places.get_mut(placed), self.addresses.get_mut(placed)) else {
                break;
            };
            (*place, *address) = (from_base as u16 - 1, word);
            self.reach = from_base as u32;
            self.set_placed(placed as u32 + 1);
        }
        if self.placed() + OURS + 1 != walked.depth as usize {
            self.reach = 0;
        }
    }

    /// How many have a place. Read from memory and written to it each time: of a register the verifier would follow each value
    /// it can have, at each step of a loop, on a path of its own.
    #[inline(always)]
    fn placed(&self) -> usize {
        // SAFETY: a valid reference.
        unsafe { (&raw const self.frames).read_volatile() as usize }
    }

    #[inline(always)]
    fn set_placed(&mut self, placed: u32) {
        // SAFETY: a valid reference.
        unsafe { (&raw mut self.frames).write_volatile(placed) };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const A: u64 = 0xffff_ffff_8100_0001;
    const B: u64 = 0xffff_ffff_8100_0002;
    const C: u64 = 0xffff_ffff_8100_0003;
    const D: u64 = 0xffff_ffff_8100_0004;
    const OUR: u64 = 0xffff_ffff_c000_0000;
    const BASE: usize = 5;

    fn stack(frames: &[u64]) -> Stack {
        let mut stack = Stack::zeroed();
        stack.depth = frames.len() as u64;
        stack.frames[..frames.len()].copy_from_slice(frames);
        stack
    }

    /// The innermost frame first, as walks give them.
    fn walked() -> Stack {
        stack(&[OUR, D, C, B, A])
    }

    /// Words by their distance from the base; what is not said is something else.
    fn words(base: usize, places: &[(usize, u64)]) -> [u64; MEMO_WORDS] {
        let mut words: [u64; MEMO_WORDS] = core::array::from_fn(|index| 0x1000 + index as u64);
        for &(place, word) in places {
            words[base + place] = word;
        }
        words
    }

    const PLACES: [(usize, u64); 4] = [(3, D), (10, C), (20, B), (40, A)];

    fn holds(memo: &StackMemo, base: usize, places: &[(usize, u64)]) -> bool {
        memo.holds(Window {
            words: &words(base, places),
            length: MEMO_WORDS,
            base,
        })
    }

    fn placed_by(walked: &Stack, base: usize, places: &[(usize, u64)]) -> StackMemo {
        let mut memo = StackMemo::zeroed();
        memo.begin(7);
        memo.place(
            walked,
            Window {
                words: &words(base, places),
                length: MEMO_WORDS,
                base,
            },
        );
        memo
    }

    fn is_placed(memo: &StackMemo) -> bool {
        memo.reach() > 0
    }

    fn placed() -> StackMemo {
        placed_by(&walked(), BASE, &PLACES)
    }

    #[test]
    fn a_stack_is_known_by_its_return_addresses_where_they_were() {
        let memo = placed();
        assert!(holds(&memo, BASE, &PLACES));
        assert!(
            holds(&memo, BASE, &[(3, D), (4, 99), (10, C), (11, 99), (20, B), (40, A)]),
            "locals may be what they like"
        );
        assert!(holds(&memo, BASE + 40, &PLACES), "and it may lie elsewhere");
        assert!(
            holds(&memo, 0, &[(3, D), (10, C), (20, B), (60, A)]),
            "with another gap"
        );
    }

    #[test]
    fn another_call_on_the_way_is_another_stack() {
        let memo = placed();
        for (place, word) in &PLACES[..3] {
            let mut other = PLACES;
            other.iter_mut().find(|of| of.0 == *place).expect("there").1 = word + 1;
            assert!(!holds(&memo, BASE, &other), "{place}");
        }
        assert!(
            !holds(&memo, BASE, &[(4, D), (11, C), (21, B), (41, A)]),
            "the same calls, deeper"
        );
    }

    #[test]
    fn what_lies_inside_the_callee_is_no_place_of_its_caller() {
        // A word that looks like a return into B, inside D's frame.
        let memo = placed_by(&walked(), BASE, &[(1, B), (3, D), (10, C), (20, B), (40, A)]);
        assert!(holds(&memo, BASE, &PLACES));
    }

    #[test]
    fn a_stack_of_which_a_frame_cannot_be_found_is_not_remembered() {
        let memo = placed_by(&walked(), BASE, &[(3, D), (20, B), (40, A)]);
        assert!(!is_placed(&memo) && !holds(&memo, BASE, &[(3, D), (20, B), (40, A)]));
        let below = placed_by(&walked(), 10, &[(3, C), (10, D), (20, B)]);
        assert!(!is_placed(&below), "in another order");
        assert!(!is_placed(&placed_by(&walked(), MEMO_WORDS - 45, &[(3, D), (10, C)])));
        let deep: [u64; MEMO_FRAMES + OURS + 2] = core::array::from_fn(|frame| A + frame as u64);
        let places: [(usize, u64); MEMO_FRAMES + OURS + 2] = core::array::from_fn(|frame| (frame, A + frame as u64));
        assert!(!is_placed(&placed_by(&stack(&deep), 0, &places)), "too deep");
    }

    #[test]
    fn a_place_outside_the_window_is_not_where_it_was() {
        let memo = placed();
        let base = MEMO_WORDS - 15;
        let mut words = words(base, &[(3, D), (10, C)]);
        words[(base + 20) % MEMO_WORDS] = B;
        let length = MEMO_WORDS;
        assert!(!memo.holds(Window {
            words: &words,
            length,
            base
        }));
    }

    #[test]
    fn no_more_is_looked_at_than_was_copied() {
        let memo = placed();
        assert_eq!(memo.reach(), 21, "to the outermost one that is looked for");
        let words = words(0, &PLACES);
        let holds = |length| {
            memo.holds(Window {
                words: &words,
                length,
                base: 0,
            })
        };
        assert!(holds(21) && !holds(20) && !holds(0));
    }

    #[test]
    fn one_in_so_many_is_walked() {
        let mut memo = placed();
        for _ in 0..3 {
            let reused = (0..CHECKED_ONE_IN).filter(|_| memo.reuse() == 7).count();
            assert_eq!(reused, CHECKED_ONE_IN as usize - 1);
            memo.reused = 0;
        }
    }

    #[test]
    fn nothing_is_known_of_what_was_not_walked() {
        assert!(!holds(&StackMemo::zeroed(), BASE, &PLACES));
        let mut memo = placed();
        memo.begin(8);
        assert!(!holds(&memo, BASE, &PLACES));
    }

    #[test]
    fn whatever_is_walked_there_is_no_place_outside() {
        let mut endless = walked();
        endless.depth = u64::MAX;
        assert!(!is_placed(&placed_by(&endless, BASE, &PLACES)));
        for depth in 0..=OURS + 1 {
            let mut few = walked();
            few.depth = depth as u64;
            assert!(
                !is_placed(&placed_by(&few, BASE, &PLACES)),
                "of no frames nothing is known"
            );
        }
    }
}
