//! What a file is for in the start of a process.

use std::path::Path;

use object::LittleEndian;
use object::elf::{DT_SONAME, ET_DYN, FileHeader64, PT_INTERP};
use object::read::elf::{Dyn as _, FileHeader as _, ProgramHeader as _};

use super::elf::{File, Kind, kind};

/// What a file is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LinkRole {
    /// A program that the dynamic loader starts.
    Program,
    /// A shared object that asks for no loader: if it is what was executed, it is the dynamic loader itself.
    Loader,
    /// Anything else, as a static program.
    Other,
}

/// Tells what a file is for, by its program headers.
#[must_use]
pub fn link_role(path: &Path) -> LinkRole {
    File::open(path).map_or(LinkRole::Other, |file| role_of(file.bytes()))
}

fn role_of(bytes: &[u8]) -> LinkRole {
    if kind(bytes) != Kind::X86_64 {
        return LinkRole::Other;
    }
    parsed_role(bytes).unwrap_or(LinkRole::Other)
}

fn parsed_role(bytes: &[u8]) -> Option<LinkRole> {
    let endian = LittleEndian;
    let header = FileHeader64::<LittleEndian>::parse(bytes).ok()?;
    let segments = header.program_headers(endian, bytes).ok()?;
    let asks_for_loader = segments.iter().any(|segment| segment.p_type(endian) == PT_INTERP);
    let is_shared_object = segments
        .iter()
        .filter_map(|segment| segment.dynamic(endian, bytes).ok()?)
        .flatten()
        .any(|entry| entry.tag(endian) == DT_SONAME);
    Some(match (asks_for_loader, is_shared_object) {
        (true, false) => LinkRole::Program,
        (false, true) if header.e_type(endian) == ET_DYN => LinkRole::Loader,
        _ => LinkRole::Other,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_loader_is_told_from_programs_and_libraries() {
        let role = |path: &str| link_role(Path::new(path));
        assert_eq!(role("/lib64/ld-linux-x86-64.so.2"), LinkRole::Loader);
        assert_eq!(role("/bin/sh"), LinkRole::Program);
        assert_eq!(role("/proc/self/exe"), LinkRole::Program);
        assert_eq!(role("/etc/passwd"), LinkRole::Other);
        assert_eq!(role_of(b"\x7fELF\x02\x01\x01"), LinkRole::Other);
    }
}
