//! Detects tokio in a program without symbols, by the strings that remain in it.
//!
//! A release build with `strip = true`, fat LTO, `opt-level = "z"` and `panic = "abort"` keeps the messages of panics and the
//! source file paths in them. The name of the worker threads, `tokio-rt-worker`, cannot be used, because short literals become
//! operands of instructions.

use memchr::memmem::{self, Finder};

use super::elf::Elf;

/// The beginning of the name of tokio's folder in a registry; the rest of the version follows.
const FOLDER: &[u8] = b"tokio-1.";
/// Panic messages of a program that contains the runtime (`runtime/context/runtime.rs`, `util/error.rs`).
const SENTENCES: [&[u8]; 2] = [
    b"Cannot start a runtime from within a runtime. This happens",
    b"must be called from the context of a Tokio 1.x runtime",
];
/// The maximum length of a version in bytes. A longer one is not recognized.
const MAX_VERSION_BYTES: usize = 40;

/// Whether these bytes contain strings of tokio's runtime.
pub(super) fn in_bytes(bytes: &[u8]) -> bool {
    // Only paths of the runtime count, because a program that uses only tokio's channels has no tasks.
    versions(bytes).any(|(_, rest)| rest.starts_with(b"/src/runtime/") || rest.starts_with(b"\\src\\runtime\\"))
        || memmem::find(bytes, b"/tokio/src/runtime/").is_some()
        || SENTENCES.iter().any(|sentence| memmem::find(bytes, sentence).is_some())
}

/// Returns the release of tokio in the source file paths of a program.
pub(super) fn version_in(elf: &Elf<'_>) -> Option<String> {
    elf.loaded().into_iter().find_map(version)
}

/// Returns the release of tokio in the first source file path in these bytes.
pub(super) fn version(bytes: &[u8]) -> Option<String> {
    let (version, _) = versions(bytes).find(|(_, rest)| rest.starts_with(b"/src/") || rest.starts_with(b"\\src\\"))?;
    str::from_utf8(version).ok().map(str::to_owned)
}

/// Returns the versions in all names of tokio's folder, each with the bytes that follow it.
fn versions(bytes: &[u8]) -> impl Iterator<Item = (&[u8], &[u8])> {
    let finder = Finder::new(FOLDER);
    let mut from = 0;
    std::iter::from_fn(move || {
        let at = from + finder.find(&bytes[from..])?;
        from = at + FOLDER.len();
        let rest = &bytes[at + b"tokio-".len()..];
        let is_inside = |&byte: &u8| byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'-' | b'+');
        let end = rest
            .iter()
            .take(MAX_VERSION_BYTES)
            .take_while(|byte| is_inside(byte))
            .count();
        Some(rest.split_at(end))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_path_of_the_runtime_is_a_sign_and_says_the_version() {
        let path = b"..\0/home/u/.cargo/registry/src/x/tokio-1.54.1/src/runtime/park.rs\0";
        assert!(in_bytes(path));
        assert_eq!(version(path).as_deref(), Some("1.54.1"));
        assert_eq!(
            version(b"/tokio-1.60.0-alpha.1/src/lib.rs").as_deref(),
            Some("1.60.0-alpha.1")
        );
        assert!(in_bytes(b"C:\\registry\\tokio-1.54.1\\src\\runtime\\park.rs"));
        assert!(in_bytes(b"/build/vendor/tokio/src/runtime/park.rs"));
    }

    #[test]
    fn channels_and_other_crates_are_none() {
        assert!(!in_bytes(b"/registry/tokio-1.54.1/src/sync/mpsc/chan.rs"));
        assert!(!in_bytes(b"/registry/tokio-util-0.7.1/src/runtime/x.rs tokio-1."));
        assert_eq!(version(b"tokio-1."), None);
        assert_eq!(version(b"see tokio-1.54.1"), None);
    }
}
