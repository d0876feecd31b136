//! Tests of outputs if an event occurs between two specific system calls of ctxtrace. A library that is loaded with `LD_PRELOAD`
//! replaces a function of the C library and causes the event, so that each test hits this moment every time.

use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use nix::sys::signal::Signal;
use tempfile::TempDir;

use crate::harness::{require_program, skip};
use crate::outputs::{OTHER_USER, USER, capture, folder, is_json, names, report, under_sudo};
use crate::support::{command, said, stderr};

pub(crate) const TESTS: &[(&str, fn())] = &[
    (
        "a_tracer_killed_while_it_replaces_a_file_leaves_one_whole_file",
        a_tracer_killed_while_it_replaces_a_file_leaves_one_whole_file,
    ),
    (
        "without_files_that_have_no_name_outputs_are_whole_and_nothing_is_left",
        without_files_that_have_no_name_outputs_are_whole_and_nothing_is_left,
    ),
    (
        "a_folder_of_tables_exchanged_for_a_link_gains_nothing",
        a_folder_of_tables_exchanged_for_a_link_gains_nothing,
    ),
];

/// A library that kills the process instead of renaming a file.
const KILLS_AT_RENAME: &str = "
#include <signal.h>
int renameat(int from, const char *name, int to, const char *new_name) { return raise(SIGKILL); }
int rename(const char *name, const char *new_name) { return raise(SIGKILL); }
";

/// A library that simulates a file system without `O_TMPFILE`.
const WITHOUT_TMPFILE: &str = "
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <stdarg.h>
#include <sys/syscall.h>
#include <unistd.h>
static int opened(int folder, const char *path, int flags, mode_t mode) {
    if ((flags & O_TMPFILE) == O_TMPFILE) return errno = EOPNOTSUPP, -1;
    return syscall(SYS_openat, folder, path, flags, mode);
}
int openat(int folder, const char *path, int flags, ...) {
    va_list rest;
    va_start(rest, flags);
    mode_t mode = flags & (O_CREAT | O_TMPFILE) ? va_arg(rest, mode_t) : 0;
    va_end(rest);
    return opened(folder, path, flags, mode);
}
int openat64(int folder, const char *path, int flags, ...) {
    va_list rest;
    va_start(rest, flags);
    mode_t mode = flags & (O_CREAT | O_TMPFILE) ? va_arg(rest, mode_t) : 0;
    va_end(rest);
    return opened(folder, path, flags, mode);
}
";

/// A library that acts as another user: after each `mkdirat`, it renames the new folder and creates a symbolic link in its place, to the
/// folder in the variable `LINKED`.
const EXCHANGES_FOLDERS: &str = r#"
#define _GNU_SOURCE
#include <fcntl.h>
#include <stdlib.h>
#include <sys/fsuid.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>
int mkdirat(int folder, const char *name, mode_t mode) {
    int made = syscall(SYS_mkdirat, folder, name, mode);
    int before = setfsuid(OTHER_USER);
    if (made == 0 && getenv("LINKED") && renameat(folder, name, folder, "moved") == 0) symlinkat(getenv("LINKED"), folder, name);
    setfsuid(before);
    return made;
}
"#;

/// A compiled library in a temporary folder.
struct PreloadedLibrary {
    _folder: TempDir,
    library: PathBuf,
}

impl PreloadedLibrary {
    fn build(source: &str) -> Self {
        require_program("cc", "gcc");
        let folder = tempfile::tempdir_in("/tmp").expect("a temporary folder");
        fs::set_permissions(folder.path(), fs::Permissions::from_mode(0o755)).expect("the permissions are set");
        let (file, library) = (folder.path().join("it.c"), folder.path().join("it.so"));
        fs::write(&file, source).expect("the file is written");
        let built = Command::new("cc")
            .args(["-O1", "-shared", "-fPIC", "-w", "-o"])
            .args([&library, &file])
            .status();
        assert!(built.expect("the program starts").success());
        Self {
            _folder: folder,
            library,
        }
    }

    /// Returns a command that runs ctxtrace with the library.
    fn command(&self, line: &str) -> Command {
        let mut command = command(line);
        command.env("LD_PRELOAD", &self.library);
        command
    }
}

/// Returns the options for all outputs but the capture, each with a path in the folder.
fn outputs(folder: &Path) -> Vec<(&'static str, PathBuf)> {
    let mut outputs: Vec<(&str, &str)> = vec![
        ("--json", "x.json"),
        ("--html", "x.html"),
        ("--flamegraph", "x.svg"),
        ("--folded", "x.folded"),
        ("--pprof", "x.pb.gz"),
    ];
    if cfg!(feature = "parquet") {
        outputs.push(("--parquet", "fleet"));
    }
    outputs
        .into_iter()
        .map(|(option, name)| (option, folder.join(name)))
        .collect()
}

fn a_tracer_killed_while_it_replaces_a_file_leaves_one_whole_file() {
    let interposed = PreloadedLibrary::build(KILLS_AT_RENAME);
    let place = tempfile::tempdir().expect("a temporary folder");
    let (json, html) = (place.path().join("x.json"), place.path().join("x.html"));
    for path in [&json, &html] {
        fs::write(path, "old").expect("the file is written");
    }
    let output = interposed
        .command("report --quiet")
        .arg(capture())
        .arg("--json")
        .arg(&json)
        .arg("--html")
        .arg(&html)
        .output()
        .expect("the program starts");
    assert_eq!(
        output.status.signal(),
        Some(Signal::SIGKILL as i32),
        "{}",
        stderr(&output)
    );
    for path in [&json, &html] {
        assert_eq!(fs::read(path).expect("the file exists"), b"old", "{}", path.display());
    }
    let left = names(place.path());
    let temporary: Vec<&String> = left.iter().filter(|name| name.starts_with(".ctxtrace-")).collect();
    assert_eq!((left.len(), temporary.len()), (3, 1), "{left:?}");
    let whole = fs::read(place.path().join(temporary[0])).expect("the file exists");
    let is_page = whole.trim_ascii_end().ends_with(b"</html>");
    assert!(
        is_json(&whole) || is_page,
        "{} bytes are not the whole output",
        whole.len()
    );
    // The file that remains does not affect the next report.
    let output = report(command, "--json", &json);
    assert_eq!(output.status.code(), Some(0), "{}", stderr(&output));
    assert!(is_json(&fs::read(&json).expect("the file exists")));
}

/// Writes every output and a capture twice, so that the second one replaces the first. Asserts that all are complete and that the folder
/// contains nothing else.
fn all_outputs_are_whole_in(place: &Path, ctxtrace: &dyn Fn(&str) -> Command) {
    let made = |output: &Output| assert_eq!(output.status.code(), Some(0), "{}", stderr(output));
    let mut expected = vec!["x.ctx".to_owned()];
    for (option, path) in outputs(place) {
        expected.push(path.file_name().expect("a name").to_string_lossy().into_owned());
        for _ in 0..2 {
            made(&report(ctxtrace, option, &path));
        }
    }
    for _ in 0..2 {
        let mut run = ctxtrace("run --mode thread --iterations 100 --quiet --force -o");
        made(&run.arg(place.join("x.ctx")).output().expect("the program starts"));
    }
    expected.sort();
    assert_eq!(names(place), expected);
    assert!(is_json(&fs::read(place.join("x.json")).expect("the file exists")));
    let read = command("report --quiet --json -").arg(place.join("x.ctx")).output();
    assert!(
        is_json(&read.expect("the program starts").stdout),
        "the capture can be read"
    );
    if cfg!(feature = "parquet") {
        let tables = names(&place.join("fleet"));
        assert!(tables.contains(&"host".to_owned()), "{tables:?}");
        for table in tables {
            let files = names(&place.join("fleet").join(&table));
            let is_table = |name: &String| name.ends_with(".parquet") && !name.starts_with('.');
            assert!(!files.is_empty() && files.iter().all(is_table), "{table}: {files:?}");
        }
    }
    // A report that fails does not change the old file.
    let before = fs::read(place.join("x.json")).expect("the file exists");
    let output = ctxtrace("report there-is-no-such.ctx --json")
        .arg(place.join("x.json"))
        .output()
        .expect("the program starts");
    assert_eq!(output.status.code(), Some(1));
    assert_eq!(names(place), expected);
    assert!(fs::read(place.join("x.json")).expect("the file exists") == before);
}

fn without_files_that_have_no_name_outputs_are_whole_and_nothing_is_left() {
    let interposed = PreloadedLibrary::build(WITHOUT_TMPFILE);
    let place = tempfile::tempdir().expect("a temporary folder");
    all_outputs_are_whole_in(place.path(), &|line| interposed.command(line));
    // The outputs are created with the rights of the user who ran sudo.
    let place = folder(USER, 0o755);
    let sudo = |line: &str| {
        let mut command = under_sudo(line);
        command.env("LD_PRELOAD", &interposed.library);
        command
    };
    for (option, path) in outputs(place.path()) {
        for _ in 0..2 {
            let output = report(sudo, option, &path);
            assert_eq!(output.status.code(), Some(0), "{}", stderr(&output));
        }
        assert_eq!(fs::metadata(&path).expect("the file exists").uid(), USER);
    }
    let left = names(place.path());
    assert!(!left.iter().any(|name| name.starts_with('.')), "{left:?}");
    // After `kill -9`, one file with a temporary name remains, as `docs/FAULTS.md` describes, and the old file is unchanged.
    let place = tempfile::tempdir().expect("a temporary folder");
    let kills = PreloadedLibrary::build(&format!("{WITHOUT_TMPFILE}\n{KILLS_AT_RENAME}"));
    let json = place.path().join("x.json");
    fs::write(&json, "old").expect("the file is written");
    let output = report(|line| kills.command(line), "--json", &json);
    assert_eq!(
        output.status.signal(),
        Some(Signal::SIGKILL as i32),
        "{}",
        stderr(&output)
    );
    assert_eq!(fs::read(&json).expect("the file exists"), b"old");
    let left = names(place.path());
    assert_eq!(left.len(), 2, "{left:?}");
    assert!(left[0].starts_with(".ctxtrace-"), "{left:?}");
    assert!(is_json(
        &fs::read(place.path().join(&left[0])).expect("the file exists")
    ));
}

fn a_folder_of_tables_exchanged_for_a_link_gains_nothing() {
    if cfg!(not(feature = "parquet")) {
        skip("this build is without the feature parquet");
    }
    let source = format!("#define OTHER_USER {OTHER_USER}\n{EXCHANGES_FOLDERS}");
    let interposed = PreloadedLibrary::build(&source);
    let secret = folder(0, 0o700);
    fs::write(secret.path().join("precious"), "root's").expect("the file is written");
    // For the user who ran sudo, and for root itself.
    for sudo in [true, false] {
        // The link replaces the given folder, or its parent folder, which is created first.
        for name in ["fleet", "new/fleet"] {
            let place = folder(if sudo { USER } else { 0 }, 0o777);
            let mut report = if sudo {
                under_sudo("report --quiet")
            } else {
                command("report --quiet")
            };
            let output = report
                .arg(capture())
                .arg("--parquet")
                .arg(place.path().join(name))
                .env("LD_PRELOAD", &interposed.library)
                .env("LINKED", secret.path())
                .output()
                .expect("the program starts");
            assert_eq!(output.status.code(), Some(1), "{}", stderr(&output));
            assert!(said(&output).contains("it is not followed"), "{}", stderr(&output));
            let first = place.path().join(name.split('/').next().expect("a word"));
            assert!(
                fs::symlink_metadata(&first).expect("the file exists").is_symlink(),
                "it was exchanged"
            );
            assert_eq!(names(secret.path()), ["precious"], "{name}");
            let owner = fs::metadata(secret.path()).expect("the file exists");
            assert_eq!((owner.uid(), owner.mode() & 0o777), (0, 0o700), "{name}");
        }
    }
    // Without the variable, the library changes nothing.
    let place = folder(USER, 0o755);
    let output = under_sudo("report --quiet")
        .arg(capture())
        .arg("--parquet")
        .arg(place.path().join("fleet"))
        .env("LD_PRELOAD", &interposed.library)
        .output()
        .expect("the program starts");
    assert_eq!(output.status.code(), Some(0), "{}", stderr(&output));
}
