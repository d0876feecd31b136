//! `ctxtrace record`: commands and processes of all kinds, and what is passed on of them.

use std::io::{Read, Write};
use std::os::unix::process::CommandExt;
use std::process::{Child, Command, Stdio};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::Value;

use crate::programs::{CROWD, VARIABLE};
use crate::support::{command, ctxtrace, number, processes_with, recorder_at_work, said, stderr, stdout, wait_until};

pub(crate) const TESTS: &[(&str, fn())] = &[
    (
        "a_commands_streams_and_status_are_its_own",
        a_commands_streams_and_status_are_its_own,
    ),
    (
        "what_cannot_be_executed_has_its_own_status",
        what_cannot_be_executed_has_its_own_status,
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
        "processes_under_one_id_are_told_apart",
        processes_under_one_id_are_told_apart,
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
        "a_process_that_ends_at_that_moment_is_recorded_or_said_to_be_gone",
        a_process_that_ends_at_that_moment_is_recorded_or_said_to_be_gone,
    ),
    (
        "who_ends_while_the_recording_does_is_not_missed",
        who_ends_while_the_recording_does_is_not_missed,
    ),
    (
        "what_cannot_be_attached_to_says_why",
        what_cannot_be_attached_to_says_why,
    ),
    (
        "a_stopped_process_is_attached_to_with_a_word",
        a_stopped_process_is_attached_to_with_a_word,
    ),
    (
        "a_process_in_a_container_is_attached_to_from_outside",
        a_process_in_a_container_is_attached_to_from_outside,
    ),
];

/// `ctxtrace record` of one of [`crate::programs`], as JSON.
fn recorded(program: &str, options: &str) -> (Value, String) {
    let executable = std::env::current_exe().expect("a path");
    let file = tempfile::NamedTempFile::new().expect("a file");
    let output = command(&format!("record {options} --json"))
        .arg(file.path())
        .arg("--")
        .arg(executable)
        .env(VARIABLE, program)
        .output()
        .expect("started");
    assert_eq!(output.status.code(), Some(0), "{}", stderr(&output));
    let json = serde_json::from_slice(&std::fs::read(file.path()).expect("written")).expect("JSON");
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
    let ledger = json["ledger"].as_array().expect("a list");
    let sum: i64 = ledger.iter().map(|row| number(row, "/count")).sum();
    assert_eq!(sum, number(json, "/kernel_switches/total"));
}

fn a_commands_streams_and_status_are_its_own() {
    let script = "cat; echo to stderr >&2; exit 7";
    let mut child = command("record --level counts -- sh -c")
        .arg(script)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("started");
    child
        .stdin
        .take()
        .expect("piped")
        .write_all(b"from stdin\n")
        .expect("written");
    let output = child.wait_with_output().expect("ended");
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
        .expect("started");
    assert_eq!(killed.status.code(), Some(128 + 11));
    assert!(stderr(&killed).contains("killed by SIGSEGV"), "{}", stderr(&killed));
}

fn what_cannot_be_executed_has_its_own_status() {
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
    command
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("started")
}

fn pid(child: &Child) -> Pid {
    Pid::from_raw(child.id() as i32)
}

/// Reads one line the child writes: then it is at work.
fn wait_for_line(child: &mut Child) {
    let mut byte = [0];
    while byte != *b"\n" {
        let stdout = child.stdout.as_mut().expect("piped");
        assert_eq!(stdout.read(&mut byte).expect("readable"), 1, "it ended early");
    }
}

fn an_interrupt_reaches_the_command_and_is_reported() {
    let mut command = command("record --level counts -- sh -c");
    command.arg("trap 'echo bye; exit 5' INT; echo ready; while :; do sleep 0.01; done");
    let mut child = started(command);
    wait_for_line(&mut child);
    kill(pid(&child), Signal::SIGINT).expect("sent");
    let output = child.wait_with_output().expect("ended");
    assert_eq!(output.status.code(), Some(5), "{}", stderr(&output));
    assert_eq!(stdout(&output), "bye\n");
    assert!(said(&output).contains("kernel switches"), "{}", stderr(&output));
}

fn a_second_interrupt_kills() {
    let mut command = command("record --level counts -- sh -c");
    command.arg("trap '' INT; echo ready; while :; do sleep 0.01; done");
    let mut child = started(command);
    wait_for_line(&mut child);
    kill(pid(&child), Signal::SIGINT).expect("sent");
    std::thread::sleep(std::time::Duration::from_millis(200));
    assert!(
        child.try_wait().expect("a child").is_none(),
        "the command ignores it, and goes on"
    );
    // A signal that comes before the last one was taken is the same one.
    while child.try_wait().expect("a child").is_none() {
        kill(pid(&child), Signal::SIGINT).expect("sent");
        std::thread::sleep(std::time::Duration::from_millis(20));
    }
    let output = child.wait_with_output().expect("ended");
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
        .expect("started");
    // The user `nobody` of Debian's base system.
    assert_eq!(
        stdout(&output),
        "65534\n65534\n/nonexistent kept\n",
        "{}",
        stderr(&output)
    );
}

fn processes_under_one_id_are_told_apart() {
    let (json, text) = recorded("reused-id", "--level counts");
    let children: u64 = text.lines().next().expect("a line").parse().expect("a number");
    reconciles(&json);
    // The program's own thread, and one for each child, of which at least as many as it promises have had the id of another.
    assert_eq!(json["threads"].as_array().expect("a list").len() as u64, children + 1);
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
    assert_eq!(json["threads"].as_array().expect("a list").len(), CROWD + 1);
    reconciles(&json);

    let (json, text) = recorded("thread-crowd", "--max-stacks 4");
    assert!(number(&json, "/lost/stacks") > 0);
    let (_, lost) = text.split_once("\nLost").expect("a line");
    assert!(lost.contains("a larger --max-stacks makes room"), "{lost}");
    reconciles(&json);
}

/// Ends the program when it is dropped.
struct Server(Child);

impl Server {
    fn start() -> Self {
        let mut command = Command::new(std::env::current_exe().expect("a path"));
        command.env(VARIABLE, "server").stdin(Stdio::piped());
        let server = Self(command.spawn().expect("started"));
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
            // Somebody else has its input.
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
        let threads = json["threads"].as_array().expect("a list");
        let thread = threads
            .iter()
            .find(|thread| thread["name"] == *name)
            .expect("it sleeps often");
        // Some 460 sleeps of a millisecond and a bit; on a busy machine fewer.
        assert!(number(thread, "/voluntary") > 0, "{thread}");
        assert_eq!(thread["pid"], id);
    }
    // Every event of it, from the middle of its life on.
    let json = attached_json(&format!("-p {id} --children --level timeline --duration 500ms"));
    reconciles(&json);
    assert_eq!(json["timeline"]["agrees"], true, "{:#}", json["timeline"]);
    // Interrupted: let go, not killed.
    let recorder = recorder_at_work(&format!("record -p {id}"));
    std::thread::sleep(std::time::Duration::from_millis(300));
    kill(pid(&recorder), Signal::SIGINT).expect("sent");
    let output = recorder.wait_with_output().expect("ended");
    assert_eq!(output.status.code(), Some(130), "{}", stderr(&output));
    assert!(stderr(&output).contains("server-0"), "{}", stderr(&output));
    let status = std::fs::read_to_string(format!("/proc/{id}/status")).expect("it lives on");
    assert!(status.contains("TracerPid:\t0\n"), "{status}");
}

fn children_are_recorded_where_asked_for() {
    let server = Server::start();
    let id = server.0.id();
    let pids = |json: &Value| {
        let threads = json["threads"].as_array().expect("a list").iter();
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
        .expect("a list")
        .iter()
        .map(|thread| thread["name"].clone())
        .collect();
    assert!(
        names.contains(&"sh".into()) && names.contains(&"sleep".into()),
        "{names:?}"
    );
}

fn a_process_that_ends_at_that_moment_is_recorded_or_said_to_be_gone() {
    // Attaching takes some 100 ms, on a busy machine more; ends are strewn over all of it.
    for delay in [0, 15, 30, 45, 60, 75, 90, 105, 120, 150, 200, 300, 600] {
        let mut sleeper = Command::new("sleep")
            .arg(format!("{}.{:03}", delay / 1_000, delay % 1_000))
            .spawn()
            .expect("started");
        let output = std::thread::scope(|scope| {
            let line = format!("record --level counts -p {}", sleeper.id());
            let recorder = scope.spawn(move || ctxtrace(&line));
            while !recorder.is_finished() {
                // As a shell does, so that there is no process any more, and not merely a zombie.
                let _ = sleeper.try_wait();
                std::thread::sleep(std::time::Duration::from_millis(1));
            }
            recorder.join().expect("no panic")
        });
        let text = stderr(&output);
        match output.status.code() {
            Some(0) => {
                assert!(text.contains("difference 0"), "{text}");
            }
            Some(1) => {
                let reasons = ["there is no such process", "has ended", "ended at that moment"];
                assert!(reasons.iter().any(|reason| text.contains(reason)), "{text}");
            }
            status => panic!("{status:?}: {text}"),
        }
        let _ = sleeper.wait();
    }
    // The two ends of the line, which no chance decides: one that ends while it is recorded, and one that has gone before.
    let mut sleeper = Command::new("sleep").arg("1000").spawn().expect("started");
    let recorder = recorder_at_work(&format!("record --level counts -p {}", sleeper.id()));
    sleeper.kill().expect("killed");
    sleeper.wait().expect("ended");
    let output = recorder.wait_with_output().expect("ended");
    assert_eq!(output.status.code(), Some(0), "{}", stderr(&output));
    let output = ctxtrace(&format!("record --level counts -p {}", sleeper.id()));
    assert_eq!(output.status.code(), Some(1), "{}", stderr(&output));
}

fn who_ends_while_the_recording_does_is_not_missed() {
    // Children that live for a millisecond, so that one of them is nearly always about to end.
    let mut forking = Command::new("sh");
    forking
        .args(["-c", "while read -r _; do /bin/true; done"])
        .stdin(Stdio::piped());
    forking.stdout(Stdio::null()).stderr(Stdio::null());
    let mut shell = Server(forking.spawn().expect("started"));
    let mut lines = shell.0.stdin.take().expect("piped");
    let feeder = std::thread::spawn(move || while lines.write_all(&[b'\n'; 512]).is_ok() {});
    for _ in 0..10 {
        let output = ctxtrace(&format!(
            "record --level counts --children --duration 30ms -p {} --json -",
            shell.0.id()
        ));
        let json: Value = serde_json::from_slice(&output.stdout).expect("JSON");
        reconciles(&json);
        assert_eq!(number(&json, "/lost/events"), 0, "{}", stderr(&output));
    }
    drop(shell);
    feeder.join().expect("no panic");
}

fn what_cannot_be_attached_to_says_why() {
    for (line, why) in [
        ("record -p 2", "is a thread of the kernel"),
        ("record -p 4194304", "there is no such process"),
    ] {
        let output = ctxtrace(line);
        assert_eq!(output.status.code(), Some(1), "{line}: {}", stderr(&output));
        assert!(stderr(&output).contains(why), "{line}: {}", stderr(&output));
    }
    // Somebody else's, for a user who may trace and is not root.
    let server = Server::start();
    let mut other = command(&format!("record --level counts --duration 100ms -p {}", server.0.id()));
    let output = with_capabilities(&mut other).output().expect("started");
    assert_eq!(output.status.code(), Some(1), "{}", stderr(&output));
    assert!(
        stderr(&output).contains("runs as root, and may not be looked at by you"),
        "{}",
        stderr(&output)
    );
}

/// As a user that is not root and has what tracing needs.
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

fn a_stopped_process_is_attached_to_with_a_word() {
    let server = Server::start();
    kill(pid(&server.0), Signal::SIGSTOP).expect("sent");
    wait_until("it has stopped", || {
        let stat = std::fs::read_to_string(format!("/proc/{}/stat", server.0.id()));
        stat.is_ok_and(|stat| stat.contains(") T "))
    });
    let output = ctxtrace(&format!("record --level counts --duration 200ms -p {}", server.0.id()));
    kill(pid(&server.0), Signal::SIGCONT).expect("sent");
    assert_eq!(output.status.code(), Some(0), "{}", stderr(&output));
    assert!(stderr(&output).contains("is stopped"), "{}", stderr(&output));
    assert!(
        stderr(&output).contains(&format!("kill -CONT {}", server.0.id())),
        "{}",
        stderr(&output)
    );
}

fn a_process_in_a_container_is_attached_to_from_outside() {
    // Its own pid namespace, in which it is process 1, and its own mounts.
    let mut contained = Command::new("unshare");
    contained.args(["--pid", "--mount", "--fork", "--kill-child", "sh", "-c"]);
    contained
        .arg("while sleep 0.01; do :; done")
        .stdin(Stdio::null())
        .process_group(0);
    let mut unshare = contained.spawn().expect("started");
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
    let inside = inside.expect("just seen");
    let output = ctxtrace(&format!(
        "record --level counts --children --duration 300ms -p {inside} --json -"
    ));
    // And a ctxtrace inside of one.
    let refused = Command::new("unshare")
        .args(["--pid", "--fork", crate::support::CTXTRACE, "record", "--", "true"])
        .output()
        .expect("started");
    unshare.kill().expect("killed");
    unshare.wait().expect("ended");
    assert_eq!(output.status.code(), Some(0), "{}", stderr(&output));
    assert!(
        stderr(&output).contains("another pid namespace, where it is process 1"),
        "{}",
        stderr(&output)
    );
    let json: Value = serde_json::from_slice(&output.stdout).expect("JSON");
    reconciles(&json);
    assert!(json["threads"].as_array().expect("a list").len() > 5);
    assert_eq!(refused.status.code(), Some(125), "{}", stderr(&refused));
    assert!(
        stderr(&refused).contains("pid namespace of its own"),
        "{}",
        stderr(&refused)
    );
}
