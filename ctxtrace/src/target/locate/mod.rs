//! Where an executable keeps what its threads are doing: its bytes in, a [`Locator`] out.
//!
//! * `budget`: how many bytes, entries and seconds one examination may take.
//! * `elf`: the thread-locals of an executable, their distance below the thread pointer, its sections.
//! * `signs`: whether there is tokio inside, by the strings that stay when the symbols have gone.
//! * `types`: the few questions that are asked of DWARF.
//! * `tokio`: the layout of tokio's thread-local, walked by names.
//! * `go`: where a Go program has its goroutines, by its types or by its version.
//! * `buildinfo`: what Go it was built with.
//! * `role`: whether it is a program, or the loader that starts programs.
//! * `frames`: whether its functions keep a frame pointer.
//!
//! What a release of tokio or of Rust's `std` looks like is nowhere assumed: every offset, size and discriminant comes from
//! the type information of the program itself, and what is not found there by its name is said to be missing. Nothing here
//! looks at a process. The files are anybody's, so all of them may lie: reading has one budget of bytes, entries and time for
//! everything in a file, and what contradicts itself is a [`Reason`], never a panic. [`crate::reader`] calls this in a process
//! without privileges.

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
use elf::{Elf, HEADER_BYTES, Kind, ThreadLocal};
pub use frames::Frames;
pub use role::{LinkRole, link_role};
use tokio::Sought;

/// What was found in an executable.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Found {
    /// How the kernel side finds the tasks.
    pub locator: Locator,
    /// What was missing, by its name in the source, or what else a user should know.
    pub detail: Option<String>,
    /// The release of tokio, as `1.54.1`, if it can be told.
    pub tokio_version: Option<String>,
    /// The version of Go, as `1.27.3`, if it can be told.
    pub go_version: Option<String>,
    /// The GNU build id, in hexadecimal digits, if the linker gave it one.
    #[serde(default)]
    pub build_id: Option<String>,
}

impl Found {
    /// An executable that could not be read, for this reason.
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

    /// Of a file that was mapped and could not be opened in time.
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

    /// Why tasks cannot be found; [`Reason::None`] if they can, or if there are none.
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

/// What a file is, for who wants to know why something is found in it or not.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Look {
    /// It cannot be read, for this reason.
    Unreadable(String),
    /// No program, but perhaps a script.
    NotElf,
    /// A program for another machine, or for x32.
    Foreign,
    /// A program, or a library, for x86-64.
    Executable(Parts),
}

/// What an executable has in it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Parts {
    /// Whether there are symbols of its own functions, which `strip` takes away.
    pub symbols: bool,
    /// Whether there is DWARF with types (`.debug_info`).
    pub debug_info: bool,
    /// Size of its thread-locals, in bytes; `None` if it has none.
    pub tls_bytes: Option<u64>,
    /// How many functions keep a frame pointer; `None` if it says of none.
    pub frames: Option<Frames>,
}

/// Looks at what kind of file it is, and at what helps in finding tasks and naming functions.
#[must_use]
pub fn look_at_bytes(bytes: &[u8]) -> Look {
    match elf::kind(bytes) {
        Kind::NotElf => Look::NotElf,
        Kind::Foreign => Look::Foreign,
        Kind::X86_64 => Elf::parse(bytes).map_or_else(unlinked, |elf| {
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

/// Whether a file is an ELF object. A script is none: what runs is its interpreter.
#[must_use]
pub fn is_elf(file: &File) -> bool {
    let mut header = [0; HEADER_BYTES];
    file.read_exact_at(&mut header, 0)
        .is_ok_and(|()| !matches!(elf::kind(&header), Kind::NotElf))
}

/// Whether there is tokio's runtime in a file: for shared objects, whose thread-locals lie at no fixed place.
#[must_use]
pub fn mentions_tokio(bytes: &[u8]) -> bool {
    match elf::kind(bytes) {
        Kind::NotElf => false,
        Kind::Foreign => signs::in_bytes(bytes),
        Kind::X86_64 => Elf::parse(bytes).map_or_else(
            || signs::in_bytes(bytes),
            |elf| elf.has_thread_local(tokio::is_context) || elf.loaded().iter().any(|part| signs::in_bytes(part)),
        ),
    }
}

/// Whether there is Go's runtime in a file: likewise.
#[must_use]
pub fn mentions_go(bytes: &[u8]) -> bool {
    match elf::kind(bytes) {
        Kind::NotElf => false,
        Kind::Foreign => go::is_go_for_another_machine(bytes),
        Kind::X86_64 => Elf::parse(bytes).is_some_and(|elf| go::is_go(&elf)),
    }
}

/// Whether this is a reason why goroutines, and nothing else, cannot be found.
#[must_use]
pub fn is_of_go(reason: Reason) -> bool {
    matches!(reason, Reason::GoVersion | Reason::GoStripped | Reason::GoUnknownLayout)
}

/// Whether this is a reason why tokio's tasks, and nothing else, cannot be found.
#[must_use]
pub fn is_of_tokio(reason: Reason) -> bool {
    matches!(reason, Reason::Stripped | Reason::NoTypeInfo | Reason::UnknownLayout)
}

/// The reason in a sentence, and what to do about it.
#[must_use]
pub fn in_words(reason: Reason) -> &'static str {
    match reason {
        Reason::None => "every task can be found, or there is none",
        Reason::ReadFailed => {
            "the thread's memory could not be read at that moment; `lost.task_reads` counts how often"
        }
        Reason::NotExamined => "the process had just executed another program, which had not been examined yet",
        Reason::Stripped => {
            "the program has tokio inside, but no symbols; build with `strip = false` and `debug = 2` in the profile"
        }
        Reason::NoTypeInfo => {
            "the program has tokio inside, but no types of it; build with `debug = 2` in the profile, for the package tokio \
             at least (`debug = 1` and `line-tables-only` lack the types, and `split-debuginfo` moves them out of the program)"
        }
        Reason::UnknownLayout => {
            "the program's tokio is laid out as no release that is known; link `ctxtrace-probe`, or use tokio 1.42 or later \
             with Rust 1.79 or later"
        }
        Reason::SharedObject => {
            "its runtime, tokio or Go, is in a shared object, whose thread-locals lie at no fixed place; link it into the \
             executable"
        }
        Reason::NotX86_64 => {
            "the program has tokio or Go inside, but is not for x86-64; build it for `x86_64-unknown-linux-gnu`, or with \
             `GOARCH=amd64`"
        }
        Reason::Overwritten => "where the current task should be there is what cannot be; the program wrote over it",
        Reason::Unreadable => {
            "the executable could not be read: it is damaged, or no way led to its file while it ran; start the program under \
             ctxtrace, where its file can be opened"
        }
        Reason::Replaced => {
            "the executable was replaced or deleted before it could be opened; leave the file in place until the program is \
             being recorded"
        }
        Reason::GoVersion => {
            "the program is of a Go version that is not in ctxtrace's table, and has no types that would say the same; \
             build it without `-ldflags=-w` (and without `-s`, which implies it)"
        }
        Reason::GoStripped => {
            "the program is Go's, linked by the C linker (cgo), and has no symbols to tell where its goroutines are; build it \
             without `-ldflags=-s` and do not strip it, or use `CGO_ENABLED=0`"
        }
        Reason::GoUnknownLayout => {
            "the program is Go's, and its types or thread-locals are not as in any version that is known; build it with Go \
             1.19 to 1.27"
        }
    }
}

/// Looks for the probe, for tokio and for Go in the bytes of an executable.
#[must_use]
pub fn examine_bytes(bytes: &[u8]) -> Found {
    match elf::kind(bytes) {
        Kind::Foreign if signs::in_bytes(bytes) || go::is_go_for_another_machine(bytes) => {
            Found::because(Reason::NotX86_64)
        }
        Kind::Foreign => Found::default(),
        Kind::X86_64 => {
            let found = Elf::parse(bytes).map_or_else(|| Found::because(Reason::Unreadable), |elf| examine_elf(&elf));
            Found {
                build_id: build_id(bytes),
                ..found
            }
        }
        Kind::NotElf => Found::because(Reason::Unreadable),
    }
}

/// What tells one build of a program from the next.
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
            // A program of both, linked through C, has one reason: that of tokio, if it has one.
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
            found.add_detail(format!("the probe's slot has {} bytes: another release's", slot.size));
        }
        [slot] => match elf.below_tp(slot) {
            Some(below_tp) => {
                found.locator.probe_below_tp = below_tp;
                found.locator.flags |= HAS_PROBE;
            }
            None => found.add_detail("the probe's slot lies in no TLS segment".into()),
        },
        _ => found.add_detail("two releases of ctxtrace-probe are linked".into()),
    }
}

fn find_tokio(elf: &Elf<'_>, found: &mut Found) {
    let contexts = elf.thread_locals(tokio::is_context);
    if contexts.is_empty() {
        // Where local symbols are kept, a program without this one has no runtime, whatever its strings say.
        if !elf.has_local_symbols() && elf.loaded().iter().any(|part| signs::in_bytes(part)) {
            found.locator.reason = Reason::Stripped as u32;
            found.tokio_version = signs::version_in(elf);
        }
        return;
    }
    let mut values = contexts.iter().filter(|context| context.name.ends_with("VAL"));
    let sought = match (values.next(), values.next()) {
        (Some(context), None) => locate_tokio(elf, context, found),
        (Some(_), Some(_)) => Sought::Unknown("two tokio versions".into()),
        (None, _) => Sought::Unknown("the value of the thread-local CONTEXT".into()),
    };
    let reason = match sought {
        Sought::Layout(layout) => {
            found.locator.tokio = layout;
            found.locator.flags |= HAS_TOKIO;
            Reason::None
        }
        Sought::NoRuntime => {
            found.add_detail("tokio without its runtime".into());
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
        return Sought::Unknown("a TLS segment around CONTEXT".into());
    };
    let sections = elf.debug_sections();
    let (sought, version) = tokio::locate(&sections, elf.budget(), context, below_tp);
    found.tokio_version = version;
    sought
}
