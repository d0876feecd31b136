//! Building the Go program, and keeping what was built.
//!
//! It is kept in `$XDG_CACHE_HOME/ctxtrace` (or `~/.cache/ctxtrace`), in a folder named after the source and the version of
//! Go, and put there whole, by a rename. What is found there is used only if it is the user's own and nobody else can write
//! to it: it will be executed as this user.

use std::ffi::OsStr;
use std::fs;
use std::io;
use std::os::unix::fs::{DirBuilderExt, MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::process::Command;

use nix::unistd::geteuid;

use crate::error::{Error, Result};

/// The program's name, which its threads have too.
pub(super) const NAME: &str = "go-ping-pong";

const SOURCE: &str = include_str!("ping_pong.go");

/// Where Go is, if not on `PATH`: where its own archive puts it, and Debian.
const FOLDERS: [&str; 2] = ["/usr/local/go/bin", "/usr/lib/go/bin"];

/// The Go program, built by this user now or earlier.
///
/// # Errors
///
/// If there is no Go on this machine, if it cannot build the program, or if there is no place to keep it.
pub fn build() -> Result<PathBuf> {
    let go = find_go(std::env::var_os("PATH").as_deref()).ok_or_else(|| {
        Error::Workload(format!(
            "--mode go needs Go to build its program, and there is none on PATH, nor in {}: install it (Debian, Ubuntu: \
             apt install golang-go)",
            FOLDERS.join(" or ")
        ))
    })?;
    build_with(&go, &cache_folder()?)
}

fn build_with(go: &Path, cache: &Path) -> Result<PathBuf> {
    let version = output(command(go).arg("version"))?;
    let folder = cache.join(format!("go-{:016x}", key(&version)));
    make_folder(&folder)?;
    let program = folder.join(NAME);
    if is_trusted(&program) {
        return Ok(program);
    }
    // A module of its own, so that nothing around the folder matters.
    let work = tempfile::tempdir_in(&folder).map_err(unwritable(&folder))?;
    let write = |name: &str, text: &str| {
        let path = work.path().join(name);
        fs::write(&path, text).map_err(unwritable(&path))
    };
    write("main.go", SOURCE)?;
    write("go.mod", &module(&version))?;
    output(
        command(go)
            .current_dir(work.path())
            .args(["build", "-trimpath", "-o", NAME, "."]),
    )?;
    let built = work.path().join(NAME);
    // Whatever the umask is.
    fs::set_permissions(&built, fs::Permissions::from_mode(0o755)).map_err(unwritable(&built))?;
    fs::rename(&built, &program).map_err(unwritable(&program))?;
    if is_trusted(&program) {
        Ok(program)
    } else {
        Err(Error::Workload(format!(
            "{} is not as it was left: somebody else has changed it",
            program.display()
        )))
    }
}

/// Go, told to stay on this machine and to heed nothing but its arguments.
fn command(go: &Path) -> Command {
    let mut command = Command::new(go);
    command.envs([
        ("GOTOOLCHAIN", "local"),
        ("GOPROXY", "off"),
        ("GOFLAGS", "-mod=mod"),
        ("GOWORK", "off"),
        ("GOENV", "off"),
        ("GO111MODULE", "on"),
        ("CGO_ENABLED", "0"),
        ("GOOS", "linux"),
        ("GOARCH", "amd64"),
    ]);
    command
}

/// What a command prints, if it ends well.
fn output(command: &mut Command) -> Result<String> {
    let program = PathBuf::from(command.get_program());
    let output = command.output().map_err(|source| Error::Launch {
        program,
        user: None,
        source,
    })?;
    if !output.status.success() {
        return Err(Error::Workload(format!(
            "Go cannot build the program of --mode go ({}):\n{}",
            output.status,
            String::from_utf8_lossy(&output.stderr).trim()
        )));
    }
    Ok(String::from_utf8_lossy(&output.stdout).trim().to_owned())
}

fn find_go(path: Option<&OsStr>) -> Option<PathBuf> {
    let on_path = std::env::split_paths(path.unwrap_or_default());
    on_path
        .chain(FOLDERS.map(PathBuf::from))
        .map(|folder| folder.join("go"))
        .find(|go| go.is_absolute() && nix::unistd::access(go, nix::unistd::AccessFlags::X_OK).is_ok() && go.is_file())
}

/// By the convention of XDG: a path that is not absolute is none.
fn cache_folder() -> Result<PathBuf> {
    let absolute = |name: &str| {
        std::env::var_os(name)
            .map(PathBuf::from)
            .filter(|path| path.is_absolute())
    };
    let cache = absolute("XDG_CACHE_HOME").or_else(|| Some(absolute("HOME")?.join(".cache")));
    cache.map(|cache| cache.join("ctxtrace")).ok_or_else(|| {
        Error::Workload("--mode go keeps its program in the cache folder, and there is none: set HOME".to_owned())
    })
}

/// Makes a folder that is this user's alone, or finds it to be so.
fn make_folder(folder: &Path) -> Result<()> {
    let mut builder = fs::DirBuilder::new();
    builder.recursive(true).mode(0o700);
    builder.create(folder).map_err(unwritable(folder))?;
    let metadata = fs::symlink_metadata(folder).map_err(unwritable(folder))?;
    if metadata.is_dir() && is_ours(&metadata) {
        return Ok(());
    }
    Err(Error::Workload(format!(
        "{} belongs to somebody else, or others can write to it: remove it",
        folder.display()
    )))
}

fn is_trusted(program: &Path) -> bool {
    fs::symlink_metadata(program).is_ok_and(|metadata| metadata.is_file() && is_ours(&metadata))
}

fn is_ours(metadata: &fs::Metadata) -> bool {
    const WRITABLE_BY_OTHERS: u32 = 0o022;
    metadata.uid() == geteuid().as_raw() && metadata.mode() & WRITABLE_BY_OTHERS == 0
}

fn unwritable(path: &Path) -> impl FnOnce(io::Error) -> Error {
    let path = path.to_owned();
    move |source| Error::Output { path, source }
}

/// FNV-1a: it tells sources and versions apart, and protects from nobody.
fn key(version: &str) -> u64 {
    let bytes = SOURCE.bytes().chain([0]).chain(version.bytes());
    bytes.fold(0xcbf2_9ce4_8422_2325, |hash, byte| {
        (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3)
    })
}

/// The module's description. Its version of the language is that of the toolchain, so that the program runs as this Go's
/// programs do, and not as in an older one.
fn module(version: &str) -> String {
    let word = version.split_whitespace().find_map(|word| word.strip_prefix("go1."));
    let minor: String = word
        .unwrap_or_default()
        .chars()
        .take_while(char::is_ascii_digit)
        .collect();
    let language = if minor.is_empty() { "18" } else { &minor };
    format!("module ctxtrace.invalid/ping-pong\n\ngo 1.{language}\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_program_is_kept_by_source_and_version() {
        assert_ne!(
            key("go version go1.27.3 linux/amd64"),
            key("go version go1.27.2 linux/amd64")
        );
    }

    #[test]
    fn the_module_asks_for_the_language_of_the_toolchain() {
        assert!(module("go version go1.27.3 linux/amd64").ends_with("go 1.27\n"));
        assert!(module("go version go1.19 linux/amd64").ends_with("go 1.19\n"));
        assert!(module("go version devel go1.28-0123 linux/amd64").ends_with("go 1.28\n"));
        assert!(module("").ends_with("go 1.18\n"));
    }

    #[test]
    fn go_is_looked_for_on_the_path_first() {
        let folder = tempfile::tempdir().expect("a folder");
        let go = folder.path().join("go");
        fs::write(&go, "#!/bin/sh\n").expect("written");
        let path = folder.path().as_os_str();
        assert_ne!(find_go(Some(path)).as_ref(), Some(&go), "it cannot be executed");
        fs::set_permissions(&go, fs::Permissions::from_mode(0o755)).expect("our own");
        assert_eq!(find_go(Some(path)), Some(go));
        assert_ne!(find_go(Some(OsStr::new("."))), Some(PathBuf::from("./go")));
    }

    #[test]
    fn what_others_could_have_written_is_not_trusted() {
        let folder = tempfile::tempdir().expect("a folder");
        let program = folder.path().join(NAME);
        assert!(!is_trusted(&program));
        fs::write(&program, "x").expect("written");
        for (mode, trusted) in [(0o700, true), (0o755, true), (0o775, false), (0o777, false)] {
            fs::set_permissions(&program, fs::Permissions::from_mode(mode)).expect("our own");
            assert_eq!(is_trusted(&program), trusted, "{mode:o}");
        }
        let link = folder.path().join("link");
        std::os::unix::fs::symlink("/bin/true", &link).expect("a link");
        assert!(!is_trusted(&link));
        fs::set_permissions(folder.path(), fs::Permissions::from_mode(0o777)).expect("our own");
        assert!(make_folder(folder.path()).is_err());
    }

    /// With a stand-in for Go, that copies the source instead of compiling it.
    #[test]
    fn a_program_is_built_once() {
        let folder = tempfile::tempdir().expect("a folder");
        let go = folder.path().join("go");
        let script = "#!/bin/sh\ncase $1 in version) echo go version go1.99.1 linux/amd64;; \
                      build) [ \"$GOPROXY$CGO_ENABLED\" = off0 ] && cp main.go \"$4\" && echo >> ../../../builds;; esac\n";
        fs::write(&go, script).expect("written");
        fs::set_permissions(&go, fs::Permissions::from_mode(0o755)).expect("our own");
        let cache = folder.path().join("cache");
        let program = build_with(&go, &cache).expect("built");
        assert_eq!(fs::read_to_string(&program).expect("kept"), SOURCE);
        assert_eq!(build_with(&go, &cache).expect("kept"), program);
        let builds = || {
            fs::read_to_string(folder.path().join("builds"))
                .expect("counted")
                .lines()
                .count()
        };
        assert_eq!(builds(), 1);
        fs::set_permissions(&program, fs::Permissions::from_mode(0o777)).expect("our own");
        build_with(&go, &cache).expect("built again");
        assert_eq!(builds(), 2, "what others could have changed is made anew");
    }

    #[test]
    fn a_build_that_fails_says_what_go_said() {
        let folder = tempfile::tempdir().expect("a folder");
        let go = folder.path().join("go");
        let script = "#!/bin/sh\n[ $1 = version ] && exit 0\necho no space left >&2\nexit 2\n";
        fs::write(&go, script).expect("written");
        fs::set_permissions(&go, fs::Permissions::from_mode(0o755)).expect("our own");
        let error = build_with(&go, &folder.path().join("cache"))
            .expect_err("it fails")
            .to_string();
        assert!(error.ends_with("no space left"), "{error}");
    }
}
