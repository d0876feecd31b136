//! The `ctxtrace` command: parses the command line, runs the command, prints its errors and exits with its status.

#![warn(clippy::print_stdout, clippy::print_stderr)]

use std::process::ExitCode;

use clap::Parser;
use ctxtrace::cli::comparison::{CompareSettings, ExplainSettings};
use ctxtrace::cli::settings::{RecordSettings, ReportSettings, RunSettings, SuiteSettings};
use ctxtrace::cli::{Cli, Command};
use ctxtrace::error::{Result, status};
use ctxtrace::terminal::{print_usage, write_notice};
use ctxtrace::tracee::descriptors;
use ctxtrace::tracee::user::keep_capabilities_from_children;
use ctxtrace::{reader, run};
use nix::sys::signal::{SigHandler, Signal, signal};

fn main() -> ExitCode {
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(error) => {
            // Help and version are printed on standard output with status 0, all other text on standard error with status 2.
            print_usage(&error);
            return ExitCode::from(if error.use_stderr() { status::USAGE } else { 0 });
        }
    };
    if let Err(error) = keep_capabilities_from_children() {
        write_notice(&format!("ctxtrace: dropping the ambient capabilities failed: {error}"));
        return ExitCode::from(status::FAILURE);
    }
    if !matches!(&cli.command, Command::Workload(_)) {
        fail_where_files_may_not_grow();
    }
    descriptors::raise_limit();
    let has_a_command = matches!(&cli.command, Command::Record(args) if args.pid.is_none());
    match execute(cli) {
        Ok(status) => ExitCode::from(status),
        Err(error) => {
            for each in error.each() {
                write_notice(&format!("ctxtrace: {each}"));
            }
            ExitCode::from(if has_a_command {
                error.exit_status_beside_a_commands()
            } else {
                error.exit_status()
            })
        }
    }
}

/// Ignores `SIGXFSZ`, so that a write beyond the file size limit (`ulimit -f`) fails with an error that is reported like any
/// other, instead of killing this process.
fn fail_where_files_may_not_grow() {
    // SAFETY: the signal is ignored, so no handler function is installed, and the process has only one thread.
    let _ = unsafe { signal(Signal::SIGXFSZ, SigHandler::SigIgn) };
}

fn execute(cli: Cli) -> Result<u8> {
    match cli.command {
        Command::Run(args) => run::run(&RunSettings::try_from(args)?),
        Command::Record(args) => run::record(&RecordSettings::try_from(args)?),
        Command::Explain(args) => run::explain::run(&ExplainSettings::try_from(args)?),
        Command::Compare(args) => run::compare(&CompareSettings::try_from(args)?),
        Command::Suite(args) => run::suite::run(&SuiteSettings::try_from(args)?),
        Command::Report(args) => run::report(&ReportSettings::try_from(args)?),
        Command::Doctor(args) => run::doctor::run(args.program.as_deref(), args.json.map(Into::into).as_ref()),
        Command::ReadFiles => Ok(reader::serve()),
        Command::Workload(args) => run::child::be_a_workload(&args.spec, args.report_fd, args.progress_fd),
    }
}
