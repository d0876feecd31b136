//! `cargo xtask setup`: installs the tools for building and linting the BPF programs, the programs that the tests need, and
//! cargo-deny, unless they are already installed. `cargo xtask test` installs only what the tests need.

use anyhow::{Result, bail};

use crate::process;
use crate::toolchain::{self, Compiler, DEBIAN_PACKAGES, LINKER_VERSION, NIGHTLY, Toolchain};

/// The version of cargo-deny that is installed.
const DENY_VERSION: &str = "0.20.2";

/// Programs that the tests start or are built with, and the Debian packages that contain them. Any version of Go works that is
/// listed in `ctxtrace/src/tracee/locate/go.rs`; the oldest of them is that of Debian 12.
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

/// Programs that `cargo xtask test --kernel` additionally needs, and the Debian packages that contain them.
pub(crate) const FOR_KERNELS: [(&str, &str); 5] = [
    ("qemu-system-x86_64", "qemu-system-x86"),
    ("busybox", "busybox-static"),
    ("cpio", "cpio"),
    ("dpkg-deb", "dpkg"),
    ("xz", "xz-utils"),
];

/// The requirement for `DuckDB` in pip's notation.
const DUCKDB: &str = "duckdb==2.0.1";

/// The options of `setup`.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// Install only what `cargo xtask test` needs
    #[arg(long)]
    for_tests: bool,
}

/// Installs what is missing, and then checks that a BPF toolchain is found.
pub(crate) fn main(args: &Args) -> Result<()> {
    if args.for_tests {
        return for_tests(false);
    }
    if let Ok(compiler) = Compiler::find()
        && compiler.has_clippy()
    {
        eprintln!("a compiler for BPF is installed: {compiler}");
    } else {
        install_compiler()?;
    }
    match toolchain::find_linker() {
        Ok(linker) => eprintln!("the linker for BPF is installed: {}", linker.display()),
        Err(_) => install_linker()?,
    }
    for_tests(true)?;
    install_deny()?;
    Toolchain::find().map(|toolchain| eprintln!("ready: {}", toolchain.compiler))
}

/// Installs the programs that the tests need and, if `kernels` is set, those that the tests on other kernels need.
pub(crate) fn for_tests(kernels: bool) -> Result<()> {
    let more = if kernels { &FOR_KERNELS[..] } else { &[] };
    let packages = install_packages(&[&FOR_TESTS[..], more].concat());
    let duckdb = install_duckdb();
    packages.and(duckdb)
}

/// Installs a compiler for BPF: Debian's if its archive has one, and otherwise rustup's nightly.
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

/// Prints which programs are missing, and installs their Debian packages.
fn install_packages(wanted: &[(&str, &str)]) -> Result<()> {
    let missing: Vec<_> = wanted
        .iter()
        .filter(|(program, _)| process::programs(program).is_empty())
        .collect();
    let programs: Vec<&str> = missing.iter().map(|(program, _)| *program).collect();
    let mut packages: Vec<&str> = missing.iter().map(|(_, package)| *package).collect();
    packages.dedup();
    if packages.is_empty() {
        eprintln!("all programs that the tests need are installed");
        return Ok(());
    }
    let programs = programs.join(", ");
    if process::programs("apt-get").is_empty() {
        bail!("the tests need {programs}; install them yourself, because there is no apt-get on this machine");
    }
    eprintln!(
        "the tests need {programs}: installing the Debian packages {} (--no-setup skips this)",
        packages.join(", ")
    );
    process::run(process::as_root("apt-get").arg("update"))?;
    let mut install = process::as_root("apt-get");
    install.args(["install", "-y", "--no-install-recommends"]);
    process::run(install.args(packages))
}

/// Installs `DuckDB`, in which the SQL of `docs/FLEET.md` is tested, into a separate Python environment.
fn install_duckdb() -> Result<()> {
    let environment = process::root().join("target/duckdb");
    let python = environment.join("bin/python");
    let mut import = process::clean(&python);
    if process::output(import.args(["-c", "import duckdb"])).is_ok() {
        eprintln!("DuckDB is installed: {}", environment.display());
        return Ok(());
    }
    eprintln!(
        "the tests need {DUCKDB}: installing it from PyPI into {} (--no-setup skips this)",
        environment.display()
    );
    let made = process::run(
        process::clean("python3")
            .args(["-m", "venv", "--clear"])
            .arg(&environment),
    );
    if made.is_err() && !process::programs("apt-get").is_empty() {
        // Debian has Python's module `venv` in a separate package.
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

/// Installs rustup's nightly with the sources of `core`.
fn install_nightly() -> Result<()> {
    let mut install = process::clean("rustup");
    install.args(["toolchain", "install", NIGHTLY, "--profile", "minimal"]);
    process::run(install.args(["--component", "rust-src,clippy"]))
}

/// Installs cargo-deny, which checks the licences and sources of the linked crates by `deny.toml`.
fn install_deny() -> Result<()> {
    if !process::programs("cargo-deny").is_empty() {
        eprintln!("cargo-deny is installed");
        return Ok(());
    }
    let mut install = process::cargo();
    // A debug build is fast enough for a few hundred crates.
    process::run(install.args([
        "install",
        "cargo-deny",
        "--version",
        DENY_VERSION,
        "--locked",
        "--debug",
    ]))
}

/// Installs bpf-linker with the user's cargo.
fn install_linker() -> Result<()> {
    let mut install = process::cargo();
    install.args(["install", "bpf-linker", "--version", LINKER_VERSION]);
    process::run(install.arg("--locked"))
}
