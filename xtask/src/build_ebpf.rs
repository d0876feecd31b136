//! `cargo xtask build-ebpf`: the BPF object that is committed in `ctxtrace/bpf`, and its stamp.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, bail};

use crate::ebpf;
use crate::process;
use crate::stamp::{self, OBJECT, STAMP, Stamp, Tools};
use crate::toolchain::Toolchain;

/// The options of `build-ebpf`.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// Compare a fresh build with the committed object instead of replacing it
    ///
    /// Where the tools are the stamped ones, the two must be the same to the byte. Otherwise the fresh object replaces the
    /// committed one all the same, so that the tests that follow test what this machine built.
    #[arg(long)]
    check: bool,
}

/// Builds, and installs or compares.
pub(crate) fn main(args: &Args) -> Result<()> {
    let toolchain = Toolchain::find()?;
    eprintln!("with {}", toolchain.compiler);
    let target = process::workspace()?.target_directory.into_std_path_buf();
    if args.check {
        check(&toolchain, &target.join("bpf-check"))
    } else {
        let (object, stamp) = build(&toolchain, &target.join("bpf"))?;
        install(&object, &stamp)
    }
}

/// Builds the object, and the stamp that belongs to it.
fn build(toolchain: &Toolchain, target_folder: &Path) -> Result<(Vec<u8>, Stamp)> {
    let hash = || stamp::hash_sources(&process::root());
    let object = ebpf::build(toolchain, target_folder)?;
    let stamp = Stamp {
        sources: hash()?,
        object: stamp::hash_bytes(&object),
        tools: toolchain.tools(),
    };
    Ok((object, stamp))
}

/// Builds from nothing and compares with what is committed.
fn check(toolchain: &Toolchain, target_folder: &Path) -> Result<()> {
    let committed = Stamp::parse(&stamp::read_text(&installed(STAMP))?)?;
    if committed.sources != stamp::hash_sources(&process::root())? {
        bail!("the committed object was not built from these sources: run `cargo xtask build-ebpf`");
    }
    if target_folder.exists() {
        fs::remove_dir_all(target_folder)?;
    }
    let (object, stamp) = build(toolchain, target_folder)?;
    if stamp.tools == committed.tools {
        return require_same(&object, &committed);
    }
    eprintln!("the committed object was built with other tools, so its bytes are not compared:");
    for difference in differences(&committed.tools, &stamp.tools) {
        eprintln!("  {difference}");
    }
    install(&object, &stamp)
}

/// Fails unless the committed object and its stamp are what was just built.
fn require_same(object: &[u8], committed: &Stamp) -> Result<()> {
    let path = installed(OBJECT);
    let bytes = fs::read(&path).with_context(|| format!("cannot read {}", path.display()))?;
    if bytes != object || stamp::hash_bytes(object) != committed.object {
        bail!(
            "the same sources and tools give another object than {}: \
             run `cargo xtask build-ebpf` and commit what it writes",
            path.display()
        );
    }
    eprintln!("{} is what these sources and tools give, to the byte", path.display());
    Ok(())
}

/// One line for each version that is not the same.
fn differences(committed: &Tools, here: &Tools) -> Vec<String> {
    [
        (&committed.rustc, &here.rustc),
        (&committed.llvm, &here.llvm),
        (&committed.bpf_linker, &here.bpf_linker),
    ]
    .into_iter()
    .zip(["rustc", "llvm", "bpf-linker"])
    .filter(|((committed, here), _)| committed != here)
    .map(|((committed, here), name)| format!("{name}: committed with `{committed}`, here `{here}`"))
    .collect()
}

/// Writes the object and its stamp where the crate `ctxtrace` looks for them.
fn install(object: &[u8], stamp: &Stamp) -> Result<()> {
    let stamp = stamp.to_string();
    for (file, bytes) in [(OBJECT, object), (STAMP, stamp.as_bytes())] {
        let path = installed(file);
        fs::write(&path, bytes).with_context(|| format!("cannot write {}", path.display()))?;
        eprintln!("wrote {} ({} bytes)", path.display(), bytes.len());
    }
    Ok(())
}

/// A file of the crate `ctxtrace`.
fn installed(file: &str) -> PathBuf {
    process::root().join("ctxtrace").join(file)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_differs_is_listed() {
        let tools = |rustc: &str| Tools {
            rustc: rustc.to_owned(),
            llvm: "22.1.8".to_owned(),
            bpf_linker: "bpf-linker 0.10.3".to_owned(),
        };
        assert!(differences(&tools("1.96"), &tools("1.96")).is_empty());
        let expected = ["rustc: committed with `1.96`, here `1.97`"];
        assert_eq!(differences(&tools("1.96"), &tools("1.97")), expected);
    }
}
