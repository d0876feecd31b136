//! The main loop of the reading process. Standard input is a socket: requests are read from it, and replies are written to it.

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, OwnedFd};

use memmap2::Mmap;
use nix::errno::Errno;
use object::{Object as _, ObjectSection as _};

use super::message::{self, DebugLink, LENGTH_BYTES, MAX_BUILD_ID_BYTES, MAX_REQUEST_BYTES, Reply, Request};
use super::{names, sandbox};
use crate::tracee::locate;

/// Gives up all privileges, then answers requests until the tracer closes the socket. Returns the exit status.
#[must_use]
pub fn serve() -> u8 {
    let stdin = io::stdin();
    let socket = stdin.as_fd();
    let entered = sandbox::enter();
    if let Err(reason) = &entered {
        let reason = format!("the process that reads files cannot give up its privileges: {reason}");
        return u8::from(reply(socket, &Reply::Failed(reason)).is_err());
    }
    loop {
        match receive(socket) {
            Ok(Some((request, files))) => {
                if let Err(error) = answer(socket, &request, &files) {
                    return u8::from(reply(socket, &Reply::Failed(error.to_string())).is_err());
                }
            }
            Ok(None) => return 0,
            Err(_) => return 1,
        }
    }
}

/// Sends a reply.
fn reply(socket: impl AsFd, reply: &Reply) -> io::Result<()> {
    let bytes = message::encode(reply)?;
    let mut rest = bytes.as_slice();
    while !rest.is_empty() {
        match message::send(socket.as_fd(), rest, &[]) {
            Ok(sent) => rest = &rest[sent..],
            Err(Errno::EINTR) => {}
            Err(errno) => return Err(errno.into()),
        }
    }
    Ok(())
}

/// Receives the next request with its files; `None` at the end.
fn receive(socket: impl AsFd) -> io::Result<Option<(Request, Vec<File>)>> {
    let mut files: Vec<OwnedFd> = Vec::new();
    let mut fill = |bytes: &mut [u8]| -> io::Result<bool> {
        let mut filled = 0;
        while filled < bytes.len() {
            match message::receive(socket.as_fd(), &mut bytes[filled..]) {
                Ok((0, _)) => return Ok(false),
                Ok((count, descriptors)) => {
                    filled += count;
                    files.extend(descriptors);
                }
                Err(Errno::EINTR) => {}
                Err(errno) => return Err(errno.into()),
            }
        }
        Ok(true)
    };
    let mut length = [0; LENGTH_BYTES];
    if !fill(&mut length)? {
        return Ok(None);
    }
    let length = message::length(&length).unwrap_or_default();
    if length > MAX_REQUEST_BYTES {
        return Err(io::ErrorKind::InvalidData.into());
    }
    let mut bytes = vec![0; length];
    if !fill(&mut bytes)? {
        return Ok(None);
    }
    Ok(Some((
        message::decode(&bytes)?,
        files.into_iter().map(File::from).collect(),
    )))
}

/// Answers one request.
fn answer(socket: impl AsFd, request: &Request, files: &[File]) -> io::Result<()> {
    let [file, others @ ..] = files else {
        return Err(io::ErrorKind::InvalidInput.into());
    };
    // An empty file cannot be mapped.
    let map = if file.metadata()?.len() == 0 {
        None
    } else {
        Some(map(file)?)
    };
    let bytes: &[u8] = map.as_deref().unwrap_or_default();
    match request {
        Request::Examine => reply(socket, &Reply::Examined(locate::examine_bytes(bytes))),
        Request::Look => {
            let looked = locate::look_at_bytes(bytes);
            reply(socket, &Reply::Looked(looked, locate::examine_bytes(bytes)))
        }
        Request::Mentions { tokio, go } => {
            let mentioned = *tokio && locate::mentions_tokio(bytes) || *go && locate::mentions_go(bytes);
            reply(socket, &Reply::Mentions(mentioned))
        }
        Request::DebugLink => reply(socket, &Reply::DebugLink(debug_link(bytes))),
        Request::Functions { code, starts, shown } => {
            let debug_file = others.first().filter(|debug| belongs_to(bytes, debug));
            names::name_functions(file, bytes, debug_file, code, starts, shown, |part| {
                reply(&socket, &Reply::Functions(part))
            })
        }
    }
}

fn map(file: &File) -> io::Result<Mmap> {
    // SAFETY: the mapping is private and only read as bytes, for which every value is valid. If the file is truncated meanwhile,
    // this process is killed (SIGBUS), and the tracer handles that.
    unsafe { Mmap::map(file) }
}

/// What an executable says about its debug file.
fn debug_link(bytes: &[u8]) -> DebugLink {
    let Ok(elf) = object::File::parse(bytes) else {
        return DebugLink::default();
    };
    let sections = [".debug_info", ".zdebug_info"];
    DebugLink {
        has_debug_info: sections
            .iter()
            .any(|name| elf.section_by_name(name).is_some_and(|found| found.size() > 0)),
        build_id: build_id(&elf),
        file: elf.gnu_debuglink().ok().flatten().and_then(|(name, crc)| {
            let name = str::from_utf8(name).ok()?;
            Some((name.to_owned(), crc))
        }),
    }
}

fn build_id(elf: &object::File<'_>) -> Vec<u8> {
    let id = elf.build_id().ok().flatten().unwrap_or_default();
    id[..id.len().min(MAX_BUILD_ID_BYTES)].to_vec()
}

/// Whether a debug file belongs to an executable: both have the same build id, or the file's CRC is the one that the executable
/// names.
fn belongs_to(executable: &[u8], debug_file: &File) -> bool {
    let Ok(debug_bytes) = map(debug_file) else {
        return false;
    };
    let link = debug_link(executable);
    let build_id_of_debug_file = object::File::parse(&*debug_bytes)
        .map(|elf| build_id(&elf))
        .unwrap_or_default();
    if !link.build_id.is_empty() && link.build_id == build_id_of_debug_file {
        return true;
    }
    link.file.is_some_and(|(_, crc)| crc32fast::hash(&debug_bytes) == crc)
}
