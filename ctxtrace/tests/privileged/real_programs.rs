//! Recordings of programs that were not written for these tests.

use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::path::Path;
use std::process::{Child, Command, Stdio};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::Value;

use crate::harness::{require_program, require_variable};
use crate::support::{command, number, recorder_at_work, stderr, wait_until};

pub(crate) const TESTS: &[(&str, fn())] = &[
    ("perf_bench_sched_pipe", perf_bench_sched_pipe),
    ("perf_bench_sched_messaging", perf_bench_sched_messaging),
    ("stress_ng_switch", stress_ng_switch),
    ("redis_server_under_load", redis_server_under_load),
    (
        "a_tokio_server_of_tokio_releases_under_load",
        a_tokio_server_of_tokio_releases_under_load,
    ),
];

/// Records a command with the default settings, checks the report with [`all_accounted_for`], and returns it.
fn recorded(words: &[&str]) -> Value {
    let file = tempfile::NamedTempFile::new().expect("a file");
    let output = command("record --json")
        .arg(file.path())
        .arg("--")
        .args(words)
        .output()
        .expect("the program starts");
    assert_eq!(output.status.code(), Some(0), "{words:?}: {}", stderr(&output));
    let json: Value =
        serde_json::from_slice(&std::fs::read(file.path()).expect("the file exists")).expect("valid JSON");
    all_accounted_for(&json);
    json
}

fn all_accounted_for(json: &Value) {
    assert_eq!(
        number(json, "/reconciliation/difference"),
        0,
        "{:#}",
        json["reconciliation"]
    );
    assert_eq!(json["ledger_adds_up"], true);
    let lost = json["lost"].as_object().expect("an object");
    for (what, count) in lost {
        // Intervals and wakeups may be lost, because some virtual machines hide events of their agent's threads from tracing
        // (docs/SEMANTICS.md, "Lost").
        if what != "intervals" && what != "wakeups" {
            assert!(*count == 0 || *count == Value::Array(Vec::new()), "{what}: {lost:?}");
        }
    }
}

fn perf_bench_sched_pipe() {
    require_program("perf", "linux-perf");
    let json = recorded(&["perf", "bench", "sched", "pipe", "-l", "20000"]);
    // There are two processes. Each operation takes two switches, on two CPUs or on one.
    let switches = number(&json, "/kernel_switches/total");
    assert!(switches >= 20_000, "{switches}");
    assert_eq!(json["threads"].as_array().expect("an array").len(), 2);
}

fn perf_bench_sched_messaging() {
    require_program("perf", "linux-perf");
    // The processes are the main one and 2 groups of 20 senders and 20 receivers.
    let json = recorded(&["perf", "bench", "sched", "messaging", "-g", "2", "-l", "100"]);
    assert_eq!(json["threads"].as_array().expect("an array").len(), 81);
    let threads = recorded(&["perf", "bench", "sched", "messaging", "-t", "-g", "2", "-l", "100"]);
    assert_eq!(threads["threads"].as_array().expect("an array").len(), 81);
}

fn stress_ng_switch() {
    require_program("stress-ng", "stress-ng");
    let json = recorded(&["stress-ng", "--switch", "2", "--switch-ops", "20000", "--quiet"]);
    assert!(number(&json, "/kernel_switches/total") >= 20_000);
}

/// A server that is killed when the value is dropped.
struct Server(Child);

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn redis_server_under_load() {
    require_program("redis-server", "redis-server");
    require_program("redis-benchmark", "redis-tools");
    let folder = tempfile::tempdir().expect("a temporary folder");
    let socket = folder.path().join("redis.sock");
    let mut command = Command::new("redis-server");
    command
        .args(["--port", "0", "--save", "", "--daemonize", "no", "--unixsocket"])
        .arg(&socket)
        .current_dir(folder.path())
        .stdin(Stdio::null())
        .stdout(Stdio::null());
    let server = Server(command.spawn().expect("the program starts"));
    wait_until("the server listens", || socket.exists());
    let id = server.0.id();
    let recorder = recorder_at_work(&format!("record -p {id} --json -"));
    load(&socket);
    kill(Pid::from_raw(recorder.id() as i32), Signal::SIGINT).expect("the signal is sent");
    let output = recorder.wait_with_output().expect("the program ends");
    assert_eq!(output.status.code(), Some(130), "{}", stderr(&output));
    let json: Value = serde_json::from_slice(&output.stdout).expect("valid JSON");
    all_accounted_for(&json);
    let threads = json["threads"].as_array().expect("an array");
    let main = threads
        .iter()
        .find(|thread| thread["tid"] == id)
        .expect("the main thread is in the report");
    assert!(number(main, "/voluntary") > 100, "{main}");
    assert_eq!(json["locators"][0]["locator"], "none", "{}", json["locators"]);
    assert!(number(&json, "/wakeups/0/count") > 0);
}

fn load(socket: &Path) {
    let status = Command::new("redis-benchmark")
        .args(["-n", "20000", "-c", "10", "-q", "-t", "get,set", "-s"])
        .arg(socket)
        .stdout(Stdio::null())
        .status()
        .expect("the program starts");
    assert!(status.success());
}

/// The number of echoes on each connection to the echo server. One connection is busier than the others.
const ECHOES: [u32; 4] = [400, 400, 400, 2_000];

/// The server is an unmodified example of tokio-tungstenite. ctxtrace attaches to it before four clients connect.
fn a_tokio_server_of_tokio_releases_under_load() {
    let folder = require_variable("CTXTRACE_TOKIO_PROGRAMS");
    let program = Path::new(&folder).with_file_name("server").join("bin/echo-server");
    let port = TcpListener::bind("127.0.0.1:0")
        .expect("a free port")
        .local_addr()
        .expect("the socket has an address")
        .port();
    let address = format!("127.0.0.1:{port}");
    let mut command = Command::new(&program);
    command.arg(&address).stdin(Stdio::null()).stdout(Stdio::null());
    // The server prints an error when a client disconnects without a closing handshake.
    command.stderr(Stdio::null());
    let server = Server(command.spawn().expect("`cargo xtask test` has built the server"));
    wait_until("the server listens", || TcpStream::connect(&address).is_ok());
    let recorder = recorder_at_work(&format!("record -p {} --json -", server.0.id()));
    let mut connections = ECHOES.map(|_| greeted(&address));
    std::thread::scope(|scope| {
        for (stream, echoes) in connections.iter_mut().zip(ECHOES) {
            scope.spawn(move || echo(stream, echoes));
        }
    });
    // While several connections are busy, a worker may always find another task and never park. With one busy connection at a time,
    // workers park.
    for stream in &mut connections {
        echo(stream, 200);
    }
    kill(Pid::from_raw(recorder.id() as i32), Signal::SIGINT).expect("the signal is sent");
    let output = recorder.wait_with_output().expect("the program ends");
    assert_eq!(output.status.code(), Some(130), "{}", stderr(&output));
    let json: Value = serde_json::from_slice(&output.stdout).expect("valid JSON");
    all_accounted_for(&json);
    assert_eq!(json["locators"][0]["locator"], "tokio", "{}", json["locators"]);
    // Each connection is a separate task, which is identified by tokio's number for it.
    let tasks = json["tasks"].as_array().expect("an array");
    let names: Vec<&str> = tasks.iter().filter_map(|task| task["name"].as_str()).collect();
    let numbered = names.iter().filter(|name| name.starts_with('#')).count();
    assert!(numbered >= ECHOES.len(), "{names:?}");
    let ledger = json["ledger"].as_array().expect("an array");
    assert!(ledger.iter().any(|row| row["class"] == "worker-parked"), "{ledger:#?}");
    let unattributed = ledger.iter().filter(|row| row["class"] == "unattributed").count();
    assert_eq!(unattributed, 0, "{ledger:#?}");
}

/// Connects as a WebSocket client (RFC 6455) and returns the connection after the handshake.
fn greeted(address: &str) -> TcpStream {
    let mut stream = TcpStream::connect(address).expect("the server listens");
    let request = format!(
        "GET / HTTP/1.1\r\nHost: {address}\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\
         Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n\r\n"
    );
    stream.write_all(request.as_bytes()).expect("the data is sent");
    let mut answer = Vec::new();
    while !answer.ends_with(b"\r\n\r\n") {
        let mut byte = [0];
        stream.read_exact(&mut byte).expect("an answer");
        answer.extend(byte);
    }
    assert!(
        answer.starts_with(b"HTTP/1.1 101"),
        "{}",
        String::from_utf8_lossy(&answer)
    );
    stream
}

/// Sends a text and waits until it comes back, `times` times.
fn echo(stream: &mut TcpStream, times: u32) {
    for _ in 0..times {
        // A frame with a text of five bytes, masked with zeros. The server's frame is not masked.
        stream.write_all(b"\x81\x85\0\0\0\0hello").expect("the data is sent");
        let mut frame = [0; 7];
        stream.read_exact(&mut frame).expect("an echo");
        assert_eq!(&frame, b"\x81\x05hello");
    }
}
