//! The `ctxtrace` command: parse, run, print what went wrong, exit.

use std::io::Write;
use std::process::ExitCode;

use clap::Parser;
use ctxtrace::cli::settings::RunSettings;
use ctxtrace::cli::{Cli, Command};
use ctxtrace::error::{Result, status};
use ctxtrace::run;

fn main() -> ExitCode {
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(error) => {
            // Help and version go to standard output with status 0, everything else to standard error with 2.
            let _ = error.print();
            return ExitCode::from(if error.use_stderr() { status::USAGE } else { 0 });
        }
    };
    match execute(cli) {
        Ok(status) => ExitCode::from(status),
        Err(error) => {
            let _ = writeln!(std::io::stderr(), "ctxtrace: {error}");
            ExitCode::from(error.exit_status())
        }
    }
}

fn execute(cli: Cli) -> Result<u8> {
    match cli.command {
        Command::Run(args) => run::run(&RunSettings::try_from(args)?),
        Command::Workload(args) if args.prepare => run::child::prepare(&args.spec),
        Command::Workload(args) => run::child::be_a_workload(&args.spec, args.report_fd, args.progress_fd),
    }
}
