//! `ctxtrace record`: the streams and exit status of commands, attaching to running processes, and full tables.

use std::io::{Read, Write};
use std::os::unix::process::CommandExt;
use std::process::{Child, Command, Stdio};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::Value;

use crate::programs::{CROWD, VARIABLE};
use crate::support::{
    SpawnPiped, command, ctxtrace, number, processes_with, recorder_at_work, said, stderr, stdout, wait_until,
};

pub(crate) const TESTS: &[(&str, fn())] = &[
    (
        "a_commands_streams_and_status_are_its_own",
        a_commands_streams_and_status_are_its_own,
    ),
    (
        "a_command_that_cannot_be_executed_has_its_own_status",
        a_command_that_cannot_be_executed_has_its_own_status,
    ),
    (
        "an_interrupt_reaches_the_command_and_is_reported",
        an_interrupt_reaches_the_command_and_is_reported,
    ),
    ("a_second_interrupt_kills", a_second_interrupt_kills),
    ("a_duration_ends_the_command", a_duration_ends_the_command),
    (
        "under_sudo_the_command_has_the_users_environment",
        under_sudo_the_command_has_the_users_environment,
    ),
    (
        "processes_that_reuse_an_id_are_distinguished",
        processes_that_reuse_an_id_are_distinguished,
    ),
    (
        "a_full_table_is_counted_and_can_be_larger",
        a_full_table_is_counted_and_can_be_larger,
    ),
    (
        "a_running_process_is_recorded_and_left_alone",
        a_running_process_is_recorded_and_left_alone,
    ),
    (
        "children_are_recorded_where_asked_for",
        children_are_recorded_where_asked_for,
    ),
    (
        "a_process_that_ends_during_the_attach_is_recorded_or_reported_as_gone",
        a_process_that_ends_during_the_attach_is_recorded_or_reported_as_gone,
    ),
    (
        "processes_that_end_together_with_the_recording_are_counted",
        processes_that_end_together_with_the_recording_are_counted,
    ),
    (
        "an_attach_that_fails_names_the_reason",
        an_attach_that_fails_names_the_reason,
    ),
    (
        "attaching_to_a_stopped_process_prints_a_note",
        attaching_to_a_stopped_process_prints_a_note,
    ),
    (
        "a_process_in_a_container_is_attached_to_from_outside",
        a_process_in_a_container_is_attached_to_from_outside,
    ),
];

/// Records one of [`crate::programs`] with `ctxtrace record`. Returns the JSON report and everything that was printed.
fn recorded(program: &str, options: &str) -> (Value, String) {
    let executable = std::env::current_exe().expect("the path of this executable");
    let file = tempfile::NamedTempFile::new().expect("a file");
    let output = command(&format!("record {options} --json"))
        .arg(file.path())
        .arg("--")
        .arg(executable)
        .env(VARIABLE, program)
        .output()
        .expect("the program starts");
    assert_eq!(output.status.code(), Some(0), "{}", stderr(&output));
    let json = serde_json::from_slice(&std::fs::read(file.path()).expect("the file exists")).expect("valid JSON");
    (json, stdout(&output) + &stderr(&output))
}

fn reconciles(json: &Value) {
    assert_eq!(
        number(json, "/reconciliation/difference"),
        0,
        "{:#}",
        json["reconciliation"]
    );
    assert_eq!(json["ledger_adds_up"], true);
    let ledger = json["ledger"].as_array().expect("an array");
    let sum: i64 = ledger.iter().map(|row| number(row, "/count")).sum();
    assert_eq!(sum, number(json, "/kernel_switches/total"));
}

fn a_commands_streams_and_status_are_its_own() {
    let script = "cat; echo to stderr >&2; exit 7";
    let mut child = command("record --level counts -- sh -c")
        .arg(script)
        .stdin(Stdio::piped())
        .spawn_piped();
    child
        .stdin
        .take()
        .expect("the stream is piped")
        .write_all(b"from stdin\n")
        .expect("the data is sent");
    let output = child.wait_with_output().expect("the program ends");
    assert_eq!(output.status.code(), Some(7));
    assert_eq!(stdout(&output), "from stdin\n");
    assert!(stderr(&output).starts_with("to stderr\n"), "{}", stderr(&output));
    assert!(
        stderr(&output).contains("it ended with status 7"),
        "{}",
        stderr(&output)
    );
    let killed = command("record --level counts -- sh -c")
        .arg("kill -SEGV $$")
        .output()
        .expect("the program starts");
    assert_eq!(killed.status.code(), Some(128 + 11));
    assert!(stderr(&killed).contains("killed by SIGSEGV"), "{}", stderr(&killed));
}

fn a_command_that_cannot_be_executed_has_its_own_status() {
    for (line, status, why) in [
        ("record -- there-is-no-such-program", 127, "No such file"),
        ("record -- ./there/is/no/such/program", 127, "No such file"),
        ("record -- /etc/passwd", 126, "Permission denied"),
        ("record -- /", 126, "ermission denied"),
        ("record --json /nowhere/x -- true", 125, "cannot write /nowhere/x"),
        ("record", 2, "CMD"),
        ("record -p 1 -- true", 2, "cannot be used with"),
    ] {
        let output = ctxtrace(line);
        assert_eq!(output.status.code(), Some(status), "{line}: {}", stderr(&output));
        assert!(stderr(&output).contains(why), "{line}: {}", stderr(&output));
    }
}

fn started(mut command: Command) -> Child {
    command.spawn_piped()
}

fn pid(child: &Child) -> Pid {
    Pid::from_raw(child.id() as i32)
}

/// Waits until the child has printed a line, which it does when it is ready.
fn wait_for_line(child: &mut Child) {
    let mut byte = [0];
    while byte != *b"\n" {
        let stdout = child.stdout.as_mut().expect("the stream is piped");
        assert_eq!(stdout.read(&mut byte).expect("readable"), 1, "the child ended early");
    }
}

fn an_interrupt_reaches_the_command_and_is_reported() {
    let mut command = command("record --level counts -- sh -c");
    command.arg("trap 'echo bye; exit 5' INT; echo ready; while :; do sleep 0.01; done");
    let mut child = started(command);
    wait_for_line(&mut child);
    kill(pid(&child), Signal::SIGINT).expect("the signal is sent");
    let output = child.wait_with_output().expect("the program ends");
    assert_eq!(output.status.code(), Some(5), "{}", stderr(&output));
    assert_eq!(stdout(&output), "bye\n");
    assert!(said(&output).contains("kernel switches"), "{}", stderr(&output));
}

fn a_second_interrupt_kills() {
    let mut command = command("record --level counts -- sh -c");
    command.arg("trap '' INT; echo ready; while :; do sleep 0.01; done");
    let mut child = started(command);
    wait_for_line(&mut child);
    kill(pid(&child), Signal::SIGINT).expect("the signal is sent");
    std::thread::sleep(std::time::Duration::from_millis(200));
    assert!(
        child.try_wait().expect("a child").is_none(),
        "the recording must go on, because the command ignores the signal"
    );
    // The kernel merges a signal with a pending one of the same number, so the test repeats the signal until the recorder ends.
    while child.try_wait().expect("a child").is_none() {
        kill(pid(&child), Signal::SIGINT).expect("the signal is sent");
        std::thread::sleep(std::time::Duration::from_millis(20));
    }
    let output = child.wait_with_output().expect("the program ends");
    assert_eq!(output.status.code(), Some(128 + 9), "{}", stderr(&output));
    assert!(said(&output).contains("kernel switches"), "{}", stderr(&output));
}

fn a_duration_ends_the_command() {
    let output = ctxtrace("record --level counts --duration 300ms -- sleep 1234.5");
    assert_eq!(output.status.code(), Some(0), "{}", stderr(&output));
    assert!(said(&output).contains("kernel switch"), "{}", stderr(&output));
    assert!(processes_with("1234.5").is_empty());
}

fn under_sudo_the_command_has_the_users_environment() {
    let output = command("record --level counts -- sh -c")
        .arg("id -u; id -g; echo $HOME $MARK; env | grep ^SUDO_")
        .env("SUDO_UID", "65534")
        .env("SUDO_GID", "65534")
        .env("SUDO_COMMAND", "x")
        .env("HOME", "/root")
        .env("MARK", "kept")
        .output()
        .expect("the program starts");
    // User 65534 of Debian's base system has this home folder.
    assert_eq!(
        stdout(&output),
        "65534\n65534\n/nonexistent kept\n",
        "{}",
        stderr(&output)
    );
}

fn processes_that_reuse_an_id_are_distinguished() {
    let (json, text) = recorded("reused-id", "--level counts");
    let children: u64 = text.lines().next().expect("a line").parse().expect("a number");
    reconciles(&json);
    // The threads are the program's own and one for each child. The program makes sure that the children reuse an id.
    assert_eq!(json["threads"].as_array().expect("an array").len() as u64, children + 1);
    assert_eq!(number(&json, "/lost/threads"), 0);
}

fn a_full_table_is_counted_and_can_be_larger() {
    let (json, text) = recorded("thread-crowd", "--level counts --max-threads 50");
    assert!(number(&json, "/lost/threads") > 0);
    assert!(text.contains("thread"), "{text}");
    let (_, lost) = text.split_once("\nLost").expect("a line");
    assert!(lost.contains("threads"), "{lost}");
    assert!(lost.contains("a larger --max-threads makes room"), "{lost}");
    let (json, _) = recorded("thread-crowd", "--level counts --max-threads 1000");
    assert_eq!(number(&json, "/lost/threads"), 0);
    assert_eq!(json["threads"].as_array().expect("an array").len(), CROWD + 1);
    reconciles(&json);

    let (json, text) = recorded("thread-crowd", "--max-stacks 4");
    assert!(number(&json, "/lost/stacks") > 0);
    let (_, lost) = text.split_once("\nLost").expect("a line");
    assert!(lost.contains("a larger --max-stacks makes room"), "{lost}");
    reconciles(&json);
}

/// A running program that ends when the value is dropped.
struct Server(Child);

impl Server {
    fn start() -> Self {
        let mut command = Command::new(std::env::current_exe().expect("the path of this executable"));
        command.env(VARIABLE, "server").stdin(Stdio::piped());
        let server = Self(command.spawn().expect("the program starts"));
        let id = server.0.id();
        wait_until("the server has its threads", || {
            std::fs::read_dir(format!("/proc/{id}/task")).is_ok_and(|tasks| tasks.count() == 4)
        });
        server
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        if self.0.stdin.take().is_none() {
            // The test has taken the program's standard input, so closing it here cannot end the program.
            let _ = self.0.kill();
        }
        let _ = self.0.wait();
    }
}

fn attached_json(line: &str) -> Value {
    let output = ctxtrace(&format!("record {line} --json -"));
    assert_eq!(output.status.code(), Some(0), "{line}: {}", stderr(&output));
    serde_json::from_slice(&output.stdout).expect("nothing but JSON on standard output")
}

fn a_running_process_is_recorded_and_left_alone() {
    let server = Server::start();
    let id = server.0.id();
    let json = attached_json(&format!("-p {id} --duration 500ms"));
    reconciles(&json);
    assert_eq!(number(&json, "/target/pid"), i64::from(id));
    assert_eq!(json["workload"], Value::Null);
    for number_of_thread in 0..3 {
        let name = format!("server-{number_of_thread}");
        let threads = json["threads"].as_array().expect("an array");
        let thread = threads
            .iter()
            .find(|thread| thread["name"] == *name)
            .expect("the thread is in the report");
        // About 460 sleeps of slightly more than one millisecond; fewer on a busy machine.
        assert!(number(thread, "/voluntary") > 0, "{thread}");
        assert_eq!(thread["pid"], id);
    }
    // A timeline that begins in the middle of the process's life agrees with the sums.
    let json = attached_json(&format!("-p {id} --children --level timeline --duration 500ms"));
    reconciles(&json);
    assert_eq!(json["timeline"]["agrees"], true, "{:#}", json["timeline"]);
    // An interrupt makes ctxtrace detach from the process, which lives on.
    let recorder = recorder_at_work(&format!("record -p {id}"));
    std::thread::sleep(std::time::Duration::from_millis(300));
    kill(pid(&recorder), Signal::SIGINT).expect("the signal is sent");
    let output = recorder.wait_with_output().expect("the program ends");
    assert_eq!(output.status.code(), Some(130), "{}", stderr(&output));
    assert!(stderr(&output).contains("server-0"), "{}", stderr(&output));
    let status = std::fs::read_to_string(format!("/proc/{id}/status")).expect("the server lives on");
    assert!(status.contains("TracerPid:\t0\n"), "{status}");
}

fn children_are_recorded_where_asked_for() {
    let server = Server::start();
    let id = server.0.id();
    let pids = |json: &Value| {
        let threads = json["threads"].as_array().expect("an array").iter();
        let mut pids: Vec<i64> = threads.map(|thread| number(thread, "/pid")).collect();
        pids.sort_unstable();
        pids.dedup();
        pids
    };
    let alone = attached_json(&format!("-p {id} --duration 300ms"));
    assert_eq!(pids(&alone), [i64::from(id)]);
    let family = attached_json(&format!("-p {id} --children --duration 1500ms"));
    reconciles(&family);
    // The server, its child, and at least two of the child's children.
    assert!(pids(&family).len() >= 4, "{:?}", pids(&family));
    let names: Vec<_> = family["threads"]
        .as_array()
        .expect("an array")
        .iter()
        .map(|thread| thread["name"].clone())
        .collect();
    assert!(
        names.contains(&"sh".into()) && names.contains(&"sleep".into()),
        "{names:?}"
    );
}

fn a_process_that_ends_during_the_attach_is_recorded_or_reported_as_gone() {
    // Attaching takes about 100 ms, more on a busy machine. The delays make the process end at different moments of it.
    for delay in [0, 15, 30, 45, 60, 75, 90, 105, 120, 150, 200, 300, 600] {
        let mut sleeper = Command::new("sleep")
            .arg(format!("{}.{:03}", delay / 1_000, delay % 1_000))
            .spawn()
            .expect("the program starts");
        let output = std::thread::scope(|scope| {
            let line = format!("record --level counts -p {}", sleeper.id());
            let recorder = scope.spawn(move || ctxtrace(&line));
            while !recorder.is_finished() {
                // Reap the process at once, as a shell does: otherwise it would remain as a zombie.
                let _ = sleeper.try_wait();
                std::thread::sleep(std::time::Duration::from_millis(1));
            }
            recorder.join().expect("the thread ends without a panic")
        });
        let text = stderr(&output);
        match output.status.code() {
            Some(0) => {
                assert!(text.contains("difference 0"), "{text}");
            }
            Some(1) => {
                let reasons = ["there is no such process", "has ended", "ended as the recording began"];
                assert!(reasons.iter().any(|reason| text.contains(reason)), "{text}");
            }
            status => panic!("{status:?}: {text}"),
        }
        let _ = sleeper.wait();
    }
    // The two outcomes, without a race: a process that ends while it is recorded, and one that has ended before.
    let mut sleeper = Command::new("sleep").arg("1000").spawn().expect("the program starts");
    let recorder = recorder_at_work(&format!("record --level counts -p {}", sleeper.id()));
    sleeper.kill().expect("the signal is sent");
    sleeper.wait().expect("the program ends");
    let output = recorder.wait_with_output().expect("the program ends");
    assert_eq!(output.status.code(), Some(0), "{}", stderr(&output));
    let output = ctxtrace(&format!("record --level counts -p {}", sleeper.id()));
    assert_eq!(output.status.code(), Some(1), "{}", stderr(&output));
}

fn processes_that_end_together_with_the_recording_are_counted() {
    // The shell starts children that live for about a millisecond, so that one of them is nearly always about to end.
    let mut forking = Command::new("sh");
    forking
        .args(["-c", "while read -r _; do /bin/true; done"])
        .stdin(Stdio::piped());
    forking.stdout(Stdio::null()).stderr(Stdio::null());
    let mut shell = Server(forking.spawn().expect("the program starts"));
    let mut lines = shell.0.stdin.take().expect("the stream is piped");
    let feeder = std::thread::spawn(move || while lines.write_all(&[b'\n'; 512]).is_ok() {});
    for _ in 0..10 {
        let output = ctxtrace(&format!(
            "record --level counts --children --duration 30ms -p {} --json -",
            shell.0.id()
        ));
        let json: Value = serde_json::from_slice(&output.stdout).expect("valid JSON");
        reconciles(&json);
        assert_eq!(number(&json, "/lost/events"), 0, "{}", stderr(&output));
    }
    drop(shell);
    feeder.join().expect("the thread ends without a panic");
}

fn an_attach_that_fails_names_the_reason() {
    for (line, why) in [
        ("record -p 2", "is a kernel thread"),
        ("record -p 4194304", "there is no such process"),
    ] {
        let output = ctxtrace(line);
        assert_eq!(output.status.code(), Some(1), "{line}: {}", stderr(&output));
        assert!(stderr(&output).contains(why), "{line}: {}", stderr(&output));
    }
    // A process of root, for a user who may trace but is not root.
    let server = Server::start();
    let mut other = command(&format!("record --level counts --duration 100ms -p {}", server.0.id()));
    let output = with_capabilities(&mut other).output().expect("the program starts");
    assert_eq!(output.status.code(), Some(1), "{}", stderr(&output));
    assert!(
        stderr(&output).contains("runs as root, and you may not trace it"),
        "{}",
        stderr(&output)
    );
}

/// Makes the command run as a user that is not root and has the capabilities that tracing needs.
fn with_capabilities(command: &mut Command) -> &mut Command {
    let program = command.get_program().to_owned();
    let args: Vec<_> = command.get_args().map(ToOwned::to_owned).collect();
    let mut by = Command::new("setpriv");
    by.args([
        "--reuid=65534",
        "--regid=65534",
        "--clear-groups",
        "--inh-caps=+bpf,+perfmon",
        "--ambient-caps=+bpf,+perfmon",
    ])
    .arg(program)
    .args(args);
    *command = by;
    command
}

fn attaching_to_a_stopped_process_prints_a_note() {
    let server = Server::start();
    kill(pid(&server.0), Signal::SIGSTOP).expect("the signal is sent");
    wait_until("the server has stopped", || {
        let stat = std::fs::read_to_string(format!("/proc/{}/stat", server.0.id()));
        stat.is_ok_and(|stat| stat.contains(") T "))
    });
    let output = ctxtrace(&format!("record --level counts --duration 200ms -p {}", server.0.id()));
    kill(pid(&server.0), Signal::SIGCONT).expect("the signal is sent");
    assert_eq!(output.status.code(), Some(0), "{}", stderr(&output));
    assert!(stderr(&output).contains("is stopped"), "{}", stderr(&output));
    assert!(
        stderr(&output).contains(&format!("kill -CONT {}", server.0.id())),
        "{}",
        stderr(&output)
    );
}

fn a_process_in_a_container_is_attached_to_from_outside() {
    // The shell has its own mount namespace and its own pid namespace, in which it is process 1.
    let mut contained = Command::new("unshare");
    contained.args(["--pid", "--mount", "--fork", "--kill-child", "sh", "-c"]);
    contained
        .arg("while sleep 0.01; do :; done")
        .stdin(Stdio::null())
        .process_group(0);
    let mut unshare = contained.spawn().expect("the program starts");
    let mut inside = None;
    wait_until("the shell runs", || {
        inside = processes_with("while sleep 0.01").into_iter().find_map(|process| {
            let namespaces = [process.join("ns/pid"), "/proc/self/ns/pid".into()];
            let [theirs, ours] = namespaces.map(|namespace| std::fs::read_link(namespace).ok());
            let pid = process.file_name()?.to_str()?.parse::<u32>().ok()?;
            (theirs.is_some() && theirs != ours).then_some(pid)
        });
        inside.is_some()
    });
    let inside = inside.expect("the shell was found above");
    let output = ctxtrace(&format!(
        "record --level counts --children --duration 300ms -p {inside} --json -"
    ));
    // Inside a pid namespace ctxtrace refuses to record.
    let refused = Command::new("unshare")
        .args(["--pid", "--fork", crate::support::CTXTRACE, "record", "--", "true"])
        .output()
        .expect("the program starts");
    unshare.kill().expect("the signal is sent");
    unshare.wait().expect("the program ends");
    assert_eq!(output.status.code(), Some(0), "{}", stderr(&output));
    assert!(
        stderr(&output).contains("another pid namespace, where it is process 1"),
        "{}",
        stderr(&output)
    );
    let json: Value = serde_json::from_slice(&output.stdout).expect("valid JSON");
    reconciles(&json);
    assert!(json["threads"].as_array().expect("an array").len() > 5);
    assert_eq!(refused.status.code(), Some(125), "{}", stderr(&refused));
    assert!(
        stderr(&refused).contains("separate pid namespace"),
        "{}",
        stderr(&refused)
    );
}
