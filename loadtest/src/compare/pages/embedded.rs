//! Pages on the embedded store: one `dev` that holds everything.

use std::time::{Duration, Instant};

use serde_json::json;

use super::{Loaded, Loads, PageGoals, json_bytes, measure, raw, taking_in, tell, title};
use crate::client::Server;
use crate::compare::{ACCOUNT, PERMISSIONS, POSTING, Setting};
use crate::dev::{Dev, Disk};
use crate::intake::take_in;
use crate::measure::{Meter, Usage};
use crate::progress;
use crate::report::goals::Goal;
use crate::report::{Outcome, Table, megabytes, show, thousands};

const GOALS: PageGoals = PageGoals {
    median: Goal::PagesEmbeddedMedian,
    p99: Goal::PagesEmbeddedP99,
    same_second: Goal::SameSecondEmbedded,
    contact: Goal::ContactEmbedded,
};
/// The store is at rest when its size has not changed for so long.
const REST: Duration = Duration::from_secs(10);
const REST_MAX: Duration = Duration::from_secs(180);

pub(in crate::compare) async fn embedded(setting: &Setting) -> anyhow::Result<Outcome> {
    let sizes: &[u64] = setting.pick(&[10_000, 100_000, 1_000_000, 10_000_000], &[1000, 10_000, 50_000]);
    let loads = Loads::new(setting, sizes, setting.pick(1_000_000, 20_000), None)?;
    let dev = Dev::start(&setting.program).await?;
    let key = dev.create_key(ACCOUNT, &PERMISSIONS).await?;
    let server = Server::new(&dev.url, Some(&key))?;
    let ops = Server::new(&dev.ops_url, None)?;

    let mut loaded = Vec::new();
    for mix in loads.all() {
        let bar = progress::events(&title(mix), mix.arrivals());
        let meter = Meter::start("backstamp dev", dev.pid()?)?;
        let taken_in = take_in(&server, &ops, mix, POSTING, &bar).await?;
        bar.finish_and_clear();
        loaded.push(Loaded { what: title(mix), taken_in, usage: vec![meter.read()?] });
    }
    let disk = disk_at_rest(&dev).await;
    let meter = Meter::start("backstamp dev", dev.pid()?)?;
    let (costs, wrong) = measure(setting, &server, &loads).await?;
    let reading = meter.read()?;
    dev.stop().await?;

    let mut outcome = Outcome {
        about: "One `backstamp dev` takes in all loads over HTTP, one after the other, and holds them while pages of all are asked for \
                in turn over one connection, each round in another order. Every answer is compared with what it must show: its total, \
                and the id of every event on it."
            .to_owned(),
        wrong: wrong.into_iter().collect(),
        raw: raw(&loaded, &costs),
        ..Outcome::default()
    };
    tell(&costs, &GOALS, &mut outcome);
    outcome.tables.push(taking_in(&loaded));
    tell_size(&loads, &loaded, &reading, disk, json_bytes(&loads).await?, &mut outcome);
    Ok(outcome)
}

fn tell_size(
    loads: &Loads,
    loaded: &[Loaded],
    reading: &Usage,
    disk: Disk,
    json_bytes: u64,
    outcome: &mut Outcome,
) {
    let held: u64 = loads.all().map(|mix| mix.count()).sum();
    let taking_in = loaded.iter().map(|loaded| loaded.usage[0].memory_peak_bytes).max().unwrap_or(0);
    let memory = taking_in.max(reading.memory_peak_bytes);
    let an_event = |bytes: u64| show(bytes as f64 / held as f64);
    let mut table = Table::new(
        &format!("With {} events held", thousands(held as f64)),
        1,
        &["", "MB", "bytes an event", "of the raw JSON"],
    );
    for (what, bytes) in [
        ("raw JSON of the distinct events", json_bytes),
        ("on disk: both projections and tallies", disk.store_bytes),
        ("on disk: the log, repeats included", disk.log_bytes),
    ] {
        let share = show(bytes as f64 / json_bytes as f64);
        table.row([what.to_owned(), megabytes(bytes), an_event(bytes), share]);
    }
    for (what, bytes) in
        [("memory while taking in", taking_in), ("memory while reading", reading.memory_peak_bytes)]
    {
        table.row([what.to_owned(), megabytes(bytes), String::new(), String::new()]);
    }
    outcome.tables.push(table);
    outcome.measured(Goal::DiskEmbedded, disk.store_bytes as f64 / json_bytes as f64, "");
    outcome.measured(Goal::DevMemory, memory as f64 / 1e6, "");
    outcome.raw["size"] = json!({
        "events_held": held, "json_bytes": json_bytes, "disk": disk, "memory_peak_bytes": memory, "reading": reading,
    });
}

/// What the data takes once nothing is rewritten any more.
async fn disk_at_rest(dev: &Dev) -> Disk {
    let begun = Instant::now();
    let (mut disk, mut since) = (dev.disk(), Instant::now());
    while since.elapsed() < REST && begun.elapsed() < REST_MAX {
        tokio::time::sleep(Duration::from_millis(500)).await;
        let now = dev.disk();
        if now != disk {
            (disk, since) = (now, Instant::now());
        }
    }
    disk
}
