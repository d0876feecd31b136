//! Builds the programs that the tests of the tokio locator trace: a small program, built with several releases of tokio and in
//! several ways, and a server that is an example of a third-party crate.
//!
//! The small program, `ctxtrace/tests/privileged/programs/unmodified.rs`, knows nothing of ctxtrace. This module writes its
//! manifests below `target`, because cargo allows only one release of tokio in a workspace.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result};

use crate::process;

/// The name of the variable that passes the folder of the programs to the tests.
pub(crate) const VARIABLE: &str = "CTXTRACE_TOKIO_PROGRAMS";

/// A way to build the program.
struct Build {
    /// The name of the build. If it begins with `no-types`, the tests expect that tasks cannot be attributed.
    name: &'static str,
    /// The version of tokio.
    version: &'static str,
    /// The value of `debug` in the profile.
    debug: &'static str,
    /// Additional flags of rustc. Frame pointers are always enabled, because stacks show the types of futures only with them.
    flags: &'static str,
}

/// Releases of the last two years; for the newest one all ways to link an executable.
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

/// Returns the usual build: a position-independent executable with full debug information.
const fn pie(version: &'static str) -> Build {
    Build {
        name: "pie",
        version,
        debug: "2",
        flags: "",
    }
}

/// The crate, its version and its example for [`install_server`].
const SERVER: (&str, &str, &str) = ("tokio-tungstenite", "0.30.0", "echo-server");

/// The target triple. It is passed explicitly, so that the flags do not apply to build scripts.
const TARGET: &str = "x86_64-unknown-linux-gnu";

/// Builds all programs and returns the folder of the small ones.
pub(crate) fn build() -> Result<PathBuf> {
    let folder = process::root().join("target/tokio-releases");
    let source = process::root().join("ctxtrace/tests/privileged/programs/unmodified.rs");
    let programs = folder.join("programs");
    if programs.exists() {
        // Remove programs of earlier lists, because the tests trace all programs in the folder.
        fs::remove_dir_all(&programs).context("cannot remove the old programs")?;
    }
    fs::create_dir_all(&programs).context("cannot create a folder for the programs")?;
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

/// Installs an example of a third-party crate, which is a server. It is built without the probe, and with the type information
/// that the tokio locator reads.
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
