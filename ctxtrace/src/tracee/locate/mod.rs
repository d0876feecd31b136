//! Determines where an executable keeps the current tasks of its threads: the input is the bytes of the executable, the output is
//! a [`Locator`](ctxtrace_common::locator::Locator).
//!
//! * `budget`: limits the bytes, entries and time of an examination.
//! * `elf`: reads the thread-locals of an executable, their distance below the thread pointer, and its sections.
//! * `signs`: detects tokio in a program without symbols, by the strings that remain.
//! * `types`: reads types from DWARF.
//! * `tokio`: reads the layout of tokio's thread-local, by the names of its types and members.
//! * `go`: finds the goroutines of a Go program, by its types or by its version.
//! * `buildinfo`: reads the Go version that a program was built with.
//! * `role`: distinguishes programs from the dynamic loader.
//! * `frames`: counts the functions that keep a frame pointer.
//!
//! No layout of a release of tokio or of Rust's `std` is assumed: every offset, size and discriminant comes from the type
//! information of the program itself, and an item that is not found there by its name is reported as missing. This module does
//! not read processes. The files are untrusted: reading all parts of a file has one budget of bytes, entries and time, and
//! invalid contents result in a [`Reason`], never in a panic. [`crate::reader`] calls this module in a process without
//! privileges.

mod budget;
mod buildinfo;
mod elf;
mod frames;
mod go;
mod role;
mod signs;
#[cfg(test)]
mod synthetic;
#[cfg(test)]
mod tests;
mod tokio;
mod types;

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::Path;

use ctxtrace_abi::ThreadState;
use ctxtrace_common::locator::{HAS_GO, HAS_PROBE, HAS_TOKIO, Reason};

use super::held::MissingFile;
use ctxtrace_format::executable::{Found, Look, Parts};
use elf::{Elf, ElfKind, HEADER_BYTES, ThreadLocal};
pub use role::{LinkRole, link_role};
use tokio::Sought;

/// Returns the result for a file that was mapped but is not held.
pub(super) fn missing(path: &Path, why: MissingFile) -> Found {
    let reason = match why {
        MissingFile::Replaced | MissingFile::Deleted | MissingFile::Changed => Reason::Replaced,
        MissingFile::TooMany | MissingFile::OutOfReach => Reason::Unreadable,
    };
    let name = path.file_name().unwrap_or(path.as_os_str()).to_string_lossy();
    Found {
        detail: Some(format!("{name} {}", why.in_words())),
        ..Found::because(reason)
    }
}

/// Determines the kind of a file, and which of its contents help to find tasks and to name functions.
#[must_use]
pub fn look_at_bytes(bytes: &[u8]) -> Look {
    match elf::kind(bytes) {
        ElfKind::NotElf => Look::NotElf,
        ElfKind::Foreign => Look::Foreign,
        ElfKind::X86_64 => Elf::parse(bytes).map_or_else(unlinked, |elf| {
            let frames = elf
                .unwind_section()
                .map(|(section, address)| frames::count(&section, address))
                .filter(|frames| frames.functions > 0);
            Look::Executable(Parts {
                symbols: elf.has_local_symbols(),
                debug_info: elf.has_section(".debug_info"),
                tls_bytes: elf.tls_bytes(),
                frames,
            })
        }),
    }
}

fn unlinked() -> Look {
    Look::Unreadable("its ELF headers are not those of a program or library".to_owned())
}

/// Whether a file is an ELF file. A script is not, because the kernel runs its interpreter instead.
#[must_use]
pub fn is_elf(file: &File) -> bool {
    let mut header = [0; HEADER_BYTES];
    file.read_exact_at(&mut header, 0)
        .is_ok_and(|()| !matches!(elf::kind(&header), ElfKind::NotElf))
}

/// Whether a file contains tokio's runtime. Used for shared objects, whose thread-locals have no fixed offset.
#[must_use]
pub fn mentions_tokio(bytes: &[u8]) -> bool {
    match elf::kind(bytes) {
        ElfKind::NotElf => false,
        ElfKind::Foreign => signs::in_bytes(bytes),
        ElfKind::X86_64 => Elf::parse(bytes).map_or_else(
            || signs::in_bytes(bytes),
            |elf| elf.has_thread_local(tokio::is_context) || elf.loaded().iter().any(|part| signs::in_bytes(part)),
        ),
    }
}

/// Whether a file contains Go's runtime. Used for shared objects.
#[must_use]
pub fn mentions_go(bytes: &[u8]) -> bool {
    match elf::kind(bytes) {
        ElfKind::NotElf => false,
        ElfKind::Foreign => go::is_go_for_another_machine(bytes),
        ElfKind::X86_64 => Elf::parse(bytes).is_some_and(|elf| go::is_go(&elf)),
    }
}

/// Searches the bytes of an executable for the probe, tokio and Go.
#[must_use]
pub fn examine_bytes(bytes: &[u8]) -> Found {
    match elf::kind(bytes) {
        ElfKind::Foreign if signs::in_bytes(bytes) || go::is_go_for_another_machine(bytes) => {
            Found::because(Reason::NotX86_64)
        }
        ElfKind::Foreign => Found::default(),
        ElfKind::X86_64 => {
            let found = Elf::parse(bytes).map_or_else(|| Found::because(Reason::Unreadable), |elf| examine_elf(&elf));
            Found {
                build_id: build_id(bytes),
                ..found
            }
        }
        ElfKind::NotElf => Found::because(Reason::Unreadable),
    }
}

/// Returns the GNU build id in hexadecimal digits, which distinguishes the builds of a program.
fn build_id(bytes: &[u8]) -> Option<String> {
    use std::fmt::Write as _;

    use object::Object as _;

    let file = object::File::parse(bytes).ok()?;
    let id = file.build_id().ok()??;
    Some(id.iter().fold(String::new(), |mut digits, byte| {
        let _ = write!(digits, "{byte:02x}");
        digits
    }))
}

fn examine_elf(elf: &Elf<'_>) -> Found {
    let mut found = Found::default();
    find_probe(elf, &mut found);
    find_tokio(elf, &mut found);
    find_go(elf, &mut found);
    found
}

fn find_go(elf: &Elf<'_>, found: &mut Found) {
    if !go::is_go(elf) {
        return;
    }
    found.go_version = go::version(elf);
    match go::locate(elf, found.go_version.as_deref()) {
        go::Sought::Layout(layout) => {
            found.locator.go = layout;
            found.locator.flags |= HAS_GO;
        }
        go::Sought::Unknown(reason, missing) => {
            // A program with both runtimes, linked by the C linker, has only one reason: that of tokio if there is one.
            if found.locator.reason == Reason::None as u32 {
                found.locator.reason = reason as u32;
                if let Some(missing) = missing {
                    found.add_detail(missing);
                }
            }
        }
    }
}

fn find_probe(elf: &Elf<'_>, found: &mut Found) {
    let slots = elf.thread_locals(|name| name.contains("ctxtrace_probe") && name.contains("SLOT"));
    match slots.as_slice() {
        [] => {}
        [slot] if slot.size != size_of::<ThreadState>() as u64 => {
            found.add_detail(format!(
                "the probe's slot has {} bytes, so it is from another release of ctxtrace-probe",
                slot.size
            ));
        }
        [slot] => match elf.below_tp(slot) {
            Some(below_tp) => {
                found.locator.probe_below_tp = below_tp;
                found.locator.flags |= HAS_PROBE;
            }
            None => found.add_detail("the probe's slot is not in a TLS segment".into()),
        },
        _ => found.add_detail("the program contains two releases of ctxtrace-probe".into()),
    }
}

fn find_tokio(elf: &Elf<'_>, found: &mut Found) {
    let contexts = elf.thread_locals(tokio::is_context);
    if contexts.is_empty() {
        // A program that has local symbols, but not this one, has no runtime, even if its strings look like it.
        if !elf.has_local_symbols() && elf.loaded().iter().any(|part| signs::in_bytes(part)) {
            found.locator.reason = Reason::Stripped as u32;
            found.tokio_version = signs::version_in(elf);
        }
        return;
    }
    let mut values = contexts.iter().filter(|context| context.name.ends_with("VAL"));
    let sought = match (values.next(), values.next()) {
        (Some(context), None) => locate_tokio(elf, context, found),
        (Some(_), Some(_)) => Sought::Unknown("the program contains two tokio versions".into()),
        (None, _) => Sought::Unknown("the value of the thread-local CONTEXT has no symbol".into()),
    };
    let reason = match sought {
        Sought::Layout(layout) => {
            found.locator.tokio = layout;
            found.locator.flags |= HAS_TOKIO;
            Reason::None
        }
        Sought::NoRuntime => {
            found.add_detail("tokio is linked without its runtime".into());
            Reason::None
        }
        Sought::NoTypes => Reason::NoTypeInfo,
        Sought::Unknown(missing) => {
            found.add_detail(missing);
            Reason::UnknownLayout
        }
    };
    found.locator.reason = reason as u32;
    if found.tokio_version.is_none() {
        found.tokio_version = signs::version_in(elf);
    }
}

fn locate_tokio(elf: &Elf<'_>, context: &ThreadLocal<'_>, found: &mut Found) -> Sought {
    let Some(below_tp) = elf.below_tp(context) else {
        return Sought::Unknown("CONTEXT is not in a TLS segment".into());
    };
    let sections = elf.debug_sections();
    let (sought, version) = tokio::locate(&sections, elf.budget(), context, below_tp);
    found.tokio_version = version;
    sought
}
