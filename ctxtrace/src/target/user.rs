//! Who called: under `sudo`, root is needed for tracing only, and everything else is the invoking user's.

use std::ffi::CString;

use nix::unistd::{Gid, Uid, User, geteuid, getgrouplist};

/// A user to become: ids, and the groups they are in.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Invoker {
    /// User id.
    pub uid: Uid,
    /// Primary group.
    pub gid: Gid,
    /// All groups.
    pub groups: Vec<Gid>,
}

/// The user who called `sudo`, or `None` where nobody has to be become again: not root, no `sudo`, or root called it.
#[must_use]
pub fn invoker() -> Option<Invoker> {
    if !geteuid().is_root() {
        return None;
    }
    from_ids(
        std::env::var("SUDO_UID").ok()?.as_str(),
        std::env::var("SUDO_GID").ok()?.as_str(),
    )
}

fn from_ids(uid: &str, gid: &str) -> Option<Invoker> {
    let uid = Uid::from_raw(uid.parse().ok()?);
    let gid = Gid::from_raw(gid.parse().ok()?);
    if uid.is_root() {
        return None;
    }
    // A user without an entry in the user database is in no group but their own.
    let groups = User::from_uid(uid)
        .ok()
        .flatten()
        .and_then(|user| CString::new(user.name).ok())
        .and_then(|name| getgrouplist(&name, gid).ok())
        .unwrap_or_else(|| vec![gid]);
    Some(Invoker { uid, gid, groups })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_another_user_than_root_is_become() {
        assert_eq!(from_ids("0", "0"), None);
        assert_eq!(from_ids("nobody", "0"), None);
        assert_eq!(from_ids("", ""), None);
        let invoker = from_ids("4294967", "4294968").expect("a user without an entry");
        assert_eq!(invoker.groups, [Gid::from_raw(4_294_968)]);
    }
}
