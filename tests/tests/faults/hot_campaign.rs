//! One campaign gets a million events while others get a few: theirs show about as soon as they do in quiet times.

use std::collections::HashSet;
use std::time::{Duration, Instant};

use anyhow::ensure;
use backstamp_tests::client::Client;
use backstamp_tests::client::Prefix;
use backstamp_tests::deployment::{Addresses, CLASSIC, Deployment, EVENTS};
use backstamp_tests::eventually;
use backstamp_tests::kafka::Topics;
use backstamp_tests::model::{Endpoint, Query};
use backstamp_tests::servers::{Cassandra, Kafka, Profile};
use chrono::{TimeDelta, Utc};
use futures::stream::{self, StreamExt};
use serde_json::json;
use tokio::task::spawn_blocking;
use uuid::Uuid;

use super::scene::{Scene, is_whole, sized};

const PATIENCE: Duration = Duration::from_secs(1800);
/// How often a page is asked for until it shows what was published.
const POLL: Duration = Duration::from_millis(4);
/// What may pass at most, as a share of what passes in quiet times.
const P99_RATIO_MAX: f64 = 2.0;
const IN_FLIGHT_MAX: usize = 1000;
const PAGE_ROWS: usize = 100;

#[tokio::test]
async fn a_hot_campaign_does_not_hold_up_small_ones() {
    let (hot, probes, rate) = (sized(3000, 1_000_000), sized(20, 500), sized(2000, hot_rate()));
    // Times are judged on servers that are set up for work, not for quick tests.
    let own = if is_whole() { Some(start_servers().await) } else { None };
    let addresses = match &own {
        Some((kafka, cassandra)) => Addresses::direct(&kafka.bootstrap, &cassandra.contact),
        None => Addresses::shared().await,
    };
    let mut scene = Scene::at(addresses, CLASSIC, 6100, sized(500, 5000)).await;
    let records = scene.records().to_vec();
    scene.deployment.publish(&records, &mut scene.sender_rng).await;
    let _ingest = scene.deployment.ingest().await;
    scene.deployment.wait_until_done().await;
    let (account, key) = scene.trial.keys.iter().next().map(|(a, k)| (a.clone(), k.clone())).unwrap();
    let probing =
        Probing { deployment: &scene.deployment, client: &scene.client, account: &account, key: &key };

    // The first ones warm caches.
    probing.probe(probes / 10).await;
    let quiet = probing.probe(probes).await;
    let (hot_took, beside) = tokio::join!(probing.heat(hot, rate), async {
        let mut delays = Delays::default();
        // As long as it is hot, and at least so many.
        while delays.visible.len() < probes || !probing.is_heated(hot).await {
            delays.extend(probing.probe(10).await);
        }
        delays
    });
    let (quiet, beside) = (quiet.p99(), beside.p99());
    let rates = hot as f64 / hot_took.as_secs_f64();
    let shown = format!(
        "{hot} events of one campaign at {rates:.0}/s: beside it a small one's event shows after {} ms (p99; quiet {} ms), and a page \
         takes {} ms (quiet {} ms)",
        beside.0.as_millis(),
        quiet.0.as_millis(),
        beside.1.as_millis(),
        quiet.1.as_millis()
    );
    eprintln!("--- {shown}");
    probing.walk(hot).await;
    scene.deployment.wait_until_done().await;
    if is_whole() {
        for (quiet, beside) in [(quiet.0, beside.0), (quiet.1, beside.1)] {
            assert!(beside.as_secs_f64() <= quiet.as_secs_f64() * P99_RATIO_MAX, "{shown}");
        }
    }
    scene.clear_up().await;
}

async fn start_servers() -> (Kafka, Cassandra) {
    let kafka = spawn_blocking(|| Kafka::start(Profile::Benchmark));
    let cassandra = spawn_blocking(|| Cassandra::start(Profile::Benchmark));
    let (kafka, cassandra) = tokio::join!(kafka, cassandra);
    (kafka.unwrap().unwrap(), cassandra.unwrap().unwrap())
}

/// Events a second of the hot campaign: `BACKSTAMP_FAULTS_HOT_RATE`, or what leaves two cores room for others.
fn hot_rate() -> u64 {
    std::env::var("BACKSTAMP_FAULTS_HOT_RATE").ok().and_then(|rate| rate.parse().ok()).unwrap_or(2000)
}

#[derive(Default)]
struct Delays {
    /// From published to shown.
    visible: Vec<Duration>,
    /// Of a page.
    page: Vec<Duration>,
}

impl Delays {
    fn extend(&mut self, other: Delays) {
        self.visible.extend(other.visible);
        self.page.extend(other.page);
    }

    fn p99(mut self) -> (Duration, Duration) {
        let at = |delays: &mut Vec<Duration>| {
            delays.sort_unstable();
            delays[(delays.len() * 99).div_ceil(100) - 1]
        };
        (at(&mut self.visible), at(&mut self.page))
    }
}

struct Probing<'a> {
    deployment: &'a Deployment,
    client: &'a Client,
    account: &'a str,
    key: &'a str,
}

impl Probing<'_> {
    /// Publishes an event of a campaign of its own, and waits until it shows; so many times.
    async fn probe(&self, count: usize) -> Delays {
        let mut delays = Delays::default();
        for _ in 0..count {
            let campaign = format!("small_{}", Uuid::new_v4().simple());
            let event = self.event(&campaign, &campaign, 0);
            let published = Instant::now();
            self.deployment.topics.publish(EVENTS, Some(campaign.as_bytes()), event.as_bytes(), None).await;
            let page = eventually(PATIENCE, async || {
                loop {
                    let asked = Instant::now();
                    if self.total(&campaign, 1).await? == Some(1) {
                        return Ok(asked.elapsed());
                    }
                    tokio::time::sleep(POLL).await;
                }
            })
            .await;
            delays.visible.push(published.elapsed());
            delays.page.push(page);
        }
        delays
    }

    /// Publishes `count` events of the hot campaign, `rate` a second at most. Returns how long that took.
    async fn heat(&self, count: usize, rate: u64) -> Duration {
        let topics = Topics::new(&self.deployment.addresses.kafka, &self.deployment.topics.name(""));
        let topics = &topics;
        let started = Instant::now();
        stream::iter(0..count)
            .map(|number| async move {
                let due = Duration::from_micros(number as u64 * 1_000_000 / rate);
                tokio::time::sleep(due.saturating_sub(started.elapsed())).await;
                let event = self.event("hot", &format!("hot_{number}"), number);
                topics.publish(EVENTS, Some(b"hot"), event.as_bytes(), None).await;
            })
            .buffered(IN_FLIGHT_MAX)
            .for_each(async |()| ())
            .await;
        started.elapsed()
    }

    fn event(&self, campaign: &str, id: &str, number: usize) -> String {
        let at = Utc::now() - TimeDelta::seconds(i64::try_from(number % 100_000).unwrap());
        json!({
            "account_id": self.account, "id": id, "type": "open", "occurred_at": at.to_rfc3339(), "campaign_id": campaign,
            "contact_id": Uuid::new_v5(&Uuid::NAMESPACE_OID, (number % 20_000).to_string().as_bytes()),
        })
        .to_string()
    }

    async fn page(&self, campaign: &str, page: usize) -> anyhow::Result<serde_json::Value> {
        let query = Query::new().with("per_page", PAGE_ROWS).with("page", page);
        let reply = self.client.read(Endpoint::Campaign, Prefix::Short, campaign, self.key, &query).await?;
        ensure!(matches!(reply.status, 200 | 404), "{} {}", reply.status, reply.body);
        Ok(reply.body)
    }

    async fn total(&self, campaign: &str, page: usize) -> anyhow::Result<Option<u64>> {
        Ok(self.page(campaign, page).await?["meta"]["total"].as_u64())
    }

    async fn is_heated(&self, count: usize) -> bool {
        self.total("hot", 1).await.unwrap().is_some_and(|total| total >= count as u64)
    }

    /// Reads the hot campaign page by page: every event once, and every page with the same total.
    async fn walk(&self, count: usize) {
        let pages = count.div_ceil(PAGE_ROWS);
        let mut ids = HashSet::with_capacity(count);
        let mut read = stream::iter(1..=pages + 1).map(|page| self.page("hot", page)).buffered(8);
        while let Some(page) = read.next().await {
            let page = page.unwrap();
            assert_eq!(page["meta"]["total"].as_u64(), Some(count as u64));
            for event in page["data"]["events"].as_array().unwrap() {
                assert!(ids.insert(event["id"].as_str().unwrap().to_owned()), "{event} is there twice");
            }
        }
        assert_eq!(ids.len(), count);
    }
}
