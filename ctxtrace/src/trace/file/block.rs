//! One block: its header, its checksums, its packing.

use std::io::{self, Read};

use super::room::Room;

/// How a block's header begins.
const MARK: [u8; 4] = *b"BLCK";
/// Bytes of a header.
const HEADER: usize = 24;
/// The longest block, unpacked: what a reader may have to hold.
const LONGEST: usize = 256 << 20;
/// Packing fast enough to keep up with events.
const COMPRESSION: i32 = 1;

/// What a block holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub(super) enum Kind {
    Info = 1,
    Threads = 2,
    State = 3,
    Names = 4,
    Events = 5,
    EndOfRun = 6,
    End = 7,
    Dropped = 8,
    Polls = 9,
    Played = 10,
}

impl Kind {
    fn from_number(number: u32) -> Option<Self> {
        let kinds = [
            Self::Info,
            Self::Threads,
            Self::State,
            Self::Names,
            Self::Events,
            Self::EndOfRun,
            Self::End,
            Self::Dropped,
            Self::Polls,
            Self::Played,
        ];
        kinds.into_iter().find(|&kind| kind as u32 == number)
    }
}

/// Bytes of a block of this kind with nothing in it, as it is in the file.
pub(super) fn empty_bytes(kind: Kind) -> io::Result<u64> {
    Ok(packed(kind, &[])?.len() as u64)
}

/// One block as it is in the file. It is written with a single call, so that it is there whole or, if the disk is full,
/// recognisably not.
pub(super) fn packed(kind: Kind, bytes: &[u8]) -> io::Result<Vec<u8>> {
    if bytes.len() > LONGEST {
        return Err(io::Error::new(
            io::ErrorKind::FileTooLarge,
            format!(
                "a part of the capture has {} bytes, and {LONGEST} is the most",
                bytes.len()
            ),
        ));
    }
    let packed = zstd::bulk::compress(bytes, COMPRESSION)?;
    let mut block = Vec::with_capacity(HEADER + packed.len());
    block.extend(MARK);
    for number in [
        kind as u32,
        packed.len() as u32,
        bytes.len() as u32,
        crc32fast::hash(&packed),
    ] {
        block.extend(number.to_le_bytes());
    }
    block.extend(crc32fast::hash(&block).to_le_bytes());
    block.extend(packed);
    Ok(block)
}

/// What comes next in a file.
pub(super) enum Next {
    /// A block, unpacked.
    Block(Kind, Vec<u8>),
    /// A block that is of no interest, or of a kind that a later release has added. It is not damaged.
    Passed,
    /// The end of the file, where a block may begin.
    Nothing,
}

/// Reads the next block. One of a kind that is not `wanted` is checked all the same, but not unpacked.
///
/// # Errors
///
/// In a sentence: what is wrong with the file here.
pub(super) fn read(from: &mut impl Read, room: &mut Room, wanted: impl Fn(Kind) -> bool) -> Result<Next, String> {
    let mut header = [0; HEADER];
    match read_up_to(from, &mut header)? {
        0 => return Ok(Next::Nothing),
        HEADER => {}
        _ => return Err("it ends in the middle of a block".to_owned()),
    }
    let number = |index: usize| {
        let mut bytes = [0; 4];
        bytes.copy_from_slice(&header[4 * index..4 * index + 4]);
        u32::from_le_bytes(bytes)
    };
    if header[..4] != MARK || crc32fast::hash(&header[..HEADER - 4]) != number(5) {
        return Err("a block is damaged".to_owned());
    }
    let (stored, unpacked, checksum) = (number(2) as usize, number(3) as usize, number(4));
    if unpacked > LONGEST || stored > zstd::zstd_safe::compress_bound(LONGEST) {
        return Err(format!(
            "a block claims to have {unpacked} bytes, and {LONGEST} is the most"
        ));
    }
    // Not believed in advance: a short file may claim anything.
    let mut packed = Vec::new();
    from.take(stored as u64)
        .read_to_end(&mut packed)
        .map_err(|error| format!("it cannot be read: {error}"))?;
    if packed.len() < stored {
        return Err("it ends in the middle of a block".to_owned());
    }
    if crc32fast::hash(&packed) != checksum {
        return Err("a block is damaged".to_owned());
    }
    let Some(kind) = Kind::from_number(number(1)).filter(|&kind| wanted(kind)) else {
        return Ok(Next::Passed);
    };
    room.unpack(kind, HEADER + stored, unpacked)?;
    let mut bytes = Vec::new();
    zstd::Decoder::with_buffer(packed.as_slice())
        .and_then(|decoder| decoder.take(unpacked as u64 + 1).read_to_end(&mut bytes))
        .map_err(|error| format!("a block cannot be unpacked: {error}"))?;
    if bytes.len() != unpacked {
        return Err("a block is not as long as it claims".to_owned());
    }
    Ok(Next::Block(kind, bytes))
}

/// Reads until the buffer is full or the file ends, and returns how much that was.
fn read_up_to(from: &mut impl Read, buffer: &mut [u8]) -> Result<usize, String> {
    let mut filled = 0;
    while filled < buffer.len() {
        match from.read(&mut buffer[filled..]) {
            Ok(0) => break,
            Ok(count) => filled += count,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(format!("it cannot be read: {error}")),
        }
    }
    Ok(filled)
}
