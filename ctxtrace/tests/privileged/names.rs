//! Tests that names of processes cannot send control characters to a terminal.

use std::ffi::{CString, OsStr};
use std::fs;
use std::io::{Read, Write};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::programs::VARIABLE;
use crate::support::{command, wait_until};

pub(crate) const TESTS: &[(&str, fn())] = &[
    (
        "no_escape_in_a_name_of_a_process_reaches_a_terminal",
        no_escape_in_a_name_of_a_process_reaches_a_terminal,
    ),
    (
        "no_escape_in_a_name_of_an_ended_process_reaches_a_terminal",
        no_escape_in_a_name_of_an_ended_process_reaches_a_terminal,
    ),
];

/// A name that fits into the 15 bytes of a thread's name. It contains an escape sequence that sets the title of a terminal, a carriage
/// return, and a C1 control character.
const NAME: &[u8] = b"\x1b]0;t\x07\r\xc2\x9b2J\x1b[";

/// Runs the program of this name. Returns false if there is none.
pub(crate) fn run(name: &str) -> bool {
    if name != "with-escapes" {
        return false;
    }
    let thread = std::thread::spawn(|| {
        take_name();
        nap();
    });
    take_name();
    nap();
    thread.join().expect("the process ends");
    let mut stdout = ctxtrace::terminal::data_output();
    stdout
        .write_all(b"ready\n")
        .and_then(|()| stdout.flush())
        .expect("the file is written");
    while matches!(std::io::stdin().read(&mut [0]), Ok(1)) {
        nap();
    }
    true
}

fn take_name() {
    nix::sys::prctl::set_name(&CString::new(NAME).expect("no zero in it")).expect("named");
}

fn nap() {
    for _ in 0..20 {
        std::thread::sleep(std::time::Duration::from_millis(1));
    }
}

/// A folder with a copy of this executable, whose file name is [`NAME`].
struct EscapingTarget {
    folder: tempfile::TempDir,
}

impl EscapingTarget {
    fn new() -> Self {
        let target = Self {
            folder: tempfile::tempdir().expect("a temporary folder"),
        };
        fs::copy("/proc/self/exe", target.program()).expect("the file is copied");
        target
    }

    fn program(&self) -> PathBuf {
        self.folder.path().join(OsStr::from_bytes(NAME))
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// Starts the executable, and returns when its threads have the name.
    fn start(&self) -> Child {
        let mut program = Command::new(self.program());
        program
            .arg0(OsStr::from_bytes(NAME))
            .arg(OsStr::from_bytes(NAME))
            .env(VARIABLE, "with-escapes")
            .stdin(Stdio::piped())
            .stdout(Stdio::piped());
        let mut child = program.spawn().expect("the program starts");
        let mut ready = [0; 6];
        let stdout = child.stdout.as_mut().expect("a pipe");
        stdout.read_exact(&mut ready).expect("it is named");
        child
    }

    /// Returns a command that runs ctxtrace and writes its standard output and standard error to two files.
    fn ctxtrace(&self, line: &str) -> Command {
        let mut ctxtrace = command(line);
        let file = |name| fs::File::create(self.path(name)).expect("the path is created");
        ctxtrace.stdout(file("stdout")).stderr(file("stderr"));
        ctxtrace
    }

    /// Asserts that these files contain no harmful character, and that they contain the name.
    #[track_caller]
    fn assert_harmless(&self, printed: &[&str]) {
        let mut all = String::new();
        for name in printed {
            let text = fs::read(self.path(name)).expect("the file is written");
            let text = String::from_utf8(text).expect("text");
            let harmful = text
                .chars()
                .find(|&c| c != '\n' && ctxtrace_format::printable::is_harmful(c));
            assert_eq!(harmful, None, "{name}: {text:?}");
            all += &text;
        }
        assert!(all.contains("]0;t"), "the name is nowhere: {all:?}");
    }
}

fn no_escape_in_a_name_of_a_process_reaches_a_terminal() {
    let target = EscapingTarget::new();
    for level in ["counts", "stacks", "timeline"] {
        // The argument and the second thread have the name, too.
        let mut process = target.start();
        let folded = if level == "stacks" { "--folded -" } else { "--json -" };
        let line = format!("record -p {} --level {level} {folded}", process.id());
        let mut recorder = target.ctxtrace(&line).spawn().expect("the program starts");
        wait_until("it is being recorded", || {
            let said = fs::read(target.path("stderr")).expect("the path is created");
            let ended = recorder.try_wait().expect("a child process");
            assert_eq!(ended, None, "{}", String::from_utf8_lossy(&said));
            String::from_utf8_lossy(&said).contains("; Ctrl-C ends it")
        });
        let mut stdin = process.stdin.take().expect("a pipe");
        stdin.write_all(b"x").expect("the program reads its input");
        drop(stdin);
        process.wait().expect("the process ends");
        let status = recorder.wait().expect("the process ends");
        assert_eq!(status.code(), Some(0), "{level}");
        target.assert_harmless(&["stderr", "stdout"]);
    }
    // The program is launched, and the capture is reported again.
    let capture = target.path("x.ctx");
    let status = target
        .ctxtrace("record --force -o")
        .arg(&capture)
        .arg("--")
        .arg(target.program())
        .arg(OsStr::from_bytes(NAME))
        .env(VARIABLE, "with-escapes")
        .status();
    assert_eq!(status.expect("the program starts").code(), Some(0));
    // The program itself prints only harmless text.
    target.assert_harmless(&["stderr", "stdout"]);
    for option in ["--json", "--folded"] {
        let status = target.ctxtrace("report").arg(&capture).args([option, "-"]).status();
        assert_eq!(status.expect("the program starts").code(), Some(0), "{option}");
        target.assert_harmless(&["stderr", "stdout"]);
    }
    // The error message about a missing program contains its name.
    let missing = target.folder.path().join(Path::new(OsStr::from_bytes(b"]0;t\x1b[2J")));
    let status = target.ctxtrace("record --").arg(missing).status();
    assert_eq!(status.expect("the program starts").code(), Some(127));
    target.assert_harmless(&["stderr"]);
}

/// The error message about a process that has ended, and that its parent has not waited for, contains its name.
fn no_escape_in_a_name_of_an_ended_process_reaches_a_terminal() {
    let target = EscapingTarget::new();
    let mut process = target.start();
    let pid = Pid::from_raw(process.id() as i32);
    kill(pid, Signal::SIGKILL).expect("the process runs");
    wait_until("it has ended", || {
        let stat = fs::read(format!("/proc/{pid}/stat")).expect("not waited for");
        String::from_utf8_lossy(&stat).contains(") Z ")
    });
    let status = target.ctxtrace(&format!("record -p {pid}")).status();
    let said = fs::read_to_string(target.path("stderr")).expect("text");
    process.wait().expect("the process ends");
    assert_eq!(status.expect("the program starts").code(), Some(1), "{said}");
    assert!(said.contains("has ended"), "{said:?}");
    target.assert_harmless(&["stderr"]);
}
