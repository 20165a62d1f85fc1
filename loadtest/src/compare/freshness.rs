//! How long from published to visible, at half of the rate that each reaches flat out.

use std::time::Duration;

use serde_json::json;

use super::Setting;
use super::ingest_kafka::Mixes;
use crate::mix::Shape;
use crate::peers::connect::Connect;
use crate::peers::freshness::{Fresh, Load};
use crate::peers::ours::Ours;
use crate::peers::servers::Servers;
use crate::progress;
use crate::report::goals::Goal;
use crate::report::plot::Plot;
use crate::report::{Outcome, Table, megabytes, show, thousands};

pub(super) async fn freshness(setting: &Setting) -> anyhow::Result<Outcome> {
    let flat_out_events = setting.pick(300_000, 20_000);
    let (first, seconds) = setting.pick((30.0, 90.0), (6.0, 12.0));
    let load = |mix, per_s| Load { mix, per_s, first: Duration::from_secs_f64(first) };
    let servers = Servers::start().await?;
    let mut mixes = Mixes::new(setting)?;
    let bar = progress::rounds("freshness", 4);

    let mut connect = Connect::start(&servers).await?;
    // The first of both warms up Java's compilers.
    connect.flat_out(&mixes.next(Shape::Mixed, flat_out_events / 3)).await?;
    let connect_full = connect.flat_out(&mixes.next(Shape::Mixed, flat_out_events)).await?;
    bar.inc(1);
    let per_s = connect_full.per_s() / 2.0;
    let mix = mixes.next(Shape::Mixed, (per_s * seconds) as u64);
    let connect_fresh = connect.freshness(load(&mix, per_s)).await?;
    connect.remove().await?;
    servers.settle().await?;
    bar.inc(1);

    let mut ours = Ours::start(&servers, &setting.program).await?;
    ours.flat_out(&mixes.next(Shape::Mixed, flat_out_events / 3)).await?;
    let ours_full = ours.flat_out(&mixes.next(Shape::Mixed, flat_out_events)).await?;
    bar.inc(1);
    let per_s = ours_full.per_s() / 2.0;
    let mix = mixes.next(Shape::Mixed, (per_s * seconds) as u64);
    let ours_fresh = ours.freshness(load(&mix, per_s)).await?;
    ours.remove().await?;
    bar.finish_and_clear();

    let mut outcome = Outcome {
        about: format!(
            "Each is measured flat out, then gets events of campaigns of all sizes at half of that rate for {seconds} s. Ten times a second \
             one event is looked for until it shows: ours on both endpoints, as `query` answers, with a total of 1; Kafka Connect's by its \
             key in both tables. In the first {first} s all is new: campaigns and contacts to both, and to ours the process, too. The goal is \
             that of the time after."
        ),
        raw: json!({ "connect": [connect_full, connect_fresh], "ours": [ours_full, ours_fresh] }),
        ..Outcome::default()
    };
    let mut table = Table::new(
        "From published to visible",
        1,
        &[
            "",
            "flat out a second",
            "published a second",
            "looked for",
            "p50 ms",
            "p90 ms",
            "p99 ms",
            "most ms",
            "memory MB",
        ],
    );
    for (full, Fresh { name, per_s, first_ms, steady_ms, usage }) in
        [(&connect_full, &connect_fresh), (&ours_full, &ours_fresh)]
    {
        let memory: Vec<String> = usage
            .iter()
            .map(|usage| format!("{}: {}", usage.process, megabytes(usage.memory_peak_bytes)))
            .collect();
        let memory = memory.join("<br>");
        for (when, delay_ms, memory) in
            [("at first", first_ms, String::new()), ("after that", steady_ms, memory)]
        {
            table.row([
                format!("{name}, {when}"),
                thousands(full.per_s()),
                thousands(*per_s),
                delay_ms.count.to_string(),
                show(delay_ms.median),
                show(delay_ms.p90),
                show(delay_ms.p99),
                show(delay_ms.max),
                memory,
            ]);
        }
    }
    outcome.tables.push(table);
    let bars = [&connect_fresh, &ours_fresh].into_iter().flat_map(|fresh| {
        [("p50", fresh.steady_ms.median), ("p99", fresh.steady_ms.p99)]
            .map(|(name, ms)| (format!("{}: {name}", fresh.name), ms))
    });
    outcome.plots.push(Plot::bars(
        "delay",
        "From published to visible, at half of full rate",
        "ms",
        bars.collect(),
    ));
    outcome.measured(Goal::FreshnessRatio, ours_fresh.steady_ms.p99 / connect_fresh.steady_ms.p99, "");
    outcome.measured(Goal::FreshnessP99, ours_fresh.steady_ms.p99 / 1000.0, "");
    if let Some(query) = ours_fresh.usage.iter().find(|usage| usage.process == "backstamp query") {
        outcome.measured(Goal::QueryMemory, query.memory_peak_bytes as f64 / 1e6, "");
    }
    Ok(outcome)
}
