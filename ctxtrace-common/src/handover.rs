//! What the kernel side brings home of a thread's memory when the thread ends.

use bytemuck::{Pod, Zeroable};
use ctxtrace_abi::{MESSAGE_BUCKETS, NAME_BYTES, NAMED_TASKS, TASK_INDICES, Tables};

use crate::process::Image;

/// A thread's tables, read in `sched_process_exit`, before its memory goes.
#[repr(C)]
#[derive(Clone, Copy, Debug, Pod, Zeroable)]
pub struct Handover {
    /// The program.
    pub image: Image,
    /// Thread id.
    pub tid: u32,
    /// 0.
    pub reserved: u32,
    /// Tasks the program had created by then, whether they have a name or not.
    pub tasks_created: u64,
    /// The copy of the thread's tables.
    pub tables: PollTables,
}

/// The part of [`Tables`] that is copied, in one piece.
#[repr(C)]
#[derive(Clone, Copy, Debug, Pod, Zeroable)]
pub struct PollTables {
    /// Outermost polls by the task's index.
    pub polls_by_task: [u64; TASK_INDICES],
    /// Outermost polls by the number of messages in them.
    pub messages_per_poll: [u64; MESSAGE_BUCKETS],
}

const _: () = assert!(
    core::mem::offset_of!(Tables, messages_per_poll) == core::mem::offset_of!(Tables, polls_by_task) + 8 * TASK_INDICES
);
const _: () = assert!(size_of::<Handover>() == 24 + 8 * TASK_INDICES + 8 * MESSAGE_BUCKETS);

/// A program's names, read when a thread ends that knows of more tasks than were known before.
#[repr(C)]
#[derive(Clone, Copy, Debug, Pod, Zeroable)]
pub struct Names {
    /// The program.
    pub image: Image,
    /// Names that follow; what lies behind them is left over from other records.
    pub count: u64,
    /// By task id.
    pub names: [[u8; NAME_BYTES]; NAMED_TASKS],
}

const _: () = assert!(size_of::<Names>() == 16 + NAME_BYTES * NAMED_TASKS);
