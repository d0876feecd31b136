//! Determines where an executable keeps the current tasks of its threads: the input is the bytes of the executable, the output is
//! a [`Locator`].
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
use ctxtrace_common::locator::{HAS_GO, HAS_PROBE, HAS_TOKIO, Locator, Reason};

use serde::{Deserialize, Serialize};

use super::held::MissingFile;
use elf::{Elf, ElfKind, HEADER_BYTES, ThreadLocal};
pub use frames::Frames;
pub use role::{LinkRole, link_role};
use tokio::Sought;

/// The result of examining an executable.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Found {
    /// How the kernel side finds the tasks.
    pub locator: Locator,
    /// The detail of the reason, for example which item is missing, or another note for the user.
    pub detail: Option<String>,
    /// The release of tokio, for example `1.54.1`, if it is known.
    pub tokio_version: Option<String>,
    /// The version of Go, for example `1.27.3`, if it is known.
    pub go_version: Option<String>,
    /// The GNU build id in hexadecimal digits, if the executable has one.
    #[serde(default)]
    pub build_id: Option<String>,
}

impl Found {
    /// Returns the result for an executable that could not be read, for this reason.
    pub(crate) fn unreadable(reason: String) -> Self {
        Self {
            detail: Some(reason),
            ..Self::because(Reason::Unreadable)
        }
    }

    fn because(reason: Reason) -> Self {
        let mut found = Self::default();
        found.locator.reason = reason as u32;
        found
    }

    /// Returns the result for a file that was mapped but is not held.
    pub(super) fn missing(path: &Path, why: MissingFile) -> Self {
        let reason = match why {
            MissingFile::Replaced | MissingFile::Deleted | MissingFile::Changed => Reason::Replaced,
            MissingFile::TooMany | MissingFile::OutOfReach => Reason::Unreadable,
        };
        let name = path.file_name().unwrap_or(path.as_os_str()).to_string_lossy();
        Self {
            detail: Some(format!("{name} {}", why.in_words())),
            ..Self::because(reason)
        }
    }

    /// The reason why tasks cannot be found; [`Reason::None`] if they can be found, or if there are none.
    #[must_use]
    pub fn reason(&self) -> Reason {
        Reason::from_number(self.locator.reason)
    }

    fn add_detail(&mut self, detail: String) {
        self.detail = Some(match self.detail.take() {
            Some(before) => format!("{before}; {detail}"),
            None => detail,
        });
    }
}

/// The kind and the contents of a file, which show the user why tasks and functions can be found in it or not.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Look {
    /// The file cannot be read, for this reason.
    Unreadable(String),
    /// The file is not an ELF file; it may be a script.
    NotElf,
    /// The file is for another machine, or for x32.
    Foreign,
    /// The file is a program or a library for x86-64.
    Executable(Parts),
}

/// The contents of an executable that matter for finding tasks and naming functions.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Parts {
    /// Whether there are symbols of the executable's own functions, which `strip` removes.
    pub symbols: bool,
    /// Whether there is DWARF with types (`.debug_info`).
    pub debug_info: bool,
    /// The size of the thread-locals in bytes; `None` if there are none.
    pub tls_bytes: Option<u64>,
    /// The number of functions that keep a frame pointer; `None` if the file has no unwind rules.
    pub frames: Option<Frames>,
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

/// Whether this reason concerns only goroutines.
#[must_use]
pub fn is_of_go(reason: Reason) -> bool {
    matches!(reason, Reason::GoVersion | Reason::GoStripped | Reason::GoUnknownLayout)
}

/// Whether this reason concerns only tokio's tasks.
#[must_use]
pub fn is_of_tokio(reason: Reason) -> bool {
    matches!(reason, Reason::Stripped | Reason::NoTypeInfo | Reason::UnknownLayout)
}

/// Returns a sentence with the reason and what the user can do about it.
#[must_use]
pub fn in_words(reason: Reason) -> &'static str {
    match reason {
        Reason::None => "all tasks can be found, or the program has none",
        Reason::ReadFailed => {
            "the thread's memory could not be read at that moment; `lost.task_reads` is the number of such failures"
        }
        Reason::NotExamined => "the process had just executed another program, which had not been examined yet",
        Reason::Stripped => {
            "the program contains tokio but no symbols; build it with `strip = false` and `debug = 2` in the profile"
        }
        Reason::NoTypeInfo => {
            "the program contains tokio but not its types; build it with `debug = 2` in the profile, at least for the package \
             tokio (`debug = 1` and `line-tables-only` lack the types, and `split-debuginfo` moves them out of the program)"
        }
        Reason::UnknownLayout => {
            "the layout of the program's tokio is not supported; link `ctxtrace-probe`, or use tokio 1.42 or later with Rust \
             1.79 or later"
        }
        Reason::SharedObject => {
            "the runtime (tokio or Go) is in a shared object, whose thread-locals have no fixed offset; link it into the \
             executable"
        }
        Reason::NotX86_64 => {
            "the program contains tokio or Go but is not for x86-64; build it for `x86_64-unknown-linux-gnu`, or with \
             `GOARCH=amd64`"
        }
        Reason::Overwritten => {
            "the memory for the current task holds an impossible value; the program has overwritten it"
        }
        Reason::Unreadable => {
            "the executable could not be read: it is damaged, or its file could not be opened while it ran; start the program \
             with ctxtrace, so that its file can be opened"
        }
        Reason::Replaced => {
            "the executable was replaced or deleted before it could be opened; leave the file in place until the recording of \
             the program has started"
        }
        Reason::GoVersion => {
            "the program's Go version is not in ctxtrace's table, and the program has no types to read the layout from; build \
             it without `-ldflags=-w` (and without `-s`, which implies it)"
        }
        Reason::GoStripped => {
            "the Go program was linked by the C linker (cgo) and has no symbols, so its goroutines cannot be located; build it \
             without `-ldflags=-s` and do not strip it, or use `CGO_ENABLED=0`"
        }
        Reason::GoUnknownLayout => {
            "the types or thread-locals of the Go program differ from those of all supported versions; build it with Go 1.19 \
             to 1.27"
        }
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
