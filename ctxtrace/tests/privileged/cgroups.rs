//! CPU quotas and freezers of cgroups: the report names them when they keep a thread off the CPU.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::Value;

use crate::harness::skip;
use crate::support::{command, number, recorder_at_work, stderr, stdout, wait_until};

pub(crate) const KERNEL_TESTS: &[(&str, fn())] = &[
    ("a_quota_is_named", a_quota_is_named),
    (
        "the_quota_of_a_parent_counts_for_a_child_without_one",
        the_quota_of_a_parent_counts_for_a_child_without_one,
    ),
    (
        "the_time_throttled_is_what_the_kernel_has_added",
        the_time_throttled_is_what_the_kernel_has_added,
    ),
    ("the_freezer_of_cgroup_v1_stops", the_freezer_of_cgroup_v1_stops),
    (
        "a_sleep_that_cgroup_v1_freezes_stays_a_sleep",
        a_sleep_that_cgroup_v1_freezes_stays_a_sleep,
    ),
    (
        "a_read_that_cgroup_v1_freezes_becomes_a_stop",
        a_read_that_cgroup_v1_freezes_becomes_a_stop,
    ),
    ("the_freezer_of_cgroup_v2_stops", the_freezer_of_cgroup_v2_stops),
];

pub(crate) const TESTS: &[(&str, fn())] = &[(
    "a_waker_has_the_name_that_it_had_at_the_wakeup",
    a_waker_has_the_name_that_it_had_at_the_wakeup,
)];

/// A cgroup that is removed when the value is dropped.
pub(crate) struct Cgroup(PathBuf);

impl Cgroup {
    /// Creates a cgroup directly below the root of a hierarchy and writes these values to its files. Skips the running test if the
    /// cgroup cannot be created.
    pub(crate) fn new(hierarchy: &Path, files: &[(&str, &str)]) -> Self {
        Self::at(hierarchy.join(format!("ctxtrace-test-{}", std::process::id())), files)
    }

    /// Creates a cgroup below this one.
    fn below(&self, name: &str) -> Self {
        Self::at(self.0.join(name), &[])
    }

    fn at(place: PathBuf, files: &[(&str, &str)]) -> Self {
        if let Err(error) = fs::create_dir(&place) {
            skip(format!("cannot create the cgroup {}: {error}", place.display()));
        }
        let cgroup = Self(place);
        for (file, value) in files {
            fs::write(cgroup.0.join(file), value).expect("a file of the cgroup");
        }
        cgroup
    }

    /// Returns the path of the cgroup in its hierarchy, as reports print it.
    fn path(&self) -> String {
        let name = self.0.file_name().expect("the cgroup has a name").to_string_lossy();
        format!("/{name}")
    }

    /// Returns the path of `cgroup.procs`. Writing the id of a process to this file moves the process to the cgroup.
    pub(crate) fn procs(&self) -> PathBuf {
        self.0.join("cgroup.procs")
    }

    fn write(&self, file: &str, value: &str) {
        fs::write(self.0.join(file), value).expect("a file of the cgroup");
    }

    fn read(&self, file: &str) -> String {
        fs::read_to_string(self.0.join(file)).expect("a file of the cgroup")
    }
}

impl Drop for Cgroup {
    fn drop(&mut self) {
        // The removal fails until the last process of the cgroup has exited.
        for _ in 0..100 {
            if fs::remove_dir(&self.0).is_ok() {
                return;
            }
            std::thread::sleep(std::time::Duration::from_millis(10));
        }
    }
}

/// Returns the mount point of a cgroup hierarchy: that of v1 with this controller if `kind` is `cgroup`, that of v2 if it is
/// `cgroup2`. Skips the running test if none is mounted.
fn mounted(kind: &str, controller: Option<&str>) -> PathBuf {
    let mounts = fs::read_to_string("/proc/mounts").expect("/proc is readable");
    let place = mounts.lines().find_map(|line| {
        let mut words = line.split(' ').skip(1);
        let (place, of, options) = (words.next()?, words.next()?, words.next()?);
        let has = |controller: &str| options.split(',').any(|option| option == controller);
        (of == kind && controller.is_none_or(has)).then(|| PathBuf::from(place))
    });
    place.unwrap_or_else(|| {
        let which = controller.map_or_else(String::new, |controller| format!(" with the controller {controller}"));
        skip(format!("no file system of type {kind}{which} is mounted"))
    })
}

/// Returns the mount point of the cgroup v1 hierarchy with the controller `cpu`. Skips the running test if it is not mounted.
pub(crate) fn cpu_v1() -> PathBuf {
    mounted("cgroup", Some("cpu"))
}

/// A process that computes without sleeping and is killed when the value is dropped.
struct Loop(Child);

impl Loop {
    /// Starts the process in a cgroup.
    fn start(cgroup: &Cgroup) -> Self {
        let script = format!("echo $$ >{}/cgroup.procs; while :; do :; done", cgroup.0.display());
        Self::of_script(cgroup, &script)
    }

    /// Starts a shell script that moves its shell to the cgroup, and waits until it is there.
    fn of_script(cgroup: &Cgroup, script: &str) -> Self {
        let mut shell = Command::new("sh");
        let running = Self(shell.args(["-c", script]).spawn().expect("the shell starts"));
        let pid = running.0.id().to_string();
        wait_until("the process is in the cgroup", || {
            cgroup.read("cgroup.procs").lines().any(|line| line == pid)
        });
        running
    }
}

impl Drop for Loop {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// A freeze of a cgroup. It ends when the value is dropped, also if the test fails: a frozen process of cgroup v1 cannot be killed.
struct Freeze<'a> {
    cgroup: &'a Cgroup,
    switch: &'a str,
    thaws: &'a str,
}

impl<'a> Freeze<'a> {
    /// Starts to freeze the cgroup by writing `freezes` to the file `switch`. Writing `thaws` ends the freeze.
    fn begin(cgroup: &'a Cgroup, [switch, freezes, thaws]: [&'a str; 3]) -> Self {
        cgroup.write(switch, freezes);
        Self { cgroup, switch, thaws }
    }
}

impl Drop for Freeze<'_> {
    fn drop(&mut self) {
        self.cgroup.write(self.switch, self.thaws);
    }
}

/// Ends the recording of a process in a frozen cgroup, then the freeze and the process. Checks that the report has the freeze, and returns
/// the report.
fn end_while_frozen(recorder: Child, freeze: Freeze<'_>, process: Loop, report: &Path) -> Value {
    kill(Pid::from_raw(recorder.id() as i32), Signal::SIGINT).expect("the signal is sent");
    let output = recorder.wait_with_output().expect("the program ends");
    let path = freeze.cgroup.path();
    drop(freeze);
    drop(process);
    let json: Value = serde_json::from_slice(&fs::read(report).expect("the file exists")).expect("valid JSON");
    assert_eq!(number(&json, "/reconciliation/difference"), 0, "{}", stderr(&output));
    let frozen = json["frozen_cgroups"].as_array().expect("an array");
    assert!(frozen.iter().any(|listed| *listed == path), "{frozen:?}");
    assert!(
        stderr(&output).contains("was frozen during the recording"),
        "{}",
        stderr(&output)
    );
    json
}

/// Records a process that computes, freezes its cgroup until the recording has ended, and checks that the report has the freeze as
/// a stop. `switch` is explained at [`Freeze::begin`]; the cgroup is frozen when the file `state` contains the line `frozen`.
fn a_freeze_is_a_stop(cgroup: &Cgroup, switch: [&str; 3], [state, frozen]: [&str; 2]) {
    let running = Loop::start(cgroup);
    let report = tempfile::NamedTempFile::new().expect("a file");
    let line = format!("record -p {} --json {}", running.0.id(), report.path().display());
    let recorder = recorder_at_work(&line);
    let freeze = Freeze::begin(cgroup, switch);
    wait_until("the cgroup is frozen", || {
        cgroup.read(state).lines().any(|line| line == frozen)
    });
    let json = end_while_frozen(recorder, freeze, running, report.path());
    let of_class = |class: &str| -> i64 {
        let rows = json["ledger"].as_array().expect("rows").iter();
        rows.filter(|row| row["class"] == class)
            .map(|row| number(row, "/count"))
            .sum()
    };
    // The process never sleeps, so only the freezer can take it off the CPU in another state than runnable.
    assert!(of_class("stopped") >= 1, "{:#}", json["ledger"]);
    assert_eq!(of_class("thread-blocked"), 0, "{:#}", json["ledger"]);
}

fn the_freezer_of_cgroup_v1_stops() {
    let cgroup = Cgroup::new(&mounted("cgroup", Some("freezer")), &[]);
    a_freeze_is_a_stop(
        &cgroup,
        ["freezer.state", "FROZEN", "THAWED"],
        ["freezer.state", "FROZEN"],
    );
}

fn the_freezer_of_cgroup_v2_stops() {
    let cgroup = Cgroup::new(&mounted("cgroup2", None), &[]);
    if !cgroup.0.join("cgroup.freeze").exists() {
        skip("this kernel has no cgroup.freeze (Linux 5.2 and later have it)");
    }
    a_freeze_is_a_stop(&cgroup, ["cgroup.freeze", "1", "0"], ["cgroup.events", "frozen 1"]);
}

/// If cgroup v1 freezes a thread in a freezable sleep, as in `nanosleep`, the thread is not switched out again, and its sleep continues.
fn a_sleep_that_cgroup_v1_freezes_stays_a_sleep() {
    assert_eq!(class_of_frozen_sleep("sleep", "sleep 1000"), "thread-blocked");
}

/// If cgroup v1 freezes a thread in another sleep, as in a read from a pipe, the kernel wakes the thread and then switches it out as frozen.
fn a_read_that_cgroup_v1_freezes_becomes_a_stop() {
    assert_eq!(class_of_frozen_sleep("cat", "cat"), "stopped");
}

/// Records a process that executes `command`, whose name is `name`, and that sleeps until its cgroup is frozen. The standard input of the
/// command is an empty FIFO. Returns the class of the interval that is open at the end of the recording, which is the only one that may be
/// a stop.
fn class_of_frozen_sleep(name: &str, command: &str) -> String {
    let cgroup = Cgroup::new(&mounted("cgroup", Some("freezer")), &[]);
    let folder = tempfile::tempdir().expect("a temporary folder");
    let [start, empty] = ["start", "empty"].map(|name| {
        let fifo = folder.path().join(name);
        nix::unistd::mkfifo(&fifo, nix::sys::stat::Mode::S_IRWXU).expect("the FIFO is created");
        fifo
    });
    let _writer = fs::File::options()
        .read(true)
        .write(true)
        .open(&empty)
        .expect("the FIFO is opened");
    let script = format!(
        "echo $$ >{}/cgroup.procs; read line <{}; exec {command} <{}",
        cgroup.0.display(),
        start.display(),
        empty.display()
    );
    let sleeper = Loop::of_script(&cgroup, &script);
    let pid = sleeper.0.id() as i32;
    let report = folder.path().join("report.json");
    let recorder = recorder_at_work(&format!("record -p {pid} --json {}", report.display()));
    fs::write(&start, "go\n").expect("the line is written");
    let sleeps = format!("({name}) S ");
    wait_until("the process sleeps", || {
        fs::read_to_string(format!("/proc/{pid}/stat")).is_ok_and(|stat| stat.contains(&sleeps))
    });
    let freeze = Freeze::begin(&cgroup, ["freezer.state", "FROZEN", "THAWED"]);
    wait_until("the cgroup is frozen", || {
        cgroup.read("freezer.state").trim() == "FROZEN"
    });
    let json = end_while_frozen(recorder, freeze, sleeper, &report);
    let rows = json["ledger"].as_array().expect("rows").iter();
    let open: Vec<&Value> = rows.clone().filter(|row| number(row, "/open") > 0).collect();
    assert_eq!(open.len(), 1, "{:#}", json["ledger"]);
    assert_eq!(number(open[0], "/open"), 1, "{:#}", json["ledger"]);
    for row in rows.filter(|row| row["class"] == "stopped") {
        assert_eq!(
            (number(row, "/count"), number(row, "/off_cpu_ns")),
            (1, 0),
            "{:#}",
            json["ledger"]
        );
    }
    open[0]["class"].as_str().expect("a class").to_owned()
}

/// Returns a shell script that moves its shell to `cgroup` and computes until the quota of `limited` has throttled it in at least
/// `periods` periods.
fn busy_until_throttled(cgroup: &Cgroup, limited: &Cgroup, periods: u64) -> String {
    format!(
        "echo $$ >{}/cgroup.procs; n=0; while [ $n -lt {periods} ]; do \
         i=0; while [ $i -lt 2000 ]; do i=$((i+1)); done; \
         while read -r name value; do [ $name = nr_throttled ] && n=$value; done <{}/cpu.stat; done; true",
        cgroup.0.display(),
        limited.0.display()
    )
}

/// Creates a cgroup whose processes may use 5 ms of CPU time per 100 ms.
fn limited_to_a_twentieth() -> Cgroup {
    Cgroup::new(
        &cpu_v1(),
        &[("cpu.cfs_period_us", "100000"), ("cpu.cfs_quota_us", "5000")],
    )
}

fn the_quota_of_a_parent_counts_for_a_child_without_one() {
    let parent = limited_to_a_twentieth();
    let child = parent.below("inner");
    let (json, text) = recorded(&busy_until_throttled(&child, &parent, 4));
    let throttled = |path: &str| {
        let quotas = json["throttling"]["cgroups"].as_array().expect("an array").iter();
        let of = quotas.clone().filter(|quota| quota["path"] == path);
        of.map(|quota| (number(quota, "/throttled_periods"), number(quota, "/throttled_ns")))
            .next()
    };
    let (periods, ns) = throttled(&parent.path()).expect("the parent has a quota");
    // ctxtrace may read the initial value of the counter after the process has been throttled for the first time, so fewer than the
    // four periods may be counted.
    assert!(periods >= 1 && ns > 0, "{:#}", json["throttling"]);
    let of_child = throttled(&format!("{}/inner", parent.path()));
    assert!(of_child.is_none_or(|of| of == (0, 0)), "{:#}", json["throttling"]);
    assert!(
        text.contains(&format!("quota of the cgroup {}", parent.path())),
        "{text}"
    );
    if let Some(ns) = json["throttling"]["thread_ns"].as_u64() {
        assert!(
            ns > 0 && ns <= number(&json, "/latency/run_queue/sum_ns") as u64,
            "{json:#}"
        );
    }
}

/// Returns a number from `cpu.stat` of a cgroup.
fn stat(cgroup: &Cgroup, name: &str) -> i64 {
    let text = cgroup.read("cpu.stat");
    let value = text
        .lines()
        .find_map(|line| line.strip_prefix(name)?.trim().parse().ok());
    value.unwrap_or_else(|| panic!("no {name} in {text}"))
}

/// A sleeping process is recorded while another process, in the same cgroup, exceeds the quota. The reported values are compared with the
/// differences of the kernel's counters: at least the difference during the other process, at most the difference over the whole
/// recording.
fn the_time_throttled_is_what_the_kernel_has_added() {
    const NAMES: [&str; 3] = ["nr_periods", "nr_throttled", "throttled_time"];
    let cgroup = limited_to_a_twentieth();
    let read = || NAMES.map(|name| stat(&cgroup, name));
    let script = format!("echo $$ >{}/cgroup.procs; exec sleep 1000", cgroup.0.display());
    let sleeper = Loop::of_script(&cgroup, &script);
    let report = tempfile::NamedTempFile::new().expect("a file");
    // What was counted before the recording must not be reported.
    let busy = Loop::start(&cgroup);
    wait_until("it is throttled", || stat(&cgroup, "nr_throttled") >= 5);
    drop(busy);
    let before = read();
    let recorder = recorder_at_work(&format!(
        "record -p {} --level counts --json {}",
        sleeper.0.id(),
        report.path().display()
    ));
    let begun = read();
    let busy = Loop::start(&cgroup);
    wait_until("it is throttled", || stat(&cgroup, "nr_throttled") >= begun[1] + 5);
    drop(busy);
    let ended = read();
    kill(Pid::from_raw(recorder.id() as i32), Signal::SIGINT).expect("the signal is sent");
    let output = recorder.wait_with_output().expect("the program ends");
    let after = read();
    drop(sleeper);
    let json: Value = serde_json::from_slice(&fs::read(report.path()).expect("the file exists")).expect("valid JSON");
    let quotas = json["throttling"]["cgroups"].as_array().expect("an array");
    let quota = quotas.iter().find(|quota| quota["path"] == cgroup.path());
    let quota = quota.unwrap_or_else(|| panic!("{}: {quotas:?}", stderr(&output)));
    for (index, field) in ["periods", "throttled_periods", "throttled_ns"].into_iter().enumerate() {
        let (least, most) = (ended[index] - begun[index], after[index] - before[index]);
        let reported = number(quota, &format!("/{field}"));
        assert!(
            least > 0 && (least..=most).contains(&reported),
            "{field}: {reported}, the kernel has added {least} to {most}"
        );
    }
}

fn recorded(script: &str) -> (Value, String) {
    let file = tempfile::NamedTempFile::new().expect("a file");
    let output = command("record --json")
        .arg(file.path())
        .args(["--", "sh", "-c", script])
        .output()
        .expect("the program starts");
    assert!(output.status.success(), "{}", stderr(&output));
    let json = fs::read(file.path()).expect("the file exists");
    let text = stderr(&output) + &stdout(&output);
    (serde_json::from_slice(&json).expect("valid JSON"), text)
}

fn a_quota_is_named() {
    let cgroup = Cgroup::new(
        &cpu_v1(),
        &[("cpu.cfs_period_us", "100000"), ("cpu.cfs_quota_us", "20000")],
    );
    let script = busy_until_throttled(&cgroup, &cgroup, 10);
    let (json, text) = recorded(&script);
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

fn a_waker_has_the_name_that_it_had_at_the_wakeup() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let fifo = folder.path().join("fifo");
    nix::unistd::mkfifo(&fifo, nix::sys::stat::Mode::S_IRWXU).expect("the FIFO is created");
    let script = "sleep 1; echo 1; sleep 0.05; for i in 1 2 3 4 5; do echo $i; sleep 0.02; done; exec dd if=/dev/zero bs=1 count=200 status=none";
    let mut writer = Command::new("bash")
        .args(["-c", &format!("exec >{}; {script}", fifo.display())])
        .spawn()
        .expect("bash starts");
    let (json, _) = recorded(&format!("exec cat {} >/dev/null", fifo.display()));
    writer.wait().expect("the program ends");
    let names: Vec<&str> = json["wakeups"]
        .as_array()
        .expect("wakeups")
        .iter()
        .filter(|row| row["origin"] == "outside")
        .filter_map(|row| row["from_thread"].as_str())
        .collect();
    assert!(names.contains(&"bash") && names.contains(&"dd"), "{names:?}");
}
