//! The command line: what goes to which stream and file, exit statuses, and errors.

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
    ("quiet_prints_only_errors", quiet_prints_only_errors),
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
        "without_a_c_compiler_the_error_names_the_packages",
        without_a_c_compiler_the_error_names_the_packages,
    ),
    (
        "the_headline_is_the_median_of_the_repeats",
        the_headline_is_the_median_of_the_repeats,
    ),
    (
        "a_failed_assertion_sets_the_exit_status",
        a_failed_assertion_sets_the_exit_status,
    ),
    (
        "an_invalid_assertion_is_refused_before_the_run",
        an_invalid_assertion_is_refused_before_the_run,
    ),
    (
        "a_mismatch_comes_before_an_assertion",
        a_mismatch_comes_before_an_assertion,
    ),
    (
        "a_split_over_more_cpus_than_there_are_is_an_error",
        a_split_over_more_cpus_than_there_are_is_an_error,
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
    assert!(!table.contains('\x1b'), "the table has colours, but goes to a pipe");
    assert_eq!(stderr(&output), "", "standard error must be empty");
}

fn json_on_standard_output_is_nothing_but_json() {
    let output = ctxtrace("run --mode thread --iterations 2000 --json -");
    assert_eq!(output.status.code(), Some(0));
    serde_json::from_slice::<serde_json::Value>(&output.stdout).expect("valid JSON");
    assert!(
        stderr(&output).contains("messages/s"),
        "the table must be on standard error"
    );
}

fn every_output_follows_the_schema() {
    let schema = include_str!("../../../docs/schema/ctxtrace.report-1.schema.json");
    let validator = jsonschema::validator_for(&serde_json::from_str(schema).expect("valid JSON")).expect("a schema");
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
    let folder = tempfile::tempdir().expect("a temporary folder");
    let path = |name: &str| folder.path().join(name).display().to_string();
    std::fs::write(path("old.json"), "old").expect("the file is written");
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
        serde_json::from_slice(&std::fs::read(path("old.json")).expect("the file exists")).expect("replaced by JSON");
    let folded = std::fs::read_to_string(path("x.folded")).expect("the file exists");
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
        "the stacks must hold every switch"
    );
    for (name, root) in [("x.svg", "thread blocked"), ("w.svg", "woken by thread")] {
        let svg = std::fs::read_to_string(path(name)).expect("the file exists");
        assert!(svg.trim_end().ends_with("</svg>"), "{name}");
        assert!(svg.contains(root), "{name} has no frame {root}");
    }
    assert_eq!(
        std::fs::read_dir(folder.path()).expect("a readable folder").count(),
        4,
        "the folder must contain the four outputs and nothing else"
    );
    for name in ["old.json", "x.svg", "w.svg", "x.folded"] {
        assert!(stderr(&output).contains(&format!("wrote {}", path(name))));
    }
}

fn quiet_prints_only_errors() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let json = folder.path().join("x.json");
    let line = format!("run --quiet --mode thread --iterations 2000 --json {}", json.display());
    let output = ctxtrace(&format!("{line} --assert complete==true"));
    assert_eq!(output.status.code(), Some(0));
    assert_eq!((stdout(&output), stderr(&output)), Default::default());
    assert!(json.exists());
    // Errors are printed even with --quiet.
    let output = ctxtrace(&format!("{line} --assert complete==false"));
    assert_eq!(output.status.code(), Some(3));
    assert!(stderr(&output).contains("does not hold"), "{}", stderr(&output));
    let output = ctxtrace("record --quiet -- false");
    assert_eq!(output.status.code(), Some(1));
    assert_eq!((stdout(&output), stderr(&output)), Default::default());
}

fn the_flamegraph_names_functions() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let path = folder.path().join("x.folded");
    let output = ctxtrace(&format!(
        "run --mode task-pool --iterations 100000 --folded {}",
        path.display()
    ));
    assert_eq!(output.status.code(), Some(0), "{}", stderr(&output));
    let folded = std::fs::read_to_string(path).expect("the file exists");
    let parked: Vec<&str> = folded
        .lines()
        .filter(|line| line.starts_with("worker parked;tokio-rt-worker;") && line.contains("__schedule_[k]"))
        .collect();
    let find = |text: &str| parked.iter().any(|line| line.contains(text));
    for text in [
        // The start of the thread, a function of tokio with its path, the system call, and the kernel's futex code.
        "start_thread;",
        "tokio::runtime::scheduler::multi_thread::",
        "park",
        "do_syscall_64_[k]",
        "futex",
    ] {
        assert!(find(text), "{text} is in none of\n{}", parked.join("\n"));
    }
    assert!(folded.contains("_[i]"), "no frame of an inlined function");
}

fn under_sudo_everything_is_the_invoking_users() {
    const INVOKING_USER: u32 = 65_534;
    // The invoking user can execute the program in this folder and write to the folder.
    let folder = tempfile::tempdir_in("/tmp").expect("a temporary folder");
    std::fs::set_permissions(folder.path(), std::fs::Permissions::from_mode(0o755)).expect("the permissions are set");
    std::os::unix::fs::chown(folder.path(), Some(INVOKING_USER), Some(INVOKING_USER)).expect("the owner is set");
    let program = folder.path().join("ctxtrace");
    std::fs::copy(CTXTRACE, &program).expect("the file is copied");
    let json = folder.path().join("x.json");
    let mut child = std::process::Command::new(&program)
        .args(["run", "--mode", "process", "--iterations", "100000", "--json"])
        .arg(&json)
        .env("SUDO_UID", INVOKING_USER.to_string())
        .env("SUDO_GID", INVOKING_USER.to_string())
        .stdout(std::process::Stdio::null())
        .stderr(std::process::Stdio::piped())
        .spawn()
        .expect("the program starts");
    let workload = wait_for_workload(&child);
    assert_eq!(workload.uid().expect("the process is alive"), INVOKING_USER);
    let status = child.wait().expect("the program ends");
    assert!(status.success());
    let metadata = std::fs::metadata(&json).expect("the file exists");
    assert_eq!((metadata.uid(), metadata.gid()), (INVOKING_USER, INVOKING_USER));
}

fn under_sudo_c_is_built_by_the_invoking_user() {
    const INVOKING_USER: u32 = 65_534;
    let folder = tempfile::tempdir_in("/tmp").expect("a temporary folder");
    std::os::unix::fs::chown(folder.path(), Some(INVOKING_USER), Some(INVOKING_USER)).expect("the owner is set");
    let run = || {
        let output = command("run --mode process --language c --iterations 1000 --json -")
            .env("SUDO_UID", INVOKING_USER.to_string())
            .env("SUDO_GID", INVOKING_USER.to_string())
            .env("XDG_CACHE_HOME", folder.path())
            .output()
            .expect("the program starts");
        assert_eq!(output.status.code(), Some(0), "{}", stderr(&output));
        let kept = std::fs::read_dir(folder.path().join("ctxtrace")).expect("a readable folder");
        let kept: Vec<_> = kept.map(|entry| entry.expect("a readable entry").path()).collect();
        assert_eq!(kept.len(), 1, "{kept:?}");
        std::fs::metadata(&kept[0]).expect("the file exists")
    };
    let first = run();
    assert_eq!(
        (first.uid(), first.gid(), first.mode() & 0o777),
        (INVOKING_USER, INVOKING_USER, 0o700)
    );
    assert_eq!(run().ino(), first.ino(), "the program was built again");
}

fn without_a_c_compiler_the_error_names_the_packages() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let output = command("run --mode process --language c")
        .env("PATH", folder.path())
        .output()
        .expect("the program starts");
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
        "the latencies must be those of all runs"
    );
}

/// Runs `--mode thread` with these assertions and further options.
fn asserting(assertions: &[&str], more: &[&str]) -> std::process::Output {
    let mut command = command("run --mode thread --iterations 2000 --level counts");
    for assertion in assertions {
        command.args(["--assert", assertion]);
    }
    command.args(more).output().expect("the program starts")
}

fn a_failed_assertion_sets_the_exit_status() {
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

    // Every assertion that does not hold is reported, and the outputs are written nevertheless.
    let folder = tempfile::tempdir().expect("a temporary folder");
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
    let json: serde_json::Value =
        serde_json::from_slice(&std::fs::read(json).expect("the file exists")).expect("valid JSON");
    let per_message = &json["kernel_switches"]["per_message"];
    let printed = stderr(&output);
    let sentences: Vec<&str> = printed.lines().filter(|line| line.contains("does not hold")).collect();
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
    assert!(stdout(&output).contains("messages/s"), "the table is missing");
}

fn an_invalid_assertion_is_refused_before_the_run() {
    for (assertion, sentence) in [
        ("kernel_swiches.total < 5", "did you mean `kernel_switches`?"),
        ("workload.mode == 1", "`workload.mode` is text"),
        ("migrations < many", "a number, true or false is expected"),
    ] {
        let output = asserting(&[assertion], &[]);
        assert_eq!(output.status.code(), Some(2), "{assertion}");
        assert!(stderr(&output).contains(sentence), "{}", stderr(&output));
        assert_eq!(stdout(&output), "", "the workload has run");
    }
}

fn a_mismatch_comes_before_an_assertion() {
    let output = asserting(&["migrations < 0"], &["--drop-one-in", "10"]);
    assert_eq!(output.status.code(), Some(4), "{}", stderr(&output));
    assert!(stderr(&output).contains("`migrations < 0` does not hold: migrations is "));
}

fn a_split_over_more_cpus_than_there_are_is_an_error() {
    let output = command("run --mode task-pool --workers 1000 --pin split-cpus --iterations 10")
        .output()
        .expect("the program starts");
    assert_eq!(output.status.code(), Some(1));
    assert!(
        stderr(&output).contains("--pin split-cpus needs 1000 CPUs"),
        "{}",
        stderr(&output)
    );
}
