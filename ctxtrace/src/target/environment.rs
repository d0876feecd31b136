//! The environment a program is started with: the invoking user's, also under `sudo`.
//!
//! `sudo` gives its command root's home, another `PATH` and little else of what the user has set. Yet the user's own
//! variables are known: they are what `sudo` itself was started with, and it is an ancestor of this process.

use std::collections::BTreeMap;
use std::ffi::{CString, OsStr, OsString};
use std::os::unix::ffi::{OsStrExt, OsStringExt};

use nix::unistd::User;

use super::procfs;
use super::user::Invoker;
use crate::error::{Error, Result};

/// What `sudo` sets for its command in place of the user's own (sudoers(5), "Command environment").
const SET_BY_SUDO: [&str; 7] = ["HOME", "LOGNAME", "MAIL", "PATH", "SHELL", "USER", "USERNAME"];
/// How many ancestors are looked at in search of `sudo`.
const ANCESTORS: usize = 32;

/// Names and values.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Environment(BTreeMap<OsString, OsString>);

impl Environment {
    /// What a program started for this user gets; the tracer's own environment if there is nobody to become.
    #[must_use]
    pub fn for_user(user: Option<&Invoker>) -> Self {
        let own = Self(std::env::vars_os().collect());
        match user {
            Some(user) => own.given_back(of_sudo().as_ref(), user),
            None => own,
        }
    }

    /// With one more variable, or another value of it.
    #[must_use]
    pub fn with(mut self, name: impl Into<OsString>, value: impl Into<OsString>) -> Self {
        self.0.insert(name.into(), value.into());
        self
    }

    /// One variable.
    #[must_use]
    pub fn get(&self, name: &str) -> Option<&OsStr> {
        self.0.get(OsStr::new(name)).map(OsString::as_os_str)
    }

    /// As `name=value`.
    pub(super) fn to_c(&self) -> Result<Vec<CString>> {
        let entry = |(name, value): (&OsString, &OsString)| {
            let mut entry = name.clone();
            entry.push("=");
            entry.push(value);
            CString::new(entry.as_bytes()).map_err(|_| Error::Usage(format!("{name:?} contains a NUL byte")))
        };
        self.0.iter().map(entry).collect()
    }

    /// Undoes what `sudo` has done: the user's variables come back, those it made go. What was set since, as by
    /// `sudo env NAME=value`, stays.
    fn given_back(mut self, before: Option<&Self>, user: &Invoker) -> Self {
        self.0.retain(|name, _| !name.as_bytes().starts_with(b"SUDO_"));
        match before {
            Some(before) => {
                self.0.retain(|name, _| !is_set_by_sudo(name));
                for (name, value) in &before.0 {
                    self.0.entry(name.clone()).or_insert_with(|| value.clone());
                }
            }
            // Not from an ancestor; so from the user database.
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

/// The environment that the nearest `sudo` among the ancestors was started with.
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

/// `/proc/PID/environ`: entries ended by NUL.
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
