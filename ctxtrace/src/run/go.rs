//! Having the Go program built by the user who called.

use std::ffi::OsString;
use std::os::unix::ffi::OsStringExt;
use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::Command;

use nix::unistd::User;

use crate::error::{Error, Result};
use crate::target::user::Invoker;

/// The Go program, built as `user`; `spec` is only passed on.
///
/// Under `sudo` that is another user than this process's. Everything that touches the user's folders happens in a process of theirs, which is this executable with the hidden
/// `workload --prepare`, so that root follows no path that somebody else may have laid out.
///
/// # Errors
///
/// If there is no Go on this machine, or if it cannot build the program.
pub(super) fn build_as(user: Option<&Invoker>, spec: &str) -> Result<PathBuf> {
    let this = std::env::current_exe().map_err(Error::system("finding this executable"))?;
    let mut command = Command::new(&this);
    command.args(["workload", "--prepare", "--spec", spec]);
    if let Some(user) = user {
        command.uid(user.uid.as_raw()).gid(user.gid.as_raw());
        // What sudo leaves of the environment is root's.
        let home = User::from_uid(user.uid).ok().flatten();
        command.env("HOME", home.map_or_else(|| "/nonexistent".into(), |user| user.dir));
    }
    let output = command.output().map_err(|source| Error::Launch {
        program: this,
        user: user.map(|user| user.uid.as_raw()),
        source,
    })?;
    if !output.status.success() {
        let text = String::from_utf8_lossy(&output.stderr);
        let text = text.trim();
        return Err(Error::Workload(match text.strip_prefix("ctxtrace: ") {
            Some(reason) => reason.to_owned(),
            None if text.is_empty() => "the Go program was not built: its build was interrupted".to_owned(),
            None => text.to_owned(),
        }));
    }
    let mut path = output.stdout;
    path.pop_if(|byte| *byte == b'\n');
    Ok(OsString::from_vec(path).into())
}
