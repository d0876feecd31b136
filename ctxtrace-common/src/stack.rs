//! Stacks, and what switch-outs are summed by.

use bytemuck::{Pod, Zeroable};

/// Most frames kept of a kernel or a user stack (the kernel's own default, `kernel.perf_event_max_stack`).
pub const MAX_FRAMES: usize = 127;

/// One stack, innermost frame first; value of the stack table, whose key is [`Stack::hash`].
#[repr(C)]
#[derive(Clone, Copy, Debug, Pod, Zeroable)]
pub struct Stack {
    /// Number of frames that count; what lies behind them is left over from other stacks.
    pub depth: u64,
    /// Return addresses, the first one being the instruction pointer itself.
    pub frames: [u64; MAX_FRAMES],
}

const _: () = assert!(size_of::<Stack>() == 1024);

impl Stack {
    /// A 64-bit hash of the frames, never 0 (0 means "no stack").
    ///
    /// The table is keyed by it without a comparison of the frames: of n different stacks two share a key with a
    /// probability of about n²/2⁶⁵, one in 3 × 10¹¹ for 16,000 stacks.
    #[inline(always)]
    #[must_use]
    pub fn hash(&self) -> u64 {
        let mut hash: u64 = self.depth.wrapping_mul(0x9e37_79b9_7f4a_7c15);
        for (index, &frame) in self.frames.iter().enumerate() {
            if index as u64 >= self.depth {
                break;
            }
            // A multiply-xorshift round a frame: every bit of the frame reaches the upper half, the shift brings it back.
            hash = (hash ^ frame).wrapping_mul(0xff51_afd7_ed55_8ccd);
            hash ^= hash >> 32;
        }
        hash | 1
    }
}

/// Why there is no user stack. Stored as a number beside the stack's key.
#[repr(u32)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum UserStack {
    /// There is one.
    Known = 0,
    /// The thread is exiting and its memory is gone: nothing to read, and no loss.
    Exiting = 1,
    /// The read failed.
    Failed = 2,
    /// The stack table was full.
    TableFull = 3,
}

/// What switch-outs are summed by; key of the table of sums.
///
/// Where no stacks are taken their fields, and the name, stay empty: then the sums are by class, task and process alone.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Pod, Zeroable)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub struct SumKey {
    /// Key of the kernel stack in the stack table; 0 if there is none.
    pub kernel_stack: u64,
    /// Key of the user stack in the stack table; 0 if there is none, for the reason in `user_state`.
    pub user_stack: u64,
    /// Id of the task that was polled; 0 if none was.
    pub task: u64,
    /// Name of the thread, padded with zeroes.
    pub comm: [u8; 16],
    /// The process: user addresses and task ids mean nothing without it.
    pub tgid: u32,
    /// How many times the process had called `execve` since it was first seen: each brings a new address space.
    pub image: u32,
    /// A [`UserStack`].
    pub user_state: u32,
    /// The [`crate::ledger::Class`], as it is if the program proves to have no tasks: never `Unattributed`.
    pub class: u8,
    /// The [`crate::locator::Reason`] why it is unattributed, or 0.
    pub reason: u8,
    reserved: u16,
}

const _: () = assert!(size_of::<SumKey>() == 56);

impl SumKey {
    /// The key of a thread that has not been switched out yet.
    pub const EMPTY: Self = Self {
        kernel_stack: 0,
        user_stack: 0,
        task: 0,
        comm: [0; 16],
        tgid: 0,
        image: 0,
        user_state: 0,
        class: 0,
        reason: 0,
        reserved: 0,
    };
}

/// What is summed.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Pod, Zeroable)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub struct SwitchSum {
    /// Switch-outs.
    pub count: u64,
    /// Off-CPU time of those whose end was seen.
    pub off_cpu_ns: u64,
}

const _: () = assert!(size_of::<SwitchSum>() == 16);

#[cfg(test)]
mod tests {
    use super::*;

    fn stack(frames: &[u64]) -> Stack {
        let mut stack = Stack::zeroed();
        stack.depth = frames.len() as u64;
        stack.frames[..frames.len()].copy_from_slice(frames);
        stack
    }

    #[test]
    fn a_hash_depends_on_every_frame_and_on_their_order() {
        let reference = stack(&[1, 2, 3]).hash();
        for other in [&[1, 2][..], &[1, 2, 4], &[3, 2, 1], &[1, 2, 3, 0], &[1 << 63, 2, 3]] {
            assert_ne!(reference, stack(other).hash(), "{other:?}");
        }
    }

    #[test]
    fn a_hash_ignores_what_lies_behind_the_last_frame() {
        let mut left_over = stack(&[1, 2, 3]);
        left_over.frames[3] = 99;
        assert_eq!(left_over.hash(), stack(&[1, 2, 3]).hash());
    }

    #[test]
    fn no_stack_has_the_key_that_means_none() {
        assert_ne!(stack(&[]).hash(), 0);
    }

    #[test]
    fn neighbouring_stacks_do_not_collide() {
        extern crate std;
        let mut seen = std::collections::HashSet::new();
        for a in 0..300 {
            for b in 0..300 {
                assert!(seen.insert(stack(&[0xffff_ffff_8100_0000 + a, 0x5555_5555_0000 + 4 * b]).hash()));
            }
        }
    }
}
