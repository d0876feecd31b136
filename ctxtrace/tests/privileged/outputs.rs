//! Output files: their owner, which files they may replace, and what remains after a failure.

use std::fs;
use std::io::Read;
use std::os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt, chown, lchown, symlink};
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use nix::sys::stat::{Mode, umask};
use nix::unistd::{Pid, mkfifo};
use tempfile::TempDir;

use crate::support::{CTXTRACE, command, said, stderr, stdout, wait_for_workload, wait_until};

pub(crate) const TESTS: &[(&str, fn())] = &[
    (
        "standard_output_by_name_is_written_and_not_replaced",
        standard_output_by_name_is_written_and_not_replaced,
    ),
    ("descriptors_by_name_are_written", descriptors_by_name_are_written),
    ("a_pipe_of_the_user_is_written", a_pipe_of_the_user_is_written),
    (
        "a_pipe_that_is_swapped_with_a_device_is_refused",
        a_pipe_that_is_swapped_with_a_device_is_refused,
    ),
    (
        "tables_do_not_go_through_a_planted_link",
        tables_do_not_go_through_a_planted_link,
    ),
    (
        "under_sudo_only_the_users_files_are_replaced",
        under_sudo_only_the_users_files_are_replaced,
    ),
    ("outputs_are_the_users", outputs_are_the_users),
    (
        "a_pipe_of_another_user_is_refused_at_once",
        a_pipe_of_another_user_is_refused_at_once,
    ),
    (
        "a_capture_stays_in_the_folder_that_was_opened",
        a_capture_stays_in_the_folder_that_was_opened,
    ),
    (
        "a_run_that_does_not_begin_changes_nothing",
        a_run_that_does_not_begin_changes_nothing,
    ),
    (
        "a_killed_tracer_leaves_no_output_behind",
        a_killed_tracer_leaves_no_output_behind,
    ),
    (
        "an_early_signal_leaves_nothing_behind",
        an_early_signal_leaves_nothing_behind,
    ),
    ("the_input_is_never_an_output", the_input_is_never_an_output),
    (
        "ids_of_sudo_that_name_no_user_are_refused",
        ids_of_sudo_that_name_no_user_are_refused,
    ),
    (
        "a_file_size_limit_is_an_error_and_does_not_kill_ctxtrace",
        a_file_size_limit_is_an_error_and_does_not_kill_ctxtrace,
    ),
    ("every_output_that_fails_is_named", every_output_that_fails_is_named),
    (
        "a_closed_standard_error_does_not_change_the_status",
        a_closed_standard_error_does_not_change_the_status,
    ),
];

/// The id of the user who runs ctxtrace with sudo.
pub(crate) const USER: u32 = 65_534;
/// The id of another user, who is neither root nor [`USER`].
pub(crate) const OTHER_USER: u32 = 12_345;

/// Returns the path of a capture that has the data for all outputs of these tests.
pub(crate) fn capture() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/captures/v1-stacks.ctx")
}

/// Creates a folder in `/tmp` with this owner and mode.
pub(crate) fn folder(owner: u32, mode: u32) -> TempDir {
    let folder = tempfile::tempdir_in("/tmp").expect("a temporary folder");
    fs::set_permissions(folder.path(), fs::Permissions::from_mode(mode)).expect("the permissions are set");
    chown(folder.path(), Some(owner), Some(owner)).expect("the owner is set");
    folder
}

/// Returns `ctxtrace` with the variables that sudo sets when [`USER`] runs it as root.
pub(crate) fn under_sudo(line: &str) -> Command {
    let mut command = command(line);
    command
        .env("SUDO_UID", USER.to_string())
        .env("SUDO_GID", USER.to_string());
    command
}

/// Runs `ctxtrace report` on the capture with an option and its path.
pub(crate) fn report(command: impl FnOnce(&str) -> Command, option: &str, path: &Path) -> Output {
    let mut command = command("report --quiet");
    command.arg(capture()).arg(option).arg(path);
    command.output().expect("the program starts")
}

/// Runs a script in a folder, with the paths of ctxtrace and of the capture in `$CTXTRACE` and `$CAPTURE`.
fn script(folder: &Path, text: &str) -> Output {
    Command::new("bash")
        .args(["-c", text])
        .env("CTXTRACE", CTXTRACE)
        .env("CAPTURE", capture())
        .env_remove("SUDO_UID")
        .env_remove("SUDO_GID")
        .current_dir(folder)
        .stdin(Stdio::null())
        .output()
        .expect("bash is installed")
}

pub(crate) fn names(folder: &Path) -> Vec<String> {
    let entries = fs::read_dir(folder).expect("a readable folder").flatten();
    let mut names: Vec<String> = entries
        .map(|entry| entry.file_name().to_string_lossy().into_owned())
        .collect();
    names.sort();
    names
}

pub(crate) fn is_json(text: &[u8]) -> bool {
    serde_json::from_slice::<serde_json::Value>(text).is_ok()
}

fn succeeded(output: &Output) {
    assert_eq!(output.status.code(), Some(0), "{}", stderr(output));
}

fn standard_output_by_name_is_written_and_not_replaced() {
    // The script mounts its own /dev in a mount namespace, so the /dev of the machine stays unchanged.
    let text = "set -e
        mkdir dev; mount -t tmpfs none dev
        mknod -m 666 dev/null c 1 3; mknod -m 666 dev/urandom c 1 9
        ln -s /proc/self/fd dev/fd; ln -s fd/1 dev/stdout; ln -s /proc/self/fd/2 dev/stderr
        mount --bind dev /dev
        for ids in '-u SUDO_UID' 'SUDO_UID=65534 SUDO_GID=65534'; do
            rm -f out err
            env $ids $CTXTRACE report $CAPTURE --json /dev/stdout > out
            env $ids $CTXTRACE report $CAPTURE --quiet --html /dev/stderr 2> err
            [ -L /dev/stdout ] && [ -L /dev/stderr ] && [ -L /dev/fd ]
            grep -q '<html' err; cat out
            ! $CTXTRACE record --force -o /dev/stdout -- true > out 2> said
            grep -q 'a capture must be a regular file' said; [ -L /dev/stdout ]
        done";
    let folder = tempfile::tempdir().expect("a temporary folder");
    let output = Command::new("unshare")
        .args(["--mount", "bash", "-c", text])
        .env("CTXTRACE", CTXTRACE)
        .env("CAPTURE", capture())
        .current_dir(folder.path())
        .output()
        .expect("unshare is installed (Debian package util-linux)");
    succeeded(&output);
    let reports = serde_json::Deserializer::from_slice(&output.stdout).into_iter::<serde_json::Value>();
    let reports: Vec<_> = reports.collect();
    assert!(
        reports.len() == 2 && reports.iter().all(Result::is_ok),
        "standard output must be two JSON reports and nothing else"
    );
}

fn descriptors_by_name_are_written() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let output = script(
        folder.path(),
        "set -e
        $CTXTRACE report $CAPTURE --quiet --json /dev/fd/5 5> five
        echo before > four; $CTXTRACE report $CAPTURE --quiet --json /proc/self/fd/4 4>> four
        $CTXTRACE report $CAPTURE --quiet --json >(cat > piped); sleep 1
        ! $CTXTRACE report $CAPTURE --quiet --json /dev/fd/9",
    );
    succeeded(&output);
    let read = |name: &str| fs::read(folder.path().join(name)).expect("the file exists");
    assert!(is_json(&read("five")) && is_json(&read("piped")));
    let four = read("four");
    assert!(is_json(
        four.strip_prefix(b"before\n")
            .expect("the earlier content of the file stays")
    ));
    assert!(said(&output).contains("is not open for writing"), "{}", stderr(&output));
}

fn a_pipe_of_the_user_is_written() {
    for (owner, sudo) in [(0, false), (USER, true)] {
        let folder = folder(owner, 0o755);
        let pipe = folder.path().join("pipe");
        mkfifo(&pipe, Mode::from_bits_truncate(0o600)).expect("the FIFO is created");
        chown(&pipe, Some(owner), Some(owner)).expect("the owner is set");
        let reader = std::thread::spawn({
            let pipe = pipe.clone();
            move || fs::read(pipe)
        });
        let output = report(if sudo { under_sudo } else { command }, "--json", &pipe);
        succeeded(&output);
        let written = reader.join().expect("the thread ends without a panic");
        assert!(is_json(&written.expect("the pipe is readable")));
        assert!(
            fs::symlink_metadata(&pipe)
                .expect("the file exists")
                .file_type()
                .is_fifo()
        );
    }
}

/// A program that repeatedly swaps a FIFO of its user and a symbolic link to `/dev/full`, until it is killed or for 20 seconds.
const EXCHANGER: &str = r#"
#define _GNU_SOURCE
#include <fcntl.h>
#include <linux/fs.h>
#include <stdio.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>
int main(int argc, char **argv) {
    char bytes[65536];
    if (argc < 2 || chdir(argv[1]) || mkfifo("pipe", 0666) || chmod("pipe", 0666) || symlink("/dev/full", "link")) return 1;
    int reader = open("pipe", O_RDWR | O_NONBLOCK);
    puts("ready"); fflush(stdout);
    for (time_t end = time(0) + 20; time(0) < end;)
        for (int i = 0; i < 1000; i++) {
            syscall(SYS_renameat2, AT_FDCWD, "pipe", AT_FDCWD, "link", RENAME_EXCHANGE);
            if (i % 50 == 0) while (read(reader, bytes, sizeof bytes) > 0);
        }
    return 0;
}
"#;

fn a_pipe_that_is_swapped_with_a_device_is_refused() {
    const ATTEMPTS: usize = 60;
    let folder = folder(OTHER_USER, 0o755);
    let source = folder.path().join("exchanger.c");
    let program = folder.path().join("exchanger");
    fs::write(&source, EXCHANGER).expect("the file is written");
    let built = Command::new("cc")
        .arg("-O2")
        .arg("-o")
        .arg(&program)
        .arg(&source)
        .status();
    assert!(built.expect("a C compiler is installed").success());
    let mut exchanger = Command::new("setpriv")
        .args(["--reuid=12345", "--regid=12345", "--clear-groups"])
        .arg(&program)
        .arg(folder.path())
        .stdout(Stdio::piped())
        .spawn()
        .expect("setpriv is installed (Debian package util-linux)");
    let mut ready = [0; 6];
    let pipe = exchanger.stdout.as_mut().expect("the stream is piped");
    pipe.read_exact(&mut ready).expect("the program is ready");
    for _ in 0..ATTEMPTS {
        let output = report(under_sudo, "--json", &folder.path().join("pipe"));
        assert_eq!(output.status.code(), Some(1), "a file of another user was accepted");
        let said = said(&output);
        assert!(
            said.contains("user 12345"),
            "the output must be refused because of its owner, without opening it: {said}"
        );
    }
    exchanger.kill().expect("the program is alive or has ended");
    exchanger.wait().expect("the program ends");
}

fn tables_do_not_go_through_a_planted_link() {
    if cfg!(not(feature = "parquet")) {
        return;
    }
    let secret = folder(0, 0o700);
    // The link replaces the output folder itself, or a folder in it; it lies in a folder where all users may create links.
    for inner in [false, true] {
        let place = folder(OTHER_USER, 0o1777);
        let fleet = place.path().join("fleet");
        let link = if inner {
            fs::create_dir(&fleet).expect("the folder is created");
            chown(&fleet, Some(OTHER_USER), Some(OTHER_USER)).expect("the owner is set");
            fs::set_permissions(&fleet, fs::Permissions::from_mode(0o777)).expect("the permissions are set");
            fleet.join("host")
        } else {
            fleet.clone()
        };
        symlink(secret.path(), &link).expect("the link is created");
        lchown(&link, Some(OTHER_USER), Some(OTHER_USER)).expect("the owner is set");
        for command in [command as fn(&str) -> Command, under_sudo] {
            let output = report(command, "--parquet", &fleet);
            assert_eq!(output.status.code(), Some(1));
            assert!(said(&output).contains("it is not followed"), "{}", stderr(&output));
            assert_eq!(names(secret.path()), Vec::<String>::new());
        }
    }
    // Without a link the output is written and belongs to the user.
    let place = folder(USER, 0o755);
    succeeded(&report(under_sudo, "--parquet", &place.path().join("new/fleet")));
    let host = fs::metadata(place.path().join("new/fleet/host")).expect("the folder exists");
    assert_eq!((host.uid(), host.gid()), (USER, USER));
}

fn under_sudo_only_the_users_files_are_replaced() {
    // In a folder that the user may not write to, ctxtrace writes nothing, although it runs as root.
    let roots = folder(0, 0o755);
    let precious = roots.path().join("settings.conf");
    fs::write(&precious, "root's").expect("the file is written");
    fs::set_permissions(&precious, fs::Permissions::from_mode(0o600)).expect("the permissions are set");
    for name in ["settings.conf", "new.conf"] {
        let path = roots.path().join(name);
        let output = report(under_sudo, "--json", &path);
        assert_eq!(output.status.code(), Some(1));
        assert!(said(&output).contains("Permission denied"), "{}", stderr(&output));
        let mut run = under_sudo("run --mode thread --iterations 100 --force -o");
        let output = run.arg(&path).output().expect("the program starts");
        assert_eq!(output.status.code(), Some(1));
        assert!(said(&output).contains("Permission denied"), "{}", stderr(&output));
    }
    let unchanged = fs::metadata(&precious).expect("the file exists");
    assert_eq!((unchanged.uid(), unchanged.mode() & 0o777), (0, 0o600));
    assert_eq!(fs::read(&precious).expect("the file exists"), b"root's");
    assert_eq!(names(roots.path()), ["settings.conf"]);
    // A file of another user in a folder like /tmp is not replaced.
    let shared = folder(0, 0o1777);
    let theirs = shared.path().join("theirs.json");
    fs::write(&theirs, "theirs").expect("the file is written");
    chown(&theirs, Some(OTHER_USER), Some(OTHER_USER)).expect("the owner is set");
    let output = report(under_sudo, "--json", &theirs);
    assert!(said(&output).contains("a file of user 12345"), "{}", stderr(&output));
    assert_eq!(fs::read(&theirs).expect("the file exists"), b"theirs");
}

fn outputs_are_the_users() {
    let folder = folder(USER, 0o700);
    let path = folder.path().join("x.json");
    fs::write(&path, "old").expect("the file is written");
    let mask = umask(Mode::from_bits_truncate(0o027));
    let output = report(under_sudo, "--json", &path);
    umask(mask);
    succeeded(&output);
    let new = fs::metadata(&path).expect("the file exists");
    assert_eq!((new.uid(), new.gid(), new.mode() & 0o777), (USER, USER, 0o640));
    assert!(is_json(&fs::read(&path).expect("the file exists")));
    // The user may write to this folder only because of its group, `nogroup`, of which root is not a member.
    let groups = self::folder(OTHER_USER, 0o770);
    chown(groups.path(), None, Some(USER)).expect("the owner is set");
    succeeded(&report(under_sudo, "--json", &groups.path().join("x.json")));
}

fn a_pipe_of_another_user_is_refused_at_once() {
    let place = folder(0, 0o1777);
    let pipe = place.path().join("x.json");
    mkfifo(&pipe, Mode::from_bits_truncate(0o666)).expect("the FIFO is created");
    fs::set_permissions(&pipe, fs::Permissions::from_mode(0o666)).expect("the permissions are set");
    chown(&pipe, Some(OTHER_USER), Some(OTHER_USER)).expect("the owner is set");
    for command in [command as fn(&str) -> Command, under_sudo] {
        let mut child = command("report --quiet")
            .arg(capture())
            .arg("--json")
            .arg(&pipe)
            .stderr(Stdio::piped())
            .spawn()
            .expect("the program starts");
        // The pipe has no reader, so ctxtrace would wait forever if it opened it.
        wait_until("the pipe is refused", || child.try_wait().expect("a child").is_some());
        let output = child.wait_with_output().expect("the program ends");
        assert!(said(&output).contains("a FIFO of user 12345"), "{}", stderr(&output));
    }
}

fn a_capture_stays_in_the_folder_that_was_opened() {
    let secret = folder(0, 0o700);
    let place = folder(USER, 0o755);
    let (sub, old) = (place.path().join("sub"), place.path().join("old"));
    fs::create_dir(&sub).expect("the folder is created");
    chown(&sub, Some(USER), Some(USER)).expect("the owner is set");
    let mut run = under_sudo("run --mode process --iterations 300000 --level timeline --max-size 1MiB --quiet -o");
    let child = run.arg(sub.join("x.ctx")).spawn().expect("the program starts");
    wait_for_workload(&child);
    fs::rename(&sub, &old).expect("the file is moved");
    symlink(secret.path(), &sub).expect("the link is created");
    let output = child.wait_with_output().expect("the program ends");
    succeeded(&output);
    assert_eq!(names(secret.path()), Vec::<String>::new());
    assert_eq!(names(&old), ["x.ctx"]);
    let metadata = fs::metadata(old.join("x.ctx")).expect("the file exists");
    assert_eq!(metadata.uid(), USER);
    assert!(metadata.len() <= 1 << 20);
}

fn a_run_that_does_not_begin_changes_nothing() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let path = folder.path().join("monday.ctx");
    let not_executable = folder.path().join("not-executable");
    let fails = folder.path().join("no-interpreter");
    fs::write(&not_executable, "text").expect("the file is written");
    fs::write(&fails, "#!/nonexistent/interpreter\n").expect("the file is written");
    fs::set_permissions(&fails, fs::Permissions::from_mode(0o755)).expect("the permissions are set");
    let before = names(folder.path());
    for program in [Path::new("there-is-no-such-program"), &not_executable, &fails] {
        fs::write(&path, "the old one").expect("the file is written");
        let output = command("record --force --json new.json --html new.html -o monday.ctx --")
            .arg(program)
            .current_dir(folder.path())
            .output()
            .expect("the program starts");
        assert!(matches!(output.status.code(), Some(126 | 127)), "{}", stderr(&output));
        assert_eq!(fs::read(&path).expect("the file exists"), b"the old one");
        fs::remove_file(&path).expect("the file is removed");
        assert_eq!(names(folder.path()), before);
    }
}

/// Starts a run of several minutes that writes all outputs to a folder.
fn long_run(folder: &Path, line: &str) -> Child {
    let mut options = "--json x.json --html x.html --flamegraph x.svg --folded x.folded --pprof x.pb.gz".to_owned();
    if cfg!(feature = "parquet") {
        options += " --parquet fleet";
    }
    let line = format!("run --mode process --iterations 100000000 {options} {line}");
    let mut command = command(&line);
    command.current_dir(folder).stdout(Stdio::null()).stderr(Stdio::null());
    command.spawn().expect("the program starts")
}

fn a_killed_tracer_leaves_no_output_behind() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    fs::write(folder.path().join("x.json"), "old").expect("the file is written");
    let mut child = long_run(folder.path(), "-o x.ctx");
    wait_for_workload(&child);
    wait_until("the first state is saved", || folder.path().join("x.ctx").exists());
    child.kill().expect("the process is alive");
    child.wait().expect("the program ends");
    assert_eq!(names(folder.path()), ["x.ctx", "x.json"]);
    assert_eq!(fs::read(folder.path().join("x.json")).expect("the file exists"), b"old");
    let report = command("report --quiet --json -")
        .arg(folder.path().join("x.ctx"))
        .output();
    assert!(
        is_json(&report.expect("the program starts").stdout),
        "the capture is not readable"
    );
}

fn an_early_signal_leaves_nothing_behind() {
    for signal in [Signal::SIGINT, Signal::SIGTERM, Signal::SIGHUP, Signal::SIGQUIT] {
        for after_ms in [0, 5, 20, 60, 120] {
            let folder = tempfile::tempdir().expect("a temporary folder");
            let mut child = long_run(folder.path(), "-o x.ctx");
            std::thread::sleep(Duration::from_millis(after_ms));
            kill(Pid::from_raw(child.id() as i32), signal).expect("the signal is sent");
            let status = child.wait().expect("the program ends");
            let left = names(folder.path());
            let whole = left.iter().all(|name| !name.starts_with('.'));
            // Either the signal killed ctxtrace before it had written anything, or ctxtrace handled the signal and wrote its
            // outputs.
            let nothing = left.is_empty() || status.signal().is_none();
            assert!(whole && nothing, "{signal} after {after_ms} ms: {status}, {left:?}");
        }
    }
}

fn the_input_is_never_an_output() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let original = fs::read(capture()).expect("the file exists");
    let path = folder.path().join("x.ctx");
    fs::write(&path, &original).expect("the file is written");
    symlink("x.ctx", folder.path().join("link")).expect("the link is created");
    fs::hard_link(&path, folder.path().join("second")).expect("the link is created");
    let mut lines: Vec<String> = [
        "x.ctx",
        "./x.ctx",
        "link",
        "second",
        "../$(basename $PWD)/x.ctx",
        "/proc/self/cwd/x.ctx",
    ]
    .map(|output| format!("$CTXTRACE report x.ctx --quiet --json {output}"))
    .to_vec();
    lines.extend(
        [
            "report link --html x.ctx",
            "report /dev/stdin --quiet --folded x.ctx < x.ctx",
            "report x.ctx --json - >> x.ctx",
            "report x.ctx --json /dev/fd/7 7>> x.ctx",
            "compare x.ctx $CAPTURE --json x.ctx",
            "compare $CAPTURE x.ctx --markdown x.ctx",
            "doctor --json x.ctx -- ./x.ctx",
        ]
        .map(|line| format!("$CTXTRACE {line}")),
    );
    for line in lines {
        let output = script(folder.path(), &line);
        assert_eq!(output.status.code(), Some(1), "{line}: {}", stdout(&output));
        assert!(
            said(&output).contains("it is an input file of this command"),
            "{line}: {}",
            stderr(&output)
        );
        assert!(fs::read(&path).expect("the file exists") == original, "{line}");
    }
    // The recorded program is not overwritten either.
    let program = folder.path().join("program");
    fs::copy("/bin/true", &program).expect("the file is copied");
    let output = script(folder.path(), "$CTXTRACE record --force -o program -- ./program");
    assert_eq!(output.status.code(), Some(125), "{}", stderr(&output));
    assert_eq!(
        fs::read(&program).expect("the file exists"),
        fs::read("/bin/true").expect("the file exists")
    );
}

fn ids_of_sudo_that_name_no_user_are_refused() {
    let folder = folder(0, 0o755);
    for (uid, gid) in [
        (Some("65534"), None),
        (None, Some("65534")),
        (Some("daemon"), Some("65534")),
        (Some("65534"), Some("")),
        (Some("4294967295"), Some("65534")),
        (Some("65534"), Some("4294967295")),
    ] {
        for line in [
            "record -o x.ctx -- touch made-by-root",
            "run --mode thread --iterations 100 --json x.json",
            "doctor --json x.json",
        ] {
            let mut command = command(line);
            for (name, value) in [("SUDO_UID", uid), ("SUDO_GID", gid)] {
                if let Some(value) = value {
                    command.env(name, value);
                }
            }
            let output = command.current_dir(folder.path()).output().expect("the program starts");
            let status = if line.starts_with("record") { 125 } else { 1 };
            assert_eq!(output.status.code(), Some(status), "{line} {uid:?} {gid:?}");
            let said = said(&output);
            assert!(said.contains("SUDO_") && said.contains("set both"), "{said}");
            assert_eq!(names(folder.path()), Vec::<String>::new());
        }
    }
}

fn a_file_size_limit_is_an_error_and_does_not_kill_ctxtrace() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    fs::write(folder.path().join("x.json"), "old").expect("the file is written");
    for line in [
        "record -o x.ctx -- sh -c 'exit 7'",
        "record --json x.json -- sh -c 'exit 7'",
    ] {
        let output = script(folder.path(), &format!("ulimit -f 1; $CTXTRACE {line}"));
        assert_eq!(output.status.code(), Some(125), "{line}: {}", stderr(&output));
        assert!(said(&output).contains("File too large"), "{line}: {}", stderr(&output));
        assert_eq!(names(folder.path()), ["x.json"], "{line}");
        assert_eq!(fs::read(folder.path().join("x.json")).expect("the file exists"), b"old");
    }
    // The recorded command has the default action of SIGXFSZ, so the limit kills it as it would without ctxtrace.
    let output = script(
        folder.path(),
        "ulimit -f 1; $CTXTRACE record --quiet -- dd if=/dev/zero of=big bs=1M count=1",
    );
    assert_eq!(
        output.status.code(),
        Some(128 + Signal::SIGXFSZ as i32),
        "{}",
        stderr(&output)
    );
}

fn every_output_that_fails_is_named() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let output = script(
        folder.path(),
        "ulimit -f 5; $CTXTRACE run --mode task-pool --iterations 2000 -o x.ctx --json x.json --html x.html --folded small",
    );
    assert_eq!(output.status.code(), Some(1));
    for name in ["x.ctx", "x.json", "x.html"] {
        let sentence = format!("ctxtrace: cannot write {name}: File too large");
        assert!(stderr(&output).contains(&sentence), "{}", stderr(&output));
    }
    assert!(stdout(&output).contains("difference 0"), "the table is missing");
    let output = script(
        folder.path(),
        "ulimit -f 1; $CTXTRACE compare $CAPTURE $CAPTURE --json x.json --markdown x.md --flamegraph x.svg",
    );
    let failed = stderr(&output).matches("File too large").count();
    assert!(failed >= 2, "{}", stderr(&output));
}

fn a_closed_standard_error_does_not_change_the_status() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    for (command, status) in [("true", "0"), ("sh -c 'exit 7'", "7")] {
        let output = script(
            folder.path(),
            &format!("{{ sleep 0.2; $CTXTRACE record -- {command}; }} 2>&1 | true; echo ${{PIPESTATUS[0]}}"),
        );
        assert_eq!(stdout(&output).trim(), status, "{command}");
    }
    let output = script(folder.path(), "$CTXTRACE record -- true 2> /dev/full; echo $?");
    assert_eq!(
        stdout(&output).trim(),
        "125",
        "a table that cannot be written must be an error"
    );
}
