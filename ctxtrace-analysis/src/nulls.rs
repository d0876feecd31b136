//! The nulls of a result, each with its reason.

use super::result::Unavailable;

/// Collects the nulls and their reasons while the result is built.
#[derive(Default)]
pub(super) struct Nulls(Vec<Unavailable>);

impl Nulls {
    /// Records that the value at `path` is null, and why.
    pub(super) fn note(&mut self, path: &str, reason: &str) {
        self.0.push(Unavailable {
            path: path.to_owned(),
            reason: reason.to_owned(),
        });
    }

    /// Returns the recorded nulls.
    pub(super) fn into_entries(self) -> Vec<Unavailable> {
        self.0
    }

    /// Returns `value` unchanged. If it is `None`, records `path` and `reason`.
    pub(super) fn or<T>(&mut self, value: Option<T>, path: &str, reason: &str) -> Option<T> {
        if value.is_none() {
            self.note(path, reason);
        }
        value
    }
}
