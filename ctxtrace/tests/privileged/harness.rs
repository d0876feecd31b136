//! The test runner: kinds of tests, tests that cannot run, and names that match no test.

use std::ffi::OsString;
use std::panic::resume_unwind;
use std::process::{Command, ExitCode};

use libtest_mimic::{Arguments, Completion, Failed, Trial};
use nix::sys::signal::{SigHandler, Signal, signal};

/// A test has passed when its function returns. It calls [`skip`] or [`require_program`] if it cannot run.
pub(crate) type TestFunction = fn();

/// A list of tests with their names. Each module has one or more such lists.
pub(crate) type TestTable = &'static [(&'static str, TestFunction)];

/// `TestKind` determines which commands run a test.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum TestKind {
    /// The test runs on this machine's kernel.
    Ordinary,
    /// The test runs on this machine's kernel, and on each of `cargo xtask test --kernel`.
    Kernel,
    /// The test is a [`TestKind::Kernel`] test that also passes on a fully preemptible kernel. On such a kernel a thread can be
    /// woken before it has been switched out for its sleep, so the test does not count sleeps.
    PreemptibleKernel,
    /// The test takes long, or repeats a measurement: `cargo xtask test --long` runs it and no other command does.
    Long,
    /// The test is a [`TestKind::Long`] test that only `cargo xtask test --long --repeat` runs, because another long test takes the
    /// same measurement of a similar program.
    LongRepeated,
}

impl TestKind {
    /// The name of the kind, which is printed in brackets before a test's name. A filter may be a prefix of it: `[kernel` selects
    /// both kinds of kernel tests.
    fn name(self) -> &'static str {
        match self {
            Self::Ordinary => "",
            Self::Kernel => "kernel",
            Self::PreemptibleKernel => "kernel preemptible",
            Self::Long => "long",
            Self::LongRepeated => "long repeated",
        }
    }
}

/// The name of an environment variable. If it is set, a test fails if the user is not root or if a program is missing that
/// `cargo xtask setup` installs. If it is not set, such a test is skipped.
const REQUIRE_VARIABLE: &str = "CTXTRACE_REQUIRE_PRIVILEGED";

fn is_required() -> bool {
    std::env::var_os(REQUIRE_VARIABLE).is_some()
}

/// The panic payload of a skipped test: a description of what is missing.
struct SkippedTest(String);

/// Ends the running test and reports it as skipped, with `missing` as the reason.
pub(crate) fn skip(missing: impl Into<String>) -> ! {
    // Unlike `panic!`, `resume_unwind` prints nothing.
    resume_unwind(Box::new(SkippedTest(missing.into())))
}

/// Skips the running test, or fails it if [`REQUIRE_VARIABLE`] is set.
pub(crate) fn skip_unless_required(missing: impl Into<String>) -> ! {
    let missing = missing.into();
    assert!(!is_required(), "{missing}, and {REQUIRE_VARIABLE} is set");
    skip(missing)
}

/// Returns whether a program is on `PATH`.
pub(crate) fn has_program(program: &str) -> bool {
    Command::new(program)
        .arg("--version")
        .stdin(std::process::Stdio::null())
        .stdout(std::process::Stdio::null())
        .stderr(std::process::Stdio::null())
        .status()
        .is_ok()
}

/// Skips the running test unless a program is on `PATH`. `package` is the Debian package that contains the program.
pub(crate) fn require_program(program: &str, package: &str) {
    if !has_program(program) {
        skip_unless_required(format!("{program} is not on PATH (Debian: apt install {package})"));
    }
}

/// Returns the value of a variable that `cargo xtask test` sets. Skips the running test if the variable is not set.
pub(crate) fn require_variable(name: &str) -> OsString {
    std::env::var_os(name).unwrap_or_else(|| skip_unless_required(format!("{name} is not set: run `cargo xtask test`")))
}

/// Runs the tests that the command line selects.
pub(crate) fn run(tables: &[(TestKind, TestTable)]) -> ExitCode {
    stop_ignoring_signals();
    let mut arguments = Arguments::from_args();
    // Tests that run at the same time would take CPU time from each other.
    arguments.test_threads = Some(1);
    let is_root = nix::unistd::geteuid().is_root();
    let tests = tables
        .iter()
        .flat_map(|&(kind, table)| table.iter().map(move |test| (kind, test)));
    let trials: Vec<Trial> = tests
        .map(|(kind, &(name, function))| {
            Trial::ignorable_test(name, move || run_test(function, is_root))
                .with_kind(kind.name())
                .with_ignored_flag(matches!(kind, TestKind::Long | TestKind::LongRepeated))
        })
        .collect();
    if let Some(filter) = filter_without_match(&arguments, &trials) {
        eprintln!("no privileged test matches `{filter}`; --list prints the names of all tests");
        return ExitCode::FAILURE;
    }
    libtest_mimic::run(&arguments, trials).exit_code()
}

/// Restores the default action of the signals that terminate a program; the programs under test inherit it. A shell ignores some
/// of these signals in a command that ends with `&`, and `nohup` ignores `SIGHUP`.
fn stop_ignoring_signals() {
    for ending in [Signal::SIGHUP, Signal::SIGINT, Signal::SIGQUIT, Signal::SIGTERM] {
        // SAFETY: the default action runs no code of this program.
        unsafe { signal(ending, SigHandler::SigDfl) }.expect("the action of the signal can be set");
    }
}

/// Returns the filter if it is an exact test name or a kind of tests and no test matches it. Any other filter without a match is
/// accepted, because it may match tests of another executable.
fn filter_without_match<'a>(arguments: &'a Arguments, trials: &[Trial]) -> Option<&'a str> {
    let filter = arguments.filter.as_deref()?;
    let names_something = arguments.exact || filter.starts_with('[');
    let matches = trials.iter().any(|trial| !arguments.is_filtered_out(trial));
    (names_something && !matches).then_some(filter)
}

fn run_test(function: TestFunction, is_root: bool) -> Result<Completion, Failed> {
    let guarded = move || {
        if !is_root {
            skip_unless_required("the test needs root; `cargo xtask test` runs it as root");
        }
        function();
    };
    let Err(panic) = std::panic::catch_unwind(guarded) else {
        return Ok(Completion::Completed);
    };
    if let Some(SkippedTest(missing)) = panic.downcast_ref() {
        return Ok(Completion::ignored_with(missing));
    }
    let text = panic
        .downcast_ref::<String>()
        .map(String::as_str)
        .or_else(|| panic.downcast_ref::<&str>().copied());
    Err(Failed::from(text.unwrap_or("the test panicked")))
}

/// Tests of this runner itself.
pub(crate) const TESTS: TestTable = &[
    ("an_exact_name_must_match_a_test", an_exact_name_must_match_a_test),
    (
        "a_skipped_test_is_reported_as_skipped",
        a_skipped_test_is_reported_as_skipped,
    ),
];

fn an_exact_name_must_match_a_test() {
    let trials = || {
        vec![
            Trial::test("one", || Ok(())).with_kind("kernel"),
            Trial::test("two", || Ok(())),
        ]
    };
    let rejected = |line: &str| {
        let arguments = Arguments::from_iter(line.split_whitespace());
        filter_without_match(&arguments, &trials()).is_some()
    };
    assert!(rejected("privileged --exact three"));
    assert!(rejected("privileged --exact tw"));
    assert!(rejected("privileged [long]"));
    for accepted in [
        "privileged --exact two",
        "privileged [kernel",
        "privileged three",
        "privileged",
    ] {
        assert!(!rejected(accepted), "{accepted}");
    }
    let this = std::env::current_exe().expect("the path of this executable");
    let status = Command::new(this).args(["--exact", "there_is_no_such_test"]).status();
    assert!(!status.expect("the test executable starts").success());
}

fn a_skipped_test_is_reported_as_skipped() {
    let skipped = run_test(|| skip("a reason"), true).expect("a skipped test does not fail");
    assert!(matches!(skipped, Completion::Ignored { reason: Some(reason) } if reason == "a reason"));
    assert!(run_test(|| panic!("on purpose"), true).is_err());
    assert!(matches!(run_test(|| (), true), Ok(Completion::Completed)));
}
