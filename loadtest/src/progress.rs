//! Progress bars.

use indicatif::{ProgressBar, ProgressStyle};

/// A bar over `count` events, with their rate.
pub(crate) fn events(what: &str, count: u64) -> ProgressBar {
    bar(what, count, "{msg:36} {bar:30} {human_pos} of {human_len}  {per_sec}  {eta}")
}

/// A bar over `count` rounds of a measurement.
pub(crate) fn rounds(what: &str, count: u64) -> ProgressBar {
    bar(what, count, "{msg:36} {bar:30} round {pos} of {len}  {eta}")
}

fn bar(what: &str, count: u64, template: &str) -> ProgressBar {
    let style = ProgressStyle::with_template(template).unwrap_or_else(|_| ProgressStyle::default_bar());
    ProgressBar::new(count).with_style(style).with_message(what.to_owned())
}
