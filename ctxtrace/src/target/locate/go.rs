//! Where a Go program's threads keep their goroutine.
//!
//! The thread-local `g` points to it. What the Go linker links has no other thread-local, and lies right below the thread
//! pointer; what the C linker has linked (cgo) has the symbol `runtime.tlsg` like any thread-local.
//!
//! Where the four fields lie is the compiler's choice: it is in the DWARF that Go writes unless told not to
//! (`-ldflags=-w`), and otherwise in a table of the versions that somebody has looked at.

use ctxtrace_common::locator::{GoLayout, Reason};

use super::buildinfo;
use super::elf::{DebugSections, Elf, ThreadLocal};
use super::types::{Missing, Place, Types, Value};

/// The bytes of `g` in the thread-local segment.
const POINTER_BYTES: u64 = 8;
/// The sections that the Go linker makes and nobody else: the program's build, its functions, its id.
const SECTIONS: [&str; 4] = [
    ".go.buildinfo",
    ".gopclntab",
    ".data.rel.ro.gopclntab",
    ".note.go.buildid",
];

/// What the search for the goroutines came to.
pub(super) enum Sought {
    /// The layout.
    Layout(GoLayout),
    /// Why there is none, and what is missing, by name.
    Unknown(Reason, Option<String>),
}

/// `g.goid`, `g.m`, `m.curg` and `g.startpc`, by the minor number of the version 1.
///
/// Each line was read from the DWARF of a program that was built with that version for linux/amd64: of 1.19 with 1.19.8, of
/// 1.21 with 1.21.13, of 1.22 with 1.22.10, of 1.23 with 1.23.1 and 1.23.9, of 1.24 with 1.24.3 and 1.24.11, of 1.25 with
/// 1.25.0 and 1.25.5, of 1.26 with 1.26.0 and 1.26.6, of 1.27 with 1.27.0 and 1.27.3. Nothing in between or beyond is
/// guessed: 1.20 has not been looked at.
const TABLE: [(u32, [u32; 4]); 8] = [
    (19, [152, 48, 192, 312]),
    (21, [152, 48, 192, 296]),
    (22, [152, 48, 192, 296]),
    (23, [160, 48, 192, 304]),
    (24, [160, 48, 192, 304]),
    (25, [152, 48, 184, 296]),
    (26, [152, 48, 184, 304]),
    (27, [152, 48, 184, 304]),
];

/// Whether this is a Go program, or has one linked into it.
pub(super) fn is_go(elf: &Elf<'_>) -> bool {
    let named = SECTIONS.iter().any(|name| elf.has_section(name));
    named || !elf.has_sections() && elf.writable().into_iter().any(|part| buildinfo::find(part).is_some())
}

/// Whether a file for another machine is a Go program.
pub(super) fn is_go_for_another_machine(bytes: &[u8]) -> bool {
    use object::{File, Object};
    File::parse(bytes).is_ok_and(|file| SECTIONS.iter().any(|name| file.section_by_name(name).is_some()))
}

/// The version without the `go` before it; what is no release stays as it is.
pub(super) fn version(elf: &Elf<'_>) -> Option<String> {
    let version = buildinfo::version(elf)?;
    Some(version.strip_prefix("go").unwrap_or(&version).to_owned())
}

/// Where the goroutines of a Go program of this version are.
pub(super) fn locate(elf: &Elf<'_>, version: Option<&str>) -> Sought {
    let below_tp = match below_tp(elf) {
        Ok(below_tp) => below_tp,
        Err(reason) => return Sought::Unknown(reason, Some("the thread-local runtime.tlsg".into())),
    };
    let sections = elf.debug_sections();
    let by_types = match by_types(&sections, elf) {
        Ok(fields) => fields,
        Err(Missing(what)) => return Sought::Unknown(Reason::GoUnknownLayout, Some(what)),
    };
    match by_types.or_else(|| version.and_then(of_version)) {
        Some([goid, m, curg, startpc]) => Sought::Layout(GoLayout {
            below_tp,
            goid,
            m,
            curg,
            startpc,
        }),
        None => Sought::Unknown(
            Reason::GoVersion,
            Some(version.map_or_else(|| "it does not say which".to_owned(), |version| format!("Go {version}"))),
        ),
    }
}

/// The offsets by the types; `None` if there are none, or none that can be read.
fn by_types(sections: &DebugSections<'_>, elf: &Elf<'_>) -> Result<Option<[u32; 4]>, Missing> {
    let Ok(types) = Types::new(sections, elf.budget()) else {
        return Ok(None);
    };
    match types.structure("runtime.g", "runtime") {
        Ok(Some(g)) => fields(&types, g).map(Some),
        Ok(None) | Err(_) => Ok(None),
    }
}

/// The distance from `g` up to the thread pointer.
fn below_tp(elf: &Elf<'_>) -> Result<u64, Reason> {
    let Some(segment_bytes) = elf.tls_bytes() else {
        // No thread-locals by the linker's book: the runtime makes room for `g` itself.
        return Ok(POINTER_BYTES);
    };
    let symbol = elf.thread_local_offset("runtime.tlsg");
    let offset = match symbol {
        Some(offset) => offset,
        None if segment_bytes == POINTER_BYTES => 0,
        None if elf.has_local_symbols() => return Err(Reason::GoUnknownLayout),
        None => return Err(Reason::GoStripped),
    };
    elf.below_tp(&ThreadLocal {
        mangled: "runtime.tlsg",
        name: String::new(),
        offset,
        size: POINTER_BYTES,
    })
    .ok_or(Reason::GoUnknownLayout)
}

/// The offsets in the order of [`TABLE`].
fn fields(types: &Types<'_>, g: Place) -> Result<[u32; 4], Missing> {
    let within = |place, name: &str| {
        let member = types.member(Value { place, offset: 0 }, name)?;
        let kind = types.unnamed(member.place)?;
        match (types.size(kind)?, u32::try_from(member.offset)) {
            (8, Ok(offset)) => Ok((kind, offset)),
            _ => Err(types.missing(place, name)),
        }
    };
    let (m, m_offset) = within(g, "m")?;
    Ok([
        within(g, "goid")?.1,
        m_offset,
        within(types.target(m)?, "curg")?.1,
        within(g, "startpc")?.1,
    ])
}

/// The offsets of a release, or of a patch to one: patches do not change these structures.
fn of_version(version: &str) -> Option<[u32; 4]> {
    let release = version.split(' ').next()?;
    let mut numbers = release.split('.');
    let (major, minor, patch) = (numbers.next()?, numbers.next()?, numbers.next());
    let is_number = |text: &str| !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
    // Neither a release candidate nor a build from the repository: those are between two releases.
    if major != "1" || !is_number(minor) || !patch.is_none_or(is_number) || numbers.next().is_some() {
        return None;
    }
    let minor: u32 = minor.parse().ok()?;
    TABLE.iter().find(|(of, _)| *of == minor).map(|(_, fields)| *fields)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_release_and_its_patches_are_known_and_nothing_in_between() {
        for version in [
            "1.19",
            "1.19.8",
            "1.27.3",
            "1.21.13 (Red Hat 1.21.13-1)",
            "1.26.0 X:nodwarf5",
        ] {
            assert!(of_version(version).is_some(), "{version}");
        }
        for version in [
            "",
            "1",
            "1.",
            "2.19",
            "1.18.1",
            "1.20",
            "1.28",
            "1.27rc1",
            "1.27.3-x",
            "1.27.",
            "1.27.1.1",
            "devel go1.27-0123456",
            "1.4294967315",
        ] {
            assert_eq!(of_version(version), None, "{version}");
        }
    }

    #[test]
    fn the_table_is_in_order() {
        assert!(TABLE.is_sorted_by(|a, b| a.0 < b.0));
    }
}
