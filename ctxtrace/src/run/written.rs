//! The final summary of a command: the files it has written, and the tool that opens each.

use std::fmt::Write as _;
use std::io;
use std::path::{Path, PathBuf};

use crate::error::Result;
use crate::files::output::Output;
use crate::terminal::{Stream, Styles, write_text};
use ctxtrace_format::printable::printable;

/// Maximum number of characters of a path with the rest of the text on the same line. For a longer path the rest is on the next
/// line.
const LONGEST_PATH: usize = 28;

/// The files that were written, in order.
#[derive(Debug, Default)]
pub(super) struct WrittenFiles(Vec<Made>);

#[derive(Debug)]
struct Made {
    path: PathBuf,
    what: String,
    how: Opened,
}

/// How a file is opened or used.
#[derive(Clone, Copy, Debug)]
pub(super) enum Opened {
    /// View it in a web browser.
    Browser,
    /// Read it with this command, which takes the path as its last argument.
    With(&'static str),
    /// Drop it onto this web page, or pass it to this command.
    Either(&'static str, &'static str),
    /// Open it with this program.
    By(&'static str),
    /// Drop it onto this web page.
    Page(&'static str),
    /// Paste it into an issue or a message.
    Pasted,
    /// Query it with `duckdb`.
    DuckDb,
}

impl WrittenFiles {
    pub(super) fn add(&mut self, path: &Path, what: impl Into<String>, how: Opened) {
        self.0.push(Made {
            path: path.to_owned(),
            what: what.into(),
            how,
        });
    }

    /// Writes an output, and records it if it is a file.
    ///
    /// # Errors
    ///
    /// If the output cannot be written.
    pub(super) fn commit(&mut self, output: Output, bytes: &[u8], what: &'static str, how: Opened) -> Result<()> {
        self.stream(output, what, how, |to| to.write_all(bytes))
    }

    /// Like [`WrittenFiles::commit`], for outputs that are too large to be held in memory.
    ///
    /// # Errors
    ///
    /// If `write` fails, or if the output cannot be written.
    pub(super) fn stream(
        &mut self,
        output: Output,
        what: &'static str,
        how: Opened,
        write: impl FnOnce(&mut dyn io::Write) -> io::Result<()>,
    ) -> Result<()> {
        let path = output.path().map(Path::to_owned);
        output.stream(write)?;
        if let Some(path) = path {
            self.add(&path, what, how);
        }
        Ok(())
    }

    /// Prints the summary on standard error; write errors are ignored.
    pub(super) fn print(&self) {
        let _ = write_text(Stream::Error, &self.in_words(), Styles::Escaped);
    }

    fn in_words(&self) -> String {
        let paths: Vec<String> = self
            .0
            .iter()
            .map(|made| printable(&made.path.display().to_string()))
            .collect();
        let widths = paths.iter().map(|path| path.chars().count());
        let width = widths.filter(|&width| width <= LONGEST_PATH).max().unwrap_or(0);
        let mut text = String::new();
        for (made, path) in self.0.iter().zip(&paths) {
            if path.chars().count() > LONGEST_PATH {
                let _ = writeln!(text, "wrote {path}\n      {:width$}  {}", "", made.in_words());
            } else {
                let _ = writeln!(text, "wrote {path:width$}  {}", made.in_words());
            }
        }
        text
    }
}

impl Made {
    fn in_words(&self) -> String {
        let what = &self.what;
        let path = self.path.display().to_string();
        let path = shlex::try_quote(&path).map_or_else(|_| path.clone(), std::borrow::Cow::into_owned);
        let path = printable(&path);
        match self.how {
            Opened::Browser => format!("{what}: any web browser (click zooms)"),
            Opened::With(command) => format!("{what}: {command} {path}"),
            Opened::Either(page, command) => format!("{what}: {page}, or {command} {path}"),
            Opened::By(program) => format!("{what}: {program}"),
            Opened::Page(page) => format!("{what}: drop it on {page} (it is not uploaded)"),
            Opened::Pasted => format!("{what}, to be pasted into an issue"),
            Opened::DuckDb => {
                let files = printable(&self.path.join("host/*.parquet").display().to_string());
                format!("{what}: duckdb -c \"FROM '{}'\"", files.replace('\'', "''"))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_file_is_named_once_with_what_opens_it() {
        let mut written = WrittenFiles::default();
        written.add(Path::new("run.json"), "result", Opened::With("jq ."));
        written.add(Path::new("off cpu.svg"), "off-CPU flamegraph", Opened::Browser);
        written.add(Path::new("fleet"), "tables", Opened::DuckDb);
        written.add(
            Path::new("/a/folder/that/lies/deep/in/another.ctx"),
            "capture",
            Opened::With("ctxtrace report"),
        );
        written.add(Path::new("a b"), "capture", Opened::With("ctxtrace report"));
        assert_eq!(
            written.in_words(),
            "\
wrote run.json     result: jq . run.json
wrote off cpu.svg  off-CPU flamegraph: any web browser (click zooms)
wrote fleet        tables: duckdb -c \"FROM 'fleet/host/*.parquet'\"
wrote /a/folder/that/lies/deep/in/another.ctx
                   capture: ctxtrace report /a/folder/that/lies/deep/in/another.ctx
wrote a b          capture: ctxtrace report 'a b'
"
        );
    }
}
