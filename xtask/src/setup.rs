//! `cargo xtask setup`: installs what building and linting the BPF programs needs, and Go, which the tests of goroutines build
//! programs with; and skips what is there.

use anyhow::Result;

use crate::process;
use crate::toolchain::{self, Compiler, DEBIAN_PACKAGES, LINKER_VERSION, NIGHTLY, Toolchain};

/// Installs, then looks whether that did it.
pub(crate) fn main() -> Result<()> {
    if let Ok(compiler) = Compiler::find()
        && compiler.has_clippy()
    {
        eprintln!("a compiler for BPF is there: {compiler}");
    } else {
        install_compiler()?;
    }
    match toolchain::find_linker() {
        Ok(linker) => eprintln!("the linker for BPF is there: {}", linker.display()),
        Err(_) => install_linker()?,
    }
    match process::programs("go").first() {
        Some(go) => eprintln!("Go is there: {}", go.display()),
        None => install_go()?,
    }
    Toolchain::find().map(|toolchain| eprintln!("ready: {}", toolchain.compiler))
}

/// From Debian's archive where it has one, else from rustup.
fn install_compiler() -> Result<()> {
    if process::programs("apt-get").is_empty() {
        return install_nightly();
    }
    process::run(process::as_root("apt-get").arg("update"))?;
    // Debian's derivatives and its older releases have apt-get but not these packages.
    let known = process::output(process::clean("apt-cache").arg("show").args(DEBIAN_PACKAGES));
    if known.is_err() {
        return install_nightly();
    }
    let mut install = process::as_root("apt-get");
    install.args(["install", "-y", "--no-install-recommends"]);
    process::run(install.args(DEBIAN_PACKAGES))
}

/// Any version that is in `ctxtrace/src/target/locate/go.rs` will do; Debian 12's is the oldest of them.
fn install_go() -> Result<()> {
    if process::programs("apt-get").is_empty() {
        // Nothing but its own tests needs it, and they say so.
        eprintln!(
            "there is no Go, and no apt-get to install it with: `cargo xtask test` needs Go 1.19 or later on PATH"
        );
        return Ok(());
    }
    let mut install = process::as_root("apt-get");
    process::run(install.args(["install", "-y", "--no-install-recommends", "golang-go"]))
}

/// rustup's nightly, with the sources of `core`.
fn install_nightly() -> Result<()> {
    let mut install = process::clean("rustup");
    install.args(["toolchain", "install", NIGHTLY, "--profile", "minimal"]);
    process::run(install.args(["--component", "rust-src,clippy"]))
}

/// bpf-linker, built by the user's own cargo.
fn install_linker() -> Result<()> {
    let mut install = process::cargo();
    install.args(["install", "bpf-linker", "--version", LINKER_VERSION]);
    process::run(install.arg("--locked"))
}
