//! Builds and lints the crate `ctxtrace-ebpf` with the BPF toolchain.

use std::collections::BTreeSet;
use std::ffi::{OsStr, OsString};
use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result};
use cargo_metadata::{Metadata, MetadataCommand};

use crate::process;
use crate::strip;
use crate::toolchain::{Compiler, TARGET, Toolchain};

/// The name of the crate with the BPF programs, and of its executable.
const PACKAGE: &str = "ctxtrace-ebpf";

/// The cargo profile of the BPF programs.
const PROFILE: &str = "bpf";

/// Builds the object in `target_folder` and returns it with BTF and without DWARF.
pub(crate) fn build(toolchain: &Toolchain, target_folder: &Path) -> Result<Vec<u8>> {
    let metadata = metadata(&toolchain.compiler)?;
    let mut build = cargo(&toolchain.compiler, "cargo", "build", target_folder);
    build
        .env("CARGO_ENCODED_RUSTFLAGS", flags(toolchain, &metadata, target_folder))
        // bpf-linker needs this. The compiler sees the variable too, but it does not matter there, because the library is the
        // compiler's own.
        .env("LD_LIBRARY_PATH", llvm_folder(toolchain, target_folder)?);
    process::run(&mut build)?;
    let path = target_folder.join(TARGET).join(PROFILE).join(PACKAGE);
    let object = fs::read(&path).with_context(|| format!("cannot read {}", path.display()))?;
    strip::strip_debug(&object)
}

/// Runs clippy on the crate, compiled for BPF. On the host the crate is empty, so the clippy of the workspace does not check it.
pub(crate) fn clippy(compiler: &Compiler, target_folder: &Path) -> Result<()> {
    let mut clippy = cargo(compiler, "cargo-clippy", "clippy", target_folder);
    clippy.env("CARGO_ENCODED_RUSTFLAGS", join(&common_flags()));
    process::run(clippy.args(["--", "-D", "warnings"]))
}

/// Returns a cargo command for the BPF crate.
fn cargo(compiler: &Compiler, program: &str, verb: &str, target_folder: &Path) -> Command {
    let mut command = compiler.command(program);
    command
        .current_dir(process::root())
        .args([verb, "--package", PACKAGE, "--profile", PROFILE])
        .args(["--target", TARGET, "--target-dir"])
        .arg(target_folder)
        .args(compiler.core_args());
    command
}

/// Returns the metadata of the workspace and of the dependencies of the BPF crate, which are downloaded if necessary.
fn metadata(compiler: &Compiler) -> Result<Metadata> {
    let mut command = compiler.command("cargo");
    command
        .args(["metadata", "--format-version", "1", "--filter-platform", TARGET])
        .arg("--manifest-path")
        .arg(process::root().join("Cargo.toml"));
    let text = process::output(&mut command)?;
    MetadataCommand::parse(text).context("cannot read the output of cargo metadata")
}

/// Returns the compiler flags of a build in the form of `CARGO_ENCODED_RUSTFLAGS`, which needs no quoting of paths.
fn flags(toolchain: &Toolchain, metadata: &Metadata, target_folder: &Path) -> OsString {
    let linker = [OsStr::new("linker="), toolchain.linker.as_os_str()]
        .into_iter()
        .collect();
    let mut flags = common_flags();
    flags.extend(["-C".into(), linker]);
    flags.extend(["-C", "link-arg=--btf"].map(OsString::from));
    for (folder, name) in renamed_folders(toolchain, metadata, target_folder) {
        let flag = [OsStr::new("--remap-path-prefix="), folder.as_os_str(), name.as_ref()];
        flags.push(flag.into_iter().collect());
    }
    join(&flags)
}

/// Returns the flags that both building and linting need.
fn common_flags() -> Vec<OsString> {
    ["-C", "panic=abort", "--cfg", "bpf_target_arch=\"x86_64\""]
        .map(OsString::from)
        .into()
}

/// Joins flags for `CARGO_ENCODED_RUSTFLAGS`.
fn join(flags: &[OsString]) -> OsString {
    flags.join(OsStr::new("\x1f"))
}

/// Returns the folders that are renamed in the object, each with `=` and its new name. The object contains the paths of its
/// sources, and must be identical in whichever folder it is built. If several entries match a path, the last one applies.
fn renamed_folders(toolchain: &Toolchain, metadata: &Metadata, target_folder: &Path) -> Vec<(PathBuf, &'static str)> {
    let root = metadata.workspace_root.clone().into_std_path_buf();
    let registries = registry_folders(metadata).into_iter();
    let sources = toolchain.compiler.sysroot.join("lib/rustlib/src/rust");
    registries
        .map(|folder| (folder, "=/registry"))
        .chain([(sources, "=/rust")])
        .chain([(root, "=/ctxtrace")])
        .chain([(target_folder.to_owned(), "=/target")])
        .collect()
}

/// Returns the folders that cargo unpacks crates into. cargo's home alone is not enough, because the names of these folders depend
/// on the registry mirror.
fn registry_folders(metadata: &Metadata) -> BTreeSet<PathBuf> {
    let downloaded = metadata.packages.iter().filter(|package| package.source.is_some());
    downloaded
        .filter_map(|package| package.manifest_path.parent()?.parent())
        .map(|folder| folder.to_owned().into_std_path_buf())
        .collect()
}

/// Creates a folder that contains only a link to the compiler's LLVM library. bpf-linker loads the first LLVM library on the
/// library path, and the system's library folder may have several.
fn llvm_folder(toolchain: &Toolchain, target_folder: &Path) -> Result<PathBuf> {
    let folder = target_folder.join("llvm");
    // An old folder may have the library of another compiler.
    if folder.exists() {
        fs::remove_dir_all(&folder)?;
    }
    fs::create_dir_all(&folder)?;
    let library = &toolchain.compiler.llvm_library;
    let name = library.file_name().unwrap_or_default();
    symlink(library, folder.join(name))
        .with_context(|| format!("cannot link to {} in {}", library.display(), folder.display()))?;
    Ok(folder)
}
