//! Captures in a file: `-o FILE.ctx`.
//!
//! ```text
//!   "ctxtrace" 00 00 00 00 | version, 4 bytes | block | block | …
//!   block: "BLCK" | kind | length as stored | length unpacked | CRC-32 of the stored bytes | CRC-32 of this header | bytes
//! ```
//!
//! A file is written from its beginning to its end while the run goes on, one whole block at a time, so whatever ends the
//! tracer (`kill -9`, a full disk, a power cut) leaves a file that can be read up to its last complete block. What is read is
//! checked: a block whose checksum is wrong ends the readable part, and the report says so.
//!
//! | kind | holds | comes |
//! |---|---|---|
//! | 1 info | [`Info`]: who recorded what, where and when | first |
//! | 2 threads | a batch of thread records | before a state |
//! | 3 state | a [`Run`] without its threads and names | now and then while the run goes on, and at its end |
//! | 4 names | [`Symbols`] | at a run's end |
//! | 5 events | events of the timeline | while the run goes on |
//! | 6 end of run | nothing | after a run's last block |
//! | 7 end | nothing | last |
//! | 8 dropped | [`Dropped`]: events that are not there | before the first event that is |
//! | 9 polls | a [`PollBatch`] | while the run goes on, after the events of its time |
//! | 10 played | [`Played`]: what the events came to | at a run's end |
//!
//! Numbers are little-endian. Blocks are packed with zstd; what is in them is CBOR with the names of all fields (events
//! excepted), so that fields can be added without a new version, and a reader skips kinds of blocks that it does not know.
//! The version changes only where an older reader would misunderstand.

mod block;
mod read;
pub(in crate::trace) mod room;
mod write;

pub use read::{Saved, Told, read, read_sums, read_with_polls};
pub use write::{Limits, Place, Writer};

/// How a capture begins.
const MAGIC: [u8; 12] = *b"ctxtrace\0\0\0\0";
/// The newest version: that of a file whose oldest events were dropped, which an older reader would take for all there were.
const VERSION: u32 = 2;
/// The version of a file with all its events.
const VERSION_WITHOUT_DROPS: u32 = 1;
/// Thread records in one block.
const THREADS_PER_BLOCK: usize = 4_096;

#[cfg(doc)]
use super::polls::PollBatch;
#[cfg(doc)]
use super::run::{Dropped, Info, Played, Run};
#[cfg(doc)]
use super::symbols::Symbols;

#[cfg(test)]
mod tests;
