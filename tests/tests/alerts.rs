//! Every alert, caused on real servers of its own: it fires, and it clears once its cause is gone.
//!
//! The rules are those of `deploy/prometheus`, with shorter windows and waits, and the same thresholds.
#![expect(clippy::unwrap_used, reason = "a test that cannot go on fails")]

use std::time::Duration;

use anyhow::{Result, ensure};
use backstamp_tests::client::{Client, send};
use backstamp_tests::contract::{event, minutes_ago, new_id};
use backstamp_tests::kafka::Topics;
use backstamp_tests::program::{Program, Running};
use backstamp_tests::prometheus::{Prometheus, repository_file};
use backstamp_tests::servers::{Cassandra, Kafka, Profile};
use backstamp_tests::stack::PERMISSIONS;
use backstamp_tests::{eventually, unique_name};
use reqwest::Method;
use serde_json::json;
use tokio::task::JoinSet;

/// How long an alert may take to fire or to clear. Far more than it needs: only what hangs runs into it.
const PATIENCE: Duration = Duration::from_secs(240);
const EVENTS: &str = "mail.events";
const DEAD: &str = "mail.events.dead";
const PAUSE: Duration = Duration::from_millis(100);
/// Reads that are under way at once.
const READS_MAX: usize = 64;
/// What `mail.events` keeps here, so that a short outage is half of it.
const RETENTION_MS: &str = "60000";

/// Windows and waits of the rules, and what they are here.
const SHORTER: [(&str, &str); 14] = [
    ("[5m]", "[10s]"),
    ("[10m]", "[10s]"),
    ("[15m]", "[15s]"),
    ("offset 15m", "offset 15s"),
    ("[30m]", "[10s]"),
    ("[1h]", "[15s]"),
    ("[2h]", "[15s]"),
    ("[6h]", "[15s]"),
    ("[1d]", "[20s]"),
    ("[3d]", "[20s]"),
    ("interval: 15s", "interval: 1s"),
    ("> 300)", "> 10)"),
    ("> bool 10", "> bool 8"),
    ("for: ", "for: 1s # "),
];

fn shorter_rules() -> String {
    SHORTER.iter().fold(repository_file("deploy/prometheus/rules.yaml"), |rules, (from, to)| {
        assert!(rules.contains(from), "the rules have no {from}");
        rules.replace(from, to)
    })
}

/// Backstamp on servers of its own.
struct Site {
    prometheus: Prometheus,
    cassandra: Cassandra,
    topics: Topics,
    query: Client,
    key: String,
    contact: String,
    collect: Running,
    ingest: Running,
    _query: Running,
    _kafka: Kafka,
}

impl Site {
    async fn new() -> Site {
        let started = tokio::task::spawn_blocking(|| {
            Ok::<_, anyhow::Error>((Kafka::start(Profile::Tests)?, Cassandra::start(Profile::Tests)?))
        });
        let (kafka, cassandra) = started.await.unwrap().unwrap();
        let name = unique_name("alerts");
        let topics = kafka.topics(&format!("{name}."));
        let [brokers, prefix] = topics.environment();
        let environment = [
            brokers,
            prefix,
            ("BACKSTAMP_SCYLLA_NODES", cassandra.contact.as_str()),
            ("BACKSTAMP_KEYSPACE", name.as_str()),
            ("BACKSTAMP_GROUP", name.as_str()),
            ("BACKSTAMP_RATE_LIMIT", "off"),
            ("BACKSTAMP_EVENTS_PARTITIONS", "2"),
        ];
        let applied = Program::run(&["schema", "apply"], &environment).await;
        assert!(applied.status.success(), "{applied}");
        let log_append_time = ("message.timestamp.type", "LogAppendTime");
        topics.set(EVENTS, &[("retention.ms", RETENTION_MS), log_append_time]).await;
        let (ingest, query, collect) = tokio::join!(
            Program::start(&["ingest"], &environment),
            Program::start(&["query"], &environment),
            Program::start(&["collect"], &environment),
        );
        let key = Program::create_key("alerts", &PERMISSIONS, &environment).await;
        let jobs =
            [("backstamp-ingest", &ingest), ("backstamp-query", &query), ("backstamp-collect", &collect)];
        let jobs = jobs.map(|(job, running)| (job, vec![running.ops_address().to_owned()]));
        Site {
            prometheus: Prometheus::start(&jobs, &shorter_rules()),
            topics,
            query: Client::new(query.url()).unwrap(),
            key,
            contact: new_id(),
            collect,
            ingest,
            _query: query,
            cassandra,
            _kafka: kafka,
        }
    }

    /// Publishes an event, and asks for a page, whose answer may come when it will.
    async fn use_it(&self, reads: &mut JoinSet<()>) {
        let more = json!({ "contact_id": self.contact, "account_id": "alerts", "campaign_id": "c" });
        let open = event(&new_id(), "open", minutes_ago(1), &more).to_string();
        self.topics.publish(EVENTS, None, open.as_bytes(), None).await;
        // The first stage needs the store for one that waits for its send.
        let more = json!({ "message_id": new_id(), "account_id": "alerts" });
        let waits = event(&new_id(), "open", minutes_ago(1), &more).to_string();
        self.topics.publish(EVENTS, None, waits.as_bytes(), None).await;
        while reads.try_join_next().is_some() {}
        if reads.len() < READS_MAX {
            let path = format!("/contacts/{}/events", self.contact);
            let read = send(self.query.request(Method::GET, &path).bearer_auth(&self.key));
            reads.spawn(async move {
                // While the store is away it may be any answer, or none.
                let _ = read.await;
            });
        }
    }

    /// Uses it all the while until `is_so`.
    async fn use_until(&self, is_so: impl AsyncFn() -> Result<()>) {
        let wanted = eventually(PATIENCE, async || is_so().await);
        let using = async {
            let mut reads = JoinSet::new();
            loop {
                self.use_it(&mut reads).await;
                tokio::time::sleep(PAUSE).await;
            }
        };
        tokio::select! {
            () = wanted => {}
            () = using => {}
        }
    }

    /// Uses it until all of these alerts fire, or none of them does.
    async fn use_until_firing(&self, alerts: &[&str], fire: bool) {
        self.use_until(async || {
            let firing = self.prometheus.firing().await?;
            let wrong = alerts.iter().filter(|alert| firing.iter().any(|name| name == *alert) != fire);
            let wrong: Vec<_> = wrong.collect();
            ensure!(wrong.is_empty(), "{wrong:?}, wanted to fire: {fire}; firing: {firing:?}");
            Ok(())
        })
        .await;
        eprintln!("{}: {}", if fire { "fire" } else { "have cleared" }, alerts.join(", "));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn each_alert_fires_when_it_is_caused_and_clears_afterwards() {
    let mut site = Site::new().await;
    let outage = [
        "BackstampStoreFailing",
        "BackstampKeyStoreFailing",
        "BackstampPartitionStuck",
        "BackstampNotCommitting",
        "BackstampRetentionAtRisk",
        "BackstampFreshnessBurn",
        "BackstampAvailabilityBurn",
    ];
    site.use_until(async || {
        let age = site.prometheus.query("backstamp:visible_age:seconds").await?;
        ensure!(age.iter().any(|(_, seconds)| *seconds < 8.0), "visible until {age:?} s ago");
        Ok(())
    })
    .await;
    site.use_until_firing(&outage, false).await;

    // The store is away.
    site.cassandra.node().stop();
    site.use_until_firing(&outage, true).await;
    site.cassandra.node().cont();
    site.use_until_firing(&outage, false).await;

    // The store is slow: it stands still every now and then.
    site.use_until_firing(&["BackstampLatencyBurn"], false).await;
    slow(&mut site).await;
    site.use_until_firing(&["BackstampLatencyBurn"], false).await;

    // A process hangs.
    site.collect.stop();
    site.use_until_firing(&["BackstampTargetDown"], true).await;
    site.collect.cont();
    site.use_until_firing(&["BackstampTargetDown"], false).await;

    // A sender sends rubbish.
    for _ in 0..200 {
        site.topics.publish(EVENTS, None, b"rubbish", None).await;
    }
    site.use_until_firing(&["BackstampDeadLettersRising"], true).await;
    site.use_until_firing(&["BackstampDeadLettersRising"], false).await;

    // Rubbish that cannot be put aside.
    site.topics.set(DEAD, &[("max.message.bytes", "10")]).await;
    site.topics.publish(EVENTS, None, &[b'x'; 1000], None).await;
    site.use_until_firing(&["BackstampDeadLettersUnwritable"], true).await;
    site.topics.set(DEAD, &[("max.message.bytes", "2000000")]).await;
    site.use_until_firing(&["BackstampDeadLettersUnwritable"], false).await;

    // Records are deleted before they are read.
    site.ingest.stop();
    let mut behind = 0;
    for _ in 0..5 {
        // Each as large as what one fetch takes: the one that was under way when the process stopped has the first.
        behind = site.topics.publish(EVENTS, None, &[b'x'; 100_000], Some(0)).await.1 + 1;
    }
    site.topics.delete_records(EVENTS, 0, behind).await;
    site.ingest.cont();
    site.use_until_firing(&["BackstampOffsetsLost"], true).await;
    site.use_until_firing(&["BackstampOffsetsLost"], false).await;
}

/// Reads go on, each of them slow, until that is noticed.
async fn slow(site: &mut Site) {
    let path = format!("/contacts/{}/events", site.contact);
    eventually(PATIENCE, async || {
        for _ in 0..5 {
            site.cassandra.node().stop();
            let request = site.query.request(Method::GET, &path).bearer_auth(&site.key);
            let read = tokio::spawn(send(request));
            tokio::time::sleep(3 * PAUSE).await;
            site.cassandra.node().cont();
            read.await??;
        }
        let firing = site.prometheus.firing().await?;
        ensure!(firing.iter().any(|name| name == "BackstampLatencyBurn"), "firing: {firing:?}");
        Ok(())
    })
    .await;
    eprintln!("fire: BackstampLatencyBurn");
}
