//! What a person types, and what comes of it.

use std::os::unix::fs::{MetadataExt, PermissionsExt};

use crate::support::{CTXTRACE, command, ctxtrace, number, run_json, stderr, stdout, wait_for_workload};

pub(crate) const TESTS: &[(&str, fn())] = &[
    ("the_table_goes_to_standard_output", the_table_goes_to_standard_output),
    (
        "json_on_standard_output_is_nothing_but_json",
        json_on_standard_output_is_nothing_but_json,
    ),
    ("every_output_follows_the_schema", every_output_follows_the_schema),
    ("files_are_written_whole", files_are_written_whole),
    ("quiet_says_nothing", quiet_says_nothing),
    ("the_flamegraph_names_functions", the_flamegraph_names_functions),
    (
        "under_sudo_everything_is_the_invoking_users",
        under_sudo_everything_is_the_invoking_users,
    ),
    (
        "under_sudo_c_is_built_by_the_invoking_user",
        under_sudo_c_is_built_by_the_invoking_user,
    ),
    (
        "without_a_compiler_c_says_how_to_get_one",
        without_a_compiler_c_says_how_to_get_one,
    ),
    (
        "the_headline_is_the_median_of_the_repeats",
        the_headline_is_the_median_of_the_repeats,
    ),
    (
        "an_assertion_that_does_not_hold_is_an_exit_status",
        an_assertion_that_does_not_hold_is_an_exit_status,
    ),
    (
        "an_assertion_that_makes_no_sense_is_found_before_the_run",
        an_assertion_that_makes_no_sense_is_found_before_the_run,
    ),
    (
        "a_mismatch_comes_before_an_assertion",
        a_mismatch_comes_before_an_assertion,
    ),
    (
        "a_split_over_more_cpus_than_there_are_says_so",
        a_split_over_more_cpus_than_there_are_says_so,
    ),
];

fn the_table_goes_to_standard_output() {
    let output = ctxtrace("run --mode thread --iterations 2000");
    assert_eq!(output.status.code(), Some(0));
    let table = stdout(&output);
    for text in [
        "messages/s",
        "ns/message",
        "kernel switches/message",
        "difference 0",
        "wake to run",
        "Lost",
    ] {
        assert!(table.contains(text), "{text} is missing in\n{table}");
    }
    assert!(!table.contains('\x1b'), "no colour in a pipe");
    assert_eq!(stderr(&output), "", "and no progress bar");
}

fn json_on_standard_output_is_nothing_but_json() {
    let output = ctxtrace("run --mode thread --iterations 2000 --json -");
    assert_eq!(output.status.code(), Some(0));
    serde_json::from_slice::<serde_json::Value>(&output.stdout).expect("JSON");
    assert!(stderr(&output).contains("messages/s"), "the table is on standard error");
}

fn every_output_follows_the_schema() {
    let schema = include_str!("../../../docs/schema/ctxtrace.report-1.schema.json");
    let validator = jsonschema::validator_for(&serde_json::from_str(schema).expect("JSON")).expect("a schema");
    for line in [
        "--mode process --iterations 1000",
        "--mode thread --iterations 1000 --level counts",
        "--mode task --iterations 1000 --repeat 3",
        "--mode task-pool --iterations 1000 --buffer 64",
    ] {
        let json = run_json(line);
        let errors: Vec<String> = validator.iter_errors(&json).map(|error| error.to_string()).collect();
        assert!(errors.is_empty(), "{line}: {errors:?}");
    }
}

fn files_are_written_whole() {
    let folder = tempfile::tempdir().expect("a folder");
    let path = |name: &str| folder.path().join(name).display().to_string();
    std::fs::write(path("old.json"), "old").expect("written");
    let line = format!(
        "run --mode thread --iterations 2000 --json {} --flamegraph {} --wakeups-flamegraph {} --folded {} --weight count",
        path("old.json"),
        path("x.svg"),
        path("w.svg"),
        path("x.folded")
    );
    let output = ctxtrace(&line);
    assert_eq!(output.status.code(), Some(0), "{}", stderr(&output));
    let json: serde_json::Value =
        serde_json::from_slice(&std::fs::read(path("old.json")).expect("there")).expect("replaced by JSON");
    let folded = std::fs::read_to_string(path("x.folded")).expect("there");
    let values = folded.lines().map(|line| {
        line.rsplit(' ')
            .next()
            .expect("a value")
            .parse::<i64>()
            .expect("a number")
    });
    assert_eq!(
        values.sum::<i64>(),
        number(&json, "/kernel_switches/total"),
        "every switch is in the stacks"
    );
    for (name, root) in [("x.svg", "thread blocked"), ("w.svg", "woken by thread")] {
        let svg = std::fs::read_to_string(path(name)).expect("there");
        assert!(svg.trim_end().ends_with("</svg>"), "{name}");
        assert!(svg.contains(root), "{name} has no frame {root}");
    }
    assert_eq!(
        std::fs::read_dir(folder.path()).expect("a folder").count(),
        4,
        "nothing is left beside them"
    );
    for name in ["old.json", "x.svg", "w.svg", "x.folded"] {
        assert!(stderr(&output).contains(&format!("wrote {}", path(name))));
    }
}

fn quiet_says_nothing() {
    let folder = tempfile::tempdir().expect("a folder");
    let json = folder.path().join("x.json");
    let line = format!("run --quiet --mode thread --iterations 2000 --json {}", json.display());
    let output = ctxtrace(&format!("{line} --assert complete==true"));
    assert_eq!(output.status.code(), Some(0));
    assert_eq!((stdout(&output), stderr(&output)), Default::default());
    assert!(json.exists());
    // What goes wrong is said.
    let output = ctxtrace(&format!("{line} --assert complete==false"));
    assert_eq!(output.status.code(), Some(3));
    assert!(stderr(&output).contains("does not hold"), "{}", stderr(&output));
    let output = ctxtrace("record --quiet -- false");
    assert_eq!(output.status.code(), Some(1));
    assert_eq!((stdout(&output), stderr(&output)), Default::default());
}

fn the_flamegraph_names_functions() {
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("x.folded");
    let output = ctxtrace(&format!(
        "run --mode task-pool --iterations 100000 --folded {}",
        path.display()
    ));
    assert_eq!(output.status.code(), Some(0), "{}", stderr(&output));
    let folded = std::fs::read_to_string(path).expect("there");
    let parked: Vec<&str> = folded
        .lines()
        .filter(|line| line.starts_with("worker parked;tokio-rt-worker;") && line.contains("__schedule_[k]"))
        .collect();
    let find = |text: &str| parked.iter().any(|line| line.contains(text));
    for text in [
        // The thread's beginning, tokio's own function with its path, the system call, the kernel's futex code.
        "start_thread;",
        "tokio::runtime::scheduler::multi_thread::",
        "park",
        "do_syscall_64_[k]",
        "futex",
    ] {
        assert!(find(text), "{text} is in none of\n{}", parked.join("\n"));
    }
    assert!(folded.contains("_[i]"), "inlined functions are told");
}

fn under_sudo_everything_is_the_invoking_users() {
    const NOBODY: u32 = 65_534;
    // Where that user can reach the program, and write.
    let folder = tempfile::tempdir_in("/tmp").expect("a folder");
    std::fs::set_permissions(folder.path(), std::fs::Permissions::from_mode(0o755)).expect("allowed");
    std::os::unix::fs::chown(folder.path(), Some(NOBODY), Some(NOBODY)).expect("allowed");
    let program = folder.path().join("ctxtrace");
    std::fs::copy(CTXTRACE, &program).expect("copied");
    let json = folder.path().join("x.json");
    let mut child = std::process::Command::new(&program)
        .args(["run", "--mode", "process", "--iterations", "100000", "--json"])
        .arg(&json)
        .env("SUDO_UID", NOBODY.to_string())
        .env("SUDO_GID", NOBODY.to_string())
        .stdout(std::process::Stdio::null())
        .stderr(std::process::Stdio::piped())
        .spawn()
        .expect("started");
    let workload = wait_for_workload(&child);
    assert_eq!(workload.uid().expect("alive"), NOBODY);
    let status = child.wait().expect("ended");
    assert!(status.success());
    let metadata = std::fs::metadata(&json).expect("there");
    assert_eq!((metadata.uid(), metadata.gid()), (NOBODY, NOBODY));
}

fn under_sudo_c_is_built_by_the_invoking_user() {
    const NOBODY: u32 = 65_534;
    let folder = tempfile::tempdir_in("/tmp").expect("a folder");
    std::os::unix::fs::chown(folder.path(), Some(NOBODY), Some(NOBODY)).expect("allowed");
    let run = || {
        let output = command("run --mode process --language c --iterations 1000 --json -")
            .env("SUDO_UID", NOBODY.to_string())
            .env("SUDO_GID", NOBODY.to_string())
            .env("XDG_CACHE_HOME", folder.path())
            .output()
            .expect("started");
        assert_eq!(output.status.code(), Some(0), "{}", stderr(&output));
        let kept = std::fs::read_dir(folder.path().join("ctxtrace")).expect("a folder");
        let kept: Vec<_> = kept.map(|entry| entry.expect("readable").path()).collect();
        assert_eq!(kept.len(), 1, "{kept:?}");
        std::fs::metadata(&kept[0]).expect("there")
    };
    let first = run();
    assert_eq!(
        (first.uid(), first.gid(), first.mode() & 0o777),
        (NOBODY, NOBODY, 0o700)
    );
    assert_eq!(run().ino(), first.ino(), "it is built once");
}

fn without_a_compiler_c_says_how_to_get_one() {
    let folder = tempfile::tempdir().expect("a folder");
    let output = command("run --mode process --language c")
        .env("PATH", folder.path())
        .output()
        .expect("started");
    assert_eq!(output.status.code(), Some(1));
    assert!(
        stderr(&output).contains("apt install gcc libc6-dev"),
        "{}",
        stderr(&output)
    );
}

fn the_headline_is_the_median_of_the_repeats() {
    let json = run_json("--mode thread --iterations 2000 --repeat 5");
    let runs = json["workload"]["runs"].as_array().expect("runs");
    assert_eq!(runs.len(), 5);
    let mut elapsed: Vec<i64> = runs.iter().map(|run| number(run, "/elapsed_ns")).collect();
    elapsed.sort_unstable();
    assert_eq!(number(&json, "/workload/elapsed_ns"), elapsed[2]);
    let intervals = number(&json, "/latency/off_cpu/count");
    assert!(
        intervals > 4 * number(&json, "/kernel_switches/total"),
        "latencies are of all runs"
    );
}

/// A run of `thread` with these assertions.
fn asserting(assertions: &[&str], more: &[&str]) -> std::process::Output {
    let mut command = command("run --mode thread --iterations 2000 --level counts");
    for assertion in assertions {
        command.args(["--assert", assertion]);
    }
    command.args(more).output().expect("started")
}

fn an_assertion_that_does_not_hold_is_an_exit_status() {
    let output = asserting(
        &[
            "kernel_switches.per_message >= 2",
            "ledger[class=thread-blocked].count > 0",
            "ledger_adds_up == true",
        ],
        &[],
    );
    assert_eq!(output.status.code(), Some(0), "{}", stderr(&output));
    assert_eq!(stderr(&output), "ctxtrace: 3 assertions hold\n");

    // Each that does not hold is told, and the outputs are written all the same.
    let folder = tempfile::tempdir().expect("a folder");
    let json = folder.path().join("x.json");
    let output = asserting(
        &[
            "kernel_switches.per_message < 0.01",
            "complete == true",
            "task_switches.hit_kernel == 0",
        ],
        &["--json", &json.display().to_string()],
    );
    assert_eq!(output.status.code(), Some(3));
    let json: serde_json::Value = serde_json::from_slice(&std::fs::read(json).expect("there")).expect("JSON");
    let per_message = &json["kernel_switches"]["per_message"];
    let told = stderr(&output);
    let sentences: Vec<&str> = told.lines().filter(|line| line.contains("does not hold")).collect();
    assert_eq!(
        sentences,
        [
            format!(
                "ctxtrace: `kernel_switches.per_message < 0.01` does not hold: kernel_switches.per_message is {per_message}"
            ),
            "ctxtrace: `task_switches.hit_kernel == 0` does not hold: task_switches is null: no thread of the target counts its \
             polls: the program does not use ctxtrace-probe"
                .to_owned(),
        ]
    );
    assert!(stdout(&output).contains("messages/s"), "the table is there too");
}

fn an_assertion_that_makes_no_sense_is_found_before_the_run() {
    for (assertion, sentence) in [
        ("kernel_swiches.total < 5", "did you mean `kernel_switches`?"),
        ("workload.mode == 1", "`workload.mode` is text"),
        ("migrations < many", "a number, true or false is expected"),
    ] {
        let output = asserting(&[assertion], &[]);
        assert_eq!(output.status.code(), Some(2), "{assertion}");
        assert!(stderr(&output).contains(sentence), "{}", stderr(&output));
        assert_eq!(stdout(&output), "", "nothing has run");
    }
}

fn a_mismatch_comes_before_an_assertion() {
    let output = asserting(&["migrations < 0"], &["--drop-one-in", "10"]);
    assert_eq!(output.status.code(), Some(4), "{}", stderr(&output));
    assert!(stderr(&output).contains("`migrations < 0` does not hold: migrations is "));
}

fn a_split_over_more_cpus_than_there_are_says_so() {
    let output = command("run --mode task-pool --workers 1000 --pin split-cpus --iterations 10")
        .output()
        .expect("started");
    assert_eq!(output.status.code(), Some(1));
    assert!(
        stderr(&output).contains("--pin split-cpus wants 1000 CPUs"),
        "{}",
        stderr(&output)
    );
}
