//! Tests on the real kernel, with truths known in advance. They need root.
//!
//! Without root they are skipped, loudly; with `CTXTRACE_REQUIRE_PRIVILEGED` set they fail instead. They measure the
//! scheduler, so they run one at a time (`--test-threads=1`), which `cargo xtask test` sees to.
//!
//! Some trace a program written for the purpose ([`programs`]): this very executable, started again with
//! `CTXTRACE_TEST_PROGRAM` set, in which case it is that program and nothing else.

#![expect(clippy::print_stdout, reason = "a test runner speaks on standard output")]

mod captures;
mod cli;
mod counts;
#[path = "../decode/mod.rs"]
mod decode;
mod explain;
mod faults;
mod files;
mod go;
mod polls;
mod privileges;
mod programs;
mod real_programs;
mod record;
mod sampling;
mod storms;
mod suite;
mod support;
#[cfg(feature = "parquet")]
mod tables;
mod tasks;
mod timeline;
mod variants;
mod viewers;

use std::process::ExitCode;

use nix::sys::signal::{SigHandler, Signal, signal};

use libtest_mimic::{Arguments, Failed, Trial};

type Test = fn();

fn main() -> ExitCode {
    if let Some(program) = std::env::var_os(programs::VARIABLE) {
        return programs::run(&program);
    }
    let mut arguments = Arguments::from_args();
    // A shell without job control starts what it puts in the background with this signal ignored, and that is inherited.
    // SAFETY: no handler is installed, and there is one thread.
    unsafe { signal(Signal::SIGINT, SigHandler::SigDfl) }.expect("a valid signal");
    // Two tests at once would be each other's noise, and each other's competitors for the CPU.
    arguments.test_threads = Some(1);
    let tests: Vec<(&str, Test)> = [
        counts::TESTS,
        tasks::TESTS,
        record::TESTS,
        captures::TESTS,
        #[cfg(feature = "parquet")]
        tables::TESTS,
        real_programs::TESTS,
        go::TESTS,
        timeline::TESTS,
        polls::TESTS,
        sampling::TESTS,
        suite::TESTS,
        variants::TESTS,
        explain::TESTS,
        viewers::TESTS,
        cli::TESTS,
        privileges::TESTS,
        faults::TESTS,
        files::TESTS,
        storms::TESTS,
    ]
    .concat();
    let root = nix::unistd::geteuid().is_root();
    let required = std::env::var_os("CTXTRACE_REQUIRE_PRIVILEGED").is_some();
    if !root && !arguments.list {
        println!(
            "SKIPPED (not root): {} privileged tests; run them with `cargo xtask test`",
            tests.len()
        );
        return ExitCode::from(u8::from(required));
    }
    let trials = tests
        .into_iter()
        .map(|(name, test)| Trial::test(name, move || run(test)))
        .collect();
    libtest_mimic::run(&arguments, trials).exit_code()
}

fn run(test: Test) -> Result<(), Failed> {
    std::panic::catch_unwind(test).map_err(|panic| {
        let text = panic
            .downcast_ref::<String>()
            .map(String::as_str)
            .or_else(|| panic.downcast_ref::<&str>().copied());
        Failed::from(text.unwrap_or("the test panicked"))
    })
}
