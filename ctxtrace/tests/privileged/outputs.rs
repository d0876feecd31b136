//! Outputs: as whom they are made, what they may replace, and what is left when something goes wrong.

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
    ("a_pipe_of_ones_own_is_written", a_pipe_of_ones_own_is_written),
    (
        "a_pipe_that_is_exchanged_for_a_device_gains_nothing",
        a_pipe_that_is_exchanged_for_a_device_gains_nothing,
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
        "somebody_elses_pipe_is_refused_at_once",
        somebody_elses_pipe_is_refused_at_once,
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
        "a_limit_of_file_sizes_is_an_error_and_no_death",
        a_limit_of_file_sizes_is_an_error_and_no_death,
    ),
    ("every_output_that_fails_is_named", every_output_that_fails_is_named),
    (
        "a_closed_standard_error_does_not_change_the_status",
        a_closed_standard_error_does_not_change_the_status,
    ),
];

/// The user for whom root is asked.
const USER: u32 = 65_534;
/// A third one.
const SOMEBODY: u32 = 12_345;

/// A capture of which anything can be reported.
fn capture() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/captures/v1-stacks.ctx")
}

/// A folder that anybody can reach, of this owner and with these rights.
fn folder(owner: u32, mode: u32) -> TempDir {
    let folder = tempfile::tempdir_in("/tmp").expect("a folder");
    fs::set_permissions(folder.path(), fs::Permissions::from_mode(mode)).expect("allowed");
    chown(folder.path(), Some(owner), Some(owner)).expect("given away");
    folder
}

/// `ctxtrace` as root for the user, as sudo starts it.
fn under_sudo(line: &str) -> Command {
    let mut command = command(line);
    command
        .env("SUDO_UID", USER.to_string())
        .env("SUDO_GID", USER.to_string());
    command
}

/// `ctxtrace report` of a capture with one more option.
fn report(command: impl FnOnce(&str) -> Command, option: &str, path: &Path) -> Output {
    let mut command = command("report --quiet");
    command.arg(capture()).arg(option).arg(path);
    command.output().expect("started")
}

/// Runs a script with `$CTXTRACE` and `$CAPTURE`, in a folder.
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

fn names(folder: &Path) -> Vec<String> {
    let entries = fs::read_dir(folder).expect("a folder").flatten();
    let mut names: Vec<String> = entries
        .map(|entry| entry.file_name().to_string_lossy().into_owned())
        .collect();
    names.sort();
    names
}

fn is_json(text: &[u8]) -> bool {
    serde_json::from_slice::<serde_json::Value>(text).is_ok()
}

fn succeeded(output: &Output) {
    assert_eq!(output.status.code(), Some(0), "{}", stderr(output));
}

fn standard_output_by_name_is_written_and_not_replaced() {
    // The machine's own /dev is not at stake: this one is in a mount namespace.
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
            grep -q 'a capture needs a regular file' said; [ -L /dev/stdout ]
        done";
    let folder = tempfile::tempdir().expect("a folder");
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
        "nothing but JSON, twice"
    );
}

fn descriptors_by_name_are_written() {
    let folder = tempfile::tempdir().expect("a folder");
    let output = script(
        folder.path(),
        "set -e
        $CTXTRACE report $CAPTURE --quiet --json /dev/fd/5 5> five
        echo before > four; $CTXTRACE report $CAPTURE --quiet --json /proc/self/fd/4 4>> four
        $CTXTRACE report $CAPTURE --quiet --json >(cat > piped); sleep 1
        ! $CTXTRACE report $CAPTURE --quiet --json /dev/fd/9",
    );
    succeeded(&output);
    let read = |name: &str| fs::read(folder.path().join(name)).expect("written");
    assert!(is_json(&read("five")) && is_json(&read("piped")));
    let four = read("four");
    assert!(is_json(four.strip_prefix(b"before\n").expect("what was there stays")));
    assert!(said(&output).contains("is not open for writing"), "{}", stderr(&output));
}

fn a_pipe_of_ones_own_is_written() {
    for (owner, sudo) in [(0, false), (USER, true)] {
        let folder = folder(owner, 0o755);
        let pipe = folder.path().join("pipe");
        mkfifo(&pipe, Mode::from_bits_truncate(0o600)).expect("made");
        chown(&pipe, Some(owner), Some(owner)).expect("given away");
        let reader = std::thread::spawn({
            let pipe = pipe.clone();
            move || fs::read(pipe)
        });
        let output = report(if sudo { under_sudo } else { command }, "--json", &pipe);
        succeeded(&output);
        assert!(is_json(&reader.join().expect("no panic").expect("read")));
        assert!(fs::symlink_metadata(&pipe).expect("there").file_type().is_fifo());
    }
}

/// Exchanges a pipe of the user's who runs it for a link to `/dev/full`, and back, until it is killed, or for 20 seconds.
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

fn a_pipe_that_is_exchanged_for_a_device_gains_nothing() {
    const ATTEMPTS: usize = 60;
    let folder = folder(SOMEBODY, 0o755);
    let source = folder.path().join("exchanger.c");
    let program = folder.path().join("exchanger");
    fs::write(&source, EXCHANGER).expect("written");
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
    let pipe = exchanger.stdout.as_mut().expect("piped");
    pipe.read_exact(&mut ready).expect("it begins");
    for _ in 0..ATTEMPTS {
        let output = report(under_sudo, "--json", &folder.path().join("pipe"));
        assert_eq!(output.status.code(), Some(1), "neither of the two is the user's");
        let said = said(&output);
        assert!(
            said.contains("user 12345"),
            "refused for what it is, and not opened: {said}"
        );
    }
    exchanger.kill().expect("alive, or ended by itself");
    exchanger.wait().expect("ended");
}

fn tables_do_not_go_through_a_planted_link() {
    if cfg!(not(feature = "parquet")) {
        return;
    }
    let secret = folder(0, 0o700);
    // The folder itself, and a folder in it, in a place where anybody makes links.
    for inner in [false, true] {
        let place = folder(SOMEBODY, 0o1777);
        let fleet = place.path().join("fleet");
        let link = if inner {
            fs::create_dir(&fleet).expect("made");
            chown(&fleet, Some(SOMEBODY), Some(SOMEBODY)).expect("given away");
            fs::set_permissions(&fleet, fs::Permissions::from_mode(0o777)).expect("allowed");
            fleet.join("host")
        } else {
            fleet.clone()
        };
        symlink(secret.path(), &link).expect("planted");
        lchown(&link, Some(SOMEBODY), Some(SOMEBODY)).expect("given away");
        for command in [command as fn(&str) -> Command, under_sudo] {
            let output = report(command, "--parquet", &fleet);
            assert_eq!(output.status.code(), Some(1));
            assert!(said(&output).contains("it is not followed"), "{}", stderr(&output));
            assert_eq!(names(secret.path()), Vec::<String>::new());
        }
    }
    // Without a link, it is the user's.
    let place = folder(USER, 0o755);
    succeeded(&report(under_sudo, "--parquet", &place.path().join("new/fleet")));
    let host = fs::metadata(place.path().join("new/fleet/host")).expect("made");
    assert_eq!((host.uid(), host.gid()), (USER, USER));
}

fn under_sudo_only_the_users_files_are_replaced() {
    // Where the user may write nothing, nothing is written.
    let roots = folder(0, 0o755);
    let precious = roots.path().join("settings.conf");
    fs::write(&precious, "root's").expect("written");
    fs::set_permissions(&precious, fs::Permissions::from_mode(0o600)).expect("allowed");
    for name in ["settings.conf", "new.conf"] {
        let path = roots.path().join(name);
        let output = report(under_sudo, "--json", &path);
        assert_eq!(output.status.code(), Some(1));
        assert!(said(&output).contains("Permission denied"), "{}", stderr(&output));
        let mut run = under_sudo("run --mode thread --iterations 100 --force -o");
        let output = run.arg(&path).output().expect("started");
        assert_eq!(output.status.code(), Some(1));
        assert!(said(&output).contains("Permission denied"), "{}", stderr(&output));
    }
    let unchanged = fs::metadata(&precious).expect("there");
    assert_eq!((unchanged.uid(), unchanged.mode() & 0o777), (0, 0o600));
    assert_eq!(fs::read(&precious).expect("there"), b"root's");
    assert_eq!(names(roots.path()), ["settings.conf"]);
    // Nor a third user's file in a folder like /tmp.
    let shared = folder(0, 0o1777);
    let theirs = shared.path().join("theirs.json");
    fs::write(&theirs, "theirs").expect("written");
    chown(&theirs, Some(SOMEBODY), Some(SOMEBODY)).expect("given away");
    let output = report(under_sudo, "--json", &theirs);
    assert!(said(&output).contains("a file of user 12345"), "{}", stderr(&output));
    assert_eq!(fs::read(&theirs).expect("there"), b"theirs");
}

fn outputs_are_the_users() {
    let folder = folder(USER, 0o700);
    let path = folder.path().join("x.json");
    fs::write(&path, "old").expect("written");
    let mask = umask(Mode::from_bits_truncate(0o027));
    let output = report(under_sudo, "--json", &path);
    umask(mask);
    succeeded(&output);
    let new = fs::metadata(&path).expect("there");
    assert_eq!((new.uid(), new.gid(), new.mode() & 0o777), (USER, USER, 0o640));
    assert!(is_json(&fs::read(&path).expect("there")));
    // A folder that is the user's because of a group that root is not in: `nogroup` has no other member.
    let groups = self::folder(SOMEBODY, 0o770);
    chown(groups.path(), None, Some(USER)).expect("given away");
    succeeded(&report(under_sudo, "--json", &groups.path().join("x.json")));
}

fn somebody_elses_pipe_is_refused_at_once() {
    let place = folder(0, 0o1777);
    let pipe = place.path().join("x.json");
    mkfifo(&pipe, Mode::from_bits_truncate(0o666)).expect("made");
    fs::set_permissions(&pipe, fs::Permissions::from_mode(0o666)).expect("allowed");
    chown(&pipe, Some(SOMEBODY), Some(SOMEBODY)).expect("given away");
    for command in [command as fn(&str) -> Command, under_sudo] {
        let mut child = command("report --quiet")
            .arg(capture())
            .arg("--json")
            .arg(&pipe)
            .stderr(Stdio::piped())
            .spawn()
            .expect("started");
        // Nobody reads from it: one that opens it waits.
        wait_until("it is refused", || child.try_wait().expect("a child").is_some());
        let output = child.wait_with_output().expect("ended");
        assert!(said(&output).contains("a FIFO of user 12345"), "{}", stderr(&output));
    }
}

fn a_capture_stays_in_the_folder_that_was_opened() {
    let secret = folder(0, 0o700);
    let place = folder(USER, 0o755);
    let (sub, old) = (place.path().join("sub"), place.path().join("old"));
    fs::create_dir(&sub).expect("made");
    chown(&sub, Some(USER), Some(USER)).expect("given away");
    let mut run = under_sudo("run --mode process --iterations 300000 --level timeline --max-size 1MiB --quiet -o");
    let child = run.arg(sub.join("x.ctx")).spawn().expect("started");
    wait_for_workload(&child);
    fs::rename(&sub, &old).expect("moved");
    symlink(secret.path(), &sub).expect("planted");
    let output = child.wait_with_output().expect("ended");
    succeeded(&output);
    assert_eq!(names(secret.path()), Vec::<String>::new());
    assert_eq!(names(&old), ["x.ctx"]);
    let metadata = fs::metadata(old.join("x.ctx")).expect("there");
    assert_eq!(metadata.uid(), USER);
    assert!(metadata.len() <= 1 << 20);
}

fn a_run_that_does_not_begin_changes_nothing() {
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("monday.ctx");
    let not_executable = folder.path().join("not-executable");
    let fails = folder.path().join("no-interpreter");
    fs::write(&not_executable, "text").expect("written");
    fs::write(&fails, "#!/nonexistent/interpreter\n").expect("written");
    fs::set_permissions(&fails, fs::Permissions::from_mode(0o755)).expect("allowed");
    let before = names(folder.path());
    for program in [Path::new("there-is-no-such-program"), &not_executable, &fails] {
        fs::write(&path, "the old one").expect("written");
        let output = command("record --force --json new.json --html new.html -o monday.ctx --")
            .arg(program)
            .current_dir(folder.path())
            .output()
            .expect("started");
        assert!(matches!(output.status.code(), Some(126 | 127)), "{}", stderr(&output));
        assert_eq!(fs::read(&path).expect("there"), b"the old one");
        fs::remove_file(&path).expect("removed");
        assert_eq!(names(folder.path()), before);
    }
}

/// A run of minutes with every output, into an empty folder.
fn long_run(folder: &Path, line: &str) -> Child {
    let mut options = "--json x.json --html x.html --flamegraph x.svg --folded x.folded --pprof x.pb.gz".to_owned();
    if cfg!(feature = "parquet") {
        options += " --parquet fleet";
    }
    let line = format!("run --mode process --iterations 100000000 {options} {line}");
    let mut command = command(&line);
    command.current_dir(folder).stdout(Stdio::null()).stderr(Stdio::null());
    command.spawn().expect("started")
}

fn a_killed_tracer_leaves_no_output_behind() {
    let folder = tempfile::tempdir().expect("a folder");
    fs::write(folder.path().join("x.json"), "old").expect("written");
    let mut child = long_run(folder.path(), "-o x.ctx");
    wait_for_workload(&child);
    wait_until("the first state is saved", || folder.path().join("x.ctx").exists());
    child.kill().expect("alive");
    child.wait().expect("ended");
    assert_eq!(names(folder.path()), ["x.ctx", "x.json"]);
    assert_eq!(fs::read(folder.path().join("x.json")).expect("there"), b"old");
    let report = command("report --quiet --json -")
        .arg(folder.path().join("x.ctx"))
        .output();
    assert!(is_json(&report.expect("started").stdout), "the capture can be read");
}

fn an_early_signal_leaves_nothing_behind() {
    for signal in [Signal::SIGINT, Signal::SIGTERM, Signal::SIGHUP, Signal::SIGQUIT] {
        for after_ms in [0, 5, 20, 60, 120] {
            let folder = tempfile::tempdir().expect("a folder");
            let mut child = long_run(folder.path(), "-o x.ctx");
            std::thread::sleep(Duration::from_millis(after_ms));
            kill(Pid::from_raw(child.id() as i32), signal).expect("sent");
            let status = child.wait().expect("ended");
            let left = names(folder.path());
            let whole = left.iter().all(|name| !name.starts_with('.'));
            // Either it died of the signal, or it noticed and reported what there was.
            let nothing = left.is_empty() || status.signal().is_none();
            assert!(whole && nothing, "{signal} after {after_ms} ms: {status}, {left:?}");
        }
    }
}

fn the_input_is_never_an_output() {
    let folder = tempfile::tempdir().expect("a folder");
    let original = fs::read(capture()).expect("there");
    let path = folder.path().join("x.ctx");
    fs::write(&path, &original).expect("written");
    symlink("x.ctx", folder.path().join("link")).expect("made");
    fs::hard_link(&path, folder.path().join("second")).expect("made");
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
            said(&output).contains("it is the file that is read"),
            "{line}: {}",
            stderr(&output)
        );
        assert!(fs::read(&path).expect("there") == original, "{line}");
    }
    // Nor is the program that is recorded.
    let program = folder.path().join("program");
    fs::copy("/bin/true", &program).expect("copied");
    let output = script(folder.path(), "$CTXTRACE record --force -o program -- ./program");
    assert_eq!(output.status.code(), Some(125), "{}", stderr(&output));
    assert_eq!(
        fs::read(&program).expect("there"),
        fs::read("/bin/true").expect("there")
    );
}

fn ids_of_sudo_that_name_no_user_are_refused() {
    let folder = folder(0, 0o755);
    for (uid, gid) in [
        (Some("65534"), None),
        (None, Some("65534")),
        (Some("nobody"), Some("65534")),
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
            let output = command.current_dir(folder.path()).output().expect("started");
            let status = if line.starts_with("record") { 125 } else { 1 };
            assert_eq!(output.status.code(), Some(status), "{line} {uid:?} {gid:?}");
            let said = said(&output);
            assert!(said.contains("SUDO_") && said.contains("set both"), "{said}");
            assert_eq!(names(folder.path()), Vec::<String>::new());
        }
    }
}

fn a_limit_of_file_sizes_is_an_error_and_no_death() {
    let folder = tempfile::tempdir().expect("a folder");
    fs::write(folder.path().join("x.json"), "old").expect("written");
    for line in [
        "record -o x.ctx -- sh -c 'exit 7'",
        "record --json x.json -- sh -c 'exit 7'",
    ] {
        let output = script(folder.path(), &format!("ulimit -f 1; $CTXTRACE {line}"));
        assert_eq!(output.status.code(), Some(125), "{line}: {}", stderr(&output));
        assert!(said(&output).contains("File too large"), "{line}: {}", stderr(&output));
        assert_eq!(names(folder.path()), ["x.json"], "{line}");
        assert_eq!(fs::read(folder.path().join("x.json")).expect("there"), b"old");
    }
    // The command has the limit as its user set it.
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
    let folder = tempfile::tempdir().expect("a folder");
    let output = script(
        folder.path(),
        "ulimit -f 5; $CTXTRACE run --mode task-pool --iterations 2000 -o x.ctx --json x.json --html x.html --folded small",
    );
    assert_eq!(output.status.code(), Some(1));
    for name in ["x.ctx", "x.json", "x.html"] {
        let sentence = format!("ctxtrace: cannot write {name}: File too large");
        assert!(stderr(&output).contains(&sentence), "{}", stderr(&output));
    }
    assert!(stdout(&output).contains("difference 0"), "the table is there");
    let output = script(
        folder.path(),
        "ulimit -f 1; $CTXTRACE compare $CAPTURE $CAPTURE --json x.json --markdown x.md --flamegraph x.svg",
    );
    let failed = stderr(&output).matches("File too large").count();
    assert!(failed >= 2, "{}", stderr(&output));
}

fn a_closed_standard_error_does_not_change_the_status() {
    let folder = tempfile::tempdir().expect("a folder");
    for (command, status) in [("true", "0"), ("sh -c 'exit 7'", "7")] {
        let output = script(
            folder.path(),
            &format!("{{ sleep 0.2; $CTXTRACE record -- {command}; }} 2>&1 | true; echo ${{PIPESTATUS[0]}}"),
        );
        assert_eq!(stdout(&output).trim(), status, "{command}");
    }
    let output = script(folder.path(), "$CTXTRACE record -- true 2> /dev/full; echo $?");
    assert_eq!(stdout(&output).trim(), "125", "it could not be written");
}
