//! `cargo xtask clippy-ebpf`: clippy on the BPF programs.
//!
//! A clippy can only read the `core` of its very own compiler, so it must be the BPF compiler's, not the user's.

use anyhow::{Result, bail};

use crate::ebpf;
use crate::process;
use crate::toolchain::Compiler;

/// Lints; every warning is an error.
pub(crate) fn main() -> Result<()> {
    let compiler = Compiler::find()?;
    if !compiler.has_clippy() {
        let folder = compiler.programs.display();
        bail!("there is no clippy in {folder}: `cargo xtask setup` installs it");
    }
    eprintln!("with {compiler}");
    let target = process::workspace()?.target_directory;
    ebpf::clippy(&compiler, target.join("bpf").as_std_path())
}
