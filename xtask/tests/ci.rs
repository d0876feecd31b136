//! The workflow of the forge runs the commands of `.ci/run`.

use std::fs;
use std::path::Path;

/// The beginnings of the lines of `.ci/run` that are checks. Its other lines prepare the machine.
const CHECKS: [&str; 3] = ["RUSTDOCFLAGS=", "cargo ", "npm "];

/// The beginning of the commands whose further options are in a matrix of the workflow.
const IN_MATRIX: &str = "cargo xtask test --no-setup";

#[test]
fn the_workflow_runs_every_command_of_ci() {
    let repository = Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("the repository");
    let read = |name: &str| fs::read_to_string(repository.join(name)).unwrap_or_else(|error| panic!("{name}: {error}"));
    let (script, workflow) = (read(".ci/run"), read(".github/workflows/ci.yml"));
    let commands = script.lines().map(str::trim).filter(|line| {
        let is_check = |start: &&str| line.starts_with(start);
        CHECKS.iter().any(is_check)
    });
    let missing: Vec<&str> = commands
        .filter(|command| {
            let text = command.strip_prefix(IN_MATRIX).map_or_else(
                || format!("run: {command}\n"),
                |options| format!("\"{}\"", options.trim_start()),
            );
            !workflow.contains(&text)
        })
        .collect();
    assert!(
        missing.is_empty(),
        "the workflow lacks commands of .ci/run: {missing:?}"
    );
    assert!(workflow.contains(&format!("run: {IN_MATRIX} ${{{{ matrix.options }}}}\n")));
}
