//! Stacks, and the keys by which switch-outs are summed.

use bytemuck::{Pod, Zeroable};

/// Maximum number of frames kept of a kernel or a user stack (the kernel's own default, `kernel.perf_event_max_stack`).
/// Outer frames beyond it are cut off.
pub const MAX_FRAMES: usize = 127;

/// One stack, innermost frame first. It is the value of the stack table, whose key is [`Stack::hash`].
#[repr(C)]
#[derive(Clone, Copy, Debug, Pod, Zeroable)]
pub struct Stack {
    /// Number of valid frames. The entries beyond them are left over from other stacks.
    pub depth: u64,
    /// Return addresses. The first one is the instruction pointer itself.
    pub frames: [u64; MAX_FRAMES],
}

const _: () = assert!(size_of::<Stack>() == 1024);

impl Stack {
    /// Returns a 64-bit hash of the frames, never 0 (0 means "no stack").
    ///
    /// The table is keyed by the hash, and the frames are not compared. Of n different stacks, two share a key with a
    /// probability of about n²/2⁶⁵: one in 3 × 10¹¹ for 16,000 stacks.
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

/// Computes [`Stack::hash`] frame by frame.
#[derive(Clone, Copy, Debug)]
pub struct StackHash(u64);

impl StackHash {
    /// The hash before the first frame.
    pub const BEGIN: Self = Self(0x9e37_79b9_7f4a_7c15);

    /// Adds the next frame. The innermost frame is added first.
    #[inline(always)]
    pub fn add(&mut self, frame: u64) {
        // One multiply-xorshift round per frame: the multiplication carries every bit of the frame into the upper half,
        // and the shift brings the upper half down again.
        self.0 = (self.0 ^ frame).wrapping_mul(0xff51_afd7_ed55_8ccd);
        self.0 ^= self.0 >> 32;
    }

    /// Returns the hash of a stack with `depth` frames, after all of them have been added.
    #[inline(always)]
    #[must_use]
    pub fn of_depth(mut self, depth: u64) -> u64 {
        self.add(depth);
        self.0 | 1
    }
}

/// Why there is no user stack. It is stored as a number next to the stack's key.
#[repr(u32)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum UserStack {
    /// There is a user stack.
    Known = 0,
    /// The thread is exiting and its memory is gone. There is nothing to read, so nothing is lost.
    Exiting = 1,
    /// The user stack could not be read.
    Failed = 2,
    /// The stack table was full.
    TableFull = 3,
}

/// The key by which switch-outs are summed, in the table of sums.
///
/// If no stacks are taken, the stacks and the name stay empty: then switch-outs are summed only by class, task and
/// process.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Pod, Zeroable)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub struct SumKey {
    /// Key of the kernel stack in the stack table; 0 if there is none.
    pub kernel_stack: u64,
    /// Key of the user stack in the stack table; 0 if there is none, for the reason in `user_state`.
    pub user_stack: u64,
    /// Id of the task that was polled; 0 if no task was polled.
    pub task: u64,
    /// Name of the thread, padded with zeroes.
    pub comm: [u8; 16],
    /// Process id. User addresses and task ids are meaningful only within a process.
    pub tgid: u32,
    /// Number of calls of `execve` by the process since it was first seen. Each call brings a new address space.
    pub image: u32,
    /// A [`UserStack`].
    pub user_state: u32,
    /// A [`crate::ledger::Class`], never `Unattributed`. If `reason` is not 0, the class is `Unattributed`, and this is
    /// the class for the case that the program turns out to have no tasks.
    pub class: u8,
    /// The [`crate::locator::Reason`] why the switch-out is unattributed, or 0.
    pub reason: u8,
    /// 1 if the CPU quota of its cgroup took the thread off its CPU, on kernels that report this for a thread;
    /// otherwise 0.
    #[cfg_attr(feature = "serde", serde(default))]
    pub throttled: u8,
    /// The [`crate::table`] generation of the sum. Only keys in the kernel's table have one; elsewhere it is 0.
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

/// The sums for one key.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Pod, Zeroable)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub struct SwitchSum {
    /// Number of switch-outs.
    pub count: u64,
    /// Off-CPU time of the switch-outs whose end was seen.
    pub off_cpu_ns: u64,
}

const _: () = assert!(size_of::<SwitchSum>() == 16);

impl core::ops::AddAssign for SwitchSum {
    fn add_assign(&mut self, other: Self) {
        let Self { count, off_cpu_ns } = other;
        self.count += count;
        // Wraps around as on the kernel side: forged numbers may be too large.
        self.off_cpu_ns = self.off_cpu_ns.wrapping_add(off_cpu_ns);
    }
}

/// Switch-outs of one thread with the same key that are not in the table of sums yet.
///
/// Most switch-outs of a thread have the same key as one of its last ones. So a thread keeps such sums in its own record,
/// where no other CPU adds to them, and adds a sum to the table when another key takes its place. This takes two
/// additions instead of a lookup with a key of seven words and two atomic additions.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Pod, Zeroable)]
pub struct Gathered {
    /// The key of these switch-outs, if there are any.
    pub key: SumKey,
    /// Their number and their time.
    pub sum: SwitchSum,
}

const _: () = assert!(size_of::<Gathered>() == 72);

impl Gathered {
    /// Returns whether a switch-out with this key can be added.
    #[inline(always)]
    #[must_use]
    pub fn takes(&self, key: &SumKey) -> bool {
        // Compared word by word, because a comparison of memory would be a call of a library function, which BPF does
        // not have.
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

    /// Adds a switch-out with this key.
    #[inline(always)]
    pub fn add(&mut self, off_cpu_ns: u64) {
        self.sum.count += 1;
        self.sum.off_cpu_ns += off_cpu_ns;
    }

    /// Starts again with another key.
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
