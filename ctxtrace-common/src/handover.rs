//! Records of what the kernel side reads from a thread's memory when the thread ends.

use bytemuck::{Pod, Zeroable};
use ctxtrace_abi::{MESSAGE_BUCKETS, NAME_BYTES, NAMED_TASKS, TASK_INDICES, Tables};

use crate::process::Image;

/// A thread's tables, read at the thread's end (`sched_process_exit` or `do_exit`), before its memory is released.
#[repr(C)]
#[derive(Clone, Copy, Debug, Pod, Zeroable)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub struct Handover {
    /// The program.
    pub image: Image,
    /// Thread id. If the records of several threads were added up: the id of the first.
    pub tid: u32,
    /// Always 0.
    pub reserved: u32,
    /// Number of tasks that the program had created by then, with or without a name.
    pub tasks_created: u64,
    /// The copy of the thread's tables.
    pub tables: PollTables,
}

impl Handover {
    /// Adds the numbers of another thread of the program.
    pub fn add(&mut self, other: &Self) {
        self.tasks_created = self.tasks_created.max(other.tasks_created);
        let tables = &mut self.tables;
        for (sum, polls) in tables.polls_by_task.iter_mut().zip(&other.tables.polls_by_task) {
            *sum = sum.wrapping_add(*polls);
        }
        for (sum, polls) in tables.messages_per_poll.iter_mut().zip(&other.tables.messages_per_poll) {
            *sum = sum.wrapping_add(*polls);
        }
    }
}

/// The part of [`Tables`] that is copied, in one piece.
#[repr(C)]
#[derive(Clone, Copy, Debug, Pod, Zeroable)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub struct PollTables {
    /// Number of outermost polls, by the task's index.
    #[cfg_attr(feature = "serde", serde(with = "crate::sparse"))]
    pub polls_by_task: [u64; TASK_INDICES],
    /// Number of outermost polls, by the number of messages in the poll.
    #[cfg_attr(feature = "serde", serde(with = "crate::sparse"))]
    pub messages_per_poll: [u64; MESSAGE_BUCKETS],
}

const _: () = assert!(
    core::mem::offset_of!(Tables, messages_per_poll) == core::mem::offset_of!(Tables, polls_by_task) + 8 * TASK_INDICES
);
const _: () = assert!(size_of::<Handover>() == 24 + 8 * TASK_INDICES + 8 * MESSAGE_BUCKETS);

/// The names of a program's tasks. They are read when a thread ends whose program has named more tasks than were known
/// before.
#[repr(C)]
#[derive(Clone, Copy, Debug, Pod, Zeroable)]
pub struct TaskNames {
    /// The program.
    pub image: Image,
    /// Number of names that follow. The entries beyond them are left over from other records.
    pub count: u64,
    /// Names by task id, padded with zeroes.
    pub names: [[u8; NAME_BYTES]; NAMED_TASKS],
}

const _: () = assert!(size_of::<TaskNames>() == 16 + NAME_BYTES * NAMED_TASKS);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn threads_of_a_program_are_added_up() {
        let (mut sum, mut other) = (Handover::zeroed(), Handover::zeroed());
        (sum.tasks_created, other.tasks_created) = (9, 12);
        sum.tables.polls_by_task[3] = 5;
        other.tables.polls_by_task[3] = 6;
        other.tables.messages_per_poll[1] = 7;
        sum.add(&other);
        assert_eq!(
            (
                sum.tasks_created,
                sum.tables.polls_by_task[3],
                sum.tables.messages_per_poll[1]
            ),
            (12, 11, 7)
        );
    }
}
