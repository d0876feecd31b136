//! Finding a compiler and a linker for BPF on this machine.
//!
//! rustc can generate code for BPF anywhere, but few installations have its `core` library for that machine. Two do:
//! * Debian's own stable rustc, for which `core` is packaged ready-made;
//! * rustup's nightly, which can build `core` from its sources (component `rust-src`).
//!
//! Both emit LLVM bitcode, which `bpf-linker` turns into the object. It brings no LLVM but loads the one that comes with a
//! rustc; we give it the one of the very rustc that made the bitcode, so that rustc's version settles both.

use std::ffi::OsString;
use std::fmt;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result, anyhow, bail};

use crate::process;
use crate::stamp::Tools;

/// The machine the programs are for.
pub(crate) const TARGET: &str = "bpfel-unknown-none";

/// The version of bpf-linker everybody uses, because another one may emit other bytes.
pub(crate) const LINKER_VERSION: &str = "0.10.3";

/// The major version of LLVM that this bpf-linker can use.
const LLVM_MAJOR: &str = "22";

/// A nightly whose LLVM is the one bpf-linker wants: later ones move on to the next LLVM.
pub(crate) const NIGHTLY: &str = "nightly-2026-05-20";

/// Debian's packages: compiler, cargo, `core` for BPF, and clippy.
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
    /// Finds one, or says what to install.
    pub(crate) fn find() -> Result<Self> {
        let find = || -> Result<Self> {
            Ok(Self {
                compiler: Compiler::find()?,
                linker: find_linker()?,
            })
        };
        find().map_err(|error| anyhow!("{error:#}\n\n{}", instructions()))
    }

    /// The versions, for the stamp.
    pub(crate) fn tools(&self) -> Tools {
        Tools {
            rustc: self.compiler.version.clone(),
            llvm: self.compiler.llvm_version.clone(),
            bpf_linker: format!("bpf-linker {LINKER_VERSION}"),
        }
    }
}

/// A rustc with what it needs to compile for BPF.
#[derive(Debug)]
pub(crate) struct Compiler {
    /// The folder of its programs: `rustc`, `cargo`, perhaps `cargo-clippy`.
    pub(crate) programs: PathBuf,
    /// Its installation: libraries and sources are below this folder.
    pub(crate) sysroot: PathBuf,
    /// Where `core` comes from.
    pub(crate) core: Core,
    /// The LLVM library that it uses itself.
    pub(crate) llvm_library: PathBuf,
    /// What `rustc --version` prints.
    version: String,
    /// The version of LLVM it was built with.
    llvm_version: String,
}

/// Where a compiler has the `core` library for BPF from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Core {
    /// It is installed.
    Ready,
    /// Cargo builds it from the sources in `rust-src`.
    FromSource,
}

impl Compiler {
    /// The first that fits. The error lists why each of them does not.
    pub(crate) fn find() -> Result<Self> {
        let mut reasons = String::from("no rustc here can compile for BPF:");
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

    /// The one whose programs are in this folder, or why it does not do.
    fn at(programs: &Path) -> Result<Self> {
        let rustc = programs.join("rustc");
        let ask = |question: &[&str]| process::output(process::clean(&rustc).args(question));
        let sysroot = PathBuf::from(ask(&["--print", "sysroot"])?.trim());
        let about = ask(&["-vV"])?;
        let llvm_version = field(&about, "LLVM version: ").context("it does not name its LLVM")?;
        if llvm_version.split('.').next() != Some(LLVM_MAJOR) {
            bail!("bpf-linker {LINKER_VERSION} needs LLVM {LLVM_MAJOR}, this has {llvm_version}");
        }
        let host = field(&about, "host: ").context("it does not name its host")?;
        Ok(Self {
            programs: programs.to_owned(),
            core: find_core(&sysroot)?,
            llvm_library: find_llvm(&sysroot, host, llvm_version)?,
            version: about.lines().next().unwrap_or_default().to_owned(),
            llvm_version: llvm_version.to_owned(),
            sysroot,
        })
    }

    /// One of its programs, as a command that uses this compiler and no other.
    pub(crate) fn command(&self, program: &str) -> Command {
        let mut command = process::clean(self.programs.join(program));
        command
            .env("CARGO", self.programs.join("cargo"))
            .env("RUSTC", self.programs.join("rustc"))
            // aya-ebpf turns on one unstable feature and our programs another (`asm_experimental_arch`, for atomics),
            // which a stable compiler only accepts when told to. On a nightly it changes nothing.
            .env("RUSTC_BOOTSTRAP", "1");
        command
    }

    /// What cargo must be told to have `core` for BPF.
    pub(crate) fn core_args(&self) -> &'static [&'static str] {
        match self.core {
            Core::Ready => &[],
            Core::FromSource => &["-Z", "build-std=core"],
        }
    }

    /// Whether clippy came with it.
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

/// The folders of programs to look at: the system's compiler first, because its `core` is ready.
fn candidates() -> Vec<PathBuf> {
    let system = PathBuf::from("/usr/bin");
    let mut folders: Vec<_> = system.join("rustc").is_file().then_some(system).into_iter().collect();
    // Without rustup there simply is no further candidate.
    folders.extend(nightlies().unwrap_or_default());
    folders
}

/// The folders of programs of rustup's nightlies: the one we name first.
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

/// Where `core` for BPF would come from.
fn find_core(sysroot: &Path) -> Result<Core> {
    let rustlib = sysroot.join("lib/rustlib");
    let libraries = rustlib.join(TARGET).join("lib");
    if file_starting_with(&libraries, "libcore").is_some() {
        return Ok(Core::Ready);
    }
    if rustlib.join("src/rust/library/core/Cargo.toml").is_file() {
        return Ok(Core::FromSource);
    }
    bail!("it has neither `core` for {TARGET} nor the sources to build it from")
}

/// The LLVM library a rustc uses: beside it (rustup), or among the system's libraries (Debian).
fn find_llvm(sysroot: &Path, host: &str, version: &str) -> Result<PathBuf> {
    // The file's name has the first two parts of the version, whoever built it.
    let release = version.rsplit_once('.').map_or(version, |(release, _)| release);
    let name = format!("libLLVM.so.{release}");
    let libraries = sysroot.join("lib");
    // Debian leaves out the vendor in the names of its folders.
    [libraries.join(host.replace("-unknown-", "-")), libraries]
        .iter()
        .find_map(|folder| file_starting_with(folder, &name))
        .with_context(|| format!("its LLVM library {name} cannot be found"))
}

/// The first bpf-linker of the version we want.
pub(crate) fn find_linker() -> Result<PathBuf> {
    let mut reasons = format!("no bpf-linker {LINKER_VERSION} on PATH or where cargo installs");
    for linker in process::programs("bpf-linker") {
        let version = process::output(process::clean(&linker).arg("--version"))?;
        if version.split_whitespace().nth(1) == Some(LINKER_VERSION) {
            return Ok(linker);
        }
        reasons += &format!("\n  {} is {}", linker.display(), version.trim());
    }
    bail!(reasons)
}

/// What follows `name` on the line that begins with it.
fn field<'a>(text: &'a str, name: &str) -> Option<&'a str> {
    text.lines().find_map(|line| line.strip_prefix(name)).map(str::trim)
}

/// A file in `folder` whose name begins so: the first by name, because a folder's own order is no order.
fn file_starting_with(folder: &Path, prefix: &str) -> Option<PathBuf> {
    let mut names: Vec<OsString> = fs::read_dir(folder)
        .ok()?
        .filter_map(|entry| Some(entry.ok()?.file_name()))
        .filter(|name| name.to_string_lossy().starts_with(prefix))
        .collect();
    names.sort();
    names.first().map(|name| folder.join(name))
}

/// What to type where something is missing.
fn instructions() -> String {
    let packages = DEBIAN_PACKAGES.join(" ");
    format!(
        "`cargo xtask setup` installs what is missing. By hand, on Debian:\n\
         \x20   sudo apt-get install --no-install-recommends {packages}\n\
         \x20   cargo install bpf-linker --version {LINKER_VERSION} --locked\n\
         or with rustup, anywhere:\n\
         \x20   rustup toolchain install {NIGHTLY} --profile minimal --component rust-src,clippy\n\
         \x20   cargo install bpf-linker --version {LINKER_VERSION} --locked"
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What a rustc says of itself.
    const ABOUT: &str = "rustc 1.96.0 (ac68faa20 2026-05-25)\nhost: x86_64-unknown-linux-gnu\n\
                         release: 1.96.0\nLLVM version: 22.1.8\n";

    /// A folder with these empty files in it.
    fn folder(files: &[&str]) -> tempfile::TempDir {
        let folder = tempfile::tempdir().expect("a temporary folder");
        for file in files {
            let path = folder.path().join(file);
            fs::create_dir_all(path.parent().expect("a parent")).expect("folders");
            fs::write(path, "").expect("a file");
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
