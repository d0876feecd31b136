//! Functions by the offsets of their code in a file, by blazesym, in the reading process.
//!
//! blazesym opens files by their path, and follows what an executable says of its debug file to any path. So it is given
//! `/proc/self/fd/N`, and an executable with such a link is given as a private copy that has none.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::fs::FileExt;
use std::path::PathBuf;
use std::sync::Arc;

use blazesym::symbolize::source::{Elf, Source};
use blazesym::symbolize::{Input, Reason, Symbolized, Symbolizer};
use nix::errno::Errno;
use nix::sys::memfd::{MFdFlags, memfd_create};
use nix::unistd::{Whence, lseek};
use object::read::elf::{ElfFile64, FileHeader, SectionHeader};
use object::{LittleEndian, elf};

use super::go_functions::GoFunctions;
use super::go_wrappers::{Callee, Wrappers};
use super::loaded::Loaded;
use super::message::{MAX_FRAMES, MAX_NAME_BYTES};
use crate::printable::cut_name;
use crate::trace::symbols::{Frame, FrameKind};

/// Sections that lead blazesym to other files.
const LINK_SECTIONS: [&[u8]; 3] = [b".gnu_debuglink", b".gnu_debugaltlink", b".debug_sup"];
/// Offsets that are answered at once.
const PART_OFFSETS: usize = 256;
/// Bytes of names after which a part is sent.
const PART_BYTES: usize = 1 << 20;
/// Bytes copied at once.
const COPY_BYTES: usize = 1 << 20;
/// Most bytes copied of one file; holes are not copied.
const MAX_COPY_BYTES: u64 = 1 << 30;

/// Names the functions with code at the offsets of `code`, then those of `starts`, where goroutines start; hands the names over in
/// parts, in this order. A start in a wrapper of the Go compiler has the name of the function that the wrapper calls.
pub(super) fn name_functions(
    file: &File,
    bytes: &[u8],
    debug_file: Option<&File>,
    code: &[u64],
    starts: &[u64],
    shown: &str,
    mut send: impl FnMut(Vec<Vec<Frame>>) -> io::Result<()>,
) -> io::Result<()> {
    let linkless = without_links(file, bytes)?;
    let loaded = Loaded::new(bytes);
    let names = Names {
        source: source_of(linkless.as_ref().unwrap_or(file)),
        debug_source: debug_file.filter(|debug| can_be_opened_again(debug)).map(source_of),
        go_functions: GoFunctions::find(bytes, &loaded),
        loaded,
        symbolizer: Symbolizer::builder()
            .enable_code_info(true)
            .enable_inlined_fns(true)
            .enable_auto_reload(false)
            .set_debug_dirs(Some(std::iter::empty::<PathBuf>()))
            .build(),
        shown,
    };
    let wrappers = names
        .go_functions
        .as_ref()
        .filter(|_| !starts.is_empty())
        .and_then(|functions| Wrappers::find(functions, &names.loaded));
    let in_code = code.iter().map(|&offset| names.at(offset));
    let in_starts = starts.iter().map(|&offset| {
        let address = names.loaded.address(offset);
        let callee = wrappers.as_ref().and_then(|wrappers| wrappers.callee(address?));
        match callee {
            Some(Callee::At(address)) => names.at(names.loaded.offset(address).unwrap_or(offset)),
            Some(Callee::Inlined(name)) => vec![function(name)],
            None => names.at(offset),
        }
    });
    let mut part = Vec::new();
    let mut part_bytes = 0;
    for mut frames in in_code.chain(in_starts) {
        frames.truncate(MAX_FRAMES);
        for frame in &mut frames {
            frame.name = shortened(&frame.name);
            part_bytes += frame.name.len();
        }
        part.push(frames);
        if part.len() == PART_OFFSETS || part_bytes > PART_BYTES {
            send(std::mem::take(&mut part))?;
            part_bytes = 0;
        }
    }
    if part.is_empty() { Ok(()) } else { send(part) }
}

/// What names the functions of one file.
struct Names<'a> {
    source: Source<'static>,
    debug_source: Option<Source<'static>>,
    loaded: Loaded<'a>,
    go_functions: Option<GoFunctions<'a>>,
    symbolizer: Symbolizer,
    /// The name of the file in reasons.
    shown: &'a str,
}

impl Names<'_> {
    /// The function with code at an offset, and what is inlined there, outermost first: from the debug file, the file's own symbols,
    /// or Go's table of functions.
    fn at(&self, offset: u64) -> Vec<Frame> {
        let address = self.loaded.address(offset);
        let in_debug_file = self.debug_source.as_ref().and_then(|debug| {
            let symbolized = self
                .symbolizer
                .symbolize_single(debug, Input::VirtOffset(address?))
                .ok()?;
            matches!(symbolized, Symbolized::Sym(_))
                .then(|| symbolized_frames(&symbolized, FrameKind::User, self.shown))
        });
        let frames = in_debug_file.unwrap_or_else(|| {
            match self
                .symbolizer
                .symbolize_single(&self.source, Input::FileOffset(offset))
            {
                Ok(symbolized) => symbolized_frames(&symbolized, FrameKind::User, self.shown),
                Err(error) => vec![Frame::reason(&format!(
                    "unknown: {} cannot be read ({})",
                    self.shown,
                    error.kind()
                ))],
            }
        });
        if frames.iter().all(|frame| frame.kind == FrameKind::Reason)
            && let Some(functions) = &self.go_functions
            && let Some(name) = address.and_then(|address| functions.name(address))
        {
            return vec![function(name)];
        }
        frames
    }
}

/// The frame of a function of the target.
fn function(name: String) -> Frame {
    Frame {
        kind: FrameKind::User,
        name: name.into(),
    }
}

/// The function, and what is inlined in it, outermost first.
pub(crate) fn symbolized_frames(symbolized: &Symbolized<'_>, kind: FrameKind, place: &str) -> Vec<Frame> {
    match symbolized {
        Symbolized::Sym(symbol) => std::iter::once(Frame {
            kind,
            name: (*symbol.name).into(),
        })
        .chain(symbol.inlined.iter().map(|inlined| Frame {
            kind: FrameKind::Inlined,
            name: (*inlined.name).into(),
        }))
        .collect(),
        Symbolized::Unknown(why) => vec![Frame::reason(&format!("unknown: {} ({place})", in_words(*why)))],
    }
}

fn in_words(why: Reason) -> &'static str {
    match why {
        Reason::MissingSyms => "no symbols",
        Reason::UnknownAddr => "no symbol there",
        Reason::InvalidFileOffset => "not code",
        Reason::MissingComponent => "no file",
        Reason::Unmapped => "not mapped",
        _ => "not supported",
    }
}

/// The name, cut off where it is longer than the tracer takes.
fn shortened(name: &Arc<str>) -> Arc<str> {
    if name.len() <= MAX_NAME_BYTES {
        return Arc::clone(name);
    }
    cut_name(name.to_string(), MAX_NAME_BYTES).into()
}

fn source_of(file: &File) -> Source<'static> {
    Source::Elf(Elf::new(own_path(file)))
}

/// A path by which this process opens the same file.
fn own_path(file: &File) -> PathBuf {
    PathBuf::from(format!("/proc/self/fd/{}", file.as_raw_fd()))
}

/// Whether the user of this process may open the file by a path.
fn can_be_opened_again(file: &File) -> bool {
    OpenOptions::new().read(true).open(own_path(file)).is_ok()
}

/// A private copy of the file that leads to no other one; `None` if the file itself does not, and can be opened by its path.
fn without_links(file: &File, bytes: &[u8]) -> io::Result<Option<File>> {
    let names = link_names(bytes);
    if names.is_empty() && can_be_opened_again(file) {
        return Ok(None);
    }
    let copy = copy_of(file)?;
    for at in names {
        // No section has this name then, and none is looked up by what is left.
        copy.write_all_at(b"-", at)?;
    }
    Ok(Some(copy))
}

/// Where in the file the names of the sections are that lead to other files.
fn link_names(bytes: &[u8]) -> Vec<u64> {
    let Ok(file) = ElfFile64::<LittleEndian>::parse(bytes) else {
        return Vec::new();
    };
    let header = file.elf_header();
    let (sections, endian) = (file.elf_section_table(), LittleEndian);
    let names = header
        .shstrndx(endian, bytes)
        .ok()
        .and_then(|index| sections.section(object::SectionIndex(index as usize)).ok());
    let Some(names) = names else {
        return Vec::new();
    };
    let is_link = |section: &&elf::SectionHeader64<LittleEndian>| {
        sections
            .section_name(endian, section)
            .is_ok_and(|name| LINK_SECTIONS.contains(&name))
    };
    let mut places: Vec<u64> = sections
        .iter()
        .filter(is_link)
        .filter_map(|section| names.sh_offset(endian).checked_add(u64::from(section.sh_name(endian))))
        .collect();
    places.sort_unstable();
    places.dedup();
    places
}

/// Copies a file into memory; its holes stay holes. What is truncated meanwhile is zero in the copy.
fn copy_of(file: &File) -> io::Result<File> {
    let copy = File::from(memfd_create(c"ctxtrace-copy", MFdFlags::MFD_CLOEXEC)?);
    copy.set_len(file.metadata()?.len())?;
    let mut buffer = vec![0; COPY_BYTES];
    let (mut at, mut copied) = (0, 0);
    loop {
        at = match lseek(file, at, Whence::SeekData) {
            Ok(data) => data,
            Err(Errno::ENXIO) => return Ok(copy),
            Err(errno) => return Err(errno.into()),
        };
        let end = lseek(file, at, Whence::SeekHole)?;
        while at < end {
            let wanted = buffer.len().min((end - at) as usize);
            let read = file.read_at(&mut buffer[..wanted], at as u64)?;
            if read == 0 {
                return Ok(copy);
            }
            copied += read as u64;
            if copied > MAX_COPY_BYTES {
                return Err(io::ErrorKind::FileTooLarge.into());
            }
            copy.write_all_at(&buffer[..read], at as u64)?;
            at += read as i64;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_copy_has_the_same_bytes_and_the_same_holes() {
        let file = tempfile::tempfile().expect("a file");
        file.set_len(1 << 30).expect("sparse");
        file.write_all_at(b"in the middle", 512 << 20).expect("written");
        let copy = copy_of(&file).expect("copied");
        let mut bytes = [0; 13];
        copy.read_exact_at(&mut bytes, 512 << 20).expect("read");
        assert_eq!(&bytes, b"in the middle");
        let metadata = copy.metadata().expect("there");
        assert_eq!(metadata.len(), 1 << 30);
        let blocks = std::os::unix::fs::MetadataExt::blocks(&metadata);
        assert!(blocks < 10_000, "{blocks}");
    }

    #[test]
    fn a_long_name_is_cut_between_characters() {
        let name = shortened(&"ö".repeat(MAX_NAME_BYTES).into());
        assert!(name.len() <= MAX_NAME_BYTES && name.ends_with("ö…"));
        assert_eq!(&*shortened(&"short".into()), "short");
    }
}
