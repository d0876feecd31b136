//! Identifying executed files on overlayfs and btrfs, where the device and inode numbers that the kernel has of a mapped file
//! differ from those of `stat`.
//!
//! The traced program is a copy of this executable, with a copy of the C library, so that the tests need no compiler and also run
//! on the other kernels.

use std::path::{Path, PathBuf};
use std::process::Command;

use ctxtrace_common::locator::HAS_TOKIO;
use ctxtrace_common::process::Image;
use ctxtrace_format::programs::LocatorChoice;
use tempfile::TempDir;

use crate::harness::{require_program, skip};
use crate::programs;
use crate::support::trace;
use ctxtrace::run::watch::RecordedRun;

pub(crate) const KERNEL_TESTS: &[(&str, fn())] = &[(
    "files_of_both_layers_of_an_overlay_are_known",
    files_of_both_layers_of_an_overlay_are_known,
)];

pub(crate) const TESTS: &[(&str, fn())] = &[(
    "files_on_btrfs_are_known_in_each_subvolume",
    files_on_btrfs_are_known_in_each_subvolume,
)];

/// A mounted file system, which is unmounted when the value is dropped.
struct Mounted(PathBuf);

impl Mounted {
    /// Mounts `source` at a folder. `options` is the text for `mount -o`.
    fn new(folder: &Path, kind: &str, options: &str, source: &Path) -> Self {
        std::fs::create_dir_all(folder).expect("the folder is created");
        let mount = Command::new("mount")
            .args(["-t", kind, "-o", options])
            .arg(source)
            .arg(folder)
            .status();
        assert!(
            mount.expect("mount starts").success(),
            "cannot mount {kind} at {}",
            folder.display()
        );
        Self(folder.to_owned())
    }
}

impl Drop for Mounted {
    fn drop(&mut self) {
        // A lazy unmount (`-l`) succeeds even if a failed test has left processes that use the folder.
        let _ = Command::new("umount").arg("-l").arg(&self.0).status();
    }
}

/// Skips the running test unless the kernel supports a file system.
fn require_file_system(name: &str) {
    let known = std::fs::read_to_string("/proc/filesystems").expect("/proc is readable");
    if !known.lines().any(|line| line.split_whitespace().last() == Some(name)) {
        skip(format!("this kernel does not support {name}"));
    }
}

/// Returns the path of the C library that this executable has loaded.
fn c_library() -> PathBuf {
    let maps = std::fs::read_to_string("/proc/self/maps").expect("/proc is readable");
    let mut paths = maps.lines().filter_map(|line| line.split_whitespace().nth(5));
    let path = paths.find(|path| path.ends_with("/libc.so.6"));
    PathBuf::from(path.expect("this executable is linked with glibc"))
}

const PROGRAM: &str = "sleeping-program";
const LIBRARY: &str = "libc.so.6";

/// Creates a folder and copies the program to be traced and its C library into it.
fn put_files(folder: &Path) {
    std::fs::create_dir_all(folder).expect("the folder is created");
    let this = std::env::current_exe().expect("the path of this executable");
    std::fs::copy(this, folder.join(PROGRAM)).expect("the file is copied");
    std::fs::copy(c_library(), folder.join(LIBRARY)).expect("the file is copied");
}

/// Traces the program of a folder. Checks that the program and its library are identified as these files, and that the functions
/// of the program have names.
fn assert_files_are_known(folder: &Path) {
    let (program, library) = (folder.join(PROGRAM), folder.join(LIBRARY));
    let libraries = folder.to_str().expect("a path in UTF-8");
    let environment = [(programs::VARIABLE, "sleeper"), ("LD_LIBRARY_PATH", libraries)];
    let RecordedRun { run, held, .. } = trace(&program, &environment, LocatorChoice::Auto);
    assert_eq!(run.exit.expect("the exit status is known").status, Some(0));
    let aggregates = &run.aggregates;
    let image = Image {
        tgid: run.launched.expect("the program was launched").pid,
        number: 1,
    };
    let known = aggregates.programs.get(image).expect("the program was examined");
    assert_eq!(known.path, program);
    assert_ne!(known.found.locator.flags & HAS_TOKIO, 0, "{:?}", known.found);
    for path in [&program, &library] {
        let mut mappings = aggregates.mappings.files_of(image);
        let mapping = mappings
            .find(|mapping| mapping.path == *path)
            .unwrap_or_else(|| panic!("no mapping of {}", path.display()));
        let file = held.of_mapping(mapping);
        assert!(file.is_ok(), "{}: {:?}", path.display(), file.map(|_| ()));
    }
    let stacks: Vec<String> = aggregates
        .stacks
        .keys()
        .filter_map(|&key| run.symbols.user(image, key))
        .flatten()
        .map(|frame| frame.name.to_string())
        .collect();
    assert!(stacks.iter().any(|name| name.contains("sleeper")), "{stacks:?}");
    assert!(!stacks.iter().any(|name| name.contains("replaced")), "{stacks:?}");
}

fn files_of_both_layers_of_an_overlay_are_known() {
    require_file_system("overlay");
    let folder = TempDir::new().expect("a temporary folder");
    let path = |name: &str| folder.path().join(name);
    // The temporary folder may itself be on an overlay, which cannot be the upper layer of another overlay.
    let _layers = Mounted::new(&path("layers"), "tmpfs", "size=1g", Path::new("none"));
    for name in ["layers/upper", "layers/work"] {
        std::fs::create_dir(path(name)).expect("the folder is created");
    }
    put_files(&path("layers/lower/below"));
    let options = format!(
        "lowerdir={},upperdir={},workdir={}",
        path("layers/lower").display(),
        path("layers/upper").display(),
        path("layers/work").display()
    );
    let merged = path("merged");
    let _overlay = Mounted::new(&merged, "overlay", &options, Path::new("none"));
    put_files(&merged.join("above"));
    assert!(path("layers/upper/above").join(PROGRAM).exists());
    for layer in ["below", "above"] {
        assert_files_are_known(&merged.join(layer));
    }
}

fn files_on_btrfs_are_known_in_each_subvolume() {
    require_file_system("btrfs");
    require_program("mkfs.btrfs", "btrfs-progs");
    let folder = TempDir::new().expect("a temporary folder");
    let image = folder.path().join("image");
    let file = std::fs::File::create(&image).expect("the file is created");
    file.set_len(1 << 30).expect("the size of the file is set");
    let made = Command::new("mkfs.btrfs")
        .arg("--quiet")
        .arg(&image)
        .output()
        .expect("the program starts");
    assert!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));
    let mounted = folder.path().join("mounted");
    let _btrfs = Mounted::new(&mounted, "btrfs", "loop", &image);
    // Each subvolume has its own device number and its own inode numbers, so inode numbers repeat.
    for subvolume in ["one", "two"] {
        let made = Command::new("btrfs")
            .args(["subvolume", "create"])
            .arg(mounted.join(subvolume))
            .stdout(std::process::Stdio::null())
            .status();
        assert!(made.expect("btrfs starts").success());
        put_files(&mounted.join(subvolume));
    }
    for subvolume in ["one", "two"] {
        assert_files_are_known(&mounted.join(subvolume));
    }
}
