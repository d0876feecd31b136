//! `cargo xtask listings`: makes the listings of the documents from saved results, with the code of today.
//!
//! A listing is a block of text after a line `<!-- listing: COMMAND FILE -->`. COMMAND is `report` (FILE is a capture), `suite` or
//! `explain` (FILE is the result as JSON). `COMMAND FILE | head N` keeps the first N lines, `COMMAND FILE | until TEXT` those before the
//! first line that begins with TEXT.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, bail, ensure};

use crate::{process, workspace};

/// The documents that may have listings.
const DOCUMENTS: [&str; 3] = ["README.md", "docs/GUIDE.md", "docs/CASE-STUDY.md"];

/// What begins a listing, and what ends that line.
const MARKER: (&str, &str) = ("<!-- listing: ", " -->");

/// The options of the chore.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// Change no file, and fail if a listing differs from what today's code prints
    #[arg(long)]
    check: bool,
    /// First measure anew what the listings show, as root: docs/examples
    #[arg(long, conflicts_with = "check")]
    record: bool,
}

/// Makes or checks all listings.
pub(crate) fn main(args: &Args) -> Result<()> {
    let programs = Programs::build()?;
    if args.record {
        programs.record()?;
    }
    let mut differing = Vec::new();
    for name in DOCUMENTS {
        let path = process::root().join(name);
        let old = fs::read_to_string(&path).with_context(|| format!("cannot read {name}"))?;
        let new = with_listings(&old, |listing| programs.print(listing)).with_context(|| format!("in {name}"))?;
        if old != new && args.check {
            differing.push(name);
        } else if old != new {
            fs::write(&path, new).with_context(|| format!("cannot write {name}"))?;
            eprintln!("{name} has new listings");
        }
    }
    if !differing.is_empty() {
        bail!(
            "the listings in {} differ from what ctxtrace prints: run `cargo xtask listings`",
            differing.join(", ")
        );
    }
    Ok(())
}

/// What a marker asks for.
#[derive(Debug, PartialEq, Eq)]
struct Listing<'a> {
    command: &'a str,
    file: &'a str,
    limit: Limit<'a>,
}

/// Which lines of the output a listing shows.
#[derive(Debug, PartialEq, Eq)]
enum Limit<'a> {
    All,
    Head(usize),
    Until(&'a str),
}

impl<'a> Listing<'a> {
    /// Parses a line of a document. Returns `None` if it is not a marker.
    fn parse(line: &'a str) -> Option<Result<Self>> {
        let text = line.strip_prefix(MARKER.0)?.strip_suffix(MARKER.1)?;
        Some(Self::parse_text(text).with_context(|| format!("`{text}` is not a listing")))
    }

    fn parse_text(text: &'a str) -> Result<Self> {
        let (call, limit) = text.split_once(" | ").unwrap_or((text, ""));
        let (command, file) = call.split_once(' ').context("a command and a file are needed")?;
        let limit = match limit.split_once(' ') {
            None => Limit::All,
            Some(("head", lines)) => Limit::Head(lines.parse().context("a number of lines is needed")?),
            Some(("until", begin)) => Limit::Until(begin),
            Some((other, _)) => bail!("`{other}` is neither head nor until"),
        };
        Ok(Self { command, file, limit })
    }

    /// Returns the lines that the listing shows, without empty lines at the end.
    fn cut(&self, output: &str) -> String {
        let lines = output.lines();
        let kept: Vec<&str> = match self.limit {
            Limit::All => lines.collect(),
            Limit::Head(count) => lines.take(count).collect(),
            Limit::Until(begin) => lines.take_while(|line| !line.starts_with(begin)).collect(),
        };
        kept.join("\n").trim_end().to_owned()
    }
}

/// Returns the document with the text of each listing replaced by what `print` returns for it.
fn with_listings(document: &str, print: impl Fn(&Listing<'_>) -> Result<String>) -> Result<String> {
    let mut new = String::new();
    let mut lines = document.lines();
    while let Some(line) = lines.next() {
        new.push_str(line);
        new.push('\n');
        let Some(listing) = Listing::parse(line) else {
            continue;
        };
        ensure!(lines.next() == Some("```text"), "a block of text must follow `{line}`");
        ensure!(
            lines.any(|line| line == "```"),
            "the block of text after `{line}` has no end"
        );
        new.push_str("```text\n");
        new.push_str(&print(&listing?)?);
        new.push_str("\n```\n");
    }
    Ok(new)
}

/// The programs that print listings.
struct Programs {
    ctxtrace: PathBuf,
    listing: PathBuf,
}

impl Programs {
    /// Builds the whole workspace, as `cargo xtask test` does: for a single package cargo would choose other features, and compile
    /// all dependencies a second time.
    fn build() -> Result<Self> {
        process::run(process::cargo().current_dir(process::root()).args([
            "build",
            "--quiet",
            "--locked",
            "--release",
            "--workspace",
            "--bins",
            "--examples",
        ]))?;
        let folder = Path::new(workspace::metadata()?.target_directory.as_std_path()).join("release");
        Ok(Self {
            ctxtrace: folder.join("ctxtrace"),
            listing: folder.join("examples").join("listing"),
        })
    }

    /// Returns the text of a listing.
    fn print(&self, listing: &Listing<'_>) -> Result<String> {
        let program = match listing.command {
            "report" => &self.ctxtrace,
            "suite" | "explain" => &self.listing,
            other => bail!("there is no listing of `{other}`"),
        };
        let mut command = process::clean(program);
        command
            .current_dir(process::root())
            .env("LC_ALL", "C.UTF-8")
            .args([listing.command, listing.file]);
        let output = process::output(&mut command)?;
        Ok(listing.cut(&output))
    }

    /// Makes the saved results anew. ctxtrace runs from a folder of its own, because a capture contains the path of the program.
    fn record(&self) -> Result<()> {
        let results = process::root().join("docs").join("examples");
        fs::create_dir_all(&results).context("cannot make docs/examples")?;
        let installed = std::env::temp_dir().join("ctxtrace-listings");
        fs::create_dir_all(&installed).with_context(|| format!("cannot make {}", installed.display()))?;
        let built = self.ctxtrace.parent().context("a program is in a folder")?;
        for name in ["ctxtrace", "ctxtrace-workload-jemalloc"] {
            fs::copy(built.join(name), installed.join(name)).with_context(|| format!("cannot copy {name}"))?;
        }
        let runs: [(&[&str], &str); 3] = [
            (&["run", "--mode", "task-pool", "-o"], "task-pool.ctx"),
            (&["suite", "--json"], "suite.json"),
            (&["explain", "--json"], "explain.json"),
        ];
        for (words, file) in runs {
            let mut command = process::as_root(installed.join("ctxtrace"));
            process::run(command.args(words).arg(results.join(file)))?;
        }
        fs::remove_dir_all(&installed).with_context(|| format!("cannot remove {}", installed.display()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const DOCUMENT: &str = "Before\n<!-- listing: report a.ctx | head 2 -->\n```text\nold\n```\nAfter\n";

    #[test]
    fn a_listing_is_replaced_by_the_lines_that_it_asks_for() {
        let new = with_listings(DOCUMENT, |listing| {
            assert_eq!((listing.command, listing.file), ("report", "a.ctx"));
            Ok(listing.cut("one\ntwo\nthree\n"))
        });
        assert_eq!(new.expect("a document"), DOCUMENT.replace("old", "one\ntwo"));
    }

    #[test]
    fn a_listing_ends_before_a_line() {
        let listing = Listing::parse_text("explain b.json | until What it").expect("a listing");
        assert_eq!(listing.cut("Why\n\nWhat it needs\n"), "Why");
    }

    #[test]
    fn mistakes_in_a_document_are_errors() {
        for document in [
            "<!-- listing: report -->\n```text\n```\n",
            "<!-- listing: report a | tail 3 -->\n```text\n```\n",
            "<!-- listing: report a -->\n",
            "<!-- listing: report a -->\n```text\nno end\n",
        ] {
            assert!(with_listings(document, |_| Ok(String::new())).is_err(), "{document}");
        }
        assert!(Listing::parse("<!-- another comment -->").is_none());
    }
}
