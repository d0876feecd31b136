//! Determines where the threads of a Go program keep their current goroutine.
//!
//! The thread-local `g` points to the goroutine. In a program that the Go linker has linked, it is the only thread-local and is
//! directly below the thread pointer. In a program that the C linker has linked (cgo), it has the symbol `runtime.tlsg`, like any
//! thread-local.
//!
//! The compiler chooses the offsets of the four fields that are needed. They are read from DWARF, which Go writes by default
//! (unless `-ldflags=-w` is given), and otherwise from a table of known versions.

use ctxtrace_common::locator::{GoLayout, Reason};

use super::buildinfo;
use super::elf::{DebugSections, Elf, ThreadLocal};
use super::types::{EntryPosition, Missing, TypedValue, Types};

/// The size in bytes of the thread-local `g`.
const POINTER_BYTES: u64 = 8;
/// The sections that only the Go linker writes: the build information, the functions, the build id.
const SECTIONS: [&str; 4] = [
    ".go.buildinfo",
    ".gopclntab",
    ".data.rel.ro.gopclntab",
    ".note.go.buildid",
];

/// The result of the search for the goroutines.
pub(super) enum Sought {
    /// The layout was found.
    Layout(GoLayout),
    /// The layout is unknown, for this reason and with this detail.
    Unknown(Reason, Option<String>),
}

/// The offsets of `g.goid`, `g.m`, `m.curg` and `g.startpc`, by the minor number of Go's version 1.
///
/// Each line was read from the DWARF of a program that was built with that version for linux/amd64: 1.19 with 1.19.8, 1.21 with
/// 1.21.13, 1.22 with 1.22.10, 1.23 with 1.23.1 and 1.23.9, 1.24 with 1.24.3 and 1.24.11, 1.25 with 1.25.0 and 1.25.5, 1.26
/// with 1.26.0 and 1.26.6, 1.27 with 1.27.0 and 1.27.3. The offsets of other versions are not guessed; 1.20 was not examined.
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

/// Whether the file is a Go program, or has Go code linked into it.
pub(super) fn is_go(elf: &Elf<'_>) -> bool {
    let named = SECTIONS.iter().any(|name| elf.has_section(name));
    named || !elf.has_sections() && elf.writable().into_iter().any(|part| buildinfo::find(part).is_some())
}

/// Whether a file for another machine than x86-64 is a Go program.
pub(super) fn is_go_for_another_machine(bytes: &[u8]) -> bool {
    use object::{File, Object};
    File::parse(bytes).is_ok_and(|file| SECTIONS.iter().any(|name| file.section_by_name(name).is_some()))
}

/// Returns the Go version without the prefix `go`; a version that is not a release is returned unchanged.
pub(super) fn version(elf: &Elf<'_>) -> Option<String> {
    let version = buildinfo::version(elf)?;
    Some(version.strip_prefix("go").unwrap_or(&version).to_owned())
}

/// Determines the layout of the goroutines in a Go program of this version.
pub(super) fn locate(elf: &Elf<'_>, version: Option<&str>) -> Sought {
    let below_tp = match below_tp(elf) {
        Ok(below_tp) => below_tp,
        Err(reason) => return Sought::Unknown(reason, Some("runtime.tlsg cannot be located".into())),
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
            Some(version.map_or_else(
                || "it does not contain its version".to_owned(),
                |version| format!("Go {version}"),
            )),
        ),
    }
}

/// Returns the offsets from the type information; `None` if there is none, or if it cannot be read.
fn by_types(sections: &DebugSections<'_>, elf: &Elf<'_>) -> Result<Option<[u32; 4]>, Missing> {
    let Ok(types) = Types::new(sections, elf.budget()) else {
        return Ok(None);
    };
    match types.structure("runtime.g", "runtime") {
        Ok(Some(g)) => fields(&types, g).map(Some),
        Ok(None) | Err(_) => Ok(None),
    }
}

/// Returns the distance in bytes from `g` up to the thread pointer.
fn below_tp(elf: &Elf<'_>) -> Result<u64, Reason> {
    let Some(segment_bytes) = elf.tls_bytes() else {
        // There is no TLS segment, so the runtime itself reserves the space for `g`.
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

/// Reads the offsets from the types, in the order of [`TABLE`].
fn fields(types: &Types<'_>, g: EntryPosition) -> Result<[u32; 4], Missing> {
    let within = |place, name: &str| {
        let member = types.member(TypedValue { place, offset: 0 }, name)?;
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

/// Returns the offsets of a release or of a patch release, because patch releases do not change these structures.
fn of_version(version: &str) -> Option<[u32; 4]> {
    let release = version.split(' ').next()?;
    let mut numbers = release.split('.');
    let (major, minor, patch) = (numbers.next()?, numbers.next()?, numbers.next());
    let is_number = |text: &str| !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
    // Release candidates and builds from the repository are rejected, because they are between two releases.
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
