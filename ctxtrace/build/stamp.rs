//! The stamp of the committed BPF object: the sources and the tools that it was built from.
//!
//! A user needs no BPF toolchain, because the built object is committed in this crate. This is only correct if the object was
//! built from the committed sources. Therefore `cargo xtask build-ebpf` writes a stamp with the object, and `ctxtrace/build.rs`
//! checks the stamp. Both include this file through `#[path]`, so that they compute the same hash.
//!
//! The hash of the sources is one SHA-256 over a list of parts, each with its name and its bytes, both preceded by their length:
//! 1. every file of [`SOURCES`], named by its path relative to the workspace, in sorted order;
//! 2. the section `[profile.bpf]` of the workspace's `Cargo.toml`, without comments and empty lines;
//! 3. the locked version of every crate in [`LOCKED`].

use std::fmt::{self, Write as _};
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use sha2::{Digest as _, Sha256};

/// The path of the committed object, relative to the folder of the crate `ctxtrace`.
pub(crate) const OBJECT: &str = "bpf/ctxtrace.bpf.o";

/// The path of the object's stamp, relative to the folder of the crate `ctxtrace`.
pub(crate) const STAMP: &str = "bpf/ctxtrace.bpf.stamp";

/// The files and folders that the object is compiled from, relative to the workspace.
pub(crate) const SOURCES: [&str; 6] = [
    "ctxtrace-abi/Cargo.toml",
    "ctxtrace-abi/src",
    "ctxtrace-common/Cargo.toml",
    "ctxtrace-common/src",
    "ctxtrace-ebpf/Cargo.toml",
    "ctxtrace-ebpf/src",
];

/// The manifest of the workspace, whose BPF profile decides how the object is optimised.
pub(crate) const MANIFEST: &str = "Cargo.toml";

/// The lock file of the workspace: a different version of a dependency gives a different object.
pub(crate) const LOCK_FILE: &str = "Cargo.lock";

/// The dependencies whose code is compiled into the object. Dependencies that only run on the host during the build are not
/// listed, so that their updates do not require a new build of the object.
const LOCKED: [&str; 6] = [
    "aya-ebpf",
    "aya-ebpf-bindings",
    "aya-ebpf-cty",
    "aya-ebpf-macros",
    "bytemuck",
    "bytemuck_derive",
];

/// The header of the section with the profile that the object is built with.
const PROFILE: &str = "[profile.bpf]";

/// The contents of a stamp file: the hashes of the sources and of the object, and the versions of the tools.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Stamp {
    /// The hash of the sources, as [`hash_sources`] computes it.
    pub(crate) sources: String,
    /// The SHA-256 of the object itself.
    pub(crate) object: String,
    /// The tools that built it.
    pub(crate) tools: Tools,
}

/// The versions of the tools. Together with the sources they determine every byte of the object.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Tools {
    /// The output of `rustc --version`.
    pub(crate) rustc: String,
    /// The version of the LLVM that generated the code.
    pub(crate) llvm: String,
    /// The output of `bpf-linker --version`.
    pub(crate) bpf_linker: String,
}

impl Stamp {
    /// Parses the format that the `Display` implementation of [`Stamp`] writes. Unknown keys are ignored, so that keys can be
    /// added later.
    pub(crate) fn parse(text: &str) -> Result<Self, StampError> {
        let value = |key: &'static str| {
            text.lines()
                .filter_map(|line| line.split_once('='))
                .find(|(name, _)| name.trim() == key)
                .map(|(_, value)| value.trim().to_owned())
                .ok_or(StampError::MissingKey(key))
        };
        Ok(Self {
            sources: value("sources")?,
            object: value("object")?,
            tools: Tools {
                rustc: value("rustc")?,
                llvm: value("llvm")?,
                bpf_linker: value("bpf-linker")?,
            },
        })
    }
}

impl fmt::Display for Stamp {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Tools {
            rustc,
            llvm,
            bpf_linker,
        } = &self.tools;
        writeln!(f, "# Written by `cargo xtask build-ebpf`.")?;
        writeln!(f, "sources = {}", self.sources)?;
        writeln!(f, "object = {}", self.object)?;
        writeln!(f, "rustc = {rustc}")?;
        writeln!(f, "llvm = {llvm}")?;
        writeln!(f, "bpf-linker = {bpf_linker}")
    }
}

/// The reason why a stamp could not be read or the hash of the sources could not be computed.
#[derive(Debug)]
pub(crate) enum StampError {
    /// The file or folder could not be read.
    Read(PathBuf, io::Error),
    /// The stamp lacks this key.
    MissingKey(&'static str),
    /// The workspace's manifest has no BPF profile.
    NoProfile,
    /// The lock file does not contain this crate.
    NotLocked(&'static str),
}

impl fmt::Display for StampError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Read(path, error) => write!(f, "cannot read {}: {error}", path.display()),
            Self::MissingKey(key) => write!(f, "the stamp has no `{key}`"),
            Self::NoProfile => write!(f, "{MANIFEST} has no section {PROFILE}"),
            Self::NotLocked(name) => write!(f, "{LOCK_FILE} has no package `{name}`"),
        }
    }
}

impl std::error::Error for StampError {}

/// Returns the SHA-256 of `bytes` in lower-case hexadecimal.
pub(crate) fn hash_bytes(bytes: &[u8]) -> String {
    hex(&Sha256::digest(bytes))
}

/// Computes the hash of everything in the workspace that the object is built from; the module documentation lists it.
pub(crate) fn hash_sources(workspace: &Path) -> Result<String, StampError> {
    let mut hasher = Sha256::new();
    for file in source_files(workspace)? {
        let name = file.strip_prefix(workspace).unwrap_or(&file);
        add_part(&mut hasher, &name.to_string_lossy(), &read(&file)?);
    }
    let manifest = read_text(&workspace.join(MANIFEST))?;
    let profile = profile_section(&manifest).ok_or(StampError::NoProfile)?;
    add_part(&mut hasher, PROFILE, profile.as_bytes());
    let lock_file = read_text(&workspace.join(LOCK_FILE))?;
    for name in LOCKED {
        let version = locked_version(&lock_file, name).ok_or(StampError::NotLocked(name))?;
        add_part(&mut hasher, name, version.as_bytes());
    }
    Ok(hex(&hasher.finalize()))
}

/// Adds a named part to the hash. The lengths are hashed too, so that moving bytes from one part to the next changes the hash.
fn add_part(hasher: &mut Sha256, name: &str, bytes: &[u8]) {
    for field in [name.as_bytes(), bytes] {
        hasher.update((field.len() as u64).to_le_bytes());
        hasher.update(field);
    }
}

/// Returns all files of [`SOURCES`], sorted, so that the hash does not depend on the order of directory entries on disk.
fn source_files(workspace: &Path) -> Result<Vec<PathBuf>, StampError> {
    let mut files = Vec::new();
    for source in SOURCES {
        add_files(&workspace.join(source), &mut files)?;
    }
    files.sort();
    Ok(files)
}

/// Adds `path` to `files`, or all files below it if it is a folder.
fn add_files(path: &Path, files: &mut Vec<PathBuf>) -> Result<(), StampError> {
    if !path.is_dir() {
        files.push(path.to_owned());
        return Ok(());
    }
    let failed = |error| StampError::Read(path.to_owned(), error);
    for entry in fs::read_dir(path).map_err(failed)? {
        add_files(&entry.map_err(failed)?.path(), files)?;
    }
    Ok(())
}

/// Returns the lines of the BPF profile's section without empty lines and comments, so that those can change without a new build.
fn profile_section(manifest: &str) -> Option<String> {
    let mut lines = manifest.lines().map(str::trim);
    lines.find(|line| *line == PROFILE)?;
    let section: Vec<_> = lines
        .take_while(|line| !line.starts_with('['))
        .filter(|line| !line.is_empty() && !line.starts_with('#'))
        .collect();
    Some(section.join("\n"))
}

/// Returns the version of a package in a lock file, in quotes. It is on the line after `name`, where cargo writes it.
fn locked_version<'a>(lock_file: &'a str, package: &str) -> Option<&'a str> {
    let name = format!("name = \"{package}\"");
    let mut lines = lock_file.lines();
    lines.find(|line| *line == name)?;
    lines.next()?.strip_prefix("version = ")
}

/// Reads a file. The error contains the path.
fn read(path: &Path) -> Result<Vec<u8>, StampError> {
    fs::read(path).map_err(|error| StampError::Read(path.to_owned(), error))
}

/// Reads a text file. The error contains the path.
pub(crate) fn read_text(path: &Path) -> Result<String, StampError> {
    fs::read_to_string(path).map_err(|error| StampError::Read(path.to_owned(), error))
}

/// Formats bytes in lower-case hexadecimal.
fn hex(bytes: &[u8]) -> String {
    bytes.iter().fold(String::new(), |mut text, byte| {
        // Writing to a `String` cannot fail.
        let _ = write!(text, "{byte:02x}");
        text
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Creates a workspace that has only the files that are hashed.
    fn workspace() -> tempfile::TempDir {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let lock_file: String = LOCKED
            .iter()
            .map(|name| format!("[[package]]\nname = \"{name}\"\nversion = \"1.2.3\"\n\n"))
            .collect();
        for (path, text) in [
            ("Cargo.toml", "[profile.bpf]\nopt-level = 3\n"),
            ("Cargo.lock", &lock_file),
            ("ctxtrace-abi/Cargo.toml", "abi"),
            ("ctxtrace-abi/src/lib.rs", "//! Memory."),
            ("ctxtrace-common/Cargo.toml", "common"),
            ("ctxtrace-common/src/lib.rs", "//! Types."),
            ("ctxtrace-ebpf/Cargo.toml", "ebpf"),
            ("ctxtrace-ebpf/src/main.rs", "//! Programs."),
            ("ctxtrace-ebpf/src/deep/file.rs", "//! Deeper."),
        ] {
            write(folder.path(), path, text);
        }
        folder
    }

    /// Writes a file and creates its parent folders.
    fn write(workspace: &Path, path: &str, text: &str) {
        let path = workspace.join(path);
        let parent = path.parent().expect("a path below the workspace");
        fs::create_dir_all(parent).expect("folders");
        fs::write(path, text).expect("a file");
    }

    /// Whether the hash changes if the contents of `path` become `text`.
    fn changes_hash(path: &str, text: &str) -> bool {
        let folder = workspace();
        let before = hash_sources(folder.path()).expect("a hash");
        write(folder.path(), path, text);
        before != hash_sources(folder.path()).expect("a hash")
    }

    #[test]
    fn a_stamp_survives_its_file() {
        let stamp = Stamp {
            sources: "aa".to_owned(),
            object: "bb".to_owned(),
            tools: Tools {
                rustc: "rustc 1.96.0 (ac68faa20 = odd)".to_owned(),
                llvm: "22.1.8".to_owned(),
                bpf_linker: "bpf-linker 0.10.3".to_owned(),
            },
        };
        let parsed = Stamp::parse(&stamp.to_string()).expect("a stamp that was just written");
        assert_eq!(parsed, stamp);
    }

    #[test]
    fn a_stamp_without_a_key_names_the_key() {
        let error = Stamp::parse("sources = aa\n").expect_err("a stamp without an object");
        assert_eq!(error.to_string(), "the stamp has no `object`");
    }

    #[test]
    fn the_hash_does_not_depend_on_the_folder() {
        let hash = |folder: &tempfile::TempDir| hash_sources(folder.path()).expect("a hash");
        assert_eq!(hash(&workspace()), hash(&workspace()));
    }

    #[test]
    fn what_goes_into_the_object_changes_the_hash() {
        assert!(changes_hash("ctxtrace-ebpf/src/main.rs", "//! Others."));
        assert!(changes_hash("ctxtrace-ebpf/src/deep/file.rs", ""));
        assert!(changes_hash("ctxtrace-ebpf/src/new.rs", ""));
        assert!(changes_hash("ctxtrace-common/Cargo.toml", "changed"));
        assert!(changes_hash("Cargo.toml", "[profile.bpf]\nopt-level = 2\n"));
        let lock_file = LOCKED.map(|name| format!("name = \"{name}\"\nversion = \"2.0.0\"\n"));
        assert!(changes_hash("Cargo.lock", &lock_file.concat()));
    }

    #[test]
    fn what_does_not_go_into_the_object_leaves_the_hash() {
        assert!(!changes_hash("ctxtrace/src/main.rs", "fn main() {}"));
        assert!(!changes_hash(
            "Cargo.toml",
            "[workspace]\n\n[profile.bpf]\n# Fast.\nopt-level = 3\n\n[profile.release]\nlto = true\n"
        ));
    }

    #[test]
    fn the_section_of_the_profile_ends_at_the_next() {
        let manifest = "[a]\nx = 1\n[profile.bpf]\n# why\ninherits = \"release\"\n\nlto = \"fat\"\n[b]\ny = 2\n";
        let section = profile_section(manifest);
        assert_eq!(section.as_deref(), Some("inherits = \"release\"\nlto = \"fat\""));
        assert_eq!(profile_section("[profile.bpf.package.x]\n"), None);
    }

    #[test]
    fn a_hash_is_the_usual_sha_256() {
        let empty = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";
        assert_eq!(hash_bytes(b""), empty);
    }
}
