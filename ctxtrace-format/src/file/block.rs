//! One block of a capture file: its header, its checksums and its compression.

use std::io::{self, Read};

use super::kind::BlockKind;
use super::room::Room;

/// The first bytes of a block's header.
const MARK: [u8; 4] = *b"BLCK";
/// Size of a header in bytes.
const HEADER: usize = 24;
/// Maximum size of an uncompressed block in bytes. A larger block is neither written nor read.
const LONGEST: usize = 256 << 20;
/// The zstd level: fast enough to keep up with the events.
const COMPRESSION: i32 = 1;

/// Size in the file of an empty block of this kind, in bytes.
pub(super) fn empty_bytes(kind: BlockKind) -> io::Result<u64> {
    Ok(packed(kind, &[])?.len() as u64)
}

/// Encodes one block as it is stored in a file. The block is written with a single call, so that it is either complete or, if the
/// disk is full, recognisably incomplete.
pub(super) fn packed(kind: BlockKind, bytes: &[u8]) -> io::Result<Vec<u8>> {
    if bytes.len() > LONGEST {
        return Err(io::Error::new(
            io::ErrorKind::FileTooLarge,
            format!(
                "a part of the capture has {} bytes, but a block can have at most {LONGEST} bytes",
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

/// The next part of a file.
pub(super) enum Next {
    /// An uncompressed block.
    Block(BlockKind, Vec<u8>),
    /// An undamaged block that was skipped, because its kind is not wanted or was added by a later release.
    Passed,
    /// The end of the file, at a position where a block could begin.
    Nothing,
}

/// Reads the next block. A block of a kind that is not `wanted` is checked, but not decompressed.
///
/// # Errors
///
/// Returns a sentence that describes the damage to the file.
pub(super) fn read(from: &mut impl Read, room: &mut Room, wanted: impl Fn(BlockKind) -> bool) -> Result<Next, String> {
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
            "a block claims to have {unpacked} bytes, but at most {LONGEST} bytes are allowed"
        ));
    }
    // Not allocated in advance: even a short file may claim any size.
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
    let Some(kind) = BlockKind::from_number(number(1)).filter(|&kind| wanted(kind)) else {
        return Ok(Next::Passed);
    };
    room.unpack(kind, HEADER + stored, unpacked)?;
    let mut bytes = Vec::new();
    zstd::Decoder::with_buffer(packed.as_slice())
        .and_then(|decoder| decoder.take(unpacked as u64 + 1).read_to_end(&mut bytes))
        .map_err(|error| format!("a block cannot be unpacked: {error}"))?;
    if bytes.len() != unpacked {
        return Err("a block does not have the size that it claims".to_owned());
    }
    Ok(Next::Block(kind, bytes))
}

/// Reads until the buffer is full or the file ends, and returns the number of bytes read.
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
