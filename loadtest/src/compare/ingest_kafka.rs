//! Kafka to Cassandra: `backstamp ingest` beside Kafka Connect, which writes the rows alone, and beside the bare driver, which is handed the
//! same mutations.

use serde_json::json;

use super::dev_ingest::{measured_row, measured_table, median_cpu_us, median_per_s};
use super::{ACCOUNT, Setting};
use crate::mix::{Mix, Shape};
use crate::options::now_ms;
use crate::peers::connect::Connect;
use crate::peers::ours::Ours;
use crate::peers::servers::Servers;
use crate::peers::{Measured, bare_driver};
use crate::progress;
use crate::report::goals::Goal;
use crate::report::plot::Plot;
use crate::report::{Outcome, thousands};

/// The runs of one shape.
#[derive(Default)]
struct Runs {
    connect: Vec<Measured>,
    ours: Vec<Measured>,
    driver: Vec<Measured>,
}

pub(super) async fn ingest_kafka(setting: &Setting) -> anyhow::Result<Outcome> {
    let events = setting.pick(300_000, 10_000);
    let repetitions = setting.pick(3, 1);
    let servers = Servers::start().await?;
    let mut ours = Ours::start(&servers, &setting.program).await?;
    let mut connect = Connect::start(&servers).await?;
    let mut mixes = Mixes::new(setting)?;

    let shapes = [Shape::Mixed, Shape::Small];
    let bar = progress::rounds("ingest, Connect and driver in turn", 1 + 2 * repetitions);
    // What comes first is slower, for all: Java's compilers have to warm up.
    connect.flat_out(&mixes.next(Shape::Mixed, events / 5)).await?;
    ours.flat_out(&mixes.next(Shape::Mixed, events / 5)).await?;
    bar.inc(1);
    let mut runs = [Runs::default(), Runs::default()];
    for _ in 0..repetitions {
        for (shape, runs) in shapes.iter().zip(&mut runs) {
            runs.connect.push(connect.flat_out(&mixes.next(*shape, events)).await?);
            servers.settle().await?;
            runs.ours.push(ours.flat_out(&mixes.next(*shape, events)).await?);
            servers.settle().await?;
            let mix = mixes.next(*shape, events);
            runs.driver.push(bare_driver::flat_out(&servers, &setting.program, &mix).await?);
            servers.settle().await?;
            bar.inc(1);
        }
    }
    bar.finish_and_clear();
    ours.remove().await?;
    connect.remove().await?;

    let mut outcome = Outcome {
        about: format!(
            "A topic is filled with {} events and 2 % repeats, then who is measured is let go, from the first event done to the last row \
             written; rows are counted in the tables. Backstamp does the full job. Kafka Connect with the DataStax sink engine writes each \
             event to two tables by two mappings, without a filter and without totals. The bare scylla driver is handed, from memory, the \
             mutations that `ingest` makes of the events, in the best of several ways to batch them. One Kafka and one Cassandra node, both \
             with 2 GB or less, on the same machine. Of several processes the one that does the work comes first.",
            thousands(events as f64)
        ),
        raw: json!({}),
        ..Outcome::default()
    };
    let names = ["campaigns of all sizes", "100,000 small campaigns, interleaved"];
    for ((shape, runs), name) in shapes.iter().zip(&runs).zip(names) {
        let base = median_per_s(&runs.connect);
        let mut table = measured_table(&format!("Events a second: {name}"));
        let all = [&runs.connect, &runs.ours, &runs.driver];
        all.iter().for_each(|runs| measured_row(&mut table, runs, base));
        outcome.tables.push(table);
        let bars = all.iter().map(|runs| (runs[0].name.clone(), median_per_s(runs))).collect();
        let title = format!("Kafka to Cassandra: {name}");
        outcome.plots.push(Plot::bars(&shape.to_string(), &title, "events a second", bars));
        outcome.raw[shape.to_string()] =
            json!({ "connect": runs.connect, "ours": runs.ours, "driver": runs.driver });
    }
    let [mixed, small] = &runs;
    let rate = |runs: &Runs| median_per_s(&runs.ours) / median_per_s(&runs.connect);
    outcome.measured(Goal::IngestMixed, rate(mixed), "");
    outcome.measured(Goal::IngestSmall, rate(small), "");
    outcome.measured(Goal::IngestCpu, median_cpu_us(&mixed.ours) / median_cpu_us(&mixed.connect), "");
    outcome.measured(Goal::IngestDriver, median_per_s(&mixed.ours) / median_per_s(&mixed.driver), "");
    let peaks = mixed.ours.iter().chain(&small.ours).map(|run| run.usage[0].memory_peak_bytes);
    outcome.measured(Goal::IngestMemory, peaks.max().unwrap_or(0) as f64 / 1e6, "");
    Ok(outcome)
}

/// Mixes, none of whose events is in another.
pub(super) struct Mixes {
    seed: u64,
    now_ms: i64,
    made: u64,
}

impl Mixes {
    pub(super) fn new(setting: &Setting) -> anyhow::Result<Mixes> {
        Ok(Mixes { seed: setting.seed, now_ms: now_ms()?, made: 0 })
    }

    /// The next.
    pub(super) fn next(&mut self, shape: Shape, events: u64) -> Mix {
        self.made += 1;
        let (name, seed) = (format!("cmp_{}", self.made), self.seed.wrapping_add(self.made));
        let mut mix = Mix::new(shape, &name, events, self.now_ms, seed);
        mix.account = Some(ACCOUNT.to_owned());
        mix
    }
}
