//! The progress bar of a run. It is shown only on a terminal, and only if the run takes long enough.

use std::time::{Duration, Instant};

use indicatif::{ProgressBar, ProgressStyle};

use crate::terminal::Stream;
use ctxtrace_analysis::units::thousands;

/// A run that ends within this time gets no progress bar.
const PATIENCE: Duration = Duration::from_millis(700);

/// A progress bar that is created only when it is needed.
pub(super) struct Bar {
    started: Instant,
    bar: Option<ProgressBar>,
    length: u64,
    run: String,
    terminal: bool,
}

impl Bar {
    /// Creates a bar for run `number` of `of` with `length` messages per run.
    pub(super) fn new(length: u64, number: u64, of: u64, quiet: bool) -> Self {
        Self {
            started: Instant::now(),
            bar: None,
            length,
            run: if of > 1 {
                format!("run {number}/{of} ")
            } else {
                String::new()
            },
            terminal: !quiet && Stream::Error.is_terminal(),
        }
    }

    /// Whether the bar should be shown and updated now.
    pub(super) fn is_wanted(&self) -> bool {
        self.terminal && self.started.elapsed() >= PATIENCE
    }

    /// Shows the current progress.
    pub(super) fn update(&mut self, messages: u64, kernel_switches: u64) {
        let bar = self.bar.get_or_insert_with(|| {
            let bar = ProgressBar::new(self.length);
            if let Ok(style) = ProgressStyle::with_template("{prefix}[{bar:30}] {percent}%  {msg}  {eta} left") {
                bar.set_style(style.progress_chars("=> "));
            }
            bar.set_prefix(self.run.clone());
            bar
        });
        bar.set_message(format!("{} kernel switches", thousands(kernel_switches)));
        bar.set_position(messages);
    }
}

impl Drop for Bar {
    fn drop(&mut self) {
        if let Some(bar) = &self.bar {
            bar.finish_and_clear();
        }
    }
}
