//! `cargo xtask build-ebpf`: builds the BPF object that is committed in `ctxtrace/bpf`, and its stamp.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, bail};

use crate::ebpf;
use crate::process;
use crate::stamp::{self, OBJECT, STAMP, Stamp, Tools};
use crate::toolchain::Toolchain;
use crate::workspace;

/// The options of `build-ebpf`.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// Compare a fresh build with the committed object instead of replacing it
    ///
    /// If the tools are those of the stamp, the two objects must be identical. With other tools they are not compared, and the
    /// fresh object replaces the committed one, so that the tests that follow use it.
    #[arg(long)]
    check: bool,
}

/// Builds the object, and installs it or compares it with the committed one.
pub(crate) fn main(args: &Args) -> Result<()> {
    let toolchain = Toolchain::find()?;
    eprintln!("using {}", toolchain.compiler);
    let target = workspace::metadata()?.target_directory.into_std_path_buf();
    if args.check {
        check(&toolchain, &target.join("bpf-check"))
    } else {
        let (object, stamp) = build(&toolchain, &target.join("bpf"))?;
        install(&object, &stamp)
    }
}

/// Builds the object and its stamp.
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

/// Builds the object in an empty folder and compares it with the committed one.
fn check(toolchain: &Toolchain, target_folder: &Path) -> Result<()> {
    let committed = Stamp::parse(&stamp::read_text(&installed(STAMP))?)?;
    if committed.sources != stamp::hash_sources(&process::root())? {
        bail!("the committed object was not built from these sources; run `cargo xtask build-ebpf`");
    }
    if target_folder.exists() {
        fs::remove_dir_all(target_folder)?;
    }
    let (object, stamp) = build(toolchain, target_folder)?;
    if stamp.tools == committed.tools {
        return require_same(&object, &committed);
    }
    eprintln!("the committed object was built with other tools, so it is not compared:");
    for difference in differences(&committed.tools, &stamp.tools) {
        eprintln!("  {difference}");
    }
    install(&object, &stamp)
}

/// Fails unless the committed object and its stamp equal the object that was just built.
fn require_same(object: &[u8], committed: &Stamp) -> Result<()> {
    let path = installed(OBJECT);
    let bytes = fs::read(&path).with_context(|| format!("cannot read {}", path.display()))?;
    if bytes != object || stamp::hash_bytes(object) != committed.object {
        bail!(
            "{} differs from the object that the same sources and tools give; \
             run `cargo xtask build-ebpf` and commit the files that it writes",
            path.display()
        );
    }
    eprintln!("{} is identical to a fresh build", path.display());
    Ok(())
}

/// Returns a line for each tool whose version differs.
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

/// Writes the object and its stamp to the crate `ctxtrace`.
fn install(object: &[u8], stamp: &Stamp) -> Result<()> {
    let stamp = stamp.to_string();
    for (file, bytes) in [(OBJECT, object), (STAMP, stamp.as_bytes())] {
        let path = installed(file);
        fs::write(&path, bytes).with_context(|| format!("cannot write {}", path.display()))?;
        eprintln!("wrote {} ({} bytes)", path.display(), bytes.len());
    }
    Ok(())
}

/// Returns the path of a file in the crate `ctxtrace`.
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
