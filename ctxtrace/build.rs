//! Fails the build if the committed BPF object was not built from the sources in this checkout.
//!
//! The object is committed so that a user needs no BPF toolchain. `build/stamp.rs` describes the check.

use std::env;
use std::fs;
use std::path::{Path, PathBuf};

use stamp::{LOCK_FILE, MANIFEST, OBJECT, SOURCES, STAMP, Stamp, StampError};

#[path = "build/stamp.rs"]
mod stamp;

fn main() {
    let crate_folder = PathBuf::from(env::var_os("CARGO_MANIFEST_DIR").unwrap_or_default());
    let workspace = checkout(&crate_folder);
    watch(workspace.as_deref());
    // `cargo::error` fails the build with only this sentence; a panic would print it within a backtrace.
    if let Err(sentence) = check(&crate_folder, workspace.as_deref()) {
        println!("cargo::error={sentence}");
    }
}

/// Returns the workspace folder if this is a checkout. A published crate contains the object but not its sources.
fn checkout(crate_folder: &Path) -> Option<PathBuf> {
    let workspace = crate_folder.parent()?;
    let sources = workspace.join("ctxtrace-ebpf/src");
    sources.is_dir().then(|| workspace.to_owned())
}

/// Prints the `rerun-if-changed` lines for cargo, one for each file or folder that the check reads.
fn watch(workspace: Option<&Path>) {
    for file in ["build.rs", "build/stamp.rs", OBJECT, STAMP] {
        println!("cargo::rerun-if-changed={file}");
    }
    let Some(workspace) = workspace else { return };
    for source in SOURCES.iter().chain(&[MANIFEST, LOCK_FILE]) {
        println!("cargo::rerun-if-changed={}", workspace.join(source).display());
    }
}

/// Compares the stamp with the object and, in a checkout, with the sources. The error is the sentence to print.
fn check(crate_folder: &Path, workspace: Option<&Path>) -> Result<(), String> {
    let rebuild = |error: StampError| format!("the BPF object: {error}: run `cargo xtask build-ebpf`");
    let text = stamp::read_text(&crate_folder.join(STAMP)).map_err(rebuild)?;
    let stamp = Stamp::parse(&text).map_err(rebuild)?;
    if let Some(workspace) = workspace
        && stamp::hash_sources(workspace).map_err(rebuild)? != stamp.sources
    {
        return Err("the BPF object in ctxtrace/bpf was not built from these sources: \
             run `cargo xtask build-ebpf`"
            .to_owned());
    }
    let path = crate_folder.join(OBJECT);
    let object = fs::read(&path).map_err(|error| rebuild(StampError::Read(path, error)))?;
    if stamp::hash_bytes(&object) != stamp.object {
        return Err(format!(
            "{OBJECT} is not the file that {STAMP} describes: \
             restore both, or run `cargo xtask build-ebpf`"
        ));
    }
    Ok(())
}
