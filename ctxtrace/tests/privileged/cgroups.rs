//! CPU quotas and freezers of cgroups: what keeps a thread off the CPU goes by its name.

use std::fs;
use std::path::PathBuf;

use serde_json::Value;

use crate::support::{command, number, stderr, stdout};

pub(crate) const TESTS: &[(&str, fn())] = &[
    ("a_quota_is_named", a_quota_is_named),
    (
        "a_waker_goes_by_the_name_it_has_when_it_wakes",
        a_waker_goes_by_the_name_it_has_when_it_wakes,
    ),
];

/// A cgroup of v1 that goes with the test.
struct Cgroup(PathBuf);

impl Cgroup {
    fn new(controller: &str, files: &[(&str, &str)]) -> Self {
        let place = PathBuf::from(format!(
            "/sys/fs/cgroup/{controller}/ctxtrace-test-{}",
            std::process::id()
        ));
        fs::create_dir(&place).expect("cgroup v1 of this controller is mounted");
        let cgroup = Self(place);
        for (file, value) in files {
            fs::write(cgroup.0.join(file), value).expect("a file of the cgroup");
        }
        cgroup
    }
}

impl Drop for Cgroup {
    fn drop(&mut self) {
        // Its last process may still be on its way out.
        for _ in 0..100 {
            if fs::remove_dir(&self.0).is_ok() {
                return;
            }
            std::thread::sleep(std::time::Duration::from_millis(10));
        }
    }
}

fn recorded(script: &str) -> (Value, String) {
    let file = tempfile::NamedTempFile::new().expect("a file");
    let output = command("record --json")
        .arg(file.path())
        .args(["--", "bash", "-c", script])
        .output()
        .expect("ctxtrace");
    assert!(output.status.success(), "{}", stderr(&output));
    let json = fs::read(file.path()).expect("the report");
    let text = stderr(&output) + &stdout(&output);
    (serde_json::from_slice(&json).expect("JSON"), text)
}

fn a_quota_is_named() {
    let cgroup = Cgroup::new("cpu", &[("cpu.cfs_period_us", "100000"), ("cpu.cfs_quota_us", "20000")]);
    let script = format!(
        "echo $$ >{}/tasks; exec timeout 1 bash -c 'while :; do :; done'; true",
        cgroup.0.display()
    );
    let (json, text) = recorded(&format!("({script}) || true"));
    assert!(number(&json, "/throttling/cgroups/0/throttled_periods") > 0, "{json}");
    assert!(text.contains("CPU quota"), "{text}");
    assert_eq!(number(&json, "/reconciliation/difference"), 0);
    if let Some(ns) = json["throttling"]["thread_ns"].as_u64() {
        assert!(
            ns > 0 && ns <= number(&json, "/latency/run_queue/sum_ns") as u64,
            "{json}"
        );
    }
}

fn a_waker_goes_by_the_name_it_has_when_it_wakes() {
    let folder = tempfile::tempdir().expect("a folder");
    let fifo = folder.path().join("fifo");
    nix::unistd::mkfifo(&fifo, nix::sys::stat::Mode::S_IRWXU).expect("a FIFO");
    let script = "sleep 1; echo 1; sleep 0.05; for i in 1 2 3 4 5; do echo $i; sleep 0.02; done; exec dd if=/dev/zero bs=1 count=200 status=none";
    let mut writer = std::process::Command::new("bash")
        .args(["-c", &format!("exec >{}; {script}", fifo.display())])
        .spawn()
        .expect("bash");
    let (json, _) = recorded(&format!("exec cat {} >/dev/null", fifo.display()));
    writer.wait().expect("it ends");
    let names: Vec<&str> = json["wakeups"]
        .as_array()
        .expect("wakeups")
        .iter()
        .filter(|row| row["origin"] == "outside")
        .filter_map(|row| row["from_thread"].as_str())
        .collect();
    assert!(names.contains(&"bash") && names.contains(&"dd"), "{names:?}");
}
