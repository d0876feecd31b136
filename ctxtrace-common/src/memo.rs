//! Recognises a thread's kernel stack as one from an earlier switch-out, without walking it.
//!
//! Walking a kernel stack takes longer than all other work at a switch, because the kernel searches its unwind tables
//! for every frame. But a thread usually waits where it waited before. So the place on the stack of each return address
//! of the last walk is remembered. If every one of these words is still the same, so is the stack:
//!
//! ```text
//!   top   ┌──────────────┐
//!         │ registers    │ of the user's code
//!         ├──────────────┤
//!         │ return into A│   not checked: its place varies
//!         │  ░░░░░░░░░░  │   a gap of another size in each system call (CONFIG_RANDOMIZE_KSTACK_OFFSET)
//!         │ return into B│ ✓ so B called C, and B has only one caller
//!         │  …           │
//!         │ return into C│ ✓ so C called D; its frame has a fixed size, so B's call of C lies at the next place
//!         │  …           │
//!         │ return into D│ ✓ so D called us; its frame has a fixed size, so C's call of D lies at the next place
//!   base  └──────────────┘ the arguments of the tracepoint
//! ```
//!
//! From the innermost frame outwards, each place follows from the one before it, because a function's frame has the
//! same size at each of its calls. If it has not (because of a variable-length array, which the kernel does not use any
//! more, or alignment at run time), the words are not at their places, and the stack is walked. The outermost function,
//! an entry from user space, is the only caller of the next one.
//!
//! This reasoning is not proved for every kernel. In addition, a word that only looks like a return address, left over
//! from an earlier call, could be taken for the place of one, and would then prove nothing. Therefore one recognised
//! stack in [`CHECKED_ONE_IN`] is walked nevertheless, and stacks that differ are counted.

use bytemuck::{Pod, Zeroable};

use crate::stack::Stack;
use crate::words::store;

/// Number of stack words that are compared. A stack whose frames take more room is not remembered.
pub const MEMO_WORDS: usize = 128;
/// Number of return addresses that are remembered. A stack with more is always walked.
pub const MEMO_FRAMES: usize = 32;
/// When a remembered stack has been recognised this many times in a row, it is walked as a check.
pub const CHECKED_ONE_IN: u32 = 64;
/// Number of innermost frames whose place is not searched for: the function in which the kernel calls the programs of this
/// tracepoint. Its return address may lie below the tracepoint's arguments, and is the same each time.
const OURS: usize = 1;

/// A copied part of a kernel stack.
#[derive(Clone, Copy, Debug)]
pub struct Window<'a> {
    /// The words, in order of ascending addresses.
    pub words: &'a [u64; MEMO_WORDS],
    /// Number of valid words.
    pub length: usize,
    /// Index of the word at the base, where the tracepoint's arguments lie.
    pub base: usize,
}

/// What is remembered of one kernel stack.
#[repr(C)]
#[derive(Clone, Copy, Debug, Pod, Zeroable)]
pub struct StackMemo {
    /// Key of the stack in the stack table; 0 if no stack is remembered.
    pub key: u64,
    /// Number of return addresses whose places are known; 0 if no places are known.
    frames: u32,
    /// Number of times that the stack was recognised since it was walked.
    pub reused: u32,
    /// Number of words from the base to the end of the outermost place; 0 if no places are known.
    reach: u32,
    reserved: u32,
    /// Places of the return addresses, in words from the base.
    places: [u16; MEMO_FRAMES],
    /// The return addresses.
    addresses: [u64; MEMO_FRAMES],
}

const _: () = assert!(size_of::<StackMemo>() == 344);

impl StackMemo {
    /// Counts that the stack was recognised. Returns its key, or 0 if it is to be walked as a check.
    #[inline(always)]
    pub fn reuse(&mut self) -> u64 {
        self.reused += 1;
        if self.reused < CHECKED_ONE_IN { self.key } else { 0 }
    }

    /// Begins to remember another stack, whose places are not known yet.
    #[inline(always)]
    pub fn begin(&mut self, key: u64) {
        store(&mut self.key, key);
        store(&mut self.frames, 0);
        store(&mut self.reused, 0);
        store(&mut self.reach, 0);
    }

    /// Returns how many words from the base on must be compared to recognise the stack; 0 if it cannot be recognised.
    #[inline(always)]
    #[must_use]
    pub fn reach(&self) -> u32 {
        self.reach
    }

    /// Returns whether all return addresses are at their places.
    #[inline(always)]
    #[must_use]
    pub fn holds(&self, stack: Window<'_>) -> bool {
        // Words outside the window cannot be compared.
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

    /// Finds the places of the return addresses of a stack that was walked, from the innermost one outwards, because
    /// frames lie in this order. If one cannot be found, no place is remembered. `stack` must be the largest window.
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
            // The outermost frame is skipped, because its place varies between system calls.
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

    /// Returns the number of places found so far. It is read from memory and written back each time: if it were kept in
    /// a register, the verifier would follow each of its possible values, at each step of a loop, on a separate path.
    #[inline(always)]
    fn placed(&self) -> usize {
        // SAFETY: the pointer comes from a valid reference.
        unsafe { (&raw const self.frames).read_volatile() as usize }
    }

    #[inline(always)]
    fn set_placed(&mut self, placed: u32) {
        // SAFETY: the pointer comes from a valid reference.
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

    /// A stack with the innermost frame first, as a walk returns it.
    fn walked() -> Stack {
        stack(&[OUR, D, C, B, A])
    }

    /// Returns a copied stack with the given words at these distances from the base, and distinct other words
    /// everywhere else.
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
            "local variables may differ"
        );
        assert!(holds(&memo, BASE + 40, &PLACES), "the base may be elsewhere");
        assert!(
            holds(&memo, 0, &[(3, D), (10, C), (20, B), (60, A)]),
            "with a gap of another size"
        );
    }

    #[test]
    fn another_call_on_the_way_is_another_stack() {
        let memo = placed();
        for (place, word) in &PLACES[..3] {
            let mut other = PLACES;
            other.iter_mut().find(|of| of.0 == *place).expect("a known place").1 = word + 1;
            assert!(!holds(&memo, BASE, &other), "{place}");
        }
        assert!(
            !holds(&memo, BASE, &[(4, D), (11, C), (21, B), (41, A)]),
            "the same calls, deeper"
        );
    }

    #[test]
    fn what_lies_inside_the_callee_is_no_place_of_its_caller() {
        // A word inside D's frame that looks like a return into B.
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
        assert_eq!(memo.reach(), 21, "up to the outermost place that is remembered");
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
            assert!(!is_placed(&placed_by(&few, BASE, &PLACES)), "too few frames");
        }
    }
}
