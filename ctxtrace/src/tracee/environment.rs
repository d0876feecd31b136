//! The environment that a program is started with, which is the invoking user's, also under `sudo`.
//!
//! `sudo` gives its command root's home, another `PATH`, and removes most of the variables that the user has set. The user's
//! own variables can still be read: they are the environment that `sudo` itself was started with, and `sudo` is an ancestor
//! of this process.

use std::collections::BTreeMap;
use std::ffi::{CString, OsStr, OsString};
use std::os::unix::ffi::{OsStrExt, OsStringExt};

use nix::unistd::User;

use super::procfs;
use super::user::Invoker;
use crate::error::{Error, Result};

/// The variables that `sudo` sets for its command instead of the user's (sudoers(5), "Command environment").
const SET_BY_SUDO: [&str; 7] = ["HOME", "LOGNAME", "MAIL", "PATH", "SHELL", "USER", "USERNAME"];
/// The number of ancestors that are searched for `sudo`; a `sudo` further up is not found.
const ANCESTORS: usize = 32;

/// The names and values of environment variables.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Environment(BTreeMap<OsString, OsString>);

impl Environment {
    /// Returns the environment for a program that is started as this user; the tracer's own environment if `user` is `None`.
    #[must_use]
    pub fn for_user(user: Option<&Invoker>) -> Self {
        let own = Self(std::env::vars_os().collect());
        match user {
            Some(user) => own.given_back(of_sudo().as_ref(), user),
            None => own,
        }
    }

    /// Returns this environment with a variable added or replaced.
    #[must_use]
    pub fn with(mut self, name: impl Into<OsString>, value: impl Into<OsString>) -> Self {
        self.0.insert(name.into(), value.into());
        self
    }

    /// Returns the value of a variable.
    #[must_use]
    pub fn get(&self, name: &str) -> Option<&OsStr> {
        self.0.get(OsStr::new(name)).map(OsString::as_os_str)
    }

    /// Returns the variables as C strings of the form `name=value`.
    pub(super) fn to_c(&self) -> Result<Vec<CString>> {
        let entry = |(name, value): (&OsString, &OsString)| {
            let mut entry = name.clone();
            entry.push("=");
            entry.push(value);
            CString::new(entry.as_bytes()).map_err(|_| Error::Usage(format!("{name:?} contains a NUL byte")))
        };
        self.0.iter().map(entry).collect()
    }

    /// Reverts the changes that `sudo` made: restores the user's variables and removes those that `sudo` added. Variables that
    /// were set after that, for example by `sudo env NAME=value`, are kept.
    fn given_back(mut self, before: Option<&Self>, user: &Invoker) -> Self {
        self.0.retain(|name, _| !name.as_bytes().starts_with(b"SUDO_"));
        match before {
            Some(before) => {
                self.0.retain(|name, _| !is_set_by_sudo(name));
                for (name, value) in &before.0 {
                    self.0.entry(name.clone()).or_insert_with(|| value.clone());
                }
            }
            // No ancestor is `sudo`, so the values come from the user database.
            None => {
                let entry = User::from_uid(user.uid).ok().flatten();
                for (name, value) in entry.into_iter().flat_map(login) {
                    self.0.insert(name.into(), value);
                }
            }
        }
        self
    }
}

fn is_set_by_sudo(name: &OsStr) -> bool {
    SET_BY_SUDO.iter().any(|set| OsStr::new(set) == name)
}

fn login(user: User) -> [(&'static str, OsString); 4] {
    [
        ("HOME", user.dir.into()),
        ("LOGNAME", user.name.clone().into()),
        ("USER", user.name.into()),
        ("SHELL", user.shell.into()),
    ]
}

/// Returns the environment that the nearest `sudo` among the ancestors was started with.
fn of_sudo() -> Option<Environment> {
    let mut process = std::process::id();
    for _ in 0..ANCESTORS {
        process = procfs::stat(process).ok()??.parent;
        if procfs::stat(process).ok()??.name == "sudo" {
            let bytes = std::fs::read(format!("/proc/{process}/environ")).ok()?;
            return Some(parse(&bytes));
        }
    }
    None
}

/// Parses the contents of `/proc/PID/environ`, whose entries end with a NUL byte.
fn parse(bytes: &[u8]) -> Environment {
    let entries = bytes.split(|&byte| byte == 0).filter_map(|entry| {
        let equals = entry.iter().position(|&byte| byte == b'=')?;
        let text = |bytes: &[u8]| OsString::from_vec(bytes.to_vec());
        (equals > 0).then(|| (text(&entry[..equals]), text(&entry[equals + 1..])))
    });
    Environment(entries.collect())
}

#[cfg(test)]
mod tests {
    use super::*;
    use nix::unistd::{Gid, Uid};

    fn environment(entries: &str) -> Environment {
        parse(entries.replace(' ', "\0").as_bytes())
    }

    const USER: fn() -> Invoker = || Invoker {
        uid: Uid::from_raw(4_294_967),
        gid: Gid::from_raw(4_294_967),
        groups: Vec::new(),
    };

    #[test]
    fn what_sudo_changed_is_changed_back() {
        let ours = environment("HOME=/root PATH=/sbin TERM=xterm SUDO_UID=1000 USER=root RUST_LOG=debug");
        let before = environment("HOME=/home/ann PATH=/home/ann/bin:/bin TERM=xterm EDITOR=vi USER=ann RUST_LOG=warn");
        assert_eq!(
            ours.given_back(Some(&before), &USER()),
            environment("HOME=/home/ann PATH=/home/ann/bin:/bin TERM=xterm EDITOR=vi USER=ann RUST_LOG=debug")
        );
    }

    #[test]
    fn where_sudo_is_not_found_the_rest_stays() {
        let ours = environment("PATH=/sbin SUDO_COMMAND=x A=1");
        assert_eq!(ours.given_back(None, &USER()), environment("PATH=/sbin A=1"));
    }

    #[test]
    fn what_is_no_entry_is_left_out() {
        assert_eq!(environment("A=1 =x B C=a=b"), environment("A=1 C=a=b"));
        assert_eq!(environment("A=1").get("A"), Some(OsStr::new("1")));
    }

    #[test]
    fn this_process_has_no_sudo_above_it_or_one_with_variables() {
        assert!(of_sudo().is_none_or(|environment| !environment.0.is_empty()));
    }
}
