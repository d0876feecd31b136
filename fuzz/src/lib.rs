//! What fuzz targets share: everything that is made of a capture.

use std::ffi::OsString;
use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::sync::OnceLock;

use clap::Parser as _;
use ctxtrace::analyze::summarize::summarize;
use ctxtrace::cli::comparison::CompareSettings;
use ctxtrace::cli::settings::ReportSettings;
use ctxtrace::cli::{Cli, Command as CliCommand};
use ctxtrace::printable::is_harmful;
use ctxtrace::report::flamegraph::{self, Labels, Subject};
use ctxtrace::report::{Weight, folded, table};
use ctxtrace::run;
use ctxtrace::symbolize::stacks::Resolved;
use ctxtrace::trace::file;

/// Options of `report` that can be given together, by what a capture has to hold for them.
const OUTPUTS: [&[&str]; 5] = [
    &["--json", "--html"],
    &["--flamegraph", "--folded", "--pprof"],
    &["--wakeups-flamegraph"],
    &["--on-cpu-flamegraph"],
    &["--perfetto"],
];

/// Options of `compare`.
const COMPARED: &[&str] = &["--json", "--markdown", "--flamegraph", "--on-cpu-flamegraph"];

/// Makes every output of a capture, by the commands themselves, and looks at all texts and errors. What may come of a file that somebody
/// made up is a sentence, or a report; never a panic, never a character that a terminal would act on.
pub fn report(capture: &[u8]) {
    let folder = FOLDER.get_or_init(|| {
        // What the commands print goes nowhere: the same texts are made again by `table`.
        let nowhere = File::options().write(true).open("/dev/null").expect("a device");
        nix::unistd::dup2_stdout(nowhere).expect("standard output");
        tempfile::tempdir_in("/dev/shm").or_else(|_| tempfile::tempdir()).expect("a folder")
    });
    let file = folder.path().join("hostile.ctx");
    fs::write(&file, capture).expect("written");
    table(capture);
    for options in OUTPUTS {
        command("report", std::slice::from_ref(&file), options, folder.path());
    }
    command("compare", &[file.clone(), file], COMPARED, folder.path());
}

static FOLDER: OnceLock<tempfile::TempDir> = OnceLock::new();

/// Runs a command with an output for each of these options.
fn command(name: &str, inputs: &[PathBuf], options: &[&str], folder: &Path) {
    let mut line: Vec<OsString> = vec!["ctxtrace".into(), name.into()];
    line.extend(inputs.iter().map(Into::into));
    for option in options {
        line.extend([option.into(), folder.join(&option[2..]).into()]);
    }
    let made = match Cli::try_parse_from(line).expect("a command line").command {
        CliCommand::Report(args) => run::report(&ReportSettings::try_from(args).expect("settings")),
        CliCommand::Compare(args) => run::compare(&CompareSettings::try_from(args).expect("settings")),
        _ => unreachable!("no other command is given"),
    };
    if let Err(error) = made {
        harmless_text(&error.to_string());
    }
    for option in options.iter().filter(|option| !matches!(**option, "--pprof" | "--perfetto")) {
        let output = folder.join(&option[2..]);
        if let Ok(bytes) = fs::read(&output) {
            harmless_text(&String::from_utf8(bytes).expect("text"));
            let _ = fs::remove_file(output);
        }
    }
}

/// The table of a capture.
fn table(capture: &[u8]) {
    let Ok(saved) = file::read(capture, |_, _| {}) else { return };
    let mut report = summarize(&saved.info, &saved.runs);
    report.cut_short = report.cut_short.or(saved.damage);
    harmless_text(&table::render(&report, table::Style { color: false }));
}

/// Folded stacks and flamegraphs of any stacks.
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
        let svg = String::from_utf8(svg).expect("text");
        // Its own script, and no other.
        assert!(svg.matches("<script").count() <= 1, "{svg}");
        assert!(!svg.contains('\u{1b}'), "{svg}");
    }
}

/// Nothing that a terminal would act on.
fn harmless_text(text: &str) {
    let harmful = text.chars().find(|&c| c != '\n' && is_harmful(c));
    assert_eq!(harmful, None, "{text:?}");
}
