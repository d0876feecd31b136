//! Determines the role of a file at the start of a process: program, dynamic loader, or other.

use std::fs::File;
use std::os::unix::fs::FileExt;

use object::LittleEndian;
use object::elf::{DT_NULL, DT_SONAME, ET_DYN, FileHeader64, PT_DYNAMIC, PT_INTERP};
use object::read::elf::{FileHeader as _, ProgramHeader as _};

use super::elf::{ElfKind, kind};

/// The maximum number of bytes that are read of a file's headers, and of its dynamic section. The rest is ignored.
const READ_BYTES: u64 = 64 << 10;

/// The size in bytes of an entry of the dynamic section (`Elf64_Dyn`), which consists of a tag and a value.
const ENTRY_BYTES: usize = 16;

/// The role of a file at the start of a process.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LinkRole {
    /// A program that the dynamic loader starts.
    Program,
    /// A shared object that names no loader. If it was executed, it is the dynamic loader itself.
    Loader,
    /// Any other file, for example a static program.
    Other,
}

/// Distinguishes programs from the dynamic loader by the program headers. At most 128 KiB are read, without mapping the file, so
/// the cost of a hostile file is limited.
#[must_use]
pub fn link_role(file: &File) -> LinkRole {
    role_of(file).unwrap_or(LinkRole::Other)
}

fn role_of(file: &File) -> Option<LinkRole> {
    let endian = LittleEndian;
    let head = read_part(file, 0, READ_BYTES)?;
    if kind(&head) != ElfKind::X86_64 {
        return None;
    }
    let header = FileHeader64::<LittleEndian>::parse(&*head).ok()?;
    let segments = header.program_headers(endian, &*head).ok()?;
    let asks_for_loader = segments.iter().any(|segment| segment.p_type(endian) == PT_INTERP);
    let dynamic = segments.iter().find(|segment| segment.p_type(endian) == PT_DYNAMIC);
    let has_soname = dynamic
        .and_then(|segment| read_part(file, segment.p_offset(endian), segment.p_filesz(endian)))
        .is_some_and(|bytes| has_tag(&bytes, DT_SONAME));
    Some(match (asks_for_loader, has_soname) {
        (true, false) => LinkRole::Program,
        (false, true) if header.e_type(endian) == ET_DYN => LinkRole::Loader,
        _ => LinkRole::Other,
    })
}

/// Reads `bytes` bytes of a file from an offset on, but at most [`READ_BYTES`] and not beyond the end of the file.
fn read_part(file: &File, offset: u64, bytes: u64) -> Option<Vec<u8>> {
    let mut part = vec![0; bytes.min(READ_BYTES) as usize];
    let read = file.read_at(&mut part, offset).ok()?;
    part.truncate(read);
    Some(part)
}

fn has_tag(dynamic: &[u8], tag: i64) -> bool {
    let tags = dynamic
        .chunks_exact(ENTRY_BYTES)
        .filter_map(|entry| Some(i64::from_le_bytes(*entry.first_chunk()?)));
    tags.take_while(|&of_entry| of_entry != DT_NULL)
        .any(|of_entry| of_entry == tag)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_loader_is_distinguished_from_programs_and_libraries() {
        let role = |path: &str| link_role(&File::open(path).expect("opened"));
        assert_eq!(role("/lib64/ld-linux-x86-64.so.2"), LinkRole::Loader);
        assert_eq!(role("/bin/sh"), LinkRole::Program);
        assert_eq!(role("/proc/self/exe"), LinkRole::Program);
        assert_eq!(role("/etc/passwd"), LinkRole::Other);
    }
}
