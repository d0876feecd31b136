//! Functions that several fuzz targets use: they make all outputs of a capture and check them.

use std::ffi::OsString;
use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::sync::OnceLock;

use clap::Parser as _;
use ctxtrace_analysis::summarize::summarize;
use ctxtrace::cli::comparison::CompareSettings;
use ctxtrace::cli::settings::ReportSettings;
use ctxtrace::cli::{Cli, Command as CliCommand};
use ctxtrace_format::printable::is_harmful;
use ctxtrace_report::flamegraph::{self, Labels, Subject};
use ctxtrace_report::{Weight, folded, table};
use ctxtrace::run;
use ctxtrace_analysis::symbolize::stacks::Resolved;
use ctxtrace_format::file;

/// Output options of `report`, grouped by the data that a capture must have for them.
const OUTPUTS: [&[&str]; 5] = [
    &["--json", "--html"],
    &["--flamegraph", "--folded", "--pprof"],
    &["--wakeups-flamegraph"],
    &["--on-cpu-flamegraph"],
    &["--perfetto"],
];

/// Output options of `compare`.
const COMPARED: &[&str] = &["--json", "--markdown", "--flamegraph", "--on-cpu-flamegraph"];

/// Makes every output of a capture with the commands `report` and `compare`, and checks all texts and errors. The result for a
/// forged file must be an error message or a report, without a panic and without a character that controls a terminal.
pub fn report(capture: &[u8]) {
    let folder = FOLDER.get_or_init(|| {
        // The standard output of the commands is discarded; `table` renders the same texts again.
        let nowhere = File::options().write(true).open("/dev/null").expect("/dev/null is writable");
        nix::unistd::dup2_stdout(nowhere).expect("standard output is redirected");
        tempfile::tempdir_in("/dev/shm").or_else(|_| tempfile::tempdir()).expect("a temporary folder")
    });
    let file = folder.path().join("hostile.ctx");
    fs::write(&file, capture).expect("the file is written");
    table(capture);
    for options in OUTPUTS {
        command("report", std::slice::from_ref(&file), options, folder.path());
    }
    command("compare", &[file.clone(), file], COMPARED, folder.path());
}

static FOLDER: OnceLock<tempfile::TempDir> = OnceLock::new();

/// Runs a command with an output file for each of these options, and checks the outputs or the error.
fn command(name: &str, inputs: &[PathBuf], options: &[&str], folder: &Path) {
    let mut line: Vec<OsString> = vec!["ctxtrace".into(), name.into()];
    line.extend(inputs.iter().map(Into::into));
    for option in options {
        line.extend([option.into(), folder.join(&option[2..]).into()]);
    }
    let made = match Cli::try_parse_from(line).expect("a valid command line").command {
        CliCommand::Report(args) => run::report(&ReportSettings::try_from(args).expect("valid settings")),
        CliCommand::Compare(args) => run::compare(&CompareSettings::try_from(args).expect("valid settings")),
        _ => unreachable!("the command is report or compare"),
    };
    if let Err(error) = made {
        harmless_text(&error.to_string());
    }
    for option in options.iter().filter(|option| !matches!(**option, "--pprof" | "--perfetto")) {
        let output = folder.join(&option[2..]);
        if let Ok(bytes) = fs::read(&output) {
            harmless_text(&String::from_utf8(bytes).expect("valid UTF-8"));
            let _ = fs::remove_file(output);
        }
    }
}

/// Renders the table of a capture, if it is readable, and checks the text.
fn table(capture: &[u8]) {
    let Ok(saved) = file::read(capture, |_, _| {}) else { return };
    let mut report = summarize(&saved.info, &saved.runs);
    report.cut_short = report.cut_short.or(saved.damage);
    harmless_text(&table::render(&report, table::Style { color: false }));
}

/// Renders folded stacks and flamegraphs of any stacks, and checks the texts.
pub fn pictures(resolved: &Resolved) {
    for weight in [Weight::Time, Weight::Count] {
        let lines = folded::render(&resolved.stacks, weight);
        harmless_text(&lines);
        let labels = Labels {
            subject: "fuzz".to_owned(),
            lost: None,
        };
        let Ok(svg) = flamegraph::render(resolved, Subject::Switches, weight, &labels) else {
            continue;
        };
        let svg = String::from_utf8(svg).expect("valid UTF-8");
        // A flamegraph has at most one script, which is its own.
        assert!(svg.matches("<script").count() <= 1, "{svg}");
        assert!(!svg.contains('\u{1b}'), "{svg}");
    }
}

/// Checks that a text has no character that controls a terminal.
fn harmless_text(text: &str) {
    let harmful = text.chars().find(|&c| c != '\n' && is_harmful(c));
    assert_eq!(harmful, None, "{text:?}");
}
