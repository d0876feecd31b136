//! The built-in Rust workloads with jemalloc as the allocator. `ctxtrace run --allocator jemalloc` starts this executable.
//!
//! It is a separate executable so that jemalloc is not linked into `ctxtrace` itself.

use std::process::ExitCode;

use clap::Parser;
use ctxtrace::cli::{OnlyWorkload, WorkloadCli};
use ctxtrace::error::status;
use ctxtrace::run::child::be_a_workload;
use ctxtrace::terminal::{print_usage, write_notice};

#[global_allocator]
static ALLOCATOR: tikv_jemallocator::Jemalloc = tikv_jemallocator::Jemalloc;

fn main() -> ExitCode {
    let OnlyWorkload::Workload(args) = match WorkloadCli::try_parse() {
        Ok(cli) => cli.command,
        Err(error) => {
            print_usage(&error);
            return ExitCode::from(if error.use_stderr() { status::USAGE } else { 0 });
        }
    };
    match be_a_workload(&args.spec, args.report_fd, args.progress_fd) {
        Ok(status) => ExitCode::from(status),
        Err(error) => {
            write_notice(&format!("ctxtrace: {error}"));
            ExitCode::from(error.exit_status())
        }
    }
}
