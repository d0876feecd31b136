//! The `ctxtrace` command: parse, run, print what went wrong, exit.

#![warn(clippy::print_stdout, clippy::print_stderr)]

use std::process::ExitCode;

use clap::Parser;
use ctxtrace::cli::comparison::{CompareSettings, ExplainSettings};
use ctxtrace::cli::settings::{RecordSettings, ReportSettings, RunSettings, SuiteSettings};
use ctxtrace::cli::{Cli, Command};
use ctxtrace::error::{Result, status};
use ctxtrace::target::descriptors;
use ctxtrace::target::user::keep_capabilities_from_children;
use ctxtrace::terminal::{print_usage, write_notice};
use ctxtrace::{reader, run};
use nix::sys::signal::{SigHandler, Signal, signal};

fn main() -> ExitCode {
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(error) => {
            // Help and version go to standard output with status 0, everything else to standard error with 2.
            print_usage(&error);
            return ExitCode::from(if error.use_stderr() { status::USAGE } else { 0 });
        }
    };
    if let Err(error) = keep_capabilities_from_children() {
        write_notice(&format!("ctxtrace: giving up ambient capabilities failed: {error}"));
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

/// Makes a write beyond the limit of a file's size (`ulimit -f`) an error, which is reported as any other, and not this
/// process's end.
fn fail_where_files_may_not_grow() {
    // SAFETY: no handler is installed, and there is one thread.
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
