//! `cargo xtask setup`: installs what building and linting the BPF programs needs, and the programs that the tests trace or build
//! with, cargo-deny too; and skips what is there.

use anyhow::Result;

use crate::process;
use crate::toolchain::{self, Compiler, DEBIAN_PACKAGES, LINKER_VERSION, NIGHTLY, Toolchain};

/// The version of cargo-deny.
const DENY_VERSION: &str = "0.20.2";

/// Programs that the tests start or are built with, with the Debian packages they are in. Of Go any version that is in
/// `ctxtrace/src/target/locate/go.rs` will do; Debian 12's is the oldest of them.
const FOR_TESTS: [(&str, &str); 12] = [
    ("busybox", "busybox-static"),
    ("cc", "gcc"),
    ("cpio", "cpio"),
    ("go", "golang-go"),
    ("make", "make"),
    ("perf", "linux-perf"),
    ("qemu-system-x86_64", "qemu-system-x86"),
    ("redis-benchmark", "redis-tools"),
    ("redis-server", "redis-server"),
    ("setcap", "libcap2-bin"),
    ("setpriv", "util-linux"),
    ("stress-ng", "stress-ng"),
];

/// The release of `DuckDB`, as pip names it.
const DUCKDB: &str = "duckdb==2.0.1";

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
    install_for_tests()?;
    install_deny()?;
    install_duckdb()?;
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

/// What the tests need and cargo cannot bring.
fn install_for_tests() -> Result<()> {
    let missing = FOR_TESTS
        .iter()
        .filter(|(program, _)| process::programs(program).is_empty());
    let (programs, packages): (Vec<&str>, Vec<&str>) = missing.copied().unzip();
    if packages.is_empty() {
        eprintln!("what the tests trace and build with is there");
        return Ok(());
    }
    if process::programs("apt-get").is_empty() {
        // Building needs none of them, and the tests say so themselves.
        eprintln!(
            "`cargo xtask test` needs {} on PATH, and there is no apt-get to install them with",
            programs.join(", ")
        );
        return Ok(());
    }
    let mut install = process::as_root("apt-get");
    install.args(["install", "-y", "--no-install-recommends"]);
    process::run(install.args(packages))
}

/// The database that the SQL of `docs/FLEET.md` is tested in, in a Python environment of its own.
fn install_duckdb() -> Result<()> {
    let environment = process::root().join("target/duckdb");
    let python = environment.join("bin/python");
    let mut import = process::clean(&python);
    if process::output(import.args(["-c", "import duckdb"])).is_ok() {
        eprintln!("DuckDB is there: {}", environment.display());
        return Ok(());
    }
    let made = process::run(
        process::clean("python3")
            .args(["-m", "venv", "--clear"])
            .arg(&environment),
    );
    if made.is_err() && !process::programs("apt-get").is_empty() {
        // Debian has Python's own way to make one in a package by itself.
        process::run(process::as_root("apt-get").args(["install", "-y", "--no-install-recommends", "python3-venv"]))?;
        process::run(
            process::clean("python3")
                .args(["-m", "venv", "--clear"])
                .arg(&environment),
        )?;
    } else {
        made?;
    }
    process::run(process::clean(python).args(["-m", "pip", "install", DUCKDB]))
}

/// rustup's nightly, with the sources of `core`.
fn install_nightly() -> Result<()> {
    let mut install = process::clean("rustup");
    install.args(["toolchain", "install", NIGHTLY, "--profile", "minimal"]);
    process::run(install.args(["--component", "rust-src,clippy"]))
}

/// What looks at the licences and the sources of the crates that are linked, by `deny.toml`.
fn install_deny() -> Result<()> {
    if !process::programs("cargo-deny").is_empty() {
        eprintln!("cargo-deny is there");
        return Ok(());
    }
    let mut install = process::cargo();
    // Once a run, over a few hundred crates: it need not be fast.
    process::run(install.args([
        "install",
        "cargo-deny",
        "--version",
        DENY_VERSION,
        "--locked",
        "--debug",
    ]))
}

/// bpf-linker, built by the user's own cargo.
fn install_linker() -> Result<()> {
    let mut install = process::cargo();
    install.args(["install", "bpf-linker", "--version", LINKER_VERSION]);
    process::run(install.arg("--locked"))
}
