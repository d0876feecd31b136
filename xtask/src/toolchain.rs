//! Finds a compiler and a linker for BPF on this machine.
//!
//! Every rustc can generate code for BPF, but few installations have the `core` library for that target. Two have it:
//! * Debian's stable rustc, for which there is a package with a compiled `core`;
//! * rustup's nightly, which can build `core` from its sources (component `rust-src`).
//!
//! Both emit LLVM bitcode, from which `bpf-linker` makes the object. bpf-linker contains no LLVM but loads that of a rustc. It
//! gets the LLVM library of the rustc that emitted the bitcode, so that the version of rustc determines both.

use std::ffi::OsString;
use std::fmt;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result, anyhow, bail};

use crate::process;
use crate::stamp::Tools;

/// The target triple of the BPF programs.
pub(crate) const TARGET: &str = "bpfel-unknown-none";

/// The required version of bpf-linker. It is fixed, because another version may emit another object.
pub(crate) const LINKER_VERSION: &str = "0.10.3";

/// The major version of LLVM that this bpf-linker can use.
const LLVM_MAJOR: &str = "22";

/// A nightly with the LLVM version that bpf-linker needs. Later ones have a newer LLVM.
pub(crate) const NIGHTLY: &str = "nightly-2026-05-20";

/// The Debian packages of the compiler, cargo, `core` for BPF, and clippy.
pub(crate) const DEBIAN_PACKAGES: [&str; 4] = ["rustc-web", "cargo-web", "libstd-rust-web-dev-bpf", "rust-web-clippy"];

/// A compiler and a linker that together make BPF objects.
#[derive(Debug)]
pub(crate) struct Toolchain {
    /// The compiler.
    pub(crate) compiler: Compiler,
    /// The path of bpf-linker.
    pub(crate) linker: PathBuf,
}

impl Toolchain {
    /// Finds a toolchain. The error lists what to install.
    pub(crate) fn find() -> Result<Self> {
        let find = || -> Result<Self> {
            Ok(Self {
                compiler: Compiler::find()?,
                linker: find_linker()?,
            })
        };
        find().map_err(|error| anyhow!("{error:#}\n\n{}", instructions()))
    }

    /// Returns the versions of the tools for the stamp.
    pub(crate) fn tools(&self) -> Tools {
        Tools {
            rustc: self.compiler.version.clone(),
            llvm: self.compiler.llvm_version.clone(),
            bpf_linker: format!("bpf-linker {LINKER_VERSION}"),
        }
    }
}

/// A rustc that can compile for BPF.
#[derive(Debug)]
pub(crate) struct Compiler {
    /// The folder of the programs: `rustc`, `cargo`, and possibly `cargo-clippy`.
    pub(crate) programs: PathBuf,
    /// The folder of the installation, which contains the libraries and sources.
    pub(crate) sysroot: PathBuf,
    /// Where the `core` library for BPF comes from.
    pub(crate) core: Core,
    /// The LLVM library that this rustc uses.
    pub(crate) llvm_library: PathBuf,
    /// The output of `rustc --version`.
    version: String,
    /// The version of LLVM that this rustc was built with.
    llvm_version: String,
}

/// Where the `core` library for BPF comes from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Core {
    /// A compiled `core` is installed.
    Ready,
    /// Cargo builds `core` from the sources in `rust-src`.
    FromSource,
}

impl Compiler {
    /// Finds the first suitable compiler. If there is none, the error lists the reason for each candidate.
    pub(crate) fn find() -> Result<Self> {
        let mut reasons = String::from("no rustc on this machine can compile for BPF:");
        for programs in candidates() {
            match Self::at(&programs) {
                Ok(compiler) => return Ok(compiler),
                Err(error) => {
                    let rustc = programs.join("rustc");
                    reasons += &format!("\n  {}: {error:#}", rustc.display());
                }
            }
        }
        bail!(reasons)
    }

    /// Examines the compiler whose programs are in this folder. The error is the reason why it is not suitable.
    fn at(programs: &Path) -> Result<Self> {
        let rustc = programs.join("rustc");
        let ask = |question: &[&str]| process::output(process::clean(&rustc).args(question));
        let sysroot = PathBuf::from(ask(&["--print", "sysroot"])?.trim());
        let about = ask(&["-vV"])?;
        let llvm_version = field(&about, "LLVM version: ").context("`rustc -vV` prints no LLVM version")?;
        if llvm_version.split('.').next() != Some(LLVM_MAJOR) {
            bail!("bpf-linker {LINKER_VERSION} needs LLVM {LLVM_MAJOR}, but this rustc has LLVM {llvm_version}");
        }
        let host = field(&about, "host: ").context("`rustc -vV` prints no host")?;
        Ok(Self {
            programs: programs.to_owned(),
            core: find_core(&sysroot)?,
            llvm_library: find_llvm(&sysroot, host, llvm_version)?,
            version: about.lines().next().unwrap_or_default().to_owned(),
            llvm_version: llvm_version.to_owned(),
            sysroot,
        })
    }

    /// Returns a command for one of the programs, which uses this compiler and no other.
    pub(crate) fn command(&self, program: &str) -> Command {
        let mut command = process::clean(self.programs.join(program));
        command
            .env("CARGO", self.programs.join("cargo"))
            .env("RUSTC", self.programs.join("rustc"))
            // aya-ebpf uses one unstable feature and the BPF programs use another (`asm_experimental_arch`, for atomics). A stable
            // compiler accepts them only with this variable. On a nightly it has no effect.
            .env("RUSTC_BOOTSTRAP", "1");
        command
    }

    /// Returns the arguments that cargo needs for the `core` library.
    pub(crate) fn core_args(&self) -> &'static [&'static str] {
        match self.core {
            Core::Ready => &[],
            Core::FromSource => &["-Z", "build-std=core"],
        }
    }

    /// Returns whether clippy is installed with this compiler.
    pub(crate) fn has_clippy(&self) -> bool {
        ["cargo-clippy", "clippy-driver"]
            .iter()
            .all(|program| self.programs.join(program).is_file())
    }
}

impl fmt::Display for Compiler {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} with LLVM {}", self.version, self.llvm_version)
    }
}

/// Returns the folders of the compilers to examine. The system's compiler comes first, because its `core` is already compiled.
fn candidates() -> Vec<PathBuf> {
    let system = PathBuf::from("/usr/bin");
    let mut folders: Vec<_> = system.join("rustc").is_file().then_some(system).into_iter().collect();
    // Without rustup there are no further candidates.
    folders.extend(nightlies().unwrap_or_default());
    folders
}

/// Returns the folders of the programs of rustup's nightlies, with [`NIGHTLY`] first.
fn nightlies() -> Result<Vec<PathBuf>> {
    let home = process::output(process::clean("rustup").args(["show", "home"]))?;
    let list = process::output(process::clean("rustup").args(["toolchain", "list"]))?;
    let toolchains = Path::new(home.trim()).join("toolchains");
    let mut names: Vec<_> = list
        .lines()
        .filter_map(|line| line.split_whitespace().next())
        .filter(|name| name.starts_with("nightly"))
        .collect();
    names.sort_by_key(|name| !name.starts_with(NIGHTLY));
    let folders = names.iter().map(|name| toolchains.join(name).join("bin"));
    Ok(folders.collect())
}

/// Returns where `core` for BPF comes from. Fails if the compiler has neither a compiled `core` nor its sources.
fn find_core(sysroot: &Path) -> Result<Core> {
    let rustlib = sysroot.join("lib/rustlib");
    let libraries = rustlib.join(TARGET).join("lib");
    if file_starting_with(&libraries, "libcore").is_some() {
        return Ok(Core::Ready);
    }
    if rustlib.join("src/rust/library/core/Cargo.toml").is_file() {
        return Ok(Core::FromSource);
    }
    bail!("this rustc has neither `core` for {TARGET} nor the sources to build it from")
}

/// Finds the LLVM library of a rustc. It is in rustc's own library folder (rustup) or in that of the system (Debian).
fn find_llvm(sysroot: &Path, host: &str, version: &str) -> Result<PathBuf> {
    // In both cases the name of the file has the first two parts of the version.
    let release = version.rsplit_once('.').map_or(version, |(release, _)| release);
    let name = format!("libLLVM.so.{release}");
    let libraries = sysroot.join("lib");
    // Debian omits the vendor in the names of its folders.
    [libraries.join(host.replace("-unknown-", "-")), libraries]
        .iter()
        .find_map(|folder| file_starting_with(folder, &name))
        .with_context(|| format!("the LLVM library {name} of this rustc is missing"))
}

/// Finds the first bpf-linker with the required version.
pub(crate) fn find_linker() -> Result<PathBuf> {
    let mut reasons = format!("there is no bpf-linker {LINKER_VERSION} on PATH or in the bin folder of cargo's home");
    for linker in process::programs("bpf-linker") {
        let version = process::output(process::clean(&linker).arg("--version"))?;
        if version.split_whitespace().nth(1) == Some(LINKER_VERSION) {
            return Ok(linker);
        }
        reasons += &format!("\n  {} is {}", linker.display(), version.trim());
    }
    bail!(reasons)
}

/// Returns the text that follows `name` on the line that begins with it.
fn field<'a>(text: &'a str, name: &str) -> Option<&'a str> {
    text.lines().find_map(|line| line.strip_prefix(name)).map(str::trim)
}

/// Returns a file in `folder` whose name begins with `prefix`. If there are several, it is the first in the order of names.
fn file_starting_with(folder: &Path, prefix: &str) -> Option<PathBuf> {
    let mut names: Vec<OsString> = fs::read_dir(folder)
        .ok()?
        .filter_map(|entry| Some(entry.ok()?.file_name()))
        .filter(|name| name.to_string_lossy().starts_with(prefix))
        .collect();
    names.sort();
    names.first().map(|name| folder.join(name))
}

/// Returns the commands that install a toolchain.
fn instructions() -> String {
    let packages = DEBIAN_PACKAGES.join(" ");
    format!(
        "`cargo xtask setup` installs what is missing. To install it yourself on Debian:\n\
         \x20   sudo apt-get install --no-install-recommends {packages}\n\
         \x20   cargo install bpf-linker --version {LINKER_VERSION} --locked\n\
         or with rustup on any distribution:\n\
         \x20   rustup toolchain install {NIGHTLY} --profile minimal --component rust-src,clippy\n\
         \x20   cargo install bpf-linker --version {LINKER_VERSION} --locked"
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The output of `rustc -vV`.
    const ABOUT: &str = "rustc 1.96.0 (ac68faa20 2026-05-25)\nhost: x86_64-unknown-linux-gnu\n\
                         release: 1.96.0\nLLVM version: 22.1.8\n";

    /// Creates a folder with these empty files.
    fn folder(files: &[&str]) -> tempfile::TempDir {
        let folder = tempfile::tempdir().expect("a temporary folder");
        for file in files {
            let path = folder.path().join(file);
            fs::create_dir_all(path.parent().expect("the path has a parent")).expect("the folder is created");
            fs::write(path, "").expect("the file is written");
        }
        folder
    }

    #[test]
    fn fields_of_a_compilers_self_description() {
        assert_eq!(field(ABOUT, "LLVM version: "), Some("22.1.8"));
        assert_eq!(field(ABOUT, "host: "), Some("x86_64-unknown-linux-gnu"));
        assert_eq!(field(ABOUT, "commit-hash: "), None);
    }

    #[test]
    fn core_is_taken_ready_made_before_it_is_built() {
        let source = "lib/rustlib/src/rust/library/core/Cargo.toml";
        let ready = "lib/rustlib/bpfel-unknown-none/lib/libcore-1234.rlib";
        let core = |files: &[&str]| find_core(folder(files).path()).ok();
        assert_eq!(core(&[source, ready]), Some(Core::Ready));
        assert_eq!(core(&[source]), Some(Core::FromSource));
        assert_eq!(core(&[]), None);
    }

    #[test]
    fn the_llvm_library_is_the_compilers_own() {
        let debian = [
            "lib/x86_64-linux-gnu/libLLVM-14.so.1",
            "lib/x86_64-linux-gnu/libLLVM.so.22.1",
        ];
        let rustup = ["lib/libLLVM-22-rust-1.95.0.so", "lib/libLLVM.so.22.1-rust-1.95.0"];
        for files in [debian, rustup] {
            let sysroot = folder(&files);
            let found = find_llvm(sysroot.path(), "x86_64-unknown-linux-gnu", "22.1.8");
            assert_eq!(found.ok(), Some(sysroot.path().join(files[1])));
        }
    }
}
