//! Runs other programs, for xtask and for the chores that are crates of their own. Commands are printed before they run, and can be
//! run without the variables that cargo has set for xtask.

use std::env;
use std::ffi::OsStr;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode, Stdio};

use anyhow::{Context as _, Result, bail};
use nix::unistd::Uid;

/// Variables that choose a toolchain or change what it builds. cargo and rustup set some of them for xtask, and another toolchain
/// would fail with them.
const TOOLCHAIN_VARIABLES: [&str; 11] = [
    "CARGO",
    "CARGO_BUILD_RUSTFLAGS",
    "CARGO_ENCODED_RUSTFLAGS",
    "CARGO_INCREMENTAL",
    "LD_LIBRARY_PATH",
    "RUSTC",
    "RUSTC_WORKSPACE_WRAPPER",
    "RUSTC_WRAPPER",
    "RUSTDOC",
    "RUSTFLAGS",
    "RUSTUP_TOOLCHAIN",
];

/// Prefixes of variables that describe the package that cargo runs, or that alter a profile.
const PACKAGE_PREFIXES: [&str; 3] = ["CARGO_MANIFEST_", "CARGO_PKG_", "CARGO_PROFILE_"];

/// Returns a command without the variables of the toolchain that built and runs xtask.
pub fn clean(program: impl AsRef<OsStr>) -> Command {
    let mut command = Command::new(program);
    for (name, _) in env::vars_os().filter(|(name, _)| is_toolchain_variable(name)) {
        command.env_remove(name);
    }
    command
}

/// Returns whether a variable belongs to a toolchain or to the package that it builds.
fn is_toolchain_variable(name: &OsStr) -> bool {
    let name = name.to_string_lossy();
    let has_prefix = |prefix: &&str| name.starts_with(prefix);
    TOOLCHAIN_VARIABLES.contains(&name.as_ref()) || PACKAGE_PREFIXES.iter().any(has_prefix)
}

/// Returns a command for the cargo that runs xtask, which is the user's choice.
pub fn cargo() -> Command {
    Command::new(env::var_os("CARGO").unwrap_or_else(|| "cargo".into()))
}

/// Returns the folder in which cargo keeps what it downloads and installs.
pub fn cargo_home() -> Option<PathBuf> {
    let default = || env::home_dir().map(|home| home.join(".cargo"));
    env::var_os("CARGO_HOME").map(PathBuf::from).or_else(default)
}

/// Returns the folder of the workspace, which is the parent of the folder of the crate that runs and of this crate. Cargo's variable
/// is preferred, because it is right even if the folder was moved after the build.
pub fn root() -> PathBuf {
    let crate_folder =
        env::var_os("CARGO_MANIFEST_DIR").map_or_else(|| PathBuf::from(env!("CARGO_MANIFEST_DIR")), PathBuf::from);
    crate_folder.parent().map_or_else(PathBuf::new, Path::to_owned)
}

/// Returns whether this process runs as root.
pub fn is_root() -> bool {
    Uid::effective().is_root()
}

/// Returns a command that runs `program` as root: directly if this process is root, and otherwise with sudo.
pub fn as_root(program: impl AsRef<OsStr>) -> Command {
    if is_root() {
        return Command::new(program);
    }
    let mut command = Command::new("sudo");
    command.arg("--").arg(program);
    command
}

/// Prints a command with its arguments to standard error.
pub fn announce(command: &Command) {
    let words: Vec<_> = [command.get_program()]
        .into_iter()
        .chain(command.get_args())
        .map(OsStr::to_string_lossy)
        .collect();
    eprintln!("+ {}", words.join(" "));
}

/// Prints a command and runs it. Fails if the command fails.
pub fn run(command: &mut Command) -> Result<()> {
    announce(command);
    let status = command.status().with_context(|| failed_to_start(command))?;
    if !status.success() {
        bail!("{} failed: {status}", name(command));
    }
    Ok(())
}

/// Runs a command without printing it, and returns its standard output. Fails if the command fails.
pub fn output(command: &mut Command) -> Result<String> {
    let output = command
        .stdin(Stdio::null())
        .output()
        .with_context(|| failed_to_start(command))?;
    if !output.status.success() {
        let stderr = String::from_utf8_lossy(&output.stderr);
        bail!("{} failed: {}\n{stderr}", name(command), output.status);
    }
    String::from_utf8(output.stdout).with_context(|| format!("the output of {} is not UTF-8", name(command)))
}

/// Returns every file called `name` on `PATH`, and then in the `bin` folder of cargo's home.
pub fn programs(name: &str) -> Vec<PathBuf> {
    let path = env::var_os("PATH").unwrap_or_default();
    env::split_paths(&path)
        .chain(cargo_home().map(|home| home.join("bin")))
        .map(|folder| folder.join(name))
        .filter(|program| program.is_file())
        .collect()
}

/// Returns the exit status of a chore. Prints the error if the chore failed.
pub fn exit_code(done: Result<ExitCode>) -> ExitCode {
    match done {
        Ok(code) => code,
        Err(error) => {
            eprintln!("xtask: {error:#}");
            ExitCode::FAILURE
        }
    }
}

/// Returns the error message for a program that cannot be started.
fn failed_to_start(command: &Command) -> String {
    format!("cannot run {}", name(command))
}

/// Returns the program of a command, to name it in messages.
fn name(command: &Command) -> String {
    command.get_program().to_string_lossy().into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_clean_command_keeps_where_cargo_stores_things() {
        for kept in ["CARGO_HOME", "CARGO_TARGET_DIR", "PATH", "HTTPS_PROXY"] {
            assert!(!is_toolchain_variable(OsStr::new(kept)), "{kept}");
        }
        for dropped in ["CARGO_PKG_NAME", "RUSTUP_TOOLCHAIN", "RUSTFLAGS"] {
            assert!(is_toolchain_variable(OsStr::new(dropped)), "{dropped}");
        }
    }
}
