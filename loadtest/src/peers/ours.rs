//! `backstamp ingest` from Kafka to Cassandra: the full job. Decodes, filters, joins, hands each event on to its owner, drops repeats,
//! writes the rows of both timelines and their tallies.

use std::path::Path;
use std::time::Duration;

use anyhow::{Context, ensure};
use reqwest::{Client, StatusCode};
use serde_json::Value;
use tokio::task::spawn_blocking;
use tokio::time::{Instant, sleep};

use super::freshness::{self, Fresh, Load, Marker, as_it_is};
use super::servers::{Servers, Service, Stack};
use super::topic::{self, Publisher};
use super::{ACCOUNT, Measured, table};
use crate::measure::{Meter, Usage};
use crate::mix::Mix;

const EVENTS: &str = "mail.events";
/// How often progress is looked at. More often it is a tenth of what `ingest` does.
const LOOK_EVERY: Duration = Duration::from_millis(100);
/// Without progress for so long, all is taken for done, and counted.
const QUIET_MIN: Duration = Duration::from_secs(1);
/// Without progress for so long, it has failed.
const STILL_MAX: Duration = Duration::from_secs(60);

/// Backstamp on tables and topics of its own. What it does first, it does slower: the servers' compilers have to warm up.
pub(crate) struct Ours<'a> {
    stack: Stack<'a>,
    /// Events that were published, each once.
    events: u64,
    http: Client,
}

impl<'a> Ours<'a> {
    /// Makes the tables and topics of `program`.
    pub(crate) async fn start(servers: &'a Servers, program: &Path) -> anyhow::Result<Ours<'a>> {
        let http = Client::builder().no_proxy().tcp_nodelay(true).build()?;
        Ok(Ours { stack: Stack::start(servers, program).await?, events: 0, http })
    }

    /// Fills the topic with a mix, which has an account and events that were not published before; then starts `ingest` and measures
    /// until every row is in the table. The time begins with the first event done.
    pub(crate) async fn flat_out(&mut self, mix: &Mix) -> anyhow::Result<Measured> {
        let publisher = Publisher::new(&self.stack.servers.kafka.bootstrap, &self.stack.topic(EVENTS), 20)?;
        let filling = mix.clone();
        spawn_blocking(move || {
            topic::fill(&publisher, &filling, as_it_is)?;
            publisher.finish()
        })
        .await??;
        self.events += mix.count();
        self.stack.servers.settle().await?;

        let servers = self.stack.servers.meters()?;
        let ingest = self.stack.ingest().await?;
        let mut meters = vec![Meter::start("backstamp ingest", ingest.pid())?];
        meters.extend(servers);
        let (seconds, usage) = self.watch(&ingest, &meters, mix.arrivals()).await?;
        ingest.drain().await?;
        let rows = self.rows().await?;
        ensure!(rows == 2 * self.events, "{rows} rows are in the table, not {}", 2 * self.events);
        Ok(Measured {
            name: "Backstamp".to_owned(),
            how: String::new(),
            records: mix.arrivals(),
            seconds,
            rows: 2 * mix.count(),
            usage,
        })
    }

    /// Measures how fresh the endpoints are, as `query` answers them, under a load.
    pub(crate) async fn freshness(&mut self, load: Load<'_>) -> anyhow::Result<Fresh> {
        let key = self.stack.create_key(ACCOUNT).await?;
        let (ingest, query) = tokio::try_join!(self.stack.ingest(), self.stack.query())?;
        let url = query.url.clone().context("it says where it is")?;
        let mut meters = vec![Meter::start("backstamp ingest", ingest.pid())?];
        meters.push(Meter::start("backstamp query", query.pid())?);
        meters.extend(self.stack.servers.meters()?);
        let publisher = Publisher::new(
            &self.stack.servers.kafka.bootstrap,
            &self.stack.topic(EVENTS),
            freshness::LINGER_MS,
        )?;
        let is_visible = async |marker: &Marker| {
            let campaign = format!("{url}/v1/campaigns/{}/events", marker.id);
            let contact = format!("{url}/contacts/{}/events", marker.contact);
            Ok(self.total(&campaign, &key, "/meta/total").await? == 1
                && self.total(&contact, &key, "/pagination/total").await? == 1)
        };
        let delays = freshness::measure(publisher, load, ACCOUNT, as_it_is, is_visible).await?;
        self.events += load.mix.count() + delays.markers();
        let usage = meters.iter().map(Meter::read).collect::<Result<_, _>>()?;
        ingest.drain().await?;
        query.drain().await?;
        Ok(delays.of("Backstamp", usage))
    }

    /// Removes its tables and topics.
    pub(crate) async fn remove(self) -> anyhow::Result<()> {
        self.stack.remove().await
    }

    /// Waits until `records` are done and all is quiet. Returns how long it took, in seconds, and what was used until the last progress.
    async fn watch(
        &self,
        ingest: &Service,
        meters: &[Meter],
        records: u64,
    ) -> anyhow::Result<(f64, Vec<Usage>)> {
        let url = format!("{}/metrics", ingest.ops_url.as_deref().context("it says where it is")?);
        let (mut first, mut last) = (None, (Progress::default(), Instant::now(), Vec::new()));
        loop {
            let text = self.http.get(&url).send().await?.text().await?;
            let (progress, now) = (Progress::read(&text), Instant::now());
            if progress != last.0 {
                first.get_or_insert((progress.events, now));
                last = (progress, now, meters.iter().map(Meter::read).collect::<Result<Vec<_>, _>>()?);
            }
            let still = last.1.elapsed();
            ensure!(still < STILL_MAX, "ingest stands still at {} of {records} events", last.0.events);
            if last.0.events >= records && still > QUIET_MIN {
                break;
            }
            sleep(LOOK_EVERY).await;
        }
        let (before, begun) = first.context("there was progress")?;
        // What was done at the first look took its time, too.
        let share = (records - before.min(records - 1)) as f64 / records as f64;
        Ok(((last.1 - begun).as_secs_f64() / share, last.2))
    }

    async fn rows(&self) -> anyhow::Result<u64> {
        let table = format!("{}.timeline_rows", self.stack.keyspace);
        table::count_rows(&self.stack.servers.session, &table, "account_id, subject, part").await
    }

    /// The total that a page tells; none where the campaign or the contact is not known yet.
    async fn total(&self, url: &str, key: &str, path: &str) -> anyhow::Result<u64> {
        let response = self.http.get(url).bearer_auth(key).send().await?;
        if response.status() == StatusCode::NOT_FOUND {
            return Ok(0);
        }
        let answer: Value = response.error_for_status()?.json().await?;
        answer.pointer(path).and_then(Value::as_u64).context("no total in the answer")
    }
}

/// How far `ingest` is, by its metrics. Only to know when to count.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
struct Progress {
    /// Events done, whatever became of them.
    events: u64,
    /// Batches of owners done: a campaign's row may come after its contact's.
    batches: u64,
}

impl Progress {
    fn read(metrics: &str) -> Progress {
        let sum = |start: &str| {
            let lines = metrics.lines().filter(|line| line.starts_with(start));
            lines.filter_map(|line| line.rsplit_once(' ')?.1.parse::<u64>().ok()).sum()
        };
        Progress {
            events: sum("backstamp_events_total{"),
            batches: sum("backstamp_batch_duration_seconds_count{stage=\"own\"}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn progress_is_read_from_metrics() {
        let metrics = "# HELP backstamp_events_total Events\nbackstamp_events_total{outcome=\"projected\"} 7\n\
            backstamp_events_total{outcome=\"duplicate\"} 2\nbackstamp_batch_duration_seconds_count{stage=\"own\"} 3\n\
            backstamp_batch_duration_seconds_count{stage=\"place\"} 5\n";
        assert_eq!(Progress::read(metrics), Progress { events: 9, batches: 3 });
    }
}
