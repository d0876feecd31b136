//! The outputs of commands that compare two cases. They are opened before anything is measured and written afterwards.

use super::written::{Opened, WrittenFiles};
use crate::cli::comparison::ComparisonOutputs;
use crate::error::{Error, Result};
use crate::files::output::{Output, OutputAccess};
use ctxtrace_analysis::budget::account::Stacks;
use ctxtrace_report::differential;

/// The requested output files, which are open and writable.
pub(super) struct Outputs {
    json: Option<Output>,
    markdown: Option<Output>,
    on_cpu: Option<Output>,
    off_cpu: Option<Output>,
}

/// The contents of all outputs.
pub(super) struct Comparison<'a> {
    pub(super) json: &'a [u8],
    pub(super) markdown: &'a str,
    /// On-CPU time by stack, of base and subject.
    pub(super) on_cpu: (&'a Stacks, &'a Stacks),
    /// Off-CPU time by stack, of base and subject.
    pub(super) off_cpu: (&'a Stacks, &'a Stacks),
    /// The texts in the flamegraphs, except `what`, which is set for each flamegraph.
    pub(super) labels: differential::Labels<'a>,
}

impl Outputs {
    pub(super) fn open(settings: &ComparisonOutputs, access: &OutputAccess) -> Result<Self> {
        let open = |destination: &Option<_>| destination.as_ref().map(|to| Output::open(to, access)).transpose();
        Ok(Self {
            json: open(&settings.json)?,
            markdown: open(&settings.markdown)?,
            on_cpu: open(&settings.on_cpu_flamegraph)?,
            off_cpu: open(&settings.flamegraph)?,
        })
    }

    /// Writes the outputs. Returns the files that were written, and the errors. An output that fails does not prevent the others
    /// from being written.
    pub(super) fn write(self, comparison: &Comparison<'_>) -> (WrittenFiles, Vec<Error>) {
        let mut written = WrittenFiles::default();
        let mut failed = Vec::new();
        let mut note = |made: Result<()>| failed.extend(made.err());
        if let Some(output) = self.json {
            note(written.commit(output, comparison.json, "result", Opened::With("jq .")));
        }
        if let Some(output) = self.markdown {
            note(written.commit(output, comparison.markdown.as_bytes(), "result", Opened::Pasted));
        }
        for (output, (base, subject), what) in [
            (self.on_cpu, comparison.on_cpu, "On-CPU time"),
            (self.off_cpu, comparison.off_cpu, "Off-CPU time"),
        ] {
            let Some(output) = output else { continue };
            let labels = differential::Labels {
                what,
                ..comparison.labels
            };
            let made = differential::render(base, subject, &labels);
            note(
                made.map_err(Error::from)
                    .and_then(|svg| written.commit(output, &svg, "differential flamegraph", Opened::Browser)),
            );
        }
        (written, failed)
    }
}
