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
        let mut hash = StackHash::BEGIN;
        for (index, &frame) in self.frames.iter().enumerate() {
            if index as u64 >= self.depth {
                break;
            }
            hash.add(frame);
        }
        hash.of_depth(self.depth)
    }
}

/// [`Stack::hash`], frame by frame.
#[derive(Clone, Copy, Debug)]
pub struct StackHash(u64);

impl StackHash {
    /// Of no frames.
    pub const BEGIN: Self = Self(0x9e37_79b9_7f4a_7c15);

    /// Adds the next frame, from the innermost one on.
    #[inline(always)]
    pub fn add(&mut self, frame: u64) {
        // A multiply-xorshift round a frame: every bit of the frame reaches the upper half, the shift brings it back.
        self.0 = (self.0 ^ frame).wrapping_mul(0xff51_afd7_ed55_8ccd);
        self.0 ^= self.0 >> 32;
    }

    /// The hash of a stack of so many frames, when all of them have been added.
    #[inline(always)]
    #[must_use]
    pub fn of_depth(mut self, depth: u64) -> u64 {
        self.add(depth);
        self.0 | 1
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
    /// 1 if the CPU quota of its cgroup took the thread off its CPU, as far as the kernel says so of a thread; otherwise 0.
    #[cfg_attr(feature = "serde", serde(default))]
    pub throttled: u8,
    /// Which [`crate::table`] generation the sum is of. Only a key in the kernel's table has one; everywhere else this is 0.
    #[cfg_attr(feature = "serde", serde(rename = "reserved"))]
    pub generation: u8,
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
        throttled: 0,
        generation: 0,
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

impl core::ops::AddAssign for SwitchSum {
    fn add_assign(&mut self, other: Self) {
        let Self { count, off_cpu_ns } = other;
        self.count += count;
        // As the kernel side adds: what a program makes up may be too much.
        self.off_cpu_ns = self.off_cpu_ns.wrapping_add(off_cpu_ns);
    }
}

/// Switch-outs of one thread that are summed by the same key, one after the other, and are not in the table of sums yet.
///
/// Most switch-outs of a thread are like its last one. So a thread keeps the sum of the last ones alike in its own record, where
/// nobody else adds to it, and brings it to the table when the key changes: two words are added to instead of a table looked up by
/// a key of seven, and atomically changed.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Pod, Zeroable)]
pub struct Gathered {
    /// What they are summed by, if there are any.
    pub key: SumKey,
    /// How many there are, and their time.
    pub sum: SwitchSum,
}

const _: () = assert!(size_of::<Gathered>() == 72);

impl Gathered {
    /// Whether a switch-out of this key can be added as it is.
    #[inline(always)]
    #[must_use]
    pub fn takes(&self, key: &SumKey) -> bool {
        // Word by word: a comparison of memory would be a function call, and there is nobody in the kernel to call.
        let ours: &[u64; size_of::<SumKey>() / 8] = bytemuck::cast_ref(&self.key);
        let theirs: &[u64; size_of::<SumKey>() / 8] = bytemuck::cast_ref(key);
        let mut differing = 0;
        let mut index = 0;
        while index < ours.len() {
            differing |= ours[index] ^ theirs[index];
            index += 1;
        }
        differing == 0
    }

    /// Adds a switch-out of the key that this is of.
    #[inline(always)]
    pub fn add(&mut self, off_cpu_ns: u64) {
        self.sum.count += 1;
        self.sum.off_cpu_ns += off_cpu_ns;
    }

    /// Begins anew, for another key.
    #[inline(always)]
    pub fn begin(&mut self, key: &SumKey) {
        self.key = *key;
        self.sum = SwitchSum {
            count: 0,
            off_cpu_ns: 0,
        };
    }
}

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
    fn alike_are_switch_outs_that_differ_in_nothing() {
        let mut key = SumKey::EMPTY;
        (key.task, key.class, key.tgid) = (7, 3, 100);
        let mut gathered = Gathered::zeroed();
        assert!(!gathered.takes(&key));
        gathered.begin(&key);
        gathered.add(5);
        gathered.add(6);
        assert!(gathered.takes(&key));
        assert_eq!((gathered.sum.count, gathered.sum.off_cpu_ns), (2, 11));
        for differ in [
            |key: &mut SumKey| key.kernel_stack = 1,
            |key: &mut SumKey| key.user_stack = 1,
            |key: &mut SumKey| key.task = 8,
            |key: &mut SumKey| key.comm[15] = 1,
            |key: &mut SumKey| key.tgid = 101,
            |key: &mut SumKey| key.image = 1,
            |key: &mut SumKey| key.user_state = 1,
            |key: &mut SumKey| key.class = 4,
            |key: &mut SumKey| key.reason = 1,
            |key: &mut SumKey| key.throttled = 1,
        ] {
            let mut other = key;
            differ(&mut other);
            assert!(!gathered.takes(&other), "{other:?}");
        }
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
