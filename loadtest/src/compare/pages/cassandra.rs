//! Pages on Cassandra: `query` on what `ingest` has put there from Kafka.

use std::time::{Duration, Instant};

use anyhow::Context;
use serde_json::json;

use super::{Loaded, Loads, PageGoals, json_bytes, measure, raw, taking_in, tell, title};
use crate::client::Server;
use crate::compare::{ACCOUNT, Setting};
use crate::intake::{TakenIn, await_done};
use crate::measure::Meter;
use crate::peers::servers::{Servers, Stack};
use crate::progress;
use crate::publish::publish;
use crate::report::goals::Goal;
use crate::report::{Outcome, Table, megabytes, show, thousands};

const GOALS: PageGoals = PageGoals {
    median: Goal::PagesCassandraMedian,
    p99: Goal::PagesCassandraP99,
    same_second: Goal::SameSecondCassandra,
    contact: Goal::ContactCassandra,
};
/// How long Cassandra may take to put what is in its memory on disk.
const FLUSH_TIMEOUT: Duration = Duration::from_secs(60);

pub(in crate::compare) async fn cassandra(setting: &Setting) -> anyhow::Result<Outcome> {
    let sizes: &[u64] = match (setting.is_quick, setting.is_full) {
        (true, _) => &[1000, 10_000],
        (_, false) => &[10_000, 100_000, 1_000_000],
        (_, true) => &[10_000, 100_000, 1_000_000, 10_000_000],
    };
    let loads = Loads::new(setting, sizes, setting.pick(1_000_000, 10_000), Some(ACCOUNT))?;
    let servers = Servers::start().await?;
    let stack = Stack::start(&servers, &setting.program).await?;
    let (ingest, query) = tokio::try_join!(stack.ingest(), stack.query())?;
    let key = stack.create_key(ACCOUNT).await?;
    let server = Server::new(query.url.as_deref().context("it says where it is")?, Some(&key))?;
    let ops = Server::new(ingest.ops_url.as_deref().context("it says where it is")?, None)?;

    let mut loaded = Vec::new();
    let topic = stack.topic("mail.events");
    for mix in loads.all() {
        let bar = progress::events(&title(mix), mix.arrivals());
        let mut meters = vec![Meter::start("backstamp ingest", ingest.pid())?];
        meters.extend(servers.meters()?);
        let before = ops.events_done().await?;
        let begun = Instant::now();
        let published = publish(&servers.kafka.bootstrap, &topic, mix, None, &bar).await?;
        bar.set_position(0);
        let wanted = before + mix.arrivals();
        await_done(&ops, wanted, |done| bar.set_position(done.saturating_sub(before))).await?;
        let shown_s = begun.elapsed().as_secs_f64();
        bar.finish_and_clear();
        let taken_in =
            TakenIn { events: mix.arrivals(), bytes: published.bytes, posted_s: published.seconds, shown_s };
        let usage = meters.iter().map(Meter::read).collect::<Result<_, _>>()?;
        loaded.push(Loaded { what: title(mix), taken_in, usage });
    }
    // Readers and compactions are measured apart: all that was taken in is at rest.
    ingest.drain().await?;
    let disk_bytes = disk_bytes(&servers, &stack.keyspace).await?;
    servers.settle().await?;
    let meter = Meter::start("backstamp query", query.pid())?;
    let (costs, wrong) = measure(setting, &server, &loads).await?;
    let reading = meter.read()?;
    query.drain().await?;
    stack.remove().await?;

    let mut outcome = Outcome {
        about: "`backstamp ingest` takes all loads in from Kafka, one after the other, and one `backstamp query` answers from a single \
                Cassandra node with default settings. Otherwise as on the embedded store."
            .to_owned(),
        wrong: wrong.into_iter().collect(),
        raw: raw(&loaded, &costs),
        ..Outcome::default()
    };
    tell(&costs, &GOALS, &mut outcome);
    outcome.tables.push(taking_in(&loaded));

    let held: u64 = loads.all().map(|mix| mix.count()).sum();
    let json_bytes = json_bytes(&loads).await?;
    let ingest_memory = loaded.iter().map(|loaded| loaded.usage[0].memory_peak_bytes).max().unwrap_or(0);
    let mut table = Table::new(
        &format!("With {} events held", thousands(held as f64)),
        1,
        &["", "MB", "bytes an event", "of the raw JSON"],
    );
    for (what, bytes) in [
        ("raw JSON of the distinct events", json_bytes),
        ("on disk, one copy: all tables, tallies included", disk_bytes),
    ] {
        let an_event = show(bytes as f64 / held as f64);
        table.row([what.to_owned(), megabytes(bytes), an_event, show(bytes as f64 / json_bytes as f64)]);
    }
    for (what, bytes) in
        [("memory of `ingest`", ingest_memory), ("memory of `query`", reading.memory_peak_bytes)]
    {
        table.row([what.to_owned(), megabytes(bytes), String::new(), String::new()]);
    }
    outcome.tables.push(table);
    outcome.measured(Goal::DiskCassandra, disk_bytes as f64 / json_bytes as f64, "");
    outcome.measured(Goal::IngestMemory, ingest_memory as f64 / 1e6, "");
    outcome.measured(Goal::QueryMemory, reading.memory_peak_bytes as f64 / 1e6, "");
    outcome.raw["size"] = json!({
        "events_held": held, "json_bytes": json_bytes, "disk_bytes": disk_bytes, "reading": reading,
    });
    Ok(outcome)
}

/// What the tables take on disk, in bytes, once what is in memory is there, too: Cassandra is told to write it out at once, by a setting
/// of each table.
async fn disk_bytes(servers: &Servers, keyspace: &str) -> anyhow::Result<u64> {
    let session = &servers.session;
    let select = "SELECT table_name FROM system_schema.tables WHERE keyspace_name = ?";
    let tables = session.query_unpaged(select, (keyspace,)).await?.into_rows_result()?;
    let tables: Vec<String> =
        tables.rows::<(String,)>()?.map(|row| row.map(|(name,)| name)).collect::<Result<_, _>>()?;
    for table in &tables {
        let alter = format!("ALTER TABLE {keyspace}.{table} WITH memtable_flush_period_in_ms = 1000");
        session.query_unpaged(alter, ()).await?;
    }
    let (mut size, mut since, begun) = (0, Instant::now(), Instant::now());
    while since.elapsed() < Duration::from_secs(5) && begun.elapsed() < FLUSH_TIMEOUT {
        tokio::time::sleep(Duration::from_millis(500)).await;
        let mut now = 0;
        for table in &tables {
            let select =
                "SELECT mebibytes FROM system_views.disk_usage WHERE keyspace_name = ? AND table_name = ?";
            let rows = session.query_unpaged(select, (keyspace, table)).await?.into_rows_result()?;
            let mebibytes = rows.maybe_first_row::<(i64,)>()?.map_or(0, |(mebibytes,)| mebibytes);
            now += mebibytes.cast_unsigned() << 20;
        }
        if now != size {
            (size, since) = (now, Instant::now());
        }
    }
    Ok(size)
}
