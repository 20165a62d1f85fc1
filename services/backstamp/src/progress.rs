//! How far a tool is, on standard error where that is a terminal.

use indicatif::{ProgressBar, ProgressStyle};

/// A bar for one thing that takes long.
pub(crate) struct Progress(ProgressBar);

impl Progress {
    pub(crate) fn new(what: &'static str, total: u64) -> Progress {
        let bar = ProgressBar::new(total);
        if let Ok(style) =
            ProgressStyle::with_template("{msg} {pos} of {len} ({percent} %) {per_sec}, {eta} left")
        {
            bar.set_style(style);
        }
        bar.set_message(what);
        Progress(bar)
    }

    pub(crate) fn at(&self, done: u64) {
        self.0.set_position(done);
    }

    pub(crate) fn finish(&self) {
        self.0.finish_and_clear();
    }
}
