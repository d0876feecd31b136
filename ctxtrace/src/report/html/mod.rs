//! The page: everything that was found out, in one file to be looked at.
//!
//! One HTML file with all that it needs inside, so it opens from a disk or an attachment, with no network and no server. It is made
//! of `ctxtrace/web`: a template, a style sheet, plain scripts, and the libraries that draw (`web/vendor`, with their licences).
//!
//! * `page`: what is on it, as data: every sentence and figure, made here with the code that makes the table.
//! * `flame`: stacks as trees, of bounded size.
//! * `timeline`: the lanes, packed.
//!
//! The data is JSON in a script element of a type that is never executed, escaped so that nothing in it can end the element. The
//! scripts put text into the page as text. And a policy in the page's head allows the one style and the one script whose hashes it
//! names, and nothing from anywhere else: names of threads, tasks and functions come from the traced program, which may be hostile.

mod flame;
mod page;
mod timeline;

use data_encoding::BASE64;
use serde::Serialize;
use sha2::{Digest, Sha256};

use crate::analyze::result::Report;
use crate::error::{Error, Result};
use crate::printable::is_harmful;
use crate::trace::run::Run;
use page::Page;

/// The page, with `{{…}}` where something is put in.
const TEMPLATE: &str = include_str!("../../../web/page.html");
/// The style sheets, the libraries' first.
const STYLES: [&str; 2] = [
    include_str!("../../../web/vendor/uplot.min.css"),
    include_str!("../../../web/page.css"),
];
/// The scripts, in the order in which they need each other.
const SCRIPTS: [&str; 9] = [
    include_str!("../../../web/vendor/uplot.min.js"),
    include_str!("../../../web/vendor/flamegraph.min.js"),
    include_str!("../../../web/base.js"),
    include_str!("../../../web/tables.js"),
    include_str!("../../../web/ledger.js"),
    include_str!("../../../web/latency.js"),
    include_str!("../../../web/timeline.js"),
    include_str!("../../../web/flames.js"),
    include_str!("../../../web/page.js"),
];
/// The libraries' licences, which ask to be passed on.
const LICENCES: &str = include_str!("../../../web/vendor/LICENCES.txt");

/// Makes the page of a report; `run` is the one that its counts are of, and `runs` are all of them.
///
/// # Errors
///
/// If it cannot be serialised, which no result should bring about.
pub fn render(report: &Report, run: &Run, runs: &[Run]) -> Result<Vec<u8>> {
    let page = Page::of(report, run, runs);
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

/// The data of the page alone, indented: what the golden test compares.
#[cfg(test)]
pub(super) fn data(report: &Report, run: &Run, runs: &[Run]) -> Result<Vec<u8>> {
    super::json::render(&Page::of(report, run, runs))
}

/// A template with its gaps filled. What is put in is not looked at again.
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

/// A text as a policy names it.
fn hash(text: &str) -> String {
    format!("sha256-{}", BASE64.encode(&Sha256::digest(text.as_bytes())))
}

/// JSON that can stand in a script element: nothing in it can end the element or begin a comment.
fn embedded(data: &impl Serialize) -> Result<String> {
    let json = serde_json::to_string(data).map_err(|error| Error::Render {
        what: "HTML report",
        reason: error.to_string(),
    })?;
    // All of them can be in strings only, where the escape means the same.
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

/// Text as HTML.
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
        let json = embedded(&hostile).expect("JSON");
        assert!(!json.contains(['<', '>', '&', '\u{2028}']), "{json}");
        assert_eq!(serde_json::from_str::<String>(&json).expect("JSON"), hostile);
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
            // Only names of namespaces and links to be clicked; nothing is loaded.
            assert!(!text.contains("src=\"http") && !text.contains("@import"), "{name}");
        }
    }

    #[test]
    fn the_policy_names_what_is_in_the_elements() {
        assert_eq!(hash("alert(1)"), "sha256-bhHHL3z2vDgxUt0W3dWQOrprscmda2Y5pLsLg4GF+pI=");
    }

    /// The files of `web/vendor` are those that `cargo xtask vendor-web` made.
    #[test]
    fn the_libraries_are_those_that_were_looked_at() {
        let folder = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("web/vendor");
        let sums = std::fs::read_to_string(folder.join("SHA256SUMS")).expect("readable");
        assert!(sums.lines().count() >= 4);
        for line in sums.lines() {
            let (sum, name) = line.split_once("  ").expect("a sum and a name");
            let bytes = std::fs::read(folder.join(name)).expect("readable");
            let actual = data_encoding::HEXLOWER.encode(&Sha256::digest(&bytes));
            assert_eq!(actual, sum, "{name}: cargo xtask vendor-web makes it anew");
        }
    }
}
