//! What the tests of the tokio locator trace: one small program, built with several releases of tokio, in several ways; and a
//! server that is an example of somebody else's crate.
//!
//! The program knows nothing of ctxtrace. It is `ctxtrace/tests/privileged/programs/unmodified.rs`; its manifests are made
//! here, below `target`, because cargo allows one release of tokio in a workspace.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result};

use crate::process;

/// The variable that tells the tests where the programs are.
pub(crate) const VARIABLE: &str = "CTXTRACE_TOKIO_PROGRAMS";

/// A way to build the program.
struct Build {
    /// Its name; what begins with `no-types` cannot be attributed.
    name: &'static str,
    /// Of tokio.
    version: &'static str,
    /// What the profile says of debug information.
    debug: &'static str,
    /// For rustc, beside frame pointers, without which stacks would not tell the types of futures.
    flags: &'static str,
}

/// Releases of the last two years, and for the newest one the ways an executable can be linked.
const BUILDS: [Build; 10] = [
    pie("1.42.1"),
    pie("1.44.2"),
    pie("1.45.1"),
    pie("1.47.5"),
    pie("1.49.0"),
    pie("1.52.4"),
    pie("1.54.1"),
    Build {
        name: "non-pie",
        flags: "-C relocation-model=static",
        ..pie("1.54.1")
    },
    Build {
        name: "static-pie",
        flags: "-C target-feature=+crt-static",
        ..pie("1.54.1")
    },
    Build {
        name: "no-types",
        debug: "1",
        ..pie("1.54.1")
    },
];

/// The usual way: a position-independent executable with all types.
const fn pie(version: &'static str) -> Build {
    Build {
        name: "pie",
        version,
        debug: "2",
        flags: "",
    }
}

/// Crate, version and example of [`install_server`].
const SERVER: (&str, &str, &str) = ("tokio-tungstenite", "0.30.0", "echo-server");

/// The target is named, so that the flags are not for build scripts as well.
const TARGET: &str = "x86_64-unknown-linux-gnu";

/// Builds them all and returns the folder they are in.
pub(crate) fn build() -> Result<PathBuf> {
    let folder = process::root().join("target/tokio-releases");
    let source = process::root().join("ctxtrace/tests/privileged/programs/unmodified.rs");
    let programs = folder.join("programs");
    if programs.exists() {
        // One of an earlier list would be traced as well.
        fs::remove_dir_all(&programs).context("cannot remove the old programs")?;
    }
    fs::create_dir_all(&programs).context("cannot make a folder for the programs")?;
    for build in &BUILDS {
        let package = folder.join(format!("{}-{}", build.version, build.name));
        fs::create_dir_all(&package)?;
        let manifest = format!(
            "[package]\nname = \"unmodified\"\nversion = \"0.0.0\"\nedition = \"2024\"\n\n\
             [[bin]]\nname = \"unmodified\"\npath = {source:?}\n\n\
             [dependencies]\ntokio = {{ version = \"={}\", features = [\"rt-multi-thread\"] }}\n\n\
             [profile.release]\ndebug = {}\n\n[workspace]\n",
            build.version, build.debug
        );
        fs::write(package.join("Cargo.toml"), manifest)?;
        process::run(
            process::cargo()
                .current_dir(&package)
                .env("RUSTFLAGS", format!("-C force-frame-pointers=yes {}", build.flags))
                .args(["build", "--quiet", "--release", "--target", TARGET]),
        )?;
        let built = package.join("target").join(TARGET).join("release/unmodified");
        let program = programs.join(format!("{}-{}", build.name, build.version));
        fs::copy(&built, &program).with_context(|| format!("cannot copy {}", built.display()))?;
    }
    install_server(&folder)?;
    Ok(programs)
}

/// A server that somebody else has written: an example of a crate's own, with the type information that the tokio locator
/// reads, and nothing of ours.
fn install_server(folder: &Path) -> Result<()> {
    let (package, version, example) = SERVER;
    let mut install = process::cargo();
    install
        .args([
            "install",
            "--quiet",
            "--locked",
            "--force",
            package,
            "--version",
            version,
        ])
        .args(["--example", example, "--root"])
        .arg(folder.join("server"))
        .arg("--target-dir")
        .arg(folder.join("server-target"))
        .env("CARGO_PROFILE_RELEASE_DEBUG", "2");
    process::run(&mut install)
}
