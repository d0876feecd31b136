//! `cargo xtask dist`: makes the release archive in `target/dist`, with checksums and a bill of materials.
//!
//! The archive and the bill are reproducible if the executables are: entries are sorted, have the owner 0, and have the time of
//! the commit (or `SOURCE_DATE_EPOCH`). The executables are reproducible with the same toolchain in the same folder.

use std::env;
use std::fs;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};

use anyhow::{Context as _, Result};
use cargo_metadata::{Metadata, MetadataCommand, Package};
use flate2::{Compression, GzBuilder};
use sha2::{Digest as _, Sha256};
use xtask_process as process;

mod sbom;

/// The released executables, which are those that the default features build.
const PROGRAMS: [&str; 2] = ["ctxtrace", "ctxtrace-workload-jemalloc"];
/// The documents in the archive.
const DOCUMENTS: [&str; 5] = [
    "CHANGELOG.md",
    "LICENSE-APACHE",
    "LICENSE-MIT",
    "README.md",
    "SECURITY.md",
];

/// A file of the archive.
struct ArchiveEntry {
    name: String,
    mode: u32,
    bytes: Vec<u8>,
}

fn main() -> ExitCode {
    process::exit_code(make().map(|()| ExitCode::SUCCESS))
}

/// Builds the executables, the man pages and the completions, and packs the archive.
fn make() -> Result<()> {
    let root = process::root();
    let metadata = metadata()?;
    let target = metadata.target_directory.as_std_path();
    let package = package(&metadata)?;
    let name = format!("ctxtrace-{}-x86_64-linux", package.version);
    let folder = target.join("dist");
    let epoch = epoch()?;

    let mut build = process::cargo();
    build
        .current_dir(&root)
        .args(["build", "--release", "--locked", "--package", "ctxtrace"]);
    process::run(&mut build)?;
    let manual = folder.join("manual");
    let _ = fs::remove_dir_all(&manual);
    let mut pages = process::cargo();
    pages
        .current_dir(&root)
        .args(["run", "--locked", "--package", "ctxtrace", "--example", "manual", "--"])
        .arg(&manual);
    process::run(&mut pages)?;

    let mut entries = Vec::new();
    for program in PROGRAMS {
        let stripped = folder.join(program);
        strip(&target.join("release").join(program), &stripped)?;
        entries.push(entry(program, 0o755, &stripped)?);
    }
    for document in DOCUMENTS {
        entries.push(entry(document, 0o644, &root.join(document))?);
    }
    for part in ["man", "completions"] {
        for file in fs::read_dir(manual.join(part))? {
            let path = file?.path();
            let of_file = path.file_name().unwrap_or_default().to_string_lossy();
            entries.push(entry(&format!("{part}/{of_file}"), 0o644, &path)?);
        }
    }
    let bill = sbom::render(&metadata, package)?;
    entries.push(ArchiveEntry {
        name: "sbom.cdx.json".to_owned(),
        mode: 0o644,
        bytes: bill.clone(),
    });
    let archive = pack(&name, entries, epoch)?;
    let (archive_name, bill_name) = (format!("{name}.tar.gz"), format!("{name}.cdx.json"));
    let mut sums = String::new();
    for (file, bytes) in [(&archive_name, &archive), (&bill_name, &bill)] {
        fs::write(folder.join(file), bytes)?;
        sums += &format!("{}  {file}\n", hex(&Sha256::digest(bytes)));
    }
    fs::write(folder.join("SHA256SUMS"), &sums)?;
    eprintln!("{sums}in {}", folder.display());
    Ok(())
}

/// Returns cargo's metadata of this workspace, with the dependencies on the platform of the archive.
fn metadata() -> Result<Metadata> {
    MetadataCommand::new()
        .manifest_path(process::root().join("Cargo.toml"))
        .other_options(["--locked", "--filter-platform", "x86_64-unknown-linux-gnu"].map(str::to_owned))
        .exec()
        .context("cargo cannot read the workspace")
}

/// Returns the package that is released.
fn package(metadata: &Metadata) -> Result<&Package> {
    metadata
        .workspace_packages()
        .into_iter()
        .find(|package| package.name.as_str() == "ctxtrace")
        .context("there is no package ctxtrace")
}

/// Returns the time of all files in the archive, in seconds since 1970: `SOURCE_DATE_EPOCH`, or the time of the commit.
fn epoch() -> Result<u64> {
    let text = match env::var("SOURCE_DATE_EPOCH") {
        Ok(text) => text,
        Err(_) => {
            process::output(
                Command::new("git")
                    .current_dir(process::root())
                    .args(["log", "-1", "--format=%ct"]),
            )?
        }
    };
    text.trim()
        .parse()
        .with_context(|| format!("{:?} is not a time in seconds since 1970", text.trim()))
}

/// Copies a program without its DWARF. The symbols stay, because ctxtrace needs them to find the probe's slots and the functions
/// of its workloads.
fn strip(from: &Path, to: &Path) -> Result<()> {
    fs::create_dir_all(to.parent().unwrap_or(to))?;
    process::run(Command::new("strip").arg("--strip-debug").arg("-o").arg(to).arg(from))
}

fn entry(name: &str, mode: u32, path: &Path) -> Result<ArchiveEntry> {
    Ok(ArchiveEntry {
        name: name.to_owned(),
        mode,
        bytes: fs::read(path).with_context(|| format!("cannot read {}", path.display()))?,
    })
}

/// Returns a `.tar.gz` archive with the entries in a folder of this name.
fn pack(folder: &str, mut entries: Vec<ArchiveEntry>, epoch: u64) -> Result<Vec<u8>> {
    entries.sort_by(|a, b| a.name.cmp(&b.name));
    let packed = GzBuilder::new().mtime(0).write(Vec::new(), Compression::best());
    let mut archive = tar::Builder::new(packed);
    for entry in &entries {
        let mut header = tar::Header::new_gnu();
        header.set_mode(entry.mode);
        header.set_size(entry.bytes.len() as u64);
        header.set_mtime(epoch);
        header.set_uid(0);
        header.set_gid(0);
        archive.append_data(
            &mut header,
            PathBuf::from(folder).join(&entry.name),
            entry.bytes.as_slice(),
        )?;
    }
    let mut packed = archive.into_inner()?;
    packed.flush()?;
    Ok(packed.finish()?)
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_archive_depends_on_its_contents_alone() {
        let entries = |names: [&str; 2]| {
            names
                .map(|name| ArchiveEntry {
                    name: name.to_owned(),
                    mode: 0o644,
                    bytes: name.as_bytes().to_vec(),
                })
                .into()
        };
        let one = pack("x-1", entries(["a", "b/c"]), 7).expect("the archive is packed");
        assert_eq!(
            one,
            pack("x-1", entries(["b/c", "a"]), 7).expect("the archive is packed")
        );
        assert_ne!(
            one,
            pack("x-1", entries(["a", "b/c"]), 8).expect("the archive is packed")
        );
        let mut archive = tar::Archive::new(flate2::read::GzDecoder::new(one.as_slice()));
        let paths: Vec<_> = archive
            .entries()
            .expect("a valid archive")
            .map(|entry| {
                let entry = entry.expect("a valid entry");
                entry.path().expect("a valid path").into_owned()
            })
            .collect();
        assert_eq!(paths, [PathBuf::from("x-1/a"), PathBuf::from("x-1/b/c")]);
    }
}
