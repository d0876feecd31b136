//! What the examination of an executable has found: where the program keeps the current tasks of its threads, and which contents of
//! the file help to find tasks and to name functions.

use ctxtrace_common::locator::{Locator, Reason};
use serde::{Deserialize, Serialize};

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
    #[must_use]
    pub fn unreadable(reason: String) -> Self {
        Self {
            detail: Some(reason),
            ..Self::because(Reason::Unreadable)
        }
    }

    /// Returns the result for an executable whose tasks cannot be found, for this reason.
    #[must_use]
    pub fn because(reason: Reason) -> Self {
        let mut found = Self::default();
        found.locator.reason = reason as u32;
        found
    }

    /// The reason why tasks cannot be found; [`Reason::None`] if they can be found, or if there are none.
    #[must_use]
    pub fn reason(&self) -> Reason {
        Reason::from_number(self.locator.reason)
    }

    /// Adds a note for the user.
    pub fn add_detail(&mut self, detail: String) {
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

/// The number of examined functions, and how many of them keep a frame pointer.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Frames {
    /// The number of examined functions.
    pub functions: u64,
    /// The number of examined functions that keep a frame pointer.
    pub with_pointer: u64,
}

/// Whether this reason concerns only goroutines.
#[must_use]
pub fn concerns_go(reason: Reason) -> bool {
    matches!(reason, Reason::GoVersion | Reason::GoStripped | Reason::GoUnknownLayout)
}

/// Whether this reason concerns only tokio's tasks.
#[must_use]
pub fn concerns_tokio(reason: Reason) -> bool {
    matches!(reason, Reason::Stripped | Reason::NoTypeInfo | Reason::UnknownLayout)
}

/// Returns a sentence with the reason and what the user can do about it.
#[must_use]
pub fn reason_in_words(reason: Reason) -> &'static str {
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
