//! Capture files: `-o FILE.ctx`.
//!
//! ```text
//!   "ctxtrace" 00 00 00 00 | version, 4 bytes | block | block | …
//!   block: "BLCK" | kind | length as stored | length unpacked | CRC-32 of the stored bytes | CRC-32 of this header | bytes
//! ```
//!
//! A file is written sequentially during the run, one whole block at a time. If the tracer ends early (`kill -9`, a full disk, a
//! power failure), the file can be read up to its last complete block. A reader checks every block: one with a wrong checksum
//! ends the readable part, and the report shows that.
//!
//! | kind | contents | position |
//! |---|---|---|
//! | 1 info | [`Info`]: what was recorded, where, when and by which version | first |
//! | 2 threads | a batch of thread records | before a state |
//! | 3 state | a [`Run`] without its threads and names | from time to time during the run, and at its end |
//! | 4 names | [`Symbols`] | at the end of a run |
//! | 5 events | events of the timeline | during the run |
//! | 6 end of run | nothing | after a run's last block |
//! | 7 end | nothing | last |
//! | 8 dropped | [`Dropped`]: the number of dropped events | before the first event in the file |
//! | 9 polls | a [`PollBatch`] | during the run, after the events of the same time |
//! | 10 played | [`Played`]: the result of the replay of the events | at the end of a run |
//!
//! Numbers are little-endian. Blocks are compressed with zstd. Their contents, except events and polls, are CBOR with the names
//! of all fields, so that fields can be added without a new version. A reader skips blocks of unknown kinds. The version changes
//! only if an older reader would misinterpret the file.

mod block;
mod kind;
mod read;
pub(crate) mod room;
mod write;

pub use read::{CapturePart, Saved, read, read_sums, read_with_polls};
pub use write::{CapturePath, Limits, Writer};

/// The first bytes of a capture.
const MAGIC: [u8; 12] = *b"ctxtrace\0\0\0\0";
/// The newest version. It marks a file whose oldest events were dropped; an older reader would take the events in it for all
/// events.
const VERSION: u32 = 2;
/// The version of a file with all of its events.
const VERSION_WITHOUT_DROPS: u32 = 1;
/// Maximum number of thread records in one block; further records are written to another block.
const THREADS_PER_BLOCK: usize = 4_096;

#[cfg(doc)]
use super::polls::PollBatch;
#[cfg(doc)]
use super::run::{Dropped, Info, Played, Run};
#[cfg(doc)]
use super::symbols::Symbols;

#[cfg(test)]
mod tests;
