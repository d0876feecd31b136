//! What the tracer and the reading process send to each other, and how: a length of four bytes, then CBOR. The descriptors of a
//! request come with its first bytes.
//!
//! The reading process may have been taken over by the file that it read. So what it sends is bounded before it is decoded, and
//! checked before it is used.

use std::fs::File;
use std::io::{self, IoSlice, IoSliceMut};
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd};

use ctxtrace_common::locator::{HAS_GO, HAS_PROBE, HAS_TOKIO, Locator, MAX_CONTEXT_BYTES};
use nix::sys::socket::{ControlMessage, ControlMessageOwned, MsgFlags, recvmsg, sendmsg};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use crate::target::locate::{Found, Look};
use crate::trace::symbols::{Frame, FrameKind};

/// Bytes of a message's length.
pub(super) const LENGTH_BYTES: usize = 4;
/// Most bytes of one reply.
pub(super) const MAX_REPLY_BYTES: usize = 8 << 20;
/// Most bytes of one request: the offsets of all functions of a file.
pub(super) const MAX_REQUEST_BYTES: usize = 64 << 20;
/// Longest name of a function, bytes; the rest of a longer one is cut off.
pub(super) const MAX_NAME_BYTES: usize = 16 << 10;
/// Most functions at one offset: one, and those inlined into each other.
pub(super) const MAX_FRAMES: usize = 128;
/// Longest text of any other kind, bytes.
const MAX_TEXT_BYTES: usize = 4 << 10;
/// Longest build id, bytes: a hash.
pub(super) const MAX_BUILD_ID_BYTES: usize = 64;
/// Most descriptors with one request.
const MAX_DESCRIPTORS: usize = 2;

/// A question about a file, whose descriptor comes with it.
#[derive(Debug, Serialize, Deserialize)]
pub(super) enum Request {
    /// How are its tasks found?
    Examine,
    /// The same, and what kind of file is it?
    Look,
    /// Has it one of these runtimes inside?
    Mentions {
        /// tokio.
        tokio: bool,
        /// Go.
        go: bool,
    },
    /// Where is its debug file?
    DebugLink,
    /// Which functions have their code there? A second descriptor is that of its debug file.
    Functions {
        /// Offsets of code in the file, bytes.
        code: Vec<u64>,
        /// Offsets where goroutines start, bytes. A start in a wrapper of the Go compiler has the name of the function that the
        /// wrapper calls.
        starts: Vec<u64>,
        /// Its name in reasons.
        shown: String,
    },
}

/// The answer.
#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) enum Reply {
    /// To [`Request::Examine`].
    Examined(Found),
    /// To [`Request::Look`].
    Looked(Look, Found),
    /// To [`Request::Mentions`].
    Mentions(bool),
    /// To [`Request::DebugLink`].
    DebugLink(DebugLink),
    /// To [`Request::Functions`]: the functions at some more offsets, those of `code` before those of `starts`, each outermost first.
    Functions(Vec<Vec<Frame>>),
    /// There is no answer, for this reason. The reading process ends after it.
    Failed(String),
}

/// What an executable says of its debug file.
#[derive(Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct DebugLink {
    /// It has its debug information itself.
    pub(super) has_debug_info: bool,
    /// Its build id; empty if it has none.
    pub(super) build_id: Vec<u8>,
    /// The name of the debug file, and the CRC of its bytes.
    pub(super) file: Option<(String, u32)>,
}

impl Reply {
    /// The reply, if it can be one of a process that works.
    pub(super) fn checked(self) -> Option<Self> {
        let is_plausible = match &self {
            Self::Examined(found) | Self::Looked(_, found) => is_plausible(found),
            Self::Mentions(_) => true,
            Self::DebugLink(link) => {
                let name = link.file.as_ref().map_or(0, |(name, _)| name.len());
                link.build_id.len() <= MAX_BUILD_ID_BYTES && name <= MAX_TEXT_BYTES
            }
            Self::Functions(functions) => functions.iter().all(|frames| {
                let is_plausible = |frame: &Frame| {
                    let is_of_a_program =
                        matches!(frame.kind, FrameKind::User | FrameKind::Inlined | FrameKind::Reason);
                    is_of_a_program && frame.name.len() <= MAX_NAME_BYTES
                };
                frames.len() <= MAX_FRAMES && frames.iter().all(is_plausible)
            }),
            Self::Failed(reason) => reason.len() <= MAX_TEXT_BYTES,
        };
        is_plausible.then_some(self)
    }
}

fn is_plausible(found: &Found) -> bool {
    let texts = [&found.detail, &found.tokio_version, &found.go_version, &found.build_id];
    let is_short = |text: &Option<String>| text.as_ref().is_none_or(|text| text.len() <= MAX_TEXT_BYTES);
    let build_id = found.build_id.as_deref().unwrap_or_default();
    texts.into_iter().all(is_short)
        && build_id.len() <= 2 * MAX_BUILD_ID_BYTES
        && build_id.bytes().all(|byte| byte.is_ascii_hexdigit())
        && is_plausible_locator(&found.locator)
}

fn is_plausible_locator(locator: &Locator) -> bool {
    let tokio = &locator.tokio;
    let size = u64::from(tokio.size);
    let fields = [
        tokio.state,
        tokio.budget,
        tokio.task_id,
        tokio.scheduler,
        tokio.runtime,
        tokio.block_in_place,
        tokio.handle,
        tokio.depth,
    ];
    let tokio_is_plausible = locator.flags & HAS_TOKIO == 0
        || size <= MAX_CONTEXT_BYTES as u64
            && u64::from(tokio.task_id_offset) + 8 <= size
            && fields
                .iter()
                .all(|field| field.is_in_one_word() && u64::from(field.offset) + u64::from(field.size) <= size);
    locator.flags & !(HAS_PROBE | HAS_TOKIO | HAS_GO) == 0 && tokio_is_plausible
}

/// A message with its length before it.
pub(super) fn encode(message: &impl Serialize) -> io::Result<Vec<u8>> {
    let mut bytes = vec![0; LENGTH_BYTES];
    ciborium::into_writer(message, &mut bytes).map_err(io::Error::other)?;
    let length = u32::try_from(bytes.len() - LENGTH_BYTES).map_err(io::Error::other)?;
    bytes[..LENGTH_BYTES].copy_from_slice(&length.to_le_bytes());
    Ok(bytes)
}

/// The length of the message that begins with these bytes; `None` if they are too few.
pub(super) fn length(bytes: &[u8]) -> Option<usize> {
    let length = bytes.first_chunk::<LENGTH_BYTES>()?;
    Some(u32::from_le_bytes(*length) as usize)
}

/// The message of these bytes, which have no length before them.
pub(super) fn decode<T: DeserializeOwned>(bytes: &[u8]) -> io::Result<T> {
    ciborium::from_reader(bytes).map_err(|_| io::Error::from(io::ErrorKind::InvalidData))
}

/// Sends as many of the bytes as find room, and the descriptors with the first of them. Returns how many.
pub(super) fn send(socket: BorrowedFd<'_>, bytes: &[u8], files: &[&File]) -> nix::Result<usize> {
    let descriptors: Vec<_> = files.iter().map(|file| file.as_raw_fd()).collect();
    let rights = [ControlMessage::ScmRights(&descriptors)];
    let control: &[ControlMessage<'_>] = if descriptors.is_empty() { &[] } else { &rights };
    sendmsg::<()>(
        socket.as_raw_fd(),
        &[IoSlice::new(bytes)],
        control,
        MsgFlags::MSG_NOSIGNAL,
        None,
    )
}

/// Receives some bytes, and the descriptors that come with them; 0 bytes at the end.
pub(super) fn receive(socket: BorrowedFd<'_>, bytes: &mut [u8]) -> nix::Result<(usize, Vec<OwnedFd>)> {
    let mut control = nix::cmsg_space!([i32; MAX_DESCRIPTORS]);
    let mut slices = [IoSliceMut::new(bytes)];
    let received = recvmsg::<()>(
        socket.as_raw_fd(),
        &mut slices,
        Some(&mut control),
        MsgFlags::MSG_CMSG_CLOEXEC,
    )?;
    let mut descriptors = Vec::new();
    for message in received.cmsgs()? {
        if let ControlMessageOwned::ScmRights(rights) = message {
            // SAFETY: the kernel has just made these descriptors for this process.
            descriptors.extend(rights.into_iter().map(|fd| unsafe { OwnedFd::from_raw_fd(fd) }));
        }
    }
    Ok((received.bytes, descriptors))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_message_comes_back_as_it_was() {
        let reply = Reply::Functions(vec![vec![Frame {
            kind: FrameKind::User,
            name: "main".into(),
        }]]);
        let bytes = encode(&reply).expect("encoded");
        assert_eq!(length(&bytes), Some(bytes.len() - LENGTH_BYTES));
        assert_eq!(decode::<Reply>(&bytes[LENGTH_BYTES..]).expect("decoded"), reply);
        assert!(reply.checked().is_some());
        assert_eq!(length(&bytes[..3]), None);
    }

    #[test]
    fn what_no_working_process_would_answer_is_refused() {
        let frame = |kind, length| Frame {
            kind,
            name: "x".repeat(length).into(),
        };
        let functions = |frames| Reply::Functions(vec![frames]);
        let found = |change: fn(&mut Found)| {
            let mut found = Found::default();
            change(&mut found);
            Reply::Examined(found)
        };
        for reply in [
            functions(vec![frame(FrameKind::User, MAX_NAME_BYTES + 1)]),
            functions(vec![frame(FrameKind::Kernel, 1)]),
            functions(vec![frame(FrameKind::Inlined, 1); MAX_FRAMES + 1]),
            found(|found| found.build_id = Some("../../etc".to_owned())),
            found(|found| found.detail = Some("x".repeat(MAX_TEXT_BYTES + 1))),
            found(|found| found.locator.flags = 1 << 31),
            found(|found| {
                found.locator.flags = HAS_TOKIO;
                found.locator.tokio.size = u32::MAX;
                found.locator.tokio.task_id_offset = 8;
            }),
            Reply::DebugLink(DebugLink {
                build_id: vec![0; MAX_BUILD_ID_BYTES + 1],
                ..DebugLink::default()
            }),
        ] {
            assert_eq!(reply.checked(), None);
        }
        assert!(found(|_| {}).checked().is_some());
    }

    #[test]
    fn bytes_that_are_no_message_are_an_error() {
        for bytes in [
            &b""[..],
            b"\xff",
            b"\x9b\xff\xff\xff\xff\xff\xff\xff\xff",
            &[0x81; 5_000],
        ] {
            assert!(decode::<Reply>(bytes).is_err());
        }
    }
}
