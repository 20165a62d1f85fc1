//! Progress bars; a line each where nobody watches.

use std::io::{IsTerminal, stderr};

use indicatif::{ProgressBar, ProgressStyle};

/// A bar over `count` events, with their rate.
pub(crate) fn events(what: &str, count: u64) -> ProgressBar {
    bar(what, count, "{msg:36} {bar:30} {human_pos} of {human_len}  {per_sec}  {eta}")
}

/// A bar over `count` rounds of a measurement.
pub(crate) fn rounds(what: &str, count: u64) -> ProgressBar {
    bar(what, count, "{msg:36} {bar:30} round {pos} of {len}  {eta}")
}

#[expect(clippy::print_stderr, reason = "what a person wants to read while it works")]
fn bar(what: &str, count: u64, template: &str) -> ProgressBar {
    if !stderr().is_terminal() {
        eprintln!("  {what}");
    }
    let style = ProgressStyle::with_template(template).unwrap_or_else(|_| ProgressStyle::default_bar());
    ProgressBar::new(count).with_style(style).with_message(what.to_owned())
}
