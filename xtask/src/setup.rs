//! `cargo xtask setup`: installs what building and linting the BPF programs needs, and the programs that the tests trace or build
//! with, cargo-deny too; and skips what is there. `cargo xtask test` calls the part of it that the tests need.

use anyhow::{Result, bail};

use crate::process;
use crate::toolchain::{self, Compiler, DEBIAN_PACKAGES, LINKER_VERSION, NIGHTLY, Toolchain};

/// The version of cargo-deny.
const DENY_VERSION: &str = "0.20.2";

/// Programs that the tests start or are built with, with the Debian packages they are in. Of Go any version that is in
/// `ctxtrace/src/target/locate/go.rs` will do; Debian 12's is the oldest of them.
const FOR_TESTS: [(&str, &str); 14] = [
    ("bpftool", "bpftool"),
    ("cc", "gcc"),
    ("go", "golang-go"),
    ("make", "make"),
    ("mkfs.btrfs", "btrfs-progs"),
    ("perf", "linux-perf"),
    ("python3", "python3"),
    ("redis-benchmark", "redis-tools"),
    ("redis-server", "redis-server"),
    ("setcap", "libcap2-bin"),
    ("setpriv", "util-linux"),
    ("stress-ng", "stress-ng"),
    ("strip", "binutils"),
    ("unshare", "util-linux"),
];

/// What `cargo xtask test --kernel` needs besides.
pub(crate) const FOR_KERNELS: [(&str, &str); 5] = [
    ("qemu-system-x86_64", "qemu-system-x86"),
    ("busybox", "busybox-static"),
    ("cpio", "cpio"),
    ("dpkg-deb", "dpkg"),
    ("xz", "xz-utils"),
];

/// The release of `DuckDB`, as pip names it.
const DUCKDB: &str = "duckdb==2.0.1";

/// The options of `setup`.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// Install only what `cargo xtask test` needs
    #[arg(long)]
    for_tests: bool,
}

/// Installs, then looks whether that did it.
pub(crate) fn main(args: &Args) -> Result<()> {
    if args.for_tests {
        return for_tests(false);
    }
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
    for_tests(true)?;
    install_deny()?;
    Toolchain::find().map(|toolchain| eprintln!("ready: {}", toolchain.compiler))
}

/// Installs what the tests need and cargo cannot bring, and what the tests on other `kernels` need.
pub(crate) fn for_tests(kernels: bool) -> Result<()> {
    let more = if kernels { &FOR_KERNELS[..] } else { &[] };
    let packages = install_packages(&[&FOR_TESTS[..], more].concat());
    let duckdb = install_duckdb();
    packages.and(duckdb)
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

/// Installs the Debian packages of those programs that are missing, having said which.
fn install_packages(wanted: &[(&str, &str)]) -> Result<()> {
    let missing: Vec<_> = wanted
        .iter()
        .filter(|(program, _)| process::programs(program).is_empty())
        .collect();
    let programs: Vec<&str> = missing.iter().map(|(program, _)| *program).collect();
    let mut packages: Vec<&str> = missing.iter().map(|(_, package)| *package).collect();
    packages.dedup();
    if packages.is_empty() {
        eprintln!("every program that the tests trace and build with is there");
        return Ok(());
    }
    let programs = programs.join(", ");
    if process::programs("apt-get").is_empty() {
        bail!("install {programs} yourself: there is no apt-get here");
    }
    eprintln!(
        "the tests need {programs}: installing the Debian packages {} (--no-setup leaves that out)",
        packages.join(", ")
    );
    process::run(process::as_root("apt-get").arg("update"))?;
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
    eprintln!(
        "the tests need {DUCKDB}: installing it from PyPI into {} (--no-setup leaves that out)",
        environment.display()
    );
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
