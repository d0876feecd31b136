//! `cargo xtask clippy-ebpf`: runs clippy on the BPF programs.
//!
//! clippy can only read the `core` library of its own compiler, so it must be the clippy of the BPF compiler instead of the user's.

use anyhow::{Result, bail};

use crate::ebpf;
use crate::toolchain::Compiler;
use crate::workspace;

/// Runs clippy. Every warning is an error.
pub(crate) fn main() -> Result<()> {
    let compiler = Compiler::find()?;
    if !compiler.has_clippy() {
        let folder = compiler.programs.display();
        bail!("there is no clippy in {folder}; run `cargo xtask setup` to install it");
    }
    eprintln!("using {compiler}");
    let target = workspace::metadata()?.target_directory;
    ebpf::clippy(&compiler, target.join("bpf").as_std_path())
}
