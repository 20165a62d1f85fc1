//! Decoding to rows beside serde_json: `loadtest decode`, in a process of its own.

use anyhow::{Context, ensure};
use serde::Deserialize;

use super::Setting;
use crate::report::goals::Goal;
use crate::report::plot::Plot;
use crate::report::{Outcome, Table, show, thousands};

/// What `loadtest decode --json` prints.
#[derive(Deserialize)]
struct Decoded {
    message_bytes: f64,
    rows: f64,
    plain: Speed,
    to_rows: Speed,
    plain_again: Speed,
    other_crates: Vec<Speed>,
}

#[derive(Deserialize)]
struct Speed {
    reader: String,
    events_per_s: f64,
    ns_per_event: f64,
    /// 10th percentile, median, 90th percentile over the rounds.
    ratio: [f64; 3],
}

pub(super) async fn decode(setting: &Setting) -> anyhow::Result<Outcome> {
    let rounds = setting.pick("1001", "101");
    let output = tokio::process::Command::new(std::env::current_exe()?)
        .args(["decode", "--json", "--crates", "--rounds", rounds])
        .kill_on_drop(true)
        .output()
        .await?;
    let said = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "loadtest decode: {}", said.trim());
    let decoded: Decoded = serde_json::from_slice(&output.stdout).context("what it printed")?;

    let mut table = Table::new(
        "Readers of the same messages in turn, on one core",
        1,
        &["reader", "events a second", "ns an event", "× the first, median", "p10 to p90"],
    );
    let speeds = [&decoded.plain, &decoded.to_rows, &decoded.plain_again];
    for speed in speeds.into_iter().chain(&decoded.other_crates) {
        let [p10, median, p90] = speed.ratio;
        table.row([
            speed.reader.clone(),
            thousands(speed.events_per_s),
            show(speed.ns_per_event),
            show(median),
            format!("{} to {}", show(p10), show(p90)),
        ]);
    }
    let bars = speeds.into_iter().chain(&decoded.other_crates);
    let bars = bars.map(|speed| (speed.reader.clone(), speed.events_per_s)).collect();
    let mut outcome = Outcome {
        about: format!(
            "Messages of {} bytes in the mean, {} rows each, are read in turn, without I/O. The first reader is serde_json into a plain \
             struct of the same fields, which checks nothing; once more at the end it shows how far the ratios can be believed. Ours \
             goes on to the bytes that are published.",
            show(decoded.message_bytes),
            show(decoded.rows)
        ),
        tables: vec![table],
        plots: vec![Plot::bars("rates", "Decoding, one core", "events a second", bars)],
        raw: serde_json::from_slice(&output.stdout)?,
        ..Outcome::default()
    };
    outcome.measured(Goal::Decode, decoded.to_rows.ratio[1], "");
    Ok(outcome)
}
