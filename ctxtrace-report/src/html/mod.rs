//! Renders the whole report as one HTML page.
//!
//! The page is a single file that contains everything it needs, so it opens from a disk or from an attachment, without a network
//! or a server. It is assembled from `ctxtrace-report/web`: a template, a style sheet, plain scripts, and the drawing libraries
//! (`web/vendor`, with their licences).
//!
//! * `page`: the content of the page as data. Every sentence and figure is formatted here, by the same code as in the table.
//! * `flame`: stacks as trees of bounded size.
//! * `timeline`: the lanes of the timeline, packed.
//!
//! Names of threads, tasks and functions come from the traced program, which may be hostile. There are three defences:
//!
//! * The data is JSON in a script element of a type that is never executed, escaped so that nothing in it can close the element.
//! * The scripts insert text into the page only as text.
//! * A content security policy in the head of the page allows only the one style and the one script whose hashes it lists.

mod flame;
mod page;
mod timeline;

use data_encoding::BASE64;
use serde::Serialize;
use sha2::{Digest, Sha256};

use crate::RenderError;
use ctxtrace_analysis::result::Report;
use ctxtrace_format::printable::is_harmful;
use ctxtrace_format::run::Run;
use page::Page;

/// The template of the page, with placeholders `{{…}}`.
const TEMPLATE: &str = include_str!("../../web/page.html");
/// The style sheets. Those of the libraries come first, so that the page's own rules override them.
const STYLES: [&str; 2] = [
    include_str!("../../web/vendor/uplot.min.css"),
    include_str!("../../web/page.css"),
];
/// The scripts, each after the scripts that it depends on.
const SCRIPTS: [&str; 9] = [
    include_str!("../../web/vendor/uplot.min.js"),
    include_str!("../../web/vendor/flamegraph.min.js"),
    include_str!("../../web/base.js"),
    include_str!("../../web/tables.js"),
    include_str!("../../web/ledger.js"),
    include_str!("../../web/latency.js"),
    include_str!("../../web/timeline.js"),
    include_str!("../../web/flames.js"),
    include_str!("../../web/page.js"),
];
/// The licences of the libraries, which require that they are distributed with the code.
const LICENCES: &str = include_str!("../../web/vendor/LICENCES.txt");

/// Renders the page of a report. `run` is the run whose counts the report shows, and `runs` are all runs of the capture.
///
/// # Errors
///
/// If the data cannot be serialised. No report should cause this.
pub fn render(report: &Report, run: &Run, runs: &[Run]) -> Result<Vec<u8>, RenderError> {
    let page = Page::new(report, run, runs);
    let (style, script) = (STYLES.join("\n"), SCRIPTS.join("\n;\n"));
    let policy = format!(
        "default-src 'none'; script-src '{}'; style-src '{}'; img-src data:; base-uri 'none'; form-action 'none'",
        hash(&script),
        hash(&style)
    );
    let title = escaped(&page.subject);
    let html = fill(
        TEMPLATE,
        &[
            ("policy", &policy),
            ("title", &title),
            ("style", &style),
            ("data", &embedded(&page)?),
            ("licences", LICENCES),
            ("script", &script),
        ],
    );
    Ok(html.into_bytes())
}

/// The data of the page without the page, as indented JSON. The golden test compares it.
#[cfg(test)]
pub(super) fn data(report: &Report, run: &Run, runs: &[Run]) -> Result<Vec<u8>, RenderError> {
    super::json::render(&Page::new(report, run, runs))
}

/// Fills the placeholders of a template. Placeholders within inserted text are not replaced.
fn fill(template: &str, gaps: &[(&str, &str)]) -> String {
    let mut filled = String::new();
    let mut rest = template;
    while let Some((before, after)) = rest.split_once("{{") {
        filled.push_str(before);
        let Some((name, after)) = after.split_once("}}") else {
            break;
        };
        let text = gaps.iter().find(|(gap, _)| *gap == name).map_or("", |(_, text)| text);
        filled.push_str(text);
        rest = after;
    }
    filled.push_str(rest);
    filled
}

/// The hash of a text in the form that a content security policy uses.
fn hash(text: &str) -> String {
    format!("sha256-{}", BASE64.encode(&Sha256::digest(text.as_bytes())))
}

/// Serialises data as JSON for a script element. Nothing in it can close the element or begin a comment.
fn embedded(data: &impl Serialize) -> Result<String, RenderError> {
    let json = serde_json::to_string(data).map_err(|error| RenderError {
        what: "HTML report",
        reason: error.to_string(),
    })?;
    // In JSON these characters occur only in strings, where the escape has the same meaning.
    let escape = |c: char| match c {
        '<' => "\\u003c".to_owned(),
        '>' => "\\u003e".to_owned(),
        '&' => "\\u0026".to_owned(),
        c if is_harmful(c) => c
            .encode_utf16(&mut [0; 2])
            .iter()
            .map(|unit| format!("\\u{unit:04x}"))
            .collect(),
        other => other.to_string(),
    };
    Ok(json.chars().map(escape).collect())
}

/// Escapes text for HTML.
fn escaped(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn gaps_are_filled_once_and_what_is_put_in_is_left_alone() {
        let filled = fill("<{{a}}|{{b}}|{{a}}>", &[("a", "{{b}}"), ("b", "2")]);
        assert_eq!(filled, "<{{b}}|2|{{b}}>");
    }

    #[test]
    fn nothing_in_the_data_ends_its_element() {
        let hostile = "</script><!--<script>\u{2028}&amp;";
        let json = embedded(&hostile).expect("valid JSON");
        assert!(!json.contains(['<', '>', '&', '\u{2028}']), "{json}");
        assert_eq!(serde_json::from_str::<String>(&json).expect("valid JSON"), hostile);
    }

    #[test]
    fn what_the_page_is_made_of_stays_in_its_elements() {
        for script in SCRIPTS {
            assert!(!script.contains("</script") && !script.contains("<!--"));
        }
        assert!(!LICENCES.contains("</script") && !LICENCES.contains("<!--"));
        for style in STYLES {
            assert!(!style.contains("</style"));
        }
        for (name, text) in [("page.html", TEMPLATE)]
            .into_iter()
            .chain(SCRIPTS.map(|text| ("a script", text)))
        {
            // URLs may occur only as names of namespaces and as links to click. Nothing may be loaded from them.
            assert!(!text.contains("src=\"http") && !text.contains("@import"), "{name}");
        }
    }

    #[test]
    fn the_policy_names_what_is_in_the_elements() {
        assert_eq!(hash("alert(1)"), "sha256-bhHHL3z2vDgxUt0W3dWQOrprscmda2Y5pLsLg4GF+pI=");
    }

    /// The files in `web/vendor` are exactly those that `cargo xtask vendor-web` wrote.
    #[test]
    fn the_libraries_are_those_that_were_looked_at() {
        let folder = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("web/vendor");
        let sums = std::fs::read_to_string(folder.join("SHA256SUMS")).expect("the file is readable");
        assert!(sums.lines().count() >= 4);
        for line in sums.lines() {
            let (sum, name) = line.split_once("  ").expect("a line has a sum and a name");
            let bytes = std::fs::read(folder.join(name)).expect("the file is readable");
            let actual = data_encoding::HEXLOWER.encode(&Sha256::digest(&bytes));
            assert_eq!(actual, sum, "{name} was changed: cargo xtask vendor-web restores it");
        }
    }
}
