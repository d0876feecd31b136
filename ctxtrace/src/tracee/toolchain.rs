//! Builds a small program with the machine's compiler, and caches it.
//!
//! All steps run *as the user that will run the program*: under `sudo`, root neither runs a compiler nor touches a user's
//! folders. The program is stored in that user's cache folder, in a folder named by a hash of the source and of the compiler's
//! version, so that each combination of source and compiler has its own program. It is moved there atomically after it was built.
//! A cached program is run only if the program and its folders belong to that user and no other user can write to them.

use std::ffi::OsStr;
use std::fmt;
use std::fs::{self, DirBuilder, Metadata, Permissions};
use std::io;
use std::os::unix::fs::{DirBuilderExt, MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use nix::unistd::{AccessFlags, Uid, User, access, geteuid};
use sha2::{Digest, Sha256};

use super::user::Invoker;
use crate::error::{Error, Result};

/// A compiler of this machine.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Compiler {
    /// The C compiler `cc`, for example gcc or clang.
    C,
    /// The Go command `go`.
    Go,
}

impl Compiler {
    /// The name of the compiler's executable.
    fn program(self) -> &'static str {
        match self {
            Self::C => "cc",
            Self::Go => "go",
        }
    }

    /// The folders that are searched after `PATH`: those in which Go's own archive and Debian install it.
    fn folders(self) -> &'static [&'static str] {
        match self {
            Self::C => &[],
            Self::Go => &["/usr/local/go/bin", "/usr/lib/go/bin"],
        }
    }

    /// The argument that makes the compiler print its version.
    fn version_argument(self) -> &'static str {
        match self {
            Self::C => "--version",
            Self::Go => "version",
        }
    }

    /// The file name that the compiler expects for a source.
    fn source_name(self) -> &'static str {
        match self {
            Self::C => "main.c",
            Self::Go => "main.go",
        }
    }

    /// The arguments for a build; the names of the output and of the source follow them. In C, frame pointers and debug
    /// information are requested for the stacks. They do not change the measurement, because its time is spent in system calls.
    /// Go has both by default.
    fn arguments(self) -> &'static [&'static str] {
        match self {
            Self::C => &["-O2", "-g", "-fno-omit-frame-pointer", "-o"],
            Self::Go => &["build", "-trimpath", "-o"],
        }
    }

    /// The environment variables for the compiler: Go must not access the network or read settings other than its arguments.
    fn environment(self) -> &'static [(&'static str, &'static str)] {
        match self {
            Self::C => &[],
            Self::Go => &[
                ("GOTOOLCHAIN", "local"),
                ("GOPROXY", "off"),
                ("GOFLAGS", "-mod=mod"),
                ("GOWORK", "off"),
                ("GOENV", "off"),
                ("GO111MODULE", "on"),
                ("CGO_ENABLED", "0"),
                ("GOOS", "linux"),
                ("GOARCH", "amd64"),
            ],
        }
    }

    /// The advice for a user whose machine does not have the compiler.
    fn how_to_get_it(self) -> &'static str {
        match self {
            Self::C => {
                "there is no C compiler (cc) here: install one (Debian, Ubuntu: apt install gcc libc6-dev; Fedora: dnf install gcc), \
                 or omit --language"
            }
            Self::Go => {
                "there is no Go on PATH or in /usr/local/go: install it (Debian, Ubuntu: apt install golang-go; Fedora: dnf install \
                 golang)"
            }
        }
    }
}

impl fmt::Display for Compiler {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::C => "C",
            Self::Go => "Go",
        })
    }
}

/// A program that has to be compiled before it can run.
#[derive(Clone, Copy, Debug)]
pub struct Source {
    /// The name of the program.
    pub name: &'static str,
    /// The compiler that builds the program.
    pub compiler: Compiler,
    /// The source text.
    pub text: &'static str,
}

/// Returns the executable of a source: the cached one, or a new one. Must be called while this process has only one thread.
///
/// # Errors
///
/// If there is no compiler, if it rejects the source, or if no folder can be used to store the executable.
pub fn build(source: &Source, user: Option<&Invoker>) -> Result<PathBuf> {
    let built = match user {
        None => build_as_self(source, &cache_folders(std::env::var_os("HOME").map(PathBuf::from))),
        Some(user) => {
            // The variable `HOME` may be root's, so the home is taken from the user database.
            let home = User::from_uid(user.uid).ok().flatten().map(|user| user.dir);
            let folders = cache_folders(home);
            user.perform(|| build_as_self(source, &folders))
        }
    };
    built.map_err(|reason| Error::Build {
        what: format!("{} in {}", source.name, source.compiler),
        reason,
    })
}

/// Returns the cache folders in the order in which they are tried: that in `XDG_CACHE_HOME`, then that in `home`.
fn cache_folders(home: Option<PathBuf>) -> Vec<PathBuf> {
    let named = std::env::var_os("XDG_CACHE_HOME").map(PathBuf::from);
    let usual = home.map(|home| home.join(".cache"));
    let cache = named.into_iter().chain(usual).filter(|path| path.is_absolute());
    cache.map(|path| path.join("ctxtrace")).collect()
}

fn build_as_self(source: &Source, folders: &[PathBuf]) -> std::result::Result<PathBuf, String> {
    let compiler = source.compiler;
    let found =
        find(compiler, std::env::var_os("PATH").as_deref()).ok_or_else(|| compiler.how_to_get_it().to_owned())?;
    let version = version(compiler, &found)?;
    let last_resort = std::env::temp_dir().join(format!("ctxtrace-{}", geteuid()));
    let mut refusals = Vec::new();
    for folder in folders.iter().chain([&last_resort]) {
        // Each program has its own folder, so that its file has the name of the program.
        let own = folder.join(key(source, &version));
        match usable(folder).and_then(|()| usable(&own)) {
            Ok(()) => {
                let program = own.join(source.name);
                return if is_ours(&program) {
                    Ok(program)
                } else {
                    compile(source, &found, &own, &program).map(|()| program)
                };
            }
            Err(reason) => refusals.push(format!("{} ({reason})", folder.display())),
        }
    }
    Err(format!(
        "none of the cache folders can be used to store the program: {}",
        refusals.join(", ")
    ))
}

/// Finds the executable of the compiler. Relative entries of `PATH` are ignored.
fn find(compiler: Compiler, path: Option<&OsStr>) -> Option<PathBuf> {
    let on_path = std::env::split_paths(path.unwrap_or_default());
    on_path
        .chain(compiler.folders().iter().map(PathBuf::from))
        .filter(|folder| folder.is_absolute())
        .map(|folder| folder.join(compiler.program()))
        .find(|program| program.is_file() && access(program, AccessFlags::X_OK).is_ok())
}

/// Returns the version that the compiler prints.
fn version(compiler: Compiler, found: &Path) -> std::result::Result<Vec<u8>, String> {
    let argument = compiler.version_argument();
    let asked = Command::new(found)
        .arg(argument)
        .envs(compiler.environment().iter().copied())
        .stdin(Stdio::null())
        .output();
    match asked {
        Ok(output) if output.status.success() => Ok(output.stdout),
        Ok(output) => Err(format!(
            "`{} {argument}` failed: {}",
            found.display(),
            first_line(&output.stderr)
        )),
        Err(error) => Err(format!("{} cannot be run: {error}", found.display())),
    }
}

/// Returns a hash, in hexadecimal, of everything that the executable depends on.
fn key(source: &Source, version: &[u8]) -> String {
    let mut hash = Sha256::new();
    for part in [
        source.text.as_bytes(),
        version,
        source.compiler.arguments().join(" ").as_bytes(),
    ] {
        // The length is hashed too, so that moving bytes from one part to the next changes the hash.
        hash.update((part.len() as u64).to_le_bytes());
        hash.update(part);
    }
    hash.finalize()
        .iter()
        .take(16)
        .map(|byte| format!("{byte:02x}"))
        .collect()
}

/// Creates the folder if it does not exist, and checks that only its user can write to it.
fn usable(folder: &Path) -> std::result::Result<(), String> {
    DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(folder)
        .map_err(|error| error.to_string())?;
    let metadata = fs::symlink_metadata(folder).map_err(|error| error.to_string())?;
    if !metadata.is_dir() {
        Err("it is not a folder".to_owned())
    } else if !only_writable_by(&metadata, geteuid()) {
        Err("other users can write to it".to_owned())
    } else {
        Ok(())
    }
}

/// Whether this is an executable that belongs to this user and that no other user can write to.
fn is_ours(program: &Path) -> bool {
    fs::symlink_metadata(program).is_ok_and(|metadata| {
        metadata.is_file() && metadata.mode() & 0o100 != 0 && only_writable_by(&metadata, geteuid())
    })
}

fn only_writable_by(metadata: &Metadata, user: Uid) -> bool {
    metadata.uid() == user.as_raw() && metadata.mode() & 0o022 == 0
}

/// Compiles the source in a temporary folder next to `program`, and renames the result to `program`.
fn compile(source: &Source, compiler: &Path, folder: &Path, program: &Path) -> std::result::Result<(), String> {
    let unwritable = |path: &Path, error: io::Error| format!("{} cannot be written: {error}", path.display());
    let build_folder = tempfile::Builder::new()
        .prefix(".build-")
        .tempdir_in(folder)
        .map_err(|error| unwritable(folder, error))?;
    let name = source.compiler.source_name();
    let written = build_folder.path().join(name);
    fs::write(&written, source.text).map_err(|error| unwritable(&written, error))?;
    let output = Command::new(compiler)
        .args(source.compiler.arguments())
        .args([source.name, name])
        .envs(source.compiler.environment().iter().copied())
        // Go requires a build cache. It is temporary, because each source is built only once.
        .env("GOCACHE", build_folder.path().join("cache"))
        .current_dir(build_folder.path())
        .stdin(Stdio::null())
        .output()
        .map_err(|error| format!("{} cannot be run: {error}", compiler.display()))?;
    if !output.status.success() {
        let complaint = first_line(&output.stderr);
        return Err(format!("{} failed: {complaint}", source.compiler.program()));
    }
    let built = build_folder.path().join(source.name);
    fs::set_permissions(&built, Permissions::from_mode(0o700))
        .and_then(|()| fs::rename(&built, program))
        .map_err(|error| unwritable(program, error))
}

fn first_line(text: &[u8]) -> String {
    let text = String::from_utf8_lossy(text);
    // Go first prints a line with the name of the package, which starts with `#`.
    let mut lines = text.lines().filter(|line| !line.starts_with('#'));
    let line = lines.clone().find(|line| line.contains("error")).or(lines.next());
    line.unwrap_or("it printed no error message").to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    const EMPTY: Source = Source {
        name: "empty",
        compiler: Compiler::C,
        text: "int main(void) { return 7; }\n",
    };

    fn folder() -> tempfile::TempDir {
        tempfile::tempdir().expect("a folder")
    }

    fn cache(folder: &tempfile::TempDir) -> Vec<PathBuf> {
        vec![folder.path().join("new/ctxtrace")]
    }

    #[test]
    fn a_program_is_built_once_and_runs() {
        let folder = folder();
        let program = build_as_self(&EMPTY, &cache(&folder)).expect("built");
        assert!(program.starts_with(folder.path()));
        let status = Command::new(&program).status().expect("it runs");
        assert_eq!(status.code(), Some(7));
        let built = fs::metadata(&program).expect("there").ino();
        assert_eq!(build_as_self(&EMPTY, &cache(&folder)).as_ref(), Ok(&program));
        assert_eq!(fs::metadata(&program).expect("there").ino(), built);
        let files = fs::read_dir(program.parent().expect("a folder")).expect("readable");
        assert_eq!(files.count(), 1, "no other file is left in the folder");
    }

    #[test]
    fn a_program_that_others_could_have_written_is_built_anew() {
        let folder = folder();
        let program = build_as_self(&EMPTY, &cache(&folder)).expect("built");
        fs::write(&program, "#!/bin/sh\nexit 0\n").expect("written");
        fs::set_permissions(&program, Permissions::from_mode(0o777)).expect("allowed");
        build_as_self(&EMPTY, &cache(&folder)).expect("built");
        assert_eq!(Command::new(&program).status().expect("it runs").code(), Some(7));
        // A symbolic link is not used either.
        fs::remove_file(&program).expect("removed");
        std::os::unix::fs::symlink("/bin/true", &program).expect("linked");
        build_as_self(&EMPTY, &cache(&folder)).expect("built");
        assert_eq!(Command::new(&program).status().expect("it runs").code(), Some(7));
    }

    #[test]
    fn a_folder_that_others_can_write_is_not_used() {
        let (open, own) = (folder(), folder());
        fs::set_permissions(open.path(), Permissions::from_mode(0o777)).expect("allowed");
        let folders = [open.path().to_owned(), own.path().to_owned()];
        let program = build_as_self(&EMPTY, &folders).expect("built");
        assert!(program.starts_with(own.path()), "{}", program.display());
    }

    #[test]
    fn another_source_or_compiler_is_another_program() {
        let other = Source { text: "x", ..EMPTY };
        let keys = [key(&EMPTY, b"gcc 12"), key(&EMPTY, b"gcc 13"), key(&other, b"gcc 12")];
        assert!(keys[0] != keys[1] && keys[0] != keys[2] && keys[1] != keys[2]);
        assert_eq!(keys[0], key(&EMPTY, b"gcc 12"));
    }

    #[test]
    fn go_is_looked_for_on_the_path_first() {
        let folder = folder();
        let go = folder.path().join("go");
        fs::write(&go, "#!/bin/sh\n").expect("written");
        let path = folder.path().as_os_str();
        assert_ne!(
            find(Compiler::Go, Some(path)).as_ref(),
            Some(&go),
            "a file that cannot be executed"
        );
        fs::set_permissions(&go, Permissions::from_mode(0o755)).expect("our own");
        assert_eq!(find(Compiler::Go, Some(path)), Some(go));
        assert_ne!(find(Compiler::Go, Some(OsStr::new("."))), Some(PathBuf::from("./go")));
    }

    #[test]
    fn the_error_line_is_selected() {
        assert_eq!(
            first_line(b"# command-line-arguments\n./main.go:3:2: undefined: x\n"),
            "./main.go:3:2: undefined: x"
        );
        assert_eq!(
            first_line(b"main.c: In function main:\nmain.c:1:2: error: x\n"),
            "main.c:1:2: error: x"
        );
        assert_eq!(first_line(b""), "it printed no error message");
    }

    #[test]
    fn a_source_that_does_not_compile_says_why() {
        let folder = folder();
        let wrong = Source {
            text: "int main(void) { return nothing; }\n",
            ..EMPTY
        };
        let reason = build_as_self(&wrong, &cache(&folder)).expect_err("refused");
        assert!(
            reason.starts_with("cc failed: ") && reason.contains("nothing"),
            "{reason}"
        );
    }
}
