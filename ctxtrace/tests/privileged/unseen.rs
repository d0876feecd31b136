//! Unusual targets: thread names that are not UTF-8, processes whose first thread has ended, low limits of descriptors, processes
//! that outlive their command, threads that sleep during the whole recording, and processes held by a debugger.

use std::io::Read;
use std::os::unix::process::CommandExt;
use std::process::{Child, Command, Output, Stdio};
use std::time::Instant;

use serde_json::Value;

use crate::programs::VARIABLE;
use crate::programs::unseen::HEADLESS_STATUS;
use crate::support::{SpawnPiped, command, ctxtrace, number, processes_with, said, stderr, stdout, wait_until};

pub(crate) const TESTS: &[(&str, fn())] = &[
    (
        "thread_names_that_are_not_utf8_are_accepted",
        thread_names_that_are_not_utf8_are_accepted,
    ),
    (
        "a_process_whose_first_thread_has_ended_is_attached_to",
        a_process_whose_first_thread_has_ended_is_attached_to,
    ),
    (
        "few_descriptors_suffice_or_are_reported_as_too_few",
        few_descriptors_suffice_or_are_reported_as_too_few,
    ),
    (
        "the_soft_limit_of_descriptors_is_raised_for_the_tracer_alone",
        the_soft_limit_of_descriptors_is_raised_for_the_tracer_alone,
    ),
    (
        "a_duration_ends_everything_that_was_started",
        a_duration_ends_everything_that_was_started,
    ),
    (
        "a_command_that_ignores_sigterm_is_killed_when_the_time_is_up",
        a_command_that_ignores_sigterm_is_killed_when_the_time_is_up,
    ),
    (
        "processes_that_outlive_the_command_are_named",
        processes_that_outlive_the_command_are_named,
    ),
    (
        "a_second_interrupt_kills_everything",
        a_second_interrupt_kills_everything,
    ),
    (
        "threads_that_sleep_throughout_are_in_the_table",
        threads_that_sleep_throughout_are_in_the_table,
    ),
    (
        "an_interval_that_is_open_at_the_end_is_shown_and_in_no_sum",
        an_interval_that_is_open_at_the_end_is_shown_and_in_no_sum,
    ),
    (
        "no_signal_is_suggested_for_a_process_held_by_a_debugger",
        no_signal_is_suggested_for_a_process_held_by_a_debugger,
    ),
];

/// A running program of [`crate::programs::unseen`], which is killed when the value is dropped.
struct AtWork(Child);

impl AtWork {
    fn start(program: &str) -> Self {
        let mut command = Command::new(std::env::current_exe().expect("the path of this executable"));
        command
            .env(VARIABLE, program)
            .stdin(Stdio::null())
            .stdout(Stdio::piped());
        let mut child = command.spawn().expect("the program starts");
        let mut line = [0; 6];
        child
            .stdout
            .as_mut()
            .expect("the stream is piped")
            .read_exact(&mut line)
            .expect("the program is ready");
        Self(child)
    }

    fn id(&self) -> u32 {
        self.0.id()
    }
}

impl Drop for AtWork {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Records with these options, and returns the JSON report and what was printed on standard error.
fn attached(line: &str) -> (Value, String) {
    let file = tempfile::NamedTempFile::new().expect("a file");
    let output = command(&format!("record {line} --json"))
        .arg(file.path())
        .output()
        .expect("the program starts");
    assert_eq!(output.status.code(), Some(0), "{line}: {}", stderr(&output));
    let json = serde_json::from_slice(&std::fs::read(file.path()).expect("the file exists")).expect("valid JSON");
    assert_eq!(
        number(&json, "/reconciliation/difference"),
        0,
        "{:#}",
        json["reconciliation"]
    );
    assert_eq!(json["ledger_adds_up"], true);
    (json, said(&output))
}

fn thread<'a>(json: &'a Value, name: &str) -> &'a Value {
    let threads = json["threads"].as_array().expect("an array");
    threads
        .iter()
        .find(|thread| thread["name"] == name)
        .unwrap_or_else(|| panic!("no {name} in {threads:#?}"))
}

fn thread_names_that_are_not_utf8_are_accepted() {
    let program = AtWork::start("torn-name");
    let (json, text) = attached(&format!("--level counts --duration 400ms -p {}", program.id()));
    assert!(number(&json, "/kernel_switches/total") > 20, "{text}");
    assert_eq!(
        json["target"]["name"],
        "w日本語スレ".chars().take(5).collect::<String>() + "\u{fffd}"
    );
}

fn a_process_whose_first_thread_has_ended_is_attached_to() {
    let mut program = AtWork::start("headless");
    let id = program.id();
    wait_until("the first thread has ended", || {
        let stat = std::fs::read_to_string(format!("/proc/{id}/stat"));
        stat.is_ok_and(|stat| stat.contains(") Z "))
    });
    let (json, _) = attached(&format!("--duration 500ms -p {id}"));
    let worker = thread(&json, "worker");
    assert!(number(worker, "/voluntary") > 10, "{worker}");
    let locators = json["locators"].as_array().expect("an array");
    assert!(!locators.is_empty(), "the executable of the process was not found");
    // The error for the id of a thread names the id of the process, which works.
    let tid = number(worker, "/tid");
    let output = ctxtrace(&format!("record -p {tid}"));
    assert!(
        said(&output).contains(&format!("attach to the process: -p {id}")),
        "{}",
        stderr(&output)
    );
    assert_eq!(
        program.0.wait().expect("the program ends").code(),
        Some(HEADLESS_STATUS)
    );
}

/// Runs ctxtrace with these arguments and this soft and hard limit of open file descriptors. `script` is the last argument.
fn limited(soft: u64, hard: u64, line: &str, script: &str) -> Output {
    let mut command = command(line);
    command.arg(script);
    let limit = libc::rlimit {
        rlim_cur: soft,
        rlim_max: hard,
    };
    // SAFETY: the closure only calls `setrlimit`, which is async-signal-safe, with a value that the closure owns.
    unsafe {
        command.pre_exec(move || match libc::setrlimit(libc::RLIMIT_NOFILE, &raw const limit) {
            0 => Ok(()),
            _ => Err(std::io::Error::last_os_error()),
        });
    }
    command.output().expect("the program starts")
}

fn few_descriptors_suffice_or_are_reported_as_too_few() {
    let mut worked = 0;
    for limit in [8, 12, 16, 24, 32, 48, 256] {
        let begin = Instant::now();
        let output = limited(limit, limit, "record --level timeline -- sh -c", "ulimit -n");
        if output.status.code() == Some(0) {
            assert_eq!(stdout(&output), format!("{limit}\n"));
            worked += 1;
            continue;
        }
        let text = said(&output);
        assert_eq!(output.status.code(), Some(125), "{limit}: {text}");
        assert!(text.contains("Too many open files"), "{limit}: {text}");
        assert!(
            text.contains("ulimit -Hn") && !text.contains("lockdown"),
            "{limit}: {text}"
        );
        assert!(begin.elapsed().as_secs() < 9, "{limit}: the error took too long");
    }
    assert!(worked > 0);
}

fn the_soft_limit_of_descriptors_is_raised_for_the_tracer_alone() {
    let output = limited(12, 1_024, "record --level timeline -- sh -c", "ulimit -Sn; ulimit -Hn");
    assert_eq!(output.status.code(), Some(0), "{}", stderr(&output));
    assert_eq!(stdout(&output), "12\n1024\n");
}

/// Records a shell script, and returns the JSON report and the output.
fn recorded(options: &str, script: &str) -> (Value, Output) {
    let file = tempfile::NamedTempFile::new().expect("a file");
    let mut command = command(&format!("record --level counts {options} --json"));
    command.arg(file.path()).args(["--", "sh", "-c", script]);
    let output = command
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .output()
        .expect("the program starts");
    let json = serde_json::from_slice(&std::fs::read(file.path()).expect("the file exists")).expect("valid JSON");
    (json, output)
}

fn a_duration_ends_everything_that_was_started() {
    for script in [
        "sleep 4711.25; true",
        "yes | sleep 4711.25",
        // An orphan in its own session.
        "(setsid sleep 4711.25 &); sleep 1000",
        // A child that ignores SIGTERM, under a parent that ends.
        "(trap '' TERM; sleep 4711.25; true) & sleep 1000",
    ] {
        let (json, output) = recorded("--duration 400ms", script);
        assert_eq!(output.status.code(), Some(0), "{script}: {}", stderr(&output));
        assert!(processes_with("sleep 4711.25").is_empty(), "{script}");
        assert_eq!(json["target"]["still_running"], Value::Array(Vec::new()), "{script}");
        assert_eq!(number(&json, "/reconciliation/difference"), 0, "{script}");
    }
}

fn a_command_that_ignores_sigterm_is_killed_when_the_time_is_up() {
    let script = "trap '' TERM; while :; do sleep 0.05; done";
    let (json, output) = recorded("--duration 300ms", script);
    assert_eq!(output.status.code(), Some(0), "{}", stderr(&output));
    assert!(said(&output).contains("were killed (SIGKILL)"), "{}", stderr(&output));
    assert_eq!(number(&json, "/target/signal"), 9);
    assert_eq!(number(&json, "/reconciliation/difference"), 0);
}

fn processes_that_outlive_the_command_are_named() {
    let (json, output) = recorded("", "(setsid sleep 4712.25 </dev/null >/dev/null 2>&1 &); sleep 0.3");
    let left = processes_with("sleep 4712.25");
    for process in &left {
        let pid = process.file_name().and_then(|name| name.to_str()?.parse().ok());
        let pid = nix::unistd::Pid::from_raw(pid.expect("the id of a process"));
        nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGKILL).expect("the signal is sent");
    }
    assert_eq!(left.len(), 1, "exactly one process must outlive the command");
    let running = json["target"]["still_running"].as_array().expect("an array");
    assert_eq!(running.len(), 1, "{running:?}");
    assert_eq!(running[0]["name"], "sleep");
    let sentence = format!("still running: sleep ({})", running[0]["pid"]);
    assert!(said(&output).contains(&sentence), "{}", stderr(&output));
}

fn a_second_interrupt_kills_everything() {
    let mut command = command("record --level counts -- sh -c");
    command.arg("trap '' INT; (setsid sleep 4713.25 &); echo ready; while :; do sleep 0.01; done");
    let mut child = command.spawn_piped();
    let mut line = [0; 6];
    child
        .stdout
        .as_mut()
        .expect("the stream is piped")
        .read_exact(&mut line)
        .expect("the command is ready");
    wait_until("the orphan sleeps", || !processes_with("sleep 4713.25").is_empty());
    let pid = nix::unistd::Pid::from_raw(child.id() as i32);
    nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGINT).expect("the signal is sent");
    std::thread::sleep(std::time::Duration::from_millis(200));
    nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGINT).expect("the signal is sent");
    let output = child.wait_with_output().expect("the program ends");
    assert_eq!(output.status.code(), Some(128 + 9), "{}", stderr(&output));
    assert!(processes_with("sleep 4713.25").is_empty());
}

fn threads_that_sleep_throughout_are_in_the_table() {
    let program = AtWork::start("deep-sleeper");
    let (json, text) = attached(&format!("--level counts --duration 500ms -p {}", program.id()));
    let sleeper = thread(&json, "deepsleeper");
    assert_eq!((number(sleeper, "/voluntary"), number(sleeper, "/off_cpu_ns")), (0, 0));
    assert_eq!(sleeper["state"], "asleep");
    assert!(number(sleeper, "/open_off_cpu_ns") > 300_000_000, "{sleeper}");
    assert!(text.contains(" – – asleep"), "{text}");
    assert!(text.contains("2 threads (1 of them without a switch)"), "{text}");
    // The reconciliation lacks them, because it compares counts, and they have none.
    assert_eq!(json["reconciliation"]["threads"].as_array().expect("an array").len(), 1);
    drop(program);

    let program = AtWork::start("idle");
    std::thread::sleep(std::time::Duration::from_millis(50));
    let (json, text) = attached(&format!("--level counts --duration 300ms -p {}", program.id()));
    assert_eq!(number(&json, "/kernel_switches/total"), 0);
    assert_eq!(json["threads"].as_array().expect("an array").len(), 2);
    assert!(text.contains("its 2 threads slept all the time"), "{text}");
    assert!(!text.contains("()"), "{text}");
}

fn an_interval_that_is_open_at_the_end_is_shown_and_in_no_sum() {
    let program = AtWork::start("long-sleeper");
    let (json, text) = attached(&format!("--duration 2500ms -p {}", program.id()));
    let open = json["open_intervals"].as_array().expect("an array");
    assert_eq!(open.len(), 1, "{open:#?}");
    let ns = number(&open[0], "/off_ns");
    assert!(ns > 100_000_000, "{open:#?}");
    let stack = open[0]["stack"].as_array().expect("an array");
    let is_it = |frame: &Value| frame.as_str().is_some_and(|name| name.contains("sleep_for_a_minute"));
    assert!(stack.iter().any(is_it), "{stack:?}");
    assert_eq!(number(&json, "/latency/off_cpu/open_intervals"), 1);
    assert_eq!(number(&json, "/latency/off_cpu/open_ns"), ns);
    assert!(number(&json, "/latency/off_cpu/sum_ns") < 1_600_000_000);
    let rows = json["ledger"].as_array().expect("an array");
    let (open, so_far): (i64, i64) = rows.iter().fold((0, 0), |(open, so_far), row| {
        (open + number(row, "/open"), so_far + number(row, "/open_ns"))
    });
    assert_eq!((open, so_far), (1, ns));
    assert!(text.contains("Still off the CPU"), "{text}");
}

fn no_signal_is_suggested_for_a_process_held_by_a_debugger() {
    let program = AtWork::start("idle");
    let pid = nix::unistd::Pid::from_raw(program.id() as i32);
    // SAFETY: the target is a child of this process, and this thread detaches from it below.
    let hold = |request, data: usize| unsafe { libc::ptrace(request, pid.as_raw(), 0_usize, data) };
    assert_eq!(hold(libc::PTRACE_ATTACH, 0), 0);
    wait_until("the process is stopped by ptrace", || {
        let stat = std::fs::read_to_string(format!("/proc/{pid}/stat"));
        stat.is_ok_and(|stat| stat.contains(") t "))
    });
    let output = ctxtrace(&format!("record --level counts --duration 200ms -p {pid}"));
    nix::sys::wait::waitpid(pid, Some(nix::sys::wait::WaitPidFlag::__WALL)).expect("the process is stopped");
    assert_eq!(hold(libc::PTRACE_DETACH, 0), 0);
    let text = said(&output);
    assert!(
        text.contains("is stopped by a debugger") && !text.contains("kill -CONT"),
        "{text}"
    );
    assert!(text.contains(&format!("({})", std::process::id())), "{text}");
}
