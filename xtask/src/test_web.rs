//! `cargo xtask test-web`: tests HTML reports in a headless browser.
//!
//! The reports are made from the captures in `ctxtrace/tests/captures`, and by a test that makes a report with everything in it,
//! including hostile names, and a report of five million events. `ctxtrace-report/web/test/test.mjs` opens and tests them.

use std::fs;

use anyhow::{Result, bail};

use crate::process;

/// The programs that the test needs, and the Debian packages that contain them.
const PROGRAMS: [(&str, &str); 3] = [("node", "nodejs"), ("npm", "npm"), ("chromium", "chromium")];

/// Makes the reports and tests them in the browser.
pub(crate) fn main() -> Result<()> {
    let missing: Vec<&str> = PROGRAMS
        .iter()
        .filter(|(program, _)| process::programs(program).is_empty())
        .map(|(_, package)| *package)
        .collect();
    if !missing.is_empty() {
        bail!(
            "the browser test needs packages that are not installed: apt install {}",
            missing.join(" ")
        );
    }
    let root = process::root();
    let test = root.join("ctxtrace-report/web/test");
    if !test.join("node_modules/axe-core").is_dir() || !test.join("node_modules/playwright-core").is_dir() {
        bail!(
            "the browser test needs the npm packages axe-core and playwright-core (no browser is downloaded): run `npm ci --ignore-scripts` in {}",
            test.display()
        );
    }
    let reports = root.join("target/web-test");
    fs::create_dir_all(&reports)?;
    let mut build = process::cargo();
    process::run(
        build
            .args(["build", "--locked", "-p", "ctxtrace", "--bin", "ctxtrace"])
            .current_dir(&root),
    )?;
    for name in ["stacks", "timeline", "go"] {
        let capture = root.join(format!("ctxtrace/tests/captures/v1-{name}.ctx"));
        let mut report = process::clean(root.join("target/debug/ctxtrace"));
        report
            .arg("report")
            .arg(capture)
            .arg("--html")
            .arg(reports.join(format!("{name}.html")));
        report.stdout(std::process::Stdio::null());
        process::run(&mut report)?;
    }
    let mut draw = process::cargo();
    draw.args([
        "test",
        "--locked",
        "-p",
        "ctxtrace-report",
        "--lib",
        "--",
        "--ignored",
        "--exact",
    ])
    .arg("golden::reports_for_the_browser")
    .env("CTXTRACE_WEB_TEST", &reports)
    .current_dir(&root);
    process::run(&mut draw)?;
    let mut open = process::clean("node");
    process::run(open.arg("test.mjs").arg(&reports).current_dir(&test))
}
