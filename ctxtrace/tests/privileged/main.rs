//! Tests on the real kernel that compare reports with results known in advance. They need root.
//!
//! Without root each test is reported as skipped; with `CTXTRACE_REQUIRE_PRIVILEGED` set it fails instead. The tests measure the
//! scheduler, so they run one at a time. [`harness`] runs them; each module has one table of tests per [`TestKind`] that it uses.
//!
//! Some tests trace a program written for the purpose ([`programs`]). That program is this executable, started again with
//! `CTXTRACE_TEST_PROGRAM` set to the program's name; it then runs that program instead of the tests.

mod advice;
mod captures;
mod cgroups;
mod cli;
mod counts;
#[path = "../../../ctxtrace-report/tests/decode/mod.rs"]
mod decode;
mod explain;
mod faults;
mod files;
mod filesystems;
mod folding;
mod go;
mod harness;
mod hostile_files;
mod hostile_sizes;
mod interposed;
mod large;
mod layouts;
mod locators;
mod mappings;
mod names;
mod outputs;
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
mod unseen;
mod variants;
mod viewers;

use std::process::ExitCode;

use crate::harness::TestKind::{Kernel, Long, LongRepeated, Ordinary, PreemptibleKernel};
use crate::harness::{TestKind, TestTable};

const TABLES: &[(TestKind, TestTable)] = &[
    (Ordinary, harness::TESTS),
    (PreemptibleKernel, counts::PREEMPTIBLE_KERNEL_TESTS),
    (Kernel, counts::KERNEL_TESTS),
    (Ordinary, counts::TESTS),
    (Kernel, tasks::KERNEL_TESTS),
    (Ordinary, tasks::TESTS),
    (Ordinary, record::TESTS),
    (Ordinary, captures::TESTS),
    (Kernel, cgroups::KERNEL_TESTS),
    (Ordinary, cgroups::TESTS),
    #[cfg(feature = "parquet")]
    (Ordinary, tables::TESTS),
    (Ordinary, real_programs::TESTS),
    (Ordinary, go::TESTS),
    (Long, go::LONG_TESTS),
    (Kernel, timeline::KERNEL_TESTS),
    (Ordinary, timeline::TESTS),
    (Ordinary, polls::TESTS),
    (Ordinary, sampling::TESTS),
    (Ordinary, suite::TESTS),
    (Ordinary, variants::TESTS),
    (Long, variants::LONG_TESTS),
    (Ordinary, explain::TESTS),
    (Long, explain::LONG_TESTS),
    (LongRepeated, explain::REPEATED_TESTS),
    (Ordinary, viewers::TESTS),
    (Ordinary, cli::TESTS),
    (Ordinary, privileges::TESTS),
    (Ordinary, advice::TESTS),
    (Ordinary, outputs::TESTS),
    (Ordinary, interposed::TESTS),
    (Ordinary, files::TESTS),
    (Ordinary, locators::TESTS),
    (Ordinary, mappings::TESTS),
    (Ordinary, layouts::TESTS),
    (Long, layouts::LONG_TESTS),
    (Kernel, filesystems::KERNEL_TESTS),
    (Ordinary, filesystems::TESTS),
    (Ordinary, hostile_files::TESTS),
    (Long, hostile_files::LONG_TESTS),
    (Ordinary, hostile_sizes::TESTS),
    (Long, hostile_sizes::LONG_TESTS),
    (Ordinary, names::TESTS),
    (Ordinary, unseen::TESTS),
    (Ordinary, faults::TESTS),
    (Long, faults::LONG_TESTS),
    (Ordinary, large::TESTS),
    (Ordinary, folding::TESTS),
    (Long, large::LONG_TESTS),
    (Ordinary, storms::TESTS),
    (Long, storms::LONG_TESTS),
];

fn main() -> ExitCode {
    if let Some(program) = std::env::var_os(programs::VARIABLE) {
        return programs::run(&program);
    }
    // ctxtrace reads the ELF files of traced programs in a child process, which is this executable when the tests trace in-process.
    if std::env::args().nth(1).as_deref() == Some(ctxtrace::reader::SUBCOMMAND) {
        return ExitCode::from(ctxtrace::reader::serve());
    }
    harness::run(TABLES)
}
