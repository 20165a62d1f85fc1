//! The whole on real servers: tables and topics of its own, as many `ingest` and `query` as wanted, and a sender.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use anyhow::ensure;
use backstamp_tests::client::Client;
use backstamp_tests::history::{Record, Topic};
use backstamp_tests::kafka::Topics;
use backstamp_tests::program::{Program, Running};
use backstamp_tests::{eventually, servers, unique_name};
use futures::stream::{self, StreamExt};
use rand::RngExt;
use rand::rngs::StdRng;
use rand::seq::IndexedRandom;

pub(super) const EVENTS: &str = "mail.events";
const REFERENCES: &str = "mail.references";
const CAMPAIGN_EVENTS: &str = "mail.campaign-events";
const DEAD: &str = "mail.events.dead";
/// A member that was killed is missed after 3 seconds; new partitions are seen after one.
const KAFKA_OPTIONS: &str =
    "session.timeout.ms=3000,heartbeat.interval.ms=500,topic.metadata.refresh.interval.ms=1000";
/// How long what was published may take to be done with. Far more than it needs: only what hangs runs into it.
const PATIENCE: Duration = Duration::from_secs(240);
const IN_FLIGHT_MAX: usize = 200;

/// Tables and topics that nobody else uses.
pub(super) struct Deployment {
    pub(super) topics: Topics,
    keyspace: String,
    group: String,
}

/// Where the flawed records of a history lie in `mail.events`, and their bytes.
pub(super) type Flawed = BTreeMap<(i32, i64), Vec<u8>>;

impl Deployment {
    /// Applies the schema to a new keyspace and to new topics.
    pub(super) async fn new() -> Deployment {
        let name = unique_name("model");
        let (kafka, _) = tokio::join!(servers::kafka(), servers::cassandra());
        let topics = kafka.topics(&format!("{name}."));
        let deployment = Deployment { topics, keyspace: name.clone(), group: name };
        let output = Program::run(&["schema", "apply"], &deployment.environment().await).await;
        assert!(output.status.success(), "{output}");
        deployment
    }

    /// What tells every subcommand where it is to work.
    pub(super) async fn environment(&self) -> Vec<(&'static str, &str)> {
        let [brokers, prefix] = self.topics.environment();
        vec![
            brokers,
            prefix,
            ("BACKSTAMP_KAFKA_OPTIONS", KAFKA_OPTIONS),
            ("BACKSTAMP_SCYLLA_NODES", &servers::cassandra().await.contact),
            ("BACKSTAMP_KEYSPACE", &self.keyspace),
            ("BACKSTAMP_GROUP", &self.group),
            ("BACKSTAMP_RATE_LIMIT", "off"),
        ]
    }

    /// Starts one more `ingest`.
    pub(super) async fn ingest(&self) -> Running {
        Program::start(&["ingest"], &self.environment().await).await
    }

    /// Starts a `query`, with a client of it.
    pub(super) async fn query(&self) -> (Running, Client) {
        let query = Program::start(&["query"], &self.environment().await).await;
        let client = Client::new(query.url()).unwrap();
        (query, client)
    }

    /// Publishes records: references in their order, events in almost any order, under any key, in any of the partitions that there
    /// are now. Returns where the flawed ones lie.
    pub(super) async fn publish(&self, records: &[Record], rng: &mut StdRng) -> Flawed {
        // A new producer: one that is there does not see at once that a topic has grown.
        let topics = servers::kafka().await.topics(&self.topics.name(""));
        let partitions: Vec<i32> = topics.ends(EVENTS).await.into_keys().collect();
        let (events, references): (Vec<&Record>, Vec<&Record>) =
            records.iter().partition(|record| record.topic == Topic::Events);
        let placed: Vec<(&Record, Option<String>, Option<i32>)> = events
            .into_iter()
            .map(|record| (record, any_key(record, rng), any_partition(&partitions, rng)))
            .collect();
        let publish_events = stream::iter(&placed)
            .map(async |(record, key, partition)| {
                let value = record.value.as_deref().unwrap();
                let key = key.as_deref().map(str::as_bytes);
                let place = topics.publish(EVENTS, key, value, *partition).await;
                record.flaw.map(|_| (place, value.to_vec()))
            })
            .buffer_unordered(IN_FLIGHT_MAX)
            .filter_map(async |flawed| flawed)
            .collect::<Flawed>();
        let publish_references = async {
            for record in references {
                let key = record.key.as_deref().unwrap().as_bytes();
                match &record.value {
                    Some(value) => topics.publish(REFERENCES, Some(key), value, None).await,
                    None => topics.publish_tombstone(REFERENCES, key).await,
                };
            }
        };
        let (flawed, ()) = tokio::join!(publish_events, publish_references);
        flawed
    }

    /// How many records were published so far, flawed ones and repeats included.
    pub(super) async fn published(&self) -> usize {
        let mut count = 0;
        for topic in [EVENTS, REFERENCES] {
            count += self.topics.ends(topic).await.values().sum::<i64>();
        }
        usize::try_from(count).unwrap()
    }

    /// Waits until so many records were published.
    pub(super) async fn wait_until_published(&self, count: usize) {
        eventually(PATIENCE, async || {
            let published = self.published().await;
            ensure!(published >= count, "only {published} of {count} records are published");
            Ok(())
        })
        .await;
    }

    /// Waits until the ingests have done all that was published so far.
    pub(super) async fn wait_until_done(&self) {
        // In this order: the first fills the log of the third.
        let logs = [("", EVENTS), (".references", REFERENCES), (".own", CAMPAIGN_EVENTS)];
        for (suffix, topic) in logs {
            let group = format!("{}{suffix}", self.group);
            eventually(PATIENCE, async || {
                let lag = self.topics.lag(&group, topic).await;
                ensure!(lag == 0, "{lag} records of {topic} are not done");
                Ok(())
            })
            .await;
        }
    }

    /// Checks that the dead letters are the flawed records and no others, byte for byte, each at least once.
    pub(super) async fn check_dead_letters(&self, flawed: &Flawed) {
        let mut found = BTreeSet::new();
        for letter in self.topics.consume_all(DEAD).await {
            assert_eq!(letter.header("backstamp.topic"), Some(EVENTS), "{letter:?}");
            let header = |name| letter.header(name).unwrap_or_else(|| panic!("no {name}: {letter:?}"));
            let place =
                (header("backstamp.partition").parse().unwrap(), header("backstamp.offset").parse().unwrap());
            assert!(!header("backstamp.code").is_empty() && !header("backstamp.message").is_empty());
            let sent = flawed.get(&place).unwrap_or_else(|| panic!("a record without a flaw: {letter:?}"));
            assert_eq!(letter.payload.as_ref(), Some(sent), "a dead letter was changed");
            found.insert(place);
        }
        let missing: Vec<_> = flawed.keys().filter(|place| !found.contains(place)).collect();
        assert!(missing.is_empty(), "flawed records without a dead letter: {missing:?}");
    }

    /// Removes tables and topics from servers that go on.
    pub(super) async fn remove(self) {
        self.topics.delete(&[EVENTS, REFERENCES, CAMPAIGN_EVENTS, DEAD]).await;
        servers::cassandra().await.drop_keyspace(&self.keyspace).await;
    }
}

/// The recommended key, another one, or none.
fn any_key(record: &Record, rng: &mut StdRng) -> Option<String> {
    match rng.random_range(0..4) {
        0 => None,
        1 => Some(format!("any-{}", rng.random_range(0..50))),
        _ => record.key.clone(),
    }
}

/// Mostly the key's choice.
fn any_partition(partitions: &[i32], rng: &mut StdRng) -> Option<i32> {
    if rng.random_bool(0.3) { partitions.choose(rng).copied() } else { None }
}
