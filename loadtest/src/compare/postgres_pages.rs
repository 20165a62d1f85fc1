//! The first and the last page of a campaign of a million events, each with its total: PostgreSQL, the embedded store and Cassandra in turn.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Instant;

use anyhow::{Context, ensure};
use serde_json::json;

use super::{ACCOUNT, PERMISSIONS, POSTING, Setting};
use crate::client::{Connection, Server};
use crate::dev::Dev;
use crate::intake::{await_done, take_in};
use crate::measure::Spread;
use crate::mix::shown::{Shown, Timeline, View};
use crate::mix::{Mix, Shape};
use crate::options::now_ms;
use crate::peers::postgres::{Postgres, Reader, Wanted};
use crate::peers::servers::{Servers, Stack};
use crate::progress;
use crate::publish::publish;
use crate::report::goals::Goal;
use crate::report::plot::Plot;
use crate::report::{Outcome, Table, show, thousands};

const PER_PAGE: u64 = 100;
/// How often ours are asked for each time that PostgreSQL is: they take so much less.
const OURS_A_ROUND: usize = 10;
const STORES: [&str; 3] = ["PostgreSQL", "embedded", "Cassandra"];

pub(super) async fn postgres_pages(setting: &Setting) -> anyhow::Result<Outcome> {
    let mut mix = Mix::new(Shape::Giant, "cmp", setting.pick(1_000_000, 20_000), now_ms()?, setting.seed);
    let posted = Arc::new(mix.clone());
    mix.account = Some(ACCOUNT.to_owned());
    let mix = Arc::new(mix);

    let postgres = Postgres::start().await?;
    let inserted = postgres.insert_best(&mix).await?;
    let reader = postgres.reader().await?;

    let dev = Dev::start(&setting.program).await?;
    let key = dev.create_key(ACCOUNT, &PERMISSIONS).await?;
    let embedded = Server::new(&dev.url, Some(&key))?;
    let bar = progress::events("dev: taking in", mix.arrivals());
    take_in(&embedded, &Server::new(&dev.ops_url, None)?, &posted, POSTING, &bar).await?;
    bar.finish_and_clear();

    let servers = Servers::start().await?;
    let stack = Stack::start(&servers, &setting.program).await?;
    let ingest = stack.ingest().await?;
    let ops = Server::new(ingest.ops_url.as_deref().context("it says where it is")?, None)?;
    let bar = progress::events("Cassandra: taking in", mix.arrivals());
    publish(&servers.kafka.bootstrap, &stack.topic("mail.events"), &mix, None, &bar).await?;
    bar.set_position(0);
    await_done(&ops, mix.arrivals(), |done| bar.set_position(done)).await?;
    bar.finish_and_clear();
    ingest.drain().await?;
    let query = stack.query().await?;
    let key = stack.create_key(ACCOUNT).await?;
    let cassandra = Server::new(query.url.as_deref().context("it says where it is")?, Some(&key))?;
    servers.settle().await?;

    let pages = Page::both(&mix);
    let mut ours = [embedded.connect().await?, cassandra.connect().await?];
    let rounds = setting.pick(30, 3);
    let bar = progress::rounds("pages in turn", rounds);
    let mut took_ms: [[Vec<f64>; 3]; 2] = Default::default();
    let mut wrong = BTreeSet::new();
    for _ in 0..rounds {
        for (page, took_ms) in pages.iter().zip(&mut took_ms) {
            let (ms, shown) = page.ask_postgres(&reader).await?;
            took_ms[0].push(ms);
            wrong.extend(page.fault(STORES[0], &shown));
            for (store, connection) in (1..).zip(&mut ours) {
                for _ in 0..OURS_A_ROUND {
                    let (ms, shown) = page.ask_ours(connection).await?;
                    took_ms[store].push(ms);
                    wrong.extend(page.fault(STORES[store], &shown));
                }
            }
        }
        bar.inc(1);
    }
    bar.finish_and_clear();
    query.drain().await?;
    stack.remove().await?;
    dev.stop().await?;

    let ms = took_ms.map(|of_page| of_page.map(Spread::of));
    let mut outcome = Outcome {
        about: format!(
            "One campaign of {} events. PostgreSQL is asked over one connection by prepared statements for `count(*)` and for the page by \
             `OFFSET`, on a table that is indexed for both and has been vacuumed and analysed; ours over HTTP. One page after the other, \
             the stores in turn. Totals and the ids of all rows are compared with what they must be, in all three.",
            thousands(mix.count() as f64)
        ),
        wrong: wrong.into_iter().collect(),
        versions: [("PostgreSQL".to_owned(), postgres.version.clone())].into(),
        raw: json!({ "ms": ms, "inserted": inserted, "stores": STORES }),
        ..Outcome::default()
    };
    let mut table = Table::new(
        &format!("Pages of {PER_PAGE} with their total"),
        2,
        &["page", "store", "requests", "p50 ms", "p10 to p90 ms", "p99 ms", "times as fast as PostgreSQL"],
    );
    let mut bars = Vec::new();
    for (page, of_page) in pages.iter().zip(&ms) {
        for (store, spread) in STORES.into_iter().zip(of_page) {
            let Spread { count, p10, median, p90, p99, .. } = *spread;
            bars.push((format!("{store}: {}", page.name), median));
            table.row([
                page.name.to_owned(),
                store.to_owned(),
                count.to_string(),
                show(median),
                format!("{} to {}", show(p10), show(p90)),
                show(p99),
                show(of_page[0].median / median),
            ]);
        }
        outcome.measured(page.goal, of_page[0].median / of_page[1].median, "");
    }
    outcome.tables.push(table);
    outcome.plots.push(Plot::bars("pages", "A page of a million events, with its total", "ms", bars));
    Ok(outcome)
}

/// A page that all stores are asked for.
struct Page {
    name: &'static str,
    goal: Goal,
    mix: Arc<Mix>,
    campaign: String,
    view: View,
    want: Shown,
}

impl Page {
    /// The first and the last.
    fn both(mix: &Arc<Mix>) -> [Page; 2] {
        let first = View::first(Timeline::Campaign(0), PER_PAGE);
        [("first", Goal::PostgresFirst, 0.0), ("last", Goal::PostgresLast, 1.0)].map(|(name, goal, share)| {
            let view = first.clone().at_share(share, mix.count());
            Page { name, goal, mix: mix.clone(), campaign: mix.campaign_id(0), want: mix.shown(&view), view }
        })
    }

    async fn ask_postgres(&self, reader: &Reader) -> anyhow::Result<(f64, Shown)> {
        let wanted = Wanted {
            account: ACCOUNT,
            campaign: &self.campaign,
            kind: None,
            offset: (self.view.page - 1) * PER_PAGE,
            limit: PER_PAGE,
        };
        let page = reader.page(&wanted).await?;
        Ok((page.seconds * 1000.0, Shown { total: page.total, ids: page.ids }))
    }

    async fn ask_ours(&self, connection: &mut Connection) -> anyhow::Result<(f64, Shown)> {
        let path = self.view.path(&self.mix);
        let begun = Instant::now();
        let answer = connection.get(&path).await?;
        let ms = begun.elapsed().as_secs_f64() * 1000.0;
        ensure!(answer.status.is_success(), "{path}: {}", answer.status);
        Ok((ms, Shown::of_answer(&answer.body)?))
    }

    fn fault(&self, store: &str, shown: &Shown) -> Option<String> {
        Some(format!("{store}: {} {}", self.name, shown.fault(&self.want)?))
    }
}
