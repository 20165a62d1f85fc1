//! `dev` flat out: events posted over HTTP until they show, beside multi-row inserts into the same two indexed tables of PostgreSQL.

use std::sync::Arc;

use serde_json::json;

use super::check::check_totals;
use super::{ACCOUNT, PERMISSIONS, POSTING, Setting};
use crate::client::Server;
use crate::dev::Dev;
use crate::intake::take_in;
use crate::measure::{Meter, Spread};
use crate::mix::{Mix, Shape};
use crate::options::now_ms;
use crate::peers::Measured;
use crate::peers::postgres::Postgres;
use crate::progress;
use crate::report::goals::Goal;
use crate::report::plot::Plot;
use crate::report::{Outcome, Table, megabytes, show, thousands};

pub(super) async fn dev_ingest(setting: &Setting) -> anyhow::Result<Outcome> {
    let repetitions = setting.pick(5, 1);
    let events = setting.pick(500_000, 20_000);
    let mut mix = Mix::new(Shape::Mixed, "cmp", events, now_ms()?, setting.seed);
    let posted = Arc::new(mix.clone());
    mix.account = Some(ACCOUNT.to_owned());
    let postgres = Postgres::start().await?;
    let (mut ours, mut theirs) = (Vec::new(), Vec::new());
    let mut wrong = Vec::new();
    let bar = progress::rounds("dev and PostgreSQL in turn", repetitions);
    for _ in 0..repetitions {
        ours.push(take_in_by_dev(setting, &posted, &mut wrong).await?);
        theirs.push(postgres.insert_best(&mix).await?);
        bar.inc(1);
    }
    bar.finish_and_clear();

    let mut outcome = Outcome {
        about: format!(
            "{} events of campaigns of all sizes, {} with repeats. `dev` gets them over HTTP, {} a request on {} connections, and is timed \
             until its metrics say that all are done; then a new `dev`. PostgreSQL gets them decoded, by the best of several ways to \
             insert many rows at once, found anew each time, into two tables that are indexed for the two endpoints; repeats are told by \
             their primary keys. Rows are counted in its tables; of `dev` the total of every campaign is compared. A new repetition begins with empty tables.",
            thousands(posted.count() as f64),
            thousands(posted.arrivals() as f64),
            POSTING.batch,
            POSTING.connections
        ),
        wrong,
        versions: [("PostgreSQL".to_owned(), postgres.version.clone())].into(),
        raw: json!({ "dev": ours, "postgres": theirs }),
        ..Outcome::default()
    };
    let mut table = measured_table("Events a second");
    let ratio = median_per_s(&ours) / median_per_s(&theirs);
    for runs in [&theirs, &ours] {
        measured_row(&mut table, runs, median_per_s(&theirs));
    }
    outcome.tables.push(table);
    outcome.plots.push(Plot::bars(
        "rates",
        "Taking in campaigns of all sizes",
        "events a second",
        [&theirs, &ours].map(|runs| (runs[0].name.clone(), median_per_s(runs))).into(),
    ));
    outcome.measured(Goal::DevIngest, ratio, "");
    Ok(outcome)
}

async fn take_in_by_dev(
    setting: &Setting,
    mix: &Arc<Mix>,
    wrong: &mut Vec<String>,
) -> anyhow::Result<Measured> {
    let dev = Dev::start(&setting.program).await?;
    let key = dev.create_key(ACCOUNT, &PERMISSIONS).await?;
    let server = Server::new(&dev.url, Some(&key))?;
    let (us, meter) = (Meter::start("load", std::process::id())?, Meter::start("backstamp dev", dev.pid()?)?);
    let bar = progress::events("dev: taking in", mix.arrivals());
    let taken_in = take_in(&server, &Server::new(&dev.ops_url, None)?, mix, POSTING, &bar).await?;
    bar.finish_and_clear();
    let usage = vec![meter.read()?, us.read()?];
    let rows = check_totals(&server, mix, wrong).await?;
    dev.stop().await?;
    Ok(Measured {
        name: "backstamp dev".to_owned(),
        how: format!("{} events a request, {} connections", POSTING.batch, POSTING.connections),
        records: taken_in.events,
        seconds: taken_in.shown_s,
        rows,
        usage,
    })
}

/// The median of the rates of several runs.
pub(super) fn median_per_s(runs: &[Measured]) -> f64 {
    Spread::of(runs.iter().map(Measured::per_s)).median
}

/// The median of the CPU time an event, in microseconds, of the process that did the work.
pub(super) fn median_cpu_us(runs: &[Measured]) -> f64 {
    Spread::of(runs.iter().map(Measured::cpu_us)).median
}

/// A table for [`measured_row`].
pub(super) fn measured_table(title: &str) -> Table {
    let head = ["", "median", "lowest to highest", "×", "CPU µs an event", "memory MB", "how"];
    Table::new(title, 1, &head)
}

/// Adds what several runs of one program came to; the ratio is to `base_per_s`.
pub(super) fn measured_row(table: &mut Table, runs: &[Measured], base_per_s: f64) {
    let Some(first) = runs.first() else { return };
    let per_s = Spread::of(runs.iter().map(Measured::per_s));
    let of_processes = |of: &dyn Fn(&Measured, usize) -> String| {
        let all: Vec<String> = first
            .usage
            .iter()
            .enumerate()
            .map(|(at, usage)| format!("{}: {}", usage.process, of(first, at)))
            .collect();
        all.join("<br>")
    };
    let cpu = of_processes(&|_, at| {
        let of_run = |run: &Measured| Some(run.usage.get(at)?.cpu_us_per(run.records));
        show(Spread::of(runs.iter().filter_map(of_run)).median)
    });
    let memory = of_processes(&|_, at| {
        let peak = runs.iter().filter_map(|run| Some(run.usage.get(at)?.memory_peak_bytes)).max();
        megabytes(peak.unwrap_or(0))
    });
    table.row([
        first.name.clone(),
        thousands(per_s.median),
        format!("{} to {}", thousands(per_s.min), thousands(per_s.max)),
        show(per_s.median / base_per_s),
        cpu,
        memory,
        first.how.clone(),
    ]);
}
